"""What a run over folders has to do: what is done already, what can't be done, what has only lost its sidecars."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from ..errors import LlvidError, MediaError
from ..video.files import Found
from .caption import Task
from .formats import Sidecar
from .record import Failure, path_to_text
from .sidecar import Sidecars


@dataclass
class Todo:
    """Sorted out of what was found: `videos` to caption with the keys of their records, `done` before.

    `kept` have a sidecar that is none of ours, which stays; `lost` are keys of records whose sidecars are gone, with
    the folder that the video was found by.
    """

    videos: list[tuple[Found, str]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    done: int = 0
    kept: list[Path] = field(default_factory=list)
    lost: dict[str, str] = field(default_factory=dict)


def sort_out(
    found: Iterable[Found | MediaError], task: Task, done: set[str], sidecars: Sidecars, home: Path, *, overwrite: bool
) -> Todo:
    """Return what is to be done. `done` are the keys of records in the output file, which lies in the folder `home`."""
    todo = Todo()
    taken: dict[Path, str] = {}

    @cache
    def place(folder: str) -> str:
        return os.path.relpath(folder or os.curdir, home)

    for each in found:
        if isinstance(each, MediaError):
            todo.failures.append(Failure({"video_path": path_to_text(str(each).split(": ", 1)[0])}, each))
            continue
        folder, name = os.path.split(each.path)
        key = task.key(os.path.join(place(folder), name), each.status)  # noqa: PTH118 - what was listed, as it was
        paths = sidecars.paths(each.path, each.root)
        if (rival := _rival(each, paths, taken)) is not None:
            todo.failures.append(Failure({"video_path": path_to_text(each.path)}, rival))
        elif key in done:
            todo.done += 1
            if not all(path.exists() for path in paths.values()):
                todo.lost[key] = each.root
        elif not overwrite and (there := [path for path in paths.values() if path.exists()]):
            todo.kept += there
        else:
            todo.videos.append((each, key))
    return todo


def _rival(found: Found, paths: dict[Sidecar, Path], taken: dict[Path, str]) -> LlvidError | None:
    """Return the error of a video whose sidecars another one has, as a.mp4 and a.mkv would."""
    for path in paths.values():
        other = taken.setdefault(path, found.path)
        if other != found.path:
            return LlvidError(f"{found.path}: {path} is for {other}", "rename one of the two")
    return None
