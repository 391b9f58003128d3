"""Any video model of transformers: its own processor and its own forward, our engine.

The prompt is what the processor makes of it. Its beginning, up to the last medium, is computed as `generate` does it,
in one piece; later tokens are computed as those of any model.
"""

from __future__ import annotations

import inspect
import itertools
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import GenerationConfig

from ...checkpoint.families import family_of
from ...checkpoint.files import tokenizer_errors
from ...checkpoint.frame_input import shape_of_frames
from ...conversation import Media, Request, Turn
from ...errors import ModelError, first_line
from ...prompt.budget import Budget, too_long
from ...prompt.chat_template import render_own
from ...prompt.continuation import Choices, answer_tokens, beginnings, read_choices
from ...prompt.thinking import opens_thought
from ...video import Frames
from ...video.fit import FrameResize
from ...video.image import Picture, shrunk
from ..decode_step import Decoder, Inputs, InputSource, PromptBatch, cache_name
from ..device_memory import is_out_of_memory
from ..loader import Loaded
from ..prefix_cache import Prompt, Span
from ..tokenizer import Tokenizer
from ..vision import SentPixels

_KEPT = 2  # lists of media whose pixels are remembered
_MOST_WAITING_BYTES = 2**30  # of pixels for prompts that wait; for further ones, they are made again
# uint8 (frames, height, width, 3), their times, and the length of the whole video in seconds
Video: TypeAlias = "tuple[NDArray[np.uint8], Sequence[float], float]"


def process(processor: Any, text: str, videos: Sequence[Video], images: Sequence[NDArray[np.uint8]]) -> dict[str, Any]:
    """Return what a processor makes of a prompt's text and its media, as tensors.

    Times are counted in milliseconds: a processor that writes times into the prompt, or into positions, then writes
    those of the frames, however uneven they are.
    """
    options: dict[str, Any] = {}
    if videos:
        options["videos"] = [frames for frames, _, _ in videos]
        options["video_metadata"] = [
            {
                "fps": 1000.0,
                "frames_indices": [round(1000 * time) for time in times],
                "total_num_frames": max(1, round(1000 * seconds)),
                "duration": seconds,
            }
            for _, times, seconds in videos
        ]
        options["do_sample_frames"] = False
    if images:
        options["images"] = list(images)
    bos = processor.tokenizer.bos_token
    if bos and text.startswith(bos):  # the template has written it; the tokenizer must not do so again
        options["add_special_tokens"] = False
    return dict(processor(text=[text], return_tensors="pt", **options))


def token_of(processor: Any, kind: str) -> str:
    """Return the text that stands for a medium of a kind, `image` or `video`, before it is processed."""
    return str(getattr(processor, f"{kind}_token", f"<{kind}>"))


@dataclass(frozen=True, eq=False)
class ProcessedPrompt(Prompt):
    """A prompt as a processor writes it: `text` and `media` are what it was made of, into the first `processed` tokens.

    `positions`, int64 (axes, 1, processed), are all positions, where they are not the tokens' numbers, and were
    computed.
    """

    text: str = ""
    media: tuple[Media, ...] = ()
    processed: int = 0
    positions: torch.Tensor | None = None


class ProcessorPrompts:
    """From requests to prompts, and what is computed of them; see `Prompts` and `InputSource`."""

    def __init__(self, name: str, loaded: Loaded, prefix_reuse: bool) -> None:
        self.tokenizer = Tokenizer(name, loaded)
        self._name, self._checkpoint = name, loaded.checkpoint
        self._processor, self._processor_lock = loaded.processor, threading.Lock()
        self._lock = threading.Lock()  # of what is remembered of media and prompts
        self._marks = token_of(loaded.processor, "image"), token_of(loaded.processor, "video")
        self._remembered = [_Remembered(loaded.processor, part) for part in ("image_processor", "video_processor")]
        names = (set(part.model_input_names) for part in self._remembered)
        self._shared = set.intersection(*names)  # of pictures and videos
        self._pixels: weakref.WeakKeyDictionary[ProcessedPrompt, dict[str, Any]] = weakref.WeakKeyDictionary()
        self._numbers: weakref.WeakKeyDictionary[Media, int] = weakref.WeakKeyDictionary()
        self._count_up = itertools.count()
        self._family = family = family_of(loaded.model.config.to_dict())
        self.reuses, self._least_frames = prefix_reuse and family.reuse, family.least_frames
        self._shifts = _Recent()
        self._features = _Recent()  # only the engine's thread uses it
        has_features = "mm_encoder_outputs" in inspect.signature(loaded.model.forward).parameters
        self._takes_features = has_features and family.was_tried
        modules = loaded.model.modules()
        self._positioned = next((each for each in modules if hasattr(each, "get_rope_index")), None)

    @property
    def hidden_ids(self) -> frozenset[int]:
        """The special tokens, which are no part of an answer's text."""
        return frozenset(number for number, token in self.tokenizer.own.added_tokens_decoder.items() if token.special)

    @property
    def settings(self) -> dict[str, Any]:
        """None: all is the processor's."""
        return {}

    @property
    def source(self) -> InputSource:
        """Itself: pixels are made with the prompt."""
        return self

    @property
    def shrink(self) -> FrameResize:
        """Leaves frames in their own size, in which the processor gets them; only huge ones are shrunk."""
        shape = shape_of_frames(self._processor.video_processor.to_dict(), self._family, self._name)
        return FrameResize(shape, shrunk)

    def budget(self, request: Request) -> Budget:
        """Return what a request takes of the context, whether it fits or not: its media are processed for that."""
        prompt, _, _, longest = self.processed(request)
        media = request.media
        if len(media) == 1:
            image, video = self._marks
            counts = [len(prompt.ids) - self._count(prompt.text.replace(image, "").replace(video, ""), ())]
        else:
            counts = [self._count(self._marks[each.is_video], (each,)) - self._count("", ()) for each in media]
        return Budget(len(prompt.ids), longest, self._checkpoint.context_tokens, tuple(counts))

    def pixels(self, prompt: ProcessedPrompt) -> dict[str, Any]:
        """Return what the processor made of a prompt, once: another time, it is made again."""
        with self._lock:
            made = self._pixels.pop(prompt, None)
        return made or self._run(prompt.text, prompt.media)

    def features(self, media: Sequence[Media]) -> dict[str, Any] | None:
        """Return a mapping that `generate` fills with what it encodes of media, and takes instead of pixels.

        None where a prompt's beginning is reused, so that nothing is encoded twice, or where the model can't take it.
        """
        if self.reuses or not self._takes_features:
            return None
        features: dict[str, Any] = self._features.of(_references(media), dict)
        return features

    def prompt(self, request: Request) -> tuple[Prompt, Choices | None]:
        """Return a request's prompt and choices, checked against the context before anything is encoded."""
        prompt, inputs, choices, longest = self.processed(request)
        checkpoint = self._checkpoint
        if len(prompt.ids) + longest > checkpoint.context_tokens:
            budget = self.budget(request)
            raise too_long(self._name, checkpoint, budget, request.frame_counts, self._frames_that_fit(request, budget))
        with self._lock:
            waiting = sum(each.nbytes for one in self._pixels.values() for each in one.values())
            if prompt.media and waiting < _MOST_WAITING_BYTES:
                self._pixels[prompt] = inputs
        return prompt, choices

    def _frames_that_fit(self, request: Request, budget: Budget) -> int:
        """Return how many frames of each video would fit: fewer frames may each take more tokens."""

        def cut(medium: Media) -> Media:
            if isinstance(medium, Picture):
                return medium
            return replace(medium, images=medium.images[:each], times_seconds=medium.times_seconds[:each])

        for each in range(budget.frames_each([medium.frame_count for medium in request.media]), 0, -1):
            turns, untimed = (
                tuple(replace(turn, media=tuple(map(cut, turn.media))) for turn in those)
                for those in (request.turns, request.untimed)
            )
            prompt, _, _, longest = self.processed(replace(request, turns=turns, untimed=untimed))
            if len(prompt.ids) + longest <= budget.context_tokens:
                return each
        return 0

    def processed(self, request: Request) -> tuple[ProcessedPrompt, dict[str, Any], Choices | None, int]:
        """Return a request's prompt, what the processor makes of it, its choices, and its longest answer in tokens."""
        checkpoint, media = self._checkpoint, request.media
        turns = request.untimed if request.untimed and self._family.time_marks != "none" else request.turns
        text, wholes = beginnings(self.render(turns), request.generation, self._special)
        base, whole_ids = self.tokenizer.ids(text) if wholes else [], list(map(self.tokenizer.ids, wholes))
        longest = answer_tokens(request.generation, base, whole_ids)
        inputs = self._run(text, media)
        ids, choices = inputs["input_ids"][0].numpy(), None
        if wholes:
            stays, choices = read_choices(base, whole_ids, request.generation.choices)
            ids = ids[: len(ids) + stays - len(base)]
        marks = ids.astype(np.int64)
        places = np.flatnonzero(np.isin(ids, (checkpoint.image_token_id, checkpoint.video_token_id)))
        spans: tuple[Span, ...] = ()
        if media:
            if not len(places):
                raise ModelError(f"the processor of {self._name} leaves no place in the prompt for its media")
            spans = (Span(int(places[0]), int(places[-1]) + 1, media[0]),)
            if self.reuses:
                with self._lock:
                    numbers = list(map(self._number, media))
                digest = blake2b(str(numbers).encode(), digest_size=8).digest()
                marks[places] = -1 - int.from_bytes(digest, "big") // 2  # no id is below zero
        positions, shift = self._positions(inputs, media)
        prompt = ProcessedPrompt(
            ids.tolist(),
            spans,
            is_whole=bool(media),
            media_tokens=(len(places),) if len(media) == 1 else (),
            opens_thought=opens_thought(text),
            text=text,
            media=media,
            processed=len(ids),
            shift=shift,
            positions=positions,
        )
        prompt.marked(marks)
        return prompt, inputs, choices, longest

    def render(self, turns: Sequence[Turn]) -> str:
        """Return the text of a conversation, with the start of the next answer."""
        return render_own(self._name, turns, self.tokenizer.template, self._special, self._marks)

    @cached_property
    def _special(self) -> list[str]:
        """The texts that are special to the tokenizer."""
        return [str(token) for token in self.tokenizer.own.added_tokens_decoder.values() if token.special]

    def _positions(self, inputs: Mapping[str, Any], media: Sequence[Media]) -> tuple[torch.Tensor | None, int]:
        """Return M-RoPE's positions, and how far those behind the media are from the tokens' numbers.

        The latter is the same for all texts with these media, and often enough for a second question: then it comes
        alone. `generate` goes on from the last position; the model's own `rope_deltas` would go on from the largest
        one, which may be that of a video's last frame.
        """
        positions = None

        def shift() -> int:
            nonlocal positions
            positions = self.positions(inputs)
            return 0 if positions is None else int(positions[0, 0, -1].item()) + 1 - positions.shape[-1]

        found: int = self._shifts.of(_references(media), shift) if self.reuses else shift()
        return positions, found

    def positions(self, inputs: Mapping[str, Any]) -> torch.Tensor | None:
        """Return M-RoPE's positions, int64 (axes, 1, tokens); None where the tokens' numbers are their positions."""
        if self._positioned is None or not any(name.endswith("grid_thw") for name in inputs):
            return None
        wanted = inspect.signature(self._positioned.get_rope_index).parameters
        positions: torch.Tensor = self._positioned.get_rope_index(
            **{name: value for name, value in inputs.items() if name in wanted}
        )[0]
        return positions

    def _run(self, text: str, media: Sequence[Media]) -> dict[str, Any]:
        """Run the processor; what it made of the same media a moment ago is not made again."""
        videos = [self._video(medium) for medium in media if isinstance(medium, Frames)]
        images = [medium.pixels for medium in media if isinstance(medium, Picture)]
        try:
            with self._processor_lock, tokenizer_errors(self._name):
                for part in self._remembered:
                    part.media = _references(media)
                inputs = process(self._processor, text, videos, images)
        except Exception as error:  # what it says to media that it can't take has many classes
            is_short = any(len(frames) == 1 for frames, _, _ in videos)
            if is_short and not self._family.was_tried and self._least_frames == 1:
                self._least_frames = 2  # as those need that put two frames into each token
                return self._run(text, media)
            raise ModelError(f"the processor of {self._name} fails: {first_line(error)}") from error
        if videos and images and self._shared:  # the pixels of one kind have replaced those of the other
            parts = [self._run(self._marks[medium.is_video], (medium,)) for medium in media]
            inputs |= {name: torch.cat([part[name] for part in parts], dim=1) for name in self._shared & {*inputs}}
        return inputs

    def _count(self, text: str, media: Sequence[Media]) -> int:
        return int(self._run(text, media)["input_ids"].shape[1])

    def _video(self, frames: Frames) -> Video:
        images, times = frames.images, list(frames.times_seconds)
        if frames.sampling.fit != "auto":
            shrink = self.shrink
            images = np.stack([shrink(image, frames.sampling.fit) for image in images])
        repeats = -(-self._least_frames // len(images))
        if repeats > 1:
            images, times = np.repeat(images, repeats, axis=0), [time for time in times for _ in range(repeats)]
        return images, times, frames.info.duration_seconds

    def _number(self, medium: Media) -> int:
        """Return what stands for a medium's content, and for its times.

        Others that are there are compared with it, those of held prompts among them: that is quicker than a digest.
        """
        if medium not in self._numbers:
            others = list(self._numbers.items())
            same = next((number for other, number in others if _is_same(medium, other)), None)
            self._numbers[medium] = next(self._count_up) if same is None else same
        return self._numbers[medium]

    def send(self, media: Iterable[Media]) -> dict[Media, SentPixels]:
        """Send nothing beforehand: the processor has made the pixels, and the model's forward copies them."""
        del media
        return {}

    def inputs(
        self, decoder: Decoder, prompts: Sequence[Prompt], batch: PromptBatch, sent: Mapping[Media, SentPixels]
    ) -> Inputs:
        """Return what is computed of prompts, of each from its cached tokens on."""
        del sent
        found = _ProcessedInputs(self, decoder, cast("ProcessedPrompt", prompts[0]), batch)
        return Inputs(found.compute, found.together)


class _ProcessedInputs:
    """What is computed of prompts; see `Inputs`. With media to be computed, it is a single one."""

    def __init__(self, source: ProcessorPrompts, decoder: Decoder, prompt: ProcessedPrompt, batch: PromptBatch) -> None:
        self._source, self._decoder, self._prompt, self._batch = source, decoder, prompt, batch
        self.together = 0
        if prompt.media_end > batch.cached[0]:
            self.together = prompt.media_end
            self._inputs = source.pixels(prompt)

    def compute(self, begin: int, end: int, cache: Any) -> torch.Tensor:
        """Compute a part; see `Inputs`."""
        if self.together and not begin:
            begin = min(end, self._prompt.processed)
            logits = self._with_media(begin, cache)
            if begin == end:
                return logits
        return self._decoder.prefill(cache, self._batch, begin, input_ids=self._batch.ids[:, begin:end])

    def _with_media(self, end: int, cache: Any) -> torch.Tensor:
        """Compute the first tokens as `generate` does it, with pixels; return the last one's logits."""
        model = copy(self._decoder.model)
        # What the checkpoint's own says of beams, lengths or guidance would count too; the sampler has read it.
        model.generation_config = GenerationConfig()
        inputs: dict[str, Any] = {name: self._placed(value, end) for name, value in self._inputs.items()}
        positions = self._prompt.positions
        if positions is None:
            positions = self._source.positions(self._inputs)
        del self._inputs
        if positions is not None:  # else they would be computed again, on the device
            inputs["position_ids"] = positions[..., :end].to(self._decoder.device)
        features = self._source.features(self._prompt.media)
        if features:
            inputs = {name: value for name, value in inputs.items() if not name.startswith("pixel_values")}
        if features is not None:
            inputs["mm_encoder_outputs"] = features
        try:
            output = model.generate(
                **{**inputs, cache_name(model): cache},
                generation_config=GenerationConfig(max_new_tokens=1, eos_token_id=None, pad_token_id=0),
                do_sample=False,
                use_cache=True,
                return_dict_in_generate=True,
                output_logits=True,
            )
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise ModelError(f"the model can't take these media: {first_line(error)}") from error
        logits: torch.Tensor = output.logits[0].to(self._decoder.device)
        return logits

    def _placed(self, value: torch.Tensor, end: int) -> torch.Tensor:
        """Return an input as the model takes it; of one with a value for each token, the first ones."""
        if value.shape == self._inputs["input_ids"].shape:
            value = value[:, :end]
        return value.to(self._decoder.device, self._decoder.dtype if value.is_floating_point() else None)


def _is_same(one: Media, other: Media) -> bool:
    """Whether two media have the same content, and the same times."""
    if isinstance(one, Picture) or isinstance(other, Picture):
        return isinstance(one, Picture) and isinstance(other, Picture) and np.array_equal(one.pixels, other.pixels)
    mine, theirs = ((each.times_seconds, each.info.duration_seconds, each.sampling.fit) for each in (one, other))
    return mine == theirs and all(map(np.array_equal, one.images, other.images))


def _references(media: Sequence[Media]) -> tuple[weakref.ref[Media], ...]:
    return tuple(weakref.ref(medium) for medium in media)


class _Recent:
    """What was made of the last lists of media, as long as they are there. Safe in threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: dict[tuple[weakref.ref[Media], ...], Any] = {}

    def of(self, media: tuple[weakref.ref[Media], ...], make: Callable[[], Any]) -> Any:
        """Return what was made of a list, or what `make` makes of it now."""
        with self._lock:
            made = self._made.pop(media) if media in self._made else make()
            kept = [(other, each) for other, each in self._made.items() if all(one() for one in other)]
            self._made = dict([*kept, (media, made)][-_KEPT:])
        return made


class _Remembered:
    """A part of a processor that remembers what it made of the last lists of `media`; it takes the part's place."""

    def __init__(self, processor: Any, name: str) -> None:
        self._part, self._recent = getattr(processor, name), _Recent()
        self.media: tuple[weakref.ref[Media], ...] = ()
        setattr(processor, name, self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)

    def __call__(self, *values: Any, **options: Any) -> Any:
        return copy(self._recent.of(self.media, lambda: self._part(*values, **options)))
