"""How many parameters a checkpoint has, and how much memory it takes to load it and to answer: by its config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from .config import Checkpoint

Quantized = Literal["none", "8bit", "4bit"]

# nf4 with double quantization (QLoRA, arXiv 2305.14314): half a byte a weight, a byte for each block of 64, and four
# for each 256 of those blocks.
_NF4_BYTES = 1 / 2 + 1 / 64 + 4 / (64 * 256)
_ROW_SCALE_BYTES = 4  # LLM.int8 keeps a float32 for each output row
ELEMENT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_LIBRARIES_BYTES = 500_000_000  # torch's own, and what its allocator leaves in holes
# Tensors of a layer's width, and of its MLP's width, that exist at the same time while a prompt is computed.
_HIDDEN_COPIES, _INNER_COPIES = 6, 3
FRAMES_AT_ONCE = 32  # that go through the vision tower together, which bounds its activations for long prompts

# The share of the free memory that weights and one prompt may take: allocators leave holes, and other programs run too.
LOAD_SHARE = {"cuda": 0.92, "cpu": 0.9, "mps": 0.9}
# The share that a batch and kept KV caches may take of what is free after that. On a CPU the decoded frames that wait,
# and the rest of the machine, need theirs.
BATCH_SHARE = {"cuda": 0.9, "cpu": 0.5, "mps": 0.5}


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


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes of memory: the weights, the KV cache of prompt and answer, and the tensors at work."""

    weights_bytes: int
    cache_bytes: int
    other_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.weights_bytes + self.cache_bytes + self.other_bytes


def estimate_memory(
    checkpoint: Checkpoint, quantize: Quantized, dtype: str, tokens: int, frames: int
) -> MemoryEstimate:
    """Return what a model and an answer need; `tokens` are those of its prompt, with so many frames, and of itself."""
    size = ELEMENT_BYTES[dtype]
    patches = checkpoint.rates.side**2 * min(frames, FRAMES_AT_ONCE)
    # the vision tower is done, and its tensors are gone, when the language model begins
    at_work = max(tokens * _layer(checkpoint.widths), patches * _layer(checkpoint.vision_widths)) * size
    return MemoryEstimate(
        checkpoint.parameters.total_bytes(quantize, size),
        tokens * kv_bytes(checkpoint, size),
        _LIBRARIES_BYTES + at_work,
    )


def answer_bytes(checkpoint: Checkpoint, dtype: str, tokens: int) -> int:
    """Return about what one answer of a batch takes: the KV cache of all its tokens, and the widest layer's tensors."""
    size = ELEMENT_BYTES[dtype]
    return tokens * (kv_bytes(checkpoint, size) + _layer(checkpoint.widths) * size)


def kv_bytes(checkpoint: Checkpoint, element_bytes: int = 2) -> int:
    """Return what a token takes in the KV cache: for each layer, a key and a value of every KV head."""
    return checkpoint.kv_elements * element_bytes


def _layer(widths: tuple[int, int]) -> int:
    """Return the elements that a token takes in a layer."""
    hidden, inner = widths
    return _HIDDEN_COPIES * hidden + _INNER_COPIES * inner


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
