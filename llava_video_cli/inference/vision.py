"""Frames and pictures to the features that stand in a prompt."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.image_utils import SizeDict

from ..checkpoint.frame_input import input_of
from ..checkpoint.size import FRAMES_AT_ONCE
from ..conversation import Media
from ..errors import ModelError
from ..video import Frames
from ..video.fit import FrameResize
from ..video.image import Picture, shrunk
from . import device_memory as memory
from .decode_step import Decoder, Inputs, PromptBatch
from .loader import Loaded
from .prefix_cache import Prompt

_MAX_ASPECT = 8  # thinner images are cropped before they are resized
_MOST_SENT_BYTES = 2**28  # of pixels that lie on a GPU before they are encoded


@dataclass(frozen=True, eq=False)
class SentPixels:
    """The pixels of a video on their way to a GPU, (frames, 3, side, side), and what tells that they are there."""

    pixels: torch.Tensor
    is_there: torch.cuda.Event


class Vision:
    """The vision tower, the pooling and the projector of a loaded checkpoint."""

    def __init__(self, loaded: Loaded) -> None:
        self._model, self._processor, self._rates = loaded.model, loaded.processor, loaded.checkpoint.rates
        self.shrink = frame_resize(loaded.processor, self._rates.image_size)
        self._tower = loaded.model.get_input_embeddings().weight
        self._stream: torch.cuda.Stream | None = None
        self._sent: WeakValueDictionary[Media, SentPixels] = WeakValueDictionary()

    def send(self, media: Iterable[Media]) -> dict[Media, SentPixels]:
        """Begin to copy the pixels of videos to a GPU, beside what it computes, if there is one; in one thread.

        What was sent, and is not encoded yet, bounds it.
        """
        sent: dict[Media, SentPixels] = {}
        for video in dict.fromkeys(media):
            size = sum(each.pixels.nbytes for each in list(self._sent.values()))
            if self._tower.device.type != "cuda" or size > _MOST_SENT_BYTES:
                break
            if isinstance(video, Frames):
                try:
                    sent[video] = self._sent[video] = self._sent.get(video) or self._on_the_way(video)
                except RuntimeError as error:
                    if not memory.is_out_of_memory(error):
                        raise
                    break  # it will be copied when it is needed
        return sent

    def _on_the_way(self, video: Frames) -> SentPixels:
        host = self._pixels(video, slice(None)).to(self._tower.dtype).pin_memory()
        self._stream = self._stream or torch.cuda.Stream(self._tower.device)
        with torch.cuda.stream(self._stream):
            pixels, is_there = host.to(self._tower.device, non_blocking=True), torch.cuda.Event()
            is_there.record(self._stream)
        return SentPixels(pixels, is_there)

    def encode(self, media: Iterable[Media], sent: Mapping[Media, SentPixels] | None = None) -> list[torch.Tensor]:
        """Return the features of each medium, (tokens, hidden); frames of several videos are encoded together.

        What was `sent` is not copied again. Raises `ModelError` if they are not as many as the prompt has places for.
        """
        media = list(media)
        parts = {each: [self._picture(each)] if isinstance(each, Picture) else [] for each in dict.fromkeys(media)}
        videos = [medium for medium in parts if isinstance(medium, Frames)]
        for chunk in chunks([len(video.images) for video in videos], FRAMES_AT_ONCE):
            pixels = torch.cat([self._pixels(videos[number], frames, sent) for number, frames in chunk])
            counts = [(frames.stop - frames.start) * self._rates.frame_tokens for _, frames in chunk]
            features = _checked(self._features("video", pixel_values=pixels[None]), sum(counts))
            for (number, _), part in zip(chunk, torch.split(features, counts), strict=True):
                parts[videos[number]].append(part)
        return [torch.cat(parts[medium]) for medium in media]

    def inputs(
        self, decoder: Decoder, prompts: Sequence[Prompt], batch: PromptBatch, sent: Mapping[Media, SentPixels]
    ) -> Inputs:
        """Return what is computed of prompts, of each from its cached tokens on."""
        rows = enumerate(zip(prompts, batch.cached, strict=True))
        spans = [(row, start, span) for row, (prompt, start) in rows for span in prompt.spans if span.stop > start]
        features = self.encode((span.medium for _, _, span in spans), sent)
        embeddings = self._model.get_input_embeddings()(batch.ids)  # (rows, new tokens, hidden)
        for (row, start, span), feature in zip(spans, features, strict=True):
            begin = max(span.start, start)
            embeddings[row, begin - start : span.stop - start] = feature[begin - span.start :].to(embeddings)

        def compute(begin: int, end: int, cache: Any) -> torch.Tensor:
            return decoder.prefill(cache, batch, begin, inputs_embeds=embeddings[:, begin:end])

        return Inputs(compute)

    def _pixels(self, video: Frames, frames: slice, sent: Mapping[Media, SentPixels] | None = None) -> torch.Tensor:
        """Return what the vision tower takes of some frames, float (frames, 3, side, side)."""
        if sent and video in sent:
            stream = torch.cuda.current_stream(self._tower.device)
            stream.wait_event(sent[video].is_there)
            sent[video].pixels.record_stream(stream)
            return sent[video].pixels[frames]
        part = self._processor.video_processor
        small = np.stack([self.shrink(image, video.sampling.fit) for image in video.images[frames]])
        mean, std = (tuple(value) if isinstance(value, list) else value for value in (part.image_mean, part.image_std))
        # the last step of the processor's call: the call itself takes five times as long for a frame
        pixels, factor = torch.from_numpy(small).permute(0, 3, 1, 2), part.rescale_factor
        result: torch.Tensor = part.rescale_and_normalize(pixels, part.do_rescale, factor, part.do_normalize, mean, std)
        return result

    def _picture(self, picture: Picture) -> torch.Tensor:
        """Encode a picture as AnyRes does: the whole, then tiles of the best fitting grid."""
        inputs = self._processor.image_processor(
            images=[picture.pixels], return_tensors="pt", input_data_format="channels_last"
        )
        features = self._features("image", pixel_values=inputs["pixel_values"], image_sizes=inputs["image_sizes"])
        return _checked(features, picture.tokens(self._rates))

    def _features(self, kind: str, pixel_values: torch.Tensor, **extra: torch.Tensor) -> torch.Tensor:
        model, config = self._model, self._model.config
        encode = model.get_video_features if kind == "video" else model.get_image_features
        output = encode(
            pixel_values.to(self._tower.device, self._tower.dtype),
            **{name: value.to(self._tower.device) for name, value in extra.items()},
            vision_feature_layer=config.vision_feature_layer,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
            return_dict=True,
        )
        pooled = getattr(output, "pooler_output", output)  # newer transformers wraps the features
        return torch.cat([part.reshape(-1, part.shape[-1]) for part in pooled])


def frame_resize(processor: Any, side: int) -> FrameResize:
    """Return what makes of a frame what the vision tower takes, which has so many pixels on each side."""
    values = processor.video_processor.to_dict()
    return FrameResize(input_of(values, side, "the processor"), partial(resize, processor=processor))


def resize(image: NDArray[np.uint8], processor: Any) -> NDArray[np.uint8]:
    """Return a frame, uint8 (height, width, 3), at the size that the processor gives the model."""
    part = processor.video_processor
    image = _middle(image, part)
    image = np.ascontiguousarray(shrunk(image) if part.do_resize else image)
    pixels = torch.from_numpy(image.transpose(2, 0, 1)[None])
    # the two steps of the processor's call that work on bytes: the call itself costs twice as much again
    if part.do_resize:
        pixels = part.resize(pixels, size=_size(part.size), resample=part.resample)
    if part.do_center_crop:
        pixels = part.center_crop(pixels, _size(part.crop_size))
    return np.ascontiguousarray(pixels.numpy()[0].transpose(1, 2, 0))  # torch would wake other threads for a copy


def _middle(image: NDArray[np.uint8], video_processor: Any) -> NDArray[np.uint8]:
    """Return the middle of a thin image, uint8 (height, width, 3), if the video processor crops it anyway.

    Otherwise the shorter side would be resized to that of the crop, and the longer one many times as far.
    """
    if not (video_processor.do_resize and video_processor.do_center_crop and _size(video_processor.size).shortest_edge):
        return image
    height, width, _ = image.shape
    most = _MAX_ASPECT * min(height, width)
    top, left = max(0, height - most) // 2, max(0, width - most) // 2
    return image[top : height - top, left : width - left]


def chunks(lengths: Sequence[int], most: int) -> Iterator[list[tuple[int, slice]]]:
    """Cut sequences, laid end to end, into pieces of `most`; yield each as the parts of the sequences in it."""
    places = [(number, place) for number, length in enumerate(lengths) for place in range(length)]
    for begin in range(0, len(places), most):
        parts: dict[int, list[int]] = defaultdict(list)
        for number, place in places[begin : begin + most]:
            parts[number].append(place)
        yield [(number, slice(part[0], part[-1] + 1)) for number, part in parts.items()]


def _size(size: SizeDict | dict[str, int]) -> SizeDict:
    return size if isinstance(size, SizeDict) else SizeDict(**size)


def _checked(features: torch.Tensor, places: int) -> torch.Tensor:
    if len(features) != places:
        raise ModelError(
            f"the checkpoint gives {len(features)} features for media with {places} placeholders in the prompt",
            "its processor's sizes or pooling don't fit its config",
        )
    return features
