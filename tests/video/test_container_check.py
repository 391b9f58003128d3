"""Damage to a container, of which FFmpeg tells nothing but to its log, and whole files that look like it."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path
from typing import BinaryIO

import av
import pytest
from clips import copy_packets, make_clip

from llava_video_cli.video import container_check, faults, read_frames
from llava_video_cli.video.faults import file_fault
from llava_video_cli.video.sampling import Sampling

DAMAGED = "the file is damaged or cut short"
# The codec, and how many bytes before the place of a packet its header begins.
KINDS = {
    "film.mkv": ("mpeg4", 3), "film.webm": ("libvpx", 3), "film.ogg": ("libvpx", 0), "film.flv": ("flv", 0),
    "film.avi": ("mpeg4", 8), "film.wmv": ("wmv2", 0),
}  # fmt: skip


def make(path: Path) -> Path:
    clip = make_clip(path.with_name(f"made.{path.suffix}"), range(48), codec=KINDS[path.name][0], g="8", b="2M")
    return copy_packets(clip, path)  # with the codec's data in the header


def notes(path: Path) -> tuple[str, ...]:
    return read_frames(path, Sampling(frames=4)).notes


def places(path: Path) -> list[int]:
    with av.open(str(path)) as container:
        return [packet.pos for packet in container.demux(video=0) if packet.size and packet.pos is not None]


def without_sizes(content: bytes) -> bytes:
    """A copy that leaves the size of Matroska's segment and clusters open, as live streams do."""
    for name in (b"\x18S\x80g", b"\x1fC\xb6u"):
        first, *others = content.split(name)
        sizes = [9 - each[0].bit_length() for each in others]
        unknown = [((2 << 7 * size) - 1).to_bytes(size, "big") for size in sizes]
        content = name.join([first, *(u + each[len(u) :] for u, each in zip(unknown, others, strict=True))])
    return content


@pytest.mark.parametrize("name", list(KINDS))
def test_lost_packets_are_told(tmp_path: Path, name: str) -> None:
    clip = make(tmp_path / name)
    assert notes(clip) == ()
    content = bytearray(clip.read_bytes())
    place = places(clip)[20] - KINDS[name][1]
    content[place : place + 6] = bytes(6)
    clip.write_bytes(content)
    assert len(places(clip)) < 48
    assert notes(clip) == (DAMAGED,)


@pytest.mark.parametrize("name", ["film.webm", "film.ogg", "film.flv", "film.wmv"])
def test_files_that_end_early_are_told(tmp_path: Path, name: str) -> None:
    clip = make(tmp_path / name)
    clip.write_bytes(without_sizes(clip.read_bytes())[: places(clip)[30] + 40])
    assert file_fault(str(clip)) == DAMAGED


def test_a_block_that_is_gone_as_a_whole_is_told(tmp_path: Path) -> None:
    clip = make(tmp_path / "film.mkv")
    content, (first, second) = clip.read_bytes(), [place - 3 for place in places(clip)[-3:-1]]
    start, end = content.rindex(b"\x1fC\xb6u"), content.rindex(b"\x1cS\xbbk")
    size = content.index(b"\x18S\x80g") + 4
    head = content[:size] + b"\x01" + bytes([255]) * 7 + content[size + 8 : start]  # as written to a pipe
    cluster, damaged = content[start:end], content[start:first] + content[second:end]
    for clusters, fault in ((cluster + cluster, None), (damaged, DAMAGED), (damaged + cluster, DAMAGED)):
        clip.write_bytes(head + clusters)
        assert file_fault(str(clip)) == fault


def test_a_block_of_no_track_is_told(tmp_path: Path) -> None:
    clip = make(tmp_path / "film.mkv")
    content = bytearray(clip.read_bytes())
    place = places(clip)[20]
    assert content[place] == 0x81, "the first track"
    content[place] = 0x85
    clip.write_bytes(content)
    assert len(places(clip)) < 48
    assert notes(clip) == (DAMAGED,)


def test_a_missing_page_is_told(tmp_path: Path) -> None:
    clip = make(tmp_path / "film.ogg")
    pages = clip.read_bytes().split(b"OggS")
    assert len(pages) > 8
    clip.write_bytes(b"OggS".join([*pages[:4], *pages[5:]]))
    assert notes(clip) == (DAMAGED,)


@pytest.mark.parametrize("name", ["film.mkv", "film.ogg"])
def test_joined_files_are_whole(tmp_path: Path, name: str) -> None:
    clip = make(tmp_path / name)
    clip.write_bytes(2 * clip.read_bytes())
    assert file_fault(str(clip)) is None


def test_a_stream_of_unknown_sizes_with_padding_is_whole(tmp_path: Path) -> None:
    clip = make(tmp_path / "film.webm")
    content = without_sizes(clip.read_bytes())
    at = content.index(b"\x1fC\xb6u")
    clip.write_bytes(content[:at] + b"\xec\x84abcd" + content[at:])
    assert notes(clip) == ()


def test_flv_may_have_data_that_ffmpeg_skips(tmp_path: Path) -> None:
    clip = make(tmp_path / "film.flv")
    content = clip.read_bytes()
    place = places(clip)[20]
    clip.write_bytes(content[:place] + struct.pack(">BxxB7x4xI", 15, 4, 15) + content[place:])  # AMF3, of Flash 9
    assert notes(clip) == ()


def test_the_recording_of_a_broadcast_is_whole(tmp_path: Path) -> None:
    """Behind the headers, it begins with a later page."""
    clip = make(tmp_path / "film.ogg")
    pages = clip.read_bytes().split(b"OggS")
    clip.write_bytes(b"OggS".join([*pages[:3], *pages[4:]]))
    assert file_fault(str(clip)) is None


def test_a_cover_in_the_headers_is_whole(tmp_path: Path) -> None:
    """A comment of several pages, of which the last one has the time 0."""
    clip, target = make(tmp_path / "film.ogg"), tmp_path / "cover.ogg"
    with av.open(str(clip)) as reading, av.open(str(target), "w") as writing:
        copied = writing.add_stream_from_template(reading.streams.video[0])
        copied.metadata["METADATA_BLOCK_PICTURE"] = "A" * 200_000
        for packet in reading.demux(video=0):
            if packet.size:
                packet.stream = copied
                writing.mux(packet)
    assert target.stat().st_size > 200_000
    assert file_fault(str(target)) is None


def test_an_index_that_fits_no_chunk_is_not_believed(tmp_path: Path) -> None:
    clip = make(tmp_path / "film.avi")
    content = bytearray(clip.read_bytes())
    at = content.rindex(b"idx1") + 8
    while content[at : at + 4] == b"00dc":
        content[at + 8 : at + 12] = struct.pack("<I", 7)
        at += 16
    clip.write_bytes(content)
    assert file_fault(str(clip)) is None


def test_a_large_file_is_searched_where_pictures_may_be_missing(tmp_path: Path) -> None:
    clip = make(tmp_path / "film.flv")
    content = bytearray(clip.read_bytes())
    content[places(clip)[20]] = 0
    with clip.open("wb") as file:
        file.write(content)
        for _ in range(2):  # data of 2 ** 24 bytes, without a disk's blocks
            file.write(b"\x12\xff\xff\xff")
            file.seek(7 + 0xFFFFFF, 1)
            file.write(struct.pack(">I", 11 + 0xFFFFFF))
    assert file_fault(str(clip), has_gaps=True) == DAMAGED
    assert file_fault(str(clip), has_gaps=False) is None


def test_a_file_is_searched_once_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    searched = []

    def is_broken(_file: BinaryIO, _start: bytes, end: int) -> bool:
        searched.append(end)
        return False

    monkeypatch.setattr(faults, "is_broken", is_broken)
    path = make_clip(tmp_path / "clip.mkv")
    for start in (0.0, 0.5):  # as each window of a video does
        read_frames(path, Sampling(2, start_seconds=start))
    assert len(searched) == 1
    os.utime(path, ns=(1, 1))
    file_fault(str(path))
    assert len(searched) == 2


def test_the_parts_of_avi_are_counted_up_to_a_bound(tmp_path: Path) -> None:
    path = tmp_path / "parts.avi"
    path.write_bytes(struct.pack("<4sIH", b"RIFF", 2, 0) * 20_000 + struct.pack("<4sI", b"RIFF", 2**20))
    assert file_fault(str(path)) != "the file is cut short", "that would have to be read to the end"


class Noting(io.BytesIO):
    """Notes how much of it was asked for at a time."""

    most = 0

    def read(self, size: int | None = -1) -> bytes:
        self.most = max(self.most, size or 0)
        return super().read(size)


def test_a_packet_of_absurd_size_is_not_read(tmp_path: Path) -> None:
    content = bytearray(make(tmp_path / "film.wmv").read_bytes())
    place = content.index(bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")) + 92
    content[place : place + 8] = struct.pack("<II", 2**29, 2**29)
    file = Noting(content)
    assert container_check.is_broken(file, bytes(content[:4]), len(content)) and file.most < 2**20
