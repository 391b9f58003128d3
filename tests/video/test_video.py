"""The frame reader against the oracle of clips.py: a full sequential decode, bit for bit."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import pytest
from clips import (
    Pixels,
    assert_same,
    break_packets,
    decode_all,
    digest,
    make_clip,
    make_sound,
    oracle_numbers,
    set_matrix,
)

from llava_video_cli.errors import MediaError
from llava_video_cli.video import probe, read_frames
from llava_video_cli.video.limits import Limits
from llava_video_cli.video.sampling import Sampling

MS = Fraction(1, 1000)
GOP8: dict[str, Any] = {"x264-params": "keyint=8:min-keyint=8:scenecut=0:bframes=2"}
NO_B_FRAMES: dict[str, Any] = {"x264-params": "keyint=8:scenecut=0:bframes=0"}
OPEN_GOP8: dict[str, Any] = {"x264-params": "keyint=8:min-keyint=8:scenecut=0:bframes=3:open-gop=1"}
HEVC8: dict[str, Any] = {"x265-params": "keyint=8:min-keyint=8:bframes=3:open-gop=1:log-level=none"}
VARIABLE = [0, 40, 80, 400, 440, 1000, 1033, 1066, 1100, 1900, 1940, 1980, 2500, 2540]


MADE: dict[str, dict[str, Any]] = {
    "plain.mp4": GOP8,
    "plain.mkv": GOP8,
    "late.mp4": {"stamps": range(100, 124), **GOP8},
    "late.mkv": {"stamps": range(100, 124), **GOP8},
    "one_keyframe.mp4": {"x264-params": "keyint=999:scenecut=0"},
    "all_keyframes.mp4": {"x264-params": "keyint=1"},
    "milliseconds.mkv": {"stamps": [round(i * 1000 / 30) for i in range(45)], "time_base": MS, **GOP8},
    "open_gop.ts": OPEN_GOP8,
    "open_gop.mp4": OPEN_GOP8,
    "hevc_open_gop.mp4": {"codec": "libx265", **HEVC8},
    "hevc_open_gop.ts": {"codec": "libx265", **HEVC8},
    "vp8_hidden_frames.webm": {
        "codec": "libvpx", "stamps": range(0, 3000, 50), "time_base": MS, "auto-alt-ref": "1", "lag-in-frames": "16",
        "deadline": "good", "b": "200k", "g": "30",
    },
    "vp9.webm": {"codec": "libvpx-vp9", "auto-alt-ref": "1", "lag-in-frames": "16", "deadline": "good"},
    "av1.mp4": {"codec": "libsvtav1", "stamps": range(60), "preset": "10", "g": "20"},
    "av1_low_delay.mkv": {
        "codec": "libsvtav1", "stamps": range(0, 2000, 50), "time_base": MS, "preset": "10",
        "svtav1-params": "pred-struct=1:scm=1",
    },
    "mpeg2.mpg": {"codec": "mpeg2video", "bf": "2", "g": "8"},
    "mjpeg.mov": {"codec": "mjpeg"},
    "b_frames.avi": {"codec": "mpeg4", "bf": "2", "g": "8"},
    "h264.avi": GOP8,
    "raw.h264": GOP8,
    "fragmented.mov": GOP8,
    "odd.mp4": {"size": (98, 54), **GOP8},
    "one.mp4": {"stamps": [0]},
    "one_late.mkv": {"stamps": [50]},
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for name, options in MADE.items():
        make_clip(folder / name, **options)
    return folder


COUNTS: list[tuple[Literal["uniform", "endpoints"], int]] = [
    ("uniform", 1), ("uniform", 5), ("uniform", 100), ("endpoints", 2), ("endpoints", 8),
]  # fmt: skip
MORE_COUNTS = [(mode, n) for mode, _ in (COUNTS[0], COUNTS[-1]) for n in (1, 2, 5, 8, 32, 100)]


@pytest.mark.parametrize(
    "counts", [COUNTS, pytest.param(MORE_COUNTS, marks=pytest.mark.slow)], ids=["few counts", "more counts"]
)
@pytest.mark.parametrize("name", MADE)
def test_made_clips_equal_a_full_decode(
    made: Path, name: str, counts: list[tuple[Literal["uniform", "endpoints"], int]]
) -> None:
    oracle, info = decode_all(made / name), probe(made / name)
    total = len(oracle)
    assert total == len(MADE[name].get("stamps", range(24)))
    for mode, n in counts:
        frames = read_frames(made / name, Sampling(frames=n, mode=mode))
        count = min(n, total)
        if mode == "uniform":
            numbers = [i * total // count for i in range(count)]
        else:
            numbers = [i * (total - 1) // max(1, count - 1) for i in range(count)]
        assert_same(frames, oracle, numbers)
        assert bool(frames.notes) == (n > total)
        assert list(frames.times_seconds) == sorted(set(frames.times_seconds))
        assert frames.times_seconds[0] == 0
        assert frames.info == info


@pytest.mark.parametrize("name", sorted(set(MADE) - {"b_frames.avi", "h264.avi", "raw.h264"}))
@pytest.mark.usefixtures("only_what_is_needed")
def test_good_clips_are_never_decoded_in_full(made: Path, name: str) -> None:
    for n in (1, 5, 24):
        assert len(read_frames(made / name, Sampling(frames=n)).images) <= n


def test_times_are_those_of_the_pictures(made: Path) -> None:
    for name in ("late.mp4", "late.mkv", "open_gop.ts", "b_frames.avi", "h264.avi"):
        frames = read_frames(made / name, Sampling(frames=6))
        assert frames.times_seconds == pytest.approx([i * 4 / 24 for i in range(6)], abs=0.001)
        assert frames.info.duration_seconds == pytest.approx(1, abs=0.001)
        assert frames.info.average_fps == pytest.approx(24, abs=0.02)


@pytest.mark.parametrize("suffix", ["mkv", "mp4", "ts"])
def test_variable_rate(tmp_path: Path, suffix: str) -> None:
    clip = make_clip(tmp_path / f"variable.{suffix}", VARIABLE, MS, **GOP8)
    oracle = decode_all(clip)
    for n in (1, 3, 4, 8, 13, 14, 20):
        frames = read_frames(clip, Sampling(frames=n))
        end = VARIABLE[0] + round(frames.info.duration_seconds * 1000)
        numbers = oracle_numbers(VARIABLE, end, n)
        assert_same(frames, oracle, numbers)
        assert frames.times_seconds == pytest.approx([VARIABLE[number] / 1000 for number in numbers], abs=1e-6)
    assert end > VARIABLE[-1]


def test_keyframes_are_a_part_of_the_record(made: Path) -> None:
    frames = read_frames(made / "plain.mp4", Sampling(frames=6, mode="keyframes"))
    assert_same(frames, decode_all(made / "plain.mp4"), [0, 8, 16])
    assert frames.times_seconds == pytest.approx([0, 8 / 24, 16 / 24])
    assert frames.sampling.mode == "keyframes"
    assert "keyframes" in frames.notes[0]


def test_only_a_part(made: Path) -> None:
    for name in ("plain.mp4", "late.mkv", "open_gop.ts", "b_frames.avi"):
        frames = read_frames(made / name, Sampling(frames=3, start_seconds=0.5, end_seconds=0.75))
        assert_same(frames, decode_all(made / name), [12, 14, 16])
    with pytest.raises(MediaError, match=r"plain.mp4: the start \(5 s\) is past the end"):
        read_frames(made / "plain.mp4", Sampling(start_seconds=5))


# (a, b, c, d) -> what numpy does, degrees
TURNS: dict[tuple[int, int, int, int], tuple[Callable[[Pixels], Pixels], int]] = {
    (1, 0, 0, 1): (lambda p: p, 0),
    (0, 1, -1, 0): (lambda p: p[::-1].transpose(1, 0, 2), 90),
    (-1, 0, 0, -1): (lambda p: p[::-1, ::-1], 180),
    (0, -1, 1, 0): (lambda p: p.transpose(1, 0, 2)[::-1], 270),
    (-1, 0, 0, 1): (lambda p: p[:, ::-1], 0),
    (1, 0, 0, -1): (lambda p: p[::-1], 180),
    (0, 1, 1, 0): (lambda p: p.transpose(1, 0, 2), 90),
    (0, -1, -1, 0): (lambda p: p[::-1, ::-1].transpose(1, 0, 2), 270),
}


@pytest.mark.parametrize("matrix", TURNS)
def test_rotation_and_mirror(made: Path, tmp_path: Path, matrix: tuple[int, int, int, int]) -> None:
    clip = tmp_path / "turned.mp4"
    shutil.copy(made / "plain.mp4", clip)
    frames = read_frames(set_matrix(clip, *matrix), Sampling(frames=3))
    turn, degrees = TURNS[matrix]
    stored = read_frames(made / "plain.mp4", Sampling(frames=3)).images
    assert [digest(image) for image in frames.images] == [digest(turn(image)) for image in stored]
    assert_same(frames, decode_all(clip), [0, 8, 16])
    assert frames.info.rotation_degrees == degrees
    assert frames.images.shape[1:] == (frames.info.height, frames.info.width, 3)
    assert (frames.info.width > frames.info.height) == (degrees % 180 == 0)


def test_a_broken_packet_gives_the_nearest_good_frames(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "llava_video_cli")
    clip = break_packets(make_clip(tmp_path / "broken.mp4", **NO_B_FRAMES), [11])
    oracle = decode_all(clip)
    good = [round(stamp * 24 / 12288) for stamp, _ in oracle if stamp is not None]
    assert 11 not in good
    assert len(good) < 24
    wanted = [i * 24 // 8 for i in range(8)]
    nearest = [min(good, key=lambda k: (abs(k - target), k)) for target in wanted]
    frames = read_frames(clip, Sampling(frames=8))
    assert_same(frames, oracle, [good.index(k) for k in dict.fromkeys(nearest)])
    frames = read_frames(clip, Sampling(frames=24))
    assert_same(frames, oracle, list(range(len(good))))
    assert frames.times_seconds == pytest.approx([k / 24 for k in good])
    broken, lost = frames.notes
    assert broken.endswith("broken packet skipped; the nearest good frames were used")
    assert lost.startswith(f"{24 - len(good)} of the requested frames")
    assert "broken.mp4' is decoded again" in caplog.text and "broken.mp4' is decoded in full" in caplog.text


def test_a_broken_keyframe(tmp_path: Path) -> None:
    clip = break_packets(make_clip(tmp_path / "broken.mp4", **GOP8), [8, 9])
    oracle = decode_all(clip)
    frames = read_frames(clip, Sampling(frames=100))
    assert_same(frames, oracle, list(range(len(oracle))))
    assert "2 broken packets skipped" in " ".join(frames.notes) or "broken packet" in " ".join(frames.notes)


def test_an_error_names_the_file_once(tmp_path: Path) -> None:
    names = ("nothing_left.avi", "nothing_left.mp4", "nothing_left.mkv")
    clips = [make_clip(tmp_path / name, codec="mpeg4", bf="2", g="8") for name in names]
    for clip in clips:
        break_packets(clip, range(24))
    late, slow = Sampling(start_seconds=5), Limits(seconds=1e-9)
    whole = [make_clip(tmp_path / name, codec="mpeg4", bf="2", g="8") for name in ("whole.avi", "whole.mp4")]
    cases = [(clip, Sampling(), Limits(), "no frame can be decoded") for clip in clips[:2]]
    cases += [(clips[2], Sampling(), Limits(), "no frame can be decoded: the file is damaged or cut short")]
    cases += [(clip, late, Limits(), "the start (5 s) is past the end of the video (1.000 s)") for clip in whole]
    cases += [(clip, Sampling(), slow, "not read within 1e-09 seconds") for clip in whole]
    for clip, sampling, limits, words in cases:
        with pytest.raises(MediaError) as raised:
            read_frames(clip, sampling, limits=limits)
        assert str(raised.value) == f"{clip}: {words}"


def test_a_break_elsewhere_costs_nothing(tmp_path: Path) -> None:
    clip = break_packets(make_clip(tmp_path / "broken.mp4", **GOP8), [18])
    assert read_frames(clip, Sampling(frames=2)).notes == ()


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_cut_off_files_give_what_is_there(tmp_path: Path, share: float) -> None:
    for name in ("cut.mkv", "cut.ts"):
        clip = make_clip(tmp_path / name, range(60), **GOP8)
        clip.write_bytes(clip.read_bytes()[: int(clip.stat().st_size * share)])
        oracle = decode_all(clip)
        assert 0 < len(oracle) < 60
        frames = read_frames(clip, Sampling(frames=100))
        assert_same(frames, oracle, list(range(len(oracle))))


def test_a_change_of_size(tmp_path: Path) -> None:
    first, second = (
        make_clip(tmp_path / "a.ts", **GOP8),
        make_clip(tmp_path / "b.ts", range(24, 48), size=(48, 32), **GOP8),
    )
    clip = tmp_path / "both.ts"
    clip.write_bytes(first.read_bytes() + second.read_bytes())
    frames = read_frames(clip, Sampling(frames=6))
    assert frames.images.shape == (6, 64, 96, 3)
    assert_same(read_frames(clip, Sampling(frames=1)), decode_all(clip), [0])
    assert any("frame size changes" in note for note in frames.notes)


def test_what_is_no_video_is_an_error_with_a_reason(tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video\n" * 100)
    (tmp_path / "noise.mp4").write_bytes(bytes(range(256)) * 400)
    make_sound(tmp_path / "sound.m4a")
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png")
    cut = make_clip(tmp_path / "cut.mp4")
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 6 // 10])
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "clips").mkdir()
    make_clip(tmp_path / "clips" / "one.mp4")
    cases = {
        "absent.mp4": "no such file", "clips": "a folder of videos", "empty.mp4": "the file is empty",
        "text.mp4": "not a video", "noise.mp4": "not a video|no picture|no video stream",
            "sound.m4a": "no video stream",
        "picture.png": "not a video", "cut.mp4": "the file is cut short", "pipe": "not a regular file",
        "a\0b": "can't be opened",
    }  # fmt: skip
    for name, words in cases.items():
        for read in (probe, read_frames):
            with pytest.raises(MediaError, match=words):
                read(f"{tmp_path}/{name}")
    with pytest.raises(MediaError, match="not a regular file"):
        probe("/dev/zero")


def test_playlists_and_protocols_reach_no_other_file(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(made / "open_gop.ts", tmp_path / "other.ts")
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nother.ts\n#EXT-X-ENDLIST\n"
    (tmp_path / "list.m3u8").write_text(playlist)
    (tmp_path / "list.mp4").write_text(playlist)
    (tmp_path / "list.ffconcat").write_text("ffconcat version 1.0\nfile other.ts\n")
    (tmp_path / "concat.mp4").write_text("ffconcat version 1.0\nfile other.ts\n")
    monkeypatch.chdir(tmp_path)
    for name in ("list.m3u8", "list.mp4", "list.ffconcat", "concat.mp4", "concat:other.ts|other.ts", "file:other.ts"):
        with pytest.raises(MediaError):
            probe(name)
    for name in (
        "http://example.invalid/a.mp4",
        "-",
        "subfile,,start,0,end,0,,:other.ts",
        "data:video/mp4;base64,AA==",
    ):
        with pytest.raises(MediaError, match="no such file"):
            probe(name)


@pytest.mark.parametrize(
    "name", ["-n.mp4", "concat:a|b.mp4", "new\nline\x1b[31m.mp4", "[bold].mp4", "50%03d.mp4", "näme é.mp4"]
)
def test_odd_names_are_just_names(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    shutil.copy(made / "plain.mp4", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert read_frames(name, Sampling(frames=2)).info.path == name


def test_nothing_is_written_to_stdout_or_stderr(tmp_path: Path) -> None:
    clip = break_packets(make_clip(tmp_path / "broken.mp4", **GOP8), [3, 11])
    code = "import sys; from llava_video_cli.video import read_frames; read_frames(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, str(clip)], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_absurd_amounts_of_frames_are_refused(made: Path) -> None:
    with pytest.raises(MediaError, match="24 frames of 96x64 need"):
        read_frames(made / "plain.mp4", limits=Limits(bytes=100_000))


def test_the_last_picture_of_avi_stays_no_longer_than_the_others(tmp_path: Path) -> None:
    """Its time is not in the file, as B-frames have moved all times on; the picture before it is a still."""
    stamps = [0, 1, 2, 4, 5, 9, 10, 11, 12, 60, 61]
    clip = make_clip(tmp_path / "film.avi", stamps, codec="mpeg4", bf="1", g="8")
    frames = read_frames(clip, Sampling(frames=64))
    assert [round(24 * time) for time in frames.times_seconds] == stamps
    assert frames.info.duration_seconds == pytest.approx(62 / 24)
