"""A chat from Python: no terminal, one model, and a session that holds what was said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from terminal import QUESTION, scene

from llava_video_cli import ContextError, Generation, Loading, MediaError, ModelError, join
from llava_video_cli.demo.world import write_picture
from llava_video_cli.runs.media import MIXED
from llava_video_cli.runs.preflight import ModelSource
from llava_video_cli.runs.session import Chat, Session
from llava_video_cli.video.sampling import Sampling

DEMO = ModelSource("demo", Loading(device="cpu"))


def test_a_picture_that_comes_later_is_compared_with_the_clip(clip: Path, tmp_path: Path) -> None:
    picture, lines, read = tmp_path / "red.png", list[str](), list[str]()
    write_picture(picture, scene(shape="square", x=0.5))

    def progress(path: str) -> Callable[[float], None]:
        read.append(path)
        return lambda _: None

    chat = Chat(Session().add(str(clip)), DEMO, notify=lines.append, progress=progress)
    assert join(chat.ask(QUESTION)).text == "It is a circle."
    chat.session = chat.session.add(str(picture))
    assert join(chat.ask("Is it the same color?")).text.endswith(": yes.")
    assert [each.question for each in chat.session.exchanges] == [QUESTION, "Is it the same color?"]
    assert chat.session.paths == (str(clip), str(picture)) and chat.session.question is None
    assert lines.count(MIXED) == 1 and sum("only 20 frames" in line for line in lines) == 1, "each is said once"
    assert set(read) == {str(clip), str(picture)}
    asking = chat.session.ask("Which way does it move?")
    assert 0 < chat.last_step_tokens(asking, chat.request(asking)) < 60, "a question and its answer"
    again = chat.session.retry()
    assert join(chat.answer(again, chat.request(again))).text == chat.session.exchanges[-1].answer


def test_a_conversation_reads_each_path_once_for_a_sampling(clip: Path) -> None:
    four = Session(sampling=Sampling(frames=4)).add(str(clip))
    two = Session(sampling=Sampling(frames=2)).add(str(clip))
    chat = Chat(four, DEMO)
    (first,) = chat.media(four)
    assert chat.media(four)[0] is first
    assert chat.media(two)[0] is not first and chat.media(four)[0] is not first, "only what a session holds is kept"
    assert chat.media(Session()) == []
    with pytest.raises(MediaError):
        chat.media(four.add(str(clip.with_name("gone.mp4"))))


def test_an_answer_that_is_stopped_is_kept_as_far_as_it_came(clip: Path) -> None:
    chat = Chat(Session(generation=Generation(max_new_tokens=40)).add(str(clip)), DEMO)
    answer = chat.ask("Describe the video.")
    first = next(answer).text
    answer.close()
    assert chat.session.exchanges[-1].answer == first.strip() and chat.session.question is None
    answer = chat.ask(QUESTION)
    answer.close()
    assert chat.session.question == QUESTION and len(chat.session.exchanges) == 1, "nothing came: it stays open"


def test_what_fails_leaves_the_question_open(clip: Path) -> None:
    chat = Chat(Session(generation=Generation(max_new_tokens=4000)).add(str(clip)), DEMO)
    with pytest.raises(ContextError):
        join(chat.ask("Which way does it move?" * 20))
    assert chat.session.question and not chat.session.exchanges
    chat.session = chat.session.set("max_new_tokens", "20")
    assert "right" in join(chat.ask("Which way does it move?")).text


def test_broken_media_and_models_are_reported_at_once(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="no such file"):
        Chat(Session().add(str(tmp_path / "gone.mp4")), ModelSource("./nothing", Loading()))
    with pytest.raises(ModelError, match="doesn't exist"):
        Chat(Session().add(str(clip)), ModelSource("./nothing", Loading()))
