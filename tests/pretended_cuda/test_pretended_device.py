"""The pretended cards keep to CUDA's rules: what a real one refuses is refused, and what waits or copies is counted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from pretended_device import Card, PretendedCuda, pretend
from torch.nn import functional

pytestmark = pytest.mark.cuda_pretended


@pytest.fixture
def cuda() -> Iterator[PretendedCuda]:
    with pretend(Card(), Card()) as cards, torch.inference_mode():
        yield cards


def on(number: int, *shape: int) -> torch.Tensor:
    return torch.ones(shape, device=f"cuda:{number}")


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize(
    "operation",
    [
        lambda: on(0, 3) + on(1, 3),
        lambda: on(0, 3) + torch.ones(3),
        lambda: torch.cat([on(0, 3), torch.ones(3)]),
        lambda: functional.linear(on(0, 2, 3), torch.ones(4, 3)),
        lambda: on(1, 4, 2)[torch.zeros(1, dtype=torch.int64, device="cuda:0")],
        lambda: on(0, 3).index_copy_(0, torch.zeros(1, dtype=torch.int64), on(0, 1)),
        lambda: torch.multinomial(on(0, 3), 1, generator=torch.Generator("cpu")),
    ],
)
def test_devices_do_not_mix(operation: Callable[[], Any]) -> None:
    with pytest.raises(RuntimeError, match=r"Expected (all tensors to be on the same device|a 'cuda' device type)"):
        operation()


def test_a_number_and_indices_of_the_host_may_come_along(cuda: PretendedCuda) -> None:
    assert (on(0, 3) * torch.tensor(2.0) + 1).tolist() == [3, 3, 3]
    cuda.notes.clear()
    assert on(0, 4)[torch.tensor([0, 2])].shape == (2,)
    assert cuda.counts == {"pageable copy": 1}


@pytest.mark.parametrize(
    ("kind", "operation"),
    [
        ("sync", lambda: on(0, 1).item()),
        ("sync", lambda: on(0, 3).tolist()),
        ("sync", lambda: on(0, 3).cpu()),
        ("sync", lambda: on(0, 3).nonzero()),
        ("sync", lambda: bool(on(0, 1).all())),
        ("sync", lambda: on(0, 3)[on(0, 3) > 0]),
        ("sync", lambda: torch.equal(on(0, 3), on(0, 3))),
        ("sync", lambda: torch.empty(3).copy_(on(0, 3), non_blocking=True)),
        ("sync", lambda: torch.cuda.synchronize()),
        ("sync", lambda: torch.cuda.current_stream().synchronize()),
        ("event wait", lambda: torch.cuda.Event().synchronize()),
        ("pageable copy", lambda: torch.tensor([1, 2], device="cuda")),
        ("pageable copy", lambda: torch.ones(3).to("cuda:1", torch.float16)),
        ("pageable copy", lambda: on(0, 3).copy_(torch.ones(3))),
        ("pinned copy", lambda: torch.ones(3).pin_memory().to("cuda", non_blocking=True)),
        ("pinned copy", lambda: torch.empty(3, pin_memory=True)[1:].copy_(on(0, 2), non_blocking=True)),
        ("sync", lambda: torch.empty(3, pin_memory=True).copy_(on(0, 3))),
        ("peer copy", lambda: on(0, 3).to("cuda:1")),
    ],
)
def test_waits_and_copies_are_counted(cuda: PretendedCuda, kind: str, operation: Callable[[], Any]) -> None:
    operation()
    assert cuda.counts == {kind: 1}


def test_work_on_the_device_alone_is_free(cuda: PretendedCuda) -> None:
    values = torch.arange(6, device="cuda").view(2, 3).float()
    values[0, 1:] = 7
    values += functional.softmax(values, dim=-1).transpose(0, 1).contiguous().view(2, 3)
    assert values.argmax(-1).device == torch.device("cuda:0") and not cuda.notes
    with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
        values.numpy()


def captured(work: Callable[[], Any], mode: str = "global") -> tuple[Any, torch.cuda.CUDAGraph]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.Stream(), capture_error_mode=mode):
        return work(), graph


def test_a_capture_computes_nothing_and_its_replays_all_of_it(cuda: PretendedCuda) -> None:
    source, total = on(0, 3), torch.zeros(3, device="cuda")

    def work() -> torch.Tensor:
        total.add_(source.view(3, 1)[:, 0] * torch.ones(3, device="cuda").add_(1))
        return functional.softmax(total, dim=0)

    made, graph = captured(work)
    assert total.tolist() == [0, 0, 0] and made.isnan().all()
    for wanted in ([2, 2, 2], [4, 4, 4]):
        graph.replay()
        assert total.tolist() == wanted and made.sum().item() == pytest.approx(1)
    source.copy_(torch.tensor([1.0, 0, 0], device="cuda"))
    graph.replay()
    assert total.tolist() == [6, 4, 4] and (cuda.captures, cuda.replays) == (1, 3)


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize(
    "operation",
    [
        lambda: on(0, 1).item(),
        lambda: on(0, 3)[on(0, 3) > 0],
        lambda: torch.ones(3).to("cuda"),
        lambda: torch.cuda.synchronize(),
        lambda: torch.cuda.Event().synchronize(),
    ],
)
def test_what_a_capture_refuses_raises(operation: Callable[[], Any]) -> None:
    with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
        captured(operation)
    operation()


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize("mode", ["global", "thread_local"])
def test_another_thread_ends_a_capture_only_in_global_mode(mode: str) -> None:
    failures: list[BaseException] = []

    def wait() -> None:
        try:
            on(0, 1).item()
        except RuntimeError as error:
            failures.append(error)

    def work() -> None:
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join()

    captured(work, mode)
    assert len(failures) == (mode == "global")


def test_attention_needs_a_plan_for_each_shape_in_each_thread(cuda: PretendedCuda) -> None:
    def attend(tokens: int) -> None:
        query, keys = on(0, 1, 2, 1, 8), on(0, 1, 2, tokens, 8)
        functional.scaled_dot_product_attention(query, keys, keys)

    for tokens in (4, 4, 5):
        attend(tokens)
    threads = [threading.Thread(target=attend, args=[4]) for _ in range(2)]
    for thread in threads:
        thread.start()
        thread.join()
    assert sorted(map(len, cuda.plans.values())) == [1, 1, 2]
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        attend(6)
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)
    assert cuda.planned == 4


def test_memory_is_counted_until_it_is_free_and_ends(cuda: PretendedCuda) -> None:
    card = cuda.cards[1]
    big = on(1, 1000)
    views = [big.view(10, 100), big[5:], big.t()]
    assert card.allocated_bytes == torch.cuda.memory_allocated(1) == 4000
    assert torch.cuda.mem_get_info(1) == (card.total_bytes - 4000, card.total_bytes)
    del big
    assert card.allocated_bytes == 4000
    del views
    assert card.allocated_bytes == 0 and torch.cuda.max_memory_allocated(1) == 4000
    torch.cuda.reset_peak_memory_stats(1)
    assert torch.cuda.max_memory_allocated(1) == 0
    card.most_bytes = 100
    with pytest.raises(torch.OutOfMemoryError):
        on(1, 1000)
    assert on(1, 20).sum().item() == 20
    assert not cuda.cards[0].has_context


def test_a_broken_card_raises_at_its_first_use(cuda: PretendedCuda) -> None:
    cuda.cards[0].broken = lambda: torch.AcceleratorError("CUDA error: out of memory")
    for use in (lambda: on(0, 1), lambda: torch.cuda.mem_get_info(0)):
        with pytest.raises(torch.AcceleratorError):
            use()
    assert torch.cuda.get_device_capability(0) == (9, 0) and on(1, 1).tolist() == [1]


def test_everything_is_put_back() -> None:
    before = torch.cuda.is_available(), torch.cuda.Stream, torch.Generator, threading.Thread.run
    with pretend(Card()):
        assert torch.cuda.device_count() == 1 and torch.Generator("cuda").device.type == "cuda"
    assert before == (torch.cuda.is_available(), torch.cuda.Stream, torch.Generator, threading.Thread.run)
    assert torch.tensor([1, 2]).sum() == 3 and torch.rand(1, generator=torch.Generator().manual_seed(1)).item() < 1
