"""The boxes and the sample tables of an mp4 or mov file: when each picture is shown, without reading a single one.

ISO/IEC 14496-12, sections 8.6 (times) and 8.16 (fragments). FFmpeg keeps the decoding stamps in its index, but not how
far each picture's time on screen lies behind.
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

MAX_BOXES = 1000  # side by side; a file of nothing but headers would keep the reader busy
MAX_SAMPLES = 4_000_000  # 18 hours at 60 frames per second: some 300 MB of tables; more is left to FFmpeg
BROKEN = (OSError, ValueError, LookupError, ArithmeticError, struct.error)  # what reading a broken header raises
Span = tuple[int, int]  # where a box's content begins and ends in the file
Boxes = dict[str, list[Span]]


@dataclass(frozen=True, eq=False)
class SampleTable:
    """The samples of a track in decoding order, int64 in ticks of the track.

    `begins` is when the first picture comes on screen: an edit list shifts all of them alike. `keys` are the numbers of
    those that decoding can start at.
    """

    decoding: NDArray[np.int64]
    presentation: NDArray[np.int64]
    durations: NDArray[np.int64]
    keys: NDArray[np.int64]
    begins: int


def sample_table(path: str, track_id: int) -> SampleTable | None:
    """Read a track's table; None where there is none, or one that does not tell all.

    The latter are fragmented files, edit lists that cut, and samples without a length.
    """
    try:
        with Path(path).open("rb") as file:
            movie = boxes(file, boxes(file, (0, file.seek(0, 2)))["moov"][0])
            tracks = [boxes(file, span) for span in movie["trak"]]
            track = next((each for each in tracks if number(file, each["tkhd"][0], 12, 20) == track_id), None)
            return None if track is None else read_table(file, movie, track)
    except BROKEN:
        return None


def read_table(file: BinaryIO, movie: Boxes, track: Boxes) -> SampleTable | None:
    """Return what `sample_table` does of a track in an open file. Raises one of `BROKEN` where its boxes are broken."""
    if "mvex" in movie:
        return None
    media = boxes(file, track["mdia"][0])
    tables = boxes(file, boxes(file, media["minf"][0])["stbl"][0])
    durations = _repeated(file, tables["stts"][0])
    delays = _repeated(file, tables["ctts"][0]) if "ctts" in tables else np.zeros(len(durations), np.int64)
    if not 0 < len(durations) == len(delays):
        return None
    keys = entries(file, tables["stss"][0], 1)[:, 0] - 1 if "stss" in tables else np.arange(len(durations))
    if len(keys) and not (keys[0] >= 0 and keys[-1] < len(durations) and (np.diff(keys) > 0).all()):
        return None
    decoding = np.concatenate(([0], np.cumsum(durations[:-1])))
    presentation = decoding + delays
    shown = int(presentation.min()), int(presentation.max())
    ticks = Fraction(number(file, media["mdhd"][0], 12, 20), number(file, movie["mvhd"][0], 12, 20))
    edits = boxes(file, track["edts"][0]).get("elst", []) if "edts" in track else []
    begins = _begins(file, edits[0], shown, ticks) if edits else shown[0]
    if begins is None or len(edits) > 1 or durations.min() <= 0:
        return None
    return SampleTable(decoding, presentation, durations, keys, begins)


def boxes(file: BinaryIO, span: Span) -> Boxes:
    """Return the boxes that stand side by side in a span, by their type. Raises ValueError for broken ones."""
    found: Boxes = {}
    at, end = span
    for _ in range(MAX_BOXES):
        if at + 8 > end:
            return found
        file.seek(at)
        size, kind, header = *struct.unpack(">I4s", file.read(8)), 8
        if size == 1:
            size, header = *struct.unpack(">Q", file.read(8)), 16
        stop = at + size if size else end
        if (size and size < header) or stop > end:
            raise ValueError(f"a box of {size} bytes at {at}")
        found.setdefault(kind.decode("latin-1"), []).append((at + header, stop))
        at = stop
    raise ValueError(f"more than {MAX_BOXES} boxes")


def number(file: BinaryIO, span: Span, short: int, long: int) -> int:
    """Return a field of 32 bits of a full box: at `short` in version 0, at `long` in version 1."""
    file.seek(span[0])
    content = file.read(long + 4)
    return int(struct.unpack_from(">I", content, long if content[0] else short)[0])


def entries(file: BinaryIO, span: Span, columns: int, kind: str = ">i4") -> NDArray[np.int64]:
    """Return the rows of a full box that holds their count and then numbers, as int64 (rows, columns)."""
    file.seek(span[0] + 4)
    (count,) = struct.unpack(">I", file.read(4))
    size = count * columns * np.dtype(kind).itemsize
    if count > MAX_SAMPLES or span[0] + 8 + size > span[1]:
        raise ValueError(f"{count} entries")
    return np.frombuffer(file.read(size), kind).reshape(count, columns).astype(np.int64)


def _repeated(file: BinaryIO, span: Span) -> NDArray[np.int64]:
    """The values of a run-length coded table (stts, ctts), one for each sample."""
    counts, values = entries(file, span, 2).T
    if (counts < 0).any() or counts.sum() > MAX_SAMPLES:
        raise ValueError(f"{counts.sum()} samples")
    return np.repeat(values, counts)


def _begins(file: BinaryIO, span: Span, shown: tuple[int, int], ticks: Fraction) -> int | None:
    """When an edit list lets the first picture appear; None if it does more than shift the whole track.

    One that shifts is one edit, after an empty one or alone. `shown` are the first and the last picture's times.
    """
    file.seek(span[0])
    version, count = struct.unpack(">B3xI", file.read(8))
    row = struct.Struct(">QqI" if version else ">IiI")
    if span[1] - span[0] != 8 + count * row.size:
        return None  # FFmpeg goes by the size, not by the count
    edits = [row.unpack(file.read(row.size)) for _ in range(min(count, 3))]
    empty = 0
    if len(edits) == 2 and edits[0][1] == -1:
        empty, edits = round(edits[0][0] * ticks), edits[1:]
    if len(edits) != 1:
        return None
    duration, start, rate = edits[0]
    whole = rate == 0x10000 and 0 <= start <= shown[0] and start + duration * ticks > shown[1]
    return empty if whole else None
