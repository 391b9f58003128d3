"""The server's page in a real browser: a video dropped, looked at, asked about, asked again; by keys, on a phone."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import KEYS, Browser, browser
from serving import Served, message, serving
from terminal import scene

from llava_video_cli import open_model
from llava_video_cli.demo.world import write_clip, write_picture
from llava_video_cli.model import Model
from llava_video_cli.server.auth import Guard

pytest.importorskip("uvicorn")

ANSWERS = "[...document.querySelectorAll('li.answer:not(.waits)')].map(a => a.firstChild?.textContent ?? '')"
ABOUT = "document.getElementById('about').textContent"
ERROR = "document.getElementById('error').textContent"
SHOWN = "(s => !s.hidden && s.complete && s.naturalWidth)(document.getElementById('sheet'))"


@pytest.fixture(scope="module")
def model() -> Model:
    return open_model("demo")


@pytest.fixture(scope="module")
def served(model: Model) -> Iterator[Served]:
    with serving(model) as running:
        yield running


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as window:
        yield window


def sheet(served: Served, path: Path, kind: str, **values: object) -> tuple[int, dict[str, object]]:
    url = f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    body = json.dumps({"messages": [message("", url)]} | values).encode()
    status, _, content = served.send("POST", "/sheet", body, {"Content-Type": "application/json"})
    return status, json.loads(content)


def test_the_sheet_shows_what_is_looked_at(served: Served, clip: Path, tmp_path: Path) -> None:
    status, seen = sheet(served, clip, "video/mp4", sampling={"frames": 4})
    assert status == 200 and isinstance(seen["frames"], dict)
    assert seen["frames"]["count"] == 4 and str(seen["sheet"]).startswith("data:image/jpeg;base64,/9j/")
    write_picture(tmp_path / "a.png", scene())
    status, seen = sheet(served, tmp_path / "a.png", "image/png")
    assert status == 200 and seen["frames"] is None
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(clip.read_bytes()[:300])
    status, told = sheet(served, broken, "video/mp4")
    assert status == 400 and "not a video" in json.dumps(told)
    assert served.send("POST", "/sheet", b"{}", {"Content-Type": "text/plain"})[0] == 415
    text = json.dumps({"messages": [{"role": "user", "content": "hello"}]}).encode()
    assert served.send("POST", "/sheet", text, {"Content-Type": "application/json"})[0] == 400


def test_the_page_lets_nothing_in_but_itself(served: Served) -> None:
    status, headers, body = served.send("GET", "/")
    policy = headers["content-security-policy"]
    assert status == 200 and "default-src 'none'" in policy and "unsafe" not in policy
    assert b"http://" not in body and b"https://" not in body and b"innerHTML" not in body


def test_a_video_is_asked_about_twice_by_keys(window: Browser, served: Served, clip: Path) -> None:
    window.visit(f"{served.url}/")
    window.wait("document.getElementById('model').textContent === 'demo'")
    window.choose("#file", clip)
    assert window.wait(SHOWN) > 100
    assert window.run(ABOUT) == "circle.mp4, 0:02: 8 frames are looked at"
    assert "0:00" in window.run("document.getElementById('sheet').alt")
    window.type("What shape is it?" + KEYS["enter"])  # the focus is on the question already
    assert window.wait(f"{ANSWERS}.length === 1 && {ANSWERS}") == ["It is a circle."]
    window.type("What color is it?" + KEYS["tab"] * 3 + KEYS["enter"])  # past the frames and New to the button
    assert window.wait(f"{ANSWERS}.length === 2 && {ANSWERS}")[1] == "It is red."
    assert window.run("turns.length") == 4 and window.run(ERROR) == ""
    assert window.logged() == []


def test_other_frames_begin_anew(window: Browser, served: Served, clip: Path) -> None:
    window.visit(f"{served.url}/")
    window.choose("#file", clip)
    window.wait(SHOWN)
    window.run("(at('frames').value = 3, at('frames').dispatchEvent(new Event('change')))")
    window.wait(f"{ABOUT}.endsWith(': 3 frames are looked at')")


def test_what_is_no_video_is_said(window: Browser, served: Served, tmp_path: Path) -> None:
    window.visit(f"{served.url}/")
    path = tmp_path / "<img src=x onerror=alert(1)>.mp4"
    path.write_bytes(b"no video")
    window.choose("#file", path)
    assert "not a video" in window.wait(ERROR)
    assert window.run("document.getElementById('ask').disabled")
    assert window.run("document.querySelectorAll('main img').length") == 1


def test_a_locked_server_asks_for_its_key(window: Browser, model: Model) -> None:
    with serving(model, guard=Guard(api_key="sesame")) as served:
        window.visit(f"{served.url}/")
        window.wait("!document.getElementById('locked').hidden")
        assert "API key" in window.run(ERROR)
        window.run("at('key').focus()")
        window.type("sesame" + KEYS["enter"])
        window.wait("document.getElementById('model').textContent === 'demo'")
        assert window.run("document.getElementById('locked').hidden") and window.run(ERROR) == ""


def test_a_phone_has_room_for_it(tmp_path: Path, served: Served) -> None:
    clip = tmp_path / ("a long name " * 12 + ".mp4")
    write_clip(clip, scene())
    with browser(tmp_path / "profile", 360, 700) as phone:
        phone.visit(f"{served.url}/")
        phone.choose("#file", clip)
        phone.wait(SHOWN)
        phone.run("ask('Describe the video.')")
        phone.wait(f"{ANSWERS}.length === 1")
        assert phone.run("document.documentElement.scrollWidth <= innerWidth")
        assert phone.run("[...document.querySelectorAll('button')].every(b => !b.offsetParent || b.offsetHeight >= 44)")
        assert phone.logged() == []
