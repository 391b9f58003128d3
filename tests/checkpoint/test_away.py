"""A hub that can't be reached: the error comes within five seconds, and what is in the cache is used."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hub import running_hub, use_hub

from llava_video_cli.checkpoint import cached_folder, hub
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


@pytest.mark.parametrize("kind", ["refused", "silent", "no name"])
def test_the_error_comes_soon(kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with ExitStack() as opened:
        port = {"refused": closed_port, "silent": silent_port}.get(kind)
        host = f"127.0.0.1:{opened.enter_context(port())}" if port else "nothing.invalid"
        use_hub(monkeypatch, f"http://{host}", tmp_path / "cache")
        if kind == "silent":
            assert hub._REACH_SECONDS < SECONDS  # noqa: SLF001 - all of it would be waited for
            monkeypatch.setattr(hub, "_REACH_SECONDS", 0.5)
        began = time.monotonic()
        with pytest.raises(ModelError, match="isn't in the local cache and the hub can't be reached"):
            fetch("org/small")
        assert time.monotonic() - began < (SECONDS if kind == "silent" else 1.5)


def test_what_is_in_the_cache_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text('{"model_type": "llava_next_video"}')
    (source / "tokenizer.json").write_text("{}")
    (source / "model.safetensors").write_bytes(b"weights")
    with running_hub({"org/7B": source}) as running:
        use_hub(monkeypatch, running.address, tmp_path / "cache")
        folder = fetch("org/7B").folder
    with closed_port() as port:
        use_hub(monkeypatch, f"http://127.0.0.1:{port}", tmp_path / "cache")
        began = time.monotonic()
        assert resolve("org/7B", None) == folder == cached_folder("org/7B")
        assert not fetch("org/7B").is_checked
        assert time.monotonic() - began < SECONDS
