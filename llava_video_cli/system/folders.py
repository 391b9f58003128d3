"""The folders of llvid's own files, by the XDG base directory specification."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from stat import S_IFDIR


def config_folder() -> Path:
    """Return the folder of the user's presets."""
    return (_base("XDG_CONFIG_HOME") or Path.home() / ".config") / "llvid"


def state_folder() -> Path:
    """Return the folder of what llvid remembers between runs."""
    return (_base("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "llvid"


def runtime_folder() -> Path:
    """Return the folder of files that live as long as a process; it is created if necessary.

    Raises OSError if it can't be created, or if other users have access to it.
    """
    runtime = _base("XDG_RUNTIME_DIR")
    folder = runtime / "llvid" if runtime else Path(tempfile.gettempdir()) / f"llvid-{os.getuid()}"
    folder.mkdir(0o700, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or status.st_mode & ~0o7700 != S_IFDIR:
        raise PermissionError(f"{folder} is open to others")
    return folder


def _base(variable: str) -> Path | None:
    path = Path(os.environ.get(variable, ""))
    return path if path.is_absolute() else None
