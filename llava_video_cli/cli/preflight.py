"""The model of a command, loaded beside other work; not before it is sure that what is asked fits its context."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from ..conversation import Media, Request
from ..inference.loader import token_counter
from ..model import Model
from ..prompt.budget import TokenCounter
from ..video import Frames, VideoInfo, announced_frames
from ..video.image import Picture
from ..video.sampling import Sampling
from . import console
from .background import LOADING, Background
from .download import prefetch
from .options import OutputFlags
from .settings import Settings

_LONG_SECONDS = 99999.0  # the time of a frame that isn't known yet, written out as `--timestamps` does


class Opening:
    """Loads a model in the background, downloaded first; `begin` or `insist` begins it, with what will be asked."""

    def __init__(self, settings: Settings, output: OutputFlags, spinner: console.Progress) -> None:
        """Read the config; raises `ModelError` or `UsageError` for a model that can't be loaded as it is wanted."""
        self._settings, self._output, self._spinner = settings, output, spinner
        self._counter = None
        if settings.remote is None:  # what a server's model takes, the server says
            self._counter = token_counter(settings.model, settings.loading, settings.revision)
        self._loading: Background[Model] | None = None
        self._told = False

    @property
    def has_begun(self) -> bool:
        """Whether the model loads."""
        return self._loading is not None

    def begin(self, requests: Iterable[Request] = ()) -> None:
        """Load if these fit: they take at least as much as what will be asked, with `unread` in the place of videos.

        With `--rope-factor auto` they say how far the context must reach.
        """
        requests = list(requests) if self._counter is not None else []
        if self._settings.rope_auto and requests:
            self._stretch(requests)
        if all(self.counter.surely_fits(request) for request in requests):
            self._load()

    def insist(self, requests: Iterable[Request] = ()) -> None:
        """Load unless it loads already; raises `ContextError` for a request that doesn't fit."""
        if self._loading is not None:
            return
        for request in requests:
            self.counter.check(request)
        self._load()

    def check(self, wait_seconds: float = 0.0) -> None:
        """Raise what went wrong while loading, if it has within that time."""
        if self._loading is not None:
            self._loading.check(wait_seconds)

    def result(self) -> Model:
        """Wait for the model."""
        self.insist()
        assert self._loading is not None, "insist has begun it"
        model = self._loading.result()
        for line in self._unsaid(model):
            console.note(line)
        return model

    @property
    def counter(self) -> TokenCounter:
        """Counts the tokens of a model that is loaded here."""
        assert self._counter is not None, "nothing has to be found out of a server's model"
        return self._counter

    def _unsaid(self, model: Model) -> Iterator[str]:
        """Yield what a user should know about how the model was loaded, once; a server's notes are told before."""
        if self._settings.remote is None and not self._output.quiet and not self._told:
            self._told = True
            yield from model.notes

    def _stretch(self, requests: Sequence[Request]) -> None:
        before = self.counter.checkpoint.rope_factor
        self._counter = self.counter.stretched(map(self.counter.budget, requests))
        stretched = self._counter.checkpoint
        if stretched.rope_factor != before:
            loading = replace(self._settings.loading, rope_factor=stretched.rope_factor)
            self._settings = replace(self._settings, loading=loading)
            if not self._output.quiet:
                console.note(
                    f"--rope-factor {stretched.rope_factor:g}: the context is {stretched.context_tokens:,} tokens"
                )
        self._settings = replace(self._settings, rope_auto=False)

    def _load(self) -> None:
        if self._loading is None:
            prefetch(self._settings, self._spinner, quiet=self._output.quiet)
            self._loading = Background(LOADING, self._settings.open)


def unread(path: str, sampling: Sampling) -> Frames:
    """Return as many frames as a sampling can take from a video at most, all black, with times as long as can be.

    Only with `fps` must the video be looked at: raises `MediaError` then.
    """
    import numpy as np

    if sampling.fps is not None:
        return announced_frames(path, sampling)
    images = np.broadcast_to(np.uint8(0), (sampling.frames, 1, 1, 3))
    info = VideoInfo(path, _LONG_SECONDS, 1, 1, None, "", 0)
    return Frames(images, (_LONG_SECONDS,) * sampling.frames, info, sampling)


def stand_ins(
    paths: Iterable[str],
    pictures: Iterable[Picture | None],
    sampling: Sampling,
    of: Callable[[str, Sampling], Frames] = unread,
) -> list[Media]:
    """Return what stands for media until they are read: pictures are read already."""
    return [picture or of(path, sampling) for path, picture in zip(paths, pictures, strict=True)]
