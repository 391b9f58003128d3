"""One video being read: what its packets announce, the pictures that a sampling takes, the safe way if that fails."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby

from ..errors import MediaError
from .decode import OffTrackError, Review, decode_through, first_picture, review
from .demux import Packets, Source, open_video, packets_of
from .limits import Clock, Deadline, Limits
from .orientation import Look
from .parallel import Developer, Shot, shots
from .sampling import Choice, Sampling, Timeline, choose


@dataclass(frozen=True)
class Survey:
    """What was found out about a file, for reading it again: its packets, and its pictures if all were decoded."""

    packets: Packets | None
    seen: Review | None = None


@contextmanager
def open_reading(
    path: str, limits: Limits, progress: Callable[[float], None], survey: Survey | None = None
) -> Iterator[Reading]:
    """Open a video for the `with` block. Raises MediaError for what is no video."""
    with open_video(path, Deadline(path, limits)) as source:
        reading = Reading(source, survey or Survey(packets_of(source)), progress)
        try:
            yield reading
        finally:
            reading.close()  # before the file: the threads of a reader that left early are still at work on it


def check(path: str, limits: Limits) -> None:
    """Decode one picture, however long the video is; raises MediaError where that can't be done."""
    with open_video(path, Deadline(path, limits)) as source:
        first_look(source)


class Reading:
    """An open video. `began_anew` is set when all the shots given so far count no more, and the first one comes again.

    What it does raises MediaError for a video that has no picture that can be decoded, has nothing at the sampling's
    start, or goes beyond the limits.
    """

    def __init__(self, source: Source, survey: Survey, progress: Callable[[float], None]) -> None:
        self._source, self._packets, self._progress = source, survey.packets, progress
        self._timeline = survey.packets.timeline if survey.packets else None
        self._developer, self._choice = Developer(), Choice(())
        self._seen = survey.seen
        self._shots: Generator[Shot, None, None] | None = None
        self._taken: list[tuple[int, int]] = []  # each shot's target and stamp
        self._replaced, self.began_anew = False, False

    @property
    def timeline(self) -> Timeline:
        """When the pictures come on screen; found by decoding all of them where the packets don't tell."""
        if self._timeline is None:
            self._timeline = self._review().timeline
        return self._timeline

    @property
    def survey(self) -> Survey:
        """What is known of the file by now."""
        return Survey(self._packets, self._seen)

    @property
    def count(self) -> int:
        """The number of shots that the sampling wants."""
        return len(self._choice.stamps)

    @property
    def look(self) -> Look:
        """The size and the orientation of the pictures."""
        with suppress(OffTrackError):
            return self._developer.look
        with self._again() as source:
            return first_look(source)

    @property
    def clock(self) -> Clock:
        """What the limit of time goes by."""
        return self._source.deadline.clock

    @property
    def codec(self) -> str:
        """The codec's usual name."""
        return self._source.context.codec.canonical_name

    def choice(self, sampling: Sampling) -> Choice:
        """Return what the sampling takes, as far as the packets tell: frames that are damaged turn up later."""
        self._choose(sampling)
        return self._choice

    def shots(self, sampling: Sampling, *, hold_all: bool) -> Generator[Shot, None, None]:
        """Return the pictures that the sampling takes; with `hold_all` they may all lie in memory together."""
        self._shots = self._taken_by(sampling, hold_all)
        return self._shots

    def close(self) -> None:
        """End what `shots` has begun."""
        if self._shots is not None:
            self._shots.close()

    def _taken_by(self, sampling: Sampling, hold_all: bool) -> Generator[Shot, None, None]:
        self._choose(sampling)
        if packets := self._packets:
            targets = list(dict.fromkeys(self._choice.stamps))
            with closing(shots(self._source, packets, targets, self._developer, hold_all=hold_all)) as found:
                try:
                    for shot in self._in_order(found, hold_all):
                        self._progress(len(self._taken) / self.count)
                        yield shot
                        del shot
                    return
                except OffTrackError:
                    pass
        seen = self._review()
        decoded = seen.timeline
        if packets is None or _contradicts(seen, packets.timeline):
            self._timeline = decoded  # the packets don't tell what is shown when
            self._choose(sampling)
            self.began_anew = bool(self._taken) and hold_all
            if hold_all:
                self._taken.clear()
        last = self._taken[-1][0] if self._taken else None
        targets = [stamp for stamp in dict.fromkeys(self._choice.stamps) if last is None or stamp > last]
        with self._again() as source:
            decoding = decode_through(source, decoded.stamps, targets, lambda share: self._progress((1 + share) / 2))
            yield from self._in_order((self._developer.shot(*found) for found in decoding), hold_all, behind=last)
        self._progress(1.0)

    def notes(self) -> list[str]:
        """Return what a user should know about the shots, once all have been given."""
        notes = list(self._choice.notes)
        if self._seen and (broken := len(self._seen.broken)):
            packets = "1 broken packet" if broken == 1 else f"{broken} broken packets"
            notes.append(f"{packets} skipped" + ("; nearest good frames used" if self._replaced else ""))
        if lost := len(self._choice.stamps) - len(self._taken):
            notes.append(f"{lost} of the frames asked for {'is' if lost == 1 else 'are'} lost")
        if self._developer.resized:
            notes.append("the picture changes its size; all frames are scaled to that of the first")
        return notes

    def _in_order(self, found: Iterable[Shot], hold_all: bool, behind: int | None = None) -> Iterator[Shot]:
        """Yield a shot for each choice: twice what was chosen twice, once what stands in for several lost ones."""
        shots = iter(found)
        for target, times in groupby(stamp for stamp in self._choice.stamps if behind is None or stamp > behind):
            shot = next(shots)
            assert shot.target == target, "pictures come in the order of their targets"
            if not self._taken:
                self._check_memory(shot, len(self._choice.stamps) if hold_all else 1)
            self._replaced = self._replaced or shot.stamp != target
            if self._taken and self._taken[-1][1] == shot.stamp:
                continue
            for _ in times:
                self._taken.append((target, shot.stamp))
                yield shot
            del shot

    def _choose(self, sampling: Sampling) -> None:
        timeline = self.timeline  # whose own errors name the file already
        try:
            self._choice = choose(timeline, sampling)
        except MediaError as error:
            raise MediaError(f"{self._source.path}: {error}", error.hint) from None

    def _check_memory(self, shot: Shot, count: int) -> None:
        height, width, _ = shot.image.shape
        size, most = count * shot.image.nbytes, self._source.deadline.limits.bytes
        if size > most:
            raise MediaError(
                f"{self._source.path}: {count} frames of {width}x{height} need {size / 2**30:.0f} GiB of memory,"
                f" more than {most / 2**30:.0f}",
                hint="ask for fewer frames",
            )

    def _review(self) -> Review:
        if self._seen is None:
            with self._again() as source:
                self._seen = review(source, lambda share: self._progress(share / 2))
        return self._seen

    def _again(self) -> AbstractContextManager[Source]:
        return open_video(self._source.path, self._source.deadline)


def first_look(source: Source) -> Look:
    """Return the look of the first picture that can be decoded. Raises MediaError if there is none."""
    frame = first_picture(source)
    if frame is None:
        raise MediaError(f"{source.path}: no picture can be decoded")
    return Look.of(frame)


def _contradicts(seen: Review, announced: Timeline) -> bool:
    """Whether the pictures that were decoded are others than those announced, lost ones aside."""
    decoded = seen.timeline.stamps
    lost = set(announced.stamps) - set(decoded)
    return len(lost) + len(decoded) > len(announced.stamps) or (bool(lost) and not seen.broken)
