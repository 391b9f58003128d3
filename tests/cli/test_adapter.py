"""--adapter in the commands: records name it and are made again with another one; a server can't have it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from adapters import make_adapter
from openai_server import OpenAIServer, listed, said

from llava_video_cli.cli.app import run
from llava_video_cli.demo import CHECKPOINT

pytest.importorskip("peft", reason="the extra lora is not installed")
Command = Callable[..., tuple[int, list[dict[str, Any]], str]]
SHORT = ("-m", "demo", "-n", "2", "--max-new-tokens", "8", "-q")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    base = tmp_path_factory.mktemp("adapters")
    return [make_adapter(CHECKPOINT, base / f"{seed}", seed=seed) for seed in (1, 2)]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    def call(*words: Any) -> tuple[int, list[dict[str, Any]], str]:
        code = run([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, [json.loads(line) for line in out.splitlines() if line.startswith("{")], err

    return call


def test_an_answer_names_its_adapter(adapters: list[Path], clip: Path, command: Command) -> None:
    rows = [command("ask", clip, "What?", *SHORT, "--json", *words)[1][0] for words in ((), ("--adapter", adapters[0]))]
    assert rows[0]["answer"] != rows[1]["answer"]
    assert "adapter" not in rows[0] and "adapter" not in rows[0]["settings"]
    assert rows[1]["adapter"] == rows[1]["settings"]["adapter"] == str(adapters[0])


def test_another_adapter_makes_another_record(
    adapters: list[Path], clip: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(adapters[0].parent)
    out, requests = tmp_path / "out.jsonl", tmp_path / "requests.jsonl"
    requests.write_text(json.dumps({"id": "a", "video": str(clip), "question": "What?"}) + "\n")
    for words in (("caption", clip), ("batch", requests)):
        path = out.with_name(f"{words[0]}.jsonl")
        keys: list[list[str]] = []
        for name in (None, adapters[0], adapters[0].name, adapters[1]):
            if name == adapters[0].name:  # from here, a relative path
                name = f"./{name}"
            more = ("--adapter", name) if name else ()
            assert command(*words, "-o", path, *SHORT, *more)[0] == 0
            keys.append([json.loads(line)["key"] for line in path.read_text().splitlines()])
        plain, first, same, second = (set(each) for each in keys)
        assert len(plain) == 1 and first == same and len(second - first) == 1 and plain != first, words[0]


def test_a_preset_has_one_relative_to_its_file_and_a_flag_replaces_it(
    adapters: list[Path], clip: Path, command: Command, tmp_path: Path
) -> None:
    shutil.copytree(adapters[0], tmp_path / "mine")
    preset = tmp_path / "mine.yaml"
    preset.write_text("about: mine\nmodel: demo\nadapter: ./mine\nsampling: {frames: 2}\n")
    asked = ("ask", clip, "What?", "-p", preset, "--json", "-q", "--max-new-tokens", 8)
    assert command(*asked)[1][0]["adapter"] == str(tmp_path / "mine")
    assert command(*asked, "--adapter", adapters[1])[1][0]["adapter"] == str(adapters[1])


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--adapter", "./gone"), 1, "the adapter ./gone doesn't exist"),
        (("--adapter", "gone"), 1, "there is no adapter 'gone'"),
        (("--adapter", "somebody"), 1, "somebody"),
        (("--adapter", "", "--json"), 2, "there is no adapter ''"),
        (("--adapter", "./gone", "--server", "http://localhost:9"), 2, "--adapter can't be used with --server"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(
    clip: Path, command: Command, words: tuple[str, ...], code: int, said: str
) -> None:
    got, rows, err = command("ask", clip, "What?", *SHORT[2:], *words, *(() if "--server" in words else SHORT[:2]))
    assert (got, rows) == (code, []) and said in err and "Traceback" not in err


def test_a_presets_adapter_and_a_server(adapters: list[Path], clip: Path, command: Command, tmp_path: Path) -> None:
    (preset := tmp_path / "mine.yaml").write_text(f"about: mine\nadapter: {adapters[0]}\n")
    with OpenAIServer(listed(), [said("Yes.")]).running() as server:
        code, _, err = command("ask", clip, "What?", "-p", preset, "--server", server.url)
        assert code == 2 and "preset mine has an adapter, which can't be used with --server" in err
        assert server.asked == []
