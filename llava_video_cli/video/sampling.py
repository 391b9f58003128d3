"""Select frames of a video: arithmetic on presentation stamps, without a file."""

from __future__ import annotations

import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from functools import cached_property
from heapq import heapify, heapreplace
from typing import Any, Literal, Protocol, get_args

from ..errors import MediaError, UsageError
from ..validation import brief
from .fit import Fit

Mode = Literal["uniform", "endpoints", "keyframes", "scenes"]
Detector = Literal["adaptive", "content"]
# The length of a window: seconds, or that of a shot.
Every = float | Literal["scene"]

# More frames than any model's context holds (a frame is 144 tokens); an `fps` that asks for more is a slip.
MAX_FRAMES = 4096
MAX_WINDOWS = 100_000  # of one video: one per second of a whole day is fewer
_SHORTEST_WINDOW = 0.01  # seconds
_FIRST_FIELDS = 5  # of a sampling: what was added since is no part of a record's key where it has its default
SOURCE_FPS = 1.0  # of pictures that are taken as a video, where nobody says how fast they were taken
_ROUNDING = Fraction(1, 100)  # of a tick: a float of seconds that was made of ticks is nearer to them
# What decides where the cuts are.
SCENE_OPTIONS = ("scene_detector", "scene_threshold", "scene_min_content", "scene_min_frames")
_REST = 0.1  # of a window: a shorter rest at the end of a video belongs to the window before it


@dataclass(frozen=True)
class Sampling:
    """How many frames to select from a video, from which part of it, and by which rule.

    The part is `[start_seconds, end_seconds)`, on a player's clock; `end_seconds=None`,
    or a time past the end, means the end of the video. With `n` frames:

    - `uniform`: frame i is the one on screen at `start + i * (end - start) / n`; on a clip of constant rate
      with `total` frames that is frame `i * total // n`, as transformers takes it.
    - `endpoints`: frame `i * (total - 1) // (n - 1)`, first and last included (as in LLaVA-NeXT's own demo).
    - `keyframes`: the times of `uniform`, each moved to the keyframe at or before it; each keyframe once.
    - `scenes`: spread over the shots, at least one each while there are enough, the longest first; none from the blend
      at a cut. PySceneDetect finds the cuts: its `AdaptiveDetector` or `ContentDetector` (`scene_detector`), by
      `scene_threshold` (None: its own default, 3 or 27), `scene_min_content` (of the adaptive one) and
      `scene_min_frames` (the shortest shot). https://www.scenedetect.com/docs/latest/api/detectors.html

    `skip_static` leaves out the frames that hardly differ from the last one that was kept. `fit` is how each frame
    becomes a picture of the model's shape, see `FrameInput.fitted`; `auto` is the model's own way.

    `source_fps` is how many pictures a second were taken where pictures stand for a video (None: 1): it gives them
    their times. A video file has its own. With `speech`, what is said in the part goes into the prompt, as
    `speech_model` understands it.

    `fps` replaces `frames`: one frame every `1 / fps` seconds, `n = max(1, ceil((end - start) * fps))` of
    them. Neither count may exceed `MAX_FRAMES`; whether the prompt fits the model's context is checked
    elsewhere. A part with no more than `n` frames gives each of its frames once.

    Raises UsageError for values that make no sense.
    """

    frames: int = 32
    fps: float | None = None
    start_seconds: float = 0.0
    end_seconds: float | None = None
    mode: Mode = "uniform"
    skip_static: bool = False
    scene_detector: Detector = "adaptive"
    scene_threshold: float | None = None
    scene_min_content: float = 15.0
    scene_min_frames: int = 15
    fit: Fit = "auto"
    source_fps: float | None = None
    speech: bool = False
    speech_model: str = "small"

    def __post_init__(self) -> None:
        if isinstance(self.frames, bool) or not isinstance(self.frames, int):
            raise UsageError(f"the number of frames must be a whole number, got {brief(self.frames)}")
        if not 1 <= self.frames <= MAX_FRAMES:
            raise UsageError(f"the number of frames must be from 1 to {MAX_FRAMES}, got {brief(self.frames)}")
        for name, rate in (("frames per second", self.fps), ("source_fps", self.source_fps)):
            if rate is not None and (not _is_number(rate) or rate <= 0):
                raise UsageError(f"{name} must be a number above 0, got {brief(rate)}")
        if not _is_number(self.start_seconds) or self.start_seconds < 0:
            raise UsageError(f"the start must be a time of 0 seconds or later, got {brief(self.start_seconds)}")
        if self.end_seconds is not None:
            if not _is_number(self.end_seconds):
                raise UsageError(f"the end must be a time in seconds, got {brief(self.end_seconds)}")
            if self.end_seconds <= self.start_seconds:
                raise UsageError(
                    f"the end ({self.end_seconds:g} s) must come after the start ({self.start_seconds:g} s)"
                )
        choices = ("sampling", self.mode, Mode), ("the detector", self.scene_detector, Detector), ("fit", self.fit, Fit)
        for name, value, kind in choices:
            if value not in get_args(kind):
                raise UsageError(f"{name} must be one of {', '.join(get_args(kind))}, got {brief(value)}")
        for name, threshold in (("threshold", self.scene_threshold), ("least content", self.scene_min_content)):
            if threshold is not None and (not _is_number(threshold) or threshold < 0):
                raise UsageError(f"the {name} of a cut must be a number of 0 or more, got {brief(threshold)}")
        if not isinstance(self.speech, bool):
            raise UsageError(f"speech must be true or false, got {brief(self.speech)}")
        if not isinstance(self.speech_model, str) or not self.speech_model:
            raise UsageError(f"the speech model must be a name, got {brief(self.speech_model)}")
        if isinstance(self.scene_min_frames, bool) or not isinstance(self.scene_min_frames, int):
            raise UsageError(f"the shortest shot must be a whole number of frames, got {brief(self.scene_min_frames)}")
        if self.scene_min_frames < 0:
            raise UsageError(f"the shortest shot must be 0 frames or more, got {brief(self.scene_min_frames)}")

    @property
    def scene_options(self) -> tuple[Any, ...]:
        """What decides where the cuts are."""
        return tuple(getattr(self, name) for name in SCENE_OPTIONS)

    def values(self) -> dict[str, Any]:
        """Return the fields as JSON values, those that were added later only where they differ from their defaults.

        The key of a record that an older version wrote stays the same.
        """
        return {
            field.name: value
            for number, field in enumerate(fields(self))
            if (value := getattr(self, field.name)) != field.default or number < _FIRST_FIELDS
        }


def _is_number(value: object) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number above all floats
        return False


_CLOCK = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:\.\d*)?)", re.ASCII)
_UNITS = re.compile(
    r"(?:(\d+) ?h(?:ours?)?)? ?(?:(\d+) ?m(?:in(?:utes?)?)?)? ?(?:(\d+(?:\.\d*)?) ?s(?:ec(?:onds?)?)?)?", re.ASCII
)
_SECONDS = re.compile(r"\d+(?:\.\d*)?|\.\d+", re.ASCII)


def parse_time(text: str) -> float:
    """Return the seconds that `90`, `90.5`, `1:30`, `00:01:30.5`, `90s`, `1m30s` or `2min` stand for.

    Raises UsageError for anything else, minutes (below an hour part) or seconds above 59 of a clock included.
    """
    text = text.strip()
    with suppress(OverflowError, ValueError):  # of more digits than a number may have
        if _SECONDS.fullmatch(text):
            seconds = float(text)
            if math.isfinite(seconds):
                return seconds
        elif clock := _CLOCK.fullmatch(text):
            hours, minutes, rest = clock[1], int(clock[2]), Fraction(clock[3].rstrip("."))
            if rest < 60 and (hours is None or minutes < 60):
                return float((int(hours or 0) * 60 + minutes) * 60 + rest)
        elif text and (units := _UNITS.fullmatch(text)):
            return float((int(units[1] or 0) * 60 + int(units[2] or 0)) * 60 + Fraction((units[3] or "0").rstrip(".")))
    raise UsageError(
        f"not a time: {brief(text)}", hint="write seconds (90 or 90.5), 1m30s, or [HH:]MM:SS (1:30, 00:01:30.5)"
    )


def parse_every(text: str, name: str) -> Every:
    """Return the length of a window, `scene` or a time, of the option `name`; raises UsageError."""
    if text == "scene":
        return "scene"
    try:
        seconds = parse_time(text)
    except UsageError:
        seconds = 0.0
    if seconds < _SHORTEST_WINDOW:
        raise UsageError(f"{name} must be scene, or {_SHORTEST_WINDOW:g} seconds or more, got {brief(text)}")
    return seconds


def clock(seconds: float) -> str:
    """Return `M:SS` or `H:MM:SS`."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


class Stamps(Protocol):
    """Ascending ticks: a list, or numpy's int64 for the 170,000 pictures of two hours."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> int: ...

    def __iter__(self) -> Iterator[int]: ...


@dataclass(frozen=True)
class Timeline:
    """When each picture of a stream comes on screen, in ticks of the stream's own time base.

    `stamps` holds at least one, strictly ascending; a picture stays until the next one's stamp, the last one
    until `end`. `time_base` is the seconds of one tick. `keyframes` are the stamps that decoding can start
    at, ascending. `zero` is the stamp of a player's 0:00, where that is before the first picture: the sound begins.
    """

    stamps: Stamps
    end: int
    time_base: Fraction
    keyframes: Stamps = ()
    zero: Fraction | None = None

    @cached_property
    def begin(self) -> Fraction:
        """The stamp that times are counted from: the first picture's, or that of sound before it."""
        first = Fraction(int(self.stamps[0]))
        return first if self.zero is None else min(first, self.zero)

    @property
    def duration_seconds(self) -> float:
        """From the beginning to the last picture's disappearance."""
        return float((self.end - self.begin) * self.time_base)

    def seconds(self, stamp: int) -> float:
        """Return the time of a stamp on a player's clock."""
        begin, tick = self.begin, self.time_base  # of whole numbers: sums of fractions take ten times as long
        ticks = int(stamp) * begin.denominator - begin.numerator
        return ticks * tick.numerator / (begin.denominator * tick.denominator)


@dataclass(frozen=True)
class Shot:
    """What is shown between two cuts: the pictures at the stamps `[start, end)`.

    Those at `[clear_start, clear_end)` have no part in the blend with the shot before or behind it.
    """

    start: int
    end: int
    clear_start: int
    clear_end: int


@dataclass(frozen=True)
class Selection:
    """The stamps of the selected frames, in order of time, notes for the user, and the shots that they are spread over.

    A stamp occurs twice where its picture is on screen at two of the moments.
    """

    stamps: tuple[int, ...]
    notes: tuple[str, ...] = ()
    shots: tuple[Shot, ...] = ()


def part_of(timeline: Timeline, sampling: Sampling) -> tuple[Fraction, Fraction]:
    """Return the part `[start, end)` of a video that `sampling` is about, in ticks, from the first picture on.

    Raises MediaError when the start lies behind the last picture.
    """
    first, tick = int(timeline.stamps[0]), timeline.time_base
    start = max(Fraction(first), _moment(timeline.begin, sampling.start_seconds, tick))
    end = Fraction(timeline.end)
    if sampling.end_seconds is not None:  # before the first picture there is nothing to be seen but that one
        end = min(end, max(Fraction(first + 1), _moment(timeline.begin, sampling.end_seconds, tick)))
    if start >= timeline.end:
        raise MediaError(
            f"the start ({sampling.start_seconds:g} s) is past the end of the video ({timeline.duration_seconds:.3f} s)"
        )
    return start, end


def select_stamps(timeline: Timeline, sampling: Sampling, shots: Sequence[Shot] = ()) -> Selection:
    """Return the stamps of the frames that `sampling` selects; `shots` are those of the part, in order.

    Where no shots are given, the part counts as one. Raises MediaError when the start lies behind the last picture, or
    when `fps` asks for too many frames.
    """
    start, end = part_of(timeline, sampling)
    tick, stamps = timeline.time_base, timeline.stamps
    count, slack = sampling.frames, Fraction(0)
    step = (end - start) / count
    if sampling.fps is not None:
        if is_constant(stamps) and not _is_even(stamps):
            slack = Fraction(1, 2)  # Matroska rounds to milliseconds: 2 / 30 s is just before its own frame's stamp, 67
        step = 1 / (_exact(sampling.fps) * tick)
        count = max(1, math.ceil((end - start - slack) / step))
        if count > MAX_FRAMES:
            raise MediaError(
                f"{sampling.fps:g} frames per second of {float((end - start) * tick):.1f} seconds are {brief(count)}"
                f" frames, more than {MAX_FRAMES}",
                hint="use a lower frame rate, or a shorter part",
            )
    here = range(on_screen(stamps, start), max(1, bisect_left(stamps, math.ceil(end))))
    if sampling.mode == "scenes":
        return _over_shots(timeline, here, shots, count)
    if sampling.mode == "endpoints":
        chosen = _endpoints(here, count)
    elif len(here) <= count and sampling.mode == "uniform":
        chosen = list(here)
    elif sampling.fps is None and is_constant(stamps):
        chosen = _divide_frames(timeline, start, end, count)
    else:
        chosen = [on_screen(stamps, start + i * step + slack) for i in range(count)]
    selected = [int(stamps[index]) for index in chosen]
    if sampling.mode == "keyframes":
        return _at_keyframes(timeline, selected)
    return Selection(tuple(selected), tuple(_notes(sampling, here, chosen, count)))


def windows(duration_seconds: float, every_seconds: float, sampling: Sampling) -> list[Sampling]:
    """Cut a video's part `[start, end)` into windows of `every_seconds`, and return the sampling of each.

    A rest shorter than a tenth of a window belongs to the last one. Raises UsageError for an impossible number or size.
    """
    if not _is_number(every_seconds) or every_seconds <= 0:
        raise UsageError(f"a window must be a number of seconds above 0, got {brief(every_seconds)}")
    start = sampling.start_seconds
    end = duration_seconds if sampling.end_seconds is None else min(duration_seconds, sampling.end_seconds)
    count = max(1, math.ceil((end - start) / every_seconds - _REST))
    if count > MAX_WINDOWS:
        raise UsageError(f"{count} windows of {every_seconds:g} seconds are too many", "use longer windows")
    starts = [start + number * every_seconds for number in range(count)]
    ends = [*starts[1:], max(end, math.nextafter(start, math.inf))]
    return [replace(sampling, start_seconds=a, end_seconds=b) for a, b in zip(starts, ends, strict=True)]


def shot_windows(timeline: Timeline, shots: Sequence[Shot], sampling: Sampling) -> list[Sampling]:
    """Return a sampling for each shot of the part; `uniform` becomes `scenes`, which keeps clear of the cuts' blends.

    Raises UsageError for too many.
    """
    if len(shots) > MAX_WINDOWS:
        raise UsageError(f"{len(shots)} shots are too many", "a higher --scene-threshold finds fewer")
    mode: Mode = "scenes" if sampling.mode == "uniform" else sampling.mode
    starts = [sampling.start_seconds, *(timeline.seconds(shot.start) for shot in shots[1:])]
    ends = [*starts[1:], sampling.end_seconds]
    return [replace(sampling, start_seconds=a, end_seconds=b, mode=mode) for a, b in zip(starts, ends, strict=True)]


def longest(every_seconds: float) -> float:
    """Return the seconds of the longest window of `every_seconds`: the last one may have a rest added."""
    return (1 + _REST) * every_seconds


def is_constant(stamps: Stamps) -> bool:
    """Return whether the rate is constant: each stamp is off a line by less than a tick and a quarter of a step."""
    import numpy as np

    last = len(stamps) - 1
    if last < 1:
        return True
    span = int(stamps[-1]) - int(stamps[0])  # all in units of 1 / last ticks, to stay in integers
    exact = np.int64 if span * last < 2**62 else object
    off = abs((np.asarray(stamps, exact) - stamps[0]) * last - np.arange(last + 1).astype(exact) * span)
    return bool((off < last).all() and (4 * off <= span).all())


def _is_even(stamps: Stamps) -> bool:
    import numpy as np

    steps = np.diff(np.asarray(stamps, np.int64))
    return bool((steps == steps[:1]).all())


def _exact(value: float) -> Fraction:
    return Fraction(str(value))  # 0.3 is meant as 3/10, not as the double just below it


def _moment(begin: Fraction, seconds: float, tick: Fraction) -> Fraction:
    """Return a time in ticks; one that was printed from a stamp, as that of a cut, is that stamp."""
    if not seconds:
        return begin
    moment = begin + _exact(seconds) / tick
    nearest = round(moment)
    return Fraction(nearest) if abs(moment - nearest) < _ROUNDING else moment


def on_screen(stamps: Stamps, moment: Fraction | int) -> int:
    """Return the number of the picture that is on screen at a moment: the first one, where none is yet."""
    return max(0, bisect_right(stamps, math.floor(moment)) - 1)  # a fraction would be multiplied in 64 bits


def _endpoints(here: range, count: int) -> list[int]:
    count = min(count, len(here))
    return [here[i * (len(here) - 1) // max(1, count - 1)] for i in range(count)]


def _divide_frames(timeline: Timeline, start: Fraction, end: Fraction, count: int) -> list[int]:
    """Divide frames instead of ticks: on a constant rate the same moments, free of the stamps' rounding."""
    begin, stop = _position(timeline, start), _position(timeline, end)
    scale = math.lcm(begin.denominator, stop.denominator)  # whole numbers: fractions take ten times as long
    first, length = int(begin * scale), int((stop - begin) * scale)
    return [(first * count + i * length) // (scale * count) for i in range(count)]


def _position(timeline: Timeline, moment: Fraction) -> Fraction:
    """Return a moment in frames: 2.5 is half-way through the third one's time on screen."""
    stamps, index = timeline.stamps, on_screen(timeline.stamps, moment)
    after = stamps[index + 1] if index + 1 < len(stamps) else timeline.end
    return index + (moment - int(stamps[index])) / (int(after) - int(stamps[index]))


def _over_shots(timeline: Timeline, here: range, shots: Sequence[Shot], count: int) -> Selection:
    """Spread frames over the shots, each at the middle of an equal share of its shot."""
    stamps = timeline.stamps
    constant = is_constant(stamps)

    def stamp(index: int) -> int:
        return int(stamps[index]) if index < len(stamps) else timeline.end

    begin, stop = stamp(here.start), stamp(here.stop)
    within = [
        replace(shot, start=max(shot.start, begin), end=min(shot.end, stop))
        for shot in shots
        if shot.start < stop and shot.end > begin
    ]
    clear = [(bisect_left(stamps, shot.clear_start), bisect_left(stamps, shot.clear_end)) for shot in within]
    parts = [part for a, b in clear if (part := range(max(a, here.start), min(b, here.stop)))] or [here]
    bounds = [(stamp(part.start), stamp(part.stop)) for part in parts]
    shares = _shares(count, [end - start for start, end in bounds], [len(part) for part in parts])
    chosen: list[int] = []
    for part, (start, end), share in zip(parts, bounds, shares, strict=True):
        middles = [Fraction(2 * i + 1, 2 * share) for i in range(share)]
        if constant or share == len(part):
            chosen += (part[math.floor(middle * len(part))] for middle in middles)
        else:
            chosen += (on_screen(stamps, start + middle * (end - start)) for middle in middles)
    notes = [_plural(len(within), "shot")] if len(within) > 1 else []
    if count < len(parts):
        notes.append(f"{_plural(count, 'frame')} for {len(parts)} shots: only the longest have one")
    elif len(chosen) < count:
        where = "the shots have" if len(parts) > 1 else "the shot has"
        notes.append(f"{where} {_too_few(len(chosen), count)}")
    notes += _still(chosen, count)
    return Selection(tuple(int(stamps[index]) for index in chosen), tuple(notes), tuple(within))


def _shares(count: int, lengths: Sequence[int], most: Sequence[int]) -> list[int]:
    """Divide a number among lengths: one each, the longest first, then always to the one with the longest share."""
    shares = [0] * len(lengths)
    # An empty one comes before all others; one that has its most comes last.
    order: list[tuple[int, float, int]] = [(0, -length, number) for number, length in enumerate(lengths)]
    heapify(order)
    for _ in range(min(count, sum(most))):
        number = order[0][2]
        shares[number] += 1
        state = 2 if shares[number] == most[number] else 1
        heapreplace(order, (state, -lengths[number] / (shares[number] + 1), number))
    return shares


def _at_keyframes(timeline: Timeline, stamps: list[int]) -> Selection:
    # the first picture's own keyframe may be hidden
    keys = sorted({int(stamp) for stamp in (timeline.stamps[0], *timeline.keyframes)})
    snapped = dict.fromkeys(keys[on_screen(keys, stamp)] for stamp in stamps)
    notes = ["the frames are keyframes, which may be earlier than the requested times"]
    if len(snapped) < len(stamps):
        notes.append(f"only {_plural(len(snapped), 'keyframe')} for {len(stamps)} times: each is used once")
    return Selection(tuple(snapped), tuple(notes))


def _notes(sampling: Sampling, here: range, chosen: list[int], count: int) -> list[str]:
    notes = []
    if len(here) < count:
        where = "the video" if sampling.start_seconds == 0 and sampling.end_seconds is None else "this part"
        notes.append(f"{where} has {_too_few(len(here), count)}")
    return notes + _still(chosen, count)


def _too_few(there: int, count: int) -> str:
    return f"only {_plural(there, 'frame')}, not {count}: {'it' if there == 1 else 'each'} is used once"


def _still(chosen: list[int], count: int) -> list[str]:
    still = len(chosen) - len(set(chosen))
    verb = "repeats" if still == 1 else "repeat"
    return [f"no movement: {_plural(still, 'frame')} of {count} {verb} the previous one"] if still else []


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")
