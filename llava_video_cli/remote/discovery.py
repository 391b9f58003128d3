"""How programs find a running server of the same user: by a locked file in the user's runtime folder."""

import os
from contextlib import AbstractContextManager, nullcontext, suppress
from stat import S_IFREG

from ..system.files import runtime_folder


def announce(url: str, model: str) -> AbstractContextManager[object]:
    """Announce a server until the returned object is closed or the process ends; without file locks, do nothing."""
    with suppress(OSError, ValueError, ImportError):
        import fcntl

        path = runtime_folder() / f"{os.getpid()}.new"
        path.touch(0o600)
        file = path.open("w")
        fcntl.flock(file, fcntl.LOCK_EX)
        print(url, model, sep="\n", end="", file=file, flush=True)
        path.replace(path.with_suffix(".server"))
        return file
    return nullcontext()


def announced(model: str) -> str | None:
    """Return the URL of a running server of this user that has the model, or None."""
    with suppress(OSError, ValueError, ImportError):
        import fcntl

        for path in runtime_folder().glob("*.server"):
            if path.lstat().st_mode == S_IFREG | 0o600:  # not a link or a pipe, and not readable by others
                with path.open() as file:
                    try:
                        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                        path.unlink()  # the lock is free: its server has ended
                    except BlockingIOError:
                        url, _, name = file.read().partition("\n")
                        if name == model and url.startswith("http://"):
                            return url
    return None
