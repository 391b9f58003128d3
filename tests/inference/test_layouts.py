"""Every file layout and quirk that checkpoints come with: the same tokens as the documented way gives."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Container, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from scenes import CONVERSATIONS, STILL, VIDEO
from test_parity import GREEDY, NEW_TOKENS, documented_ids, same
from transformers import AutoProcessor, LlavaNextVideoForConditionalGeneration

from llava_video_cli import Request, Turn, join, open_model

PREPROCESSORS = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")


def renamed(rename: Callable[[str], str]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        weights = {rename(name): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
        save_file(weights, folder / "model.safetensors", {"format": "pt"})

    return change


def published_name(name: str) -> str:
    """As transformers 4 wrote it, and the published checkpoints have it."""
    return name.replace("vision_tower.", "vision_tower.vision_model.")


def newer_name(name: str) -> str:
    """As transformers 4.52 and later name them in memory, and some tools store them."""
    if name == "language_model.lm_head.weight":
        return "lm_head.weight"
    return "model." + name.replace("language_model.model.", "language_model.")


def sharded(folder: Path) -> None:
    weights = list(load_file(folder / "model.safetensors").items())
    (folder / "model.safetensors").unlink()
    parts = {"model-00001-of-00002.safetensors": weights[::2], "model-00002-of-00002.safetensors": weights[1::2]}
    for name, part in parts.items():
        save_file(dict(part), folder / name, {"format": "pt"})
    places = {tensor: name for name, part in parts.items() for tensor, _ in part}
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def all_in_processor_config(folder: Path) -> None:
    """As transformers 5 writes it."""
    image, video, whole = (json.loads((folder / name).read_text()) for name in PREPROCESSORS)
    (folder / "preprocessor_config.json").unlink()
    (folder / "video_preprocessor_config.json").unlink()
    whole |= {"image_processor": image, "video_processor": video, "patch_size": 14, "num_additional_image_tokens": 1}
    whole |= {"vision_feature_select_strategy": "default"}
    (folder / "processor_config.json").write_text(json.dumps(whole))


def only_the_old_preprocessor(folder: Path) -> None:
    """As checkpoints of 2024 were uploaded."""
    (folder / "video_preprocessor_config.json").unlink()
    (folder / "processor_config.json").unlink()


def no_preprocessor(folder: Path) -> None:
    for name in PREPROCESSORS:
        (folder / name).unlink()


def template_of_its_own(folder: Path) -> None:
    template = json.loads((folder / "chat_template.json").read_text())["chat_template"]
    (folder / "chat_template.json").unlink()
    (folder / "chat_template.jinja").write_text(template)


def no_architectures_but_that(folder: Path) -> None:
    """As some revisions say it: the model type of the picture model."""
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlavaNextVideoForConditionalGeneration"]
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "llava_next"}))


LAYOUTS: list[tuple[str, list[Callable[[Path], None]]]] = [
    ("vicuna", [renamed(published_name), only_the_old_preprocessor]),
    ("vicuna-dpo", [renamed(published_name), sharded, no_preprocessor]),
    ("vicuna-dpo", [no_architectures_but_that]),
    ("mistral", [renamed(newer_name), sharded, template_of_its_own]),
    ("yi", [sharded, template_of_its_own, no_preprocessor]),
    ("yi-dpo", [renamed(newer_name), all_in_processor_config, template_of_its_own]),
    ("yi-dpo", [renamed(published_name), all_in_processor_config, sharded]),
]


def numbered(cases: Sequence[tuple[Any, ...]], slow: Container[int]) -> list[Any]:
    """Cases that begin with the name of a layout, by that and their numbers."""
    return [
        pytest.param(*case, id=f"{case[0]}-{number}", marks=pytest.mark.slow if number in slow else ())
        for number, case in enumerate(cases)
    ]


@cache
def whole(folder: Path) -> tuple[Any, Any]:
    """transformers' model and processor of a checkpoint that lacks nothing but what the documentation fills in."""
    theirs = LlavaNextVideoForConditionalGeneration.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder)
    processor.patch_size = theirs.config.vision_config.patch_size
    processor.vision_feature_select_strategy = theirs.config.vision_feature_select_strategy
    processor.num_additional_image_tokens = 1
    return theirs, processor


def copied(folder: Path, to: Path, *changes: Callable[[Path], None]) -> Path:
    shutil.copytree(folder, to)
    for change in changes:
        change(to)
    return to


@pytest.mark.parametrize(("layout", "changes"), numbered(LAYOUTS, slow=(4, 6)))  # the others have each change, too
def test_each_file_layout_answers_as_the_documented_way(
    layouts: dict[str, Path], tmp_path: Path, layout: str, changes: list[Callable[[Path], None]]
) -> None:
    theirs, processor = whole(layouts[layout])
    model = open_model(str(copied(layouts[layout], tmp_path / layout, *changes)))
    for name in ("video", "both"):
        turns = CONVERSATIONS[name]
        same(join(model.stream(Request(turns, GREEDY))), *documented_ids(theirs, processor, turns), processor.tokenizer)


def test_the_layouts_are_five_checkpoints(layouts: dict[str, Path]) -> None:
    answers = {layout: documented_ids(*whole(folder), CONVERSATIONS["video"]) for layout, folder in layouts.items()}
    assert len({str(answer) for answer in answers.values()}) == 5


# The templates of the conversion script, written anew with their mistakes.
_PART = "{% for p in m['content'] %}{% if p['type'] == 'KIND' %}DO{% endif %}{% endfor %}"
_TEXT = _PART.replace("KIND", "text")
_PICTURE = _PART.replace("KIND", "image").replace("DO", "{{ '<image>\n' }}")
NO_VIDEO = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}" + _PICTURE + _TEXT.replace("DO", "{{ p['text'] + ' ' }}")
    + "{% endfor %}ASSISTANT:"
)  # fmt: skip
SYSTEM_TWICE = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'][0]['text'] }}"
    "{% else %}{{ m['role'].upper() + ': ' }}{% endif %}" + _PART.replace("KIND", "video").replace("DO", "<video>\n")
    + _TEXT.replace("DO", "{{ p['text'] + ' ' }}") + "{% endfor %}ASSISTANT:"
)  # fmt: skip
MISTYPED_END = (
    "{% for m in messages %}{% if m['role'] == 'user' %}[INST] "
    + _PART.replace("KIND", "video").replace("DO", "<video>\n") + _TEXT.replace("DO", "{{ p['text'] }}")
    + " [/INST]{% else %} " + _TEXT.replace("DO", "{{ p['text'] }}") + r"<\s>{% endif %}{% endfor %}"
)  # fmt: skip

ONE = (Turn("user", "Why?", (VIDEO,)),)
MIXED = (Turn("user", "Why?", (STILL, VIDEO)),)
TWO = (*ONE, Turn("assistant", "Because."), Turn("user", "And?"))
BRIEF = (Turn("system", "Be brief."), *ONE)
QUIRKS = [
    ("vicuna", NO_VIDEO, ONE, "USER: <video>\nWhy? ASSISTANT:"),
    ("vicuna-dpo", NO_VIDEO, MIXED, "USER: <image>\n<video>\nWhy? ASSISTANT:"),
    ("yi-dpo", NO_VIDEO, ONE, "<|im_start|>user\n<video>\nWhy?<|im_end|>\n<|im_start|>assistant\n"),
    ("vicuna", SYSTEM_TWICE, BRIEF, "Be brief. USER: <video>\nWhy? ASSISTANT:"),
    ("mistral", MISTYPED_END, TWO, "[INST] <video>\nWhy? [/INST] Because.</s>[INST] And? [/INST]"),
    ("mistral", MISTYPED_END, BRIEF, "[INST] Be brief.\n\n<video>\nWhy? [/INST]"),
]


# test_chat_template compares those two forms by default
@pytest.mark.parametrize(("layout", "template", "turns", "safe"), numbered(QUIRKS, slow=(2, 5)))
def test_a_template_with_a_mistake_is_answered_as_the_safe_form_is(
    layouts: dict[str, Path], tmp_path: Path, layout: str, template: str, turns: tuple[Turn, ...], safe: str
) -> None:
    def break_template(folder: Path) -> None:
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))

    theirs, processor = whole(layouts[layout])
    images = [STILL.pixels] if STILL in turns[0].media else None
    inputs = processor(text=safe, videos=[VIDEO.images], images=images, return_tensors="pt")
    ids = theirs.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, use_cache=True)
    length = inputs["input_ids"].shape[1]
    model = open_model(str(copied(layouts[layout], tmp_path / layout, break_template)))
    same(join(model.stream(Request(turns, GREEDY))), length, ids[0, length:].tolist(), processor.tokenizer)


@pytest.mark.parametrize("layout", ["yi", "yi-dpo"])
def test_a_config_that_turns_the_cache_off_is_not_obeyed(layouts: dict[str, Path], layout: str) -> None:
    config = json.loads((layouts[layout] / "config.json").read_text())
    assert config["text_config"]["use_cache"] is False
    model = open_model(str(layouts[layout]))
    first, second = (join(model.stream(Request(ONE, GREEDY))) for _ in range(2))
    assert first.text == second.text and second.usage.cached_tokens == second.usage.prompt_tokens - 1
