"""Downloads for clients: from allowed hosts only, and none by a name that leads into this network."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from ..errors import MediaError
from ..system.download import DownloadBounds, Host, download
from .responses import RequestError


def fetch(
    url: str, target: Path, hosts: Sequence[str], max_bytes: int, seconds: float, cancelled: threading.Event
) -> str:
    """Write what a URL holds to a file; return its fingerprint.

    `hosts` are names or addresses, with `:PORT` if it is not the scheme's own. Redirects are followed to allowed hosts
    only. A name must not lead to an address inside this network, because a foreign name server could make it do so;
    such an address can be allowed itself. Raises `RequestError` or MediaError.
    """

    def check_client(*_: object) -> None:
        if cancelled.is_set():
            raise MediaError("the client has disconnected")

    return download(
        url, target, DownloadBounds(max_bytes, seconds), lambda each: _allowed(each, hosts), progress=check_client
    )


def _allowed(url: str, hosts: Sequence[str]) -> Host:
    try:
        url.encode()  # JSON may have half a character, which can't be sent
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise RequestError(400, "not a URL", code="invalid_url") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise RequestError(400, "a URL must look like https://HOST/PATH", code="invalid_url")
    if not hosts:
        raise RequestError(403, "this server does not fetch URLs: start it with --allow-media-host HOST")
    if not any(_is_host(parts.hostname, port, host) for host in hosts):
        raise RequestError(403, "this server does not fetch from that host", code="host_not_allowed")
    host = Host(parts.hostname, port or (443 if parts.scheme == "https" else 80))
    if not host.is_address and host.name != "localhost" and host.is_private:
        hint = "allow the address itself with --allow-media-host"
        raise RequestError(403, f"{host.name} leads to an address inside this network", hint, code="private")
    return host


def _is_host(name: str, port: int | None, allowed: str) -> bool:
    entry = urlsplit(f"//{allowed}")
    return name == (entry.hostname or "").rstrip(".") and port == entry.port
