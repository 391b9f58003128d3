"""Videos: what they are, and the frames that a sampling selects from them.

A video is a file, or pictures that are its frames: a folder of them, a pattern of their names (`frame_*.jpg`), or a
list of their paths.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeAlias

from ..errors import MediaError
from .files import PictureList, is_sequence
from .fit import FrameInput, FrameResize
from .limits import Limits
from .sampling import Every, Sampling, Timeline, select_stamps, shot_windows, windows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .reader import Reader, VideoIndex


@dataclass(frozen=True)
class VideoInfo:
    """Facts about a video, read from its content and not from its header.

    `duration_seconds` runs from the start of a player's clock to the last picture's disappearance.
    `width` and `height` are pixels as shown, after rotation; non-square pixels are not stretched. `average_fps` is
    None for a single picture. `rotation_degrees` is the clockwise rotation (0, 90, 180, 270) that was applied to the
    stored pictures. `codec` is the ending of their names where pictures are the frames.
    """

    path: str
    duration_seconds: float
    width: int
    height: int
    average_fps: float | None
    codec: str
    rotation_degrees: int


@dataclass(frozen=True, eq=False)
class Frame:
    """One frame of a video: `image` uint8 (height, width, 3), RGB, upright, and its time on a player's clock."""

    image: NDArray[np.uint8]
    time_seconds: float


class TokenRates(Protocol):
    """How many tokens of a prompt a model takes for what it sees."""

    @property
    def frame_tokens(self) -> int:
        """Tokens of one frame of a video."""

    def picture_tokens(self, height: int, width: int) -> int:
        """Return the tokens of a still picture of so many pixels."""


@dataclass(frozen=True, eq=False)
class Frames:
    """Frames of one video, in order of time. Compared by identity.

    `images` is uint8 (frames, height, width, 3), RGB, upright; an alpha channel is dropped. It must not be changed once
    a model was asked about it: what was computed of it is remembered. `times_seconds` are those of a player's clock, so
    that neither a late start nor an edit list shifts them. `notes` are lines for the user: fewer frames than asked for,
    broken packets, ... `shots` are the times `[start, end)` of the shots that they are spread over, empty if the
    sampling does not look for scenes. `input` is what the model gets of each, None where no model is known. `speech`
    are the lines that are said in the part, with the times `[start, end)` of each; None if the sound was not
    transcribed.
    """

    images: NDArray[np.uint8]
    times_seconds: tuple[float, ...]
    info: VideoInfo
    sampling: Sampling
    notes: tuple[str, ...] = ()
    shots: tuple[tuple[float, float], ...] = ()
    input: FrameInput | None = None
    speech: tuple[tuple[float, float, str], ...] | None = None
    is_video: ClassVar[bool] = True

    @property
    def path(self) -> str:
        """The video's path."""
        return self.info.path

    @property
    def frame_count(self) -> int:
        """The number of frames."""
        return len(self.images)

    @property
    def bytes(self) -> int:
        """Their size in memory."""
        return self.images.nbytes

    def tokens(self, rates: TokenRates) -> int:
        """Return how many tokens of a prompt they take."""
        return self.frame_count * rates.frame_tokens

    @property
    def visible(self) -> tuple[float, float] | None:
        """The shares of the pictures' width and height, of the middle, that the model gets; None if not known."""
        if self.input is None:
            return None
        return self.input.visible(self.info.width, self.info.height, self.sampling.fit)

    @property
    def part_seconds(self) -> tuple[float, float]:
        """The part `[start, end)` of the video that the frames are from."""
        whole, end = self.info.duration_seconds, self.sampling.end_seconds
        return self.sampling.start_seconds, whole if end is None else min(end, whole)


# From a picture to another one, both uint8 (height, width, 3); a `FrameResize` also fits it as the sampling says.
Resize: TypeAlias = "Callable[[NDArray[np.uint8]], NDArray[np.uint8]]"


# A file, a folder or a pattern; or the pictures, in their order.
VideoPath: TypeAlias = "str | os.PathLike[str] | Sequence[str | os.PathLike[str]]"


def _named(path: VideoPath) -> str:
    return os.fspath(path) if isinstance(path, (str, os.PathLike)) else PictureList(path)


def _silent(_: float) -> None:
    """Show no progress."""


@dataclass(frozen=True, eq=False)
class Video:
    """A video whose packets are indexed, so that each further use opens it at most once and indexes nothing."""

    info: VideoInfo
    timeline: Timeline
    index: VideoIndex

    def announced(self, sampling: Sampling) -> Frames:
        """Return the frames that `read` would, with their times, but all black and of one pixel; opens nothing.

        Where some can't be decoded or are left out as static, `read` returns fewer; of `scenes`, as many have other
        times. Raises what `read` raises for a sampling.
        """
        import numpy as np

        try:
            selection = select_stamps(self.timeline, sampling)
        except MediaError as error:
            raise MediaError(f"{self.info.path}: {error}", error.hint) from None
        return Frames(
            images=np.broadcast_to(np.uint8(0), (len(selection.stamps), 1, 1, 3)),
            times_seconds=tuple(self.timeline.seconds(stamp) for stamp in selection.stamps),
            info=self.info,
            sampling=sampling,
            notes=selection.notes,
        )

    def read(
        self,
        sampling: Sampling,
        *,
        limits: Limits | None = None,
        progress: Callable[[float], None] = _silent,
        resize: Resize | None = None,
    ) -> Frames:
        """Return what `read_frames` returns; raises what it raises. Safe in threads."""
        return _read(self.info.path, sampling, limits, progress, resize, self.index)

    def windows(
        self,
        every: Every,
        sampling: Sampling,
        *,
        limits: Limits | None = None,
        progress: Callable[[float], None] = _silent,
    ) -> tuple[Sampling, ...]:
        """Return a sampling for each window of so many seconds, or of each shot, which decodes the whole part once.

        Raises what `sampling.windows`, `sampling.shot_windows` and `read_frames` raise.
        """
        if every != "scene":
            return tuple(windows(self.info.duration_seconds, every, sampling))
        from .reader import open_reader

        fps = sampling.source_fps
        with open_reader(self.info.path, limits or Limits(), progress, self.index, fps) as reader:
            return tuple(shot_windows(reader.timeline, reader.shots(sampling), sampling))


def inspect(
    path: VideoPath,
    limits: Limits | None = None,
    *,
    progress: Callable[[float], None] = _silent,
    source_fps: float | None = None,
) -> Video:
    """Index a video's packets and decode one picture; `source_fps` is that of the samplings that it is read with.

    A file whose packets have no usable stamps (AVI with B-frames, raw streams) is decoded once from start to end.
    Raises MediaError for what can't be shown: no file, a folder without pictures, an empty file, no video, no video
    stream, no picture that can be decoded, more than the limits allow.
    """
    from .reader import open_reader

    name = _named(path)
    with open_reader(name, limits or Limits(), progress, source_fps=source_fps) as reader:
        return Video(_info(name, reader), reader.timeline, reader.index)


def check_scenes(sampling: Sampling, every: Every | None = None) -> None:
    """Raise LlvidError where shots are to be found, but PySceneDetect can't be used."""
    if "scene" in (every, sampling.mode.removesuffix("s")):
        from .scenes import check_installed

        check_installed()


def probe(path: VideoPath, limits: Limits | None = None, *, source_fps: float | None = None) -> VideoInfo:
    """Return the facts about a video, or about pictures as one. One picture is decoded.

    Raises MediaError for what can't be shown: no such file, a folder without pictures, an empty file, no video in it,
    no picture that can be decoded, more than the limits allow.
    """
    return inspect(path, limits, source_fps=source_fps).info


def check_video(path: str | os.PathLike[str], limits: Limits | None = None) -> None:
    """Raise MediaError for what `inspect` refuses. Costs one decoded picture, however long the video is."""
    name = os.fspath(path)
    if is_sequence(name):
        inspect(name, limits)
        return
    from .decode import first_picture
    from .demux import media_errors, no_picture, open_video
    from .limits import Deadline

    with open_video(name, Deadline(name, limits or Limits())) as video, media_errors(name):
        if first_picture(video, []) is None:
            raise no_picture(video)


def announced_frames(path: VideoPath, sampling: Sampling | None = None, *, limits: Limits | None = None) -> Frames:
    """Return what `Video.announced` returns. Raises what it and `inspect` raise."""
    sampling = sampling or Sampling()
    return inspect(path, limits, source_fps=sampling.source_fps).announced(sampling)


def iter_frames(
    path: VideoPath,
    sampling: Sampling | None = None,
    *,
    limits: Limits | None = None,
    progress: Callable[[float], None] = _silent,
    resize: Resize | None = None,
) -> Generator[Frame, None, None]:
    """Yield the frames that `read_frames` returns one at a time, so that they are not all in memory together.

    If there is a `resize`, what it returns is yielded. Of small videos, some pictures are decoded ahead.
    Raises what `read_frames` raises, where it happens, and MediaError where the times in the file turn out wrong after
    the first frame: `read_frames` then begins again.
    """
    import numpy as np

    from .reader import open_reader

    sampling = sampling or Sampling()
    resize = _fitting(resize, sampling)
    with open_reader(_named(path), limits or Limits(), progress, source_fps=sampling.source_fps) as reader:
        for decoded in reader.frames(sampling, hold_all=False, can_restart=False):
            image = decoded.image if resize is None else resize(decoded.image)
            frame = Frame(np.ascontiguousarray(image), reader.timeline.seconds(decoded.stamp))
            del decoded, image
            with reader.clock.paused():
                yield frame
            del frame


def read_frames(
    path: VideoPath,
    sampling: Sampling | None = None,
    *,
    limits: Limits | None = None,
    progress: Callable[[float], None] = _silent,
    resize: Resize | None = None,
) -> Frames:
    """Return the frames that `sampling` (by default `Sampling()`) selects from a video, or from pictures as one.

    Pictures come from a folder, from a pattern such as `frame_*.jpg`, or from a list of paths. Those of a folder are
    sorted as people number them: 2 before 10. `sampling.source_fps` gives them their times, and only the selected ones
    are decoded. If their sizes differ, all are fitted into the size of the first.

    Each frame of a file is bit for bit the picture that decoding the whole file would give. Broken packets are skipped,
    the nearest good frame replaces a lost one, and a note says so. (Damage that the decoder does not report can't be
    detected, and may differ from one run to the next.) If a video changes its size, all frames are scaled to the size
    of the first one. With `resize`, only what it returns for each picture is kept. A model's `shrink` returns the
    picture that the model gets, fitted as `sampling.fit` says.

    `progress` is called with the finished share: 0 as soon as the file is open, then from time to time, up to 1.
    Raises MediaError for what `probe` refuses, if the video has nothing at `start_seconds`, and if the frames would
    need more than the limits allow. A file that is not a video is refused before anything is decoded.
    """
    return _read(_named(path), sampling or Sampling(), limits, progress, resize)


def _read(
    path: str,
    sampling: Sampling,
    limits: Limits | None,
    progress: Callable[[float], None],
    resize: Resize | None,
    index: VideoIndex | None = None,
) -> Frames:
    import numpy as np

    from .image import HUGE_PIXELS, shrunk
    from .reader import open_reader

    frame_input = resize.input if isinstance(resize, FrameResize) else None
    resize = _fitting(resize, sampling)
    with open_reader(path, limits or Limits(), progress, index, sampling.source_fps) as reader:
        images: NDArray[np.uint8] | None = None
        stamps: list[int] = []
        small = resize is shrunk and reader.pixels < HUGE_PIXELS
        hold_all = resize is None or small
        for decoded in reader.frames(sampling, hold_all=hold_all, can_restart=True, collect=resize is None):
            image = decoded.image if resize is None else resize(decoded.image)
            if images is None or reader.restarted:
                single = reader.count == 1 and resize is None  # it need not be copied
                images = image[np.newaxis] if single else reader.collected
                if images is None or not (images.flags.c_contiguous and images.flags.writeable):
                    images = np.empty((reader.count, *image.shape), np.uint8)
                stamps, reader.restarted = [], False
            row = images[len(stamps)]
            if not np.may_share_memory(row, image):
                row[:] = image
            stamps.append(decoded.stamp)
            del decoded, image, row
        assert images is not None, "a sampling selects at least one frame"
        kept = images[: len(stamps)]
        return Frames(
            images=kept if 2 * len(kept) > len(images) else kept.copy(),  # many may be static
            times_seconds=tuple(reader.timeline.seconds(stamp) for stamp in stamps),
            info=_info(path, reader),
            sampling=sampling,
            notes=tuple(reader.notes()),
            shots=reader.shot_times,
            input=frame_input,
        )


def _fitting(resize: Resize | None, sampling: Sampling) -> Resize | None:
    return partial(resize, fit=sampling.fit) if isinstance(resize, FrameResize) else resize


def _info(path: str, reader: Reader) -> VideoInfo:
    geometry, timeline = reader.geometry, reader.timeline  # the first picture may shorten the timeline
    height, width, _ = geometry.shape
    count = len(timeline.stamps)
    first, last = timeline.seconds(timeline.stamps[0]), timeline.seconds(timeline.stamps[-1])
    return VideoInfo(
        path=path,
        duration_seconds=timeline.duration_seconds,
        width=width,
        height=height,
        average_fps=(count - 1) / (last - first) if count > 1 else None,
        codec=reader.codec,
        rotation_degrees=geometry.orientation.clockwise_degrees,
    )
