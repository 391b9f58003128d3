"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import LlvidError


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a path beside the wanted one, with the same ending; renamed at the end, removed after a failure.

    A full disk or a Ctrl-C so leaves no half file. Raises `LlvidError` if it can't be written.
    """
    # A short name: the wanted one may be as long as names get.
    beside = path.with_name(f".llvid-{os.getpid()}-{zlib.crc32(os.fsencode(path.name)):08x}{path.suffix[:16]}")
    try:
        yield beside
        beside.replace(path)
    except OSError as error:
        raise LlvidError(f"can't write {path}: {error.strerror or error}", "name another place with -o") from None
    finally:
        with suppress(OSError):
            beside.unlink()
