"""`llvid bench`: how fast this machine is, as a table and as a JSON document."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import MediaError, UsageError
from ..model import Quantize
from ..runs.media import check_media
from ..runs.record import path_to_text
from . import console
from .options import AnyModelFlags, FrameFlags, OutputFlags, PresetFlag, TextFlags, option
from .settings import Settings, settle

if TYPE_CHECKING:
    from ..diagnostics.bench import Bench, BenchModel, MachineInfo, Measurement

# A model with fewer parameters gains nothing from 4-bit weights.
_SMALL = 100_000_000
_LABELS = {"none": "not quantized", "auto": "as loaded"}
HELP = """Measure this machine: decoding, loading, tokens/s, videos/s, memory. The table goes to stderr. With
--json, or if stdout is no terminal, the last line of stdout is one JSON document.

Examples:

    llvid bench -m demo

    llvid bench video.mp4 --quantize 4bit | tail -n 1 > bench.json

    llvid bench --random-weights 7B --quick
"""


def bench(
    video: Annotated[
        str | None,
        typer.Argument(
            metavar="VIDEO", show_default=False, help="The video to read [default: a generated clip, 10 s of 720p]."
        ),
    ] = None,
    *,
    random_weights: Annotated[
        str | None,
        option("The size of a model with random weights: 1B, 7B, 7B-32K or 34B; as -m random:SIZE.", metavar="SIZE"),
    ] = None,
    runs: Annotated[int | None, option("Runs of each measurement [default: 3].", min=1, metavar="N")] = None,
    seconds: Annotated[
        float | None,
        option(
            "Seconds for each precision; measurements that need longer are skipped [default: 60].", min=1, metavar="S"
        ),
    ] = None,
    quick: Annotated[
        bool, option("One run with 8 frames, batches of 1 and 8, and at most 20 s per precision.", "--quick")
    ] = False,
    model: AnyModelFlags,
    preset: PresetFlag,
    output: OutputFlags,
) -> None:
    """Measure, and write the table and the document, after Ctrl-C those of the results so far."""
    if random_weights is not None:
        if model.model is not None:
            raise UsageError("use --random-weights or --model, not both")
        model = replace(model, model=f"random:{random_weights}")
    from ..diagnostics.bench import Bench, BenchPlan, machine_info

    plan = BenchPlan(frames=(8,), batches=(1, 8), runs=1, seconds=20.0) if quick else BenchPlan()
    settings = settle(preset, model, FrameFlags(frames=max(plan.frames)), TextFlags())
    plan = replace(plan, prompt=settings.preset.prompt, runs=runs or plan.runs, seconds=seconds or plan.seconds)
    if video is not None and check_media([video]) != [None]:
        raise MediaError(f"{video} is a picture, not a video")
    precision = settings.preset.quantize if preset.preset and settings.preset.quantize != "auto" else None
    subjects = _subjects(settings, model.quantize or precision)
    with console.progress(output.quiet) as progress, _clip(video, progress) as path:
        progress.say("examining this machine")
        machine = machine_info()
        if machine.is_busy:
            busy = f"load {machine.load:.1f} on {machine.cores} cores"
            output.note(f"the machine is busy ({busy}): the results will be inaccurate")
        results = Bench(path, plan, progress.say)
        is_whole = False
        try:
            results.reading()
            for subject in subjects:
                results.model(subject)
            is_whole = True
        except KeyboardInterrupt:
            progress.stop()
            output.note("interrupted: these are the results so far")
            raise
        finally:
            progress.stop()
            if not output.quiet and not output.json:
                _write_tables(results, machine, settings.model)
            clip = {"name": path_to_text(video) if video else "10 s of 720p, generated"}
            what = {"machine": asdict(machine), "model": settings.model, "video": clip, "is_whole": is_whole}
            if output.json or not console.stdout_is_terminal():
                console.write_json(what | results.values)
            else:
                output.note("--json writes these results as one JSON document")


def _subjects(settings: Settings, quantize: Quantize | None) -> list[BenchModel]:
    """Return the model in each precision to measure, the smallest first: a CPU only reports the highest peak so far."""
    from ..diagnostics.bench import BenchModel

    if settings.remote is not None:
        return [BenchModel("server", settings.open)]
    from ..checkpoint import locate
    from ..checkpoint.random_weights import has_random_weights
    from ..inference.loader import read_facts

    folder, loading = locate(settings.model, settings.revision), settings.loading
    config, facts = read_facts(settings.model, folder, loading)
    if quantize is not None:
        kinds: tuple[Quantize, ...] = (quantize,)
    elif "quantization_config" in config:
        kinds = ("auto",)
    else:
        kinds = ("none",) if facts.parameters.total < _SMALL or loading.device == "mps" else ("4bit", "none")
    is_random = has_random_weights(folder)
    stored = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    return [
        BenchModel(
            label=_LABELS.get(kind, kind),
            open=replace(settings, loading=replace(loading, quantize=kind, prefix_reuse=False)).open,
            facts=facts,
            weight_bytes=facts.parameters.total_bytes("none") if is_random else stored,
            is_random=is_random,
        )
        for kind in kinds
    ]


@contextmanager
def _clip(video: str | None, progress: console.Progress) -> Iterator[str]:
    """Give the path of the video, or of a generated clip that is removed at the end."""
    if video is not None:
        yield video
        return
    from ..demo.world import write_clip
    from .demo import scene

    with tempfile.TemporaryDirectory(prefix="llvid-bench-") as folder:
        path = Path(folder) / "clip.mp4"
        progress.say("generating a clip of 10 s")
        write_clip(path, replace(scene(), width=1280, height=720, duration_seconds=10.0))
        yield str(path)


def _write_tables(results: Bench, machine: MachineInfo, model: str) -> None:
    """Write the machine, then the table of results with a column for each precision."""
    from rich.table import Table
    from rich.text import Text

    gpus = [f"{gpu.name} ({gpu.total_bytes / 1e9:.0f} GB)" for gpu in machine.gpus] or ["no GPU"]
    memory = f"{machine.memory_bytes / 1e9:.0f} GB, " if machine.memory_bytes else ""
    console.note(f"{machine.cpu}, {machine.cores} cores, {memory}{', '.join(gpus)}; {model}")
    cells = results.cells
    labels = list(dict.fromkeys(cell.precision for cell in cells))
    lines = [["", "frames", "batch", *(label or "machine" for label in labels)]]
    rows: dict[tuple[object, ...], dict[str | None, Measurement]] = {}
    for cell in cells:
        rows.setdefault((cell.what, cell.unit, cell.frames, cell.batch), {})[cell.precision] = cell
    for (what, unit, frames, batch), row in rows.items():
        texts = [_shown(row[label]) if label in row else "" for label in labels]
        lines.append([f"{what}, {unit}" if unit else f"{what}", str(frames or ""), str(batch or ""), *texts])
    table = Table(box=None, show_header=False, pad_edge=False)
    for column in zip(*lines, strict=True):
        words = (len(word) for text in column for word in text.split())
        longest = max(words, default=0)  # Rich would cut it where the terminal is narrow
        table.add_column(justify="right" if column[0] else "left", min_width=longest)
    for number, line in enumerate(lines):
        table.add_row(*(Text(console.shown(text, one_line=True)) for text in line), style="" if number else "dim")
    console.stderr.print(table)
    for note in dict.fromkeys(cell.note for cell in cells if cell.runs and cell.note):
        console.note(f"* {note}")


def _shown(cell: Measurement) -> str:
    """Return the text of a cell: the median, with a star if there is a note."""
    if cell.median is None:
        return f"({cell.note})"
    return (f"{cell.median:.3g}" if cell.unit else f"{cell.median:.0%}") + ("*" if cell.note else "")
