"""A model of OpenAI-compatible servers, with the same protocol as a local one."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast, get_args

from ..conversation import Answer, Chunk, FinishReason, Generation, Request, Scores, Usage, join
from ..errors import ModelError, ServerError
from ..model import Event, Send, answers
from ..prompt.budget import Budget, estimated
from ..prompt.continuation import read_choices
from ..prompt.thinking import Thoughts
from ..video.fit import FrameResize
from .client import DisconnectedError, Endpoint, UnreachableError
from .engines import RequestWriter, ServedModel, check_generation, read_number, read_prompt_logprobs

_REQUESTS_PER_SERVER = 16  # at a time
_MOST_AT_A_TIME = 256
_DOWN_SECONDS = 15.0  # until a server that failed is tried again
_TRIES = 3  # of a request whose connection ends
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass
class _ServerState:
    """An endpoint, its model, the number of its running requests, and the time.monotonic() until which it is unused."""

    endpoint: Endpoint
    served: ServedModel
    running: int = 0
    down_until: float = 0.0
    problem: ServerError | None = field(default=None, repr=False)


class RemoteModel:
    """A model of one server, or of several that share the work. Safe in threads.

    `notes` are lines for the user: servers that can't be reached. `shrink` leaves frames as they are, as the server has
    the processor, but for a fit that is not `auto`: it makes them squares, of the size that the server lists or 336.
    """

    def __init__(
        self, servers: Sequence[tuple[Endpoint, ServedModel]], send: Send = "frames", notes: Sequence[str] = ()
    ) -> None:
        self._servers = [_ServerState(endpoint, served) for endpoint, served in servers]
        self.shrink = FrameResize(self._servers[0].served.frame_input, lambda image: image)
        self._writer = RequestWriter(send, self.shrink.input)
        self._send = send
        self._lock = threading.Lock()
        self._places = threading.BoundedSemaphore(_MOST_AT_A_TIME)
        self.notes = tuple(notes)
        self.name = self._servers[0].served.model

    @property
    def settings(self) -> dict[str, Any]:
        """The servers, and the settings that the first one lists for its model."""
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
        """How the server's weights are quantized, if it says so."""
        quantize = self._servers[0].served.settings.get("quantize")
        return quantize if isinstance(quantize, str) else None

    def stream(self, request: Request) -> Iterator[Chunk]:
        """Yield the answer as it is generated; closing the iterator closes the connection.

        If a server can't be reached, the next one is asked. Raises `ServerError` when none is left, `ModelError` if
        the server refuses this request.
        """
        has_begun = False
        for left in reversed(range(_TRIES + len(self._servers))):
            try:
                for chunk in self._stream(request):
                    has_begun = True
                    yield chunk
                return
            except (DisconnectedError, UnreachableError) as error:
                is_only = isinstance(error, UnreachableError) and len(self._servers) == 1
                if has_begun or is_only or not left:
                    raise

    @property
    def at_a_time(self) -> int:
        """How many requests to ask at a time; the servers decide what they answer together."""
        now = time.monotonic()
        return _REQUESTS_PER_SERVER * max(1, sum(server.down_until <= now for server in self._servers))

    def submit(self, request: Request, deliver: Callable[[Event], None], in_pieces: bool = True) -> Callable[[], None]:
        """Ask in a thread of its own; see `Model`."""
        cancelled = threading.Event()

        def ask() -> None:
            try:
                with self._places, closing(cast("Generator[Chunk]", self._chunks(request, in_pieces))) as chunks:
                    for chunk in chunks:
                        if cancelled.is_set():
                            return
                        deliver(chunk)
            except Exception as error:  # noqa: BLE001 - who asked gets it, whatever it is
                deliver(error)

        threading.Thread(target=ask, name="llvid-ask", daemon=True).start()
        return cancelled.set

    def answer_all(self, requests: Sequence[Request]) -> list[Answer]:
        """Return the answers in the requests' order, which are asked for at the same time; raises the first error."""
        return answers(self.submit, requests)

    def budget(self, request: Request) -> Budget:
        """Return an estimate, which is meant to be too high: only the server has the tokenizer."""
        context_tokens = min(server.served.context_tokens for server in self._servers)
        return estimated(request, self._servers[0].served.frame_tokens, context_tokens)

    def _chunks(self, request: Request, in_pieces: bool) -> Iterator[Chunk]:
        """Yield the pieces of an answer, or the whole of it."""
        if in_pieces:
            yield from self.stream(request)
            return
        for left in reversed(range(_TRIES)):
            try:
                answer = join(self.stream(request))
            except DisconnectedError:  # nothing of the answer was shown yet
                if not left:
                    raise
            else:
                yield Chunk(answer.text, answer.finish_reason, answer.usage, answer.scores)
                return

    def check(self, generation: Generation) -> None:
        """Raise `UsageError` for what one of the servers can't do, before anything is read for it."""
        for server in self._servers:
            check_generation(generation, server.served)

    def _scored(self, request: Request, server: _ServerState) -> Chunk:
        """Return the likeliest choice by how likely the prompt with each one is, in vLLM's way.

        Raises `ModelError` where one choice begins another: only the end of an answer would tell the two apart, and
        that is no part of a prompt.
        """
        began = time.perf_counter()
        generation, prompts, prompt_tokens = request.generation, [], 0
        for choice in ("", *generation.choices):
            body = self._writer.body(request, server.served, is_local=server.endpoint.is_local, choice=choice)
            with body as values:
                answer = server.endpoint.answer(values, patient=len(self._servers) == 1)
            prompts.append(read_prompt_logprobs(answer))
            prompt_tokens = prompt_tokens or _number(answer.get("usage"), "prompt_tokens")
        (base, _), *wholes = prompts
        stays, choices = read_choices(base, [ids for ids, _ in wholes], generation.choices)
        if any(choices.has_end):
            short = generation.choices[choices.has_end.index(True)]
            raise ModelError(
                f"{server.endpoint.name} can't tell {short!r} from a choice that begins with it",
                "use llvid serve, or other choices",
            )
        logprobs = [sum(logprobs[stays:]) for _, logprobs in wholes]
        counts = dict(zip(generation.choices, choices.counts, strict=True))
        scores = Scores(dict(zip(generation.choices, logprobs, strict=True)), counts, generation.length_normalized)
        seconds = time.perf_counter() - began
        usage = Usage(prompt_tokens, 0, counts[scores.best], seconds, seconds, 0)
        return Chunk(scores.best, "stop", usage, scores)

    def _stream(self, request: Request) -> Iterator[Chunk]:
        began = time.perf_counter()
        generation = request.generation
        spaces, first_at, chunks, has_text = "", 0.0, 0, False  # white space is yielded only when more text follows
        thoughts = Thoughts(are_shown=generation.show_thinking)
        end: dict[str, Any] = {}
        whole: list[str] = []
        is_exact = request.generation.regex is not None  # white space at its ends counts
        with self._least_busy_server() as server:
            if generation.choices and server.served.engine != "llvid":
                yield self._scored(request, server)
                return
            begun = "" if server.served.engine == "llvid" else generation.prefill.strip()  # others send what follows
            body = self._writer.body(request, server.served, is_local=server.endpoint.is_local)
            with body as values:
                for event in server.endpoint.events(values, patient=len(self._servers) == 1):
                    if begun and not has_text:  # not before the server answers: another one may have to
                        yield Chunk(begun)
                        has_text = True
                    end |= {key: event[key] for key in ("usage", "llvid") if isinstance(event.get(key), dict)}
                    choice = _first(event.get("choices"))
                    end |= {"finish_reason": choice["finish_reason"]} if choice.get("finish_reason") else {}
                    piece = _first([choice.get("delta")]).get("content")
                    if not isinstance(piece, str) or not piece:
                        continue
                    chunks += 1
                    piece = spaces + thoughts.push(_LONE_SURROGATE.sub("\ufffd", piece))
                    piece = piece if has_text or is_exact else piece.lstrip()
                    text = piece if is_exact else piece.rstrip()
                    spaces = piece[len(text) :]
                    if text:
                        first_at, has_text = first_at or time.perf_counter(), True
                        whole.append(text)
                        yield Chunk(text)
        if "finish_reason" not in end:
            raise DisconnectedError(f"{server.endpoint.name} closed the connection in the middle of an answer")
        reason = _finish_reason(end)
        if request.generation.schema is not None and reason == "stop" and not _is_json("".join(whole)):
            message = f"{server.endpoint.name} ignored the schema: its answer is not JSON"
            raise ModelError(message, "llvid serve, vLLM and SGLang obey it")
        now = time.perf_counter()
        usage = _usage(end, chunks, (first_at or now) - began, now - began)
        rest = spaces + thoughts.finish()
        yield Chunk(rest.rstrip() if rest.strip() else "", reason, usage, _scores(end, generation))

    @contextmanager
    def _least_busy_server(self) -> Iterator[_ServerState]:
        """Give the server with the fewest requests; one that fails is not used for a while."""
        with self._lock:
            now = time.monotonic()
            up = [server for server in self._servers if server.down_until <= now]
            if not up:
                problem = next(server.problem for server in self._servers if server.problem is not None)
                raise ServerError(f"none of the {len(self._servers)} servers can be used: {problem}", problem.hint)
            server = min(up, key=lambda each: each.running)
            server.running += 1
        try:
            yield server
        except ServerError as error:
            if len(self._servers) > 1:
                server.problem, server.down_until = error, time.monotonic() + _DOWN_SECONDS  # others read it so
            raise
        finally:
            with self._lock:
                server.running -= 1


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _first(values: object) -> dict[str, Any]:
    """Return the first of a list if it is a mapping."""
    return values[0] if isinstance(values, list) and values and isinstance(values[0], dict) else {}


def _scores(end: dict[str, Any], generation: Generation) -> Scores | None:
    """Return what llvid's own server says of the choices. Raises `ModelError` if it says nothing."""
    if not generation.choices:
        return None
    own = end.get("llvid", {})
    logprobs, counts = own.get("logprobs"), own.get("choice_tokens")
    try:
        return Scores(
            {choice: read_number(logprobs[choice]) for choice in generation.choices},
            {choice: max(1, int(read_number(counts[choice]))) for choice in generation.choices},
            generation.length_normalized,
        )
    except (KeyError, TypeError, ValueError):
        raise ModelError("the server did not score the choices", "start one of this version of llvid") from None


def _finish_reason(end: dict[str, Any]) -> FinishReason:
    """Return why the answer ended; llvid's own server has a reason that OpenAI's API lacks."""
    own = end.get("llvid", {}).get("finish_reason")
    if own in get_args(FinishReason):
        return cast(FinishReason, own)
    return "length" if end["finish_reason"] == "length" else "stop"


def _usage(end: dict[str, Any], chunks: int, first_seconds: float, total_seconds: float) -> Usage:
    """Return what an answer cost: counts as the server reports them, times as measured here."""
    usage = end.get("usage", {})
    details, own = usage.get("prompt_tokens_details"), end.get("llvid", {}).get("usage")
    thinking = _number(usage.get("completion_tokens_details"), "reasoning_tokens")
    return Usage(
        prompt_tokens=_number(usage, "prompt_tokens"),
        cached_tokens=_number(details, "cached_tokens"),
        generated_tokens=_number(usage, "completion_tokens") or chunks,
        first_token_seconds=first_seconds,
        total_seconds=total_seconds,
        peak_memory_bytes=_number(own, "peak_memory_bytes"),
        thinking_tokens=thinking or _number(own, "thinking_tokens"),
    )


def _number(values: object, name: str) -> int:
    value = values.get(name) if isinstance(values, dict) else None
    return value if isinstance(value, int) and 0 <= value < 2**63 else 0
