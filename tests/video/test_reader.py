"""How much is decoded, by whom, and within which limits: the same frames, whatever the way."""

from __future__ import annotations

import errno
import gc
import json
import os
import re
import struct
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import av
import numpy as np
import pytest
from av import VideoFrame
from clips import break_packets, copy_packets, digest, make_clip, sample

from llava_video_cli.errors import MediaError
from llava_video_cli.system.machine import usable_cores
from llava_video_cli.video import Frames, decode, demux, iter_frames, packet_index, parallel, probe, read_frames
from llava_video_cli.video.decode import checked_index, use_stamps
from llava_video_cli.video.demux import OpenVideo, held_packets, media_errors, open_video
from llava_video_cli.video.limits import Clock, Deadline, Limits
from llava_video_cli.video.mp4_index import sample_table
from llava_video_cli.video.parallel import (
    Converter,
    DecodedFrame,
    decode_targets,
    decoded_ahead,
)
from llava_video_cli.video.sampling import Sampling

X264: dict[str, Any] = {"bf": "2", "g": "8", "preset": "ultrafast"}
LARGE: dict[str, Any] = {"qp": "1", "size": (192, 128), **X264}  # too many bytes to be decoded without threads


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clip with 15 keyframes."""
    return make_clip(tmp_path_factory.mktemp("long") / "long.mp4", range(120), **LARGE)


def digests(frames: Frames) -> list[str]:
    return [digest(image) for image in frames.images]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").exists() else 0


def decoding_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("llvid-decode")]


def test_one_at_a_time_gives_the_same_frames(long: Path) -> None:
    for sampling in (Sampling(frames=8), Sampling(frames=200), Sampling(fps=3, start_seconds=1), Sampling(frames=1)):
        whole = read_frames(long, sampling)
        single = list(iter_frames(long, sampling))
        assert [digest(frame.image) for frame in single] == digests(whole)
        assert tuple(frame.time_seconds for frame in single) == whole.times_seconds


@pytest.mark.parametrize("cores", [1, 2])
def test_a_resized_frame_is_let_go_before_the_next_one_comes(long: Path, cores: int) -> None:
    seen: list[weakref.ref[Any]] = []

    def halve(image: Any) -> Any:
        assert not any(full() is not None for full in seen), "a frame of full size is still held"
        seen.append(weakref.ref(image))
        return image[::2, ::2].copy()

    sampling, limits = Sampling(frames=8), Limits(cores=cores)
    small = read_frames(long, sampling, limits=limits, resize=halve)
    single = [frame.image for frame in iter_frames(long, sampling, limits=limits, resize=halve)]
    assert len(seen) == 16 and [digest(image) for image in single] == digests(small)
    assert small.images.shape == (8, 64, 96, 3)


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("film.mkv", "libx264", X264),
        ("film.mkv", "libx265", {"preset": "ultrafast", "x265-params": "keyint=8:log-level=none"}),
        ("film.webm", "libvpx", {"g": "8", "auto-alt-ref": "1", "lag-in-frames": "16"}),
        ("film.gif", "gif", {}),
        ("film.mkv", "mpeg4", {"g": "8"}),
    ],
)
def test_packets_that_were_kept_give_what_a_seek_gives(
    name: str, codec: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With hidden pictures of VP8, and keyframes between which a decoder begins anew."""
    clip = make_clip(tmp_path / name, range(48), codec=codec, **options)

    def frames() -> list[list[str]]:
        return [
            digests(read_frames(clip, Sampling(frames=count), limits=Limits(cores=cores)))
            for count in (1, 3, 48)
            for cores in (1, 2)
        ]

    monkeypatch.setattr(parallel, "_retry", None)  # each is decoded right at once
    kept = frames()
    assert len({*kept[-1]}) == 48
    with open_video(str(clip), Deadline(str(clip), Limits())) as video:
        assert checked_index(video) is not None and video.held
    monkeypatch.setattr(packet_index, "_HELD_BYTES", 0)
    assert frames() == kept


def test_packets_are_kept_of_small_files_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = make_clip(tmp_path / "film.mkv", range(48))
    for most, kept in ((2**23, 49), (10_000, 0)):
        monkeypatch.setattr(packet_index, "_HELD_BYTES", most)
        with open_video(str(clip), Deadline(str(clip), Limits())) as video:
            assert checked_index(video) is not None
            assert len(video.held) == kept, "with the empty one at the end"


@pytest.mark.parametrize(("codec", "is_ahead"), [("libx264", True), ("libvpx", False), ("ffv1", False)])
def test_only_pictures_whose_decoder_reports_damage_are_decoded_ahead(
    codec: str, is_ahead: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others show in damaged parts what is in a buffer: with more pictures alive, something else."""
    clip, used = make_clip(tmp_path / "film.mkv", range(24), codec=codec), list[bool]()

    def seeing(decoded: Iterator[tuple[int, VideoFrame]]) -> Iterator[tuple[int, VideoFrame]]:
        used.append(True)
        return decoded_ahead(decoded)

    monkeypatch.setattr(parallel, "decoded_ahead", seeing)
    read_frames(clip, Sampling(frames=3), limits=Limits(cores=1))
    assert bool(used) == is_ahead


def test_no_packet_is_read_behind_the_last_one_that_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a file's end, PyAV loses a Ctrl-C that comes just then: one of 300 where a small file is read in a loop."""
    clip, seen = make_clip(tmp_path / "film.mp4", range(48), **X264), list[int]()

    def seeing(video: OpenVideo) -> Iterator[Any]:
        for packet in demux.demux(video):
            seen.append(packet.size)
            yield packet

    monkeypatch.setattr(decode, "demux", seeing)
    for count, most in ((48, 48), (2, 48)):
        seen.clear()
        read_frames(clip, Sampling(frames=count), limits=Limits(cores=1))
        assert 0 < len(seen) <= most and all(seen)


def test_packets_are_not_kept_where_a_seek_tells_of_wrong_stamps(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "film.ts", range(48))
    with open_video(str(clip), Deadline(str(clip), Limits())) as video:
        assert checked_index(video) is not None
        assert not video.held


def test_packets_of_a_large_file_are_not_kept_however_small_they_are(tmp_path: Path) -> None:
    """As those of WebM with alpha, whose second picture is not counted as the packet's content."""
    clip = make_clip(tmp_path / "film.mkv", range(48))
    with clip.open("ab") as file:
        file.write(b"\xec\x10\x80\0\0" + bytes(2**23))  # an element without content, RFC 8794, 11.3.1
    with open_video(str(clip), Deadline(str(clip), Limits())) as video:
        assert checked_index(video) is not None
        assert not video.held


def test_the_limit_of_time_holds_for_packets_that_were_kept(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "film.mkv", range(48))
    with open_video(str(clip), Deadline(str(clip), Limits())) as video:
        index = checked_index(video)
        assert index is not None
        late = replace(video, deadline=Deadline(str(clip), Limits(seconds=0.001)))
        time.sleep(0.01)
        with pytest.raises(MediaError, match=r"not read within 0\.001 seconds"):
            list(held_packets(late, 0, 48))


@pytest.mark.parametrize("keyframes", ["8", "120"])
def test_frames_are_the_same_on_any_number_of_cores(tmp_path: Path, keyframes: str) -> None:
    clip = make_clip(tmp_path / "clip.mp4", range(120), **{**LARGE, "g": keyframes})
    every = digests(read_frames(clip, Sampling(frames=120), limits=Limits(cores=1)))
    assert len(set(every)) == 120
    for sampling in (
        Sampling(frames=120),
        Sampling(frames=32),
        Sampling(fps=30),
        Sampling(frames=32, skip_static=True),
    ):
        expected = read_frames(clip, sampling, limits=Limits(cores=1))
        for cores in (2, 3):
            assert digests(read_frames(clip, sampling, limits=Limits(cores=cores))) == digests(expected)
        if not sampling.fps:
            assert digests(expected) == [every[k * 120 // sampling.frames] for k in range(sampling.frames)]


def test_a_shared_part_that_is_damaged_is_decoded_again_with_what_comes_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A decoder that begins at a damaged keyframe has no earlier picture to show in place of what is lost."""
    clip = break_packets(make_clip(tmp_path / "clip.mp4", range(120), **{**LARGE, "g": "40"}), [90])
    caplog.set_level("DEBUG", "llava_video_cli.video")
    alone, shared = (read_frames(clip, Sampling(frames=120), limits=Limits(cores=cores)) for cores in (1, 2))
    assert digests(shared) == digests(alone)
    assert set(re.findall("decoded again from packet ([0-9]+)", caplog.text)) == {"0"}


def test_lengths_that_look_like_start_codes(tmp_path: Path) -> None:
    """With threads, packets that no other needs are left out: 00 00 01 01 is a length, and no such packet."""
    film = make_clip(tmp_path / "film.mp4", range(48), qp="48", g="48", bf="0")
    clip, length = tmp_path / "clip.mp4", 257
    with av.open(str(film)) as reading, av.open(str(clip), "w") as writing:
        copied = writing.add_stream_from_template(reading.streams.video[0])
        padded = 0
        for packet in (each for each in reading.demux(video=0) if each.size):
            unit = bytes(packet)[4:]
            if packet.is_keyframe or len(unit) > length:
                packet.stream = copied
                writing.mux(packet)
                continue
            padded += 1
            longer = av.Packet(length.to_bytes(4, "big") + unit.ljust(length, b"\0"))
            longer.pts, longer.dts, longer.time_base, longer.stream = packet.pts, packet.dts, packet.time_base, copied
            writing.mux(longer)
    assert padded > 10, "the test needs them"
    with clip.open("ab") as file:
        file.write(struct.pack(">I4s", 2_000_008, b"free") + bytes(2_000_000))  # by their bytes, packets take long
    sampling = Sampling(frames=2, start_seconds=1.5)
    expected = read_frames(clip, sampling, limits=Limits(cores=1))
    assert digests(read_frames(clip, sampling, limits=Limits(cores=2))) == digests(expected)


def test_leaving_early_closes_the_file(long: Path) -> None:
    gc.collect()  # what earlier tests left open
    before = open_files()
    most = 0
    for _ in range(40):  # a worker that took another's container crashed in one of ten
        frames = iter_frames(long, Sampling(frames=8), limits=Limits(cores=2))
        next(frames)
        most = max(most, len(decoding_threads()))
        frames.close()
    assert open_files() == before
    assert not decoding_threads()
    assert most == min(2, usable_cores()) or usable_cores() == 1


@pytest.mark.skipif(usable_cores() == 1, reason="one core converts and decodes in turn")
def test_a_picture_that_is_not_converted_keeps_no_decoder_waiting(tmp_path: Path) -> None:
    """Its range is decoded again, and nobody fetches what the decoder still has of it: it goes on with the next."""
    clip = make_clip(tmp_path / "clip.mp4", range(80), size=(640, 360), preset="ultrafast", g="30", bf="0", qp="48")

    class FailsOnce(Converter):
        threads: ClassVar[list[threading.Thread]] = []

        def convert(self, *arguments: Any, **options: Any) -> DecodedFrame:
            self.threads.append(threading.current_thread())
            if len(self.threads) == 1:
                raise av.error.MemoryError(errno.ENOMEM, "no memory for a moment")
            return super().convert(*arguments, **options)

    with open_video(str(clip), Deadline(str(clip), Limits(cores=2)), probe=False) as video:
        index = checked_index(video)
        assert index is not None
        use_stamps(video, index)
        targets = index.stamps[[*range(9), *range(60, 69)]].tolist()
        found: list[int] = []

        def decode() -> None:
            frames = decode_targets(video, index, targets, FailsOnce(), hold_all=True)
            found.extend(frame.target for frame in frames)

        reader = threading.Thread(target=decode, daemon=True)
        reader.start()
        reader.join(20)
    assert {*FailsOnce.threads} == {reader}, "it converts, while one thread decodes"
    assert found == targets and not reader.is_alive()


def test_decoders_that_wait_for_a_picture_are_let_go_where_none_comes(long: Path) -> None:
    class Fails(Converter):
        def convert(self, target: int, stamp: int, frame: VideoFrame, leads: bool = True) -> DecodedFrame:
            if leads:
                raise RuntimeError("it can't be converted")
            return super().convert(target, stamp, frame, leads)

    raised: list[str] = []

    def decode() -> None:
        with open_video(str(long), Deadline(str(long), Limits(cores=2))) as video:
            index = checked_index(video)
            assert index is not None
            try:
                list(decode_targets(video, index, sorted(index.stamps.tolist()), Fails(), hold_all=True))
            except RuntimeError as error:
                raised.append(str(error))

    reader = threading.Thread(target=decode, daemon=True)
    reader.start()
    reader.join(20)
    assert raised == ["it can't be converted"] and not decoding_threads()


@pytest.mark.skipif(usable_cores() == 1, reason="one core has one decoder")
def test_large_pictures_one_at_a_time_get_fewer_decoders(long: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    for most_bytes in (2**30, 0):
        monkeypatch.setattr(parallel, "_DECODERS_BYTES", most_bytes)
        frames = iter_frames(long, Sampling(frames=8), limits=Limits(cores=2))
        next(frames)
        counts.append(len(decoding_threads()))
        frames.close()
    assert counts == [2, 0], "a single one works in the caller's thread"


def test_threads_don_t_disturb_each_other(long: Path) -> None:
    expected = digests(read_frames(long, Sampling(frames=16)))
    found: list[list[str]] = []
    readers = [
        threading.Thread(target=lambda: found.append(digests(read_frames(long, Sampling(frames=16))))) for _ in range(6)
    ]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    assert found == [expected] * 6


def test_progress_goes_from_start_to_end(long: Path, tmp_path: Path) -> None:
    sequential = make_clip(tmp_path / "b_frames.avi", range(60), codec="mpeg4", bf="2", g="8")
    for clip in (long, sequential):
        shares: list[float] = []
        read_frames(clip, Sampling(frames=8), progress=shares.append)
        assert len(shares) >= 8 and shares == sorted(shares) and shares[0] >= 0 and shares[-1] == 1


def test_limits_are_kept(long: Path) -> None:
    for limits, words in (
        (Limits(seconds=1e-9), "not read within 1e-09 seconds"),
        (Limits(pixels=192 * 128 - 1), "pictures of 192x128 are too large"),
        (Limits(bytes=8 * 192 * 128 * 3 - 1), "8 frames of 192x128 need"),
    ):
        with pytest.raises(MediaError, match=words):
            read_frames(long, Sampling(frames=8), limits=limits)
    for seconds in (1e-4, 2e-4, 4e-4, 1e-3) * 4:  # over while the file is opened
        with pytest.raises(MediaError, match="not read within"):
            read_frames(long, Sampling(frames=120), limits=Limits(seconds=seconds))
    assert read_frames(long, Sampling(frames=8), limits=Limits(pixels=192 * 128, bytes=8 * 192 * 128 * 3)).images.any()
    assert len(list(iter_frames(long, Sampling(frames=8), limits=Limits(bytes=2 * 192 * 128 * 3)))) == 8


def test_the_limit_of_time_leaves_out_what_the_caller_does(long: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock = Clock()
    now[0] = 1.0
    with clock.paused():
        now[0] = 6.0
        assert clock.seconds == 1.0
    assert clock.seconds == 1.0
    seen = 0
    for _ in iter_frames(long, Sampling(frames=8), limits=Limits(seconds=2.0)):
        now[0] += 0.3
        seen += 1
    assert seen == 8


def test_a_size_that_grows_on_the_way_keeps_the_limit(tmp_path: Path) -> None:
    small, large = (
        make_clip(tmp_path / "a.ts", **X264),
        make_clip(tmp_path / "b.ts", range(24, 48), size=(960, 640), preset="ultrafast"),
    )
    both = tmp_path / "both.ts"
    both.write_bytes(small.read_bytes() + large.read_bytes())
    assert read_frames(both, Sampling(frames=8)).images.shape == (8, 64, 96, 3)
    frames = read_frames(both, Sampling(frames=48), limits=Limits(pixels=96 * 64))
    assert frames.images.shape[1:] == (64, 96, 3)
    assert max(frames.times_seconds) < 1.1


@pytest.mark.parametrize("name", ["plain.mp4", "apart.mov", "variable.mp4", "fast_start.mp4"])
def test_the_table_in_the_header_tells_what_the_packets_tell(tmp_path: Path, name: str) -> None:
    stamps = [0, 40, 90, 200, 240, 700, 720] if name == "variable.mp4" else range(40)
    base = Fraction(1, 1000) if name == "variable.mp4" else Fraction(1, 24)
    clip = make_clip(tmp_path / name, stamps, base, **X264)
    with av.open(str(clip)) as container:
        stream = container.streams.video[0]
        table = sample_table(str(clip), stream.id)
        packets = [packet for packet in container.demux(stream) if packet.size]
    assert table is not None
    times = np.array([(packet.pts, packet.dts) for packet in packets])
    assert (times[:, 0] - times[0, 0] == table.presentation - table.presentation[0]).all()
    assert (times[:, 1] - times[0, 1] == table.decoding).all()
    assert [k for k, packet in enumerate(packets) if packet.is_keyframe] == table.keys.tolist()


def test_no_table_is_made_up(tmp_path: Path, long: Path) -> None:
    assert sample_table(str(long), 99) is None
    assert sample_table(str(tmp_path / "none.mp4"), 1) is None
    assert sample_table(str(make_clip(tmp_path / "other.mkv", **X264)), 1) is None
    for name in ("edit_list.mp4", "fragmented.mp4"):
        assert sample_table(str(sample(name)), 1) is None
    content = long.read_bytes()
    scale, keys = content.index(b"mvhd") + 16, content.index(b"stss") + 12
    for at, number in ((scale, b"\0\0\0\0"), (keys, b"\0\0\0\0"), (keys + 4, b"\x7f\xff\xff\xff")):
        broken = tmp_path / "absurd.mp4"
        broken.write_bytes(content[:at] + number + content[at + 4 :])
        read_frames(broken, Sampling(frames=2))  # FFmpeg makes something of it, and so do we
        assert at == scale or sample_table(str(broken), 1) is None
    for at in range(content.index(b"moov"), len(content), 37):
        broken = tmp_path / "broken.mp4"
        broken.write_bytes(content[:at] + b"\xff\xff\xff\xff" + content[at + 4 :])
        sample_table(str(broken), 1)  # whatever it says, it says so


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("b_frames", [0, 1, 3])
def test_reordering_is_seen_without_decoding(tmp_path: Path, suffix: str, b_frames: int) -> None:
    options: dict[str, Any] = {"bf": str(b_frames), "g": "12", "b-pyramid": "normal", "b_strategy": "0"}
    source = make_clip(tmp_path / "source.mp4", range(48), **options)
    clip = copy_packets(source, tmp_path / f"clip.{suffix}")
    deadline = Deadline(str(clip), Limits())
    with open_video(str(clip), deadline, probe=False) as video, open_video(str(clip), deadline) as probed:
        index = checked_index(video)
        assert index is not None
        video.context.reorder_depth = 0  # as in streams whose headers don't say
        use_stamps(video, index)
        assert (video.is_probed, probed.is_probed) == (False, True)
        assert video.context.reorder_depth == probed.context.reorder_depth == min(b_frames, 2)
    wrong = copy_packets(source, tmp_path / f"wrong.{suffix}", stamp=False)  # in the order of decoding
    with open_video(str(wrong), deadline, probe=False) as video:
        video.context.reorder_depth = 0
        assert (checked_index(video) is None) == (b_frames > 0)


def test_a_size_that_the_header_hides_is_checked(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", size=(960, 16), bf="2")
    content = clip.read_bytes()
    at = content.index(b"avc1", content.index(b"stsd")) + 28
    assert content[at : at + 4] == struct.pack(">HH", 960, 16)
    clip.write_bytes(content[:at] + struct.pack(">HH", 96, 64) + content[at + 4 :])
    for limits in (Limits(pixels=960 * 15), Limits(aspect=59), Limits(side=959)):
        for read in (probe, read_frames):
            with pytest.raises(MediaError, match="pictures of 960x16 are too large"):
                read(clip, limits=limits)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts handles in /proc")
@pytest.mark.parametrize("count", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_damaged_files_cost_an_error_at_most(count: int) -> None:
    command = [sys.executable, str(Path(__file__).parents[1] / "mutate.py"), "--files", str(count), "--seed", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["outcomes"]["frames"] > 8 and result["outcomes"]["refused"] > 8
    assert not result["wrong"] and len(result["handles"]) == 1 and result["threads"] == ["MainThread"]
    assert result["slowest_seconds"] < 15 and result["peak_memory_mib"] < 1500


def test_keyframes_only(long: Path) -> None:
    frames = read_frames(long, Sampling(frames=4, mode="keyframes"))
    every = read_frames(long, Sampling(frames=120))
    assert digests(frames) == [digests(every)[k] for k in (0, 24, 56, 88)]
    assert probe(long).average_fps == pytest.approx(24)


def test_ctrl_c_within_a_lock_stays_ctrl_c() -> None:
    """Python's locks fail where it comes between their steps: with "release unlocked lock"."""
    with pytest.raises(KeyboardInterrupt), media_errors("a.mp4"):
        try:
            raise KeyboardInterrupt
        finally:
            threading.Lock().release()


def test_shots_of_a_part_with_many_digits_on_a_clock_of_hours(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mkv", range(10**11, 10**11 + 2000, 40), Fraction(1, 1000))
    for start, end in ((1 / 7, 10 / 7), (0.1 + 0.2, 1 / 0.9)):
        frames = read_frames(clip, Sampling(frames=3, start_seconds=start, end_seconds=end, mode="scenes"))
        assert all(start - 0.04 < time < end for time in frames.times_seconds)
