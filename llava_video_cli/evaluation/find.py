"""Moments of many videos in which something is seen: windows are asked about, and what says yes is looked into."""

from __future__ import annotations

import json
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from ..conversation import Answer, Generation, Request
from ..errors import LlvidError, MediaError, ModelError, UsageError, described
from ..model import Model
from ..preset import Preset
from ..prompt.subtitles import Count, LineCount, fitting, notes_of
from ..runs.answers import Answers, answered, read_ahead
from ..runs.caption import RunFiles, RunTask, Task, caption_task, open_files
from ..runs.formats import Sidecars
from ..runs.prefetch import JobRequest, ReadAhead, Result, why_failed
from ..runs.preflight import ModelSource, first_request, largest_requests
from ..runs.record import Failure, Record, join_frames, media_values, path_to_text, total_usage
from ..runs.resumable import AnsweredRun, RunOptions, RunPlan, settle_run
from ..speech.transcripts import check_speech, hear, listen
from ..system.files import fingerprint, short_stem, whole_file
from ..video import Frames, Resize, check_scenes, inspect, read_frames
from ..video.contact_sheet import sheet_of, thumbnail
from ..video.image import is_picture
from ..video.limits import Limits, cores
from ..video.sampling import Every
from .moments import Footage, Localizer, Moment, Window, groups, joined

EVERY_SECONDS, THRESHOLD = 4.0, 0.5
_YES, _NO = "Yes", "No"
_LOOKING = 4  # groups of windows that are looked into at a time: their small requests are computed together
_DIGITS = 6  # of a probability in a record
_KEPT = ("video_path", "moments", "average_fps")  # of records, until the end of a run
_SHEET_FRAMES, _SHEET_PIXELS = 8, 960

# Where the first clause of a query ends: what follows belongs to a noun.
_REST = re.compile(
    r"\b(that|which|who|whose|where|when|while|with|without|of|in|on|at|by|from|under|over|behind|between|near)\b"
)
_VERB = re.compile(r"\b(is|are|was|were|has|have|had|does|do|did|can|will|isn't|aren't|doesn't|don't)\b")
_DETERMINER = re.compile(r"(a|an|the|one|this|every|each|no) ")
_PRONOUN = re.compile(r"(it|he|she|(some|any|no|every)(thing|one|body)) ")
_THIRD_PERSON = re.compile(r"\w{2,}(?<![sui'])s")  # turns, moves; no bus, dress, tennis, man's


@dataclass(frozen=True)
class Query:
    """What is looked for, and the question that is asked about each window."""

    text: str
    question: str


def is_clause(text: str) -> bool:
    """Whether words are a clause ("a red car turns left") and not a noun ("a red car", "a car that turns left").

    It is one if, before the first preposition or "that", there is a form of be, have, do, can or will, or a word in
    -s behind "a", "the", "something" and their like and one more word.
    """
    words = _REST.split(" ".join(text.lower().split()), maxsplit=1)[0]
    if _VERB.search(words):
        return True
    nouns = 2 if _DETERMINER.match(words) else 1
    is_singular = nouns == 2 or _PRONOUN.match(words) is not None
    return is_singular and any(_THIRD_PERSON.fullmatch(word) for word in words.split()[nouns:])


def query_of(text: str, template: str | None = None) -> Query:
    """Return a query with its question: `template` with the text for its `{what}`, or one of two by its grammar.

    A text that ends in a question mark is the question itself. Raises `UsageError`.
    """
    from ..demo.questions import CLAIM_QUESTIONS  # the forms that the demo checkpoint was trained on

    text = " ".join(text.split())
    if not text:
        raise UsageError("the query is empty")
    if template is not None:
        if "{what}" not in template:
            raise UsageError(f"the template must have {{what}} where the query goes, got {template!r}")
        return Query(text, template.replace("{what}", text))
    if text.endswith("?"):
        return Query(text, text)
    what = text.rstrip(".!")
    return Query(text, CLAIM_QUESTIONS["claim" if is_clause(what) else "shows"].format(what))


@dataclass(frozen=True)
class FindTask(RunTask):
    """What is looked for in every video of a run; `asked` is the longest question about a window, as a caption's task.

    `sheets` is the folder for contact sheets of the moments, if any.
    """

    asked: Task
    every: Every
    queries: tuple[Query, ...]
    threshold: float
    sheets: Path | None = None

    @property
    def preset(self) -> Preset:
        """The settings of every question."""
        return self.asked.preset

    def requests(
        self, queries: Sequence[Query], frames: Frames, count: Count
    ) -> tuple[Sequence[Request], LineCount | None]:
        """Return what is asked about frames, with as many lines of what is said in them as fit."""
        return fitting(
            (frames,),
            lambda spoken: [self.preset.request(query.question, (frames,), (), spoken) for query in queries],
            count,
        )

    @cached_property
    def fingerprint(self) -> bytes:
        """Names all that decides what is found in a video."""
        decides = ["moments", self.asked.fingerprint.hex(), [asdict(query) for query in self.queries], self.threshold]
        return bytes.fromhex(fingerprint(json.dumps(decides).encode()))


@dataclass(frozen=True, eq=False)
class _Asked:
    """A question about a window: of which query and window, and what `media_values` says of its frames."""

    footage: Footage
    windows: Sequence[Window]
    window: int
    query: int
    values: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class FindJob:
    """One video of a run: each window is read once, for all queries."""

    name: str
    key: str
    task: FindTask
    count: Count

    def questions(self, shrink: Resize, limits: Limits) -> Iterator[JobRequest | None]:
        """Yield each query about each window."""
        sampling = self.task.preset.sampling
        if is_picture(self.name):
            raise MediaError(f"{self.name} is a picture, which has no moments")
        yield from listen(self.name, sampling, limits=limits)
        video = inspect(self.name, limits, source_fps=sampling.source_fps)
        footage = Footage(video, sampling, shrink, limits)
        windows = footage.windows(self.task.every)
        for number, window in enumerate(windows):
            frames = hear(video.read(window.sampling, limits=limits, resize=shrink), sampling, limits=limits)
            requests, lines = self.task.requests(self.task.queries, frames, self.count)
            values = media_values(self.name, frames)
            values["notes"] += notes_of([lines])
            for place, request in enumerate(requests):
                yield JobRequest(request, _Asked(footage, windows, number, place, values))

    def outcomes(
        self, results: Sequence[tuple[JobRequest, Result]], error: LlvidError | None
    ) -> Iterable[Record | Failure]:
        """Return what was answered for the run to go on with, or why that failed."""
        if (error := why_failed(self.name, results, error)) is not None:
            return [self.failure(error)]
        return [Record({"seen": _SearchedVideo(self, [(each.about, result) for each, result in results])})]

    def failure(self, error: LlvidError) -> Failure:
        """Return why the video has no record."""
        return Failure({"video_path": path_to_text(self.name)}, error, self.task.request_key(self.name))


@dataclass
class _SearchedVideo:
    """A video whose windows are answered; `found` are the moments of each query, group by group, as they come."""

    job: FindJob
    results: Sequence[tuple[_Asked, Any]]
    found: list[tuple[int, Future[list[Moment]]]] = field(default_factory=list)

    @property
    def windows(self) -> Sequence[Window]:
        return self.results[0][0].windows

    def probabilities(self, query: int) -> list[float]:
        """Return how probable each window says a query is."""
        answers = {asked.window: result for asked, result in self.results if asked.query == query}
        return [probability_of(answers[number]) for number in range(len(self.windows))]

    @property
    def is_done(self) -> bool:
        return all(future.done() for _, future in self.found)


def probability_of(answer: Answer) -> float:
    """Return how probable yes is. Raises `ModelError` for an answer without scores."""
    if answer.scores is None:
        raise ModelError("the server gives no probabilities", "use a model on this machine, or llvid serve")
    return answer.scores[_YES]


class FindRun(AnsweredRun):
    """A run whose records hold the moments of videos."""

    def __init__(
        self,
        files: RunFiles,
        task: FindTask,
        source: ModelSource,
        options: RunOptions,
        opened: ExitStack,
    ) -> None:
        folder_plan, asked = files.plan, task.asked
        sampling = task.preset.sampling

        def jobs(_: object, count: Count) -> Iterator[FindJob]:
            return (FindJob(found.path, key, task, count) for found, key in folder_plan.videos)

        self.task = task
        self._records: list[Mapping[str, Any]] = []
        self._found_before: list[tuple[str, int, dict[str, Any]]] = []  # moments that are to have a sheet
        for record in files.output[0].records() if files.output else ():
            if (found := folder_plan.made.get(record.key)) is not None:
                self._take(record)
                moments = enumerate(record.values["moments"], start=1) if task.sheets else ()
                self._found_before += ((found.path, number, moment) for number, moment in moments)
        plan = RunPlan(
            jobs, len(folder_plan.videos), folder_plan.done, folder_plan.failures, asked.is_fatal, self._take,
            largest=lambda: largest_requests(asked, rope_auto=source.rope_auto),
            first=lambda: first_request((found.path for found, _ in folder_plan.videos), asked),
            keys=folder_plan.keys,
            said=[(found.path, sampling) for found, _ in folder_plan.videos] if sampling.speech else (),
        )  # fmt: skip
        super().__init__(plan, source, task.preset, files.output, options=options, opened=opened)

    def ranked(self) -> list[dict[str, Any]]:
        """Return the moments of all videos so far, the most probable first, each with its `video_path`."""
        moments = [
            {"video_path": values["video_path"], **moment} for values in self._records for moment in values["moments"]
        ]
        return sorted(moments, key=lambda each: (-each["probability"], each["video_path"]))

    def records(self) -> list[Record]:
        """Return the records so far, those of earlier runs included."""
        return [Record(values) for values in self._records]

    def _take(self, record: Record) -> None:
        self._records.append({name: record.values[name] for name in _KEPT})

    def _reader(self, shrink: Resize) -> ReadAhead:
        """Read as many videos at a time as there are cores; a single one has them all."""
        limits = self._options.limits
        workers = min(cores(limits), self._plan.total)
        return read_ahead(self._plan.jobs(self._settings, self._budget), shrink, limits, workers)

    def _outcomes(self) -> Iterator[Record | Failure]:
        """Look into what the windows of one video show, while those of others are read and asked about."""
        for name, number, moment in self._found_before:
            if self.stop.is_set():
                return
            path = self._sheet_path(name, number)
            if not path.exists():
                try:
                    self._sheet(name, number, moment["start_seconds"], moment["end_seconds"])
                except MediaError as error:
                    self._options.notify(f"no sheet: {error}")
                    continue
            moment["sheet"] = path_to_text(os.fspath(path))
        if self._ahead is None or self._model is None:
            return
        waiting: deque[_SearchedVideo] = deque()
        with ThreadPoolExecutor(_LOOKING, thread_name_prefix="llvid-look") as pool:
            try:
                for outcome in Answers(self._ahead, self._model, self.stop, self.pace).outcomes():
                    if isinstance(outcome, Failure):
                        yield outcome
                        continue
                    waiting.append(outcome.values["seen"])
                    self._look(waiting[-1], self._model, pool)
                    while waiting and waiting[0].is_done:
                        yield self._outcome(waiting.popleft())
                while waiting:
                    yield self._outcome(waiting.popleft())
            finally:
                pool.shutdown(cancel_futures=True)

    def _look(self, seen: _SearchedVideo, model: Model, pool: ThreadPoolExecutor) -> None:
        """Begin to look into the windows of a video."""
        footage = replace(seen.results[0][0].footage, limits=self._options.limits)
        for number, query in enumerate(self.task.queries):
            yes, probabilities = partial(self._yes, model, query), seen.probabilities(number)
            for group in groups(probabilities, self.task.threshold):
                localizer = Localizer(
                    footage, seen.windows, probabilities, yes, self.task.threshold, has_cuts=self.task.every == "scene"
                )
                seen.found.append((number, pool.submit(localizer.moments, group)))

    def _yes(self, model: Model, query: Query, clips: Sequence[Frames]) -> list[float]:
        """Return how probable it is that each clip shows it."""
        heard = [hear(clip, self.task.preset.sampling) for clip in clips]
        asked = [self.task.requests([query], clip, model.budget)[0][0] for clip in heard]
        results = answered(model, asked)
        for result in results:
            if isinstance(result, Exception):
                raise result
        return [probability_of(result) for result in results if isinstance(result, Answer)]

    def _outcome(self, seen: _SearchedVideo) -> Record | Failure:
        try:
            found: dict[int, list[Moment]] = {}
            for query, future in seen.found:
                found.setdefault(query, []).extend(future.result())
            moments = [(query, moment) for query, each in found.items() for moment in joined(each)]
            moments.sort(key=lambda pair: -pair[1].probability)
            sheets = [
                self._sheet(seen.job.name, number, moment.start_seconds, moment.end_seconds)
                for number, (_, moment) in enumerate(moments, start=1)
            ]
        except (MediaError, ModelError) as error:
            return seen.job.failure(error)
        except LlvidError:
            raise  # of the whole run, as that of a server that is gone
        except Exception as error:  # noqa: BLE001 - one odd file must not end the run
            return seen.job.failure(MediaError(f"{seen.job.name}: can't be searched: {described(error)}"))
        return Record(self._values(seen, moments, sheets))

    def _values(
        self, seen: _SearchedVideo, moments: Sequence[tuple[int, Moment]], sheets: Sequence[str | None]
    ) -> dict[str, Any]:
        """Return the JSON values of a record."""
        task, job = self.task, seen.job
        asked = {each.window: each for each, _ in seen.results}
        parts = [asked[number].values for number in sorted(asked)]
        chances = [seen.probabilities(query) for query in range(len(task.queries))]
        seconds = asked[0].footage.seconds
        return {
            "video_path": path_to_text(job.name),
            "moments": [
                {
                    "query": task.queries[query].text,
                    "start_seconds": moment.start_seconds,
                    "end_seconds": moment.end_seconds,
                    "instant_seconds": moment.instant_seconds,
                    "probability": round(moment.probability, _DIGITS),
                    "sheet": sheet,
                }
                for (query, moment), sheet in zip(moments, sheets, strict=True)
            ],
            "queries": [asdict(query) for query in task.queries],
            "threshold": task.threshold,
            "windows": [
                {
                    "start_seconds": seconds[window.first],
                    "end_seconds": seconds[window.stop],
                    "probabilities": [round(each[number], _DIGITS) for each in chances],
                }
                for number, window in enumerate(seen.windows)
            ],
            "average_fps": asked[0].footage.video.info.average_fps,
            "model": self._settings["model"],
            "frames": join_frames([part["frames"] for part in parts]),
            "notes": list(dict.fromkeys(line for part in parts for line in part["notes"])),
            "usage": total_usage([result.usage for _, result in seen.results]).values(),
            "settings": {**self._settings, "request_key": task.request_key(job.name)},
            "key": job.key,
        }

    def _sheet(self, name: str, number: int, start_seconds: float, end_seconds: float) -> str | None:
        """Write the contact sheet of a moment, whole or not at all; return its path, or None without a folder."""
        if self.task.sheets is None:
            return None
        part = replace(
            self.task.preset.sampling, start_seconds=start_seconds, end_seconds=end_seconds,
            frames=_SHEET_FRAMES, fps=None, mode="uniform",
        )  # fmt: skip
        frames = read_frames(name, part, limits=self._options.limits, resize=thumbnail)
        path = self._sheet_path(name, number)
        with whole_file(path, "--sheets") as beside:
            sheet_of(frames, width_pixels=_SHEET_PIXELS).save(beside, format="png")
        return path_to_text(os.fspath(path))

    def _sheet_path(self, name: str, number: int) -> Path:
        folder = self.task.sheets or Path()
        return folder / f"{short_stem(name)}-{self.task.request_key(name)[:8]}-{number}.png"


def find_moments(
    queries: str | Sequence[str],
    paths: str | Path | Iterable[str | Path],
    output: str | Path | None = None,
    *,
    preset: Preset | str | None = None,
    model: Model | ModelSource | str | None = None,
    every_seconds: Every = EVERY_SECONDS,
    threshold: float = THRESHOLD,
    template: str | None = None,
    sheets: str | Path | None = None,
    recursive: bool = False,
    overwrite: bool = False,
    options: RunOptions | None = None,
) -> FindRun:
    """Return the run that finds where videos show what the queries say; iterate over it for a record of each video.

    `run.ranked()` returns the moments of all records, the most probable first. Each window of `every_seconds`, or each
    shot if it is "scene", is asked about; a moment is what has at least the probability `threshold`. `template` is the
    question, with `{what}` in the place of the query. Records in `output` (.jsonl) are not made again,
    unless `overwrite`. `sheets` is a folder for a contact sheet of each moment.

    Raises `UsageError` for what makes no sense, `LlvidError` for an output that can't be used, `MediaError` if none of
    the files is there; iterating raises `ModelError` for a model that can't be loaded, and what else ends a run.
    """
    texts = [queries] if isinstance(queries, str) else list(queries)
    asked = tuple(query_of(text, template) for text in dict.fromkeys(texts))
    if not asked:
        raise UsageError("there is nothing to be found", "give at least one query")
    if not 0 < threshold < 1:
        raise UsageError(f"the threshold must be between 0 and 1, got {threshold:g}")
    names = [os.fspath(path) for path in ([paths] if isinstance(paths, (str, Path)) else paths)]
    options = options or RunOptions()
    preset, source, _ = settle_run(preset, model)
    check_scenes(preset.sampling, every_seconds)
    longest = max((query.question for query in asked), key=len)
    generation = Generation(choices=(_YES, _NO))
    check_speech(preset.sampling)
    preset = replace(preset, prompt=longest, generation=generation)
    to = Path(output) if output is not None else None
    if to is not None and to.suffix.lower() != ".jsonl":
        raise UsageError(f"{to} must end in .jsonl")
    folder = Path(sheets) if sheets is not None else None
    task = FindTask(caption_task(preset, source, every_seconds), every_seconds, asked, threshold, folder)
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"can't create the folder {folder}: {error.strerror}"
            raise LlvidError(message, "choose another path with --sheets") from None
    with ExitStack() as opened:
        files = open_files(
            names, to, task, Sidecars(), opened, recursive=recursive, overwrite=overwrite, notify=options.notify,
            pictures=False,
        )  # fmt: skip
        return FindRun(files, task, source, options, opened.pop_all())
