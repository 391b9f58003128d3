"""A hub that can't be reached: the error comes within five seconds, and what is in the cache is used."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hub import running_hub
from huggingface_hub import constants

from llava_video_cli.checkpoint import cached_folder
from llava_video_cli.checkpoint.hub import fetch, resolve
from llava_video_cli.errors import ModelError

SECONDS = 5.0


@contextmanager
def silent_port() -> Iterator[int]:
    """A port that takes no connection and refuses none: its queue is full, as if packets were lost."""
    with socket.socket() as listener, ExitStack() as opened:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        for _ in range(4):
            waiting = opened.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        time.sleep(0.1)
        yield port


@contextmanager
def closed_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens
        yield taken.getsockname()[1]


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """The hub may be asked, without a proxy, and the cache is an empty folder."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return monkeypatch


def use(patch: pytest.MonkeyPatch, address: str) -> None:
    patch.setattr(constants, "ENDPOINT", address)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.mark.parametrize("kind", ["refused", "silent", "no name"])
def test_the_error_comes_soon(kind: str, online: pytest.MonkeyPatch) -> None:
    with ExitStack() as opened:
        port = {"refused": closed_port, "silent": silent_port}.get(kind)
        host = f"127.0.0.1:{opened.enter_context(port())}" if port else "nothing.invalid"
        use(online, f"http://{host}")
        began = time.monotonic()
        with pytest.raises(ModelError, match="isn't in the local cache and the hub can't be reached"):
            fetch("org/small")
        assert time.monotonic() - began < (SECONDS if kind == "silent" else 1.5)


def test_what_is_in_the_cache_is_used(tmp_path: Path, online: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text('{"model_type": "llava_next_video"}')
    (source / "tokenizer.json").write_text("{}")
    (source / "model.safetensors").write_bytes(b"weights")
    with running_hub({"org/7B": source}) as hub:
        use(online, hub.address)
        folder = fetch("org/7B").folder
    with closed_port() as port:
        use(online, f"http://127.0.0.1:{port}")
        began = time.monotonic()
        assert resolve("org/7B", None) == folder == cached_folder("org/7B")
        assert not fetch("org/7B").is_checked
        assert time.monotonic() - began < SECONDS
