"""Engines behind a server: which one it is, and how to ask it so that it sees the frames that were chosen."""

from __future__ import annotations

import base64
import io
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal
from weakref import WeakKeyDictionary

from ..conversation import Media, Request
from ..errors import MediaError, ModelError, UsageError
from ..model import Send
from ..video import Frames
from ..video.encode import MOST_BYTES, make_clip
from ..video.image import Picture
from ..video.sampling import Sampling

Engine = Literal["llvid", "vLLM", "SGLang", "transformers", "unknown"]

_OWNERS: dict[str, Engine] = {"llvid": "llvid", "vllm": "vLLM", "sglang": "SGLang"}
_MOST_FILE_BYTES = 256 * 2**20
_WHOLE = Sampling()


@dataclass(frozen=True)
class ServedModel:
    """A model that a server has. `context_tokens` and `frame_tokens` are 0 if the server does not list them."""

    engine: Engine
    model: str
    context_tokens: int = 0
    frame_tokens: int = 0
    version: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)


def served_models(entries: Sequence[Mapping[str, Any]], headers: Mapping[str, str]) -> list[ServedModel]:
    """Return the models of a server's list, in its order.

    llvid, vLLM and SGLang stand in `owned_by`. `transformers serve` writes a checkpoint's owner there; it shows by the
    `status` of each entry (from 5.24 on) and by the id that it gives each request.
    """
    return [_served_model(entry, headers) for entry in entries if isinstance(entry.get("id"), str)]


def _served_model(entry: Mapping[str, Any], headers: Mapping[str, str]) -> ServedModel:
    engine = _OWNERS.get(str(entry.get("owned_by")), "unknown")
    if engine == "unknown" and (isinstance(entry.get("status"), dict) or "x-request-id" in headers):
        engine = "transformers"
    own = entry.get("llvid")
    own = own if engine == "llvid" and isinstance(own, dict) else {}
    settings = own.get("settings")
    return ServedModel(
        engine,
        entry["id"],
        _count(entry.get("max_model_len")),
        _count(own.get("frame_tokens")),
        str(own.get("version", "")),
        settings if isinstance(settings, dict) else {},
    )


def _count(value: object) -> int:
    return value if isinstance(value, int) and 0 < value < 2**40 else 0


class RequestWriter:
    """Writes requests for engines; an encoded medium is kept as long as the medium itself."""

    def __init__(self, send: Send = "frames") -> None:
        self._send = send
        self._encoded: WeakKeyDictionary[Media, list[str]] = WeakKeyDictionary()

    @contextmanager
    def body(self, request: Request, served: ServedModel, *, is_local: bool) -> Iterator[dict[str, Any]]:
        """Give the body of a request; files that it refers to exist until the block ends.

        Raises `UsageError` or `ModelError` if the engine can't take the request, `MediaError` for a file that is too
        large.
        """
        needs_files = served.engine == "transformers" and any(isinstance(medium, Frames) for medium in request.media)
        with tempfile.TemporaryDirectory(prefix="llvid-") if needs_files else nullcontext() as folder:
            if folder is not None and not is_local:
                raise ModelError(
                    "transformers serve reads videos from its own disk only: it has to run on this machine",
                    "llvid serve and vLLM take them over the network",
                )
            messages = []
            share = MOST_BYTES // max(1, len(request.media))
            for turn in request.turns:
                parts = [part for medium in turn.media for part in self._parts(medium, served, folder, share)]
                text = {"type": "text", "text": turn.text}
                messages.append({"role": turn.role, "content": [*parts, text] if parts else turn.text})
            yield {
                "model": served.model,
                "messages": messages,
                "stream": True,
                **_generation(request, served.engine),
                **self._frames(request, served.engine),
            }

    def _parts(self, medium: Media, served: ServedModel, folder: str | None, most_bytes: int) -> list[dict[str, Any]]:
        """Return the parts of a message that stand for a medium."""
        if isinstance(medium, Picture):
            return [_image(url) for url in self._urls(medium, lambda: [_png(medium.pixels)])]
        if served.engine == "SGLang" and self._send == "frames":
            # its processor for LLaVA takes the frames of a video as pictures, and no clips
            urls = self._urls(medium, lambda: [_png(image) for image in medium.images])
            return [{**_image(url), "modalities": "video"} for url in urls]
        if folder is not None:  # it fails on a video without a sound track, and takes no data: URLs
            if self._send == "file":
                return [_video(_with_sound(medium))]
            file = Path(tempfile.mkstemp(suffix=".mp4", dir=folder)[1])
            file.write_bytes(make_clip(medium.images, with_sound=True, most_bytes=most_bytes))
            return [_video(str(file))]
        if self._send == "file":
            return [_video(url) for url in self._urls(medium, lambda: [_file(medium)])]
        return [_video(url) for url in self._urls(medium, lambda: [_clip(medium, most_bytes)])]

    def _urls(self, medium: Media, encode: Callable[[], list[str]]) -> list[str]:
        if medium not in self._encoded:
            self._encoded[medium] = encode()
        return self._encoded[medium]

    def _frames(self, request: Request, engine: Engine) -> dict[str, Any]:
        """Return the fields that keep the number of frames."""
        videos = [medium for medium in request.media if isinstance(medium, Frames)]
        if not videos:
            return {}
        if self._send == "frames":
            count = max(len(video.images) for video in videos)  # of a shorter one all frames are used
            sampling = {"frames": count}
        else:
            wanted = {video.sampling for video in videos}
            if len(wanted) > 1:
                raise UsageError("--send file takes the same frames of each video", "--send frames takes any")
            (taken,) = wanted
            if engine != "llvid" and (taken.start_seconds, taken.end_seconds, taken.mode) != (0, None, "uniform"):
                raise UsageError(
                    f"{engine} picks the frames of a file itself, from the whole of it",
                    "--send frames sends those that were chosen here",
                )
            sampling = {name: value for name, value in asdict(taken).items() if value != getattr(_WHOLE, name)}
            sampling = {key: value for key, value in sampling.items() if key != "frames" or taken.fps is None}
            sampling = sampling if taken.fps is not None else {**sampling, "frames": taken.frames}
        own: dict[Engine, dict[str, Any]] = {
            "llvid": {"sampling": sampling},
            "vLLM": {"media_io_kwargs": {"video": _renamed(sampling)}},
            "transformers": {"chat_template_kwargs": _renamed(sampling)},
        }
        return own.get(engine, {})


def _generation(request: Request, engine: Engine) -> dict[str, Any]:
    """Return the fields of sampling and of the answer's length, as the engine names them."""
    generation = request.generation
    fields: dict[str, Any] = {
        "max_tokens": generation.max_new_tokens,
        "temperature": generation.temperature,
        "top_p": generation.top_p,
    }
    if generation.seed is not None and generation.temperature > 0:
        fields["seed"] = generation.seed
    if engine == "transformers":  # it always sends the usage, and refuses unknown fields
        if generation.repetition_penalty != 1:
            fields["frequency_penalty"] = generation.repetition_penalty - 1  # it adds 1 and multiplies
        if generation.temperature > 0:  # a temperature alone does not make it sample
            fields["generation_config"] = '{"do_sample": true, "top_k": 0}'
        return fields
    if generation.repetition_penalty != 1:
        fields["repetition_penalty"] = generation.repetition_penalty
    return {**fields, "stream_options": {"include_usage": True}}


def _renamed(sampling: Mapping[str, Any]) -> dict[str, Any]:
    return {"num_frames" if name == "frames" else name: value for name, value in sampling.items()}


def _video(url: str) -> dict[str, Any]:
    return {"type": "video_url", "video_url": {"url": url}}


def _image(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def _clip(frames: Frames, most_bytes: int) -> str:
    return _data_url("video/mp4", make_clip(frames.images, most_bytes=most_bytes))


def _file(frames: Frames) -> str:
    path = Path(frames.info.path)
    try:
        size = path.stat().st_size
        if size > _MOST_FILE_BYTES:
            raise MediaError(
                f"{path}: {size / 2**20:.0f} MiB are too many to send ({_MOST_FILE_BYTES / 2**20:.0f} at most)",
                "--send frames sends only what the model sees",
            )
        return _data_url("video/mp4", path.read_bytes())  # readers find the real type from the content
    except OSError as error:
        raise MediaError(f"{path}: can't be read: {error.strerror}") from None


def _with_sound(frames: Frames) -> str:
    """Return a file's absolute path. Raises `MediaError` if there is no sound in it."""
    import av

    path = frames.info.path
    with av.open(path) as container:
        if not container.streams.audio:
            raise MediaError(
                f"{path}: transformers serve fails at a video without sound",
                "--send frames sends the frames with a silent track",
            )
    return os.path.abspath(path)  # noqa: PTH100 - keeps links


def _png(pixels: Any) -> str:
    from PIL import Image

    target = io.BytesIO()
    Image.fromarray(pixels).save(target, format="png", compress_level=1)
    return _data_url("image/png", target.getvalue())


def _data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
