"""Sound: on the clock of the frames in every container, bounded for hostile tracks, and the samples of others."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from clips import make_clip, sample
from numpy.typing import NDArray
from sounds import heard_beeps, make_film

from llava_video_cli import MediaError
from llava_video_cli.video import sound
from llava_video_cli.video.demux import open_container
from llava_video_cli.video.limits import Deadline, Limits
from llava_video_cli.video.sound import RATE, SoundChunk, clock_start_seconds, has_sound, iter_sound

BEEPS = (1.5, 3.25, 4.75)


@pytest.mark.parametrize(
    ("name", "shift", "options"),
    [
        ("plain.mp4", 0.0, {}),
        ("late picture.mp4", 0.0, {"first_stamp": 24}),
        ("late picture.mkv", 0.0, {"first_stamp": 24}),
        ("late sound.mp4", 0.0, {"sound_from": 1.0}),
        ("late sound.mkv", 0.0, {"sound_from": 1.0}),
        ("fragments.mp4", 0.0, {"first_stamp": 24, "movflags": "frag_keyframe+delay_moov"}),
        ("variable rate.mkv", 0.0, {"stamps": [0, 1, 2, 40, 41, 90, 91, 92, 93, 140]}),
        ("broadcast.ts", 0.0, {"codec": "mp2", "first_stamp": 12}),
        ("aac.ts", 0.0, {"first_stamp": 12}),
        ("mp3.avi", 0.0, {"codec": "libmp3lame", "rate": 44_100, "video_codec": "mpeg4"}),
        ("b frames.avi", 0.0, {"codec": "libmp3lame", "rate": 44_100}),
        ("opus.webm", 0.0, {"codec": "libopus", "video_codec": "libvpx"}),
        ("opus late.webm", 0.0, {"codec": "libopus", "video_codec": "libvpx", "first_stamp": 24}),
        ("ogg.ogv", 0.0, {"codec": "libopus", "video_codec": "libvpx"}),
        ("flash.flv", 0.0, {"rate": 44_100, "video_codec": "flv1"}),
        ("edit list.mp4", 0.4, {"first_stamp": 24, "sound_from": 0.4, "rate": 8000}),
        ("sound first.mkv", 0.0, {"first_stamp": 48}),
        ("pcm.mov", 0.0, {"codec": "pcm_s16le"}),
        ("flac.mkv", 0.0, {"codec": "flac"}),
        ("old.asf", 0.0, {"codec": "mp2", "video_codec": "wmv2"}),
    ],
)  # fmt: skip
def test_beeps_are_heard_when_they_are_seen(tmp_path: Path, name: str, shift: float, options: dict[str, Any]) -> None:
    path = make_film(tmp_path / name, BEEPS, **options)
    assert has_sound(path)
    assert heard_beeps(iter_sound(path)) == pytest.approx([time - shift for time in BEEPS], abs=0.05)


def samples(chunks: list[SoundChunk]) -> NDArray[np.float32]:
    return np.concatenate([chunk.samples for chunk in chunks])


def pieces(path: Path, seconds: float, beeps: tuple[float, ...], *parts: tuple[float, float]) -> Path:
    """A transport stream of these parts `[start, end)` of one of so many seconds, one after the other."""
    content = make_film(path, beeps, seconds, video_codec=None).read_bytes()
    bounds = [[round(len(content) * second / seconds / 188) * 188 for second in part] for part in parts]
    path.write_bytes(b"".join(content[start:end] for start, end in bounds))
    return path


def length_seconds(path: Path) -> float:
    return sum(len(chunk.samples) for chunk in iter_sound(path)) / RATE


def test_repetitions_are_left_out(tmp_path: Path) -> None:
    path = pieces(tmp_path / "a.ts", 12.0, (1.0, 5.0, 9.0, 11.0), (0.0, 8.0), (2.0, 10.0), (4.0, 12.0))
    assert heard_beeps(iter_sound(path)) == pytest.approx([1.0, 5.0, 9.0, 11.0], abs=0.06)
    assert length_seconds(path) == pytest.approx(12.0, abs=0.1)


def test_sound_goes_on_where_the_clock_restarts(tmp_path: Path) -> None:
    path = pieces(tmp_path / "a.ts", 14.0, (1.0,), (0.0, 14.0), (0.0, 14.0))
    assert heard_beeps(iter_sound(path)) == pytest.approx([1.0, 15.0], abs=0.07)
    back = pieces(tmp_path / "b.ts", 8.0, (1.0,), (0.0, 8.0), *[(2.0, 6.0)] * 3)
    assert length_seconds(back) == pytest.approx(10.0, abs=0.2), "what is repeated for more than 10 s is no repetition"


def test_a_short_gap_is_kept_and_stamps_may_be_a_little_off(tmp_path: Path) -> None:
    gap = make_film(tmp_path / "gap.mkv", (1.0, 4.5), gaps=[(2.0, 2.2)], video_codec=None)
    assert heard_beeps(iter_sound(gap)) == pytest.approx([1.0, 4.5], abs=0.05)
    source, path = make_film(tmp_path / "a.mka", BEEPS, video_codec=None), tmp_path / "b.mka"
    with av.open(str(source)) as reading, av.open(str(path), "w") as writing:
        copied = writing.add_stream_from_template(reading.streams.audio[0])
        for number, packet in enumerate(reading.demux(audio=0)):
            if packet.pts is not None and packet.dts is not None:
                packet.pts, packet.dts, packet.stream = (
                    packet.pts + number % 2 * 20,
                    packet.dts + number % 2 * 20,
                    copied,
                )
                writing.mux(packet)
    assert np.array_equal(samples(list(iter_sound(path))), samples(list(iter_sound(source))))


def test_the_format_may_change_within_a_file(tmp_path: Path) -> None:
    path = make_film(tmp_path / "a.ts", (1.0, 5.9), 6.2, video_codec=None)
    second = make_film(tmp_path / "b.ts", (7.0, 11.0), 12.0, video_codec=None, rate=44_100, sound_from=6.2)
    path.write_bytes(path.read_bytes() + second.read_bytes())
    assert heard_beeps(iter_sound(path)) == pytest.approx([1.0, 5.9, 7.0, 11.0], abs=0.06)
    assert length_seconds(path) == pytest.approx(12.0, abs=0.1)


def test_gaps_are_silent(tmp_path: Path) -> None:
    """A gap of 1.5 s is filled; behind one of 7 s the sound begins at a later time."""
    path = make_film(tmp_path / "gaps.mkv", (1.0, 4.5, 13.0), 14.0, gaps=[(2.0, 3.5), (5.0, 12.0)])
    chunks = list(iter_sound(path))
    assert heard_beeps(chunks) == pytest.approx([1.0, 4.5, 13.0], abs=0.05)
    assert sum(len(chunk.samples) for chunk in chunks) / RATE == pytest.approx(7.0, abs=0.1)
    ends = [chunk.end_seconds for chunk in chunks[:-1]]
    starts = [chunk.start_seconds for chunk in chunks[1:]]
    jumps = [start - end for end, start in zip(ends, starts, strict=True)]
    assert max(jumps) == pytest.approx(7.0, abs=0.1) and sorted(jumps)[-2] < 1e-6


@pytest.mark.parametrize("suffix", ["mp4", pytest.param("mkv", marks=pytest.mark.slow), "ts", "mp3"])
def test_a_part_is_what_the_whole_has_there(tmp_path: Path, suffix: str) -> None:
    codec = "libmp3lame" if suffix == "mp3" else "aac"
    video = None if suffix == "mp3" else "libx264"
    path = make_film(
        tmp_path / f"long.{suffix}", (2.0, 21.5), 24.0, codec=codec, video_codec=video, stamps=range(0, 576, 24)
    )
    whole, part = samples(list(iter_sound(path))), list(iter_sound(path, 20.25, 22.75))
    assert part[0].start_seconds == pytest.approx(20.25, abs=1e-3)
    assert part[-1].end_seconds == pytest.approx(22.75, abs=1e-3)
    assert heard_beeps(part) == pytest.approx([21.5], abs=0.05)
    first = round((part[0].start_seconds - next(iter_sound(path)).start_seconds) * RATE)
    cut = samples(part)
    assert np.abs(cut - whole[first : first + len(cut)]).max() < 0.2, "a seek may land between two samples"
    assert list(iter_sound(path, 100.0)) == [] and list(iter_sound(path, 0.0, 0.0)) == []


def test_a_part_ends_where_a_piece_has_just_begun(tmp_path: Path) -> None:
    path = make_film(tmp_path / "a.mka", (), 5.0, codec="pcm_s16le", video_codec=None)
    chunks = list(iter_sound(path, end_seconds=2.0 + 1e-5))
    assert [chunk.end_seconds for chunk in chunks] == [2.0] and all(len(chunk.samples) for chunk in chunks)


def test_a_part_begins_with_a_decoder_that_is_right(tmp_path: Path) -> None:
    """AAC needs a packet before the first: at the file's beginning, one stamped below 0."""
    path = make_film(tmp_path / "a.mp4", np.arange(0.0, 3.0, 0.2).tolist(), 3.0, rate=RATE)
    whole = samples(list(iter_sound(path)))
    for start in (0.0, 0.002, 0.3, 2.01, 2.03, 2.05):
        part = samples(list(iter_sound(path, start, start + 0.1)))
        first = round(start * RATE)
        assert np.abs(part - whole[first : first + len(part)]).max() < 0.01


def test_the_samples_are_those_of_faster_whisper(tmp_path: Path) -> None:
    audio = pytest.importorskip("faster_whisper.audio", reason="the extra speech is not installed")
    webm = make_film(tmp_path / "a.webm", BEEPS, codec="libopus", video_codec="libvpx")
    for path in (make_film(tmp_path / "a.mp4", BEEPS), webm):
        assert np.array_equal(samples(list(iter_sound(path))), audio.decode_audio(str(path)))


def test_what_has_no_sound_says_so(tmp_path: Path, clip: Path) -> None:
    assert not has_sound(clip)
    with pytest.raises(MediaError, match="it has no sound"):
        list(iter_sound(clip))
    assert not has_sound(tmp_path), "a folder of pictures"
    unknown = make_film(tmp_path / "a.mka", (), 0.5, codec="flac", video_codec=None)
    unknown.write_bytes(unknown.read_bytes().replace(b"A_FLAC", b"A_NONE"))
    assert not has_sound(unknown)
    for name in ("no.mp4", "text.mp4"):
        (tmp_path / "text.mp4").write_text("text")
        with pytest.raises(MediaError):
            has_sound(tmp_path / name)


def test_a_file_without_pictures_begins_with_its_sound(tmp_path: Path) -> None:
    path = make_film(tmp_path / "a.mp3", BEEPS, codec="libmp3lame", rate=44_100, video_codec=None)
    assert heard_beeps(iter_sound(path)) == pytest.approx(BEEPS, abs=0.05)
    assert next(iter_sound(sample("audio_only.mp3"))).start_seconds == 0.0


def test_sound_is_heard_where_the_pictures_can_t_be_read(tmp_path: Path) -> None:
    path = make_film(tmp_path / "a.mkv", BEEPS)
    path.write_bytes(path.read_bytes().replace(b"V_MPEG4/ISO/AVC", b"V_NONE5/ISO/AVC"))
    assert heard_beeps(iter_sound(path)) == pytest.approx(BEEPS, abs=0.05)


@pytest.mark.parametrize(("name", "first", "start"), [("late.mkv", 24, 1.0), ("b_frames.avi", 0, 0.0)])
def test_the_clock_of_pictures_without_sound(tmp_path: Path, name: str, first: int, start: float) -> None:
    path = str(make_clip(tmp_path / name, range(first, first + 24), bf="2"))
    deadline = Deadline(path, Limits())
    with open_container(path, deadline) as container:
        assert clock_start_seconds(path, container, deadline) == start


def break_sound(path: Path, numbers: slice) -> Path:
    """Overwrite some packets of an MP4 file that has only sound."""
    with av.open(str(path)) as container:
        packets = [(packet.pos or 0, packet.size) for packet in container.demux(audio=0) if packet.size]
    content = bytearray(path.read_bytes())
    for at, size in packets[numbers]:
        content[at : at + size] = b"\xff" * size
    path.write_bytes(content)
    return path


def test_packets_that_can_t_be_decoded_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, errors = make_film(tmp_path / "a.m4a", BEEPS, video_codec=None), list[str]()
    assert heard_beeps(iter_sound(break_sound(path, slice(20, 22)), broken=errors)) == pytest.approx(BEEPS, abs=0.05)
    assert len(errors) == 2
    with pytest.raises(MediaError, match=r"none of its sound can be decoded: .*rror"):
        list(iter_sound(break_sound(path, slice(None))))
    monkeypatch.setattr(sound, "_MOST_PACKET_BYTES", 100)
    with pytest.raises(MediaError, match=r"none of its sound can be decoded: a packet of [0-9]+ bytes"):
        list(iter_sound(path))


def test_a_frame_of_too_many_samples_is_not_decoded(tmp_path: Path) -> None:
    path = tmp_path / "a.mka"
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("pcm_s16le", rate=48_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 2**21 + 1), np.int16), format="s16", layout="mono")
        frame.sample_rate, frame.pts = 48_000, 0
        container.mux(stream.encode(frame))
    with pytest.raises(MediaError, match="none of its sound can be decoded"):
        list(iter_sound(path))


def test_progress_is_a_share(tmp_path: Path) -> None:
    """256 packets: the empty one behind them is counted, and has no place in the file."""
    path, shares = (
        make_film(tmp_path / "a.mka", (), 256 * 1024 / 48_000, codec="pcm_s16le", video_codec=None),
        list[float](),
    )
    list(iter_sound(path, progress=shares.append))
    assert len(shares) == 1 and 0 < shares[0] < 0.1
    long, shares = make_film(tmp_path / "b.mka", (), 12.0, codec="pcm_s16le", video_codec=None), []
    list(iter_sound(long, progress=shares.append))
    assert shares == pytest.approx([0.0, 256 / 563, 512 / 563], abs=0.01)


def test_damage_is_counted_and_the_rest_keeps_its_time(tmp_path: Path) -> None:
    path = make_film(tmp_path / "a.ts", BEEPS, codec="aac")
    content = bytearray(path.read_bytes())
    middle = len(content) * 2 // 5
    content[middle : middle + 20_000] = bytes(20_000)
    path.write_bytes(content)
    heard = heard_beeps(iter_sound(path))
    assert heard[0] == pytest.approx(BEEPS[0], abs=0.05) and heard[-1] == pytest.approx(BEEPS[-1], abs=0.05)


@pytest.mark.parametrize(
    ("codec", "rate", "channels"), [("pcm_f32le", 384_000, 2), ("pcm_s16le", 8_000, 64), ("pcm_s16le", 384_000, 8)]
)
def test_odd_tracks_are_read(tmp_path: Path, codec: str, rate: int, channels: int) -> None:
    path = make_film(tmp_path / "odd.mkv", BEEPS, codec=codec, rate=rate, channels=channels)
    assert heard_beeps(iter_sound(path)) == pytest.approx(BEEPS, abs=0.05)


def test_time_and_length_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_film(tmp_path / "a.mp4", BEEPS)
    with pytest.raises(MediaError, match="not read within"):
        list(iter_sound(path, limits=Limits(seconds=1e-6)))
    with pytest.raises(MediaError, match=r"more than .* hours of sound"):
        list(iter_sound(path, limits=Limits(sound_seconds=5)))
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    for _ in iter_sound(path, limits=Limits(seconds=2.0)):
        now[0] += 1.5  # of the caller's
    assert now[0] > 3
