"""The three stages of a run on a cluster, as its workers run them: look through the input, read frames, answer."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import Any

import ray

from ..conversation import Request
from ..errors import LlvidError, MediaError, ModelError, described, first_line
from ..model import Model
from ..prompt.budget import Budget
from ..runs.batches import BatchSize, answered, kind_of
from ..runs.caption import CaptionJob
from ..runs.inputs import Part, found_in
from ..runs.prefetch import Ended, Question, ReadAhead, Ready, Result
from ..runs.record import settings_values
from ..runs.storage import fetched, is_address
from ..video import Resize
from ..video.files import Found
from ..video.limits import Limits
from .failures import MOST_STRIKES, Stage, Unit
from .stage_messages import Entry, Fatal, Packed, Read, Said, Work, table, values_of

ENTRIES = 16  # that a task reads, one after the other: as few as pay for the task
_TABLE_BYTES = 16 * 2**20  # of frames that are handed on at a time
_AHEAD_BYTES = 2**28  # that a reader holds
_ROWS = 1000  # of a table of entries
_MOST_LOADS = 3  # that a worker dies of before the run is given up


def look_through(rows: Any, work: Work) -> Iterator[Any]:
    """Yield the entries of parts of the input that are not done yet."""
    _settle(work)
    done = Packed(memoryview(ray.get(work.done)))
    for number, part in values_of(rows):
        known = 0
        entries: list[Entry] = []
        todo = 0
        for entry in _entries(part, work):
            if not entry.error and entry.key in done:
                known += 1
                continue
            entries.append(entry)
            todo += 1
            if len(entries) == _ROWS:
                yield table(entries)
                entries = []
        yield table(entries)
        ray.get(work.book.planned.remote(number, todo, known))


def _entries(part: Part, work: Work) -> Iterator[Entry]:
    try:
        for found in found_in(part):
            if isinstance(found, Found):
                yield Entry(found.path, work.task.key(_place(found.path, work), found.status))
            else:
                yield Entry(str(found).split(": ", 1)[0], "", found)
    except LlvidError as error:
        yield Entry(str(error).split(": ", 1)[0], "", error)


def _place(path: str, work: Work) -> str:
    """Return a path as seen from the output, as a run on one machine sees it."""
    if is_address(path):
        return path
    folder, name = os.path.split(path)
    return os.path.join(_seen_from(os.path.join(work.folder, folder), work.home), name)  # noqa: PTH118


@cache
def _seen_from(folder: str, home: str) -> str:
    return os.path.relpath(folder, home)


def read(rows: Any, work: Work) -> Iterator[Any]:
    """Yield the frames of entries, at the model's size."""
    _settle(work)
    units = {(entry.key, 0): entry for entry in values_of(rows) if not entry.error}
    yield table(Read(entry, count=0, error=entry.error) for entry in values_of(rows) if entry.error)
    try:
        resize = _resize(work)
    except LlvidError as error:
        yield table([Fatal(error)])
        return
    held, ready = 0, list[Read]()
    for batch, failure in _in_turn(work, "read", _worker(), units):
        for each in [Read(entry, count=0, error=failure) for entry in batch] if failure else _read(batch, resize, work):
            ready.append(each)
            held += each.question.bytes if each.question else 0
            if held > _TABLE_BYTES:
                yield table(ready)
                held, ready = 0, []
    yield table(ready)


_resizes: dict[str, Resize] = {}


def _resize(work: Work) -> Resize:
    if work.name not in _resizes:
        _resizes.clear()
        _resizes[work.name] = work.open_resize()
    return _resizes[work.name]


def _read(entries: Sequence[Entry], resize: Resize, work: Work) -> Iterator[Read]:
    """Read videos one after the other; the last question of each says that there are no more."""
    jobs = (_Job(entry.path, entry.key, work.task, {}, uncounted) for entry in entries)
    ahead = ReadAhead(jobs, resize, work.limits, 1, _AHEAD_BYTES)
    waiting: dict[int, Read] = {}
    try:
        while not ahead.drained:
            event = ahead.next(1.0)
            if isinstance(event, Ready):
                if event.number in waiting:
                    yield waiting[event.number]
                before = waiting.get(event.number)
                waiting[event.number] = Read(entries[event.number], before.number + 1 if before else 0, event.question)
                ahead.release(event.question)
            elif isinstance(event, Ended):
                last = waiting.pop(event.number, Read(entries[event.number]))
                yield replace(last, count=event.count, error=event.error)
    finally:
        ahead.stop()


class _Job(CaptionJob):
    """A video that may have to be fetched first."""

    def questions(self, shrink: Resize, limits: Limits) -> Iterator[Question]:
        """Yield the questions, as of a file on this machine."""
        if not is_address(self.name):
            yield from super().questions(shrink, limits)
            return
        with fetched(self.name) as copy:
            try:
                yield from CaptionJob(copy, self.key, self.task, {}, self.count).questions(shrink, limits)
            except MediaError as error:
                raise MediaError(str(error).replace(copy, self.name), error.hint) from None


class Answerer:
    """An actor that holds the model."""

    def __init__(self, work: Work) -> None:
        self._work, self._size = work, BatchSize(work.batch_size)
        self._name = ray.get_runtime_context().get_actor_id() or _worker()
        self._model: Model | None = None
        self._settings: Mapping[str, Any] = {}

    def __call__(self, rows: Any) -> Iterator[Any]:
        """Yield what the model says to questions, those of a kind together."""
        _settle(self._work)
        reads = values_of(rows)
        try:
            model = self._model or self._open()
        except LlvidError as error:
            yield table([Fatal(error)])
            return
        yield table(
            each if isinstance(each, Fatal) else Said(each.entry, count=each.count, error=each.error)
            for each in reads
            if isinstance(each, Fatal) or each.question is None
        )
        asked = {(each.entry.key, each.number): each for each in reads if isinstance(each, Read) and each.question}
        for batch, failure in _in_turn(self._work, "answer", self._name, asked):
            yield table(self._said(batch, [failure] * len(batch) if failure else self._answer(model, batch)))

    def _open(self) -> Model:
        deaths = ray.get(self._work.book.begin_loading.remote(self._name))
        if deaths >= _MOST_LOADS:
            raise ModelError(
                f"a worker died {deaths} times while it loaded the model",
                "it may need more memory than the machine has: fewer workers, or `--quantize 4bit`",
            )
        self._model = self._work.open_model()
        self._settings = settings_values(self._model, self._work.task.preset)
        ray.get(self._work.book.end_loading.remote(self._name))
        return self._model

    def _answer(self, model: Model, batch: Sequence[Read]) -> list[Result]:
        results: dict[int, Result] = {}
        kinds: dict[Any, list[int]] = {}
        questions = [each.question for each in batch if each.question]
        for index, question in enumerate(questions):
            kinds.setdefault(kind_of(question), []).append(index)
        for indices in kinds.values():
            while indices:
                try:
                    wanted = self._size.wanted(model.fits(questions[indices[0]].request))
                except LlvidError:
                    wanted = 1  # answering will say what is wrong with it
                now, indices = indices[:wanted], indices[wanted:]
                began = time.monotonic()
                answers = self._guarded(model, [questions[index] for index in now])
                if not any(isinstance(answer, LlvidError) for answer in answers):
                    self._size.learn(len(now), time.monotonic() - began)
                results |= dict(zip(now, answers, strict=True))
        return [results[index] for index in range(len(batch))]

    def _guarded(self, model: Model, questions: list[Question]) -> list[Result]:
        """Answer; an error that nobody knows is that of one question, unless it took the GPU with it."""
        try:
            return answered(model, questions, self._size)
        except LlvidError:
            raise
        except Exception as error:  # noqa: BLE001 - one odd video must not end the run
            if "CUDA" in first_line(error):
                os._exit(70)  # the device can't be used any more in this process: another one goes on
            if len(questions) == 1:
                return [ModelError(f"can't be answered: {described(error)}")]
        return [result for question in questions for result in self._guarded(model, [question])]

    def _said(self, batch: Sequence[Read], results: Sequence[Result]) -> Iterator[Said]:
        for each, result in zip(batch, results, strict=True):
            question = each.question and replace(each.question, request=replace(each.question.request, turns=()))
            yield Said(each.entry, question, result, each.count, each.error, self._settings)


def _in_turn(
    work: Work, stage: Stage, worker: str, items: Mapping[Unit, Any]
) -> Iterator[tuple[list[Any], LlvidError | None]]:
    """Yield items to be done now: all together, but those alone that a worker died with, or why they are not done.

    An item counts as done when the next one is asked for.
    """
    if not items:
        return
    strikes = ray.get(work.book.begin.remote(stage, worker, list(items)))
    if strikes is None:
        return
    together = [unit for unit in items if unit[0] not in strikes]
    began = time.monotonic()
    if together:
        yield [items[unit] for unit in together], None
        work.book.end.remote(stage, worker, together, time.monotonic() - began)
    for unit in (unit for unit in items if unit[0] in strikes):
        entry = getattr(items[unit], "entry", items[unit])
        if strikes[unit[0]] >= MOST_STRIKES:
            yield [items[unit]], _culprit(entry.path, strikes[unit[0]])
        elif ray.get(work.book.begin_alone.remote(stage, worker, unit)):
            began = time.monotonic()
            yield [items[unit]], None
            ray.get(work.book.end.remote(stage, worker, [unit], time.monotonic() - began))


def _culprit(path: str, strikes: int) -> MediaError:
    return MediaError(
        f"{path}: given up: {strikes} workers died while they were at it",
        "the next run tries it again; out of memory is the usual reason",
    )


def _worker() -> str:
    return str(ray.get_runtime_context().get_worker_id())


def _settle(work: Work) -> None:
    """Make relative paths mean what they mean where the run was started, if that folder is there."""
    with suppress(OSError):
        os.chdir(work.folder)


def uncounted(request: Request) -> Budget:
    """Stand in for `Model.budget` where no subtitles have to fit."""
    raise AssertionError(f"nothing is counted on a cluster: {request.generation}")
