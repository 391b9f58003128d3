"""Models behind OpenAI-compatible servers: the one place that opens them. What needs httpx2 is imported late."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import ServerError, nearest

if TYPE_CHECKING:
    from ..model import Send
    from .client import Endpoint
    from .engines import ServedModel
    from .remote_model import RemoteModel


def open_remote(
    urls: Sequence[str], model: str | None = None, *, send: Send = "frames", key: str | None = None
) -> RemoteModel:
    """Return the model of that name on OpenAI-compatible servers, or else the first one that they list.

    Each of the `urls` is asked for its list of models; a server that can't be reached becomes one of the model's
    `notes`. `send` is what a server gets of a video: the chosen frames, or the whole file. `key` is the API key.
    Raises `UsageError` for a URL that is not valid, `ServerError` if no server can be reached, or if one does not have
    the model.
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
        raise ServerError(f"the servers have different models: {listed}", "-m names the one to use")
    return RemoteModel(servers, send, [str(problem) for problem in problems])


def _find_model(endpoint: Endpoint, model: str | None, *, patient: bool) -> ServedModel:
    from .engines import served_models

    served = served_models(*endpoint.models(patient=patient))
    if not served:
        raise ServerError(f"{endpoint.name} has no model")
    if model is None:
        return served[0]
    for each in served:
        if each.model == model:
            return each
    names = [each.model for each in served]
    hint = nearest(model, names) or f"it has {', '.join(names[:5])}"
    raise ServerError(f"{endpoint.name} does not have the model {model}", hint)
