"""The server under load: answers a second of 1 and of 16 clients, how long they wait, and memory over many requests.

`python tests/benchmarks/serve.py [--requests 10000] [--model 118M --frames 8 --max-tokens 48]`: a server of its own
with the demo checkpoint, or with random parameters in the layout of the 7B, asked over HTTP, each client about a clip
of its own. The last line of stdout is one JSON document. Linux.
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from engine import random_checkpoint
from serving import data_url, message
from terminal import scene

from llava_video_cli.demo.world import write_clip

CLIENTS = 16
QUESTIONS = (
    "What shape is it?", "Describe the video.", "Which way does it move?", "What color is it at the start?",
    "Does the color change?",
)  # fmt: skip
SHAPES, COLORS = ("circle", "square", "triangle"), {"red": (215, 40, 35), "blue": (50, 80, 220), "green": (40, 170, 70)}


@contextmanager
def server(*options: str) -> Iterator[tuple[int, int]]:
    """Give the process and the port of a server; the demo checkpoint answers, unless options say otherwise."""
    command = [sys.executable, "-m", "llava_video_cli", "serve", "--port", "0", *(options or ("-m", "demo"))]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        found = re.search(r"http://127.0.0.1:(\d+)", process.stderr.readline())
        assert found
        yield process.pid, int(found[1])
    finally:
        process.terminate()
        process.wait(30)


def bodies(folder: Path, max_tokens: int = 512) -> list[list[bytes]]:
    """Return, for each client, the requests on its clip."""
    made = []
    for number in range(CLIENTS):
        color = list(COLORS)[number % 3]
        look = scene(shape=SHAPES[number // 3 % 3], color_start=color, color_end=color, shade_start=COLORS[color],
                     shade_end=COLORS[color], y=0.3 + 0.02 * number, seed=number)  # fmt: skip
        path = folder / f"{number}.mp4"
        write_clip(path, look)
        url = data_url(path)
        each = [{"messages": [message(question, url)], "max_tokens": max_tokens} for question in QUESTIONS]
        made.append([json.dumps(body).encode() for body in each])
    return made


def load(
    port: int, requests: Sequence[Sequence[bytes]], seconds: float | None, count: int | None = None
) -> list[float]:
    """Ask, each client as soon as it has its answer; return how long each waited, in seconds."""
    waits: list[float] = []
    left, until = itertools.count(), time.monotonic() + (seconds or 1e9)

    def client(own: Sequence[bytes]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        for body in itertools.cycle(own):
            if time.monotonic() > until or (count is not None and next(left) >= count):
                break
            began = time.perf_counter()
            connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
            response = connection.getresponse()
            content = response.read()
            assert response.status == 200, content
            waits.append(time.perf_counter() - began)
        connection.close()

    threads = [threading.Thread(target=client, args=(own,)) for own in requests]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return waits


def resident_bytes(pid: int) -> int:
    """Return what a process holds in memory."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000, help="for the memory")
    parser.add_argument("--model", choices=("demo", "118M"), default="demo")
    parser.add_argument("--frames", type=int, help="of a clip; the default is the server's")
    parser.add_argument("--max-tokens", type=int, default=512, help="of an answer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each part of a round")
    options = parser.parse_args()
    rates: dict[int, list[float]] = {1: [], CLIENTS: []}
    p50s, p95s = [], []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        model = "demo" if options.model == "demo" else str(random_checkpoint(folder))
        frames = ("--frames", str(options.frames)) if options.frames else ()
        pid, port = stack.enter_context(server("-m", model, *frames))
        requests = bodies(folder, options.max_tokens)
        load(port, requests, 2.0)
        for _ in range(options.rounds):
            for clients in rates:
                began = time.perf_counter()
                waits = load(port, requests[:clients], options.seconds)
                rates[clients].append(len(waits) / (time.perf_counter() - began))
            p50s.append(statistics.median(waits))
            p95s.append(statistics.quantiles(waits, n=20)[-1])
        print(f"{'clients':>8} {'answers/s':>10}")
        for clients, found in rates.items():
            print(f"{clients:>8} {statistics.median(found):>10.1f}")
        print(f"16 clients wait p50 {statistics.median(p50s):.3f} s, p95 {statistics.median(p95s):.3f} s", flush=True)
        memory = [resident_bytes(pid)]
        for _ in range(10):
            load(port, requests, None, options.requests // 10)
            memory.append(resident_bytes(pid))
            print(f"{memory[-1] / 2**20:.0f} MiB", flush=True)
    result = {
        "answers_per_second": {str(clients): round(statistics.median(found), 2) for clients, found in rates.items()},
        "ratio": round(statistics.median(b / a for a, b in zip(rates[1], rates[CLIENTS], strict=True)), 2),
        "p50_seconds": round(statistics.median(p50s), 4),
        "p95_seconds": round(statistics.median(p95s), 4),
        "p95_over_p50": round(statistics.median(b / a for a, b in zip(p50s, p95s, strict=True)), 2),
        "requests": options.requests,
        "memory_bytes": memory,
        "memory_growth": round(memory[-1] / memory[1] - 1, 4),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
