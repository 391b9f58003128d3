"""Which Host headers name this machine."""

from __future__ import annotations

import pytest
from starlette.datastructures import Headers

from llava_video_cli.server.auth import Auth
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
