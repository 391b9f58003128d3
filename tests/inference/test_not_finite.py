"""Logits that are NaN or infinite end an answer with an error, and only that answer."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import events
from safetensors.torch import load_file, save_file
from serving import serving
from test_together import asked
from transformers import AutoTokenizer

from llava_video_cli import Chunk, ModelError, join, open_model
from llava_video_cli.cli.app import run
from llava_video_cli.inference.video_model import VideoModel

MESSAGE = "gives NaN or infinite logits in float32"


Change = Callable[[dict[str, torch.Tensor]], object]


@pytest.fixture
def spoiled(layouts: dict[str, Path], tmp_path: Path) -> Callable[[Change], Path]:
    """Return a checkpoint whose tensors are changed; they have the names of the file."""

    def spoil(change: Change) -> Path:
        folder = shutil.copytree(layouts["vicuna"], tmp_path / "spoiled")
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder

    return spoil


@pytest.fixture
def spoils_a_word(spoiled: Callable[[Change], Path], layouts: dict[str, Path]) -> VideoModel:
    """A model that only prompts with "w12345" make fail."""
    token = AutoTokenizer.from_pretrained(layouts["vicuna"])("w12345")["input_ids"][-1]
    folder = spoiled(lambda tensors: tensors["language_model.model.embed_tokens.weight"][token].fill_(math.nan))
    return opened(folder)


def opened(folder: Path) -> VideoModel:
    model = open_model(str(folder))
    assert isinstance(model, VideoModel)
    return model


def of_head(value: float) -> Change:
    return lambda tensors: tensors["language_model.lm_head.weight"][7, 0].fill_(value)


def of_last_layer(value: float) -> Change:
    return lambda tensors: tensors["language_model.model.layers.1.mlp.down_proj.weight"][0, 0].fill_(value)


def of_vision(value: float) -> Change:
    return lambda tensors: tensors["vision_tower.embeddings.patch_embedding.weight"].fill_(value)


VALUES = (math.nan, math.inf, -math.inf)
PLACES = (of_head, of_last_layer, of_vision)
SETTINGS: tuple[dict[str, Any], ...] = ({}, {"temperature": 1.0, "seed": 1}, {"temperature": 0.5, "top_p": 0.5})
WAYS = [  # by default each two of a value, a place and settings
    pytest.param(*way, marks=() if sum(numbers) % 3 == 0 else pytest.mark.slow)
    for numbers, way in zip(product(range(3), repeat=3), product(SETTINGS, PLACES, VALUES), strict=True)
]


@pytest.mark.parametrize(("settings", "place", "value"), WAYS)
def test_each_way_to_answer_says_so(
    spoiled: Callable[[Change], Path], place: Callable[[float], Change], value: float, settings: dict[str, Any]
) -> None:
    model = opened(spoiled(place(value)))
    for attempt in range(2):  # the second one may not use what the first one left
        with pytest.raises(ModelError, match=MESSAGE):
            join(model.stream(asked("What happens?", **settings)))
        with pytest.raises(ModelError, match=MESSAGE):
            model.answer_all([asked(f"What happens {attempt}?", **settings), asked("Why?", **settings)])


def test_a_row_takes_no_other_row_down(spoils_a_word: VideoModel, layouts: dict[str, Path]) -> None:
    requests = [asked("What happens?"), asked("w12345"), asked("Why?", max_new_tokens=30)]
    whole = opened(layouts["vicuna"])
    wanted = [whole.answer_all([request])[0].text for request in requests]
    chunks: dict[int, list[Chunk]] = {}
    for number, event in events(spoils_a_word, requests):
        if number == 1:
            assert isinstance(event, ModelError) and MESSAGE in str(event)
        else:
            chunks.setdefault(number, []).append(event)
    assert {number: join(pieces).text for number, pieces in chunks.items()} == {0: wanted[0], 2: wanted[2]}
    assert join(spoils_a_word.stream(requests[0])).text == wanted[0], "nothing of it is left"


def test_the_server_answers_500(spoils_a_word: VideoModel) -> None:
    with serving(spoils_a_word) as server:
        status, answer = server.post({"messages": [{"role": "user", "content": "w12345"}]})
        assert (status, MESSAGE in answer["error"]["message"]) == (500, True)
        assert server.post({"messages": [{"role": "user", "content": "Why?"}], "max_tokens": 4})[0] == 200


def test_a_folder_run_counts_it_as_failed(spoiled: Callable[[Change], Path], clip: Path, tmp_path: Path) -> None:
    folder, output = spoiled(of_head(math.nan)), tmp_path / "captions.jsonl"
    assert run(["caption", str(clip), "-m", str(folder), "-n", "2", "-o", str(output)]) == 3
    assert not output.read_text()
    (failure,) = map(json.loads, (tmp_path / "captions.errors.jsonl").read_text().splitlines())
    assert MESSAGE in failure["error"]
