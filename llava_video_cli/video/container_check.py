"""Whether the pieces of a container follow each other without a gap: FFmpeg skips broken ones, and tells nobody."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from itertools import islice
from typing import BinaryIO

from .mp4_index import BROKEN

# So many take at most 3 seconds; what follows is taken for whole.
_MOST_PIECES, _MOST_BYTES, _HEADER_BYTES = 2**20, 2**29, 2**24
_MOST_PACKET_BYTES = 2**20  # of ASF, which are read whole; FFmpeg writes 3,200, others up to 64,000
# Matroska (RFC 9559): the elements that hold others, then the parts of a segment, of a cluster and of a block group.
_SEGMENT, _CLUSTER, _GROUP, _TRACKS = 0x18538067, 0x1F43B675, 0xA0, 0x1654AE6B
_HOLDERS, _BLOCKS = (_SEGMENT, _CLUSTER, _GROUP), (0xA3, 0xA1)
_ELEMENTS = {
    0x1A45DFA3, *_HOLDERS, _TRACKS, 0x114D9B74, 0x1549A966, 0x1C53BB6B, 0x1941A469, 0x1043A770, 0x1254C367, 0xEC, 0xBF,
    *_BLOCKS, 0xE7, 0x5854, 0xA7, 0xAB, 0xAF, 0xA2, 0x75A1, 0x9B, 0xFA, 0xFB, 0xFD, 0xA4, 0x75A2, 0x8E, 0xC8,
}  # fmt: skip
_TRACK_NUMBER = re.compile(rb"\xd7([\x81-\x88])")
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_AVI = b"dc", b"db", b"wb"
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


def is_broken(file: BinaryIO, start: bytes, end: int) -> bool:
    """Return whether a file of `end` bytes that begins with `start`, one of `CHECKS`, is damaged or cut short."""
    try:
        return not all(islice(CHECKS[start](file, end), _MOST_PIECES))
    except BROKEN:
        return True


def _read(file: BinaryIO, at: int, size: int) -> bytes:
    file.seek(at)
    return file.read(size)


def _matroska(file: BinaryIO, end: int) -> Iterator[bool]:
    """Yield for each element whether it is right; so do the others for their pieces."""
    at, stop, tracks = 0, end, set[int]()  # `stop` is the end of the last cluster
    while at != end:
        head = _read(file, at, 20)
        name_bytes = 9 - head[0].bit_length()
        name = int.from_bytes(head[:name_bytes], "big")
        head_bytes = name_bytes + 9 - head[name_bytes].bit_length()
        unknown = (1 << 7 * (head_bytes - name_bytes)) - 1
        size = int.from_bytes(head[name_bytes:head_bytes], "big") & unknown
        at += head_bytes
        length = end - at if size == unknown else size
        is_early = name == _CLUSTER and stop != end  # blocks of the one before are missing
        if name == _TRACKS:
            content = _read(file, at, min(size, _HEADER_BYTES))
            numbers = ((match.end(), match[1][0] - 0x80) for match in _TRACK_NUMBER.finditer(content))
            tracks |= {int.from_bytes(content[start : start + count], "big") for start, count in numbers}
        elif name == _SEGMENT:
            end = stop = min(end, at + length)
        elif name == _CLUSTER:
            stop = at + length
        is_stray = name in _BLOCKS and head[head_bytes] & 0x80 and head[head_bytes] & 0x7F not in tracks
        at += 0 if name in _HOLDERS else length
        yield name in _ELEMENTS and not is_stray and not is_early and at <= stop
        stop = end if at == stop else stop
    yield stop == end


def _ogg(file: BinaryIO, end: int) -> Iterator[bool]:
    """RFC 3533, section 6. The checksum begins at the highest bit of each byte, that of zlib at the lowest."""
    at, last = 0, dict[int, int]()
    while at < min(end, _MOST_BYTES):
        head = _read(file, at, 27)
        magic, kind, granule, serial, number, checksum, count = struct.unpack("<4sxBqIIIB", head)
        sizes = file.read(count)
        page = head[:22] + bytes(4) + head[26:] + sizes + file.read(sum(sizes))
        computed = zlib.crc32(page.translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
        is_whole = computed.to_bytes(4, "big").translate(_REVERSED) == checksum.to_bytes(4, "little")
        if kind & 2:  # a stream begins
            last.pop(serial, None)
        yield magic == b"OggS" and is_whole and number == last.get(serial, number - 1) + 1
        last[serial] = number
        if not granule:  # behind the headers, a recording of a broadcast begins with a later page
            del last[serial]
        at += len(page)


def _flv(file: BinaryIO, end: int) -> Iterator[bool]:
    at, total = int.from_bytes(_read(file, 5, 4), "big") + 4, 0
    while at < end:
        kind, high, low = struct.unpack(">BBH", _read(file, at, 4))
        size = 65536 * high + low
        total += size + 11
        at += size + 15
        if at - 4 == end:
            return
        (last,) = struct.unpack(">I", _read(file, at - 4, 4))
        yield kind & 31 in (8, 9, 15, 18) and last in (size + 11, size + 10, size or -1, total)  # FFmpeg takes these


def _avi(file: BinaryIO, end: int) -> Iterator[bool]:
    """Compare the index of the first part, if it has one, with the chunks, unless it is wrong for most of them."""
    at, movie, table = 12, 0, b""

    def entries() -> Iterator[tuple[int, bytes]]:
        for name, start, size in struct.iter_unpack("<4s4xII", table):
            if name[2:] in _AVI and size:
                yield start, struct.pack("<4sI", name, size)

    while at + 12 <= end and not table:
        kind, size, inner = struct.unpack("<4sI4s", _read(file, at, 12))
        if kind == b"idx1":
            table = _read(file, at + 8, min(size // 16, _MOST_PIECES) * 16)
        movie = at + 8 if inner == b"movi" else movie
        at += 8 + size + size % 2
        yield True
    begun = list(islice(entries(), 9))
    counted_from = max((0, movie), key=lambda base: sum(_read(file, base + start, 8) == head for start, head in begun))
    count = right = 0
    for start, head in entries():
        count += 1
        right += _read(file, counted_from + start, 8) == head
    yield right == count or 2 * right < count


def _asf(file: BinaryIO, end: int) -> Iterator[bool]:
    """Advanced Systems Format, section 5.2: packets of one size, with parts of objects, which are the pictures."""
    (start,) = struct.unpack("<16xQ", _read(file, 0, 24))
    header = _read(file, 0, min(start, _HEADER_BYTES))
    (packet_bytes,) = struct.unpack_from("<I", header, header.index(_ASF_PROPERTIES) + 92)
    if packet_bytes > _MOST_PACKET_BYTES:
        raise ValueError(f"packets of {packet_bytes} bytes")
    (data_bytes,) = struct.unpack("<16xQ", _read(file, start, 24))
    parts = dict[int, tuple[int, int, int]]()  # of each stream's last object: its number, how much was read, its size
    for at in range(start + 50, start + data_bytes if data_bytes else end, packet_bytes):
        yield True
        for stream, number, offset, part_bytes, size in _payloads(_read(file, at, packet_bytes)):
            before = parts.get(stream, (0, 0, 0))
            yield before == (number, offset, size) if offset else before[1] == before[2]
            parts[stream] = number, offset + part_bytes, size


def _payloads(packet: bytes) -> Iterator[tuple[int, int, int, int, int]]:
    """Yield the stream of each payload, its object, where it is in that and how long, and the object's size."""
    at = 3 if packet[0] & 0x80 else 0

    def number(bits: int) -> int:
        nonlocal at
        size = (0, 1, 2, 4)[bits & 3]
        at += size
        return int.from_bytes(packet[at - size : at], "little")

    kinds, lengths = number(1), number(1)
    number(kinds >> 5), number(kinds >> 1)
    padding = number(kinds >> 3)
    at += 6
    count = number(1) if kinds & 1 else 1
    for _ in range(count & 63):
        stream = number(1) & 0x7F
        object_number, offset, extra_bytes = number(lengths >> 4), number(lengths >> 2), number(lengths)
        (size,) = struct.unpack_from("<I", packet, at) if extra_bytes >= 8 else (0,)
        at += extra_bytes
        part_bytes = number(count >> 6) if kinds & 1 else len(packet) - padding - at
        at += part_bytes
        if at > len(packet) or part_bytes < 0 or (packet[0] & 0x80 and packet[:3] != b"\x82\0\0"):
            raise ValueError("no packet")
        if extra_bytes >= 8:
            yield stream, object_number, offset, part_bytes, size


CHECKS = {b"\x1aE\xdf\xa3": _matroska, b"OggS": _ogg, b"FLV\1": _flv, b"RIFF": _avi, b"0&\xb2u": _asf}
