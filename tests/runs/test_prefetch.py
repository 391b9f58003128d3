"""Reading ahead by a clock that the test sets: who is given up, and what comes of those who were."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_answers import GREEDY, USAGE, Echo, Entry, entries

from llava_video_cli import Answer, Chunk, Picture, Request, Turn
from llava_video_cli.runs import prefetch
from llava_video_cli.runs.answers import RunPace, run
from llava_video_cli.runs.prefetch import Answered, JobEnded, JobRequest, ReadAhead, RequestRead, why_failed
from llava_video_cli.video import Resize
from llava_video_cli.video.limits import Limits

PATIENCE_SECONDS = 20.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The clock of the module, in seconds; it stands still."""
    made = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(prefetch, "time", SimpleNamespace(monotonic=lambda: made.seconds))
    return made


@dataclass
class Hanging(Entry):
    """Shows life as often as it is let go, by None or by a question, and hangs again."""

    name: str = "slow"
    texts: tuple[str, ...] = ()
    life: Callable[[], JobRequest | None] = lambda: None
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    hangs: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    lives: int = 0
    has_ended: threading.Event = field(default_factory=threading.Event)

    def questions(self, shrink: Resize, limits: Limits) -> Iterator[Any]:
        del shrink, limits
        try:
            while True:
                self.hangs.release()
                assert self.go.acquire(timeout=PATIENCE_SECONDS)
                yield self.life()
                self.lives += 1
        finally:
            self.has_ended.set()

    def let_go(self) -> None:
        self.go.release()
        assert self.hangs.acquire(timeout=PATIENCE_SECONDS), "it hangs again"


def question() -> JobRequest:
    picture = Picture(np.zeros((2, 2, 3), np.uint8), "a.png")
    return JobRequest(Request((Turn("user", "Why?", (picture,)),), GREEDY))


def ahead_of(job: Entry, seconds: float | None) -> ReadAhead:
    return ReadAhead([job], lambda image: image, Limits(seconds=seconds, cores=1), workers=1, most_bytes=10**6)


@pytest.mark.parametrize("life", [lambda: None, question])
def test_who_shows_life_is_not_given_up_until_the_limit_and_a_grace_are_over(
    clock: SimpleNamespace, life: Callable[[], JobRequest | None]
) -> None:
    job = Hanging(life=life)
    ahead = ahead_of(job, 10)
    assert job.hangs.acquire(timeout=PATIENCE_SECONDS)
    for seconds in (0, 14, 28):
        clock.seconds = seconds
        assert not isinstance(ahead.next(0), JobEnded)
        job.let_go()
    clock.seconds = 28 + 14
    while ahead.next(0) is not None:
        pass
    assert ahead.is_reading
    clock.seconds = 28 + 16
    ended = ahead.next(0)
    assert isinstance(ended, JobEnded) and "slow: given up after 10 seconds" in str(ended.error)
    assert ended.count == (0 if life() is None else 3)
    ahead.stop()
    job.go.release()


def test_nothing_more_is_taken_from_who_was_given_up(clock: SimpleNamespace) -> None:
    job = Hanging(life=question)
    ahead = ahead_of(job, 10)
    assert job.hangs.acquire(timeout=PATIENCE_SECONDS)
    job.let_go()
    clock.seconds = 16
    read = ahead.next(0)
    assert isinstance(read, RequestRead) and isinstance(ahead.next(0), JobEnded)
    ahead.release(read.question)
    job.go.release()
    assert job.has_ended.wait(PATIENCE_SECONDS) and job.lives == 1
    assert ahead.next(PATIENCE_SECONDS) is None and ahead.drained


def test_without_a_limit_nobody_is_given_up(clock: SimpleNamespace) -> None:
    job = Hanging()
    ahead = ahead_of(job, None)
    assert job.hangs.acquire(timeout=PATIENCE_SECONDS)
    job.let_go()
    clock.seconds = 10.0**9
    assert ahead.next(0) is None and ahead.is_reading
    ahead.stop()
    job.go.release()


def test_an_answer_is_waited_for_as_long_as_a_question_is_not_released() -> None:
    ahead = ahead_of(Entry("v", ["v"]), None)
    read = ahead.next(PATIENCE_SECONDS)
    assert isinstance(read, RequestRead) and isinstance(ahead.next(PATIENCE_SECONDS), JobEnded)
    answered = Answered(read, Answer("v", "stop", USAGE))
    threading.Timer(0.02, ahead.post, [answered]).start()
    assert ahead.next(PATIENCE_SECONDS) is answered
    ahead.release(read.question)
    assert ahead.next(PATIENCE_SECONDS) is None, "at once"


def test_nothing_of_the_media_is_kept_of_an_answered_question() -> None:
    asked = replace(question(), refit=lambda _: question())
    kept = asked.without_media
    assert kept.refit is None and not kept.request.media and asked.bytes == 12


def test_a_job_without_questions_was_not_read() -> None:
    assert str(why_failed("a.mp4", [], None)) == "a.mp4: it was not read"
    assert why_failed("a.mp4", [(question(), Answer("", "stop", USAGE))], None) is None


def test_what_is_under_way_is_cancelled_when_the_run_is_left() -> None:
    delivers: list[Callable[[Any], None]] = []
    cancelled: list[int] = []

    class Holds(Echo):
        """Answers the first of three requests, once it has all of them."""

        def submit(
            self, request: Request, deliver: Callable[[Any], None], in_pieces: bool = True
        ) -> Callable[[], None]:
            del in_pieces
            number, text = len(delivers), request.turns[-1].text
            delivers.append(lambda event: deliver(replace(event, text=text)))
            if len(delivers) == 3:
                delivers[0](Chunk("", "stop", USAGE))
            return lambda: cancelled.append(number)

    outcomes = run(entries(3), Holds(), pace=RunPace(3))
    next(outcomes)
    outcomes.close()
    assert sorted(cancelled) == [1, 2]
