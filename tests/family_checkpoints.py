"""Tiny checkpoints with random weights of the other families of video models, as transformers saves them.

Run as a program, it makes one: `python tests/family_checkpoints.py FAMILY FOLDER`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from llava_video_cli.checkpoint.families import check_family
from llava_video_cli.errors import ModelError

_TURNS = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}VIDEO{% elif part['type'] == 'image' %}IMAGE{% else %}{{ part['text'] }}"
    "{% endif %}{% endfor %}{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
_TEXT: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 8192,
}  # fmt: skip
_VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
_SIDE = 56


@dataclass(frozen=True)
class Tiny:
    """A checkpoint to be: what its template writes for a video and for a picture, and its parts."""

    video: str
    picture: str
    parts: Callable[[], tuple[Any, Any]]


def make_family(folder: Path, name: str, seed: int = 0) -> Path:
    """Write the tiny checkpoint of a family: config, processor with a chat template, tokenizer, safetensors."""
    torch.manual_seed(seed)
    tiny = TINY[name]
    processor, config = tiny.parts()
    try:
        check_family(config.to_dict(), name)
    except ModelError as error:  # the installed packages are too old for it
        pytest.skip(str(error))
    tokenizer = processor.tokenizer
    processor.chat_template = _TURNS.replace("VIDEO", tiny.video).replace("IMAGE", tiny.picture)
    config.get_text_config().eos_token_id = tokenizer.eos_token_id
    config.get_text_config().bos_token_id = None
    model = hf.AutoModelForImageTextToText.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():  # wide enough that answers hang on what is seen
            if weight.dim() > 1:
                weight.normal_(0, 1.5 / weight.shape[-1] ** 0.5)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _tokenizer(*special: str, **named: str) -> Any:
    """A tokenizer of bytes; `named` are special tokens that the processor asks for by these names."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: number for number, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    fast = hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", extra_special_tokens=named or None
    )
    fast.add_special_tokens({"additional_special_tokens": list(special)})
    return fast


def _qwen(
    processor: Any, config: Any, video_processor: Any, patch: int, text: dict[str, Any], vision: dict[str, Any]
) -> tuple[Any, Any]:
    names = ("image", "video", "vision_start", "vision_end")
    tokens = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    tokenizer = _tokenizer(*tokens)
    ids = dict(zip((f"{name}_token_id" for name in names), tokenizer.convert_tokens_to_ids(tokens), strict=True))
    size = {"shortest_edge": 4 * patch * patch, "longest_edge": 64 * patch * patch}
    parts = processor(
        image_processor=hf.Qwen2VLImageProcessor(patch_size=patch, size=size),
        tokenizer=tokenizer,
        video_processor=video_processor(patch_size=patch, size={**size, "longest_edge": 512 * patch * patch}),
    )
    rope = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4}
    text = {
        **_TEXT,
        "vocab_size": len(tokenizer),
        "rope_parameters": {**rope, **text.pop("rope_parameters", {})},
    } | text
    vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32} | vision
    return parts, config(text_config=text, vision_config={**vision, "patch_size": patch}, **ids)


def _qwen2_5_vl() -> tuple[Any, Any]:
    return _qwen(
        hf.Qwen2_5_VLProcessor, hf.Qwen2_5_VLConfig, hf.Qwen2VLVideoProcessor, 14, {}, {"fullatt_block_indexes": [1]}
    )


def _qwen3_vl() -> tuple[Any, Any]:
    vision = {"deepstack_visual_indexes": [0], "num_position_embeddings": 64}
    return _qwen(hf.Qwen3VLProcessor, hf.Qwen3VLConfig, hf.Qwen3VLVideoProcessor, 16, {"head_dim": 8}, vision)


def _qwen3_5() -> tuple[Any, Any]:
    text = {
        "head_dim": 8, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2,
        "linear_num_value_heads": 2, "layer_types": ["linear_attention", "full_attention"],
        "rope_parameters": {"mrope_interleaved": True, "partial_rotary_factor": 1.0},
    }  # fmt: skip
    vision = {"num_position_embeddings": 64}
    return _qwen(hf.Qwen3VLProcessor, hf.Qwen3_5Config, hf.Qwen3VLVideoProcessor, 16, text, vision)


def _smolvlm() -> tuple[Any, Any]:
    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
    tokens = ("<image>", "<video>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *tiles)
    tokenizer, size = _tokenizer(*tokens), {"longest_edge": 64}
    processor = hf.SmolVLMProcessor(
        hf.SmolVLMImageProcessor(size=size, max_image_size=size),
        tokenizer,
        hf.SmolVLMVideoProcessor(
            size=size, max_image_size=size, video_sampling={"max_frames": 64, "fps": 1, "video_size": size}
        ),
        image_seq_len=4,
    )
    config = hf.SmolVLMConfig(
        text_config={"model_type": "llama", "vocab_size": len(tokenizer), "pad_token_id": 0, **_TEXT},
        vision_config={**_VISION, "image_size": 64, "patch_size": 16},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=0,
    )
    return processor, config


def _llava_onevision() -> tuple[Any, Any]:
    tokenizer, size = _tokenizer("<image>", "<video>"), {"height": _SIDE, "width": _SIDE}
    grids = [[_SIDE, _SIDE], [_SIDE, 2 * _SIDE]]
    processor = hf.LlavaOnevisionProcessor(
        hf.LlavaOnevisionImageProcessor(size=size, image_grid_pinpoints=grids),
        tokenizer,
        hf.LlavaOnevisionVideoProcessor(size=size),
        num_image_tokens=16,
        vision_feature_select_strategy="full",
    )
    image, video = tokenizer.convert_tokens_to_ids(["<image>", "<video>"])
    config = hf.LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", "vocab_size": len(tokenizer), **_TEXT},
        vision_config={
            **_VISION, "model_type": "siglip_vision_model", "image_size": _SIDE, "patch_size": 14,
            "vision_use_head": False,
        },
        image_token_index=image,
        video_token_index=video,
        image_grid_pinpoints=grids,
    )  # fmt: skip
    return processor, config


def _internvl() -> tuple[Any, Any]:
    names = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
    tokenizer, size = _tokenizer(**names, video_token="<video>"), {"height": _SIDE, "width": _SIDE}
    processor = hf.InternVLProcessor(
        hf.GotOcr2ImageProcessor(size=size), tokenizer, hf.InternVLVideoProcessor(size=size), image_seq_length=4
    )
    config = hf.InternVLConfig(
        text_config={"model_type": "qwen2", "vocab_size": len(tokenizer), **_TEXT},
        vision_config={**_VISION, "image_size": [_SIDE, _SIDE], "patch_size": [14, 14]},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    return processor, config


def _gemma4() -> tuple[Any, Any]:
    names = {
        "image_token": "<|image|>", "boi_token": "<boi>", "eoi_token": "<eoi>", "audio_token": "<|audio|>",
        "boa_token": "<boa>", "eoa_token": "<eoa>",
    }  # fmt: skip
    tokenizer = _tokenizer("<|video|>", **names)
    ids = {f"{name}_id": tokenizer.convert_tokens_to_ids(token) for name, token in names.items() if name != "boa_token"}
    del ids["eoa_token_id"]
    processor = hf.Gemma4Processor(
        feature_extractor=hf.Gemma4AudioFeatureExtractor(),
        image_processor=hf.Gemma4ImageProcessor(),
        tokenizer=tokenizer,
        video_processor=hf.Gemma4VideoProcessor(),
    )
    text = {
        **_TEXT, "vocab_size": len(tokenizer), "vocab_size_per_layer_input": len(tokenizer),
        "hidden_size_per_layer_input": 8, "head_dim": 8, "global_head_dim": 8, "sliding_window": 64,
        "layer_types": ["sliding_attention", "full_attention"], "pad_token_id": 0,
    }  # fmt: skip
    config = hf.Gemma4Config(
        text_config=text,
        vision_config={**_VISION, "num_key_value_heads": 2, "head_dim": 16},
        audio_config=None,
        tie_word_embeddings=False,  # tied ones would repeat the last token
        video_token_id=tokenizer.convert_tokens_to_ids("<|video|>"),
        **ids,
    )
    return processor, config


def _qwen2_vl() -> tuple[Any, Any]:
    vision = {"embed_dim": 32, "mlp_ratio": 2}
    return _qwen(hf.Qwen2VLProcessor, hf.Qwen2VLConfig, hf.Qwen2VLVideoProcessor, 14, {}, vision)


def _video_llama_3() -> tuple[Any, Any]:
    tokenizer = _tokenizer("<|image_pad|>", "<|video_pad|>")
    image, video = tokenizer.convert_tokens_to_ids(["<|image_pad|>", "<|video_pad|>"])
    size = {"shortest_edge": 4 * 14 * 14, "longest_edge": 64 * 14 * 14}
    processor = hf.VideoLlama3Processor(
        hf.VideoLlama3ImageProcessor(patch_size=14, size=size),
        tokenizer,
        hf.VideoLlama3VideoProcessor(patch_size=14, size={**size, "longest_edge": 512 * 14 * 14}),
    )
    config = hf.VideoLlama3Config(
        text_config={"model_type": "qwen2", "vocab_size": len(tokenizer), **_TEXT},
        vision_config={**_VISION, "patch_size": 14},
        image_token_id=image,
        video_token_id=video,
    )
    return processor, config


def _glm4v() -> tuple[Any, Any]:
    kinds = ("image", "video")
    tokens = [f"<|{kind}|>" for kind in kinds] + [f"<|{end}_of_{kind}|>" for kind in kinds for end in ("begin", "end")]
    tokenizer = _tokenizer(*tokens)
    names = [f"{kind}_token_id" for kind in kinds]
    names += [f"{kind}_{end}_token_id" for kind in kinds for end in ("start", "end")]
    size = {"shortest_edge": 4 * 14 * 14, "longest_edge": 512 * 14 * 14}
    processor = hf.Glm4vProcessor(
        hf.Glm4vImageProcessor(patch_size=14, size=size), tokenizer, hf.Glm4vVideoProcessor(patch_size=14, size=size)
    )
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4, "partial_rotary_factor": 1.0}
    vision = {"depth": 2, "hidden_size": 32, "num_heads": 2, "out_hidden_size": 32, "intermediate_size": 64}
    config = hf.Glm4vConfig(
        text_config={**_TEXT, "vocab_size": len(tokenizer), "pad_token_id": 0, "rope_parameters": rope},
        vision_config={**vision, "image_size": _SIDE, "patch_size": 14},
        **dict(zip(names, tokenizer.convert_tokens_to_ids(tokens), strict=True)),
    )
    return processor, config


_PADS = ("<|vision_start|><|video_pad|><|vision_end|>", "<|vision_start|><|image_pad|><|vision_end|>")
TINY = {
    "qwen2_5_vl": Tiny(*_PADS, _qwen2_5_vl),
    "qwen3_vl": Tiny(*_PADS, _qwen3_vl),
    "qwen3_5": Tiny(*_PADS, _qwen3_5),
    "smolvlm": Tiny("<video>", "<image>", _smolvlm),
    "llava_onevision": Tiny("<video>", "<image>", _llava_onevision),
    "internvl": Tiny("<video>", "<IMG_CONTEXT>", _internvl),
    "gemma4": Tiny("<|video|>", "<|image|>", _gemma4),
    # of which llvid's table says nothing
    "qwen2_vl": Tiny(*_PADS, _qwen2_vl),
    "video_llama_3": Tiny("<|video_pad|>", "<|image_pad|>", _video_llama_3),
    "glm4v": Tiny("<|begin_of_video|><|video|><|end_of_video|>", "<|begin_of_image|><|image|><|end_of_image|>", _glm4v),
}


if __name__ == "__main__":
    make_family(Path(sys.argv[2]), sys.argv[1])
