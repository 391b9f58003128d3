"""`llvid chat` from a pipe, and what its commands do."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from light_program import LIGHT
from terminal import llvid, scene

from llava_video_cli import Budget, Picture
from llava_video_cli.cli.app import run
from llava_video_cli.cli.chat_commands import COMMANDS, completions, protocol, terminal_picture
from llava_video_cli.cli.chat_session import no_fit
from llava_video_cli.demo.world import write_clip, write_picture
from llava_video_cli.prompt.budget import AS_ONE_VIDEO
from llava_video_cli.runs.conversation_file import read_conversation


@pytest.fixture
def folder(tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "red.mp4").hardlink_to(clip)
    write_picture(tmp_path / "red.png", scene(shape="square", x=0.5))
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Talked:
    """What came of a chat whose lines came from a pipe."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, lines: str, *arguments: str) -> tuple[int, list[str], str]:
        self._monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines.split(" | ")) + "\n"))
        code = run(["chat", "-m", "demo", *arguments])
        out, err = self._capsys.readouterr()
        return code, out.splitlines(), err


@pytest.fixture
def talked(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Talked:
    return Talked(monkeypatch, capsys)


def test_a_chat_from_a_pipe(folder: Path, talked: Talked) -> None:
    lines = "What shape is it?\n\n/image red.png\nIs it the same color?\n//frames\n"
    result = llvid("chat", "red.mp4", "-m", "demo", input=lines, cwd=folder, program=LIGHT)
    first, second, third = result.stdout.splitlines()
    assert (result.returncode, first) == (0, "It is a circle.") and second and third
    assert "red.png: a picture" in result.stderr and " of 4,096 tokens" in result.stderr
    assert "> " not in result.stdout and "\x1b" not in result.stdout + result.stderr
    assert talked("What shape is it? | /exit | /bad", "red.mp4", "-q") == (0, ["It is a circle."], "")


@pytest.mark.usefixtures("folder")
def test_a_bad_line_is_told_and_the_next_is_taken(talked: Talked) -> None:
    code, out, err = talked(
        "/vidoe x | /video gone.mp4 | /undo 3 | /video | /set frames 0 | What shape is it?", "red.mp4"
    )
    assert (code, out) == (1, ["It is a circle."])
    for words in (
        "there is no command /vidoe\nhint: did you mean '/video'?", "gone.mp4: no such file",
        "/undo takes no argument, got '3'", "/video needs PATH", "from 1 to",
    ):  # fmt: skip
        assert words in err
    code, out, err = talked("/home/me/x.mp4 what?", "red.mp4")
    assert code == 1 and "type // to ask" in err
    for wrong in ("caf\udce9?", "/system caf\udce9"):
        code, out, err = talked(f"{wrong} | What shape is it?", "red.mp4")
        assert (code, out) == (1, ["It is a circle."]) and "is not UTF-8 text" in err


def test_a_bad_file_or_model_ends_it(folder: Path, talked: Talked, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "bad.mp4").write_text("no video")
    for media, words in (("bad.mp4", "bad.mp4: not a video"), ("gone.mp4", "no such file")):
        code, out, err = talked("What shape is it?", media)
        assert (code, out) == (1, []) and err.startswith("error: ") and words in err
    assert run(["chat", "red.mp4", "-m", "./nothing"]) == 1
    assert "the model folder ./nothing doesn't exist" in capsys.readouterr().err


@pytest.mark.usefixtures("folder")
def test_undo_retry_clear(talked: Talked) -> None:
    code, out, err = talked(
        "/retry | What shape is it? | /retry | /image red.png | /undo | /undo | /retry | What shape is it? | /clear"
        " | What shape is it? | /undo | /undo",
        "red.mp4",
    )
    assert code == 1 and out[:3] == ["It is a circle."] * 3 and len(out) == 4, "/retry fails first and after /undo"
    assert err.count("error: there is no question to ask again") == 2
    assert "at temperature 0 the answer stays the same" in err and "removed red.png" in err
    assert "removed 'What shape is it?'; kept for the next question: red.mp4" in err
    assert "there is no video or picture in this conversation" in err and "error: there is nothing to undo" in err


@pytest.mark.usefixtures("folder")
def test_each_try_of_a_drawn_answer_has_another_seed(talked: Talked) -> None:
    question = "Describe the video."
    _, out, _ = talked(
        f"/set temperature 3 | {question} | /retry | /set seed 5 | {question} | /retry", "red.mp4", "--json"
    )
    seeds = [json.loads(line)["settings"]["generation"]["seed"] for line in out]
    assert seeds[0] != seeds[1] and seeds[2:] == [5, 6]
    _, again, err = talked(f"/set temperature=3 | /set seed {seeds[0]} | {question}", "red.mp4", "--json")
    assert json.loads(again[0])["answer"] == json.loads(out[0])["answer"] and f"seed {seeds[0]}" in err


@pytest.mark.usefixtures("folder")
def test_settings_and_system(talked: Talked) -> None:
    code, out, err = talked(
        "/set | /set frames 4 | /set frames | /system | /system Be brief. | What shape is it? | /system none"
        " | What shape is it?",
        "red.mp4",
        "--json",
    )
    assert code == 0 and "temperature 0.0" in err and "seed none" in err and err.count("frames 4") == 2
    assert "system: none" in err and "system: Be brief." in err
    first, second = (json.loads(line) for line in out)
    assert first["settings"]["system"] == "Be brief." and first["frames"]["count"] == 4
    assert second["settings"]["system"] is None and second["question"] == "What shape is it?"


def test_saved_and_gone_on_with(folder: Path, talked: Talked) -> None:
    (folder / "there.yaml").write_text("mine")
    code, _, err = talked(
        "/save | /save talk.yaml | /set frames 4 | /system Be brief. | What shape is it? | /image red.png"
        " | /save talk.yaml | /save | /save there.yaml | /save! there.yaml | /save x.txt | /clear",
        "red.mp4",
    )
    assert code == 1 and err.count("saved talk.yaml") == 3 and "saved there.yaml" in err
    assert "error: /save needs a PATH" in err and "x.txt must end in" in err
    assert "error: there.yaml exists\nhint: use /save! there.yaml to replace it" in err
    saved = read_conversation(folder / "talk.yaml")
    assert saved == read_conversation(folder / "there.yaml") and saved.model == "demo"
    assert [draft.role for draft in saved.drafts] == ["system", "user", "assistant", "user"]
    code, out, err = talked("Is it the same color? | /save", "--load", "talk.yaml", "--json")
    record = json.loads(out[0])
    assert code == 0 and record["answer"].endswith("yes.") and "saved talk.yaml" in err
    assert record["frames"]["count"] == 4 and record["settings"]["system"] == "Be brief."
    assert len(read_conversation(folder / "talk.yaml").drafts) == 5
    (folder / "open.yaml").write_text(
        "- {role: user, content: [{type: video, path: red.mp4}, {type: text, text: 'What shape is it?'}]}"
    )
    assert talked("/retry", "--load", "open.yaml")[1] == ["It is a circle."]
    code, out, err = talked("/retry", "--load", "there.yaml", "nothing.mp4")
    assert code == 1 and "nothing.mp4: no such file" in err


def test_what_does_not_fit_is_refused_with_what_to_drop(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_clip(folder / "long.mp4", scene(duration_seconds=60))
    lines = [
        "What shape is it?",
        "/set max_new_tokens 4000",
        "Which way does it move?",
        "/set max_new_tokens 20",
        "/retry",
    ]
    lines += ["/video long.mp4", "/set frames 450", "What happens?", "/set frames 8", "/retry"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
    assert run(["chat", "-m", "demo", "red.mp4"]) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 3, "the questions are not lost"
    first, second = [line for line in err.splitlines() if line.startswith("error: too long")]
    assert "red.mp4 72 for 8 frames, text " in first and "up to 4,000, but the context has 4,096" in first
    assert "long.mp4 4,050 for 450 frames, red.mp4 180 for 20 frames" in second
    hints = [line for line in err.splitlines() if line.startswith("hint: ")]
    assert "/set max_new_tokens 39" in hints[0] and "/undo (frees " in hints[0] and "/retry" in hints[0]


def test_a_refusal_names_only_what_would_do() -> None:
    import numpy as np

    picture = Picture(np.zeros((2, 2, 3), np.uint8), "b.png")
    paths = [f"{number}.png" for number in range(6)]
    failure = no_fit(Budget(5000, 512, 4096, (700,) * 6), paths, [picture] * 6, 0)
    assert "0.png 700" in str(failure) and "other media 1,400, text 800" in str(failure)
    assert failure.hint == f"ask a shorter question, or /clear the conversation; or {AS_ONE_VIDEO}"
    failure = no_fit(Budget(3700, 512, 4096, (700,)), ["b.png"], [picture], 812)
    assert failure.hint == "/set max_new_tokens 396 or /undo (frees 812 tokens), then /retry to ask again"


def test_frames_are_written_beside_what_is_there(folder: Path, talked: Talked) -> None:
    from PIL import Image

    (folder / "red-frames.png").write_text("mine")
    code, out, err = talked("/frames | /set frames 2 | /frames | /clear | /image red.png | /frames", "red.mp4")
    assert (code, out) == (1, []) and "error: there is no video" in err
    assert "red-frames-2.png: 8 frames of red.mp4" in err and "red-frames-2.png: 2 frames of red.mp4" in err
    assert (folder / "red-frames.png").read_text() == "mine" and Image.open("red-frames-2.png").width > 300


def test_hostile_names_and_texts_are_shown_and_not_obeyed(folder: Path, talked: Talked) -> None:
    name = "\x1b]0;owned\x07\u202e.mp4"
    (folder / name).hardlink_to(folder / "red.mp4")
    (folder / "talk.json").write_text(
        json.dumps(
            [
                {"role": "user", "content": [{"type": "video", "path": name}, {"type": "text", "text": "\x1b[2J?"}]},
                {"role": "assistant", "content": "\x1b[31m"},
            ]
        )
    )
    _, out, err = talked(
        f"/video {name} | What shape is it? | /undo | /undo | /frames | /undo | \x1b[2J | /\x1b[2J",
        "--load",
        "talk.json",
    )
    assert out and not any(character in "".join(out) + err for character in "\x1b\x07\u202e")


def test_completion(folder: Path) -> None:
    (folder / "sub dir").mkdir()
    (folder / "sub dir" / ".hidden").touch()
    assert completions("/u") == ["/undo"] and completions("/vid") == ["/video "]
    assert completions("/video red") == ["/video red.mp4", "/video red.png"]
    assert completions("/save sub") == ["/save sub dir/"] and completions("/video sub dir/") == []
    assert completions("/video sub dir/.h") == ["/video sub dir/.hidden"]
    assert completions(f"/image {folder}/red.p") == [f"/image {folder}/red.png"]
    assert completions("/set temp") == ["/set temperature "]
    for line in ("What", "/undo x", "/video none/x", "/video \0", "/nothing x"):
        assert completions(line) == []
    assert len(completions("/")) == len(COMMANDS)


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-ghostty"}, "kitty"),
        ({"TERM_PROGRAM": "ghostty"}, "kitty"),
        ({"TERM_PROGRAM": "WezTerm"}, "iterm"),
        ({"TERM_PROGRAM": "iTerm.app"}, "iterm"),
        ({"LC_TERMINAL": "iTerm2"}, "iterm"),
        ({"TERM": "screen-256color", "KITTY_WINDOW_ID": "1"}, None),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/x"}, None),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "vscode"}, None),
        ({}, None),
    ],
)
def test_only_terminals_that_say_so_get_pictures(environment: dict[str, str], wanted: str | None) -> None:
    assert protocol(environment) == wanted


def test_pictures_go_out_whole_and_ask_for_no_reply() -> None:
    import base64
    import re

    png = bytes(range(256)) * 50
    pieces = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", terminal_picture(png, "kitty", 80))
    assert base64.b64decode("".join(data for _, data in pieces)) == png
    assert pieces[0][0] == "a=T,f=100,q=2,c=80,m=1" and pieces[-1][0] == "m=0"
    assert max(len(data) for _, data in pieces) == 4096
    keys = "inline=1;size=12800;width=80;preserveAspectRatio=1"
    found = re.fullmatch(rf"\x1b\]1337;File={keys}:(.*)\a\n", terminal_picture(png, "iterm", 80))
    assert found and base64.b64decode(found[1]) == png
