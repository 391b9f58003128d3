"""The servers for broken requests, with a folder they may read, a secret file outside it, and a malicious host."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from serving import Served, serving
from terminal import scene

from llava_video_cli import Model
from llava_video_cli.demo.world import write_clip
from llava_video_cli.server.auth import Auth
from llava_video_cli.server.media import MediaSources
from llava_video_cli.server.requests import BodyReader

KEY = "right-key"
MAX_BODY_BYTES = 2**20
SLOW_SECONDS = 0.4  # that a head or a body may take here
_ANSWER_SECONDS = 30.0


@dataclass(frozen=True)
class Case:
    """A request as bytes, sent in pieces; the right statuses, and whether closing without one is right, too."""

    name: str
    pieces: Sequence[bytes]
    statuses: Sequence[int] = (400,)
    may_close: bool = False
    key: bool = False
    pause_seconds: float = 0.0


@dataclass(frozen=True)
class Grounds:
    """Two servers, one with a key, the folder that they may read, a good clip in it, and a host to fetch from."""

    open: Served
    locked: Served
    allowed: Path
    clip: Path
    secret: Path
    malicious_port: int

    def send(self, case: Case) -> int | None:
        """Send a case; return the status, or None where the connection was closed without one."""
        port = (self.locked if case.key else self.open).port
        with socket.create_connection(("127.0.0.1", port), timeout=_ANSWER_SECONDS) as connection:
            for piece in case.pieces:
                try:
                    connection.sendall(piece)
                except OSError:  # refused before its end: the status that was sent counts
                    break
                time.sleep(case.pause_seconds)
            head = b""
            with suppress(ConnectionError):
                while b"\r\n" not in head and (more := connection.recv(65536)):
                    head += more
        return int(head.split()[1]) if head.startswith(b"HTTP/1.1 ") else None

    def check(self, case: Case) -> str | None:
        """Send a case; return what is wrong with the response, or None."""
        status = self.send(case)
        right = status in case.statuses or (status is None and case.may_close)
        return None if right else f"{case.name}: {status}, not {list(case.statuses)}"

    def answers(self) -> bool:
        """Whether a good request is answered."""
        return self.open.answer(self.clip.as_uri()) == "It is a circle."


@contextmanager
def grounds(model: Model, folder: Path) -> Iterator[Grounds]:
    """Start the servers, with a secret file outside the folder that they may read."""
    allowed, secrets = folder / "allowed", folder / "secret"
    allowed.mkdir()
    secrets.mkdir()
    clip, secret = allowed / "circle.mp4", secrets / "square.mp4"
    write_clip(clip, scene())
    write_clip(secret, scene(shape="square"))
    (allowed / "link.mp4").symlink_to(secret)
    (allowed / "folder").symlink_to(secrets)
    (allowed / "circle").symlink_to("circle")
    (allowed / "empty.mp4").touch()
    os.mkfifo(allowed / "pipe")
    with _malicious_host() as port:
        sources = MediaSources([allowed], [f"localhost:{port}", "allowed.invalid"], max_bytes=2**20, fetch_seconds=0.6)
        bounds = (MAX_BODY_BYTES, SLOW_SECONDS)
        with (
            serving(model, None, Auth(), BodyReader(*bounds), sources, SLOW_SECONDS) as opened,
            serving(model, None, Auth(KEY), BodyReader(*bounds), sources, SLOW_SECONDS) as locked,
        ):
            yield Grounds(opened, locked, allowed, clip, secret, port)


@contextmanager
def _malicious_host() -> Iterator[int]:
    """Serve what an allowed host could send to do harm."""

    class Answers(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            locations = {
                "/elsewhere": "http://169.254.169.254/latest", "/file": "file:///etc/passwd", "/round": "/round",
            }  # fmt: skip
            if self.path in locations:
                self.send_response(302)
                self.send_header("Location", locations[self.path])
                self.end_headers()
            elif self.path == "/much":
                self._pour(b"\0" * 65536, 0.0)
            elif self.path == "/drops":
                self._pour(b"\0", 0.1)
            elif self.path == "/noise":
                self.wfile.write(os.urandom(100) + b"\r\n\r\n")
            else:
                self.send_error(404)

        def _pour(self, piece: bytes, pause_seconds: float) -> None:
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):
                for _ in range(100):
                    self.wfile.write(piece)
                    time.sleep(pause_seconds)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
