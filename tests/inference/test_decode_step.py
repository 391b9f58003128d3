"""Decode steps: written out, captured or transformers' own, they give the same tokens.

There is no GPU here: `Replayed` takes the place of a CUDA graph, and runs the same step on the same static tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import Replayed, events, joined
from scenes import OTHER, STILL, VIDEO, checkpoint
from test_together import MIXED, asked
from transformers import DynamicCache

from llava_video_cli import Loading, join, open_model
from llava_video_cli.inference.decode_step import Decoder, LayerStep, TransformersStep, choose_step
from llava_video_cli.inference.kv_cache import SlotCache, causal_mask
from llava_video_cli.inference.loader import load
from llava_video_cli.inference.prefix_cache import Prompt
from llava_video_cli.inference.video_model import VideoModel

LAYOUTS = ["demo", "vicuna", "mistral", "yi"]


def opened(folder: Path, capture: Any = None, **loading: Any) -> VideoModel:
    settings = Loading(**loading)
    return VideoModel(folder.name, load(folder, settings), prefix_reuse=settings.prefix_reuse, capture=capture)


@pytest.mark.parametrize(
    "name", ["demo", "vicuna", *(pytest.param(name, marks=pytest.mark.slow) for name in LAYOUTS[2:])]
)
def test_a_captured_step_gives_the_same_answers(name: str, layouts: dict[str, Path]) -> None:
    folder = checkpoint(name, layouts)
    capture = Replayed()
    captured, plain = opened(folder, capture), opened(folder)
    long = [asked(text, VIDEO, max_new_tokens=20) for text in ("What happens?", "Why?", "What shape is it?")]
    for request in (*long, asked("Who?", OTHER, max_new_tokens=20), *MIXED):
        assert join(captured.stream(request)).text == join(plain.stream(request)).text
    wanted = joined(events(plain, [*MIXED, *long]))
    got = joined(events(captured, [*MIXED, *long]))
    assert {number: answer.text for number, answer in got.items()} == {n: one.text for n, one in wanted.items()}
    assert name == "demo" or capture.replays > 3 * capture.captures > 0


def test_a_capture_serves_all_that_come_later(layouts: dict[str, Path]) -> None:
    capture = Replayed()
    model = opened(layouts["vicuna"], capture)
    for medium in (VIDEO, VIDEO, OTHER):
        join(model.stream(asked("Why?", medium, max_new_tokens=30)))
    assert capture.captures == 1, "of the same video, and of another one that takes as much room"
    counts = []
    for _ in range(4):
        model.answer_all([asked("Why?", medium, max_new_tokens=30) for medium in (VIDEO, OTHER)])
        join(model.stream(asked("Why?", max_new_tokens=30)))
        counts.append(capture.captures)
    assert counts[-2] == counts[-1] <= 3, "one for each number of rows, and the first buffers were replaced"


@pytest.mark.parametrize("fault", ["raises", "other logits", pytest.param("NaN", marks=pytest.mark.slow)])
def test_a_step_that_can_not_be_captured_is_run_as_it_is(fault: str, layouts: dict[str, Path]) -> None:
    attempts = []
    loaded = load(layouts["mistral"], Loading())

    def spoil(_: object, __: object, logits: torch.Tensor) -> torch.Tensor:
        return logits.flip(-1) if fault == "other logits" else logits * float("nan")

    def capture(do: Callable[[], None]) -> Callable[[], None]:
        attempts.append(do)
        if fault == "raises":
            do()
            raise RuntimeError("operation not permitted when stream is capturing")

        def replay() -> None:
            spoiled = loaded.model.get_output_embeddings().register_forward_hook(spoil)
            do()
            spoiled.remove()

        return replay

    model, plain = VideoModel("mistral", loaded, capture=capture), opened(layouts["mistral"])
    requests = [asked(text, max_new_tokens=30) for text in ("Why?", "Who is it?")]
    assert [join(model.stream(one)).text for one in requests] == [join(plain.stream(one)).text for one in requests]
    assert 1 <= len(attempts) <= 2, "it is tried again, but later"
    assert [one.text for one in model.answer_all(requests)] == [one.text for one in plain.answer_all(requests)]


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_layers_written_out_do_what_transformers_does(name: str, layouts: dict[str, Path]) -> None:
    """Number for number, for rows of different lengths."""
    model = load(checkpoint(name, layouts), Loading()).model
    step, whole = choose_step(model), TransformersStep(model)
    assert isinstance(step, LayerStep)
    torch.manual_seed(0)
    lengths, token = [9, 5, 7], torch.tensor([[5], [6], [7]])
    rows = [torch.randint(3, 300, (1, length)) for length in lengths]
    decoder = Decoder(model)
    with torch.inference_mode():
        wanted = []
        for number, ids in enumerate(rows):
            output = model(input_ids=torch.cat([ids, token[number : number + 1]], dim=1))
            wanted.append(output.logits[0, -1])
        for one in (step, whole):
            cache = SlotCache(model.config, torch.device("cpu"))
            cache.reserve(4, 32)
            for number, ids in enumerate(rows):
                filled = DynamicCache(config=model.config)
                decoder.prefill(filled, decoder.batch([Prompt(ids[0].tolist())], [0]), 0, input_ids=ids)
                cache.fill(number, filled, 0, lengths[number])
            cache.begin(3, 12)
            mask = causal_mask(cache.lengths[:3], 12, torch.float32)
            got = one(token, cache.lengths[:3, None], mask, cache)
            torch.testing.assert_close(got, torch.stack(wanted), rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_prompts_of_other_lengths_behind_other_beginnings_are_computed_together(layouts: dict[str, Path]) -> None:
    model = load(layouts["mistral"], Loading()).model
    decoder = Decoder(model)
    torch.manual_seed(0)
    cached, new = (3, 0, 7), (2, 6, 4)
    rows = [torch.randint(3, 99, (1, a + b)) for a, b in zip(cached, new, strict=True)]
    slots = SlotCache(model.config, torch.device("cpu"))
    slots.reserve(6, 12)
    for slot, (ids, count) in enumerate(zip(rows, cached, strict=True)):
        whole = model(input_ids=ids[:, :count] if count else ids).past_key_values
        slots.fill(slot, whole, 0, count)
    for layer in slots.layers:  # what stands elsewhere counts nowhere
        layer.keys[:, :, 7:] = layer.values[:, :, 7:] = torch.nan
    held = [slot if count else None for slot, count in enumerate(cached)]
    cache = slots.prefix(held, cached, model.config)
    batch = decoder.batch([Prompt(row[0].tolist()) for row in rows], cached)
    assert batch.new == list(new)
    first = decoder.prefill(cache, batch, 0, input_ids=batch.ids[:, :3])
    logits = decoder.prefill(cache, batch, 3, input_ids=batch.ids[:, 3:])
    for number, row in enumerate(rows):
        wanted = model(input_ids=row)
        got = first[number] if new[number] <= 3 else logits[number]
        torch.testing.assert_close(got, wanted.logits[0, -1], rtol=1e-4, atol=1e-4)
        length = row.shape[1]
        slots.fill(3 + number, cache, number, length, padding=max(new) - new[number])
        for layer, whole in zip(slots.layers, wanted.past_key_values.layers, strict=True):
            torch.testing.assert_close(layer.keys[3 + number, :, :length], whole.keys[0], rtol=1e-4, atol=1e-4)


def test_other_models_go_through_transformers_own_forward(layouts: dict[str, Path]) -> None:
    loaded = load(layouts["mistral"], Loading(attention="eager"))
    assert isinstance(choose_step(loaded.model), TransformersStep)
    eager = VideoModel("mistral", loaded)
    wanted = join(open_model(str(layouts["mistral"])).stream(asked("Why?", max_new_tokens=30))).text
    assert join(eager.stream(asked("Why?", max_new_tokens=30))).text == wanted
    batch = [asked("Why?", max_new_tokens=30), asked("Who is it?", STILL)]
    assert eager.answer_all(batch)[0].text == wanted


def test_slots_keep_what_they_hold_when_they_are_moved_and_when_there_are_more(layouts: dict[str, Path]) -> None:
    model = load(layouts["vicuna"], Loading()).model
    cache = SlotCache(model.config, torch.device("cpu"))
    cache.reserve(2, 8)
    filled = DynamicCache(config=model.config)
    new = torch.arange(2 * 4 * 3 * 16.0).reshape(2, 4, 3, 16)
    for number in range(2):
        filled.update(new + number, -new, number)
    for slot in range(2):
        cache.fill(slot, filled, slot, 3)
    cache.copy(0, 1, 3, swap=True)
    cache.reserve(4, 16)
    cache.copy(1, 3, 3)
    for slot, row in ((0, 1), (1, 0), (3, 0)):
        part = cache.prefix([slot], [3], model.config).layers[1]
        assert torch.equal(part.keys[0], new[row] + 1) and torch.equal(part.values[0], -new[row])
    assert cache.lengths.tolist() == [3, 3, 0, 3] and cache.allocated_bytes == 2 * 2 * 4 * 4 * 16 * 16 * 4
    cache.clear(1)
    assert not cache.layers[0].keys[1].any() and cache.layers[0].keys[0].any()
    with pytest.raises(RuntimeError):  # more than any machine has
        cache.reserve(2**20, 2**40)
    assert cache.slots == cache.allocated_bytes == 0, "what is incomplete is gone"
