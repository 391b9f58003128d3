"""Which Host headers name this machine, and which web pages may send requests."""

from __future__ import annotations

import pytest
from starlette.datastructures import Headers

from llava_video_cli.errors import UsageError
from llava_video_cli.server.auth import Auth, checked_origin
from llava_video_cli.server.responses import RequestError


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:80", "[::1]:8377", "LOCALHOST.:1"])
def test_a_host_header_of_this_machine(host: str) -> None:
    Auth().check(Headers({"host": host}))


@pytest.mark.parametrize(
    "host",
    ["evil.com@localhost", "evil.com:80@127.0.0.1", "localhost/x", "localhost#", "localhost?", "localhost\\x", "a b",
     "localhost:80:80", "localhost:x", "[::1", "", "localhost,evil.com"],
)  # fmt: skip
def test_a_host_header_of_another_machine_or_of_none(host: str) -> None:
    with pytest.raises(RequestError, match="Host header"):
        Auth().check(Headers({"host": host}))


@pytest.mark.parametrize(
    "origin",
    [
        "http://localhost:3000",
        "https://app.example",
        "http://[::1]:3000",
        "chrome-extension://abcdef",
        "http://10.0.0.2",
    ],
)
def test_an_origin_is_taken_as_a_browser_sends_it(origin: str) -> None:
    assert checked_origin(origin) == origin
    Auth(origins={origin}).check(Headers({"host": "localhost", "origin": origin}))
    for other in (f"{origin}0", f"{origin}.evil.example", f"{origin} ", origin.upper(), "null", ""):
        with pytest.raises(RequestError, match="other web pages"):
            Auth(origins={origin}).check(Headers({"host": "localhost", "origin": other}))


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("http://localhost:3000/", "http://localhost:3000"),
        ("https://App.Example/a/b?c", "https://app.example"),
        ("localhost:3000", "http://localhost:3000"),
        ("https://app.example:443", "https://app.example"),
        (" http://a", "http://a"),
    ],
)
def test_a_page_that_is_no_origin_gets_the_line_to_type(typed: str, meant: str) -> None:
    with pytest.raises(UsageError) as caught:
        checked_origin(typed)
    assert caught.value.hint == f"type --allow-origin {meant}"


@pytest.mark.parametrize("typed", ["*", "null", "", "http://", "file:///a", "http://a b", "http://*.example", "x\ny"])
def test_what_every_page_could_send_is_refused(typed: str) -> None:
    with pytest.raises(UsageError) as caught:
        checked_origin(typed)
    assert "http://localhost:3000" in (caught.value.hint or "")


def test_a_refused_page_is_told_how_it_could_be_let_in() -> None:
    for origin, is_named in (("https://app.example", True), ("x' onload='", False)):
        with pytest.raises(RequestError) as caught:
            Auth().check(Headers({"host": "localhost", "origin": origin}))
        assert (caught.value.hint is not None) == is_named
