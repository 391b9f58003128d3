"""A decode step captured once and replayed: without Python, and without a kernel's launch between two kernels.

The step is written for that: every shape is fixed, what changes lies in tensors that stay in place, nothing goes to the
host. Where a capture fails, or its replay gives other logits than the step itself, there is none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch

from .decode_step import LayerStep

# Makes the same call, much faster, of one that fills the tensors it closes over.
Capture: TypeAlias = Callable[[Callable[[], None]], Callable[[], None]]

_WARM_UPS = 2
# How far a replay's logits may lie from the step's own, as a part of the largest: kernels may be chosen anew.
_TOLERANCE = 0.02


class Captured:
    """A decode step on the tensors of one cache's layers.

    Its inputs are its own tensors, filled by `begin`; each call appends one token to every row and returns the logits,
    (rows, vocabulary), in a tensor that the next call fills again.
    """

    def __init__(self, step: LayerStep, layers: Sequence[Any]) -> None:
        self._step, self._layers = step, layers
        keys = layers[0].room[0]
        rows, device = len(keys), keys.device
        self._ids = torch.zeros((rows, 1), dtype=torch.int64, device=device)
        self._positions = torch.zeros((rows, 1), dtype=torch.int64, device=device)
        self._slot = torch.zeros(1, dtype=torch.int64, device=device)
        self._places = torch.arange(keys.shape[-2], device=device)
        self._prompt = torch.zeros((rows, 1, 1, keys.shape[-2]), dtype=keys.dtype, device=device)
        self._hidden = torch.full((), float("-inf"), dtype=keys.dtype, device=device)
        self._logits: torch.Tensor | None = None
        self._replay: Callable[[], None] | None = None

    def begin(self, positions: torch.Tensor, slot: int, visible: torch.Tensor | None) -> None:
        """Go on from here: positions int64 (rows, 1), `slot` the number of tokens that the cache holds.

        `visible` is what `LayerStep.visible` made of the mask, as long as the cache has room.
        """
        self._positions.copy_(positions)
        self._slot.fill_(slot)
        if visible is None:
            self._prompt.zero_()
        else:
            self._prompt.copy_(visible)

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """Append a token, int64 (rows, 1), to each row."""
        self._ids.copy_(ids)
        assert self._replay is not None and self._logits is not None
        self._replay()
        return self._logits

    def capture(self, capture: Capture, ids: torch.Tensor) -> bool:
        """Capture the step, once begun; tell whether it may be used. What the cache holds is left as it was.

        On the way a few places behind it are written to, so there must be room for some tokens.
        """
        for buffer in (buffer for layer in self._layers for buffer in layer.room):
            # what is masked counts nothing, unless it is a NaN by chance
            buffer.masked_fill_((self._places >= self._slot)[:, None], 0)
        self._ids.copy_(ids)
        positions, slot = self._positions.clone(), self._slot.clone()

        def rewind() -> None:
            self._positions.copy_(positions)
            self._slot.copy_(slot)

        try:
            self._do()
            assert self._logits is not None
            wanted = self._logits.clone()
            rewind()
            replay = capture(self._do)
            rewind()
            replay()
            rewind()
            got = self._logits
            near = (got - wanted).abs().max() <= _TOLERANCE * wanted.abs().max()
            if not bool(near):  # not so either where one is a NaN
                return False
        except RuntimeError:  # what can't be captured, and memory that ran out
            return False
        self._replay = replay
        return True

    def _do(self) -> None:
        visible = torch.where(self._places <= self._slot, self._prompt, self._hidden)
        logits = self._step.run(self._ids, self._positions, visible, self._layers, self._slot)
        if self._logits is None:
            self._logits = torch.empty_like(logits)
        self._logits.copy_(logits)
        self._positions.add_(1)
        self._slot.add_(1)


def cuda_graphs(device: torch.device) -> Capture:
    """Return what captures a call as a CUDA graph on a device; it raises `RuntimeError` where that can't be done."""

    def capture(do: Callable[[], None]) -> Callable[[], None]:
        with torch.cuda.device(device):
            current, side = torch.cuda.current_stream(), torch.cuda.Stream()
            side.wait_stream(current)
            with torch.cuda.stream(side):  # what libraries allocate and choose on their first calls is not captured
                for _ in range(_WARM_UPS):
                    do()
            current.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            try:
                # Other threads may use the device meanwhile: that must not end the capture.
                with torch.cuda.graph(graph, stream=side, capture_error_mode="thread_local"):
                    do()
            finally:
                torch.cuda.set_stream(current)  # a capture that fails leaves its own stream in place
        replay: Callable[[], None] = graph.replay
        return replay

    return capture
