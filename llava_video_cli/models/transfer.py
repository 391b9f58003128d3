"""One large file from the hub to the hub's cache: gone on with where it stopped, checked before it counts."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import BinaryIO

from ..errors import ModelError
from .hub import HubFile

DAMAGE_HINT = "it is removed, and the same command downloads it anew"
_BLOCK_BYTES = 2**20
_LOCK_SECONDS = 1.0


class Stopped(Exception):  # noqa: N818 - no failure: the caller asked for it
    """The transfer was asked to stop; what came stays."""


@dataclass
class Transfer:
    """A file on its way to `blob`; `done_bytes` may be read meanwhile.

    huggingface_hub itself throws away what it has of a file when it is interrupted (since 1.x, where each process got
    a partial file of its own); the checkpoints' files have up to 5 GB. So the part is kept here, and huggingface_hub
    finds the whole blob and only links it.
    """

    file: HubFile
    blob: Path
    lock: Path
    done_bytes: int = 0
    came_bytes: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.done_bytes = self.file.bytes if self.blob.exists() else _size(self.partial)

    @property
    def partial(self) -> Path:
        """Where the part lies until it is whole; `hf cache prune` knows the ending."""
        return self.blob.with_name(f"{self.blob.name}.incomplete")

    def run(self, url: str, stop: Event) -> None:
        """Fetch what is missing; a second process waits for the first, and shows how far that is.

        Raises `ModelError` for bytes that aren't those promised (and removes them) and for a connection that breaks off
        again and again, `Stopped`, `OSError`, and what huggingface_hub raises.
        """
        from filelock import Timeout
        from huggingface_hub.utils import WeakFileLock

        self.lock.parent.mkdir(parents=True, exist_ok=True)
        self.blob.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                with WeakFileLock(self.lock, timeout=_LOCK_SECONDS):
                    if not self.blob.exists():
                        self._get(url, stop)
                    self.done_bytes = self.file.bytes
                    return
            except Timeout:
                self.done_bytes = _size(self.partial)
                if stop.is_set():
                    raise Stopped from None

    def _get(self, url: str, stop: Event) -> None:
        from huggingface_hub.errors import HTTPError
        from huggingface_hub.file_download import http_get
        from huggingface_hub.utils import build_hf_headers

        if _size(self.partial) > self.file.bytes:
            self.partial.unlink()
        self.partial.touch()
        with self.partial.open("r+b") as file:
            sink = _Sink(file, self, stop)
            kept = sink.take_up()
            try:
                http_get(url, sink, resume_size=kept, headers=build_hf_headers(), expected_size=self.file.bytes)
            except HTTPError as error:
                if getattr(error, "response", None) is not None:
                    raise
                raise ModelError(
                    f"the connection to the hub broke off in {self.file.name}", "the same command goes on where it was"
                ) from None
            file.flush()
            os.fsync(file.fileno())  # a checksum is of no use if a power cut takes the bytes
        if sink.sha256.hexdigest() != self.file.sha256:
            self.partial.unlink()
            raise ModelError(
                f"{self.file.name} came damaged: its checksum is {sink.sha256.hexdigest()[:12]}..., "
                f"the hub promised {str(self.file.sha256)[:12]}...",
                DAMAGE_HINT,
            )
        self.partial.replace(self.blob)


class _Sink:
    """The file that `http_get` writes on: takes the checksum on the way, and stops when asked to."""

    def __init__(self, file: BinaryIO, transfer: Transfer, stop: Event) -> None:
        self._file, self._transfer, self._stop = file, transfer, stop
        self.sha256 = hashlib.sha256()

    def take_up(self) -> int:
        """Read what is there, to its end; return its bytes."""
        while block := self._file.read(_BLOCK_BYTES):
            if self._stop.is_set():
                raise Stopped
            self.sha256.update(block)
        return self.tell()

    def write(self, data: bytes) -> int:
        if self._stop.is_set():
            raise Stopped
        self.sha256.update(data)
        count = self._file.write(data)
        self._transfer.came_bytes += count
        self._transfer.done_bytes = self.tell()
        return count

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, position: int, whence: int = 0) -> int:
        return self._file.seek(position, whence)

    def truncate(self) -> int:
        """Begin anew: a server that knows no ranges sends the whole file again."""
        assert self.tell() == 0
        self.sha256 = hashlib.sha256()
        self._transfer.done_bytes = 0
        return self._file.truncate()

    def flush(self) -> None:
        self._file.flush()


def damage(path: Path, file: HubFile) -> str | None:
    """Return what is wrong with a file that was downloaded, or None."""
    if _size(path) != file.bytes:
        return f"it has {_size(path):,} bytes, the hub promised {file.bytes:,}"
    if file.sha256 is not None:
        digest, promised = hashlib.sha256(), file.sha256
    elif file.git_sha1 is not None:
        digest, promised = hashlib.sha1(b"blob %d\0" % file.bytes, usedforsecurity=False), file.git_sha1
    else:
        return None
    with path.open("rb") as content:
        while block := content.read(_BLOCK_BYTES):
            digest.update(block)
    got = digest.hexdigest()
    return None if got == promised else f"its checksum is {got[:12]}..., the hub promised {promised[:12]}..."


def discard(path: Path) -> None:
    """Remove a file of the hub's cache, and the blob that it points to."""
    for each in (path.resolve(), path):
        with suppress(FileNotFoundError):
            each.unlink()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
