"""A file from a URL: what a server may answer, and how long it may take."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from llava_video_cli import Limits, LlvidError, MediaError
from llava_video_cli.server.fetch import fetch
from llava_video_cli.server.media import MediaSources
from llava_video_cli.server.responses import RequestError
from llava_video_cli.system.download import DownloadBounds, Host, download
from llava_video_cli.video.spool import spooled

Answering = Callable[..., str]


@pytest.fixture
def answering() -> Iterator[Answering]:
    """Call it with the pieces of an answer, and the seconds before each: it gives the URL of a server that sends it."""
    listeners = []

    def serve(*pieces: bytes, every_seconds: float = 0.0) -> str:
        listeners.append(listener := socket.create_server(("127.0.0.1", 0)))
        threading.Thread(target=_answer, args=(listener, pieces, every_seconds), daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}/a.mp4"

    yield serve
    for listener in listeners:
        listener.close()


def _answer(listener: socket.socket, pieces: Iterable[bytes], every_seconds: float) -> None:
    try:
        while True:
            connection, _ = listener.accept()
            with connection:
                connection.recv(2**16)
                for piece in pieces:
                    time.sleep(every_seconds)
                    connection.sendall(piece)
    except OSError:  # the client has left, or the test is over
        pass


def redirect(location: str, status: str = "302 Found") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nLocation: {location}\r\n\r\n".encode()


def failure(url: str, limits: Limits | None = None) -> LlvidError:
    """The error of a URL that was typed."""
    with pytest.raises(LlvidError) as error, spooled([url], None, limits=limits):
        pass
    assert "\n" not in str(error.value)
    return error.value


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("http://[::1", "127.0.0.1 redirects to a broken address: http://[::1"),
        ("http://127.0.0.1:99999/", "{url} redirects to a wrong address: not a URL: http://127.0.0.1:99999/"),
        ("ftp://127.0.0.1/a", "{url} redirects to a wrong address: ftp:// can't be read"),
        ("http://a..b/", "there is no host a..b"),
    ],
)
def test_a_broken_address_of_a_redirect_is_the_server_s_fault(
    answering: Answering, location: str, words: str, tmp_path: Path
) -> None:
    url = answering(redirect(location))
    error = failure(url)
    assert str(error).startswith(words.replace("{url}", url)) and error.exit_code == 1
    with pytest.raises((MediaError, RequestError)):  # a client gets status 400 or 403
        fetch(url, tmp_path / "media", [url.split("/")[2]], 1000, 5.0, threading.Event())


def test_a_url_has_no_other_bytes_than_utf_8(answering: Answering) -> None:
    url = f"{answering()[:-6]}/\udcff.mp4"  # as Python reads it from the command line
    assert str(failure(url)) == f"not a URL: {url}"
    host = url.split("/")[2]
    for each in (url, "file:///\udcff.mp4"):
        with (
            pytest.raises(RequestError, match="not a URL") as error,
            MediaSources([Path("/")], [host]).open(each, threading.Event()),
        ):
            pass
        assert error.value.status == 400


def test_a_host_may_have_other_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "there is no host" in str(failure("http://[fe80::1%\u00fc]/a.mp4"))
    entry = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 9))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [entry])
    assert "failed: Connection refused" in str(failure("http://b\u00fccher.test:9/a.mp4"))


@pytest.mark.parametrize(
    "begun", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n\r\n"], ids=["status", "headers", "content"]
)
@pytest.mark.parametrize("redirected", [False, True])
def test_the_time_of_a_download_covers_all_of_an_answer(
    answering: Answering, begun: bytes, redirected: bool, tmp_path: Path
) -> None:
    url = answering(begun, *[b"x"] * 100, every_seconds=0.02)
    if redirected:
        url = answering(redirect(url))
    began = time.monotonic()
    with pytest.raises(MediaError, match=r"sends too slowly: not all came within 0\.1 seconds"):
        download(url, tmp_path / "media", DownloadBounds(1000, 0.1), lambda _: Host("127.0.0.1", 0))
    assert time.monotonic() - began < 1


def test_the_time_of_a_download_covers_the_beginning_of_tls(answering: Answering, tmp_path: Path) -> None:
    hello = b"\x16\x03\x03\x40\x00" + b"\x02\x00\x3f\xfc\x03\x03"  # of a record of 16 KB
    url = answering(hello, *[b"x"] * 100, every_seconds=0.02).replace("http:", "https:")
    with pytest.raises(MediaError, match="sends too slowly"):
        download(url, tmp_path / "media", DownloadBounds(1000, 0.1), lambda _: Host("127.0.0.1", 0))


def test_a_stop_in_an_answer_is_shorter_than_its_time(answering: Answering, tmp_path: Path) -> None:
    url = answering(b"HTTP/1.1 200 OK\r\n", b"\r\n", every_seconds=0.15)
    with pytest.raises(MediaError, match="failed: timed out"):
        download(url, tmp_path / "media", DownloadBounds(1000, 5, 0.05), lambda _: Host("127.0.0.1", 0))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n", "127.0.0.1 redirects without an address"),
        (redirect(""), "127.0.0.1 redirects without an address"),
        (redirect("/a.mp4", "304 Not Modified"), "127.0.0.1 answered with status 304"),
        (b"HTTP/1.1 300 Choose\r\n\r\n", "127.0.0.1 redirects without an address"),
        (b"SSH-2.0-OpenSSH_9.6\r\n\r\n", "the answer of 127.0.0.1 is not valid HTTP"),
        (b"HTTP/1.1 200 OK\r\nno header\r\n\r\n", "the answer of 127.0.0.1 is not valid HTTP"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nwords\r\n",
            "the answer of 127.0.0.1 is not valid HTTP",
        ),
        (b"", "the connection to 127.0.0.1 failed: Server disconnected without sending a response."),
    ],
)
def test_an_error_says_what_the_server_did(answering: Answering, answer: bytes, words: str) -> None:
    assert str(failure(answering(answer))) == words
