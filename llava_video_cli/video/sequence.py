"""Pictures that are the frames of one video: the times are arithmetic, and only the chosen pictures are decoded."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

from ..errors import MediaError
from .files import pictures_of
from .image import HUGE_PIXELS, read_image, read_size
from .limits import Deadline
from .orientation import Geometry, Orientation
from .parallel import DecodedFrame
from .reader import KnownShots, Reader, VideoIndex
from .sampling import SOURCE_FPS, Sampling, Shot, Timeline

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MOST_BROKEN = 100  # pictures; a sequence with more is refused


class SequenceReader(Reader):
    """The pictures of a folder, a pattern or a list: picture `i` is shown at the time `i / source_fps`.

    All are of the size of the first one that is read: others are scaled to fit, with black borders where their shape
    differs. A picture that can't be read is replaced by the nearest one that can, as a broken frame of a video is.
    """

    def __init__(
        self,
        path: str,
        deadline: Deadline,
        progress: Callable[[float], None],
        source_fps: float | None,
        shots: list[KnownShots],
    ) -> None:
        """List the pictures. Raises MediaError if there are none."""
        super().__init__(path, deadline, progress, shots)
        self._paths, self._videos = pictures_of(path)
        self._fps = SOURCE_FPS if source_fps is None else source_fps
        tick, count = 1 / Fraction(str(self._fps)), len(self._paths)
        self._timeline = Timeline(range(count), count, tick, range(count))
        self._size: tuple[int, int] | None = None  # height and width
        self._broken: dict[int, MediaError] = {}
        self._sizes_differ = False

    @property
    def timeline(self) -> Timeline:
        """When the pictures are shown."""
        return self._timeline

    @property
    def index(self) -> VideoIndex:
        """The shots: all else is read anew."""
        return VideoIndex(None, shots=self._shots)

    @property
    def geometry(self) -> Geometry:
        """The size of the first picture that was read, or else of the first one."""
        height, width = self._size or self._read(0)[1].shape[:2]
        return Geometry(width, height, Orientation())

    @property
    def pixels(self) -> int:
        """The number of pixels of the first picture."""
        with suppress(MediaError):
            return math.prod(read_size(self._paths[0], self.deadline.limits))
        return HUGE_PIXELS

    @property
    def codec(self) -> str:
        """The ending of the first picture's name."""
        return os.path.splitext(self._paths[0])[1][1:].lower()  # noqa: PTH122

    def _select_and_decode(
        self, sampling: Sampling, hold_all: bool, can_restart: bool
    ) -> Generator[DecodedFrame, None, None]:
        del can_restart  # the times are never wrong
        self.select(sampling)
        for frame in self._in_order(self._decoded(list(dict.fromkeys(self._selection.stamps))), hold_all):
            yield frame
            self._progress(len(self._yielded) / self.count)
            del frame

    def _find_shots(self, sampling: Sampling) -> tuple[Shot, ...]:
        from av import VideoFrame

        from .scenes import SmallConverter, find_shots

        converter = SmallConverter()
        stamps, end = self._stamps(sampling)

        def small() -> Iterator[DecodedFrame]:
            for number, each in enumerate(self._decoded(stamps), start=1):
                yield converter.convert(each.target, each.stamp, VideoFrame.from_ndarray(each.image, "rgb24"))
                self._progress(number / len(stamps))

        return find_shots(small(), self.timeline, sampling, end)

    def _decoded(self, targets: Sequence[int]) -> Iterator[DecodedFrame]:
        for target in targets:
            stamp, pixels = self._read(target)
            yield DecodedFrame(target, stamp, self._fitted(pixels))
            del pixels

    def _read(self, target: int) -> tuple[int, NDArray[np.uint8]]:
        """Return the nearest picture that can be read, and its number."""
        for number in (target + way * distance for distance in range(len(self._paths)) for way in (-1, 1)):
            if number in self._broken or not 0 <= number < len(self._paths):
                continue
            self.deadline.left()
            try:
                return number, read_image(self._paths[number], limits=self.deadline.limits).pixels
            except MediaError as error:
                self._broken[number] = error
                if len(self._broken) > _MOST_BROKEN:
                    break
        raise next(iter(self._broken.values()))

    def _fitted(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return a picture, uint8 (height, width, 3), in the size of the first one."""
        height, width, _ = pixels.shape
        self._size = self._size or (height, width)
        if (height, width) == self._size:
            return pixels
        from PIL import Image, ImageOps

        self._sizes_differ = True
        padded = ImageOps.pad(Image.fromarray(pixels), self._size[::-1])
        return np.array(padded, np.uint8)  # a copy: that of `asarray` is read-only, which torch warns of

    def _file_notes(self) -> list[str]:
        count = len(self._paths)
        pictures = "1 picture" if count == 1 else f"{count} pictures"
        notes = [f"taken as a video of {pictures}, {self._fps:g} per second (--source-fps)"]
        if self._videos:
            notes.append(f"videos beside the pictures are left out: {self._videos}")
        if broken := len(self._broken):
            lost = "1 picture" if broken == 1 else f"{broken} pictures"
            notes.append(f"{lost} skipped, the nearest ones were used: {next(iter(self._broken.values()))}")
        if self._sizes_differ and self._size:
            height, width = self._size
            notes.append(f"the pictures differ in size: all are fitted into {width}x{height}, the first one's size")
        return notes
