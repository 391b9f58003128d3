"""A file from a URL, bounded in size and time; who asks decides which hosts and which networks it may come from.

The names of a host are looked up once, and the connection goes to an address that was checked: a name server could give
another one the second time.
"""

from __future__ import annotations

import hashlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

import httpx2

from ..errors import MediaError

_MAX_REDIRECTS = 3
_REDIRECTS = (300, 301, 302, 303, 307, 308)  # 304 and 305 are none that a first request can follow
_CUT_SHORT = ("peer ", "Server disconnected")  # how httpx2 and h11 begin to tell that a server has left
# Addresses that lead to the IPv4 address in their last 32 bits: mapped, compatible (RFC 4291), NAT64 (RFC 6052).
_IPV4_IN_LAST_BITS = tuple(map(IPv6Network, ("::ffff:0:0/96", "::/96", "64:ff9b::/96")))
_SLACK_SECONDS = 0.01  # after the end of the time, so that what fails then is known to be late
_ERRNO = re.compile(r"^\[Errno -?\d+\] ")
_LOCAL_NAT64 = IPv6Network("64:ff9b:1::/48")  # RFC 8215: each network puts its own addresses into it


class OutOfBoundsError(MediaError):
    """A download is larger, or takes longer, than its bounds allow."""


@dataclass(frozen=True)
class Host:
    """A host of a URL; its name is looked up when it is first needed, and once."""

    name: str
    port: int

    @property
    def is_address(self) -> bool:
        """Whether it is an address itself, and no name."""
        try:
            ip_address(self.name)
        except ValueError:
            return False
        return self.name.isascii()  # the zone of an IPv6 address may have any letter

    @cached_property
    def addresses(self) -> tuple[str, ...]:
        """Its addresses, at least one. Raises MediaError if there is no such host."""
        if self.is_address:
            return (self.name,)
        try:
            entries = socket.getaddrinfo(self.name, self.port, type=socket.SOCK_STREAM)
        except (OSError, ValueError):  # a name that can't be written for a name server is a ValueError
            raise MediaError(f"there is no host {self.name}") from None
        return tuple(dict.fromkeys(str(entry[4][0]) for entry in entries))

    @property
    def is_private(self) -> bool:
        """Whether one of its addresses is outside the public network: this machine, or a private network."""
        return not all(map(is_public, self.addresses))


@dataclass(frozen=True)
class DownloadBounds:
    """What a download may cost: bytes, seconds in all, with redirects, and seconds in which nothing comes."""

    bytes: int
    seconds: float
    stall_seconds: float = 10.0


class _Watch:
    """Ends a download when its time is over, whatever it waits for.

    A socket's timeout begins again with each byte, so a server could send its headers forever.
    """

    def __init__(self, seconds: float) -> None:
        self._deadline, self._seconds = time.monotonic() + seconds, seconds
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None

    @property
    def left_seconds(self) -> float:
        return self._deadline - time.monotonic()

    def check(self, host: Host) -> None:
        """Raise OutOfBoundsError if the time is over."""
        if self.left_seconds <= 0:
            raise OutOfBoundsError(f"{host.name} sends too slowly: not all came within {self._seconds:g} seconds")

    @contextmanager
    def running(self) -> Iterator[None]:
        """Shut the connection down when the time is over, in the `with` block."""
        timer = threading.Timer(max(self.left_seconds, 0), self._shut_down)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            self._replace(None)

    def trace(self, event: str, info: dict[str, Any]) -> None:
        """Take the connection from httpx2, which tells when it is made."""
        if event == "connection.connect_tcp.complete":
            # a second handle of it: TLS takes the first one
            self._replace(info["return_value"].get_extra_info("socket").dup())

    def _replace(self, connection: socket.socket | None) -> None:
        with self._lock:
            if self._socket is not None:
                self._socket.close()
            self._socket = connection
        if self.left_seconds <= 0:
            self._shut_down()

    def _shut_down(self) -> None:
        with self._lock, suppress(OSError):
            if self._socket is not None:
                self._socket.shutdown(socket.SHUT_RDWR)


def download(
    url: str,
    target: Path,
    bounds: DownloadBounds,
    allow: Callable[[str], Host],
    *,
    accept: Callable[[str], None] = lambda _: None,
    progress: Callable[[int, int | None], None] = lambda *_: None,
    credentials: tuple[str, str] | None = None,
) -> str:
    """Write what a URL holds to a file; return its fingerprint.

    `allow` is called with the URL and with each one that it redirects to; it returns the host, or raises what it likes.
    `accept` gets the content's media type before the content, `progress` the bytes that have come and those that the
    server announces; what they raise ends the download. The user's name and password of `credentials` are sent to the
    first host alone. Raises MediaError, OutOfBoundsError where the bounds end it.
    """
    watch = _Watch(bounds.seconds)
    for _ in range(_MAX_REDIRECTS + 1):
        host = allow(url)
        with watch.running(), _response(urlsplit(url), host, bounds, watch, credentials) as response:
            credentials = None
            if response.status_code in _REDIRECTS:
                url = _redirected(url, response.headers.get("location", ""), host)
                continue
            if response.status_code != 200:
                raise MediaError(f"{host.name} answered with status {response.status_code}")
            accept(response.headers.get("content-type", "").partition(";")[0].strip().lower())
            return _write(response, host, target, bounds, watch, progress)
    raise MediaError(f"{host.name} redirects more than {_MAX_REDIRECTS} times")


def _redirected(url: str, location: str, host: Host) -> str:
    if not location:
        raise MediaError(f"{host.name} redirects without an address")
    try:
        return urljoin(url, location)
    except ValueError:
        raise MediaError(f"{host.name} redirects to a broken address: {location[:200]}") from None


@contextmanager
def _response(
    parts: SplitResult, host: Host, bounds: DownloadBounds, watch: _Watch, credentials: tuple[str, str] | None
) -> Iterator[httpx2.Response]:
    """Ask the first of the host's addresses that answers."""
    addresses = host.addresses  # a name that has none may also be one that a header can't have
    place = parts.netloc.rpartition("@")[2]
    place = place if place.isascii() else place.encode("idna").decode()
    headers = {"host": place, "accept-encoding": "identity", "user-agent": "llvid"}
    auth = httpx2.BasicAuth(*credentials) if credentials else None
    try:
        with httpx2.Client(trust_env=False) as client:
            for number, address in enumerate(addresses, start=1):
                name = f"[{address}]" if ":" in address else address
                name += f":{parts.port}" * (parts.port is not None)
                url = parts._replace(netloc=name, fragment="").geturl()
                watch.check(host)
                request = client.build_request(
                    "GET", url, headers=headers, timeout=min(bounds.stall_seconds, watch.left_seconds + _SLACK_SECONDS),
                    extensions={"sni_hostname": host.name, "trace": watch.trace},
                )  # fmt: skip
                try:
                    response = client.send(request, auth=auth, stream=True)
                    break
                except (httpx2.ConnectError, httpx2.ConnectTimeout):
                    if number == len(addresses):
                        raise
            try:
                yield response
            finally:
                response.close()
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError) as error:
        watch.check(host)
        if isinstance(error, httpx2.RemoteProtocolError) and not str(error).startswith(_CUT_SHORT):
            raise MediaError(f"the answer of {host.name} is not valid HTTP") from None
        reason = _ERRNO.sub("", str(error))[:200] or type(error).__name__
        raise MediaError(f"the connection to {host.name} failed: {reason}") from None


def _write(
    response: httpx2.Response,
    host: Host,
    target: Path,
    bounds: DownloadBounds,
    watch: _Watch,
    progress: Callable[[int, int | None], None],
) -> str:
    digest, size = hashlib.blake2b(digest_size=16), 0
    length = response.headers.get("content-length", "")
    announced = int(length) if length.isascii() and length.isdigit() else None
    too_large = OutOfBoundsError(f"the file from {host.name} is larger than {bounds.bytes:,} bytes")
    if announced is not None and announced > bounds.bytes:
        raise too_large
    with target.open("wb") as file:
        for piece in response.iter_raw():
            size += len(piece)
            progress(size, announced)
            if size > bounds.bytes:
                raise too_large
            watch.check(host)
            digest.update(piece)
            file.write(piece)
    watch.check(host)  # the end of a file without a length may be that of the time
    return digest.hexdigest()


def is_public(address: str) -> bool:
    """Return whether an address is one of the public network, also by way of those that stand for others."""
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
