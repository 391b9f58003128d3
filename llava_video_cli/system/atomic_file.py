"""Files that are written completely or not at all."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import LlvidError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same folder, with the same suffix; it is renamed at the end, or removed on failure.

    So a full disk or Ctrl-C leaves no partial file. Raises `LlvidError` if the file can't be written.
    """
    # A short name, as the final one may have the greatest possible length.
    temporary = path.with_name(f".llvid-{os.getpid()}-{zlib.crc32(os.fsencode(path.name)):08x}{path.suffix[:16]}")
    try:
        yield temporary
        temporary.replace(path)
    except OSError as error:
        raise LlvidError(f"can't write {path}: {error.strerror or error}", "name another place with -o") from None
    finally:
        with suppress(OSError):
            temporary.unlink()
