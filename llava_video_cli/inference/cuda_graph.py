"""A decode step captured once and replayed: without Python, and without a launch from the host for each kernel.

The step is written for that: every shape is fixed, what changes lies in tensors that stay in place, and nothing is read
back by the host. Where a capture fails, or its replay gives other logits than the step itself, it is not used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch

# Turns a call that fills the tensors it closes over into a faster one that does the same.
Capture: TypeAlias = Callable[[Callable[[], None]], Callable[[], None]]

_WARM_UPS = 2
# Steps before it is captured, which takes as long as a few; many times as many after each failure.
_STEPS_BEFORE_CAPTURE, _MORE_AFTER_FAILURE, _MOST_STEPS = 3, 16, 10_000
# How far a replay's logits may lie from the step's own, as a part of the largest: other kernels may be chosen.
_TOLERANCE = 0.02


class CapturedStep:
    """A decode step that reads and writes tensors that stay in place: captured once it has been done a few times.

    `step` does it and returns the logits, (rows, vocabulary); `lengths` is what it counts up, int64 (slots). Each call
    returns the logits in a tensor that the next call may overwrite.
    """

    def __init__(self, step: Callable[[], torch.Tensor], lengths: torch.Tensor, capture: Capture) -> None:
        self._step, self._lengths, self._capture = step, lengths, capture
        self._wait = self._left = _STEPS_BEFORE_CAPTURE
        self._logits: torch.Tensor | None = None
        self._replay: Callable[[], None] | None = None

    def __call__(self) -> torch.Tensor:
        """Do the step."""
        if self._replay is None and self._left:
            self._left -= 1
            return self._step()
        if self._replay is None and not self._is_captured():  # perhaps for lack of memory, which may pass
            self._wait = self._left = min(_MORE_AFTER_FAILURE * self._wait, _MOST_STEPS)
            return self._step()
        assert self._replay is not None and self._logits is not None
        self._replay()
        return self._logits

    def _is_captured(self) -> bool:
        """Capture the step; return whether it may be used. What the cache holds is unchanged."""
        before = self._lengths.clone()
        try:
            expected = self._step()
            self._lengths.copy_(before)
            replay = self._capture(self._run)
            self._lengths.copy_(before)
            replay()
            assert self._logits is not None
            tolerance = float(_TOLERANCE * expected.nan_to_num(0, 0, 0).abs().max())
            # a row whose logits are NaN has ended: it must not keep the others from the capture
            if not torch.allclose(self._logits, expected, rtol=0, atol=tolerance, equal_nan=True):
                return False
        except RuntimeError:  # an operation that can't be captured, or no memory left
            return False
        finally:
            self._lengths.copy_(before)
        self._replay = replay
        return True

    def _run(self) -> None:
        self._logits = self._step()  # where it is captured, each replay writes these logits again


def cuda_graphs(device: torch.device) -> Capture:
    """Return what captures a call as a CUDA graph on a device; it raises `RuntimeError` where that is not possible."""

    def capture(run: Callable[[], None]) -> Callable[[], None]:
        with torch.cuda.device(device):
            current, side = torch.cuda.current_stream(), torch.cuda.Stream()
            side.wait_stream(current)
            with torch.cuda.stream(side):  # first calls allocate memory and choose kernels, which must not be captured
                for _ in range(_WARM_UPS):
                    run()
            current.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            try:
                # Other threads may use the device meanwhile: that must not end the capture.
                with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                    run()
            finally:
                torch.cuda.set_stream(current)  # a capture that fails leaves its own stream in place
        replay: Callable[[], None] = graph.replay
        return replay

    return capture
