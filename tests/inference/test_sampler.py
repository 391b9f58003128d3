"""Which tokens are taken: top-k, top-p and min-p as transformers has them, penalties, and what is noted of each one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from scenes import VIDEO, checkpoint
from transformers import (
    GenerationConfig,
    LlavaNextVideoForConditionalGeneration,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from llava_video_cli import Generation, Request, Turn, join, open_model
from llava_video_cli.inference.sampler import Sampler, sample
from llava_video_cli.inference.video_model import VideoModel

LOGITS = torch.randn(1, 40, generator=torch.Generator().manual_seed(0)) * 2


def sampler(**generation: Any) -> Sampler:
    return Sampler(Generation(**generation), GenerationConfig(), [], [], torch.device("cpu"))


@pytest.mark.parametrize(
    "options", [{"top_k": 5}, {"top_p": 0.6}, {"min_p": 0.2}, {"top_k": 12, "top_p": 0.7, "min_p": 0.1}], ids=str
)
def test_sampled_tokens_are_those_that_transformers_keeps(options: dict[str, Any]) -> None:
    """As often as their probabilities say, and the same beside rows with other settings."""
    warpers = LogitsProcessorList([TemperatureLogitsWarper(1.3)])
    warpers += [TopKLogitsWarper(options["top_k"])] if "top_k" in options else []
    warpers += [TopPLogitsWarper(options["top_p"])] if "top_p" in options else []
    warpers += [MinPLogitsWarper(options["min_p"])] if "min_p" in options else []
    wanted = warpers(torch.zeros(1, 0, dtype=torch.long), LOGITS.clone()).softmax(-1)[0]
    row, others = sampler(temperature=1.3, seed=1, **options), [sampler(temperature=2.0, seed=2), sampler()]
    alone = [int(sample(LOGITS, [row])[0]) for _ in range(2000)]
    shares = torch.bincount(torch.tensor(alone), minlength=40) / 2000
    assert set(alone) == set(wanted.nonzero()[:, 0].tolist())
    assert float((shares - wanted).abs().max()) < 0.05
    row = sampler(temperature=1.3, seed=1, **options)
    assert [int(sample(LOGITS.expand(3, -1), [row, *others])[0][0]) for _ in range(200)] == alone[:200]


def test_whole_numbers_are_as_good_as_others() -> None:
    """Lines of `llvid batch` and callers from Python have them: transformers refuses a penalty of 2."""
    whole, others = {"temperature": 1, "top_p": 1, "min_p": 0, "repetition_penalty": 2}, {"repetition_penalty": 2.0}
    rows = [sampler(seed=3, **whole), sampler(seed=3, temperature=1.0, **others)]
    first, second = sample(LOGITS.expand(2, -1), rows)[0]
    assert int(first) == int(second)


@pytest.mark.parametrize(("presence", "frequency"), [(1.5, 0.0), (0.0, 0.75), (-0.5, 0.25)])
def test_penalties_count_the_tokens_of_the_answer(presence: float, frequency: float) -> None:
    row, counts = sampler(presence_penalty=presence, frequency_penalty=frequency), torch.zeros(40)
    for _ in range(30):
        new_id = int(sample(LOGITS, [row])[0])
        assert new_id == int((LOGITS[0] - presence * (counts > 0) - frequency * counts).argmax())
        counts[new_id] += 1
    assert (counts > 0).sum() > 1 or presence < 0


@torch.inference_mode()
@pytest.mark.parametrize("name", ["demo", "vicuna"])
def test_logprobs_are_those_of_transformers(name: str, layouts: dict[str, Path]) -> None:
    """Of the logits as they are: nothing that changes the choice changes them."""
    folder = checkpoint(name, layouts)
    theirs = LlavaNextVideoForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    model = open_model(str(folder))
    assert isinstance(model, VideoModel)
    describe = model.prompts.tokenizer.describe
    for generation in (
        Generation(8),
        Generation(8, 1.5, seed=3, repetition_penalty=1.3),
        Generation(8, regex="[a-z]+"),
    ):
        request = Request((Turn("user", "What is a circle?"),), generation, logprobs=3)
        answer = join(model.stream(request))
        whole = model.answer_all([request])[0].logprobs
        assert [each.content for each in answer.logprobs] == [each.content for each in whole]
        ids = list[int]()
        prompt = model.prompts.prompt(request)[0].ids
        for each in answer.logprobs:
            logits = theirs(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, -1].log_softmax(-1)
            values, numbers = logits.topk(3)
            assert [top.logprob for top in each.top] == pytest.approx(values.tolist(), abs=1e-4)
            named = [n for n in range(len(logits)) if describe(n) == (each.token, each.content)]
            new = min(named, key=lambda n: abs(float(logits[n]) - each.logprob))  # a byte may have two tokens
            assert each.logprob == pytest.approx(float(logits[new]), abs=1e-4)
            assert each.logprob <= each.top[0].logprob and len(numbers) == 3
            ids.append(new)
        assert answer.text in b"".join(each.content for each in answer.logprobs).decode("utf-8", "replace")
    assert join(model.stream(Request((Turn("user", "What?", (VIDEO,)),), Generation(3)))).logprobs == ()
