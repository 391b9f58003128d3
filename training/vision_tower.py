"""First stage of the training: vision tower and projector learn shape, colour and place from single frames.

A language model that starts with an untrained tower never learns shapes and directions. So linear heads are trained
first: on the mean token of the layer that `vision_feature_layer` selects, and on the projector's output after RMSNorm,
as the language model receives it. The heads are then discarded.
"""

from __future__ import annotations

import copy
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

ANCHOR = 3.0  # the weight of what is to stay
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
    *,
    rate: float = 1.5e-3,
    anchored: bool = False,
    batch: int = 96,
) -> None:
    """Train tower and projector in place on `steps` batches of single frames, then freeze them.

    With `anchored` they were trained before, and what they make of cropped frames and of pictures is to stay.
    """
    rng = np.random.default_rng(seed)
    config: Any = model.config
    heads = _Heads(config.vision_config.hidden_size, config.text_config.hidden_size)
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    weights = [*tower.parameters(), *projector.parameters(), *heads.parameters()]
    for weight in weights:
        weight.requires_grad_(True)
    before = copy.deepcopy(model) if anchored else None
    optimizer = torch.optim.AdamW(weights, lr=rate, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.08)
    seen: list[tuple[list[str], Tensor]] = []
    start = time.monotonic()
    for step in range(steps):
        images, facts, fits = _batch(clips, stills, rng, batch)
        inputs = pixels(images)
        tokens = tower_tokens(model, inputs)
        views = (tokens, projector(model.model.vision_resampler(tokens)), projector(tokens))
        loss, right = heads(views, facts)
        if before is not None:
            kept = [row for row, fit in enumerate(fits) if fit in ("crop", "picture")]
            with torch.no_grad():
                wanted = before.model.multi_modal_projector(tower_tokens(before, inputs[kept]))
            loss = loss + ANCHOR * nn.functional.mse_loss(views[2][kept], wanted) / wanted.square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        seen.append((fits, right))
        if (step + 1) % 100 == 0:
            names = np.concatenate([fits for fits, _ in seen[-50:]])
            hits = torch.cat([hits for _, hits in seen[-50:]], dim=1).numpy()
            shares = [f"{fit} {(100 * hits[:, names == fit].mean(axis=1)).round(1)}" for fit in dict.fromkeys(names)]
            say(
                f"vision tower {step + 1}/{steps}: loss {loss.item():.3f}, shape, colour, place right in "
                f"{', '.join(shares)} %, {time.monotonic() - start:.0f} s"
            )
    if not anchored:
        _scale_projector(model, pixels(_batch(clips, stills, rng, 256)[0]))
    for weight in [*tower.parameters(), *projector.parameters()]:
        weight.requires_grad_(False)


class _Heads(nn.Module):
    """Linear heads for shape, colour and place, on the tower's mean token and on the projector's normalised tokens."""

    def __init__(self, tower_width: int, text_width: int) -> None:
        super().__init__()
        outputs = len(SHAPES) + len(COLORS) + 2 * BINS
        self.layers = nn.ModuleList(nn.Linear(width, outputs) for width in (tower_width, text_width, text_width))

    def forward(self, views: tuple[Tensor, ...], facts: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The loss, and for each image whether shape, colour and place are right: bool (3, images)."""
        loss: Any = 0.0
        right = torch.empty(0)
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
                right = torch.stack([
                    shape.argmax(-1) == facts["shape"], color.argmax(-1) == facts["color"], place
                ])  # fmt: skip
        return loss, right


def _batch(
    clips: list[Clip], stills: list[Still], rng: np.random.Generator, size: int
) -> tuple[Tensor, dict[str, Tensor], list[str]]:
    """A batch of clips' frames and, for a quarter, of whole pictures resized to a square: their facts, their fits."""
    images, shapes, colors, places, fits = [], [], [], [], []
    for row in range(size):
        if row % 4 == 3:
            still = stills[rng.integers(len(stills))]
            image, fraction, fit = still.images[0], 0.0, "picture"
            shown = Clip(still.scene, still.images, "stretch")
        else:
            shown = clips[rng.integers(len(clips))]
            index = int(rng.integers(len(shown.images)))
            image, fraction, fit = shown.images[index], index / len(shown.images), shown.fit
        images.append(image)
        shapes.append(SHAPES.index(shown.scene.shape))
        colors.append(list(COLORS).index(shown.scene.color(fraction)))
        places.append(shown.place(fraction))
        fits.append(fit)
    across, along = torch.tensor(places, dtype=torch.float32).unbind(-1)
    facts = {"shape": torch.tensor(shapes), "color": torch.tensor(colors), "x": _bins(across), "y": _bins(along)}
    return torch.as_tensor(np.stack(images)), facts, fits


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
