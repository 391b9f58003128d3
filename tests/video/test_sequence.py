"""Pictures as the frames of one video: their order, their times, and which of them are decoded."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from clips import make_clip, picture
from PIL import Image

from llava_video_cli import Limits, MediaError, Sampling, UsageError, iter_frames, probe, read_frames
from llava_video_cli.runs.media import read_medium
from llava_video_cli.video import inspect
from llava_video_cli.video.files import PictureList, find, pictures_of, status_of
from llava_video_cli.video.image import is_picture
from llava_video_cli.video.sampling import Timeline, select_stamps

COUNT = 24


def make_pictures(folder: Path, count: int = COUNT, size: tuple[int, int] = (96, 64)) -> Path:
    """Write 1.png, 2.png and so on."""
    folder.mkdir()
    for number in range(count):
        Image.fromarray(picture(number, *size)).save(folder / f"{number + 1}.png")
    return folder


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("sequence") / "frames")


SAMPLINGS: list[Callable[[], Sampling]] = [
    lambda: Sampling(5), lambda: Sampling(5, mode="endpoints"), lambda: Sampling(5, mode="keyframes"),
    lambda: Sampling(fps=0.75), lambda: Sampling(4, start_seconds=2.5, end_seconds=7), lambda: Sampling(100),
]  # fmt: skip


@pytest.mark.parametrize("source_fps", [None, 2.0, 29.97])
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_samplings_choose_by_the_arithmetic_of_videos(
    frames: Path, sampling: Callable[[], Sampling], source_fps: float | None
) -> None:
    wanted = replace(sampling(), source_fps=source_fps)
    if wanted.start_seconds and source_fps == 29.97:
        wanted = replace(wanted, start_seconds=0.1, end_seconds=0.5)
    tick = 1 / Fraction(str(source_fps or 1))
    stamps = select_stamps(Timeline(range(COUNT), COUNT, tick, range(COUNT)), wanted).stamps
    read = read_frames(frames, wanted)
    assert read.times_seconds == tuple(float(stamp * tick) for stamp in stamps)
    expected = np.stack([picture(stamp) for stamp in stamps])
    assert np.array_equal(read.images, expected), "2 comes before 10"
    assert [frame.time_seconds for frame in iter_frames(frames, wanted)] == list(read.times_seconds)
    assert read.info.duration_seconds == float(COUNT * tick)
    assert read.notes[-1] == f"taken as a video of 24 pictures, {source_fps or 1:g} per second (--source-fps)"


def test_a_folder_a_pattern_and_a_list_are_the_same_video(frames: Path) -> None:
    sampling = Sampling(7, source_fps=3)
    whole = read_frames(frames, sampling)
    listed = [frames / f"{number}.png" for number in range(1, COUNT + 1)]
    for source in (f"{frames}/*.png", f"{frames}/[0-9]*.png", listed, tuple(map(str, listed))):
        read = read_frames(source, sampling)
        assert np.array_equal(read.images, whole.images) and read.times_seconds == whole.times_seconds
        assert probe(source, source_fps=3).duration_seconds == 8.0
    backwards = read_frames(listed[::-1], sampling)
    assert np.array_equal(backwards.images[0], picture(COUNT - 1)), "a list keeps its order"
    assert probe(frames).codec == "png" and probe(frames).average_fps == 1.0 and probe(frames).width == 96


def test_only_the_chosen_pictures_are_decoded(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "many", 4)
    chosen = [1, 251, 501, 751]
    for number in range(1, 1001):
        target = folder / f"{number:04}.png"
        target.write_bytes(b"no picture" if number not in chosen else (folder / "1.png").read_bytes())
    for number in range(1, 5):
        (folder / f"{number}.png").unlink()
    read = read_frames(folder, Sampling(4))
    assert read.times_seconds == (0, 250, 500, 750) and len(read.notes) == 1


def test_a_broken_picture_is_replaced_by_the_nearest_one(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "frames", 8)
    (folder / "3.png").write_bytes(b"")
    (folder / "4.png").write_bytes((folder / "5.png").read_bytes()[:60])
    read = read_frames(folder, Sampling(4))
    assert read.times_seconds == (0, 1, 4, 6)
    assert f"1 picture skipped, the nearest ones were used: {folder}/3.png: the file is empty" in read.notes
    for number in range(1, 9):
        (folder / f"{number}.png").write_bytes(b"")
    with pytest.raises(MediaError, match=r"1\.png: the file is empty"):
        read_frames(folder)
    with pytest.raises(MediaError, match=r"1\.png: the file is empty"):
        probe(folder)


def test_pictures_of_other_sizes_are_fitted_into_the_first_ones(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "frames", 2)
    Image.new("RGB", (64, 96), (255, 255, 255)).save(folder / "3.png")
    read = read_frames(folder)
    assert read.images.shape == (3, 64, 96, 3)
    assert read.images[2, 32, 48].tolist() == [255, 255, 255] and read.images[2, 32, 2].tolist() == [0, 0, 0]
    assert all(frame.image.flags.writeable for frame in iter_frames(folder)), "or torch warns"
    assert "the pictures differ in size: all are fitted into 96x64, the first one's size" in read.notes


def test_what_is_no_sequence_is_an_error_with_the_next_step(tmp_path: Path) -> None:
    videos = tmp_path / "my clips"
    videos.mkdir()
    make_clip(videos / "a.mp4")
    with pytest.raises(MediaError, match="a folder of videos") as error:
        read_frames(videos)
    assert error.value.hint == f"`llvid caption '{videos}' --prompt QUESTION` asks about each of them"
    with pytest.raises(MediaError, match="these are videos"):
        read_frames(f"{videos}/*.mp4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(MediaError, match="no pictures in it"):
        read_frames(tmp_path / "empty")
    with pytest.raises(MediaError, match="no pictures of that name"):
        read_frames(f"{tmp_path}/frame_*.jpg")
    with pytest.raises(MediaError, match="a list of pictures is empty"):
        read_frames([])
    with pytest.raises(MediaError, match="no such file") as error:
        read_frames(tmp_path / "frame_%04d.jpg")
    assert error.value.hint == f"write * for the numbers: '{tmp_path}/frame_*.jpg'"
    with pytest.raises(UsageError, match="source_fps must be a number above 0"):
        Sampling(source_fps=0)


def test_videos_and_hidden_files_beside_the_pictures_are_left_out(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "frames", 3)
    make_clip(folder / "a.mp4")
    (folder / ".4.png").write_bytes(b"hidden")
    (folder / "notes.txt").touch()
    read = read_frames(folder)
    assert len(read.images) == 3 and "videos beside the pictures are left out: 1" in read.notes


def test_source_fps_is_never_ignored(frames: Path, tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "a.mp4")
    sampling = Sampling(2, source_fps=2)
    assert any("(source_fps) is not used" in line for line in read_medium(str(clip), sampling).notes)
    assert any("(source_fps) is not used" in line for line in read_medium(str(frames / "1.png"), sampling).notes)
    assert not read_medium(str(frames / "1.png"), Sampling()).notes
    assert not read_medium(str(clip), Sampling(2)).notes


def test_limits_hold_for_each_picture_and_for_all_frames(frames: Path) -> None:
    with pytest.raises(MediaError, match="too large"):
        read_frames(frames, limits=Limits(still_pixels=100))
    with pytest.raises(MediaError, match="24 frames of 96x64 need"):
        read_frames(frames, limits=Limits(bytes=100_000))
    with pytest.raises(MediaError, match="not read within"):
        read_frames(frames, limits=Limits(seconds=1e-9))


def test_a_name_that_looks_like_a_pattern_is_a_file_if_it_is_there(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip [1080p].mp4")
    assert len(read_frames(clip, Sampling(2)).images) == 2
    assert not is_picture(f"{tmp_path}/*.png")


def test_static_pictures_and_windows(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "frames", 6)
    for number in (2, 3):
        (folder / f"{number}.png").write_bytes((folder / "1.png").read_bytes())
    read = read_frames(folder, Sampling(6, skip_static=True))
    assert read.times_seconds[:2] == (0, 3)
    video = inspect(folder, source_fps=2)
    windows = video.windows(1.0, Sampling(2, source_fps=2))
    assert [video.read(window).times_seconds for window in windows] == [(0, 0.5), (1, 1.5), (2, 2.5)]


def test_shots_are_found_in_pictures(tmp_path: Path) -> None:
    pytest.importorskip("scenedetect", reason="needs the extra 'scenes'")
    folder = tmp_path / "frames"
    folder.mkdir()
    for number in range(40):
        colour = (200, 30, 30) if number < 20 else (20, 60, 220)
        Image.new("RGB", (96, 64), colour).save(folder / f"{number}.png")
    read = read_frames(folder, Sampling(4, mode="scenes", source_fps=10))
    assert read.shots == ((0, 2), (2, 4)) and [time < 2 for time in read.times_seconds] == [True, True, False, False]


def test_the_status_of_a_sequence_changes_with_each_picture(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "frames", 3)
    before = status_of(str(folder))
    assert status_of(str(folder)) == before == status_of(f"{folder}/*.png")
    os.utime(folder / "2.png", ns=(1, 1))
    changed = status_of(str(folder))
    assert changed != before
    (folder / "2.png").rename(folder / "9.png")
    assert status_of(str(folder)) != changed


def test_folders_are_found_as_videos(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make_pictures(tmp_path / name, 2)
    make_clip(tmp_path / "c.mp4")
    found = list(find([str(tmp_path)], recursive=True, as_video=True))
    assert [getattr(each, "path", each) for each in found] == [f"{tmp_path}/{name}" for name in ("a", "b", "c.mp4")]
    (one,) = find([f"{tmp_path}/a/"], as_video=True)
    assert getattr(one, "path", one) == f"{tmp_path}/a"
    (error,) = find([f"{tmp_path}/a/1.png"], as_video=True)
    assert isinstance(error, MediaError) and "one picture" in str(error)
    assert len(pictures_of(f"{tmp_path}/a")[0]) == 2


def test_a_list_of_pictures_is_text_and_stays_itself() -> None:
    one, other = PictureList(["a.png", "b.png", "d.png"]), PictureList(["a.png", "c.png", "d.png"])
    assert str(one) == str(other) == "a.png ... d.png"
    assert one != other and len({one, other, PictureList(one.paths)}) == 2
    assert pickle.loads(pickle.dumps(one)) == one


def test_a_pattern_may_be_in_a_folder_whose_name_looks_like_one(tmp_path: Path) -> None:
    folder = make_pictures(tmp_path / "[2] Film*", 3)
    expected = tuple(str(folder / f"{number}.png") for number in (1, 2, 3))
    assert pictures_of(f"{folder}/*.png")[0] == pictures_of(f"{tmp_path}/*Film*/?.png")[0] == expected
