"""What a run over folders has to do: what is done already, what can't be done, what only lacks its sidecars."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

from ..errors import ContextError, LlvidError, MediaError
from ..prompt.subtitles import Count
from ..system.files import whole_file
from ..video import check_video
from ..video.files import Found
from ..video.image import is_picture, read_image
from .caption import CaptionJob, Task
from .formats import SIDECARS, Sidecar, Sidecars
from .preflight import first_request, largest_requests
from .record import Failure, Record, path_to_text
from .resumable import RunPlan

_FEW = 20  # videos, which take less to check than a model takes to load


@dataclass
class FolderPlan:
    """The files of a run: `videos` to caption, with the keys of their records; `failures`; and how many are `done`.

    `kept` are sidecars that this run didn't write: they stay, and their videos are left out. `lost` are the keys of
    records whose sidecars are missing, with the folder that the video was found in.
    """

    videos: list[tuple[Found, str]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    done: int = 0
    kept: list[Path] = field(default_factory=list)
    lost: dict[str, str] = field(default_factory=dict)

    def run_plan(self, task: Task, sidecars: Sidecars, *, rope_auto: bool = False) -> RunPlan:
        """Return the run that captions the videos."""
        roots = {key: found.root for found, key in self.videos} if sidecars.kinds else {}

        def jobs(settings: Mapping[str, Any], count: Count) -> Iterator[CaptionJob]:
            return (CaptionJob(found.path, key, task, settings, count) for found, key in self.videos)

        def write_sidecars(record: Record) -> None:
            if sidecars.kinds:
                sidecars.write(record, roots[record.key])

        def is_fatal(error: LlvidError) -> bool:
            # as many frames of each video: what doesn't fit the context once never will
            return isinstance(error, ContextError) and task.preset.sampling.fps is None

        return RunPlan(
            jobs, len(self.videos), self.done, self.failures, is_fatal, write_sidecars,
            largest=lambda: largest_requests(task, rope_auto=rope_auto),
            first=lambda: first_request((found.path for found, _ in self.videos), task),
        )  # fmt: skip


def plan_folder(
    found: Iterable[Found | MediaError], task: Task, done: set[str], sidecars: Sidecars, home: Path, *, overwrite: bool
) -> FolderPlan:
    """Return what is to be done. `done` are the keys of records in the output file, which lies in the folder `home`."""
    todo = FolderPlan()
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


def plan_one_file(path: str, to: Path, task: Task, *, overwrite: bool) -> RunPlan:
    """Return the run that writes one video's caption as text or subtitles; its failure ends the run.

    Raises `MediaError` for a file that can't be read, and `LlvidError` if `to` is there already.
    """
    _check(path)
    if to.exists() and not overwrite:
        raise LlvidError(f"{to} is there already", "--overwrite writes over it")
    found = Found(path, "", Path(path).stat())
    plan = FolderPlan([(found, task.key(path, found.status))]).run_plan(task, Sidecars())

    def write(record: Record) -> None:
        with whole_file(to) as beside:
            text = SIDECARS[cast("Sidecar", to.suffix.lower()[1:])](record)
            beside.write_text(text, encoding="utf-8", newline="")

    return replace(plan, written=write, is_fatal=lambda _: True)


def restore_sidecars(plan: FolderPlan, records: Iterable[Record], sidecars: Sidecars) -> None:
    """Write the sidecars of records that are done, where they are missing or were not asked for before."""
    for record in records if plan.lost else ():
        if record.key in plan.lost:
            sidecars.write(record, plan.lost[record.key])


def check_few(plan: FolderPlan) -> None:
    """Find the broken ones of a few videos before a model is loaded, maybe for nothing."""
    for found, key in tuple(plan.videos) if len(plan.videos) <= _FEW else ():
        try:
            _check(found.path)
        except MediaError as error:
            plan.videos.remove((found, key))
            plan.failures.append(Failure({"video_path": path_to_text(found.path)}, error))


def _check(path: str) -> None:
    """Raise `MediaError` for a file that is neither a video nor a picture, or is broken."""
    if is_picture(path):
        read_image(path)
    else:
        check_video(path)


def _rival(found: Found, paths: dict[Sidecar, Path], taken: dict[Path, str]) -> LlvidError | None:
    """Return the error of a video whose sidecars another one has, as a.mp4 and a.mkv would."""
    for path in paths.values():
        other = taken.setdefault(path, found.path)
        if other != found.path:
            return LlvidError(f"{found.path}: {path} is for {other}", "rename one of the two")
    return None
