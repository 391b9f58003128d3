"""Which cards are used: none that is full, taken or too old for this torch, and no more of them than are needed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pretended_device import ARCHITECTURES, Card, PretendedCuda, pretend
from scenes import VIDEO

from llava_video_cli import Generation, Loading, Request, Turn, join, open_model
from llava_video_cli.cli.app import run
from llava_video_cli.cluster.session import Cluster
from llava_video_cli.diagnostics import doctor
from llava_video_cli.errors import LlvidError, ModelError, UsageError
from llava_video_cli.inference import cards as cards_module
from llava_video_cli.inference import placement
from llava_video_cli.inference.cards import Accelerators, as_json, has_kernels
from llava_video_cli.inference.placement import find_device

pytestmark = pytest.mark.cuda_pretended
FULL = Card(
    broken=lambda: torch.AcceleratorError("CUDA error: out of memory\nCUDA kernel errors might be reported late")
)
TAKEN = Card(broken=lambda: torch.AcceleratorError("CUDA error: CUDA-capable device(s) is/are busy or unavailable"))
OLD = Card(capability=(5, 2))
ON_CARDS = ("-m", "demo", "--device", "cuda", "--dtype", "float32")


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put an nvidia-smi of the test's own first in the path; it prints these rows, and these UUIDs of processes."""

    def install(*rows: str, processes: str = "") -> None:
        program = tmp_path / "nvidia-smi"
        lines = "\n".join(rows)
        program.write_text(f"#!/bin/sh\ncase $1 in *compute-apps*) echo '{processes}';; *) echo '{lines}';; esac\n")
        program.chmod(0o755)

    install()
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return install


def uuid(number: int) -> str:
    return f"GPU-{number:08d}-0000-0000-0000-000000000000"


def row(number: int, free_mib: object, mode: str = "Default") -> str:
    return f"{uuid(number)}, {free_mib}, {mode}"


def answered(cuda: PretendedCuda, device: str = "cuda") -> tuple[str, tuple[str, ...]]:
    """Answer a question; return where, and the notes of the model."""
    model = open_model("demo", Loading(device=device, dtype="float32"))
    join(model.stream(Request((Turn("user", "Why?", (VIDEO,)),), Generation(max_new_tokens=4))))
    used = {f"cuda:{number}" for number, card in enumerate(cuda.cards) if card.has_context}
    assert used == {model.settings["device"]}, "no context on a card that is not used"
    return model.settings["device"], model.notes


def test_the_card_with_the_most_free_memory_is_used(smi: Callable[..., None]) -> None:
    smi(row(0, 9000), row(1, 20000), row(2, 300))
    with pretend(Card(), Card(), Card()) as cuda:
        assert answered(cuda) == ("cuda:1", ("cuda:2 can't be used: only 0.3 GB is free",))
        assert find_device("cuda").numbers == (1, 0) and find_device("cuda").free_bytes[1] == 9000 * 2**20


def test_a_card_that_another_process_has_is_left_alone(smi: Callable[..., None]) -> None:
    smi(row(0, 22000, "Exclusive_Process"), row(1, 9000), row(2, 22000, "Prohibited"), processes=uuid(0))
    with pretend(TAKEN, Card(), TAKEN) as cuda:
        device, notes = answered(cuda)
    assert device == "cuda:1" and notes == (
        "cuda:0 can't be used: another process uses it alone; cuda:2 can't be used: its compute mode is Prohibited",
    )


def test_an_exclusive_card_that_nobody_has_is_used(smi: Callable[..., None]) -> None:
    smi(row(0, 22000, "Exclusive_Process"), row(1, 9000, "Exclusive_Process"), processes=uuid(1))
    with pretend(Card(), TAKEN) as cuda:
        assert answered(cuda)[0] == "cuda:0"


@pytest.mark.parametrize("rows", [(), (row(0, "[N/A]"), row(1, "[N/A]")), ("no devices were found",)])
def test_without_nvidia_smi_each_card_is_asked(rows: tuple[str, ...], smi: Callable[..., None]) -> None:
    smi(*rows)
    with pretend(FULL, Card()):
        model = open_model("demo", Loading(device="cuda", dtype="float32"))
        assert model.settings["device"] == "cuda:1" and model.notes == (
            "cuda:0 can't be used: CUDA error: out of memory",
        )


def test_a_card_that_is_named_is_the_only_one_that_is_asked() -> None:
    with pretend(FULL, Card(), Card()) as cuda:
        assert answered(cuda, "cuda:2") == ("cuda:2", ())


@pytest.mark.parametrize(
    ("card", "why"),
    [
        (FULL, "cuda:0 can't be used: CUDA error: out of memory"),
        (TAKEN, "cuda:0 can't be used: CUDA error: CUDA-capable device(s) is/are busy or unavailable"),
        (OLD, "cuda:0 can't be used: this torch has no kernels for compute capability 5.2"),
    ],
)
def test_a_card_that_can_not_be_used_is_one_line(
    card: Card, why: str, clip: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pretend(card):
        assert run(["ask", str(clip), "Why?", "-q", *ON_CARDS]) == 1
        assert capsys.readouterr().err == f"error: {why}\nhint: `--device auto` uses what is available\n"
        monkeypatch.setattr(placement, "may_have_accelerator", lambda: True)
        device = find_device("auto")
        assert (device.kind, device.note) == ("cpu", f"the CPU is used: {why}")
        found = json.loads(as_json())["cards"]
    shown = [cards_module.Card(**each) for each in found]
    monkeypatch.setattr(doctor, "accelerators", lambda: Accelerators(tuple(shown), has_nvidia=True))
    assert run(["doctor", "-m", "demo"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(why.replace("cuda:0", "cuda:0 (Pretended)") in line for line in lines), lines
    assert run(["doctor", "-m", "demo", "--device", "cuda:0"]) == 1


def test_a_driver_that_is_too_old_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_old() -> None:
        raise RuntimeError(
            "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver by ..."
        )

    why = "The NVIDIA driver on your system is too old (found version 11040)"
    with pretend():
        monkeypatch.setattr(torch.cuda, "init", too_old)
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        for name in ("may_have_accelerator", "has_nvidia"):
            monkeypatch.setattr(placement, name, lambda: True)
        assert find_device("auto").note == f"the CPU is used: {why}"
        with pytest.raises(ModelError, match=f"^there is no device cuda here: {why[:40]}"):
            find_device("cuda")
        assert json.loads(as_json())["why_none"] == why


@pytest.mark.parametrize(
    ("capability", "architectures", "wanted"),
    [
        ((8, 0), ARCHITECTURES, True),
        ((8, 9), ARCHITECTURES, True),  # runs what was compiled for 8.6
        ((7, 0), ARCHITECTURES, False),
        ((6, 1), ARCHITECTURES, False),
        ((12, 1), ARCHITECTURES, True),
        ((13, 0), ARCHITECTURES, True),  # the driver compiles compute_120 for it
        ((13, 0), ARCHITECTURES[:-1], False),
        ((9, 0), ["sm_90a"], True),
        ((10, 0), ["sm_90a", "compute_90a"], False),
        ((9, 0), ["gfx90a", "gfx942"], True),
        ((9, 0), [], True),
    ],
)
def test_kernels_that_a_card_can_run(capability: tuple[int, int], architectures: list[str], wanted: bool) -> None:
    assert has_kernels(capability, architectures) is wanted


@pytest.mark.parametrize(("value", "plans"), [(None, False), ("0", False), ("1", True)])
def test_cudnn_attention_is_used_where_the_environment_asks(
    value: str | None, plans: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if value is not None:
        monkeypatch.setenv("LLVID_CUDNN_ATTENTION", value)
    with pretend(Card()) as cuda:
        answered(cuda)
        assert (cuda.planned > 0) is plans


def test_ray_gives_each_worker_a_gpu_of_its_own(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match="--device cuda:1 can't be used with --ray"):
        Cluster(device="cuda:1")
    arguments: list[Any] = ["caption", clip, "-o", tmp_path / "out.jsonl", "-m", "demo", "--ray", "local"]
    assert run([*map(str, arguments), "--device", "cuda:1"]) == 2
    assert "CUDA_VISIBLE_DEVICES=1 chooses the GPU" in capsys.readouterr().err
    assert issubclass(UsageError, LlvidError)
