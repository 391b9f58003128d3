"""Long runs without a real model: nothing is lost or answered twice, whatever fails."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from llava_video_cli import Answer, Budget, Chunk, Generation, MediaError, ModelError, Picture, Request, Turn, Usage
from llava_video_cli.errors import LlvidError, OutOfMemoryError
from llava_video_cli.runs.batches import BatchSize, RunPace, run
from llava_video_cli.runs.prefetch import JobRequest, ReadAhead, RequestRead, Result
from llava_video_cli.runs.record import Failure, Record
from llava_video_cli.video import Resize
from llava_video_cli.video.fit import FrameInput, FrameResize
from llava_video_cli.video.limits import Limits

GREEDY = Generation()
USAGE = Usage(1, 0, 1, 0.0, 0.0, 0)


@dataclass
class Echo:
    """A model that repeats the question; `check` may refuse a batch of questions."""

    check: Callable[[Sequence[str]], None] = lambda _: None
    room: int = 1000
    batches: list[list[str]] = field(default_factory=list)
    name: str = "echo"

    @property
    def settings(self) -> dict[str, Any]:
        return {"model": self.name}

    def stream(self, request: Request) -> Iterator[Chunk]:
        yield Chunk(request.turns[-1].text, "stop", USAGE)

    def answer_all(self, requests: Sequence[Request]) -> list[Answer]:
        texts = [request.turns[-1].text for request in requests]
        self.check(texts)
        self.batches.append(texts)
        return [Answer(text, "stop", USAGE) for text in texts]

    def stream_all(
        self, requests: Sequence[Request], gone: Callable[[int], bool] | None = None
    ) -> Iterator[tuple[int, Chunk]]:
        assert gone is None
        for number, answer in enumerate(self.answer_all(requests)):
            yield number, Chunk(answer.text, answer.finish_reason, answer.usage)

    def budget(self, request: Request) -> Budget:
        return Budget(len(request.turns[-1].text), request.generation.max_new_tokens, 4096)

    @property
    def notes(self) -> tuple[str, ...]:
        return ()

    def fits(self, request: Request) -> int:
        assert request.turns
        return self.room

    @property
    def shrink(self) -> FrameResize:
        return FrameResize(FrameInput(48, 48), lambda image: image)


@dataclass
class Entry:
    """A job with some questions, which may fail behind the last one or do something before the first."""

    name: str
    texts: Sequence[str]
    error: Exception | None = None
    before: Callable[[], object] = lambda: None
    side: int = 2
    generation: Generation = GREEDY

    def questions(self, shrink: Resize, limits: Limits) -> Iterator[JobRequest]:
        assert limits.cores
        self.before()
        for text in self.texts:
            picture = Picture(shrink(np.zeros((self.side, self.side, 3), np.uint8)), self.name)
            yield JobRequest(Request((Turn("user", text, (picture,)),), self.generation), text)
        if self.error:
            raise self.error

    def outcomes(
        self, results: Sequence[tuple[JobRequest, Result]], error: LlvidError | None
    ) -> Iterable[Record | Failure]:
        assert all(not question.request.media for question, _ in results), "media are not kept"
        failed = error or next((result for _, result in results if isinstance(result, LlvidError)), None)
        if failed is not None:
            return [Failure({"video_path": self.name}, failed)]
        for question, result in results:
            assert isinstance(result, Answer) and result.text == question.about, "each question gets its own answer"
        return [Record({"video_path": self.name, "key": self.name, "count": len(results)})]


def entries(count: int, **changes: Any) -> list[Entry]:
    return [Entry(f"v{number}", [f"v{number}"], **changes) for number in range(count)]


def split(outcomes: Iterable[Record | Failure]) -> tuple[dict[str, int], dict[str, str]]:
    """The records' numbers of questions, and the failures' words, by name; no name twice."""
    done: dict[str, int] = {}
    failed: dict[str, str] = {}
    for outcome in outcomes:
        values = outcome.values
        assert values["video_path"] not in done and values["video_path"] not in failed, "once each"
        if isinstance(outcome, Record):
            done[values["video_path"]] = values["count"]
        else:
            failed[values["video_path"]] = values["error"]
    return done, failed


def test_every_job_comes_to_something_once() -> None:
    jobs = [
        Entry(f"v{k}", [f"v{k}-{n}" for n in range(k % 4)], MediaError("cut") if k % 10 == 9 else None)
        for k in range(200)
    ]
    model = Echo()
    done, failed = split(run(jobs, model))
    assert done == {f"v{k}": k % 4 for k in range(200) if k % 10 != 9}
    assert failed == {f"v{k}": "cut" for k in range(9, 200, 10)}
    asked = [text for batch in model.batches for text in batch]
    assert len(asked) == len(set(asked)) == sum(k % 4 for k in range(200))
    assert max(map(len, model.batches)) > 8, "batches grow"


def test_batches_grow_where_readers_are_far_ahead() -> None:
    """They wait for room, but what they have read lies ready, and is fetched before a batch goes out."""
    filled = threading.Event()
    jobs = entries(200)
    jobs[64].before = filled.set  # 64 questions are all that there is room for

    def check(texts: Sequence[str]) -> None:
        if texts == ["v0"]:
            assert filled.wait(30)

    model = Echo(check)
    done, failed = split(run(jobs, model))
    assert len(done) == 200 and not failed
    assert max(map(len, model.batches)) > 8, [len(batch) for batch in model.batches]


def test_running_out_of_memory_halves_the_batch_and_loses_nothing() -> None:
    def check(texts: Sequence[str]) -> None:
        if len(texts) > 3:
            raise OutOfMemoryError("out of memory")

    model, pace = Echo(check), RunPace(BatchSize(16))
    done, failed = split(run(entries(100), model, pace=pace))
    assert len(done) == 100 and not failed
    assert pace.size.wanted(1000) == 2
    first = next(number for number, batch in enumerate(model.batches) if len(batch) == 2)
    assert all(len(batch) <= 2 for batch in model.batches[first:]), "what was too many is not tried again"


def test_one_that_never_fits_takes_no_other_down() -> None:
    def check(texts: Sequence[str]) -> None:
        if "v13" in texts:
            raise OutOfMemoryError("out of memory") if len(texts) > 1 else ModelError("too long for the context")

    done, failed = split(run(entries(40), Echo(check), pace=RunPace(BatchSize(8))))
    assert len(done) == 39 and failed == {"v13": "too long for the context"}


def test_one_that_alone_runs_out_of_memory_makes_no_other_batch_smaller() -> None:
    def check(texts: Sequence[str]) -> None:
        if "v13" in texts:
            raise OutOfMemoryError("out of memory")

    model, pace = Echo(check), RunPace(BatchSize(32))
    done, failed = split(run(entries(200), model, pace=pace))
    assert len(done) == 199 and failed == {"v13": "out of memory"}
    assert pace.size.wanted(1000) == 32
    assert len(model.batches) <= 12, "the halves of one batch, and six others"


def test_memory_bounds_the_batch() -> None:
    model = Echo(room=5)
    done, _ = split(run(entries(64), model))
    assert len(done) == 64 and max(map(len, model.batches)) == 5


def test_only_requests_of_one_kind_share_a_batch() -> None:
    jobs = [Entry(f"v{k}", [f"{k % 2}"], generation=Generation(max_new_tokens=1 + k % 2)) for k in range(40)]
    model = Echo()
    assert len(split(run(jobs, model, pace=RunPace(BatchSize(8))))[0]) == 40
    assert all(len(set(batch)) == 1 for batch in model.batches)


def test_a_job_that_hangs_is_given_up_and_the_others_go_on() -> None:
    let_go = threading.Event()
    jobs = entries(30)
    for number in (0, 1, 7):
        jobs[number].before = let_go.wait
    began = time.monotonic()
    done, failed = split(run(jobs, Echo(), limits=Limits(seconds=1.0), workers=2))
    let_go.set()
    assert len(done) == 27 and set(failed) == {"v0", "v1", "v7"}
    assert all("given up after 1 seconds" in words for words in failed.values())
    assert time.monotonic() - began < 30


def test_a_bug_in_reading_one_is_its_failure() -> None:
    jobs = entries(10)
    jobs[3].error = ZeroDivisionError("oh")
    done, failed = split(run(jobs, Echo()))
    assert len(done) == 9 and failed == {"v3": "v3: can't be read: ZeroDivisionError oh"}


def test_a_bug_in_the_model_ends_the_run() -> None:
    def check(_: Sequence[str]) -> None:
        raise ArithmeticError("the model's own")

    with pytest.raises(ArithmeticError):
        list(run(entries(5), Echo(check)))


def test_stopping_finishes_what_the_model_is_at_and_nothing_else() -> None:
    stop = threading.Event()

    def check(texts: Sequence[str]) -> None:
        if "v20" in texts:
            stop.set()

    model = Echo(check)
    done, failed = split(run(entries(10_000), model, stop=stop, pace=RunPace(BatchSize(4))))
    answered = [text for batch in model.batches for text in batch]
    assert "v20" in model.batches[-1], "no batch begins behind the stop"
    assert sorted(done) == sorted(answered) and not failed


def test_leaving_the_iterator_ends_the_readers() -> None:
    outcomes = run(entries(10_000), Echo())
    next(iter(outcomes))
    outcomes.close()
    until = time.monotonic() + 30
    while [thread for thread in threading.enumerate() if thread.name == "llvid-read"]:
        assert time.monotonic() < until
        time.sleep(0.02)


def test_readers_wait_for_room() -> None:
    jobs = entries(50, side=100)  # 30,000 bytes each
    ahead = ReadAhead(jobs, lambda image: image, Limits(cores=1), workers=4, most_bytes=100_000)
    held: list[JobRequest] = []
    while (event := ahead.next(0.5 if len(held) >= 3 else 30)) is not None:
        held += [event.question] if isinstance(event, RequestRead) else []
    assert len(held) == 3 and ahead.full and not ahead.drained
    seen = 3
    while not ahead.drained:
        for question in held:
            ahead.release(question)
        held = []
        while (event := ahead.next(0.3)) is not None:
            held += [event.question] if isinstance(event, RequestRead) else []
        assert len(held) <= 3
        seen += len(held)
    assert seen == 50


def test_one_larger_than_the_bound_waits_until_it_is_alone() -> None:
    ahead = ReadAhead(entries(3, side=100), lambda image: image, Limits(cores=1), workers=2, most_bytes=1000)
    for _ in range(3):
        while not isinstance(event := ahead.next(5), RequestRead):
            assert event is not None
        ahead.release(event.question)
    while ahead.next(0.5) is not None:
        pass
    assert ahead.drained


@pytest.mark.parametrize("best", [1, 4, 32])
def test_the_size_is_doubled_as_long_as_it_pays(best: int) -> None:
    size = BatchSize()
    for _ in range(20):
        count = size.wanted(1000)
        size.learn(count, max(count, best) / best * (1 + 0.02 * count))
    assert size.wanted(1000) == best
    assert size.wanted(3) == min(3, best)
    size.too_many(2)
    assert size.wanted(1000) == 1


def test_short_batches_are_doubled_whatever_they_took() -> None:
    size = BatchSize()
    for seconds in (0.01, 0.9, 0.9, 0.9):
        size.learn(size.wanted(1000), seconds)
    assert size.wanted(1000) == 16


def test_a_batch_that_takes_too_long_is_not_doubled() -> None:
    size = BatchSize()
    size.learn(size.wanted(1000), 500.0)
    assert size.wanted(1000) == 1
