"""The shots of a video: PySceneDetect finds the cuts between them in small pictures of our own reader."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from av.video.reformatter import Interpolation

from ..errors import LlvidError, MissingExtraError, first_line
from .decode import PacketRange
from .packet_index import PacketIndex
from .parallel import Converter, DecodedFrame
from .sampling import Sampling, Shot, Timeline

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from numpy.typing import NDArray
    from scenedetect import SceneDetector

LONGEST_SIDE = 256  # pixels of a picture in which cuts are looked for, as PySceneDetect takes it
MOST_WAITING = 256  # small pictures of a range: 28 MB
_FEWEST_PICTURES = 100  # of a range
_BLEND_SECONDS = 1.5  # of a blend, to each side of its cut
_MOST_BLEND_PICTURES = 96
_LAG_SECONDS = 0.125
# Of a blend: the share of the way from one shot to the other that is gone within two lags, and of the speed at its cut.
_LEAST_SPEED, _LEAST_OF_SPEED = 0.1, 0.4
_STEP = 8  # pixels: every eighth, both ways, is enough to measure a blend in


def check_installed() -> None:
    """Import PySceneDetect. Raises `MissingExtraError`, or `LlvidError` where its OpenCV can't be loaded."""
    try:
        import scenedetect  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"scenes need the extra 'scenes' ({error.name} is missing)", "scenes") from None
    except ImportError as error:  # libGL.so.1, which OpenCV's desktop build wants
        raise LlvidError(
            f"scenes need OpenCV, which can't be loaded: {first_line(error)}",
            "pip uninstall opencv-python, then pip install --force-reinstall opencv-python-headless",
        ) from None


class SmallConverter(Converter):
    """Turns decoded pictures into small ones, uint8 (height, width, 3), BGR, all of the same size, not rotated.

    PySceneDetect takes 256 pixels for the longest side, and picks them without an average of those between. Pictures
    that no other one refers to are not deblocked: that saves 6 % of the decoding, and changes scores by 0.5 % (median).
    """

    decoder_options: ClassVar[Mapping[str, str]] = {"skip_loop_filter": "noref"}

    def pixels(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """Return a picture's pixels."""
        longest = max(self.geometry.width, self.geometry.height)
        width, height = (
            side if longest < LONGEST_SIDE else max(1, round(side * LONGEST_SIDE / longest))
            for side in (self.geometry.width, self.geometry.height)
        )
        # most videos: to scale before the colours are converted takes three quarters of the time
        kind = "yuv420p" if frame.format.name.startswith("yuv420p") else "bgr24"
        fast = Interpolation(1)  # SWS_FAST_BILINEAR, whose name PyAV 17 misspells
        small = self.reformatter("scale").reformat(frame, width, height, kind, interpolation=fast, threads=1)
        bgr = self.reformatter("colours").reformat(small, format="bgr24", interpolation=fast, threads=1)
        pixels: NDArray[np.uint8] = bgr.to_ndarray().astype(np.uint8, copy=False)
        return pixels


def reduced(image: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Return the means of blocks of pixels, so large that the longest side has at least `side`: noise is averaged out.

    Both are uint8 (height, width, 3).
    """
    from PIL import Image

    return np.asarray(Image.fromarray(image).reduce(max(1, max(image.shape[:2]) // side)), np.uint8)


def plan_all(index: PacketIndex, stamps: Sequence[int]) -> list[PacketRange]:
    """Return ranges of packets that give all pictures of a part: each from a keyframe on, so that decoders share them.

    The time that it takes to empty a decoder counts little beside a range.
    """
    ranges: list[PacketRange] = []
    targets, start, stop, last = list[int](), 0, 0, 0
    for stamp in stamps:
        position = index.position(stamp)
        assert position is not None, "the stamps are those of packets"
        entry = index.entry(stamp, position)
        if len(targets) >= _FEWEST_PICTURES and entry > last:
            ranges.append(PacketRange(start, stop, tuple(targets)))
            targets.clear()
        if not targets:
            start, stop = entry, 0
        targets.append(stamp)
        start, stop, last = min(start, entry), max(stop, position + 1), entry
    return [*ranges, PacketRange(start, stop, tuple(targets))]


def find_shots(pictures: Iterable[DecodedFrame], timeline: Timeline, sampling: Sampling, end: int) -> tuple[Shot, ...]:
    """Return the shots of a part that ends at the stamp `end`, from all its pictures as `SmallConverter` makes them.

    Of some seconds, tiny copies are kept, of the rest nothing. Raises what `check_installed` raises.
    """
    check_installed()
    from scenedetect import FrameTimecode
    from scenedetect.common import Timecode

    detector = _detector(sampling)
    first, tick = int(timeline.stamps[0]), timeline.time_base
    rate = Fraction(max(1, len(timeline.stamps) - 1)) / (max(1, int(timeline.stamps[-1]) - first) * tick)
    blends = _Blends(rate, detector.event_buffer_length)
    start = position = None
    for picture in pictures:
        stamp, pixels = picture.target, picture.image
        start = stamp if start is None else start
        position = FrameTimecode(Timecode(stamp - first, tick), fps=rate)
        blends.add(stamp, pixels, [first + cut.pts for cut in detector.process_frame(position, pixels)])
    if start is None or position is None:
        return ()
    blends.finish([first + cut.pts for cut in detector.post_process(position)])
    cuts = [blend for blend in blends.found if blend.cut > start]
    bounds = [_Blend(start, start, start), *cuts, _Blend(end, end, end)]
    return tuple(
        Shot(before.cut, after.cut, before.end, after.start)
        if before.end < after.start
        else Shot(before.cut, after.cut, before.cut, after.cut)  # shorter than its blends
        for before, after in pairwise(bounds)
    )


def _detector(sampling: Sampling) -> SceneDetector:
    from scenedetect import AdaptiveDetector, ContentDetector

    threshold, shortest = sampling.scene_threshold, sampling.scene_min_frames
    if sampling.scene_detector == "content":
        given = {} if threshold is None else {"threshold": threshold}
        return ContentDetector(min_scene_len=shortest, **given)
    given = {} if threshold is None else {"adaptive_threshold": threshold}
    return AdaptiveDetector(min_scene_len=shortest, min_content_val=sampling.scene_min_content, **given)


@dataclass(frozen=True)
class _Blend:
    """A cut, and the stamps `[start, end)` of the pictures that show something of both shots."""

    start: int
    cut: int
    end: int


class _Blends:
    """Measures how far the blend of each cut reaches, in the last tiny pictures."""

    def __init__(self, rate: Fraction, delay: int) -> None:
        """Take the pictures a second, and how many pictures behind its cut the detector may tell of it."""
        self.found: list[_Blend] = []
        self._lag = max(1, round(rate * Fraction(_LAG_SECONDS)))
        self._reach = max(4 * self._lag, min(_MOST_BLEND_PICTURES, round(rate * Fraction(_BLEND_SECONDS))))
        self._last: deque[tuple[int, NDArray[np.uint8]]] = deque(maxlen=2 * self._reach + delay + 1)
        self._waiting: deque[tuple[int, int]] = deque()  # cuts, and the number of the picture behind their reach
        self._count = 0

    def add(self, stamp: int, picture: NDArray[np.uint8], cuts: list[int]) -> None:
        """Take the next picture, and the cuts that it shows."""
        self._last.append((stamp, picture[::_STEP, ::_STEP].copy()))
        self._count += 1
        self._waiting += ((cut, self._count + self._reach) for cut in cuts)
        while self._waiting and self._waiting[0][1] <= self._count:
            self._measure(self._waiting.popleft()[0])

    def finish(self, cuts: list[int]) -> None:
        """Take the cuts that the last picture showed."""
        for cut in [*(cut for cut, _ in self._waiting), *cuts]:
            self._measure(cut)

    def _measure(self, cut: int) -> None:
        """Follow the blend to both sides of its cut, in as few pictures as hold it: what moves counts little then."""
        stamps = [stamp for stamp, _ in self._last]
        if cut not in stamps:  # where the rate varies, the detector may tell of it later than it says
            self.found.append(_Blend(cut, cut, cut))
            return
        at, earliest, reach = stamps.index(cut), 0, 4 * self._lag
        if self.found:  # no farther than the cut before
            earliest = next(i for i, stamp in enumerate(stamps) if stamp >= self.found[-1].cut)
        while True:
            low, high = max(earliest, at - reach), min(len(stamps), at + reach + 1)
            pictures = np.stack([self._last[i][1] for i in range(low, high)]).astype(np.float32)
            first, last = self._extent(pictures.reshape(high - low, -1), at - low)
            if reach >= self._reach or (first >= 2 * self._lag and last <= high - low - 2 * self._lag):
                break
            reach = min(2 * reach, self._reach)
        self.found.append(_Blend(stamps[low + first], cut, stamps[low + last]))

    def _extent(self, pictures: NDArray[np.float32], cut: int) -> tuple[int, int]:
        """Return the numbers `[first, last)` of the pictures on the way from the first one to the last one.

        `pictures` are float32 (pictures, values). At a hard cut, these are those that are no farther than the lag.
        """
        way, lag, speeds = pictures[-1] - pictures[0], self._lag, np.zeros(len(pictures))
        if len(pictures) > 2 * lag and (length := float(way @ way)) > 0:
            speeds[lag:-lag] = (pictures[2 * lag :] - pictures[: -2 * lag]) @ way / length
        least = max(_LEAST_SPEED, _LEAST_OF_SPEED * float(speeds[max(0, cut - lag) : cut + lag].max()))
        first = last = cut
        fast = [int(number) for number in np.flatnonzero(speeds >= least)]  # encoders let a blend halt on its way
        for number in reversed(fast):
            first = number if first - lag - 1 <= number < first else first
        for number in fast:
            last = number + 1 if last <= number <= last + lag else last
        return first, last
