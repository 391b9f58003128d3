"""A conversation as it goes on: every step makes a new value; nothing is read and no model is asked."""

from __future__ import annotations

import random

import pytest

from llava_video_cli import Generation, Sampling, UsageError
from llava_video_cli.conversation import Role
from llava_video_cli.runs.conversation_file import Draft
from llava_video_cli.runs.session import SETTINGS, Exchange, Session

TALK = Session().add("a.mp4").ask("Who?").answered("Bo.").ask("Where?").answered("Here.")


def test_media_stand_before_the_next_question() -> None:
    session = Session(system="Be brief.").add("a.mp4").add("b.png")
    assert session.drafts == (Draft("system", "Be brief."), Draft("user", "", ("a.mp4", "b.png")))
    asked = session.ask("Who?")
    assert asked.drafts[-1] == Draft("user", "Who?", ("a.mp4", "b.png"))
    done = asked.answered("Bo.")
    assert done.drafts[1:] == (Draft("user", "Who?", ("a.mp4", "b.png")), Draft("assistant", "Bo."))
    assert done.waiting == () and done.question is None and done.paths == ("a.mp4", "b.png")
    assert session.question is None, "the value before is as it was"


def test_undo_takes_back_step_by_step() -> None:
    session = TALK.add("b.png").add("c.png")
    steps = []
    while session != Session():
        session = session.undo()
        steps.append((session.waiting, len(session.exchanges)))
    assert steps == [(("b.png",), 2), ((), 2), ((), 1), (("a.mp4",), 0), ((), 0)]
    with pytest.raises(UsageError, match="nothing to undo"):
        session.undo()
    with_media = TALK.add("b.png").ask("Same?").answered("No.").add("c.png").undo().undo()
    assert with_media.waiting == ("b.png",), "its media wait for the next question"


def test_a_question_without_an_answer_is_kept_until_the_next() -> None:
    session = TALK.add("b.png").ask("A long one?")
    assert session.undo().question == "A long one?" and session.undo().waiting == ()
    assert session.retry() == session
    assert session.ask("Short?").question == "Short?"


def test_retry_asks_the_last_question_with_its_media() -> None:
    again = Session().add("a.mp4").ask("Who?").answered("Bo.").retry()
    assert again.drafts == (Draft("user", "Who?", ("a.mp4",)),) and again.tries == 1
    assert again.answered("Al.").exchanges == (Exchange("Who?", "Al.", ("a.mp4",)),)
    assert again.answered("Al.").retry().tries == 2 and again.answered("Al.").ask("x").tries == 0
    with pytest.raises(UsageError, match="no question"):
        Session().add("a.mp4").retry()


def test_each_try_draws_another_answer() -> None:
    greedy = Session().ask("Who?")
    assert greedy.drawn(5) == Generation()
    free = greedy.set("temperature", "0.7")
    assert free.drawn(5).seed == 5 and free.generation.seed is None
    fixed = free.set("seed", "9")
    again = fixed.answered("a").retry().answered("b").retry()
    assert (fixed.drawn(5).seed, again.drawn(5).seed) == (9, 11)
    assert fixed.set("seed", "none") == free


def test_settings_are_checked() -> None:
    session = Session(sampling=Sampling(fps=2.0))
    assert session.settings()["fps"] == 2 and "frames" not in session.settings()
    session = session.set("frames", "8")
    assert session.sampling == Sampling(frames=8) and {*session.settings(), "fps"} == {*SETTINGS}
    assert session.set("fit", "pad").sampling == Sampling(frames=8, fit="pad")
    assert session.set("max_new_tokens", "64").generation.max_new_tokens == 64
    assert session.set("top_p", "0.9").set("repetition_penalty", "1.1").generation.top_p == 0.9
    part = session.set("start", "0:02").set("end", "1m30s").set("sampling", "endpoints").set("skip_static", "on")
    assert part.sampling == Sampling(8, start_seconds=2, end_seconds=90, mode="endpoints", skip_static=True)
    assert part.settings()["start"] == 2 and part.set("end", "none").sampling.end_seconds is None
    assert session.set("timestamps", "on").timestamps and not session.set("timestamps", "false").timestamps
    for name, value, words in (
        ("sampling", "endpoint", "must be one of uniform"), ("skip_static", "maybe", "must be true or false"),
        ("start", "x", "not a time"), ("frames", "none", "must be a whole number"),
        ("temprature", "1", "no setting 'temprature'"), ("temperature", "hot", "must be a number, got 'hot'"),
        ("frames", "2.5", "must be a whole number"), ("frames", "0", "from 1 to"), ("seed", "-1", "from 0 to 9"),
        ("temperature", "nan", "0 or more"), ("top_p", "2", "at most 1"), ("seed", "9" * 5000, "a whole number"),
        ("fit", "wide", "fit must be one of auto, crop, pad, stretch, got 'wide'"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            session.set(name, value)
    with pytest.raises(UsageError) as caught:
        session.set("temprature", "1")
    assert caught.value.hint == "did you mean 'temperature'?"


def test_clear_keeps_system_and_settings() -> None:
    session = Session(system="Be brief.").set("frames", "4").add("a.mp4").ask("Who?").answered("Bo.")
    assert session.clear() == Session(system="Be brief.").set("frames", "4")


def test_a_conversation_that_was_written_down_goes_on() -> None:
    rng = random.Random(3)
    for _ in range(300):
        session = Session(system=rng.choice([None, "Be brief."]))
        for number in range(rng.randrange(9)):
            step = rng.randrange(4)
            if step == 0:
                session = session.add(f"{number}.mp4")
            elif step == 1 and session.exchanges:
                session = session.undo()
            else:
                session = session.ask(f"{number}?")
                session = session.answered(f"{number}.") if step == 2 else session
        assert Session.of(session.drafts, session.sampling, session.generation) == session


@pytest.mark.parametrize(
    ("roles", "words"),
    [
        ("ua a", "message 3 must be from the user, got one from the assistant"),
        ("a", "message 1 must be from the user"),
        ("suu", "message 3 must be from the assistant"),
        ("us", "message 2 must be from the assistant, got one from the system"),
    ],
)
def test_turns_have_to_alternate(roles: str, words: str) -> None:
    names: dict[str, Role] = {"u": "user", "a": "assistant", "s": "system"}
    drafts = [Draft(names[role], "x") for role in roles.replace(" ", "")]
    with pytest.raises(UsageError, match=words):
        Session.of(drafts, Sampling(), Generation())
