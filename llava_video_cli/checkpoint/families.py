"""The families of video models: what is known of each, and which checkpoints are run at all. No torch.

LLaVA-NeXT-Video has code of its own; all others go through the same code, which asks their processor.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from ..errors import ModelError
from ..video.fit import TimeMarks

ARCHITECTURE = "LlavaNextVideoForConditionalGeneration"
LLAVA_NEXT_VIDEO = "llava_next_video"
WANTED = (
    "llvid runs video models in the transformers layout, such as llava-hf/LLaVA-NeXT-Video-7B-hf or "
    "Qwen/Qwen3-VL-4B-Instruct"
)


@dataclass(frozen=True)
class Family:
    """What the generic code must know of a family beside what the processor and the model tell.

    A video of fewer frames than `least_frames` is shown several times. `time_marks` are those of `FrameInput`. `reuse`
    tells whether the keys and values of a prompt's beginning serve the next prompt: a test has shown that answers stay
    the same. Where `equal_frames`, transformers needs the same number of frames in all videos of a batch (here each
    prompt is computed by itself). `positions` are 3D where a medium's tokens share their place in time (M-RoPE), and
    `cache` is what the layers keep: of `sliding` ones the last tokens only, of `linear` ones a state, which can't be
    cut. `packages` are needed beside those that are always there, and `transformers` is the first version that works.
    """

    name: str
    least_frames: int = 1
    equal_frames: bool = False
    time_marks: TimeMarks = "none"
    positions: Literal["1D", "3D"] = "1D"
    cache: Literal["plain", "sliding", "linear"] = "plain"
    reuse: bool = False
    packages: tuple[str, ...] = ()
    transformers: tuple[int, int] = (0, 0)
    was_tried: bool = True


_QWEN2 = Family("Qwen2.5-VL", positions="3D", reuse=True)
_QWEN3 = Family("Qwen3-VL", least_frames=2, time_marks="seconds", positions="3D", reuse=True)
_QWEN3_5 = Family("Qwen3.5", least_frames=2, time_marks="seconds", positions="3D", cache="linear")
FAMILIES: Mapping[str, Family] = {
    LLAVA_NEXT_VIDEO: Family("LLaVA-NeXT-Video", equal_frames=True, reuse=True),
    "qwen2_5_vl": _QWEN2,
    "qwen3_vl": _QWEN3,
    "qwen3_vl_moe": _QWEN3,
    "qwen3_5": _QWEN3_5,
    "qwen3_5_moe": _QWEN3_5,
    "smolvlm": Family("SmolVLM2", time_marks="clock", reuse=True, packages=("num2words",), transformers=(5, 23)),
    "gemma4": Family("Gemma 4", time_marks="clock", cache="sliding"),
    "internvl": Family("InternVL3", equal_frames=True, reuse=True),
    "llava_onevision": Family("LLaVA-OneVision", equal_frames=True, reuse=True),
}  # fmt: skip


def model_type_of(config: Mapping[str, Any]) -> str:
    """Return the name of a config's kind of model, as transformers has it.

    Some published revisions of LLaVA-NeXT-Video say `model_type: llava_next`; only `architectures` identifies them.
    """
    return LLAVA_NEXT_VIDEO if ARCHITECTURE in _architectures(config) else str(config.get("model_type", ""))


def is_generic(config: Mapping[str, Any]) -> bool:
    """Whether a checkpoint is run by the code for all families."""
    return model_type_of(config) != LLAVA_NEXT_VIDEO


def family_of(config: Mapping[str, Any]) -> Family:
    """Return what is known of a checkpoint's family; of one that is not listed, nothing."""
    kind = model_type_of(config)
    return FAMILIES.get(kind) or Family(kind, was_tried=False)


def untried(family: Family) -> str:
    """Return the note on a family of which nothing is known."""
    return f"{family.name} was not tried with llvid: its answers may be wrong"


def is_listed(config: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's family is known."""
    return model_type_of(config) in FAMILIES


def check_family(config: Mapping[str, Any], name: str) -> None:
    """Raise `ModelError` for a checkpoint that is no video model, or whose packages are missing."""
    kind = model_type_of(config)
    if kind not in FAMILIES:
        _check_unlisted(config, kind, name)
    family = family_of(config)
    tower = config.get("vision_config")
    of_timm = isinstance(tower, Mapping) and str(tower.get("model_type", "")).startswith("timm")
    for package in (*family.packages, *(("timm",) if of_timm else ())):
        try:
            version(package)
        except PackageNotFoundError:
            raise ModelError(f"{family.name} needs the package {package}", f"pip install {package}") from None
    major, minor, *_ = version("transformers").split(".")
    if (int(major), int(minor)) < family.transformers:
        least = ".".join(map(str, family.transformers))
        hint = "pip install -U transformers"
        raise ModelError(
            f"{family.name} needs transformers {least} or newer, got {major}.{minor}",
            hint if sys.version_info >= (3, 11) else f"use Python 3.11 or newer, then: {hint}",
        )


def _check_unlisted(config: Mapping[str, Any], kind: str, name: str) -> None:
    got = f"its architecture is {', '.join(_architectures(config)) or kind or 'unknown'}"
    sees = any("vis" in key or "image" in key for key in config)
    if not kind or not sees:
        raise ModelError(f"{name} is not a video model: {got}", WANTED)
    # the lists of transformers take seconds to import, which only what will be loaded with it has to pay
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING_NAMES

    if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        own = ", with code of its own, which llvid never runs" if "auto_map" in config else ""
        raise ModelError(f"{name} is not a video model that transformers can run: {got}{own}", WANTED)
    if kind not in VIDEO_PROCESSOR_MAPPING_NAMES:
        raise ModelError(f"{name} takes pictures, not videos: {got}", WANTED)


def _architectures(config: Mapping[str, Any]) -> list[str]:
    stored = config.get("architectures")
    return [str(each) for each in stored] if isinstance(stored, list) else []
