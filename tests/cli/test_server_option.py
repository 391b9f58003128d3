"""`--server` as a user types it: against our own server, and against stand-ins that are busy, gone or odd."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from clips import sample
from openai_server import OpenAIServer, error, exchange, listed, said
from PIL import Image
from serving import QUESTION, Served, serving
from terminal import failed, llvid, ran, scene

from llava_video_cli import Model, Sampling, open_model, read_frames
from llava_video_cli.cli.app import run
from llava_video_cli.demo.world import write_clip, write_picture
from llava_video_cli.remote import announce

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")


@pytest.fixture(scope="module")
def model() -> Model:
    return open_model("demo")


@pytest.fixture(scope="module")
def served(model: Model) -> Iterator[Served]:
    with serving(model) as running:
        yield running


def answered(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """Run `ask --json`; return what is the same wherever the model is."""
    code = run([*arguments, "--json", "-q"])
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    records = [json.loads(line) for line in out.splitlines()]
    for record in records:
        usage = record["usage"]
        assert usage["prompt_tokens"] > 0 and usage["peak_memory_bytes"] > 1e7
        assert 0 < usage["first_token_seconds"] <= usage["total_seconds"]
        record["usage"] = [usage[name] for name in ("prompt_tokens", "generated_tokens")]
        for name in ("server", "engine", "send"):
            record["settings"].pop(name, None)
    return records


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("bikes.mp4", ["-n", "5"]), ("rotated_90.mov", []), ("odd_dimensions.webm", ["--timestamps"]),
        ("nasa_13013.mp4", ["--fps", "0.5", "--start", "2", "--end", "9"]), ("one_white_frame.mp4", []),
        ("asl_learn.mkv", ["--sampling", "endpoints", "--system", "Be brief.", "--repetition-penalty", "1.3"]),
        ("bikes.mp4", ["--temperature", "1.5", "--seed", "3", "--max-new-tokens", "9"]),
    ],
)  # fmt: skip
def test_answers_counts_frames_and_settings_are_those_of_ask(
    name: str, flags: list[str], served: Served, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = ["ask", str(sample(name)), "What happens?", "Describe the video.", *flags]
    here = answered(capsys, *questions, "-m", "demo")
    assert answered(capsys, *questions, "--server", served.url) == here
    assert here[0]["answer"]


def test_choices_and_prefills_are_those_of_ask(served: Served, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions = ["ask", str(clip), "Which way does it move?", "--prefill", "It moves "]
    for more in ((), ("--choices", "left,right"), ("--choices", "left,left and up", "--length-normalized")):
        (here,), (there,) = (
            answered(capsys, *questions, *more, *place) for place in (("-m", "demo"), ("--server", served.url))
        )
        scores = here.pop("scores", {}), there.pop("scores", {})
        assert here == there and bool(scores[0]) == bool(more)
        assert scores[1] == pytest.approx(scores[0], abs=1e-4)
    command = ["ask", str(clip), "Does the video show a square?", "--choices", "yes,no", "--exit-code", "-q"]
    assert run([*command, "--server", served.url]) == 1
    assert run([*command, "--server", "http://127.0.0.1:9"]) == 2


def test_choices_at_a_server_that_cannot_score_are_refused_at_once(
    clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with exchange("sglang").running() as server:
        assert run(["ask", str(clip), "Why?", "--choices", "yes,no", "--server", server.url]) == 2
        assert not server.asked
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: choices can't be used with SGLang: its API does not tell how likely")
    assert hint == "hint: llvid serve and vLLM can score choices"


def test_several_media_and_files_as_they_are(
    served: Served, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture, short = tmp_path / "square.png", tmp_path / "short.mp4"
    write_picture(picture, scene(shape="square", x=0.5))
    write_clip(short, scene(duration_seconds=0.3))
    questions = ["ask", str(clip), "Is it the same shape?", "--with", str(picture), "--with", str(short)]
    here = answered(capsys, *questions, "-m", "demo")
    assert answered(capsys, *questions, "--server", served.url) == here
    questions = ["ask", str(sample("bikes.mp4")), "What happens?", "--start", "3", "--sampling", "keyframes"]
    here = answered(capsys, *questions, "-m", "demo")
    assert answered(capsys, *questions, "--server", served.url, "--send", "file") == here


def test_a_folders_captions_are_those_made_here_and_go_on_where_they_were(
    served: Served, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    for number, shape in enumerate(("circle", "square", "triangle", "circle", "square")):
        write_clip(folder / f"{number}.mp4", scene(shape=shape, seed=number))
    (folder / "bad.mp4").write_bytes(b"not a video")
    out = tmp_path / "out.jsonl"
    arguments = ["caption", str(folder), "-o", str(out)]
    assert run([*arguments, "--server", f"{served.url},{served.url}/v1"]) == 3
    assert "5 captioned, 1 failed" in capsys.readouterr().err
    remote = {r["video_path"]: r["caption"] for r in map(json.loads, out.read_text().splitlines())}
    # the same model with the same settings: nothing is left to do here
    assert run([*arguments, "-m", "demo"]) == 3
    assert "0 captioned, 5 done before, 1 failed" in capsys.readouterr().err
    assert run([*arguments, "-m", "demo", "--overwrite"]) == 3
    local = {r["video_path"]: r["caption"] for r in map(json.loads, out.read_text().splitlines())}
    assert remote == local and "square" in json.dumps(local)


def test_batch_and_chat_ask_the_server(
    served: Served, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    requests, out = tmp_path / "requests.jsonl", tmp_path / "out.jsonl"
    lines = [{"id": n, "video": str(clip), "question": QUESTION, "frames": 4 + n} for n in range(3)]
    requests.write_text("".join(json.dumps(line) + "\n" for line in lines))
    monkeypatch.setenv("LLVID_SERVER", served.url)
    assert run(["batch", str(requests), "-o", str(out)]) == 0
    records = [json.loads(line) for line in out.read_text().splitlines()]
    assert [record["answer"] for record in records] == ["It is a circle."] * 3
    assert {record["settings"]["server"] for record in records} == {served.url}
    capsys.readouterr()
    result = llvid("chat", str(clip), input=f"{QUESTION}\nWhich way does it move?\n")
    assert result.returncode == 0 and result.stdout == "It is a circle.\nIt moves right.\n"
    assert " of 4,096 tokens" in result.stderr and " reused" in result.stderr


def test_neither_torch_nor_transformers_is_imported(served: Served, clip: Path) -> None:
    code = (
        "import sys; from llava_video_cli.cli.app import run; code = run(sys.argv[1:]); "
        "sys.exit(str({'torch', 'transformers', 'torchvision', 'tokenizers'} & set(sys.modules)))"
    )
    import subprocess

    arguments = [sys.executable, "-c", code, "ask", str(clip), QUESTION, "--server", served.url]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert (result.stdout, result.stderr) == ("It is a circle.\n", "set()\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--quantize", "4bit"], "--quantize can't be used with --server"),
        (["--no-prefix-reuse"], "--no-prefix-reuse can't be used with --server"),
        (["--server", "http://u:secret@h"], "a server's address must not have a password"),
    ],
)
def test_flags_that_make_no_sense_with_a_server(
    arguments: list[str], words: str, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["ask", str(clip), "Why?", "--server", "127.0.0.1:9", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and words in err and "secret" not in err


def test_a_server_that_is_not_there_is_one_line(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = ran(capsys, "ask", str(clip), "Why?", "--server", "http://127.0.0.1:9")
    assert failed(result, 1) == "error: http://127.0.0.1:9 can't be reached: Connection refused"
    assert "llvid serve" in result.stderr
    assert "--send needs --server" in failed(ran(capsys, "ask", str(clip), "Why?", "--send", "file"), 2)


def test_what_a_server_says_is_shown_not_obeyed(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = OpenAIServer(listed("m\x1b[2J"), [error(400, "\x1b]0;title\x07 [bold]no[/]\r\n\n"), said("\x1b[31mred")])
    with server.running():
        assert run(["ask", str(clip), "Why?", "-n", "4", "--server", server.url]) == 1
        out, err = capsys.readouterr()
        assert out == "" and "\x1b" not in err and "\x07" not in err and "[bold]no[/]" in err
        assert len(err.splitlines()) == 1
        assert run(["ask", str(clip), "Why?", "--server", server.url]) == 0
        assert "\x1b" not in "".join(capsys.readouterr())


def test_a_run_whose_servers_die_is_one_line_and_goes_on_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    for number in range(4):
        write_clip(folder / f"{number}.mp4", scene(seed=number))
    out = tmp_path / "out.jsonl"
    # the third answer is the last: the key is refused from then on
    dying = OpenAIServer(listed("m"), [said("one"), said("two"), error(401, "expired")])
    arguments = ["caption", str(folder), "-o", str(out), "--batch-size", "1", "--server"]
    with dying.running():
        assert run([*arguments, dying.url]) == 1
    err = capsys.readouterr().err
    assert "refuses the API key: expired" in err and "LLVID_API_KEY" in err and err.count("error:") == 1
    assert len(out.read_text().splitlines()) == 2 and not out.with_suffix(".errors.jsonl").exists()
    living = OpenAIServer(listed("m"), [said("more")])
    with living.running():
        assert run([*arguments, living.url]) == 0
    assert "2 captioned, 2 done before" in capsys.readouterr().err


def test_ask_tells_of_a_server_of_ones_own_that_has_the_model(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))  # where nobody was told of a server today
    with announce("http://127.0.0.1:8377", "demo"):
        assert run(["ask", str(clip), QUESTION, "-m", "demo"]) == 0
        out, err = capsys.readouterr()
        assert out == "It is a circle.\n" and "--server http://127.0.0.1:8377" in err
        assert run(["ask", str(clip), QUESTION, "-m", "demo", "-q"]) == 0
        assert capsys.readouterr().err == ""
    assert run(["ask", str(clip), QUESTION, "-m", "demo"]) == 0
    assert capsys.readouterr().err == ""


def test_pictures_that_are_a_video_are_asked_of_a_server(
    served: Served, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "frames"
    folder.mkdir()
    for number, frame in enumerate(read_frames(clip, Sampling(8)).images):
        Image.fromarray(frame).save(folder / f"{number}.png")
    question = "Which way does it move?"
    here = answered(capsys, "ask", str(folder), question, "-m", "demo")
    assert (
        answered(capsys, "ask", str(folder), question, "--server", served.url) == here and "right" in here[0]["answer"]
    )
    assert run(["ask", str(folder), question, "--server", served.url, "--send", "file"]) == 2
    assert "pictures can't be sent as one file" in capsys.readouterr().err
