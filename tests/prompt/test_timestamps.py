"""What the model is told of a video's length and its frames' times, wherever a question is asked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from serving import serving
from waiting_model import WaitingModel

from llava_video_cli import (
    Frames,
    Picture,
    Sampling,
    Turn,
    VideoInfo,
    load_preset,
    open_model,
    read_frames,
    with_times,
)
from llava_video_cli.cli.app import run
from llava_video_cli.preset import Preset, read_preset
from llava_video_cli.runs.caption import Task


def video(*times: float, seconds: float = 12.0) -> Frames:
    info = VideoInfo("v.mp4", seconds, 2, 2, 25.0, "h264", 0)
    return Frames(np.zeros((len(times), 2, 2, 3), np.uint8), times, info, Sampling(max(1, len(times))))


STILL = Picture(np.zeros((2, 2, 3), np.uint8), "p.png")


@dataclass(frozen=True)
class Listener:
    """A server that is asked from the command line; it answers nothing of sense."""

    model: WaitingModel
    flags: tuple[str, ...]

    @property
    def told(self) -> list[str]:
        """The texts of all requests."""
        return self.model.asked


@pytest.fixture
def listener() -> Iterator[Listener]:
    pytest.importorskip("uvicorn")
    pytest.importorskip("starlette")
    model = WaitingModel()
    with serving(model) as served:
        yield Listener(model, ("--preset", "demo", "--server", served.url))


def texts(*turns: Turn) -> list[str]:
    return [turn.text for turn in with_times(turns)]


def test_one_video_has_a_sentence_in_front_of_the_question() -> None:
    sentence = "The video is 12.00 seconds long, and is shown by 3 frames, at 0.00s, 4.00s, 8.04s."
    assert texts(Turn("user", "Why?", (video(0, 4, 8.04),))) == [f"{sentence}\nWhy?"]
    assert texts(Turn("user", "Why?", (STILL, video(3))))[0].startswith("The video is 12.00 seconds long, and is shown")


def test_pictures_and_texts_stay_as_they_are() -> None:
    turns = (Turn("system", "Be brief."), Turn("user", "Why?", (STILL,)))
    assert with_times(turns) == turns


def test_several_videos_have_numbers_and_earlier_turns_do_not_change() -> None:
    both = texts(Turn("user", "Why?", (video(0), STILL, video(1))))[0].splitlines()
    assert [line.split(" is ")[0] for line in both] == ["Video 1", "Video 2", "Why?"]
    turns = [Turn("user", "Why?", (video(0),)), Turn("assistant", "So."), Turn("user", "And?", (STILL, video(1)))]
    later = texts(*turns)
    assert later[:2] == texts(*turns[:2]) and later[0].startswith("The video ") and later[2].startswith("Video 2 is")


def test_the_question_in_the_record_is_what_was_asked(
    clip: Path, capsys: pytest.CaptureFixture[str], listener: Listener
) -> None:
    command = ["ask", str(clip), "Why?", "Who?", "--json", "-n", "2", "--start", "1"]
    common = "The video is 2.00 seconds long, and is shown by 2 frames, at 1.00s, 1.50s.\n"
    frames, model = read_frames(clip, Sampling(2, start_seconds=1.0)), open_model("demo")
    for flags, before in ((["--timestamps"], common), ([], "")):
        texts = [f"{before}Why?", f"{before}Who?"]
        for place in (listener.flags, ("--model", "demo")):
            assert run([*command, *flags, *place]) == 0
            rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
            assert [row["question"] for row in rows] == ["Why?", "Who?"]
            assert all(row["settings"]["timestamps"] is bool(flags) for row in rows)
        assert listener.told[-2:] == texts
        requests = [load_preset("demo").request(text, (frames,)) for text in texts]
        tokens = [model.budget(request).prompt_tokens for request in requests]
        assert [row["usage"]["prompt_tokens"] for row in rows] == tokens, "with weights here, too"


def test_windows_are_told_the_times_of_the_whole_video(clip: Path, tmp_path: Path, listener: Listener) -> None:
    command = ["caption", str(clip), *listener.flags, "--timestamps", "--every", "1", "-n", "2", "-o"]
    assert run([*command, str(tmp_path / "o.jsonl"), "--batch-size", "2", "-q"]) == 0
    assert sorted(text.splitlines()[0] for text in listener.told) == [
        "The video is 2.00 seconds long, and is shown by 2 frames, at 0.00s, 0.50s.",
        "The video is 2.00 seconds long, and is shown by 2 frames, at 1.00s, 1.50s.",
    ]
    row = json.loads((tmp_path / "o.jsonl").read_text())
    assert row["prompt"] == "Describe the video." and row["settings"]["timestamps"] is True


def test_a_request_of_a_file_has_its_own_say(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], listener: Listener
) -> None:
    lines: list[dict[str, Any]] = [{"id": n, "video": str(clip), "question": "Why?", "frames": 2} for n in range(2)]
    lines[1]["timestamps"] = True
    requests, out = tmp_path / "r.jsonl", tmp_path / "o.jsonl"
    requests.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ["batch", str(requests), "-o", str(out), *listener.flags, "--batch-size", "2"]
    assert run(command) == 0
    assert sorted(len(text.splitlines()) for text in listener.told) == [1, 2]
    rows = {row["id"]: row for row in map(json.loads, out.read_text().splitlines())}
    assert [rows[n]["settings"]["timestamps"] for n in range(2)] == [False, True] and rows[1]["question"] == "Why?"
    capsys.readouterr()
    assert run([*command, "--timestamps"]) == 0
    assert capsys.readouterr().err.splitlines()[-1] == "1 answered, 1 done before", "it is another answer"
    requests.write_text(json.dumps({**lines[0], "timestamps": "yes"}))
    assert run(command) == 2 and "'timestamps' must be true or false" in capsys.readouterr().err


def test_it_makes_another_caption_and_a_preset_may_say_it(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("about: mine\ntimestamps: true\n")
    assert read_preset(path).timestamps and not load_preset("default").timestamps
    plain, told = Task(Preset("a", "")), Task(Preset("a", "", timestamps=True))
    assert plain.fingerprint != told.fingerprint
    assert told.preset.request("Why?", (video(0),)).turns[-1].text.startswith("The video is")
