"""What a model gets of a frame is read from its files without torch, as the loaded processor has it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import LlavaNextVideoConfig

from llava_video_cli import ModelError
from llava_video_cli.checkpoint.families import Family
from llava_video_cli.checkpoint.frame_input import frame_input, input_of, shape_of_frames
from llava_video_cli.inference.processor import load_processor
from llava_video_cli.inference.vision import frame_resize
from llava_video_cli.video.fit import FrameInput

SIDE = 336  # of the layouts' vision towers


def loaded(folder: Path) -> FrameInput:
    config = LlavaNextVideoConfig.from_pretrained(folder)
    return frame_resize(load_processor(folder, config), config.vision_config.image_size).input


def change(folder: Path, name: str, values: dict[str, Any]) -> None:
    path = folder / name
    old = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({key: value for key, value in (old | values).items() if value is not None}))


@pytest.fixture
def folder(layouts: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(layouts["vicuna"], tmp_path / "odd")


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"size": None},
        {"size": SIDE, "crop_size": SIDE},
        {"size": {"shortest_edge": 64}},
        {"size": {"height": SIDE, "width": SIDE}, "do_center_crop": False},
        {"do_resize": False},
        {"crop_size": {"height": 224, "width": 224}, "size": {"shortest_edge": 224}},
        {"crop_size": None},
        {"image_mean": [0.5, 0.5, 0.5], "resample": 2},
        {"image_mean": None},
    ],
)
def test_the_files_say_what_the_processor_has(folder: Path, values: dict[str, Any]) -> None:
    change(folder, "video_preprocessor_config.json", values)
    found = frame_input(str(folder))
    assert found == loaded(folder)
    assert found is not None and (found.width, found.height) == (SIDE, SIDE)


def test_the_nearest_pixel_is_a_filter_too() -> None:
    other = shape_of_frames({"resample": 0, "size": {"height": SIDE, "width": SIDE}}, Family("other"), "")
    assert input_of({"resample": 0}, SIDE, "").resample == other.resample == 0


@pytest.mark.parametrize(
    "gone",
    [
        ("video_preprocessor_config.json",),
        ("video_preprocessor_config.json", "preprocessor_config.json"),
        ("video_preprocessor_config.json", "preprocessor_config.json", "processor_config.json"),
    ],
)
def test_files_that_are_gone(folder: Path, gone: tuple[str, ...]) -> None:
    for name in gone:
        (folder / name).unlink()
    assert frame_input(str(folder)) == loaded(folder) == FrameInput(SIDE, SIDE, "crop", SIDE)


def test_values_in_the_processors_own_file_come_first(folder: Path) -> None:
    nested = json.loads((folder / "video_preprocessor_config.json").read_text()) | {"image_mean": [0.2, 0.4, 0.6]}
    change(folder, "processor_config.json", {"video_processor": nested})
    found = frame_input(str(folder))
    assert found == loaded(folder) and found is not None and found.mean == (51, 102, 153)


@pytest.mark.parametrize(
    "values", [{"size": "large"}, {"image_mean": [1, 2]}, {"image_mean": "grey"}, {"crop_size": 3.5}]
)
def test_values_that_make_no_sense(values: dict[str, Any]) -> None:
    crop = {"crop_size": SIDE}
    with pytest.raises(ModelError, match="the preprocessor's config in FOLDER can't be used"):
        input_of(crop | values, SIDE, "FOLDER")


def test_the_published_ones_are_known_without_a_download() -> None:
    for size in ("7B", "7B-DPO", "7B-32K", "34B", "34B-DPO"):
        assert frame_input(f"llava-hf/LLaVA-NeXT-Video-{size}-hf") == FrameInput(336, 336, "crop", 336)
    assert frame_input("somebody/else") is None
    assert frame_input("random:7B") == FrameInput(336, 336, "crop", 336)
    assert frame_input("demo") == FrameInput(48, 48, "crop", 48)
    with pytest.raises(ModelError, match="doesn't exist"):
        frame_input("./nowhere")


def test_nothing_heavy_is_imported() -> None:
    program = (
        "import sys; from llava_video_cli.checkpoint.frame_input import frame_input; frame_input('demo');"
        "print([name for name in ('torch', 'transformers', 'numpy', 'av', 'PIL') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
