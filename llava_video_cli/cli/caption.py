"""`llvid caption`: one prompt for every video of a folder, or for one."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, cast

import typer

from ..errors import ContextError, LlvidError, MediaError, UsageError
from ..model import Model
from ..prompt.subtitles import notes_of
from ..runs.caption import CaptionJob, Task
from ..runs.formats import SIDECARS, Sidecar
from ..runs.ledger import Errors, Ledger
from ..runs.plan import Todo, sort_out
from ..runs.preflight import expected_request, first_request, largest_requests
from ..runs.record import Failure, Record, path_to_text, settings_values
from ..runs.sidecar import Sidecars
from ..system.atomic_file import whole_file
from ..video import read_windows
from ..video.files import Found, find
from ..video.sampling import clock
from . import console
from .ask import answer_all, collect
from .media import check, listed, read_speech
from .options import (
    AnyModelFlags,
    ClusterFlags,
    FrameFlags,
    OutputFlags,
    PresetFlag,
    RunFlags,
    SpeechFlag,
    TextFlags,
    takes,
)
from .run import Pacing, Plan, carry_out, confirm_overwrite, load
from .settings import Settings, check_text, settle, weights_asked

_TABLES = (".jsonl", ".csv", ".parquet")
_RECORDS = "llvid-captions.jsonl"  # where they go when only sidecars were asked for
_FEW = 20  # videos, which take less to check than a model takes to load
_EXAMPLES = """
Examples:

    llvid caption video.mp4

    llvid caption clips/ -o captions.jsonl

    llvid caption clips/ --recursive --sidecar txt --prompt "Describe this video in one sentence."

    llvid caption film.mkv --every 10 -o film.srt

    find . -name "*.mp4" -print0 | llvid caption - -o captions.csv

    llvid caption videos.parquet -o captions.jsonl --ray auto --gpus 8
"""


def add_to(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("caption", help=f"Caption videos: one, or a folder of thousands.\n{_EXAMPLES}")(caption)


@takes(
    run=RunFlags, model=AnyModelFlags, frames=FrameFlags, text=TextFlags, speech=SpeechFlag, preset=PresetFlag,
    cluster=ClusterFlags, output=OutputFlags,
)  # fmt: skip
def caption(
    paths: Annotated[
        list[str],
        typer.Argument(
            metavar="PATH...", show_default=False,
            help="Videos and folders of videos; `-` reads a list of them from stdin, a line each or divided by NUL.",
        ),
    ],
    *,
    to: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="PATH", show_default=False,
            help="Where the records go, by its ending: .jsonl, .csv or .parquet; for one video also .txt, .srt, .vtt.",
        ),
    ] = None,
    sidecar: Annotated[
        list[str] | None,
        typer.Option(
            "--sidecar", metavar="txt|srt|vtt", help="A file beside each video; repeatable.", show_default=False
        ),
    ] = None,
    output_dir: Annotated[
        str | None,
        typer.Option(
            "--output-dir", metavar="DIR", show_default=False,
            help="The sidecars go there instead, with the videos' tree kept.",
        ),
    ] = None,
    recursive: Annotated[bool, typer.Option("--recursive", "-r", help="Folders in folders too.")] = False,
    prompt: Annotated[
        str | None,
        typer.Option("--prompt", metavar="TEXT", help="What to ask [default: the preset's].", show_default=False),
    ] = None,
    every: Annotated[
        float | None,
        typer.Option(
            "--every", min=0.01, metavar="SECONDS", help="Caption each window of that length.", show_default=False
        ),
    ] = None,
    run: RunFlags,
    model: AnyModelFlags,
    frames: FrameFlags,
    text: TextFlags,
    speech: SpeechFlag,
    preset: PresetFlag,
    cluster: ClusterFlags,
    output: OutputFlags,
) -> None:  # fmt: skip
    """Caption what is to be captioned, and say what came of it."""
    settings = settle(preset, model, frames, text)
    if prompt is not None:
        check_text(prompt, "the prompt")
        settings = replace(settings, preset=replace(settings.preset, prompt=prompt))
    asked = weights_asked(model)
    asked |= {"quantize": settings.preset.quantize} if settings.preset.quantize in ("8bit", "4bit") else {}
    is_file = len(paths) == 1 and paths[0] != "-" and not Path(paths[0]).is_dir()
    subtitles = read_speech(speech, paths if is_file else ())
    task = Task(settings.preset, every, tuple(sorted(asked.items())), settings.drawn_seed, subtitles)
    sidecars = Sidecars(_kinds(sidecar or ()), Path(output_dir) if output_dir else None)
    if output_dir and not sidecar:
        raise UsageError("--output-dir is for sidecars", "say which with --sidecar txt, srt or vtt")
    pacing = Pacing(run.batch_size, run.timeout)
    suffix = Path(to).suffix.lower() if to is not None else ""
    if cluster != ClusterFlags():
        from .cluster import check_flags, on_cluster

        if settings.remote is not None:
            raise UsageError("--ray and --server exclude each other", "several servers share a folder without Ray")
        check_flags(cluster, sidecars=bool(sidecar), subtitles=subtitles is not None)
        code = on_cluster(listed(paths), to, task, settings, output, pacing, cluster, recursive, run.overwrite)
        if code:
            raise typer.Exit(code)
        return
    is_one = is_file and not sidecar
    if is_one and suffix in (f".{kind}" for kind in SIDECARS):
        code = _one_file(paths[0], Path(to or ""), task, settings, output, pacing, run.overwrite)
    elif is_one and to is None and not output.json:
        _stream(paths[0], task, settings, output)
        return
    else:
        if to is not None and suffix not in _TABLES:
            wanted = ", ".join(_TABLES)
            raise UsageError(f"{to} must end in {wanted}, or, for a single video, in .txt, .srt or .vtt")
        if all(path != "-" and not os.path.exists(path) for path in paths):  # noqa: PTH110 - quick
            check(paths[:1])  # a slip, told at once
        code = _folder(listed(paths), to, sidecars, task, settings, output, pacing, recursive, run.overwrite)
    if code:
        raise typer.Exit(code)


def _kinds(names: Sequence[str]) -> tuple[Sidecar, ...]:
    for name in names:
        if name not in SIDECARS:
            raise UsageError(f"--sidecar must be one of {', '.join(SIDECARS)}, got {name!r}")
    return tuple(kind for kind in SIDECARS if kind in names)


def _folder(
    paths: Sequence[str],
    to: str | None,
    sidecars: Sidecars,
    task: Task,
    settings: Settings,
    output: OutputFlags,
    pacing: Pacing,
    recursive: bool,
    overwrite: bool,
) -> int:
    """Caption all that is not done yet; return the exit code."""
    table = Path(to) if to is not None else _default_table(paths, sidecars)
    is_parquet = table is not None and table.suffix.lower() == ".parquet"
    if is_parquet:
        from ..runs.parquet import check_parquet

        check_parquet()
    if table is None:
        todo = sort_out(find(paths, recursive=recursive), task, set(), sidecars, Path(), overwrite=overwrite)
        _check_few(todo)
        return carry_out(_plan(todo, task, settings, sidecars), settings, output, pacing, None, None)
    home = table.with_name(f"{table.name}.jsonl") if is_parquet else table
    if overwrite:
        confirm_overwrite(table, output)
    with Ledger(home, overwrite=overwrite) as ledger:
        todo = sort_out(
            find(paths, recursive=recursive), task, ledger.done, sidecars, table.parent, overwrite=overwrite
        )
        _restore(todo, ledger, sidecars)
        _check_few(todo)
        if todo.kept and not output.quiet:
            console.note(
                f"captions that are not of this run are left as they are: {len(todo.kept)}, such as that of "
                f"{todo.kept[0]} (--overwrite writes over them)"
            )
        errors = Errors(table, overwrite=overwrite)
        try:
            return carry_out(_plan(todo, task, settings, sidecars), settings, output, pacing, ledger, errors)
        finally:
            if is_parquet:
                from ..runs.parquet import write_parquet

                write_parquet(ledger.records(), table)


def _plan(todo: Todo, task: Task, settings: Settings, sidecars: Sidecars) -> Plan:
    roots = {key: found.root for found, key in todo.videos} if sidecars.kinds else {}

    def jobs(model: Model) -> Iterator[CaptionJob]:
        values = settings_values(model, settings.preset, task.subtitles)
        return (CaptionJob(found.path, key, task, values, model.budget) for found, key in todo.videos)

    def wrote(record: Record) -> None:
        if sidecars.kinds:
            sidecars.write(record, roots[record.key])

    def is_fatal(error: LlvidError) -> bool:
        # as many frames of each video: what doesn't fit the context once never will
        return isinstance(error, ContextError) and settings.preset.sampling.fps is None

    return Plan(
        len(todo.videos), todo.done, todo.failures, jobs, wrote, is_fatal,
        expected=partial(largest_requests, task, rope_auto=settings.rope_auto),
        first=lambda: first_request((found.path for found, _ in todo.videos), task),
    )  # fmt: skip


def _restore(todo: Todo, ledger: Ledger, sidecars: Sidecars) -> None:
    """Write the sidecars of records that are done, where they are gone or were not asked for before."""
    if todo.lost:
        for record in ledger.records():
            if record.key in todo.lost:
                sidecars.write(record, todo.lost[record.key])


def _check_few(todo: Todo) -> None:
    """Find the bad ones of a few videos before a model is loaded, maybe for nothing."""
    if len(todo.videos) > _FEW:
        return
    for found, key in tuple(todo.videos):
        try:
            check([found.path])
        except MediaError as error:
            todo.videos.remove((found, key))
            todo.failures.append(Failure({"video_path": path_to_text(found.path)}, error))


def _default_table(paths: Sequence[str], sidecars: Sidecars) -> Path | None:
    """Return where the records go when nobody said: with sidecars, beside them; else to stdout."""
    if not sidecars.kinds:
        return None
    if sidecars.folder is not None:
        try:
            sidecars.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LlvidError(f"can't make the folder {sidecars.folder}: {error.strerror}") from None
        return sidecars.folder / _RECORDS
    first = Path(paths[0]) if paths else Path()
    return (first if first.is_dir() else first.parent) / _RECORDS


def _one_file(
    path: str, to: Path, task: Task, settings: Settings, output: OutputFlags, pacing: Pacing, overwrite: bool
) -> int:
    """Write the captions of one video as text or subtitles."""
    check([path])
    if to.exists() and not overwrite:
        raise LlvidError(f"{to} is there already", "--overwrite writes over it")
    confirm_overwrite(to, output)
    found = Found(path, "", Path(path).stat())

    def wrote(record: Record) -> None:
        with whole_file(to) as beside:
            beside.write_text(SIDECARS[cast("Sidecar", to.suffix.lower()[1:])](record), encoding="utf-8", newline="")

    plan = replace(
        _plan(Todo([(found, task.key(path, found.status))]), task, settings, Sidecars()),
        wrote=wrote,
        is_fatal=lambda _: True,
    )
    return carry_out(plan, settings, replace(output, json=False), pacing, None, None, silent=True)


def _stream(path: str, task: Task, settings: Settings, output: OutputFlags) -> None:
    """Write the caption of one video to stdout as it comes; of windows, a line each with its times."""
    if task.every_seconds is None:
        answer_all([path], [task.preset.prompt], settings, output, task.subtitles)
        return
    if check([path]) != [None]:
        raise MediaError(f"{path} is a picture: it has no windows")
    model, heard = (
        load(
            settings,
            output,
            largest_requests(task, rope_auto=settings.rope_auto),
            lambda: [expected_request(path, task)],
        ),
        [],
    )
    for start, end, frames in read_windows(path, task.every_seconds, settings.preset.sampling, resize=model.shrink):
        console.write(f"{clock(start)}-{clock(end)}  ")
        with console.progress(output.quiet) as progress:
            request, part = task.request(frames, model.budget)
            collect(model.stream(request), progress, silent=False)
        heard.append(part)
    for line in notes_of(heard) if not output.quiet else ():
        console.note(line)
