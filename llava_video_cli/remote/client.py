"""One OpenAI-compatible server: requests, which are retried where that helps, answers as events, one-line errors."""

from __future__ import annotations

import json
import random
import re
import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, suppress
from importlib.metadata import version
from typing import Any

import httpx2

from ..errors import ContextError, ModelError, ServerError, UsageError
from . import is_loopback

_TIMEOUT = httpx2.Timeout(connect=10, read=900, write=300, pool=None)  # read: a queue and a prefill on a CPU
_LIST_TIMEOUT = httpx2.Timeout(15)
_CONNECTING_SECONDS = 3.0  # of tries while a server starts
_BUSY_SECONDS = 600.0  # of tries while it answers that it is busy
_MOST_PAUSE_SECONDS = 30.0
_MOST_DISCONNECTS = 2  # before the first byte of an answer
_BUSY = (429, 502, 503, 504)
_MOST_ERROR_BYTES, _MOST_EVENT_BYTES, _MOST_LIST_BYTES = 2**16, 2**20, 2**22
_MOST_ANSWER_BYTES = 2**28  # events are much larger than the short pieces of text in them
_LONGEST_REASON = 300  # characters of a server's error message
_CONTEXT_WORDS = ("context_length_exceeded", "context length", "context window", "max_model_len", "context of")
_START = "start a server with `llvid serve`"
_HOST = re.compile(r"[\w.:-]+")
_ERRNO = re.compile(r"^\[Errno -?\d+\] ")


class DisconnectedError(ModelError):
    """The connection ended in the middle of an answer: another try may get all of it."""


class UnreachableError(ServerError):
    """No connection to the server is possible."""


class Endpoint:
    """The server at `url`, which ends in `/v1`. Safe in threads."""

    def __init__(self, url: str, key: str | None = None) -> None:
        """Take an address as a user writes it, without connecting; raises `UsageError` if it is not valid."""
        self.url = _address(url)
        self.is_local = is_loopback(self.url.host)
        self.name = str(self.url).removesuffix("/v1")
        headers = {"User-Agent": f"llvid/{version('llava-video-cli')}", "Accept-Encoding": "identity"}
        if key := (key or "").strip():
            if not key.isascii() or not key.isprintable():
                raise UsageError("LLVID_API_KEY has characters that are not allowed in a key")
            headers["Authorization"] = f"Bearer {key}"
        # the default context reads all certificates, which plain http does not need
        verify = True if self.url.scheme == "https" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._client = httpx2.Client(
            headers=headers,
            timeout=_TIMEOUT,
            verify=verify,
            trust_env=not self.is_local,  # a proxy can't reach this machine
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=64),
        )

    def models(self, *, patient: bool = True) -> tuple[list[Mapping[str, Any]], Mapping[str, str]]:
        """Return the entries of the list of models, and the response's headers. Raises `ServerError`."""
        request = self._client.build_request("GET", f"{self.url}/models", timeout=_LIST_TIMEOUT)
        with closing(self._send(request, patient=patient)) as response:
            try:
                entries = json.loads(_read_at_most(response, _MOST_LIST_BYTES))["data"]
            except httpx2.TransportError as error:
                raise UnreachableError(f"{self.name} closed the connection: {_reason(str(error))}") from None
            except (ValueError, KeyError, TypeError, RecursionError):
                entries = None
            if not isinstance(entries, list):
                raise ServerError(f"{self.name} is not an OpenAI-compatible server: it lists no models", _START)
            return [entry for entry in entries if isinstance(entry, dict)], response.headers

    def events(self, body: Mapping[str, Any], *, patient: bool = True) -> Iterator[dict[str, Any]]:
        """Yield the events of an answer as they come; closing the iterator closes the connection.

        `patient` waits for a server that is starting. Raises `ServerError`, or `ModelError` for this request alone.
        """
        content = json.dumps(body).encode()
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        request = self._client.build_request("POST", f"{self.url}/chat/completions", content=content, headers=headers)
        with closing(self._send(request, patient=patient)) as response:
            seen = 0
            response.encoding = "utf-8"  # as all event streams are; httpx2 would believe any other that is named
            try:
                for event in httpx2.EventSource(response, _MOST_EVENT_BYTES):
                    if event.data.strip() == "[DONE]":
                        return
                    seen += len(event.data)
                    if seen > _MOST_ANSWER_BYTES:
                        raise ModelError(f"the answer of {self.name} is too long")
                    yield self._event(event.data)
            except (httpx2.SSEError, httpx2.DecodingError) as error:  # a body that is not compressed as its head says
                raise ModelError(f"{self.name} did not send an event stream: {_reason(str(error))}") from None
            except httpx2.TimeoutException:
                raise ModelError(f"{self.name} stopped sending in the middle of an answer") from None
            except httpx2.TransportError as error:
                raise DisconnectedError(
                    f"{self.name} closed the connection in the middle of an answer: {_reason(str(error))}"
                ) from None

    def answer(self, body: Mapping[str, Any], *, patient: bool = True) -> dict[str, Any]:
        """Return an answer that is sent as a whole. Raises as `events`."""
        content, headers = json.dumps(body).encode(), {"Content-Type": "application/json"}
        request = self._client.build_request("POST", f"{self.url}/chat/completions", content=content, headers=headers)
        with closing(self._send(request, patient=patient)) as response:
            try:
                return self._event(_read_at_most(response, _MOST_ANSWER_BYTES).decode("utf-8", "replace"))
            except httpx2.TransportError as error:
                raise DisconnectedError(f"{self.name} closed the connection: {_reason(str(error))}") from None

    def _event(self, data: str) -> dict[str, Any]:
        try:
            values = json.loads(data)
        except (ValueError, RecursionError):
            raise ModelError(f"{self.name} sent something that is not JSON: {_reason(data)}") from None
        if not isinstance(values, dict):
            raise ModelError(f"{self.name} sent something that is not an event: {_reason(data)}")
        if values.get("error"):
            raise _error(self.name, 500, data.encode())
        return values

    def _send(self, request: httpx2.Request, *, patient: bool) -> httpx2.Response:
        """Return a response of status 200, whose body is not read yet."""
        connecting_seconds = _CONNECTING_SECONDS if patient else 0
        began, disconnects, tries = time.monotonic(), 0, 0
        while True:
            tries += 1
            passed = time.monotonic() - began
            pause = min(0.25 * 2 ** (tries - 1), 2.0)
            try:
                response = self._client.send(request, stream=True)
            except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError) as error:
                if passed + pause > connecting_seconds:
                    raise UnreachableError(f"{self.name} can't be reached: {_reason(str(error))}", _START) from None
            except httpx2.TimeoutException:
                raise ModelError(f"{self.name} did not answer in time") from None
            except httpx2.TransportError as error:  # the server stops, or the connection was idle for too long
                disconnects += 1
                if disconnects > _MOST_DISCONNECTS:
                    raise UnreachableError(f"{self.name} closed the connection: {_reason(str(error))}") from None
            else:
                if response.status_code == 200:
                    return response
                content = b""
                with closing(response), suppress(httpx2.TransportError):
                    content = _read_at_most(response, _MOST_ERROR_BYTES)
                pause = max(pause, _retry_after_seconds(response)) * random.uniform(1.0, 1.2)
                if response.status_code not in _BUSY or passed + pause > _BUSY_SECONDS:
                    raise _error(self.name, response.status_code, content)
            time.sleep(pause)


def _address(url: str) -> httpx2.URL:
    text = url.strip()
    try:
        address = httpx2.URL(text if "://" in text else f"http://{text}")
        address.host.encode("idna")  # as a name server is asked; raises for a part that is empty, or too long
        usable = address.scheme in ("http", "https") and _HOST.fullmatch(address.host)
    except (httpx2.InvalidURL, ValueError, TypeError):
        usable = None
    if not usable or address.query or address.fragment:
        raise UsageError(f"{url!r} is not the address of a server", "write it as http://127.0.0.1:8377")
    if address.userinfo:
        raise UsageError("a server's address must not have a password", "set the API key in LLVID_API_KEY")
    path = address.path.rstrip("/")
    for ending in ("/chat/completions", "/models", "/v1"):
        path = path.removesuffix(ending)
    return address.copy_with(path=f"{path}/v1")


def _read_at_most(response: httpx2.Response, most_bytes: int) -> bytes:
    content = bytearray()
    for piece in response.iter_raw():
        content += piece
        if len(content) > most_bytes:
            break
    return bytes(content[:most_bytes])


def _retry_after_seconds(response: httpx2.Response) -> float:
    """Return how many seconds a server asks to wait before the next try."""
    try:
        return min(max(0.0, float(response.headers.get("retry-after", ""))), _MOST_PAUSE_SECONDS)
    except ValueError:
        return 0.0


def _error(name: str, status: int, content: bytes) -> ServerError | ModelError:
    """Return the error for a server's response."""
    text = content.decode("utf-8", "replace")
    reason = _reason(_message(text) or text) or f"status {status}"
    if status in (401, 403):
        return ServerError(f"{name} refuses the API key: {reason}", "set the key in the environment as LLVID_API_KEY")
    if 300 <= status < 400:
        return ServerError(f"{name} redirects (status {status})", "use the address that it redirects to")
    if status in (404, 405):
        return ServerError(f"{name} does not know this request: {reason}", "is it an OpenAI-compatible server?")
    if status in _BUSY:
        return ServerError(f"{name} is too busy: {reason}")
    if status == 413:
        return ModelError(f"{name} does not accept requests of this size", "use fewer --frames, or --send file")
    if any(words in text for words in _CONTEXT_WORDS):
        return ContextError(f"{name}: {reason}", "use fewer --frames, or a smaller --max-new-tokens")
    return ModelError(f"{name}: {reason}")


def _message(text: str) -> str | None:
    """Return the message in an error's body, in the forms of OpenAI, vLLM, SGLang and FastAPI."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    for key in ("error", "detail", "message"):
        if isinstance(values, dict) and key in values:
            values = values[key]
    return values if isinstance(values, str) else json.dumps(values)


def _reason(text: str) -> str:
    """Return a server's message in one line of bounded length."""
    line = " ".join(_ERRNO.sub("", text[: 8 * _LONGEST_REASON]).split()).rstrip(".")
    return line if len(line) <= _LONGEST_REASON else f"{line[:_LONGEST_REASON]}..."
