"""Adapters of tiny checkpoints, made by peft with random weights, and the checkpoints that they are merged into."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

PROJECTIONS = r".*(q_proj|v_proj|down_proj)"


def own_model(folder: Path) -> Any:
    """The model of a checkpoint, as transformers loads it."""
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)


def make_adapter(base: Path, folder: Path, merged: Path | None = None, seed: int = 0, **fields: Any) -> Path:
    """Write an adapter whose every tensor is random, and the checkpoint that peft merges it into."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    fields = {"r": 4, "lora_alpha": 16, "target_modules": PROJECTIONS} | fields
    model = get_peft_model(own_model(base), LoraConfig(**fields))
    model.peft_config["default"].base_model_name_or_path = f"somebody/{base.name}"
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.requires_grad:
                value.normal_(0, 1 / max(value.shape) ** 0.5) if "magnitude" not in name else value.mul_(1.2)
    model.save_pretrained(folder, save_embedding_layers=False)  # else it would look for the base on the hub
    if merged is not None:
        model.merge_and_unload().save_pretrained(merged)
        for path in base.iterdir():
            if not (merged / path.name).exists() and path.suffix != ".safetensors":
                shutil.copy(path, merged)
    return folder
