"""A file of requests, a JSON object a line: read strictly, and grouped so that media are read once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from ..conversation import Generation, Media, Request
from ..errors import LlvidError, MediaError, UsageError
from ..model import Model
from ..preset import (
    SAMPLING_OPTIONS,
    Preset,
    check_used,
    generation_shape,
    generation_values,
    sampling_shape,
    with_sampling,
)
from ..prompt.subtitles import Count, fitting, notes_of, with_speech
from ..prompt.timestamps import request_of
from ..speech.transcripts import check_speech, hear, listen
from ..system.files import fingerprint
from ..validation import Shape, Text, brief, placed, read_fields, read_lines
from ..video import Resize, check_scenes
from ..video.files import PictureList, status_of
from ..video.image import is_picture, read_image
from ..video.limits import Limits
from ..video.sampling import Sampling
from ..video.spool import is_url
from .conversation_file import Draft, below, read_drafts, turns_of
from .ledger import Errors, Ledger
from .media import read_medium
from .prefetch import JobRequest, Result
from .preflight import ModelSource, placeholders
from .record import Failure, Record, ask_values, media_values, medium_name
from .resumable import AnsweredRun, MakeRun, ResumableRun, RunOptions, RunPlan, check_constraints, settle_run

_SHAPE: Shape = {
    "id": str | int, "video": Any, "media": list, "question": Text, "messages": list, "system": Text,
    "timestamps": bool,
}  # fmt: skip


@dataclass(frozen=True)
class BatchRequest:
    """A line of the file. `id` is its own, or the line's number."""

    id: str | int
    drafts: tuple[Draft, ...]
    sampling: Sampling
    generation: Generation
    timestamps: bool = False

    @cached_property
    def paths(self) -> tuple[str, ...]:
        """The media, in the order of the prompt."""
        return tuple(path for draft in self.drafts for path in draft.paths)

    def keys(self, model: str, drawn_seed: int | None) -> tuple[str, str]:
        """Return the key of its record, for which a drawn seed does not count, and its `request_key`.

        Raises MediaError for a file that is not there.
        """
        stats = []
        for path in self.paths:
            try:
                status = status_of(path)
            except (OSError, ValueError) as error:
                if is_url(path):
                    hint = "download it and write its path here, or ask about it with `llvid ask`, which takes a URL"
                    raise MediaError(f"{path}: a file of requests takes files, not URLs", hint) from None
                words = getattr(error, "strerror", None) or error
                raise MediaError(f"{path}: can't be opened: {words}") from None
            stats.append((status.st_size, status.st_mtime_ns))
        drafts = [(draft.role, draft.text, [medium_name(path) for path in draft.paths]) for draft in self.drafts]
        rest: list[Any] = [self.sampling.values(), self.generation.asked(drawn_seed).values()]
        rest += ["timestamps"] if self.timestamps else []
        whole, lasting = [model, self.id, drafts, stats, *rest], [model, self.id, drafts, *rest]
        return fingerprint(json.dumps(whole).encode()), fingerprint(json.dumps(lasting).encode())

    def failure(self, error: LlvidError, request_key: str = "") -> Failure:
        """Return what is written if it can't be answered."""
        path = medium_name(self.paths[0]) if self.paths else ""
        return Failure({"id": self.id, "video": path, "video_path": path}, error, request_key)

    def request(self, media: Iterable[Media], spoken: int = 0) -> Request:
        """Return the request, with its media in their places, and so many lines of their speech."""
        turns = with_speech(turns_of(self.drafts, media), spoken)
        return request_of(turns, self.generation, self.timestamps)

    def spoken_requests(self, media: Iterable[Media], spoken: int) -> list[Request]:
        """Return the only request, as `fitting` wants it."""
        return [self.request(media, spoken)]


def read_requests(path: Path, preset: Preset) -> Iterator[BatchRequest]:
    """Yield the requests of a file; media are relative to its folder.

    Raises UsageError for the first line that is not understood to the last key, with its number.
    """
    sampling, generation = sampling_shape(), generation_shape()
    shape = {**_SHAPE, **{key: sampling[key] for key in SAMPLING_OPTIONS}, **generation}

    def read(values: dict[str, Any], number: int) -> BatchRequest:
        read_fields(values, shape)  # they stay as they are written: a record's key holds 2, and not 2.0
        given = {key: values[key] for key in generation if key in values}
        request = BatchRequest(
            values.get("id", number),
            _drafts(values, path.parent, preset.system),
            with_sampling(preset.sampling, {key: values[key] for key in sampling if key in values}),
            replace(preset.generation, **generation_values(given, path.parent)),
            values.get("timestamps", preset.timestamps),
        )
        check_used(values, [request.sampling])
        check_scenes(request.sampling)
        check_speech(request.sampling)
        return request

    yield from read_lines(path, read)


@dataclass(frozen=True)
class RequestJob:
    """The requests on the same frames of the same media, with the keys of their records, and their `request_key`s."""

    requests: tuple[tuple[BatchRequest, str, str], ...]
    settings: Mapping[str, Any]
    count: Count

    @property
    def name(self) -> str:
        """The first of its media, or the id of a request without any."""
        first = self.requests[0][0]
        return first.paths[0] if first.paths else f"request {first.id}"

    def questions(self, shrink: Resize, limits: Limits) -> Iterator[JobRequest | None]:
        """Read the media once and yield each request."""
        first = self.requests[0][0]
        for path in first.paths:
            if not is_picture(path):
                yield from listen(path, first.sampling, limits=limits)
        read = (read_medium(path, first.sampling, limits=limits, resize=shrink) for path in first.paths)
        media = [hear(medium, limits=limits) for medium in read]
        values = [media_values(path, medium) for path, medium in zip(first.paths, media, strict=True)]
        for request, key, _ in self.requests:
            refit = partial(_question, request, key, media, values)
            yield replace(refit(self.count), refit=refit if request.sampling.speech else None)

    def outcomes(
        self, results: Sequence[tuple[JobRequest, Result]], error: LlvidError | None
    ) -> Iterable[Record | Failure]:
        """Return a record or a failure for each request."""
        by_key = {question.about[0]: (question.about[1], result) for question, result in results}
        for request, key, request_key in self.requests:
            media, answer = by_key.get(key, ((), error or MediaError(f"{self.name}: it was not read")))
            if isinstance(answer, LlvidError):
                yield request.failure(answer, request_key)
                continue
            settings = {
                **self.settings,
                "system": next((draft.text for draft in request.drafts if draft.role == "system"), None),
                "timestamps": request.timestamps,
                "sampling": request.sampling.values(),
                "generation": request.generation.values(),
                "request_key": request_key,
            }
            values = ask_values(media, request.drafts[-1].text, answer, settings)
            yield Record({"id": request.id, **values, "key": key})


def _question(
    request: BatchRequest, key: str, media: Sequence[Media], values: Sequence[Mapping[str, Any]], count: Count
) -> JobRequest:
    """Return what is asked, with as much of what is said as fits by `count`."""
    (made,), lines = fitting(media, partial(request.spoken_requests, media), count)
    told = [{**each, "notes": [*each["notes"], *notes_of([lines])]} for each in values[:1]]
    return JobRequest(made, (key, [*told, *values[1:]]))


def answer_file(
    requests: str | Path,
    output: str | Path,
    *,
    preset: Preset | str | None = None,
    model: Model | ModelSource | str | None = None,
    overwrite: bool = False,
    options: RunOptions | None = None,
    make_run: MakeRun = AnsweredRun,
) -> ResumableRun:
    """Return the run that answers a file of requests, one JSON object per line; iterate over it for the records.

    Records in `output` (.jsonl) are not made again, unless `overwrite`. What a request leaves out
    is in the preset. `make_run` may make a `cluster.ClusterRun`. Raises as `caption_folder` does, and `UsageError` for
    a line that is not understood.
    """
    options, to = options or RunOptions(), Path(output)
    if to.suffix.lower() != ".jsonl":
        raise UsageError(f"{to} must end in .jsonl")
    preset, source, drawn_seed = settle_run(preset, model)
    batch = list(read_requests(Path(requests), preset))
    if to.exists() and to.samefile(requests):
        raise UsageError(f"{to} is the file of requests", "choose another file with -o")
    if not batch:
        raise UsageError(f"{requests}: there is no request in it")
    with placed(str(requests)):
        check_constraints((each.generation for each in batch), source)
    if any(each.generation.is_constrained for each in batch):
        source = replace(source, loading=replace(source.loading, constrained=True))
    with ExitStack() as opened:
        ledger = opened.enter_context(Ledger(to, overwrite=overwrite))
        errors = opened.enter_context(Errors(to, overwrite=overwrite))
        plan = plan_requests(batch, source, preset, drawn_seed, ledger.done)
        return make_run(plan, source, preset, (ledger, errors), options=options, opened=opened.pop_all())


def plan_requests(
    requests: Sequence[BatchRequest], source: ModelSource, preset: Preset, drawn_seed: int | None, done: set[str]
) -> RunPlan:
    """Return the run that answers the requests whose keys are not `done`; those on the same frames become one job."""
    rest = dict(source.asked or ())
    weights = (source.name, rest.pop("revision", None), rest.pop("dtype", None), preset.quantize, *rest.items())
    groups: dict[Any, list[tuple[BatchRequest, str, str]]] = {}
    failures, keys = [], set[str]()
    for each in requests:
        try:
            key, request_key = each.keys(repr(weights), drawn_seed)
        except MediaError as error:
            failures.append(each.failure(error))
            continue
        keys.add(key)
        if key not in done:
            frames = (each.paths, tuple(each.sampling.values().items())) if each.paths else key
            groups.setdefault(frames, []).append((each, key, request_key))
    total = sum(map(len, groups.values()))

    def jobs(settings: Mapping[str, Any], count: Count) -> Iterator[RequestJob]:
        return (RequestJob(tuple(group), settings, count) for group in groups.values())

    def largest() -> Iterator[Request]:
        for each in requests if source.rope_auto else ():
            with suppress(MediaError):
                pictures = [read_image(path) if is_picture(path) else None for path in each.paths]
                yield each.request(placeholders(each.paths, pictures, each.sampling))

    return RunPlan(jobs, total, len(requests) - total - len(failures), failures, largest=largest, keys=keys,
        said=[(path, each.sampling) for each in requests if each.sampling.speech for path in each.paths],
    )  # fmt: skip


def _drafts(values: Mapping[str, Any], folder: Path, system: str | None) -> tuple[Draft, ...]:
    """Return the turns of `messages`, or of `question`, with the media of `video` or `media` in the first question."""
    if ("question" in values) == ("messages" in values):
        raise UsageError("either 'question' or 'messages' is needed")
    if "video" in values and "media" in values:
        raise UsageError("use 'video' or 'media', not both")
    given = [values["video"]] if "video" in values else values.get("media", [])
    if "question" in values:
        drafts = [Draft("user", values["question"])]
    else:
        drafts = [*read_drafts(values["messages"], partial(below, folder))]
    if given:
        if any(draft.paths for draft in drafts):
            raise UsageError("the media are already in 'messages'")
        first = next((n for n, draft in enumerate(drafts) if draft.role == "user"), 0)
        drafts[first] = replace(drafts[first], paths=tuple(_located(folder, each) for each in given))
    if not any(draft.paths for draft in drafts):
        raise UsageError("'video' or 'media' is needed")
    if drafts[-1].role != "user":
        raise UsageError("the last message must be from the user")
    system = values.get("system", system)
    if system and not any(draft.role == "system" for draft in drafts):
        drafts.insert(0, Draft("system", system))
    return tuple(drafts)


def _located(folder: Path, given: object) -> str:
    """Return the path of a medium; a list of pictures is one video."""
    if isinstance(given, list) and given:
        return PictureList([_located(folder, each) for each in given])
    if not isinstance(given, str) or not given:
        raise UsageError(f"a path must be text, or a list with at least one path, got {brief(given)}")
    return below(folder, given)
