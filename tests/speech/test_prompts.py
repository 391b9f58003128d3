"""What is said goes into prompts: on every way to a model, as many lines as fit, and none where there is no sound."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sounds import make_film
from terminal import asked
from waiting_model import USAGE, WaitingModel
from whisper import LoudestSeconds

from llava_video_cli import (
    Budget,
    Failure,
    Limits,
    Preset,
    Sampling,
    Scores,
    UsageError,
    answer_file,
    caption_folder,
    find_moments,
    load_preset,
)
from llava_video_cli.conversation import Chunk, Request
from llava_video_cli.model import Loading
from llava_video_cli.preset import read_preset
from llava_video_cli.runs.preflight import ModelSource
from llava_video_cli.runs.resumable import RunOptions
from llava_video_cli.runs.session import Chat, Session
from llava_video_cli.runs.windows import answer_windows
from llava_video_cli.speech import SpeechOptions
from llava_video_cli.speech.transcripts import Transcripts, share
from llava_video_cli.video import inspect

BEEPS = (1.5, 3.25, 4.75)
SPOKEN = "Its subtitles, each line at the time when it is spoken:\n"
ALL = f"{SPOKEN}1.5s: beep 1\n3.2s: beep 2\n4.8s: beep 3\n"
SAMPLING = Sampling(2, speech=True, speech_model="loudest")


class Listening(WaitingModel):
    """A model that notes the text of each prompt, whose characters are its tokens."""

    def __init__(self, context: int = 1000) -> None:
        super().__init__()
        self.context, self.prompts = context, list[str]()

    @property
    def settings(self) -> dict[str, Any]:
        return {"model": "listening"}

    def stream(self, request: Request) -> Iterator[Chunk]:
        self.prompts.append("|".join(turn.text for turn in request.turns))
        yield Chunk("seen", "stop", USAGE)

    def budget(self, request: Request) -> Budget:
        text = sum(len(turn.text) for turn in request.turns)
        return Budget(text, request.generation.max_new_tokens, self.context)


@pytest.fixture
def fake(tmp_path: Path) -> LoudestSeconds:
    transcriber = LoudestSeconds()
    share("loudest", Transcripts(SpeechOptions(), transcriber, cache=tmp_path / "transcripts"))
    return transcriber


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_film(tmp_path_factory.mktemp("films") / "film.mkv", BEEPS, first_stamp=24)


def preset(sampling: Sampling = SAMPLING) -> Preset:
    demo = load_preset("demo")
    return Preset("p", "", "waiting", prompt="Why?", sampling=sampling, generation=demo.generation)


def test_captions(film: Path, clip: Path, fake: LoudestSeconds) -> None:
    model = Listening()
    records = list(caption_folder([film, clip], preset=preset(), model=model))
    assert sorted(model.prompts) == sorted([f"{ALL}Why?", "Why?"]) and fake.calls == 1
    notes = {Path(str(each.values["video_path"])).name: each.values["notes"] for each in records}
    assert notes == {"film.mkv": [], "circle.mp4": ["it has no sound"]}
    assert records[0].values["settings"]["sampling"]["speech"] is True
    list(caption_folder([film], preset=preset(), model=model))
    assert fake.calls == 1, "the second question on a video costs nothing"


def test_a_budget_cuts(film: Path, fake: LoudestSeconds) -> None:
    longest = preset().generation.max_new_tokens
    model = Listening(longest + len(ALL) + len("Why?") - 1)
    (record,) = caption_folder([film], preset=preset(), model=model)
    assert model.prompts == [f"{SPOKEN}1.5s: beep 1\n3.2s: beep 2\nWhy?"] and fake.calls == 1
    assert record.values["notes"] == ["only 2 of 3 subtitle lines fit the context; they are spread evenly"]


def test_a_part(film: Path, fake: LoudestSeconds) -> None:
    model = Listening()
    part = Sampling(2, start_seconds=3.0, end_seconds=4.0, speech=True, speech_model="loudest")
    list(caption_folder([film], preset=preset(part), model=model))
    silent = Sampling(2, start_seconds=2.0, end_seconds=3.0, speech=True, speech_model="loudest")
    (record,) = caption_folder([film], preset=preset(silent), model=model)
    assert model.prompts == [f"{SPOKEN}3.2s: beep 1\nWhy?", "Why?"] and fake.calls == 2
    assert record.values["notes"] == ["nothing is said in this part"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More films than are usually kept in memory, and a broken one."""
    folder = tmp_path_factory.mktemp("clips")
    for number in range(20):
        make_film(folder / f"{number}.mp4", [0.2 + number / 100], seconds=0.5)
    (folder / "broken.mp4").write_bytes(b"nothing")
    return folder


@pytest.mark.parametrize("is_short", [False, True])
def test_where_memory_is_short_all_is_transcribed_before_the_model_is_loaded(
    is_short: bool, tmp_path: Path, clips: Path
) -> None:
    fake = LoudestSeconds(10**18 if is_short else 0)
    share("loudest", Transcripts(SpeechOptions(), fake, cache=tmp_path / "file" / "cache"))
    (tmp_path / "file").write_text("nothing can be kept on the disk")
    loaded_after, told = list[int](), list[str]()
    options = RunOptions(notify=told.append, limits=Limits(cores=1))
    run = caption_folder(clips, preset=preset(), model=ModelSource("demo", Loading(device="cpu")), options=options)
    run.begin()
    loaded_after.append(fake.calls)
    outcomes = list(run)
    assert sorted(type(each).__name__ for each in outcomes) == ["Failure"] + ["Record"] * 20
    assert fake.calls == 20 and set(fake.threads) == {"MainThread" if is_short else "llvid-speech"}
    words = "there is not enough memory for both models: the speech is transcribed first"
    assert (words in told) == is_short and (loaded_after == [20]) == is_short


def test_windows_are_transcribed_in_one_go(film: Path, fake: LoudestSeconds) -> None:
    model = Listening()
    list(caption_folder([film], preset=preset(), model=model, every_seconds=3.5))
    video = inspect(film)
    list(answer_windows(video, video.windows(3.5, SAMPLING), ["Why?"], preset(), model))
    captions, questions = model.prompts[:2], model.prompts[-2:]
    for first, second in (sorted(each, key=len, reverse=True) for each in (captions, questions)):
        assert first.startswith(f"{SPOKEN}1.5s: beep 1\n3.2s: beep 2\n") and "beep 3" not in first
        assert second.startswith(f"{SPOKEN}4.8s: beep 3\n") and "beep 2" not in second
    assert fake.calls == 1


def test_batch_lines(tmp_path: Path, film: Path, clip: Path, fake: LoudestSeconds) -> None:
    """Of two videos in a prompt, each has a name of its own."""
    lines: list[dict[str, Any]] = [
        {"id": "a", "video": str(film), "question": "Why?", "speech": True, "speech_model": "loudest"},
        {"id": "b", "video": str(film), "question": "Why?"},
        {"id": "c", "media": [str(clip), str(film)], "question": "Why?", "speech": True, "speech_model": "loudest"},
    ]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    model = Listening()
    records = list(answer_file(tmp_path / "r.jsonl", tmp_path / "o.jsonl", preset=preset(Sampling(2)), model=model))
    assert len(records) == 3 and fake.calls == 1
    named = ALL.replace("Its", "Video 2's")
    assert sorted(model.prompts) == sorted([f"{ALL}Why?", "Why?", f"{named}Why?"])
    (tmp_path / "r.jsonl").write_text(json.dumps({**lines[0], "speech_model": "smal"}) + "\n")
    with pytest.raises(UsageError, match="smal"):
        answer_file(tmp_path / "r.jsonl", tmp_path / "p.jsonl", preset=preset(), model=model)


def test_a_chat(film: Path, fake: LoudestSeconds) -> None:
    session = Session(waiting=(str(film),), sampling=SAMPLING, generation=preset().generation)
    chat = Chat(session.ask("Why?"), ModelSource("waiting", Loading(), opened=Listening()))
    request = chat.request(chat.session)
    assert [turn.text for turn in request.turns] == [f"{ALL}Why?"]
    later = chat.session.answered("Because.").ask("And then?")
    assert [turn.text for turn in chat.request(later).turns] == [f"{ALL}Why?", "Because.", "And then?"]
    assert fake.calls == 1


class Hearing(Listening):
    """Is sure of yes where the second beep is among the lines."""

    def stream(self, request: Request) -> Iterator[Chunk]:
        self.prompts.append(request.turns[-1].text)
        yes = -0.01 if "beep 2" in request.turns[-1].text else -5.0
        yield Chunk("", "stop", USAGE, Scores({"Yes": yes, "No": -5.0 - yes}, {"Yes": 1, "No": 1}))


def test_moments(film: Path, clip: Path, fake: LoudestSeconds) -> None:
    model = Hearing()
    search = find_moments("a goal", [film, clip], preset=preset(), model=model, every_seconds=2.0)
    assert not any(isinstance(outcome, Failure) for outcome in search)
    (moment,) = search.ranked()
    assert moment["video_path"] == str(film) and moment["start_seconds"] <= BEEPS[1] <= moment["end_seconds"]
    windows = [prompt.count("beep") for prompt in model.prompts if prompt.startswith(SPOKEN)]
    assert fake.calls == 1 and windows and max(windows) < len(BEEPS), "each part has its own lines"


def test_asking_in_the_terminal(
    film: Path, clip: Path, fake: LoudestSeconds, capsys: pytest.CaptureFixture[str]
) -> None:
    speech = ("--speech", "--speech-model", "loudest")
    without = json.loads(asked(capsys, str(film), "Why?", "--json", "-n", "2")[1])
    code, out, err = asked(capsys, str(film), "Why?", "--json", "-n", "2", *speech)
    row = json.loads(out)
    assert code == 0 and fake.calls == 1
    assert row["usage"]["prompt_tokens"] > without["usage"]["prompt_tokens"] + 20
    assert row["settings"]["sampling"]["speech_model"] == "loudest"
    code, out, err = asked(capsys, str(clip), "Why?", *speech)
    assert code == 0 and out and "it has no sound" in err
    code, out, err = asked(capsys, str(film), "Why?", *speech, "--windows", "2.5", "-n", "2")
    assert code == 0 and out and fake.calls == 1
    code, out, err = asked(capsys, str(film), "Why?", *speech, "--subtitles", "auto")
    assert (code, out) == (2, "") and "use --subtitles or --speech, not both" in err
    code, out, err = asked(capsys, str(film), "Why?", "--speech", "--speech-model", "smal")
    assert code != 0 and out == "" and ("did you mean 'small'?" in err or "faster-whisper" in err)


def test_presets(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("about: a\nsampling:\n  speech: true\n  speech_model: loudest\n")
    assert read_preset(tmp_path / "p.yaml").sampling == Sampling(speech=True, speech_model="loudest")
    for values in ({"speech": 1}, {"speech_model": ""}):
        with pytest.raises(UsageError, match="speech"):
            Sampling(**values)
    assert "speech" not in Sampling().values() and "speech_model" not in Sampling().values()
