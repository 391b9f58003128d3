"""A stand-in for the hub: the part of its HTTP API that downloads use, served from a folder on loopback."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".bin", "tokenizer.model")  # what the real one keeps in its large storage


@dataclass
class Faults:
    """What goes wrong; may be changed while the hub runs.

    `status` answers every request, `listing_status` those for the names of the files. `cut_after` ends each connection
    that sends a large file after so many bytes, the next `cuts` times. `wrong` are names whose content isn't what their
    checksums say; `rate` is in bytes a second. `claims` are sizes that its listing gives for names, whatever they have.
    """

    status: int | None = None
    listing_status: int | None = None
    cut_after: int = 0
    cuts: int = 0
    wrong: set[str] = field(default_factory=set)
    rate: float | None = None
    ranges: bool = True
    claims: dict[str, int] = field(default_factory=dict)


@dataclass
class Hub:
    """A running hub: its address, the paths that were asked for, and the bytes of large files that it sent."""

    address: str
    asked: list[str]
    faults: Faults
    sent: list[int]
    commit: str = COMMIT  # what `main` stands for


def use_hub(patch: pytest.MonkeyPatch, address: str, cache: Path, offline: bool = False) -> None:
    """Have this process ask the hub at an address, without a proxy, and use a cache of the test's own.

    huggingface_hub reads its settings when it is imported.
    """
    from huggingface_hub import constants

    for name in ("http_proxy", "https_proxy", "all_proxy"):
        patch.delenv(name, raising=False)
        patch.delenv(name.upper(), raising=False)
    patch.setattr(constants, "HF_HUB_OFFLINE", offline)
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "ENDPOINT", address)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")


@contextmanager
def running_hub(models: dict[str, Path], faults: Faults | None = None) -> Iterator[Hub]:
    """Serve checkpoints by their ids."""
    told = Hub("", [], faults or Faults(), [])

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def log_message(self, *_: Any) -> None:
            pass

        def _answer(self, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            told.asked.append(path)
            if (status := told.faults.status) is not None:
                code = {401: "GatedRepo", 404: "RepoNotFound"}.get(status, "")
                return self._send(status, b"{}", {"X-Error-Code": code}, body)
            for name, folder in models.items():
                for revision in ("main", told.commit):
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
            if told.faults.listing_status is not None:
                self._send(told.faults.listing_status, b"{}", {}, body)
                return
            entries: list[dict[str, Any]] = []
            for path in sorted(path for path in folder.rglob("*") if path.is_file()):
                content, name = path.read_bytes(), path.relative_to(folder).as_posix()
                large = {
                    "size": told.faults.claims.get(name, len(content)),
                    "sha256": _sha256(content),
                    "pointerSize": 130,
                }
                if tree:
                    entry = {"type": "file", "path": name, "size": len(content), "oid": _git_sha1(content)}
                    large["oid"] = large.pop("sha256")
                else:
                    entry = {"rfilename": name, "size": len(content), "blobId": _git_sha1(content)}
                entries.append(entry | ({"lfs": large} if name.endswith(LARGE) else {}))
            value = entries if tree else {"id": "x/y", "sha": told.commit, "siblings": entries}
            self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"}, body)

        def _file(self, path: Path, body: bool) -> None:
            if not path.is_file():
                return self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"}, body)
            content = path.read_bytes()
            large = path.name.endswith(LARGE)
            headers = {"ETag": f'"{_sha256(content) if large else _git_sha1(content)}"', "X-Repo-Commit": told.commit}
            if path.name in told.faults.wrong:
                content = bytes(255 - byte for byte in content[:1]) + content[1:]
            wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
            if wanted and told.faults.ranges:
                start = int(wanted[1])
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
                return self._send(206, content[start:], headers, body, large)
            self._send(200, content, headers, body, large)

        def _send(self, code: int, content: bytes, headers: dict[str, str], body: bool, large: bool = False) -> None:
            self.send_response(code)
            for key, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(key, value)
            self.end_headers()
            if not body:
                return
            if large and told.faults.cuts > 0 and len(content) > told.faults.cut_after:
                told.faults.cuts -= 1
                content = content[: told.faults.cut_after]
                self.close_connection = True
            step = max(1, int(told.faults.rate / 50)) if told.faults.rate else 2**20
            for begin in range(0, len(content), step):
                if told.faults.rate and large:
                    time.sleep(0.02)
                try:
                    self.wfile.write(content[begin : begin + step])
                except OSError:  # the client went away
                    self.close_connection = True
                    return
                if large:
                    told.sent.append(len(content[begin : begin + step]))

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    told.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield told
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def hub(models: dict[str, Path], status: int | None = None) -> Iterator[tuple[str, list[str]]]:
    """Serve checkpoints by their ids; yields the address and the paths that were asked for.

    With `status`, every request is answered with that HTTP status.
    """
    with running_hub(models, Faults(status=status)) as told:
        yield told.address, told.asked


@cache
def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@cache
def _git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
