"""Damaged files through the reader: `python tests/mutate.py [--files 2000] [--seed N]`.

Bits are flipped, pieces cut out, doubled or swapped, boxes swapped, and numbers in headers made absurd. Every file has
to give frames or a MediaError that names it once, in time, with all its handles closed. The last line is one JSON
document.
"""

from __future__ import annotations

import argparse
import json
import random
import struct
import tempfile
import threading
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

from clips import make_clip

from llava_video_cli.errors import MediaError
from llava_video_cli.video import iter_frames, probe, read_frames
from llava_video_cli.video.limits import Limits
from llava_video_cli.video.sampling import Sampling

LIMITS = Limits(seconds=4.0, pixels=4096 * 2304, bytes=2**28)
ABSURD = (0, 1, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
BOXES = (b"mvhd", b"tkhd", b"mdhd", b"stts", b"ctts", b"stsc", b"stsz", b"stco", b"stss", b"elst", b"avc1", b"vp09",
         b"moof", b"tfhd", b"trun", b"avih", b"strh", b"strf", b"idx1", b"avcC", b"hdlr", b"stsd")  # fmt: skip


def seeds(folder: Path) -> list[bytes]:
    """One small file of each kind."""
    x264: dict[str, Any] = {"bf": "2", "g": "8", "preset": "ultrafast"}
    made = [
        make_clip(folder / "plain.mp4", **x264),
        make_clip(folder / "late.mkv", [k + 50 for k in range(24)], **x264),
        make_clip(folder / "variable.mp4", [0, 40, 90, 200, 240, 700], Fraction(1, 1000), **x264),
        make_clip(folder / "stream.ts", **x264),
        make_clip(folder / "old.avi", codec="mpeg4", bf="2", g="8"),
        make_clip(folder / "new.webm", codec="libvpx-vp9", deadline="realtime", g="8"),
        make_clip(folder / "apart.mov", codec="mjpeg"),
        make_clip(folder / "flash.flv", **x264),
    ]
    return [path.read_bytes() for path in made]


def mutated(content: bytes, draw: random.Random) -> bytes:
    """A damaged copy."""
    damaged = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 4))):
        draw.choice((_flip, _cut, _move, _swap_boxes, _make_absurd, _make_absurd))(damaged, draw)
    return bytes(damaged)


def _flip(damaged: bytearray, draw: random.Random) -> None:
    for _ in range(draw.choice((1, 4, 30, 300))):
        if damaged:
            damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)


def _cut(damaged: bytearray, draw: random.Random) -> None:
    at = draw.randrange(len(damaged) + 1)
    del damaged[at : at + draw.choice((1, 100, len(damaged)))]


def _move(damaged: bytearray, draw: random.Random) -> None:
    at, to, size = draw.randrange(len(damaged) + 1), draw.randrange(len(damaged) + 1), draw.choice((4, 64, 1000))
    piece = damaged[at : at + size]
    if draw.random() < 0.5:
        del damaged[at : at + size]
    damaged[to:to] = piece


def _swap_boxes(damaged: bytearray, draw: random.Random) -> None:
    found = [at for name in BOXES for at in _places(damaged, name)]
    if len(found) > 1:
        one, other = draw.sample(found, 2)
        damaged[one : one + 4], damaged[other : other + 4] = damaged[other : other + 4], damaged[one : one + 4]


def _make_absurd(damaged: bytearray, draw: random.Random) -> None:
    """Write a number where a header keeps one: behind a box's name, or anywhere in the first 600 bytes."""
    places = [at + draw.randrange(-4, 60) for name in BOXES for at in _places(damaged, name)] or [0]
    at = draw.choice(places) if draw.random() < 0.7 else draw.randrange(600)
    value = draw.choice((*ABSURD, draw.randrange(2**32)))
    number = struct.pack(">I" if draw.random() < 0.7 else "<I", value)[-draw.choice((1, 2, 4)) :]
    if 0 <= at <= len(damaged) - len(number):
        damaged[at : at + len(number)] = number


def _places(damaged: bytearray, name: bytes) -> list[int]:
    at = damaged.find(name)
    return [] if at < 0 else [at]


def peak_memory() -> int:
    """The most bytes that this process has held; getrusage would count those of the process that started it."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    outcomes: Counter[str] = Counter()
    slowest, handles = 0.0, set[int]()
    with tempfile.TemporaryDirectory() as name:
        originals = seeds(Path(name))
        for number in range(options.files):
            draw = random.Random(f"{options.seed}/{number}")
            path = Path(name) / "damaged.bin"
            path.write_bytes(mutated(draw.choice(originals), draw))
            start = time.monotonic()
            for outcome in (_read(str(path), draw), _probe(str(path))):
                outcomes[outcome] += 1
            slowest = max(slowest, time.monotonic() - start)
            handles.add(len(list(Path("/proc/self/fd").iterdir())))
    print(  # noqa: T201
        json.dumps(
            {
                "files": options.files,
                "outcomes": outcomes,
                "slowest_seconds": round(slowest, 2),
                "peak_memory_mib": round(peak_memory() / 2**20),
                "handles": sorted(handles),
                "threads": [thread.name for thread in threading.enumerate()],
            }
        )
    )


def _read(path: str, draw: random.Random) -> str:
    sampling = Sampling(frames=draw.choice((1, 4, 32)), mode=draw.choice(("uniform", "endpoints", "keyframes")))
    try:
        if draw.random() < 0.3:
            frames = iter_frames(path, sampling, limits=LIMITS)
            next(frames)
            frames.close()  # a reader that leaves early
            return "left early"
        return "frames" if len(read_frames(path, sampling, limits=LIMITS).images) else "none"
    except MediaError as error:
        assert str(error).startswith(f"{path}: ") and str(error).count(path) == 1, error
        return "in time" if "not read within" in str(error) else "refused"


def _probe(path: str) -> str:
    try:
        return "probed" if probe(path, LIMITS).width else "none"
    except MediaError:
        return "not probed"


if __name__ == "__main__":
    main()
