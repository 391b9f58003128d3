"""Pretended CUDA cards: what code does on them is done on the CPU, by the rules of CUDA, and counted.

`pretend(cards)` puts them behind `torch.cuda`, for this process, until the block ends. Not pretended: kernels of
bitsandbytes and flash-attn, the allocator's holes, speed.
"""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from weakref import WeakValueDictionary

import pytest
import torch
from pretended_graph import Capturing, Event, Graph, Stream
from pretended_tensors import Operations, PinnedMemory

# What a capture refuses: these wait for the device, or for the host's memory.
_ILLEGAL_IN_CAPTURE = ("sync", "event wait", "pageable copy")
OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 23.69 GiB"
ARCHITECTURES = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120"]


@dataclass
class Card:
    """A card, and how it may be broken.

    `used_elsewhere` bytes are taken by other programs. Beyond `most_bytes` an allocation raises `out_of_memory`, though
    more may be said to be free. A card with a `broken` error raises it as soon as a context is made on it.
    `highest_bytes` is the peak that no reset forgets.
    """

    total_bytes: int = 24 * 10**9
    capability: tuple[int, int] = (9, 0)
    used_elsewhere: int = 0
    most_bytes: float = float("inf")
    out_of_memory: Callable[[], BaseException] = lambda: torch.OutOfMemoryError(OUT_OF_MEMORY)
    broken: Callable[[], BaseException] | None = None
    allocated_bytes: int = 0
    peak_bytes: int = 0
    highest_bytes: int = 0
    failures: int = 0
    has_context: bool = False
    _allocations: WeakValueDictionary[int, Allocation] = field(default_factory=WeakValueDictionary, repr=False)

    def use(self) -> None:
        """Make a context, as the first call that needs one does."""
        if self.broken is not None:
            raise self.broken()
        self.has_context = True

    def allocated(self, storage: torch.UntypedStorage) -> Allocation:
        """Return what stands for a tensor's memory: the same for all its views; it is free when that is gone."""
        self.use()
        allocation = self._allocations.get(storage.data_ptr())
        if allocation is None:
            if self.allocated_bytes + storage.nbytes() > self.most_bytes:
                self.failures += 1
                raise self.out_of_memory()
            allocation = self._allocations[storage.data_ptr()] = Allocation(self, storage.nbytes())
        return allocation


class Allocation:
    """Memory of a card, for as long as it exists."""

    def __init__(self, card: Card, size: int) -> None:
        self._card, self._size = card, size
        card.allocated_bytes += size
        card.peak_bytes = max(card.peak_bytes, card.allocated_bytes)
        card.highest_bytes = max(card.highest_bytes, card.allocated_bytes)

    def __del__(self) -> None:
        self._card.allocated_bytes -= self._size


class PretendedCuda:
    """The cards, and what was counted: `counts` by kind, `plans` by thread, captures and their replays.

    `notes` holds each counted wait and copy with the place in the package that caused it. So many of the next captures
    fail for lack of memory: `captures_to_fail`.
    """

    def __init__(self, cards: list[Card]) -> None:
        self.cards = cards
        self.notes: list[tuple[str, str]] = []
        self.plans: dict[threading.Thread, set[Any]] = {}
        self.captures = self.replays = self.captures_to_fail = 0
        self.capturing: Capturing | None = None
        self._pinned, self._local = PinnedMemory(), threading.local()
        self.pin, self.is_pinned = self._pinned.add, self._pinned.holds

    @property
    def counts(self) -> Counter[str]:
        """How many waits and copies of each kind there were."""
        return Counter(kind for kind, _ in self.notes)

    @property
    def planned(self) -> int:
        """How many plans cuDNN would have built: one for each shape of attention in each thread."""
        return sum(map(len, self.plans.values()))

    @property
    def capture(self) -> Graph | None:
        """The graph that this thread captures."""
        capturing = self.capturing
        return capturing.graph if capturing is not None and capturing.thread == threading.get_ident() else None

    def note(self, kind: str, what: str) -> None:
        """Count something that waits or copies; raise where a capture refuses it."""
        capturing = self.capturing
        if capturing is not None and kind in _ILLEGAL_IN_CAPTURE and (capturing.is_global or self.capture):
            raise torch.AcceleratorError(f"CUDA error: operation not permitted when stream is capturing ({what})")
        self.notes.append((kind, f"{_place()} {what}"))

    def device(self, device: Any = None) -> torch.device:
        """Return a device with its number; the current one for None."""
        if device is None or isinstance(device, int):
            return torch.device("cuda", self.current_device() if device is None else device)
        device = torch.device(device)
        return self.device() if device.type == "cuda" and device.index is None else device

    def card(self, device: Any = None) -> Card:
        """Return the card of a device."""
        return self.cards[self.device(device).index]

    def current_device(self) -> int:
        return getattr(self._local, "device", 0)

    def set_device(self, device: Any) -> None:
        self._local.device = self.device(device).index

    @contextmanager
    def on(self, device: Any) -> Iterator[None]:
        before = self.current_device()
        self.set_device(device)
        try:
            yield
        finally:
            self.set_device(before)

    def current_stream(self, device: Any = None) -> Stream:
        del device
        if not hasattr(self._local, "stream"):
            self._local.stream = Stream()
        stream: Stream = self._local.stream
        return stream

    def set_stream(self, stream: Stream) -> None:
        self._local.stream = stream

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before = self.current_stream()
        self.set_stream(stream)
        try:
            yield
        finally:
            self.set_stream(before)

    def mem_get_info(self, device: Any = None) -> tuple[int, int]:
        card = self.card(device)
        card.use()
        return max(0, card.total_bytes - card.used_elsewhere - card.allocated_bytes), card.total_bytes

    def reset_peak(self, device: Any = None) -> None:
        card = self.card(device)
        card.peak_bytes = card.allocated_bytes

    def properties(self, device: Any = None) -> SimpleNamespace:
        card, number = self.card(device), self.device(device).index
        major, minor = card.capability
        return SimpleNamespace(
            name="Pretended", total_memory=card.total_bytes, major=major, minor=minor, multi_processor_count=132,
            uuid=f"{number:08d}-0000-0000-0000-000000000000", gcnArchName="",
        )  # fmt: skip

    def functions(self) -> dict[str, Any]:
        """What stands in for the names of `torch.cuda`."""

        def peak(device: Any = None) -> int:
            return self.card(device).peak_bytes

        def held(device: Any = None) -> int:
            return self.card(device).allocated_bytes

        return {
            "init": lambda: None, "_lazy_init": lambda: None, "is_available": lambda: bool(self.cards),
            "is_initialized": lambda: True, "device_count": lambda: len(self.cards),
            "get_arch_list": lambda: ARCHITECTURES, "get_device_name": lambda *_: "Pretended",
            "get_device_capability": lambda device=None: self.card(device).capability,
            "get_device_properties": self.properties, "device": self.on, "current_device": self.current_device,
            "set_device": self.set_device, "is_bf16_supported": lambda *_, **__: True,
            "memory_allocated": held, "memory_reserved": held, "max_memory_allocated": peak,
            "max_memory_reserved": peak, "reset_peak_memory_stats": self.reset_peak, "empty_cache": lambda: None,
            "mem_get_info": self.mem_get_info, "synchronize": lambda *_: self.note("sync", "the device"),
            "Stream": Stream, "Event": Event, "CUDAGraph": Graph, "graph": Capturing, "stream": self.stream,
            "current_stream": self.current_stream, "default_stream": self.current_stream,
            "set_stream": self.set_stream, "graph_pool_handle": lambda: (0, 1),
            "is_current_stream_capturing": lambda: self.capture is not None,
        }  # fmt: skip


class Generator(torch.Generator):
    """A source of random numbers that says it lies on a device; its numbers are the CPU's."""

    def __new__(cls, device: Any = "cpu") -> Any:
        make: Any = super().__new__
        made = make(cls, "cpu")
        made.pretended = torch.device(device)
        return made

    def __init__(self, device: Any = "cpu") -> None: ...

    @property
    def device(self) -> Any:
        """The device that it was made for."""
        return vars(self)["pretended"]


@contextmanager
def pretend(*cards: Card) -> Iterator[PretendedCuda]:
    """Put cards behind `torch.cuda` for the length of a block, in this thread and in those that begin meanwhile."""
    from transformers.utils import is_torch_cuda_available

    cuda = PretendedCuda(list(cards))
    run = threading.Thread.run

    def run_with_cards(thread: threading.Thread) -> None:
        with _operations(cuda):
            run(thread)

    with pytest.MonkeyPatch.context() as patched:
        for part in (Graph, Capturing, Stream, Event):
            patched.setattr(part, "cuda", cuda, raising=False)
        for name, function in cuda.functions().items():
            patched.setattr(torch.cuda, name, function)
        patched.setattr(torch.Tensor, "record_stream", lambda *_: None)  # all is done at once
        patched.setattr(torch, "Generator", Generator)
        patched.setattr(threading.Thread, "run", run_with_cards)
        torch._C._ensureCUDADeviceGuardSet()  # noqa: SLF001 - as torch's own fake tensors do
        is_torch_cuda_available.cache_clear()
        with_cudnn = torch.backends.cuda.cudnn_sdp_enabled()
        with _operations(cuda):
            yield cuda
        torch.backends.cuda.enable_cudnn_sdp(with_cudnn)
    is_torch_cuda_available.cache_clear()


@contextmanager
def _operations(cuda: PretendedCuda) -> Iterator[None]:
    """Let a thread use the cards."""
    torch._C._set_only_lift_cpu_tensors(True)  # noqa: SLF001 - numbers become a tensor on the host, then a copy
    try:
        with Operations(cuda):
            yield
    finally:
        torch._C._set_only_lift_cpu_tensors(False)  # noqa: SLF001


def _place() -> str:
    """Return the line of the package that is being run."""
    frame = sys._getframe(1)  # noqa: SLF001 - quicker by far than a stack of lines
    while frame is not None:
        if "llava_video_cli" in frame.f_code.co_filename:
            return f"{frame.f_code.co_filename.rpartition('llava_video_cli/')[2]}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return "elsewhere"
