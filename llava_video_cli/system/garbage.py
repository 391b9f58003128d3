"""When Python's garbage collector looks for garbage: seldom where there is none."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Of `gc.set_threshold`. With Python 3.11's own, 700, 10 and 10, all objects are looked at six times while torch and
# transformers are imported, at the end 390,000 of them.
_THRESHOLDS = 20_000, 50, 1_000
_changing = threading.Lock()
_before: list[tuple[int, int, int]] = []  # for each call that is inside, the thresholds before the first


@contextmanager
def few_collections() -> Iterator[None]:
    """Collect seldom while large libraries are imported: the objects that they make stay.

    Cycles of new objects are still freed, so that what a load leaves behind is bounded. Threads may be inside at a
    time: the last one to leave restores what was there before the first.
    """
    with _changing:
        _before.append(_before[0] if _before else gc.get_threshold())
        gc.set_threshold(*_THRESHOLDS)
    try:
        yield
    finally:
        with _changing:
            thresholds = _before.pop()
            if not _before:
                gc.set_threshold(*thresholds)
