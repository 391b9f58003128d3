"""Long runs without a real model: nothing is lost or answered twice, whatever fails."""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from answering import Answering

from llava_video_cli import Answer, Budget, Chunk, Generation, MediaError, Picture, Request, Turn, Usage
from llava_video_cli.errors import LlvidError, OutOfMemoryError
from llava_video_cli.runs.answers import RunPace, run
from llava_video_cli.runs.prefetch import FEWEST_REQUESTS, JobRequest, ReadAhead, RequestRead, Result
from llava_video_cli.runs.record import Failure, Record
from llava_video_cli.video import Resize
from llava_video_cli.video.fit import FrameInput, FrameResize
from llava_video_cli.video.limits import Limits

GREEDY = Generation()
USAGE = Usage(1, 0, 1, 0.0, 0.0, 0)


@dataclass
class Echo(Answering):
    """A model that repeats the question; `check` may refuse it."""

    check: Callable[[str], None] = lambda _: None
    asked: list[str] = field(default_factory=list)
    name: str = "echo"

    @property
    def settings(self) -> dict[str, Any]:
        return {"model": self.name}

    def stream(self, request: Request) -> Iterator[Chunk]:
        text = request.turns[-1].text
        self.asked.append(text)
        self.check(text)
        yield Chunk(text, "stop", USAGE)

    def budget(self, request: Request) -> Budget:
        return Budget(len(request.turns[-1].text), request.generation.max_new_tokens, 4096)

    @property
    def notes(self) -> tuple[str, ...]:
        return ()

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


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_media_are_given_back_with_their_answer() -> None:
    """A film's windows are questions of one job: the frames of those that were answered are not kept until its end."""
    pictures: weakref.WeakSet[Picture] = weakref.WeakSet()
    most = 0

    @dataclass
    class Film(Entry):
        def questions(self, shrink: Resize, limits: Limits) -> Iterator[JobRequest]:
            nonlocal most
            for question in super().questions(shrink, limits):
                pictures.update(medium for medium in question.request.media if isinstance(medium, Picture))
                yield question
                most = max(most, len(pictures))

    count = 4 * FEWEST_REQUESTS
    done, failed = split(run([Film("film", list(map(str, range(count))))], Echo(), workers=1))
    assert (done, failed) == ({"film": count}, {})
    assert most <= FEWEST_REQUESTS + 10, "those that wait, and some under way"


def test_every_job_comes_to_something_once() -> None:
    jobs = [
        Entry(f"v{k}", [f"v{k}-{n}" for n in range(k % 4)], MediaError("cut") if k % 10 == 9 else None)
        for k in range(200)
    ]
    model = Echo()
    done, failed = split(run(jobs, model))
    assert done == {f"v{k}": k % 4 for k in range(200) if k % 10 != 9}
    assert failed == {f"v{k}": "cut" for k in range(9, 200, 10)}
    assert len(model.asked) == len(set(model.asked)) == sum(k % 4 for k in range(200))


@pytest.mark.parametrize(("most", "wanted"), [(None, 16), (3, 3)])
def test_the_model_gets_as_many_at_a_time_as_keep_it_busy(most: int | None, wanted: int) -> None:
    under_way: list[int] = []
    most_under_way = 0

    class Counts(Echo):
        def submit(
            self, request: Request, deliver: Callable[[Any], None], in_pieces: bool = True
        ) -> Callable[[], None]:
            nonlocal most_under_way
            under_way.append(1)
            most_under_way = max(most_under_way, len(under_way))

            def done(event: Any) -> None:
                under_way.pop()
                deliver(event)

            return super().submit(request, done, in_pieces)

    model = Counts(lambda _: time.sleep(0.005))
    done, failed = split(run(entries(60), model, pace=RunPace(most)))
    assert len(done) == 60 and not failed
    assert most_under_way == wanted


def test_where_reading_takes_the_time_the_model_gets_several_at_once() -> None:
    read: list[int] = []
    read_by_then: list[int] = []

    class Counts(Echo):
        def submit(
            self, request: Request, deliver: Callable[[Any], None], in_pieces: bool = True
        ) -> Callable[[], None]:
            read_by_then.append(len(read))
            return super().submit(request, deliver, in_pieces)

    def slow() -> None:
        time.sleep(0.01)
        read.append(1)

    done, _ = split(run(entries(20, before=slow), Counts(), workers=1))
    assert len(done) == 20 and read_by_then[0] >= 8
    read_by_then.clear()
    first, second = entries(2)
    second.before = lambda: until(lambda: read_by_then)
    done, failed = split(run([first, second], Counts(), workers=1))
    assert len(done) == 2 and not failed, "the first does not wait for as many"


def test_one_that_never_fits_takes_no_other_down() -> None:
    def check(text: str) -> None:
        if text == "v13":
            raise OutOfMemoryError("out of memory")

    model = Echo(check)
    done, failed = split(run(entries(40), model))
    assert len(done) == 39 and failed == {"v13": "out of memory"} and len(model.asked) == 40


def test_a_job_that_hangs_is_given_up_and_the_others_go_on() -> None:
    let_go = threading.Event()
    jobs = entries(30)
    for number in (0, 1, 7):
        jobs[number].before = let_go.wait
    began = time.monotonic()
    done, failed = split(run(jobs, Echo(), limits=Limits(seconds=0.5), workers=3))  # all hang at the same time
    let_go.set()
    assert len(done) == 27 and set(failed) == {"v0", "v1", "v7"}
    assert all("given up after 0.5 seconds" in words for words in failed.values())
    assert time.monotonic() - began < 30


def test_a_bug_in_reading_one_is_its_failure() -> None:
    jobs = entries(10)
    jobs[3].error = ZeroDivisionError("oh")
    done, failed = split(run(jobs, Echo()))
    assert len(done) == 9 and failed == {"v3": "v3: can't be read: ZeroDivisionError oh"}


def test_a_bug_in_the_model_ends_the_run() -> None:
    def check(_: str) -> None:
        raise ArithmeticError("the model's own")

    with pytest.raises(ArithmeticError):
        list(run(entries(5), Echo(check)))


def test_stopping_finishes_what_the_model_is_at_and_nothing_else() -> None:
    stop = threading.Event()

    def check(text: str) -> None:
        if text == "v20":
            stop.set()

    model = Echo(check)
    done, failed = split(run(entries(10_000), model, stop=stop, pace=RunPace(4)))
    assert "v20" in model.asked[-6:], "nothing begins behind the stop"
    assert sorted(done) == sorted(model.asked) and not failed


def test_leaving_the_iterator_ends_the_readers() -> None:
    outcomes = run(entries(10_000), Echo())
    next(iter(outcomes))
    outcomes.close()
    until(lambda: all(thread.name != "llvid-read" for thread in threading.enumerate()))


def test_readers_wait_for_room() -> None:
    jobs = entries(15, side=100)  # 30,000 bytes each
    ahead = ReadAhead(jobs, lambda image: image, Limits(cores=1), workers=4, most_bytes=100_000)
    held: list[JobRequest] = []
    while (event := ahead.next(0.2 if len(held) >= 3 else 30)) is not None:
        held += [event.question] if isinstance(event, RequestRead) else []
    assert len(held) == 3 and ahead.is_reading and not ahead.drained
    seen = 3
    while not ahead.drained:
        for question in held:
            ahead.release(question)
        held = []
        while (event := ahead.next(0.1)) is not None:
            held += [event.question] if isinstance(event, RequestRead) else []
        assert len(held) <= 3
        seen += len(held)
    assert seen == 15


def test_one_larger_than_the_bound_waits_until_it_is_alone() -> None:
    ahead = ReadAhead(entries(3, side=100), lambda image: image, Limits(cores=1), workers=2, most_bytes=1000)
    for _ in range(3):
        while not isinstance(event := ahead.next(5), RequestRead):
            assert event is not None
        ahead.release(event.question)
    while ahead.next(0.5) is not None:
        pass
    assert ahead.drained


def test_room_that_is_given_back_is_used_again() -> None:
    jobs = entries(9, side=100)  # 30,000 bytes each
    ahead = ReadAhead(jobs, lambda image: image, Limits(cores=1), workers=4, most_bytes=100_000)
    for _ in range(3):
        held: list[JobRequest] = []
        while len(held) < 3:
            event = ahead.next(20)
            assert event is not None, "there is room for three"
            held += [event.question] if isinstance(event, RequestRead) else []
        for question in held:
            ahead.release(question)
    until(lambda: ahead.next(0) is None and ahead.drained)
