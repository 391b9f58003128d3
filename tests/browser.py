"""A headless Chromium, driven over WebDriver with the standard library alone."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

KEYS = {
    "left": "\ue012",
    "right": "\ue014",
    "home": "\ue011",
    "end": "\ue010",
    "escape": "\ue00c",
    "tab": "\ue004",
    "enter": "\ue007",
}
_FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage",
]  # fmt: skip
_SIZE = {"width": 1440, "height": 900, "deviceScaleFactor": 1, "mobile": False}


class Browser:
    """One window."""

    def __init__(self, address: str) -> None:
        self.address = address

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        request = urllib.request.Request(self.address + path, method=method)
        data = None if method != "POST" else json.dumps(body or {}).encode()
        try:
            with urllib.request.urlopen(request, data, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:  # its body says what went wrong
            raise AssertionError(f"{method} {path}: {error.read().decode()[:600]}") from None

    def open(self, page: Path) -> None:
        self.visit(page.resolve().as_uri())

    def visit(self, url: str) -> None:
        self.call("POST", "/url", {"url": url})
        self.wait("document.readyState === 'complete'")  # on a busy machine chromedriver may answer before

    def choose(self, selector: str, path: Path) -> None:
        """Choose a file in an input."""
        element = self.call("POST", "/element", {"using": "css selector", "value": selector})
        self.call("POST", f"/element/{next(iter(element.values()))}/value", {"text": str(path)})

    def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression (as JSON: chromedriver takes no lone surrogates)."""
        text = self.call("POST", "/execute/sync", {"script": f"return JSON.stringify({script}) ?? 'null'", "args": []})
        return json.loads(text)

    def wait(self, script: str) -> Any:
        """Return the value of an expression once it is true."""
        deadline = time.monotonic() + 10
        while not (value := self.run(script)):
            assert time.monotonic() < deadline, f"never true: {script}"
            time.sleep(0.02)
        return value

    def type(self, text: str) -> None:
        """Press and release keys, one by one, where the focus is."""
        keys = [{"type": kind, "value": key} for key in text for kind in ("keyDown", "keyUp")]
        self.call("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": keys}]})

    @contextmanager
    def emulating(self, width: int, height: int, color_scheme: str = "light") -> Iterator[None]:
        """Show pages as a screen of that size would, whose user prefers that color scheme; go back at the end."""
        self.command("Emulation.setDeviceMetricsOverride", _SIZE | {"width": width, "height": height})
        features = [{"name": "prefers-color-scheme", "value": color_scheme}]
        self.command("Emulation.setEmulatedMedia", {"features": features})
        try:
            yield
        finally:
            self.command("Emulation.setEmulatedMedia", {"features": []})
            self.command("Emulation.setDeviceMetricsOverride", _SIZE)

    def command(self, name: str, values: dict[str, Any]) -> None:
        """Send a command of the DevTools protocol."""
        self.call("POST", "/goog/cdp/execute", {"cmd": name, "params": values})

    def save(self, picture: Path) -> None:
        picture.write_bytes(base64.b64decode(self.call("GET", "/screenshot")))

    def logged(self) -> list[str]:
        """What the page has written to the console, errors and violations of its policy included."""
        return [entry["message"] for entry in self.call("POST", "/se/log", {"type": "browser"})]


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Give a window; skip the test if there is no chromedriver."""
    driver = shutil.which("chromedriver")
    if driver is None:
        pytest.skip("chromedriver is not installed")
    process = subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        line = next((line for line in process.stdout if "successfully on port" in line), "")
        root = Browser(f"http://127.0.0.1:{line.rsplit(maxsplit=1)[-1].rstrip('.')}/session")
        options = {"args": [*_FLAGS, f"--user-data-dir={profile}"]}
        capabilities = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        session = root.call("POST", "", {"capabilities": {"alwaysMatch": capabilities}})["sessionId"]
        window = Browser(f"{root.address}/{session}")
        window.command("Emulation.setDeviceMetricsOverride", _SIZE)
        try:
            yield window
        finally:
            window.call("DELETE", "")
    finally:
        process.terminate()
        process.wait()
