"""Decode the pictures at given stamps on all cores, and no more packets than they need."""

from __future__ import annotations

import math
import queue
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import av.error
import numpy as np
from av.video.reformatter import VideoReformatter

from ..errors import MediaError
from .decode import (
    DamageError,
    MarkError,
    MismatchError,
    PacketRange,
    decode_range,
    decode_range_strictly,
    lacks_references,
    use_threads,
)
from .demux import OpenVideo, open_video
from .limits import cores
from .orientation import Geometry, replace_matrix
from .packet_index import PacketIndex

if TYPE_CHECKING:
    from av.video.frame import VideoFrame
    from numpy.typing import NDArray

_SEEK_COST = 4  # packets: what it costs to empty the decoder and to fill its threads again
_GAIN = 1.25  # times fewer packets: what makes more seeks worth it
_DECODERS_BYTES = 192 * 2**20  # what decoders may hold together where frames are passed on one at a time
_DECODER_BYTES_PER_PIXEL = 16  # some ten pictures of 1.5 bytes a pixel
_THREAD_GAIN = 0.5  # of a core: frame threads wait for each other, and gain nothing for skipped pictures
# What decoding takes of a core, roughly, and what it must take for threads of the decoder to be worth their time, and
# for Python's and a second opening of the file: of each packet, too, as threads wait for each other.
_BYTE_SECONDS, _PIXEL_SECONDS, _AV1_PIXEL_SECONDS = 1e-7, 2.5e-10, 5e-10
_TINY_SECONDS, _SMALL_SECONDS, _PACKET_SECONDS = 0.0025, 0.005, 40e-6
_PICTURES_WAITING = 4  # to be converted: with more, FFmpeg takes new memory for each
# Pictures that are decoded before the first of them is converted: each after the other is in the processor's caches.
# Only of codecs whose decoders tell of damage: others show what is in the buffer of a picture that was let go.
_MOST_AHEAD, _PIXELS_AHEAD = 16, 2**22
_REPORT_DAMAGE = {"h264"}
_RANGE_SECONDS = 0.003  # of decoding: what makes another range worth its seek
# Each warning of the decoder becomes an error, as do pictures of HEVC that differ from the MD5 that is sent with them.
_STRICT = {"err_detect": "crccheck+explode"}
_STRICT_OF_TAGS = {"tiff"}  # with that, these refuse whole files, of FFmpeg's own encoder too


@dataclass(frozen=True, eq=False)
class DecodedFrame:
    """The picture for a target stamp. `stamp` is its own: it differs where the target's picture is lost.

    `image`, uint8 (height, width, 3), RGB, upright, may be a view of FFmpeg's buffer: 25 MB at 2160p. Each generator
    drops its reference before it asks for the next one (hence each `del decoded`), so that two are never in memory.
    """

    target: int
    stamp: int
    image: NDArray[np.uint8]


def plan_ranges(index: PacketIndex, targets: Sequence[int], least: float = math.inf) -> list[PacketRange]:
    """Return the ranges of packets, in order of time, that give the targets, which ascend.

    Ranges with few packets between them are decoded as one, unless most of a range would be such packets, and the
    container's own index makes seeks cheap: keyframes follow each other closely there. A range of `least` packets ends
    before the next keyframe, so that decoders can share the work.
    """
    ranges = _ranges(index, targets, _SEEK_COST)
    if index.is_whole:
        fine = _ranges(index, targets, 1)
        if _GAIN * (sum(each.length + 1 for each in fine)) < sum(each.length for each in ranges):
            return fine
    return ranges if least == math.inf else _ranges(index, targets, _SEEK_COST, least)


def _ranges(index: PacketIndex, targets: Sequence[int], seek_cost: int, least: float = math.inf) -> list[PacketRange]:
    ranges: list[PacketRange] = []
    for target in targets:
        position = index.position(target)
        assert position is not None, "targets are stamps of packets"
        start = index.entry(target, position)
        if ranges and start < ranges[-1].stop + (seek_cost if ranges[-1].length < least else 0):
            last = ranges.pop()
            start, stop = min(last.start, start), max(last.stop, position + 1)
            ranges.append(PacketRange(start, stop, (*last.targets, target)))
        else:
            ranges.append(PacketRange(start, position + 1, (target,)))
    return ranges


def share_cores(ranges: Sequence[PacketRange], cores: int, most: int | None = None) -> tuple[int, int]:
    """Return how many decoders, at most `most`, share the ranges, and how many threads each has: the fastest split."""
    lengths = sorted((each.length + _SEEK_COST for each in ranges), reverse=True)

    def time(workers: int) -> float:
        threads = max(1, cores // workers)
        loads = [0.0] * workers
        for length in lengths:
            loads[loads.index(min(loads))] += length
        return max(loads) / (1 + _THREAD_GAIN * (threads - 1))

    workers = min(range(1, min(cores, len(ranges), most or cores) + 1), key=time)
    return workers, max(1, cores // workers)


def divide_work(
    ranges: Sequence[PacketRange], packet_seconds: float, cores: int, most: int | None = None
) -> tuple[int, int]:
    """Return how many threads decode the ranges, at most `most`, and how many threads each decoder has of its own.

    0 means that the caller decodes them: what takes little is not worth a thread of Python. `packet_seconds` is what
    decoding a packet takes of a core.
    """
    packets, gain = sum(each.length for each in ranges), packet_seconds - _PACKET_SECONDS
    if packets * gain >= _SMALL_SECONDS:
        workers, threads = share_cores(ranges, cores, most)
        return 0 if workers == threads == 1 else workers, threads
    overlapping = packets - len(ranges)  # the first of each range waits for the decoder to be empty
    return 0, cores if overlapping * gain >= _TINY_SECONDS else 1


class Converter:
    """Turns decoded pictures into pixels, all of the size and the orientation of the video's first one.

    `decoder_options` are FFmpeg's, for pictures that need not be exact. With `collect`, the pixels are written to one
    array, `collected`, uint8 (frames, height, width, 3): no buffers of FFmpeg wait to be copied. `damaged` is set where
    the decoder reports damage: parts of some pictures may be wrong.
    """

    decoder_options: ClassVar[Mapping[str, str]] = {}

    def __init__(self) -> None:
        self.resized = self.damaged = False
        self.matrix: int | None = None  # a colour matrix that was replaced
        self._geometry: Geometry | None = None
        self._ready = threading.Event()
        self._own = threading.local()
        self.collected: NDArray[np.uint8] | None = None
        self._places: dict[int, int] = {}
        self._count = self._most_bytes = 0

    def collect(self, targets: Sequence[int], most_bytes: int) -> None:
        """Write the pixels for each target to its place in one array, unless that takes more than so many bytes."""
        self._places = {target: place for place, target in reversed(list(enumerate(targets)))}
        self._count, self._most_bytes, self.collected = len(targets), most_bytes, None

    @property
    def geometry(self) -> Geometry:
        """The geometry of the first picture. Raises MismatchError as long as there was none."""
        if self._geometry is None:
            raise MismatchError
        return self._geometry

    def convert(self, target: int, stamp: int, frame: VideoFrame, leads: bool = True) -> DecodedFrame:
        """Return a picture's pixels. One that does not lead waits until one that does has set the geometry."""
        if leads and self._geometry is None:
            self._geometry = Geometry.of(frame)
            shape = (self._count, *self._geometry.shape)
            if 0 < math.prod(shape) <= self._most_bytes:
                self.collected = np.empty(shape, np.uint8)
            self._ready.set()
        self._ready.wait()
        self.resized = self.resized or not self.geometry.fits(frame)
        if matrix := replace_matrix(frame):
            self.matrix = matrix
        if self.collected is None or target not in self._places:
            return DecodedFrame(target, stamp, self.pixels(frame))
        place = self.collected[self._places[target]]
        return DecodedFrame(target, stamp, self.geometry.pixels(frame, self.reformatter("rgb"), place))

    def pixels(self, frame: VideoFrame) -> NDArray[np.uint8]:
        """Return a picture's pixels, uint8 (height, width, 3), RGB, upright."""
        return self.geometry.pixels(frame, self.reformatter("rgb"))

    def reformatter(self, use: str) -> VideoReformatter:
        """Return the thread's own reformatter for a use: it keeps its tables from one picture to the next."""
        if not hasattr(self._own, use):
            setattr(self._own, use, VideoReformatter())
        reformatter: VideoReformatter = getattr(self._own, use)
        return reformatter

    def release(self) -> None:
        """Wake all threads that wait for a leading picture: it won't come."""
        self._ready.set()


def decode_targets(
    video: OpenVideo, index: PacketIndex, targets: Sequence[int], converter: Converter, *, hold_all: bool
) -> Generator[DecodedFrame, None, None]:
    """Yield the targets' pictures in order of time.

    With `hold_all` any number of them may wait to be fetched, so that the longest ranges can begin first. Without, one
    for each range waits, and large pictures get fewer decoders. Raises MismatchError where the index turns out wrong.
    """
    ranges = wholes = plan_ranges(index, targets)
    seconds = _packet_seconds(video, index)
    if hold_all and divide_work(ranges, seconds, cores(video.deadline.limits))[0]:
        ranges = plan_ranges(index, targets, _RANGE_SECONDS / seconds)
    yield from decode_ranges(video, index, ranges, converter, None if hold_all else 1, wholes)


def has_false_keyframe(video: OpenVideo, index: PacketIndex, targets: Sequence[int]) -> bool:
    """Return whether one of the targets, which the container calls keyframes, is none by the decoder's own word."""
    if video.is_strict:
        return False
    with open_video(video.path, video.deadline) as again:
        use_threads(again.context, 1)
        try:
            for each in _ranges(index, targets, 0):
                next(decode_range(again, index, each))
        except (MismatchError, av.error.FFmpegError):
            return True
    return False


def _packet_seconds(video: OpenVideo, index: PacketIndex) -> float:
    """Return what decoding a packet takes of a core, roughly."""
    pixel_seconds = _AV1_PIXEL_SECONDS if video.codec == "av1" else _PIXEL_SECONDS
    return pixel_seconds * video.pixels + _BYTE_SECONDS * video.size_bytes / len(index.stamps)


def decode_ranges(
    video: OpenVideo,
    index: PacketIndex,
    ranges: Sequence[PacketRange],
    converter: Converter,
    most_waiting: int | None,
    wholes: Sequence[PacketRange] = (),
) -> Generator[DecodedFrame, None, None]:
    """Yield the pictures of ranges, which are in order of time; of each range, `most_waiting` may wait to be fetched.

    If the ranges are parts of `wholes`, one that fails is decoded again from where its whole begins; where keyframes
    may be false, together with the parts behind it. Raises MismatchError where the index turns out wrong.
    """
    hold_all = most_waiting is None
    most = None if hold_all else max(1, _DECODERS_BYTES // (_DECODER_BYTES_PER_PIXEL * max(1, video.pixels)))
    workers, threads = divide_work(ranges, _packet_seconds(video, index), cores(video.deadline.limits), most)
    if workers == 1:
        workers, most_waiting = (0, 1) if most_waiting == 1 else (1, _PICTURES_WAITING)
    pool = _DecoderPool(video, index, ranges, converter, most_waiting)
    try:
        pool.start(workers, threads)
        done = 0
        for number, packet_range in enumerate(ranges):
            if number < done:
                continue
            left, done = list(packet_range.targets), number + 1
            try:
                for decoded in pool.results(number):
                    left.remove(decoded.target)
                    yield decoded
                    del decoded
            except (MismatchError, av.error.FFmpegError):
                # a decoder that begins within damage shows whatever was in its memory
                whole = [each for each in wholes or ranges if each.start <= packet_range.start][-1]
                while not video.is_strict and done < len(ranges) and ranges[done].stop <= whole.stop:
                    left += ranges[done].targets  # its keyframe is likely a false one, too
                    done += 1
                pool.leave_out(range(number + 1, done))
                again = replace(packet_range, start=whole.start, stop=ranges[done - 1].stop)
                is_marked = yield from _retry(video, index, again, left, converter)
                if left:
                    left += [target for later in ranges[done:] for target in later.targets]
                    threads = 1 if is_marked else cores(video.deadline.limits)
                    yield from _from_start(video, index, left, converter, threads)
                    return
    finally:
        pool.close()


def _retry(
    video: OpenVideo, index: PacketIndex, packet_range: PacketRange, left: list[int], converter: Converter
) -> Generator[DecodedFrame, None, bool]:
    """Yield those of a range's pictures that are left, and remove them from the list.

    Return whether the range failed and the decoder marked a picture as damaged.

    The range is decoded without threads, which hide errors in their own way. It begins at the keyframe before, as the
    decoder may only lack what its first pictures refer to. If there are still errors, the range is damaged: the decoder
    hides them, beginning where the range does, or else at the keyframe before.
    """
    before = index.keys[index.keys < packet_range.start]
    earlier = int(before[-1]) if len(before) else 0
    attempts: list[tuple[int, int | None]] = [(packet_range.start, earlier), (packet_range.start, None)]
    if earlier < packet_range.start:
        attempts.append((earlier, None))
    is_marked = False
    for start, lead_in in attempts:
        with open_video(video.path, video.deadline) as again, suppress(MismatchError, av.error.FFmpegError):
            use_threads(again.context, 1)
            if lead_in is not None:
                again.context.options |= _strict(again)
            hides_errors = lead_in is None and (is_marked or len(before) > 0 or not lacks_references(again, index))
            attempted = PacketRange(start, packet_range.stop, tuple(left))
            try:
                for target, frame in decode_range_strictly(again, index, attempted, lead_in):
                    left.remove(target)
                    converter.damaged = converter.damaged or hides_errors
                    yield converter.convert(target, target, frame)
            except MarkError:
                is_marked = True
            else:
                return False
    return is_marked


def _from_start(
    video: OpenVideo, index: PacketIndex, targets: Sequence[int], converter: Converter, threads: int
) -> Generator[DecodedFrame, None, None]:
    """Yield the pictures by decoding the whole file as one range: decoding can't start at every keyframe.

    In streams with intra refresh it can start only at the first one.
    """
    with open_video(video.path, video.deadline) as again:
        _use_all(again, threads, converter.decoder_options)
        try:
            for target, frame in decode_range(again, index, PacketRange(0, len(index.stamps), tuple(targets))):
                yield converter.convert(target, target, frame)
        except (av.error.InvalidDataError, MarkError) as error:
            raise DamageError from error
        except av.error.FFmpegError as error:
            raise MismatchError from error


def _use_all(video: OpenVideo, threads: int, options: Mapping[str, str]) -> None:
    """Decode with threads, and turn each warning of the decoder into an error: threads would hide it."""
    use_threads(video.context, threads)
    video.context.options |= {**_strict(video), **options}


def _strict(video: OpenVideo) -> Mapping[str, str]:
    return {} if video.codec in _STRICT_OF_TAGS else _STRICT


def decoded_ahead(decoded: Iterator[tuple[int, VideoFrame]]) -> Generator[tuple[int, VideoFrame], None, None]:
    """Yield what comes of decoding, but decode some pictures, of large ones only one, before the first of them."""
    waiting: deque[tuple[int, VideoFrame]] = deque()
    error: Exception | None = None
    while error is None:
        try:
            pixels = 0
            while len(waiting) < _MOST_AHEAD and pixels < _PIXELS_AHEAD:
                waiting.append(next(decoded))
                pixels += waiting[-1][1].width * waiting[-1][1].height
        except (StopIteration, MediaError, MismatchError, av.error.FFmpegError) as stopped:
            error = stopped
        while waiting:
            yield waiting.popleft()
    if not isinstance(error, StopIteration):
        raise error


class _DecoderPool:
    """Worker threads that each hold a decoder and decode one range after the other.

    They convert their pictures, too, but for a single one: the caller converts what that has decoded.
    """

    def __init__(
        self,
        video: OpenVideo,
        index: PacketIndex,
        ranges: Sequence[PacketRange],
        converter: Converter,
        most_waiting: int | None,
    ) -> None:
        self._index, self._ranges, self._converter, self._most_waiting = index, ranges, converter, most_waiting
        self._video = replace(video, deadline=video.deadline.for_thread())
        self._results: list[queue.Queue[DecodedFrame | tuple[int, VideoFrame] | Exception | None]] = []
        self._jobs = deque(range(len(ranges)))
        self._left: set[int] = set()  # ranges whose further pictures nobody fetches
        self._begun = threading.Semaphore(len(ranges))  # how many more ranges may be begun
        if most_waiting is None:  # the first range stays the first: it sets the geometry
            rest = sorted(range(1, len(ranges)), key=lambda number: -ranges[number].length)
            self._jobs = deque([0, *rest] if ranges else [])
        self._threads: list[threading.Thread] = []

    def start(self, workers: int, threads: int) -> None:
        """Begin to decode. Without workers, one decoder works in the caller's thread."""
        if not workers:
            ahead = threads if threads == 1 else threads + 1  # they go on while the caller is busy with a picture
            _use_all(self._video, ahead, self._converter.decoder_options)
            return
        self._results = [queue.Queue(self._most_waiting or 0) for _ in self._ranges]
        if self._most_waiting is not None:
            self._begun = threading.Semaphore(workers + 1)
        self._threads = [
            threading.Thread(target=self._work, args=(worker, threads), name=f"llvid-decode-{worker}", daemon=True)
            for worker in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def results(self, number: int) -> Iterator[DecodedFrame]:
        """Yield a range's pictures as they come; raise the error that stopped it."""
        if not self._threads:
            decoding = decode_range(self._video, self._index, self._ranges[number])
            for target, frame in decoded_ahead(decoding) if self._video.codec in _REPORT_DAMAGE else decoding:
                yield self._converted(number, target, frame)
                del frame
            return
        try:
            while (item := self._results[number].get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield self._converted(number, *item) if isinstance(item, tuple) else item
                del item
        finally:
            self._left.add(number)
            self._begun.release()

    def leave_out(self, numbers: Iterable[int]) -> None:
        """Begin none of these ranges: nobody fetches their pictures."""
        self._left.update(numbers)

    def close(self) -> None:
        """Stop the threads and wait for them."""
        self._video.deadline.stopped.set()
        self._converter.release()
        for thread in self._threads:
            if thread.is_alive():  # Ctrl-C may come before it is started; then it ends by itself
                thread.join()

    def _work(self, worker: int, threads: int) -> None:
        with ExitStack() as stack:
            video: OpenVideo | None = None
            while self._jobs and not self._video.deadline.stopped.is_set():
                if not self._begun.acquire(timeout=0.05):
                    continue
                try:
                    number = self._jobs.popleft()
                except IndexError:
                    return
                if number in self._left:
                    self._begun.release()
                    continue
                try:
                    if video is None:
                        mine = self._video  # only the first worker's: a container serves one thread at a time
                        if worker > 0:
                            mine = stack.enter_context(open_video(mine.path, mine.deadline, probe=False))
                            mine.context.reorder_depth = self._video.context.reorder_depth
                        _use_all(mine, threads, self._converter.decoder_options)
                        video = mine
                    alone = len(self._threads) == 1
                    for target, frame in decode_range(video, self._index, self._ranges[number]):
                        self._put(number, (target, frame) if alone else self._converted(number, target, frame))
                        del frame
                    self._put(number, None)
                except Exception as error:  # noqa: BLE001 - raised again where the range's results are read
                    self._put(number, error)

    def _converted(self, number: int, target: int, frame: VideoFrame) -> DecodedFrame:
        return self._converter.convert(target, target, frame, leads=number == 0)

    def _put(self, number: int, item: DecodedFrame | tuple[int, VideoFrame] | Exception | None) -> None:
        while True:
            try:
                return self._results[number].put(item, timeout=0.05)
            except queue.Full:
                if self._video.deadline.stopped.is_set() or number in self._left:
                    return None
