"""A model behind OpenAI-compatible servers: the same protocol, without any weights here."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, cast, get_args

from ..conversation import Answer, Chunk, FinishReason, Request, Usage, join
from ..errors import LlvidError, ServerError, nearest
from ..model import Send
from ..prompt.budget import Budget, estimated
from .client import CutError, Endpoint, UnreachableError
from .engines import Dialect, Served, recognise

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_EACH = 16  # requests at a time that a server gets without being told how many
_MOST_AT_A_TIME = 256
_DOWN_SECONDS = 15.0  # until a server that went away is tried again
_TRIES = 3  # of a request whose answer is cut off
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass
class _Server:
    """An endpoint with its model, how many requests it is at, and until when it is left alone."""

    endpoint: Endpoint
    served: Served
    running: int = 0
    down_until: float = 0.0
    problem: ServerError | None = field(default=None, repr=False)


class RemoteModel:
    """A model that one server has, or several that share the work. Safe in threads.

    `notes` are lines for the user: servers that can't be reached.
    """

    def __init__(
        self, servers: Sequence[tuple[Endpoint, Served]], send: Send = "frames", notes: Sequence[str] = ()
    ) -> None:
        self._servers = [_Server(endpoint, served) for endpoint, served in servers]
        self._dialect = Dialect(send)
        self._send = send
        self._lock = threading.Lock()
        self._kept: dict[Request, Answer] = {}
        self.notes = tuple(notes)
        self.name = self._servers[0].served.model

    @property
    def settings(self) -> dict[str, Any]:
        """Where the answers come from, with the settings that the first server tells of its model."""
        first = self._servers[0].served
        return {
            **first.settings,
            "model": self.name,
            "server": ", ".join(server.endpoint.name for server in self._servers),
            "engine": f"{first.engine} {first.version}".strip(),
            "send": self._send,
        }

    @property
    def quantize(self) -> str | None:
        """How the server says that its weights are quantized."""
        told = self._servers[0].served.settings.get("quantize")
        return told if isinstance(told, str) else None

    def stream(self, request: Request) -> Iterator[Chunk]:
        """Yield the answer as it is generated; closing the iterator closes the connection.

        A server that can't be reached gives the request to the next one. Raises `ServerError` when none is left,
        `ModelError` for what the server says is wrong with this request.
        """
        began = False
        for left in reversed(range(_TRIES + len(self._servers))):
            try:
                for chunk in self._stream(request):
                    began = True
                    yield chunk
                return
            except (CutError, UnreachableError) as error:
                alone = isinstance(error, UnreachableError) and len(self._servers) == 1
                if began or alone or not left:
                    raise

    def stream_all(
        self, requests: Sequence[Request], gone: Callable[[int], bool] | None = None
    ) -> Iterator[tuple[int, Chunk]]:
        """Yield pieces of all answers as they come, each with its request's number; closing the iterator stops.

        Raises as `stream` does, for the first request that fails.
        """
        came: SimpleQueue[tuple[int, Chunk | BaseException | None]] = SimpleQueue()
        over = threading.Event()

        def work(index: int) -> None:
            stream = self.stream(requests[index])
            try:
                for chunk in stream:
                    if over.is_set() or (gone is not None and gone(index)):
                        break
                    came.put((index, chunk))
                came.put((index, None))
            except BaseException as error:  # noqa: BLE001 - whoever reads gets it
                came.put((index, error))

        for index in range(len(requests)):
            threading.Thread(target=work, args=(index,), name="llvid-ask", daemon=True).start()
        left = len(requests)
        try:
            while left:
                index, item = came.get()
                if isinstance(item, BaseException):
                    raise item
                if item is None:
                    left -= 1
                else:
                    yield index, item
        finally:
            over.set()

    def answer_all(self, requests: Sequence[Request]) -> list[Answer]:
        """Return the answers in the requests' order; all are asked at the same time.

        If one fails, the others' answers are kept for when they are asked again.
        """
        if len(requests) == 1:
            return [self._whole(requests[0])]
        with ThreadPoolExecutor(min(len(requests), _MOST_AT_A_TIME), thread_name_prefix="llvid-ask") as pool:
            asked = [pool.submit(self._whole, request) for request in requests]
            try:
                return [each.result() for each in asked]
            except LlvidError:
                pool.shutdown(cancel_futures=True)
                for request, each in zip(requests, asked, strict=True):
                    if not each.cancelled() and each.exception() is None:
                        self._kept[request] = each.result()
                raise

    def budget(self, request: Request) -> Budget:
        """Return an estimate: only the server has the tokenizer. Rather too much than too little."""
        context_tokens = min(server.served.context_tokens for server in self._servers)
        return estimated(request, self._servers[0].served.frame_tokens, context_tokens)

    def fits(self, request: Request) -> int:
        """Return how many requests are asked at a time: what fits together, the servers decide."""
        del request
        now = time.monotonic()
        return _EACH * max(1, sum(server.down_until <= now for server in self._servers))

    def shrink(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return a frame as it is: the server has the processor that makes it small."""
        return image

    def _whole(self, request: Request) -> Answer:
        if (kept := self._kept.pop(request, None)) is not None:
            return kept
        for left in reversed(range(_TRIES)):
            try:
                return join(self.stream(request))
            except CutError:  # the next try begins anew
                if not left:
                    raise
        raise AssertionError("a last try returns or raises")

    def _stream(self, request: Request) -> Iterator[Chunk]:
        began = time.perf_counter()
        spaces, first_at, chunks = "", 0.0, 0
        end: dict[str, Any] = {}
        with self._taken() as server:
            body = self._dialect.body(request, server.served, is_local=server.endpoint.is_local)
            with body as values:
                for event in server.endpoint.events(values, patient=len(self._servers) == 1):
                    end |= {key: event[key] for key in ("usage", "llvid") if isinstance(event.get(key), dict)}
                    choice = _first(event.get("choices"))
                    end |= {"finish_reason": choice["finish_reason"]} if choice.get("finish_reason") else {}
                    piece = _first([choice.get("delta")]).get("content")
                    if not isinstance(piece, str) or not piece:
                        continue
                    chunks += 1
                    # white space around an answer is no part of it
                    piece = spaces + _LONE_SURROGATE.sub("\ufffd", piece)
                    piece = piece if first_at else piece.lstrip()
                    text = piece.rstrip()
                    spaces = piece[len(text) :]
                    if text:
                        first_at = first_at or time.perf_counter()
                        yield Chunk(text)
        if "finish_reason" not in end:
            raise CutError(f"{server.endpoint.name} ended the answer before its end")
        now = time.perf_counter()
        yield Chunk("", _reason(end), _usage(end, chunks, (first_at or now) - began, now - began))

    @contextmanager
    def _taken(self) -> Iterator[_Server]:
        """Give the server that has the least to do; one that turns out to be gone is left alone for a while."""
        with self._lock:
            now = time.monotonic()
            there = [server for server in self._servers if server.down_until <= now]
            if not there:
                problem = next(server.problem for server in self._servers if server.problem is not None)
                raise ServerError(f"none of {len(self._servers)} servers is left: {problem}", problem.hint)
            server = min(there, key=lambda each: each.running)
            server.running += 1
        try:
            yield server
        except ServerError as error:
            if len(self._servers) > 1:
                server.down_until, server.problem = time.monotonic() + _DOWN_SECONDS, error
            raise
        finally:
            with self._lock:
                server.running -= 1


def open_remote(
    urls: Sequence[str], model: str | None = None, *, send: Send = "frames", key: str | None = None
) -> RemoteModel:
    """Return the model of a name, or the servers' first one, after a look at what they have.

    Raises `UsageError` for an address that is none, `ServerError` if no server can be reached, one doesn't have the
    model, or they have different ones.
    """
    endpoints = [Endpoint(url, key) for url in dict.fromkeys(urls)]
    found: list[tuple[Endpoint, Served]] = []
    problems: list[UnreachableError] = []
    with ThreadPoolExecutor(len(endpoints), thread_name_prefix="llvid-look") as pool:
        looks = [pool.submit(_look, endpoint, model, patient=len(endpoints) == 1) for endpoint in endpoints]
        for endpoint, look in zip(endpoints, looks, strict=True):
            try:
                found.append((endpoint, look.result()))
            except UnreachableError as error:
                problems.append(error)
    if not found:
        raise problems[0]
    models = {served.model: endpoint.name for endpoint, served in reversed(found)}
    if len(models) > 1:
        listed = " and ".join(f"{name} at {url}" for name, url in sorted(models.items()))
        raise ServerError(f"the servers have different models: {listed}", "-m names the one to use")
    return RemoteModel(found, send, [str(problem) for problem in problems])


def _look(endpoint: Endpoint, model: str | None, *, patient: bool) -> Served:
    served = recognise(*endpoint.models(patient=patient))
    if not served:
        raise ServerError(f"{endpoint.name} has no model")
    if model is None:
        return served[0]
    for each in served:
        if each.model == model:
            return each
    names = [each.model for each in served]
    hint = nearest(model, names) or f"it has {', '.join(names[:5])}"
    raise ServerError(f"{endpoint.name} does not have the model {model}", hint)


def _first(values: object) -> dict[str, Any]:
    """Return the first of a list if it is a mapping."""
    return values[0] if isinstance(values, list) and values and isinstance(values[0], dict) else {}


def _reason(end: dict[str, Any]) -> FinishReason:
    """Return why the answer ended: our own server tells more than OpenAI's words do."""
    own = end.get("llvid", {}).get("finish_reason")
    if own in get_args(FinishReason):
        return cast(FinishReason, own)
    return "length" if end["finish_reason"] == "length" else "stop"


def _usage(end: dict[str, Any], chunks: int, first_seconds: float, total_seconds: float) -> Usage:
    """Return what an answer cost: the counts as the server tells them, the times as they were seen here."""
    usage = end.get("usage", {})
    details, own = usage.get("prompt_tokens_details"), end.get("llvid", {}).get("usage")
    return Usage(
        prompt_tokens=_number(usage, "prompt_tokens"),
        cached_tokens=_number(details, "cached_tokens"),
        generated_tokens=_number(usage, "completion_tokens") or chunks,
        first_token_seconds=first_seconds,
        total_seconds=total_seconds,
        peak_memory_bytes=_number(own, "peak_memory_bytes"),
    )


def _number(values: object, name: str) -> int:
    value = values.get(name) if isinstance(values, dict) else None
    return value if isinstance(value, int) and 0 <= value < 2**63 else 0
