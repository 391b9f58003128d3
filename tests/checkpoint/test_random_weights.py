from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import make_checkpoint
from terminal import llvid

from llava_video_cli import Generation, Loading, Request, Sampling, Turn, join, open_model, read_frames
from llava_video_cli.checkpoint import locate
from llava_video_cli.checkpoint.config import describe, read_config
from llava_video_cli.checkpoint.random_weights import SIZES, has_random_weights, random_folder
from llava_video_cli.checkpoint.size import kv_bytes
from llava_video_cli.demo import CHECKPOINT
from llava_video_cli.errors import UsageError
from llava_video_cli.inference.weights import RandomTensor, random_tensors

CPU = torch.device("cpu")


def tensors(size: str, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> dict[str, RandomTensor]:
    from transformers import LlavaNextVideoConfig

    return random_tensors(LlavaNextVideoConfig.from_pretrained(locate(f"random:{size}")), dtype, CPU, seed)


@pytest.mark.parametrize(
    ("size", "billions", "context", "kv_kib"),
    [("1B", 1.05, 10240, 96), ("7B", 7.06, 10240, 512), ("7B-32K", 7.57, 32768, 128), ("34B", 34.75, 4096, 240)],
)
def test_the_sizes_are_those_of_the_published_checkpoints(
    size: str, billions: float, context: int, kv_kib: int
) -> None:
    facts = describe(read_config(locate(f"random:{size}")))
    count = sum(math.prod(drawn.shape) for drawn in tensors(size).values())
    assert round(count / 1e9, 2) == billions
    assert facts.parameters.total == count
    assert (facts.context_tokens, facts.rates.frame_tokens, kv_bytes(facts)) == (context, 144, kv_kib * 1024)


def test_a_name_is_a_size_or_an_error() -> None:
    assert {locate(f"random:{size}").name for size in SIZES} == set(SIZES)
    assert locate("random:7b") == random_folder("random:7B")
    assert random_folder("llava-hf/random") is None
    with pytest.raises(UsageError, match="no random weights of size '13B'"):
        locate("random:13B")


def test_a_strangers_checkpoint_is_never_drawn(tmp_path: Path) -> None:
    """Only the package's own configs mean random weights, whatever a folder is called."""
    folder = make_checkpoint(tmp_path / "random" / "7B", "vicuna")
    assert not has_random_weights(folder) and not has_random_weights(CHECKPOINT)
    (folder / "model.safetensors").unlink()
    with pytest.raises(Exception, match="has no weights"):
        locate(str(folder))


def test_the_seed_gives_the_values_and_no_two_rows_are_the_same() -> None:
    name = "model.language_model.embed_tokens.weight"
    first, again, other = (tensors("tiny", seed=seed)[name][...] for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert len({row.float().numpy().tobytes() for row in first}) == len(first)
    assert first.dtype == torch.bfloat16 and first.isfinite().all()


def test_only_words_are_ever_likeliest() -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(CHECKPOINT / "tokenizer.json"))
    head = tensors("tiny")["lm_head.weight"][...].float()
    speaks = (head.abs().sum(dim=1) > 0).nonzero().flatten().tolist()
    assert speaks == list(range(speaks[0], tokenizer.get_vocab_size()))
    assert all(tokenizer.decode([number]).strip().isalpha() for number in speaks)


@pytest.mark.parametrize("quantize", ["none", "4bit"])
def test_a_random_model_answers_to_its_longest_and_the_same_each_time(clip: Path, quantize: Any) -> None:
    frames = read_frames(clip, Sampling(frames=4))
    request = Request((Turn("user", "What is it?", (frames,)),), Generation(max_new_tokens=24))
    loading = Loading(quantize=quantize, dtype="bfloat16", device="cpu")
    models = [open_model("random:tiny", loading) for _ in range(2)]
    answers = [join(model.stream(request)) for model in models]
    assert answers[0].text == answers[1].text != ""
    assert answers[0].usage.generated_tokens == 24 and answers[0].finish_reason == "length"
    assert answers[0].usage.prompt_tokens > 4 * 16
    other = read_frames(clip, Sampling(frames=4, start_seconds=1.0))
    asked_of_another = Request((Turn("user", "What is it?", (other,)),), Generation(max_new_tokens=24))
    assert join(models[0].stream(asked_of_another)).text != answers[0].text  # what is seen changes what is said
    assert models[0].settings["model"] == "random:tiny"


@pytest.mark.slow
def test_the_command_line_takes_a_random_model(clip: Path) -> None:
    arguments = ("ask", str(clip), "What is it?", "--max-new-tokens", "4")
    result = llvid(*arguments, "-m", "random:tiny")
    assert result.returncode == 0 and result.stdout.strip()
    assert "random weights: the answers are meaningless" in result.stderr
    result = llvid(*arguments, "-m", "random:13B")
    assert result.returncode == 2 and "the sizes are tiny, 1B, 7B, 7B-32K, 34B" in result.stderr
