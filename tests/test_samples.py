"""Samples read by the tables of an mp4, without FFmpeg's demuxer: its packets, its pictures, or left to it."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from clips import (
    SAMPLES,
    assert_same,
    break_packets,
    decode_all,
    digest,
    make_clip,
    refuse_full_decodes,
    sample,
    set_matrix,
)

from llava_video_cli import reading
from llava_video_cli.errors import MediaError
from llava_video_cli.limits import Limits
from llava_video_cli.sampling import Sampling
from llava_video_cli.track import Track, video_track
from llava_video_cli.video import check_video, cut, probe, read_frames

X264: dict[str, Any] = {"bf": "2", "g": "8", "preset": "ultrafast"}
CLIPS: dict[str, dict[str, Any]] = {
    "h264.mp4": X264,
    "variable.mp4": {"stamps": [0, 40, 90, 200, 240, 700, 720], "time_base": Fraction(1, 1000), **X264},
    "late.mp4": {"stamps": range(50, 74), **X264},
    "fast.mov": X264,
    "hevc.mp4": {"codec": "libx265", "preset": "ultrafast", "x265-params": "keyint=8:log-level=none"},
    "vp9.mp4": {"codec": "libvpx-vp9", "deadline": "realtime", "g": "8"},
    "av1.mp4": {"codec": "libsvtav1", "preset": "12", "g": "8", "stamps": range(40)},
}
REAL = (
    "all_keyframes.mp4", "b_pyramid.mp4", "bikes.mp4", "bt709_full_range.mp4", "car_detection.mp4", "counter.mp4",
    "edit_list_positive_shift.mp4", "hevc_10bit.mp4", "long_180p_av1.mp4", "rotate_and_reflect.mp4", "rotated_90.mov",
    "rotated_phone.mp4",
)  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    for name, options in CLIPS.items():
        make_clip(folder / name, **options)
    return folder


@pytest.fixture
def without_demuxer(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, *_: object) -> None:
        raise AssertionError(f"{path} is opened by FFmpeg's demuxer")

    refuse_full_decodes(monkeypatch)
    monkeypatch.setattr(reading, "open_video", refuse)


def found(path: Path) -> Track:
    track = video_track(str(path))
    assert track is not None
    return track


def changed(path: Path, at: bytes, offset: int, value: bytes) -> Path:
    """Write a copy with `value` at an offset from where a box's type stands first in the header."""
    content = bytearray(path.read_bytes())
    place = content.index(at, 0 if at == b"ftyp" else content.index(b"moov")) + offset
    content[place : place + len(value)] = value
    copy = path.with_name(f"changed{path.suffix}")
    copy.write_bytes(content)
    return copy


def assert_as_decoded(path: Path) -> None:
    oracle = decode_all(path)
    for count in (1, 3, 8):
        count = min(count, len(oracle))
        numbers = [i * len(oracle) // count for i in range(count)]
        assert_same(read_frames(path, Sampling(frames=count)), oracle, numbers)


@pytest.mark.parametrize("name", [*CLIPS, *REAL])
def test_samples_are_the_packets_of_ffmpeg_s_demuxer(made: Path, name: str) -> None:
    path = made / name if name in CLIPS else sample(name)
    track = found(path)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        packets = [packet for packet in container.demux(stream) if packet.size]
        context = stream.codec_context
        assert (context.codec.name, context.width, context.height) == (track.decoder, track.width, track.height)
        assert track.config == (None if name == "vp9.mp4" else context.extradata) and track.tick == stream.time_base
    table = track.table
    shift = table.begins - int(table.presentation.min())
    told = np.array([(packet.pts, packet.size, packet.pos) for packet in packets])
    assert (told == np.stack((table.presentation + shift, track.sizes, track.offsets), axis=1)).all()
    assert [k for k, packet in enumerate(packets) if packet.is_keyframe] == table.keys.tolist()


@pytest.mark.usefixtures("without_demuxer")
@pytest.mark.parametrize("cores", [1, 2, 5])
@pytest.mark.parametrize("name", CLIPS)
def test_the_demuxer_is_not_needed(made: Path, name: str, cores: int) -> None:
    oracle = decode_all(made / name)
    for count in (1, 5, len(oracle)):
        frames = read_frames(made / name, Sampling(frames=count), limits=Limits(cores=cores))
        if name != "variable.mp4":
            assert_same(frames, oracle, [i * len(oracle) // count for i in range(count)])
        assert {digest(image) for image in frames.images} <= {fingerprint for _, fingerprint in oracle}
    assert probe(made / name) == frames.info
    check_video(made / name)


@pytest.mark.parametrize(
    ("box", "offset", "value"),
    [
        (b"ftyp", 0, b"free"),  # no mp4 by its first box
        (b"hdlr", 12, b"soun"),
        (b"mdhd", 16, b"\xff\xff\xff\xff"),  # ticks a second
        (b"mvhd", 40, struct.pack(">i", 1 << 15)),  # the movie's own matrix
        (b"stsd", 8, b"\0\0\0\2"),  # kinds of samples
        (b"avc1", 0, b"avc9"),
        (b"avcC", 0, b"abcd"),
        (b"elst", 4 + 4, b"\0\0\0\2"),  # more edits than there are
        (b"stsz", 8, b"\0\0\0\7"),  # all of one size
        (b"stsz", 16, b"\x7f\xff\xff\xff"),  # behind the end of the file
        (b"stsz", 16, b"\0\0\0\0"),
        (b"stsc", 12, b"\0\0\0\2"),  # not from the first chunk on
        (b"stsc", 16, b"\0\0\0\1"),  # fewer samples than sizes
        (b"stsc", 20, b"\0\0\0\2"),  # of another kind
        (b"stss", 8, b"\0\0\0\0"),  # no keyframes
    ],
)
def test_what_ffmpeg_may_read_otherwise_is_left_to_it(made: Path, box: bytes, offset: int, value: bytes) -> None:
    assert video_track(str(changed(made / "h264.mp4", box, offset, value))) is None


def test_two_videos_and_what_is_no_mp4_are_left_to_ffmpeg(tmp_path: Path) -> None:
    assert video_track(str(tmp_path / "none.mp4")) is None and video_track(str(tmp_path)) is None
    assert video_track(str(make_clip(tmp_path / "other.mkv", **X264))) is None
    assert video_track(str(make_clip(tmp_path / "old.mov", codec="mjpeg"))) is None
    with av.open(str(tmp_path / "two.mp4"), "w") as container:
        streams = [container.add_stream("libx264", rate=24, width=64, height=64, pix_fmt="yuv420p") for _ in "ab"]
        for stream in streams:
            container.mux(stream.encode(av.VideoFrame(64, 64, "yuv420p")))
            container.mux(stream.encode(None))
    assert video_track(str(tmp_path / "two.mp4")) is None and len(read_frames(tmp_path / "two.mp4").images) == 1
    for name in ("edit_list.mp4", "fragmented.mp4", "empty_track.mp4"):
        assert video_track(str(sample(name))) is None


def _turned(path: Path) -> Path:
    return set_matrix(path, 0, 1, -1, 0)


def _narrow(path: Path) -> Path:
    """A width that the header cuts off from what the stream has."""
    return changed(path, b"avc1", 28, struct.pack(">HH", 92, 64))


def _without_reordering(path: Path) -> Path:
    """A parameter set that does not tell how far pictures are put in order: without its last part."""
    content = bytearray(path.read_bytes())
    place = content.index(b"avcC") + 12
    size = int.from_bytes(content[place - 2 : place], "big")
    bits = "".join(f"{byte:08b}" for byte in content[place + 1 : place + size].replace(b"\0\0\3", b"\0\0"))
    reader = _Bits(bits)
    assert reader.take(8) in (66, 77, 88), "a profile without further fields"
    reader.take(16)
    for _ in range(5):  # id, frame numbers, kind and width of the order, references
        reader.golomb()
    reader.take(1)
    reader.golomb(), reader.golomb()
    reader.take(2)
    for _ in range(4 * reader.take(1)):
        reader.golomb()
    assert reader.take(1) == 1
    kept = f"{bits[: reader.at - 1]}01"
    kept += "0" * (-len(kept) % 8)
    told = bytes(int(kept[k : k + 8], 2) for k in range(0, len(kept), 8))
    content[place + 1 : place + size] = told + bytes(size - 1 - len(told))
    path.write_bytes(content)
    return path


class _Bits:
    """Fields of a parameter set (ISO/IEC 14496-10, section 9.1)."""

    def __init__(self, bits: str) -> None:
        self.bits, self.at = bits, 0

    def take(self, count: int) -> int:
        self.at += count
        return int(self.bits[self.at - count : self.at], 2)

    def golomb(self) -> int:
        zeros = self.bits.index("1", self.at) - self.at
        self.at += zeros
        return self.take(zeros + 1) - 1


@pytest.mark.usefixtures("without_demuxer")
@pytest.mark.parametrize("change", [_turned, _narrow, _without_reordering])
def test_what_the_header_says_of_the_pictures_counts(tmp_path: Path, change: Callable[[Path], Path]) -> None:
    clip = change(make_clip(tmp_path / "a.mp4", **X264 | {"profile": "main"}))
    assert_as_decoded(clip)


@pytest.mark.usefixtures("without_demuxer")
def test_colours_that_only_the_header_tells_count(tmp_path: Path) -> None:
    clip, seen = make_clip(tmp_path / "a.mp4", codec="libx264", g="8"), set()
    content = clip.read_bytes()
    for matrix, full in ((1, 0x80), (5, 0), (9, 0)):
        box = struct.pack(">I4s4sHHHB", 19, b"colr", b"nclx", 1, 1, matrix, full)
        coloured = tmp_path / "coloured.mp4"
        coloured.write_bytes(_with_box(content, box))
        assert_as_decoded(coloured)
        seen.add(digest(read_frames(coloured, Sampling(frames=1)).images[0]))
    assert len(seen) == 3, "the same for all would not tell"


def _with_box(content: bytes, box: bytes) -> bytes:
    """Put a box in place of those behind avcC in the sample entry."""
    header = content.index(b"moov")
    place, entry = content.index(b"avcC", header) - 4, content.index(b"avc1", header) - 4
    return _spliced(content, _end(content, place), _end(content, entry), box, (b"avc1", b"stsd"))


def _spliced(content: bytes, start: int, stop: int, piece: bytes, parents: tuple[bytes, ...] = ()) -> bytes:
    """Put a piece in place of another inside the table of samples; the header stands behind the pictures."""
    grown, header = bytearray(content), content.index(b"moov")
    grown[start:stop] = piece
    for kind in (*parents, b"stbl", b"minf", b"mdia", b"trak", b"moov"):
        at = content.index(kind, header) - 4
        size = _end(content, at) - at + len(piece) - (stop - start)
        grown[at : at + 4] = size.to_bytes(4, "big")
    return bytes(grown)


def _end(content: bytes, at: int) -> int:
    return at + int.from_bytes(content[at : at + 4], "big")


def test_places_of_64_bits(made: Path, tmp_path: Path) -> None:
    content, wide = (made / "h264.mp4").read_bytes(), tmp_path / "wide.mp4"
    at = content.index(b"stco") - 4
    assert content[at + 8 : at + 16] == struct.pack(">II", 0, 1), "one chunk"
    begin = int.from_bytes(content[at + 16 : at + 20], "big")
    for place in (begin, 2**63 - 8, 2**64 - 1, begin + 2**32):  # behind the end, also of what can be counted
        wide.write_bytes(_spliced(content, at, at + 20, struct.pack(">I4sIIQ", 24, b"co64", 0, 1, place)))
        track = video_track(str(wide))
        assert (track is not None) == (place == begin)
    assert_as_decoded(made / "h264.mp4")


@pytest.mark.parametrize("name", ["h264.mp4", "av1.mp4"])
def test_a_broken_packet_costs_what_it_costs_the_demuxer(made: Path, tmp_path: Path, name: str) -> None:
    clip = tmp_path / name
    clip.write_bytes((made / name).read_bytes())
    break_packets(clip, [11])
    assert video_track(str(clip)) is not None
    frames = read_frames(clip, Sampling(frames=100))
    known = {fingerprint for _, fingerprint in decode_all(clip)}
    assert {digest(image) for image in frames.images} <= known and len(known) > 20
    assert any("broken packet" in note for note in frames.notes)


def test_a_sample_without_a_picture_is_noticed(made: Path, tmp_path: Path) -> None:
    """Of packets with several samples, only their number tells which picture is which."""
    clip, number = tmp_path / "av1.mp4", 11  # which no other refers to
    content = bytearray((made / "av1.mp4").read_bytes())
    track = found(made / "av1.mp4")
    place, size = int(track.offsets[number]), int(track.sizes[number])
    left = size - 3
    padding = bytes((15 << 3 | 2, left & 127 | 128, left >> 7))  # the head of an OBU that stands for nothing
    content[place : place + size] = padding + bytes(left)
    clip.write_bytes(content)
    oracle = decode_all(clip)
    assert len(oracle) == len(track.sizes) - 1
    frames = read_frames(clip, Sampling(frames=100), limits=Limits(cores=1))
    assert_same(frames, oracle, list(range(len(oracle))))


def test_a_file_that_is_cut_off_meanwhile_is_an_error_or_less(made: Path, tmp_path: Path) -> None:
    clip = tmp_path / "cut.mp4"
    clip.write_bytes((made / "h264.mp4").read_bytes())
    windows = cut(clip, 0.5)
    clip.write_bytes(clip.read_bytes()[:900])
    with pytest.raises(MediaError, match=r"cut\.mp4"):
        windows.read(windows.parts[-1])
    clip.unlink()
    with pytest.raises(MediaError, match="no such file"):
        windows.read(windows.parts[-1])


def test_damaged_headers_give_what_they_give_the_demuxer(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, by_header, used = random.Random(7), reading._header, 0
    bases = [(made / name).read_bytes() for name in CLIPS]
    bases += [(SAMPLES / name).read_bytes() for name in ("rotated_90.mov", "hevc_10bit.mp4") if SAMPLES.exists()]
    clip = tmp_path / "damaged.mp4"
    for number in range(250):
        content = bytearray(draw.choice(bases))
        start = content.index(b"moov") + 4
        stop = start + int.from_bytes(content[start - 8 : start - 4], "big") - 8
        for _ in range(draw.choice((1, 1, 2))):
            content[draw.randrange(start, stop)] ^= 1 << draw.randrange(8)
        clip.write_bytes(content)
        outcomes: list[object] = []
        for header in (by_header, lambda *_: None):
            monkeypatch.setattr(reading, "_header", header)
            try:
                frames = read_frames(clip, Sampling(frames=4))
                outcomes.append(([digest(image) for image in frames.images], frames.times_seconds, frames.info))
            except MediaError:
                outcomes.append(None)
        used += by_header(str(clip), Limits()) is not None
        # what FFmpeg refuses for something that a decoder does not need may be read
        assert outcomes[0] == outcomes[1] or outcomes[1] is None, f"file {number}"
    assert used > 80
