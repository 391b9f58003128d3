"""Videos of hours: each window is asked on its own, then the question is answered from what was seen in all of them."""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..conversation import Answer, Chunk, Request, Segment, Usage
from ..errors import LlvidError, MediaError, UsageError
from ..model import Model
from ..preset import Preset
from ..prompt.budget import question_too_long
from ..prompt.subtitles import Count, LineCount, Subtitles, largest, notes_of
from ..speech.transcripts import hear, listen
from ..video import Frames, Resize, Video
from ..video.limits import Limits
from ..video.sampling import Sampling, clock
from .answers import RunPace, run
from .prefetch import Job, JobRequest, Result, first_error, why_failed
from .record import Failure, Record, ask_values, join_frames, media_values, path_to_text, total_usage

MOST_WINDOWS = 10_000  # of 10 seconds, more than a day
_SHORT_TOKENS = 128  # what is said of a window, or of several: two of them and a question fit any context
_MOST_SPANS = 20  # in a note
_NOTHING = re.compile(r"\W*nothing\W*", re.IGNORECASE)
_ASK_WINDOW = (
    "This is one part of a longer video, about which somebody asks: {question}\n"
    "Say in one or two sentences what this part shows that helps to answer. "
    "If it shows nothing of the kind, say only: nothing"
)
_NOTES = "Somebody watched a video in parts and wrote down what is seen in each, with its times:\n{notes}"
_SHORTEN = _NOTES + "Sum up in a few sentences, with the times, what of this helps to answer: {question}"
_ANSWER = _NOTES + "Answer from these notes alone: {question}"


@dataclass(frozen=True)
class WindowAnswers:
    """What was seen in the window `[start_seconds, end_seconds)`: an answer to each question, in their order.

    `values` is what a record says of its frames.
    """

    start_seconds: float
    end_seconds: float
    values: Mapping[str, Any]
    lines: LineCount | None = None
    answers: tuple[Answer, ...] = ()

    def segment(self, number: int) -> Segment:
        """Return what was said to a question."""
        return Segment(self.start_seconds, self.end_seconds, " ".join(self.answers[number].text.split()))


def answer_windows(
    video: Video,
    windows: Sequence[Sampling],
    questions: Sequence[str],
    preset: Preset,
    model: Model,
    subtitles: Subtitles | None = None,
    *,
    pace: RunPace | None = None,
) -> Generator[WindowAnswers, None, None]:
    """Yield what was seen in each window, as they are done; each is read once, ahead of the model, for all questions.

    Raises `UsageError` for too many windows, `ContextError` where a question can't be answered at all, before anything
    is read; and what makes a window impossible.
    """
    if len(windows) > MOST_WINDOWS:
        raise UsageError(
            f"{len(windows):,} windows are too many: at most {MOST_WINDOWS:,}", "use longer windows, or a part"
        )
    for question in questions:
        budget = model.budget(_request(_ANSWER, question, (), preset))
        if budget.is_exceeded:  # it would come out only at the end, hours later
            raise question_too_long(model.name, budget)
    brief = _short(preset)
    jobs = (_WindowJob(video, window, questions, brief, subtitles, model.budget) for window in windows)
    for record in _done(jobs, model, pace):
        yield record.values["window"]


def window_requests(questions: Sequence[str], preset: Preset, frames: Frames) -> list[Request]:
    """Return what `answer_windows` asks about a window, but for its subtitles."""
    return [_short(preset).request(_ASK_WINDOW.format(question=question), (frames,)) for question in questions]


def conclude(question: str, seen: Sequence[Segment], preset: Preset, model: Model) -> Generator[Chunk, None, None]:
    """Yield the answer that the notes on the windows give, as it is generated; the usage counts all that led to it.

    Notes that don't fit the context are summed up in groups of neighbours first, as often as it takes. Raises
    `ContextError` where not even that fits.
    """
    began, usages = time.perf_counter(), list[Usage]()
    while len(seen) > 1 and not _fits(_ANSWER, question, seen, preset, model):
        groups = _groups(question, seen, _short(preset), model)
        if len(groups) == len(seen):
            break
        jobs = (_Group(number, _request(_SHORTEN, question, group, _short(preset)), group)
                for number, group in enumerate(groups) if len(group) > 1)  # fmt: skip
        merged = {number: group[0] for number, group in enumerate(groups) if len(group) == 1}
        for record in _done(jobs, model, None):
            merged[record.values["number"]] = record.values["segment"]
            usages.append(record.values["usage"])
        seen = [merged[number] for number in range(len(groups))]
    before = time.perf_counter() - began
    for chunk in model.stream(_request(_ANSWER, question, seen, preset)):
        yield chunk if chunk.usage is None else replace(chunk, usage=_summed([*usages, chunk.usage], before))


def relevant(segments: Sequence[Segment]) -> list[Segment]:
    """Return the windows that an answer is drawn from: those in which something was seen, or all if there are none."""
    return [segment for segment in segments if not _NOTHING.fullmatch(segment.text)] or list(segments)


def windows_note(used: Sequence[Segment], windows: int) -> str:
    """Return a line with the times of the windows that the answer was drawn from."""
    spans: list[tuple[float, float]] = []
    for segment in used:
        if spans and spans[-1][1] == segment.start_seconds:
            spans[-1] = spans[-1][0], segment.end_seconds
        else:
            spans.append((segment.start_seconds, segment.end_seconds))
    times = [f"{clock(start)}-{clock(end)}" for start, end in spans[:_MOST_SPANS]]
    more = [f"{len(spans) - _MOST_SPANS} more"] if len(spans) > _MOST_SPANS else []
    share = f"{len(used)} of {windows} windows" if windows > 1 else "1 window"
    return f"answered from {share}: {', '.join(times + more)}"


def windows_values(
    parts: Sequence[WindowAnswers],
    number: int,
    question: str,
    answer: Answer,
    seconds: float,
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the JSON values of an answer: those of `ask`, and what was seen in each window as `segments`.

    `seconds` went by while the windows were looked at.
    """
    segments = [each.segment(number) for each in parts]
    notes = [*window_notes(parts), windows_note(relevant(segments), len(segments))]
    medium = {
        **parts[0].values,
        "frames": join_frames([each.values["frames"] for each in parts]),
        "notes": notes,
    }
    usage = _summed([*(each.answers[number].usage for each in parts), answer.usage], seconds)
    return {
        **ask_values([medium], question, replace(answer, usage=usage), settings),
        "segments": [asdict(segment) for segment in segments],
    }


def window_notes(parts: Iterable[WindowAnswers]) -> list[str]:
    """Return what a user should know about the windows as they were read."""
    parts = list(parts)
    lines = dict.fromkeys(line for each in parts for line in each.values["notes"])
    return [*lines, *notes_of(each.lines for each in parts)]


@dataclass(frozen=True)
class _WindowJob:
    """A window as a job: its frames, and a question about them for each that was asked of the whole."""

    video: Video
    window: Sampling
    whole_questions: Sequence[str]
    preset: Preset
    subtitles: Subtitles | None
    count: Count

    @property
    def name(self) -> str:
        return self.video.info.path

    def questions(self, shrink: Resize, limits: Limits) -> Iterator[JobRequest | None]:
        whole = self.preset.sampling
        yield from listen(self.name, whole, limits=limits)
        frames = hear(self.video.read(self.window, limits=limits, resize=shrink), whole, limits=limits)
        prompts = [_ASK_WINDOW.format(question=question) for question in self.whole_questions]
        requests, lines = self.preset.requests(prompts, (frames,), self.subtitles, self.count)
        seen = WindowAnswers(*frames.part_seconds, media_values(self.name, frames), lines)
        for number, request in enumerate(requests):
            yield JobRequest(request, (number, seen))

    def outcomes(
        self, results: Sequence[tuple[JobRequest, Result]], error: LlvidError | None
    ) -> Iterable[Record | Failure]:
        if (error := why_failed(self.name, results, error)) is not None:
            return [Failure({"video_path": path_to_text(self.name)}, error)]
        answers = {question.about[0]: result for question, result in results if isinstance(result, Answer)}
        window = replace(results[0][0].about[1], answers=tuple(answers[number] for number in sorted(answers)))
        return [Record({"window": window})]


@dataclass(frozen=True)
class _Group:
    """Neighbouring notes, as a job that sums them up."""

    number: int
    request: Request
    notes: Sequence[Segment]

    @property
    def name(self) -> str:
        return "the notes on the windows"

    def questions(self, shrink: Resize, limits: Limits) -> Iterator[JobRequest]:
        del shrink, limits
        yield JobRequest(self.request)

    def outcomes(
        self, results: Sequence[tuple[JobRequest, Result]], error: LlvidError | None
    ) -> Iterable[Record | Failure]:
        for _, result in results:
            if isinstance(result, Answer):
                text = " ".join(result.text.split())
                segment = Segment(self.notes[0].start_seconds, self.notes[-1].end_seconds, text)
                return [Record({"number": self.number, "segment": segment, "usage": result.usage})]
        return [Failure({}, error or first_error(results) or MediaError(f"{self.name} were not read"))]


def _done(jobs: Iterable[Job], model: Model, pace: RunPace | None) -> Iterator[Record]:
    """Yield what comes of jobs; the first failure is raised: an answer from half of a video would be none."""
    with closing(run(jobs, model, pace=pace)) as outcomes:
        for outcome in outcomes:
            if isinstance(outcome, Failure):
                raise outcome.cause
            yield outcome


def _request(form: str, question: str, seen: Sequence[Segment], preset: Preset) -> Request:
    notes = "".join(f"[{clock(note.start_seconds)}-{clock(note.end_seconds)}] {note.text}\n" for note in seen)
    return preset.request(form.format(notes=notes, question=question), ())


def _fits(form: str, question: str, seen: Sequence[Segment], preset: Preset, model: Model) -> bool:
    return model.budget(_request(form, question, seen, preset)).left >= 0


def _groups(question: str, seen: Sequence[Segment], preset: Preset, model: Model) -> list[Sequence[Segment]]:
    """Cut notes into as few groups as fit the context, in their order."""
    groups: list[Sequence[Segment]] = []
    rest = seen
    while rest:
        count = largest(lambda number, rest=rest: _fits(_SHORTEN, question, rest[:number], preset, model), len(rest))  # type: ignore[misc]
        groups.append(rest[: max(1, count)])
        rest = rest[max(1, count) :]
    return groups


def _short(preset: Preset) -> Preset:
    tokens = min(_SHORT_TOKENS, preset.generation.max_new_tokens)
    generation = replace(
        preset.generation,
        max_new_tokens=tokens, choices=(), length_normalized=False, prefill="", schema=None, regex=None,
    )  # of the answer alone  # fmt: skip
    return replace(preset, generation=generation)


def _summed(usages: Sequence[Usage], seconds: float) -> Usage:
    """Return what all cost; the last one's time began after those seconds, whatever went on at once before."""
    last = usages[-1]
    return replace(
        total_usage(usages),
        first_token_seconds=seconds + last.first_token_seconds,
        total_seconds=seconds + last.total_seconds,
    )
