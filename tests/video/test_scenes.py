"""Shots: the cuts that PySceneDetect finds in our pictures, and the frames that are spread over the shots."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import av
import numpy as np
import pytest
from clips import Pixels, break_packets, sample

from llava_video_cli.errors import LlvidError, MediaError
from llava_video_cli.video import inspect, iter_frames, read_frames
from llava_video_cli.video.limits import Limits
from llava_video_cli.video.packet_index import PacketIndex
from llava_video_cli.video.parallel import DecodedFrame
from llava_video_cli.video.sampling import Sampling, Shot, Timeline, parse_every, select_stamps
from llava_video_cli.video.scenes import SmallConverter, find_shots, plan_all, reduced

SCENES = Sampling(mode="scenes")
RATE = 24
QUICK = {"libx264": {"preset": "superfast"}, "libvpx": {"deadline": "realtime", "cpu-used": "8"}}


@dataclass(frozen=True)
class Film:
    """A film of shots: the number of each one's first picture, and the numbers `[start, end)` of its blends."""

    path: Path
    starts: list[int]
    blends: list[tuple[int, int]]
    count: int

    @property
    def times(self) -> list[tuple[float, float]]:
        return [(a / RATE, b / RATE) for a, b in pairwise([*self.starts, self.count])]


def shot(number: int, length: int, width: int = 320, height: int = 180) -> list[Pixels]:
    """A pattern of blocks in a colour of its own, with a bright square that moves slowly."""
    rng = np.random.default_rng(number)
    colour = np.eye(3)[number % 3] * 150 + 30
    blocks = (colour * rng.uniform(0.5, 1.0, (6, 10, 1))).astype(np.uint8)
    ground = blocks.repeat(height // 6, 0).repeat(width // 10, 1)
    pictures = []
    for i in range(length):
        image = ground.copy()
        image[60:90, 20 + i : 50 + i] = 230
        pictures.append(image)
    return pictures


def make_film(
    path: Path, lengths: Sequence[int] = (30, 45, 36), fades: Sequence[int] = (), codec: str = "libx264", **options: str
) -> Film:
    """Write shots of these lengths; the last pictures of a shot fade over into the next one's first."""
    pictures = shot(0, lengths[0])
    starts, blends = [0], list[tuple[int, int]]()
    for number, length in enumerate(lengths[1:], start=1):
        fade, following = (fades[number - 1] if fades else 0), shot(number, length)
        starts.append(len(pictures) - fade // 2)
        blends.append((len(pictures) - fade, len(pictures)))
        for i in range(fade):
            share = (i + 1) / (fade + 1)
            mixed = (1 - share) * pictures[i - fade].astype(float) + share * following[i]
            pictures[i - fade] = mixed.round().astype(np.uint8)
        pictures += following[fade:]
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=Fraction(RATE), options=QUICK.get(codec, {}) | options)
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
        stream.codec_context.thread_count = 1  # several of libvpx wait for each other in a loop
        for image in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return Film(path, starts, blends, len(pictures))


class FakeDetector:
    """In the place of PySceneDetect's detectors: a cut where the mean colour jumps. It keeps what it was given."""

    given: dict[str, Any]
    positions: list[Any]
    shapes: set[tuple[int, ...]]
    event_buffer_length = 0

    def __init__(self, **given: Any) -> None:
        FakeDetector.given, FakeDetector.positions, FakeDetector.shapes = given, [], set()
        self._last: Any = None

    def process_frame(self, position: Any, pixels: Pixels) -> list[Any]:
        FakeDetector.positions.append(position)
        FakeDetector.shapes.add(pixels.shape)
        last, self._last = self._last, pixels[::4, ::4].mean((0, 1))
        return [position] if last is not None and abs(self._last - last).max() > 40 else []

    def post_process(self, position: Any) -> list[Any]:
        del position
        return []


@dataclass(frozen=True)
class FakeTimecode:
    pts: int
    time_base: Fraction


@dataclass(frozen=True)
class FakeFrameTimecode:
    timecode: FakeTimecode
    fps: Fraction
    pts: int = field(init=False)

    def __post_init__(self) -> None:
        assert self.fps > 0
        object.__setattr__(self, "pts", self.timecode.pts)


@pytest.fixture
def fake_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra `scenes`, with a detector of our own; it need not be installed."""
    library, common = ModuleType("scenedetect"), ModuleType("scenedetect.common")
    library.__dict__.update(
        AdaptiveDetector=FakeDetector, ContentDetector=FakeDetector, FrameTimecode=FakeFrameTimecode, common=common
    )
    common.__dict__.update(Timecode=FakeTimecode)
    monkeypatch.setitem(sys.modules, "scenedetect", library)
    monkeypatch.setitem(sys.modules, "scenedetect.common", common)


@pytest.mark.usefixtures("fake_extra")
def test_the_detector_gets_each_picture_once_small_and_with_its_time(tmp_path: Path) -> None:
    film = make_film(tmp_path / "film.mkv")
    frames = read_frames(film.path, replace(SCENES, scene_detector="content", scene_threshold=20.0, scene_min_frames=9))
    assert FakeDetector.given == {"threshold": 20.0, "min_scene_len": 9}
    assert FakeDetector.shapes == {(144, 256, 3)}
    milliseconds = [round(1000 * i / RATE) for i in range(film.count)]
    assert [position.pts for position in FakeDetector.positions] == milliseconds
    assert [*sum(frames.shots, ())] == pytest.approx([*sum(film.times, ())], abs=0.001)


@pytest.mark.usefixtures("fake_extra")
def test_thresholds_of_the_adaptive_detector(tmp_path: Path) -> None:
    film = make_film(tmp_path / "film.mp4", (20, 20))
    read_frames(film.path, SCENES)
    assert FakeDetector.given == {"min_scene_len": 15, "min_content_val": 15.0}
    read_frames(film.path, replace(SCENES, scene_threshold=2.5, scene_min_content=4.0))
    assert FakeDetector.given == {"adaptive_threshold": 2.5, "min_scene_len": 15, "min_content_val": 4.0}


@pytest.mark.usefixtures("fake_extra")
def test_shots_are_found_once_for_all_windows(tmp_path: Path) -> None:
    film = make_film(tmp_path / "film.mp4")
    video = inspect(film.path)
    windows = video.windows("scene", Sampling(frames=4))
    assert len(FakeDetector.positions) == film.count
    assert [(window.start_seconds, window.end_seconds) for window in windows] == [
        *film.times[:-1], (film.times[-1][0], None),
    ]  # fmt: skip
    FakeDetector.positions.clear()
    parts = [video.read(window) for window in windows]
    assert FakeDetector.positions == []
    for part, (start, end) in zip(parts, film.times, strict=True):
        assert part.part_seconds == pytest.approx((start, end)) and part.frame_count == 4
        assert part.shots[0] == pytest.approx((start, end)) and len(part.shots) == 1 and part.notes == ()
        assert all(start < seconds < end for seconds in part.times_seconds)


@pytest.mark.usefixtures("fake_extra")
def test_only_the_part_is_looked_at(tmp_path: Path) -> None:
    film = make_film(tmp_path / "film.mp4", g="12")
    sampling = replace(SCENES, start_seconds=1.0, end_seconds=2.0)
    assert read_frames(film.path, sampling).shots == ((1.0, 30 / RATE), (30 / RATE, 2.0))
    assert len(FakeDetector.positions) == RATE
    with pytest.raises(MediaError, match=r"film\.mp4: the start .* is past the end"):
        read_frames(film.path, replace(SCENES, start_seconds=99.0))


@pytest.mark.usefixtures("fake_extra")
def test_one_core_and_one_keyframe_are_enough(tmp_path: Path) -> None:
    film = make_film(tmp_path / "film.mp4", g="999")
    assert read_frames(film.path, SCENES, limits=Limits(cores=1)).shots == tuple(film.times)


@pytest.mark.usefixtures("fake_extra")
def test_many_groups_of_pictures_are_passed_on_in_order(tmp_path: Path) -> None:
    film = make_film(tmp_path / "film.mp4", [30] * 12, g="10", sc_threshold="0")
    frames = read_frames(film.path, replace(SCENES, frames=24), limits=Limits(cores=4))
    stamps = [position.pts for position in FakeDetector.positions]
    assert len(stamps) == film.count and stamps == sorted(stamps)
    assert frames.shots == tuple(film.times) and frames.frame_count == 24


@pytest.mark.usefixtures("fake_extra")
@pytest.mark.parametrize("name", ["film.avi", "broken.mp4"])
def test_files_that_are_decoded_in_full(name: str, tmp_path: Path) -> None:
    options: dict[str, Any]
    codec, options = ("mpeg4", {"bf": "2"}) if name == "film.avi" else ("libx264", {"g": "10"})
    film = make_film(tmp_path / name, codec=codec, **options)
    if name == "broken.mp4":
        break_packets(film.path, [15, 55])
    video = inspect(film.path)
    parts = [video.read(window) for window in video.windows("scene", Sampling(frames=3))]
    assert [part.shots[0] for part in parts] == [pytest.approx(times, abs=2 / RATE) for times in film.times]


@pytest.mark.usefixtures("fake_extra")
def test_progress_reaches_the_end_and_never_goes_back(tmp_path: Path) -> None:
    shares: list[float] = []
    read_frames(make_film(tmp_path / "film.mp4").path, SCENES, progress=shares.append)
    assert shares == sorted(shares) and shares[0] == 0 and shares[-1] == pytest.approx(1)


class ToldDetector(FakeDetector):
    """It tells of the cuts that a test gives: by the number of the picture at which it does; None is the end."""

    told: ClassVar[dict[int | None, list[int]]]

    def process_frame(self, position: Any, pixels: Pixels) -> list[Any]:
        super().process_frame(position, pixels)
        return self._cuts(len(FakeDetector.positions) - 1)

    def post_process(self, position: Any) -> list[Any]:
        del position
        return self._cuts(None)

    def _cuts(self, number: int | None) -> list[Any]:
        return [FakeTimecode(cut, Fraction(1, RATE)) for cut in self.told.get(number, [])]


FIRST = 1000  # a stamp
Bounds = tuple[int, int, int, int]


@pytest.fixture
def shots_of(fake_extra: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Bounds]]:
    """What gives the shots of pictures of these levels, and of the cuts that are told, as numbers of pictures."""
    del fake_extra
    monkeypatch.setattr(sys.modules["scenedetect"], "AdaptiveDetector", ToldDetector)

    def found(
        levels: Sequence[float], told: dict[int | None, list[int]], rate: int = RATE, step: int = 1
    ) -> list[Bounds]:
        ToldDetector.told = told
        stamps = [FIRST + step * number for number in range(len(levels))]
        images = [np.full((16, 16, 3), round(level), np.uint8) for level in levels]
        pictures = [DecodedFrame(stamp, stamp, image) for stamp, image in zip(stamps, images, strict=True)]
        end = FIRST + step * len(levels)
        shots = find_shots(pictures, Timeline(stamps or [FIRST], end, Fraction(1, rate * step)), SCENES, end)
        return [
            (each.start - FIRST, each.end - FIRST, each.clear_start - FIRST, each.clear_end - FIRST) for each in shots
        ]

    return found


def test_at_a_hard_cut_an_eighth_of_a_second_counts_as_blend(shots_of: Callable[..., list[Bounds]]) -> None:
    levels, hard = [50] * 30 + [200] * 30, [(0, 30, 0, 27), (30, 60, 33, 60)]
    assert shots_of(levels, {30: [30]}) == shots_of(levels, {35: [30]}) == shots_of(levels, {None: [30]}) == hard
    assert shots_of(levels, {59: [0, 30]}) == hard, "no cut at the first picture"
    assert shots_of([50] * 5 + [200] * 5, {5: [5]}, rate=2) == [(0, 5, 0, 4), (5, 10, 6, 10)], "one picture at least"


def test_a_blend_is_followed_to_both_sides(
    shots_of: Callable[..., list[Bounds]], monkeypatch: pytest.MonkeyPatch
) -> None:
    fade = [*[50] * 60, *np.linspace(50, 200, 24), *[200] * 60]
    assert shots_of(fade, {72: [72]}) == [(0, 72, 0, 60), (72, 144, 84, 144)]
    halting = [*[50] * 60, *np.linspace(50, 200, 6).repeat(4), *[200] * 60]
    assert shots_of(halting, {72: [72]}) == [(0, 72, 0, 61), (72, 144, 83, 144)]
    pausing = [*[50] * 60, *np.linspace(50, 125, 9), *[125] * 3, *np.linspace(125, 200, 9), *[200] * 60]
    for cut in (63, 75):  # nearer to one of its ends
        assert shots_of(pausing, {cut: [cut]}) == [(0, cut, 0, 60), (cut, 141, 81, 141)]
    monkeypatch.setattr(FakeDetector, "event_buffer_length", 20)
    long = [*[50] * 60, *np.linspace(50, 200, 60), *[200] * 60]
    assert shots_of(long, {110: [90]}) == shots_of(long, {90: [90]}), "told late"


def test_shots_shorter_than_their_blends_are_used_whole(shots_of: Callable[..., list[Bounds]]) -> None:
    levels = [50] * 30 + [200] * 6 + [100] * 30
    assert shots_of(levels, {65: [30, 36]})[1] == (30, 36, 30, 36)


@pytest.mark.filterwarnings("error")
def test_cuts_without_a_blend(shots_of: Callable[..., list[Bounds]]) -> None:
    assert shots_of([50] * 60, {30: [30]}) == [(0, 30, 0, 30), (30, 60, 30, 60)], "both sides are alike"
    assert shots_of([50] * 60, {30: [61]}, step=2) == [(0, 61, 0, 61), (61, 120, 61, 120)], "no picture has its time"
    assert shots_of([50] * 2 + [200] * 58, {3: [2]})[1][:2] == (2, 60), "at once"


def test_a_blend_does_not_reach_behind_the_cut_before(shots_of: Callable[..., list[Bounds]]) -> None:
    """The large step of the hard cut would hide the small ones of the blend."""
    levels = [*[229] * 41, *[70] * 12, *np.linspace(70, 27, 15), *[27] * 60]
    shots = shots_of(levels, {41: [41], 60: [60]})
    assert shots == [(0, 41, 0, 38), (41, 60, 44, 53), (60, 128, 68, 128)]


def test_one_picture_is_one_shot_and_none_is_none(shots_of: Callable[..., list[Bounds]]) -> None:
    assert shots_of([50], {}) == [(0, 1, 0, 1)]
    assert shots_of([], {}) == []


def test_small_pictures_keep_their_size() -> None:
    for (width, height), shape in (((64, 36), (36, 64, 3)), ((4096, 2), (1, 256, 3)), ((512, 256), (128, 256, 3))):
        frame = av.VideoFrame.from_ndarray(np.zeros((height, width, 3), np.uint8), format="rgb24")
        assert SmallConverter().convert(0, 0, frame).image.shape == shape
    assert reduced(np.zeros((36, 64, 3), np.uint8), 100).shape == (36, 64, 3)


def test_ranges_of_all_pictures_begin_at_keyframes() -> None:
    def ranges(stamps: Sequence[int], keys: Sequence[int], targets: Sequence[int]) -> list[tuple[int, int]]:
        timeline = Timeline(sorted(stamps), len(stamps), Fraction(1, 24))
        index = PacketIndex(np.array(stamps), np.arange(len(stamps)), np.array(keys), timeline)
        return [(each.start, each.stop) for each in plan_all(index, targets)]

    assert ranges(range(250), range(0, 250, 30), range(250)) == [(0, 120), (120, 240), (240, 250)]
    assert ranges(range(250), [0], range(250)) == [(0, 250)]
    assert ranges([0, 2, 1], [0], range(3)) == [(0, 3)], "the last one that is shown is not the last packet"
    assert ranges([0, 7, 5, 6, 8], [0, 2], [5, 6, 7, 8]) == [(0, 5)], "a keyframe before another one's pictures"


@pytest.mark.parametrize(
    ("name", "detector"),
    [
        ("film.mp4", "adaptive"),
        ("film.mp4", "content"),
        ("film.webm", "adaptive"),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (
            ("film.mkv", "adaptive"), ("film.mkv", "content"), ("film.webm", "content"),
        )),
    ],
)  # fmt: skip
def test_hard_cuts_are_found_where_the_library_finds_them(name: str, detector: Any, tmp_path: Path) -> None:
    library = pytest.importorskip("scenedetect", reason="needs the extra 'scenes'")
    film = make_film(tmp_path / name, codec="libvpx" if name.endswith("webm") else "libx264")
    theirs = library.AdaptiveDetector() if detector == "adaptive" else library.ContentDetector()
    cuts = [start.seconds for start, _ in library.detect(str(film.path), theirs)]
    shots = read_frames(film.path, replace(SCENES, scene_detector=detector)).shots
    assert [start for start, _ in shots] == pytest.approx(cuts, abs=0.001)
    assert [start for start, _ in shots] == pytest.approx([start for start, _ in film.times], abs=0.001)


@pytest.mark.parametrize(
    "name", [pytest.param("flipping_a_pancake.mkv", marks=pytest.mark.slow), "pigs_in_a_polka.gif", "bikes.mp4"]
)
def test_real_files_have_the_cuts_that_the_library_finds_in_the_same_pictures(name: str) -> None:
    library = pytest.importorskip("scenedetect", reason="needs the extra 'scenes'")
    from llava_video_cli.video.reader import open_reader

    path, detector, cuts = sample(name), library.AdaptiveDetector(), [0.0]
    converter = SmallConverter()
    with open_reader(str(path), Limits(), lambda _: None) as reader:
        seconds = reader.timeline.seconds
        with av.open(str(path)) as container:
            for number, frame in enumerate(container.decode(video=0)):
                position = library.FrameTimecode(number, float(container.streams.video[0].average_rate or 25))
                pixels = converter.convert(number, number, frame).image
                stamps = reader.timeline.stamps
                cuts += [seconds(stamps[cut.frame_num]) for cut in detector.process_frame(position, pixels)]
    assert [start for start, _ in read_frames(path, SCENES).shots] == cuts


@pytest.mark.parametrize("fade", [4, 24, pytest.param(12, marks=pytest.mark.slow)])
def test_no_frame_is_from_a_blend(fade: int, tmp_path: Path) -> None:
    pytest.importorskip("scenedetect", reason="needs the extra 'scenes'")
    film = make_film(tmp_path / "film.mp4", (72, 72, 72), (fade, 0), crf="18")
    # a cut where the blend begins, and no second one before its end
    more: dict[str, Any] = {"scene_detector": "content", "scene_threshold": 3.0, "scene_min_frames": 40}
    frames = read_frames(film.path, replace(SCENES, frames=120, **more))
    numbers = [round(seconds * RATE) for seconds in frames.times_seconds]
    assert len(frames.shots) == 3 and len(numbers) == 120
    start, end = film.blends[0]
    assert not [number for number in numbers if start <= number < end]
    cut = frames.shots[1][0] * RATE
    assert start - 2 <= cut <= end + 2 and frames.shots[2][0] == film.blends[1][0] / RATE


def timeline(total: int) -> Timeline:
    return Timeline(range(total), total, Fraction(1, 10))


def whole(*starts: int, total: int) -> list[Shot]:
    return [Shot(a, b, a, b) for a, b in pairwise([*starts, total])]


@pytest.mark.parametrize(("count", "shares"), [(1, [1, 0, 0]), (2, [1, 0, 1]), (3, [1, 1, 1]), (5, [2, 1, 2])])
def test_each_shot_has_a_frame_the_longest_first(count: int, shares: list[int]) -> None:
    shots = whole(0, 40, 50, total=80)
    stamps = select_stamps(timeline(80), replace(SCENES, frames=count), shots).stamps
    assert list(stamps) == sorted(stamps)
    assert [sum(each.start <= stamp < each.end for stamp in stamps) for each in shots] == shares


def test_shares_follow_the_lengths() -> None:
    shots = whole(0, 60, 70, total=100)
    stamps = select_stamps(timeline(100), replace(SCENES, frames=10), shots).stamps
    assert [sum(each.start <= stamp < each.end for stamp in stamps) for each in shots] == [6, 1, 3]
    stamps = select_stamps(timeline(100), replace(SCENES, frames=2), shots).stamps
    assert stamps == (30, 85)
    assert select_stamps(timeline(100), replace(SCENES, frames=2), shots).notes == (
        "3 shots", "2 frames for 3 shots: only the longest have one",
    )  # fmt: skip


def test_shorter_shots_give_all_they_have_and_blends_nothing() -> None:
    shots = [Shot(0, 4, 0, 3), Shot(4, 10, 6, 10)]
    selection = select_stamps(timeline(10), replace(SCENES, frames=32), shots)
    assert selection.stamps == (0, 1, 2, 6, 7, 8, 9)
    assert selection.notes == ("2 shots", "the shots have only 7 frames, not 32: each is used once")


def test_a_rate_spreads_as_many_frames_as_it_gives() -> None:
    shots = whole(0, 50, total=100)
    assert len(select_stamps(timeline(100), replace(SCENES, fps=2.0), shots).stamps) == 20


def test_where_the_picture_stands_still_it_is_said() -> None:
    still = Timeline([0, 10, 20, 500, 510], 600, Fraction(1, 1000))
    selection = select_stamps(still, replace(SCENES, frames=4), [Shot(0, 600, 0, 600)])
    assert selection.stamps == (20, 20, 20, 510)
    assert selection.notes == ("no movement: 2 frames of 4 repeat the previous one",)


@pytest.mark.parametrize(("text", "every"), [("scene", "scene"), ("10", 10.0), ("0.5", 0.5), ("1:30", 90.0)])
def test_lengths_of_windows(text: str, every: object) -> None:
    assert parse_every(text, "--every") == every


@pytest.mark.parametrize("text", ["0", "-1", "scenes", "", "0.001"])
def test_lengths_that_are_none(text: str) -> None:
    with pytest.raises(LlvidError, match=r"--windows must be scene, or 0\.01 seconds or more, got"):
        parse_every(text, "--windows")


def test_a_missing_extra_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    film = make_film(tmp_path / "film.mp4", (20, 20))
    monkeypatch.setitem(sys.modules, "scenedetect", None)
    with pytest.raises(LlvidError, match=r"scenes need the extra 'scenes' \(scenedetect is missing\)") as caught:
        read_frames(film.path, SCENES)
    assert caught.value.hint == "pip install '.[scenes]' in your clone of llvid"


def test_a_missing_library_of_the_system_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    film = make_film(tmp_path / "film.mp4", (20, 20))
    (tmp_path / "scenedetect.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "scenedetect", raising=False)
    with pytest.raises(LlvidError, match=r"scenes need OpenCV, which can't be loaded: libGL\.so\.1: cannot") as caught:
        read_frames(film.path, SCENES)
    assert "opencv-python-headless" in str(caught.value.hint)


def test_static_frames_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "slides.mp4"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=Fraction(10), options={"crf": "23"})
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
        noise = np.random.default_rng(0)
        for number in range(40):
            image = shot(number // 20, 1)[0].astype(int) + noise.integers(-6, 7, (180, 320, 1))
            frame = av.VideoFrame.from_ndarray(image.clip(0, 255).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    sampling = Sampling(frames=8, skip_static=True)
    frames = read_frames(path, sampling)
    assert frames.times_seconds == (0.0, 2.0)
    assert frames.notes == ("6 frames that do not differ from the last one left out",)
    assert frames.images.base is None  # the others are not kept in memory
    assert [frame.time_seconds for frame in iter_frames(path, sampling)] == [0.0, 2.0]
    assert read_frames(path, replace(sampling, skip_static=False)).frame_count == 8


def test_moving_frames_are_kept(tmp_path: Path) -> None:
    film = make_film(tmp_path / "film.mp4", (40,))
    frames = read_frames(film.path, Sampling(frames=8, skip_static=True))
    assert frames.frame_count == 8 and frames.notes == ()


def test_a_key_has_only_what_was_changed_since() -> None:
    first = {"frames": 32, "fps": None, "start_seconds": 0.0, "end_seconds": None, "mode": "uniform"}
    assert Sampling().values() == first
    assert Sampling(skip_static=True, scene_threshold=2.0).values() == {
        **first, "skip_static": True, "scene_threshold": 2.0,
    }  # fmt: skip
