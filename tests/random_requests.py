"""Requests that come and go at random, and what each of them gets alone, in transformers' own way."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from fakes import Replayed
from scenes import moving_square, still
from transformers import AutoProcessor, LlavaNextVideoForConditionalGeneration

from llava_video_cli import Answer, Chunk, Frames, Generation, Loading, Picture, Request, Turn, join
from llava_video_cli.errors import OutOfMemoryError
from llava_video_cli.inference.detokenizer import Detokenizer
from llava_video_cli.inference.loader import load
from llava_video_cli.inference.video_model import VideoModel

NEAR_LOGITS, NEAR_BORDER = 1e-4, 1e-5
MOST_TOKENS = 24
SHORT, LONG, OTHER, PICTURE = moving_square(1), moving_square(2), moving_square(2, seed=3), still(height=20)
MEDIA: list[tuple[Frames | Picture, ...]] = [
    (SHORT,),
    (LONG,),
    (OTHER,),
    (PICTURE, LONG),
    (LONG, OTHER),
    (),
]
TEXTS = ("Why?", "What happens in the end?", "w12 w345 w6")


@dataclass
class Expected:
    """The documented way's tokens, and for each how near it was to being another one."""

    ids: list[int]
    gaps: list[float]


class Reference:
    """transformers' own model and processor of a checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.model = LlavaNextVideoForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        self.processor: Any = AutoProcessor.from_pretrained(folder)
        self.processor.patch_size = self.model.config.vision_config.patch_size
        self.processor.vision_feature_select_strategy = self.model.config.vision_feature_select_strategy
        self.processor.num_additional_image_tokens = 1
        self.expected = cache(self._expected)

    def of(self, request: Request) -> Expected:
        """Return the first tokens: all that are asked for, or, where a text may end the answer, the most."""
        chosen = request.generation
        count = MOST_TOKENS if request.stop else chosen.max_new_tokens
        return self.expected(request.turns, chosen.temperature, chosen.top_p, chosen.seed, count)

    def _expected(
        self, turns: tuple[Turn, ...], temperature: float, top_p: float, seed: int | None, count: int
    ) -> Expected:
        conversation = [
            {
                "role": turn.role,
                "content": [{"type": "image" if isinstance(medium, Picture) else "video"} for medium in turn.media]
                + [{"type": "text", "text": turn.text}],
            }
            for turn in turns
        ]
        media = [medium for turn in turns for medium in turn.media]
        inputs = self.processor(
            text=self.processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False),
            videos=[medium.images for medium in media if isinstance(medium, Frames)] or None,
            images=[medium.pixels for medium in media if isinstance(medium, Picture)] or None,
            return_tensors="pt",
        )
        length = inputs["input_ids"].shape[1]
        chosen = Chosen(temperature, top_p, random.Random(seed))
        output = self.model.generate(
            **inputs, max_new_tokens=count, do_sample=False, use_cache=True, logits_processor=[chosen]
        )
        ids = output[0, length:].tolist()
        return Expected(ids, chosen.gaps[: len(ids)])


class Chosen:
    """Makes a greedy search take the tokens of a sampled answer, and notes how near others were."""

    def __init__(self, temperature: float, top_p: float, draws: random.Random) -> None:
        self.temperature, self.top_p, self.draws = temperature, top_p, draws
        self.gaps: list[float] = []

    def __call__(self, _: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if not self.temperature:
            first, second = scores[0].topk(2).values.tolist()
            self.gaps.append((first - second) / NEAR_LOGITS)
            return scores
        likely = torch.softmax(scores[0].double() / self.temperature, dim=-1)
        border = 1.0
        if self.top_p < 1:
            sorted_likely, order = likely.sort(descending=True)
            before = sorted_likely.cumsum(0) - sorted_likely
            border = float((before - self.top_p).abs().min())
            likely[order[before >= self.top_p]] = 0
        sums = likely.cumsum(0) / likely.sum()
        draw = self.draws.random()
        place = (sums <= draw).sum()
        self.gaps.append(min(float((sums - draw).abs().min()), border) / NEAR_BORDER)
        return torch.full_like(scores, -torch.inf).index_fill_(1, place[None], 0.0)


@dataclass
class Case:
    """A request, when it comes, and after how many pieces its reader leaves, if at all."""

    request: Request
    in_pieces: bool
    wait_seconds: float
    leaves_after: int | None
    events: list[Any] = field(default_factory=list)
    is_done: threading.Event = field(default_factory=threading.Event)
    cancel: Callable[[], None] = lambda: None

    def deliver(self, event: Any) -> None:
        assert not self.is_done.is_set(), "something came after the end"
        self.events.append(event)
        if isinstance(event, Exception) or event.usage is not None:
            self.is_done.set()
        elif self.leaves_after is not None and len(self.events) > self.leaves_after:
            self.cancel()


def drawn_case(draw: random.Random, reference: Reference) -> Case:
    turns = [Turn("user", draw.choice(TEXTS), draw.choice(MEDIA))]
    if draw.random() < 0.3:
        turns += [Turn("assistant", "It is a square."), Turn("user", draw.choice(TEXTS))]
    is_sampled = draw.random() < 0.3
    generation = Generation(
        max_new_tokens=draw.choice((1, 2, 5, 9, 16, MOST_TOKENS)),
        temperature=draw.choice((0.7, 1.2)) if is_sampled else 0.0,
        top_p=draw.choice((1.0, 0.9)) if is_sampled else 1.0,
        seed=draw.randrange(3) if is_sampled else None,
    )
    request = Request(tuple(turns), generation)
    if draw.random() < 0.2:
        ids = reference.of(replace(request, stop=("any",))).ids
        words = reference.processor.tokenizer.decode(ids, skip_special_tokens=True).split()
        request = replace(request, stop=(draw.choice(words or ["x"]), "nothing of the kind"))
    leaves_after = draw.randrange(4) if draw.random() < 0.15 else None
    wait_seconds = draw.choice((0.0, 0.0, 0.001, 0.02))
    return Case(request, leaves_after is not None or draw.random() < 0.5, wait_seconds, leaves_after)


def wanted(case: Case, reference: Reference, model: VideoModel) -> tuple[str, int, float]:
    """Return the text and the number of tokens of the documented way, and the smallest gap."""
    generation = case.request.generation
    expected = reference.of(case.request)
    text, out, count = Detokenizer(model.decode, case.request.stop), "", 0
    for token in expected.ids[: generation.max_new_tokens]:
        count += 1
        out += text.push([token])
        if text.is_stopped:
            break
    return out + text.finish(), count, min(expected.gaps[:count])


def run_cases(model: VideoModel, reference: Reference, count: int, seed: int) -> tuple[int, int]:
    """Ask at random; return how many were checked, and how many of them differed at a near tie."""
    draw = random.Random(seed)
    cases = [drawn_case(draw, reference) for _ in range(count)]
    for case in cases:
        time.sleep(case.wait_seconds)
        case.cancel = model.submit(case.request, case.deliver, case.in_pieces)
    checked = near = 0
    for case in cases:
        if case.leaves_after is not None and not case.is_done.wait(0.0):
            case.is_done.wait(0.02)  # a piece may be on its way
            continue
        assert case.is_done.wait(60), "no answer came"
        last = case.events[-1]
        if isinstance(last, OutOfMemoryError):
            continue
        assert isinstance(last, Chunk), last
        answer: Answer = join(case.events)
        text, tokens, gap = wanted(case, reference, model)
        checked += 1
        if (answer.text, answer.usage.generated_tokens) != (text, tokens):
            assert gap < 1, (seed, case.request, answer, text, tokens, gap)
            near += 1
    return checked, near


def opened(folder: Path, **options: Any) -> VideoModel:
    return VideoModel(folder.name, load(folder, Loading(dtype="float32", device="cpu")), **options)


OPTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "as it is": dict,
    "captured": lambda: {"capture": Replayed()},
    "many conversations": lambda: {"conversations": 4},
    "no reuse": lambda: {"prefix_reuse": False},
}
