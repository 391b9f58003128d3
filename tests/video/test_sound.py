"""Sound: on the clock of the frames in every container, bounded for hostile tracks, and the samples of others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clips import sample
from numpy.typing import NDArray
from sounds import heard_beeps, make_film

from llava_video_cli import MediaError
from llava_video_cli.video.limits import Limits
from llava_video_cli.video.sound import RATE, SoundChunk, has_sound, iter_sound

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


def test_gaps_are_silent_and_repetitions_are_left_out(tmp_path: Path) -> None:
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


def test_the_samples_are_those_of_faster_whisper(tmp_path: Path) -> None:
    audio = pytest.importorskip("faster_whisper.audio", reason="the extra speech is not installed")
    webm = make_film(tmp_path / "a.webm", BEEPS, codec="libopus", video_codec="libvpx")
    for path in (make_film(tmp_path / "a.mp4", BEEPS), webm):
        assert np.array_equal(samples(list(iter_sound(path))), audio.decode_audio(str(path)))


def test_what_has_no_sound_says_so(tmp_path: Path, clip: Path) -> None:
    assert not has_sound(clip)
    with pytest.raises(MediaError, match="it has no sound"):
        list(iter_sound(clip))
    for name in ("no.mp4", "text.mp4"):
        (tmp_path / "text.mp4").write_text("text")
        with pytest.raises(MediaError):
            has_sound(tmp_path / name)


def test_a_file_without_pictures_begins_with_its_sound(tmp_path: Path) -> None:
    path = make_film(tmp_path / "a.mp3", BEEPS, codec="libmp3lame", rate=44_100, video_codec=None)
    assert heard_beeps(iter_sound(path)) == pytest.approx(BEEPS, abs=0.05)
    assert next(iter_sound(sample("audio_only.mp3"))).start_seconds == 0.0


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


def test_time_and_length_are_bounded(tmp_path: Path) -> None:
    path = make_film(tmp_path / "a.mp4", BEEPS)
    with pytest.raises(MediaError, match="not read within"):
        list(iter_sound(path, limits=Limits(seconds=1e-6)))
    with pytest.raises(MediaError, match=r"more than .* hours of sound"):
        list(iter_sound(path, limits=Limits(sound_seconds=5)))
