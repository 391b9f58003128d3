"""Who may ask, and how much may be sent: looked at before anything of a request is understood."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from .responses import RefusedError

# A body must go on coming, at this pace once the grace is over: slower senders hold memory and a place.
_BODY_GRACE_SECONDS, _BODY_BYTES_PER_SECOND = 20.0, 16 * 1024
_HELD = 4  # bodies of the greatest size that may lie in memory together
CLOSE = {"connection": "close"}


def is_loopback(host: str) -> bool:
    """Whether a host's name or address is this machine for itself."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"


@dataclass
class Guard:
    """Checks requests for one server. `api_key` None lets everybody in who reaches it from this machine."""

    api_key: str | None = None
    most_body_bytes: int = 64 * 2**20
    body_grace_seconds: float = _BODY_GRACE_SECONDS
    held_bytes: int = field(default=0, init=False)

    def check(self, headers: Headers) -> None:
        """Raise `RefusedError` for a web page of a stranger's, and for a wrong key.

        A page reaches a server on loopback under a name of its own that it lets point there, which `Host` tells, or
        as a request of its own to us, which `Origin` tells.
        """
        host = headers.get("host", "")
        if self.api_key is None and not is_loopback(_name(host)):
            raise RefusedError(403, "the Host header names another machine", "ask for 127.0.0.1", headers=CLOSE)
        origin = headers.get("origin")
        if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
            raise RefusedError(403, "requests of other web pages are not answered", headers=CLOSE)
        if self.api_key is not None:
            kind, _, key = headers.get("authorization", "").partition(" ")
            same = hmac.compare_digest(key.strip().encode(), self.api_key.encode())
            if kind.lower() != "bearer" or not same:
                message = "the API key is wrong" if key else "an API key is needed: Authorization: Bearer KEY"
                more = CLOSE | {"www-authenticate": "Bearer"}
                raise RefusedError(401, message, code="invalid_api_key", headers=more)

    @asynccontextmanager
    async def body(self, headers: Mapping[str, str], receive: Receive) -> AsyncIterator[bytes]:
        """Give a request's body; it counts as held in memory until the end of the block.

        Raises `RefusedError` where it is no JSON by its header, is larger than allowed, or comes too slowly, and
        `ClientDisconnect` where the client leaves.
        """
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # a page of a stranger's can't send that unasked
            raise RefusedError(415, "the Content-Type must be application/json", headers=CLOSE)
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise RefusedError(415, "compressed bodies are not taken", headers=CLOSE)
        claimed = headers.get("content-length", "0")
        if not claimed.isascii() or not claimed.isdigit() or len(claimed) > 18 or int(claimed) > self.most_body_bytes:
            raise self._too_large()
        held = 0
        try:
            parts = []
            async for part in self._parts(receive):
                held += len(part)
                self.held_bytes += len(part)
                if held > self.most_body_bytes:
                    raise self._too_large()
                if self.held_bytes > _HELD * self.most_body_bytes:
                    raise RefusedError(
                        429, "too much is being sent at the same time", headers=CLOSE | {"retry-after": "1"}
                    )
                parts.append(part)
            body = b"".join(parts)
            parts.clear()
            yield body
        finally:
            self.held_bytes -= held

    async def _parts(self, receive: Receive) -> AsyncIterator[bytes]:
        began, size, more = time.monotonic(), 0, True
        while more:
            left = began + self.body_grace_seconds + size / _BODY_BYTES_PER_SECOND - time.monotonic()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, left))
            except asyncio.TimeoutError:
                raise RefusedError(408, "the request came too slowly", headers=CLOSE) from None
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            part = message.get("body", b"")
            size += len(part)
            more = message.get("more_body", False)
            yield part

    def _too_large(self) -> RefusedError:
        return RefusedError(413, f"the request is larger than {self.most_body_bytes:,} bytes", headers=CLOSE)


def _name(host: str) -> str:
    """Return a Host header's name without its port; an empty one for what is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
