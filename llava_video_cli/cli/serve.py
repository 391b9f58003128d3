"""`llvid serve`: the model stays loaded, behind an OpenAI-compatible HTTP API."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ..errors import LlvidError, UsageError
from ..server import GRACE_SECONDS, MAX_BODY_BYTES, MAX_REQUESTS, PORT
from ..system.background import LOADING, Background
from . import console
from .download import prefetch
from .options import FrameFlags, ModelFlags, PresetFlag, QuietFlag, TextFlags
from .settings import settle

_CONVERSATIONS = 8  # whose KV caches stay, if the memory suffices
HELP = """Keep a model loaded and answer over HTTP, as OpenAI's API does.

POST /v1/chat/completions (streamed or not, with video_url and image_url), GET /v1/models, /health,
/metrics. Waiting requests are answered together. The frame and text options are the defaults for requests
that do not set them.

Examples:

    llvid serve

    llvid serve -m demo --port 9000 --allow-media-dir ~/videos

    LLVID_API_KEY=secret llvid serve --host 0.0.0.0
"""


def serve(
    *,
    host: Annotated[
        str,
        typer.Option(
            "--host", metavar="HOST", help="Address to listen on. One that other machines can reach needs an API key."
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, metavar="N", help="Port to listen on; 0 picks a free one.")
    ] = PORT,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key", envvar="LLVID_API_KEY", metavar="KEY", show_default=False,
            help="Answer only clients that send this key. Better set LLVID_API_KEY: others can see a command line.",
        ),
    ] = None,
    allow_media_dir: Annotated[
        list[Path] | None,
        typer.Option(
            "--allow-media-dir", metavar="DIR", show_default=False,
            help="Folder with files that file: URLs may name; repeatable.",
        ),
    ] = None,
    allow_media_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-media-host", metavar="HOST", show_default=False,
            help="Host that http: and https: URLs may be fetched from, HOST or HOST:PORT; repeatable.",
        ),
    ] = None,
    max_queue: Annotated[
        int,
        typer.Option(
            "--max-queue", min=1, metavar="N", help="Requests that may wait or be answered at a time; others get 429."
        ),
    ] = MAX_REQUESTS,
    max_batch: Annotated[
        int | None,
        typer.Option(
            "--max-batch", min=1, metavar="N", show_default=False,
            help="Requests answered in one batch [default: as many as the memory has room for].",
        ),
    ] = None,
    max_request_bytes: Annotated[
        int, typer.Option("--max-request-bytes", min=1024, metavar="N", help="Largest request, data: URLs included.")
    ] = MAX_BODY_BYTES,
    grace: Annotated[
        float,
        typer.Option(
            "--grace", min=0, metavar="SECONDS", help="How long running answers may go on when the server is stopped."
        ),
    ] = GRACE_SECONDS,
    log: Annotated[bool, typer.Option("--log", help="Write a line to stderr for each request.")] = False,
    model: ModelFlags,
    frames: FrameFlags,
    text: TextFlags,
    preset: PresetFlag,
    output: QuietFlag,
) -> None:  # fmt: skip
    """Load the model and answer until Ctrl-C or SIGTERM."""
    settings = settle(preset, model, frames, text)
    settings = replace(settings, loading=replace(settings.loading, conversations=_CONVERSATIONS))
    folders = [_folder(path) for path in allow_media_dir or ()]
    try:
        from ..server.auth import Auth, is_loopback
        from ..server.serve import bind, url_of
    except ModuleNotFoundError as error:
        raise LlvidError(
            f"llvid serve needs the extra 'serve' ({error.name} is missing)", "pip install 'llava-video-cli[serve]'"
        ) from None
    if api_key is not None and not (api_key.isascii() and api_key.isprintable() and api_key.strip() == api_key != ""):
        raise UsageError("an API key must be printable ASCII without spaces around it")
    if api_key is None and not is_loopback(host):
        raise UsageError(
            f"other machines can reach the server on {host}: it needs an API key",
            "set LLVID_API_KEY, or leave --host out",
        )
    bound = bind(host, port)  # before the model is loaded: an address in use is reported at once

    from ..remote.discovery import announce
    from ..server.app import app
    from ..server.media import MediaSources
    from ..server.requests import BodyReader
    from ..server.serve import Server, open_service

    with console.progress(output.quiet) as progress:
        prefetch(settings, progress, quiet=output.quiet)
        progress.say(f"loading {settings.model}")
        loaded = Background(LOADING, settings.open).result()
        for line in loaded.notes if not output.quiet else ():
            console.note(line)

        from ..inference.families.llava_next_video import LlavaVideo

        assert isinstance(loaded, LlavaVideo)  # there is no --server here
        service = open_service(
            loaded,
            settings.preset,
            Auth(api_key),
            BodyReader(max_request_bytes),
            MediaSources(folders, allow_media_host or ()),
            second_model=loaded.with_shared_weights(),
            max_requests=max_queue,
            max_batch=max_batch,
            log=console.note if log else None,
        )
    url = url_of(bound)

    def ready() -> None:
        if not output.quiet:
            console.note(f"{settings.model} answers at {url}/v1, and in a browser at {url}; Ctrl-C stops the server")

    signal.signal(signal.SIGTERM, _stopped)  # uvicorn raises it again at the end
    with announce(url, loaded.name):
        Server(app(service), service.scheduler, bound, ready, grace).serve_until_stopped()


def _stopped(*_: object) -> None:
    """Do nothing: SIGTERM is the usual way to stop a server, and no failure."""


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise UsageError(f"--allow-media-dir: {path} is not a folder")
    return path.absolute()
