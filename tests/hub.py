"""A stand-in for the hub: the part of its HTTP API that downloads use, served from a folder on loopback."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub(models: dict[str, Path], status: int | None = None) -> Iterator[tuple[str, list[str]]]:
    """Serve checkpoints by their ids; yields the address and the paths that were asked for.

    With `status`, every request is answered with that HTTP status.
    """
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def log_message(self, *_: Any) -> None:
            pass

        def _answer(self, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            asked.append(path)
            if status is not None:
                code = {401: "GatedRepo", 404: "RepoNotFound"}.get(status, "")
                return self._send(status, b"{}", {"X-Error-Code": code}, body)
            for name, folder in models.items():
                for revision in ("main", COMMIT):
                    if path.startswith(f"/{name}/resolve/{revision}/"):
                        return self._file(folder / path.split(f"/{revision}/", 1)[1], body)
                    if path.startswith(
                        (f"/api/models/{name}/revision/{revision}", f"/api/models/{name}/tree/{revision}")
                    ):
                        return self._listing(folder, "tree" in path.split("/")[5:6], body)
                if f"/{name}/" in path:
                    return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
            self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)

        def _listing(self, folder: Path, tree: bool, body: bool) -> None:
            files = sorted(path for path in folder.rglob("*") if path.is_file())
            names = [str(path.relative_to(folder)) for path in files]
            sizes = [path.stat().st_size for path in files]
            if tree:
                value: Any = [
                    {"type": "file", "path": name, "size": size, "oid": "0" * 40}
                    for name, size in zip(names, sizes, strict=True)
                ]
            else:
                value = {"id": "x/y", "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
            self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"}, body)

        def _file(self, path: Path, body: bool) -> None:
            if not path.is_file():
                return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"}, body)
            content = path.read_bytes()
            etag = hashlib.sha256(content).hexdigest()
            self._send(200, content, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}, body)

        def _send(self, code: int, content: bytes, headers: dict[str, str], body: bool) -> None:
            self.send_response(code)
            for key, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
