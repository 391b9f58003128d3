"""Before a model is loaded: what will be asked is checked against its context, then the weights load in a thread."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..checkpoint.frame_input import frame_input
from ..conversation import Media, Request
from ..errors import LlvidError, MediaError, UsageError
from ..inference import open_model, open_resize
from ..inference.loader import early_counter
from ..model import Loading, Model
from ..prompt.budget import TokenCounter
from ..system.background import LOADING, Background
from ..video import Frames, Resize, VideoInfo, announced_frames, inspect
from ..video.fit import FrameInput
from ..video.image import Picture, is_picture, read_image
from ..video.sampling import MAX_FRAMES, Sampling, longest

if TYPE_CHECKING:
    from .caption import Task

_LONG_SECONDS = 99999.0  # the time of a frame that isn't known yet, written out as `--timestamps` does
_MOST_TRIED = 20  # unreadable videos, after which the search for a first one ends


@dataclass(frozen=True)
class ModelSource:
    """Which model answers: the checkpoint of a name, loaded as `loading` says, or `opened`, which is ready.

    With `rope_auto`, the RoPE factor of `loading` is chosen from what is asked. `asked` are the options of the weights
    that a user gave, as they count for the keys of records; None takes them from `loading`.
    """

    name: str
    loading: Loading
    revision: str | None = None
    rope_auto: bool = False
    opened: Model | None = None
    asked: tuple[tuple[str, Any], ...] | None = None

    def open(self) -> Model:
        """Return the model; loading takes its time. Raises `UsageError` or `ModelError`."""
        return self.opened or open_model(self.name, self.loading, self.revision)


class ModelLoader:
    """Loads a model in the background: `begin` if the requests surely fit its context, `insist` if they may fit.

    `download` is called once, in the caller's thread, before the weights are read. `notify` gets each line that a user
    should know: a RoPE factor that was chosen, and the notes of a model that was loaded here; `loaded` gets that model.
    With `resize_first`, the thread opens the model's `shrink` before the weights: `resize`, once it is there.
    """

    def __init__(
        self,
        source: ModelSource,
        *,
        download: Callable[[], None] = lambda: None,
        notify: Callable[[str], None] = lambda _: None,
        loaded: Callable[[Model], None] = lambda _: None,
        resize_first: bool = False,
    ) -> None:
        """Read the config. Raises `ModelError` or `UsageError` for a model that can't be loaded as `source` wants."""
        self.source = source
        self._download, self._notify, self._loaded = download, notify, loaded
        self._counter = None
        if source.opened is None:
            self._counter = early_counter(source.name, source.loading, source.revision, rope_auto=source.rope_auto)
        self._loading: Background[Model] | None = None
        self._has_notified = False
        self._resize_first = resize_first
        self.resize: Resize | None = None

    @property
    def has_begun(self) -> bool:
        """Whether the model is being loaded, or is loaded."""
        return self._loading is not None

    @property
    def counter(self) -> TokenCounter | None:
        """Counts the tokens of a model that is not loaded yet; None where only a loaded one can count."""
        return self._counter

    @property
    def frame_input(self) -> FrameInput | None:
        """What the model gets of a frame, whether it is loaded or not; None if its files aren't here yet."""
        opened = self.source.opened
        return frame_input(self.source.name, self.source.revision) if opened is None else opened.shrink.input

    def begin(self, requests: Iterable[Request] = ()) -> None:
        """Load if these requests surely fit; they take at least as much of the context as what will be asked.

        With `rope_auto` they say how long the context must be.
        """
        requests = list(requests) if self._counter is not None else []
        if self.source.rope_auto and requests and self._counter is not None:
            self._choose_rope(self._counter, requests)
        if self._counter is None or all(self._counter.surely_fits(request) for request in requests):
            self._load()

    def insist(self, requests: Iterable[Request] = ()) -> None:
        """Load unless that has begun. Raises `ContextError` for a request that doesn't fit."""
        if self._loading is not None:
            return
        if self._counter is not None:
            for request in requests:
                self._counter.check(request)
        self._load()

    def check(self, wait_seconds: float = 0.0) -> bool:
        """Return whether the model is loaded, after waiting for it at most that long. Raises what made loading fail."""
        return self._loading is not None and self._loading.check(wait_seconds)

    def result(self) -> Model:
        """Return the model once it is loaded. Raises what made loading fail."""
        self.insist()
        assert self._loading is not None, "insist has begun it"
        model = self._loading.result()
        if self.source.opened is None and not self._has_notified:
            self._has_notified = True
            for line in model.notes:
                self._notify(line)
            self._loaded(model)
        return model

    def _choose_rope(self, counter: TokenCounter, requests: Sequence[Request]) -> None:
        before = counter.checkpoint.rope_factor
        self._counter = counter = counter.stretched(map(counter.budget, requests))
        checkpoint = counter.checkpoint
        loading = self.source.loading
        if checkpoint.rope_factor != before:
            loading = replace(loading, rope_factor=checkpoint.rope_factor)
            tokens = f"{checkpoint.context_tokens:,} tokens"
            self._notify(f"--rope-factor {checkpoint.rope_factor:g}: the context is {tokens}")
        self.source = replace(self.source, loading=loading, rope_auto=False)

    def _load(self) -> None:
        if self._loading is None:
            self._download()
            self._loading = Background(LOADING, self._open)

    def _open(self) -> Model:
        # One after the other: transformers' lazy modules fail where two threads import them at a time.
        if self._resize_first and self.source.opened is None:
            with suppress(LlvidError):  # a loaded model has its own, or loading says what is wrong
                self.resize = open_resize(self.source.name, self.source.revision)
        return self.source.open()


def most_frames(path: str, sampling: Sampling) -> Frames:
    """Return as many black frames as a sampling can take of any video, with times as long as times can be.

    Only `fps` needs the video: raises `MediaError` then.
    """
    import numpy as np

    if sampling.fps is not None:
        return announced_frames(path, sampling)
    images = np.broadcast_to(np.uint8(0), (sampling.frames, 1, 1, 3))
    info = VideoInfo(path, _LONG_SECONDS, 1, 1, None, "", 0)
    return Frames(images, (_LONG_SECONDS,) * sampling.frames, info, sampling)


def placeholders(
    paths: Iterable[str],
    pictures: Iterable[Picture | None],
    sampling: Sampling,
    frames_of: Callable[[str, Sampling], Frames] = most_frames,
) -> list[Media]:
    """Return media that count as many tokens as the files will: the pictures, which are read, and black frames."""
    return [picture or frames_of(path, sampling) for path, picture in zip(paths, pictures, strict=True)]


def largest_requests(task: Task, *, rope_auto: bool = False) -> list[Request]:
    """Return a request that takes as much of the context as that of any video, or none where that isn't known.

    Raises `UsageError` where `rope_auto` has to know.
    """
    sampling, every = task.preset.sampling, task.every_seconds
    if sampling.fps is not None and (every is None or every == "scene"):
        if rope_auto:
            raise UsageError(
                "--rope-factor auto can't know how many frames --fps gives for each video or shot",
                "use --frames N, or give the factor",
            )
        return []
    if sampling.fps is not None and every is not None and every != "scene":
        most = math.ceil(sampling.fps * longest(every)) + 1
        sampling = replace(sampling, frames=min(most, MAX_FRAMES), fps=None)
    return [task.preset.request(task.preset.prompt, [most_frames("", sampling)])]


def first_request(paths: Iterable[str], task: Task) -> Iterator[Request]:
    """Yield the request about the first video that can be read; none with `fps`.

    Without `fps` a run takes as many frames of each video, so what the first one takes holds for all.
    """
    if task.preset.sampling.fps is not None:
        return
    for path, _ in zip(paths, range(_MOST_TRIED), strict=False):
        with suppress(MediaError):
            yield expected_request(path, task)
            return


def expected_request(path: str, task: Task) -> Request:
    """Return the request about a file, or about its first window, with black frames. Raises `MediaError`.

    Of shots, which take long to find, it is that with the most frames.
    """
    sampling, every = task.preset.sampling, task.every_seconds
    if is_picture(path):
        return task.preset.request(task.preset.prompt, [read_image(path)])
    video = inspect(path, source_fps=sampling.source_fps)
    if every == "scene" and sampling.fps is not None:
        frames = max(map(video.announced, video.windows(every, sampling)), key=lambda shot: shot.frame_count)
    else:
        part = sampling if every is None or every == "scene" else video.windows(every, sampling)[0]
        frames = video.announced(part)
    return task.preset.request(task.preset.prompt, [frames])
