"""The engine against another checkout's: captions of mixed lengths, and a short answer while long ones run.

    git worktree add /tmp/before a9315f1
    python tests/benchmarks/engine.py --before /tmp/before [--model demo] [--rounds 5] [--captions 200]

A process of each checkout holds the model; they take turns, round by round. The processor's seconds say more than the
clock where the machine is shared; `OMP_NUM_THREADS=1` keeps waiting threads out of them. The last line is one JSON
document.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parents[2]
PARTS = ("captions", "captions_equal", "captions_8_frames", "short_beside_long")


@dataclass
class Ready:
    """A job whose frames lie ready."""

    name: str
    request: Any

    def questions(self, shrink: Any, limits: Any) -> Iterator[Any]:
        del shrink, limits
        from llava_video_cli.runs.prefetch import JobRequest

        yield JobRequest(self.request)

    def outcomes(self, results: Any, error: Any) -> list[Any]:
        assert error is None
        return [result for _, result in results]


def worker(name: str, endless: str, captions: int) -> None:
    """Do what stdin says, a line a part, and write its figures."""
    from importlib import import_module

    from llava_video_cli import Frames, Generation, Loading, Request, Sampling, Turn, VideoInfo, join, open_model

    try:
        run = import_module("llava_video_cli.runs.answers").run
    except ModuleNotFoundError:  # before the engine
        run = import_module("llava_video_cli.runs.batches").run
    model = open_model(name, Loading(prefix_reuse=True))
    draw = np.random.default_rng(0)

    def video(frames: int) -> Frames:
        images = draw.integers(0, 255, (frames, 336, 336, 3), dtype=np.uint8)
        info = VideoInfo("clip.mp4", float(frames), 336, 336, 1.0, "h264", 0)
        return Frames(images, tuple(map(float, range(frames))), info, Sampling(frames=frames))

    def asked(frames: int, tokens: int) -> Request:
        return Request((Turn("user", "Describe the video.", (video(frames),)),), Generation(max_new_tokens=tokens))

    def folder(frames: int, count: int, lengths: list[int]) -> dict[str, float]:
        jobs = [Ready(str(number), asked(frames, lengths[number % len(lengths)])) for number in range(count)]
        began, began_cpu = time.perf_counter(), time.process_time()
        answers = list(run(jobs, model))
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - began_cpu
        assert len(answers) == count
        return {"captions_per_second": count / seconds, "cpu_milliseconds_per_caption": 1000 * cpu_seconds / count}

    def short_beside_long() -> dict[str, float]:
        talker = open_model(endless, Loading(prefix_reuse=True))
        join(talker.stream(asked(1, 8)))
        alone = statistics.median(join(talker.stream(asked(1, 8))).usage.first_token_seconds for _ in range(5))
        usages: list[Any] = []
        has_begun = threading.Semaphore(0)

        def long(seed: int) -> None:  # sampled, as greedy answers soon repeat themselves
            request = asked(1, 400)
            pieces = []
            generation = replace(request.generation, temperature=1.0, seed=seed)
            for piece in talker.stream(replace(request, generation=generation)):
                pieces.append(piece)
                has_begun.release()
            usages.append(join(pieces).usage)

        threads = [threading.Thread(target=long, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            has_begun.acquire()
        short = talker.stream(asked(1, 8))
        first, are_running = next(short), sum(thread.is_alive() for thread in threads)
        seconds = join([first, *short]).usage.first_token_seconds
        for thread in threads:
            thread.join()
        step = statistics.median(
            (each.total_seconds - each.first_token_seconds) / max(1, each.generated_tokens - 1) for each in usages
        )
        return {
            "first_token_seconds": seconds,
            "alone_seconds": alone,
            "step_seconds": step,
            "long_running": are_running,
            "steps_waited": (seconds - alone) / step,
        }

    mixed = [8, 16, 24, 32, 48, 64, 96, 128]
    parts: dict[str, Callable[[], dict[str, float]]] = {
        "captions": lambda: folder(1, captions, mixed),
        "captions_equal": lambda: folder(1, captions, [64]),
        "captions_8_frames": lambda: folder(8, max(8, captions // 5), mixed),
        "short_beside_long": short_beside_long,
    }
    for line in sys.stdin:
        print(json.dumps(parts[line.strip()]()), flush=True)


def random_checkpoint(folder: Path) -> Path:
    """Write 118 M random parameters in the layout of the 7B."""
    sys.path.insert(0, str(HERE / "tests"))
    from checkpoints import make_checkpoint

    text = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 9, "num_attention_heads": 12}
    vision = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4}
    return Path(make_checkpoint(folder / "118M", "vicuna", text=text | {"num_key_value_heads": 12}, vision=vision))


def endless_checkpoint(folder: Path, checkpoint: Path) -> Path:
    """Link a checkpoint's files, but for a generation config that forbids the tokens that end an answer."""
    folder.mkdir()
    for path in checkpoint.iterdir():
        (folder / path.name).symlink_to(path)
    config = folder / "generation_config.json"
    values = json.loads(config.read_text(encoding="utf-8"))
    ends = values["eos_token_id"]
    config.unlink()
    config.write_text(json.dumps(values | {"suppress_tokens": ends if isinstance(ends, list) else [ends]}))
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("--model", help="the default is 118 M random parameters in the layout of the 7B")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--captions", type=int, default=200)
    parser.add_argument("--parts", nargs="*", default=PARTS, choices=PARTS)
    parser.add_argument("--endless", help=argparse.SUPPRESS)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.model, options.endless, options.captions)
        return
    results: dict[str, Any] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if options.model is None:
            options.model = str(random_checkpoint(folder))
        elif options.model == "demo":  # that of this checkout, for both
            options.model = str(HERE / "llava_video_cli" / "demo" / "checkpoint")
        options.endless = str(endless_checkpoint(folder / "endless", Path(options.model)))
        processes = {}
        for label, checkout in (("before", options.before), ("after", HERE)):
            command = [sys.executable, str(Path(__file__).resolve()), "--worker", "--before", "."]
            process = subprocess.Popen(
                [*command, "--model", options.model, "--endless", options.endless, "--captions", str(options.captions)],
                # as the commands that take many videos set it
                env=os.environ | {"PYTHONPATH": str(checkout), "OMP_WAIT_POLICY": "passive"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            processes[label] = stack.enter_context(process)
            stack.callback(process.kill)
        for part in options.parts:
            figures: dict[str, list[dict[str, float]]] = {label: [] for label in processes}
            for number in range(options.rounds):
                for label in list(processes)[:: 1 if number % 2 else -1]:
                    process = processes[label]
                    assert process.stdin is not None and process.stdout is not None
                    process.stdin.write(f"{part}\n")
                    process.stdin.flush()
                    figures[label].append(json.loads(process.stdout.readline()))
            results[part] = {
                label: {name: round(statistics.median(each[name] for each in rows), 3) for name in rows[0]}
                for label, rows in figures.items()
            } | {"load": round(os.getloadavg()[0], 1)}
            print(part, results[part], flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
