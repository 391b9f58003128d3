"""`llvid serve`: the model stays loaded, behind an OpenAI-compatible HTTP API."""

from __future__ import annotations

import secrets
import signal
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import typer

from ..errors import MissingExtraError, UsageError
from ..remote import announce, is_loopback
from ..server import GRACE_SECONDS, MAX_BODY_BYTES, MAX_REQUESTS, PORT
from ..system.background import LOADING, Background
from . import console
from .download import prefetch
from .options import FrameFlags, ModelFlags, PresetFlag, QuietFlag, TextFlags, flag
from .settings import settle

_EXIT_TERMINATED = 143
_CONVERSATIONS = 16  # whose KV caches are kept if there is enough memory
HELP = """Serve a loaded model over HTTP with an OpenAI-compatible API.

POST /v1/chat/completions and /v1/responses (streamed or not, with video_url and image_url), GET
/v1/models, /health, /metrics. Requests are answered at the same time. The frame and text options are the defaults for
requests that do not set them.

Examples:

    llvid serve

    llvid serve -m demo --port 9000 --allow-media-dir ~/videos

    LLVID_API_KEY=secret llvid serve --host 0.0.0.0

    llvid serve --allow-origin http://localhost:3000
"""
_own = partial(flag, None)


@dataclass(frozen=True)
class ServeFlags:
    """Where the server listens, for whom, and its bounds."""

    host: str = _own(
        "Address to listen on. If other machines can reach it, an API key is required.",
        default="127.0.0.1",
        metavar="HOST",
    )
    port: int = _own("Port to listen on; 0 picks a free one.", default=PORT, min=0, max=65535, metavar="N")
    api_key: str | None = _own(
        "Answer only clients that send this key. LLVID_API_KEY is safer: other users can see the command line.",
        envvar="LLVID_API_KEY",
        metavar="KEY",
    )
    allow_media_dir: list[Path] | None = _own("Folder from which file: URLs may be read; repeatable.", metavar="DIR")
    allow_media_host: list[str] | None = _own(
        "Host from which http: and https: URLs may be fetched: HOST or HOST:PORT; repeatable.", metavar="HOST"
    )
    allow_origin: list[str] | None = _own(
        "Web page that may use the server from a browser, such as http://localhost:3000; repeatable.",
        metavar="ORIGIN",
    )
    max_queue: int = _own(
        "Requests that may wait or be answered at the same time; further ones get status 429.",
        default=MAX_REQUESTS,
        min=1,
        metavar="N",
    )
    max_batch: int | None = _own(
        "Requests that are answered at the same time [default: as many as fit in memory].", min=1, metavar="N"
    )
    max_request_bytes: int = _own(
        "Largest request, in bytes, with its data: URLs.", default=MAX_BODY_BYTES, min=1024, metavar="N"
    )
    grace: float = _own(
        "When the server is stopped, wait this long for running answers.",
        default=GRACE_SECONDS,
        min=0,
        metavar="SECONDS",
    )
    served_model_name: list[str] | None = _own(
        "Name that clients use for the model, instead of that of --model; repeatable. Answers have the first one.",
        metavar="NAME",
    )
    log: bool = _own("Write a line to stderr for each request.", "--log", default=False)


def serve(
    *, own: ServeFlags, model: ModelFlags, frames: FrameFlags, text: TextFlags, preset: PresetFlag, output: QuietFlag
) -> None:
    """Load the model and answer until Ctrl-C or SIGTERM."""
    settings = settle(preset, model, frames, text)
    loading = replace(  # a client's first schema should not stop the others' answers
        settings.loading, conversations=_CONVERSATIONS, constrained=find_spec("llguidance") is not None
    )
    settings = replace(settings, loading=loading)
    for path in own.allow_media_dir or ():
        if not path.is_dir():
            raise UsageError(f"--allow-media-dir: {path} is not a folder")
    try:
        from ..server.auth import Auth, checked_origin
        from ..server.connections import max_connections
        from ..server.serve import bind, url_of
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        raise MissingExtraError(f"llvid serve needs the extra 'serve' ({package} is missing)", "serve") from None
    key = own.api_key
    if key is not None and not (key.isascii() and key.isprintable() and key.strip() == key != ""):
        raise UsageError("an API key must be printable ASCII, without spaces at its ends")
    if key is None and not is_loopback(own.host):
        variable = f"LLVID_API_KEY={secrets.token_hex(16)}"
        raise UsageError(
            f"other machines can reach the server on {own.host}: it needs an API key",
            f"type `{variable} llvid serve --host {own.host}`; in a container: "
            f"`docker run -e {variable} -p {own.port}:{own.port} IMAGE serve --host {own.host}`",
        )
    auth = Auth(key, frozenset(map(checked_origin, own.allow_origin or ())))
    max_requests = min(own.max_queue, max_connections() // 2)
    if max_requests < own.max_queue:
        output.note(f"at most {max_requests} requests wait or are answered at a time: see `ulimit -n`")
    bound = bind(own.host, own.port)  # before the model is loaded: an address in use is reported at once

    from ..server.app import app
    from ..server.media import MediaSources
    from ..server.requests import BodyReader
    from ..server.serve import Server, open_service

    with console.progress(output.quiet) as progress:
        prefetch(settings, progress, quiet=output.quiet)
        progress.say(f"loading {settings.model}")
        loaded = Background(LOADING, settings.open).result()
        output.note(*loaded.notes)

        service = open_service(
            loaded,
            settings.preset,
            auth,
            BodyReader(own.max_request_bytes),
            MediaSources([path.absolute() for path in own.allow_media_dir or ()], own.allow_media_host or ()),
            max_requests=max_requests,
            max_batch=own.max_batch,
            names=own.served_model_name or (),
            log=console.note if own.log else None,
        )
    url = url_of(bound)

    def ready() -> None:
        output.note(f"{settings.model} answers at {url}/v1, and in a browser at {url}; Ctrl-C stops the server")

    signal.signal(signal.SIGTERM, _leave)  # uvicorn raises it again at the end
    with announce(url, service.names[0]):
        Server(app(service), service, bound, ready, own.grace).serve_until_stopped()


def _leave(*_: object) -> NoReturn:
    raise typer.Exit(_EXIT_TERMINATED)
