"""Parts of the test's own, handed in where the real ones would be: a loaded checkpoint, and what captures a step."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from llava_video_cli import Answer, Chunk, Loading, Model, Request, join
from llava_video_cli.inference.cuda_graph import Capture
from llava_video_cli.inference.loader import Loaded, load
from llava_video_cli.inference.video_model import VideoModel


def wrapped(loaded: Loaded, call: Callable[..., Any] | None = None, **methods: Callable[..., Any]) -> Loaded:
    """Return a checkpoint with methods of the test's own, which get the real model first.

    `call` takes the place of the model's forward.
    """
    real = loaded.model

    class Wrapped:
        def __getattr__(self, name: str) -> Any:
            return partial(methods[name], real) if name in methods else getattr(real, name)

        def __call__(self, **inputs: Any) -> Any:
            return call(real, **inputs) if call else real(**inputs)

    return replace(loaded, model=Wrapped())


class Fails:
    """Makes the language model's head raise, where `when`, which gets the rows of each call, says so."""

    def __init__(self, folder: Path, when: Callable[[int], bool], error: Callable[[], Exception]) -> None:
        loaded = load(folder, Loading(dtype="float32", device="cpu"))
        loaded.model.get_output_embeddings().register_forward_pre_hook(self._call)
        self._when, self._error = when, error
        self.model = VideoModel("fails", loaded)
        self.rows: list[int] = []

    def _call(self, module: object, inputs: tuple[torch.Tensor, ...]) -> None:
        del module
        self.rows.append(len(inputs[0]))
        if self._when(len(inputs[0])):
            raise self._error()


class Replayed:
    """Counts captures and their replays; by itself it captures nothing: a replay does the step again."""

    def __init__(self, capture: Capture = lambda do: do) -> None:
        self._capture = capture
        self.captures = self.replays = 0

    def __call__(self, do: Callable[[], None]) -> Callable[[], None]:
        self.captures += 1
        captured = self._capture(do)

        def replay() -> None:
            self.replays += 1
            captured()

        return replay


def events(model: Model, requests: Sequence[Request], cancels: list[Callable[[], None]] | None = None) -> Iterator[Any]:
    """Ask all at once; yield what comes, each with its request's number: chunks and errors.

    `cancels` gets what cancels each; one that is cancelled here has to be done so while others still run.
    """
    came: queue.SimpleQueue[Any] = queue.SimpleQueue()
    for number, request in enumerate(requests):
        cancel = model.submit(request, partial(_put, came, number))
        if cancels is not None:
            cancels.append(cancel)
    left = len(requests)
    while left:
        number, event = came.get(timeout=60)
        yield number, event
        left -= isinstance(event, Exception) or event.usage is not None


def _put(came: queue.SimpleQueue[Any], number: int, event: Any) -> None:
    came.put((number, event))


def joined(pieces: Iterable[tuple[int, Any]]) -> dict[int, Answer]:
    """Return the whole answers of `events`."""
    chunks: dict[int, list[Chunk]] = {}
    for number, event in pieces:
        assert isinstance(event, Chunk), event
        chunks.setdefault(number, []).append(event)
    return {number: join(one) for number, one in chunks.items()}
