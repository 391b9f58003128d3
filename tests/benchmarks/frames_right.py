"""Every frame of ours against a sequential decode, bit for bit, and its time: many samplings of many files.

    python tests/benchmarks/frames_right.py ../shared/videos /tmp/videos

What a full decode gives is the truth: `Timeline` is made of its stamps, `select_stamps` says which of them are meant,
and `read_frames` and `iter_frames` have to give just those. A damaged file may differ where the truth has no such
picture.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import av
from clips import decode_all, digest

from llava_video_cli.errors import MediaError
from llava_video_cli.video import iter_frames, probe, read_frames
from llava_video_cli.video.sampling import Sampling, Timeline, select_stamps

NO_VIDEO = {".md", ".txt", ".json", ".sh"}
MANY = 5000  # frames, from which on only those needed get a fingerprint


def samplings(seconds: float) -> list[Sampling]:
    """What is tried on a file of that length."""
    start, end = round(seconds * 0.31, 3), round(seconds * 0.77 + 0.02, 3)
    found = [Sampling(frames=n, mode=mode) for n in (1, 2, 8, 32, 100) for mode in ("uniform", "endpoints")]
    found += [Sampling(frames=5, start_seconds=start, end_seconds=end), Sampling(frames=8, mode="keyframes")]
    rate = 1.5 if seconds < 1200 else 0.05  # more than MAX_FRAMES otherwise
    found.append(Sampling(fps=rate, start_seconds=start, end_seconds=end))
    return found if seconds > 600 else [*found, Sampling(fps=2)]


def check(path: str) -> tuple[int, list[str]]:
    """How many samplings were tried, and what was wrong."""
    info = probe(path)
    tried, wrong = samplings(info.duration_seconds), []
    timeline, prints = truth(path, info.duration_seconds, tried)
    for sampling in tried:
        # which frames are keyframes is the file's own affair
        expected = None if sampling.mode == "keyframes" else select_stamps(timeline, sampling).stamps
        frames = read_frames(path, sampling)
        single = list(iter_frames(path, sampling))
        if [digest(frame.image) for frame in single] != [digest(image) for image in frames.images]:
            wrong.append(f"{sampling}: one at a time differs")
        times = [timeline.seconds(stamp) for stamp in expected or ()]
        if expected and not all(abs(a - b) < 1e-6 for a, b in zip(times, frames.times_seconds, strict=False)):
            wrong.append(f"{sampling}: times")
        if expected and len(expected) != len(frames.images):
            wrong.append(f"{sampling}: {len(frames.images)} frames, not {len(expected)}")
        for image, seconds in zip(frames.images, frames.times_seconds, strict=True):
            near = min(timeline.stamps, key=lambda stamp: abs(timeline.seconds(stamp) - seconds)) if prints else 0
            wanted = prints.get(near) or digest(image)
            same_size = wanted.startswith(f"{image.shape}:")  # after a change of size, ours are scaled
            if wanted != digest(image) and same_size:
                wrong.append(f"{sampling}: the picture at {seconds:.3f} s")
                break
    return len(tried), wrong


def truth(path: str, seconds: float, tried: list[Sampling]) -> tuple[Timeline, dict[int, str]]:
    """The timeline of a sequential decode, and the fingerprint of the picture at each stamp.

    Its 0:00 is a player's, where the sound begins before the pictures.
    """
    with av.open(path, metadata_errors="ignore") as container:
        stream = container.streams.best("video")
        assert isinstance(stream, av.VideoStream)
        tick, rate = stream.time_base or Fraction(1, 1000), stream.average_rate
        sounds = [Fraction(max(0, each.start_time or 0)) * (each.time_base or 1) for each in container.streams.audio]
        stamps = [p.pts for p in container.demux(stream) if p.size and p.pts is not None and not p.is_discard]
    keep = None
    if len(stamps) > MANY:
        known = Timeline(ordered := sorted(stamps), ordered[0] + round(Fraction(str(seconds)) / tick), tick)
        wanted = {
            stamp
            for sampling in tried
            if sampling.mode != "keyframes"
            for stamp in select_stamps(known, sampling).stamps
        }
        keep = {k for k, stamp in enumerate(ordered) if stamp in wanted}
    decoded = decode_all(Path(path), keep, damaged=keep is None)
    shown = [stamp for stamp, _ in decoded if stamp is not None]
    if len(shown) < len(decoded) or any(after <= before for before, after in pairwise(shown)):
        shown, tick = list(range(len(decoded))), 1 / rate if rate else tick
        sounds = []
    zero = min(sounds) / tick if sounds else None
    begin = Timeline(shown, 0, tick, zero=zero).begin
    end = round(begin + Fraction(str(seconds)) / tick)
    prints = dict(zip(shown, (fingerprint for _, fingerprint in decoded), strict=True))
    return Timeline(shown, end, tick, zero=zero), prints


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path)
    options = parser.parse_args()
    files = [file for path in options.paths for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
    results: dict[str, str] = {}
    for file in files:
        if file.suffix in NO_VIDEO:
            continue
        start = time.monotonic()
        try:
            count, wrong = check(str(file))
            results[file.name] = f"{len(wrong)} of {count} wrong: {wrong[0]}" if wrong else f"{count} right"
        except MediaError as error:
            results[file.name] = f"refused: {error.args[0].split(': ', 1)[-1]}"
        print(f"{file.name}: {results[file.name]} ({time.monotonic() - start:.0f} s)", flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
