"""Logits that are NaN or infinite end an answer with an error, and only that answer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from serving import serving
from test_stream_all import asked
from typer.testing import CliRunner

from llava_video_cli import Chunk, ModelError, join, open_model
from llava_video_cli.cli.app import app
from llava_video_cli.inference.families.llava_next_video import LlavaVideo
from llava_video_cli.runs.batches import BatchSize, answered
from llava_video_cli.runs.prefetch import Question

MESSAGE = "gives NaN or infinite logits in float32"


@pytest.fixture
def model(layouts: dict[str, Path]) -> LlavaVideo:
    opened = open_model(str(layouts["vicuna"]))
    assert isinstance(opened, LlavaVideo)
    return opened


def weight(model: LlavaVideo, end: str) -> torch.Tensor:
    return next(value for name, value in model._model.named_parameters() if name.endswith(end)).data  # noqa: SLF001


def poison_word(model: LlavaVideo, text: str) -> None:
    """Only prompts that hold the word are spoiled."""
    (token,) = model._tokenizer(text, add_special_tokens=False)["input_ids"][-1:]  # noqa: SLF001
    weight(model, "embed_tokens.weight")[token] = float("nan")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("settings", [{}, {"temperature": 1.0, "seed": 1}, {"temperature": 0.5, "top_p": 0.5}])
def test_each_way_to_answer_says_so(model: LlavaVideo, value: float, settings: dict[str, Any]) -> None:
    weight(model, "lm_head.weight")[7, 0] = value
    for attempt in range(2):  # the second one may not use what the first one left
        with pytest.raises(ModelError, match=MESSAGE):
            join(model.stream(asked("What happens?", **settings)))
        with pytest.raises(ModelError, match=MESSAGE):
            model.answer_all([asked(f"What happens {attempt}?", **settings), asked("Why?", **settings)])


def test_a_row_takes_no_other_row_down(model: LlavaVideo) -> None:
    requests = [asked("What happens?"), asked("w12345"), asked("Why?", max_new_tokens=30)]
    wanted = [model.answer_all([request])[0].text for request in requests]
    poison_word(model, "w12345")
    chunks: dict[int, list[Chunk]] = {}
    with pytest.raises(ModelError, match=MESSAGE):
        for number, chunk in model.stream_all(requests):
            chunks.setdefault(number, []).append(chunk)
    assert {number: join(pieces).text for number, pieces in chunks.items()} == {0: wanted[0], 2: wanted[2]}
    results = answered(model, [Question(request, None) for request in requests], BatchSize())
    assert isinstance(results[1], ModelError)
    assert [result.text for result in results if not isinstance(result, ModelError)] == [wanted[0], wanted[2]]


def test_the_server_answers_500(model: LlavaVideo) -> None:
    poison_word(model, "w12345")
    with serving(model) as server:
        status, answer = server.post({"messages": [{"role": "user", "content": "w12345"}]})
        assert (status, MESSAGE in answer["error"]["message"]) == (500, True)
        assert server.post({"messages": [{"role": "user", "content": "Why?"}], "max_tokens": 4})[0] == 200


def test_a_folder_run_counts_it_as_failed(layouts: dict[str, Path], clip: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(layouts["vicuna"], tmp_path / "nan")
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight" if "lm_head.weight" in tensors else "language_model.lm_head.weight"][3, 3] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    output = tmp_path / "captions.jsonl"
    result = CliRunner().invoke(app, ["caption", str(clip), "-m", str(folder), "-n", "2", "-o", str(output)])
    assert result.exit_code == 3 and not output.read_text()
    (failure,) = map(json.loads, (tmp_path / "captions.errors.jsonl").read_text().splitlines())
    assert MESSAGE in failure["error"]
