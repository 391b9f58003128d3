from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from llava_video_cli.errors import MediaError, UsageError
from llava_video_cli.video.sampling import MAX_FRAMES, Mode, Sampling, Timeline, is_constant, parse_time, select_stamps

MS = Fraction(1, 1000)


def constant(total: int, step: int = 512, time_base: Fraction = Fraction(1, 12800), first: int = 0) -> Timeline:
    return Timeline([first + i * step for i in range(total)], first + total * step, time_base)


def rounded(total: int, rate: Fraction, first: int = 0) -> Timeline:
    """A constant rate in whole milliseconds, as Matroska has it; the last duration is rounded too."""
    stamps = [first + round(i * 1000 / rate) for i in range(total)]
    return Timeline(stamps, stamps[-1] + round(1000 / rate), MS)


def indices(timeline: Timeline, sampling: Sampling) -> list[int]:
    return [list(timeline.stamps).index(stamp) for stamp in select_stamps(timeline, sampling).stamps]


@pytest.mark.parametrize("first", [0, 13760, -900])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 8, 16, 31, 32, 64])
def test_uniform_on_a_constant_rate_is_the_frame_that_transformers_takes(n: int, first: int) -> None:
    for total in (64, 97, 250, 377, 390):
        expected = [i * total // n for i in range(n)]
        assert indices(constant(total, first=first), Sampling(frames=n)) == expected
        assert indices(constant(total, 1, Fraction(1, 30), first), Sampling(frames=n)) == expected


@pytest.mark.parametrize(
    "rate", [Fraction(30), Fraction(30000, 1001), Fraction(24000, 1001), Fraction(60), Fraction(25)]
)
def test_stamps_rounded_to_milliseconds_never_give_the_neighbour(rate: Fraction) -> None:
    for total in (61, 125, 150, 310, 1000, 1001):
        timeline = rounded(total, rate, first=67)
        assert is_constant(timeline.stamps)
        for n in (1, 2, 8, 29, 32, 60, 61):
            assert indices(timeline, Sampling(frames=n)) == [i * total // n for i in range(n)]


def test_endpoints_have_the_first_and_the_last_frame() -> None:
    assert indices(constant(30), Sampling(frames=4, mode="endpoints")) == [0, 9, 19, 29]
    assert indices(constant(30), Sampling(frames=1, mode="endpoints")) == [0]
    # exact, where the floats of numpy's linspace(0, 396, 47, dtype=int) miss a frame
    exact = [i * 396 // 46 for i in range(47)]
    assert indices(constant(397), Sampling(frames=47, mode="endpoints")) == exact


def test_variable_rate_takes_what_is_on_screen() -> None:
    timeline = Timeline([0, 100, 200, 300, 400, 2400, 2500, 2600, 2700, 2800], 3200, MS)
    # moments: 0, 800, 1600, 2400
    choice = select_stamps(timeline, Sampling(frames=4))
    assert choice.stamps == (0, 400, 400, 2400)
    assert choice.notes == ("no movement: 1 frame of 4 repeats the previous one",)
    assert select_stamps(timeline, Sampling(frames=8)).stamps == (0, 400, 400, 400, 400, 400, 2400, 2800)


def test_a_frame_is_on_screen_from_its_own_stamp_on() -> None:
    timeline = Timeline([0, 100, 250, 300, 1000], 1100, MS)
    for seconds, stamp in ((0.0, 0), (0.099, 0), (0.1, 100), (0.249, 100), (0.25, 250), (0.999, 300), (1.05, 1000)):
        assert select_stamps(timeline, Sampling(frames=1, start_seconds=seconds)).stamps == (stamp,)


@pytest.mark.parametrize("wanted", [30, 31, 100])
@pytest.mark.parametrize("mode", ["uniform", "endpoints"])
def test_more_frames_than_there_are_gives_each_once(wanted: int, mode: Mode) -> None:
    choice = select_stamps(constant(30), Sampling(frames=wanted, mode=mode))
    assert choice.stamps == tuple(constant(30).stamps)
    assert choice.notes == (() if wanted == 30 else (f"the video has only 30 frames, not {wanted}: each is used once",))


def test_one_frame() -> None:
    timeline = Timeline([5], 6, Fraction(1, 25))
    for mode in ("uniform", "endpoints", "keyframes"):
        assert select_stamps(timeline, Sampling(frames=8, mode=mode)).stamps == (5,)


def test_a_part_is_half_open_and_counted_from_the_first_picture() -> None:
    timeline = constant(250, first=13760)  # 25 a second
    assert indices(timeline, Sampling(frames=4, start_seconds=2, end_seconds=4)) == [50, 62, 75, 87]
    assert indices(timeline, Sampling(frames=3, start_seconds=2, end_seconds=4, mode="endpoints")) == [50, 74, 99]
    assert indices(timeline, Sampling(frames=8, start_seconds=2, end_seconds=2.1)) == [50, 51, 52]
    assert indices(timeline, Sampling(frames=8, start_seconds=9.999)) == [249]
    assert indices(timeline, Sampling(frames=2, start_seconds=9, end_seconds=1000)) == [225, 237]
    # 0.3 as a float lies below 3/10, and would show the frame before
    assert indices(constant(100, 1, Fraction(1, 10)), Sampling(frames=1, start_seconds=0.3)) == [3]


def test_sound_before_the_first_picture_begins_the_clock() -> None:
    pictures = constant(10, step=1000, time_base=Fraction(1, 1000), first=2000)
    timeline = replace(pictures, zero=Fraction(500))
    assert timeline.seconds(2000) == 1.5 and timeline.duration_seconds == 11.5
    assert select_stamps(timeline, Sampling(frames=2)).stamps == (2000, 7000)
    assert select_stamps(timeline, Sampling(frames=1, start_seconds=3.5, end_seconds=4.5)).stamps == (4000,)
    assert select_stamps(timeline, Sampling(frames=4, end_seconds=1.0)).stamps == (2000,), "the first to be seen"
    late = replace(pictures, zero=Fraction(9000))
    assert late.seconds(2000) == 0.0 and late.duration_seconds == 10.0


def test_a_part_of_a_clip_in_milliseconds() -> None:
    timeline = rounded(310, Fraction(30))
    assert indices(timeline, Sampling(frames=10, start_seconds=1, end_seconds=2)) == list(range(30, 60, 3))
    assert indices(timeline, Sampling(frames=30, start_seconds=1, end_seconds=2)) == list(range(30, 60))
    assert indices(timeline, Sampling(frames=1, start_seconds=10.32)) == [309]


def test_a_start_past_the_end_is_an_error() -> None:
    with pytest.raises(MediaError, match=r"the start \(10 s\) is past the end of the video \(10.000 s\)"):
        select_stamps(constant(250), Sampling(start_seconds=10))


@pytest.mark.parametrize(
    ("fps", "expected"), [(1, [0, 25, 50, 75]), (2, [0, 12, 25, 37, 50, 62, 75, 87]), (0.1, [0]), (0.3, [0, 83])]
)
def test_fps_takes_one_frame_every_so_often(fps: float, expected: list[int]) -> None:
    assert indices(constant(100), Sampling(fps=fps)) == expected


def test_fps_as_high_as_the_clips_takes_every_frame() -> None:
    for timeline in (rounded(61, Fraction(60)), rounded(310, Fraction(30)), constant(100)):
        rate = (
            round(1000 / 17) + 1
            if len(timeline.stamps) == 61
            else round(len(timeline.stamps) / timeline.duration_seconds)
        )
        choice = select_stamps(timeline, Sampling(fps=rate))
        assert choice.stamps == tuple(timeline.stamps)
        assert choice.notes == ()


def test_fps_on_a_clip_in_milliseconds_takes_no_neighbour() -> None:
    assert indices(rounded(300, Fraction(30)), Sampling(fps=15)) == list(range(0, 300, 2))
    assert indices(rounded(300, Fraction(30)), Sampling(fps=10, start_seconds=1, end_seconds=3)) == list(
        range(30, 90, 3)
    )


def test_fps_with_endpoints_only_sets_the_count() -> None:
    assert indices(constant(100), Sampling(fps=1, mode="endpoints")) == [0, 33, 66, 99]


def test_fps_has_a_bound() -> None:
    hour = constant(3600 * 25)
    assert len(select_stamps(hour, Sampling(fps=1)).stamps) == 3600
    with pytest.raises(
        MediaError, match=f"2 frames per second of 3600.0 seconds are 7200 frames, more than {MAX_FRAMES}"
    ):
        select_stamps(hour, Sampling(fps=2))
    with pytest.raises(MediaError, match=r"of 3600.0 seconds are 36\d{98}\.\.\. frames"):
        select_stamps(hour, Sampling(fps=1e300))


def test_keyframes_are_the_ones_at_or_before() -> None:
    stamps = range(0, 100, 10)
    timeline = Timeline(stamps, 100, MS, keyframes=[0, 30, 80])
    choice = select_stamps(timeline, Sampling(frames=5, mode="keyframes"))  # 0 20 40 60 80
    assert choice.stamps == (0, 30, 80)
    assert "keyframes" in choice.notes[0]
    assert choice.notes[1] == "only 3 keyframes for 5 times: each is used once"
    hidden = Timeline(stamps, 100, MS, keyframes=[30])  # an edit list hides the first picture's keyframe
    assert select_stamps(hidden, Sampling(frames=5, mode="keyframes")).stamps == (0, 30)


@pytest.mark.parametrize(
    ("stamps", "answer"),
    [
        ([0], True),
        ([0, 7], True),
        ([0, 33, 67, 100, 133, 167], True),
        ([0, 1001, 2002], True),
        ([0, 1, 2, 3, 6, 7], False),  # sample.avi: dropped frames
        ([0, 1, 3, 4, 6, 7], False),  # steps of a tick or two tell too little
        ([0, 68, 134, 200, 277], False),
    ],
)
def test_is_constant(stamps: list[int], answer: bool) -> None:
    assert is_constant(stamps) is answer


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"frames": 0}, "from 1 to 4096, got 0"),
        ({"frames": MAX_FRAMES + 1}, "from 1 to 4096"),
        ({"frames": 2.5}, "whole number, got 2.5"),
        ({"frames": True}, "whole number"),
        ({"fps": 0}, "above 0, got 0"),
        ({"fps": float("inf")}, "above 0"),
        ({"fps": "2"}, "above 0, got '2'"),
        ({"fps": 10**400}, r"above 0, got 10{99}\.\.\.$"),
        ({"frames": 10**400}, r"from 1 to 4096, got 10{99}\.\.\.$"),
        ({"end_seconds": 10**400}, "the end must be"),
        ({"start_seconds": -1}, "0 seconds or later"),
        ({"start_seconds": float("nan")}, "0 seconds or later"),
        ({"end_seconds": float("nan")}, "the end must be"),
        ({"start_seconds": 5, "end_seconds": 5}, r"the end \(5 s\) must come after the start \(5 s\)"),
        ({"mode": "random"}, "uniform, endpoints, keyframes, scenes, got 'random'"),
    ],
)
def test_senseless_sampling_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Sampling(**options)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90), ("90.5", 90.5), (".5", 0.5), ("0", 0), (" 7 ", 7), ("1:30", 90), ("01:02:03.25", 3723.25),
        ("75:00", 4500), ("0:0", 0), ("100:00:00", 360000), ("1:30.", 90),
    ],
)  # fmt: skip
def test_parse_time(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "", "abc", "-5", "1:60", "1:75:00", "1:2:3:4", "1e3", "nan", "inf", "1:", ":30", "1,5", "٣",
        *(f"{'9' * 400}{unit}" for unit in ("", "s", "h", ":00:00")), f"{'9' * 5000}m", "1:30." + "1" * 5000,
    ],
)  # fmt: skip
def test_parse_time_refuses(text: str) -> None:
    with pytest.raises(UsageError, match="not a time") as caught:
        parse_time(text)
    assert len(str(caught.value)) < 150


def test_media_modules_import_nothing_heavy() -> None:
    modules = "sampling, image, contact_sheet"
    code = (
        f"import sys; from llava_video_cli.video import {modules}; print({{'av', 'numpy', 'PIL'}} & set(sys.modules))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"


@pytest.mark.parametrize("mode", ["uniform", "endpoints", "scenes"])
def test_times_with_many_digits_on_a_clock_of_hours(mode: Mode) -> None:
    """Of a recorded broadcast: a time as a fraction, multiplied by such a stamp, has more than 64 bits."""
    stamps = [5 * 10**9 + 3600 * i + i % 2 for i in range(1000)]
    timeline = Timeline(np.array(stamps, np.int64), stamps[-1] + 3600, Fraction(1, 90000))
    for start, end in ((4 / 3, 31 / 3), (0.7 + 0.7 + 0.7, 37.03703703703704)):
        sampling = Sampling(frames=4, start_seconds=start, end_seconds=end, mode=mode)
        assert select_stamps(timeline, sampling) == select_stamps(replace(timeline, stamps=stamps), sampling)
    sampling = Sampling(fps=1 / 3)
    assert select_stamps(timeline, sampling) == select_stamps(replace(timeline, stamps=stamps), sampling)
