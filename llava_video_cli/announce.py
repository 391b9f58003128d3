"""A running server tells the programs of the same user where it is, through a file in the user's runtime folder."""

from __future__ import annotations

import json
import os
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

_SUFFIX = ".server"
_MOST_BYTES = 4096  # of a file; ours are a line
_MOST_FILES = 100


@dataclass(frozen=True)
class Announced:
    """A server of this user's that is running: `url` without a path, and the name of its model."""

    url: str
    model: str


@contextmanager
def announce(url: str, model: str) -> Iterator[None]:
    """Announce a server for the `with` block.

    The file is readable by the user alone, and locked as long as the process lives, so that one left behind by a
    killed server is not believed. Where there is no such folder, or no locks, nothing is announced.
    """
    file = _write(json.dumps({"url": url, "model": model}))
    try:
        yield
    finally:
        if file is not None:
            descriptor, path = file
            path.unlink(missing_ok=True)
            os.close(descriptor)


def announced() -> Announced | None:
    """Return a server that is running, of several the one that began last; what others wrote is not believed."""
    folder = _folder()
    if folder is None:
        return None
    found: list[tuple[float, Announced]] = []
    with suppress(OSError):
        for path in sorted(folder.glob(f"*{_SUFFIX}"))[:_MOST_FILES]:
            with suppress(OSError, ValueError):
                found += _read(path)
    return max(found, key=lambda each: each[0])[1] if found else None


def _write(text: str) -> tuple[int, Path] | None:
    folder = _folder()
    if folder is None:
        return None
    import fcntl

    path = folder / f"{os.getpid()}{_SUFFIX}"
    with suppress(OSError):
        path.unlink(missing_ok=True)  # a dead process of the same number left it
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(descriptor, text.encode())
        except OSError:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            return None
        return descriptor, path
    return None


def _read(path: Path) -> list[tuple[float, Announced]]:
    """Return what a live server wrote and when; raises OSError or ValueError for anything else than such a file."""
    import fcntl

    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not _ours(status) or not stat.S_ISREG(status.st_mode):
            return []
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            values = json.loads(os.read(descriptor, _MOST_BYTES))
        else:  # nobody holds it: its server is gone
            path.unlink(missing_ok=True)
            return []
    finally:
        os.close(descriptor)
    if not isinstance(values, dict):
        return []
    url, model = values.get("url"), values.get("model")
    if not isinstance(url, str) or not isinstance(model, str) or not url.startswith("http://"):
        return []
    return [(status.st_mtime, Announced(url, model))]


def _folder() -> Path | None:
    """Return the folder, made if need be: under XDG_RUNTIME_DIR, or one for this user in the folder of temporary files.

    None where it belongs to somebody else or is open to others, and on systems without locks.
    """
    if sys.platform == "win32":
        return None
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
    folder = runtime / "llvid" if runtime.is_absolute() else Path(tempfile.gettempdir()) / f"llvid-{os.getuid()}"
    try:
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
        status = folder.lstat()
    except OSError:
        return None
    return folder if stat.S_ISDIR(status.st_mode) and _ours(status) else None


def _ours(status: os.stat_result) -> bool:
    return status.st_uid == os.getuid() and not status.st_mode & 0o077
