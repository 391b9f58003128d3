"""Streams, events and CUDA graphs of the pretended device.

A capture computes nothing: its results are NaN, or 0, until the graph is replayed. A replay does the recorded
operations again on the same memory.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from pretended_tensors import leaves, ordinary_tensors
from torch.utils._python_dispatch import _disable_current_modes

if TYPE_CHECKING:
    from pretended_device import PretendedCuda


class Graph:
    """The operations of a capture, and the memory of their results; `torch.cuda.CUDAGraph`."""

    cuda: PretendedCuda

    def __init__(self, keep_graph: bool = False) -> None:
        del keep_graph
        self._steps: list[tuple[Callable[..., Any], Any, Any, list[torch.Tensor] | None]] = []

    def record(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Note an operation; return results of the right shapes whose values are not there yet."""
        schema = getattr(func, "_schema", None)
        if schema is not None and schema.is_mutable:
            self._steps.append((func, args, kwargs, None))
            return kwargs["out"] if "out" in kwargs else args[0]
        shared = {tensor.untyped_storage().data_ptr() for tensor in _tensors((args, kwargs))}
        results = func(*args, **kwargs)
        made = [result for result in _tensors(results) if result.untyped_storage().data_ptr() not in shared]
        for result in made:
            result.fill_(float("nan") if result.is_floating_point() else 0)
        if made:  # not a view
            self._steps.append((func, args, kwargs, made))
        return results

    def replay(self) -> None:
        """Do all operations again."""
        self.cuda.replays += 1
        with _disable_current_modes(), ordinary_tensors():
            for func, args, kwargs, made in self._steps:
                results = func(*args, **kwargs)
                for target, result in zip(made, _tensors(results), strict=True) if made else ():
                    target.copy_(result)

    def pool(self) -> tuple[int, int]:
        """Return the name of its memory."""
        return (0, id(self))

    def reset(self) -> None:
        """Forget everything."""
        self._steps.clear()


class Capturing:
    """`torch.cuda.graph`: what is done inside is recorded."""

    cuda: PretendedCuda

    def __init__(
        self, cuda_graph: Graph, pool: Any = None, stream: Stream | None = None, capture_error_mode: str = "global"
    ) -> None:
        del pool
        self.graph, self.is_global = cuda_graph, capture_error_mode == "global"
        self.thread, self._stream = threading.get_ident(), stream or Stream()

    def __enter__(self) -> None:
        self.cuda.note("sync", "a capture begins")
        if self.cuda.captures_to_fail:
            self.cuda.captures_to_fail -= 1
            raise torch.AcceleratorError("CUDA error: out of memory")
        self.cuda.captures += 1
        self._before = self.cuda.current_stream()
        self.cuda.set_stream(self._stream)
        self.cuda.capturing = self

    def __exit__(self, *_: object) -> None:
        self.cuda.capturing = None
        self.cuda.set_stream(self._before)


class Stream:
    """`torch.cuda.Stream`: everything is done at once, in the order of the calls."""

    cuda: PretendedCuda

    def __init__(self, device: Any = None, priority: int = 0) -> None:
        del device, priority

    def wait_stream(self, stream: Stream) -> None: ...

    def wait_event(self, event: Event) -> None: ...

    def record_event(self, event: Event | None = None) -> Event:
        return event or Event()

    def synchronize(self) -> None:
        self.cuda.note("sync", "a stream")


class Event:
    """`torch.cuda.Event`; waiting for one is counted."""

    cuda: PretendedCuda

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None:
        del enable_timing, blocking, interprocess

    def record(self, stream: Stream | None = None) -> None: ...

    def wait(self, stream: Stream | None = None) -> None: ...

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        self.cuda.note("event wait", "an event")


def _tensors(values: Any) -> list[torch.Tensor]:
    return [leaf for leaf in leaves(values) if isinstance(leaf, torch.Tensor)]
