"""The HTTP API: its paths, and how each request is checked, read, answered and counted."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from .. import conversation
from ..conversation import Chunk
from ..errors import LlvidError
from ..prompt.budget import Budget
from ..prompt.subtitles import LineCount, fitting, notes_of, with_speech
from ..prompt.timestamps import request_of
from ..runs.conversation_file import turns_of
from ..runs.record import media_values
from .connections import client_of
from .page import page, sheet_values
from .requests import CompletionRequest, parse_body, read_completion
from .responses import CLOSE, AnswerForm, ChatForm, RequestError, ResponseSender, score_values
from .responses_api import ResponseForm, chat_values, of_response
from .scheduler import Event, Ticket
from .serve import Service

_log = logging.getLogger(__name__)
Result = TypeVar("Result")
# Sends an answer; called with the sender, and with the time when the request arrived.
_SendAnswer: TypeAlias = Callable[[ResponseSender, float], Coroutine[Any, Any, None]]
# Prepares an answer; called with the service, the body and the client.
_Prepare: TypeAlias = Callable[[Service, bytes, str], Coroutine[Any, Any, _SendAnswer]]
_CLIENT_CLOSED_REQUEST = 499  # nginx's status; only the log and the metrics have it
_SHORT_BODY_BYTES = 2**17  # parsed on the event loop: a thread would take longer


def app(service: Service) -> Starlette:
    """Return the ASGI application."""
    routes = [
        Route("/v1/chat/completions", _PostRoute(service, _completion), methods=["POST"]),
        Route("/v1/responses", _PostRoute(service, _response), methods=["POST"]),
        Route("/sheet", _PostRoute(service, _sheet), methods=["POST"]),
        Route("/", partial(_get, service, _page, public=True), methods=["GET"]),
        Route("/v1/models", partial(_get, service, _models), methods=["GET"]),
        Route("/v1/models/{name:path}", partial(_get, service, _one_model), methods=["GET"]),
        Route("/metrics", partial(_get, service, _metrics), methods=["GET"]),
        Route("/health", partial(_get, service, _health, public=True), methods=["GET"]),
    ]
    made = Starlette(
        routes=routes, middleware=_cors(service), exception_handlers={HTTPException: partial(_http_error, service)}
    )
    made.router.redirect_slashes = False  # to the host that a request names, before anything is checked or logged
    return made


def _cors(service: Service) -> list[Middleware]:
    """Return what tells browsers that pages of other origins may use the server; nothing if none may.

    It answers the requests by which browsers ask first, which carry no key. Who is allowed is checked by `Auth`, too.
    """
    if not service.auth.origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=service.auth.origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=("Retry-After",),
            allow_private_network=True,  # a page of the internet may ask a server of this network
        )
    ]


async def _get(
    service: Service, answer: Callable[[Service, Request], Response], request: Request, *, public: bool = False
) -> Response:
    """Answer a GET request; a `public` path answers every client."""
    start = time.monotonic()
    try:
        if not public:
            service.auth.check(request.headers)
        response = answer(service, request)
    except LlvidError as error:
        response = RequestError.of(error).response()
    except Exception:  # noqa: BLE001 - a bug: the log has its traceback
        response = _internal_error(request).response()
    _record(service, request, response.status_code, start)
    return response


def _page(_: Service, __: Request) -> Response:
    text, headers = page()
    return Response(text, media_type="text/html; charset=utf-8", headers=headers)


def _health(_: Service, __: Request) -> Response:
    return JSONResponse({"status": "ok"})


def _metrics(service: Service, _: Request) -> Response:
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _models(service: Service, _: Request) -> Response:
    return JSONResponse({"object": "list", "data": service.model_values})


def _one_model(service: Service, request: Request) -> Response:
    for values in service.model_values:
        if values["id"] == request.path_params["name"]:
            return JSONResponse(values)
    raise RequestError(404, "no such model", f"this server has {', '.join(service.names)}", code="model_not_found")


async def _http_error(service: Service, request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = error.status_code
    message = {404: "there is no such path", 405: "this path does not support the method"}.get(status, error.detail)
    hint = _hint_for_path(request.url.path) if status == 404 else None
    _record(service, request, status, time.monotonic())
    return RequestError(status, message, hint, headers=CLOSE | dict(error.headers or {})).response()


def _hint_for_path(path: str) -> str | None:
    if path.rstrip("/").endswith("/completions") and not path.endswith("/chat/completions"):
        return "use /v1/chat/completions"
    if path.endswith("/"):
        return "leave out the slash at the end"
    is_known = path in ("/chat/completions", "/responses") or path.startswith("/models")
    return "the base URL of a client must end in /v1" if is_known else None


def _internal_error(request: Request) -> RequestError:
    """Log the exception that is being handled; return what the client gets."""
    _log.exception("%s %s failed", request.method, _path_of(request))
    return RequestError(500, "internal server error")


def _path_of(request: Request) -> str:
    """Return the path as it was sent: the decoded one can have line breaks."""
    return str(request.scope["raw_path"], "latin-1")


def _record(service: Service, request: Request, status: int, start: float) -> None:
    """Count a request that has ended, and log it."""
    route = request.scope.get("route")
    service.metrics.requests.labels(route.path if isinstance(route, Route) else "other", str(status)).inc()
    if service.log is not None:
        client = request.client.host if request.client else "?"
        seconds = time.monotonic() - start
        service.log(f"{client} {request.method} {_path_of(request)} {status} {seconds:.2f}s")


class _PostRoute:
    """A path that takes JSON: checks and bounds its requests, and stops the work if the client disconnects.

    `prepare` reads the body and returns what sends the answer. The body, which may be large, is freed between the two.
    """

    def __init__(self, service: Service, prepare: _Prepare) -> None:
        self._service, self._prepare = service, prepare

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service, request, start = self._service, Request(scope), time.monotonic()
        sender = ResponseSender(send)
        try:
            service.auth.check(request.headers)
            with service.scheduler.admit():
                async with service.body_reader.read(request.headers, receive) as body:
                    prepared = self._prepare(service, body, client_of(request.client))
                    send_answer = await _unless_disconnected(prepared, receive)
                    del body
                await _unless_disconnected(send_answer(sender, start), receive)
        except ClientDisconnect:
            sender.status = _CLIENT_CLOSED_REQUEST
        except LlvidError as error:
            await sender.send_error(RequestError.of(error), scope, receive)
        except asyncio.CancelledError:  # uvicorn's, at the end of the grace: the client did not get all of its answer
            sender.status = 503
            raise
        except Exception:  # noqa: BLE001 - a bug: the log has its traceback
            await sender.send_error(_internal_error(request), scope, receive)
        finally:
            _record(service, request, sender.status, start)


async def _sheet(service: Service, body: bytes, client: str) -> _SendAnswer:
    """`POST /sheet`: the contact sheet of the one medium in a request in the form of `/v1/chat/completions`."""
    asked = await asyncio.to_thread(lambda: read_completion(parse_body(body), service.names, service.preset))
    if len(asked.urls) != 1:
        raise RequestError(400, f"a sheet shows one video or picture, got {len(asked.urls)}", param="messages")
    (medium,) = await service.media_cache.read(asked.urls, asked.params, asked.samplings, client, whole=True)
    values = await asyncio.to_thread(sheet_values, medium)
    return lambda sender, _: sender.send_json(values)


async def _completion(service: Service, body: bytes, client: str) -> _SendAnswer:
    """`POST /v1/chat/completions`, streamed or whole."""

    def read() -> tuple[CompletionRequest, AnswerForm]:
        asked = read_completion(parse_body(body), service.names, service.preset)
        has_logprobs = asked.logprobs is not None
        head = f"chatcmpl-{secrets.token_hex(12)}", int(time.time()), service.names[0]
        return asked, ChatForm(*head, asked.answers, asked.include_usage, has_logprobs)

    return await _prepared(service, body, read, client)


async def _response(service: Service, body: bytes, client: str) -> _SendAnswer:
    """`POST /v1/responses`, streamed or whole."""

    def read() -> tuple[CompletionRequest, AnswerForm]:
        values = parse_body(body)
        asked = read_completion(chat_values(values), service.names, service.preset)
        head = f"resp_{secrets.token_hex(12)}", int(time.time()), service.names[0]
        return asked, ResponseForm(*head, {name: value for name, value in values.items() if name != "input"})

    try:
        return await _prepared(service, body, read, client)
    except LlvidError as error:
        raise of_response(RequestError.of(error)) from None


async def _prepared(
    service: Service, body: bytes, read: Callable[[], tuple[CompletionRequest, AnswerForm]], client: str
) -> _SendAnswer:
    """Read a request and its media; return what sends the answers."""
    asked, form = read() if len(body) <= _SHORT_BODY_BYTES else await asyncio.to_thread(read)
    media = await service.media_cache.read(asked.urls, asked.params, asked.samplings, client)
    generation = asked.generation
    if generation.temperature > 0 and generation.seed is None:
        generation = replace(generation, seed=secrets.randbits(32))  # so that the answer can report it

    def make(spoken: int) -> list[conversation.Request]:
        turns = with_speech(turns_of(asked.drafts, media), spoken)
        return [request_of(turns, generation, service.preset.timestamps, asked.stop, asked.logprobs)]

    def counted() -> tuple[conversation.Request, LineCount | None, Budget]:
        (request,), lines = fitting(media, make, service.model.budget)
        return request, lines, service.model.budget(request)

    request, lines, budget = await asyncio.to_thread(counted)
    notes = notes_of([lines])
    left = 0 if generation.choices else budget.context_tokens - budget.prompt_tokens
    if not budget.is_estimate and 0 < left < generation.max_new_tokens:  # a longer prompt is refused by the model
        notes.append(f"the context has room for {left} tokens of an answer, not for {generation.max_new_tokens}")
        request = replace(request, generation=replace(generation, max_new_tokens=left))
    return partial(_answer, service, _with_seeds(request, asked.answers), notes, asked, form)


def _with_seeds(request: conversation.Request, answers: int) -> list[conversation.Request]:
    """Return a request for each answer: the first is that of the request alone, the others have seeds of their own."""
    generation, requests = request.generation, [request]
    for number in range(1, answers):
        seed = None if generation.seed is None else (generation.seed + number) % 2**63
        requests.append(replace(request, generation=replace(generation, seed=seed)))
    return requests


async def _answer(
    service: Service,
    requests: Sequence[conversation.Request],
    notes: Sequence[str],
    asked: CompletionRequest,
    form: AnswerForm,
    sender: ResponseSender,
    start: float,
) -> None:
    """Have the model answer, and send the chunks as they arrive; `start` is when the request arrived."""
    loop, events = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Event]]()

    def deliver(index: int, event: Event) -> None:
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(events.put_nowait, (index, event))

    records = [media_values("", medium) for medium in requests[0].media]
    extra = {
        "settings": service.model.settings,
        "generation": requests[0].generation.values(),
        "frames": [record["frames"] for record in records],
        "notes": [*notes, *(line for record in records for line in record["notes"])],
    }
    tickets = [Ticket(request, partial(deliver, index), asked.stream) for index, request in enumerate(requests)]
    prefill = requests[0].generation.prefill.strip() if asked.is_continued else ""
    begun, last = set[int](), dict[int, Chunk]()
    try:
        for ticket in tickets:
            service.scheduler.submit(ticket)
        async for index, chunk in _chunks(events, len(tickets)):
            if prefill and index not in begun and chunk.scores is None:
                chunk = replace(chunk, text=chunk.text.removeprefix(prefill))
            begun.add(index)
            if chunk.finish_reason is not None:
                last[index] = chunk
                assert chunk.usage is not None, "the last chunk has both"
                service.metrics.count_answer(chunk.finish_reason, chunk.usage, time.monotonic() - start)
            if not asked.stream:
                continue
            if not sender.is_streaming:
                service.metrics.first_text_seconds.observe(time.monotonic() - start)
                await sender.begin_stream(names_events=form.names_events)
                await sender.send_events(form.begin(extra))
            await sender.send_events(form.piece(index, chunk))
        answers = [last[index] for index in range(len(tickets))]
        extra |= score_values(answers[0].scores)
        if asked.stream:
            await sender.send_events(form.end(answers, extra))
            await sender.end_stream(done_mark=form.done_mark)
        else:
            await sender.send_json(form.whole(answers, extra))
    finally:
        for ticket in tickets:
            service.scheduler.cancel(ticket)


async def _unless_disconnected(work: Coroutine[Any, Any, Result], receive: Receive) -> Result:
    """Return the result of some work; if the client disconnects before its end, stop it, raise `ClientDisconnect`."""
    task, disconnect = asyncio.ensure_future(work), asyncio.ensure_future(receive())
    try:
        await asyncio.wait({task, disconnect}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for each in (task, disconnect):
            each.cancel()
        await asyncio.wait({task, disconnect})
        if not task.cancelled():
            task.exception()  # asyncio complains about an exception that nobody reads


async def _chunks(events: asyncio.Queue[tuple[int, Event]], answers: int) -> AsyncIterator[tuple[int, Chunk]]:
    """Yield the chunks of answers, each with the answer's index, up to those with the finish reasons."""
    while answers:
        index, event = await events.get()
        if isinstance(event, LlvidError):
            raise event
        yield index, event
        answers -= event.finish_reason is not None
