"""A LoRA adapter applied to a loaded model: merged into its weights, or kept beside quantized ones."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load_file

from ..checkpoint.adapter import WEIGHTS, Adapter
from ..errors import ModelError
from .placement import Placement

# Modules that only hold others: between versions of transformers they came, went and changed places, so that the same
# layer is `language_model.model.layers.0...` in one adapter and `model.language_model.layers.0...` in the next.
_CONTAINERS = ("model", "language_model", "vision_model")
_PREFIX = "base_model.model."  # of what peft wraps
_WRAPPERS = re.compile(r"\.(modules_to_save|original_module|base_layer)(\.default)?(?=\.)")
_LORA = re.compile(r"(?P<module>.+)\.(?P<part>lora_[A-Za-z_]+)(\.default)?(?P<rest>\.weight|\.bias)?")
_RANKED = ("lora_A", "lora_B", "lora_embedding_A", "lora_embedding_B")
_HINT = "an adapter fits the checkpoint that it was trained on, and copies of it"


def apply(model: Any, adapter: Adapter, placement: Placement) -> None:
    """Apply an adapter to a model's modules, in place. Quantized weights stay as they are, and it is kept beside them.

    What it trained as a whole (peft's `modules_to_save`, and biases) replaces the model's. Raises `ModelError` for an
    adapter of another model, or one with tensors that fit no layer: nothing of it is left out.
    """
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel
    from peft.utils.other import get_pattern_key

    modules = _Modules(model)
    values = dict(adapter.values)
    for pattern in ("rank_pattern", "alpha_pattern"):
        if pattern in values:  # of names that may be old
            values[pattern] = {modules.current(name): value for name, value in values[pattern].items()}
    ranks = values.get("rank_pattern", {})
    tensors: dict[str, dict[str, Any]] = defaultdict(dict)
    for key, tensor in load_file(adapter.folder / WEIGHTS).items():
        name = key.removeprefix(_PREFIX)
        if (lora := _LORA.fullmatch(name)) is None:
            _replace(modules, _WRAPPERS.sub("", name), tensor, adapter)
            continue
        module, part = modules.find(lora["module"].removesuffix(".base_layer"), adapter), lora["part"]
        rank = ranks.get(get_pattern_key(list(ranks), module), values.get("r", LoraConfig.r))
        if part in _RANKED and lora["rest"] != ".bias":
            _check_shape(adapter, name, tensor, rank, modules.named[module], is_second=part.endswith("B"))
        rest = ".weight" if part == "lora_magnitude_vector" else lora["rest"] or ""
        tensors[module][f"{module}.{part}.default{rest}"] = tensor
    if not tensors:
        return
    _untie(model, tensors)
    dtype = torch.float32 if placement.quantize == "none" else getattr(torch, placement.dtype)
    config = LoraConfig(target_modules=list(tensors), init_lora_weights=False, **values)
    tuner = LoraModel(model, config, "default")
    given = {name: tensor.to(dtype) for part in tensors.values() for name, tensor in part.items()}
    own = {name: value for name, value in model.named_parameters() if ".lora_" in name}
    for name, tensor in given.items():
        if name not in own:
            raise ModelError(f"the adapter in {adapter.folder} has {name}, which its config has no place for", _HINT)
        if own[name].shape != tensor.shape:
            _refuse(adapter, name, tensor.shape, own[name].shape)
        own[name].data = tensor.to(own[name].device)
    if lacking := sorted(set(own) - set(given)):
        raise ModelError(f"the adapter in {adapter.folder} is incomplete: it lacks {lacking[0]}", "save it again")
    if placement.quantize == "none":
        tuner.merge_and_unload(safe_merge=True)


class _Modules:
    """A model's modules, found by the names of today and by those of earlier versions."""

    def __init__(self, model: Any) -> None:
        self.named: Mapping[str, Any] = dict(model.named_modules())
        self._by_core: dict[str, list[str]] = defaultdict(list)
        for name in self.named:
            self._by_core[_core(name)].append(name)

    def current(self, name: str) -> str:
        """Return today's name of a module; of none, the name itself."""
        same = self._by_core.get(_core(name), [])
        return same[0] if name not in self.named and len(same) == 1 else name

    def find(self, name: str, adapter: Adapter) -> str:
        """Return today's name of a module. Raises `ModelError` if there is none."""
        if (current := self.current(name)) not in self.named:
            raise ModelError(f"the adapter in {adapter.folder} is for another model: this one has no {name}", _HINT)
        return current


def _core(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _CONTAINERS)


def _replace(modules: _Modules, name: str, tensor: torch.Tensor, adapter: Adapter) -> None:
    """Put a parameter that was trained as a whole in the place of the model's."""
    path, _, leaf = name.rpartition(".")
    module = modules.named[modules.find(path, adapter)]
    old = getattr(module, leaf, None)
    if not isinstance(old, torch.nn.Parameter) or not old.is_floating_point():
        raise ModelError(
            f"the adapter in {adapter.folder} replaces {name}, which can't be done here", "--quantize none"
        )
    if old.shape != tensor.shape:
        _refuse(adapter, name, tensor.shape, old.shape)
    # one that is shared stays elsewhere
    setattr(module, leaf, torch.nn.Parameter(tensor.to(old.device, old.dtype), requires_grad=False))


def _untie(model: Any, targets: Mapping[str, Any]) -> None:
    """Give the output layer weights of its own, if it shares those of the embeddings and one of the two is adapted."""
    inner, outer = model.get_input_embeddings(), model.get_output_embeddings()
    adapted = {id(module) for name, module in model.named_modules() if name in targets}
    if outer is not None and outer.weight is inner.weight and adapted & {id(inner), id(outer)}:
        outer.weight = torch.nn.Parameter(outer.weight.detach().clone(), requires_grad=False)


def _check_shape(adapter: Adapter, name: str, tensor: torch.Tensor, rank: int, layer: Any, *, is_second: bool) -> None:
    """Refuse a tensor of another rank than the config tells, before peft makes room for that rank."""
    wanted = [*tensor.shape[:2], 0, 0][:2] + list(tensor.shape[2:])  # the kernel of a convolution
    wanted[is_second] = rank
    wanted[not is_second] = getattr(layer, "out_features" if is_second else "in_features", wanted[not is_second])
    if list(tensor.shape) != wanted:
        _refuse(adapter, name, tensor.shape, wanted)


def _refuse(adapter: Adapter, name: str, got: Any, wanted: Any) -> None:
    sizes = " x ".join(map(str, got)) or "a single number", " x ".join(map(str, wanted))
    raise ModelError(f"the adapter in {adapter.folder} doesn't fit: {name} is {sizes[0]}, not {sizes[1]}", _HINT)
