"""The process that decodes the media of requests: bounded in memory and time, and at low priority.

It reads a job from each line of stdin: JSON with `path`, `sampling`, `limits` and `max_pixels`. For a picture and for
each frame, it writes to stdout a head with its `shape`, and its pixels; then a head without a `shape`. A head is four
bytes with the length of its JSON, and the JSON. `media_pool` has the other end.
"""

from __future__ import annotations

import json
import math
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from ..errors import LlvidError
from ..video.limits import Limits
from ..video.sampling import Sampling

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

HEAD_BYTES = 4
MAX_MEMORY_BYTES = 2 * 2**30  # above what the process takes before its first job
PICTURE_SECONDS, VIDEO_SECONDS = 20, 60  # of processor time; an animation is a picture, too
_NICE = 5


def main() -> None:
    """Decode until stdin ends."""
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get between the pixels
    if hasattr(os, "nice"):
        os.nice(_NICE)
    import av  # noqa: F401 - so that no job pays for the import
    import numpy as np  # noqa: F401
    import PIL.Image

    from ..video import reader  # noqa: F401

    PIL.Image.init()
    _bound_memory()
    for line in sys.stdin.buffer:
        _write(output, _result(json.loads(line), output))
        output.flush()


def _result(job: dict[str, Any], output: BinaryIO) -> dict[str, Any]:
    """Return the last head of a job."""

    def send(image: NDArray[np.uint8], is_frame: bool) -> None:
        _write(output, {"shape": image.shape, "is_frame": is_frame})
        output.write(image.data.cast("B"))

    try:
        return _decode(job, send)
    except LlvidError as error:
        return {"error": str(error), "hint": error.hint}
    except MemoryError:
        return {"error": f"{job['path']}: needs more than {MAX_MEMORY_BYTES / 2**30:g} GiB of memory", "hint": None}
    except BrokenPipeError:  # the server is gone
        raise
    except Exception:  # noqa: BLE001 - a bug: the server logs it
        return {"bug": traceback.format_exc()}


def _decode(job: dict[str, Any], send: Callable[[NDArray[np.uint8], bool], None]) -> dict[str, Any]:
    import numpy as np

    from ..video import read_frames
    from ..video.image import is_picture, read_image

    path, limits = job["path"], Limits(**job["limits"])
    _bound_seconds(PICTURE_SECONDS)
    if is_picture(path):
        send(np.ascontiguousarray(read_image(path, job["max_pixels"]).pixels), False)
        return {}
    if not _is_animation(path):
        _bound_seconds(VIDEO_SECONDS)
    count = 0

    def send_frame(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the frame's number as an image of one pixel: the reader may take frames again, or drop some."""
        nonlocal count
        send(np.ascontiguousarray(image), True)
        count += 1
        return np.frombuffer((count - 1).to_bytes(3, "little"), np.uint8).reshape(1, 1, 3)

    frames = read_frames(path, Sampling(**job["sampling"]), limits=limits, resize=send_frame)
    numbers = [int.from_bytes(image.tobytes(), "little") for image in frames.images]
    return {
        "numbers": numbers,
        "times_seconds": frames.times_seconds,
        "info": asdict(frames.info),
        "notes": frames.notes,
    }


def _is_animation(path: str) -> bool:
    if not Path(path).is_file():  # to open a pipe could take forever
        return False
    with Path(path).open("rb") as file:
        head = file.read(12)
    return head[:4] in (b"GIF8", b"\x89PNG") or head[8:] == b"WEBP"


def _bound_memory() -> None:
    """Let the process take `MAX_MEMORY_BYTES` more than it has now; Linux only."""
    if sys.platform == "linux":
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        wanted = pages * resource.getpagesize() + MAX_MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (wanted if hard < 0 else min(wanted, hard), hard))


def _bound_seconds(seconds: float) -> None:
    """Have the system end the process after so many further seconds of processor time; not on Windows."""
    if sys.platform != "win32":
        import resource

        usage = resource.getrusage(resource.RUSAGE_SELF)
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        wanted = math.ceil(usage.ru_utime + usage.ru_stime + seconds)
        resource.setrlimit(resource.RLIMIT_CPU, (wanted if hard < 0 else min(wanted, hard), hard))


def _write(output: BinaryIO, head: dict[str, Any]) -> None:
    content = json.dumps(head).encode()
    output.write(len(content).to_bytes(HEAD_BYTES, "little") + content)
