"""Running the server: a socket, uvicorn on it, and an end in which nothing is lost that runs."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from ..errors import LlvidError
from .scheduler import Desk

HEAD_SECONDS = 20.0  # for a request's head to come, and for a connection to say something at all
_MOST_CONNECTIONS = 1000


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
