"""`--verbose`: what was decided, and why, on stderr."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import pytest

from llava_video_cli.checkpoint.size import MemoryEstimate
from llava_video_cli.cli.app import run
from llava_video_cli.inference.placement import Device, Placement, reasons


def test_what_was_decided_for_a_question(
    clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LLVID_PRESET", "demo")
    line = ["ask", str(clip), "What shape is it?", "--frames", "4", "--dtype", "bfloat16"]
    assert run([*line, "--verbose"]) == 0
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert "preset demo: LLVID_PRESET, " in lines[0] and lines[1] == "model demo: the preset"
    for words in (
        "sampling: frames 4,", f"{clip}: 4 frames of 2 s, at 0, 0.5, 1, 1.5", "dtype bfloat16: as asked",
        "quantize none: with a prompt, it needs ", "attention sdpa: flash_attention_2 can't be used: it runs on CUDA",
        "device cpu: no GPU", "ended by stop",
    ):  # fmt: skip
        assert words in err, words
    assert run(line) == 0 and capsys.readouterr() == (out, "")
    assert run([*line, "-v", "-q"]) == 0 and capsys.readouterr() == (out, "")


def test_runs_and_chats_tell_it_too(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["caption", str(clip), "-m", "demo", "-o", str(tmp_path / "x.jsonl"), "-v"]) == 0
    assert "preset demo: goes with -m demo" in (err := capsys.readouterr().err) and "dtype float32: exact" in err
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"What shape is it?\n")))
    assert run(["chat", str(clip), "-m", "demo", "-v"]) == 0
    assert "dtype float32: exact" in capsys.readouterr().err


def test_the_reasons_of_a_placement() -> None:
    card = Device("cuda", (1,), (20e9,), bfloat16=True)
    need = MemoryEstimate(14_000_000_000, 2_000_000_000, 1_000_000_000)
    alone = reasons(Placement("none", "bfloat16", card, need), "flash_attention_2", 7_000_000_000)
    assert alone == {
        "device": "it has the most free memory, 20.0 GB", "dtype": "cuda:1 computes in it",
        "quantize": "with a prompt, it needs 17.0 of 20.0 GB free", "attention": "the fastest",
    }  # fmt: skip
    both = Device("cuda", (0, 1), (20e9, 10e9), bfloat16=False)
    shared = reasons(Placement("none", "float16", both, need), "eager", 7_000_000_000)
    assert shared["device"] == "one GPU alone can't hold it" and shared["dtype"] == "cuda:0 has no bfloat16"
    cpu = Device("cpu", (), (64e9,), bfloat16=False)
    slow = Placement("none", "float32", cpu, need)
    assert reasons(slow, "sdpa", 7_000_000_000)["dtype"] == "no bfloat16 in hardware"
    assert reasons(replace(slow, dtype="bfloat16"), "sdpa", 7_000_000_000)["dtype"] == "float32 would not fit"
