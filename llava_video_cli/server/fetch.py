"""Fetching a file from an allowed host: no other host, no address inside this network, bounded in size and time."""

from __future__ import annotations

import hashlib
import socket
import time
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import NoReturn
from urllib.parse import SplitResult, urljoin, urlsplit

import httpx2

from ..errors import MediaError
from .responses import RefusedError

_MOST_REDIRECTS = 3
_STALL_SECONDS = 10.0


def download(url: str, target: Path, hosts: Sequence[str], most_bytes: int, seconds: float) -> str:
    """Write what a URL holds to a file; return its fingerprint.

    `hosts` are names or addresses, with `:PORT` where it is not the scheme's own. A redirect is followed to an allowed
    host only. A name must not lead to an address inside this network, which a stranger's name server could make it do;
    who wants one allows the address itself. Raises `RefusedError` or MediaError.
    """
    until = time.monotonic() + seconds
    for _ in range(_MOST_REDIRECTS + 1):
        parts = _allowed(url, hosts)
        answer = _get(parts, target, most_bytes, until)
        if answer.digest is not None:
            return answer.digest
        url = urljoin(url, answer.location)
    raise MediaError(f"{parts.hostname} redirects more than {_MOST_REDIRECTS} times")


class _Answer:
    """What came: the fingerprint of a file, or where it is to be found."""

    def __init__(self, digest: str | None = None, location: str = "") -> None:
        self.digest, self.location = digest, location


def _allowed(url: str, hosts: Sequence[str]) -> SplitResult:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise RefusedError(400, "not a URL", code="invalid_url") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise RefusedError(400, "a URL must read https://HOST/PATH", code="invalid_url")
    if not hosts:
        raise RefusedError(403, "this server fetches nothing", "it is started with --allow-media-host for that")
    if not any(_is_host(parts.hostname, port, host) for host in hosts):
        raise RefusedError(403, "this server does not fetch from that host", code="host_not_allowed")
    return parts


def _is_host(name: str, port: int | None, allowed: str) -> bool:
    entry = urlsplit(f"//{allowed}")
    return name == (entry.hostname or "").rstrip(".") and port == entry.port


def _get(parts: SplitResult, target: Path, most_bytes: int, until: float) -> _Answer:
    name = str(parts.hostname)
    address = _address(name, parts.port or (443 if parts.scheme == "https" else 80))
    place = f"[{address}]" if ":" in address else address
    # to the address that was checked: asked once more, the name could lead elsewhere
    url = parts._replace(netloc=place if parts.port is None else f"{place}:{parts.port}", fragment="").geturl()
    headers = {"host": parts.netloc, "accept-encoding": "identity", "user-agent": "llvid"}
    timeout = httpx2.Timeout(_STALL_SECONDS)
    try:
        with (
            httpx2.Client(trust_env=False, timeout=timeout) as client,
            client.stream("GET", url, headers=headers, extensions={"sni_hostname": name}) as response,
        ):
            if response.is_redirect:
                return _Answer(location=response.headers.get("location", ""))
            if response.status_code != 200:
                raise MediaError(f"{name} answers {response.status_code}")
            return _Answer(_written(response, name, target, most_bytes, until))
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
        raise MediaError(f"{name} can't be reached: {str(error)[:200] or type(error).__name__}") from None


def _written(response: httpx2.Response, name: str, target: Path, most_bytes: int, until: float) -> str:
    digest, size = hashlib.blake2b(digest_size=16), 0
    with target.open("wb") as file:
        for piece in response.iter_raw():
            size += len(piece)
            if size > most_bytes:
                raise MediaError(f"what {name} sends is larger than {most_bytes:,} bytes")
            if time.monotonic() > until:
                raise MediaError(f"{name} sends too slowly")
            digest.update(piece)
            file.write(piece)
    return digest.hexdigest()


def _address(name: str, port: int) -> str:
    """Return an address of a host; raises `RefusedError` if a name leads to one that is not of the public network."""
    try:
        return str(ip_address(name))  # allowed as it is
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise MediaError(f"there is no host {name}") from None
    addresses = [str(entry[4][0]) for entry in found]
    if name != "localhost" and not all(map(_is_public, addresses)):
        _inside(name)
    return addresses[0]


def _is_public(address: str) -> bool:
    number = ip_address(address.partition("%")[0])
    return number.is_global and not number.is_multicast


def _inside(name: str) -> NoReturn:
    raise RefusedError(
        403, f"{name} is an address inside this network", "--allow-media-host allows one by its number", code="private"
    )
