"""The command line and what stands around it: pipes, a full disk, Ctrl-C, colours, and the small commands."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from light_program import LIGHT
from terminal import PROGRAM, QUESTION, llvid

from llava_video_cli.cli.app import run
from llava_video_cli.preset import preset_files


@pytest.mark.slow
def test_no_color_and_pipes_get_plain_text(clip: Path, tmp_path: Path) -> None:
    missing = ("ask", str(tmp_path / "none.mp4"), "q", "-m", "demo")
    assert "\x1b[1;31m" in llvid(*missing, env={"FORCE_COLOR": "1"}).stderr
    assert "31m" not in llvid(*missing, env={"FORCE_COLOR": "1", "NO_COLOR": "1"}).stderr
    assert "\x1b" not in llvid(*missing).stderr
    result = llvid("ask", str(clip), QUESTION, "-m", "demo")
    assert "\x1b" not in result.stdout + result.stderr


def test_a_reader_that_leaves_early_is_no_error(clip: Path) -> None:
    program = shlex.join(LIGHT)
    for arguments in (f'ask "{clip}" "Describe the video." "Again?" -m demo', "presets -q", "--help"):
        command = f"{program} {arguments} | head -c 5; echo; echo ${{PIPESTATUS[0]}}"
        result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False)
        first, code, _ = result.stdout.rsplit("\n", 2)
        assert (len(first), result.stderr) == (5, "") and code in ("0", "141"), arguments  # 0 if it was quicker
    with subprocess.Popen(
        [*LIGHT, "doctor", "-m", "demo"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as doctor:
        assert doctor.stdout is not None and doctor.stderr is not None
        doctor.stdout.close()
        assert (doctor.wait(120), doctor.stderr.read()) == (141, "")
    closed = f"{program} presets | true; echo ${{PIPESTATUS[0]}}"
    done = [subprocess.run(["bash", "-c", closed], capture_output=True, text=True, check=False) for _ in range(3)]
    assert {result.stdout for result in done} <= {"141\n", "0\n"} and not any(result.stderr for result in done)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_one_line(clip: Path) -> None:
    with Path("/dev/full").open("w") as full:
        command = [*LIGHT, "ask", str(clip), QUESTION, "-m", "demo"]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    assert result.returncode == 1 and result.stderr == "error: can't write the answer: No space left on device\n"


def wait_for_start(process: subprocess.Popen[Any]) -> None:
    """Wait until the program handles signals itself: before, it is Python's start that they end."""
    status = Path(f"/proc/{process.pid}/status")
    if not status.exists():  # only Linux tells
        time.sleep(1.0)
        return
    while not int(status.read_text().split("SigCgt:")[1].split()[0], 16) & 1 << signal.SIGTERM - 1:
        assert process.poll() is None
        time.sleep(0.01)


@pytest.mark.parametrize("after_seconds", [0.0, 0.3, 0.9, None])  # None: once the answer comes
def test_ctrl_c_ends_at_once_with_130(clip: Path, layouts: dict[str, Path], after_seconds: float | None) -> None:
    command = [*PROGRAM, "ask", str(clip), QUESTION, "-m", str(layouts["vicuna"])]
    command += ["--max-new-tokens", "3500", "--temperature", "1", "--seed", "1"]  # without end
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if after_seconds is None:
        assert process.stdout is not None and process.stdout.read(1)
    else:
        wait_for_start(process)
        time.sleep(after_seconds)
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err and err.rstrip().endswith("interrupted")
    assert time.monotonic() - started < 30


def test_presets_are_listed_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["presets"]) == 0
    out, err = capsys.readouterr()
    assert {line.split()[0] for line in out.splitlines()} >= {"default", "low-memory", "demo"} and "presets" in err
    assert run(["presets", "low-memory"]) == 0
    out, err = capsys.readouterr()
    assert "quantize: 4bit" in out and err.strip().endswith("low-memory.yaml")
    (tmp_path / "mark.yaml").write_text("\ufeffabout: mine\n", encoding="utf-8")
    assert run(["presets", str(tmp_path / "mark.yaml")]) == 0
    assert capsys.readouterr().out == "about: mine\n"
    assert run(["presets", "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {each["name"] for each in records} == set(preset_files()) and all(each["about"] for each in records)


def test_a_broken_preset_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "llvid" / "presets"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text("about: mine\nmodle: demo\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert run(["presets"]) == 0
    out, err = capsys.readouterr()
    assert "low-memory" in out and "unknown key 'modle'" in err


def test_frames_as_a_sheet_and_as_files(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    sheet = tmp_path / "sheet.png"
    assert run(["frames", str(clip), "-n", "4", "-o", str(sheet)]) == 0
    assert capsys.readouterr().out == f"{sheet}\n"
    assert Image.open(sheet).width > 300
    assert run(["frames", str(clip), "-n", "4", "-o", str(sheet)]) == 1
    assert " exists\n" in capsys.readouterr().err
    assert run(["frames", str(clip), "-n", "4", "-o", str(sheet), "--overwrite"]) == 0
    folder = f"{tmp_path}/files/"
    assert run(["frames", str(clip), "-n", "4", "-o", folder, "--json"]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    names = [Path(path).name for path in record["files"]]
    assert names == ["0001_0.000s.png", "0002_0.500s.png", "0003_1.000s.png", "0004_1.500s.png"]
    assert Image.open(record["files"][0]).size == (120, 120)
    assert "of another run" not in capsys.readouterr().err
    assert run(["frames", str(clip), "-n", "2", "-o", folder, "--overwrite"]) == 0
    assert f"{folder} has 3 frames of another run, too\n" in capsys.readouterr().err
    assert run(["frames", str(clip), "-o", str(tmp_path / "x.txt")]) == 2
    assert run(["frames", str(clip), "-o", "/dev/null/x.png"]) == 1
    assert "can't write" in capsys.readouterr().err


def test_completion_is_there() -> None:
    result = llvid("--show-completion", "bash", env={"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"})
    assert result.returncode == 0 and "llvid" in result.stdout


def test_the_demo_answers_rightly_and_overwrites_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # the second time the same clip exists
        assert run(["demo"]) == 0
        out, err = capsys.readouterr()
        for word in ("yellow", "triangle", "right", "blue", "Yes"):
            assert word in out
        assert "wrote llvid-demo.mp4" in err and "llvid ask llvid-demo.mp4" in err
    assert run(["demo", "-o", "my clip\x1b[2J.mp4"]) == 0
    out, err = capsys.readouterr()
    assert "llvid frames 'my clip\u241b[2J.mp4' -p demo" in err and "\x1b" not in err
    (tmp_path / "my clip\x1b[2J.mp4").unlink()
    assert run(["demo", "-o", "clip.txt"]) == 2
    assert capsys.readouterr().err == "error: clip.txt must end in .mp4, .mkv, .webm, .avi, .mov\n"
    mine = tmp_path / "llvid-demo.mp4"
    mine.write_bytes(b"something of mine")
    assert run(["demo"]) == 1
    assert "exists and has other content" in capsys.readouterr().err
    assert run(["demo", "-o", str(mine)]) == 1
    assert "has other content" in capsys.readouterr().err
    assert mine.read_bytes() == b"something of mine"
    assert [path.name for path in tmp_path.iterdir()] == ["llvid-demo.mp4"]
