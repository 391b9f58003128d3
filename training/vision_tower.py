"""First stage of the training: vision tower and projector learn shape, colour and place from single frames.

A language model that starts with an untrained tower never learns shapes and directions. So linear heads are trained
first: on the mean token of the layer that `vision_feature_layer` selects, and on the projector's output after RMSNorm,
as the language model receives it. The heads are then discarded.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import LlavaNextVideoForConditionalGeneration

from llava_video_cli.demo.world import COLORS, SHAPES

from .architecture import IMAGE_SIZE
from .data import Clip, Still

BINS = 12  # for each axis of the place, 4 pixels wide
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)  # CLIP's, as in the processor
SPREAD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)


def pixels(images: NDArray[np.uint8] | Tensor) -> Tensor:
    """The processor's normalisation: uint8 (..., 3, 48, 48) to float32."""
    return (torch.as_tensor(images).float() / 255 - MEAN) / SPREAD


def tower_tokens(model: LlavaNextVideoForConditionalGeneration, images: Tensor) -> Tensor:
    """The selected layer's patch tokens, float32 (images, 36, width)."""
    states = model.model.vision_tower(images, output_hidden_states=True).hidden_states
    selected: Tensor = states[model.config.vision_feature_layer][:, 1:]
    return selected


def train_vision_tower(
    model: LlavaNextVideoForConditionalGeneration,
    clips: list[Clip],
    stills: list[Still],
    steps: int,
    seed: int,
    say: Callable[[str], None],
    batch: int = 96,
) -> None:
    """Train tower and projector in place on `steps` batches of single frames, then freeze them."""
    rng = np.random.default_rng(seed)
    config: Any = model.config
    heads = _Heads(config.vision_config.hidden_size, config.text_config.hidden_size)
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    weights = [*tower.parameters(), *projector.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.5e-3, total_steps=steps, pct_start=0.08)
    seen: list[list[float]] = []
    start = time.monotonic()
    for step in range(steps):
        images, facts = _batch(clips, stills, rng, batch)
        tokens = tower_tokens(model, pixels(images))
        views = (tokens, projector(model.model.vision_resampler(tokens)), projector(tokens))
        loss, right = heads(views, facts)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        seen.append(right)
        if (step + 1) % 100 == 0:
            shape, color, place = (100 * np.mean(column) for column in zip(*seen[-50:], strict=True))
            say(
                f"vision tower {step + 1}/{steps}: loss {loss.item():.3f}, shape {shape:.1f} %, colour {color:.1f} %, "
                f"place {place:.1f} %, {time.monotonic() - start:.0f} s"
            )
    _scale_projector(model, pixels(_batch(clips, stills, rng, 256)[0]))
    for weight in [*tower.parameters(), *projector.parameters()]:
        weight.requires_grad_(False)


class _Heads(nn.Module):
    """Linear heads for shape, colour and place, on the tower's mean token and on the projector's normalised tokens."""

    def __init__(self, tower_width: int, text_width: int) -> None:
        super().__init__()
        outputs = len(SHAPES) + len(COLORS) + 2 * BINS
        self.layers = nn.ModuleList(nn.Linear(width, outputs) for width in (tower_width, text_width, text_width))

    def forward(self, views: tuple[Tensor, ...], facts: dict[str, Tensor]) -> tuple[Tensor, list[float]]:
        loss: Any = 0.0
        right: list[float] = []
        for index, (layer, view) in enumerate(zip(self.layers, views, strict=True)):
            if index > 0:
                view = nn.functional.rms_norm(view, view.shape[-1:])
            logits = layer(view.mean(dim=1))
            shape, color, across, along = logits.split([len(SHAPES), len(COLORS), BINS, BINS], dim=-1)
            for guess, fact in ((shape, "shape"), (color, "color"), (across, "x"), (along, "y")):
                loss = loss + nn.functional.cross_entropy(guess, facts[fact])
            if index == 1:
                place = (across.argmax(-1) - facts["x"].argmax(-1)).abs() + (
                    along.argmax(-1) - facts["y"].argmax(-1)
                ).abs() <= 1
                right = [
                    (shape.argmax(-1) == facts["shape"]).float().mean().item(),
                    (color.argmax(-1) == facts["color"]).float().mean().item(),
                    place.float().mean().item(),
                ]
        return loss, right


def _batch(
    clips: list[Clip], stills: list[Still], rng: np.random.Generator, size: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """A batch of clips' frames and, for a quarter, of whole pictures resized to a square, with their facts."""
    images, shapes, colors, places = [], [], [], []
    for row in range(size):
        if row % 4 == 3:
            still = stills[rng.integers(len(stills))]
            scene, image = still.scene, still.images[0]
            side = min(scene.width, scene.height)
            x, y = scene.place(0.0)
            x = ((scene.width - side) / 2 + x * side) / scene.width
            y = ((scene.height - side) / 2 + y * side) / scene.height
            color = scene.color_start
        else:
            clip = clips[rng.integers(len(clips))]
            index = int(rng.integers(len(clip.images)))
            scene, image, fraction = clip.scene, clip.images[index], index / len(clip.images)
            x, y = scene.place(fraction)
            color = scene.color(fraction)
        images.append(image)
        shapes.append(SHAPES.index(scene.shape))
        colors.append(list(COLORS).index(color))
        places.append((x, y))
    across, along = torch.tensor(places, dtype=torch.float32).unbind(-1)
    facts = {"shape": torch.tensor(shapes), "color": torch.tensor(colors), "x": _bins(across), "y": _bins(along)}
    return torch.as_tensor(np.stack(images)), facts


def _bins(place: Tensor) -> Tensor:
    """A place in [0, 1) as weights of the two nearest bins: float32 (batch, BINS)."""
    near = (place[:, None] * BINS - 0.5 - torch.arange(BINS)).abs()
    shares = (1 - near).clamp(min=0) + 1e-9
    return shares / shares.sum(-1, keepdim=True)


@torch.no_grad()
def _scale_projector(model: LlavaNextVideoForConditionalGeneration, images: Tensor, wanted: float = 0.3) -> None:
    """Scale the projector's output to a root mean square near that of what the layers add to it."""
    projector: Any = model.model.multi_modal_projector
    current = projector(tower_tokens(model, images)).square().mean().sqrt().item()
    projector.linear_2.weight.mul_(wanted / current)
    projector.linear_2.bias.mul_(wanted / current)


assert IMAGE_SIZE % BINS == 0
