"""Running the server: the service with all its parts, the socket, and uvicorn, which stops without losing answers."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from ..conversation import Request, Turn
from ..errors import LlvidError
from ..model import Model
from ..preset import Preset, sampling_options
from ..video import Frames, VideoInfo
from ..video.sampling import Sampling
from . import GRACE_SECONDS, MAX_REQUESTS
from .auth import Auth
from .connections import ACCEPTED_TOGETHER, HEAD_SECONDS, Connection, Connections, log_seldom, max_connections
from .media import MediaCache, MediaSources, remove_leftovers
from .metrics import Metrics
from .requests import BodyReader
from .scheduler import Scheduler

_WAITING_CONNECTIONS = 1024  # that the system holds until they are accepted


@dataclass(frozen=True)
class Service:
    """What the app needs to answer: `preset` has the values that a request may leave out.

    `names` are those of the model, the first of which is in answers, and `model_values` its entries in `/v1/models`.
    `log` gets a line after each request.
    """

    model: Model
    preset: Preset
    auth: Auth
    body_reader: BodyReader
    media_cache: MediaCache
    scheduler: Scheduler
    metrics: Metrics
    names: Sequence[str]
    model_values: Sequence[Mapping[str, Any]]
    log: Callable[[str], None] | None = None


def open_service(
    model: Model,
    preset: Preset,
    auth: Auth | None = None,
    body_reader: BodyReader | None = None,
    sources: MediaSources | None = None,
    *,
    max_requests: int = MAX_REQUESTS,
    max_batch: int | None = None,
    names: Sequence[str] = (),
    log: Callable[[str], None] | None = None,
) -> Service:
    """Return a service around a loaded model; clients know it by `names`, or by its own name."""
    metrics, body_reader = Metrics(), body_reader or BodyReader()
    values = _model_values(model, preset, body_reader)
    remove_leftovers()
    return Service(
        model,
        preset,
        auth or Auth(),
        body_reader,
        MediaCache(sources or MediaSources(), model.shrink),
        Scheduler(model, metrics, max_requests, max_batch),
        metrics,
        names or (model.name,),
        [values | {"id": name} for name in names or (model.name,)],
        log,
    )


def _model_values(model: Model, preset: Preset, body_reader: BodyReader) -> dict[str, Any]:
    import numpy as np

    frame = Frames(np.zeros((1, 1, 1, 3), np.uint8), (0.0,), VideoInfo("", 1.0, 1, 1, None, "", 0), Sampling(1))
    budget = model.budget(Request((Turn("user", "?", (frame,)),)))
    return {
        "object": "model",
        "created": int(time.time()),
        "owned_by": "llvid",
        "max_model_len": budget.context_tokens,
        "llvid": {
            "version": version("llava-video-cli"),
            "settings": model.settings,
            "frame_tokens": budget.media_tokens[0],
            "frame_input": asdict(model.shrink.input),
            "defaults": {"prompt": preset.prompt, "sampling": sampling_options(preset.sampling)},
            "max_request_bytes": body_reader.max_bytes,
        },
    }


def bind(host: str, port: int) -> socket.socket:
    """Return a socket on an address; raises LlvidError if the address is in use, or not one of this machine."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise LlvidError(f"can't listen on {host}, port {port}: {reason}", "choose another port with --port") from None
    return bound


def url_of(bound: socket.socket) -> str:
    """Return the URL for clients on this machine."""
    host, port = bound.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


class Server(uvicorn.Server):
    """Serves an app on a socket until `should_exit`, then gives running answers `grace_seconds` to finish.

    `on_ready` is called as soon as the server accepts requests. `connections` is how many may be open.
    """

    def __init__(
        self,
        app: ASGIApp,
        service: Service,
        bound: socket.socket,
        on_ready: Callable[[], None],
        grace_seconds: float = GRACE_SECONDS,
        head_seconds: float = HEAD_SECONDS,
        connections: int | None = None,
    ) -> None:
        counted = Connections(max_connections() if connections is None else connections)
        super().__init__(
            uvicorn.Config(
                app,
                http=type("Counted", (Connection,), {"connections_of_server": counted, "head_seconds": head_seconds}),
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="critical",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=ACCEPTED_TOGETHER,
                timeout_graceful_shutdown=max(1, round(grace_seconds)),
            )
        )
        self._service, self._socket, self._on_ready = service, bound, on_ready

    def serve_until_stopped(self) -> None:
        """Run until `should_exit` is set."""
        self.run(sockets=[self._socket])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept requests."""
        asyncio.get_running_loop().set_exception_handler(log_seldom())
        await super().startup(sockets)
        self._socket.listen(_WAITING_CONNECTIONS)
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Start nothing more, and finish running answers."""
        self._service.scheduler.close()
        self._service.media_cache.close()
        await super().shutdown(sockets)
