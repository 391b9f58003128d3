"""What doesn't fit the context is refused before weights are read, and nothing else is."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
from clips import make_clip
from hub import running_hub
from terminal import failed, llvid

from llava_video_cli import Sampling, read_frames
from llava_video_cli.cli.app import run
from llava_video_cli.video import announced_frames

# Runs a command line, and fails if anything heavy was imported for it.
LIGHTLY = """
import sys
from llava_video_cli.cli.app import run
code = run(sys.argv[1:])
heavy = {"torch", "transformers", "torchvision", "accelerate", "bitsandbytes", "safetensors"} & set(sys.modules)
sys.exit(f"imported: {heavy}" if heavy else code)
"""


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight seconds of ten frames each."""
    return make_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", range(80), Fraction(1, 10))


@pytest.fixture
def no_weights(layouts: dict[str, Path], tmp_path: Path) -> str:
    """The checkpoint of the smallest context, without its weights: whoever wants to read them fails otherwise."""
    folder = tmp_path / "34B"
    shutil.copytree(layouts["yi"], folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return str(folder)


def conversation(tmp_path: Path, clip: Path) -> Path:
    path = tmp_path / "talk.json"
    content = [{"type": "video", "path": str(clip)}, {"type": "text", "text": "What happens?"}]
    path.write_text(json.dumps([{"role": "user", "content": content}]))
    return path


@pytest.mark.parametrize("command", ["ask", "messages", "windows", "caption", "every", "folder"])
def test_what_does_not_fit_is_refused_without_weights(
    no_weights: str, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    commands = {
        "ask": ["ask", str(clip), "What happens?"],
        "messages": ["ask", "--messages", str(conversation(tmp_path, clip))],
        "windows": ["ask", str(clip), "What happens?", "--windows", "4"],
        "caption": ["caption", str(clip)],
        "every": ["caption", str(clip), "--every", "4"],
        "folder": ["caption", str(clip.parent), "-o", str(tmp_path / "out.jsonl")],
    }
    assert run([*commands[command], "-m", no_weights, "-n", "32"]) == 1
    out, err = capsys.readouterr()
    fit = 26 if command == "windows" else 24  # what is said of a window is brief
    assert f"too many frames: 32; with this question, {fit} frames fit the context of " in err and "34B (" in err
    assert f"hint: use --frames {fit} or --pool-stride 3 or --rope-factor 2\n" in err
    assert err.count("\n") == 2 and not out
    assert not (tmp_path / "out.jsonl").exists() or not (tmp_path / "out.jsonl").read_bytes()


def test_a_refusal_imports_nothing_heavy(no_weights: str, clip: Path) -> None:
    arguments = ["ask", str(clip), "What happens?", "-m", no_weights, "-n", "32", "-q"]
    done = subprocess.run([sys.executable, "-c", LIGHTLY, *arguments], capture_output=True, text=True, env=os.environ)
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("error: ") and "24 frames" in done.stderr


@pytest.mark.parametrize(
    "flags", [["--end", "1", "-n", "32"], ["--fps", "2"], ["-n", "24"], ["--pool-stride", "4", "-n", "32"]]
)
def test_what_fits_is_not_refused(
    no_weights: str, clip: Path, capsys: pytest.CaptureFixture[str], flags: list[str]
) -> None:
    """A part of a second has fewer frames than are asked for, and so on: the weights are what is missed."""
    assert run(["ask", str(clip), "What happens?", "-m", no_weights, *flags]) == 1
    assert "has no weights" in capsys.readouterr().err


def test_a_chat_says_what_would_make_room_and_goes_on(
    layouts: dict[str, Path], clip: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("/set frames 2\n/set max_new_tokens 4\nWhy?\n"))
    assert run(["chat", str(clip), "-m", str(layouts["yi"]), "-n", "32"]) == 0
    out, err = capsys.readouterr()
    assert out and "too long: the conversation takes 4,6" in err and ": /set frames 24\n" in err


def test_frames_are_announced_as_they_are_read(clip: Path) -> None:
    for sampling in (
        Sampling(7), Sampling(200), Sampling(9, start_seconds=2.05, end_seconds=3), Sampling(fps=3.7),
        Sampling(5, mode="endpoints"), Sampling(5, mode="keyframes"),
    ):  # fmt: skip
        announced, there = announced_frames(clip, sampling), read_frames(clip, sampling)
        assert announced.times_seconds == there.times_seconds and announced.notes == there.notes
        assert (announced.info, announced.sampling) == (there.info, there.sampling)
        assert len(announced.images) == len(there.images) and announced.images.max() == 0


def test_auto_stretches_the_context_and_says_so(
    layouts: dict[str, Path], clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["ask", str(clip), "Why?", "-m", str(layouts["yi"]), "--rope-factor", "auto", "--max-new-tokens", "4"]
    assert run([*command, "-n", "32", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["settings"]["rope_factor"] == 2.0
    assert "--rope-factor 2: the context is 8,192 tokens" in err
    assert run([*command, "-n", "8", "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["settings"]["rope_factor"] == 1.0 and "--rope-factor" not in err


def test_auto_reaches_as_far_as_the_longest_request(
    layouts: dict[str, Path], clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [{"video": str(clip), "question": "Why?", "frames": frames} for frames in (2, 30)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = ["-m", str(layouts["yi"]), "--rope-factor", "auto", "--max-new-tokens", "4", "-q"]
    assert run(["batch", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl"), *flags]) == 0
    records = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [record["settings"]["rope_factor"] for record in records] == [2.0, 2.0]
    assert run(["caption", str(clip.parent), *flags, "--fps", "2", "-o", str(tmp_path / "c.jsonl")]) == 2
    assert "use --frames N, or give the factor" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--rope-factor", "many"], 2, "--rope-factor must be auto or a number, got 'many'"),
        (["--rope-factor", "0"], 2, "a RoPE factor must be 1 or more, got 0"),
        (["--rope-factor", "nan"], 2, "a RoPE factor must be 1 or more, got nan"),
        (["--pool-stride", "5"], 2, "hint: use one of 2, 3, 4, 6, 8, 12"),
        (["--pool-stride", "0"], 2, "hint: use one of 2, 3, 4, 6, 8, 12"),
        (["--pool-mode", "min"], 2, "'average', 'max'"),
    ],
)
def test_a_slip_is_said_before_weights_are_read(
    no_weights: str, clip: Path, capsys: pytest.CaptureFixture[str], flags: list[str], code: int, words: str
) -> None:
    assert run(["ask", str(clip), "Why?", "-m", no_weights, *flags]) == code
    assert words in capsys.readouterr().err


def test_another_pooling_makes_another_caption(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["caption", str(clip.parent), "-m", "demo", "-o", str(tmp_path / "out.jsonl")]
    assert run(command) == run(command) == 0
    assert "1 done before" in capsys.readouterr().err
    assert run([*command, "--pool-stride", "3"]) == 0
    assert "1 captioned" in capsys.readouterr().err


def test_what_does_not_fit_is_not_even_downloaded(layouts: dict[str, Path], clip: Path, tmp_path: Path) -> None:
    with running_hub({"org/34B": layouts["yi"]}) as hub:
        env = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
        done = llvid("ask", str(clip), "What happens?", "-m", "org/34B", "-n", "32", env=env)
    assert "too many frames: 32; with this question, 24 frames fit the context of org/34B" in failed(done, 1)
    files = [path for path in hub.asked if "/resolve/" in path]
    assert files and all(path.endswith("/config.json") for path in files) and not hub.sent
