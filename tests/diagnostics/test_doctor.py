"""`llvid doctor`: what it shows, what can't run, and that a broken part does not break it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from terminal import llvid

from llava_video_cli.cli.app import run
from llava_video_cli.diagnostics.doctor import Diagnosis, ModelFit, Workload, best_preset, fit_model
from llava_video_cli.diagnostics.packages import Problem
from llava_video_cli.inference.cards import Accelerators, Card
from llava_video_cli.model import Loading
from llava_video_cli.system.machine import Memory

HF = "llava-hf/LLaVA-NeXT-Video-"


def examined(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = run(["doctor", "--json", "-q", *arguments])
    out, err = capsys.readouterr()
    assert err == ""
    return code, json.loads(out)


def test_the_demo_runs_and_everything_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    code, values = examined(capsys, "-m", "demo")
    assert code == 0 and values["can_run"] is True and values["model"]["is_here"] is True
    assert all(values["packages"][name] for name in ("torch", "torchvision", "transformers", "av", "accelerate"))
    assert values["codecs"]["h264"] is True and values["codecs"]["av1"] is True
    assert 0 < values["memory"]["free_bytes"] <= values["memory"]["total_bytes"]
    assert values["processor"]["cores"] >= 1 and values["cache_free_bytes"] > 0
    assert values["model"]["tokens"] == 8 * 9 + 100 + 48 and values["model"]["context_tokens"] == 4096
    assert run(["doctor", "-m", "demo"]) == 0
    out, _ = capsys.readouterr()
    assert out.splitlines()[-1] == "demo can run here" and "h264" in out and "\x1b" not in out


OTHERS = "or --pool-stride 3 or --rope-factor 2"


@pytest.mark.parametrize(
    ("arguments", "words", "hint"),
    [
        (("-m", "demo", "--frames", "600"), "438 frames fit the context of demo", f"use --frames 438 {OTHERS}"),
        (("-m", "demo", "--device", "cuda:7"), "no device cuda:7", "--device auto"),
        (("-m", "demo", "--device", "toaster"), "no device toaster", "--device auto"),
        (("-m", "demo", "--pool-stride", "4"), "", None),
        (("-m", "demo", "--attention", "flash_attention_2"), "flash_attention_2", "--attention auto"),
        (("-m", "./nothing"), "doesn't exist", "`--model demo` needs no download"),
        (("-m", f"{HF}34B-hf", "--frames", "32"), "has 4,096", f"use --frames 24 {OTHERS}"),
    ],
)  # fmt: skip
def test_what_can_not_run_ends_with_1_and_a_hint(
    arguments: tuple[str, ...], words: str, hint: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    code, values = examined(capsys, *arguments)
    stopping = [problem for problem in values["problems"] if problem["stops"] and words in problem["text"]]
    assert code == 1 and values["can_run"] is False and stopping
    if hint is not None:
        assert stopping[0]["mend"] == hint


def test_a_model_that_fits_nowhere_has_no_line_of_how_it_would_run(capsys: pytest.CaptureFixture[str]) -> None:
    code = run(["doctor", "-m", f"{HF}34B-hf", "--quantize", "none", "--frames", "24", "--device", "cpu"])
    out = capsys.readouterr().out
    assert ("would run on" in out) == (code == 0) and "None" not in out


def test_an_auto_rope_factor_makes_room(capsys: pytest.CaptureFixture[str]) -> None:
    code, values = examined(capsys, "-m", "demo", "--frames", "600", "--rope-factor", "auto")
    assert code == 0 and values["model"]["context_tokens"] == 2 * 4096


GB = 10**9
CARD = Card("cuda:0", "a card", "8.9", 24 * GB, 23 * GB, True)
BIG = Diagnosis(
    memory=Memory(256 * GB, 200 * GB),
    accelerators=Accelerators((CARD,), has_nvidia=True, torch_built_for="13.0"),
    cache_free_bytes=500 * GB,
)


def chosen(model: str, host: Diagnosis = BIG, frames: int = 32, **loading: Any) -> tuple[ModelFit, list[Problem]]:
    return fit_model(Workload(HF + model, None, Loading(**loading), frames, 512), host)


def test_a_published_checkpoint_is_judged_before_it_is_downloaded() -> None:
    fit, problems = chosen("7B-hf")
    assert (fit.device, fit.dtype, fit.quantize) == ("cuda:0", "bfloat16", "none")
    assert fit.need is not None and 14.1e9 < fit.need.weights_bytes < 14.2e9
    assert fit.tokens == 32 * 144 + 100 + 512 and fit.need.cache_bytes == fit.tokens * 512 * 1024
    (problem,) = problems
    assert problem.hint == f"llvid pull {HF}7B-hf" and not problem.stops and "14.1 GB" in problem.text

    small = replace(BIG, accelerators=Accelerators((replace(CARD, free_bytes=8 * GB, has_bfloat16=False),)))
    fit, problems = chosen("7B-hf", small, frames=8)
    assert (fit.dtype, fit.quantize) == ("float16", "4bit") and not any(problem.stops for problem in problems)
    assert any("weights in 4 bits (4.5 GB): float16 would need" in problem.text for problem in problems)
    stopping = [problem for problem in chosen("7B-hf", small, frames=8, quantize="none")[1] if problem.stops]
    assert (
        "in float16 (14.1 GB of weights), but it may use only 7.4 of the 8.0 GB that is free on cuda:0"
        in stopping[0].text
    )
    assert str(stopping[0].hint).startswith("`--quantize 4bit` needs 4.5 GB")
    assert not any(problem.stops for problem in chosen("34B-hf", frames=24, quantize="4bit")[1])
    stopping = [problem for problem in chosen("34B-hf", small, frames=24, quantize="4bit")[1] if problem.stops]
    assert "free some memory" in str(stopping[0].hint)


@pytest.mark.parametrize(
    ("card_gb", "memory_gb", "wanted"),
    [
        (24.5, 60, "best-24gb"), (16, 60, "best-8gb"), (7.9, 60, "best-8gb"), (7, 60, "laptop"), (4, 60, "small"),
        (2, 60, None), (None, 60, "laptop"), (None, 5, "small"), (None, 2, None),
    ],
)  # fmt: skip
def test_the_best_preset_for_a_machine(card_gb: float | None, memory_gb: int, wanted: str | None) -> None:
    cards = () if card_gb is None else (replace(CARD, free_bytes=int(card_gb * GB)),)
    host = Diagnosis(memory=Memory(64 * GB, memory_gb * GB), accelerators=Accelerators(cards))
    assert best_preset(host) == wanted


def test_the_best_preset_is_named_unless_another_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    for words, is_named in ((("-m", "demo"), False), (("-p", "demo"), False), ((), True)):
        run(["doctor", *words])
        assert ("best preset here: -p " in capsys.readouterr().out) == is_named


def test_a_full_disk_and_an_unknown_model() -> None:
    _, problems = chosen("7B-hf", replace(BIG, cache_free_bytes=GB))
    assert [problem.text for problem in problems if problem.stops] == ["only 1.0 GB is free on the disk"]
    fit, problems = fit_model(Workload("org/unknown", "v2", Loading(), 8, 512), BIG)
    assert fit.need is None and [problem.hint for problem in problems] == ["llvid pull org/unknown --revision v2"]


def test_a_cpu_takes_float32_only_where_there_is_room() -> None:
    none = replace(BIG, accelerators=Accelerators())
    assert chosen("7B-hf", none)[0].dtype == "float32"
    fit, problems = chosen("7B-hf", replace(none, memory=Memory(32 * GB, 24 * GB)))
    assert fit.dtype == "bfloat16" and any("on the CPU" in problem.text for problem in problems)
    mac = replace(BIG, accelerators=Accelerators(has_mps=True))
    assert chosen("7B-hf", mac)[0].dtype == "float16"
    hints = [problem.hint for problem in chosen("7B-hf", mac, quantize="4bit")[1]]
    assert "use `--quantize none` or `--device cpu`" in hints


def test_broken_packages_and_checkpoints_are_findings(tmp_path: Path) -> None:
    """A PyAV that is too old and fails, a torch that fails, a checkpoint with a file too few."""
    for module in ("av", "torch"):
        (tmp_path / module).mkdir()
        (tmp_path / module / "__init__.py").write_text(f"raise ImportError('{module} is broken')")
    (tmp_path / "av-9.0.0.dist-info").mkdir()
    (tmp_path / "av-9.0.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: av\nVersion: 9.0.0\n")
    folder = tmp_path / "home" / "hub" / "models--org--cut" / "snapshots" / ("c" * 40)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "llava_next_video"}')
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00001.safetensors"}}')
    path = os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])
    done = llvid(
        "doctor", "-m", "demo", "--json", "--imports", env={"PYTHONPATH": path, "HF_HOME": str(tmp_path / "home")}
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    values = json.loads(done.stdout)
    hints = {problem["text"]: problem["mend"] for problem in values["problems"]}
    assert hints["llvid needs av<19,>=17.1, 9.0.0 is installed"] == "pip install 'av<19,>=17.1'"
    assert hints["asking PyAV for codecs failed: av is broken"] == "pip install --force-reinstall av"
    text = next(text for text in hints if text.startswith("importing torch failed"))
    assert "torch is broken" in text and hints[text] == "pip install --force-reinstall torch torchvision"
    text = next(text for text in hints if text.startswith("org/cut"))
    assert "lacks 1 of 1 weight files" in text and hints[text] == f"llvid pull org/cut --revision {'c' * 40}"
    assert values["memory"] and values["model"]["need"], "what is not broken is still shown"


def test_no_torch_is_imported_where_there_is_no_card() -> None:
    program = (
        "import sys; from llava_video_cli.cli.app import run; code = run(['doctor', '-m', 'demo', '-q']);"
        "assert not {'torch', 'transformers', 'torchvision', 'numpy'} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
