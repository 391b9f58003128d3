"""The times in the prompts of other families are those of a player's clock, as FFmpeg's own program tells them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clips import make_clip
from family_checkpoints import make_family

from llava_video_cli import Frames, Request, Sampling, Turn, open_model, read_frames, with_times
from llava_video_cli.checkpoint.families import FAMILIES
from llava_video_cli.inference.video_model import VideoModel
from llava_video_cli.preset import Preset

MARKS = {
    "qwen3_vl": re.compile(r"<(\d+\.\d) seconds>"),
    "qwen3_5": re.compile(r"<(\d+\.\d) seconds>"),
    "smolvlm": re.compile(r"Frame from (\d\d:\d\d):"),
    "gemma4": re.compile(r"(\d\d:\d\d) <boi>"),
}
STAMPS = {  # in milliseconds
    "constant.mp4": range(0, 80_000, 2500),
    "variable.mkv": [0, 300, 1900, 2000, 7777, 8040, 30_555, 61_000, 61_049, 64_000],
    "late.mkv": [3000, 4100, 5250, 9000, 66_000, 70_001],
}


@pytest.fixture(scope="module", params=MARKS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> VideoModel:
    opened = open_model(str(make_family(tmp_path_factory.mktemp("marks") / request.param, request.param)))
    assert isinstance(opened, VideoModel)
    return opened


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, base = tmp_path_factory.mktemp("clips"), Fraction(1, 1000)
    return {name: make_clip(folder / name, stamps, time_base=base) for name, stamps in STAMPS.items()}


@cache
def probed_seconds(path: Path) -> list[float]:
    """The times of all frames, from the start of the file on, as a player counts them."""
    command = ["ffprobe", "-v", "error", "-show_entries", "frame=pts_time:format=start_time", "-of", "json", str(path)]
    told = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return [float(frame["pts_time"]) - float(told["format"]["start_time"]) for frame in told["frames"]]


def prompt(model: VideoModel, frames: Frames, timestamps: bool = False) -> str:
    request = Preset("p", "", timestamps=timestamps).request("What happens?", [frames])
    ids = model.prompts.prompt(request)[0].ids
    text: str = model.prompts.tokenizer.own.decode(ids)
    return text


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60:02d}:{int(seconds) % 60:02d}"


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="there is no ffprobe")
@pytest.mark.parametrize("name", STAMPS)
@pytest.mark.parametrize("count", [7, 4, 1])
def test_marks_are_the_times_of_the_frames(model: VideoModel, videos: dict[str, Path], name: str, count: int) -> None:
    frames = read_frames(videos[name], Sampling(frames=count))
    there = probed_seconds(videos[name])
    times = [there[int(np.abs(np.array(there) - time).argmin())] for time in frames.times_seconds]
    assert times == pytest.approx(frames.times_seconds, abs=5e-4)
    kind = model.settings["family"]
    family = next(key for key, each in FAMILIES.items() if each.name == kind)
    found = MARKS[family].findall(prompt(model, frames))
    if family in ("smolvlm", "gemma4"):
        assert found == [clock(round(1000 * time) / 1000) for time in times]
        return
    even = times if len(times) % 2 == 0 else [*times, times[-1]]
    means = [(first + second) / 2 for first, second in zip(even[::2], even[1::2], strict=True)]
    assert [float(each) for each in found] == pytest.approx(means, abs=0.0501)


def test_timestamps_add_nothing_to_marks(model: VideoModel, videos: dict[str, Path]) -> None:
    frames = read_frames(videos["variable.mkv"], Sampling(frames=4))
    assert prompt(model, frames, timestamps=True) == prompt(model, frames)


def test_a_family_without_marks_is_told_the_times(tmp_path: Path, videos: dict[str, Path]) -> None:
    model: Any = open_model(str(make_family(tmp_path / "llava_onevision", "llava_onevision")))
    frames = read_frames(videos["variable.mkv"], Sampling(frames=4))
    (turn,) = with_times((Turn("user", "What happens?", (frames,)),))
    assert turn.text in prompt(model, frames, timestamps=True)
    assert turn.text not in prompt(model, frames)
    assert (
        model.prompts.prompt(Request((turn,)))[0].ids
        == model.prompts.prompt(Preset("p", "", timestamps=True).request("What happens?", [frames]))[0].ids
    )
