"""`llvid batch`: a file of requests, each with its own media, question and settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ..conversation import Media, Request
from ..errors import LlvidError, MediaError, UsageError
from ..model import Model
from ..runs.ledger import Errors, Ledger
from ..runs.preflight import most_frames
from ..runs.record import Failure, path_to_text, settings_values
from ..runs.requests import BatchRequest, RequestJob, read_requests
from ..video.image import is_picture, read_image
from ..video.sampling import Sampling
from .options import AnyModelFlags, FrameFlags, OutputFlags, PresetFlag, RunFlags, TextFlags, takes
from .run import Pacing, Plan, carry_out, confirm_overwrite
from .settings import Settings, settle, weights_asked

_EXAMPLES = """
Examples:

    llvid batch requests.jsonl -o answers.jsonl

A line of requests.jsonl, relative to its folder:

    {"id": "a1", "video": "a.mp4", "question": "Who is in it?", "frames": 16}
"""


def add_to(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("batch", help=f"Answer a file of requests, a JSON line each.\n{_EXAMPLES}")(batch)


@takes(run=RunFlags, model=AnyModelFlags, frames=FrameFlags, text=TextFlags, preset=PresetFlag, output=OutputFlags)
def batch(
    requests: Annotated[
        str,
        typer.Argument(
            metavar="REQUESTS.jsonl", show_default=False,
            help="Lines of JSON: `id`, `video` or `media`, `question` or `messages`, settings named as the options.",
        ),
    ],
    *,
    to: Annotated[
        str, typer.Option("--output", "-o", metavar="OUT.jsonl", help="Where the answers go.", show_default=False)
    ],
    run: RunFlags,
    model: AnyModelFlags,
    frames: FrameFlags,
    text: TextFlags,
    preset: PresetFlag,
    output: OutputFlags,
) -> None:  # fmt: skip
    """Answer what is not answered yet, and say what came of it."""
    settings = settle(preset, model, frames, text)
    table = Path(to)
    if table.suffix.lower() != ".jsonl":
        raise UsageError(f"{to} must end in .jsonl")
    asked = list(read_requests(Path(requests), settings.preset))
    if table.exists() and table.samefile(requests):
        raise UsageError(f"{to} holds the requests", "name another file with -o")
    if run.overwrite:
        confirm_overwrite(table, output)
    with Ledger(table, overwrite=run.overwrite) as ledger:
        plan = _plan(asked, settings, model, ledger.done)
        errors = Errors(table, overwrite=run.overwrite)
        code = carry_out(plan, settings, output, Pacing(run.batch_size, run.timeout), ledger, errors)
    if code:
        raise typer.Exit(code)


def _plan(asked: list[BatchRequest], settings: Settings, flags: AnyModelFlags, done: set[str]) -> Plan:
    """Sort out what is done; the requests on the same frames become one job."""
    more = [item for item in weights_asked(flags).items() if item[0] not in ("revision", "dtype")]
    weights = repr((settings.model, flags.revision, flags.dtype, settings.preset.quantize, *more))
    groups: dict[Any, list[tuple[BatchRequest, str]]] = {}
    failures = []
    for each in asked:
        try:
            key = each.key(weights, settings.drawn_seed)
        except MediaError as error:
            failures.append(Failure({"id": each.id, "video": path_to_text(each.paths[0])}, error))
            continue
        if key not in done:
            groups.setdefault((each.paths, tuple(asdict(each.sampling).items())), []).append((each, key))
    total = sum(map(len, groups.values()))

    def jobs(model: Model) -> Iterator[RequestJob]:
        values = settings_values(model, settings.preset)
        return (RequestJob(tuple(group), values) for group in groups.values())

    def is_fatal(error: LlvidError) -> bool:
        del error  # one request says nothing about the next
        return False

    def expected() -> Iterator[Request]:
        if settings.rope_auto:
            for each in asked:
                with suppress(MediaError):
                    yield each.request([_unread(path, each.sampling) for path in each.paths])

    skipped = len(asked) - total - len(failures)
    return Plan(total, skipped, failures, jobs, lambda _: None, is_fatal, "requests", "answered", expected)


def _unread(path: str, sampling: Sampling) -> Media:
    """Return what takes at least as many tokens as the file."""
    return read_image(path) if is_picture(path) else most_frames(path, sampling)
