"""What may go wrong while rows come and go, and other families' caches in slots."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fakes import Fails, events, joined, wrapped
from random_requests import Reference, opened, run_cases
from scenes import OTHER, VIDEO, moving_square
from test_together import asked
from transformers import DynamicCache, Gemma4TextConfig, Qwen3_5TextConfig

from llava_video_cli import Chunk, Generation, Loading, join
from llava_video_cli.demo import CHECKPOINT
from llava_video_cli.errors import OutOfMemoryError
from llava_video_cli.inference.decode_step import Decoder
from llava_video_cli.inference.loader import load
from llava_video_cli.inference.prefix_cache import Prompt
from llava_video_cli.inference.sampler import Sampler, sample
from llava_video_cli.inference.video_model import VideoModel

REQUESTS = [
    asked(text, medium, max_new_tokens=tokens)
    for text, tokens in (("Why?", 12), ("Who?", 20), ("What happens in the end?", 8))
    for medium in (moving_square(1), moving_square(1, seed=3), moving_square(2))
]


def out_of_memory() -> Exception:
    return RuntimeError("CUDA error: out of memory")


def test_where_memory_runs_out_fewer_go_on_and_then_more_again(layouts: dict[str, Path]) -> None:
    plain = opened(layouts["vicuna"])
    wanted = [join(plain.stream(request)).text for request in REQUESTS]
    most = 3
    fails = Fails(layouts["vicuna"], lambda rows: rows > most, out_of_memory)
    for _ in range(2):
        got = joined(events(fails.model, REQUESTS))
        assert [got[number].text for number in range(len(REQUESTS))] == wanted
    assert max(fails.rows) > 3
    most = 100
    for _ in range(2):
        fails.rows.clear()
        assert [answer.text for answer in fails.model.answer_all(REQUESTS)] == wanted
    assert max(fails.rows) > 3, "it is tried again"


def test_one_that_runs_out_of_memory_alone_is_an_error_and_the_next_is_answered(layouts: dict[str, Path]) -> None:
    is_full = True
    fails = Fails(layouts["vicuna"], lambda _: is_full, out_of_memory)
    came = dict(events(fails.model, REQUESTS[:3]))
    assert len(came) == 3 and all(isinstance(each, OutOfMemoryError) for each in came.values())
    is_full = False
    assert join(fails.model.stream(REQUESTS[0])).usage.generated_tokens == 12


@pytest.mark.parametrize(("count", "least"), [(10, 5), pytest.param(30, 20, marks=pytest.mark.slow)])
def test_random_failures_lose_nothing_and_change_nothing(count: int, least: int, layouts: dict[str, Path]) -> None:
    calls: Iterator[int] = iter(range(1_000_000))
    fails = Fails(layouts["mistral"], lambda rows: rows > 1 and next(calls) % 7 == 3, out_of_memory)
    checked, near = run_cases(fails.model, Reference(layouts["mistral"]), count, seed=1)
    assert checked > least and near <= 2 and next(calls) > 10


def test_an_error_of_another_kind_is_that_of_the_rows_in_the_step(layouts: dict[str, Path]) -> None:
    failures = [True]
    fails = Fails(layouts["vicuna"], lambda rows: rows == 1 and bool(failures) and failures.pop(), ArithmeticError)
    (event,) = (event for _, event in events(fails.model, REQUESTS[:1]))
    assert isinstance(event, ArithmeticError)
    assert join(fails.model.stream(REQUESTS[0])).usage.generated_tokens == 12


def test_what_one_of_several_causes_is_its_own_error(layouts: dict[str, Path]) -> None:
    def encoded(model: Any, pixels: torch.Tensor, **options: Any) -> Any:
        if pixels.shape[1] > 6:
            raise ArithmeticError(pixels.shape)
        return model.get_video_features(pixels, **options)

    loaded = load(layouts["vicuna"], Loading(dtype="float32", device="cpu"))
    model = VideoModel("fails", wrapped(loaded, get_video_features=encoded))
    requests = [asked(text, medium) for text in ("Why?", "Who?") for medium in (VIDEO, moving_square(7), OTHER)]
    came = {number: event for number, event in events(model, requests) if isinstance(event, Exception)}
    assert set(came) == {1, 4} and all(isinstance(each, ArithmeticError) for each in came.values())


def test_text_that_can_not_be_decoded_is_an_error_of_its_own(layouts: dict[str, Path]) -> None:
    model = opened(layouts["vicuna"])
    decode = model.decode

    def fail(ids: list[int]) -> str:
        raise ArithmeticError(len(ids))

    model.decode = fail
    (event,) = events(model, REQUESTS[:1])
    model.decode = decode
    assert isinstance(event[1], ArithmeticError)
    assert join(model.stream(REQUESTS[1])).usage.generated_tokens == 12


def test_a_model_that_is_gone_after_an_error_leaves_no_thread(layouts: dict[str, Path]) -> None:
    before = set(threading.enumerate())
    fails = Fails(layouts["vicuna"], lambda _: True, ArithmeticError)
    assert len(list(events(fails.model, REQUESTS[:2]))) == 2
    threads = set(threading.enumerate()) - before
    del fails.model
    until = time.monotonic() + 20
    while threads and time.monotonic() < until:  # the last delivery may still be under way
        gc.collect()
        threads = {thread for thread in threads if thread.is_alive()}
        for thread in threads:
            thread.join(0.1)
    assert not threads


def test_a_sampler_begins_anew_where_tokens_were_lost() -> None:
    config = SimpleNamespace(no_repeat_ngram_size=0, bad_words_ids=None, suppress_tokens=None)
    generation = Generation(temperature=1.0, seed=1, repetition_penalty=3.0, frequency_penalty=0.5)
    sampler = Sampler(generation, config, (), [1, 2], torch.device("cpu"), logprobs=2)
    logits = torch.randn(1, 9, generator=torch.Generator().manual_seed(0))
    tokens = [int(sample(logits, [sampler])[0]) for _ in range(6)]
    noted = list(sampler.logprobs)
    for kept in (6, 2, 0, 4):
        sampler.restart(tokens[:kept])
        assert [int(sample(logits, [sampler])[0]) for _ in tokens[kept:]] == tokens[kept:]
        assert sampler.logprobs == noted


def test_a_reader_whose_delivery_fails_takes_no_other_down(layouts: dict[str, Path]) -> None:
    model, done = opened(layouts["vicuna"]), threading.Event()

    def refuse(_: object) -> None:
        done.set()
        raise RuntimeError("the client is gone")

    model.submit(REQUESTS[0], refuse)
    answer = join(model.stream(REQUESTS[1]))
    assert done.wait(20) and answer.usage.generated_tokens == 12


def test_the_memory_stays_as_it_is_over_many_requests(layouts: dict[str, Path]) -> None:
    model = opened(layouts["vicuna"])
    model.answer_all(REQUESTS)
    bytes_before, threads = model.cached_bytes, threading.active_count()
    for _ in range(3):
        pieces = list(events(model, REQUESTS))
        assert sum(isinstance(event, Chunk) and event.usage is not None for _, event in pieces) == len(REQUESTS)
    assert model.cached_bytes == bytes_before and threading.active_count() == threads


SMALL: dict[str, Any] = {
    "vocab_size": 99, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512, "pad_token_id": 0,
}  # fmt: skip
OTHERS = {
    "a sliding window": lambda: Gemma4TextConfig(
        **SMALL, global_head_dim=8, layer_types=["sliding_attention", "full_attention"], sliding_window=6,
        vocab_size_per_layer_input=99, hidden_size_per_layer_input=8,
    ),
    "linear attention": lambda: Qwen3_5TextConfig(
        **SMALL, layer_types=["linear_attention", "full_attention"], linear_key_head_dim=8, linear_value_head_dim=8,
        linear_num_key_heads=2, linear_num_value_heads=2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_rows_of_other_kinds_of_layers_join_and_leave(kind: str) -> None:
    """Sliding windows and linear attention: rows that join and leave get what `generate` gives each alone."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(OTHERS[kind]()).eval()
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.data.normal_(0, 1.5 / weight.shape[-1] ** 0.5)
    prompts = [torch.randint(3, 99, (1, length)) for length in (9, 4, 14)]
    wanted = [model.generate(ids, max_new_tokens=12, do_sample=False, eos_token_id=None)[0] for ids in prompts]
    decoder = Decoder(model)
    decoder.reserve(3, 32)
    ids = [prompt[0].tolist() for prompt in prompts]

    def join_slot(slot: int, number: int) -> None:
        cache = DynamicCache(config=model.config)
        batch = decoder.batch([Prompt(ids[number])], [0])
        logits = decoder.prefill(cache, batch, 0, input_ids=batch.ids)
        decoder.slots.fill(slot, cache, 0, len(ids[number]))
        take(slot, number, logits[0])

    def take(slot: int, number: int, logits: torch.Tensor) -> None:
        ids[number].append(int(logits.argmax()))
        decoder.slots.last_ids[slot] = ids[number][-1]

    with torch.inference_mode():
        rows = [0, 1]
        for slot in rows:
            join_slot(slot, slot)
        for step in range(20):
            if step == 4:
                rows.append(2)
                join_slot(2, 2)
            for slot in reversed(range(len(rows))):
                if len(ids[rows[slot]]) == len(wanted[rows[slot]]):
                    decoder.slots.copy(len(rows) - 1, slot, 32)
                    rows[slot] = rows[-1]
                    rows.pop()
            if rows:
                logits = decoder.advance(len(rows), max(len(ids[number]) for number in rows), are_alike=False)
                for slot, number in enumerate(rows):
                    take(slot, number, logits[slot])
    assert ids == [each.tolist() for each in wanted]


def test_a_tiny_model_is_computed_on_one_core_and_its_owner_keeps_all(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen, before = opened(CHECKPOINT), list[int](), torch.get_num_threads()
    advance = Decoder.advance

    def seeing(*given: Any, **named: Any) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return advance(*given, **named)

    monkeypatch.setattr(Decoder, "advance", seeing)
    try:
        torch.set_num_threads(2)
        join(model.stream(REQUESTS[0]))
        assert {*seen} == {1}
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
