"""Running the server: what it answers with, a socket, uvicorn on it, and an end in which nothing is lost that runs."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..conversation import Request, Turn
from ..errors import LlvidError
from ..model import Model
from ..preset import Preset
from ..video import Frames, VideoInfo
from ..video.sampling import Sampling
from .auth import Guard
from .media import Places, Shelf
from .metrics import Metrics
from .scheduler import Desk

HEAD_SECONDS = 20.0  # for a request's head to come, and for a connection to say something at all
_MOST_CONNECTIONS = 1000


@dataclass(frozen=True)
class Seen:
    """A request that was answered, for a log."""

    client: str
    method: str
    path: str
    status: int
    seconds: float


@dataclass(frozen=True)
class Service:
    """What answers are made with: `preset` has what a request leaves out, `facts` is what `/v1/models` says."""

    model: Model
    preset: Preset
    guard: Guard
    shelf: Shelf
    desk: Desk
    metrics: Metrics
    facts: Mapping[str, Any]
    log: Callable[[Seen], None] | None = None


def open_service(
    model: Model,
    preset: Preset,
    guard: Guard | None = None,
    places: Places | None = None,
    *,
    express: Model | None = None,
    most_inside: int = 256,
    most_together: int | None = None,
    log: Callable[[Seen], None] | None = None,
) -> Service:
    """Return a service around a loaded model; its threads begin.

    `express` is another model of the same weights, for short answers beside a long one.
    """
    metrics = Metrics()
    return Service(
        model,
        preset,
        guard or Guard(),
        Shelf(places or Places(), model.shrink),
        Desk(
            model,
            metrics,
            most_inside,
            most_together,
            express=express,
            short_tokens=preset.generation.max_new_tokens,
        ),
        metrics,
        _facts(model),
        log,
    )


def _facts(model: Model) -> dict[str, Any]:
    import numpy as np

    frame = Frames(np.zeros((1, 1, 1, 3), np.uint8), (0.0,), VideoInfo("", 1.0, 1, 1, None, "", 0), Sampling(1))
    budget = model.budget(Request((Turn("user", "?", (frame,)),)))
    return {
        "id": model.name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "llvid",
        "max_model_len": budget.context_tokens,
        "llvid": {
            "version": version("llava-video-cli"),
            "settings": model.settings,
            "frame_tokens": budget.media_tokens[0],
        },
    }


def bind(host: str, port: int) -> socket.socket:
    """Return a socket of its own on an address; raises LlvidError where that is taken, or none of this machine's."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise LlvidError(f"can't listen on {host}, port {port}: {reason}", "--port names another one") from None
    return bound


def url_of(bound: socket.socket) -> str:
    """Return where a client on this machine reaches it."""
    host, port = bound.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class Server(uvicorn.Server):
    """Serves an app on a socket until `should_exit`, then finishes what is running, in a bounded time.

    `ready` is called once it answers.
    """

    def __init__(
        self,
        app: ASGIApp,
        desk: Desk,
        bound: socket.socket,
        ready: Callable[[], None],
        grace_seconds: float = 30.0,
        head_seconds: float = HEAD_SECONDS,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=type("TimedProtocol", (Protocol,), {"head_seconds": head_seconds}),
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="critical",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                limit_concurrency=_MOST_CONNECTIONS,
                timeout_graceful_shutdown=max(1, round(grace_seconds)),
            )
        )
        self._desk, self._bound, self._ready = desk, bound, ready

    def serve_until_stopped(self) -> None:
        """Run; returns at the end."""
        self.run(sockets=[self._bound])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to answer."""
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin nothing more, and finish what runs."""
        self._desk.close()
        await super().shutdown(sockets)


class Protocol(H11Protocol):
    """Closes a connection whose request does not come, or comes too slowly; uvicorn would wait for ever."""

    head_seconds = HEAD_SECONDS
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for a head."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Take what came; the whole head must be there in time, however it is cut."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """Wait for the next head."""
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        super().connection_lost(exc)
        self._stop_timer()

    def _watch(self) -> None:
        cycle: Any = self.cycle
        if cycle is not None and not cycle.response_complete:
            self._stop_timer()  # the application minds the body
        elif self._timer is None:
            self._timer = self.loop.call_later(self.head_seconds, self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
