"""A file or folder taken by one run, for as long as it holds it open."""

from __future__ import annotations

import sys

from ..errors import LlvidError


def lock(descriptor: int, name: str) -> None:
    """Take what is open for this process; death gives it back. Raises LlvidError if another run has it.

    Where there are no locks (Windows, some network file systems) nothing is taken.
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
