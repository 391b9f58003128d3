"""What it costs to look into the windows of a film: `llvid find` beside reading and asking the same windows once.

    python tests/benchmarks/find.py [--minutes 60] [--rounds 2] [--every 4] [--query "a triangle turns blue"]

The film is of the demo world, 854 x 480 at 24 frames a second, of scenes of 2 to 8 seconds; after ten minutes it begins
again. Both ways take turns, after a first minute of it that warms up. The last line is a JSON document: the seconds of
each round on the clock and of this process's processors, and the ratios of the medians, of which at most 1.3 are
wanted. On a machine with other work, the second one is to be trusted. An hour takes about ten minutes on two free
cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from llava_video_cli import Failure, Loading, find_moments, load_preset, open_model
from llava_video_cli.demo.world import frames, random_scene
from llava_video_cli.evaluation.find import FindJob
from llava_video_cli.runs.answers import run

_WIDTH, _HEIGHT, _FPS = 854, 480, 24
_MADE_SECONDS, _WARM_SECONDS = 600, 60


def make_film(path: Path, seconds: float, seed: int = 0) -> None:
    """Write a film of random scenes, again and again; a triangle turns blue in as many as chance has it."""
    rng, written, packets = np.random.default_rng(seed), 0, list[Any]()
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=Fraction(_FPS), options={"crf": "23", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = _WIDTH, _HEIGHT, "yuv420p"
        while written < min(seconds, _MADE_SECONDS) * _FPS:
            scene = random_scene(rng)
            if scene.duration_seconds >= 2:
                for image in frames(replace(scene, width=_WIDTH, height=_HEIGHT, frames_per_second=_FPS)):
                    packets += stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24"))
                    written += 1
        packets += stream.encode()
        kept = [(bytes(packet), packet.pts, packet.dts, packet.is_keyframe) for packet in packets]
        for number in range(max(1, round(seconds * _FPS / written))):
            for content, pts, dts, is_keyframe in kept:
                packet = av.Packet(content)
                packet.stream, packet.time_base, packet.duration = stream, Fraction(1, _FPS), 1
                packet.pts, packet.dts = pts + number * written, dts + number * written
                packet.is_keyframe = is_keyframe
                container.mux(packet)


def main() -> None:
    """Measure, and print."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as every long run of the program has it
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--every", type=float, default=4.0)
    parser.add_argument("--query", default="a triangle turns blue")
    parser.add_argument("--film", type=Path, help="a film to use; made there if it is missing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        film = options.film or Path(folder) / "film.mp4"
        if not film.exists():
            make_film(film, options.minutes * 60)
        model, preset = open_model("demo", Loading()), load_preset("demo")
        took: dict[str, list[tuple[float, float]]] = {"find": [], "once": []}
        moments = windows = 0
        for number in range(options.rounds + 1):
            end = _WARM_SECONDS if number == 0 else None
            settings = replace(preset, sampling=replace(preset.sampling, end_seconds=end))
            found = find_moments(options.query, film, preset=settings, model=model, every_seconds=options.every)
            began = clocks()
            (record,) = found
            took["find"].append(since(began))
            assert not isinstance(record, Failure), record
            moments, windows = len(record.values["moments"]), len(record.values["windows"])
            began = clocks()
            list(run([FindJob(str(film), "", found.task, model.budget)], model, workers=1))
            took["once"].append(since(began))
            print({name: each[-1] for name, each in took.items()}, flush=True)
        document: dict[str, Any] = {"windows": windows, "moments": moments}
        for number, clock in enumerate(("seconds", "processor_seconds")):
            rounds = {name: [each[number] for each in pairs[1:]] for name, pairs in took.items()}
            medians = {name: statistics.median(each) for name, each in rounds.items()}
            document[clock] = {**rounds, "ratio": medians["find"] / medians["once"]}
        print(json.dumps(document))


def clocks() -> tuple[float, float]:
    """Return the time, and that of this process's processors."""
    return time.perf_counter(), time.process_time()


def since(began: tuple[float, float]) -> tuple[float, float]:
    """Return what went by on both clocks."""
    now = clocks()
    return round(now[0] - began[0], 3), round(now[1] - began[1], 3)


if __name__ == "__main__":
    main()
