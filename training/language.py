"""Second stage of the training: the language model learns to answer from the features of the frozen vision part."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import LlavaNextVideoForConditionalGeneration, PreTrainedTokenizerFast

from llava_video_cli.demo.world import Scene

from .conversations import (
    CLAIM_SHARES,
    SHARES,
    Batch,
    Dialogue,
    claim_dialogues,
    dialogue,
    join_dialogues,
    pair_dialogues,
    picture_dialogues,
    prompt_prefix,
    video_dialogues,
)
from .data import Clip, Still
from .vision_tower import pixels, tower_tokens

FRAME_COUNTS = {4: 0.31, 8: 0.24, 16: 0.22, 3: 0.02, 5: 0.04, 6: 0.04, 10: 0.04, 12: 0.04, 20: 0.02, 24: 0.03, 32: 0.03}
CLAIMS_EACH = 20  # about a video, in training
OTHER_SHARES = {"pad": 7 / 12, "stretch": 5 / 12}  # of the videos whose frames are not cropped
NF4 = torch.tensor(
    (
        *(-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0),
        *(0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0),
    )
)  # the sixteen values of 4-bit NormalFloat, https://arxiv.org/abs/2305.14314, appendix E
NF4_EDGES = (NF4[1:] + NF4[:-1]) / 2
NF4_BLOCK = 64


@dataclass(frozen=True)
class SceneFeatures:
    """A scene's features for the language model, float16: a clip (frames, 9, width) or a picture (tokens, width)."""

    scene: Scene
    features: Tensor
    fit: str = "crop"


@torch.no_grad()
def clip_features(model: LlavaNextVideoForConditionalGeneration, clips: list[Clip]) -> list[SceneFeatures]:
    """Return the output of the tower, the pooling and the projector for every frame."""
    features = []
    for clip in clips:
        tokens = model.model.vision_resampler(tower_tokens(model, pixels(clip.images)))
        features.append(SceneFeatures(clip.scene, model.model.multi_modal_projector(tokens).half(), clip.fit))
    return features


@torch.no_grad()
def still_features(model: LlavaNextVideoForConditionalGeneration, stills: list[Still]) -> list[SceneFeatures]:
    """Return the output of the tower and the projector for every picture's tiles, packed as the model does."""
    features = []
    for still in stills:
        size = torch.tensor([[still.height, still.width]])
        packed = model.model.get_image_features(pixels(still.images)[None], size, return_dict=True).pooler_output
        features.append(SceneFeatures(still.scene, packed[0].half()))
    return features


class BatchSampler:
    """Draws batches of questions about scenes."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerFast, videos: list[SceneFeatures], pictures: list[SceneFeatures]
    ) -> None:
        self.tokenizer, self.pictures = tokenizer, pictures
        self.crop = 0.4
        self.videos = {fit: [item for item in videos if item.fit == fit] for fit in ("crop", *OTHER_SHARES)}
        self.fits = [fit for fit, mine in self.videos.items() if mine]
        self.by_appearance: dict[tuple[str, str], list[SceneFeatures]] = defaultdict(list)
        for item in pictures:
            self.by_appearance[item.scene.shape, item.scene.color_start].append(item)

    def video(
        self, rng: np.random.Generator, size: int, count: int, shares: dict[str, float], frames: int
    ) -> tuple[Batch, list[Tensor]]:
        """`size` videos with `count` dialogues each; each kind of question has its share."""
        chosen = [self._video(rng, frames) for _ in range(size)]
        prefixes = [prompt_prefix(self.tokenizer, ["video"], [frames * 9], rng) for _ in chosen]
        dialogues = [video_dialogues(self.tokenizer, item.scene, rng, count, frames, shares) for item in chosen]
        return self._join(prefixes, dialogues), [item.features for item in chosen]

    def claims(
        self, rng: np.random.Generator, size: int, count: int, frames: int, cuts: float
    ) -> tuple[Batch, list[Tensor]]:
        """`size` videos with `count` claims each: whole clips, parts of them, and, in the share `cuts`, two scenes.

        Nothing is claimed about motion where the part of a clip is too short to show it.
        """
        prefixes, dialogues, features = [], [], []
        for _ in range(size):
            items, counts = [self._video(rng, 0)], [frames]
            if frames > 1 and rng.random() < cuts:
                items.append(self._video(rng, 0, items[0].fit))
                first = int(rng.integers(1, frames))
                counts = [first, frames - first]
            parts = [_part(rng, item, count) for item, count in zip(items, counts, strict=True)]
            scenes = [item.scene for item, _ in parts]
            without = () if all(shows_motion for _, shows_motion in parts) else ("motion", "moves")
            prefixes.append(prompt_prefix(self.tokenizer, ["video"], [frames * 9], rng))
            dialogues.append(claim_dialogues(self.tokenizer, scenes, rng, count, without))
            features += [item.features for item, _ in parts]
        return self._join(prefixes, dialogues), features

    def picture(self, rng: np.random.Generator, size: int, count: int) -> tuple[Batch, list[Tensor]]:
        """`size` pictures with `count` dialogues each."""
        chosen = [self.pictures[rng.integers(len(self.pictures))] for _ in range(size)]
        prefixes = [prompt_prefix(self.tokenizer, ["image"], [len(item.features)], rng) for item in chosen]
        dialogues = [picture_dialogues(self.tokenizer, item.scene, rng, count) for item in chosen]
        return self._join(prefixes, dialogues), [item.features for item in chosen]

    def pair(self, rng: np.random.Generator, size: int, count: int, frames: int) -> tuple[Batch, list[Tensor]]:
        """`size` pairs of a picture and a video, in either order; half share the shape, half the colour."""
        prefixes, dialogues, features = [], [], []
        for _ in range(size):
            video = self._video(rng, frames)
            picture = self._partner(rng, video.scene)
            media, both = ["image", "video"], [picture.features, video.features]
            if rng.random() < 0.5:
                media, both = media[::-1], both[::-1]
            prefixes.append(prompt_prefix(self.tokenizer, media, [len(one.flatten(0, -2)) for one in both], rng))
            dialogues.append(pair_dialogues(self.tokenizer, video.scene, picture.scene, rng, count))
            features += both
        return self._join(prefixes, dialogues), features

    def test_batch(self, rng: np.random.Generator, size: int, frames: int, fit: str) -> tuple[Batch, list[Tensor]]:
        """Each kind of question once, and each kind of claim thrice, about each of the first `size` videos."""
        chosen = [_sampled(item, frames) for item in self.videos[fit][:size]]
        prefixes = [prompt_prefix(self.tokenizer, ["video"], [frames * 9], rng) for _ in chosen]
        kinds = [*SHARES, *list(CLAIM_SHARES) * 3]
        dialogues = [
            [dialogue(self.tokenizer, [kind], rng, item.scene, lowercase=0) for kind in kinds] for item in chosen
        ]
        return self._join(prefixes, dialogues), [item.features for item in chosen]

    def _join(self, prefixes: list[list[int]], dialogues: list[list[Dialogue]]) -> Batch:
        return join_dialogues(prefixes, dialogues, self.tokenizer.pad_token_id)

    def _video(self, rng: np.random.Generator, frames: int, fit: str = "") -> SceneFeatures:
        """A video with so many of its frames (0: all), made square as `fit` says (by default any)."""
        if not fit:
            shares = np.array(
                [OTHER_SHARES[one] * (1 - self.crop) if one in OTHER_SHARES else self.crop for one in self.fits]
            )
            fit = str(rng.choice(self.fits, p=shares / shares.sum()))
        while True:
            item = self.videos[fit][rng.integers(len(self.videos[fit]))]
            if len(item.features) >= min(frames, 20):
                return _sampled(item, frames) if frames else item

    def _partner(self, rng: np.random.Generator, scene: Scene) -> SceneFeatures:
        same_shape, same_color = rng.random(2) < 0.5
        candidates = [
            candidate
            for candidate in self.by_appearance
            if (candidate[0] == scene.shape) == same_shape and (candidate[1] == scene.color_start) == same_color
        ]
        group = self.by_appearance[candidates[rng.integers(len(candidates))]]
        return group[rng.integers(len(group))]


@dataclass(frozen=True)
class Phase:
    """A part of the training: its steps, its highest learning rate, and the shares of the questions about videos.

    After the share `rounded_from` of the steps, the share `rounded` of the steps uses weights that are rounded to nf4.
    One step in `picture_every` has a batch about pictures, each other step a batch that compares pictures with videos.
    The share `few` of the batches has four frames of each video, besides those that `FRAME_COUNTS` gives. Each step
    has a batch of `claims` videos with claims about them; the share `cuts` of these videos shows two scenes. `videos`
    is the number of the other videos in a step, and only one step in `media_every` has pictures or comparisons. Of the
    videos, the share `crop` has cropped frames where there are others too.
    """

    steps: int
    rate: float
    shares: dict[str, float]
    rounded_from: float
    rounded: float
    picture_every: int
    few: float = 0.0
    claims: int = 0
    cuts: float = 0.0
    videos: int = 16
    media_every: int = 1
    crop: float = 0.4


# Comparisons, and stories in four frames with a change of colour, are learned last and need the most steps.
_STORIES = SHARES | {"describe": 0.2, "happens": 0.1}
PHASES = (
    Phase(1100, 2e-3, SHARES, rounded_from=0.45, rounded=0.7, picture_every=3),
    Phase(300, 1.5e-3, SHARES, rounded_from=0.0, rounded=0.5, picture_every=5),
    Phase(400, 1e-3, _STORIES, rounded_from=0.0, rounded=0.5, picture_every=5),
    Phase(400, 8e-4, _STORIES | {"color_end": 0.2}, rounded_from=0.0, rounded=0.5, picture_every=4, few=0.35),
)
# Then padded and stretched frames, and claims.
_ALL = _STORIES | CLAIM_SHARES
MORE_PHASES = (
    Phase(
        500, 1.2e-3, _ALL, rounded_from=0.6, rounded=0.5,
        picture_every=8, few=0.2, claims=16, cuts=0.1, videos=8, media_every=2,
    ),
    Phase(
        400, 8e-4, _ALL, rounded_from=0.0, rounded=0.5,
        picture_every=8, few=0.2, claims=16, cuts=0.15, videos=8, media_every=2,
    ),
    # Claims are still learned here: each of their words has to be compared with what is seen.
    Phase(
        1400, 1.2e-3, _ALL, rounded_from=0.4, rounded=0.5,
        picture_every=8, few=0.25, claims=16, cuts=0.15, videos=8, media_every=2,
    ),
    # Directions in padded and stretched frames, where a motion is shorter, and comparisons need more steps than claims.
    Phase(
        600, 8e-4, _ALL | {"direction": 0.35}, rounded_from=0.3, rounded=0.5,
        picture_every=8, few=0.25, claims=8, cuts=0.15, videos=20, crop=0.2,
    ),
)  # fmt: skip


def train_language_model(
    model: LlavaNextVideoForConditionalGeneration,
    sampler: BatchSampler,
    held_out: BatchSampler,
    phase: Phase,
    seed: int,
    say: Callable[[str], None],
    state: Path | None = None,
) -> None:
    """Train the language model in place; a killed run goes on from the file `state`."""
    rng = np.random.default_rng(seed)
    steps, rate, sampler.crop = phase.steps, phase.rate, phase.crop
    # A head that is trained with the model and then discarded: whether the words of a claim are true. A small model
    # that only learns from Yes and No needs far more steps until it compares what is claimed with what it sees.
    judge = nn.Linear(model.config.text_config.hidden_size, 2)
    weights = [*model.model.language_model.parameters(), *model.lm_head.parameters(), *judge.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=rate, betas=(0.9, 0.98), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.05)
    parts = {"model": model, "judge": judge, "optimizer": optimizer, "schedule": schedule}
    first = _load(state, parts, rng)
    start = time.monotonic()
    losses: dict[str, list[float]] = defaultdict(list)
    for step in range(first, steps):
        kinds = ["video"]
        if step % phase.media_every == 0:
            kinds.append("picture" if step % phase.picture_every == 0 else "pair")
        if phase.claims:
            kinds.append("claims")
        optimizer.zero_grad()
        with _rounded(model) if step > phase.rounded_from * steps and rng.random() < phase.rounded else nullcontext():
            for kind in kinds:
                batch, features = {
                    "video": lambda: sampler.video(rng, phase.videos, 6, phase.shares, _frame_count(rng, phase.few)),
                    "picture": lambda: sampler.picture(rng, 8, 4),
                    "pair": lambda: sampler.pair(rng, 12, 3, _frame_count(rng, phase.few)),
                    "claims": lambda: sampler.claims(
                        rng, phase.claims, CLAIMS_EACH, _claim_frames(rng, phase.few), phase.cuts
                    ),
                }[kind]()
                logits, targets, _, middle = _logits(model, batch, features)
                loss: Any = nn.functional.cross_entropy(logits, targets)
                losses[kind].append(loss.item())
                if kind == "claims":
                    known = batch.facts != -100
                    judged = judge(nn.functional.rms_norm(middle[known], middle.shape[-1:]))
                    words = nn.functional.cross_entropy(judged, batch.facts[known])
                    losses["words"].append(words.item())
                    loss = 2 * loss + words
                loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 50 == 0:
            recent = ", ".join(f"{kind} {np.mean(values[-30:]):.3f}" for kind, values in losses.items())
            say(f"language model {step + 1}/{steps}: loss {recent}, {time.monotonic() - start:.0f} s")
            _save(state, parts, rng, step + 1)
        if (step + 1) % 250 == 0 or step + 1 == steps:
            say(f"language model {step + 1}/{steps}: {report(model, held_out)}")
            with _rounded(model):
                say(f"  rounded to nf4: {report(model, held_out)}")
    _save(state, parts, rng, steps)


@torch.no_grad()
def report(model: LlavaNextVideoForConditionalGeneration, sampler: BatchSampler) -> str:
    """The percentage of dialogues with exactly the right answers, by kind; videos with 4, 8 and 16 frames."""
    rng = np.random.default_rng(0)
    right: dict[str, list[bool]] = defaultdict(list)
    counts = [("crop", 4), ("crop", 8), ("crop", 16), ("pad", 8), ("stretch", 8)]
    tests = [
        (f"{fit} {frames}", sampler.test_batch(rng, 64, frames, fit)) for fit, frames in counts if fit in sampler.fits
    ]
    tests += [("", sampler.picture(rng, 32, 6)), ("", sampler.pair(rng, 32, 4, 8))]
    for name, (batch, features) in tests:
        logits, targets, dialogues, _ = _logits(model, batch, features)
        hits = logits.argmax(-1) == targets
        for row, kinds in enumerate(batch.kinds):
            for number, kind in enumerate(kinds, start=1):
                mine = (dialogues[0] == row) & (dialogues[1] == number)
                right[f"{kind} {name}".strip()].append(bool(hits[mine].all()))
    return ", ".join(f"{kind} {100 * np.mean(values):.0f}" for kind, values in sorted(right.items()))


def _save(state: Path | None, parts: dict[str, Any], rng: np.random.Generator, step: int) -> None:
    if state is not None:
        held = {name: part.state_dict() for name, part in parts.items()}
        torch.save(held | {"rng": rng.bit_generator.state, "step": step}, state.with_suffix(".new"))
        state.with_suffix(".new").replace(state)


def _load(state: Path | None, parts: dict[str, Any], rng: np.random.Generator) -> int:
    """The number of steps that are done."""
    if state is None or not state.exists():
        return 0
    held = torch.load(state, weights_only=False)
    for name, part in parts.items():
        part.load_state_dict(held[name])
    rng.bit_generator.state = held["rng"]
    return int(held["step"])


def _logits(
    model: LlavaNextVideoForConditionalGeneration, batch: Batch, features: list[Tensor]
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor], Tensor]:
    """Logits (learned tokens, vocabulary), their targets, the sample and dialogue of each, and the last layer's input.

    The last layer's input is float32 (samples, length, width).
    """
    text, config = model.model.language_model, model.config
    embedded = text.get_input_embeddings()(batch.ids)
    is_media = (batch.ids == config.video_token_id) | (batch.ids == config.image_token_id)
    media = torch.cat([one.flatten(0, -2) for one in features]).float()
    embedded = embedded.masked_scatter(is_media[..., None], media)
    mask = torch.zeros(batch.mask.shape).masked_fill(~batch.mask, torch.finfo(torch.float32).min)
    states = text(
        inputs_embeds=embedded,
        attention_mask=mask,
        position_ids=batch.positions,
        use_cache=False,
        output_hidden_states=True,
    )
    hidden, middle = states.last_hidden_state, states.hidden_states[-2]
    learned = batch.targets != -100
    rows = torch.arange(len(batch.ids))[:, None].expand_as(batch.ids)
    return model.lm_head(hidden[learned]), batch.targets[learned], (rows[learned], batch.dialogue[learned]), middle


def _frame_count(rng: np.random.Generator, few: float) -> int:
    if few and rng.random() < few:
        return 4
    shares = np.array(list(FRAME_COUNTS.values()))
    return int(rng.choice(list(FRAME_COUNTS), p=shares / shares.sum()))


def _claim_frames(rng: np.random.Generator, few: float) -> int:
    """The frames of videos with claims: also one or two, as where a moment's limits are looked for."""
    return int(rng.integers(1, 4)) if rng.random() < 0.1 else min(16, _frame_count(rng, few))


def _sampled(item: SceneFeatures, frames: int) -> SceneFeatures:
    total = len(item.features)
    return replace(item, features=item.features[[index * total // frames for index in range(frames)]])


def _part(rng: np.random.Generator, item: SceneFeatures, frames: int) -> tuple[SceneFeatures, bool]:
    """The frames of a clip or of a part of it, with the scene that they show, and whether they show its motion."""
    span = 1.0 if rng.random() < 0.5 else rng.uniform(0.25, 1.0)
    total, start = len(item.features), rng.uniform(0, 1 - span)
    indices = [int(total * (start + span * index / frames)) for index in range(frames)]
    first, last = indices[0] / total, indices[-1] / total
    scene = replace(item.scene, color_start=item.scene.color(first), color_end=item.scene.color(last))
    is_far = scene.direction == "still" or scene.travel * (last - first) >= 0.15
    return SceneFeatures(scene, item.features[indices], item.fit), is_far and last - first >= 0.4


@contextmanager
def _rounded(model: LlavaNextVideoForConditionalGeneration) -> Iterator[None]:
    """Round the language model's linear weights to nf4 within the block; gradients go to the full weights."""
    linears = [module for module in model.model.language_model.modules() if isinstance(module, nn.Linear)]
    kept = [linear.weight.data for linear in linears]
    for linear in linears:
        blocks = linear.weight.data.view(-1, NF4_BLOCK)
        scale = blocks.abs().amax(dim=1, keepdim=True).clamp(min=1e-8)
        linear.weight.data = (NF4[torch.bucketize(blocks / scale, NF4_EDGES)] * scale).view_as(linear.weight)
    try:
        yield
    finally:
        for linear, weight in zip(linears, kept, strict=True):
            linear.weight.data = weight
