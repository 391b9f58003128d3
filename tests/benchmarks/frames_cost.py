"""Where the time and the memory of reading frames go.

    python tests/benchmarks/frames_cost.py stages /tmp/videos/*.mp4
    python tests/benchmarks/frames_cost.py memory /tmp/videos/h264_2160p_60s.mp4
    python tests/benchmarks/frames_cost.py together /tmp/videos/h264_1080p_60s_gop60.mp4

`stages`: seconds of each step on one core, for 32 frames. `memory`: the peak above the idle process, of 32 frames that
are resized as they come, and of 32 that are held. `together`: frames a second of two readers over those of one, each on
one core. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mutate import peak_memory

from llava_video_cli.container import open_video
from llava_video_cli.decoding import decode_run, use_threads
from llava_video_cli.limits import Deadline, Limits
from llava_video_cli.runs import Developer, plan
from llava_video_cli.sampling import Sampling, choose
from llava_video_cli.survey import packets_of
from llava_video_cli.video import iter_frames, read_frames

FRAMES, SIDE, RUNS = 32, 336, 5


def stages(path: str) -> dict[str, float | int]:
    """Seconds of each step on one core."""
    times = [time.perf_counter()]
    with open_video(path, Deadline(path, Limits())) as source:
        times.append(time.perf_counter())
        packets = packets_of(source)
        assert packets is not None, "a file with usable stamps"
        times.append(time.perf_counter())
        runs = plan(packets, list(dict.fromkeys(choose(packets.timeline, Sampling(frames=FRAMES)).stamps)))
        use_threads(source.stream, 1)
        pictures = [found for run in runs for found in decode_run(source, packets, run)]
        times.append(time.perf_counter())
        developer = Developer()
        images = [np.ascontiguousarray(developer.shot(target, target, frame).image) for target, frame in pictures]
        times.append(time.perf_counter())
        for image in images:
            small(image)
        times.append(time.perf_counter())
    steps = ("open", "index", "decode", "convert", "resize")
    found = {step: round(after - before, 4) for step, before, after in zip(steps, times, times[1:], strict=False)}
    return found | {"demux_all": round(demuxed(path), 4), "packets": len(packets.stamps), "decoded": decoded(runs)}


def decoded(runs: list) -> int:  # type: ignore[type-arg]
    """The packets that the runs hold."""
    return sum(run.length for run in runs)


def demuxed(path: str) -> float:
    """Seconds to read all packets."""
    start = time.perf_counter()
    with av.open(path) as container:
        for _ in container.demux(container.streams.video[0]):
            pass
    return time.perf_counter() - start


def small(image: np.ndarray) -> Image.Image:
    """About what a processor makes of a frame: the shortest edge at 336 pixels, bicubic."""
    height, width = image.shape[:2]
    scale = SIDE / min(height, width)
    return Image.fromarray(image).resize((round(width * scale), round(height * scale)), Image.Resampling.BICUBIC)


def _peak(path: str, how: str, answer: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    sampling = Sampling(frames=FRAMES)
    small(np.zeros((64, 64, 3), np.uint8))
    idle = peak_memory()
    if how == "handed on":
        kept = [small(frame.image) for frame in iter_frames(path, sampling)]
        assert len(kept) == FRAMES
    elif how == "held":
        assert len(read_frames(path, sampling).images) == FRAMES
    answer.put((peak_memory() - idle) / 2**20)


def memory(path: str) -> dict[str, float]:
    """MB above the idle process, each in a process of its own."""
    context = multiprocessing.get_context("spawn")
    found = {}
    for how in ("handed on", "held"):
        answer = context.Queue()
        process = context.Process(target=_peak, args=(path, how, answer))
        process.start()
        found[how] = round(answer.get(), 1)
        process.join()
    return found


def together(path: str) -> dict[str, float]:
    """Seconds for two videos: one after the other, and two at a time; each reader on one core."""

    def read() -> None:
        read_frames(path, Sampling(frames=FRAMES), limits=Limits(cores=1))

    def two() -> None:
        readers = [threading.Thread(target=read) for _ in range(2)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()

    def one_after_the_other() -> None:
        read()
        read()

    taken: dict[str, list[float]] = {"one": [], "two": []}
    for _ in range(RUNS):
        for name, call in (("one", one_after_the_other), ("two", two)):
            taken[name].append(timed(call))
    one, both = (statistics.median(taken[name]) for name in ("one", "two"))
    return {"one_after_the_other": round(one, 3), "two_at_a_time": round(both, 3), "ratio": round(one / both, 2)}


def timed(call: Callable[[], None]) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["stages", "memory", "together"])
    parser.add_argument("files", nargs="+", type=Path)
    options = parser.parse_args()
    measure = {"stages": stages, "memory": memory, "together": together}[options.what]
    results = {path.name: measure(str(path)) for path in options.files}
    for name, result in results.items():
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in result.items()))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
