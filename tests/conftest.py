"""What tests share: checkpoints made once, and environments that keep the user's own settings out."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before torch is imported: threads that wait in a loop slow everything down where other tests' processes run beside.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# Tiny models gain nothing by a second thread, and the other test process has the other core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
gc.disable()  # until everything is imported: see system/garbage.py


def pytest_configure(config: pytest.Config) -> None:
    """Hide the GPUs of this machine, unless `-m gpu` asks for the tests that need one: all others are of the CPU."""
    if config.getoption("markexpr") != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("markexpr") != "gpu":
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU: pytest -m gpu"))


def pytest_collection_finish() -> None:
    """Leave what all the imports made out of garbage collections: it stays, and looking through it takes long."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    for name in ("LLVID_MODEL", "LLVID_PRESET", "LLVID_SERVER", "HF_ENDPOINT", "FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.getbasetemp() / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path_factory.getbasetemp() / "state"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path_factory.getbasetemp()))  # servers of the user's own
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def only_what_is_needed(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail the test if the reader decodes a whole file, or a run again, as it does where a file is damaged."""
    with caplog.at_level(logging.DEBUG, "llava_video_cli"):
        yield
    assert [record.getMessage() for record in caplog.get_records("call")] == []


@pytest.fixture(scope="session")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A folder with a tiny random checkpoint for each published layout; those of DPO have vocabularies as published."""
    from checkpoints import LAYOUTS, WORDS, make_checkpoint

    base = tmp_path_factory.mktemp("layouts")
    words = {layout: None if layout.endswith("-dpo") else WORDS for layout in LAYOUTS}
    return {layout: make_checkpoint(base / layout, layout, words=words[layout]) for layout in LAYOUTS}


@pytest.fixture(scope="session")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random Whisper."""
    pytest.importorskip("faster_whisper", reason="the extra speech is not installed")
    from whisper import make_whisper

    return make_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A red circle that moves right."""
    from terminal import scene

    from llava_video_cli.demo.world import write_clip

    path = tmp_path_factory.mktemp("clips") / "circle.mp4"
    write_clip(path, scene())
    return path
