"""Adapters on a model: they answer as the checkpoint does that peft merges them into; what can't be applied is said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from shlex import quote
from typing import Any

import pytest
import torch
from adapters import make_adapter
from checkpoints import WORDS, make_checkpoint
from family_checkpoints import make_family
from safetensors.torch import load_file, save_file
from scenes import VIDEO

from llava_video_cli import Generation, Loading, ModelError, Request, Turn, open_model
from llava_video_cli.checkpoint.adapter import read_adapter, with_adapter
from llava_video_cli.checkpoint.config import ADAPTER, describe, read_config
from llava_video_cli.demo import CHECKPOINT
from llava_video_cli.inference.loader import foresee, load

pytest.importorskip("peft", reason="the extra lora is not installed")
WEIGHTS = "adapter_model.safetensors"
REQUESTS = [
    Request((Turn("user", text, (VIDEO,)),), Generation(max_new_tokens=10)) for text in ("What happens?", "Why, then?")
]


def answers(folder: Path, adapter: Path | None = None, **loading: Any) -> list[str]:
    name = None if adapter is None else str(adapter)
    model = open_model(str(folder), Loading(dtype="float32", adapter=name, **loading))
    return [answer.text for answer in model.answer_all(REQUESTS)]


@pytest.fixture(scope="module")
def vicuna(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A checkpoint, an adapter for it, and the two merged."""
    base = make_checkpoint((folder := tmp_path_factory.mktemp("lora")) / "vicuna", "vicuna", words=WORDS)
    return base, make_adapter(base, folder / "adapter", folder / "merged"), folder / "merged"


@pytest.fixture
def adapter(vicuna: tuple[Path, Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(vicuna[1], tmp_path / "adapter"))


def rewritten(folder: Path, config: dict[str, Any], tensors: Callable[[str, torch.Tensor], Any] | None = None) -> None:
    path = folder / ADAPTER
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    if tensors is not None:
        changed = dict(found for item in load_file(folder / WEIGHTS).items() if (found := tensors(*item)))
        save_file({name: tensor.clone() for name, tensor in changed.items()}, folder / WEIGHTS, {"format": "pt"})


KINDS: dict[str, dict[str, Any]] = {
    "rank-stabilized": {"use_rslora": True, "rank_pattern": {r".*\.(k|v)_proj": 2}, "alpha_pattern": {"q_proj": 3}},
    "with a head and a projector of its own": {"modules_to_save": ["lm_head", "multi_modal_projector"]},
    "of magnitudes (DoRA)": {"use_dora": True},
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_the_demo_with_an_adapter_answers_as_the_merged_one(tmp_path: Path, name: str) -> None:
    adapter = make_adapter(CHECKPOINT, tmp_path / "adapter", tmp_path / "merged", **KINDS[name])
    found = answers(CHECKPOINT, adapter)
    assert found == answers(tmp_path / "merged") != answers(CHECKPOINT)


def test_names_of_this_transformers_and_of_earlier_ones_are_the_same(
    vicuna: tuple[Path, Path, Path], adapter: Path
) -> None:
    base, plain, merged = vicuna
    wanted = answers(merged)
    assert answers(base, plain) == wanted != answers(base)

    def older(name: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
        name = name.replace("base_model.model.model.language_model.", "base_model.model.language_model.model.")
        return name.replace("model.model.vision_tower.", "model.vision_tower.vision_model."), tensor

    rewritten(adapter, {"target_modules": "language_model.*q_proj"}, older)
    assert not any("model.model.model" in name for name in load_file(adapter / WEIGHTS))
    assert answers(base, adapter) == wanted


def test_another_family_and_weights_that_embeddings_share(tmp_path: Path) -> None:
    base = make_family(tmp_path / "base", "qwen2_5_vl")
    adapter = make_adapter(base, tmp_path / "adapter", tmp_path / "merged")
    assert answers(base, adapter) == answers(tmp_path / "merged") != answers(base)


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_beside_quantized_weights_it_is_kept_and_answers_as_in_peft(
    vicuna: tuple[Path, Path, Path], quantize: Any
) -> None:
    from peft import PeftModel

    base, adapter, _ = vicuna
    loading = Loading(quantize=quantize, dtype="float32", device="cpu")
    plain = load(base, loading, to_answer=False).model  # peft would rearrange the weights again, which loses a little
    ids = {"input_ids": torch.arange(300, 340)[None], "attention_mask": torch.ones(1, 40, dtype=torch.long)}
    with torch.inference_mode():
        theirs = PeftModel.from_pretrained(plain, adapter).eval()(**ids).logits
        kept = load(base, replace(loading, adapter=str(adapter)))
        ours = kept.model(**ids).logits
    assert torch.equal(ours, theirs)
    assert any(".lora_A." in name for name, _ in kept.model.named_parameters())
    assert answers(base, adapter, quantize=quantize) != answers(base, quantize=quantize)


def test_settings_name_it_and_its_memory_is_counted(vicuna: tuple[Path, Path, Path]) -> None:
    base, adapter, _ = vicuna
    model = open_model(str(base), Loading(adapter=str(adapter)))
    assert model.settings["adapter"] == str(adapter) and model.notes == ()
    assert "adapter" not in open_model(str(base)).settings
    numbers = sum(tensor.numel() for tensor in load_file(adapter / WEIGHTS).values())
    plain = describe(read_config(base))
    assert with_adapter(plain, str(adapter)).parameters.total == plain.parameters.total + numbers
    assert read_adapter(str(adapter)).base == "somebody/vicuna"


@pytest.mark.parametrize(
    ("named", "is_noted"),
    [
        ("llava-hf/LLaVA-NeXT-Video-7B-hf", True),
        ("/home/her/models/Vicuna/", False),
        ("/root/.cache/hub/models--somebody--vicuna/snapshots/0123", False),
        (None, False),
    ],
)
def test_a_base_of_another_name_is_noted(
    vicuna: tuple[Path, Path, Path], adapter: Path, named: str | None, is_noted: bool
) -> None:
    rewritten(adapter, {"base_model_name_or_path": named})
    notes = open_model(str(vicuna[0]), Loading(adapter=str(adapter))).notes
    assert [f"trained on {named}, not on" in note for note in notes] == [True] * is_noted


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")


def cut(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:-100])


def fields(**values: Any) -> Callable[[Path], None]:
    return lambda folder: rewritten(folder, values)


def config(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / ADAPTER).write_text(text)


def of(change: Callable[[str, torch.Tensor], Any]) -> Callable[[Path], None]:
    return lambda folder: rewritten(folder, {}, change)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "pickle": (pickled, r"has only adapter_model.bin; its weights must be adapter_model.safetensors"),
    "cut": (cut, r"adapter_model.safetensors is cut short"),
    "no config": (lambda f: (f / ADAPTER).unlink(), r"is not an adapter: it has no adapter_config.json"),
    "list": (config("[]"), r"it is not a mapping"),
    "large": (config(" " * 2**24 + "{}"), r"bytes, more than"),
    "another kind": (fields(peft_type="IA3"), r"is of the kind 'IA3': llvid applies LoRA adapters only"),
    "code": (fields(megatron_config={"a": 1}, megatron_core="os"), r"sets 'megatron_config', which llvid can't apply"),
    "activated": (fields(alora_invocation_tokens=[3]), r"sets 'alora_invocation_tokens'"),
    "unknown": (fields(from_the_future=7), r"sets 'from_the_future'"),
    "changed base": (fields(init_lora_weights="pissa_niter_4"), r"training began with 'pissa_niter_4'"),
    "rank": (fields(r="4"), r"r can't be '4'"),
    "half a rank": (fields(rank_pattern={"q_proj": 4.5}), r"rank_pattern must hold whole numbers, got .*4.5"),
    "no rank": (fields(rank_pattern={"q_proj": 0}), r"a rank must be 1 or more, got 0"),
    "costly pattern": (fields(alpha_pattern={"(q_proj)+": 4}), r"alpha_pattern has '\(q_proj\)\+', which llvid can't"),
    "no pattern": (fields(rank_pattern={"*": 4}), r"rank_pattern has '\*', which llvid can't apply"),
    "no alpha": (fields(lora_alpha=float("nan")), r"lora_alpha can't be nan"),
    "large rank": (fields(r=10**9), r"doesn't fit: .*lora_[AB].* is .*4.*, not .*1000000000"),
    "NaN": (of(lambda n, t: (n, t * float("nan"))), r"the weights in .*adapter can't be loaded: NaN"),
    "another rank": (fields(r=8), r"doesn't fit: .*lora_[AB].* is .*4.*, not .*8"),
    "another width": (of(lambda n, t: (n, t[:, :32] if "lora_A" in n else t)), r"doesn't fit: .* is 4 x 32, not 4 x"),
    "another depth": (of(lambda n, t: (n.replace("layers.1.", "layers.9."), t)), r"is for another model: .*layers.9"),
    "a half": (of(lambda n, t: None if "lora_B" in n else (n, t)), r"is incomplete: it lacks .*lora_B"),
    "too much": (of(lambda n, t: (n.replace("lora_A", "lora_C"), t)), r"lora_C.*, which its config has no place"),
    "resized": (
        of(lambda n, t: ("base_model.model.lm_head.weight", torch.ones(9, 64)) if "0.self_attn.q" in n else (n, t)),
        r"doesn't fit: lm_head.weight is 9 x 64, not",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(vicuna: tuple[Path, Path, Path], adapter: Path, name: str) -> None:
    change, words = REFUSED[name]
    change(adapter)
    with pytest.raises(ModelError, match=words) as error:
        open_model(str(vicuna[0]), Loading(adapter=str(adapter), device="cpu"))
    assert "\n" not in str(error.value)


def test_one_beside_whole_weights_is_used_when_asked_for_and_else_refused(
    vicuna: tuple[Path, Path, Path], adapter: Path, tmp_path: Path
) -> None:
    base, _, merged = vicuna
    folder = Path(shutil.copytree(base, tmp_path / "both here"))
    shutil.copytree(adapter, folder, dirs_exist_ok=True)
    with pytest.raises(ModelError, match="has whole weights and an adapter for somebody/vicuna") as error:
        open_model(str(folder))
    assert error.value.hint is not None and f"--adapter '{folder}'" in error.value.hint
    with pytest.raises(ModelError, match="has an adapter of its own"):
        open_model(str(folder), Loading(adapter=str(adapter)))
    assert answers(folder, folder) == answers(merged)


def test_an_adapter_as_the_model_is_told_how_to_be_used(
    adapter: Path, vicuna: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """Alone, and with a config and a tokenizer beside it, as trainers write it."""
    folder = Path(shutil.copytree(vicuna[0], tmp_path / "trained one"))
    (folder / "model.safetensors").unlink()
    shutil.copytree(adapter, folder, dirs_exist_ok=True)
    for each in (adapter, folder):
        for check in (lambda folder: open_model(str(folder)), lambda folder: foresee("its name", folder, Loading())):
            with pytest.raises(ModelError, match="is an adapter for somebody/vicuna, not a whole checkpoint") as error:
                check(each)
            assert error.value.hint == f"`-m somebody/vicuna --adapter {quote(str(each))}` loads both"
