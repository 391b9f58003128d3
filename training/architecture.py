"""The parts of the demo checkpoint: tokenizer, processor, chat template, and the untrained model."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaNextImageProcessor,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
    LlavaNextVideoProcessor,
    LlavaNextVideoVideoProcessor,
    PreTrainedTokenizerFast,
)

from llava_video_cli.demo.questions import BY_KIND, right_answer, worded
from llava_video_cli.demo.world import random_scene

IMAGE_SIZE = 48
PATCH_SIZE = 8
VOCABULARY = 448
SPECIAL = ("<s>", "</s>", "<pad>", "<image>", "<video>")
GRID = [[48, 96], [96, 48], [96, 96], [144, 48], [48, 144]]  # the real checkpoint's, scaled by 48 / 336
_SIZES: Any = {"size": {"shortest_edge": IMAGE_SIZE}, "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE}}
SYSTEMS = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions.",
    "You are a helpful assistant.",
    "You are a helpful video assistant. Answer in one short sentence.",
    "Answer briefly.",
    "Be brief.",
)

CHAT_TEMPLATE = """{%- for message in messages -%}
{%- set content = message['content'] -%}
{%- set role = message['role'] -%}
{%- if role == 'user' %}{{ 'USER: ' }}{% elif role == 'assistant' %}{{ 'ASSISTANT: ' }}{% endif -%}
{%- if content is string %}{{ content }}{% else -%}
{%- for part in content -%}
{%- if part['type'] == 'video' %}{{ '<video>\\n' }}{% elif part['type'] == 'image' %}{{ '<image>\\n' }}\
{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif -%}
{%- endfor -%}
{%- endif -%}
{%- if role == 'assistant' %}{{ '</s>' }}{% else %}{{ ' ' }}{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif -%}
"""


def build_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the world's own sentences; any other text falls back to bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_sentences(seed), trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    wrap: Any = PreTrainedTokenizerFast
    wrapped: PreTrainedTokenizerFast = wrap(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        padding_side="left",
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
        extra_special_tokens={"image_token": "<image>", "video_token": "<video>"},
    )
    return wrapped


def media_id(tokenizer: PreTrainedTokenizerFast, token: str) -> int:
    """The token id of a medium's placeholder."""
    token_id = tokenizer.convert_tokens_to_ids(token)
    assert isinstance(token_id, int), token
    return token_id


def video_processor() -> LlavaNextVideoVideoProcessor:
    """Frames to pixels: shortest edge to 48, centre crop."""
    return LlavaNextVideoVideoProcessor(**_SIZES)


def image_processor() -> LlavaNextImageProcessor:
    """Pictures to pixels: the whole picture resized to 48 x 48, and the tiles of AnyRes."""
    return LlavaNextImageProcessor(image_grid_pinpoints=GRID, **_SIZES)


def build_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaNextVideoProcessor:
    """The processor: both preprocessors, the tokenizer and the chat template."""
    assemble: Any = LlavaNextVideoProcessor
    processor: LlavaNextVideoProcessor = assemble(
        video_processor=video_processor(),
        image_processor=image_processor(),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return processor


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlavaNextVideoForConditionalGeneration:
    """The untrained model in float32; seed torch before the call."""
    special: Any = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = CLIPVisionConfig(
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=96,
        hidden_act="gelu",
    )
    text = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        initializer_range=0.06,
        use_cache=True,
        **special,
    )
    config = LlavaNextVideoConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=media_id(tokenizer, "<image>"),
        video_token_index=media_id(tokenizer, "<video>"),
        image_grid_pinpoints=GRID,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        spatial_pool_mode="average",
        spatial_pool_stride=2,
        image_seq_length=(IMAGE_SIZE // PATCH_SIZE) ** 2,
        video_seq_length=(IMAGE_SIZE // PATCH_SIZE) ** 2,
    )
    model = LlavaNextVideoForConditionalGeneration(config)
    assert model.dtype == torch.float32, model.dtype
    generation: Any = GenerationConfig
    model.generation_config = generation(**special)
    return model


def _sentences(seed: int) -> list[str]:
    """The training text of the tokenizer: the world's questions and answers, in the chat template."""
    rng = np.random.default_rng(seed)
    lines = []
    for kind, _ in product(BY_KIND, range(150)):
        scene, picture = random_scene(rng), random_scene(rng, changes=False)
        text = worded(kind, rng)
        lines.append(f"USER: \n{text} ASSISTANT: {right_answer(kind, scene, text, picture)}")
    lines += [f"{system} USER: " for system in SYSTEMS] * 4
    return lines
