"""The three stages of a run on a cluster, as its workers run them: list the input, read frames, answer."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import Any

import ray

from ..conversation import Answer
from ..errors import LlvidError, MediaError, ModelError, described, first_line
from ..model import Model
from ..runs.answers import answered
from ..runs.caption import CaptionJob
from ..runs.inputs import Part, found_in
from ..runs.prefetch import Job, JobEnded, JobRequest, ReadAhead, RequestRead, Result
from ..runs.record import settings_values
from ..runs.storage import fetched, is_address
from ..speech.transcripts import shared
from ..video import Resize
from ..video.files import Found
from ..video.fit import FrameResize
from ..video.limits import Limits
from .failures import MAX_CRASHES, Stage, Unit
from .pipeline import InputVideo, PackedKeys, StageContext, VideoMessage, no_limit, table, values_of

VIDEOS_PER_READ_TASK = 16  # read one after the other: the fewest that are worth the cost of a task
_TABLE_BYTES = 16 * 2**20  # of frames that are passed on together
_PREFETCH_BYTES = 2**28  # of frames that a reader holds
_VIDEOS_PER_TABLE = 1000
_MAX_LOAD_CRASHES = 3  # of one worker, before the run is given up


def list_videos(rows: Any, context: StageContext) -> Iterator[Any]:
    """Yield the videos of parts of the input that are not done yet."""
    _enter_working_folder(context)
    done = PackedKeys(memoryview(ray.get(context.done)))
    for number, part in values_of(rows):
        done_count = to_do = 0
        videos: list[InputVideo] = []
        for video in _videos(part, context):
            if not video.error and video.key in done:
                done_count += 1
                continue
            videos.append(video)
            to_do += 1
            if len(videos) == _VIDEOS_PER_TABLE:
                yield table(videos)
                videos = []
        yield table(videos)
        ray.get(context.attempts.count_input.remote(number, to_do, done_count))


def _videos(part: Part, context: StageContext) -> Iterator[InputVideo]:
    assert context.task is not None, "jobs that are known are not listed"
    try:
        for found in found_in(part, as_video=context.as_video):
            if isinstance(found, Found):
                yield InputVideo(found.path, context.task.key(_path_from_output(found.path, context), found.status))
            else:
                yield InputVideo(found.path or str(found).split(": ", 1)[0], "", found)
    except LlvidError as error:
        yield InputVideo(str(error).split(": ", 1)[0], "", error)


def _path_from_output(path: str, context: StageContext) -> str:
    """Return a path as seen from the output, as a run on one machine does."""
    if is_address(path):
        return path
    folder, name = os.path.split(path)
    return os.path.join(_relative(os.path.join(context.working_folder, folder), context.output_folder), name)  # noqa: PTH118


@cache
def _relative(folder: str, start: str) -> str:
    return os.path.relpath(folder, start)


def read(rows: Any, context: StageContext) -> Iterator[Any]:
    """Yield the questions about videos, with their frames at the model's size."""
    _enter_working_folder(context)
    videos: list[InputVideo] = values_of(rows)
    yield table(VideoMessage(video, count=0, error=video.error) for video in videos if video.error)
    try:
        resize = _resize(context)
    except LlvidError as error:
        yield table([error])
        return
    for model in context.speech_models:
        shared(model, cores=1)  # others read beside it
    held_bytes, ready = 0, list[VideoMessage]()
    units = {(video.key, 0): video for video in videos if not video.error}
    worker = str(ray.get_runtime_context().get_worker_id())
    for batch, failure in _attempts(context, "read", worker, units):
        given_up = (VideoMessage(video, count=0, error=failure) for video in batch)
        for each in given_up if failure else _read(batch, resize, context):
            ready.append(each)
            held_bytes += each.question.bytes if each.question else 0
            if held_bytes > _TABLE_BYTES:
                yield table(ready)
                held_bytes, ready = 0, []
    yield table(ready)


_resizes: dict[str, FrameResize] = {}


def _resize(context: StageContext) -> FrameResize:
    if context.run_id not in _resizes:
        _resizes.clear()
        _resizes[context.run_id] = context.open_resize()
    return _resizes[context.run_id]


def _read(videos: Sequence[InputVideo], resize: FrameResize, context: StageContext) -> Iterator[VideoMessage]:
    """Read videos one after the other; the last question of each says how many there are."""
    prefetch = ReadAhead((_job(video, context) for video in videos), resize, context.limits, 1, _PREFETCH_BYTES)
    videos = [replace(video, job=None) for video in videos]
    waiting: dict[int, VideoMessage] = {}
    try:
        while not prefetch.drained:
            event = prefetch.next(1.0)
            if isinstance(event, RequestRead):
                if event.number in waiting:
                    yield waiting[event.number]
                waiting[event.number] = VideoMessage(videos[event.number], event.place, event.question)
                prefetch.release(event.question)
            elif isinstance(event, JobEnded):
                last = waiting.pop(event.number, VideoMessage(videos[event.number]))
                yield replace(last, count=event.count, error=event.error)
    finally:
        prefetch.stop()


def _job(video: InputVideo, context: StageContext) -> Job:
    if video.job is not None:
        return video.job
    assert context.task is not None, "or each video brings its job"
    return _StoredVideoJob(video.path, video.key, context.task, {}, no_limit)


class _StoredVideoJob(CaptionJob):
    """A video on this machine, or in a bucket, from which it is copied first."""

    def questions(self, shrink: Resize, limits: Limits) -> Iterator[JobRequest | None]:
        """Yield the questions, as of a file on this machine."""
        if not is_address(self.name):
            yield from super().questions(shrink, limits)
            return
        with fetched(self.name) as copy:
            try:
                yield from CaptionJob(copy, self.key, self.task, {}, self.count).questions(shrink, limits)
            except MediaError as error:
                raise MediaError(str(error).replace(copy, self.name), error.hint) from None


class ModelWorker:
    """A Ray actor that holds the model."""

    def __init__(self, context: StageContext) -> None:
        self._context = context
        self._id = str(ray.get_runtime_context().get_actor_id())
        self._model: Model | None = None
        self._settings: Mapping[str, Any] = {}

    def __call__(self, rows: Any) -> Iterator[Any]:
        """Yield the model's answers."""
        _enter_working_folder(self._context)
        messages: list[VideoMessage | LlvidError] = values_of(rows)
        try:
            model = self._model or self._load()
        except LlvidError as error:
            yield table([error])
            return
        questions = [each for each in messages if not isinstance(each, LlvidError) and each.question]
        yield table(each for each in messages if isinstance(each, LlvidError) or not each.question)
        units = {(each.video.key, each.number): each for each in questions}
        for batch, failure in _attempts(self._context, "answer", self._id, units):
            asked = [_fitted(each, model) for each in batch]
            yield table(self._answers(asked, [failure] * len(asked) if failure else self._results(model, asked)))

    def _load(self) -> Model:
        crashes = ray.get(self._context.attempts.begin_loading.remote(self._id))
        if crashes >= _MAX_LOAD_CRASHES:
            raise ModelError(
                f"a worker died {crashes} times while it loaded the model",
                "the machine may not have enough memory: use fewer workers, or `--quantize 4bit`",
            )
        self._model = self._context.open_model()
        self._settings = settings_values(self._model, self._context.preset)
        ray.get(self._context.attempts.end_loading.remote(self._id))
        return self._model

    def _results(self, model: Model, batch: Sequence[VideoMessage]) -> list[Result]:
        """Answer; an unknown error belongs to the one question that causes it, unless it makes the GPU unusable."""
        results: list[Result] = []
        requests = [each.question.request for each in batch if each.question]
        for result in answered(model, requests, self._context.batch_size):
            if isinstance(result, Answer | LlvidError):
                results.append(result)
                continue
            if "CUDA" in first_line(result):
                os._exit(70)  # this process can't use the device any more: Ray starts another one
            results.append(ModelError(f"can't be answered: {described(result)}"))
        return results

    def _answers(self, batch: Sequence[VideoMessage], results: Sequence[Result]) -> Iterator[VideoMessage]:
        for each, result in zip(batch, results, strict=True):
            question = each.question and each.question.without_media
            yield replace(each, question=question, result=result, settings=self._settings)


def _fitted(each: VideoMessage, model: Model) -> VideoMessage:
    """Return a question with as many lines of what is said as fit: the reader had no model to count with."""
    refit = each.question and each.question.refit
    return replace(each, question=refit(model.budget)) if refit else each


def _attempts(
    context: StageContext, stage: Stage, worker: str, units: Mapping[Unit, Any]
) -> Iterator[tuple[list[Any], LlvidError | None]]:
    """Yield the batches to process now: first all units together, then alone those of videos that a worker died with.

    A batch that is given up comes with its error. A batch counts as processed when the next one is asked for.
    """
    if not units:
        return
    crashes = ray.get(context.attempts.begin.remote(stage, worker, list(units)))
    if crashes is None:
        return
    together = [unit for unit in units if unit[0] not in crashes]
    began = time.monotonic()
    if together:
        yield [units[unit] for unit in together], None
        context.attempts.end.remote(stage, worker, together, time.monotonic() - began)
    for unit in (unit for unit in units if unit[0] in crashes):
        video = getattr(units[unit], "video", units[unit])
        if crashes[unit[0]] >= MAX_CRASHES:
            text = f"{video.path}: given up: {crashes[unit[0]]} workers died while they processed it"
            hint = "the usual reason is too little memory; the next run tries this video again"
            yield [units[unit]], MediaError(text, hint)
        elif ray.get(context.attempts.begin_alone.remote(stage, worker, unit)):
            began = time.monotonic()
            yield [units[unit]], None
            ray.get(context.attempts.end.remote(stage, worker, [unit], time.monotonic() - began))


def _enter_working_folder(context: StageContext) -> None:
    """Give relative paths the meaning that they had where the run was started, if this node has that folder."""
    with suppress(OSError):
        os.chdir(context.working_folder)
