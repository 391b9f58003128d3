"""Videos: what they are, and the frames that a sampling takes from them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .errors import MediaError
from .sampling import Sampling, choose

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from .decoding import Canvas, Review
    from .sampling import Choice, Timeline
    from .survey import Survey

MAX_BYTES = 16 * 2**30  # of decoded frames: 2,700 of 1080p


@dataclass(frozen=True)
class VideoInfo:
    """What a video is, as its content says; the header's own claims are not trusted.

    `duration_seconds` runs from the first picture's appearance to the last one's disappearance; sound doesn't
    count. `width` and `height` are pixels as shown, after rotation; non-square pixels are not stretched.
    `average_fps` is None for a single picture. `rotation_degrees` is the clockwise turn (0, 90, 180, 270) that
    was applied to the stored pictures.
    """

    path: str
    duration_seconds: float
    width: int
    height: int
    average_fps: float | None
    codec: str
    rotation_degrees: int


@dataclass(frozen=True, eq=False)
class Frames:
    """Frames of one video, in order of time. Compared by identity.

    `images` is uint8 (frames, height, width, 3), RGB, upright; an alpha channel is dropped. `times_seconds` has
    the time of each frame, counted from the first picture on screen, so that neither a late start nor an edit
    list shifts them. `notes` are lines for the user: fewer frames than asked for, broken packets, ...
    """

    images: NDArray[np.uint8]
    times_seconds: tuple[float, ...]
    info: VideoInfo
    sampling: Sampling
    notes: tuple[str, ...] = ()


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Return what a video is, from one pass over its packets and one decoded picture.

    A file whose packets carry no usable stamps (AVI with B-frames, raw streams) is decoded once from start to end.
    Raises MediaError for what can't be shown: no file, a folder, an empty file, no video, no video stream, no
    picture that can be decoded.
    """
    from .survey import survey

    name = os.fspath(path)
    found = survey(name)
    timeline = found.packets.timeline if found.packets else _review(name).timeline(found)
    return _info(name, found, timeline)


def read_frames(path: str | os.PathLike[str], sampling: Sampling | None = None) -> Frames:
    """Return the frames that `sampling` (by default `Sampling()`) takes from a video.

    Each is bit for bit the picture that decoding the whole file would give. Broken packets are skipped, and the
    nearest good frame takes the place of one that is lost; a note says so. (Damage that the decoder doesn't
    complain about can't be seen here either, and may look different from one run to the next.)

    Raises MediaError for what `probe` refuses, and when the video has nothing at `start_seconds`, or the frames
    would need more than `MAX_BYTES` of memory.
    """
    from .decoding import assemble, decode_runs, decode_through
    from .survey import survey

    name = os.fspath(path)
    sampling = Sampling() if sampling is None else sampling
    found = survey(name)
    broken: list[str] = []
    if packets := found.packets:
        timeline = packets.timeline
        choice, canvas = _prepare(name, found, timeline, sampling)
        decode_runs(name, packets, canvas, strict=True)
        decode_runs(name, packets, canvas, strict=False)  # what is left
    if not packets or canvas.left:
        seen = _review(name)
        broken, decoded = seen.broken, seen.timeline(found)
        lost = set(timeline.stamps) - set(decoded.stamps) if packets else set()
        if not packets or len(lost) + len(decoded.stamps) > len(timeline.stamps) or (lost and not broken):
            timeline = decoded  # the packets don't tell what is shown when
            choice, canvas = _prepare(name, found, timeline, sampling)
        decode_through(name, decoded.stamps, canvas)
    images, stamps = assemble(canvas, choice.stamps)
    return Frames(
        images=images,
        times_seconds=tuple(timeline.seconds(stamp) for stamp in stamps),
        info=_info(name, found, timeline),
        sampling=sampling,
        notes=choice.notes + _notes(canvas, broken, len(choice.stamps) - len(stamps)),
    )


def _review(path: str) -> Review:
    from .decoding import review

    seen = review(path)
    if not seen.stamps:
        raise MediaError(f"{path}: no picture can be decoded")
    return seen


def _prepare(path: str, found: Survey, timeline: Timeline, sampling: Sampling) -> tuple[Choice, Canvas]:
    from .decoding import Canvas

    try:
        choice = choose(timeline, sampling)
    except MediaError as error:
        raise MediaError(f"{path}: {error}", error.hint) from None
    size_bytes = len(choice.stamps) * found.width * found.height * 3
    if size_bytes > MAX_BYTES:
        raise MediaError(
            f"{path}: {len(choice.stamps)} frames of {found.width}x{found.height} need"
            f" {size_bytes / 2**30:.0f} GiB of memory, more than {MAX_BYTES / 2**30:.0f}",
            hint="ask for fewer frames",
        )
    return choice, Canvas.blank(found, dict.fromkeys(choice.stamps))


def _info(path: str, found: Survey, timeline: Timeline) -> VideoInfo:
    width, height, count = found.width, found.height, len(timeline.stamps)
    if found.orientation.transpose:
        width, height = height, width
    return VideoInfo(
        path=path,
        duration_seconds=timeline.duration_seconds,
        width=width,
        height=height,
        average_fps=(count - 1) / timeline.seconds(timeline.stamps[-1]) if count > 1 else None,
        codec=found.codec,
        rotation_degrees=found.orientation.clockwise_degrees,
    )


def _notes(canvas: Canvas, broken: list[str], lost: int) -> tuple[str, ...]:
    notes = []
    if broken:
        packets = "1 broken packet" if len(broken) == 1 else f"{len(broken)} broken packets"
        replaced = any(target != stamp for target, stamp in canvas.shown.items())
        notes.append(f"{packets} skipped" + ("; nearest good frames used" if replaced else ""))
    if lost:
        notes.append(f"{lost} of the frames asked for {'is' if lost == 1 else 'are'} lost")
    if canvas.resized:
        notes.append("the picture changes its size; all frames are scaled to that of the first")
    return tuple(notes)
