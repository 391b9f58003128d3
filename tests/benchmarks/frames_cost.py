"""Where the time and the memory of reading frames go.

    python tests/benchmarks/frames_cost.py stages /tmp/videos/*.mp4
    python tests/benchmarks/frames_cost.py memory /tmp/videos/h264_2160p_60s.mp4
    python tests/benchmarks/frames_cost.py together /tmp/videos/h264_1080p_60s_gop60.mp4
    python tests/benchmarks/frames_cost.py floor /tmp/videos/h264_480p_2h.mp4
    python tests/benchmarks/frames_cost.py index /tmp/videos/*.mkv

`stages`: seconds of each step on one core, for 32 frames. `memory`: MB of the peak above the idle process, of 32 frames
that are resized as they come, by the reader or by its caller, and of 32 that are held. `together`: two videos one after
the other against two at a time, each on one core: in two threads, and in two processes, which share nothing. `floor`: 8
frames, exact and at keyframes, these also with the header read before, against the least that PyAV needs for 8
keyframes: to open the file, to seek to eight moments, to decode a picture at each. `index`: what it costs to know all
stamps. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import multiprocessing.connection
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mutate import peak_memory

from llava_video_cli.video import inspect, iter_frames, read_frames
from llava_video_cli.video.decode import decode_range, use_threads
from llava_video_cli.video.demux import open_video
from llava_video_cli.video.limits import Deadline, Limits
from llava_video_cli.video.packet_index import packet_index
from llava_video_cli.video.parallel import Converter, plan_ranges
from llava_video_cli.video.sampling import Sampling, select_stamps

FRAMES, SIDE, RUNS = 32, 336, 5
RUNS_TOGETHER = 11


def stages(path: str) -> dict[str, float | int]:
    """Seconds of each step on one core."""
    times = [time.perf_counter()]
    with open_video(path, Deadline(path, Limits())) as video:
        times.append(time.perf_counter())
        index = packet_index(video)
        assert index is not None, "a file with usable stamps"
        times.append(time.perf_counter())
        stamps = select_stamps(index.timeline, Sampling(frames=FRAMES)).stamps
        ranges = plan_ranges(index, list(dict.fromkeys(stamps)))
        use_threads(video.context, 1)
        pictures = [picture for each in ranges for picture in decode_range(video, index, each)]
        times.append(time.perf_counter())
        converter = Converter()
        images = [np.ascontiguousarray(converter.convert(target, target, frame).image) for target, frame in pictures]
        times.append(time.perf_counter())
        for image in images:
            small(image)
        times.append(time.perf_counter())
    steps = ("open", "index", "decode", "convert", "resize")
    seconds = {step: round(after - before, 4) for step, before, after in zip(steps, times, times[1:], strict=False)}
    return {
        **seconds,
        "demux_all": round(demuxed(path), 4),
        "packets": len(index.stamps),
        "in_ranges": sum(each.length for each in ranges),
    }


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


def resized(image: np.ndarray) -> np.ndarray:
    """The same as an array."""
    return np.asarray(small(image))


def _peak(path: str, how: str, answer: multiprocessing.Queue) -> None:  # type: ignore[type-arg]
    sampling = Sampling(frames=FRAMES)
    small(np.zeros((64, 64, 3), np.uint8))
    idle = peak_memory()
    if how == "handed_on_resized":
        assert len([frame.image for frame in iter_frames(path, sampling, resize=resized)]) == FRAMES
    elif how == "read_resized":
        assert len(read_frames(path, sampling, resize=resized).images) == FRAMES
    elif how == "resized_by_caller":
        assert len([resized(frame.image) for frame in iter_frames(path, sampling)]) == FRAMES
    elif how == "held":
        assert len(read_frames(path, sampling).images) == FRAMES
    answer.put((peak_memory() - idle) / 2**20)


def memory(path: str) -> dict[str, float]:
    """MB above the idle process, each in a process of its own."""
    context = multiprocessing.get_context("spawn")
    found = {}
    for how in ("handed_on_resized", "read_resized", "resized_by_caller", "held"):
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

    def in_threads() -> None:
        readers = [threading.Thread(target=read) for _ in range(2)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()

    def one_after_the_other() -> None:
        read()
        read()

    def in_processes() -> None:
        for pipe in pipes:
            pipe.send(True)
        for pipe in pipes:
            pipe.recv()

    context = multiprocessing.get_context("spawn")
    pipes = []
    for _ in range(2):
        mine, its = context.Pipe()
        context.Process(target=_read_when_told, args=(path, its), daemon=True).start()
        mine.recv()
        pipes.append(mine)
    read()
    ways = {"one_after_the_other": one_after_the_other, "two_threads": in_threads, "two_processes": in_processes}
    found = _medians(ways, RUNS_TOGETHER)
    for pipe in pipes:
        pipe.send(False)
    one = found["one_after_the_other"]
    return found | {f"{name}_ratio": round(one / found[name], 2) for name in ("two_threads", "two_processes")}


def _read_when_told(path: str, pipe: multiprocessing.connection.Connection) -> None:
    sampling, limits = Sampling(frames=FRAMES), Limits(cores=1)
    read_frames(path, sampling, limits=limits)
    pipe.send(True)
    while pipe.recv():
        read_frames(path, sampling, limits=limits)
        pipe.send(True)


def floor(path: str) -> dict[str, float]:
    """Seconds of the exact way, of the keyframes' way, and of the least that PyAV needs for as many keyframes."""

    def opened() -> None:
        with av.open(path):
            pass

    def keyframes() -> None:
        with av.open(path) as container:
            stream = container.streams.video[0]
            for number in range(8):
                container.seek(number * (stream.duration or 0) // 8, stream=stream)
                next(container.decode(stream)).to_ndarray(format="rgb24")

    skimming = Sampling(frames=8, mode="keyframes")
    indexed = inspect(path)
    calls: dict[str, Callable[[], object]] = {
        "exact": lambda: read_frames(path, Sampling(frames=8)),
        "keyframes": lambda: read_frames(path, skimming),
        "keyframes_indexed": lambda: indexed.read(skimming),
        "pyav_open": opened,
        "pyav_keyframes": keyframes,
    }
    return _medians(calls)


def index(path: str) -> dict[str, float]:
    """Seconds to open a file and to know all its stamps, its packets and its GB (1e9 bytes)."""

    def with_index() -> None:
        with open_video(path, Deadline(path, Limits())) as video:
            packets = packet_index(video)
            assert packets is not None, "a file with usable stamps"
            counts.append(len(packets.stamps))

    def opened() -> None:
        with open_video(path, Deadline(path, Limits())):
            pass

    counts: list[int] = []
    found = _medians({"open": opened, "open_and_index": with_index})
    return found | {"packets": counts[0], "gb": round(Path(path).stat().st_size / 1e9, 3)}


def _medians(calls: Mapping[str, Callable[[], object]], runs: int = RUNS) -> dict[str, float]:
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(runs):
        for name, call in calls.items():
            taken[name].append(timed(call))
    return {name: round(statistics.median(seconds), 4) for name, seconds in taken.items()}


def timed(call: Callable[[], object]) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["stages", "memory", "together", "floor", "index"])
    parser.add_argument("files", nargs="+", type=Path)
    options = parser.parse_args()
    modes: dict[str, Callable[[str], dict[str, Any]]] = {
        "stages": stages, "memory": memory, "together": together, "floor": floor, "index": index
    }  # fmt: skip
    measure = modes[options.what]
    results = {path.name: measure(str(path)) for path in options.files}
    for name, result in results.items():
        print(f"{name}: " + ", ".join(f"{key} {value}" for key, value in result.items()))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
