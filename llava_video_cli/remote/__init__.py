"""Models of OpenAI-compatible servers: opened by their addresses, or found running on this machine.

Modules that need httpx2 are imported late. A server of this user announces itself by a locked file in the runtime
folder.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from ipaddress import ip_address
from stat import S_IFREG
from typing import TYPE_CHECKING

from ..errors import ServerError, nearest
from ..system.files import runtime_folder

if TYPE_CHECKING:
    from ..model import Send
    from .client import Endpoint
    from .engines import ServedModel
    from .remote_model import RemoteModel


def open_remote(
    urls: Sequence[str], model: str | None = None, *, send: Send = "frames", key: str | None = None
) -> RemoteModel:
    """Return the model of that name on OpenAI-compatible servers; without a name, the first one that they list.

    All `urls` are asked for their models. A server that can't be reached is named in the model's `notes`. `send` says
    what a server gets of a video: the chosen frames, or the whole file. `key` is the API key. Raises `UsageError` for
    an invalid URL, `ServerError` if no server can be reached, or if one does not have the model.
    """
    from concurrent.futures import ThreadPoolExecutor

    from .client import Endpoint, UnreachableError
    from .remote_model import RemoteModel

    endpoints = [Endpoint(url, key) for url in dict.fromkeys(urls)]
    servers: list[tuple[Endpoint, ServedModel]] = []
    problems: list[UnreachableError] = []
    with ThreadPoolExecutor(len(endpoints), thread_name_prefix="llvid-models") as pool:
        searches = [pool.submit(_find_model, endpoint, model, patient=len(endpoints) == 1) for endpoint in endpoints]
        for endpoint, search in zip(endpoints, searches, strict=True):
            try:
                servers.append((endpoint, search.result()))
            except UnreachableError as error:
                problems.append(error)
    if not servers:
        raise problems[0]
    models = {served.model: endpoint.name for endpoint, served in reversed(servers)}
    if len(models) > 1:
        listed = " and ".join(f"{name} at {url}" for name, url in sorted(models.items()))
        raise ServerError(f"the servers have different models: {listed}", "choose one with -m")
    return RemoteModel(servers, send, [str(problem) for problem in problems])


def _find_model(endpoint: Endpoint, model: str | None, *, patient: bool) -> ServedModel:
    from .engines import served_models

    served = served_models(*endpoint.models(patient=patient))
    if not served:
        raise ServerError(f"{endpoint.name} lists no model")
    if model is None:
        return served[0]
    for each in served:
        if each.model == model:
            return each
    names = [each.model for each in served]
    hint = nearest(model, names) or f"it has {', '.join(names[:5])}: name one with -m, or leave -m out"
    raise ServerError(f"{endpoint.name} does not have the model {model}", hint)


def announce(url: str, model: str) -> AbstractContextManager[object]:
    """Announce a server until the returned object is closed or the process ends; without file locks, do nothing."""
    with suppress(OSError, ValueError, ImportError):
        import fcntl

        path = runtime_folder() / f"{os.getpid()}.new"
        path.touch(0o600)
        file = path.open("w")
        fcntl.flock(file, fcntl.LOCK_EX)
        print(url, model, sep="\n", end="", file=file, flush=True)
        path.replace(path.with_suffix(".server"))
        return file
    return nullcontext()


def announced(model: str) -> str | None:
    """Return the URL of a running server of this user that has the model, or None."""
    with suppress(OSError, ValueError, ImportError):
        import fcntl

        for path in runtime_folder().glob("*.server"):
            with suppress(OSError, ValueError):  # one that can't be read, or is gone, hides no other
                if path.lstat().st_mode == S_IFREG | 0o600:  # not a link or a pipe, and not readable by others
                    with path.open() as file:
                        try:
                            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                            path.unlink()  # the lock is free: its server has ended
                        except BlockingIOError:
                            url, _, name = file.read().partition("\n")
                            if name == model and url.startswith("http://"):
                                return url
    return None


def is_loopback(host: str) -> bool:
    """Whether a host name or address means this machine itself."""
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host.lower().rstrip(".") == "localhost"
