"""How a request is written for an engine, without a server."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llava_video_cli import (
    Frames,
    Generation,
    MediaError,
    ModelError,
    Request,
    Sampling,
    Turn,
    UsageError,
    VideoInfo,
)
from llava_video_cli.remote import engines
from llava_video_cli.remote.engines import RequestWriter, ServedModel
from llava_video_cli.video.encode import MOST_BYTES
from llava_video_cli.video.fit import FrameInput

VIDEO = Frames(
    np.zeros((2, 24, 32, 3), np.uint8), (0.0, 1.0), VideoInfo("v.mp4", 2.0, 32, 24, 1.0, "h264", 0), Sampling(2)
)


def test_the_file_for_transformers_is_closed_and_removed() -> None:
    """Else a long run would have no file left to open."""
    writer = RequestWriter("frames", FrameInput(336, 336, "server"))
    before = set(os.listdir("/proc/self/fd"))  # noqa: PTH208
    with writer.body(Request((Turn("user", "?", (VIDEO,)),)), ServedModel("transformers", "m"), is_local=True) as body:
        path = Path(body["messages"][0]["content"][0]["video_url"]["url"])
        assert path.stat().st_size > 0 and set(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    assert not path.exists()


def test_a_request_and_a_file_have_at_most_so_many_bytes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sizes: list[int] = []

    def make_clip(*_: object, most_bytes: int, **__: object) -> bytes:
        sizes.append(most_bytes)
        return b"clip"

    monkeypatch.setattr(engines, "make_clip", make_clip)
    writer, other = RequestWriter("frames", FrameInput(336, 336, "server")), replace(VIDEO)
    with writer.body(Request((Turn("user", "?", (VIDEO, other)),)), ServedModel("vLLM", "m"), is_local=True):
        assert sizes == [MOST_BYTES // 2] * 2
    path = tmp_path / "large.mp4"
    path.write_bytes(b"12345")
    monkeypatch.setattr(engines, "_MOST_FILE_BYTES", 4)
    large = replace(VIDEO, info=replace(VIDEO.info, path=str(path)))
    files = RequestWriter("file", FrameInput(336, 336, "server"))
    with (
        pytest.raises(MediaError, match="too large to send"),
        files.body(Request((Turn("user", "?", (large,)),)), ServedModel("vLLM", "m"), is_local=True),
    ):
        pass


def test_transformers_samples_only_where_it_is_told_to() -> None:
    writer = RequestWriter("frames", FrameInput(336, 336, "server"))
    for temperature, told in ((0.0, None), (0.7, '{"do_sample": true, "top_k": 0}')):
        request = Request((Turn("user", "?"),), Generation(temperature=temperature))
        with writer.body(request, ServedModel("transformers", "m"), is_local=True) as body:
            assert body.get("generation_config") == told and body["temperature"] == temperature


def test_what_an_engine_can_not_do_is_refused_and_what_ours_can_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    writer = RequestWriter("frames", FrameInput(336, 336, "server"))
    request = Request((Turn("user", "?", (VIDEO,)),), Generation(show_thinking=True))
    with (
        pytest.raises(ModelError, match="only from its own disk"),
        writer.body(request, ServedModel("transformers", "m"), is_local=False),
    ):
        pass
    for engine, shown in (("llvid", True), ("vLLM", None)):
        with writer.body(request, ServedModel(engine, "m"), is_local=False) as body:  # type: ignore[arg-type]
            assert body.get("show_thinking") == shown
    other = replace(VIDEO, sampling=Sampling(4))
    monkeypatch.setattr(engines, "_file", lambda _: b"file")
    files = RequestWriter("file", FrameInput(336, 336, "server"))
    unused = replace(VIDEO, sampling=Sampling(4, scene_threshold=3.0, speech_model="tiny"))
    with files.body(Request((Turn("user", "?", (unused,)),)), ServedModel("llvid", "m"), is_local=True) as body:
        assert body["sampling"] == {"frames": 4}  # a server refuses options that mean nothing
    both = Request((Turn("user", "?", (VIDEO, other)),))
    with (
        pytest.raises(UsageError, match="the same frames for each video"),
        files.body(both, ServedModel("llvid", "m"), is_local=True),
    ):
        pass
