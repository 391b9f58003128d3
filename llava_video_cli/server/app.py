"""The HTTP side: its paths, and the way of a request from its headers to the last byte of its answer."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from .. import conversation
from ..conversation import Chunk, Media
from ..errors import LlvidError
from ..prompt.timestamps import with_times
from ..runs.conversation_file import turns_of
from ..runs.record import media_values
from .auth import CLOSE
from .page import page, sheet_values
from .requests import ChatCompletion, read_body, read_completion
from .responses import Form, RefusedError, Reply, refusal, refused
from .scheduler import Event, Ticket
from .serve import Seen, Service

Result = TypeVar("Result")
Ready = TypeVar("Ready")
_CLIENT_LEFT = 499  # nginx's word for it; nobody gets it, the log and the figures do

_SHORT_BODY_BYTES = 2**17  # read at once: a thread would take longer


def app(service: Service) -> Starlette:
    """Return the ASGI application."""
    routes = [
        Route("/v1/chat/completions", _Post(service, Completions(service)), methods=["POST"]),
        Route("/sheet", _Post(service, Sheets(service)), methods=["POST"]),
        Route("/", partial(_page, service), methods=["GET"]),
        Route("/v1/models", partial(_guarded, service, _models), methods=["GET"]),
        Route("/v1/models/{name:path}", partial(_guarded, service, _one_model), methods=["GET"]),
        Route("/metrics", partial(_guarded, service, _metrics), methods=["GET"]),
        Route("/health", partial(_open, service), methods=["GET"]),
    ]
    handlers: dict[Any, Any] = {HTTPException: partial(_unknown, service), Exception: _failed}
    return Starlette(routes=routes, exception_handlers=handlers)


async def _guarded(service: Service, answer: Callable[[Service, Request], Response], request: Request) -> Response:
    began = time.monotonic()
    try:
        service.guard.check(request.headers)
        response = answer(service, request)
    except LlvidError as error:
        response = refusal(refused(error))
    _note(service, request, response.status_code, began)
    return response


async def _page(service: Service, request: Request) -> Response:
    text, headers = page()
    _note(service, request, 200, time.monotonic())
    return Response(text, media_type="text/html; charset=utf-8", headers=headers)


async def _open(service: Service, request: Request) -> Response:
    _note(service, request, 200, time.monotonic())
    return JSONResponse({"status": "ok"})


def _metrics(service: Service, _: Request) -> Response:
    return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _models(service: Service, _: Request) -> Response:
    return JSONResponse({"object": "list", "data": [service.facts]})


def _one_model(service: Service, request: Request) -> Response:
    if request.path_params["name"] != service.model.name:
        raise RefusedError(404, "no such model", f"this server has {service.model.name}", code="model_not_found")
    return JSONResponse(service.facts)


async def _unknown(service: Service, request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = error.status_code
    message = {404: "there is no such path", 405: "this path has no such method"}.get(status, error.detail)
    _note(service, request, status, time.monotonic())
    return refusal(RefusedError(status, message, headers=CLOSE | dict(error.headers or {})))


async def _failed(_: Request, __: Exception) -> Response:
    return refusal(RefusedError(500, "an error inside the server"))  # starlette raises it further, to the log


def _note(service: Service, request: Request, status: int, began: float) -> None:
    route = request.scope.get("route")
    service.metrics.requests.labels(route.path if isinstance(route, Route) else "other", str(status)).inc()
    if service.log is not None:
        client = request.client.host if request.client else "?"
        service.log(Seen(client, request.method, request.url.path, status, time.monotonic() - began))


class Answering(Protocol[Ready]):
    """What is answered under a path: `read` tells what is asked, once the body, which may be large, is there."""

    async def read(self, body: bytes) -> Ready:
        """Return what is asked; the body may go then."""

    async def answer(self, ready: Ready, reply: Reply, began: float) -> None:
        """Answer it."""


class _Post(Generic[Ready]):
    """A path that takes JSON: who may ask is let in, and answered as long as he is there."""

    def __init__(self, service: Service, answering: Answering[Ready]) -> None:
        self._service, self._answering = service, answering

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        service, request, began = self._service, Request(scope), time.monotonic()
        reply = Reply(send)
        try:
            service.guard.check(request.headers)
            with service.desk.place():
                async with service.guard.body(request.headers, receive) as body:
                    ready = await _or_gone(self._answering.read(body), receive)
                    del body
                await _or_gone(self._answering.answer(ready, reply, began), receive)
        except ClientDisconnect:
            reply.status = _CLIENT_LEFT
        except LlvidError as error:
            await reply.refuse(refused(error), scope, receive)
        finally:
            _note(service, request, reply.status, began)


class Sheets:
    """`POST /sheet`: what the model sees of the one medium of a request in the form of `/v1/chat/completions`."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def read(self, body: bytes) -> dict[str, Any]:
        """Return the sheet's values."""
        service, shelf = self._service, self._service.shelf
        asked = await shelf.in_thread(lambda: read_completion(read_body(body), service.model.name, service.preset))
        if len(asked.urls) != 1:
            raise RefusedError(400, f"a sheet shows one video or picture, got {len(asked.urls)}", param="messages")
        (medium,) = await shelf.read(asked.urls, asked.places, asked.sampling)
        return await shelf.in_thread(partial(sheet_values, medium))

    async def answer(self, ready: dict[str, Any], reply: Reply, began: float) -> None:
        """Send it."""
        del began
        await reply.whole(ready)


class Completions:
    """`POST /v1/chat/completions`, streamed or whole."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def read(self, body: bytes) -> tuple[ChatCompletion, conversation.Request, list[Media]]:
        """Return what is asked, read and decoded; the URLs, which may be long, are left out."""
        service = self._service

        def read() -> ChatCompletion:
            return read_completion(read_body(body), service.model.name, service.preset)

        asked = read() if len(body) <= _SHORT_BODY_BYTES else await service.shelf.in_thread(read)
        media = await service.shelf.read(asked.urls, asked.places, asked.sampling)
        turns = turns_of(asked.drafts, media)
        generation = asked.generation
        if generation.temperature > 0 and generation.seed is None:
            generation = replace(generation, seed=secrets.randbits(32))  # so that the answer can name it
        request = conversation.Request(
            with_times(turns) if service.preset.timestamps else turns, generation, asked.stop
        )
        return replace(asked, drafts=()), request, media

    async def answer(
        self, ready: tuple[ChatCompletion, conversation.Request, list[Media]], reply: Reply, began: float
    ) -> None:
        """Have the model answer, and send it on as it comes."""
        asked, request, media = ready
        service, loop, events = self._service, asyncio.get_running_loop(), asyncio.Queue[Event]()

        def deliver(event: Event) -> None:
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(events.put_nowait, event)

        form = Form(f"chatcmpl-{secrets.token_hex(12)}", int(time.time()), service.model.name)
        told = [media_values("", medium) for medium in media]
        ours = {
            "settings": service.model.settings,
            "generation": asdict(request.generation),
            "frames": [each["frames"] for each in told],
            "notes": [line for each in told for line in each["notes"]],
        }
        ticket = Ticket(request, deliver, asked.stream)
        service.desk.ask(ticket)
        try:
            pieces = _pieces(events)
            last = await anext(pieces)
            if asked.stream:
                service.metrics.first_text_seconds.observe(time.monotonic() - began)
                await reply.begin_stream()
                await reply.event(form.first())
                if last.text:
                    await reply.event(form.piece(last.text))
                async for last in pieces:
                    if last.text:
                        await reply.event(form.piece(last.text))
            assert last.finish_reason is not None and last.usage is not None, "the last piece carries both"
            self._count(last, began)
            if asked.stream:
                await reply.event(form.last(last.finish_reason))
                if asked.include_usage:
                    await reply.event(form.costs(last.finish_reason, last.usage, ours))
                await reply.end_stream()
            else:
                await reply.whole(form.whole(last.text, last.finish_reason, last.usage, ours))
        finally:
            service.desk.leave(ticket)

    def _count(self, last: Chunk, began: float) -> None:
        metrics, usage = self._service.metrics, last.usage
        assert usage is not None
        metrics.answers.labels(last.finish_reason).inc()
        metrics.tokens.labels("prompt").inc(usage.prompt_tokens)
        metrics.tokens.labels("cached").inc(usage.cached_tokens)
        metrics.tokens.labels("generated").inc(usage.generated_tokens)
        metrics.seconds.observe(time.monotonic() - began)


async def _or_gone(work: Coroutine[Any, Any, Result], receive: Receive) -> Result:
    """Return what comes of work; raises `ClientDisconnect`, and ends the work, if the client leaves before."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(receive())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.wait({task, gone})
        if not task.cancelled():
            task.exception()  # asyncio complains about one that nobody looked at


async def _pieces(events: asyncio.Queue[Event]) -> AsyncIterator[Chunk]:
    """Yield an answer's pieces; the last one carries the reason and the usage."""
    while True:
        event = await events.get()
        if isinstance(event, LlvidError):
            raise event
        yield event
        if event.finish_reason is not None:
            return
