"""What a file itself says about why pictures are missing: it is damaged, cut short, encrypted, or only names them."""

from __future__ import annotations

import os
import struct
from functools import lru_cache
from typing import BinaryIO

from .container_check import CHECKS, is_broken
from .files import JPEG
from .mp4_index import BROKEN, ENCRYPTED, CutBoxError, boxes_of, movie_boxes, top_boxes, track_fault

_CUT, _BROKEN = "the file is cut short", "the file is damaged or cut short"
_SMALL_BYTES = 2**24  # they are searched in at most some 0.04 seconds
EBML = b"\x1aE\xdf\xa3"
_JPEG_END = b"\xff\xd9"
_JPEG_PADDING_BYTES = 2**20  # that may follow the last picture
_GIF, _GIF_END = b"GIF8", b"\0;"  # the end of the last block, then the trailer (GIF89a, section 27)
_GIF_PADDING_BYTES = 2**10  # that may follow
_SEGMENT, _RIFF = b"\x18S\x80g", b"RIFF"
_MOST_RIFFS = 10_000  # parts of a gigabyte each, in real files
_TS_BYTES, _TS_READ = 188, 2000  # a transport stream's packet, and how many are read


def file_fault(path: str, *, has_gaps: bool = True) -> str | None:
    """Return what is wrong with a file by its container's own words; None if it says nothing.

    A large file is not searched for damage where the times of its pictures have no gaps; in AVI they only count them.
    """
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - a Path costs more
            end = file.seek(0, 2)
            file.seek(0)
            start, kind = file.read(4), file.read(4)
            file.seek(4)
            if (start == EBML and _segment_end(file) > end) or (start == _RIFF and _riff_end(file, end) > end):
                return _CUT
            if start in CHECKS:
                is_searched = has_gaps or start == _RIFF or end <= _SMALL_BYTES
                is_damaged = is_searched and _is_damaged(path, start, end, os.fstat(file.fileno()).st_mtime_ns)
                return _BROKEN if is_damaged else None
            if start == _GIF:
                file.seek(max(0, end - _GIF_PADDING_BYTES))
                return None if file.read().rstrip(b"\0\r\n").endswith(_GIF_END) else _CUT
            if start[:1] == b"G":
                return ENCRYPTED if _is_scrambled(file) else None
            if start[:3] == JPEG:
                return None if _has_whole_end(file, end) else _CUT
            return _mp4_fault(file) if kind.isalpha() else None  # every first box of mp4 has such a name
    except BROKEN:
        return None


@lru_cache(maxsize=64)  # each window of a video asks again
def _is_damaged(path: str, start: bytes, end: int, changed_ns: int) -> bool:  # noqa: ARG001 - another time, another file
    with open(path, "rb") as file:  # noqa: PTH123 - a Path costs more
        return is_broken(file, start, end)


def _segment_end(file: BinaryIO) -> int:
    """Return where the segment of a Matroska file ends, 0 where it doesn't say (RFC 8794, section 6.2)."""
    for _ in range(2):  # the header, then the segment
        size = file.read(1)[0]
        length = 9 - size.bit_length()
        rest = file.read(length - 1)
        size = int.from_bytes(bytes([size & (0xFF >> length)]) + rest, "big")
        if size == (1 << 7 * length) - 1:
            return 0
        stop = file.tell() + size
        file.seek(stop)
        if file.read(4) != _SEGMENT:
            return stop
    return 0


def _riff_end(file: BinaryIO, end: int) -> int:
    """Return where the last RIFF chunk of an AVI file ends."""
    at = 0
    for _ in range(_MOST_RIFFS):
        if at + 8 > end:
            break
        file.seek(at)
        kind, size = struct.unpack("<4sI", file.read(8))
        if kind != _RIFF or size in (0, 0xFFFFFFFF):  # unknown: it was written to a pipe
            break
        at += 8 + size + size % 2
    return at - 1  # the last byte may be padding


def _has_whole_end(file: BinaryIO, end: int) -> bool:
    """Return whether the last of some JPEG pictures has its end (ITU-T T.81, section B.1.1.3)."""
    file.seek(max(0, end - _JPEG_PADDING_BYTES))
    content = file.read(_JPEG_PADDING_BYTES)
    return content.rfind(_JPEG_END) > content.rfind(JPEG)


def _is_scrambled(file: BinaryIO) -> bool:
    """Return whether most packets of a transport stream are scrambled (ISO/IEC 13818-1, section 2.4.3.3)."""
    file.seek(0)
    content = file.read(_TS_BYTES * _TS_READ)
    heads = [content[at : at + 4] for at in range(0, len(content) - 3, _TS_BYTES)]
    return all(head[0] == 0x47 for head in heads) and 2 * sum(head[3] & 0xC0 != 0 for head in heads) > len(heads)


def _mp4_fault(file: BinaryIO) -> str | None:
    try:
        top = top_boxes(file)
    except CutBoxError as error:
        return _CUT if str(error) in ("mdat", "moov", "moof") else None
    for content in movie_boxes(file, top)["trak"]:
        media = boxes_of(boxes_of(content)["mdia"][0])
        if bytes(media["hdlr"][0][8:12]) == b"vide":
            return track_fault(boxes_of(media["minf"][0]))
    return None
