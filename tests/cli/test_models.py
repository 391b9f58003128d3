"""`llvid models`: what the cache holds, its removal, and what the shell completes."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from huggingface_hub import constants
from terminal import Typed

from llava_video_cli.checkpoint.cache import cached_names, licence_of
from llava_video_cli.cli.app import run

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def store(cache: Path, name: str, files: dict[str, bytes]) -> Path:
    """Put a model into a cache as huggingface_hub does, where files can be links."""
    folder = cache / f"models--{name.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    for each in (snapshot, folder / "blobs", folder / "refs"):
        each.mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    for number, (file, content) in enumerate(files.items()):
        blob = folder / "blobs" / f"{number:040d}"
        blob.write_bytes(content)
        (snapshot / file).symlink_to(os.path.relpath(blob, snapshot))
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with a whole model, one that lacks its weights, a speech model, and one of another kind."""
    cache = tmp_path / "hub"
    config, card = b'{"model_type": "llava_next_video"}', b"---\nlicense: llama2\n---\n"
    store(cache, "org/whole", {"config.json": config, "model.safetensors": bytes(5000), "README.md": card})
    store(cache, "org/half", {"config.json": config})
    store(cache, "org/ears", {"config.json": b"{}", "model.bin": bytes(300), "vocabulary.txt": b"a"})
    store(cache, "org/other", {"config.json": b'{"model_type": "bert"}'})
    for blob in (cache / "models--org--ears" / "blobs").iterdir():
        os.utime(blob, (time.time() + 60,) * 2)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    return cache


def test_the_models_of_the_cache_are_listed(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "--json"]) == 0
    models = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [model["name"] for model in models[:1]] == ["org/ears"], "the last used one first"
    found = {model["name"]: model for model in models}
    assert found.keys() == {"org/ears", "org/whole", "org/half"}
    whole = found["org/whole"]
    assert (whole["family"], whole["licence"], whole["lacks"]) == ("llava_next_video", "llama2", None)
    assert whole["bytes"] > 5000 and abs(whole["used_seconds"] - time.time()) < 600
    assert found["org/half"]["lacks"] and found["org/half"]["licence"] is None
    assert found["org/ears"]["family"] == "whisper"

    assert run(["models"]) == 0
    out, err = capsys.readouterr()
    (line,) = (line for line in out.splitlines() if line.startswith("org/whole "))
    assert "5.1 kB, llava_next_video, licence llama2, used 20" in line
    assert "incomplete: `llvid pull org/half` completes it" in out
    assert f"3 models, 5.4 kB, in {cache}; 1 that llvid can't use" in err


def test_without_models_the_list_says_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert run(["models"]) == 0
    assert capsys.readouterr() == ("", f"no models in {tmp_path}; `llvid pull 7b` downloads one\n")


def test_a_model_is_removed(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "rm", "org/whole"]) == 2 and "add --yes" in capsys.readouterr().err
    assert run(["models", "rm", "org/whole", "org/hafl", "--yes"]) == 1 and (cache / "models--org--whole").exists()
    assert run(["models", "rm", "org/whole", "--yes"]) == 0
    assert "removed org/whole: 5.1 kB are free again" in capsys.readouterr().err
    assert not (cache / "models--org--whole").exists() and (cache / "models--org--half").exists()
    assert run(["models", "rm", "org/hafl", "--yes"]) == 1 and "did you mean 'org/half'?" in capsys.readouterr().err
    assert run(["models", "org/half"]) == 2 and "llvid models rm org/half" in capsys.readouterr().err
    assert run(["models", "rm"]) == 2
    assert sorted(cached_names()) == ["org/ears", "org/half", "org/other"]


def test_a_removal_on_a_terminal_is_asked_for(cache: Path, tmp_path: Path) -> None:
    for answer, code, words in (("n", 1, "org/whole is unchanged"), ("y", 0, "removed org/whole")):
        typed = Typed("models", "rm", "org/whole", cwd=tmp_path, env={"HF_HUB_CACHE": str(cache)})
        typed.until("remove org/whole (5.1 kB)? [y/N]")
        typed.type(f"{answer}\n")
        typed.until(words, 15)
        assert typed.end() == code
        typed.close()
    assert not (cache / "models--org--whole").exists()


def test_without_a_cache_the_list_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "nothing"))
    assert run(["models"]) == 0 and capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: apache-2.0\n---\n", "apache-2.0"),
        ("---\nlicense: other\nlicense_name: my-terms\nlicense_link: x\n---\n", "my-terms"),
        ("license: mit\n", None),
        ("", None),
    ],
)
def test_the_licence_is_that_of_the_card(card: str, licence: str | None, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(card)
    assert licence_of(tmp_path) == licence


@pytest.mark.usefixtures("cache")
def test_the_shell_completes_presets_models_and_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "demos[1]" / "inner").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("_LLVID_COMPLETE", "complete_bash")
    for words, wanted in (
        ("llvid ask x.mp4 -p cap", {"caption-detailed", "caption-short"}),
        ("llvid ask x.mp4 -m org/h", {"org/half"}),
        ("llvid ask x.mp4 -m 34", {"34b", "34b-dpo"}),
        ("llvid ask x.mp4 -m dem", {"demo", "demos[1]/"}),
        ("llvid ask x.mp4 -m demos", set()),  # then the shell completes paths
        ("llvid pull 7", {"7b", "7b-dpo", "7b-32k"}),
        ("llvid models r", {"rm"}),
        ("llvid models rm org/w", {"org/whole"}),
        ("llvid presets lo", {"long", "low-memory"}),
        ("llvid mod", {"models"}),
    ):
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
        with pytest.raises(SystemExit):
            run([])
        assert set(capsys.readouterr().out.split()) == wanted, words
