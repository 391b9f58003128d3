"""The file behind a video or a picture, checked before any decoder sees it."""

from __future__ import annotations

import os
import stat
from itertools import islice
from pathlib import Path
from typing import Literal

from ..errors import MediaError, nearest

_LOOKED_AT = 1000  # names in a folder, for a hint
_ALIKE = 0.75  # names of videos share their ending at least


def check_file(path: str, wanted: Literal["video", "picture", "file of subtitles"]) -> None:
    """Raise MediaError unless `path` is a regular file with something in it that may be read.

    Pipes and devices are refused: reading one could wait for ever.
    """
    try:
        status = Path(path).stat()
    except FileNotFoundError:
        raise MediaError(f"{path}: no such file", _meant(path)) from None
    except (OSError, ValueError) as error:
        words = error.strerror if isinstance(error, OSError) else error
        raise MediaError(f"{path}: can't be opened: {words}") from None
    if stat.S_ISDIR(status.st_mode):
        raise MediaError(f"{path}: a folder, not a {wanted}", "name a file in it")
    if not stat.S_ISREG(status.st_mode):
        raise MediaError(f"{path}: not a regular file")
    if status.st_size == 0:
        raise MediaError(f"{path}: the file is empty")
    if not os.access(path, os.R_OK):
        raise MediaError(f"{path}: can't be opened: Permission denied")


def _meant(path: str) -> str | None:
    """Return what a name that is none of a file was probably meant to be."""
    if "://" in path:
        return "only files are read: download it first"
    if path == "-":
        return "a video can't come from stdin: name a file"
    if path.endswith("?"):
        return "the video comes first, then the questions"
    folder = Path(path).parent
    try:
        return nearest(Path(path).name, (entry.name for entry in islice(folder.iterdir(), _LOOKED_AT)), least=_ALIKE)
    except OSError:
        return None
