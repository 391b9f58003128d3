"""Who may send requests: the headers of a request are checked before anything else of it is read."""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass

from starlette.datastructures import Headers

from ..remote import is_loopback
from .responses import CLOSE, RequestError

# A name or an address, and a port: nothing that one program would read in another way than the next one.
_HOST = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?", re.ASCII)


@dataclass(frozen=True)
class Auth:
    """Checks the headers of requests. Without an `api_key`, every client on this machine may send requests."""

    api_key: str | None = None

    def check(self, headers: Headers) -> None:
        """Raise `RequestError` for a wrong key, and for a request that a foreign web page sends.

        A web page can reach a server on loopback in two ways. It makes its own domain name point to 127.0.0.1: then
        `Host` has that name. Or its script sends a request to 127.0.0.1: then `Origin` has the page's address.
        """
        host = headers.get("host", "")
        if self.api_key is None and not is_loopback(_host_name(host)):
            raise RequestError(403, "the Host header names another machine", "use 127.0.0.1", headers=CLOSE)
        origin = headers.get("origin")
        if origin is not None and origin not in (f"http://{host}", f"https://{host}"):
            raise RequestError(403, "requests from other web pages are refused", headers=CLOSE)
        if self.api_key is not None:
            scheme, _, key = headers.get("authorization", "").partition(" ")
            is_right = hmac.compare_digest(key.strip().encode(), self.api_key.encode())
            if scheme.lower() != "bearer" or not is_right:
                message = "the API key is wrong" if key else "an API key is required: Authorization: Bearer KEY"
                challenge = CLOSE | {"www-authenticate": "Bearer"}
                raise RequestError(401, message, code="invalid_api_key", headers=challenge)


def _host_name(host: str) -> str:
    """Return the name in a Host header, without the port; an empty one if the header is malformed."""
    match = _HOST.fullmatch(host)
    return match[1] if match else ""
