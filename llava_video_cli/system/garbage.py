"""Python's garbage collector where it would find nothing and take long."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Objects more than there were, before those made since the last time are looked at, and how many times the younger
# ones are before the older: 700, 10 and 10 of Python 3.11 look at all a dozen times while torch is imported.
_THRESHOLDS = 20_000, 50, 1_000
_changing = threading.Lock()
_nested: list[tuple[int, int, int]] = []  # for each that is inside, what was there before the first


@contextmanager
def few_collections() -> Iterator[None]:
    """Collect seldom while large libraries are imported: the objects that they make stay.

    Cycles of new objects are still freed, so that what a load leaves behind is bounded. Threads may be inside at a
    time: the last one to leave restores what was there before the first.
    """
    with _changing:
        _nested.append(_nested[0] if _nested else gc.get_threshold())
        gc.set_threshold(*_THRESHOLDS)
    try:
        yield
    finally:
        with _changing:
            before = _nested.pop()
            if not _nested:
                gc.set_threshold(*before)
