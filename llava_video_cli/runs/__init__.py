"""Many videos or requests to records, from Python as from the command line: resumable, read ahead, in batches.

Imports are late: a program that only writes JSON needs none of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

if TYPE_CHECKING:
    from ..model import Model
    from ..preset import Preset
    from ..prompt.subtitles import Subtitles
    from .formats import Sidecars
    from .ledger import Errors, Ledger
    from .preflight import ModelSource
    from .resumable import ResumableRun, RunOptions

_RECORDS = "llvid-captions.jsonl"  # where records go when only sidecars were asked for


def caption_folder(
    paths: str | Path | Iterable[str | Path],
    output: str | Path | None = None,
    *,
    preset: Preset | str | None = None,
    model: Model | ModelSource | str | None = None,
    every_seconds: float | None = None,
    subtitles: Subtitles | None = None,
    sidecars: Sidecars | None = None,
    recursive: bool = False,
    overwrite: bool = False,
    options: RunOptions | None = None,
) -> ResumableRun:
    """Return the run that captions files, and the videos in folders; iterate over it for the records.

    What stands in `output` (.jsonl, .csv or .parquet) is done and is not made again, unless `overwrite`. Without
    `output`, records are only yielded; `sidecars` then have their records in `llvid-captions.jsonl` beside them. One
    video may go to .txt, .srt or .vtt. The preset has the prompt, the sampling, the generation, and the model's name,
    which `model` replaces. `every_seconds` captions each window of that length. `subtitles` are for one video.

    Raises `UsageError` for an output or a preset that makes no sense, `LlvidError` for an output that can't be used;
    iterating raises `ModelError` for a model that can't be loaded, and what else ends a run.
    """
    from ..video.files import find
    from .caption import caption_task
    from .formats import SIDECARS, Sidecars, check_output
    from .plan import check_few, plan_folder, plan_one_file, restore_sidecars
    from .resumable import ResumableRun, RunOptions

    names = [os.fspath(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]
    options, sidecars = options or RunOptions(), sidecars or Sidecars()
    preset, source, drawn_seed = _settle(preset, model)
    task = caption_task(preset, source, every_seconds, drawn_seed, subtitles)
    to = Path(output) if output is not None else default_output(names, sidecars)
    if to is not None:
        check_output(to, one_video=len(names) == 1 and not sidecars.kinds)
    with ExitStack() as opened:
        if to is not None and to.suffix.lower()[1:] in SIDECARS:
            plan, written_to = plan_one_file(names[0], to, task, overwrite=overwrite), None
        else:
            written_to = _open_output(to, opened, overwrite=overwrite)
            done = written_to[0].done if written_to else set()
            home = to.parent if to else Path()
            found = find(names, recursive=recursive)
            todo = plan_folder(found, task, done, sidecars, home, overwrite=overwrite)
            if written_to:
                restore_sidecars(todo, written_to[0].records(), sidecars)
            check_few(todo)
            if todo.kept:
                options.notify(
                    f"captions that are not of this run are left as they are: {len(todo.kept)}, such as that of "
                    f"{todo.kept[0]} (--overwrite writes over them)"
                )
            plan = todo.run_plan(task, sidecars, rope_auto=source.rope_auto)
        return ResumableRun(
            plan, source, preset, written_to, subtitles=subtitles, options=options, opened=opened.pop_all()
        )


def answer_file(
    requests: str | Path,
    output: str | Path,
    *,
    preset: Preset | str | None = None,
    model: Model | ModelSource | str | None = None,
    overwrite: bool = False,
    options: RunOptions | None = None,
) -> ResumableRun:
    """Return the run that answers a file of requests, a JSON object a line; iterate over it for the records.

    What stands in `output` (.jsonl) is done and is not made again, unless `overwrite`. What a request doesn't say, the
    preset says. Raises as `caption_folder` does, and `UsageError` for a line that is not understood.
    """
    from ..errors import UsageError
    from .requests import plan_requests, read_requests
    from .resumable import ResumableRun, RunOptions

    options, to = options or RunOptions(), Path(output)
    if to.suffix.lower() != ".jsonl":
        raise UsageError(f"{to} must end in .jsonl")
    preset, source, drawn_seed = _settle(preset, model)
    asked = list(read_requests(Path(requests), preset))
    if to.exists() and to.samefile(requests):
        raise UsageError(f"{to} holds the requests", "name another file with -o")
    with ExitStack() as opened:
        written_to = _open_output(to, opened, overwrite=overwrite)
        assert written_to is not None
        plan = plan_requests(asked, source, preset, drawn_seed, written_to[0].done)
        return ResumableRun(plan, source, preset, written_to, options=options, opened=opened.pop_all())


def _settle(
    preset: Preset | str | None, model: Model | ModelSource | str | None
) -> tuple[Preset, ModelSource, int | None]:
    """Return what a run is made of, with a seed where the answers are sampled and none is given; and that seed."""
    from ..model import Loading, Quantize
    from ..preset import load_preset
    from .preflight import ModelSource

    if preset is None or isinstance(preset, str):
        preset = load_preset(preset or ("demo" if model == "demo" else "default"))
    if model is None or isinstance(model, str):
        frames = preset.sampling.frames if preset.sampling.fps is None else None
        source = ModelSource(model or preset.model, Loading(quantize=preset.quantize, frames=frames))
    elif isinstance(model, ModelSource):
        source = model
    else:
        source = ModelSource(model.name, Loading(), opened=model)
    quantize = source.loading.quantize if source.opened is None else source.opened.settings.get("quantize")
    quantize = quantize if quantize in get_args(Quantize) else "none"
    drawn_seed, generation = None, preset.generation
    if generation.temperature > 0 and generation.seed is None:
        import secrets

        drawn_seed = secrets.randbits(32)
        generation = replace(generation, seed=drawn_seed)  # here, so that the record can name it
    preset = replace(preset, model=source.name, quantize=cast("Quantize", quantize), generation=generation)
    if source.asked is None:
        source = replace(source, asked=_asked(source))
    return preset, source, drawn_seed


def _asked(source: ModelSource) -> tuple[tuple[str, object], ...]:
    """Return the options of the weights that are not the defaults, as a user of the command line gives them."""
    loading = source.loading
    options = {
        "revision": source.revision,
        "dtype": None if loading.dtype == "auto" else loading.dtype,
        "rope_factor": "auto" if source.rope_auto else loading.rope_factor and f"{loading.rope_factor:g}",
        "pool_stride": loading.pool_stride,
        "pool_mode": loading.pool_mode,
    }
    return tuple((name, value) for name, value in options.items() if value is not None)


def _open_output(to: Path | None, opened: ExitStack, *, overwrite: bool) -> tuple[Ledger, Errors] | None:
    """Open a table and the file of errors beside it; a Parquet file is made of its records when it is closed."""
    from .formats import check_parquet, write_parquet
    from .ledger import Errors, Ledger

    if to is None:
        return None
    is_parquet = to.suffix.lower() == ".parquet"
    if is_parquet:
        check_parquet()
    home = to.with_name(f"{to.name}.jsonl") if is_parquet else to
    ledger = opened.enter_context(Ledger(home, overwrite=overwrite))
    if is_parquet:
        opened.callback(lambda: write_parquet(ledger.records(), to))
    errors = opened.enter_context(Errors(to, overwrite=overwrite))
    return ledger, errors


def default_output(paths: Iterable[str], sidecars: Sidecars) -> Path | None:
    """Return where records go when nobody said: with sidecars, to a file beside them; else nowhere."""
    from ..errors import LlvidError

    if not sidecars.kinds:
        return None
    if sidecars.folder is not None:
        try:
            sidecars.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LlvidError(f"can't make the folder {sidecars.folder}: {error.strerror}") from None
        return sidecars.folder / _RECORDS
    first = Path(next(iter(paths), ""))
    return (first if first.is_dir() else first.parent) / _RECORDS
