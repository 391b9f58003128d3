"""Captions: one prompt for every video of a folder, for the whole of it, for windows of so many seconds, or shots."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, cast

from ..conversation import Answer, FinishReason, Media, Request, Scores, Segment
from ..errors import ContextError, LlvidError, MediaError, ModelError, UsageError
from ..model import Model
from ..preset import Preset
from ..prompt.subtitles import Count, LineCount, Subtitles, notes_of
from ..speech.transcripts import check_speech, hear, listen
from ..system.files import fingerprint
from ..video import Resize, check_scenes, inspect
from ..video.files import Found, Status, find, first_below, may_be_picture, status_of
from ..video.image import is_picture
from ..video.limits import Limits
from ..video.sampling import Every
from .formats import SIDECARS, TABLES, Sidecar, Sidecars, check_output, is_sidecar, unwritable, write_sidecar
from .ledger import Errors
from .media import check_media, read_medium
from .prefetch import JobRequest, Result, first_error
from .preflight import ModelSource, first_request, largest_requests
from .record import EMPTY_ANSWER, Failure, Record, join_frames, mean_scores, media_values, path_to_text, total_usage
from .resumable import AnsweredRun, ResumableRun, RunOptions, RunPlan, settle_run
from .storage import is_address
from .table import Table, Where, open_table, parse_where
from .training_set import AS_GIVEN, PLAIN, CaptionForm, PathForm, Paths

_REASONS: tuple[FinishReason, ...] = ("stop", "length", "repetition")  # of several, the last one counts
_FEW = 20  # videos, which take less to check than a model takes to load
_RECORDS = "llvid-captions.jsonl"  # where records go when only sidecars were asked for


class RunTask:
    """What is done with every video of a run; `fingerprint` names all that decides what comes of it."""

    @property
    def fingerprint(self) -> bytes:
        """At most 64 bytes."""
        raise NotImplementedError

    def path_text(self, path: str) -> str:
        """Return a video's path as its record has it."""
        return path_to_text(path)

    def key(self, place: str, status: Status) -> str:
        """Return the key of a video's record; `place` is its path as seen from the output file."""
        name = f"{status.st_size}/{status.st_mtime_ns}/".encode() + os.fsencode(place)
        return fingerprint(name, self.fingerprint)

    def request_key(self, path: str) -> str:
        """Return what is the same of all files that once had a path."""
        whole = path if is_address(path) else os.path.abspath(path)  # noqa: PTH100 - keeps links
        return fingerprint(os.fsencode(whole), self.fingerprint)


@dataclass(frozen=True)
class WindowMedia:
    """What is kept of a window's media: its times, what `media_values` says of it, and its lines of subtitles."""

    start_seconds: float
    end_seconds: float
    values: Mapping[str, Any]
    lines: LineCount | None = None


@dataclass(frozen=True)
class Task(RunTask):
    """What is asked about every video of a run; `preset` holds the prompt and all settings.

    `every_seconds` cuts a video into windows, or into its shots if it is "scene"; None takes the whole of it.
    `weight_options` change the weights, and so the captions. A `drawn_seed`, which the user did not set, is no part of
    a record's key. `subtitles` are for a run on one video. With `allow_empty`, a
    caption without text is a record; else it is a failure. `form` says how captions are written, `path_form` how paths
    are, which is no part of a key.
    """

    preset: Preset
    every_seconds: Every | None = None
    weight_options: tuple[tuple[str, Any], ...] = ()
    drawn_seed: int | None = None
    subtitles: Subtitles | None = None
    allow_empty: bool = False
    form: CaptionForm = PLAIN
    path_form: PathForm = AS_GIVEN

    @cached_property
    def fingerprint(self) -> bytes:
        """Names all that decides what is said of a video: the model, the prompt, the settings."""
        preset = self.preset
        decides = {
            "model": os.path.abspath(preset.model) if Path(preset.model).is_dir() else preset.model,  # noqa: PTH100 - keeps links
            "prompt": preset.prompt,
            "system": preset.system,
            "sampling": preset.sampling.values(),
            "generation": preset.generation.asked(self.drawn_seed).values(),
            "every_seconds": self.every_seconds,
            "asked": self.weight_options,
            **({"timestamps": True} if preset.timestamps else {}),
            **({"subtitles": self.subtitles.digest} if self.subtitles else {}),
            **self.form.changes,
        }
        return bytes.fromhex(fingerprint(json.dumps(decides, sort_keys=True).encode()))

    def path_text(self, path: str) -> str:
        """Return a video's path as its record has it."""
        return self.path_form.text(path)

    def is_fatal(self, error: LlvidError) -> bool:
        """Whether no video can be captioned: with as many frames of each, a prompt that is too long always is."""
        return isinstance(error, ContextError) and self.preset.sampling.fps is None

    def request(self, media: Media, count: Count) -> tuple[Request, LineCount | None]:
        """Return the request for a video's caption, with the subtitles that fit by `count`, which is `Model.budget`."""
        (request,), lines = self.preset.requests((self.preset.prompt,), (media,), self.subtitles, count)
        return request, lines

    def question(self, media: Media, about: WindowMedia, count: Count) -> JobRequest:
        """Return the same for a run; `about` is what its record will say of the media."""
        request, lines = self.request(media, count)
        return JobRequest(request, replace(about, lines=lines))


def caption_task(
    preset: Preset,
    source: ModelSource,
    every_seconds: Every | None = None,
    drawn_seed: int | None = None,
    subtitles: Subtitles | None = None,
    *,
    allow_empty: bool = False,
    form: CaptionForm = PLAIN,
    path_form: PathForm = AS_GIVEN,
) -> Task:
    """Return what is asked about every video, of the model that `source` names."""
    quantize = {"quantize": preset.quantize} if preset.quantize in ("8bit", "4bit") else {}
    options = dict(source.asked or ()) | quantize
    asked = tuple(sorted(options.items()))
    return Task(preset, every_seconds, asked, drawn_seed, subtitles, allow_empty, form, path_form)


@dataclass(frozen=True)
class CaptionJob:
    """One video of a run. `settings` are those of `settings_values`, `count` is `Model.budget`."""

    name: str
    key: str
    task: Task
    settings: Mapping[str, Any]
    count: Count

    def questions(self, shrink: Resize, limits: Limits) -> Iterator[JobRequest | None]:
        """Yield the question about the whole, or one about each window."""
        sampling, every = self.task.preset.sampling, self.task.every_seconds
        if not is_picture(self.name):
            yield from listen(self.name, sampling, limits=limits)
        if every is None or is_picture(self.name):
            yield self._question(read_medium(self.name, sampling, limits=limits, resize=shrink))
        else:
            video = inspect(self.name, limits, source_fps=sampling.source_fps)
            for window in video.windows(every, sampling, limits=limits):
                yield self._question(video.read(window, limits=limits, resize=shrink))

    def outcomes(
        self, results: Sequence[tuple[JobRequest, Result]], error: LlvidError | None
    ) -> Iterable[Record | Failure]:
        """Return the record, or why there is none: half of a video's windows are no caption of it."""
        error = error or first_error(results)
        answers = [(question.about, result) for question, result in results if isinstance(result, Answer)]
        answers.sort(key=lambda pair: pair[0].start_seconds)
        if error is None and not answers:
            error = MediaError(f"{self.name}: it has nothing to caption")
        elif error is None and not (self.task.allow_empty or any(answer.text.strip() for _, answer in answers)):
            error = ModelError(f"{self.name}: {EMPTY_ANSWER}", "--allow-empty takes it as a caption")
        if error is not None:
            names = {"video_path": self.task.path_text(self.name)}
            return [Failure(names, error, self.task.request_key(self.name))]
        return [Record(self._values(answers))]

    def _question(self, media: Media) -> JobRequest:
        media = hear(media, self.task.preset.sampling)
        about = WindowMedia(*media.part_seconds, media_values(self.name, media))
        question = self.task.question(media, about, self.count)
        refit = partial(self.task.question, media, about) if self.task.preset.sampling.speech else None
        return replace(question, refit=refit)

    def _segment(self, part: WindowMedia, text: str, scores: Scores | None) -> dict[str, Any]:
        """Return the JSON values of a window; where there are several, each has its own scores."""
        values = asdict(Segment(part.start_seconds, part.end_seconds, text))
        return {**values, "scores": dict(scores)} if scores and self.task.every_seconds is not None else values

    def _values(self, answers: Sequence[tuple[WindowMedia, Answer]]) -> dict[str, Any]:
        """Return the JSON values of a caption's record.

        Readers of long files of JSON guess a column's type from its beginning: so every record has the same fields with
        the same types, and there is always a segment.
        """
        parts, usage = [part for part, _ in answers], total_usage([answer.usage for _, answer in answers])
        notes = dict.fromkeys(line for part in parts for line in part.values["notes"])
        notes |= dict.fromkeys(notes_of(part.lines for part in parts))
        notes |= dict.fromkeys(EMPTY_ANSWER for _, answer in answers if not answer.text.strip())
        form = self.task.form
        texts = [form.text(answer.text, is_cut=answer.finish_reason != "stop") for _, answer in answers]
        return {
            "video_path": self.task.path_text(self.name),
            **self.task.path_form.file_name(self.name),
            "caption": form.caption(texts),
            **({"scores": mean_scores([answer.scores for _, answer in answers])} if answers[0][1].scores else {}),
            "segments": [
                self._segment(part, text, answer.scores) for (part, answer), text in zip(answers, texts, strict=True)
            ],
            "prompt": self.task.preset.prompt,
            "model": self.settings["model"],
            "finish_reason": max((answer.finish_reason for _, answer in answers), key=_REASONS.index),
            "frames": join_frames([part.values["frames"] for part in parts], sum(usage.media_tokens)),
            "notes": list(notes),
            "usage": usage.values(),
            "settings": {**self.settings, **form.changes, "request_key": self.task.request_key(self.name)},
            "key": self.key,
        }


@dataclass
class FolderPlan:
    """The files of a run: `videos` to caption, with the keys of their records; `failures`; and how many are `done`.

    `keys` are those of all records, also of what is done. `kept` are sidecars that no run wrote: they stay, and a video
    that has no others to be written is one of the `skipped`. `made` are the keys of the records that are there, with
    their videos. `stale` are sidecars of a video that was replaced since, by its `request_key`.
    """

    videos: list[tuple[Found, str]] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    done: int = 0
    kept: list[Path] = field(default_factory=list)
    skipped: int = 0
    made: dict[str, Found] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)
    stale: dict[str, list[Path]] = field(default_factory=dict)

    def drop_stale(self, request_key: str) -> None:
        """Remove the stale sidecars of a video: its old record goes now, and nothing else tells whose they are."""
        for path in self.stale.pop(request_key, ()):
            Path(os.path.realpath(path)).unlink(missing_ok=True)

    def fail(self, path: str, error: LlvidError, task: RunTask, request_key: str = "") -> None:
        """Take note of a video that can't be captioned."""
        self.failures.append(Failure({"video_path": task.path_text(path)}, error, request_key))

    def check_few(self, task: RunTask, check: Callable[[str], object]) -> None:
        """Find the broken ones of a few videos before a model is loaded, maybe for nothing."""
        for found, key in tuple(self.videos) if len(self.videos) <= _FEW else ():
            try:
                check(found.path)
            except MediaError as error:
                self.videos.remove((found, key))
                self.fail(found.path, error, task, task.request_key(found.path))

    def run_plan(self, task: Task, written: Callable[[Record], object], *, rope_auto: bool = False) -> RunPlan:
        """Return the run that captions the videos; `written` is called with each record."""
        sampling = task.preset.sampling

        def jobs(settings: Mapping[str, Any], count: Count) -> Iterator[CaptionJob]:
            return (CaptionJob(found.path, key, task, settings, count) for found, key in self.videos)

        return RunPlan(
            jobs, len(self.videos), self.done + self.skipped, self.failures, task.is_fatal, written, self.drop_stale,
            largest=lambda: largest_requests(task, rope_auto=rope_auto),
            first=lambda: first_request((found.path for found, _ in self.videos), task),
            keys=self.keys, said=[(found.path, sampling) for found, _ in self.videos] if sampling.speech else (),
        )  # fmt: skip


def plan_folder(
    found: Iterable[Found | MediaError],
    task: RunTask,
    done: set[str],
    sidecars: Sidecars,
    home: Path,
    *,
    overwrite: bool,
    record_of: Callable[[str], Record | None] | None = None,
) -> FolderPlan:
    """Return what is to be done. `done` are the keys of records in the output file, which lies in the folder `home`.

    `record_of` is that of the ledger: the sidecars of a video that was replaced since are written anew.
    """
    plan = FolderPlan()
    owners: dict[Path, str] = {}  # the video of each sidecar

    @cache
    def place(folder: str) -> str:
        return os.path.relpath(folder or os.curdir, home)

    # of a video and a picture that want the same sidecar, the video gets it
    for each in sorted(found, key=_is_named_picture) if sidecars.kinds else found:
        if isinstance(each, MediaError):
            plan.fail(each.path, each, task)
            continue
        folder, name = os.path.split(each.path)
        key = task.key(os.path.join(place(folder), name), each.status)  # noqa: PTH118 - what was listed, as it was
        plan.keys.add(key)
        paths = sidecars.paths(each.path, each.root)
        if (error := unwritable(each.path, paths.values(), owners)) is not None:
            plan.fail(each.path, error, task)
        elif key in done:
            plan.done += 1
            plan.made[key] = each
        else:
            request_key = task.request_key(each.path) if paths else ""
            old = record_of(request_key) if paths and record_of is not None else None
            there = {kind: path for kind, path in paths.items() if path.exists()}
            ours = [path for kind, path in there.items() if old is not None and is_sidecar(kind, path, old)]
            kept = [path for path in there.values() if not overwrite and path not in ours]
            plan.stale |= {request_key: ours} if ours else {}
            plan.kept += kept
            if kept and len(kept) == len(paths):
                plan.skipped += 1
            else:
                plan.videos.append((each, key))
    return plan


def _is_named_picture(found: Found | MediaError) -> bool:
    return isinstance(found, Found) and may_be_picture(os.path.splitext(found.path)[1].lower())  # noqa: PTH122


def caption_folder(
    paths: str | Path | Iterable[str | Path],
    output: str | Path | None = None,
    *,
    preset: Preset | str | None = None,
    model: Model | ModelSource | str | None = None,
    every_seconds: Every | None = None,
    subtitles: Subtitles | None = None,
    sidecars: Sidecars | None = None,
    recursive: bool = False,
    as_video: bool = False,
    overwrite: bool = False,
    allow_empty: bool = False,
    where: str | None = None,
    limit: int | None = None,
    form: CaptionForm = PLAIN,
    written_paths: Paths = "as-given",
    options: RunOptions | None = None,
) -> ResumableRun:
    """Return the run that captions files, and the videos in folders; iterate over it for the records.

    Records in `output` (.jsonl, .csv or .parquet) are not made again, unless `overwrite`. Without
    `output`, records are only yielded; `sidecars` then have their records in `llvid-captions.jsonl` beside them. One
    video may go to .txt, .srt or .vtt. The preset has the prompt, the sampling, the generation, and the model's name,
    which `model` replaces. `every_seconds` captions each window of that length, or each shot if it is "scene".
    `subtitles` are for one video. With `as_video`, the pictures of a folder, or of a pattern such as `frame_*.jpg`, are
    one video; with `recursive` those of each folder below are one. A caption without text is a failure, unless
    `allow_empty`. With choices in the preset's generation, `where` is a condition on their scores, such as `yes>0.8`:
    only records that meet it stand in `output`, and the others beside it, in `NAME.rest.jsonl` (or .csv, .parquet).
    They count as done, so that another condition sorts them again without a model. Only the first
    `limit` files are taken, done or not. `form` and `written_paths` say how captions and paths are written; the records
    of an output `metadata.jsonl`, `.csv` or `.parquet` have a `file_name`, so that
    `datasets.load_dataset("videofolder")` reads the folder.

    Raises `UsageError` for an output or a preset that makes no sense, `LlvidError` for an output that can't be used,
    `MediaError` if none of the files is there, or the folders hold no media;
    iterating raises `ModelError` for a model that can't be loaded, and what else ends a run.
    """
    names = [os.fspath(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]
    options, sidecars = options or RunOptions(), sidecars or Sidecars()
    preset, source, drawn_seed = settle_run(preset, model)
    check_scenes(preset.sampling, every_seconds)
    check_speech(preset.sampling)
    to = Path(output) if output is not None else default_output(names, sidecars)
    condition = None if where is None else parse_where(where, preset.generation.choices)
    if condition and (to is None or sidecars.kinds or to.suffix.lower() not in TABLES):
        raise UsageError(f"where needs a table: an output that ends in {', '.join(TABLES)}, without sidecars")
    if to is None and written_paths == "relative-to-output":
        raise UsageError("paths relative to the output need one", "-o FILE names it")
    task = caption_task(
        preset, source, every_seconds, drawn_seed, subtitles,
        allow_empty=allow_empty, form=form, path_form=PathForm.of(to, written_paths),
    )  # fmt: skip
    if to is not None:
        check_output(to, one_video=len(names) == 1 and not sidecars.kinds)
    with ExitStack() as opened:
        files = open_files(
            names, to, task, sidecars, opened,
            recursive=recursive, as_video=as_video, overwrite=overwrite, limit=limit, notify=options.notify,
            scored=bool(preset.generation.choices), where=condition,
        )  # fmt: skip
        plan = files.plan.run_plan(task, files.write, rope_auto=source.rope_auto)
        if files.is_single:
            plan = replace(plan, is_fatal=lambda _: True)
        return AnsweredRun(
            plan, source, preset, files.output, subtitles=subtitles, options=options, opened=opened.pop_all()
        )


@dataclass(frozen=True)
class RunFiles:
    """What a run is to do, its output if that is a table, and what writes the other files of a record.

    A run that `is_single` has one video and writes one file, so that a failure ends it.
    """

    plan: FolderPlan
    output: tuple[Table, Errors] | None
    write: Callable[[Record], object]
    is_single: bool = False


def open_files(
    names: Sequence[str],
    to: Path | None,
    task: RunTask,
    sidecars: Sidecars,
    opened: ExitStack,
    *,
    recursive: bool,
    as_video: bool = False,
    overwrite: bool,
    limit: int | None = None,
    notify: Callable[[str], object],
    check: Callable[[str], object] = lambda path: check_media([path]),
    pictures: bool = True,
    scored: bool = False,
    where: Where | None = None,
) -> RunFiles:
    """Compare what files and folders hold with what the output holds. The output is closed with `opened`.

    `check` raises MediaError for a file that is broken; it is called where there are few. Without `pictures`, those in
    folders are left out. `scored` and `where` are as in `open_table`. Raises LlvidError for an output that can't be
    used, MediaError if there is no file.
    """
    if to is not None and to.suffix.lower()[1:] in SIDECARS:
        check(names[0])
        if to.exists() and not overwrite:
            raise LlvidError(f"{to} exists", "use --overwrite to replace it")
        single = Found(names[0], "", status_of(names[0]))
        kind = cast("Sidecar", to.suffix.lower()[1:])
        plan = FolderPlan([(single, task.key(names[0], single.status))])
        return RunFiles(plan, None, partial(write_sidecar, kind, to), is_single=True)
    output: tuple[Table, Errors] | None = None
    done, home = set[str](), Path()
    record_of: Callable[[str], Record | None] | None = None
    if to is not None:
        ledger = opened.enter_context(open_table(to, overwrite=overwrite, scored=scored, where=where))
        output = ledger, opened.enter_context(Errors(to, overwrite=overwrite))
        done, home, record_of = ledger.done, to.parent, ledger.record_of
    found = find(names, recursive=recursive, as_video=as_video, report_empty=True, pictures=pictures)
    plan = plan_folder(islice(found, limit), task, done, sidecars, home, overwrite=overwrite, record_of=record_of)
    if plan.failures and not (plan.videos or plan.done or plan.skipped):
        raise plan.failures[0].cause  # none of the named files is there
    for name in () if recursive else filter(os.path.isdir, names):
        if (below := first_below(name, pictures=pictures)) is not None:
            notify(f"{name}: files in its subfolders are left out, such as {below}; --recursive takes them")
    for record in ledger.records() if sidecars.kinds and plan.made else ():
        if (each := plan.made.get(record.key)) is not None:
            paths = sidecars.paths(each.path, each.root)
            # the size is enough for a note: to read 100,000 files takes minutes
            made = [path for kind, path in paths.items() if is_sidecar(kind, path, record, by_size=not overwrite)]
            kept = [path for path in paths.values() if not overwrite and path not in made and path.exists()]
            sidecars.write(record, each.path, each.root, (*made, *kept))
            plan.kept += kept
    plan.check_few(task, check)
    if plan.kept:
        notify(
            f"existing files that this run did not write are kept: {len(plan.kept)}, such as {plan.kept[0]} "
            "(use --overwrite to replace them)"
        )
    places, stay = {key: (each.path, each.root) for each, key in plan.videos}, set(plan.kept)

    def write(record: Record) -> None:
        for path in sidecars.write(record, *places[record.key], stay, spare=not overwrite):
            notify(f"{path} is kept: somebody wrote it during the run")

    return RunFiles(plan, output, write)


def default_output(paths: Sequence[str], sidecars: Sidecars, records: str = _RECORDS) -> Path | None:
    """Return where records go when nobody said: with sidecars, to a file beside them; else nowhere."""
    if not sidecars.kinds:
        return None
    if sidecars.folder is not None:
        try:
            sidecars.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"can't create the folder {sidecars.folder}: {error.strerror}"
            raise LlvidError(message, "choose another path with --output-dir") from None
        return sidecars.folder / records
    first = Path(paths[0] if paths else "")
    return (first if first.is_dir() else first.parent) / records
