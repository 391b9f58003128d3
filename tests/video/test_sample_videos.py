"""The frame reader on real files with quirks; the counts are those of ../shared/videos/README.md."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import islice
from typing import Any

import av
import numpy as np
import pytest
from clips import assert_same, assert_times, decode_all, digest, oracle_numbers, sample, shown

from llava_video_cli.errors import MediaError
from llava_video_cli.video import probe, read_frames
from llava_video_cli.video.limits import Limits
from llava_video_cli.video.sampling import Sampling

TOTALS = {
    "nasa_13013.mp4": 390, "av1.mkv": 125, "bt709_full_range.mp4": 30, "hevc_10bit.mp4": 30,
    "flipping_a_pancake.mkv": 310, "corrupted.mp4": 49, "rotated_90.mov": 3, "no_duration.webm": 74,
    "transparent.webm": 150, "pigs_in_a_polka.gif": 30, "bikes.mp4": 250, "asl_learn.mkv": 61,
    "car_detection.mp4": 377, "delayed_start.mp4": 24, "rotated_phone.mp4": 240, "counter.mp4": 30,
    "edit_list.mp4": 77, "edit_list_positive_shift.mp4": 270, "edit_list_reordered.mp4": 12, "h264.ts": 30,
    "fragmented.mp4": 30, "sample.avi": 96, "sample.flv": 30, "h263.3gp": 15, "rotate_and_reflect.mp4": 30,
    "empty_track.mp4": 30, "all_keyframes.mp4": 30, "odd_dimensions.webm": 30, "one_white_frame.mp4": 1,
    "b_pyramid.mp4": 120, "long_1080p_lowbitrate.mp4": 10883, "long_180p_av1.mp4": 21766,
}  # fmt: skip
UNEVEN = {"no_duration.webm", "sample.avi"}
LONG = {name for name, total in TOTALS.items() if total > 1000}
COUNTS = {"endpoints": (2, 8), "uniform": (1, 32)}
MORE_COUNTS = {"endpoints": (1, 2, 8, 32), "uniform": (1, 2, 8, 32)}
# These take the longest to decode. Others take the same way, as bikes.mp4, rotate_and_reflect.mp4 and av1.mkv.
LONGEST = {"long_1080p_lowbitrate.mp4", "edit_list.mp4", "rotated_phone.mp4", "long_180p_av1.mp4", "counter.mp4",
           "car_detection.mp4"}  # fmt: skip
# Files whose sound begins before the picture, and when the first picture is shown, by ffprobe.
FIRST_AT = {"edit_list_positive_shift.mp4": 1.0, "fragmented.mp4": 2002 / 30000}


def expected_numbers(name: str, stamps: list[int], mode: str, n: int) -> list[int]:
    total = TOTALS[name]
    count = min(n, total)
    if mode == "endpoints":
        return [i * (total - 1) // max(1, count - 1) for i in range(count)]
    if name in UNEVEN:
        return oracle_numbers(stamps, stamps[-1] + {"no_duration.webm": 66, "sample.avi": 1}[name], n)
    return [i * total // count for i in range(count)]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in LONGEST else name
        for name in sorted(set(TOTALS) - {"corrupted.mp4"})
    ],
)
@pytest.mark.parametrize(
    "counts", [COUNTS, pytest.param(MORE_COUNTS, marks=pytest.mark.slow)], ids=["few counts", "more counts"]
)
@pytest.mark.usefixtures("only_what_is_needed")
def test_sample_videos_equal_a_full_decode(name: str, counts: dict[Any, tuple[int, ...]]) -> None:
    """The whole, and a part and a rate; the full decode makes fingerprints of what is compared, which take longer."""
    clip, total, info, first_at = sample(name), TOTALS[name], probe(sample(name)), FIRST_AT.get(name, 0.0)
    rate = total / (info.duration_seconds - first_at)
    start, end = round(info.duration_seconds * 0.37, 2), round(info.duration_seconds * 0.81 + 0.01, 2)
    samplings = [] if name in LONG | UNEVEN else [Sampling(4, start_seconds=start, end_seconds=end), Sampling(fps=2)]
    parts = [
        (sampling, frames, [round((seconds - first_at) * rate) for seconds in frames.times_seconds])
        for sampling in samplings
        for frames in (read_frames(clip, sampling),)
    ]
    keep = None
    if name not in UNEVEN:
        keep = {k for mode, ns in counts.items() for n in ns for k in expected_numbers(name, [], mode, n)}
        keep.update(*(numbers for *_, numbers in parts))
    oracle = decode_all(clip, keep, damaged=False)
    assert len(oracle) == total
    for sampling, frames, numbers in parts:
        assert_same(frames, oracle, numbers)
        if sampling.fps:
            assert len(numbers) == min(total, math.ceil(round((info.duration_seconds - first_at) * 2, 6)))
            moments = [i * rate / 2 for i in range(len(numbers))]
        else:
            first, stop = math.floor((start - first_at) * rate), math.ceil((end - first_at) * rate)
            assert numbers[0] == first
            assert numbers[-1] < stop
            moments = [(start - first_at + i * (end - start) / 4) * rate for i in range(4)]
        if len(numbers) == len(moments) < total:  # just on an edge, floats don't tell which side is meant
            assert all(
                number in (math.floor(m - 0.05), math.floor(m + 0.05))
                for number, m in zip(numbers, moments, strict=True)
            )
    stamps = [stamp for stamp, _ in oracle if stamp is not None]
    tick = Fraction(1)
    for mode, n in ((mode, n) for mode, ns in counts.items() for n in ns):
        frames = read_frames(clip, Sampling(frames=n, mode=mode))
        numbers = expected_numbers(name, stamps, mode, n)
        assert_same(frames, oracle, numbers)
        if len(numbers) > 1:
            tick = Fraction(frames.times_seconds[-1] - first_at) / (stamps[numbers[-1]] - stamps[0])
        assert_times(frames, oracle, numbers, tick, first_at)
        assert frames.times_seconds[0] == pytest.approx(first_at)
        assert bool(frames.notes) == (n > total)
    assert frames.info == info
    assert frames.images.shape == (min(32, total), info.height, info.width, 3)


def test_the_beginning_of_a_file_with_an_edit_list() -> None:
    """HEVC of 10 bits, rotated, and at a variable rate."""
    clip = sample("edit_list.mp4")
    with av.open(str(clip)) as container:
        tick = container.streams.video[0].time_base
        oracle = [(frame.pts, digest(shown(frame))) for frame in islice(container.decode(video=0), 5)]
    assert tick is not None and oracle[0][0] is not None and oracle[4][0] is not None
    end = float((oracle[4][0] - oracle[0][0]) * tick)
    frames = read_frames(clip, Sampling(frames=32, end_seconds=end))
    assert_same(frames, oracle, [0, 1, 2, 3])
    assert_times(frames, oracle, [0, 1, 2, 3], tick)
    assert frames.info.rotation_degrees and frames.images.shape[1:] == (1920, 1080, 3)


@pytest.mark.usefixtures("only_what_is_needed")
def test_av1_pictures_that_no_other_refers_to() -> None:
    """A decoder that begins with pictures that are left out gives those that are asked for later, too."""
    frames = read_frames(
        sample("long_180p_av1.mp4"), Sampling(frames=9, start_seconds=100.5, end_seconds=101), limits=Limits(cores=1)
    )
    assert len(frames.images) == 9


def test_a_damaged_sample_video() -> None:
    """Frame 30 of 50 can't be decoded; all the others are there, where one goes on behind the error."""
    clip = sample("corrupted.mp4")
    oracle = decode_all(clip)
    good = [stamp // 1024 for stamp, _ in oracle if stamp is not None]
    assert sorted(set(range(50)) - set(good)) == [30]
    for n in (2, 8, 100):
        count = min(n, 50)
        frames = read_frames(clip, Sampling(frames=n))
        wanted = [i * 50 // count for i in range(count)]
        assert_same(frames, oracle, [good.index(k) for k in wanted if k != 30])
        assert bool(frames.notes) == (n > 2)  # two frames don't come near the damage
    assert len(frames.images) == 49
    assert "1 broken packet skipped; the nearest good frames were used" in frames.notes
    window = read_frames(clip, Sampling(frames=1, start_seconds=3, end_seconds=3.05))
    assert_same(window, oracle, [29])


def test_colours_of_full_range_bt709() -> None:
    clip = sample("bt709_full_range.mp4")
    with av.open(str(clip)) as container:
        planes = next(container.decode(video=0)).planes
        y, u, v = (np.array(memoryview(p)).reshape(p.height, p.line_size)[:, : p.width] + 0.0 for p in planes)
    u, v = (plane.repeat(2, 0).repeat(2, 1) - 128 for plane in (u, v))
    red, blue = y + 1.5748 * v, y + 1.8556 * u  # ITU-R BT.709, full range
    pixels = read_frames(clip, Sampling(frames=1)).images[0]
    assert np.abs(pixels[..., 0] - red.clip(0, 255)).mean() < 1.5
    assert np.abs(pixels[..., 2] - blue.clip(0, 255)).mean() < 1.5


def test_the_sample_without_pictures() -> None:
    with pytest.raises(MediaError, match="no video stream"):
        probe(sample("audio_only.mp3"))
