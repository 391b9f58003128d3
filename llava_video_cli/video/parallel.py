"""The pictures at given stamps, decoding no more than they need, on all cores where that helps."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import av.error
from av.video.reformatter import VideoReformatter

from .decode import OffTrackError, Run, decode_run, decode_run_carefully, use_threads
from .demux import Packets, Source, open_video
from .limits import cores
from .orientation import Look

if TYPE_CHECKING:
    import numpy as np
    from av.video.frame import VideoFrame
    from numpy.typing import NDArray

_SEEK_COSTS = 4  # packets: what emptying the decoder and filling its threads again is worth
_DECODERS_BYTES = 192 * 2**20  # what decoders may hold together where frames are handed on one at a time
_DECODER_BYTES_A_PIXEL = 16  # some ten pictures of 1.5 bytes a pixel
_SMALL_PIXELS = (
    100_000_000  # of all packets together: decoded sooner than threads and a second opening pay for themselves
)
_THREAD_GAIN = 0.8  # of a core that frame threads keep busy; independent decoders keep all of it


@dataclass(frozen=True, eq=False)
class Shot:
    """A picture for a target: `stamp` is its own, another than the target's where that one is lost.

    `image` is a view of FFmpeg's buffer, uint8 (height, width, 3), RGB, upright: 25 MB at 2160p. Whoever hands a shot
    on lets go of it before asking for the next (hence each `del shot`), so that two don't lie in memory together.
    """

    target: int
    stamp: int
    image: NDArray[np.uint8]


def plan(packets: Packets, targets: Sequence[int]) -> list[Run]:
    """Return the runs, in order of time, that give the targets, which ascend."""
    runs: list[Run] = []
    for target in targets:
        position = packets.position(target)
        assert position is not None, "targets are stamps of packets"
        entry = packets.entry(target, position)
        if runs and entry <= runs[-1].stop + _SEEK_COSTS:
            run = runs.pop()
            runs.append(Run(min(run.entry, entry), max(run.stop, position), (*run.targets, target)))
        else:
            runs.append(Run(entry, position, (target,)))
    return runs


def crew(runs: Sequence[Run], cores: int, most: int | None = None) -> tuple[int, int]:
    """Return how many decoders, at most `most`, share the runs, and how many threads each has.

    Taken is what should be done first.
    """
    lengths = sorted((run.length + _SEEK_COSTS for run in runs), reverse=True)

    def time(workers: int) -> float:
        threads = max(1, cores // workers)
        loads = [0.0] * workers
        for length in lengths:
            loads[loads.index(min(loads))] += length
        return max(loads) / (1 + _THREAD_GAIN * (threads - 1))

    workers = min(range(1, min(cores, len(runs), most or cores) + 1), key=time)
    return workers, max(1, cores // workers)


class Developer:
    """Turns decoded pictures into pixels, all of the size and the orientation of the video's first one."""

    def __init__(self) -> None:
        self.resized = False
        self._look: Look | None = None
        self._known = threading.Event()
        self._own = threading.local()

    @property
    def look(self) -> Look:
        """The look of the first picture. Raises OffTrackError as long as there was none."""
        if self._look is None:
            raise OffTrackError
        return self._look

    def shot(self, target: int, stamp: int, frame: VideoFrame, leads: bool = True) -> Shot:
        """Return a picture's pixels. One that does not lead waits for one that does."""
        if leads and self._look is None:
            self._look = Look.of(frame)
            self._known.set()
        self._known.wait()
        self.resized = self.resized or not self.look.fits(frame)
        if not hasattr(self._own, "reformatter"):  # keeps its tables from one picture to the next
            self._own.reformatter = VideoReformatter()
        return Shot(target, stamp, self.look.pixels(frame, self._own.reformatter))

    def release(self) -> None:
        """Let go whoever waits for a picture that won't come."""
        self._known.set()


def shots(
    source: Source, packets: Packets, targets: Sequence[int], developer: Developer, *, hold_all: bool
) -> Generator[Shot, None, None]:
    """Yield the targets' pictures in order of time.

    With `hold_all` any number of them may wait to be fetched, which lets the longest runs begin first; without, one
    for each run, and large pictures have fewer decoders. Raises OffTrackError where the packets turn out to announce
    something else than is there.
    """
    runs = plan(packets, targets)
    most = None if hold_all else max(1, _DECODERS_BYTES // (_DECODER_BYTES_A_PIXEL * max(1, source.pixels)))
    small = sum(run.length for run in runs) * source.pixels < _SMALL_PIXELS
    workers, threads = (1, 1) if small else crew(runs, cores(source.deadline.limits), most)
    team = _Team(source, packets, runs, developer, hold_all)
    try:
        team.start(workers, threads)
        for number, run in enumerate(runs):
            left = list(run.targets)
            try:
                for shot in team.results(number):
                    left.remove(shot.target)
                    yield shot
                    del shot
            except (OffTrackError, av.error.FFmpegError):
                yield from _retry(source, packets, run, left, developer)
                if left:
                    left += [target for later in runs[number + 1 :] for target in later.targets]
                    yield from _from_start(source, packets, left, developer)
                    return
    finally:
        team.close()


def _retry(
    source: Source, packets: Packets, run: Run, left: list[int], developer: Developer
) -> Generator[Shot, None, None]:
    """Yield those of a run's pictures that are left, and take them off the list.

    Tried are the run without threads, which hide errors in their own way, and the same from the keyframe before.
    """
    before = packets.keys[packets.keys < run.entry]
    for entry in (run.entry, *before[-1:].tolist()):
        with open_video(source.path, source.deadline) as again, suppress(OffTrackError, av.error.FFmpegError):
            use_threads(again.context, 1)
            for target, frame in decode_run_carefully(again, packets, Run(entry, run.stop, tuple(left))):
                left.remove(target)
                yield developer.shot(target, target, frame)
            return


def _from_start(
    source: Source, packets: Packets, targets: Sequence[int], developer: Developer
) -> Generator[Shot, None, None]:
    """Yield the pictures by one run over the whole file: not every keyframe is one that decoding can start at.

    In streams that are refreshed little by little only the first is.
    """
    with open_video(source.path, source.deadline) as again:
        _use_all(again, cores(source.deadline.limits))
        try:
            for target, frame in decode_run(again, packets, Run(0, len(packets.stamps) - 1, tuple(targets))):
                yield developer.shot(target, target, frame)
        except av.error.FFmpegError as error:
            raise OffTrackError from error


def _use_all(source: Source, threads: int) -> None:
    """Decode with threads, and make an error of whatever the decoder frowns at: threads hide errors otherwise."""
    use_threads(source.context, threads)
    source.context.options |= {"err_detect": "explode"}


class _Team:
    """Threads that each hold a decoder and take one run after the other."""

    def __init__(
        self, source: Source, packets: Packets, runs: Sequence[Run], developer: Developer, hold_all: bool
    ) -> None:
        self._packets, self._runs, self._developer, self._hold_all = packets, runs, developer, hold_all
        self._source = replace(source, deadline=source.deadline.helper())
        self._results: list[queue.Queue[Shot | Exception | None]] = [queue.Queue(0 if hold_all else 1) for _ in runs]
        self._jobs = deque(range(len(runs)))
        if hold_all:  # the first run stays the first: it tells how the pictures look
            rest = sorted(range(1, len(runs)), key=lambda number: -runs[number].length)
            self._jobs = deque([0, *rest] if runs else [])
        self._threads: list[threading.Thread] = []

    def start(self, workers: int, threads: int) -> None:
        """Begin to decode; a single decoder that holds nothing back works in the thread that asks for its results."""
        if workers == 1 and (threads == 1 or not self._hold_all):
            _use_all(self._source, threads)
            return
        self._threads = [
            threading.Thread(target=self._work, args=(worker, threads), name=f"llvid-decode-{worker}", daemon=True)
            for worker in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def results(self, number: int) -> Iterator[Shot]:
        """Yield a run's pictures as they come; raise what stopped it."""
        if not self._threads:
            yield from self._decode(self._source, number)
            return
        while (item := self._results[number].get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
            del item

    def close(self) -> None:
        """Stop the threads and wait for them."""
        self._source.deadline.stopped.set()
        self._developer.release()
        for thread in self._threads:
            if thread.ident is not None:  # Ctrl-C may come before it is started
                thread.join()

    def _work(self, worker: int, threads: int) -> None:
        with ExitStack() as stack:
            source: Source | None = None
            while self._jobs and not self._source.deadline.stopped.is_set():
                try:
                    number = self._jobs.popleft()
                except IndexError:
                    return
                try:
                    if source is None:
                        mine = self._source  # the first worker's alone: a container bears one thread at a time
                        if worker > 0:
                            mine = stack.enter_context(open_video(mine.path, mine.deadline))
                        _use_all(mine, threads)
                        source = mine
                    for shot in self._decode(source, number):
                        self._put(number, shot)
                        del shot
                    self._put(number, None)
                except Exception as error:  # noqa: BLE001 - whoever waits for the run gets it
                    self._put(number, error)

    def _decode(self, source: Source, number: int) -> Iterator[Shot]:
        for target, frame in decode_run(source, self._packets, self._runs[number]):
            yield self._developer.shot(target, target, frame, leads=number == 0)
            del frame

    def _put(self, number: int, item: Shot | Exception | None) -> None:
        while True:
            try:
                return self._results[number].put(item, timeout=0.05)
            except queue.Full:
                if self._source.deadline.stopped.is_set():
                    return None
