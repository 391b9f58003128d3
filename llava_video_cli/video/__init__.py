"""Videos: what they are, and the frames that a sampling takes from them."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, TypeAlias

from .limits import Limits
from .sampling import Sampling, windows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .reader import Reading, Survey


@dataclass(frozen=True)
class VideoInfo:
    """What a video is, as its content says; the header's own claims are not trusted.

    `duration_seconds` runs from the first picture's appearance to the last one's disappearance; sound doesn't
    count. `width` and `height` are pixels as shown, after rotation; non-square pixels are not stretched.
    `average_fps` is None for a single picture. `rotation_degrees` is the clockwise turn (0, 90, 180, 270) that
    was applied to the stored pictures.
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
    """One frame of a video: `image` uint8 (height, width, 3), RGB, upright; its time from the first picture on."""

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

    `images` is uint8 (frames, height, width, 3), RGB, upright; an alpha channel is dropped. `times_seconds` has
    the time of each frame, counted from the first picture on screen, so that neither a late start nor an edit
    list shifts them. `notes` are lines for the user: fewer frames than asked for, broken packets, ...
    """

    images: NDArray[np.uint8]
    times_seconds: tuple[float, ...]
    info: VideoInfo
    sampling: Sampling
    notes: tuple[str, ...] = ()
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
        """What they hold in memory."""
        return self.images.nbytes

    def tokens(self, rates: TokenRates) -> int:
        """Return how many tokens of a prompt they take."""
        return self.frame_count * rates.frame_tokens

    @property
    def part_seconds(self) -> tuple[float, float]:
        """The part `[start, end)` of the video that they were taken from."""
        whole, end = self.info.duration_seconds, self.sampling.end_seconds
        return self.sampling.start_seconds, whole if end is None else min(end, whole)


# Makes another picture of one, uint8 (height, width, 3) both.
Resize: TypeAlias = "Callable[[NDArray[np.uint8]], NDArray[np.uint8]]"


def _silent(_: float) -> None:
    """No progress is shown."""


def _unchanged(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Leave a picture as it is."""
    return image


def probe(path: str | os.PathLike[str], limits: Limits | None = None) -> VideoInfo:
    """Return what a video is, from its table of packets and one decoded picture.

    A file whose packets carry no usable stamps (AVI with B-frames, raw streams) is decoded once from start to end.
    Raises MediaError for what can't be shown: no file, a folder, an empty file, no video, no video stream, no
    picture that can be decoded, more than the limits allow.
    """
    from .reader import open_reading

    with open_reading(os.fspath(path), limits or Limits(), _silent) as reading:
        return _info(os.fspath(path), reading)


def check_video(path: str | os.PathLike[str], limits: Limits | None = None) -> None:
    """Raise MediaError for what `probe` refuses. Costs one decoded picture, however long the video is."""
    from .reader import check

    check(os.fspath(path), limits or Limits())


def iter_frames(
    path: str | os.PathLike[str],
    sampling: Sampling | None = None,
    *,
    limits: Limits | None = None,
    progress: Callable[[float], None] = _silent,
    resize: Resize = _unchanged,
) -> Generator[Frame, None, None]:
    """Yield the frames that `read_frames` returns, one at a time, so that they needn't lie in memory together.

    What `resize` makes of a frame is handed on in its place, and the frame is let go before the next one is decoded.
    Raises what `read_frames` raises, where it happens.
    """
    import numpy as np

    from .reader import open_reading

    with open_reading(os.fspath(path), limits or Limits(), progress) as reading:
        for shot in reading.shots(sampling or Sampling(), hold_all=False):
            frame = Frame(np.ascontiguousarray(resize(shot.image)), reading.timeline.seconds(shot.stamp))
            del shot
            with reading.clock.paused():
                yield frame
            del frame


def read_frames(
    path: str | os.PathLike[str],
    sampling: Sampling | None = None,
    *,
    limits: Limits | None = None,
    progress: Callable[[float], None] = _silent,
    resize: Resize = _unchanged,
) -> Frames:
    """Return the frames that `sampling` (by default `Sampling()`) takes from a video.

    Each is bit for bit the picture that decoding the whole file would give, or what `resize` makes of it, which then
    is all that is kept. Broken packets are skipped, and the nearest good frame takes the place of one that is lost; a
    note says so. (Damage that the decoder doesn't complain about can't be seen here either, and may look different
    from one run to the next.) Where a video changes its size, all frames are scaled to that of the first one taken.

    `progress` is called with the share that is done, 0 to 1, from time to time. Raises MediaError for what `probe`
    refuses, and when the video has nothing at `start_seconds`, or the frames would need more than the limits allow.
    """
    from .reader import open_reading

    with open_reading(os.fspath(path), limits or Limits(), progress) as reading:
        return _taken(os.fspath(path), reading, sampling or Sampling(), resize)


def announced_frames(
    path: str | os.PathLike[str], sampling: Sampling | None = None, *, limits: Limits | None = None
) -> Frames:
    """Return the frames that `read_frames` would, with their times, but all black and of one pixel: none is decoded.

    Where some can't be decoded, `read_frames` may return fewer. Raises what it raises for a sampling.
    """
    import numpy as np

    from .reader import open_reading

    with open_reading(os.fspath(path), limits or Limits(), _silent) as reading:
        choice = reading.choice(sampling or Sampling())
        return Frames(
            images=np.broadcast_to(np.uint8(0), (len(choice.stamps), 1, 1, 3)),
            times_seconds=tuple(reading.timeline.seconds(stamp) for stamp in choice.stamps),
            info=_info(os.fspath(path), reading),
            sampling=sampling or Sampling(),
            notes=choice.notes,
        )


@dataclass(frozen=True, eq=False)
class Windows:
    """A video that was surveyed once and cut into windows, each with a sampling of its own."""

    path: str
    parts: tuple[Sampling, ...]
    survey: Survey

    def read(self, part: Sampling, *, limits: Limits | None = None, resize: Resize = _unchanged) -> Frames:
        """Return the frames of a window; the limits count for it alone. Safe in threads.

        Raises what `read_frames` raises.
        """
        from .reader import open_reading

        with open_reading(self.path, limits or Limits(), _silent, self.survey) as reading:
            return _taken(self.path, reading, part, resize)


def cut(
    path: str | os.PathLike[str],
    every_seconds: float,
    sampling: Sampling | None = None,
    *,
    limits: Limits | None = None,
    progress: Callable[[float], None] = _silent,
) -> Windows:
    """Return the windows that `sampling.windows` cuts a video into. Raises what `probe` and `windows` raise."""
    from .reader import open_reading

    name = os.fspath(path)
    with open_reading(name, limits or Limits(), progress) as reading:
        parts = windows(reading.timeline.duration_seconds, every_seconds, sampling or Sampling())
        return Windows(name, tuple(parts), reading.survey)


def read_windows(
    path: str | os.PathLike[str],
    every_seconds: float,
    sampling: Sampling | None = None,
    *,
    limits: Limits | None = None,
    resize: Resize = _unchanged,
) -> Iterator[tuple[float, float, Frames]]:
    """Yield `[start_seconds, end_seconds)` and the frames of each window that `cut` makes.

    The file is surveyed once; the limits count for each window. Raises what `read_frames` raises.
    """
    whole = cut(path, every_seconds, sampling, limits=limits)
    for part in whole.parts:
        assert part.end_seconds is not None, "windows have an end"
        yield part.start_seconds, part.end_seconds, whole.read(part, limits=limits, resize=resize)


def _taken(path: str, reading: Reading, sampling: Sampling, resize: Resize) -> Frames:
    import numpy as np

    images: NDArray[np.uint8] | None = None
    stamps: list[int] = []
    for shot in reading.shots(sampling, hold_all=resize is _unchanged):
        image = resize(shot.image)
        if images is None or reading.began_anew:
            images, stamps, reading.began_anew = np.empty((reading.count, *image.shape), np.uint8), [], False
        images[len(stamps)] = image
        stamps.append(shot.stamp)
        del shot, image
    assert images is not None, "a sampling takes at least one frame"
    return Frames(
        images=images[: len(stamps)],
        times_seconds=tuple(reading.timeline.seconds(stamp) for stamp in stamps),
        info=_info(path, reading),
        sampling=sampling,
        notes=tuple(reading.notes()),
    )


def _info(path: str, reading: Reading) -> VideoInfo:
    timeline, look = reading.timeline, reading.look
    height, width, _ = look.shape
    count = len(timeline.stamps)
    return VideoInfo(
        path=path,
        duration_seconds=timeline.duration_seconds,
        width=width,
        height=height,
        average_fps=(count - 1) / timeline.seconds(timeline.stamps[-1]) if count > 1 else None,
        codec=reading.codec,
        rotation_degrees=look.orientation.clockwise_degrees,
    )
