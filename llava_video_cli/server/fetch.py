"""Downloads from allowed hosts: no other host, no address inside this network, bounded in size and time."""

from __future__ import annotations

import hashlib
import socket
import threading
import time
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from urllib.parse import SplitResult, urljoin, urlsplit

import httpx2

from ..errors import MediaError
from .responses import RequestError

_MAX_REDIRECTS = 3
_STALL_SECONDS = 10.0
# Addresses that lead to the IPv4 address in their last 32 bits: mapped, compatible (RFC 4291), NAT64 (RFC 6052).
_IPV4_IN_LAST_BITS = tuple(map(IPv6Network, ("::ffff:0:0/96", "::/96", "64:ff9b::/96")))
_LOCAL_NAT64 = IPv6Network("64:ff9b:1::/48")  # RFC 8215: each network puts its own addresses into it


def download(
    url: str, target: Path, hosts: Sequence[str], max_bytes: int, seconds: float, cancelled: threading.Event
) -> str:
    """Write what a URL holds to a file; return its fingerprint.

    `hosts` are names or addresses, with `:PORT` if it is not the scheme's own. Redirects are followed to allowed hosts
    only. A name must not lead to an address inside this network, because a foreign name server could make it do so;
    such an address can be allowed itself. Raises `RequestError` or MediaError.
    """
    deadline = time.monotonic() + seconds
    for _ in range(_MAX_REDIRECTS + 1):
        parts = _check_allowed(url, hosts)
        digest, location = _get(parts, target, max_bytes, deadline, cancelled)
        if digest is not None:
            return digest
        url = urljoin(url, location)
    raise MediaError(f"{parts.hostname} redirects more than {_MAX_REDIRECTS} times")


def _check_allowed(url: str, hosts: Sequence[str]) -> SplitResult:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise RequestError(400, "not a URL", code="invalid_url") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise RequestError(400, "a URL must look like https://HOST/PATH", code="invalid_url")
    if not hosts:
        raise RequestError(403, "this server does not fetch URLs", "start it with --allow-media-host to allow a host")
    if not any(_is_host(parts.hostname, port, host) for host in hosts):
        raise RequestError(403, "this server does not fetch from that host", code="host_not_allowed")
    return parts


def _is_host(name: str, port: int | None, allowed: str) -> bool:
    entry = urlsplit(f"//{allowed}")
    return name == (entry.hostname or "").rstrip(".") and port == entry.port


def _get(
    parts: SplitResult, target: Path, max_bytes: int, deadline: float, cancelled: threading.Event
) -> tuple[str | None, str]:
    """Return the fingerprint of the file that was written, or None and the address of a redirect."""
    name = str(parts.hostname)
    address = _address(name, parts.port or (443 if parts.scheme == "https" else 80))
    host = f"[{address}]" if ":" in address else address
    # The request goes to the address that was checked: a second look-up of the name could give another one.
    url = parts._replace(netloc=host if parts.port is None else f"{host}:{parts.port}", fragment="").geturl()
    headers = {"host": parts.netloc, "accept-encoding": "identity", "user-agent": "llvid"}
    timeout = httpx2.Timeout(_STALL_SECONDS)
    try:
        with (
            httpx2.Client(trust_env=False, timeout=timeout) as client,
            client.stream("GET", url, headers=headers, extensions={"sni_hostname": name}) as response,
        ):
            if response.is_redirect:
                return None, response.headers.get("location", "")
            if response.status_code != 200:
                raise MediaError(f"{name} answered with status {response.status_code}")
            return _write(response, name, target, max_bytes, deadline, cancelled), ""
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
        raise MediaError(f"{name} can't be reached: {str(error)[:200] or type(error).__name__}") from None


def _write(
    response: httpx2.Response, name: str, target: Path, max_bytes: int, deadline: float, cancelled: threading.Event
) -> str:
    digest, size = hashlib.blake2b(digest_size=16), 0
    with target.open("wb") as file:
        for piece in response.iter_raw():
            if cancelled.is_set():
                raise MediaError("the client has disconnected")
            size += len(piece)
            if size > max_bytes:
                raise MediaError(f"the file from {name} is larger than {max_bytes:,} bytes")
            if time.monotonic() > deadline:
                raise MediaError(f"{name} sends too slowly")
            digest.update(piece)
            file.write(piece)
    return digest.hexdigest()


def _address(name: str, port: int) -> str:
    """Return an address of a host; raises `RequestError` if a name leads to one outside the public network."""
    try:
        return str(ip_address(name))  # an address that is allowed itself
    except ValueError:
        pass
    try:
        entries = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise MediaError(f"there is no host {name}") from None
    addresses = [str(entry[4][0]) for entry in entries]
    if name != "localhost" and not all(map(_is_public, addresses)):
        hint = "allow the address itself with --allow-media-host"
        raise RequestError(403, f"{name} leads to an address inside this network", hint, code="private")
    return addresses[0]


def _is_public(address: str) -> bool:
    number = ip_address(address.partition("%")[0])
    if isinstance(number, IPv6Address):
        if number in _LOCAL_NAT64 or number.teredo is not None:
            return False
        inner = number.sixtofour
        if any(number in network for network in _IPV4_IN_LAST_BITS):
            inner = IPv4Address(int(number) % 2**32)
        if inner is not None:
            number = inner
    return number.is_global and not number.is_multicast
