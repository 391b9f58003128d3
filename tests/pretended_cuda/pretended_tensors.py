"""Tensors of a pretended device `cuda:N`, whose data lie on the CPU, and the rules that CUDA has for them.

Every operation on one of them comes to `execute`: it checks what CUDA would refuse, counts what would wait for the
device or copy between devices, and then computes on the CPU.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

if TYPE_CHECKING:
    from pretended_device import PretendedCuda

aten = torch.ops.aten
# Take tensors of several devices.
_COPIES = (aten._to_copy.default, aten.copy_.default)  # noqa: SLF001 - operators have such names
# Take indices that lie on the host, as a copy.
_INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default)
_PINNING = (aten.is_pinned.default, aten.pin_memory.default, aten._pin_memory.default)  # noqa: SLF001


class CudaTensor(torch.Tensor):
    """A tensor that says it lies on a CUDA device. `host` holds the data, `allocation` counts its memory."""

    host: torch.Tensor
    allocation: object
    cards: PretendedCuda

    @staticmethod
    def wrap(cuda: PretendedCuda, inner: torch.Tensor, device: torch.device) -> CudaTensor:
        with ordinary_tensors():
            tensor: CudaTensor = torch.Tensor._make_wrapper_subclass(  # noqa: SLF001 - there is no public name
                CudaTensor,
                inner.shape,
                strides=inner.stride(),
                storage_offset=inner.storage_offset(),
                dtype=inner.dtype,
                device=device,
            )
        tensor.host, tensor.cards = inner, cuda
        tensor.allocation = cuda.cards[device.index].allocated(inner.untyped_storage())
        return tensor

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.nn.functional.scaled_dot_product_attention:  # before torch takes it apart
            return attention(func, args, kwargs or {})
        if func is torch.Tensor.tolist:
            args[0].cards.note("sync", "tolist")
            return args[0].host.tolist()
        if func is torch.Tensor.numpy:
            raise TypeError(f"can't convert {args[0].device} device type tensor to numpy. Use Tensor.cpu() first")
        if func is torch.Tensor.data_ptr:
            return args[0].host.data_ptr()
        random = (kwargs or {}).get("generator")
        if random is not None and random.device.type != "cuda":
            raise RuntimeError("Expected a 'cuda' device type for generator but found 'cpu'")
        return super().__torch_function__(func, types, args, kwargs)

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        first = next(leaf for leaf in leaves(args, kwargs) if isinstance(leaf, CudaTensor))
        parts = decomposed(func, args, kwargs or {})
        return execute(first.cards, func, args, kwargs or {}) if parts is NotImplemented else parts

    def __deepcopy__(self, memo: Any) -> CudaTensor:
        del memo
        return CudaTensor.wrap(self.cards, self.host.clone(), self.device)

    def __repr__(self, **_: Any) -> str:
        return f"CudaTensor({self.host!r}, device={self.device})"


class Operations(TorchDispatchMode):
    """Gives a thread's operations to `execute` where they make tensors of the device, or pinned memory."""

    def __init__(self, cuda: PretendedCuda) -> None:
        super().__init__()
        self._cuda = cuda

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        is_ours = kwargs.get("pin_memory") or any(map(_is_of_a_card, leaves(args, kwargs)))
        if not is_ours and func not in _PINNING:
            return func(*args, **kwargs)
        with self:  # what an operation is made of comes here, too
            parts = decomposed(func, args, kwargs)
        return execute(self._cuda, func, args, kwargs) if parts is NotImplemented else parts


@contextmanager
def ordinary_tensors() -> Iterator[None]:
    """Make no inference tensors: a view that wraps one could not share the version of what it wraps."""
    with torch.inference_mode(False), torch.no_grad():
        yield


def attention(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Compute attention as one operation, and count the plan that cuDNN would build for its shapes."""
    tensors = [leaf for leaf in leaves(args, kwargs) if isinstance(leaf, torch.Tensor)]
    cuda = next(tensor.cards for tensor in tensors if isinstance(tensor, CudaTensor))
    if len({tensor.dtype for tensor in tensors if tensor.dtype != torch.bool}) > 1:
        raise RuntimeError(f"attention takes one data type, got {[tensor.dtype for tensor in tensors]}")
    if torch.backends.cuda.cudnn_sdp_enabled():
        shapes = tuple((tuple(tensor.shape), tensor.stride(), tensor.dtype) for tensor in tensors)
        plans = cuda.plans.setdefault(threading.current_thread(), set())
        plans.add((shapes, kwargs.get("is_causal", False)))

    def compute(*inner_args: Any, **inner_kwargs: Any) -> Any:
        return func(*inner_args, **inner_kwargs)

    with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001 - as torch's own subclasses do
        return execute(cuda, compute, args, kwargs)


def execute(cuda: PretendedCuda, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Do one operation as a device would, or raise what it would raise."""
    if func is aten.is_pinned.default:
        return cuda.is_pinned(args[0])
    tensors = [leaf for leaf in leaves(args, kwargs) if isinstance(leaf, torch.Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, CudaTensor)]
    hosts = [tensor for tensor in tensors if not isinstance(tensor, CudaTensor)]
    device = _device_of_result(cuda, func, ours, args, kwargs)
    _check_devices(func, ours, hosts)
    if kind := _wait_or_copy(cuda, func, args, device):
        cuda.note(kind, str(func))
    inner_args, inner_kwargs = mapped(_inner, args), mapped(_inner, kwargs)
    is_pinned = inner_kwargs.pop("pin_memory", False) or func is aten._pin_memory.default  # noqa: SLF001
    if "device" in inner_kwargs:
        inner_kwargs["device"] = torch.device("cpu") if device.type == "cuda" else device
    with ordinary_tensors():
        if func is aten._pin_memory.default:  # noqa: SLF001
            results = inner_args[0].clone()
        elif cuda.capture is not None and (ours or device.type == "cuda"):
            results = cuda.capture.record(func, inner_args, inner_kwargs)
        else:
            results = func(*inner_args, **inner_kwargs)
            if func is _COPIES[0] and device.type == "cuda" and not ours and results is inner_args[0]:
                results = results.clone()
    known = {id(tensor.host): tensor for tensor in ours} | {id(tensor): tensor for tensor in hosts}

    def wrapped(result: Any) -> Any:
        if not isinstance(result, torch.Tensor) or id(result) in known:
            return known.get(id(result), result)
        if is_pinned:
            cuda.pin(result)
        return CudaTensor.wrap(cuda, result, device) if device.type == "cuda" else result

    return mapped(wrapped, results)


def decomposed(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Do an operation that is made of others one by one; return NotImplemented for any other."""
    return func.decompose(*args, **kwargs) if _is_composite(func) else NotImplemented


@cache
def _is_composite(func: Any) -> bool:
    keys = torch._C.DispatchKey  # noqa: SLF001
    is_implicit: bool = func.has_kernel_for_dispatch_key(keys.CompositeImplicitAutograd)
    return is_implicit and not func.has_kernel_for_dispatch_key(keys.CompositeExplicitAutograd)


def _is_of_a_card(value: Any) -> bool:
    return isinstance(value, CudaTensor) or (isinstance(value, torch.device) and value.type == "cuda")


def _inner(value: Any) -> Any:
    return value.host if isinstance(value, CudaTensor) else value


def _device_of_result(
    cuda: PretendedCuda, func: Any, ours: list[CudaTensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> torch.device:
    if kwargs.get("device") is not None:
        return cuda.device(kwargs["device"])
    if func in _COPIES:
        device: torch.device = args[0].device
        return device
    return ours[0].device if ours else torch.device("cpu")


def _check_devices(func: Any, ours: list[CudaTensor], hosts: list[torch.Tensor]) -> None:
    """Raise where tensors of several devices meet; a single number of the host may come along."""
    if func in _COPIES:
        return
    devices = {str(tensor.device) for tensor in ours}
    if func not in _INDEXED:
        devices |= {str(tensor.device) for tensor in hosts if tensor.dim()} if ours else set()
    if len(devices) > 1:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, "
            f"{' and '.join(sorted(devices))}! (in {func})"
        )


def _wait_or_copy(cuda: PretendedCuda, func: Any, args: tuple[Any, ...], device: torch.device) -> str | None:
    """Return what an operation costs beside its work on the device: a wait, or a copy; None for neither."""
    if func in _COPIES:
        target, source = (device, args[0]) if func is _COPIES[0] else (args[0].device, args[1])
        if source.device == target or (source.device.type == "cpu" and source.dim() == 0 and func is _COPIES[1]):
            return None
        if source.device.type == target.type:
            return "peer copy"
        host = source if target.type == "cuda" else args[0]
        is_async = func is _COPIES[1] and cuda.is_pinned(host) and (len(args) > 2 and bool(args[2]))
        if target.type == "cuda":
            return "pinned copy" if is_async or cuda.is_pinned(host) else "pageable copy"
        return "pinned copy" if is_async else "sync"
    if not any(isinstance(leaf, CudaTensor) for leaf in leaves(args)):
        return None
    if func in _INDEXED:
        indices = [index for index in args[1] if index is not None]
        if any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            return "sync"
        return None if all(isinstance(index, CudaTensor) for index in indices) else "pageable copy"
    tags = getattr(func, "tags", ())
    waits = torch.Tag.dynamic_output_shape in tags or torch.Tag.data_dependent_output in tags
    return "sync" if waits else None


def leaves(*values: Any) -> list[Any]:
    """Return what an operation's arguments hold, out of lists, tuples and dictionaries."""
    found: list[Any] = []
    for value in values:
        if isinstance(value, (list, tuple, dict)):  # quicker than with a union
            found += leaves(*(value.values() if isinstance(value, dict) else value))
        else:
            found.append(value)
    return found


def mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """Return arguments or results with each of their leaves replaced."""
    if isinstance(value, dict):
        return {name: mapped(function, part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(mapped(function, part) for part in value)
    return function(value)


class PinnedMemory:
    """The blocks of host memory that were pinned, as long as they exist."""

    def __init__(self) -> None:
        self._blocks: dict[int, StorageWeakRef] = {}

    def add(self, tensor: torch.Tensor) -> None:
        """Count a tensor's memory as pinned."""
        self._blocks = {address: block for address, block in self._blocks.items() if not block.expired()}
        self._blocks[tensor.untyped_storage().data_ptr()] = StorageWeakRef(tensor.untyped_storage())

    def holds(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor lies in pinned memory."""
        block = self._blocks.get(tensor.untyped_storage().data_ptr())
        return block is not None and not block.expired()
