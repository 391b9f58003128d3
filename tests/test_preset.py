from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from llava_video_cli.checkpoint.config import describe, read_config
from llava_video_cli.checkpoint.random_weights import random_folder
from llava_video_cli.checkpoint.size import estimate_memory
from llava_video_cli.checkpoint.tokens import MeasuredRates
from llava_video_cli.demo import CHECKPOINT
from llava_video_cli.errors import UsageError
from llava_video_cli.inference.families.facts import facts_of
from llava_video_cli.preset import load_preset, preset_files, read_preset
from llava_video_cli.prompt.budget import QUESTION_TOKENS


def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    path = tmp_path / "llvid" / "presets" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_the_shipped_presets_are_all_understood() -> None:
    names = {"default", "low-memory", "dpo", "long", "34b", "caption-short", "caption-detailed", "demo"}
    assert names <= set(preset_files())
    for name in names:
        preset = load_preset(name)
        assert preset.name == name and preset.about and preset.prompt


def test_shipped_presets_fit_their_context() -> None:
    """144 tokens a frame; the contexts are those of the published configs."""
    contexts = {"7B-32K": 32768, "34B": 4096, "7B-DPO": 10240, "7B-hf": 10240}
    for name in preset_files():
        preset = load_preset(name)
        if "LLaVA-NeXT-Video" in preset.model:
            context = next(size for part, size in contexts.items() if part in preset.model)
            assert preset.sampling.frames * 144 + preset.generation.max_new_tokens + 200 <= context, name


def test_the_users_own_preset_hides_a_shipped_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = own(tmp_path, monkeypatch, "default", "about: mine\nsampling:\n  frames: 5\n")
    assert load_preset("default").path == path
    assert load_preset("default").sampling.frames == 5
    assert load_preset("default").generation.max_new_tokens == 512


def test_a_home_that_may_not_be_searched_has_no_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that runs with another user's HOME; a name that is too long raises for everybody."""
    monkeypatch.setenv("XDG_CONFIG_HOME", f"/{'n' * 300}")
    assert load_preset("demo").model == "demo"


def test_a_file_in_the_current_folder_is_never_meant_by_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "default.yaml").write_text("about: a trap\nmodel: evil/model\n")
    (tmp_path / "mine.yaml").write_text("about: mine\n")
    assert load_preset("default").model.startswith("llava-hf/")
    for typed in ("mine.yaml", "mine"):
        with pytest.raises(UsageError) as caught:
            load_preset(typed)
        assert caught.value.hint == "for the file in this folder, write ./mine.yaml"
    assert load_preset("./mine.yaml").about == "mine"


@pytest.mark.parametrize(
    ("typed", "meant"), [("defualt", "default"), ("lowmemory", "low-memory"), ("caption-shrt", "caption-short")]
)
def test_a_mistyped_name_gets_the_nearest(typed: str, meant: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_preset(typed)
    assert caught.value.hint == f"did you mean {meant!r}?"


@pytest.mark.parametrize(
    ("text", "words", "hint"),
    [
        ("about: x\nmodle: y\n", "unknown key 'modle'", "did you mean 'model'?"),
        ("about: x\nsampling:\n  frame: 3\n", "unknown key 'frame' in sampling", "did you mean 'frames'?"),
        (
            "about: x\ngeneration:\n  temprature: 3\n",
            "unknown key 'temprature' in generation",
            "did you mean 'temperature'?",
        ),
        ("about: x\nsampling:\n  frames: many\n", "sampling: frames must be a whole number, got 'many'", None),
        ("about: x\nsampling:\n  frames: true\n", "frames must be a whole number, got true", None),
        ("about: x\nsampling:\n  frames: 0\n", "from 1 to", None),
        ("about: x\nsampling:\n  mode: unifrom\n", "must be one of uniform", "did you mean 'uniform'?"),
        ("about: x\nquantize: 4bits\n", "quantize must be one of auto, none, 8bit, 4bit", "did you mean '4bit'?"),
        ("about: x\nsampling: 8\n", "sampling must be a mapping of keys to values, got 8", None),
        ("model: y\n", "'about' is missing", "describe in one line what the preset is for"),
        ("- a\n", "must be a mapping of keys to values, got ['a']", None),
        ("", "must be a mapping of keys to values, got null", None),
        ("about: [\n", "line 2: not YAML", None),
        ("about: !!python/object/apply:os.system ['touch pwned']\n", "not YAML", None),
        ("about: x\ngeneration:\n  top_p: 2\n", "top_p must be above 0 and at most 1, got 2", None),
        ("about: x\nname: y\n", "unknown key 'name'", None),
    ],
)
def test_a_faulty_preset_is_refused_with_the_reason(tmp_path: Path, text: str, words: str, hint: str | None) -> None:
    path = tmp_path / "p.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_preset(path)
    assert words in str(caught.value) and str(path) in str(caught.value)
    assert hint is None or caught.value.hint == hint
    assert not Path("pwned").exists()


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no preset file"):
        read_preset(tmp_path / "nothing.yaml")
    with pytest.raises(UsageError, match="can't be read"):
        read_preset(tmp_path)
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError):
        read_preset(tmp_path / "b.yaml")


def test_a_relative_model_is_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "owner" / "mine").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    path, there = tmp_path / "here" / "p.yaml", tmp_path / "here" / "owner" / "mine"
    for written, meant in {
        "./owner/mine": there, "owner/mine": there, "../here/owner/mine": there, "a/b/c": tmp_path / "here/a/b/c",
        "owner/other": "owner/other", "demo": "demo", "random:7B": "random:7B", str(there): there, "~/x/y": "~/x/y",
    }.items():  # fmt: skip
        path.write_text(f"about: x\nmodel: {written}\n")
        assert read_preset(Path("../here/p.yaml")).model == str(meant)


def qwen(hidden: int, inner: int, layers: int, heads: tuple[int, int, int], tower: tuple[int, int, int]) -> Any:
    text = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers}
    names = ("num_attention_heads", "num_key_value_heads", "linear_num_value_heads")
    vision = dict(zip(("depth", "hidden_size", "intermediate_size"), tower, strict=True))
    is_tied = hidden < 4096
    return transformers.Qwen3_5Config(
        text_config=text | dict(zip(names, heads, strict=True)) | {"tie_word_embeddings": is_tied},
        vision_config=vision | {"out_hidden_size": hidden},
        tie_word_embeddings=is_tied,
    )


def smol() -> Any:
    text = {"hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 15}
    more = {"model_type": "llama", "num_key_value_heads": 5, "head_dim": 64, "vocab_size": 49280}
    vision = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "image_size": 512}
    return transformers.SmolVLMConfig(
        text_config=text | more, vision_config=vision | {"num_attention_heads": 12, "patch_size": 16}, scale_factor=4
    )


# Of what isn't LLaVA-NeXT-Video: the config, as on the hub, the pixels of a square frame of as many patches as one of
# 1280 x 720 has, and the tokens of such a frame with its time.
CONFIGS: dict[str, Any] = {
    "small": (smol, 32 * 16, 80),
    "laptop": (lambda: qwen(2048, 6144, 24, (8, 2, 16), (24, 1024, 4096)), 59 * 16, 446),
    "best-8gb": (lambda: qwen(2560, 9216, 32, (16, 4, 32), (24, 1024, 4096)), 59 * 16, 446),
    "best-24gb": (lambda: qwen(4096, 12288, 32, (16, 4, 32), (27, 1152, 4304)), 59 * 16, 446),
}


class Stub:
    """What a processor tells of the ids of its media."""

    class tokenizer:  # noqa: N801 - the attribute's name
        convert_tokens_to_ids = staticmethod(lambda _: 0)


@pytest.mark.parametrize("name", preset_files())
def test_a_presets_memory_is_what_the_arithmetic_gives(name: str) -> None:
    preset = load_preset(name)
    assert preset.licence is not None and preset.memory_gb is not None
    if name in CONFIGS:
        make, side, frame_tokens = CONFIGS[name]
        with torch.device("meta"):
            model = transformers.AutoModelForImageTextToText.from_config(config := make())
        checkpoint = facts_of(model, config, Stub, MeasuredRates(side, 16, 1, (), False, frame_tokens, frame_tokens))
    else:
        size = re.sub(r".*Video-|-DPO|-hf", "", preset.model)
        folder = CHECKPOINT if name == "demo" else random_folder(f"random:{size}")
        assert folder is not None
        checkpoint = describe(read_config(folder))
    kind: Any = "4bit" if preset.quantize == "4bit" else "none"
    tokens = preset.sampling.frames * checkpoint.rates.frame_tokens + QUESTION_TOKENS
    tokens += preset.generation.max_new_tokens
    need = estimate_memory(checkpoint, kind, "bfloat16", tokens, preset.sampling.frames)
    assert 0 <= preset.memory_gb - need.total_bytes / 1e9 < 0.1
