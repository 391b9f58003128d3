"""Tiny random checkpoints in the published layouts: real geometry, ids and file layout, made-up weights.

Run as a program, it makes one: `python tests/checkpoints.py vicuna|vicuna-dpo|mistral|yi|yi-dpo FOLDER`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from transformers import LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration, PreTrainedTokenizerFast

LAYOUTS = ("vicuna", "vicuna-dpo", "mistral", "yi", "yi-dpo")  # 7B, 7B-DPO, 7B-32K, 34B, 34B-DPO
WORDS = 4000  # of the vocabularies of most tests: published ones take most of the time of a tiny model
GRID = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
HIDDEN = 64

# What the published templates render, written anew: pictures, then videos, then texts.
_MEDIA = (
    "{% for kind in ['image', 'video'] %}{% for part in message['content'] %}{% if part['type'] == kind %}"
    "{{ '<' + kind + '>\n' }}{% endif %}{% endfor %}{% endfor %}"
)
_TEXTS = (
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] + END }}{% endif %}{% endfor %}"
)
TEMPLATES = {
    "vicuna": "{% for message in messages %}"
    "{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}"
    + _MEDIA + _TEXTS.replace("END", "' '") + "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}",
    "mistral": "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('no system role') }}"
    "{% elif message['role'] == 'user' %}{{ '[INST] ' }}" + _MEDIA + _TEXTS.replace("END", "' [/INST]'")
    + "{% else %}{{ ' ' }}" + _TEXTS.replace("END", "eos_token") + "{% endif %}{% endfor %}",
    "yi": "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}" + _MEDIA + _TEXTS.replace("END", "''")
    + "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
}  # fmt: skip


def make_checkpoint(
    folder: Path,
    layout: str,
    seed: int = 0,
    text: dict[str, int] | None = None,
    vision: dict[str, int] | None = None,
    words: int | None = None,
) -> Path:
    """Write a checkpoint in a published layout: config, tokenizer, processor files, safetensors.

    `text` and `vision` go over the values of the language model's and the vision tower's config. `words` is how many
    tokens there are before the special ones that pictures and videos need; None for as many as are published.
    """
    folder.mkdir(parents=True, exist_ok=True)
    layout, _, dpo = layout.partition("-")
    words = words or (64000 if layout == "yi" else 32000)
    config = _config(layout, words)
    seed += bool(dpo)  # the same layout with other weights
    config["text_config"] |= text or {}
    config["vision_config"] |= vision or {}
    preprocessor = _preprocessor(config["vision_config"]["image_size"])
    torch.manual_seed(seed)
    model = LlavaNextVideoForConditionalGeneration(LlavaNextVideoConfig(**config))
    with torch.no_grad():
        for name, weight in model.named_parameters():  # wide enough that answers hang on what is seen
            if weight.dim() > 1:
                weight.normal_(0, 0.6 / weight.shape[-1] ** 0.5 * (4.0 if "lm_head" in name else 2.0))
    model.save_pretrained(folder)
    _write(folder / "config.json", {"architectures": ["LlavaNextVideoForConditionalGeneration"], **config})
    _tokenizer(layout, words).save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    _write(folder / "chat_template.json", {"chat_template": TEMPLATES[layout]})
    _write(folder / "preprocessor_config.json", preprocessor)
    _write(
        folder / "video_preprocessor_config.json",
        preprocessor | {"video_processor_type": "LlavaNextVideoVideoProcessor"},
    )
    _write(
        folder / "processor_config.json", {"processor_class": "LlavaNextVideoProcessor"}
    )  # as old ones: no patch size
    return folder


def _config(layout: str, words: int) -> dict[str, Any]:
    text: dict[str, Any] = {
        "model_type": "mistral" if layout == "mistral" else "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4 if layout == "vicuna" else 2,
        "vocab_size": words + 64 if words >= 32000 else words + 8,
        "rms_norm_eps": 1e-05,
        "pad_token_id": 0,
    }
    more: dict[str, dict[str, Any]] = {
        "vicuna": {
            "max_position_embeddings": 4096,
            "rope_scaling": {"factor": 2.5, "type": "linear"},
            "eos_token_id": 2,
        },
        "mistral": {
            "max_position_embeddings": 32768,
            "rope_theta": 1000000.0,
            "sliding_window": None,
            "eos_token_id": 2,
        },
        "yi": {"max_position_embeddings": 4096, "rope_theta": 5000000.0, "eos_token_id": 7, "use_cache": False},
    }
    text |= more[layout]
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 336,
        "patch_size": 14,
        "projection_dim": 32,
        "vocab_size": 32000,
    }
    first = words + 3 if layout == "yi" else words
    return {
        "model_type": "llava_next_video",
        "text_config": text,
        "vision_config": vision,
        "video_token_index": first,
        "image_token_index": first + 1,
        "image_grid_pinpoints": GRID,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": -2,
        "vision_feature_select_strategy": "default",
        "spatial_pool_mode": "average",
        "spatial_pool_stride": 2,
        "video_seq_length": 288,
        "tie_word_embeddings": False,
    }


def _preprocessor(side: int) -> dict[str, Any]:
    return {
        "image_processor_type": "LlavaNextImageProcessor",
        "processor_class": "LlavaNextVideoProcessor",
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_grid_pinpoints": GRID,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "rescale_factor": 1 / 255,
    }


def _tokenizer(layout: str, count: int) -> PreTrainedTokenizerFast:
    """A tokenizer like Llama's: bytes as a fallback, `▁` for spaces, made-up words up to the size that is wanted."""
    specials = ["<unk>", "<|startoftext|>", "<|endoftext|>"] if layout == "yi" else ["<unk>", "<s>", "</s>"]
    if layout == "yi":
        specials += ["<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<|im_start|>", "<|im_end|>"]
    words = (
        specials
        + [f"<0x{byte:02X}>" for byte in range(256)]
        + [chr(code) for code in range(33, 127)]
        + ["▁", "é", "日", "本"]
    )
    words += [f"▁w{number}" for number in range(count - len(words))]
    tokenizer = Tokenizer(
        models.BPE({word: index for index, word in enumerate(words)}, [], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bos, eos = ("<|startoftext|>", "<|im_end|>") if layout == "yi" else ("<s>", "</s>")
    if layout != "yi":
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, words.index(bos))]
        )
    tokenizer.add_special_tokens([AddedToken(word, special=True) for word in specials])
    # They lie behind the words: the published ids are 32000 and 32001, and, for Yi, 64003 and 64004.
    more = ["<pad0>", "<pad1>", "<pad2>", "<video>", "<image>"] if layout == "yi" else ["<video>", "<image>", "<pad>"]
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in more])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=bos,
        eos_token=eos,
        unk_token="<unk>",
        pad_token="<unk>",
        padding_side="left",
    )


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2), encoding="utf-8")


if __name__ == "__main__":
    make_checkpoint(Path(sys.argv[2]), sys.argv[1])
