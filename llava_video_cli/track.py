"""A video track of an mp4 or mov file, with all that its samples can be decoded by without FFmpeg's demuxer.

ISO/IEC 14496-12, sections 8.3 (track header), 8.5 (sample entries), 8.7 (where samples lie) and 12.1 (colour).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from .mp4 import BROKEN, MAX_SAMPLES, Boxes, SampleTable, Span, boxes, entries, number, read_table

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Sample entries: FFmpeg's decoder, and the box with what it is set up by.
_CODECS = {
    b"avc1": ("h264", "avcC"),
    b"hvc1": ("hevc", "hvcC"),
    b"hev1": ("hevc", "hvcC"),
    b"av01": ("libdav1d", "av1C"),
    b"vp09": ("vp9", None),
}
_UPRIGHT = (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
_ENTRY_BYTES = 78  # of a visual sample entry, before its own boxes
_MAX_CONFIG_BYTES = 2**20
_MAX_TRACKS = 64
_MAX_SAMPLE_BYTES = 2**28
_LAST_COLOUR, _UNSPECIFIED = 22, 2  # the largest number that FFmpeg gives a name
_MAX_SCALE = 2**31  # ticks a second
# Tracks beside the video that FFmpeg can't take for another one.
_OTHERS = (b"soun", b"text", b"sbtl", b"subt", b"clcp", b"tmcd", b"hint", b"mebx")
# What changes pictures, or which packets are keyframes, in ways that are left to FFmpeg.
_PECULIAR = {"clap", "lhvC", "sinf"}
_PECULIAR_TABLES = {"stps", "senc"}
_KEYFRAME_GROUPS = (b"rap ", b"sync")


@dataclass(frozen=True)
class Colours:
    """The colours as the header tells them, in the numbers of ISO/IEC 23091-2; a stream's own word counts more."""

    primaries: int
    transfer: int
    matrix: int
    full_range: bool | None


@dataclass(frozen=True, eq=False)
class Track:
    """The only video track of a file.

    `decoder` is FFmpeg's name of it, `config` what it is set up by. `matrix` is the display matrix row by row, None for
    pictures that are shown as they are stored. `offsets` and `sizes` tell where each sample of the table lies, int64 in
    bytes; all of them lie inside the file.
    """

    decoder: str
    config: bytes | None
    width: int
    height: int
    matrix: tuple[int, ...] | None
    colours: Colours | None
    tick: Fraction
    table: SampleTable
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]


def video_track(path: str) -> Track | None:
    """Return a file's video track; None for other files, and for whatever FFmpeg might read in another way.

    Such are a second video track, several kinds of samples, fragments, edit lists that cut, other codecs.
    """
    try:
        with Path(path).open("rb") as file:
            return _read(file) if file.read(8)[4:] == b"ftyp" else None
    except BROKEN:
        return None


def _read(file: BinaryIO) -> Track | None:
    size = file.seek(0, 2)
    top = boxes(file, (0, size))
    movie = boxes(file, top["moov"][0])
    if len(movie["trak"]) > _MAX_TRACKS:
        return None
    tracks = [boxes(file, span) for span in movie["trak"]]
    films = [track for track in tracks if _kind(file, track) == b"vide"]
    if len(films) != 1 or not all(_kind(file, track) in (b"vide", *_OTHERS) for track in tracks) or "moof" in top:
        return None
    (film,) = films
    media, tables = boxes(file, film["mdia"][0]), _tables(file, film)
    groups = [_bytes(file, span, 4, 4) for span in tables.get("sbgp", [])]
    if _PECULIAR_TABLES & set(tables) or any(group in _KEYFRAME_GROUPS for group in groups):
        return None
    if _matrix(file, movie["mvhd"][0], 36, 48) != _UPRIGHT:
        return None
    entry = _sample_entry(file, tables["stsd"][0])
    table = read_table(file, movie, film)
    if entry is None or table is None or not len(table.keys):
        return None
    decoder, config, (width, height), colours = entry
    offsets, sizes = _places(file, tables, len(table.decoding))
    if not 0 < sizes.min() <= sizes.max() <= _MAX_SAMPLE_BYTES or offsets.min() < 0 or (offsets > size - sizes).any():
        return None
    matrix, scale = _matrix(file, film["tkhd"][0], 40, 52), number(file, media["mdhd"][0], 12, 20)
    if scale >= _MAX_SCALE:
        return None
    tick = Fraction(1, scale)
    upright = matrix == _UPRIGHT
    return Track(decoder, config, width, height, None if upright else matrix, colours, tick, table, offsets, sizes)


def _kind(file: BinaryIO, track: Boxes) -> bytes:
    """Return a track's handler, of metadata the type of its samples."""
    handler = _bytes(file, boxes(file, track["mdia"][0])["hdlr"][0], 8, 4)
    return handler if handler != b"meta" else _bytes(file, _tables(file, track)["stsd"][0], 12, 4)


def _tables(file: BinaryIO, track: Boxes) -> Boxes:
    media = boxes(file, track["mdia"][0])
    return boxes(file, boxes(file, media["minf"][0])["stbl"][0])


_Entry = tuple[str, bytes | None, tuple[int, int], Colours | None]


def _sample_entry(file: BinaryIO, span: Span) -> _Entry | None:
    """Return the decoder, its configuration, the size in pixels and the colours; None where that is FFmpeg's work."""
    count, size, coding = struct.unpack(">4xII4s", _bytes(file, span, 0, 16))
    decoder, box = _CODECS.get(coding, ("", None))
    if count != 1 or not decoder:
        return None
    start = span[0] + 16
    width, height = struct.unpack(">HH", _bytes(file, (start, span[1]), 24, 4))
    inside = boxes(file, (start + _ENTRY_BYTES, span[0] + 8 + size))
    if _PECULIAR & set(inside) or span[0] + 8 + size > span[1] or not width or not height:
        return None
    config = None
    if box is not None:
        begin, end = inside[box][0]
        if not 0 < end - begin <= _MAX_CONFIG_BYTES:
            return None
        config = _bytes(file, (begin, end), 0, end - begin)
    return decoder, config, (width, height), _colours(file, inside)


def _colours(file: BinaryIO, inside: Boxes) -> Colours | None:
    for span in inside.get("colr", [])[:1]:
        content = _bytes(file, span, 0, min(11, span[1] - span[0]))
        if content[:4] in (b"nclx", b"nclc"):
            told = content[:4] == b"nclx" and len(content) > 10
            numbers = struct.unpack_from(">HHH", content, 4)
            primaries, transfer, matrix = (each if each <= _LAST_COLOUR else _UNSPECIFIED for each in numbers)
            return Colours(primaries, transfer, matrix, bool(content[10] >> 7) if told else None)
    return None


def _places(file: BinaryIO, tables: Boxes, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return where `count` samples begin and how long they are: they stand in chunks, in each of these in a row."""
    start, end = tables["stsz"][0]
    if struct.unpack(">4xI", _bytes(file, (start, end), 0, 8)) != (0,):
        raise ValueError("samples that are all of one size are no pictures")
    sizes = entries(file, (start + 4, end), 1, ">u4")[:, 0]
    wide = "co64" in tables
    chunks = entries(file, tables["co64" if wide else "stco"][0], 1, ">u8" if wide else ">u4")[:, 0]
    first, held, kind = entries(file, tables["stsc"][0], 3).T
    if (
        first[0] != 1
        or (np.diff(first) <= 0).any()
        or first[-1] > len(chunks)
        or (held <= 0).any()
        or (kind != 1).any()
    ):
        raise ValueError("broken chunks")
    held = np.repeat(held, np.diff(np.append(first, len(chunks) + 1)))
    if not count == len(sizes) <= held.sum() <= MAX_SAMPLES:
        raise ValueError(f"{len(sizes)} sizes of {count} samples in chunks for {held.sum()}")
    before = np.cumsum(held) - held
    chunk = np.repeat(np.arange(len(chunks)), held)[:count]
    ahead = np.concatenate(([0], np.cumsum(sizes)))
    return chunks[chunk] + ahead[:-1] - ahead[np.minimum(before, count)][chunk], sizes


def _matrix(file: BinaryIO, span: Span, short: int, long: int) -> tuple[int, ...]:
    version = _bytes(file, span, 0, 1)[0]
    return struct.unpack(">9i", _bytes(file, span, long if version else short, 36))


def _bytes(file: BinaryIO, span: Span, at: int, count: int) -> bytes:
    file.seek(span[0] + at)
    content = file.read(min(count, span[1] - span[0] - at))
    if len(content) != count:
        raise ValueError("a box that is too short")
    return content
