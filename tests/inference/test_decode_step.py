"""Decode steps: written out, captured or transformers' own, they give the same tokens.

There is no GPU here: `Replayed` takes the place of a CUDA graph, and runs the same step on the same static tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import Replayed
from scenes import OTHER, STILL, VIDEO, checkpoint
from test_stream_all import MIXED, asked, joined
from transformers import MistralConfig

from llava_video_cli import Loading, join, open_model
from llava_video_cli.inference.decode_step import LayerStep, TransformersStep, cache_name, choose_step
from llava_video_cli.inference.families.llava_next_video import LlavaVideo
from llava_video_cli.inference.kv_cache import KVCache, new_cache
from llava_video_cli.inference.loader import load

LAYOUTS = ["demo", "vicuna", "mistral", "yi"]


def opened(folder: Path, capture: Any = None, **loading: Any) -> LlavaVideo:
    settings = Loading(**loading)
    return LlavaVideo(folder.name, load(folder, settings), prefix_reuse=settings.prefix_reuse, capture=capture)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_captured_step_gives_the_same_answers(name: str, layouts: dict[str, Path]) -> None:
    folder = checkpoint(name, layouts)
    capture = Replayed()
    captured, plain = opened(folder, capture), opened(folder)
    long = [asked(text, VIDEO, max_new_tokens=40) for text in ("What happens?", "Why?", "What shape is it?")]
    for request in (*long, asked("Who?", OTHER, max_new_tokens=40), *MIXED):
        assert join(captured.stream(request)).text == join(plain.stream(request)).text
    wanted = joined(plain.stream_all([*MIXED, *long]))
    got = joined(captured.stream_all([*MIXED, *long]))
    assert {number: answer.text for number, answer in got.items()} == {n: one.text for n, one in wanted.items()}
    assert name == "demo" or capture.replays > 10 * capture.captures > 0


def test_a_capture_serves_the_next_prompts(layouts: dict[str, Path]) -> None:
    capture = Replayed()
    model = opened(layouts["vicuna"], capture)
    for medium in (VIDEO, VIDEO, OTHER):
        join(model.stream(asked("Why?", medium, max_new_tokens=30)))
    assert capture.captures == 1, "of the same video, and of another one that takes as much room"
    join(model.stream(asked("Why?", STILL, max_new_tokens=30)))
    assert capture.captures == 2
    for _ in range(2):
        model.answer_all([asked("Why?", medium, max_new_tokens=30) for medium in (VIDEO, OTHER)])
    assert capture.captures == 3, "batches of the same size share one"
    join(model.stream(asked("Why?", max_new_tokens=5)))
    assert capture.captures == 3, "a short answer does not pay for one"


@pytest.mark.parametrize("fault", ["raises", "other logits", "NaN"])
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

    model, plain = LlavaVideo("mistral", loaded, capture=capture), opened(layouts["mistral"])
    requests = [asked(text, max_new_tokens=30) for text in ("Why?", "Who is it?")]
    assert [join(model.stream(one)).text for one in requests] == [join(plain.stream(one)).text for one in requests]
    assert len(attempts) == 1, "it would fail again"
    assert [one.text for one in model.answer_all(requests)] == [one.text for one in plain.answer_all(requests)]


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_layers_written_out_do_what_transformers_does(name: str, layouts: dict[str, Path]) -> None:
    """Number for number, also behind padding, and on static tensors."""
    model = load(checkpoint(name, layouts), Loading()).model
    step, whole = choose_step(model), TransformersStep(model)
    assert isinstance(step, LayerStep)
    torch.manual_seed(0)
    mask = torch.tensor([[1] * 9, [0] * 4 + [1] * 5, [1, 0, 0] + [1] * 6])
    ids = torch.randint(3, 300, (3, 9))
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.inference_mode():
        caches = [new_cache(model.config, 32) for _ in range(3)]
        for cache in caches:
            filled = {cache_name(model): cache}
            model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, **filled)
        token, slot = torch.tensor([[5], [6], [7]]), torch.tensor([9])
        place, seen = mask.sum(-1, keepdim=True), torch.nn.functional.pad(mask, (0, 23), value=1)
        wanted = whole(token, place, seen[:, :10], caches[0])
        got = step(token, place, step.attention_mask(seen[:, :10], torch.float32), caches[1])
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
        seen[:, 10:] = 0
        for buffer in (buffer for layer in caches[2].layers for buffer in layer.buffers):
            buffer[:, :, 9:] = 0  # as before a capture
        visible = step.attention_mask(seen, torch.float32)
        static = step.run(token, place, visible, caches[2].layers, slot)
        torch.testing.assert_close(static, wanted, rtol=1e-5, atol=1e-5)


def test_other_models_go_through_transformers_own_forward(layouts: dict[str, Path]) -> None:
    loaded = load(layouts["mistral"], Loading(attention="eager"))
    assert isinstance(choose_step(loaded.model), TransformersStep)
    eager = LlavaVideo("mistral", loaded)
    wanted = join(open_model(str(layouts["mistral"])).stream(asked("Why?", max_new_tokens=30))).text
    assert join(eager.stream(asked("Why?", max_new_tokens=30))).text == wanted
    batch = [asked("Why?", max_new_tokens=30), asked("Who is it?", STILL)]
    assert eager.answer_all(batch)[0].text == wanted


def test_layers_with_a_sliding_window_get_transformers_own_cache() -> None:
    assert isinstance(new_cache(MistralConfig(num_hidden_layers=2, sliding_window=None), 8), KVCache)
    assert not isinstance(new_cache(MistralConfig(num_hidden_layers=2, sliding_window=16), 8), KVCache)


def test_a_cache_grows_in_place_up_to_its_capacity_and_then_into_new_buffers() -> None:
    cache = KVCache(layers=1, capacity=6)
    new = torch.arange(2 * 3 * 4.0).reshape(1, 2, 3, 4)
    for _ in range(2):
        cache.update(new, -new, 0)
    first = cache.layers[0].keys.data_ptr()
    assert first == cache.layers[0].buffers[0].data_ptr() and cache.get_seq_length() == 6
    cache.crop(-1)
    keys, values = cache.update(new[:, :, :1], -new[:, :, :1], 0)
    assert keys.data_ptr() == first and keys.shape == (1, 2, 6, 4)
    assert torch.equal(keys, torch.cat([new, new[:, :, :2], new[:, :, :1]], dim=2)) and torch.equal(values, -keys)
    cache.captured = object()
    cache.reserve(20)
    assert cache.captured is None, "its tensors were replaced"
    grown, _ = cache.update(new, new, 0)
    assert torch.equal(grown[:, :, :6], keys) and cache.layers[0].buffers[0].shape[2] == 20
    cache.update(torch.zeros(1, 2, 30, 4), torch.zeros(1, 2, 30, 4), 0)
    assert cache.get_seq_length() == 39
