"""`llvid serve`: the model stays loaded, behind an OpenAI-compatible HTTP API."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import LlvidError, UsageError
from . import console
from .background import LOADING, Background
from .download import prefetch
from .options import FrameFlags, ModelFlags, PresetFlag, QuietFlag, TextFlags, takes
from .settings import settle

if TYPE_CHECKING:
    from ..server.serve import Seen

PORT = 8377
_CONVERSATIONS = 8  # whose last prompts are kept, as far as the memory goes
_EXAMPLES = """
Examples:

    llvid serve

    llvid serve -m demo --port 9000 --allow-media-dir ~/videos

    LLVID_API_KEY=secret llvid serve --host 0.0.0.0
"""


def add_to(app: typer.Typer) -> None:
    """Add the command to the app."""
    about = (
        "Keep a model loaded and answer over HTTP, as OpenAI's API does.\n\n"
        "POST /v1/chat/completions (streamed or not, with video_url and image_url), GET /v1/models, /health, /metrics. "
        "Requests that wait are answered together. The frame and text options are the defaults of requests that say "
        "nothing else.\n"
    )
    app.command("serve", help=about + _EXAMPLES)(serve)


@takes(model=ModelFlags, frames=FrameFlags, text=TextFlags, preset=PresetFlag, output=QuietFlag)
def serve(
    *,
    host: Annotated[
        str, typer.Option("--host", metavar="HOST", help="Address to listen on; only this machine's own needs no key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, metavar="N", help="0 takes a free one.")] = PORT,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key", envvar="LLVID_API_KEY", metavar="KEY", show_default=False,
            help="Answer only those who send it; rather by the environment, as others see a command line.",
        ),
    ] = None,
    allow_media_dir: Annotated[
        list[Path] | None,
        typer.Option(
            "--allow-media-dir", metavar="DIR", show_default=False,
            help="Folder that file: URLs may name files in; repeatable.",
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
        int, typer.Option("--max-queue", min=1, metavar="N", help="Requests inside at a time; more are told to wait.")
    ] = 256,
    max_batch: Annotated[
        int | None,
        typer.Option(
            "--max-batch", min=1, metavar="N", show_default=False,
            help="Requests answered together [default: what the memory has room for].",
        ),
    ] = None,
    max_request_bytes: Annotated[
        int, typer.Option("--max-request-bytes", min=1024, metavar="N", help="Largest request, data: URLs included.")
    ] = 64 * 2**20,
    grace: Annotated[
        float,
        typer.Option("--grace", min=0, metavar="SECONDS", help="How long running answers are finished at the end."),
    ] = 30.0,
    log: Annotated[bool, typer.Option("--log", help="A line on stderr for each request.")] = False,
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
        from ..server.auth import Guard, is_loopback
        from ..server.serve import bind, url_of
    except ModuleNotFoundError as error:
        raise LlvidError(
            f"llvid serve needs the extra 'serve' ({error.name} is missing)", "pip install 'llava-video-cli[serve]'"
        ) from None
    if api_key is not None and not (api_key.isascii() and api_key.isprintable() and api_key.strip() == api_key != ""):
        raise UsageError("an API key must be printable ASCII without spaces around it")
    if api_key is None and not is_loopback(host):
        raise UsageError(
            f"on {host} others can reach the server: it needs an API key", "set LLVID_API_KEY, or leave --host out"
        )
    bound = bind(host, port)  # before the model, which takes its time

    from ..remote.discovery import announce
    from ..server.media import Places
    from ..server.serve import Server, open_service

    with console.progress(output.quiet) as progress:
        prefetch(settings, progress, quiet=output.quiet)
        progress.say(f"loading {settings.model}")
        loaded = Background(LOADING, settings.open).result()
        for line in loaded.notes if not output.quiet else ():
            console.note(line)

        from ..inference.families.llava_next_video import LlavaVideo

        service = open_service(
            loaded,
            settings.preset,
            Guard(api_key, max_request_bytes),
            Places(folders, allow_media_host or ()),
            express=loaded.beside() if isinstance(loaded, LlavaVideo) else None,
            most_inside=max_queue,
            most_together=max_batch,
            log=_log if log else None,
        )
    url = url_of(bound)

    def ready() -> None:
        if not output.quiet:
            console.note(f"{settings.model} answers at {url}/v1, and to a browser at {url}; Ctrl-C ends it")

    from ..server.app import app

    signal.signal(signal.SIGTERM, _ended)  # uvicorn raises it again at the end
    with announce(url, loaded.name):
        Server(app(service), service.desk, bound, ready, grace).serve_until_stopped()


def _ended(*_: object) -> None:
    """SIGTERM is how a server is ended: nothing has failed."""


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise UsageError(f"--allow-media-dir: {path} is no folder")
    return path.absolute()


def _log(seen: Seen) -> None:
    console.note(f"{seen.client} {seen.method} {seen.path} {seen.status} {seen.seconds:.2f}s")
