"""Which addresses are public, and what a server reads without being told."""

from __future__ import annotations

import threading

import pytest

from llava_video_cli.server.media import MediaSources
from llava_video_cli.server.responses import RequestError
from llava_video_cli.system.download import is_public


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("8.8.8.8", True), ("10.0.0.1", False), ("2606:4700::1", True), ("fe80::1%eth0", False), ("224.0.0.1", False),
        ("64:ff9b::10.0.0.1", False), ("64:ff9b::127.0.0.1", False), ("64:ff9b::8.8.8.8", True),
        ("64:ff9b:1::8.8.8.8", False), ("64:ff9b:1:a00:0:100::", False),
        ("2002:a00:1::", False), ("2002:7f00:1::1", False), ("2002:808:808::1", True),
        ("::ffff:10.0.0.1", False), ("::ffff:8.8.8.8", True), ("::10.0.0.1", False), ("2001:0:a00:1::", False),
    ],
)  # fmt: skip
def test_addresses_that_lead_to_a_private_network_are_private(address: str, expected: bool) -> None:
    assert is_public(address) == expected


@pytest.mark.parametrize(
    ("url", "option"),
    [("file:///a.mp4", "--allow-media-dir FOLDER"), ("https://a.example/a.mp4", "--allow-media-host HOST")],
)
def test_a_refusal_names_the_option_in_the_message_which_is_all_that_clients_show(url: str, option: str) -> None:
    with pytest.raises(RequestError, match=f"start it with {option}"), MediaSources().open(url, threading.Event()):
        pass
