"""Frames and pictures to the features that stand in a prompt."""

from __future__ import annotations

import numpy as np
import torch

from ..conversation import Media
from ..errors import ModelError
from ..image import Picture
from .loading import Loaded

# Frames that go through the vision tower together: bounds its activations for long prompts.
_FRAMES_AT_ONCE = 32


class Vision:
    """The vision tower, the pooling and the projector of a loaded checkpoint."""

    def __init__(self, loaded: Loaded) -> None:
        self._model, self._processor, self._checkpoint = loaded.model, loaded.processor, loaded.checkpoint

    def token_count(self, medium: Media) -> int:
        """Return how many tokens of the prompt a medium takes, without encoding it."""
        if not isinstance(medium, Picture):
            return len(medium.images) * self._checkpoint.frame_tokens
        height, width = medium.pixels.shape[:2]
        counts = self._processor._get_num_multimodal_tokens(image_sizes=[(height, width)])  # noqa: SLF001 - has no public twin
        return int(counts["num_image_tokens"][0])

    def encode(self, medium: Media) -> torch.Tensor:
        """Return a medium's features, (tokens, hidden).

        Raises `ModelError` if they are not as many as the prompt has places for them.
        """
        features = self._picture(medium.pixels) if isinstance(medium, Picture) else self._frames(medium.images)
        places = self.token_count(medium)
        if len(features) != places:
            raise ModelError(
                f"the checkpoint gives {len(features)} features for a medium with {places} places in the prompt",
                "its processor's sizes or pooling don't fit its config",
            )
        return features

    def _frames(self, images: np.ndarray) -> torch.Tensor:
        """Encode uint8 (frames, height, width, 3); video frames are cropped to a square and pooled."""
        parts = []
        for first in range(0, len(images), _FRAMES_AT_ONCE):
            batch = images[first : first + _FRAMES_AT_ONCE]
            pixels = self._processor.video_processor(videos=[batch], return_tensors="pt", do_sample_frames=False)
            parts.append(self._features("video", pixel_values=pixels["pixel_values_videos"]))
        return torch.cat(parts)

    def _picture(self, pixels: np.ndarray) -> torch.Tensor:
        """Encode uint8 (height, width, 3) as AnyRes does: the whole, then tiles of the best fitting grid."""
        inputs = self._processor.image_processor(
            images=[pixels], return_tensors="pt", input_data_format="channels_last"
        )
        return self._features("image", pixel_values=inputs["pixel_values"], image_sizes=inputs["image_sizes"])

    def _features(self, kind: str, pixel_values: torch.Tensor, **extra: torch.Tensor) -> torch.Tensor:
        model, config = self._model, self._model.config
        encode = model.get_video_features if kind == "video" else model.get_image_features
        tower = model.get_input_embeddings().weight
        output = encode(
            pixel_values.to(tower.device, tower.dtype),
            **{name: value.to(tower.device) for name, value in extra.items()},
            vision_feature_layer=config.vision_feature_layer,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
            return_dict=True,
        )
        pooled = getattr(output, "pooler_output", output)  # newer transformers wraps the features
        return torch.cat([part.reshape(-1, part.shape[-1]) for part in pooled])
