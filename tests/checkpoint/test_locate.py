"""Checkpoints by their hub ids, from a stand-in for the hub on loopback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hub import COMMIT, hub, use_hub
from safetensors.torch import save_file

LOCATE = """
import sys
from llava_video_cli.errors import LlvidError
from llava_video_cli.checkpoint import locate
from llava_video_cli.checkpoint.adapter import read_adapter
try:
    if sys.argv[1] == "adapter":
        adapter = read_adapter(sys.argv[2])
        print(adapter.name, adapter.folder, sorted(path.name for path in adapter.folder.iterdir()), sep="\\n")
    else:
        print(locate(*sys.argv[1:]))
except LlvidError as error:
    print(f"{type(error).__name__}: {error}\\n{error.hint}")
"""


def located(address: str, home: Path, *arguments: str, offline: bool = False) -> tuple[str, str]:
    """Call `locate` in a process of its own, since huggingface_hub reads its settings at import."""
    env = os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1" if offline else "0"}
    command = [sys.executable, "-c", LOCATE, *arguments]
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=True)
    return result.stdout.strip(), result.stderr.strip()


@pytest.fixture
def find(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[str, str]]:
    """`located` without a process of its own, which takes half a second."""

    def call(address: str, *arguments: str, cache: str = "cache", offline: bool = False) -> tuple[str, str]:
        use_hub(monkeypatch, address, tmp_path / cache, offline)
        monkeypatch.setattr(sys, "argv", ["-c", *arguments])
        capfd.readouterr()
        exec(LOCATE, {})
        out, err = capfd.readouterr()
        return out.strip(), err.strip()

    return call


def test_a_hub_id_is_fetched_once_pinned_to_its_commit_and_found_offline(
    layouts: dict[str, Path], tmp_path: Path, find: Callable[..., tuple[str, str]]
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for path in layouts["vicuna"].iterdir():
        (source / path.name).symlink_to(path)
    (source / "pytorch_model.bin").write_bytes(b"a pickle")
    (source / "modeling_evil.py").write_text("raise SystemExit")
    with hub({"org/vicuna": source}) as (address, asked):
        out, err = located(address, tmp_path / "home", "org/vicuna")
        assert Path(out).name == COMMIT and err == ""
        names = {path.name for path in Path(out).iterdir()}
        assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.json"} <= names
        assert not {"pytorch_model.bin", "modeling_evil.py"} & names, "neither pickles nor code are fetched"
        asked.clear()
        again, err = find(address, "org/vicuna", cache="home/hub")
        assert again == out and err == "" and not any("safetensors" in path for path in asked)
    offline, err = located("http://127.0.0.1:9", tmp_path / "home", "org/vicuna", offline=True)
    assert offline == out and err == ""


def test_another_architecture_is_refused_before_its_weights_are_fetched(
    tmp_path: Path, find: Callable[..., tuple[str, str]]
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text('{"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"]}')
    (source / "model.safetensors").write_bytes(b"0" * 1000)
    with hub({"org/other": source}) as (address, asked):
        out, _ = find(address, "org/other")
        assert "its architecture is LlavaForConditionalGeneration" in out
        assert not any("safetensors" in path for path in asked)


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("org/nothing",), None, "the hub has no model org/nothing"),
        (("org/known", "no-such-branch"), None, "has no revision 'no-such-branch'"),
        (("org/known",), 401, "asks for a login or a licence"),
        (("org/empty",), None, "is not a checkpoint: it has no config.json"),
    ],
)
def test_what_the_hub_refuses_is_one_clear_line(
    arguments: tuple[str, ...], status: int | None, words: str, tmp_path: Path, find: Callable[..., tuple[str, str]]
) -> None:
    for name in ("known", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "known" / "config.json").write_text('{"model_type": "llava_next_video"}')
    with hub({"org/known": tmp_path / "known", "org/empty": tmp_path / "empty"}, status) as (address, _):
        out, err = find(address, *arguments)
    assert out.startswith("ModelError: ") and words in out and err == ""
    assert len(out.splitlines()) == 2


def test_a_model_that_is_not_cached_while_offline(tmp_path: Path) -> None:
    out, err = located("http://127.0.0.1:9", tmp_path / "home", "org/model", offline=True)
    assert (
        out.startswith("ModelError: org/model isn't in the local cache and the hub isn't used in offline mode")
        and err == ""
    )
    assert "llvid pull org/model" in out and "--model demo" in out


def test_an_adapter_is_fetched_without_pickles_and_named_by_its_commit(
    tmp_path: Path, find: Callable[..., tuple[str, str]]
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    save_file({"base_model.model.a.lora_A.weight": torch.ones(2, 3)}, source / "adapter_model.safetensors")
    for name in ("adapter_model.bin", "training_args.bin", "tokenizer.json"):
        (source / name).write_bytes(b"not wanted")
    with hub({"her/lora": source}) as (address, asked):
        name, folder, names = find(address, "adapter", "her/lora")[0].split("\n")
        assert (name, Path(folder).name) == (f"her/lora@{COMMIT}", COMMIT)
        assert names == "['adapter_config.json', 'adapter_model.safetensors']"
        asked.clear()
        assert find(address, "adapter", name)[0].split("\n")[0] == name
        assert not any("safetensors" in path for path in asked)
        assert "has no revision 'v9'" in find(address, "adapter", "her/lora@v9")[0]
        missing = find(address, "adapter", "her/none")[0]
        assert missing.splitlines() == [
            "ModelError: the hub has no model her/none (or it is private)",
            "check the name, or run `hf auth login`",
        ]
        (source / "adapter_model.safetensors").unlink()
        lacking = find(address, "adapter", "her/lora", cache="other")[0]
        assert "her/lora on the hub lacks adapter_model.safetensors" in lacking
        (source / "adapter_config.json").unlink()
        lacking = find(address, "adapter", "her/lora", cache="third")[0]
        assert lacking.splitlines() == [
            "ModelError: her/lora on the hub lacks adapter_config.json",
            "https://huggingface.co/her/lora shows what it has",
        ]
    offline = find("http://127.0.0.1:9", "adapter", "her/lora", offline=True)
    assert offline[0].split("\n")[:2] == [name, folder]
