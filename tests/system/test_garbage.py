"""Python's garbage collector while large libraries are imported."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from llava_video_cli.inference import open_model
from llava_video_cli.inference.video_model import VideoModel
from llava_video_cli.system.garbage import few_collections


@pytest.fixture(autouse=True)
def own_thresholds() -> Iterator[None]:
    before = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    yield
    gc.set_threshold(*before)


PROGRAM = """
import gc
from contextlib import nullcontext
from llava_video_cli.system.garbage import few_collections
for collected in nullcontext(), few_collections():
    with collected:
        before = gc.get_stats()[2]["collections"]
        kept = [[number] for number in range(300_000)]
        print(gc.get_stats()[2]["collections"] - before)
"""


def test_all_objects_are_not_looked_through_again_and_again() -> None:
    """In a process of its own: when Python does it by itself depends on all objects that there are."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    usual, few = map(int, done.stdout.split())
    assert usual > 0 and few == 0


def test_cycles_are_still_freed() -> None:
    class Node:
        alive = 0

        def __init__(self) -> None:
            self.me = self
            Node.alive += 1

        def __del__(self) -> None:
            Node.alive -= 1

    with few_collections():
        for _ in range(100_000):
            Node()
        assert Node.alive < 50_000


def test_what_was_there_comes_back_after_the_last_of_many_threads() -> None:
    gc.set_threshold(701, 11, 12)
    inside, leave = threading.Barrier(3), [threading.Event(), threading.Event()]

    def load(number: int) -> None:
        with suppress(ValueError), few_collections():
            inside.wait()
            leave[number].wait(10)
            if number:
                raise ValueError("no weights")

    threads = [threading.Thread(target=load, args=(number,), daemon=True) for number in range(2)]
    for thread in threads:
        thread.start()
    inside.wait()
    raised = gc.get_threshold()
    leave[0].set()
    threads[0].join()
    assert gc.get_threshold() == raised != (701, 11, 12)
    leave[1].set()
    threads[1].join()
    assert gc.get_threshold() == (701, 11, 12)


def test_a_model_is_opened_so(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(VideoModel, "open", lambda *_: seen.append(gc.get_threshold()))
    open_model("demo")
    assert seen[0][2] > 10 and gc.get_threshold() == (700, 10, 10)
