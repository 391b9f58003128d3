"""Read one video: its packet index, the frames that a sampling selects, and the safe way where the index is wrong.

`Reader` has what does not depend on where the pictures are: in a container (`VideoReader`) or in files (`sequence`).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

import av.error
import numpy as np

from ..errors import MediaError
from .decode import (
    DamageError,
    FullDecode,
    MismatchError,
    checked_index,
    decode_fully,
    decode_through,
    first_picture,
    use_stamps,
)
from .demux import OpenVideo, media_errors, no_picture, open_video
from .files import is_sequence
from .limits import Clock, Deadline, Limits
from .orientation import Geometry
from .packet_index import PacketIndex
from .parallel import Converter, DecodedFrame, decode_ranges, decode_targets, has_false_keyframe
from .sampling import Sampling, Selection, Shot, Timeline, on_screen, part_of, select_stamps

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from numpy.typing import NDArray

_NO_SAMPLING = Sampling()  # before `select`
_DETECTION = 0.9  # of the work, where the shots have to be found first
# A frame is static if so many percent of the pixels of a small copy differ by no more than so many of 255 levels.
_STATIC_PERCENT, _STATIC_LEVELS, _STATIC_SIDE = 99.5, 10, 128


@dataclass(frozen=True)
class KnownShots:
    """The shots between the stamps `start` and `end`, and the options that they were found with.

    `decoded` has their timeline where that of the packets turned out wrong.
    """

    options: tuple[object, ...]
    start: int
    end: int
    shots: tuple[Shot, ...]
    decoded: FullDecode | None


@dataclass(frozen=True)
class VideoIndex:
    """What readings of a file leave for the next: its packets, its timeline if all was decoded, and its shots.

    The first picture was decoded, so that the index has none that can't be shown.
    """

    packets: PacketIndex | None
    decoded: FullDecode | None = None
    shots: list[KnownShots] = field(default_factory=list)


@contextmanager
def open_reader(
    path: str,
    limits: Limits,
    progress: Callable[[float], None],
    index: VideoIndex | None = None,
    source_fps: float | None = None,
) -> Iterator[Reader]:
    """Open a video, or pictures as one, for the `with` block. Raises MediaError for what is neither.

    `source_fps` is that of `Sampling`.
    """
    deadline = Deadline(path, limits)
    if is_sequence(path):
        from .sequence import SequenceReader

        pictures = SequenceReader(path, deadline, progress, source_fps, index.shots if index else [])
        progress(0.0)
        yield pictures
        return
    with open_video(path, deadline, probe=False) as video:
        progress(0.0)
        with media_errors(path):
            indexed = index or VideoIndex(checked_index(video))
            reader = VideoReader(video, indexed, progress, is_checked=index is not None)
        try:
            yield reader
        finally:
            reader.close()  # before the file: a caller that leaves early has threads at work on it


class Reader(ABC):
    """An open video.

    `restarted` is set when the frames so far are void and the first one comes again. `collected` is the array that has
    frame k in row k, unless it is elsewhere; None if there is none.

    Its methods raise MediaError for a video that has no picture that can be decoded, has nothing at the sampling's
    start, or exceeds the limits.
    """

    def __init__(
        self, path: str, deadline: Deadline, progress: Callable[[float], None], shots: list[KnownShots]
    ) -> None:
        self.path, self.deadline, self.restarted = path, deadline, False
        self._progress, self._shots = progress, shots
        self._sampling, self._selection = _NO_SAMPLING, Selection(())
        self._frames: Generator[DecodedFrame, None, None] | None = None
        self._yielded: list[tuple[int, int]] = []  # each frame's target and stamp
        self._replaced = self._collect = False
        self.collected: NDArray[np.uint8] | None = None
        self._static = 0  # frames that were left out

    @property
    @abstractmethod
    def timeline(self) -> Timeline:
        """When the pictures are shown."""

    @property
    @abstractmethod
    def index(self) -> VideoIndex:
        """What the next reading can start from."""

    @property
    @abstractmethod
    def geometry(self) -> Geometry:
        """The size and the orientation of the pictures. Where no frame was read, this takes the decoder for itself."""

    @property
    @abstractmethod
    def pixels(self) -> int:
        """The number of pixels of a picture, as the header says."""

    @property
    @abstractmethod
    def codec(self) -> str:
        """The codec's usual name."""

    @abstractmethod
    def _find_shots(self, sampling: Sampling) -> tuple[Shot, ...]:
        """Return the shots of the sampling's part."""

    @abstractmethod
    def _select_and_decode(
        self, sampling: Sampling, hold_all: bool, can_restart: bool
    ) -> Generator[DecodedFrame, None, None]:
        """Yield what `frames` returns, but for static frames."""

    @abstractmethod
    def _file_notes(self) -> list[str]:
        """Return what a user should know about the file, once all frames have been yielded."""

    @property
    def count(self) -> int:
        """The number of frames that the sampling selects."""
        return len(self._selection.stamps)

    @property
    def clock(self) -> Clock:
        """The clock that the time limit is measured by."""
        return self.deadline.clock

    def select(self, sampling: Sampling) -> Selection:
        """Return the stamps that the sampling selects from the index. Damaged frames are only found by decoding."""
        self._sampling = sampling
        shots = self.shots(sampling) if sampling.mode == "scenes" else ()
        timeline = self.timeline  # its own errors name the file already
        with self._named_errors():
            self._selection = select_stamps(timeline, sampling, shots)
        return self._selection

    def shots(self, sampling: Sampling) -> tuple[Shot, ...]:
        """Return the shots of the sampling's part. All its pictures are decoded, unless they were before."""
        options = sampling.scene_options
        for known in self._shots:
            if known.options == options:
                self._trust(known)
                start, end = self._part(sampling)
                if known.start <= start and known.end >= end:
                    return tuple(shot for shot in known.shots if shot.start < end and shot.end > start)
        before = self._progress
        self._progress = lambda share: before(_DETECTION * share)
        with media_errors(self.path):
            shots = self._find_shots(sampling)
        self._shots.append(KnownShots(options, *self._part(sampling), shots, self._trusted))
        self._progress = lambda share: before(_DETECTION + (1 - _DETECTION) * share)
        return shots

    @property
    def shot_times(self) -> tuple[tuple[float, float], ...]:
        """The times `[start, end)` of the shots that the selected frames are spread over."""
        seconds = self.timeline.seconds
        return tuple((seconds(shot.start), seconds(shot.end)) for shot in self._selection.shots)

    def _part(self, sampling: Sampling) -> tuple[int, int]:
        """Return the stamps of the first picture of the sampling's part, and of the first one behind it."""
        timeline = self.timeline
        with self._named_errors():
            start, end = part_of(timeline, sampling)
        stamps = timeline.stamps
        first, stop = on_screen(stamps, start), bisect_left(stamps, math.ceil(end))
        return int(stamps[first]), int(stamps[stop]) if stop < len(stamps) else timeline.end

    def _stamps(self, sampling: Sampling) -> tuple[list[int], int]:
        """Return the stamps of all pictures of the sampling's part, and the stamp of its end."""
        start, stop = self._part(sampling)
        stamps = self.timeline.stamps
        return [int(stamps[k]) for k in range(bisect_left(stamps, start), bisect_left(stamps, stop))], stop

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except MediaError as error:
            raise MediaError(f"{self.path}: {error}", error.hint) from None

    def frames(
        self, sampling: Sampling, *, hold_all: bool, can_restart: bool, collect: bool = False
    ) -> Generator[DecodedFrame, None, None]:
        """Return the frames that the sampling selects. With `hold_all` all may be in memory at the same time.

        With `collect`, they are written to the rows of one array where that is possible.
        Where the packets' stamps turn out wrong on the way, they begin again from the first one if they may. If not,
        that raises MediaError.
        """
        self._collect = collect
        self._frames = self._without_other_errors(sampling, hold_all, can_restart)
        return self._frames

    def _without_other_errors(
        self, sampling: Sampling, hold_all: bool, can_restart: bool
    ) -> Generator[DecodedFrame, None, None]:
        with media_errors(self.path):
            frames = self._select_and_decode(sampling, hold_all, can_restart)
            yield from self._without_static(frames) if sampling.skip_static else frames

    def _without_static(self, frames: Generator[DecodedFrame, None, None]) -> Generator[DecodedFrame, None, None]:
        """Leave out each frame that hardly differs from the last one that was not left out."""
        from .scenes import reduced

        last: NDArray[np.int16] | None = None
        with closing(frames):
            for frame in frames:
                if self.restarted:
                    last, self._static = None, 0
                small = reduced(frame.image, _STATIC_SIDE).astype(np.int16)
                if last is not None and np.percentile(abs(small - last).max(2), _STATIC_PERCENT) <= _STATIC_LEVELS:
                    self._static += 1
                else:
                    last = small
                    yield frame
                del frame

    def close(self) -> None:
        """Stop the decoding that `frames` has started."""
        if self._frames is not None:
            self._frames.close()

    @property
    def _trusted(self) -> FullDecode | None:
        """The pictures whose times are used in the place of those in the file, which are wrong."""
        return None

    def _trust(self, known: KnownShots) -> None:
        """Use the times that shots were found with."""
        assert known.decoded is None, "only the times in a container can be wrong"

    def notes(self) -> list[str]:
        """Return what a user should know about the frames, once all have been yielded."""
        notes = [*self._selection.notes, *self._file_notes()]
        if lost := len(self._selection.stamps) - len(self._yielded):
            notes.append(f"{lost} of the requested frames {'is' if lost == 1 else 'are'} lost")
        if self._static:
            frames = "1 frame that does" if self._static == 1 else f"{self._static} frames that do"
            notes.append(f"{frames} not differ from the last one left out")
        return notes

    def _in_order(
        self, decoded: Iterable[DecodedFrame], hold_all: bool, after: int | None = None
    ) -> Iterator[DecodedFrame]:
        """Yield a frame for each selected stamp behind `after`.

        A frame whose stamp is selected twice comes twice; one that replaces several lost frames comes once.
        """
        frames = iter(decoded)
        for target, times in groupby(stamp for stamp in self._selection.stamps if after is None or stamp > after):
            frame = next(frames)
            assert frame.target == target, "pictures come in the order of their targets"
            if not self._yielded:
                self._check_memory(frame, len(self._selection.stamps) if hold_all else 1)
            self._replaced = self._replaced or frame.stamp != target
            if self._yielded and self._yielded[-1][1] == frame.stamp:
                continue
            for _ in times:
                self._yielded.append((target, frame.stamp))
                yield frame
            del frame

    def _check_memory(self, frame: DecodedFrame, count: int) -> None:
        height, width, _ = frame.image.shape
        size, most = count * frame.image.nbytes, self.deadline.limits.bytes
        if size > most:
            raise MediaError(
                f"{self.path}: {count} frames of {width}x{height} need {size / 2**30:.0f} GiB of memory,"
                f" more than {most / 2**30:.0f}",
                hint="ask for fewer frames",
            )


class VideoReader(Reader):
    """An open container."""

    def __init__(
        self, video: OpenVideo, index: VideoIndex, progress: Callable[[float], None], *, is_checked: bool
    ) -> None:
        super().__init__(video.path, video.deadline, progress, index.shots)
        self._video, self._packets = video, index.packets
        self._timeline = index.packets.timeline if index.packets else None
        self._converter, self._decoded = Converter(), index.decoded
        self._damaged, self._is_checked = False, is_checked
        if self._packets:
            use_stamps(video, self._packets)

    @property
    def timeline(self) -> Timeline:
        """When the pictures are shown. All of them are decoded for it where the packets' stamps can't be trusted."""
        if self._timeline is None:
            with media_errors(self._video.path):
                self._timeline = self._decode_fully().timeline
        return self._timeline

    @property
    def index(self) -> VideoIndex:
        """What the next reading of the file can start from."""
        return VideoIndex(self._packets, self._decoded, self._shots)

    @property
    def geometry(self) -> Geometry:
        """The size and the orientation of the pictures. Where no frame was read, this takes the decoder for itself."""
        with suppress(MismatchError):
            return self._converter.geometry
        with media_errors(self._video.path):
            return Geometry.of(self._first_picture())

    def _first_picture(self) -> VideoFrame:
        """Decode the first picture, and take those before it out of the timeline: they lack their references."""
        broken: list[str] = []
        frame = first_picture(self._video, broken, rewind=True) if self._frames is None else None
        if frame is None or (self._packets and frame.pts != self._packets.timeline.stamps[0]):  # seeks may miss
            with self._open_again() as video:
                frame = first_picture(video, broken)
        if frame is None:
            raise no_picture(self._video)
        if self._packets and not self._decoded and not broken and frame.pts is not None:
            self._packets = self._packets.shown_from(frame.pts)
            self._timeline = self._packets.timeline
        self._is_checked = True
        return frame

    @property
    def pixels(self) -> int:
        """The number of pixels of a picture, as the header says."""
        return self._video.pixels

    @property
    def codec(self) -> str:
        """The codec's usual name."""
        return self._video.codec

    @property
    def _trusted(self) -> FullDecode | None:
        return None if self._packets else self._decoded

    def _trust(self, known: KnownShots) -> None:
        if known.decoded:
            self._use(known.decoded)

    def _use(self, full: FullDecode) -> None:
        """Take the times of the decoded pictures for those of the packets, which are wrong."""
        self._decoded, self._timeline, self._packets = full, full.timeline, None

    def _find_shots(self, sampling: Sampling) -> tuple[Shot, ...]:
        from .scenes import MOST_WAITING, SmallConverter, find_shots, plan_all

        converter = SmallConverter()
        if self._packets and not self._is_checked:
            self._first_picture()
        if packets := self._packets:
            stamps, end = self._stamps(sampling)
            with self._open_again() as video, suppress(MismatchError, av.error.FFmpegError):
                ranges = plan_all(packets, stamps)
                with closing(decode_ranges(video, packets, ranges, converter, MOST_WAITING)) as pictures:
                    return find_shots(self._counted(pictures, len(stamps)), self.timeline, sampling, end)
        full = self._decode_fully()
        if packets is None or _contradicts(full, packets.timeline):
            self._use(full)
        stamps, end = self._stamps(sampling)
        with self._open_again() as video:
            decoded = decode_through(video, full.timeline.stamps, stamps, lambda share: self._progress((1 + share) / 2))
            return find_shots((converter.convert(*each) for each in decoded), self.timeline, sampling, end)

    def _counted(self, pictures: Iterable[DecodedFrame], count: int) -> Iterator[DecodedFrame]:
        for number, picture in enumerate(pictures, start=1):
            yield picture
            self._progress(number / count)

    def _select_and_decode(
        self, sampling: Sampling, hold_all: bool, can_restart: bool
    ) -> Generator[DecodedFrame, None, None]:
        self.select(sampling)
        if self._packets and not self._is_checked and self._selection.stamps[0] > self.timeline.stamps[0]:
            self._first_picture()  # otherwise it is the first frame
            self.select(sampling)
        stamps, packets = self._selection.stamps, self._packets
        if sampling.mode == "keyframes" and packets and has_false_keyframe(self._video, packets, stamps):
            packets = None  # all is decoded to learn the true ones
        if self._collect and self.count > 1:
            self._converter.collect(stamps, self.deadline.limits.bytes)
        if packets:
            targets = list(dict.fromkeys(stamps))
            decoding = decode_targets(self._video, packets, targets, self._converter, hold_all=hold_all)
            with closing(decoding) as pictures:
                try:
                    for frame in self._in_order(pictures, hold_all):
                        self._progress(len(self._yielded) / self.count)
                        self.collected = self._converter.collected
                        yield frame
                        del frame
                    return
                except MismatchError as error:
                    self._damaged = isinstance(error, DamageError)
        full = self._decode_fully()
        if packets is None or _contradicts(full, packets.timeline):
            self._use(full)
            self._shots.clear()
            self.select(sampling)
            self._converter.collect((), 0)  # its places are those of the stamps before
            self.collected = None
            self.restarted = bool(self._yielded)
            if self.restarted and not can_restart:
                raise MediaError(
                    f"{self._video.path}: the times in the file are wrong, and so are the frames that were read so far",
                    hint="read all frames at once (read_frames): then they begin again, at the right times",
                )
            self._yielded.clear()
        last = self._yielded[-1][0] if self._yielded else None
        targets = [stamp for stamp in dict.fromkeys(self._selection.stamps) if last is None or stamp > last]
        with self._open_again() as video:
            decoded = decode_through(
                video, full.timeline.stamps, targets, lambda share: self._progress((1 + share) / 2)
            )
            yield from self._in_order((self._converter.convert(*each) for each in decoded), hold_all, after=last)
        self._progress(1.0)

    def _file_notes(self) -> list[str]:
        notes = []
        if self._sampling.source_fps is not None:
            notes.append("the rate of pictures (source_fps) is not used: a video has its own times")
        if self._decoded and (broken := len(self._decoded.broken)):
            packets = "1 broken packet" if broken == 1 else f"{broken} broken packets"
            notes.append(f"{packets} skipped" + ("; the nearest good frames were used" if self._replaced else ""))
        damaged = self._damaged or self._converter.damaged or (self._decoded and self._decoded.is_damaged)
        if damaged and not (self._decoded and self._decoded.broken):
            notes.append("the decoder reports damage: parts of some frames may be wrong")
        if not (self._packets and self._packets.is_whole) and (fault := self._video.fault(self.timeline)):
            notes.append(fault)
        if self._converter.matrix is not None:
            notes.append(f"colour matrix {self._converter.matrix} is not supported; the usual one is used instead")
        if self._converter.resized:
            notes.append("the frame size changes; all frames are scaled to the size of the first one")
        return notes

    def _decode_fully(self) -> FullDecode:
        if self._decoded is None:
            with self._open_again() as video:
                self._decoded = decode_fully(video, lambda share: self._progress(share / 2))
        return self._decoded

    def _open_again(self) -> AbstractContextManager[OpenVideo]:
        return open_video(self._video.path, self._video.deadline)


def _contradicts(full: FullDecode, indexed: Timeline) -> bool:
    """Return whether the decoded pictures are others than those in the packet index, apart from lost ones."""
    lost = set(indexed.stamps) - set(full.timeline.stamps)
    return len(lost) + len(full.timeline.stamps) > len(indexed.stamps) or (bool(lost) and not full.broken)
