"""A decode step captured once and replayed: without Python, and without a launch from the host for each kernel.

The step is written for that: every shape is fixed, what changes lies in tensors that stay in place, and nothing is read
back by the host. Where a capture fails, or its replay gives other logits than the step itself, it is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

if TYPE_CHECKING:
    from .decode_step import LayerStep

# Turns a call that fills the tensors it closes over into a faster one that does the same.
Capture: TypeAlias = Callable[[Callable[[], None]], Callable[[], None]]

_WARM_UPS = 2
# How far a replay's logits may lie from the step's own, as a part of the largest: other kernels may be chosen.
_TOLERANCE = 0.02


class CapturedStep:
    """A decode step on the tensors of one cache's layers.

    Its inputs are its own tensors, filled by `begin`; each call appends one token to every row and returns the logits,
    (rows, vocabulary), in a tensor that the next call overwrites.
    """

    def __init__(self, step: LayerStep, layers: Sequence[Any]) -> None:
        self._step, self._layers = step, layers
        keys = layers[0].buffers[0]
        rows, device = len(keys), keys.device
        self._ids = torch.zeros((rows, 1), dtype=torch.int64, device=device)
        self._positions = torch.zeros((rows, 1), dtype=torch.int64, device=device)
        self._slot = torch.zeros(1, dtype=torch.int64, device=device)
        self._slots = torch.arange(keys.shape[-2], device=device)
        self._prompt_mask = torch.zeros((rows, 1, 1, keys.shape[-2]), dtype=keys.dtype, device=device)
        self._hidden = torch.full((), float("-inf"), dtype=keys.dtype, device=device)
        self._logits: torch.Tensor | None = None
        self._replay: Callable[[], None] | None = None

    def begin(self, positions: torch.Tensor, slot: int, attention_mask: torch.Tensor | None) -> None:
        """Set where the next token goes: positions int64 (rows, 1), `slot` the number of tokens in the cache.

        `attention_mask` is what `LayerStep.attention_mask` returns, as wide as the cache's buffers.
        """
        self._positions.copy_(positions)
        self._slot.fill_(slot)
        if attention_mask is None:
            self._prompt_mask.zero_()
        else:
            self._prompt_mask.copy_(attention_mask)

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:
        """Append a token, int64 (rows, 1), to each row."""
        self._ids.copy_(ids)
        assert self._replay is not None and self._logits is not None
        self._replay()
        return self._logits

    def capture(self, capture: Capture, ids: torch.Tensor) -> bool:
        """Capture the step, once begun; return whether it may be used. The cache's content is unchanged.

        The capture writes to a few slots behind the content, so there must be room for some tokens.
        """
        for buffer in (buffer for layer in self._layers for buffer in layer.buffers):
            # fresh memory may hold a NaN, which a mask does not hide
            buffer.masked_fill_((self._slots >= self._slot)[:, None], 0)
        self._ids.copy_(ids)
        positions, slot = self._positions.clone(), self._slot.clone()

        def rewind() -> None:
            self._positions.copy_(positions)
            self._slot.copy_(slot)

        try:
            self._run()
            assert self._logits is not None
            expected = self._logits.clone()
            rewind()
            replay = capture(self._run)
            rewind()
            replay()
            rewind()
            tolerance = float(_TOLERANCE * expected.nan_to_num(0, 0, 0).abs().max())
            # a row whose logits are NaN has ended: it must not keep the others from the capture
            if not torch.allclose(self._logits, expected, rtol=0, atol=tolerance, equal_nan=True):
                return False
        except RuntimeError:  # an operation that can't be captured, or no memory left
            return False
        self._replay = replay
        return True

    def _run(self) -> None:
        attention_mask = torch.where(self._slots <= self._slot, self._prompt_mask, self._hidden)
        logits = self._step.run(self._ids, self._positions, attention_mask, self._layers, self._slot)
        if self._logits is None:
            self._logits = torch.empty_like(logits)
        self._logits.copy_(logits)
        self._positions.add_(1)
        self._slot.add_(1)


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
