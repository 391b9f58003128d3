"""What a request for one engine leaves behind."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from llava_video_cli import Frames, Generation, Request, Sampling, Turn, VideoInfo
from llava_video_cli.remote.engines import RequestWriter, ServedModel
from llava_video_cli.video.fit import FrameInput


def open_files() -> list[str]:
    return sorted(path.name for path in Path("/proc/self/fd").iterdir())


def test_a_clip_for_transformers_serve_leaves_no_file_and_no_descriptor() -> None:
    video = Frames(
        np.zeros((2, 24, 32, 3), np.uint8), (0.0, 1.0), VideoInfo("v.mp4", 2, 32, 24, 1.0, "h264", 0), Sampling()
    )
    asked = Request((Turn("user", "What happens?", (video,)),), Generation())
    writer, served = RequestWriter("frames", FrameInput(336, 336, "server")), ServedModel("transformers", "demo")
    before = open_files()
    with writer.body(asked, served, is_local=True) as body:
        clip = Path(body["messages"][0]["content"][0]["video_url"]["url"])
        assert clip.stat().st_size
    assert not clip.exists() and open_files() == before
