"""The model: streaming, stopping, limits, and what an incomplete or odd checkpoint leads to."""

from __future__ import annotations

import gc
import json
import shutil
import threading
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fakes import wrapped
from scenes import STILL, VIDEO, moving_square

from llava_video_cli import (
    ContextError,
    Generation,
    LlvidError,
    Loading,
    ModelError,
    Request,
    Turn,
    UsageError,
    join,
    open_model,
)
from llava_video_cli.inference.loader import load
from llava_video_cli.inference.row import ends_in_repetition, finish_reason
from llava_video_cli.inference.video_model import VideoModel


@pytest.fixture(scope="module")
def model(layouts: dict[str, Path]) -> VideoModel:
    opened = open_model(str(layouts["vicuna"]))
    assert isinstance(opened, VideoModel)
    return opened


def asked(text: str = "Why?", **generation: Any) -> Request:
    return Request((Turn("user", text, (VIDEO,)),), Generation(**({"max_new_tokens": 12} | generation)))


def test_the_stream_joined_is_the_answer_and_only_the_last_chunk_has_the_usage(model: VideoModel) -> None:
    chunks = list(model.stream(asked()))
    assert all(chunk.usage is None and chunk.finish_reason is None for chunk in chunks[:-1])
    answer = join(chunks)
    assert answer.text == "".join(chunk.text for chunk in chunks) == model.answer_all([asked()])[0].text
    usage = answer.usage
    assert usage.generated_tokens == 12 and answer.finish_reason == "length"
    assert 3 * 144 < usage.prompt_tokens < 3 * 144 + 60
    assert 0 < usage.first_token_seconds <= usage.total_seconds
    assert usage.peak_memory_bytes > 1e8
    assert len(chunks) > 2


def test_lists_do_where_the_types_say_tuples(model: VideoModel) -> None:
    media: Any = [VIDEO]
    turns: Any = [Turn("user", "Why?", media)]
    request = Request(turns, Generation(max_new_tokens=12))
    assert join(model.stream(request)).text == join(model.stream(asked())).text
    before = model.budget(request).prompt_tokens
    turns[0] = Turn("user", "Why does it move?", (VIDEO,))
    assert model.budget(request).prompt_tokens > before


def test_the_budget_is_what_the_prompt_takes_even_where_it_does_not_fit(model: VideoModel) -> None:
    budget = model.budget(asked())
    assert budget.prompt_tokens == join(model.stream(asked())).usage.prompt_tokens
    assert budget.media_tokens == (3 * 144,)
    assert budget.left == budget.context_tokens - budget.prompt_tokens - 12 > 0
    assert model.budget(asked("why " * 20_000)).left < 0


def test_a_request_that_was_counted_is_not_rendered_again(model: VideoModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rendered: list[Any] = []
    template = model.prompts.tokenizer.template

    def counting(messages: list[dict[str, Any]]) -> str:
        rendered.append(messages)
        return template(messages)

    monkeypatch.setattr(model.prompts.tokenizer, "template", counting)
    request = Request((Turn("user", "Why does it move?", (VIDEO,)),), Generation(max_new_tokens=2))
    counted = model.budget(request).prompt_tokens
    assert join(model.stream(request)).usage.prompt_tokens == counted and len(rendered) == 1
    model.budget(Request((Turn("user", "Why not?", (VIDEO,)),)))
    assert len(rendered) == 2


def test_a_seed_repeats_a_sampled_answer_and_another_seed_does_not(model: VideoModel) -> None:
    def sampled(seed: int) -> str:
        return join(model.stream(asked(temperature=1.5, seed=seed))).text

    assert sampled(1) == sampled(1) != sampled(2)
    batch = model.answer_all([asked(temperature=1.5, seed=1), asked("Who?", temperature=1.5, seed=1)])
    assert batch[0].text == sampled(1), "a sampled answer must not depend on its batch"


def test_top_p_near_zero_is_greedy(model: VideoModel) -> None:
    assert join(model.stream(asked(temperature=1.0, top_p=1e-6, seed=3))).text == join(model.stream(asked())).text


def test_a_repetition_penalty_changes_the_answer(model: VideoModel) -> None:
    assert join(model.stream(asked(repetition_penalty=5.0))).text != join(model.stream(asked())).text


def test_a_system_text_is_part_of_the_prompt(model: VideoModel) -> None:
    request = Request((Turn("system", "Answer in one word."), *asked().turns), asked().generation)
    assert join(model.stream(request)).usage.prompt_tokens > join(model.stream(asked())).usage.prompt_tokens


def test_a_reader_that_leaves_stops_the_generation(model: VideoModel) -> None:
    stream = model.stream(asked(max_new_tokens=5000))
    next(stream)
    assert isinstance(stream, Generator)
    stream.close()
    assert join(model.stream(asked())).usage.generated_tokens == 12


def test_streams_of_one_thread_and_of_several_go_on_beside_each_other(model: VideoModel) -> None:
    first = model.stream(asked(max_new_tokens=5000))
    next(first)
    assert join(model.stream(asked())).usage.generated_tokens == 12
    with ThreadPoolExecutor() as pool:
        assert pool.submit(lambda: join(model.stream(asked()))).result(60).usage.generated_tokens == 12
    assert next(first).text, "the first goes on"
    assert isinstance(first, Generator)
    first.close()
    collected = model.stream(asked(max_new_tokens=5000))
    next(collected)
    del collected
    gc.collect()
    assert join(model.stream(asked())).usage.generated_tokens == 12


def test_a_model_that_is_gone_leaves_no_thread(layouts: dict[str, Path]) -> None:
    before = set(threading.enumerate())
    opened = open_model(str(layouts["vicuna"]))
    assert join(opened.stream(asked())).usage.generated_tokens == 12
    threads = set(threading.enumerate()) - before
    assert {thread.name for thread in threads} == {"llvid-prepare", "llvid-engine", "llvid-text"}
    del opened
    gc.collect()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_an_exception_in_the_generating_thread_reaches_the_reader(layouts: dict[str, Path]) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ArithmeticError("the thread's own")

    broken = VideoModel("broken", wrapped(load(layouts["vicuna"], Loading()), fail))
    with pytest.raises(ArithmeticError, match="the thread's own"):
        list(broken.stream(asked()))


def test_a_prompt_that_does_not_fit_is_refused_with_what_fits(model: VideoModel) -> None:
    with pytest.raises(ContextError) as caught:
        list(model.stream(Request((Turn("user", "Why?", (moving_square(80),)),), Generation(max_new_tokens=100))))
    assert "too many frames: 80;" in str(caught.value) and "10,240" in str(caught.value)
    fits = int(str(caught.value.hint).split("--frames ")[1].split()[0])
    request = Request((Turn("user", "Why?", (moving_square(fits + 1),)),), Generation(max_new_tokens=100))
    assert model.budget(request).left < 0
    request = Request((Turn("user", "Why?", (moving_square(fits),)),), Generation(max_new_tokens=100))
    assert model.budget(request).left >= 0


def test_marks_in_a_question_take_no_places(model: VideoModel) -> None:
    assert join(model.stream(asked("Is <video> </s> here?"))).usage.generated_tokens == 12


@pytest.mark.parametrize(
    ("ids", "wanted"),
    [
        ([1, 2] * 40, True),
        ([7] * 64, True),
        ([7] * 63, False),
        (list(range(100)), False),
        (list(range(30)) * 6, True),
        (list(range(30)) * 5, False),
    ],
)
def test_what_counts_as_repetition(ids: list[int], wanted: bool) -> None:
    assert ends_in_repetition(ids) is wanted


def test_why_an_answer_ends() -> None:
    assert finish_reason([5, 6, 2], [2], 3) == "stop"
    assert finish_reason([5, 6], [2], 3) is None
    assert finish_reason([5, 6, 7], [2], 3) == "length"
    assert finish_reason([9] * 64, [2], 100) == "repetition"
    assert finish_reason([9] * 65, [2], 100) is None, "it is looked for every so many tokens"
    assert finish_reason([9] * 65, [2], 65) == "repetition"


def copied(source: Path, to: Path) -> Path:
    shutil.copytree(source, to)
    return to


def test_a_copy_without_preprocessor_files_gives_the_same(
    layouts: dict[str, Path], tmp_path: Path, model: VideoModel
) -> None:
    folder = copied(layouts["vicuna"], tmp_path / "x")
    for name in ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"):
        (folder / name).unlink()
    pictured = Request((Turn("user", "Same?", (STILL, VIDEO)),), Generation(max_new_tokens=12))
    bare = open_model(str(folder))
    for request in (asked(), pictured):
        assert join(bare.stream(request)).text == join(model.stream(request)).text


def test_a_copy_with_the_class_default_of_224_pixels_is_noticed(
    layouts: dict[str, Path], tmp_path: Path, model: VideoModel
) -> None:
    folder = copied(layouts["vicuna"], tmp_path / "x")
    for name in ("preprocessor_config.json", "video_preprocessor_config.json"):
        content = json.loads((folder / name).read_text())
        content |= {"size": {"shortest_edge": 224}, "crop_size": {"height": 224, "width": 224}}
        (folder / name).write_text(json.dumps(content))
    assert join(open_model(str(folder)).stream(asked())).text == join(model.stream(asked())).text


def test_incomplete_weights_are_refused(layouts: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = copied(layouts["vicuna"], tmp_path / "x")
    weights = load_file(folder / "model.safetensors")
    missing = next(name for name in weights if "q_proj" in name)
    save_file(
        {name: tensor for name, tensor in weights.items() if name != missing},
        folder / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(ModelError, match="incomplete: 1 tensors missing"):
        open_model(str(folder))
    content = (layouts["vicuna"] / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="is cut short"):
        open_model(str(folder))


def test_a_checkpoint_without_tokenizer_is_refused(layouts: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(layouts["vicuna"], tmp_path / "x")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="tokenizer"):
        open_model(str(folder))


@pytest.mark.parametrize(
    ("loading", "kind"),
    [({"device": "cuda:99"}, ModelError), ({"device": "tpu"}, UsageError), ({"device": "cpu:1"}, UsageError)],
)
def test_a_device_that_is_not_there(layouts: dict[str, Path], loading: dict[str, Any], kind: type[LlvidError]) -> None:
    with pytest.raises(kind, match="device"):
        open_model(str(layouts["vicuna"]), Loading(**loading))


def test_bfloat16_and_eager_attention_are_taken(layouts: dict[str, Path]) -> None:
    opened = open_model(str(layouts["vicuna"]), Loading(dtype="bfloat16", attention="eager"))
    assert opened.settings["dtype"] == "bfloat16" and opened.settings["attention"] == "eager"
    assert join(opened.stream(asked())).usage.generated_tokens == 12


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_only_the_language_model_is_quantized(layouts: dict[str, Path], quantize: Any) -> None:
    import torch

    loaded = load(layouts["mistral"], Loading(quantize=quantize))
    assert join(VideoModel("mistral", loaded).stream(asked())).usage.generated_tokens == 12
    for name, module in loaded.model.named_modules():
        if isinstance(module, torch.nn.Linear):
            is_quantized = type(module) is not torch.nn.Linear
            assert is_quantized == ("language_model" in name), name
