"""What goes wrong on the command line: one clear line, an exit code, nothing obeyed that a stranger wrote."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from clips import SAMPLES
from hub import running_hub, use_hub
from light_program import LIGHT
from terminal import PROGRAM, QUESTION, asked, failed, llvid, ran, scene

from llava_video_cli.cli import app
from llava_video_cli.cli.app import ABOUT, run
from llava_video_cli.demo.world import write_clip as write_scene
from llava_video_cli.demo.world import write_picture

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
        "folder": folder / "clips",
        "empty": folder / "empty.mp4",
        "text": folder / "text.mp4",
        "truncated": folder / "truncated.mp4",
        "cut picture": folder / "cut.png",
    }
    files["folder"].mkdir()
    (files["folder"] / "whole.mp4").hardlink_to(whole)
    files["empty"].write_bytes(b"")
    files["text"].write_text("not a video\n" * 50)
    files["truncated"].write_bytes(whole.read_bytes()[:300])
    write_picture(folder / "whole.png", scene())
    files["cut picture"].write_bytes((folder / "whole.png").read_bytes()[:300])
    if SAMPLES.is_dir():
        files["audio"] = SAMPLES / "audio_only.mp3"
    return files


def test_a_bad_file_gives_one_line_before_any_model_is_imported(tmp_path: Path) -> None:
    files = bad_files(tmp_path)
    program = f"""
import sys
from llava_video_cli.cli.app import run
for path in sys.argv[1:]:
    assert run(["ask", path, {QUESTION!r}, "-m", "demo"]) == 1
    print("---", file=sys.stderr)
assert not {{'torch', 'transformers', 'torchvision'}} & set(sys.modules), 'a model was imported'
"""
    command = [sys.executable, "-c", program, *map(str, files.values())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    said = done.stderr.split("---\n")[:-1]
    assert done.stdout == "" and len(said) == len(files)
    for (name, path), error in zip(files.items(), said, strict=True):
        assert str(path) in failed(subprocess.CompletedProcess(command, 1, "", error), 1), name


def test_a_video_without_pictures_is_reported_and_nothing_is_downloaded(
    layouts: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its header is right, so that only decoding shows what is wrong: before a download, or while a model loads."""
    hollow = tmp_path / "hollow.mp4"
    write_scene(hollow, scene())
    content = hollow.read_bytes()
    begin = content.index(b"mdat") + 4
    end = content.index(b"moov") - 4
    hollow.write_bytes(content[:begin] + bytes(end - begin) + content[end:])
    assert "no frame can be decoded" in failed(ran(capsys, "ask", str(hollow), QUESTION, "-m", "demo"), 1)
    with running_hub({"org/7B": layouts["vicuna"]}) as hub:
        use_hub(monkeypatch, hub.address, tmp_path / "hub")
        done = ran(capsys, "ask", str(hollow), QUESTION, "-m", "org/7B")
    assert "no frame can be decoded" in failed(done, 1) and not hub.sent


def test_a_wrong_value_gets_the_nearest_right_one(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, hint in (
        (["ask", "x.mp4", "q", "--fit", "padd"], "did you mean 'pad'?"),
        (["serve", "--quantize", "4-bit"], "did you mean '4bit'?"),
        (["ask", "x.mp4", "q", "--fit", "zzz"], "`llvid ask --help` shows how to use it"),
        (["ask", "x.mp4", "q", "--fram", "3"], "did you mean --frames?"),
        (["asc", "x.mp4", "q"], "did you mean 'ask'?"),
        (["ask", "x.mp4", "q", "--server"], "`llvid ask --help` shows how to use it"),
    ):
        assert run(arguments) == 2
        assert capsys.readouterr().err.splitlines()[1:] == [f"hint: {hint}"], arguments


def test_every_option_that_is_a_number_is_a_finite_one(capsys: pytest.CaptureFixture[str]) -> None:
    found = set()
    for name in ABOUT:
        parameters = app.command(name).params
        needed = [
            word
            for each in parameters
            if each.required
            for word in ([*each.opts[:1], "x"] if each.opts[0].startswith("-") else ["x"])
        ]
        for option in parameters:
            if option.type.name.startswith("float"):
                found.add(option.opts[0])
                for value in ("nan", "inf", "1e400", "-inf"):
                    assert run([name, *needed, f"{option.opts[0]}={value}"]) == 2, (name, option.opts)
                    err = capsys.readouterr().err
                    assert err.startswith("error: ") and ("must be a finite number" in err or "range" in err), err
                    assert option.opts[0] in err
    assert found >= {"--seconds", "--timeout", "--fps", "--temperature", "--threshold", "--grace"}


@pytest.mark.parametrize(
    "arguments",
    [
        *(
            ["frames", "CLIP"],
            ["caption", "CLIP"],
            ["find", "q", "CLIP"],
            ["transcribe", "CLIP"],
            ["report", "r.jsonl"],
        ),
        *(["batch", "r.jsonl"], ["demo"], ["eval", "demo"]),
    ],
)
def test_an_output_needs_a_name(
    arguments: list[str],
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run([*(str(clip) if each == "CLIP" else each for each in arguments), "-o", ""]) == 2
    words = "must end in .json" if arguments[0] == "eval" else "the output has no name"
    assert words in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_folder_for_output_needs_a_name(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (
        ["caption", str(clip), "--sidecar", "txt", "--output-dir", ""],
        ["transcribe", str(clip), "--sidecar", "txt", "--output-dir", ""],
        ["find", "q", str(clip), "--sheets", ""],
        ["find", "q", str(clip), "--cuts", ""],
    ):
        assert run(arguments) == 2
        assert f"the output has no name: {arguments[-2]} is empty" in capsys.readouterr().err


LONG = "n" * 300


@pytest.mark.parametrize("arguments", [
    ["ask", "CLIP", "q", "-m", LONG], ["ask", "CLIP", "q", "-m", "demo", "-p", LONG],
    ["ask", "CLIP", "q", "-m", "demo", "--adapter", f"./{LONG}"],
    ["caption", "CLIP", "-o", f"{LONG}.jsonl", "-m", "demo"],
    ["find", "q", "CLIP", "-o", f"{LONG}.jsonl", "-m", "demo"],
    ["frames", "CLIP", "-o", f"{LONG}.png"], ["frames", "CLIP", "-o", f"{LONG}/"], ["report", f"{LONG}.jsonl"],
    ["transcribe", f"{LONG}.mp4"], ["presets", LONG], ["models", "rm", LONG],
])  # fmt: skip
def test_a_name_that_no_file_can_have(arguments: list[str], clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither a question of the kind `is it a folder?` nor writing it is a traceback."""
    assert run([str(clip) if each == "CLIP" else each for each in arguments]) in (1, 2)
    assert sum(line.startswith("error: ") for line in capsys.readouterr().err.splitlines()) == 1


def test_a_file_whose_name_begins_with_a_dash(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("-q.mp4").touch()
    assert run(["ask", "-q.mp4", "What?"]) == 2
    assert "hint: for the file of that name, write ./-q.mp4" in capsys.readouterr().err


def test_a_link_that_leads_to_no_file_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "a.mp4").symlink_to("gone.mp4")
    assert run(["ask", str(tmp_path / "a.mp4"), "What?", "-m", "demo"]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'a.mp4'}: a link to gone.mp4, which is no file\n"


WRONG = [
    (["ask"], "missing argument"),
    (["ask", "x.mp4", "q", "--messages", "talk.yaml"], "not both"),
    (["ask", "--messages", "none.yaml"], "none.yaml can't be read"),
    (["chat", "--load", "none.yaml"], "none.yaml can't be read"),
    (["ask", "x.mp4", "q", "--frames", "many"], "invalid value for '--frames' / '-n': 'many' is not a whole number"),
    (["ask", "x.mp4", "q", "--frames", "0"], "from 1 to"),
    (["ask", "x.mp4", "q", "--start", "1:99"], "not a time"),
    (["ask", "x.mp4", "q", "--start", "9", "--end", "3"], "must come after"),
    (["ask", "x.mp4", "q", "--temperature", "-1"], "temperature must be 0 or more"),
    (["ask", "x.mp4", "q", "--top-p", "0"], "top_p"),
    (["ask", "x.mp4", "q", "--quantize", "3bit"], "3bit"),
    (["ask", "x.mp4", "q", "--frame", "3"], "no such option: --frame"),
    (["ask", "x.mp4", "", "-m", "demo"], "a question is empty"),
    (["ask", "x.mp4", "-", "-"], "only one question"),
    (["ask", "x.mp4", __file__], "is a file, not a question"),
    (["ask", "x.mp4", "caf\udce9"], "a question is not UTF-8 text"),
    (["ask", "x.mp4", "q", "--system", "caf\udce9"], "the system prompt is not UTF-8 text"),
    (["ask", "x.mp4", "q", "--prefill", "caf\udce9"], r"prefill must be UTF-8 text, got 'caf\udce9'"),
    (["ask", "x.mp4", "q", "--choice", "caf\udce9", "--choice", "tea"], r"choices must be UTF-8 text, got 'caf\udce9'"),
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


def test_a_model_that_is_not_there(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_hub(monkeypatch, "http://127.0.0.1:9", tmp_path / "hub", offline=True)
    line = failed(ran(capsys, "ask", str(clip), "q", "-q", "-m", "nobody/nothing"), 1)
    assert "isn't in the local cache and the hub isn't used in offline mode" in line
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_vl"}')
    for model, words in (
        ("./nothing", "the model folder ./nothing doesn't exist"),
        (str(clip), "is a file, not a checkpoint folder"),
        (str(clip.parent), "has no config.json"),
        (str(tmp_path), "its architecture is qwen2_vl"),
        ("not a name", "there is no model 'not a name'"),
        ("not/a name", "neither a folder nor a hub id"),
    ):
        code, out, err = asked(capsys, str(clip), "q", "-q", "-m", model)
        assert words in failed(subprocess.CompletedProcess((), code, out, err), 1)
        assert "demo" in err or "LLaVA-NeXT-Video" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ("ask", "CLIP", "What?"),
        ("caption", "CLIP", "-o", "out.jsonl"),
        ("find", "a circle", "CLIP"),
        ("frames", "CLIP", "-o", "sheet.png"),
        ("pull", "demo"),
    ],
    ids=lambda arguments: arguments[0],
)
def test_a_revision_of_what_is_not_on_the_hub_is_refused(
    arguments: tuple[str, ...],
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    model = () if arguments[0] == "pull" else ("-m", "demo")
    words = [str(clip) if each == "CLIP" else each for each in arguments]
    result = ran(capsys, *words, *model, "--revision", "v2", "-q")
    assert failed(result, 2) == "error: demo isn't on the hub: it has no revision 'v2'"
    assert not list(tmp_path.iterdir())


def test_a_slip_in_a_name_gets_a_hint(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for media, hint in (
        (str(clip.with_name("crcle.mp4")), "did you mean 'circle.mp4'?"),
        ("What is it?", "give the video first"),
        (str(tmp_path), "name a video, or a folder of pictures"),
    ):
        code, _, err = asked(capsys, media, QUESTION)
        assert code == 1 and hint in err.splitlines()[1]
    result = ran(capsys, "ask", str(clip), QUESTION, "-q", "-m", "dmeo")
    assert "did you mean 'demo'?" in result.stderr and failed(result, 1)
    code, out, err = asked(capsys, str(clip), QUESTION, "-q", "--attention", "flash_attention_2")
    assert (code, out) == (1, "") and "flash_attention_2 can't be used" in err


def test_closed_streams_are_no_tracebacks(clip: Path) -> None:
    ask = shlex.join([*LIGHT, "ask", str(clip), "-m", "demo"])
    for command, code, words in (
        (f"{ask} - <&-", 2, "stdin is closed"),
        (f'{ask} "{QUESTION}" >&-', 1, "stdout is closed"),
        (f'{ask} "{QUESTION}" 2>&-', 0, ""),
        (f"printf '\\xff\\xfe' | {ask} -", 2, "not UTF-8 text"),
    ):
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == code and words in done.stderr and "Traceback" not in done.stderr, command
        assert bool(done.stdout) == (code == 0)


def test_what_only_looks_like_a_file_is_a_question(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Caption").touch()
    for question in ("Caption", "这个视频里发生了什么事情" * 12 + "。a", "x" * 1000):
        code, out, err = asked(capsys, str(clip), question, "--max-new-tokens", "2", "-q")
        assert (code, err) == (0, "") and out


def test_a_library_that_cannot_be_loaded_is_one_line(clip: Path, tmp_path: Path) -> None:
    """As torch's with little memory, or without a library of CUDA; it was a traceback."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("from . import _C")
    (tmp_path / "torch" / "_C.so").write_text("not a library")
    env = {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"}
    line = failed(llvid("ask", str(clip), QUESTION, "-m", "demo", env=env), 1)
    assert line.startswith(f"error: {tmp_path}/torch/_C.so can't be loaded: ")
    failed(llvid("ask", str(clip), QUESTION, "-m", "demo", "--choices", "yes,no", "--exit-code", env=env), 2)


def test_python_without_docstrings_is_one_line(clip: Path) -> None:
    command = [sys.executable, "-OO", *PROGRAM[1:], "ask", str(clip), "What?", "-m", "demo"]  # as PYTHONOPTIMIZE=2
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: no model can be loaded where Python leaves docstrings out\nhint: PYTHONOPT")


@pytest.mark.parametrize("arguments", [("-m", "~nobody-here/model"), ("-m", "demo", "-p", "~nobody-here/a.yaml")])
def test_the_home_of_an_unknown_user_is_not_there(
    clip: Path, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["ask", str(clip), "What?", *arguments]) in (1, 2)
    assert capsys.readouterr().err.startswith("error: the") and not Path("~nobody-here").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="there is no module pwd on Windows")
def test_a_user_without_a_home_can_run_llvid(tmp_path: Path) -> None:
    program = """
import pwd, sys
def unknown(_): raise KeyError
pwd.getpwuid = unknown  # as for `docker run --user 12345`
from llava_video_cli.__main__ import main
sys.argv = ["llvid", *sys.argv[1:]]
main()
"""
    kept = ("HOME", "HF_HOME", "HF_HUB_CACHE", "XDG_CONFIG_HOME", "XDG_CACHE_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in kept}
    for command in ("presets", "models"):
        result = subprocess.run(
            [sys.executable, "-c", program, command],
            env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        assert result.returncode == 0 and "/nonexistent/.c" in result.stderr, result.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the current folder can't be removed")
def test_the_current_folder_may_be_removed(clip: Path, tmp_path: Path) -> None:
    program = """
import os, sys
from pathlib import Path
from llava_video_cli import read_frames
from llava_video_cli.cli.app import run
os.chdir(sys.argv[2])
Path(sys.argv[2]).rmdir()
print(read_frames(sys.argv[1]).images.shape)
sys.exit(run(["pull", "demo", "--quantize", "4bit", "--to", sys.argv[3], "-q"]))
"""
    (tmp_path / "gone").mkdir()
    command = [sys.executable, "-c", program, str(clip.absolute()), str(tmp_path / "gone"), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1 and result.stdout, "a whole path needs no folder"
    assert result.stderr.startswith("error: the current folder is not there any more"), result.stderr


def test_a_machine_without_a_folder_for_temporary_files(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/nonexistent"])
    assert run(["bench", "-m", "demo"]) == 1
    error, hint = capsys.readouterr().err.splitlines()
    assert error == "error: can't make a temporary file: No usable temporary directory found in ['/nonexistent']"
    assert hint.startswith("hint: TMPDIR=FOLDER")
