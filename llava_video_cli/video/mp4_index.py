"""Read the sample tables of an mp4 or mov file: when each picture is shown, without reading the pictures.

ISO/IEC 14496-12, sections 8.6 (times) and 8.16 (fragments). FFmpeg's index has the decoding stamps, but
not the presentation stamps.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAX_BOXES = 1000  # side by side: a file made of box headers only would keep the reader busy
_MAX_SAMPLES = 4_000_000  # 18 hours at 60 frames per second: some 300 MB of tables; FFmpeg reads what has more
BROKEN = (OSError, ValueError, LookupError, ArithmeticError, struct.error)  # raised by reading a broken header
_Span = tuple[int, int]  # where a box's content begins and ends in the file
Boxes = dict[str, list[_Span]]
ENCRYPTED = "the video is encrypted"


class CutBoxError(ValueError):
    """A box, named by its type, ends behind what holds it."""


@dataclass(frozen=True, eq=False)
class SampleTable:
    """The samples of a track in decoding order, int64 in ticks of the track.

    `keys` are the numbers of those that decoding can start at. An edit list's shift of the whole track is not applied.
    """

    decoding: NDArray[np.int64]
    presentation: NDArray[np.int64]
    durations: NDArray[np.int64]
    keys: NDArray[np.int64]


def sample_table(path: str, track_id: int) -> SampleTable | None:
    """Return a track's table, or None where there is none or where it is not the whole truth.

    It is not in fragmented files, with edit lists that cut, with samples that have no duration, and in files that are
    cut short or have a `track_fault`.
    """
    try:
        with Path(path).open("rb") as file:
            movie = boxes_of(file, boxes_of(file, (0, file.seek(0, 2)))["moov"][0])
            tracks = [boxes_of(file, span) for span in movie["trak"]]
            track = next((each for each in tracks if _number(file, each["tkhd"][0], 12, 20) == track_id), None)
            return None if track is None else _read(file, movie, track)
    except BROKEN:
        return None


def track_fault(file: BinaryIO, information: Boxes) -> str | None:
    """Return why a track can't be read: it is encrypted, or in another file. `information` is its `minf` box."""
    begin, end = boxes_of(file, information["stbl"][0])["stsd"][0]
    if "encv" in boxes_of(file, (begin + 8, end)):
        return ENCRYPTED
    for span in information.get("dinf", []):
        for begin, end in boxes_of(file, span).get("dref", []):
            for kind, spans in boxes_of(file, (begin + 8, end)).items():
                for start, stop in spans:
                    file.seek(start)
                    # FFmpeg takes the data of an "url " for this file's
                    if not file.read(4)[3] & 1 and (kind != "url " or stop > start + 5):
                        return "the pictures are in another file"
    return None


def _read(file: BinaryIO, movie: Boxes, track: Boxes) -> SampleTable | None:
    if "mvex" in movie:
        return None
    media = boxes_of(file, track["mdia"][0])
    information = boxes_of(file, media["minf"][0])
    if track_fault(file, information):
        return None
    tables = boxes_of(file, information["stbl"][0])
    durations = _repeated(file, tables["stts"][0])
    delays = _repeated(file, tables["ctts"][0]) if "ctts" in tables else np.zeros(len(durations), np.int64)
    if not 0 < len(durations) == len(delays) or len(track.get("edts", [])) > 1 or _has_empty_sample(file, tables):
        return None
    keys = _entries(file, tables["stss"][0], 1)[:, 0] - 1 if "stss" in tables else np.arange(len(durations))
    if len(keys) and not (keys[0] >= 0 and keys[-1] < len(durations) and (np.diff(keys) > 0).all()):
        return None
    decoding = np.concatenate(([0], np.cumsum(durations[:-1])))
    presentation = decoding + delays
    shown = int(presentation.min()), int(presentation.max())
    ticks = Fraction(_number(file, media["mdhd"][0], 12, 20), _number(file, movie["mvhd"][0], 12, 20))
    edits = boxes_of(file, track["edts"][0]).get("elst", []) if "edts" in track else []
    if len(edits) > 1 or durations.min() <= 0 or (edits and not _only_shifts(file, edits[0], shown, ticks)):
        return None
    return SampleTable(decoding, presentation, durations, keys)


def _has_empty_sample(file: BinaryIO, tables: Boxes) -> bool:
    if "stsz" not in tables:
        return "stz2" not in tables
    start, stop = tables["stsz"][0]
    file.seek(start + 4)
    size, count = struct.unpack(">II", file.read(8))
    if size:
        return False
    if count > _MAX_SAMPLES or start + 12 + 4 * count > stop:
        raise ValueError(f"{count} samples")
    return not np.frombuffer(file.read(4 * count), ">u4").all()


def boxes_of(file: BinaryIO, span: _Span) -> Boxes:
    """Return the boxes of a span by their type, without those inside them.

    Raises CutBoxError for one that ends behind the span, ValueError for other broken ones.
    """
    boxes: Boxes = {}
    at, end = span
    for _ in range(_MAX_BOXES):
        if at + 8 > end:
            return boxes
        file.seek(at)
        size, kind, header = *struct.unpack(">I4s", file.read(8)), 8
        if size == 1:
            size, header = *struct.unpack(">Q", file.read(8)), 16
        stop = at + size if size else end
        if size and size < header:
            raise ValueError(f"a box of {size} bytes at {at}")
        if stop > end:
            raise CutBoxError(kind.decode("latin-1"))
        boxes.setdefault(kind.decode("latin-1"), []).append((at + header, stop))
        at = stop
    raise ValueError(f"more than {_MAX_BOXES} boxes")


def _number(file: BinaryIO, span: _Span, short: int, long: int) -> int:
    """Return a field of 32 bits of a full box: at `short` in version 0, at `long` in version 1."""
    file.seek(span[0])
    content = file.read(long + 4)
    return int(struct.unpack_from(">I", content, long if content[0] else short)[0])


def _entries(file: BinaryIO, span: _Span, columns: int) -> NDArray[np.int64]:
    """Return the rows of a full box that holds their count and then numbers of 32 bits, as int64 (rows, columns)."""
    file.seek(span[0] + 4)
    (count,) = struct.unpack(">I", file.read(4))
    size = count * columns * 4
    if count > _MAX_SAMPLES or span[0] + 8 + size > span[1]:
        raise ValueError(f"{count} entries")
    return np.frombuffer(file.read(size), ">i4").reshape(count, columns).astype(np.int64)


def _repeated(file: BinaryIO, span: _Span) -> NDArray[np.int64]:
    """Return the values of a run-length coded table (stts, ctts), one for each sample."""
    counts, values = _entries(file, span, 2).T
    if (counts < 0).any() or counts.sum() > _MAX_SAMPLES:
        raise ValueError(f"{counts.sum()} samples")
    return np.repeat(values, counts)


def _only_shifts(file: BinaryIO, span: _Span, shown: tuple[int, int], ticks: Fraction) -> bool:
    """Return whether an edit list hides no picture: one edit of the whole track, alone or after an empty one.

    `shown` are the first and the last picture's times.
    """
    file.seek(span[0])
    version, count = struct.unpack(">B3xI", file.read(8))
    row = struct.Struct(">QqI" if version else ">IiI")
    if span[1] - span[0] != 8 + count * row.size:
        return False  # FFmpeg goes by the size, not by the count
    edits = [row.unpack(file.read(row.size)) for _ in range(min(count, 3))]
    if len(edits) == 2 and edits[0][1] == -1:
        edits = edits[1:]
    if len(edits) != 1:
        return False
    duration, start, rate = edits[0]
    return bool(rate == 0x10000 and 0 <= start <= shown[0] and start + duration * ticks > shown[1])
