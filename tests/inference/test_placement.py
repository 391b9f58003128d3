"""Which precision is loaded where: by arithmetic, on machines of all sizes; and what is refused before loading."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from terminal import failed

from llava_video_cli import Loading, open_model
from llava_video_cli.checkpoint.config import Checkpoint, describe, read_config
from llava_video_cli.checkpoint.random_weights import random_folder
from llava_video_cli.errors import ModelError, UsageError
from llava_video_cli.inference.loader import foresee
from llava_video_cli.inference.placement import (
    Device,
    Placement,
    Precision,
    choose_attention,
    choose_placement,
    find_device,
    stored_quantization,
)

GB = 1e9


def checkpoint(size: str) -> Checkpoint:
    folder = random_folder(f"random:{size}")
    assert folder is not None
    return describe(read_config(folder))


def cuda(*free_gb: float, bfloat16: bool = True) -> Device:
    return Device("cuda", tuple(range(len(free_gb))), tuple(each * GB for each in free_gb), bfloat16)


def cpu(free_gb: float, bfloat16: bool = False) -> Device:
    return Device("cpu", (0,), (free_gb * GB,), bfloat16)


def placed(size: str, device: Device, **options: Any) -> Placement:
    return choose_placement(size, checkpoint(size), device, **options)


@pytest.mark.parametrize(
    ("size", "device", "frames", "wanted"),
    [
        ("7B", cuda(79), 32, ("none", "bfloat16", 1)),
        ("7B", cuda(23), 32, ("none", "bfloat16", 1)),
        ("7B", cuda(23, bfloat16=False), 32, ("none", "float16", 1)),
        ("7B", cuda(15.5), 32, ("4bit", "bfloat16", 1)),
        ("7B", cuda(7.5), 8, ("4bit", "bfloat16", 1)),
        ("7B", cuda(11, 11), 32, ("none", "bfloat16", 2)),
        ("34B", cuda(79), 24, ("none", "bfloat16", 1)),
        ("34B", cuda(47), 24, ("4bit", "bfloat16", 1)),
        ("34B", cuda(24.5), 24, ("4bit", "bfloat16", 1)),
        ("34B", cuda(23, 23, 23, 23), 24, ("none", "bfloat16", 4)),
        ("7B", cpu(60), 32, ("none", "float32", 1)),
        ("7B", cpu(24), 32, ("none", "bfloat16", 1)),
        ("7B", cpu(60, bfloat16=True), 32, ("none", "bfloat16", 1)),
        ("7B", cpu(8), 8, ("4bit", "bfloat16", 1)),
        ("tiny", cpu(8, bfloat16=True), 8, ("none", "float32", 1)),
        ("7B", Device("mps", (0,), (24 * GB,), False), 32, ("none", "float16", 1)),
    ],
)
def test_the_widest_that_fits_beside_a_prompt(
    size: str, device: Device, frames: int, wanted: tuple[str, str, int]
) -> None:
    choice = placed(size, device, frames=frames)
    assert (choice.quantize, choice.dtype, len(choice.device.numbers)) == wanted
    assert choice.need.total_bytes <= 0.92 * sum(choice.device.free_bytes)
    is_plain = choice.quantize == "none" and not choice.is_shared and (device.kind, choice.dtype) != ("cpu", "bfloat16")
    if is_plain:
        assert choice.note is None


def test_one_line_says_what_was_chosen_and_why() -> None:
    note = placed("7B", cuda(7.5), frames=8).note
    assert note == (
        "weights in 4 bits (4.5 GB): bfloat16 would need 16.0 GB with a prompt, but 7.5 GB is free on cuda:0"
    )
    assert str(placed("7B", cuda(11, 11)).note).endswith("shared by cuda:0, cuda:1")
    tight = placed("7B", cuda(6.0), frames=32)
    assert tight.quantize == "4bit" and "is enough for about" in str(tight.note)


def test_what_is_asked_for_by_name_is_taken_or_refused_with_what_would_fit() -> None:
    assert placed("7B", cuda(23), quantize="4bit").quantize == "4bit"
    assert placed("7B", cuda(23), dtype="float16").dtype == "float16"
    assert placed("7B", cuda(15.8), quantize="none").note is None, "the prompt may be short"
    with pytest.raises(
        ModelError,
        match=r"7B needs 15.\d GB .*14.1 GB of weights\), but it may use only 7.4 of the 8.0 GB",
    ) as refused:
        placed("7B", cuda(8), quantize="none")
    assert str(refused.value.hint).startswith("`--quantize 4bit` needs 4.5 GB; `--device cpu`")
    with pytest.raises(ModelError, match=r"34B needs 2\d.\d GB in 4 bits \(19.8 GB of weights\), but it may use"):
        placed("34B", cuda(8))
    with pytest.raises(ModelError, match="can't quantize on mps"):
        placed("7B", Device("mps", (0,), (24 * GB,), False), quantize="4bit")


def test_what_is_stored_quantized_stays_so() -> None:
    config = {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    assert stored_quantization(config) == "4bit" and stored_quantization({}) is None
    assert placed("7B", cuda(79), stored="4bit").quantize == "4bit"
    with pytest.raises(UsageError, match="stored in 4 bits: they can't be loaded with --quantize none"):
        placed("7B", cuda(79), stored="4bit", quantize="none")
    with pytest.raises(ModelError, match="'gptq'"):
        stored_quantization({"quantization_config": {"quant_method": "gptq"}})


def test_attention_by_name_says_why_not() -> None:
    assert choose_attention("auto", cpu(8), "float32") == "sdpa"
    assert choose_attention("eager", cpu(8), "float32") == "eager"
    cases: list[tuple[Device, Precision, str]] = [
        (cpu(8), "bfloat16", "not on cpu"),
        (cuda(8), "float32", "not float32"),
    ]
    for device, dtype, why in cases:
        with pytest.raises(ModelError, match=why):
            choose_attention("flash_attention_2", device, dtype)


def test_devices_by_name() -> None:
    assert find_device("cpu").name == "cpu" and find_device("cpu").free_bytes[0] > 0
    for name in ("gpu", "cpu:1", "cuda:x", ""):
        with pytest.raises(UsageError, match="unknown device"):
            find_device(name)
    with pytest.raises(ModelError, match="there is no device cuda:99 here"):
        find_device("cuda:99")


def test_a_checkpoint_that_cannot_fit_is_refused_without_torch(tmp_path: Path, clip: Path) -> None:
    """33 times the published 34B: no machine that runs this has that much memory."""
    folder = random_folder("random:34B")
    assert folder is not None
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] *= 33
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"GB in 4 bits \(.* of weights\), but it may use"):
        foresee("huge", tmp_path, Loading(device="cpu"))
    program = (
        "import sys; from llava_video_cli.cli.app import run; "
        f"code = run(['ask', {str(clip)!r}, 'What?', '-m', {str(tmp_path)!r}, '--device', 'cpu']); "
        "sys.exit(99 if 'torch' in sys.modules or 'transformers' in sys.modules else code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "GB in 4 bits (" in failed(done, 1)


@pytest.mark.slow
def test_out_of_memory_while_loading_is_one_line(clip: Path) -> None:
    """The process may have next to nothing beyond what its libraries take."""
    pytest.importorskip("resource")
    program = (
        "import resource, sys, torch, transformers\n"
        "from transformers import LlavaNextVideoForConditionalGeneration\n"
        "from llava_video_cli.cli.app import run\n"
        "size = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (size + 2**30, resource.RLIM_INFINITY))\n"
        f"sys.exit(run(['ask', {str(clip)!r}, 'What?', '-m', 'random:1B', '--device', 'cpu', '-q']))\n"
    )
    if not Path("/proc/self/statm").exists():
        pytest.skip("the system doesn't tell how much address space a process has")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "out of memory on cpu while random:1B was loaded" in failed(done, 1)


def test_a_shared_model_names_what_each_device_may_hold() -> None:
    choice = placed("7B", cuda(11, 11))
    assert choice.is_shared and choice.most_bytes == {0: int(0.92 * 11 * GB), 1: int(0.92 * 11 * GB)}
    assert replace(choice, device=cuda(11)).is_shared is False


def test_the_demo_takes_what_it_always_took(layouts: dict[str, Path]) -> None:
    for name in ("demo", str(layouts["vicuna"])):
        model = open_model(name, Loading(device="cpu"))
        assert (model.settings["quantize"], model.settings["dtype"], model.notes) == ("none", "float32", ())
