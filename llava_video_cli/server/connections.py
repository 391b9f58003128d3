"""The connections of a server: how many may be open, which is closed to make room, and how long a head may take."""

from __future__ import annotations

import asyncio
import errno
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from ..remote import is_loopback

_log = logging.getLogger(__name__)
HEAD_SECONDS = 20.0  # for the head of a request, and for the first bytes of a connection
ACCEPTED_TOGETHER = 32  # connections that are accepted before the first of them is counted
_MAX_CONNECTIONS = 4096
_MIN_OTHER_FILES = 128  # descriptors for the model, the media, their processes, and what is accepted together
_IPV6_CLIENT_BITS = 64  # a client has all addresses of such a network
_BUSY = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
_LOG_EVERY_SECONDS = 60.0


def max_connections() -> int:
    """Return how many connections may be open: fewer than the files that this process may open."""
    if sys.platform == "win32":
        return _MAX_CONNECTIONS
    import resource

    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return _MAX_CONNECTIONS
    return max(8, min(_MAX_CONNECTIONS, files - max(_MIN_OTHER_FILES, files // 4)))


def client_of(address: tuple[str, int] | None) -> str:
    """Return what names a client. Several clients on this machine have one address, so each connection is one."""
    host, port = address or ("", 0)
    return f"{host} {port}" if is_loopback(host) else _host_of(host)


def _host_of(host: str) -> str:
    """Return a host's address; of an IPv6 address, its network."""
    try:
        number = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if number.version == 4:
        return host
    return str(number.ipv4_mapped or ip_network((int(number), _IPV6_CLIENT_BITS), strict=False))


class Connections:
    """The open connections, at most `most`, and half as many from one address.

    A new one closes the one that has been idle for the longest time. If none is idle, the new one is refused.
    """

    def __init__(self, most: int) -> None:
        self._most, self._most_of_one = most, max(1, most // 2)
        self._hosts: dict[Connection, str] = {}
        self._counts = Counter[str]()
        self._idle: dict[Connection, None] = {}  # the oldest first

    def add(self, connection: Connection, host: str) -> bool:
        """Count a new connection; return whether there is room for it."""
        host_is_full = self._counts[host] >= self._most_of_one
        if host_is_full or len(self._hosts) >= self._most:
            oldest = next((each for each in self._idle if not host_is_full or self._hosts[each] == host), None)
            if oldest is None:
                return False
            self.remove(oldest)
            oldest.transport.abort()
        self._hosts[connection] = host
        self._counts[host] += 1
        return True

    def remove(self, connection: Connection) -> None:
        """Count a connection no longer."""
        self._idle.pop(connection, None)
        host = self._hosts.pop(connection, None)
        if host is not None:
            self._counts[host] -= 1
            if not self._counts[host]:
                del self._counts[host]

    def set_idle(self, connection: Connection, *, is_idle: bool) -> None:
        """Say whether a connection has no request that is being answered."""
        if not is_idle:
            self._idle.pop(connection, None)
        elif connection in self._hosts:
            self._idle.setdefault(connection)


class Connection(H11Protocol):
    """A connection that counts in `connections`, and is closed if the head of a request does not arrive in time."""

    connections_of_server: Connections
    head_seconds = HEAD_SECONDS
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Count the connection, and start the timer for the first head."""
        super().connection_made(transport)
        if self.connections_of_server.add(self, _host_of(self.client[0] if self.client else "")):
            self._update()
        else:
            transport.write(_BUSY)
            transport.close()

    def data_received(self, data: bytes) -> None:
        """Pass the data on; the timer runs until the whole head has arrived."""
        super().data_received(data)
        self._update()

    def on_response_complete(self) -> None:
        """Start the timer for the next head."""
        super().on_response_complete()
        self._update()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer, and count the connection no longer."""
        super().connection_lost(exc)
        self.connections_of_server.remove(self)
        self._stop_timer()

    def _update(self) -> None:
        cycle: Any = self.cycle
        is_idle = cycle is None or cycle.response_complete
        self.connections_of_server.set_idle(self, is_idle=is_idle)
        if not is_idle:
            self._stop_timer()  # `BodyReader` bounds the time of the body
        elif self._timer is None:
            self._timer = self.loop.call_later(self.head_seconds, self.transport.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def log_seldom() -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None]:
    """Return an exception handler for a loop: it logs once a minute that no file can be opened, else as usual."""
    last_seconds = -_LOG_EVERY_SECONDS

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal last_seconds
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in (errno.EMFILE, errno.ENFILE):
            loop.default_exception_handler(context)
        elif time.monotonic() - last_seconds >= _LOG_EVERY_SECONDS:
            last_seconds = time.monotonic()
            _log.warning("no connection is accepted for now: %s", error.strerror)

    return handle
