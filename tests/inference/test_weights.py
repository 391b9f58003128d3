"""Weights in memory: nothing is held twice, and a CPU's pace is told."""

from __future__ import annotations

import re
import threading
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import make_checkpoint
from safetensors import safe_open
from safetensors.torch import save_file

from llava_video_cli import Loading, ModelError
from llava_video_cli.checkpoint.config import describe, read_config
from llava_video_cli.checkpoint.random_weights import random_folder
from llava_video_cli.inference.loader import load
from llava_video_cli.inference.placement import Device, Placement, choose_placement
from llava_video_cli.inference.speed import CpuRates, choose_threads, estimate_speed, measure_rates, slow_note
from llava_video_cli.inference.weights import weights

CPU = Device("cpu", (0,), (64e9,), bfloat16=False)
WIDE = {"hidden_size": 256, "intermediate_size": 1024}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint stored in bfloat16, as the published ones are in 16 bits: 36 MB, of which 4 MB can be quantized."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        return make_checkpoint(tmp_path_factory.mktemp("wide") / "stored", "vicuna", text=WIDE)
    finally:
        torch.set_default_dtype(before)


def resident_bytes(path: Path) -> int:
    """What of a file lies in this process's memory, as pages of a map."""
    maps = Path("/proc/self/smaps").read_text().split("VmFlags")
    found = [re.search(r"^Rss: +(\d+) kB", each, re.MULTILINE) for each in maps if str(path) in each]
    return sum(1024 * int(match[1]) for match in found if match)


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the system doesn't tell which pages are whose")
@pytest.mark.parametrize(
    ("loading", "parts"),
    [
        ({"dtype": "float32"}, ()),
        ({"dtype": "bfloat16"}, ("",)),
        ({"quantize": "4bit", "dtype": "bfloat16"}, ("vision", "projector", "embed", "norm", "lm_head", "newline")),
        ({"quantize": "8bit", "dtype": "bfloat16"}, ("vision", "projector", "embed", "norm", "lm_head", "newline")),
    ],
)
def test_what_is_converted_or_quantized_does_not_stay_as_the_file_has_it_too(
    stored: Path, loading: dict[str, Any], parts: tuple[str, ...]
) -> None:
    file = stored / "model.safetensors"
    loaded = load(stored, Loading(device="cpu", **loading))
    with torch.inference_mode():
        sum(float(weight.float().sum()) for weight in loaded.model.parameters())  # all of it is looked at
    with safe_open(file, "pt") as tensors:
        names = [name for name in tensors.keys() if any(part in name for part in parts)]  # noqa: SIM118
        kept = sum(2 * tensors.get_tensor(name).numel() for name in names)
    assert resident_bytes(file) <= kept + 2**20
    assert resident_bytes(file) >= kept - 2**20, "what stays as it is should not be copied"


def chosen(size: str, quantize: Any) -> tuple[Any, Placement]:
    folder = random_folder(f"random:{size}")
    assert folder is not None
    facts = describe(read_config(folder))
    return facts, choose_placement(size, facts, CPU, quantize, "float32")


# test_a_forecast_measures_layers_as_answers_use_them measures quantized ones
@pytest.mark.parametrize(
    "quantize", ["none", *(pytest.param(name, marks=pytest.mark.slow) for name in ("8bit", "4bit"))]
)
def test_a_cpu_s_pace_is_told_of_large_checkpoints_only(quantize: Any) -> None:
    assert slow_note(*chosen("tiny", quantize), 32) is None
    facts, choice = chosen("7B", quantize)
    told = slow_note(facts, choice, 32)
    assert told is not None
    assert re.match(r"on this CPU, 32 frames take about [\d.]+ (s|min) to the first token, and each later one", told)
    assert slow_note(facts, replace(choice, device=replace(CPU, kind="mps")), 32) is None


@pytest.mark.parametrize(
    ("rate", "first", "later"),
    [
        ("plain_row", 8 * 576 * 303_507_456, 0),
        ("language_row", 8 * 144 * 32 * (4 * 4096**2 + 3 * 4096 * 11008), 0),
        ("plain_token", 0, 32064 * 4096),
        ("language_token", 0, 32 * (4 * 4096**2 + 3 * 4096 * 11008)),
        ("vision_attention", 8 * 24 * 1024 * 576**2, 0),
        ("prompt_attention", 32 * 4096 * (8 * 144) ** 2, 0),
        ("token_attention", 0, 32 * 4096 * 8 * 144),
    ],
)
def test_a_forecast_counts_multiplications(rate: str, first: float, later: float) -> None:
    """Of the 7B, with 8 frames: 24 and 32 layers of 1,024 and 4,096 elements, 576 patches and 144 tokens a frame."""
    facts, _ = chosen("7B", "none")
    told = estimate_speed(facts, replace(CpuRates(*[0.0] * 7), **{rate: 1.0}), 8)
    assert told.first_seconds == pytest.approx(first, rel=0.01)
    assert told.token_seconds == pytest.approx(later, rel=0.01)


@pytest.mark.parametrize("quantize", ["8bit", "4bit"])
def test_a_forecast_measures_layers_as_answers_use_them(quantize: Any) -> None:
    """bitsandbytes' layers take other kernels in training: in 4 bits a token took a seventh of what was told."""
    import bitsandbytes
    from torch.nn.modules.module import register_module_forward_pre_hook

    used: list[bool] = []
    kinds = (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)
    hook = register_module_forward_pre_hook(
        lambda layer, _: used.append(layer.training) if isinstance(layer, kinds) else None
    )
    try:
        rates = measure_rates(chosen("tiny", quantize)[1])
    finally:
        hook.remove()
    assert used and not any(used)
    assert all(0 < value < 1 for value in astuple(rates))


def test_tensors_are_those_that_the_library_reads(stored: Path, tmp_path: Path) -> None:
    """Of all kinds and shapes, none among them, in any order of names."""
    odd = {
        "z": torch.arange(7, dtype=torch.uint8), "b": torch.randn(3, 5), "none": torch.empty(0, 4), "1": torch.ones(()),
        "a": torch.randn(4097).half(), "i": torch.arange(-5, 6, dtype=torch.int8), "c": torch.randn(2, 2, 2).bfloat16(),
    }  # fmt: skip
    save_file(odd, tmp_path / "model.safetensors")
    choice = choose_placement("it", describe(read_config(stored)), CPU)
    for folder in (tmp_path, stored):
        with weights(folder, None, choice) as mine, safe_open(folder / "model.safetensors", "pt") as theirs:
            assert sorted(mine) == sorted(theirs.keys())
            for name, tensor in mine.items():
                expected = theirs.get_tensor(name)
                assert tensor[...].dtype == expected.dtype and torch.equal(tensor[...], expected), name


def test_what_is_stored_otherwise_is_refused_in_one_line(stored: Path, tmp_path: Path) -> None:
    for path in stored.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "model.safetensors").unlink()
    save_file({"a": torch.ones(3, dtype=torch.complex64)}, tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"can't be loaded: model.safetensors: a is stored as C64"):
        load(tmp_path, Loading(device="cpu"))


@pytest.mark.parametrize(("side", "cores"), [(1000, 1), (1500, 3)])
def test_a_small_model_computes_on_one_core_and_other_threads_on_theirs(side: int, cores: int) -> None:
    """4 and 9 MB of weights."""
    seen: list[int] = []

    def compute() -> None:
        torch.set_num_threads(3)
        choose_threads(torch.nn.Linear(side, side))
        for number in (1, 2):
            thread = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
            thread.start()
            thread.join()
            seen.append(torch.get_num_threads())
            assert len(seen) == 2 * number

    before = torch.get_num_threads()
    try:
        thread = threading.Thread(target=compute)
        thread.start()
        thread.join()
    finally:
        torch.set_num_threads(before)
    assert seen == [3, cores, 3, cores]


def test_models_that_are_first_asked_at_once_leave_later_threads_their_cores() -> None:
    models = [torch.nn.Linear(10, 10), torch.nn.Linear(10, 10), torch.nn.Linear(1500, 1500)]
    seen: list[int] = []
    before = torch.get_num_threads()

    def compute(model: torch.nn.Linear) -> None:
        choose_threads(model)
        if model.in_features == 1500:
            seen.append(torch.get_num_threads())

    try:
        torch.set_num_threads(3)
        for _ in range(200):
            threads = [threading.Thread(target=compute, args=(model,)) for model in models]
            threads.append(threading.Thread(target=lambda: seen.append(torch.get_num_threads())))
            for thread in threads[:-1]:
                thread.start()
            for thread in threads[:-1]:
                thread.join()
            threads[-1].start()
            threads[-1].join()
    finally:
        torch.set_num_threads(before)
    assert {*seen} == {3}
