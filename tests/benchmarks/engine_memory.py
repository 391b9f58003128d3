"""Many mixed requests through one engine: `python tests/benchmarks/engine_memory.py [REQUESTS] [MODEL]`.

Requests come and go at random, sampled, streamed, cancelled and not; every thousand, it says what came of them and how
much memory the process holds. A request that gets a second end, or none, ends the run with an error. The last line is
one JSON document.
"""

from __future__ import annotations

import gc
import json
import os
import queue
import random
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from random_requests import MEDIA, TEXTS

from llava_video_cli import Generation, Model, Request, Turn, open_model

UNDER_WAY = 60
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def drawn(draw: random.Random) -> Request:
    """Return a request of any kind."""
    generation = Generation(
        max_new_tokens=draw.choice((1, 3, 8, 20, 40)), temperature=draw.choice((0.0, 0.0, 0.8)), seed=draw.randrange(9)
    )
    stop = ("red",) if draw.random() < 0.1 else ()
    return Request((Turn("user", draw.choice(TEXTS), draw.choice(MEDIA)),), generation, stop)


def held_bytes() -> int:
    """Return the resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES


def main(model: Model, count: int) -> None:
    draw = random.Random(0)
    events: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()

    def deliver(number: int, event: Any) -> None:
        events.put((number, event))

    cancels: dict[int, Any] = {}
    cancelled: set[int] = set()
    ends: dict[int, int] = {}
    begun, memory, began = 0, [], time.perf_counter()
    while begun < count or cancels:
        while begun < count and len(cancels) < UNDER_WAY:
            cancels[begun] = model.submit(drawn(draw), partial(deliver, begun), draw.random() < 0.3)
            if draw.random() < 0.05:
                cancels.pop(begun)()
                cancelled.add(begun)
            begun += 1
            if begun % 1000 == 0:
                gc.collect()
                memory.append(round(held_bytes() / 2**20))
                print(f"{begun} begun, {len(ends)} ended, {memory[-1]} MiB", flush=True)
        if cancels:
            number, event = events.get(timeout=60)
            if isinstance(event, Exception):
                raise event
            if event.usage is not None:
                ends[number] = ends.get(number, 0) + 1
                cancels.pop(number, None)
    time.sleep(1)  # for a second end of the last ones
    while not events.empty():
        number, event = events.get()
        ends[number] = ends.get(number, 0) + (event.usage is not None)
    twice = sum(times > 1 for times in ends.values())
    lost = count - len(ends.keys() | cancelled)
    seconds = round(time.perf_counter() - began, 1)
    figures = {"requests": count, "cancelled": len(cancelled), "twice": twice, "lost": lost}
    print(json.dumps(figures | {"seconds": seconds, "mebibytes": memory}))
    assert not twice and not lost


if __name__ == "__main__":
    opened = open_model(sys.argv[2] if len(sys.argv) > 2 else "demo")
    main(opened, int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
