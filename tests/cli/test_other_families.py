"""The commands with a model of another family: the same options, records, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from family_checkpoints import make_family
from transformers import (
    AutoTokenizer,
    InstructBlipVideoConfig,
    InstructBlipVideoProcessor,
    InstructBlipVideoVideoProcessor,
)

from llava_video_cli.checkpoint.families import FAMILIES
from llava_video_cli.cli.app import run
from llava_video_cli.errors import ModelError
from llava_video_cli.inference.families.facts import load_processor
from llava_video_cli.inference.loader import memory_left
from llava_video_cli.model import Loading

TOKENS = ("--max-new-tokens", "6")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("models")
    return {name: make_family(base / name, name) for name in ("qwen3_vl", "llava_onevision", "smolvlm")}


@pytest.fixture(scope="module")
def clips(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    for name in ("a.mp4", "b.mp4"):
        shutil.copy(clip, folder / name)
    return folder


def asked(capsys: pytest.CaptureFixture[str], *words: Any) -> dict[str, Any]:
    assert run(["ask", *map(str, words), "--json", "-q", *TOKENS]) == 0
    row: dict[str, Any] = json.loads(capsys.readouterr().out)
    return row


def test_the_memory_that_another_family_leaves_is_known_before_it_is_loaded(tmp_path: Path) -> None:
    folder = make_family(tmp_path / "internvl", "internvl")  # whose sizes of pictures are pairs
    kind, left_bytes = memory_left(str(folder), Loading(device="cpu"))
    assert kind == "cpu" and left_bytes > 0


@pytest.mark.parametrize(
    ("name", "marks", "fit"),
    [("qwen3_vl", "seconds", "whole"), ("llava_onevision", "none", "stretch"), ("smolvlm", "clock", "whole")],
)
def test_json_names_the_family_its_time_marks_and_the_tokens_of_a_frame(
    folders: dict[str, Path], clip: Path, capsys: pytest.CaptureFixture[str], name: str, marks: str, fit: str
) -> None:
    row = asked(capsys, clip, "What happens?", "-m", folders[name], "-n", 4)
    assert row["family"] == row["settings"]["family"] == FAMILIES[name].name
    frames = row["frames"]
    assert (frames["count"], frames["time_marks"], frames["fit"], frames["visible_share"]) == (4, marks, fit, 1.0)
    more = asked(capsys, clip, "What happens?", "-m", folders[name], "-n", 8)
    grown = (more["usage"]["prompt_tokens"] - row["usage"]["prompt_tokens"]) / 4
    assert 1 <= frames["tokens_each"] <= grown + 1 and "pool_stride" not in row["settings"]
    assert (name == "llava_onevision") == (more["frames"]["tokens_each"] < frames["tokens_each"]), "it has a last one"


def test_padding_changes_what_a_model_with_a_fixed_shape_sees(
    folders: dict[str, Path], clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wide = ("-m", folders["llava_onevision"], "-n", 2)
    plain, padded = (asked(capsys, clip, "Why?", *wide, "--fit", fit) for fit in ("auto", "pad"))
    assert (plain["frames"]["fit"], padded["frames"]["fit"]) == ("stretch", "pad")
    whole = ("-m", folders["qwen3_vl"], "-n", 2)
    plain, padded = (asked(capsys, clip, "Why?", *whole, "--fit", fit) for fit in ("auto", "pad"))
    assert plain["answer"] == padded["answer"] and padded["frames"]["fit"] == "whole"


@pytest.mark.parametrize("name", ["qwen3_vl", "smolvlm"])
@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_a_quantized_one_answers_as_its_stored_copy(
    folders: dict[str, Path], clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, quantize: str
) -> None:
    row = asked(capsys, clip, "Why?", "-m", folders[name], "-n", 2, "--quantize", quantize)
    assert row["settings"]["quantize"] == quantize
    assert run(["pull", str(folders[name]), "--quantize", quantize, "--to", str(tmp_path / "stored"), "-q"]) == 0
    capsys.readouterr()
    again = asked(capsys, clip, "Why?", "-m", tmp_path / "stored", "-n", 2)
    assert (again["answer"], again["settings"]["quantize"]) == (row["answer"], quantize)


def test_a_folder_is_captioned_once(
    folders: dict[str, Path], clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "captions.jsonl"
    command = ["caption", str(clips), "-m", str(folders["qwen3_vl"]), "-n", "4", "-o", str(out), *TOKENS]
    assert run(command) == 0 and "2 captioned" in capsys.readouterr().err
    rows = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert rows[0]["caption"] == rows[1]["caption"] and rows[0]["settings"]["family"] == "Qwen3-VL"
    assert rows[0]["frames"]["time_marks"] == "seconds" and rows[0]["frames"]["tokens_each"] > 0
    assert run(command) == 0 and "2 done before" in capsys.readouterr().err
    assert run([*command, "--show-thinking"]) != 0 or "2 captioned" in capsys.readouterr().err, "other records"


def test_windows_and_requests(
    folders: dict[str, Path], clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ("-m", str(folders["smolvlm"]))
    assert run(["ask", str(clip), "Why?", *model, "--windows", "1", "-n", "2", "-q", *TOKENS]) == 0
    lines = [
        {"id": "one", "video": str(clip), "question": "Why?", "show_thinking": True, "frames": 2},
        {"id": "two", "media": [str(clip), str(clip)], "question": "Which?", "frames": 3},
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert run(["batch", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl"), *model, "-q", *TOKENS]) == 0
    rows = {row["id"]: row for row in map(json.loads, (tmp_path / "out.jsonl").read_text("utf-8").splitlines())}
    assert rows["one"]["settings"]["generation"]["show_thinking"] and rows["one"]["family"] == "SmolVLM2"
    assert rows["two"]["with"][0]["frames"]["time_marks"] == "clock"
    capsys.readouterr()


@pytest.mark.parametrize(
    "flags", [("--pool-stride", "2"), ("--pool-mode", "max"), ("--rope-factor", "2"), ("--rope-factor", "auto")]
)
def test_options_of_llava_next_video_are_refused(
    folders: dict[str, Path], clip: Path, capsys: pytest.CaptureFixture[str], flags: tuple[str, str]
) -> None:
    assert run(["ask", str(clip), "Why?", "-m", str(folders["qwen3_vl"]), *flags]) == 2
    assert f"error: {flags[0]} is for LLaVA-NeXT-Video" in capsys.readouterr().err


def test_too_many_frames_are_refused_with_a_number_that_fits(
    folders: dict[str, Path], clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = shutil.copytree(folders["smolvlm"], tmp_path / "short")
    config = json.loads((short / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 400
    (short / "config.json").write_text(json.dumps(config))
    assert run(["ask", str(clip), "Why?", "-m", str(short), "-n", "16", *TOKENS]) == 1
    told = capsys.readouterr().err
    assert "too many frames: 16; with this question" in told
    frames = int(told.split("use --frames ")[1].split()[0])
    assert run(["ask", str(clip), "Why?", "-m", str(short), "-n", str(frames), "-q", *TOKENS]) == 0
    assert run(["ask", str(clip), "Why?", "-m", str(short), "-n", str(frames + 1), "-q", *TOKENS]) == 1
    capsys.readouterr()


def test_an_end_token_beyond_the_vocabulary_is_none(
    folders: dict[str, Path], clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in a small checkpoint whose config was copied from a large one: `no` and `nothing` differ by an end token."""
    copied = shutil.copytree(folders["smolvlm"], tmp_path / "copied")
    config = json.loads((copied / "generation_config.json").read_text())
    choices = ("--choices", "no,nothing", "-n", 2)
    known = asked(capsys, clip, "Why?", "-m", copied, *choices)
    config["eos_token_id"] = [config["eos_token_id"], 151_645]
    (copied / "generation_config.json").write_text(json.dumps(config))
    assert asked(capsys, clip, "Why?", "-m", copied, *choices)["scores"] == known["scores"]


def test_a_processor_that_takes_videos_in_a_way_of_its_own_is_told(folders: dict[str, Path], tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folders["smolvlm"])
    InstructBlipVideoProcessor(InstructBlipVideoVideoProcessor(), tokenizer, tokenizer).save_pretrained(tmp_path)
    InstructBlipVideoConfig().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"InstructBlipVideoProcessor in .+ takes no videos as"):
        load_processor(tmp_path)


def test_doctor_knows_what_it_needs(folders: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "-m", str(folders["qwen3_vl"]), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["model"]
    stored = sum(path.stat().st_size for path in folders["qwen3_vl"].glob("*.safetensors"))
    assert told["parameters"] * 4 == pytest.approx(stored, rel=0.05) and told["context_tokens"] == 8192


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}, "is not a video model"),
        ({"model_type": "llava", "vision_config": {}}, "takes pictures, not videos"),
        ({"model_type": "own", "vision_config": {}, "auto_map": {}}, "code of its own, which llvid never runs"),
    ],
)
def test_what_is_no_video_model_is_told_in_a_line(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], config: dict[str, Any], words: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert run(["ask", str(clip), "Why?", "-m", str(tmp_path)]) == 1
    told = capsys.readouterr().err.splitlines()
    assert words in told[0] and len(told) == 2 and told[1].startswith("hint: ")
