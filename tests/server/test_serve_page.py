"""The server's page in a real browser: a video is chosen, shown and asked about; by keyboard, and on a phone."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from browser import KEYS, Browser, browser
from PIL import Image
from serving import Served, data_url, message, serving
from terminal import scene

from llava_video_cli import Model, open_model
from llava_video_cli.demo.world import write_clip, write_picture
from llava_video_cli.preset import load_preset
from llava_video_cli.server.auth import Auth
from llava_video_cli.server.requests import BodyReader
from llava_video_cli.video.sampling import Sampling

pytest.importorskip("uvicorn")

ANSWERS = "[...document.querySelectorAll('li.answer:not(.waiting)')].map(a => a.firstChild?.textContent ?? '')"
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


def change(window: Browser, **values: str) -> None:
    """Set fields of the frames panel, as a user leaves the last of them."""
    for name, value in values.items():
        window.run(f"at('{name}').value = {json.dumps(value)}")
    window.run(f"at('{name}').dispatchEvent(new Event('change', {{bubbles: true}}))")


def sheet(served: Served, path: Path, kind: str, **values: object) -> tuple[int, dict[str, object]]:
    url = f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
    body = json.dumps({"messages": [message("", url)]} | values).encode()
    status, _, content = served.send("POST", "/sheet", body, {"Content-Type": "application/json"})
    return status, json.loads(content)


def test_the_sheet_shows_the_frames(served: Served, clip: Path, tmp_path: Path) -> None:
    status, answer = sheet(served, clip, "video/mp4", sampling={"frames": 4})
    assert status == 200 and isinstance(answer["frames"], dict)
    assert answer["frames"]["count"] == 4 and str(answer["sheet"]).startswith("data:image/jpeg;base64,/9j/")
    write_picture(tmp_path / "a.png", scene())
    status, answer = sheet(served, tmp_path / "a.png", "image/png")
    assert status == 200 and answer["frames"] is None
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(clip.read_bytes()[:300])
    status, error = sheet(served, broken, "video/mp4")
    assert status == 400 and "the file is cut short" in json.dumps(error)
    Image.new("1", (9000, 9000)).save(tmp_path / "large.png")
    status, answer = sheet(served, tmp_path / "large.png", "image/png")
    words = json.dumps(answer)
    assert status == 400 and "at most 64,000,000 pixels" in words
    assert '"hint": "send a smaller one"' in words, "LLVID_LIMITS is for who runs the server"
    assert served.send("POST", "/sheet", b"{}", {"Content-Type": "text/plain"})[0] == 415
    text = json.dumps({"messages": [{"role": "user", "content": "hello"}]}).encode()
    assert served.send("POST", "/sheet", text, {"Content-Type": "application/json"})[0] == 400


def test_the_page_loads_nothing_from_elsewhere(served: Served) -> None:
    status, headers, body = served.send("GET", "/")
    policy = headers["content-security-policy"]
    assert status == 200 and "default-src 'none'" in policy and "unsafe" not in policy
    assert b"http://" not in body and b"https://" not in body and b"innerHTML" not in body


def test_two_questions_by_keyboard(window: Browser, served: Served, clip: Path) -> None:
    window.visit(f"{served.url}/")
    window.wait("document.getElementById('model').textContent === 'demo'")
    window.choose("#file", clip)
    assert window.wait(SHOWN) > 100
    assert window.run(ABOUT) == "circle.mp4, 0:02: the model sees 8 frames"
    assert "0:00" in window.run("document.getElementById('sheet').alt")
    window.type("What shape is it?" + KEYS["enter"])  # the focus is on the question already
    assert window.wait(f"{ANSWERS}.length === 1 && {ANSWERS}") == ["It is a circle."]
    window.type("What color is it?" + KEYS["tab"] * 3 + KEYS["enter"])  # past the choices and New to the button
    assert window.wait(f"{ANSWERS}.length === 2 && {ANSWERS}")[1] == "It is red."
    assert window.run("turns.length") == 4 and window.run(ERROR) == ""
    assert window.logged() == []


def test_another_number_of_frames_shows_another_sheet(window: Browser, served: Served, clip: Path) -> None:
    window.visit(f"{served.url}/")
    window.choose("#file", clip)
    window.wait(SHOWN)
    change(window, frames="3")
    window.wait(f"{ABOUT}.endsWith(': the model sees 3 frames')")


def test_the_frames_panel_shows_the_defaults_and_takes_a_part(window: Browser, model: Model, clip: Path) -> None:
    preset = load_preset("demo")
    preset = replace(preset, prompt="What shape is it?", sampling=Sampling(frames=5, fit="stretch"))
    with serving(model, preset) as served:
        window.visit(f"{served.url}/")
        window.wait("document.getElementById('model').textContent === 'demo'")
        shown = "['frames', 'start', 'end'].map(id => at(id).placeholder)"
        assert window.run(shown) == ["5", "0:00", "of the video"]
        assert window.run("[at('fit').value, at('placeholder').offsetHeight > 100]") == ["stretch", True]
        window.choose("#file", clip)
        window.wait(SHOWN)
        assert window.run(shown) == ["5", "0:00", "0:02"] and window.run("at('placeholder').hidden")
        window.type(KEYS["enter"])
        assert window.wait(f"{ANSWERS}.length === 1 && {ANSWERS}") == ["It is a circle."]
        change(window, start="1s", end="0:01.5", frames="2")
        window.wait(f"{ABOUT}.endsWith('sees 2 frames of 1s to 0:01.5')")
        assert "0:01, 0:01" in window.run("at('sheet').alt") and window.run(ANSWERS) == []
        for start, words in (
            ("x", "Not a time: 'x'. Write seconds (90"),
            ("2", "must come after"),
            ("9", "is past the"),
        ):
            change(window, start=start, end="" if start == "9" else "1.5")
            window.wait(f"{ERROR}.includes({json.dumps(words)})")
            assert "URL" not in window.run(ERROR) and "--" not in window.run(ERROR)
        change(window, start="", fit="crop")
        window.wait(f"{ERROR} === ''")


def test_choices_are_shown_with_their_probabilities(window: Browser, served: Served, clip: Path) -> None:
    window.visit(f"{served.url}/")
    window.choose("#file", clip)
    window.wait(SHOWN)
    window.run("(at('choices').value = 'circle', ask('What shape is it?'), 1)")
    assert window.wait(ERROR) == "Write two or more choices, with commas between them."
    window.run("(at('choices').value = 'square, circle', ask('What shape is it?'), 1)")
    window.wait("Boolean(document.querySelector('.scores'))")
    first, second = window.run("[...document.querySelectorAll('.scores span')].map(s => s.textContent)")
    likely, unlikely = window.run("[...document.querySelectorAll('.scores meter')].map(m => m.value)")
    assert window.run(f"{ANSWERS}[0]") == first == "circle" and second == "square"
    assert likely > unlikely and abs(likely + unlikely - 1) < 1e-6 and window.run(ERROR) == ""


@pytest.mark.parametrize(
    ("status", "error", "words"),
    [
        (400, {"message": "the prompt has 9 tokens", "code": "context_length_exceeded"}, "too long for the model"),
        (503, {"message": "CUDA out of memory", "code": "out_of_memory"}, "too little memory"),
        (429, {"message": "9 requests are already waiting"}, "The server is busy"),
        (413, {"message": "the request is larger than 1 bytes"}, "too large for this server"),
        (401, {"message": "an API key is required: Authorization: Bearer KEY"}, "asks for a key"),
        (403, {"message": "the Host header names another machine"}, "open this page at 127.0.0.1"),
        (500, {"message": "internal server error"}, "Its terminal says why"),
        (503, {"message": "the server is closing", "hint": "try later"}, "The server is closing. Try later."),
        (
            400,
            {"message": "messages[0].content[0]: the data: URL: not a video", "code": "invalid_media"},
            "Not a video.",
        ),
        (502, None, "The server answered with status 502."),
    ],
)
def test_errors_are_told_in_the_words_of_the_page(
    window: Browser, served: Served, status: int, error: dict[str, str] | None, words: str
) -> None:
    if not window.run("typeof inWords === 'function'"):
        window.visit(f"{served.url}/")
    told = window.run(f"inWords({status}, {json.dumps(error)})")
    assert words in told and "API" not in told and "--" not in told and "messages[" not in told


def test_a_file_that_is_too_large_is_not_sent(window: Browser, model: Model, tmp_path: Path) -> None:
    with serving(model, body_reader=BodyReader(2**20)) as served:
        window.visit(f"{served.url}/")
        window.wait("document.getElementById('model').textContent === 'demo'")
        (tmp_path / "large.mp4").write_bytes(bytes(2**20))
        window.choose("#file", tmp_path / "large.mp4")
        assert window.wait(ERROR) == "The file has 1.0 MiB. This server takes up to 0.7 MiB."


def test_a_file_that_is_not_a_video_is_reported(window: Browser, served: Served, tmp_path: Path) -> None:
    window.visit(f"{served.url}/")
    path = tmp_path / "<img src=x onerror=alert(1)>.mp4"
    path.write_bytes(b"no video")
    window.choose("#file", path)
    assert window.wait(ERROR).startswith("Not a video or a picture, or its header is broken or missing")
    assert window.run("document.getElementById('ask').disabled")
    assert window.run("document.querySelectorAll('main img').length") == 1


def test_the_page_asks_for_the_api_key(window: Browser, model: Model) -> None:
    with serving(model, auth=Auth(api_key="sesame")) as served:
        window.visit(f"{served.url}/")
        window.wait("!document.getElementById('locked').hidden")
        assert window.run(ERROR) == "This server asks for a key."
        window.run("at('key').focus()")
        window.type("guess" + KEYS["enter"])
        window.wait(f"{ERROR} === 'The key is wrong.'")
        window.run("at('key').select()")
        window.type("sesame" + KEYS["enter"])
        window.wait("document.getElementById('model').textContent === 'demo'")
        assert window.run("document.getElementById('locked').hidden") and window.run(ERROR) == ""


def test_the_page_fits_a_phone(window: Browser, tmp_path: Path, served: Served) -> None:
    clip = tmp_path / ("a long name " * 12 + ".mp4")
    write_clip(clip, scene())
    window.logged()  # what came before
    with window.emulating(360, 700):
        window.visit(f"{served.url}/")
        window.choose("#file", clip)
        window.wait(SHOWN)
        window.run("ask('Describe the video.')")
        window.wait(f"{ANSWERS}.length === 1")
        assert window.run("innerWidth") == 360 and window.run("document.documentElement.scrollWidth <= innerWidth")
        buttons = "[...document.querySelectorAll('button')]"
        assert window.run(f"{buttons}.every(b => !b.offsetParent || b.offsetHeight >= 44)")
        assert window.logged() == []


class _App(BaseHTTPRequestHandler):
    """A web page of another origin."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/html")
        self.end_headers()
        self.wfile.write(b"<!doctype html><link rel=icon href='data:,'><title>app</title>")

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def another_page() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _App) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join(20)


def test_only_a_page_that_is_allowed_can_use_the_server(window: Browser, model: Model, clip: Path) -> None:
    body = json.dumps(json.dumps({"messages": [message("What shape is it?", data_url(clip))]}))
    head = '{"Content-Type": "application/json", Authorization: "Bearer sesame", "X-Stainless-Lang": "js"}'
    ask = (
        "(window.got = '', fetch('%s/v1/chat/completions', {method: 'POST', headers: " + head + ", body: " + body + "})"
        ".then(reply => reply.json()).then(v => { got = v; }, error => { got = String(error); }), 1)"
    )
    with another_page() as origin, another_page() as other, serving(model, auth=Auth("sesame", {origin})) as served:
        window.visit(f"{origin}/")
        window.run(ask.replace("%s", served.url))
        answer = window.wait("window.got")
        assert answer["choices"][0]["message"]["content"] == "It is a circle."
        window.run(ask.replace("%s", served.url).replace("sesame", "guess"))
        assert window.wait("window.got")["error"]["message"] == "the API key is wrong"
        window.visit(f"{other}/")
        window.run(ask.replace("%s", served.url))
        assert "Failed to fetch" in window.wait("window.got")
        assert served.send("GET", "/v1/models", headers={"Origin": other, "Authorization": "Bearer sesame"})[0] == 403
        window.logged()  # that the last request was refused


def test_no_page_is_allowed_by_default(served: Served) -> None:
    ask_first = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    status, headers, _ = served.send("OPTIONS", "/v1/chat/completions", headers=ask_first)
    assert status == 405 and not any(name.startswith("access-control") for name in headers)
    status, headers, _ = served.send("GET", "/health", headers={"Origin": "https://app.example"})
    assert status == 200 and not any(name.startswith("access-control") for name in headers)
