"""Memory of pretended cards: what is done when it runs out, in each library's words, and what is told about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pretended_device import OUT_OF_MEMORY, Card, pretend
from scenes import moving_square

from llava_video_cli import Generation, Loading, Request, Turn, join, open_model
from llava_video_cli.cli.app import run
from llava_video_cli.demo.world import random_scene, write_clip

pytestmark = pytest.mark.cuda_pretended
ON_CARD = ("-m", "demo", "--device", "cuda", "--dtype", "float32")
WORDS: dict[str, Callable[[], BaseException]] = {
    "torch": lambda: torch.OutOfMemoryError(OUT_OF_MEMORY),
    "the driver": lambda: torch.AcceleratorError(
        "CUDA error: out of memory\nCUDA kernel errors might be reported late"
    ),
    "cuBLAS": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cuBLAS' workspace": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate`"),
    "cuDNN": lambda: RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "bitsandbytes": lambda: RuntimeError("Error out of memory at line 380 in file /src/csrc/ops.cu"),
}

# test_device_memory tells all of them from other errors
IN_WORDS = [words if words == "torch" else pytest.param(words, marks=pytest.mark.slow) for words in WORDS]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, draw = tmp_path_factory.mktemp("clips"), np.random.default_rng(1)
    for number in range(3):
        write_clip(folder / f"{number}.mp4", random_scene(draw, largest_side=240, longest_seconds=1.0))
    return folder


def captions(output: Path) -> dict[str, str]:
    records = map(json.loads, output.read_text(encoding="utf-8").splitlines())
    return {record["video_path"]: record["caption"] for record in records}


@pytest.fixture(scope="module")
def wanted(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    output = tmp_path_factory.mktemp("wanted") / "captions.jsonl"
    assert run(["caption", str(clips), "-o", str(output), "-m", "demo", "--device", "cpu", "-q"]) == 0
    return {Path(path).name: caption for path, caption in captions(output).items()}


@pytest.fixture(scope="module")
def one_answer(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, int]:
    """The bytes of the weights, and the most that a caption takes with them."""
    with pretend(Card()) as cuda:
        model = open_model("demo", Loading(device="cuda", dtype="float32"))
        weights = cuda.cards[0].allocated_bytes
        del model
        output = tmp_path_factory.mktemp("one") / "captions.jsonl"
        assert run(["caption", str(clips / "0.mp4"), "-o", str(output), "-q", *ON_CARD]) == 0
        return weights, cuda.cards[0].highest_bytes


@pytest.mark.parametrize("words", IN_WORDS)
def test_a_folder_goes_on_with_fewer_at_a_time(
    words: str, clips: Path, wanted: dict[str, str], one_answer: tuple[int, int], tmp_path: Path
) -> None:
    weights, peak = one_answer
    card = Card(most_bytes=weights + 1.1 * (peak - weights), out_of_memory=WORDS[words])
    output = tmp_path / "captions.jsonl"
    with pretend(card) as cuda:
        assert run(["caption", str(clips), "-o", str(output), "-q", *ON_CARD]) == 0
    assert cuda.cards[0].failures > 0, "all fitted"
    assert {Path(path).name: caption for path, caption in captions(output).items()} == wanted


@pytest.mark.parametrize("words", IN_WORDS)
def test_what_fits_not_even_alone_is_one_line(
    words: str, clips: Path, one_answer: tuple[int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    weights, peak = one_answer
    card = Card(most_bytes=weights + 0.5 * (peak - weights), out_of_memory=WORDS[words])
    with pretend(card):
        assert run(["ask", str(clips / "0.mp4"), "What happens?", "-q", *ON_CARD]) == 1
    out, err = capsys.readouterr()
    error, hint = err.splitlines()
    assert out == "" and error == "error: out of memory on cuda:0" and hint.startswith("hint: fewer --frames")


def test_weights_that_do_not_fit_are_one_line(
    clips: Path, one_answer: tuple[int, int], capsys: pytest.CaptureFixture[str]
) -> None:
    with pretend(Card(most_bytes=0.5 * one_answer[0])):
        assert run(["ask", str(clips / "0.mp4"), "What happens?", "-q", *ON_CARD]) == 1
    error, _ = capsys.readouterr().err.splitlines()
    assert error.startswith("error: out of memory on cuda:0 while demo was loaded: its weights take")


def test_the_peak_is_that_of_each_request() -> None:
    with pretend(Card()) as cuda:
        model = open_model("demo", Loading(device="cuda", dtype="float32", prefix_reuse=False))
        weights = cuda.cards[0].allocated_bytes
        peaks = []
        for frames in (2, 12, 2):
            request = Request((Turn("user", "Why?", (moving_square(frames),)),), Generation(max_new_tokens=4))
            peaks.append(join(model.stream(request)).usage.peak_memory_bytes)
    assert weights < peaks[0] < peaks[1] and peaks[2] < (peaks[0] + peaks[1]) / 2


def test_memory_is_the_same_after_each_answer() -> None:
    with pretend(Card()) as cuda:
        model = open_model("demo", Loading(device="cuda", dtype="float32", prefix_reuse=False))
        held = []
        for seed in range(3):
            join(
                model.stream(Request((Turn("user", "Why?", (moving_square(4, seed),)),), Generation(max_new_tokens=8)))
            )
            held.append(cuda.cards[0].allocated_bytes)
    assert held[1] == held[2]
