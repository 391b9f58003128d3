"""Races and failures, until the time is over: `python tests/benchmarks/engine_stress.py [SECONDS] [SEED]`.

Threads ask models that come and go, leave in the middle of answers, let deliveries and tokenizers fail, and make memory
run out at random, within a step and while a cache grows. Each request has to end once; those without a failure of
their own have to get the answer that they get alone; and the threads of a model that nobody holds have to end. What
takes longer than a minute ends the script with the stacks of all threads. The last line is one JSON document.
"""

from __future__ import annotations

import faulthandler
import gc
import json
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from fakes import Fails
from random_requests import MEDIA, TEXTS
from scenes import checkpoint

from llava_video_cli import Generation, Request, Turn, join
from llava_video_cli.conversation import Chunk
from llava_video_cli.inference.video_model import VideoModel

PATIENCE_SECONDS = 60


class Failures:
    """Which calls of the language model's head fail: `share` of those with several rows, and of others `alone`."""

    def __init__(self, draw: random.Random, share: float, alone: float) -> None:
        self.draw, self.share, self.alone = draw, share, alone
        self.count = 0

    def __call__(self, rows: int) -> bool:
        fails = self.draw.random() < (self.share if rows > 1 else self.alone)
        self.count += fails
        return fails

    def error(self) -> Exception:
        return self.draw.choice([RuntimeError("CUDA error: out of memory"), MemoryError(), ArithmeticError("odd")])


def drawn(draw: random.Random) -> Request:
    generation = Generation(
        max_new_tokens=draw.choice((1, 2, 9, 30)),
        temperature=draw.choice((0.0, 1.5)),
        seed=draw.randrange(2),
        repetition_penalty=draw.choice((1.0, 1.2)),
    )
    return Request((Turn("user", draw.choice(TEXTS), draw.choice(MEDIA)),), generation)


class Asker:
    """A thread's requests, and what came of them."""

    def __init__(self, model: VideoModel, expected: dict[Request, str], seed: int) -> None:
        self.model, self.expected, self.draw = model, expected, random.Random(seed)
        self.counts = dict.fromkeys(("asked", "answered", "failed", "left"), 0)
        self.thread = threading.Thread(target=self.work)
        self.error: BaseException | None = None
        self.thread.start()

    def work(self) -> None:
        try:
            for _ in range(self.draw.randrange(1, 25)):
                self.ask()
        except BaseException as error:  # noqa: BLE001 - the main thread raises it
            self.error = error

    def ask(self) -> None:
        draw, request = self.draw, self.draw.choice(list(self.expected))
        self.counts["asked"] += 1
        kind = draw.choice(("whole", "pieces", "stream", "leave", "fail"))
        if kind == "stream":
            pieces = self.model.stream(request)
            try:
                if draw.random() < 0.3:
                    next(pieces)
                    self.counts["left"] += 1
                    return
                self.check(request, list(pieces))
            except Exception as error:  # noqa: BLE001 - one that was made to fail
                self.check(request, [error])
            return
        events: list[Any] = []
        is_over = threading.Event()

        def deliver(event: Any) -> None:
            assert not is_over.is_set() or kind == "leave", "something came after the end"
            events.append(event)
            if isinstance(event, Exception) or event.usage is not None:
                is_over.set()
            elif kind == "fail":
                is_over.set()
                raise RuntimeError("the reader fails")

        cancel = self.model.submit(request, deliver, kind != "whole")
        if kind == "leave":
            time.sleep(draw.choice((0, 0, 0.001, 0.01)))
            cancel()
            self.counts["left"] += 1
            return
        if draw.random() < 0.5:  # several at a time
            self.ask()
        assert is_over.wait(PATIENCE_SECONDS), f"no answer came to {request}"
        if kind == "fail" and isinstance(events[-1], Chunk) and events[-1].usage is None:
            self.counts["left"] += 1
            return
        self.check(request, events)

    def check(self, request: Request, events: list[Any]) -> None:
        if isinstance(events[-1], Exception):
            self.counts["failed"] += 1
            return
        answer, expected = join(events).text, self.expected[request]
        assert answer == expected, (request.generation, request.turns[0].text, answer, expected)
        self.counts["answered"] += 1


def main(seconds: float, seed: int) -> None:
    draw, until = random.Random(seed), time.monotonic() + seconds
    counts: dict[str, int] = {"models": 0, "failures": 0}
    folder = checkpoint("demo", {})
    failures = Failures(random.Random(seed), 0, 0)
    fails = Fails(folder, failures, failures.error)
    requests = [drawn(draw) for _ in range(60)]
    expected = {request: join(fails.model.stream(request)).text for request in requests}
    loaded = fails.model._loaded  # noqa: SLF001 - loading takes longer than all else here
    del fails.model
    while time.monotonic() < until:
        faulthandler.dump_traceback_later(10 * PATIENCE_SECONDS, exit=True)
        failures.share, failures.alone = draw.choice(((0, 0), (0.05, 0), (0.3, 0.02), (0.02, 0.2)))
        model = VideoModel("stress", loaded, prefix_reuse=draw.random() < 0.8, conversations=draw.choice((1, 4)))
        askers = [Asker(model, expected, draw.randrange(2**32)) for _ in range(draw.randrange(1, 7))]
        del model
        for asker in askers:
            asker.thread.join(5 * PATIENCE_SECONDS)
            if asker.error is not None or asker.thread.is_alive():
                faulthandler.dump_traceback()
                raise asker.error or AssertionError("a thread hangs")
            for key, count in asker.counts.items():
                counts[key] = counts.get(key, 0) + count
        del askers, asker
        gc.collect()
        waits_until = time.monotonic() + PATIENCE_SECONDS
        while left := [thread.name for thread in threading.enumerate() if thread.name.startswith("llvid-")]:
            if time.monotonic() > waits_until:
                faulthandler.dump_traceback()
                raise AssertionError(f"these threads did not end: {left}")
            time.sleep(0.01)
        counts["models"] += 1
        counts["failures"] = failures.count
    print(json.dumps(counts))


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 60, int(sys.argv[2]) if len(sys.argv) > 2 else 0)
