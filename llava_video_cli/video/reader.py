"""Read one video: its packet index, the frames that a sampling selects, and the safe way where the index is wrong."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

from ..errors import MediaError
from .decode import DamageError, FullDecode, MismatchError, checked_index, decode_fully, decode_through, first_picture
from .demux import OpenVideo, PacketIndex, media_errors, no_picture, open_video
from .limits import Clock, Deadline, Limits
from .orientation import Geometry
from .parallel import Converter, DecodedFrame, decode_targets
from .sampling import Sampling, Selection, Timeline, select_stamps

if TYPE_CHECKING:
    from av.video.frame import VideoFrame


@dataclass(frozen=True)
class VideoIndex:
    """What one reading of a file leaves for the next: its packets, and its timeline if all was decoded.

    The first picture was decoded, so that the index has none that can't be shown.
    """

    packets: PacketIndex | None
    decoded: FullDecode | None = None


@contextmanager
def open_reader(
    path: str, limits: Limits, progress: Callable[[float], None], index: VideoIndex | None = None
) -> Iterator[VideoReader]:
    """Open a video for the `with` block. Raises MediaError for what is no video."""
    with open_video(path, Deadline(path, limits)) as video:
        progress(0.0)
        with media_errors(path):
            reader = VideoReader(video, index or VideoIndex(checked_index(video)), progress, index is not None)
        try:
            yield reader
        finally:
            reader.close()  # before the file: a caller that leaves early has threads at work on it


class VideoReader:
    """An open video.

    `restarted` is set when the frames so far are void and the first one comes again.

    Its methods raise MediaError for a video that has no picture that can be decoded, has nothing at the sampling's
    start, or exceeds the limits.
    """

    def __init__(
        self, video: OpenVideo, index: VideoIndex, progress: Callable[[float], None], is_checked: bool
    ) -> None:
        self._video, self._packets, self._progress = video, index.packets, progress
        self._timeline = index.packets.timeline if index.packets else None
        self._converter, self._selection = Converter(), Selection(())
        self._decoded = index.decoded
        self._frames: Generator[DecodedFrame, None, None] | None = None
        self._yielded: list[tuple[int, int]] = []  # each frame's target and stamp
        self._replaced, self._damaged, self.restarted, self._is_checked = False, False, False, is_checked

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
        return VideoIndex(self._packets, self._decoded)

    @property
    def count(self) -> int:
        """The number of frames that the sampling selects."""
        return len(self._selection.stamps)

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
    def clock(self) -> Clock:
        """The clock that the time limit is measured by."""
        return self._video.deadline.clock

    @property
    def codec(self) -> str:
        """The codec's usual name."""
        return self._video.codec

    def select(self, sampling: Sampling) -> Selection:
        """Return the stamps that the sampling selects from the index. Damaged frames are only found by decoding."""
        timeline = self.timeline  # its own errors name the file already
        try:
            self._selection = select_stamps(timeline, sampling)
        except MediaError as error:
            raise MediaError(f"{self._video.path}: {error}", error.hint) from None
        return self._selection

    def frames(self, sampling: Sampling, *, hold_all: bool, can_restart: bool) -> Generator[DecodedFrame, None, None]:
        """Return the frames that the sampling selects. With `hold_all` all may be in memory at the same time.

        Where the packets' stamps turn out wrong on the way, they begin again from the first one if they may. If not,
        that raises MediaError.
        """
        self._frames = self._without_other_errors(sampling, hold_all, can_restart)
        return self._frames

    def _without_other_errors(
        self, sampling: Sampling, hold_all: bool, can_restart: bool
    ) -> Generator[DecodedFrame, None, None]:
        with media_errors(self._video.path):
            yield from self._select_and_decode(sampling, hold_all, can_restart)

    def close(self) -> None:
        """Stop the decoding that `frames` has started."""
        if self._frames is not None:
            self._frames.close()

    def _select_and_decode(
        self, sampling: Sampling, hold_all: bool, can_restart: bool
    ) -> Generator[DecodedFrame, None, None]:
        self.select(sampling)
        if self._packets and not self._is_checked and self._selection.stamps[0] > self.timeline.stamps[0]:
            self._first_picture()  # otherwise it is the first frame
            self.select(sampling)
        if packets := self._packets:
            targets = list(dict.fromkeys(self._selection.stamps))
            decoding = decode_targets(self._video, packets, targets, self._converter, hold_all=hold_all)
            with closing(decoding) as pictures:
                try:
                    for frame in self._in_order(pictures, hold_all):
                        self._progress(len(self._yielded) / self.count)
                        yield frame
                        del frame
                    return
                except MismatchError as error:
                    self._damaged = isinstance(error, DamageError)
        full = self._decode_fully()
        if packets is None or _contradicts(full, packets.timeline):
            self._timeline = full.timeline  # the packets' stamps are wrong
            self.select(sampling)
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

    def notes(self) -> list[str]:
        """Return what a user should know about the frames, once all have been yielded."""
        notes = list(self._selection.notes)
        if self._decoded and (broken := len(self._decoded.broken)):
            packets = "1 broken packet" if broken == 1 else f"{broken} broken packets"
            notes.append(f"{packets} skipped" + ("; the nearest good frames were used" if self._replaced else ""))
        if self._damaged and not (self._decoded and self._decoded.broken):
            notes.append("the decoder reports damage: parts of some frames may be wrong")
        if fault := self._video.fault:
            notes.append(fault)
        if lost := len(self._selection.stamps) - len(self._yielded):
            notes.append(f"{lost} of the requested frames {'is' if lost == 1 else 'are'} lost")
        if self._converter.matrix is not None:
            notes.append(f"colour matrix {self._converter.matrix} is not supported; the usual one is used instead")
        if self._converter.resized:
            notes.append("the frame size changes; all frames are scaled to the size of the first one")
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
        size, most = count * frame.image.nbytes, self._video.deadline.limits.bytes
        if size > most:
            raise MediaError(
                f"{self._video.path}: {count} frames of {width}x{height} need {size / 2**30:.0f} GiB of memory,"
                f" more than {most / 2**30:.0f}",
                hint="ask for fewer frames",
            )

    def _decode_fully(self) -> FullDecode:
        if self._decoded is None:
            with self._open_again() as video:
                self._decoded = decode_fully(video, lambda share: self._progress(share / 2))
        return self._decoded

    def _open_again(self) -> AbstractContextManager[OpenVideo]:
        return open_video(self._video.path, self._video.deadline)


def _contradicts(full: FullDecode, indexed: Timeline) -> bool:
    """Return whether the decoded pictures are others than those in the packet index, apart from lost ones."""
    decoded = full.timeline.stamps
    lost = set(indexed.stamps) - set(decoded)
    return len(lost) + len(decoded) > len(indexed.stamps) or (bool(lost) and not full.broken)
