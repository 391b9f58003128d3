"""How many parameters a checkpoint has, and the bytes they take, by the arithmetic of its config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Quantized = Literal["none", "8bit", "4bit"]

# What the config classes of transformers fill in where a published config leaves a value out.
TEXT_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"intermediate_size": 11008, "num_key_value_heads": None, "max_position_embeddings": 2048},
    "mistral": {"intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131072},
}
TEXT_SHARED = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 32000}
VISION_DEFAULTS = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_channels": 3, "image_size": 224,
    "patch_size": 32,
}  # fmt: skip
# Where there is no vision config at all: CLIP ViT-L/14 at 336 pixels.
VISION_ABSENT = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_channels": 3, "image_size": 336,
    "patch_size": 14,
}  # fmt: skip

# nf4 with double quantization (QLoRA, arXiv 2305.14314): half a byte a weight, a byte for each block of 64, and four
# for each 256 of those blocks.
_NF4_BYTES = 1 / 2 + 1 / 64 + 4 / (64 * 256)
_ROW_SCALE_BYTES = 4  # LLM.int8 keeps a float32 for each output row


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters of a checkpoint's parts.

    Only `language_linear` (the projections of attention and MLP in each layer, which have `language_linear_rows`
    output rows) is ever quantized. `language_rest` is embeddings, head and norms.
    """

    language_linear: int
    language_linear_rows: int
    language_rest: int
    vision: int
    projector: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.language_linear + self.unquantized

    @property
    def unquantized(self) -> int:
        """Those that keep the dtype, whatever the quantization."""
        return self.language_rest + self.vision + self.projector

    def linear_bytes(self, quantize: Quantized, element_bytes: int = 2) -> int:
        """Return the bytes of the language model's linear layers; `element_bytes` is the dtype's."""
        if quantize == "4bit":
            return round(_NF4_BYTES * self.language_linear)
        if quantize == "8bit":
            return self.language_linear + _ROW_SCALE_BYTES * self.language_linear_rows
        return element_bytes * self.language_linear

    def total_bytes(self, quantize: Quantized, element_bytes: int = 2) -> int:
        """Return the bytes of all weights in memory; `element_bytes` is the dtype's."""
        return self.linear_bytes(quantize, element_bytes) + element_bytes * self.unquantized


def count(text: Mapping[str, Any], vision: Mapping[str, Any], config: Mapping[str, Any]) -> Parameters:
    """Return the numbers for the configs of the language model, the vision tower and the whole, defaults filled in.

    Source: the modules of LlavaNextVideoModel, CLIPVisionModel, LlamaModel and MistralModel in transformers.
    """
    hidden, layers = text["hidden_size"], text["num_hidden_layers"]
    query, key = (text[name] * text["head_dim"] for name in ("num_attention_heads", "num_key_value_heads"))
    inner = text["intermediate_size"]
    linear_rows = query + 2 * key + hidden + 2 * inner + hidden
    linear = (query + 2 * key) * hidden + hidden * query + 3 * inner * hidden
    biases = (query + 2 * key + hidden) * bool(text.get("attention_bias")) + (2 * inner + hidden) * bool(
        text.get("mlp_bias")
    )
    tied = config.get("tie_word_embeddings") or text.get("tie_word_embeddings")
    embeddings = text["vocab_size"] * hidden * (1 if tied else 2)
    return Parameters(
        language_linear=layers * linear,
        language_linear_rows=layers * linear_rows,
        language_rest=embeddings + layers * (2 * hidden + biases) + hidden,
        vision=_vision(vision),
        projector=_projector(hidden, vision["hidden_size"], config),
    )


def _vision(vision: Mapping[str, Any]) -> int:
    width, inner = vision["hidden_size"], vision["intermediate_size"]
    patches = (vision["image_size"] // vision["patch_size"]) ** 2
    embeddings = width + width * vision["num_channels"] * vision["patch_size"] ** 2 + (patches + 1) * width
    attention = 4 * (width * width + width)
    mlp = 2 * width * inner + inner + width
    norm = 2 * width
    return int(embeddings + vision["num_hidden_layers"] * (attention + mlp + 2 * norm) + 2 * norm)


def _projector(hidden: int, vision_width: int, config: Mapping[str, Any]) -> int:
    """Two linear layers, the embedding of a picture's line ends and, where it is learned, the pooling."""
    layers = config.get("vision_feature_layer", -2)
    into = vision_width * (len(layers) if isinstance(layers, list) else 1)
    biases = 2 * hidden if config.get("multimodal_projector_bias", True) else 0
    pooling = 0
    if config.get("spatial_pool_mode") == "conv":
        out = config.get("spatial_pool_out_channels", vision_width)
        pooling = out * vision_width * config.get("spatial_pool_stride", 2) ** 2 + out
    return int(into * hidden + hidden * hidden + biases + hidden + pooling)
