"""The program of a process that decodes the media of requests: bounded in memory and time, and at low priority.

It gets one `DecodeJob` after the other, and sends None when it begins. For a picture and for each frame, it sends a
shape and whether it is a frame, then the pixels in pieces. At the end it sends a `Picture` or `Frames` whose images
have one pixel, the number of the image that was sent; or a MediaError; or the traceback of a bug.
"""

from __future__ import annotations

import math
import os
import re
import signal
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import LlvidError, MediaError
from ..video.limits import Limits
from ..video.sampling import Sampling

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from typing import Any

    import numpy as np
    from numpy.typing import NDArray

    from ..conversation import Media

MODULES = ("av", "numpy", "PIL.Image", "llava_video_cli.video.reader")  # imported before the first job
PIECE_BYTES = 2**22  # of the pixels that are sent: the receiver holds each piece twice
_NICE = 5
_ANIMATION = re.compile(rb"GIF8|\x89PNG|RIFF....WEBP", re.DOTALL)


@dataclass(frozen=True)
class Bounds:
    """What a file may cost: seconds of processor time (an animation is a picture, too), seconds by the clock, memory.

    `memory_bytes` are above what the process takes before its first job; Linux only. The seconds by the clock hardly
    ever count, as the two other bounds and the limits of the reader end nearly all before.
    """

    picture_seconds: int = 20
    video_seconds: int = 60
    clock_seconds: float = 150.0
    memory_bytes: int = 2 * 2**30


@dataclass(frozen=True)
class DecodeJob:
    """A file to decode; `max_pixels` is for a picture, `sampling` and `limits` for a video."""

    path: str
    sampling: Sampling
    limits: Limits
    max_pixels: int


def main(connection: Connection[Any, Any], bounds: Bounds) -> None:
    """Decode until the connection ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for the server
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 1)  # a file must not make the libraries fill the server's log
    os.dup2(nothing, 2)
    if hasattr(os, "nice"):
        os.nice(_NICE)
    for module in MODULES:
        import_module(module)
    if sys.platform == "linux":
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        _bound(resource.RLIMIT_AS, pages * resource.getpagesize() + bounds.memory_bytes)
    with suppress(EOFError, OSError):  # the server is gone
        while True:
            job = connection.recv()
            connection.send(None)
            connection.send(_result(job, bounds, connection))


def _result(job: DecodeJob, bounds: Bounds, connection: Connection[Any, Any]) -> Media | MediaError | str:
    try:
        return _decode(job, bounds, connection)
    except LlvidError as error:
        return MediaError(str(error), error.hint)
    except MemoryError:
        return MediaError(f"{job.path}: needs more than {bounds.memory_bytes / 2**30:g} GiB of memory")
    except BrokenPipeError:  # the server is gone
        raise
    except Exception:  # noqa: BLE001 - a bug: the server logs it
        return traceback.format_exc()


def _decode(job: DecodeJob, bounds: Bounds, connection: Connection[Any, Any]) -> Media:
    import numpy as np

    from ..video import read_frames
    from ..video.files import is_sequence
    from ..video.image import is_picture, read_image

    count = 0

    def send(image: NDArray[np.uint8], *, is_frame: bool = True) -> NDArray[np.uint8]:
        """Return the number of an image as an image of one pixel: the reader may take frames again, or drop some."""
        nonlocal count
        connection.send((image.shape, is_frame))
        content = np.ascontiguousarray(image).data.cast("B")
        for start in range(0, len(content), PIECE_BYTES):
            connection.send_bytes(content[start : start + PIECE_BYTES])
        count += 1
        return np.frombuffer((count - 1).to_bytes(3, "little"), np.uint8).reshape(1, 1, 3)

    _bound_seconds(bounds.picture_seconds)
    if is_picture(job.path):
        picture = read_image(job.path, job.max_pixels)
        return replace(picture, pixels=send(picture.pixels, is_frame=False))
    if is_sequence(job.path):
        _bound_seconds(bounds.video_seconds)
    elif Path(job.path).is_file():  # opening a pipe could take forever
        with Path(job.path).open("rb") as file:
            if not _ANIMATION.match(file.read(12)):
                _bound_seconds(bounds.video_seconds)
    limits = replace(job.limits, still_pixels=min(job.max_pixels, job.limits.still_pixels))  # of a video's pictures
    return read_frames(job.path, job.sampling, limits=limits, resize=send)


def _bound_seconds(seconds: float) -> None:
    """Have the system end the process after so many further seconds of processor time; not on Windows."""
    if sys.platform != "win32":
        import resource

        usage = resource.getrusage(resource.RUSAGE_SELF)
        _bound(resource.RLIMIT_CPU, math.ceil(usage.ru_utime + usage.ru_stime + seconds))


def _bound(kind: int, value: int) -> None:
    import resource

    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))
