"""llvid's own files: their folders, complete writes, locks, and fingerprints of their content."""

from __future__ import annotations

import os
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_IFDIR

from ..errors import LlvidError, UsageError

_STEM_BYTES = 200
NO_HOME = "/nonexistent"  # as Debian calls it, of a container's user: nothing is read there, nor kept
TMPDIR_HINT = "TMPDIR=FOLDER takes another folder for temporary files"


def config_folder() -> Path:
    """Return the folder of the user's presets, by the XDG base directory specification."""
    return (_base("XDG_CONFIG_HOME") or _home() / ".config") / "llvid"


def cache_folder() -> Path:
    """Return the folder of what can be made again."""
    return (_base("XDG_CACHE_HOME") or _home() / ".cache") / "llvid"


def state_folder() -> Path:
    """Return the folder of what llvid remembers between runs."""
    return (_base("XDG_STATE_HOME") or _home() / ".local" / "state") / "llvid"


def runtime_folder() -> Path:
    """Return the folder of files that live as long as a process; it is created if necessary.

    Raises OSError if it can't be created, or if other users have access to it.
    """
    runtime = _base("XDG_RUNTIME_DIR")
    folder = runtime / "llvid" if runtime else Path(tempfile.gettempdir()) / f"llvid-{os.getuid()}"
    folder.mkdir(0o700, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or status.st_mode & ~0o7700 != S_IFDIR:
        raise PermissionError(f"{folder} is not private to you")
    return folder


def expanded(path: str) -> Path:
    """Return a path with the home of its `~` or `~user`; that of an unknown user is no folder, and no error."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 - Path.expanduser raises RuntimeError


def _home() -> Path:
    home = expanded("~")
    return home if home.is_absolute() else Path(NO_HOME)


def _base(variable: str) -> Path | None:
    path = Path(os.environ.get(variable, ""))
    return path if path.is_absolute() else None


_TEMPORARY = set[Path]()  # that `remove_temporary` removes


@contextmanager
def temporary_file() -> Iterator[Path]:
    """Give the path of an empty file that only this user can read; it is removed at the end of the block.

    The folder is that of TMPDIR. On Linux the file has no name there, and goes with the process, however that ends:
    its path is that of the open descriptor. Elsewhere `remove_temporary` removes it earlier, where a signal ends the
    program. Raises `LlvidError` if it can't be made.
    """
    try:
        descriptor, name = tempfile.mkstemp(prefix="llvid-")
    except OSError as error:
        raise LlvidError(f"can't make a temporary file: {error.strerror}", TMPDIR_HINT) from None
    named, unnamed = Path(name), Path(f"/proc/{os.getpid()}/fd/{descriptor}")
    _TEMPORARY.add(named)
    try:
        is_linux = unnamed.exists()
        if is_linux:
            named.unlink()
        yield unnamed if is_linux else named
    finally:
        os.close(descriptor)
        named.unlink(missing_ok=True)
        _TEMPORARY.discard(named)


def remove_temporary() -> None:
    """Remove the files of `temporary_file` and `whole_file` now: the program ends, and nothing else does it."""
    for path in tuple(_TEMPORARY):
        with suppress(OSError):
            path.unlink()


@contextmanager
def whole_file(path: Path, option: str = "-o") -> Iterator[Path]:
    """Give a temporary path in the same folder, with the same suffix; it is renamed at the end, or removed on failure.

    A full disk or Ctrl-C therefore leaves no partial file. A symbolic link stays: the file that it points to is
    replaced. Raises `LlvidError` if the file can't be written; `option` takes another path.
    """
    shown, path = path, Path(os.path.realpath(path))
    # A short name, because the final one may be as long as the file system allows.
    temporary = path.with_name(f".llvid-{os.getpid()}-{zlib.crc32(os.fsencode(path.name)):08x}{path.suffix[:16]}")
    _TEMPORARY.add(temporary)
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise LlvidError(
            f"can't write {shown}: {error.strerror or error}", f"choose another path with {option}"
        ) from None
    finally:
        with suppress(OSError):
            temporary.unlink()
        _TEMPORARY.discard(temporary)


def check_place(path: Path) -> None:
    """Raise `LlvidError` for a path at which `whole_file` can't write, as its folder is not there."""
    folder = Path(os.path.realpath(path)).parent
    if not folder.is_dir():
        raise LlvidError(f"can't write {path}: there is no folder {folder}")


def check_replaceable(path: Path, is_ours: Callable[[Path], bool], words: str, option: str, *, overwrite: bool) -> None:
    """Raise `UsageError` with these words for what is in a path's place, but for an empty file, and for one of ours.

    With `overwrite`, any file may be replaced, but no folder.
    """
    is_file = path.is_file()
    if not path.exists() or (is_file and (overwrite or not path.stat().st_size or is_ours(path))):
        return
    hint = f"choose another file with {option}" + (", or replace it with --overwrite" if is_file else "")
    raise UsageError(f"{path}{words}", hint)


def short_stem(path: str) -> str:
    """Return a file's name without its ending, cut so that some can be added: file systems take 255 bytes of a name."""
    return os.fsencode(Path(path).stem)[:_STEM_BYTES].decode(errors="ignore")


def flush_folder(folder: Path) -> None:
    """Let the names of files that were made or renamed in a folder outlive a power cut, where the system can."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


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
        raise LlvidError(f"another run is writing {name}", "wait for it, or choose another path with -o") from None
    except OSError:  # a file system without locks
        return


def fingerprint(content: bytes, key: bytes = b"") -> str:
    """Return 32 hexadecimal digits that differ for different contents, or for different keys of at most 64 bytes."""
    import hashlib  # it loads OpenSSL: 15 ms that most commands don't need

    return hashlib.blake2b(content, key=key, digest_size=16).hexdigest()
