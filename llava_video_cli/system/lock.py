"""A lock on an open file or folder, so that only one run uses it."""

from __future__ import annotations

import sys

from ..errors import LlvidError


def lock(descriptor: int, name: str) -> None:
    """Lock an open file or folder until it is closed or the process ends. Raises LlvidError if another run has it.

    Nothing is locked where there are no locks: on Windows and on some network file systems.
    """
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise LlvidError(f"another run is writing {name}", "wait for it, or name another place with -o") from None
    except OSError:  # a file system without locks
        return
