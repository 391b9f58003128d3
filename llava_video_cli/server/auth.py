"""Who may send requests: the headers of a request are checked before anything else of it is read."""

from __future__ import annotations

import hmac
import re
from collections.abc import Collection
from dataclasses import dataclass

from starlette.datastructures import Headers

from ..errors import UsageError
from ..remote import is_loopback
from .responses import CLOSE, RequestError

# A name or an address, and a port: nothing that one program would read in another way than the next one.
_HOST = re.compile(r"([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?", re.ASCII)

# An origin as a browser writes it: small letters, no path. Apps and extensions have schemes of their own.
_ORIGIN = re.compile(r"(?!file:)[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?", re.ASCII)
_DEFAULT_PORTS = (("http://", ":80"), ("https://", ":443"))  # a browser leaves them out


def checked_origin(text: str) -> str:
    """Return the origin of a web page, such as `https://app.example`, if it is one; raises UsageError.

    `*` and `null` are none: every page could have them.
    """
    origin = re.sub("^([^/]+//[^/]*)/.*", r"\1", text.strip().lower(), flags=re.DOTALL)
    if origin in ("*", "null"):
        raise UsageError(f"{text!r} would let any web page in", "name the page, such as http://localhost:3000")
    origin = origin if "://" in origin else f"http://{origin}"
    for scheme, port in _DEFAULT_PORTS:
        origin = origin.removesuffix(port) if origin.startswith(scheme) else origin
    if _ORIGIN.fullmatch(origin) is None:
        raise UsageError(f"{text!r} is not the origin of a web page", "an origin looks like http://localhost:3000")
    if origin != text:
        raise UsageError(f"{text!r} is not what a browser sends as an origin", f"type --allow-origin {origin}")
    return origin


@dataclass(frozen=True)
class Auth:
    """Checks the headers of requests. Without an `api_key`, every client on this machine may send requests.

    Web pages of `origins` may send requests, too, and read the answers.
    """

    api_key: str | None = None
    origins: Collection[str] = ()

    def check(self, headers: Headers) -> None:
        """Raise `RequestError` for a wrong key, and for a request that a foreign web page sends.

        A web page can reach a server on loopback in two ways. It makes its own domain name point to 127.0.0.1: then
        `Host` has that name. Or its script sends a request to 127.0.0.1: then `Origin` has the page's address.
        """
        host = headers.get("host", "")
        if self.api_key is None and not is_loopback(_host_name(host)):
            raise RequestError(403, "the Host header names another machine", "use 127.0.0.1", headers=CLOSE)
        origin = headers.get("origin")
        if origin is not None and origin not in (f"http://{host}", f"https://{host}", *self.origins):
            way = f"start the server with --allow-origin {origin}, if you trust that page"
            hint = way if _ORIGIN.fullmatch(origin) else None
            raise RequestError(403, "requests from other web pages are refused", hint, headers=CLOSE)
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
