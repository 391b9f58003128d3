"""Records whose names and captions hold what breaks formats."""

from __future__ import annotations

import os
from typing import Any

from llava_video_cli.runs.record import Record, path_to_text

NAMES = [
    "plain.mp4", "two\nlines.mp4", 'quo"te.mp4', "com,ma.mp4", "semi;colon\tand tab.mp4", "return\r.mp4",
    "🎬 emoji é日本.mp4", "n" * 246 + ".mp4", "-leading.mp4", "--dash", " space ", "'apos'.mp4", "=1+1.mp4", "[/].mp4",
    "\x1b[31m.mp4", "a\\nb.mp4", "file:plain.mp4", "%41.mp4", "\u2028\u202e.mp4", os.fsdecode(b"\xff\xfe.mp4"),
    os.fsdecode(b"caf\xe9\n.mp4"), "{x}.mp4", "a\x85b.mp4",
]  # fmt: skip

CAPTIONS = [
    "A red circle moves right.", "Two\nlines.", "\n\n2\n00:00:00,000 --> later\nfake\n\n",
    'He said "no", twice.', "<b>bold</b> & <v Bob>voices</v>", "", "   ", "NOTE this", "WEBVTT", "日本語、🎬",
    "a\x00b\x1b[2J", "-->", "\ufeffbom", "{\\an8}up",
]  # fmt: skip


def record(name: str = "clips/a.mp4", caption: str = "A circle.", number: int = 0) -> Record:
    segments = [
        {"start_seconds": 0.0, "end_seconds": 1.5, "text": caption},
        {"start_seconds": 1.5, "end_seconds": 3661.0405, "text": "Then nothing."},
    ]
    values: dict[str, Any] = {
        "video_path": path_to_text(name), "caption": caption, "segments": segments, "prompt": "Describe.",
        "model": "demo", "finish_reason": "stop",
        "frames": {"count": 2, "times_seconds": [0.0, 0.5], "sampling": "uniform", "duration_seconds": 3661.04},
        "notes": [], "usage": {"prompt_tokens": 3, "total_seconds": 0.5}, "settings": {"system": None},
        "key": f"{number:032x}",
    }  # fmt: skip
    return Record(values)


ALL = [record(name, CAPTIONS[n % len(CAPTIONS)], n) for n, name in enumerate(NAMES)]

ALL += [record("x.mp4", caption, 100 + n) for n, caption in enumerate(CAPTIONS)]
