"""Damaged pictures: a frame that is unlike the pictures of a full decode comes with a note. Whole files get none."""

from __future__ import annotations

import random
import subprocess
import sys
import tracemalloc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import pytest
from clips import copy_packets, decode_all, digest, faulty, make_clip, make_indexed

from llava_video_cli.errors import MediaError
from llava_video_cli.video import Frames, read_frames
from llava_video_cli.video.limits import Limits
from llava_video_cli.video.packets import has_wrong_checksum
from llava_video_cli.video.sampling import Sampling

NOTE = "the decoder reports damage: parts of some frames may be wrong"
SAMPLINGS = [Sampling(frames=count, mode=mode) for count in (1, 4, 32) for mode in ("uniform", "endpoints")]


def packets(clip: Path) -> list[tuple[int, int]]:
    """Where each packet begins in the file, and its size."""
    with av.open(str(clip)) as container:
        return [(packet.pos or 0, packet.size) for packet in container.demux(video=0) if packet.size]


def overwrite(clip: Path, at: int, content: bytes) -> Path:
    damaged = bytearray(clip.read_bytes())
    damaged[at : at + len(content)] = content
    clip.write_bytes(damaged)
    return clip


def are_like(frames: Frames, whole: Sequence[tuple[int | None, str]]) -> bool:
    return {digest(image) for image in frames.images} <= {each for _, each in whole}


def readings(clip: Path, samplings: Sequence[Sampling]) -> list[Frames]:
    return [read_frames(clip, each, limits=Limits(cores=cores)) for each in samplings for cores in (1, 2)]


def is_told(frames: Frames) -> bool:
    return any("damage" in note or "broken" in note for note in frames.notes)


@pytest.mark.parametrize("codec", ["mjpeg", "mpeg4", "mpeg2video"])
def test_what_a_decoder_hides_is_told(tmp_path: Path, codec: str) -> None:
    """Where decoding begins at another picture than a full decode, it hides errors with other pictures."""
    clip = make_clip(tmp_path / "clip.mkv", range(48), codec=codec, g="8", qmin="2", qmax="2", b="20M")
    for number in (8, 9, 16, 24, 40):
        at, size = packets(clip)[number]
        overwrite(clip, at + size // 2, b"\xaa\x55" * (size // 4))
    full, notes = decode_all(clip), set[str]()
    for frames in readings(clip, SAMPLINGS):
        assert frames.notes or are_like(frames, full)
        notes |= {*frames.notes}
    assert NOTE in notes


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("ffv1", {"level": "3"}),
        ("ffv1", {"level": "4", "strict": "experimental"}),
        ("libx265", {"x265-params": "hash=1:keyint=8:log-level=error"}),
    ],
)
def test_checksums_of_pictures_tell_their_damage(tmp_path: Path, codec: str, options: dict[str, Any]) -> None:
    """FFmpeg's decoder of FFV1 tells nobody, and that of HEVC only if it is asked to."""
    clip = make_clip(tmp_path / "clip.mkv", range(24), codec=codec, g="8", **options)
    whole = decode_all(clip)
    assert not any(map(is_told, readings(clip, SAMPLINGS)))
    at, size = packets(clip)[13]
    overwrite(clip, at + size // 2, bytes([clip.read_bytes()[at + size // 2] ^ 0x10]))
    assert decode_all(clip) != whole
    for frames in readings(clip, SAMPLINGS):
        assert is_told(frames) or are_like(frames, whole)
    assert is_told(frames)


@pytest.mark.parametrize("codec", ["libx264", "libx265", "mpeg2video"])
def test_lost_pieces_of_a_transport_stream_are_told(tmp_path: Path, codec: str) -> None:
    """Decoders may notice nothing; the pieces are numbered, and FFmpeg marks the packet before the one that lacks one.

    An edge of a packet may be nothing but stuffing, so that nothing is lost.
    """
    quiet: dict[str, Any] = {"x265-params": "log-level=error"}
    clip = make_clip(tmp_path / "clip.ts", range(48), codec=codec, g="12", **quiet)
    content, whole = clip.read_bytes(), decode_all(clip)
    pieces = [content[at : at + 188] for at in range(0, len(content), 188)]
    told = 0
    for lost in range(len(pieces) // 3, len(pieces), len(pieces) // 7):
        clip.write_bytes(b"".join(pieces[:lost] + pieces[lost + 1 :]))
        for frames in readings(clip, SAMPLINGS[2:5]):
            assert is_told(frames) or are_like(frames, whole)
            told += is_told(frames)
    assert told


def test_lost_pieces_behind_a_cut(tmp_path: Path) -> None:
    """The first pictures refer to others that were cut off, which is no damage."""
    x264: dict[str, Any] = {"g": "12", "bf": "2", "preset": "ultrafast", "x264-params": "open-gop=1"}
    clip = make_clip(tmp_path / "clip.ts", range(48), **x264)
    content, begin = clip.read_bytes(), packets(clip)[12][0]
    clip.write_bytes(content[: 188 * 3] + content[begin:])
    whole = decode_all(clip)
    assert not any(map(is_told, readings(clip, SAMPLINGS)))
    for lost in range(40, 54):
        clip.write_bytes(content[: 188 * 3] + content[begin : begin + 188 * lost] + content[begin + 188 * (lost + 1) :])
        assert all(is_told(frames) or are_like(frames, whole) for frames in readings(clip, SAMPLINGS[2:4]))


def test_pieces_of_streams_put_together_are_no_damage(tmp_path: Path) -> None:
    """The numbers of their pieces, and their times, begin again."""
    clip = make_clip(tmp_path / "clip.ts", range(48), g="12")
    clip.write_bytes(3 * clip.read_bytes())
    marked = [packet.is_corrupt for packet in av.open(str(clip)).demux(video=0)]
    assert any(marked)
    assert not any(map(is_told, readings(clip, SAMPLINGS)))
    content = clip.read_bytes()
    clip.write_bytes(content[: 188 * 20] + content[188 * 21 :])
    assert all(map(is_told, readings(clip, SAMPLINGS)))


def test_slices_without_a_checksum_are_not_checked(tmp_path: Path) -> None:
    for level in ("1", "3"):
        clip = make_clip(tmp_path / "clip.mkv", range(24), codec="ffv1", g="8", level=level, slicecrc="0")
        assert not any(map(is_told, readings(clip, SAMPLINGS)))


def test_slices_are_not_looked_for_without_end() -> None:
    """A packet of zeros says that each has no bytes."""
    packet: Any = av.Packet(bytes(2**24))
    tracemalloc.start()
    assert not has_wrong_checksum(packet)
    assert tracemalloc.get_traced_memory()[1] < 2**25
    tracemalloc.stop()


def test_pictures_that_the_decoder_marks_as_damaged_are_told(tmp_path: Path) -> None:
    """ProRes: each slice is decoded by itself, and a broken one is no error."""
    clip = make_clip(tmp_path / "clip.mov", codec="prores_ks", size=(320, 192))
    at, size = packets(clip)[6]
    overwrite(clip, at + size // 4, random.Random(1).randbytes(size // 2))
    for sampling in (Sampling(frames=24), Sampling(frames=1, start_seconds=6.1 / 24, end_seconds=6.3 / 24)):
        assert NOTE in read_frames(clip, sampling).notes
    assert not read_frames(clip, Sampling(frames=4, start_seconds=0.5)).notes


@pytest.mark.parametrize("coder", ["cavlc", "cabac"])
def test_a_picture_that_refers_to_a_damaged_one_that_is_shown_later(tmp_path: Path, coder: str) -> None:
    """H.264 hides a slice that ends too early, and marks its picture, which comes behind those that refer to it."""
    x264: dict[str, Any] = {"bf": "2", "g": "8", "qp": "20", "coder": coder, "x264-params": "scenecut=0:b-pyramid=0"}
    clip = make_clip(tmp_path / "clip.mp4", preset="ultrafast", **x264)
    whole, content, places = decode_all(clip), clip.read_bytes(), packets(clip)
    at, size = places[9]
    damages = [(9, place, bytes([content[at + place] ^ 0x10])) for place in range(20, size, max(1, size // 24))]
    # no errors with cabac, and marked pictures:
    hidden = bytes.fromhex("fe2438335bd774993dfdc52d807ff23aee31993f004e1c22f85387c2de012a16af6e4b40f1c6a1ba")
    damages += [(4, 54, bytes(40)), (17, 84, b"\xf8"), (12, 397, hidden)]
    told = list[bool]()
    for number, place, damage in damages:  # here, the packet behind each is the picture of the packet's own number
        clip.write_bytes(content)
        overwrite(clip, places[number][0] + place, damage)
        moment = Sampling(frames=1, start_seconds=(number + 0.1) / 24, end_seconds=(number + 0.3) / 24)
        frames = read_frames(clip, moment)
        assert frames.notes or are_like(frames, [*decode_all(clip), *whole])
        told.append(NOTE in frames.notes)
    assert sum(told) > 5 and (coder == "cavlc" or all(told[-3:]))


def test_damage_before_a_part_that_refers_to_it(tmp_path: Path) -> None:
    """With intra refresh, pictures refer to those before the keyframe, until all is refreshed."""
    x264: dict[str, Any] = {"g": "12", "bf": "0", "preset": "ultrafast", "qp": "20", "intra-refresh": "1"}
    clip = make_clip(tmp_path / "clip.mkv", range(60), **x264)
    content, places = clip.read_bytes(), packets(clip)
    told = 0
    for number in range(1, 12):
        at, size = places[number]
        clip.write_bytes(content)
        overwrite(clip, at + size // 2, random.Random(number).randbytes(min(60, size // 3)))
        full = decode_all(clip)
        for moment in range(number + 1, 36, 4):
            frames = read_frames(clip, Sampling(frames=1, start_seconds=moment / 24, end_seconds=(moment + 0.5) / 24))
            assert frames.notes or are_like(frames, full)
            told += NOTE in frames.notes
    assert told


def test_threads_do_not_hide_a_mark(tmp_path: Path) -> None:
    """Another thread of the decoder returns the last picture, perhaps before it is decoded and then marked."""
    x264: dict[str, Any] = {"g": "250", "bf": "2", "coder": "cabac", "x264-params": "scenecut=0:b-adapt=0"}
    clip = make_clip(tmp_path / "clip.mp4", range(16), size=(320, 192), preset="ultrafast", qp="2", **x264)
    content, (at, size) = clip.read_bytes(), packets(clip)[10]  # the twelfth picture behind the first
    moment = Sampling(frames=1, start_seconds=12.1 / 24, end_seconds=12.3 / 24)
    told = 0
    for place in range(4000, size, 2000):
        clip.write_bytes(content)
        overwrite(clip, at + place, bytes([content[at + place] ^ 0x10]))
        frames = read_frames(clip, moment, limits=Limits(cores=2))
        assert frames.notes or are_like(frames, decode_all(clip))
        told += NOTE in frames.notes
    assert told


def test_a_packet_of_avi_that_only_a_seek_finds(tmp_path: Path) -> None:
    """The packet before it lacks some bytes, so that reading takes its beginning for theirs, and passes over it."""
    clip = make_clip(tmp_path / "clip.avi", codec="rawvideo")
    content, places = clip.read_bytes(), packets(clip)
    before, at = places[4][0] - 8, places[6][0] - 8
    clip.write_bytes(content[:before] + bytes(64) + content[before : at - 64] + content[at:])
    full = decode_all(clip)
    assert len(full) < 24
    moments = [Sampling(frames=1, start_seconds=number / 24) for number in range(4, 8)]
    assert all(are_like(frames, full) for frames in readings(clip, moments))


def test_fewer_bytes_than_a_picture_needs(tmp_path: Path) -> None:
    """FFmpeg would show what happened to be in memory."""
    clip = make_indexed(tmp_path / "raw.avi", "rawvideo")
    assert not read_frames(clip, Sampling(frames=24)).notes
    overwrite(clip, clip.read_bytes().index(b"strf") + 12, (4096).to_bytes(4, "little"))
    with pytest.raises(MediaError, match="no frame can be decoded"):
        read_frames(clip)


@pytest.mark.parametrize(
    "name", ["refresh.mkv", "h264.ts", "mpeg2.ts", "hevc.mkv", "h263.avi", "part2.mp4", "tiff.mov"]
)
def test_whole_files_and_recordings_get_no_note(tmp_path: Path, name: str) -> None:
    """Decoders report errors, too, where a seek or a cut has lost what a picture refers to."""
    options: dict[str, dict[str, Any]] = {
        "refresh.mkv": {"intra-refresh": "1", "g": "12", "bf": "0"},
        "h264.ts": {"g": "12", "x264-params": "open-gop=1:bframes=3:b-pyramid=normal:ref=4"},
        "mpeg2.ts": {"codec": "mpeg2video", "bf": "2", "g": "12"},
        "hevc.mkv": {"codec": "libx265", "preset": "ultrafast", "x265-params": "keyint=12:open-gop=1:log-level=0"},
        "h263.avi": {"codec": "h263p", "g": "12"},
        "part2.mp4": {"codec": "mpeg4", "bf": "2", "g": "12"},
        "tiff.mov": {"codec": "tiff"},
    }
    clip = make_clip(tmp_path / name, range(72), **options[name])
    full = decode_all(clip)
    for frames in readings(clip, SAMPLINGS):
        assert not is_told(frames), frames.notes
        assert are_like(frames, full)
    for frames in readings(copy_packets(clip, tmp_path / f"cut_{name}", skip=5), SAMPLINGS):
        assert not is_told(frames), frames.notes


def test_an_input_that_begins_at_a_picture_with_lost_references() -> None:
    for frames in readings(faulty("open_gop_h264_cut.ts"), SAMPLINGS):
        assert not is_told(frames)


def test_a_damaged_av1_file_does_not_wait_forever(tmp_path: Path) -> None:
    """A thread of dav1d would wait for the interpreter to let a packet go, and the interpreter for the thread."""
    av1: dict[str, Any] = {"codec": "libsvtav1", "preset": "12", "crf": "2", "g": "12"}
    clip = make_clip(tmp_path / "clip.mp4", **av1)
    at, size = packets(clip)[16]
    assert size == 3  # it shows a frame that was decoded before
    overwrite(clip, at + 2, b"\x18")
    code = f"""
from llava_video_cli.video import read_frames
from llava_video_cli.video.limits import Limits
from llava_video_cli.video.sampling import Sampling
for count in (4, 4, 32) * 4:  # it was the first of them, mostly
    read_frames({str(clip)!r}, Sampling(frames=count, mode="endpoints"), limits=Limits(cores=2))
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
