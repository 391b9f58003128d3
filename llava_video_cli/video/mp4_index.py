"""Read the sample tables of an mp4 or mov file: when each picture is shown, without reading the pictures.

ISO/IEC 14496-12, sections 8.6 (times) and 8.16 (fragments). FFmpeg's index has the decoding stamps, but
not the presentation stamps.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MAX_MOVIE_BYTES = 2**29
_MAX_BOXES = 1000  # side by side: a file made of box headers only would keep the reader busy
_MAX_SAMPLES = 4_000_000  # 18 hours at 60 frames per second: some 300 MB of tables; FFmpeg reads what has more
BROKEN = (OSError, ValueError, LookupError, ArithmeticError, struct.error)  # raised by reading a broken header
Boxes = dict[str, list[memoryview]]  # the contents of boxes by their type
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
        with open(path, "rb") as file:  # noqa: PTH123 - a Path costs more
            movie = movie_boxes(file, top_boxes(file))
        tracks = map(boxes_of, movie["trak"])
        track = next((each for each in tracks if _number(each["tkhd"][0], 12, 20) == track_id), None)
        return None if track is None else _read(movie, track)
    except BROKEN:
        return None


def track_fault(information: Boxes) -> str | None:
    """Return why a track can't be read: it is encrypted, or in another file. `information` is its `minf` box."""
    if "encv" in boxes_of(boxes_of(information["stbl"][0])["stsd"][0][8:]):
        return ENCRYPTED
    for content in information.get("dinf", []):
        for references in boxes_of(content).get("dref", []):
            for kind, entries in boxes_of(references[8:]).items():
                # FFmpeg takes the data of an "url " for this file's
                if any(not entry[3] & 1 and (kind != "url " or len(entry) > 5) for entry in entries):
                    return "the pictures are in another file"
    return None


def _read(movie: Boxes, track: Boxes) -> SampleTable | None:
    if "mvex" in movie:
        return None
    media = boxes_of(track["mdia"][0])
    information = boxes_of(media["minf"][0])
    if track_fault(information):
        return None
    tables = boxes_of(information["stbl"][0])
    durations = _repeated(tables["stts"][0])
    decoding = durations.cumsum() - durations
    presentation = decoding
    if "ctts" in tables:
        delays = _repeated(tables["ctts"][0])
        if len(delays) != len(durations):
            return None
        presentation = decoding + delays
    if not len(durations) or len(track.get("edts", [])) > 1 or _has_empty_sample(tables):
        return None
    keys = _entries(tables["stss"][0], 1)[:, 0] - 1 if "stss" in tables else np.arange(len(durations))
    if len(keys) and not (keys[0] >= 0 and keys[-1] < len(durations) and (np.diff(keys) > 0).all()):
        return None
    shown = int(presentation.min()), int(presentation.max())
    ticks = Fraction(_number(media["mdhd"][0], 12, 20), _number(movie["mvhd"][0], 12, 20))
    edits = boxes_of(track["edts"][0]).get("elst", []) if "edts" in track else []
    if len(edits) > 1 or durations.min() <= 0 or (edits and not _only_shifts(edits[0], shown, ticks)):
        return None
    return SampleTable(decoding, presentation, durations, keys)


def _has_empty_sample(tables: Boxes) -> bool:
    if "stsz" not in tables:
        return "stz2" not in tables
    content = tables["stsz"][0]
    size, count = struct.unpack_from(">II", content, 4)
    if size:
        return False
    if count > _MAX_SAMPLES or 12 + 4 * count > len(content):
        raise ValueError(f"{count} samples")
    return not np.frombuffer(content[12 : 12 + 4 * count], ">u4").all()


def top_boxes(file: BinaryIO) -> dict[str, tuple[int, int]]:
    """Return where the content of the first box of each type begins and ends in a file.

    Raises CutBoxError for one that ends behind the file, ValueError for other broken ones.
    """

    def read(at: int, count: int) -> bytes:
        file.seek(at)
        return file.read(count)

    spans: dict[str, tuple[int, int]] = {}
    for kind, start, stop in _spans(read, file.seek(0, 2)):
        spans.setdefault(kind, (start, stop))
    return spans


def movie_boxes(file: BinaryIO, top: dict[str, tuple[int, int]]) -> Boxes:
    """Return the boxes of an mp4 file's header."""
    start, stop = top["moov"]
    if stop - start > _MAX_MOVIE_BYTES:
        raise ValueError(f"a header of {stop - start} bytes")
    file.seek(start)
    return boxes_of(memoryview(file.read(stop - start)))


def boxes_of(content: memoryview) -> Boxes:
    """Return the boxes inside a box by their type, without those inside them.

    Raises CutBoxError for one that ends behind the content, ValueError for other broken ones.
    """
    boxes: Boxes = {}
    for kind, start, stop in _spans(lambda at, count: content[at : at + count], len(content)):
        boxes.setdefault(kind, []).append(content[start:stop])
    return boxes


def _spans(read: Callable[[int, int], bytes | memoryview], end: int) -> Iterator[tuple[str, int, int]]:
    """Yield each box's type, and where its content begins and ends."""
    at = 0
    for _ in range(_MAX_BOXES):
        if at + 8 > end:
            return
        size, code = struct.unpack(">I4s", read(at, 8))
        kind, header = code.decode("latin-1"), 8
        if size == 1:
            (size,), header = struct.unpack(">Q", read(at + 8, 8)), 16
        stop = at + size if size else end
        if size and size < header:
            raise ValueError(f"a box of {size} bytes at {at}")
        if stop > end:
            raise CutBoxError(kind)
        yield kind, at + header, stop
        at = stop
    raise ValueError(f"more than {_MAX_BOXES} boxes")


def _number(content: memoryview, short: int, long: int) -> int:
    """Return a field of 32 bits of a full box: at `short` in version 0, at `long` in version 1."""
    return int(struct.unpack_from(">I", content, long if content[0] else short)[0])


def _entries(content: memoryview, columns: int) -> NDArray[np.int64]:
    """Return the rows of a full box that holds their count and then numbers of 32 bits, as int64 (rows, columns)."""
    (count,) = struct.unpack_from(">I", content, 4)
    stop = 8 + count * columns * 4
    if count > _MAX_SAMPLES or stop > len(content):
        raise ValueError(f"{count} entries")
    return np.frombuffer(content[8:stop], ">i4").reshape(count, columns).astype(np.int64)


def _repeated(content: memoryview) -> NDArray[np.int64]:
    """Return the values of a run-length coded table (stts, ctts), one for each sample."""
    counts, values = _entries(content, 2).T
    total = int(counts.sum())
    if total > _MAX_SAMPLES:
        raise ValueError(f"{total} samples")
    return np.repeat(values, counts)  # raises ValueError for negative counts


def _only_shifts(content: memoryview, shown: tuple[int, int], ticks: Fraction) -> bool:
    """Return whether an edit list hides no picture: one edit of the whole track, alone or after an empty one.

    `shown` are the first and the last picture's times.
    """
    version, count = struct.unpack_from(">B3xI", content)
    row = struct.Struct(">QqI" if version else ">IiI")
    if len(content) != 8 + count * row.size:
        return False  # FFmpeg goes by the size, not by the count
    edits = [row.unpack_from(content, 8 + number * row.size) for number in range(min(count, 3))]
    if len(edits) == 2 and edits[0][1] == -1:
        edits = edits[1:]
    if len(edits) != 1:
        return False
    duration, start, rate = edits[0]
    return bool(rate == 0x10000 and 0 <= start <= shown[0] and start + duration * ticks > shown[1])
