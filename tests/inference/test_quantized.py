"""A checkpoint that is stored quantized: the same answers in fewer bytes, and all of its files or none."""

from __future__ import annotations

import json
import resource
import shutil
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from llava_video_cli import Loading, Request, Sampling, Turn, open_model, read_frames
from llava_video_cli.cli.app import run
from llava_video_cli.demo import CHECKPOINT
from llava_video_cli.errors import ModelError
from llava_video_cli.inference.loader import load
from llava_video_cli.inference.quantized import load_quantized, write
from llava_video_cli.inference.weights import prepare_layers

QUESTIONS = ("What happens in this video?", "What shape is it?", "What color is it at the start?")


def answers(model: str, loading: Loading, clip: Path) -> list[str]:
    frames = read_frames(clip, Sampling(frames=8))
    opened = open_model(model, loading)
    return [answer.text for answer in opened.answer_all([Request((Turn("user", q, (frames,)),)) for q in QUESTIONS])]


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_a_stored_checkpoint_answers_as_one_quantized_while_loading(
    quantize: Literal["4bit", "8bit"], clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "new" / "stored"
    assert run(["pull", "demo", "--quantize", quantize, "--to", str(to), "--json", "-q"]) == 0
    out, err = capsys.readouterr()
    values = json.loads(out)
    assert (
        err == ""
        and values["folder"] == str(to)
        and values["quantize"] == quantize
        and values["source"] == str(CHECKPOINT)
    )
    weights = (to / "model.safetensors").stat().st_size
    assert values["bytes"] > weights and weights < 0.8 * 4 * 1_154_624, "less than the float32 that it was loaded as"
    assert [path.name for path in to.parent.iterdir()] == ["stored"], "no temporary folder is left"
    assert answers(str(to), Loading(), clip) == answers("demo", Loading(quantize=quantize), clip)
    if quantize == "4bit":  # computes in the precision of where it is loaded, not of where it was stored
        model = load(to, Loading(dtype="float32")).model
        assert {module.compute_dtype for module in model.modules() if hasattr(module, "compute_dtype")} == {
            torch.float32
        }


def test_a_checkpoint_that_can_not_be_stored_is_refused_before_anything_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    stored = tmp_path / "stored"
    stored.mkdir()
    config = json.loads((CHECKPOINT / "config.json").read_text()) | {"quantization_config": {"load_in_4bit": True}}
    (stored / "config.json").write_text(json.dumps(config))
    for name in ("model.safetensors", "tokenizer.json"):
        shutil.copy(CHECKPOINT / name, stored)
    for arguments, words in (
        (("demo", "--quantize", "4bit"), "use --quantize and --to together"),
        (("demo", "--to", "x"), "use --quantize and --to together"),
        (("demo", "--quantize", "4bit", "--to", str(tmp_path / "full")), "is not empty"),
        (("demo", "--quantize", "4bit", "--to", str(tmp_path / "full" / "file")), "is a file"),
        (("demo", "--quantize", "4bit", "--to", "."), ". is the current folder, which the new folder can't replace"),
        ((str(stored), "--quantize", "8bit", "--to", str(tmp_path / "x")), "is already stored in 4bit"),
    ):
        assert run(["pull", "-q", *arguments]) == 2
        out, err = capsys.readouterr()
        assert out == "" and words in err.splitlines()[0] and len(err.splitlines()) == 2
    assert not (tmp_path / "x").exists()


def test_a_full_disk_leaves_no_files(tmp_path: Path) -> None:
    loaded = load_quantized(CHECKPOINT, "4bit", "demo")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        with pytest.raises(ModelError, match="can't write") as raised:
            write(loaded, CHECKPOINT, tmp_path / "stored")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert raised.value.hint is not None and "--to" in raised.value.hint and "\n" not in str(raised.value)
    assert list(tmp_path.iterdir()) == []
    write(loaded, CHECKPOINT, tmp_path / "stored")
    assert (tmp_path / "stored" / "model.safetensors").stat().st_size > 200_000


def four_bit_layer(inputs: int, outputs: int) -> tuple[Any, torch.Tensor]:
    """Return a layer in 4 bits, as loading quantizes it, and the weight that it stands for, in float32."""
    from bitsandbytes.functional import dequantize_4bit
    from bitsandbytes.nn import Linear4bit

    layer = Linear4bit(inputs, outputs, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
    plain = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(outputs), dtype=torch.bfloat16)
    layer.load_state_dict({"weight": plain})
    layer = layer.to("cpu").eval()
    return layer, dequantize_4bit(layer.weight.data, layer.weight.quant_state).float().reshape(outputs, inputs)


@pytest.mark.parametrize(("inputs", "outputs"), [(128, 64), (128, 48), (96, 64)])
def test_a_prepared_layer_computes_what_its_weight_says_for_any_number_of_rows(inputs: int, outputs: int) -> None:
    """bitsandbytes' kernel for AVX-512 can't take the last two shapes: it raised AssertionError and RuntimeError."""
    layer, weight = four_bit_layer(inputs, outputs)
    prepare_layers(torch.nn.Sequential(layer))
    before = layer.weight.data_ptr()
    for rows in (1, 2, 31, 300):
        given = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(rows)).bfloat16()
        with torch.inference_mode():
            got = layer(given).float()
        wanted = given.float() @ weight.T
        assert got.shape == wanted.shape and float((got - wanted).norm() / wanted.norm()) < 0.01
    assert layer.weight.data_ptr() == before, "using it changed nothing"


def test_the_first_answer_does_not_rearrange_weights_and_a_stored_copy_has_them_as_bitsandbytes_does() -> None:
    from bitsandbytes.nn import Linear4bit

    def pointers(model: Any) -> list[int]:
        return [each.weight.data_ptr() for each in model.modules() if isinstance(each, Linear4bit)]

    model = load(CHECKPOINT, Loading(quantize="4bit", device="cpu")).model
    before = pointers(model)
    with torch.inference_mode():
        model.model.language_model(inputs_embeds=torch.zeros((1, 40, model.config.text_config.hidden_size)))
    assert before and pointers(model) == before
    stored = load_quantized(CHECKPOINT, "4bit", "demo").model
    assert {each.weight.shape[1] for each in stored.modules() if isinstance(each, Linear4bit)} == {1}
