"""The command line as a user types it: streams, exit codes, one line for what goes wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from clips import SAMPLES, sample

from llava_video_cli.cli.app import run
from llava_video_cli.demo.world import Scene, write_picture
from llava_video_cli.demo.world import write_clip as write_scene

QUESTION = "What shape is it?"


def scene(**changes: Any) -> Scene:
    values: dict[str, Any] = {
        "width": 160, "height": 120, "frames_per_second": 10, "duration_seconds": 2.0, "shape": "circle",
        "color_start": "red", "color_end": "red", "direction": "right", "shade_start": (215, 40, 35),
        "shade_end": (215, 40, 35), "background": (20, 20, 26), "x": 0.3, "y": 0.5, "radius": 0.17, "travel": 0.4,
        "change_at": 0.5, "blur": 0.0, "noise": 0.0, "compression": 0.2, "seed": 1,
    }  # fmt: skip
    return Scene(**(values | changes))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A red circle that moves right."""
    path = tmp_path_factory.mktemp("clips") / "circle.mp4"
    write_scene(path, scene())
    return path


def llvid(*arguments: str, env: dict[str, str] | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the program in a process of its own."""
    command = [sys.executable, "-m", "llava_video_cli", *arguments]
    return subprocess.run(
        command, env=os.environ | (env or {}), capture_output=True, text=True, timeout=120, check=False, **options
    )


def failed(result: subprocess.CompletedProcess[str], code: int) -> str:
    """The error's line: the only one, but for a hint; nothing on stdout."""
    assert result.returncode == code, result.stderr
    assert result.stdout == "" and "Traceback" not in result.stderr
    lines = result.stderr.splitlines()
    assert lines[0].startswith("error: ") and len(lines) <= 2 and all(line.startswith("hint: ") for line in lines[1:])
    return lines[0]


def asked(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run the command line in this process."""
    code = run(["ask", "-m", "demo", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_stdout_holds_the_answer_and_nothing_else(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = asked(capsys, str(clip), QUESTION)
    assert (code, out, err) == (0, "It is a circle.\n", "")


def test_each_question_gets_its_line(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = asked(capsys, str(clip), QUESTION, "What color is it at the start?", "Which way does it move?")
    lines = out.splitlines()
    assert code == 0 and len(lines) == 3
    assert "circle" in lines[0] and "red" in lines[1] and "right" in lines[2]


def test_a_line_of_json_for_each_question(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = asked(capsys, str(clip), QUESTION, "Which way does it move?", "--json", "-n", "4")
    first, second = (json.loads(line) for line in out.splitlines())
    assert code == 0
    assert first["video"] == str(clip) and first["question"] == QUESTION and "circle" in first["answer"]
    assert first["model"] == "demo" and first["finish_reason"] == "stop"
    assert first["frames"] == {
        "count": 4,
        "times_seconds": [0.0, 0.5, 1.0, 1.5],
        "sampling": "uniform",
        "duration_seconds": 2.0,
    }
    usage = first["usage"]
    assert usage["prompt_tokens"] > 36 and usage["cached_tokens"] == 0 and usage["generated_tokens"] > 3
    assert 0 < usage["first_token_seconds"] <= usage["total_seconds"] and usage["peak_memory_bytes"] > 1e7
    settings = first["settings"]
    assert settings["sampling"]["frames"] == 4 and settings["generation"]["temperature"] == 0
    assert settings["preset"] == "demo" and settings["quantize"] == "none" and settings["versions"]["transformers"]
    assert second["question"] == "Which way does it move?" and "right" in second["answer"]


def test_a_drawn_answer_names_the_seed_that_repeats_it(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = asked(capsys, str(clip), "Describe the video.", "--json", "--temperature", "3")
    first = json.loads(out)
    seed = first["settings"]["generation"]["seed"]
    _, out, _ = asked(capsys, str(clip), "Describe the video.", "--json", "--temperature", "3", "--seed", str(seed))
    assert json.loads(out)["answer"] == first["answer"]


def test_a_picture_and_a_picture_beside_a_video(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "square.png"
    write_picture(picture, scene(shape="square", x=0.5))
    code, out, _ = asked(capsys, str(picture), QUESTION, "--json")
    record = json.loads(out)
    assert code == 0 and "square" in record["answer"] and record["frames"] is None
    code, out, _ = asked(capsys, str(picture), "Is it the same shape?", "--with", str(clip), "--json")
    record = json.loads(out)
    assert code == 0 and record["answer"].startswith("No")
    assert record["with"][0]["path"] == str(clip) and record["with"][0]["frames"]["count"] == 8


def test_a_question_from_stdin(clip: Path) -> None:
    result = llvid("ask", str(clip), "-", "-m", "demo", input=f"{QUESTION}\n")
    assert (result.returncode, result.stdout, result.stderr) == (0, "It is a circle.\n", "")


def test_notes_go_to_stderr_and_quiet_takes_them_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = tmp_path / "short.mp4"
    write_scene(short, scene(duration_seconds=0.3))
    code, out, err = asked(capsys, str(short), QUESTION)
    assert code == 0 and out.count("\n") == 1 and "3 frames" in err
    code, _, err = asked(capsys, str(short), QUESTION, "--quiet")
    assert code == 0 and err == ""


def test_an_answer_cut_off_says_so(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, err = asked(capsys, str(clip), "Describe the video.", "--max-new-tokens", "2")
    assert len(out.split()) <= 2 and "--max-new-tokens" in err


HOSTILE = [
    "[/].mp4",
    "[red]x[/red].mp4",
    "-rf.mp4",
    "a\nb.mp4",
    "\x1b]0;owned\x07\x1b[31m.mp4",
    "\u202egpj.mp4",
    "% $(touch x) `y`.mp4",
]


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_is_shown_and_not_obeyed(
    name: str, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name  # "[/].mp4" is a file in a folder "["
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(clip.read_bytes())
    code, out, err = asked(capsys, "--json", "--", str(path), QUESTION)
    assert code == 0 and json.loads(out)["video"] == str(path)
    path.write_bytes(b"no video")
    code, _, err2 = asked(capsys, "--", str(path), QUESTION)
    assert code == 1 and err2.startswith("error: ") and err2.count("\n") == 1
    for text in (out, err, err2):
        assert not any(character in text for character in "\x1b\x07\u202e")
    if "\n" not in name and "\x1b" not in name and "\u202e" not in name:
        assert name in err2


def test_model_text_cannot_reach_the_terminal_as_codes(capsys: pytest.CaptureFixture[str]) -> None:
    from llava_video_cli.cli import console

    console.write("a\x1b[2Jb\x9b31mc\rd\n[bold]e[/]\u202ef")
    assert capsys.readouterr().out == "a␛[2Jb\\u009b31mc␍d\n[bold]e[/]\\u202ef"
    console.write_json({"x": "\x1b\x9b\u202e\udcff ✓"})
    out = capsys.readouterr().out
    assert json.loads(out) == {"x": "\x1b\x9b\u202e\udcff ✓"} and out.isprintable() is False and "✓" in out
    assert not any(character in out for character in "\x1b\x9b\u202e\udcff")


def bad_files(folder: Path) -> dict[str, Path]:
    whole = folder / "whole.mp4"
    write_scene(whole, scene())
    files = {
        "missing": folder / "missing.mp4",
        "folder": folder,
        "empty": folder / "empty.mp4",
        "text": folder / "text.mp4",
        "truncated": folder / "truncated.mp4",
        "cut picture": folder / "cut.png",
    }
    files["empty"].write_bytes(b"")
    files["text"].write_text("not a video\n" * 50)
    files["truncated"].write_bytes(whole.read_bytes()[:300])
    write_picture(folder / "whole.png", scene())
    files["cut picture"].write_bytes((folder / "whole.png").read_bytes()[:300])
    if SAMPLES.is_dir():
        files["audio"] = SAMPLES / "audio_only.mp3"
    return files


def test_a_bad_file_gives_one_line_before_any_model_is_imported(tmp_path: Path) -> None:
    program = (
        "import sys; from llava_video_cli.cli.app import run; code = run(sys.argv[1:]);"
        "assert not {'torch', 'transformers', 'torchvision'} & set(sys.modules), 'a model was imported'; sys.exit(code)"
    )
    for name, path in bad_files(tmp_path).items():
        command = [sys.executable, "-c", program, "ask", str(path), QUESTION, "-m", "demo"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert str(path) in failed(result, 1), name


WRONG = [
    (["ask"], "Missing argument"),
    (["ask", "x.mp4"], "Missing argument"),
    (["ask", "x.mp4", "q", "--frames", "many"], "--frames"),
    (["ask", "x.mp4", "q", "--frames", "0"], "from 1 to"),
    (["ask", "x.mp4", "q", "--start", "1:99"], "not a time"),
    (["ask", "x.mp4", "q", "--start", "9", "--end", "3"], "must come after"),
    (["ask", "x.mp4", "q", "--temperature", "-1"], "temperature must be 0 or more"),
    (["ask", "x.mp4", "q", "--top-p", "0"], "top_p"),
    (["ask", "x.mp4", "q", "--quantize", "3bit"], "3bit"),
    (["ask", "x.mp4", "q", "--frame", "3"], "--frames"),
    (["ask", "x.mp4", "", "-m", "demo"], "a question is empty"),
    (["ask", "x.mp4", "-", "-"], "only one question"),
    (["ask", "x.mp4", "q", "-p", "lowmemory"], "no preset 'lowmemory'"),
    (["askk"], "askk"),
    (["presets", "demoo"], "no preset"),
    (["frames", "x.mp4", "-o", "sheet.txt"], "no such file"),
]
HEAVY = ("torch", "transformers", "torchvision", "av", "numpy", "PIL")


def test_usage_errors_and_help_import_nothing_heavy() -> None:
    """All in one process, since what one of them imports stays imported."""
    program = f"""
import contextlib, io, json, sys
from llava_video_cli.cli.app import run
results = []
for arguments in json.loads(sys.argv[1]):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try: code = run(arguments)
        except SystemExit as leave: code = leave.code
    results.append((code, out.getvalue(), err.getvalue()))
print(json.dumps([results, sorted(set({HEAVY!r}) & set(sys.modules))]))
"""
    lines = [arguments for arguments, _ in WRONG[:-1]] + [["--help"], ["ask", "--help"], ["presets"], ["--version"], []]
    result = subprocess.run(
        [sys.executable, "-c", program, json.dumps(lines)], capture_output=True, text=True, timeout=60, check=True
    )
    results, heavy = json.loads(result.stdout)
    assert heavy == []
    for (arguments, words), (code, out, err) in zip(WRONG[:-1], results, strict=False):
        assert code == 2 and out == "", arguments
        assert err.startswith("error: ") and words in err and "Traceback" not in err, (arguments, err)
        assert len(err.splitlines()) <= 2, err
    for code, out, _ in results[len(WRONG) - 1 : -1]:
        assert code == 0 and out
    assert results[-1][0] == 2 and "ask" in results[-1][2]


def test_no_color_and_pipes_get_plain_text(clip: Path, tmp_path: Path) -> None:
    missing = ("ask", str(tmp_path / "none.mp4"), "q", "-m", "demo")
    assert "\x1b[1;31m" in llvid(*missing, env={"FORCE_COLOR": "1"}).stderr
    assert "31m" not in llvid(*missing, env={"FORCE_COLOR": "1", "NO_COLOR": "1"}).stderr
    assert "\x1b" not in llvid(*missing).stderr
    result = llvid("ask", str(clip), QUESTION, "-m", "demo")
    assert "\x1b" not in result.stdout + result.stderr


def test_a_reader_that_leaves_early_is_no_error(clip: Path) -> None:
    command = f'"{sys.executable}" -m llava_video_cli ask "{clip}" "Describe the video." "Again?" -m demo | head -c 5'
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False)
    assert (len(result.stdout), result.stderr, result.returncode) == (5, "", 0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_one_line(clip: Path) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "llava_video_cli", "ask", str(clip), QUESTION, "-m", "demo"]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    assert result.returncode == 1 and result.stderr == "error: can't write the answer: No space left on device\n"


@pytest.mark.parametrize("after_seconds", [0.3, 0.9, 4.0])
def test_ctrl_c_ends_at_once_with_130(clip: Path, layouts: dict[str, Path], after_seconds: float) -> None:
    command = [sys.executable, "-m", "llava_video_cli", "ask", str(clip), QUESTION, "-m", str(layouts["vicuna"])]
    process = subprocess.Popen(
        [*command, "--max-new-tokens", "5000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    time.sleep(after_seconds)
    process.send_signal(signal.SIGINT)
    started = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    assert time.monotonic() - started < 5


def test_a_model_that_is_not_there(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_vl"}')
    for model, words in (
        ("nobody/nothing", "isn't in the local cache and the hub can't be reached"),
        ("./nothing", "the model folder ./nothing doesn't exist"),
        (str(clip), "is a file, not a checkpoint folder"),
        (str(clip.parent), "has no config.json"),
        (str(tmp_path), "another architecture: qwen2_vl"),
        ("not a name", "neither a folder nor a hub id"),
    ):
        result = llvid("ask", str(clip), "q", "-q", "-m", model)
        assert words in failed(result, 1)
        assert "demo" in result.stderr or "LLaVA-NeXT-Video" in result.stderr


def test_presets_are_listed_and_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["presets"]) == 0
    out, err = capsys.readouterr()
    assert {line.split()[0] for line in out.splitlines()} >= {"default", "low-memory", "demo"} and "presets" in err
    assert run(["presets", "low-memory"]) == 0
    out, err = capsys.readouterr()
    assert "quantize: 4bit" in out and err.strip().endswith("low-memory.yaml")
    assert run(["presets", "--json"]) == 0
    assert all(json.loads(line)["about"] for line in capsys.readouterr().out.splitlines())


def test_frames_as_a_sheet_and_as_files(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    sheet = tmp_path / "sheet.png"
    assert run(["frames", str(clip), "-n", "4", "-o", str(sheet)]) == 0
    assert capsys.readouterr().out == f"{sheet}\n"
    assert Image.open(sheet).width > 300
    assert run(["frames", str(clip), "-n", "4", "-o", str(sheet)]) == 1
    assert "is there already" in capsys.readouterr().err
    assert run(["frames", str(clip), "-n", "4", "-o", str(sheet), "--overwrite"]) == 0
    folder = f"{tmp_path}/files/"
    assert run(["frames", str(clip), "-n", "4", "-o", folder, "--json"]) == 0
    record = json.loads(capsys.readouterr().out.splitlines()[-1])
    names = [Path(path).name for path in record["files"]]
    assert names == ["0001_0.000s.png", "0002_0.500s.png", "0003_1.000s.png", "0004_1.500s.png"]
    assert Image.open(record["files"][0]).size == (160, 120)
    assert run(["frames", str(clip), "-o", str(tmp_path / "x.txt")]) == 2
    assert run(["frames", str(clip), "-o", "/dev/null/x.png"]) == 1
    assert "can't write" in capsys.readouterr().err


def test_completion_is_there() -> None:
    result = llvid("--show-completion", "bash", env={"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"})
    assert result.returncode == 0 and "llvid" in result.stdout


REAL = (
    "nasa_13013.mp4", "av1.mkv", "hevc_10bit.mp4", "flipping_a_pancake.mkv", "corrupted.mp4", "rotated_90.mov",
    "no_duration.webm", "transparent.webm", "pigs_in_a_polka.gif", "bikes.mp4", "delayed_start.mp4", "edit_list.mp4",
    "h264.ts", "fragmented.mp4", "sample.avi", "sample.flv", "h263.3gp", "one_white_frame.mp4", "long_180p_av1.mp4",
)  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_real_files_get_an_answer(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = asked(capsys, str(sample(name)), "What happens in this video?", "-n", "4", "--json")
    record = json.loads(out)
    assert (
        code == 0
        and record["answer"]
        and record["frames"]["count"] == min(4, {"rotated_90.mov": 3, "one_white_frame.mp4": 1}.get(name, 4))
    )


@pytest.mark.parametrize("layout", ["vicuna", "mistral", "yi"])
def test_every_layout_answers(
    layout: str, clip: Path, layouts: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(["ask", str(clip), QUESTION, "-m", str(layouts[layout]), "-n", "2", "--max-new-tokens", "4"])
    out, err = capsys.readouterr()
    assert code == 0 and out.strip() and "--max-new-tokens" in err
