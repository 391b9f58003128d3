"""`llvid batch`: files of requests, read strictly; each request gets its own answer."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from fakes import wrapped
from PIL import Image
from terminal import scene

from llava_video_cli import Limits, Loading, MediaError, UsageError, load_preset
from llava_video_cli.cli.app import run
from llava_video_cli.demo import CHECKPOINT
from llava_video_cli.demo.world import frames as world_frames
from llava_video_cli.demo.world import write_clip as write_scene
from llava_video_cli.demo.world import write_picture
from llava_video_cli.inference.loader import load
from llava_video_cli.inference.video_model import VideoModel
from llava_video_cli.runs.requests import RequestJob, read_requests

PRESET = load_preset("demo")
VIDEO_PART = {"type": "video", "path": "blue.mp4"}


def write(path: Path, *lines: dict[str, Any] | str) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def answers(path: Path) -> dict[Any, dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = {row["id"]: row for row in rows}
    assert len(found) == len(rows)
    return found


@pytest.fixture
def folder(tmp_path: Path, clip: Path) -> Path:
    (tmp_path / "red.mp4").hardlink_to(clip)
    blue = scene(
        shape="square", color_start="blue", color_end="blue", shade_start=(45, 80, 220), shade_end=(45, 80, 220)
    )
    write_scene(tmp_path / "blue.mp4", blue)
    write_picture(tmp_path / "red.png", scene(shape="triangle", x=0.5))
    return tmp_path


def test_each_request_gets_its_own_answer_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[dict[str, Any]] = [
        {"id": "shape", "video": "red.mp4", "question": "What shape is it?"},
        {"id": "color", "video": "red.mp4", "question": "What color is it at the start?", "max_new_tokens": 2},
        {"id": "few", "video": "red.mp4", "question": "Where does it move?", "frames": 4, "start": "0:01", "end": 2},
        {"id": 7, "media": ["red.png", "blue.mp4"], "question": "Is it the same shape?"},
        {
            "id": "turns",
            "messages": [
                {"role": "user", "content": [VIDEO_PART, {"type": "text", "text": "What shape is it?"}]},
                {"role": "assistant", "content": "It is a square."},
                {"role": "user", "content": "What color is it at the start?"},
            ],
        },
        {"video": "gone.mp4", "question": "Why?"},
    ]  # fmt: skip
    requests, out = write(folder / "requests.jsonl", *lines, ""), folder / "answers.jsonl"
    command = ["batch", str(requests), "-o", str(out), "-m", "demo"]
    assert run(command) == 3
    assert capsys.readouterr().err == (
        f"5 answered (1 cut off: --max-new-tokens was reached), 1 failed (see {folder / 'answers.errors.jsonl'})\n"
    )
    found = answers(out)
    assert found["shape"]["answer"] == "It is a circle." and found["shape"]["video"] == str(folder / "red.mp4")
    assert found["shape"]["video_path"] == found["shape"]["video"] and found["shape"]["notes"] == []
    assert found["color"]["finish_reason"] == "length" and found["color"]["usage"]["generated_tokens"] == 2
    assert "right" in found["few"]["answer"] and found["few"]["frames"]["times_seconds"] == [1.0, 1.2, 1.5, 1.7]
    assert "no" in found[7]["answer"] and found[7]["with"][0]["path"] == str(folder / "blue.mp4")
    assert "blue" in found["turns"]["answer"] and found["turns"]["question"] == "What color is it at the start?"
    assert found["few"]["settings"]["sampling"]["frames"] == 4 and found["shape"]["settings"]["sampling"]["frames"] == 8
    failed = json.loads((folder / "answers.errors.jsonl").read_text())
    assert (
        failed["id"] == 6
        and failed["video_path"] == failed["video"] == str(folder / "gone.mp4")
        and "No such file" in failed["error"]
    )
    (folder / "gone.mp4").hardlink_to(folder / "red.mp4")
    lines[0]["question"] = "Does the color change?"
    write(requests, *lines)
    assert run(command) == 0, "the changed one and the one that failed"
    assert capsys.readouterr().err == "2 answered, 4 done before\n"
    assert not (folder / "answers.errors.jsonl").exists()


def test_requests_on_the_same_frames_read_and_encode_them_once(folder: Path) -> None:
    from llava_video_cli.runs.answers import RunPace
    from llava_video_cli.runs.answers import run as answer

    questions = ["What shape is it?", "Which way does it move?", "Does the color change?"] * 5
    lines = [{"id": n, "video": "red.mp4", "question": text} for n, text in enumerate(questions)]
    asked = list(read_requests(write(folder / "r.jsonl", *lines), PRESET))
    encoded = 0

    def counted(real: Any, *arguments: Any, **more: Any) -> Any:
        nonlocal encoded
        encoded += 1
        return real.get_video_features(*arguments, **more)

    model = VideoModel("demo", wrapped(load(CHECKPOINT, Loading()), get_video_features=counted))
    job = RequestJob(tuple((each, str(each.id), "") for each in asked), model.settings, model.budget)
    media = [question.request.media for question in job.questions(model.shrink, Limits()) if question is not None]
    assert len({id(medium) for each in media for medium in each}) == 1
    outcomes = list(answer([job], model, pace=RunPace(4)))
    assert len(outcomes) == 15 and encoded == 1, "four at a time"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "not JSON"),
        ("[]", "must be a JSON object"),
        ({"video": "a", "qestion": "x"}, "unknown key 'qestion'"),
        ({"video": "a"}, "either 'question' or 'messages'"),
        ({"question": "x"}, "'video' or 'media' is needed"),
        ({"video": "a", "media": ["b"], "question": "x"}, "not both"),
        ({"video": 3, "question": "x"}, "a path must be text"),
        ({"video": [], "question": "x"}, "a list with at least one path"),
        ({"video": "a", "question": ""}, "'question' must be text"),
        ({"video": "a", "question": "x", "frames": 0}, "from 1 to"),
        ({"video": "a", "question": "x", "fps": "fast"}, "'fps' must be a number"),
        ({"video": "a", "question": "x", "frames": 2.5}, "whole number"),
        ({"video": "a", "question": "x", "temperature": "hot"}, "must be a number"),
        ({"video": "a", "question": "x", "max_new_tokens": 2.5}, "must be a whole number"),
        ({"video": "a", "question": "x", "id": [1]}, "'id' must be"),
        ({"video": "a", "question": "x", "start": "x"}, "not a time"),
        ({"video": "a", "question": "x", "start": {}}, "start"),
        ({"video": "a", "question": "x", "sampling": "all"}, "sampling"),
        ({"media": [], "question": "x"}, "'media' must be a non-empty list"),
        ({"video": "a", "messages": [{"role": "user"}]}, "'role' and"),
        ({"video": "a", "messages": [{"role": "cat", "content": "x"}]}, "the role must be"),
        (
            {"video": "a", "messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
            "last message",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "a part of a message"),
        ({"messages": [{"role": "assistant", "content": [{"type": "video", "path": "a"}]}]}, "a part of a message"),
        ({"video": "a", "question": "x", "system": 5}, "'system' must be text"),
        ({"video": "a", "question": "\ud800"}, "half of a character"),
        ({"video": "a", "question": "x", "choices": ["\ud800", "y"]}, "choices must be UTF-8 text"),
        ({"video": "\ud800", "question": "x"}, "can't be a path"),
        ({"video": "a", "question": "x", "max_new_tokens": 10**400}, "max_new_tokens must be from 1 to 9223372036854"),
        ({"video": "a", "question": "x", "start": "9" * 400 + "h"}, "not a time: '999"),
        ({"video": "a", "question": "x", "scene_threshold": 3}, "scene_threshold means nothing where no cuts are"),
        ({"video": "a", "question": "x", "speech_model": "tiny"}, "speech_model means nothing without speech"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: Any, words: str) -> None:
    path = write(tmp_path / "r.jsonl", {"video": "a", "question": "x"}, line)
    with pytest.raises(UsageError, match="line 2: ") as caught:
        list(read_requests(path, PRESET))
    assert words in str(caught.value) and len(str(caught.value)) < 400


def test_what_a_key_names(tmp_path: Path) -> None:
    """All that decides on the answer; the request's own key, all but the state of the video."""
    video = tmp_path / "a.mp4"
    video.write_text("a")
    line = {"id": 1, "video": "a.mp4", "question": "Why?", "temperature": 0.5, "seed": 7}

    def keys(model: str = "demo", drawn_seed: int | None = None, **changes: Any) -> tuple[str, str]:
        (request,) = read_requests(write(tmp_path / "r.jsonl", {**line, **changes}), PRESET)
        return request.keys(model, drawn_seed)

    first, lasting = keys()
    others = [
        keys("other"), keys(id=2), keys(question="How?"), keys(timestamps=True), keys(frames=3),
        keys(system="Be brief."), keys(seed=8),
    ]  # fmt: skip
    assert len({first, *(key for key, _ in others)}) == len({lasting, *(key for _, key in others)}) == 8
    assert keys(drawn_seed=7) == keys(drawn_seed=8, seed=8) != keys(), "a drawn seed is no part of it"
    os.utime(video, ns=(1, 1))
    changed, same = keys()
    assert changed != first and same == lasting


def test_media_go_to_the_first_question_and_a_system_text_stands_once(tmp_path: Path) -> None:
    talk = [{"role": "system", "content": "Mine."}, {"role": "user", "content": "Why?"}]
    line = {"video": "a.mp4", "messages": talk}
    plain = {"video": "a.mp4", "question": "Why?", "system": "Theirs."}
    path = write(tmp_path / "r.jsonl", line, {**line, "system": "Theirs."}, plain)
    asked = list(read_requests(path, PRESET))
    told = [[(draft.role, draft.text, len(draft.paths)) for draft in request.drafts] for request in asked]
    mine = [("system", "Mine.", 0), ("user", "Why?", 1)]
    assert told == [mine, mine, [("system", "Theirs.", 0), ("user", "Why?", 1)]]


def test_an_id_stands_once(tmp_path: Path) -> None:
    path = write(tmp_path / "r.jsonl", *[{"id": "a", "video": "a", "question": "x"}] * 2)
    with pytest.raises(UsageError, match="line 2: the id 'a' appears twice"):
        list(read_requests(path, PRESET))


def test_a_url_is_refused_with_what_to_do(tmp_path: Path) -> None:
    line = {"video": "https://example.com/a.mp4", "question": "Why?"}
    (request,) = read_requests(write(tmp_path / "r.jsonl", line), PRESET)
    with pytest.raises(MediaError, match=r"^https://example\.com/a\.mp4: a file of requests takes files") as caught:
        request.keys("demo", None)
    assert str(caught.value.hint).startswith("download it")


def test_wrong_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "r.jsonl", {"video": "a", "question": "x", "qestion": "y"})
    for requests, out, words in (
        (path, "o.jsonl", "line 1: unknown key 'qestion'"), (tmp_path / "no", "o.jsonl", "No such file"),
        (path, "o.csv", "must end in .jsonl"),
        (write(tmp_path / "empty.jsonl", ""), "o.jsonl", "no request in it"), (tmp_path, "o.jsonl", "Is a directory"),
    ):  # fmt: skip
        assert run(["batch", str(requests), "-o", str(tmp_path / out)]) == 2
        out_text, err = capsys.readouterr()
        assert out_text == "" and err.startswith("error: ") and words in err
    good = write(tmp_path / "g.jsonl", {"video": "a", "question": "x"})
    assert run(["batch", str(good), "-o", str(good)]) == 2
    assert "is the file of requests" in capsys.readouterr().err and good.read_text()


def test_what_never_ends_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe, hole = tmp_path / "pipe.jsonl", tmp_path / "long.jsonl"
    os.mkfifo(pipe)
    with hole.open("wb") as file:
        file.truncate(2**34)
    good = write(tmp_path / "g.jsonl", {"video": "a", "question": "x"})
    for requests, out, words in (
        (Path("/dev/zero"), "o.jsonl", "/dev/zero can't be read: not a regular file"),
        (pipe, "o.jsonl", "pipe.jsonl can't be read: not a regular file"),
        (hole, "o.jsonl", "long.jsonl, line 1: longer than 67,108,864 bytes"),
        (good, "pipe.jsonl", "is not a regular file, so a run can't resume"),
    ):
        assert run(["batch", str(requests), "-o", str(tmp_path / out), "-m", "demo"]) == 2
        assert words in capsys.readouterr().err
    assert run(["batch", str(good), "-o", str(hole), "-m", "demo"]) == 1
    assert "longer than 67,108,864 bytes" in capsys.readouterr().err
    # an open descriptor, as `<(command)` gives one, is no pipe that one waits for
    reading, writing = os.pipe()
    os.write(writing, b'{"video": "a", "qestion": "x"}\n')
    os.close(writing)
    assert run(["batch", f"/dev/fd/{reading}", "-o", str(tmp_path / "o.jsonl")]) == 2
    os.close(reading)
    assert "unknown key 'qestion'" in capsys.readouterr().err


def test_a_pipe_with_the_name_of_an_output_is_not_opened(clip: Path, tmp_path: Path) -> None:
    for name in ("metadata.csv", "o.csv", "o.jsonl", "o.parquet"):
        os.mkfifo(tmp_path / name)
        assert run(["caption", str(clip), "-m", "demo", "-o", str(tmp_path / name)]) == 2


def test_a_list_of_pictures_is_one_video(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, image in enumerate(world_frames(scene()), start=1):
        Image.fromarray(image).save(tmp_path / f"{number}.png")
    listed = [f"{number}.png" for number in range(1, 21)]
    question = "Which way does it move?"
    requests = write(
        tmp_path / "requests.jsonl",
        {"id": "list", "video": listed, "question": question, "source_fps": 10},
        {"id": "back", "media": [listed[::-1]], "question": question, "source_fps": 10},
        {"id": "other", "video": [*listed[:9], "9.png", *listed[10:]], "question": question, "source_fps": 10},
        {"id": "pattern", "video": "*.png", "question": question, "source_fps": 10},
        {"id": "turns", "messages": [{"role": "user", "content": [
            {"type": "video", "video": listed}, {"type": "text", "text": question}]}]},
        {"id": "picture", "video": "1.png", "question": "What shape is it?", "source_fps": 10},
    )  # fmt: skip
    command = ["batch", str(requests), "-o", str(tmp_path / "out.jsonl"), "-m", "demo"]
    assert run(command) == 0
    found = answers(tmp_path / "out.jsonl")
    assert all("right" in found[name]["answer"] for name in ("list", "other", "pattern", "turns"))
    assert "left" in found["back"]["answer"]
    assert found["list"]["video"] == found["list"]["video_path"] == [str(tmp_path / name) for name in listed]
    assert found["list"]["frames"]["duration_seconds"] == 2 and found["turns"]["frames"]["duration_seconds"] == 20
    assert found["list"]["settings"]["sampling"]["source_fps"] == 10
    assert any("(source_fps) is not used" in line for line in found["picture"]["notes"])
    capsys.readouterr()
    assert run(command) == 0 and "6 done before" in capsys.readouterr().err
    os.utime(tmp_path / "20.png", ns=(1, 1))
    assert run(command) == 0 and "5 answered, 1 done before" in capsys.readouterr().err
    for bad in ([], ["1.png", 2], [""]):
        with pytest.raises(UsageError):
            list(read_requests(write(tmp_path / "bad.jsonl", {"video": bad, "question": "q"}), PRESET))
    (tmp_path / "20.png").unlink()
    (tmp_path / "out.jsonl").unlink()
    assert run(command) == 3 and "20.png" in (tmp_path / "out.errors.jsonl").read_text()
