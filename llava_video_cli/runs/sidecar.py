"""Captions in files of their own: beside each video, or in a folder that repeats the videos' tree."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import LlvidError
from ..system.atomic_file import whole_file
from .formats import SIDECARS, Sidecar
from .record import Record


@dataclass(frozen=True)
class Sidecars:
    """Where they go, and which ones; `folder` None means beside the video."""

    kinds: Sequence[Sidecar] = ()
    folder: Path | None = None

    def paths(self, video: str, root: str) -> dict[Sidecar, Path]:
        """Return the files of a video, which was found below `root` ("" if it was named itself)."""
        place = Path(video)
        if self.folder is not None:
            place = self.folder / (os.path.relpath(video, root) if root else place.name)
        return {kind: place.with_name(f"{place.stem}.{kind}") for kind in self.kinds}

    def write(self, record: Record, root: str) -> None:
        """Write a record's files, each whole or not at all. Raises LlvidError."""
        for kind, path in self.paths(record.path, root).items():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise LlvidError(f"can't make the folder {path.parent}: {error.strerror}") from None
            with whole_file(path) as beside:
                beside.write_text(SIDECARS[kind](record), encoding="utf-8", newline="")
