"""AV1 frames that no other one refers to: dav1d agrees on which ones they are."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import av
import pytest
from clips import make_clip

from llava_video_cli.video.av1 import needed_bytes, sequence_header


@pytest.mark.parametrize("params", ["scm=0", "scm=1", "pred-struct=1", "film-grain=8", "error-resilient=1"])
def test_what_is_left_out_is_what_dav1d_would_skip(tmp_path: Path, params: str) -> None:
    options: dict[str, Any] = {"preset": "10", "g": "30", "svtav1-params": params}
    before = os.sched_getscheduler(0) if hasattr(os, "sched_getscheduler") else None
    clip = make_clip(tmp_path / "clip.mp4", range(60), codec="libsvtav1", **options)
    assert before is None or os.sched_getscheduler(0) == before, "real-time threads would starve the other tests"
    left_out, decoded = set(), set()
    with av.open(str(clip)) as container:
        context = container.streams.video[0].codec_context
        context.thread_count, context.skip_frame = 1, "NONREF"
        sequence = None
        for packet in container.demux(video=0):
            decoded |= {frame.pts for frame in context.decode(packet)}
            if packet.is_keyframe:
                sequence = sequence_header(bytes(packet), context.extradata)
            elif packet.size and sequence and needed_bytes(memoryview(packet), sequence) < packet.size:
                left_out.add(packet.pts)
        stamps = set(range(0, 60 * 512, 512))
    assert left_out == stamps - decoded
    assert len(left_out) > 10


def test_headers_that_cannot_be_read_skip_nothing() -> None:
    assert sequence_header(b"", None) is None
    for length in range(11):
        assert sequence_header(bytes.fromhex("0a0b000000043cfecc02f80240")[:length], b"") is None
    whole = sequence_header(bytes.fromhex("12000a0b000000043cfecc02f80240"), None)
    assert whole is not None
    assert sequence_header(b"", bytes.fromhex("81000d000a0b000000043cfecc02f80240")) == whole
    for packet in (
        b"\x12\x00",
        b"\x32",
        b"\x32\xff",
        b"\x32\x80\x80",
        b"\x36\x00\x01\x30",
        b"\x32\x40\x30" + bytes(20),
    ):
        assert needed_bytes(memoryview(packet), whole) == len(packet)
