"""Downloads and their progress: of checkpoints, and of videos that are typed as a URL or come from stdin."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import typer

from ..errors import LlvidError, ModelError
from ..runs.preflight import ModelLoader
from ..video.sampling import clock
from . import console, decisions

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

    from ..checkpoint.hub import DownloadProgress, Fetched
    from ..speech.whisper import SpeechWeights
    from .options import OutputFlags, QuietFlag
    from .settings import Settings

_ASK = 'llvid ask - "..."'  # in the hints of `spooled`
_LINE_SECONDS = 60.0
_SPOOL_SECONDS = 0.2
_LONG_SECONDS = 60.0  # of reading, after which a live stream is likely


def download(
    model: str, revision: str | None, spinner: console.Progress, *, quiet: bool, offline: bool = False
) -> Fetched:
    """Download a hub id's checkpoint, with a bar in the spinner's place; raises `ModelError`."""
    from ..checkpoint.hub import fetch

    with _shown(model, spinner, quiet=quiet) as show:
        return fetch(model, revision, offline=offline, progress=show)


def fetch_speech(model: str, spinner: console.Progress, *, quiet: bool) -> SpeechWeights:
    """Return the weights of a speech model, downloaded if necessary as `download` does; raises `ModelError`."""
    from ..speech.whisper import fetch_weights, local_weights

    if (weights := local_weights(model)) is None:
        with _shown(model, spinner, quiet=quiet) as show:
            weights = fetch_weights(model, show)
    spinner.say(f"loading {model}")
    return weights


@contextmanager
def _shown(model: str, spinner: console.Progress, *, quiet: bool) -> Iterator[Callable[[DownloadProgress], None]]:
    try:
        with Download(model, spinner, quiet=quiet) as shown:
            yield shown.show
    except KeyboardInterrupt:
        if not quiet:
            console.note("interrupted; run the same command to resume the download")
        raise typer.Exit(130) from None


@contextmanager
def typed_media(typed: Sequence[str], output: QuietFlag, command: str = 'ask - "..."') -> Iterator[Sequence[str]]:
    """Give a path for each medium that was typed, for the `with` block; `-` and URLs are read whole first.

    `command` reads a video from stdin; hints show it. Raises what `spooled` raises.
    """
    from ..video.spool import is_spooled, spooled

    if not any(map(is_spooled, typed)):
        yield typed
        return
    due, long_at = time.monotonic() + _SPOOL_SECONDS, time.monotonic() + _LONG_SECONDS
    with ExitStack() as stack:
        with console.progress(output.quiet) as spinner:

            def show(name: str, count: int, whole: int | None) -> None:
                nonlocal due, long_at
                if time.monotonic() >= due:
                    due = time.monotonic() + _SPOOL_SECONDS
                    if due > long_at and whole is None:
                        long_at = math.inf
                        output.note(f"{name} has not ended: of a live stream, `ffmpeg -t 60` takes a minute")
                    of_all = f" of {console.size(whole)}" if whole else ""
                    spinner.say(f"reading {name}: {console.size(count)}{of_all}")

            stdin = sys.stdin.buffer if sys.stdin is not None else None
            try:
                paths = stack.enter_context(spooled(typed, stdin, progress=show))
            except LlvidError as error:
                error.hint = error.hint and error.hint.replace(_ASK, f"llvid {command}")
                raise
        yield paths


def is_missing(settings: Settings) -> bool:
    """Whether the checkpoint has to be downloaded first. The hub isn't asked."""
    from ..checkpoint import cached_folder, local_folder

    if settings.remote is not None or local_folder(settings.model, settings.revision) is not None:
        return False
    return cached_folder(settings.model, settings.revision) is None


def prefetch(settings: Settings, spinner: console.Progress, *, quiet: bool) -> None:
    """Download the checkpoint, and the speech model, if they are missing, and show the progress."""
    if settings.preset.sampling.speech:
        with suppress(ModelError):  # raised where it is needed: no video may have sound
            fetch_speech(settings.preset.sampling.speech_model, spinner, quiet=quiet)
    if is_missing(settings):
        download(settings.model, settings.revision, spinner, quiet=quiet)


def model_loader(settings: Settings, output: OutputFlags, spinner: console.Progress) -> ModelLoader:
    """Return what loads the model of a run, with its download and its notes shown."""
    show = partial(prefetch, settings, spinner, quiet=output.quiet)
    return ModelLoader(
        settings.source,
        download=show,
        notify=output.note,
        loaded=lambda model: output.detail(*decisions.loaded(model, settings)),
    )


class Download:
    """Shows the progress of a download in a `with` block."""

    def __init__(self, model: str, spinner: console.Progress, *, quiet: bool) -> None:
        self._model, self._spinner, self._quiet = model, spinner, quiet
        self._began = self._line_at = time.monotonic()
        self._bar: Bar | None = None

    def show(self, progress: DownloadProgress) -> None:
        """Update the bar, or write a line if it is due."""
        left_bytes = progress.total_bytes - progress.done_bytes
        if self._quiet or (self._bar is None and not left_bytes):
            return
        if not console.stderr.is_terminal:
            self._line(progress, left_bytes)
            return
        if self._bar is None:
            self._spinner.stop()
            from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
            from rich.progress import Progress as Bar

            words = TextColumn("{task.description}", markup=False)
            columns = (words, BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
            self._bar = Bar(
                *columns, console=console.stderr, transient=True, refresh_per_second=4, speed_estimate_period=30
            )
            # Bytes of an earlier download must not count as speed: the bar begins with them.
            self._bar.add_task("", total=progress.total_bytes, completed=progress.done_bytes)
            self._bar.start()
        name = console.shown(self._model, one_line=True)
        if progress.tries:
            from ..checkpoint.hub import MOST_TRIES

            name = f"asking the hub, try {progress.tries + 1} of {MOST_TRIES}"
        self._bar.update(self._bar.task_ids[0], completed=progress.done_bytes, description=name)

    def _line(self, progress: DownloadProgress, left_bytes: int) -> None:
        now = time.monotonic()
        if now - self._line_at < _LINE_SECONDS:
            return
        self._line_at = now
        rate = progress.received_bytes / (now - self._began)
        left = f", {rate / 1e6:.1f} MB/s, {clock(left_bytes / rate)} left" if rate else ""
        console.note(f"{progress.done_bytes / 1e9:.2f} of {progress.total_bytes / 1e9:.2f} GB{left}")

    def __enter__(self) -> Download:
        self._spinner.say(f"looking up {self._model} on the hub")
        return self

    def __exit__(self, *_: object) -> None:
        self._spinner.stop()
        if self._bar is not None:
            self._bar.stop()
