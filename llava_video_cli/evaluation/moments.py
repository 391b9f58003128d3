"""Where something is seen: windows that a model says yes to, divided down to the frames at which that begins and ends.

Frames are known by their numbers in the video, windows by theirs in the run of them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

from ..errors import LlvidError
from ..video import Frames, Resize, Video, check_scenes
from ..video.limits import Limits
from ..video.sampling import Every, Sampling

_MOST_READ = 17  # frames of a part: it is divided at these, then what is between two of them is read
_MOST_HELD = 128  # frames: as each read decodes from a keyframe on, a short part is read at once
_PARTS = 4
_AROUND_CUT = 24  # frames to each side in which a detector of cuts sees it
_ASKABLE = 0.5  # of the threshold: a window with less is taken to show nothing of it
_ROUNDING_SECONDS = 1e-6  # of a time that was printed from a stamp


@dataclass(frozen=True)
class Moment:
    """The part `[start_seconds, end_seconds)` of a video in which something is seen, and how probable that is.

    `instant_seconds` is when it happens, if it is a change: the time of the first frame behind it. What lasts has none.
    """

    start_seconds: float
    end_seconds: float
    probability: float
    instant_seconds: float | None = None


@dataclass(frozen=True)
class Window:
    """The frames `[first, stop)`; `sampling` reads it."""

    first: int
    stop: int
    sampling: Sampling


@dataclass(frozen=True, eq=False)
class Footage:
    """A video's frames by their numbers, as `sampling` says, made small by `shrink`."""

    video: Video
    sampling: Sampling
    shrink: Resize
    limits: Limits

    @cached_property
    def seconds(self) -> Sequence[float]:
        """When each frame comes on screen; at last, when the video ends."""
        import numpy as np

        timeline = self.video.timeline
        ticks = np.asarray(timeline.stamps, np.int64) - float(timeline.begin)
        seconds: list[float] = (ticks * float(timeline.time_base)).tolist()
        return [*seconds, self.video.info.duration_seconds]

    @property
    def last(self) -> int:
        """The last frame."""
        return len(self.seconds) - 2

    def at(self, seconds: float) -> int:
        """Return the frame that is on screen at a time, or the first or the last one."""
        return min(max(0, bisect_right(self.seconds, seconds + _ROUNDING_SECONDS) - 1), self.last)

    def windows(self, every: Every) -> list[Window]:
        """Return windows of so many seconds, or the shots. Raises what `Video.windows` raises.

        A window of seconds is read from its first frame to the one that the next window begins with: so a change that
        falls between two windows is in the first.
        """
        parts = self.video.windows(every, self.sampling, limits=self.limits)
        starts = [self.at(part.start_seconds) for part in parts]
        end = self.sampling.end_seconds
        stop = self.last + 1 if end is None or end >= self.seconds[-1] else max(starts[-1] + 1, self.at(end))
        windows = [
            Window(first, after, part)
            for first, after, part in zip(starts, [*starts[1:], stop], parts, strict=True)
            if first < after
        ]
        if every == "scene" or self.sampling.fps is not None or self.sampling.mode != "uniform":
            return windows
        return [
            replace(window, sampling=self.part(window.first, min(window.stop, stop - 1), window.sampling.frames))
            for window in windows
        ]

    def part(self, first: int, last: int, most: int) -> Sampling:
        """Return what reads at most so many of the frames `[first, last]`, these two among them."""
        end = None if last >= self.last else self.seconds[last + 1]
        return replace(
            self.sampling, start_seconds=self.seconds[first], end_seconds=end,
            frames=most, fps=None, mode="endpoints", skip_static=False,
        )  # fmt: skip

    def read(self, first: int, last: int, most: int = _MOST_READ) -> tuple[Frames, list[int]]:
        """Return at most so many frames of `[first, last]`, these two among them, and their numbers."""
        part = self.part(first, last, most)
        frames = self.video.read(part, limits=self.limits, resize=self.shrink)
        return frames, [self.at(seconds) for seconds in frames.times_seconds]

    def cut_near(self, frame: int) -> int | None:
        """Return the first frame behind a cut that is there or next to it; None if there is none.

        Without PySceneDetect, none is found.
        """
        try:
            check_scenes(self.sampling, "scene")
        except LlvidError:
            return None
        part = self.part(max(0, frame - _AROUND_CUT), min(self.last, frame + _AROUND_CUT), 1)
        shots = self.video.windows("scene", part, limits=self.limits)
        cuts = [self.at(shot.start_seconds) for shot in shots[1:]]
        return next((cut for cut in cuts if abs(cut - frame) <= 1), None)


def spread(first: int, last: int, most: int) -> list[int]:
    """Return at most so many of the numbers `[first, last]`, spread evenly, these two among them."""
    count = min(most, last - first + 1)
    return [first + number * (last - first) // max(1, count - 1) for number in range(count)]


def chosen(frames: Frames, numbers: Sequence[int]) -> Frames:
    """Return some of the frames, by their numbers among these."""
    times = tuple(frames.times_seconds[number] for number in numbers)
    return replace(frames, images=frames.images[numbers], times_seconds=times)


@dataclass(frozen=True)
class _Finding:
    """What was found in a window: it lasts for the frames `[first, last]` and maybe beyond, or changes at `last`."""

    first: int
    last: int
    lasts: bool
    probability: float


class Localizer:
    """Finds the moments of one query in one video, in one thread.

    `yes` returns how probable it is that each of several clips shows it; `probabilities` are those of the windows.
    What has at least the probability `threshold` is a moment. `has_cuts` tells that the windows are shots.
    """

    def __init__(
        self,
        footage: Footage,
        windows: Sequence[Window],
        probabilities: Sequence[float],
        yes: Callable[[Sequence[Frames]], Sequence[float]],
        threshold: float,
        *,
        has_cuts: bool,
    ) -> None:
        self._footage, self._windows, self._probabilities = footage, windows, probabilities
        self._yes, self._threshold, self._has_cuts = yes, threshold, has_cuts
        self._held: tuple[Frames, list[int]] | None = None

    def moments(self, group: range) -> list[Moment]:
        """Return the moments of a group, in no order.

        What lasts is one moment from the first frame that shows it to the last. Of a change, each window has its own.
        """
        moments, waiting = list[Moment](), [group]
        while waiting:
            group = waiting.pop()
            best = max(group, key=self._probabilities.__getitem__)
            probability = self._probabilities[best]
            run = self._sure_around(best, group)
            first, last = self._bounds(best)
            seen = self._look_into(first, last, is_sure=probability >= self._threshold)
            done, beside = range(best, best + 1), 0
            if seen is not None and seen.lasts:
                left, right = self._outside(run.start, -1), self._outside(run.stop - 1, 1)
                moments += self._lasting(seen, max(probability, seen.probability), left, right, run, best)
                done, beside = run, 1  # the windows beside it are searched for its borders
            elif seen is not None:
                moments += self._changes(best, seen, first, last, probability)
            rest = range(group.start, done.start - beside), range(done.stop + beside, group.stop)
            waiting += filter(None, rest)
        return moments

    def _sure_around(self, best: int, group: range) -> range:
        """Return the windows around one that surely show it, without a gap; or that one alone."""
        first, stop = best, best + 1
        while first > group.start and self._probabilities[first - 1] >= self._threshold:
            first -= 1
        while stop < group.stop and self._probabilities[stop] >= self._threshold:
            stop += 1
        return range(first, stop)

    def _look_into(self, first: int, last: int, *, is_sure: bool) -> _Finding | None:
        """Quarter the frames `[first, last]` until it is clear that it lasts, or two frames are left.

        It lasts if two quarters show it, and two quarters of one of these: two changes have one quarter each. Unless it
        `is_sure` that they show it, one of the first quarters has to; else nothing is returned.
        """
        probability, before = 0.0, None
        while True:
            frames, places = self._read(first, last)
            low, high = 0, len(places) - 1
            while high - low > 1:
                # neighbours share a frame, so that a change is in one of them
                bounds = sorted({low + number * (high - low) // _PARTS for number in range(_PARTS + 1)})
                parts = list(pairwise(bounds))
                found = self._ask(frames, parts)
                showing = [part for part, each in zip(parts, found, strict=True) if each >= self._threshold]
                probability = max(found)
                if len(showing) > 1:
                    wide = _Finding(places[showing[0][0]], places[showing[-1][1]], lasts=True, probability=probability)
                    if before is not None:
                        return wide
                    before = wide
                elif before is not None and not showing:
                    return before  # shorter parts don't show it
                elif not (is_sure or showing):
                    return None
                else:
                    before = None
                is_sure = True
                low, high = parts[found.index(probability)]
            if (places[low], places[high]) == (first, last) or places[high] - places[low] <= 1:
                break
            first, last = places[low], places[high]
        ends = sorted({low, high})
        alone = self._ask(frames, [(end, end) for end in ends])
        if max(alone) >= self._threshold or len(ends) == 1:
            place = places[ends[alone.index(max(alone))]]
            return _Finding(place, place, lasts=True, probability=max(alone))
        return _Finding(places[low], places[high], lasts=False, probability=probability)

    def _changes(self, number: int, seen: _Finding, first: int, last: int, probability: float) -> list[Moment]:
        """Return the moments of a change in the frames `[first, last]` of a window; none if it is not probable.

        A cut is no change: what is before it and behind it is looked into by itself.
        """
        if not self._has_cuts and (cut := self._footage.cut_near(seen.last)) is not None:
            parts = [(first, cut - 1), (cut, last)]
            return [moment for part in parts if part[0] < part[1] for moment in self._within(number, *part)]
        seconds, window = self._footage.seconds, self._windows[number]
        instant, reach = seconds[seen.last], max(1, min(seen.last - first, last + 1 - seen.last))
        start, end = seconds[window.first], seconds[window.stop]
        if not self._has_cuts:
            half = (end - start) / 2
            is_part = (first, last) != self._bounds(number)
            begin = seconds[first if is_part else self._windows[0].first]
            finish = seconds[last + 1 if is_part else self._windows[-1].stop]
            start, end = max(begin, instant - half), min(finish, instant + half)
            reach = reach if is_part else (window.stop - window.first) // 2
        if probability < self._threshold:  # the window may have it near its edge only
            around = max(0, seen.last - reach), min(self._footage.last, seen.last + reach - 1)
            probability = self._whole(*around)
        return [Moment(start, end, probability, instant)] if probability >= self._threshold else []

    def _within(self, number: int, first: int, last: int) -> list[Moment]:
        """Return the moments of a part of a window, `[first, last]`, that a cut separates from the rest."""
        probability = self._whole(first, last)
        if probability < self._threshold:
            return []
        seen = self._look_into(first, last, is_sure=True)
        if seen is not None and seen.lasts:
            return self._lasting(seen, probability, (first, True), (last, True), range(number, number + 1), number)
        return self._changes(number, seen, first, last, probability) if seen is not None else []

    def _lasting(
        self,
        seen: _Finding,
        probability: float,
        before: tuple[int, bool],
        after: tuple[int, bool],
        run: range,
        best: int,
    ) -> list[Moment]:
        """Return the moment of what lasts in a run of windows, from its first frame to its last; or none.

        `before` and `after` are the frames up to which it may last, as `_outside` has them.
        """
        if probability < self._threshold:
            return []
        near, far = self._shortest(seen)
        left = near if best == run.start else self._bounds(run.start)[1]
        right = far if best == run.stop - 1 else self._windows[run.stop - 1].first
        first = self._border(left, *before, far - near)
        last = self._border(right, *after, far - near)
        seconds = self._footage.seconds
        return [Moment(seconds[first], seconds[last + 1], probability)]

    def _whole(self, first: int, last: int) -> float:
        """Return how probable it is that the frames `[first, last]` show it."""
        frames, places = self._read(first, last, self._most)
        return self._ask(frames, [(0, len(places) - 1)])[0]

    def _shortest(self, seen: _Finding) -> tuple[int, int]:
        """Return the first and the last frame of the shortest clip within what was seen that shows it, too."""
        frames, places = self._read(seen.first, seen.last)
        middle, clips = len(places) // 2, list[tuple[int, int]]()
        while not clips or clips[-1] != (0, len(places) - 1):
            half = 2 ** len(clips) // 2
            clips.append((max(0, middle - half), min(len(places) - 1, middle + half)))
        found = self._ask(frames, clips)
        low, high = next((clip for clip, each in zip(clips, found, strict=True) if each >= self._threshold), clips[-1])
        return places[low], places[high]

    def _outside(self, number: int, way: int) -> tuple[int, bool]:
        """Return the frame up to which a border may lie, and whether that frame may show it, too.

        That is the far end of the next window, which does not show it; but no farther than a cut.
        """
        beyond = number + way
        is_open = self._has_cuts or not 0 <= beyond < len(self._windows)
        window = self._windows[number if is_open else beyond]
        return (window.first if way < 0 else window.stop - 1), is_open

    def _border(self, inside: int, outside: int, is_open: bool, length: int) -> int:
        """Return the frame nearest to `outside` from which on, towards `inside`, a clip of that length shows it."""
        way = 1 if inside > outside else -1
        while inside != outside:
            edge = min(max(0, inside + way * length), self._footage.last)
            frames, places = self._read(min(outside, edge), max(outside, edge))

            def shows(place: int, frames: Frames = frames, places: Sequence[int] = places) -> bool:
                low, high = sorted((place, place + way * length))
                clip = [number for number, each in enumerate(places) if low <= each <= high]
                return bool(clip) and self._ask(frames, [(clip[0], clip[-1])])[0] >= self._threshold

            if is_open and shows(outside):
                return outside
            is_open, before = False, (inside, outside)
            while between := [place for place in places if min(inside, outside) < place < max(inside, outside)]:
                middle = between[len(between) // 2]
                inside, outside = (middle, outside) if shows(middle) else (inside, middle)
            if (inside, outside) == before:
                break
        return inside

    def _read(self, first: int, last: int, most: int = _MOST_READ) -> tuple[Frames, list[int]]:
        """Return what `Footage.read` returns; all frames of a short part are held, and not read again."""
        held = self._held
        if held is None or not (held[1][0] <= first and last <= held[1][-1]):
            if last - first >= _MOST_HELD:
                return self._footage.read(first, last, most)
            held = self._held = self._footage.read(first, last, _MOST_HELD)
        frames, places = held
        low = min(bisect_left(places, first), len(places) - 1)
        high = bisect_right(places, last) - 1
        numbers = spread(low, max(low, high), most)
        return chosen(frames, numbers), [places[number] for number in numbers]

    def _bounds(self, number: int) -> tuple[int, int]:
        """Return the first and the last frame that a window is judged by: with the next one's first, but for shots."""
        window, is_last = self._windows[number], number == len(self._windows) - 1
        return window.first, window.stop - (self._has_cuts or is_last)

    @property
    def _most(self) -> int:
        return self._footage.sampling.frames

    def _ask(self, frames: Frames, parts: Sequence[tuple[int, int]]) -> list[float]:
        """Return how probable it is that each of these parts of the frames, `[first, last]`, shows it."""
        return list(self._yes([chosen(frames, spread(first, last, self._most)) for first, last in parts]))


def groups(probabilities: Sequence[float], threshold: float) -> Iterator[range]:
    """Yield the windows that are to be looked into, neighbours together, by their probabilities."""
    first = None
    for number, probability in enumerate([*probabilities, 0.0]):
        is_askable = probability >= _ASKABLE * threshold
        if is_askable and first is None:
            first = number
        elif not is_askable and first is not None:
            yield range(first, number)
            first = None


def joined(moments: Sequence[Moment]) -> list[Moment]:
    """Return moments in order of time: what lasts is joined where it touches, and a change is there once."""
    changes = {moment.instant_seconds: moment for moment in sorted(moments, key=lambda each: each.probability)}
    changes.pop(None, None)
    lasting: list[Moment] = []
    for moment in sorted((each for each in moments if each.instant_seconds is None), key=lambda m: m.start_seconds):
        if lasting and moment.start_seconds <= lasting[-1].end_seconds:
            end = max(lasting[-1].end_seconds, moment.end_seconds)
            probability = max(lasting[-1].probability, moment.probability)
            lasting[-1] = replace(lasting[-1], end_seconds=end, probability=probability)
        else:
            lasting.append(moment)
    return sorted([*changes.values(), *lasting], key=lambda each: (each.start_seconds, each.end_seconds))
