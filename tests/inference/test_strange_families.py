"""Folders of other families as strangers have them: one line of what is wrong, before anything costs the machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from family_checkpoints import make_family
from scenes import VIDEO

from llava_video_cli import Generation, ModelError, Request, Turn, join, open_model
from llava_video_cli.checkpoint.frame_input import frame_input
from llava_video_cli.errors import first_line
from llava_video_cli.inference.loader import load
from llava_video_cli.model import Loading


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family(tmp_path_factory.mktemp("qwen"), "qwen2_5_vl")


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    return shutil.copytree(original, tmp_path / "odd")


def change(path: Path, changes: Mapping[str, Any]) -> None:
    """Set values of a JSON file; the name of a nested one is `part.name`, and None takes it away."""
    values = json.loads(path.read_text())
    for name, value in changes.items():
        *parts, last = name.split(".")
        place = values
        for part in parts:
            place = place.setdefault(part, {})
        if value is None:
            del place[last]
        else:
            place[last] = value
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vision_config.depth": 10**7}, "can't be used: depth is 10,000,000"),
        ({"text_config.num_hidden_layers": 10**7, "text_config.layer_types": None}, "num_hidden_layers is 10,000,000"),
        ({"vision_config": None}, "too few for the [0-9,]+ parameters of config.json"),
        ({"text_config.max_position_embeddings": 0}, "can't be used: its context is 0"),
        ({"text_config.max_position_embeddings": -5}, "can't be used: its context is -5"),
        ({"text_config.hidden_size": 32.5}, "the config in .* can't be used: .*Field 'hidden_size' expected int"),
    ],
)
def test_a_config_that_makes_no_sense(folder: Path, changes: dict[str, Any], words: str) -> None:
    change(folder / "config.json", changes)
    with pytest.raises(ModelError, match=words):
        load(folder, Loading())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"video_processor": None, "image_processor": None}, "the processor in .* can't be loaded: Can't load [^.]*$"),
        ({"video_processor.size.shortest_edge": 10**9}, "resizes to 1,000,000,000 pixels"),
        ({"image_processor.size.shortest_edge": 10**9}, "resizes to 1,000,000,000 pixels"),
        ({"video_processor.size": {"height": 30_000, "width": 30_000}}, "resizes to 30,000 pixels"),
    ],
)
def test_a_processor_that_makes_no_sense(folder: Path, changes: dict[str, Any], words: str) -> None:
    change(folder / "processor_config.json", changes)
    with pytest.raises(ModelError, match=words) as told:
        load(folder, Loading())
    assert told.value.hint is not None and "copy the tokenizer's files, and the processor's" in told.value.hint


@pytest.mark.parametrize("size", ["large", [1, 2], {"height": "a", "width": "b"}, {"height": 30_000, "width": 1}])
def test_a_size_is_looked_at_before_the_model_is_loaded(folder: Path, size: Any) -> None:
    change(folder / "processor_config.json", {"video_processor.size": size})
    with pytest.raises(ModelError, match=r"the preprocessor's config in .* can't be used"):
        frame_input(str(folder))


def test_an_implementation_from_the_hub_is_not_fetched(folder: Path) -> None:
    """Where the package `kernels` is installed, transformers would download such code and run it."""
    names = {"_attn_implementation": "owner/kernel", "_experts_implementation": "owner/kernel"}
    parts = {f"{part}.{name}": value for name, value in names.items() for part in ("text_config", "vision_config")}
    change(folder / "config.json", names | parts)
    config = load(folder, Loading(attention="eager")).model.config
    used = {each._attn_implementation for each in (config, config.text_config, config.vision_config)}  # noqa: SLF001
    assert used == {"eager"}


def test_beams_of_the_generation_config_change_nothing(folder: Path, original: Path) -> None:
    beams = {"num_beams": 5, "num_return_sequences": 5, "min_new_tokens": 10**9, "prompt_lookup_num_tokens": 5}
    change(folder / "generation_config.json", beams)
    request = Request((Turn("user", "What happens?", (VIDEO,)),), Generation(max_new_tokens=4))
    answers = [join(open_model(str(each)).stream(request)).text for each in (original, folder)]
    assert answers[0] == answers[1] != ""


def test_a_line_that_announces_the_next_has_it_beside() -> None:
    assert first_line(ValueError("Validation error for field 'a':\n    TypeError: no\nmore")) == (
        "Validation error for field 'a': TypeError: no"
    )
    assert first_line(ValueError("one\ntwo")) == "one" and first_line(ValueError("why:")) == "why:"
