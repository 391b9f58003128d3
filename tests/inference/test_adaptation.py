"""What is changed of a config before it is loaded: in the model, in the prompt, and in transformers' own as well."""

from __future__ import annotations

import json
import shutil
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from configs import BASE, VICUNA, YI
from scenes import VIDEO
from transformers import AutoProcessor, LlavaNextVideoForConditionalGeneration

from llava_video_cli import Generation, Loading, Request, Turn, UsageError, join, open_model
from llava_video_cli.checkpoint.config import adapted, describe
from llava_video_cli.inference.loader import load
from llava_video_cli.inference.video_model import VideoModel

REQUEST = Request((Turn("user", "What happens?", (VIDEO,)),), Generation(max_new_tokens=8))
PROMPT = "USER: {}\nWhat happens? ASSISTANT:"


@cache
def transformers_own(folder: Path) -> tuple[Any, Any]:
    return LlavaNextVideoForConditionalGeneration.from_pretrained(folder), AutoProcessor.from_pretrained(folder)


def own_answer(folder: Path, stride: int, mode: str) -> tuple[int, str]:
    """The length of the prompt and the answer of transformers' model, with pooling built from the changed config.

    Its processor counts 144 tokens a frame whatever the stride: the places are written by hand.
    """
    from transformers.models.llava_next_video.modeling_llava_next_video import LlavaNextVideoPooler

    model, processor = transformers_own(folder)
    config = deepcopy(model.config)
    config.spatial_pool_stride, config.spatial_pool_mode = stride, mode
    model.model.vision_resampler = LlavaNextVideoPooler(config)
    pixels = processor.video_processor(videos=[VIDEO.images], return_tensors="pt", do_sample_frames=False)
    text = PROMPT.format("<video>" * (24 // stride) ** 2 * len(VIDEO.images))
    inputs = processor.tokenizer(text, return_tensors="pt")
    ids = model.generate(**inputs, **pixels, max_new_tokens=8, do_sample=False)
    length = inputs["input_ids"].shape[1]
    return length, processor.tokenizer.decode(ids[0, length:], skip_special_tokens=True).strip()


@pytest.mark.parametrize("mode", ["average", "max"])
def test_each_pooling_answers_as_transformers_does(layouts: dict[str, Path], mode: Any) -> None:
    folder, seen = layouts["vicuna"], set()
    for stride in (2, 3, 4, 8) if mode == "average" else (2, 8):
        model = open_model(str(folder), Loading(pool_stride=stride, pool_mode=mode))
        answer = join(model.stream(REQUEST))
        assert (answer.usage.prompt_tokens, answer.text) == own_answer(folder, stride, mode)
        assert (model.settings["pool_stride"], model.settings["pool_mode"]) == (stride, mode)
        seen.add(answer.text)
    assert len(seen) > 1, "the pooling makes a difference"


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(input_ids=torch.arange(100, 160)[None]).logits
    return found


@pytest.mark.parametrize(("layout", "own"), [("yi", 1.0), ("vicuna", 2.5)])
def test_a_rope_factor_gives_what_a_config_with_it_gives(
    layouts: dict[str, Path], tmp_path: Path, layout: str, own: float
) -> None:
    folder = tmp_path / "scaled"
    shutil.copytree(layouts[layout], folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["rope_scaling"] = {"type": "linear", "factor": 4.0}
    (folder / "config.json").write_text(json.dumps(config))
    theirs = logits(LlavaNextVideoForConditionalGeneration.from_pretrained(folder))
    ours, plain = load(layouts[layout], Loading(rope_factor=4.0)), load(layouts[layout], Loading())
    assert torch.equal(logits(ours.model), theirs)
    assert not torch.allclose(logits(plain.model), theirs)
    answering = VideoModel(layout, ours)
    rope_factors = [model.settings["rope_factor"] for model in (VideoModel(layout, plain), answering)]
    assert rope_factors == [own, 4.0]
    assert answering.budget(REQUEST).context_tokens == 4 * 4096


@pytest.mark.parametrize("style", ["rope_scaling", "rope_parameters"])
def test_a_factor_is_the_whole_one(style: str) -> None:
    text = {"max_position_embeddings": 4096, style: {"rope_type": "linear", "factor": 2.5, "rope_theta": 5e6}}
    config = BASE | {"text_config": text}
    assert adapted(config, 2.5)[0] == config
    assert adapted(config, 4)[1].context_tokens == 16384
    assert adapted(config, 4)[0]["text_config"]["rope_parameters"]["rope_theta"] == 5e6
    with pytest.raises(UsageError, match=r"scaled by 2\.5 already; --rope-factor 2 would make the context shorter"):
        adapted(config, 2)


@pytest.mark.parametrize("factor", [0.5, float("nan"), float("inf"), -1.0])
def test_a_factor_that_makes_no_sense_is_refused(factor: float) -> None:
    with pytest.raises(UsageError, match="must be 1 or more"):
        adapted(YI, factor)


def test_a_factor_goes_on_no_other_scaling() -> None:
    text = {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}
    with pytest.raises(UsageError, match="RoPE scaling of another kind: yarn"):
        adapted(BASE | {"text_config": text}, 2)


@pytest.mark.parametrize(
    ("config", "frames", "factor"), [(YI, 21, 1), (YI, 22, 2), (YI, 64, 3), (VICUNA, 64, 2.5), (VICUNA, 96, 4)]
)
def test_auto_is_llava_next_s_own_formula_where_more_is_needed(
    config: dict[str, Any], frames: int, factor: float
) -> None:
    assert describe(config).factor_for(144 * frames + 1000) == factor


def test_a_stride_that_does_not_divide_is_refused_with_those_that_do() -> None:
    with pytest.raises(UsageError, match="--pool-stride 5 doesn't divide the 24x24 patches") as caught:
        adapted(VICUNA, pool_stride=5)
    assert caught.value.hint == "use one of 2, 3, 4, 6, 8, 12"
    assert [adapted(VICUNA, pool_stride=s)[1].rates.frame_tokens for s in describe(VICUNA).rates.strides] == [
        144, 64, 36, 16, 9, 4,
    ]  # fmt: skip
    with pytest.raises(UsageError, match="learned"):
        adapted(VICUNA | {"spatial_pool_mode": "conv"}, pool_mode="max")


def test_what_is_not_asked_for_stays() -> None:
    assert adapted(VICUNA) == (VICUNA, describe(VICUNA))
    assert adapted(VICUNA, pool_mode="average", pool_stride=2)[0] == VICUNA
