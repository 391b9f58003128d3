"""Inference engines behind a server: which one it is, and how to write a request so that it sees the chosen frames."""

from __future__ import annotations

import base64
import io
import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

from ..conversation import ANY_OBJECT, Generation, Media, Request
from ..errors import MediaError, ModelError, UsageError
from ..model import Send
from ..validation import read_fields, shape_of
from ..video import Frames
from ..video.encode import MOST_BYTES, clip_rate, make_clip
from ..video.files import file_of, is_sequence
from ..video.fit import FrameInput
from ..video.image import Picture
from ..video.sampling import SCENE_OPTIONS, Sampling

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Engine = Literal["llvid", "vLLM", "SGLang", "transformers", "unknown"]

_OWNERS: dict[str, Engine] = {"llvid": "llvid", "vllm": "vLLM", "sglang": "SGLang"}
_MOST_FILE_BYTES = 256 * 2**20
_WHOLE = Sampling()
# Engines whose chat API goes on with a last message of the assistant, and those that tell how likely a prompt is.
_CONTINUING: tuple[Engine, ...] = ("llvid", "vLLM", "SGLang")
_SCORING: tuple[Engine, ...] = ("llvid", "vLLM")
_MOST_FRAME_PIXELS, _LAST_RESAMPLE = 4096, 5  # of what a server may list
_ADDED = ("top_k", "min_p", "presence_penalty", "frequency_penalty")  # that transformers serve lacks
_MOST_NUMBER = 1e9
_FRAME_INPUT = FrameInput(336, 336, "server")  # as large as that of the published checkpoints


@dataclass(frozen=True)
class ServedModel:
    """A model that a server has. `context_tokens` and `frame_tokens` are 0 if the server does not list them.

    `frame_input` is what it gets of a frame.
    """

    engine: Engine
    model: str
    context_tokens: int = 0
    frame_tokens: int = 0
    version: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    frame_input: FrameInput = _FRAME_INPUT


def served_models(entries: Sequence[Mapping[str, Any]], headers: Mapping[str, str]) -> list[ServedModel]:
    """Return the models of a server's list, in its order.

    llvid, vLLM and SGLang name themselves in `owned_by`, where `transformers serve` has the checkpoint's owner. It is
    recognized by the `status` of each entry (from 5.24 on), or by the id that it gives each request.
    """
    models = []
    for entry in entries:
        if not isinstance(entry.get("id"), str):
            continue
        engine = _OWNERS.get(str(entry.get("owned_by")), "unknown")
        if engine == "unknown" and (isinstance(entry.get("status"), dict) or "x-request-id" in headers):
            engine = "transformers"
        own = entry.get("llvid")
        own = own if engine == "llvid" and isinstance(own, dict) else {}
        settings = own.get("settings")
        settings = {k: v for k, v in settings.items() if _is_plain(v)} if isinstance(settings, dict) else {}
        counts = _count(entry.get("max_model_len")), _count(own.get("frame_tokens"))
        version, seen = str(own.get("version", "")), _frame_input(own.get("frame_input"))
        models.append(ServedModel(engine, entry["id"], *counts, version, settings, seen))
    return models


def _frame_input(listed: object) -> FrameInput:
    """Return what a model gets of a frame, as llvid's server lists it; of other servers that is not known."""
    with suppress(UsageError, TypeError):
        found = FrameInput(**read_fields(listed, shape_of(FrameInput)))
        sides = found.width, found.height, found.edge or 1
        if found.way == "whole":
            return FrameInput(0, 0, "whole", time_marks=found.time_marks)
        if all(1 <= side <= _MOST_FRAME_PIXELS for side in sides) and all(0 <= level < 256 for level in found.mean):
            return replace(found, resample=min(max(0, found.resample), _LAST_RESAMPLE))
    return _FRAME_INPUT


def _is_plain(value: object) -> bool:
    """Return whether a record can hold a listed setting: ours are plain values, and JSON has no NaN or infinity."""
    return value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))


def _count(value: object) -> int:
    return value if isinstance(value, int) and 0 < value < 2**40 else 0


class RequestWriter:
    """Writes requests for engines; an encoded medium is kept for as long as the medium exists.

    Frames are sent as `frame_input` fits them.
    """

    def __init__(self, send: Send, frame_input: FrameInput) -> None:
        self._send, self._input = send, frame_input
        self._encoded: WeakKeyDictionary[Media, dict[bool, list[str]]] = WeakKeyDictionary()  # by whether it is split

    @contextmanager
    def body(
        self, request: Request, served: ServedModel, *, is_local: bool, choice: str | None = None
    ) -> Iterator[dict[str, Any]]:
        """Give the body of a request; files that it refers to exist until the block ends.

        With a `choice`, which may be empty, it asks how likely the prompt with this answer is, in vLLM's way. Raises
        `UsageError` or `ModelError` if the engine can't take the request, `MediaError` for a file that is too large.
        """
        check_generation(request.generation, served)
        needs_files = served.engine == "transformers" and any(isinstance(medium, Frames) for medium in request.media)
        with tempfile.TemporaryDirectory(prefix="llvid-") if needs_files else nullcontext() as folder:
            if folder is not None and not is_local:
                raise ModelError(
                    "transformers serve reads videos only from its own disk: it has to run on this machine",
                    "llvid serve and vLLM accept videos over the network",
                )
            messages = []
            share = MOST_BYTES // max(1, len(request.media))
            for turn in request.turns:
                parts = [part for medium in turn.media for part in self._parts(medium, served, folder, share)]
                text = {"type": "text", "text": turn.text}
                messages.append({"role": turn.role, "content": [*parts, text] if parts else turn.text})
            more: dict[str, Any] = {}
            if choice is not None:
                more = {"stream": False, "stream_options": None, "max_tokens": 1, "prompt_logprobs": 1}
            begun = (request.generation.prefill + (choice or "")).strip()
            if begun and served.engine != "llvid":
                messages.append({"role": "assistant", "content": begun})
                more |= {"continue_final_message": True}
                more |= {"add_generation_prompt": False} if served.engine == "vLLM" else {}
            yield {
                "model": served.model,
                "messages": messages,
                "stream": True,
                **_generation(request, served.engine),
                **self._frames(request, served.engine),
                **more,
            }

    def _parts(self, medium: Media, served: ServedModel, folder: str | None, most_bytes: int) -> list[dict[str, Any]]:
        """Return the parts of a message that stand for a medium."""
        # transformers serve fails on a video without a sound track, and accepts no data: URLs
        if folder is not None and isinstance(medium, Frames):
            if self._send == "file":
                return [_part("video", _with_sound(medium))]
            rate = clip_rate(medium.times_seconds, math.inf)  # it is told how many frames to take
            clip = make_clip(self._images(medium), rate=rate, with_sound=True, most_bytes=most_bytes)
            with tempfile.NamedTemporaryFile(suffix=".mp4", dir=folder, delete=False) as file:
                file.write(clip)
            return [_part("video", file.name)]
        # SGLang's processor for LLaVA takes the frames of a video as pictures, and no clips.
        is_split = isinstance(medium, Frames) and served.engine == "SGLang" and self._send == "frames"
        kept = self._encoded.setdefault(medium, {})
        if is_split not in kept:
            if isinstance(medium, Picture):
                kept[is_split] = [_png(medium.pixels)]
            elif is_split:
                kept[is_split] = [_png(image) for image in self._images(medium)]
            else:
                rate = clip_rate(medium.times_seconds)
                data = (
                    _file(medium)
                    if self._send == "file"
                    else make_clip(self._images(medium), rate=rate, most_bytes=most_bytes)
                )
                kept[is_split] = [_data_url("video/mp4", data)]  # readers find the real type from the content
        more = {"modalities": "video"} if is_split else {}
        kind = "image" if is_split or isinstance(medium, Picture) else "video"
        return [_part(kind, url) | more for url in kept[is_split]]

    def _images(self, frames: Frames) -> NDArray[np.uint8]:
        """Return the frames as they are sent: what --fit does is done before."""
        import numpy as np

        fit = frames.sampling.fit
        return frames.images if fit == "auto" else np.stack([self._input.fitted(image, fit) for image in frames.images])

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
                raise UsageError("--send file needs the same frames for each video", "use --send frames")
            (taken,) = wanted
            if engine != "llvid" and replace(taken, frames=_WHOLE.frames, fps=None) != _WHOLE:
                if taken.fit != "auto":
                    raise UsageError(
                        f"{engine} has no option like --fit {taken.fit} for a file",
                        "use --send frames: llvid fits the frames before it sends them",
                    )
                raise UsageError(
                    f"{engine} chooses the frames of a file itself, from the whole file",
                    "use --send frames, which sends the frames that llvid chooses",
                )
            unused = {"frames", *(() if taken.mode == "scenes" else SCENE_OPTIONS)}
            unused |= set() if taken.speech else {"speech_model"}
            values = asdict(taken).items()
            sampling = {name: v for name, v in values if v != getattr(_WHOLE, name) and name not in unused}
            if taken.fps is None:
                sampling["frames"] = taken.frames
        renamed = {"num_frames" if name == "frames" else name: value for name, value in sampling.items()}
        own: dict[Engine, dict[str, Any]] = {
            "llvid": {"sampling": {"fit": "auto", **sampling} if self._input.way != "server" else sampling},
            "vLLM": {"media_io_kwargs": {"video": renamed}},
            "transformers": {"chat_template_kwargs": renamed},
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
    if engine == "llvid":
        own = ("choices", "length_normalized", "prefill")
        fields |= {name: value for name, value in generation.values().items() if name in own}
    if engine == "transformers":  # it always sends the usage, and rejects unknown fields
        if generation.repetition_penalty != 1:
            fields["frequency_penalty"] = generation.repetition_penalty - 1  # it adds 1 and multiplies
        if generation.temperature > 0:  # a temperature alone does not make it sample
            fields["generation_config"] = '{"do_sample": true, "top_k": 0}'
        return fields
    if generation.repetition_penalty != 1:
        fields["repetition_penalty"] = generation.repetition_penalty
    fields |= {name: value for name in _ADDED if (value := getattr(generation, name))}
    if generation.show_thinking and engine == "llvid":
        fields["show_thinking"] = True
    return {**fields, **_constraint(generation, engine), "stream_options": {"include_usage": True}}


def _constraint(generation: Generation, engine: Engine) -> dict[str, Any]:
    """Return the field that constrains the answer."""
    if generation.regex is not None:
        if engine == "SGLang":
            return {"regex": generation.regex}
        return {"structured_outputs": {"regex": generation.regex}}
    if generation.schema is None:
        return {}
    if generation.schema == ANY_OBJECT:
        return {"response_format": {"type": "json_object"}}
    schema = {"name": "answer", "schema": json.loads(generation.schema), "strict": True}
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


def check_generation(generation: Generation, served: ServedModel) -> None:
    """Raise `UsageError` for what an engine's chat API can't do."""
    if served.engine == "transformers":
        used = [f"--{name.replace('_', '-')}" for name in _ADDED if getattr(generation, name)]
        used += ["--schema"] if generation.is_constrained else []
        if used:
            raise UsageError(f"transformers serve has no option like {used[0]}", "llvid serve, vLLM and SGLang have it")
    name = "this server" if served.engine == "unknown" else served.engine
    if generation.choices and served.engine not in _SCORING:
        raise UsageError(
            f"choices can't be used with {name}: its API does not tell how likely an answer is",
            "llvid serve and vLLM can score choices",
        )
    if generation.prefill and served.engine not in _CONTINUING:
        raise UsageError(
            f"a prefill can't be used with {name}: its API can't continue a given text",
            "llvid serve, vLLM and SGLang can continue a text",
        )


def read_prompt_logprobs(values: Mapping[str, Any]) -> tuple[list[int], list[float]]:
    """Return the ids of a prompt's tokens and the logarithms of their probabilities, as vLLM answers.

    The first token has none. Raises `ModelError` for an answer of another form.
    """
    try:
        tokens = [next(iter(each.items())) for each in values["prompt_logprobs"] if each]
        return [int(token) for token, _ in tokens], [read_number(about["logprob"]) for _, about in tokens]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ModelError("the server does not tell how likely a prompt is, which choices need") from None


def read_number(value: object) -> float:
    """Return a number that a server sent. Raises ValueError for any other value, and for NaN and what is too large."""
    if isinstance(value, int | float) and abs(value) <= _MOST_NUMBER:
        return float(value)
    raise ValueError("not a number, or one without bounds")


def _part(kind: str, url: str) -> dict[str, Any]:
    return {"type": f"{kind}_url", f"{kind}_url": {"url": url}}


def _file_of(frames: Frames) -> str:
    """Return the path of a video's file. Raises `UsageError` where its frames are pictures."""
    if is_sequence(frames.path):
        raise UsageError(f"{frames.path}: pictures can't be sent as one file", "use --send frames")
    return file_of(frames.path)


def _file(frames: Frames) -> bytes:
    path = Path(_file_of(frames))
    try:
        size = path.stat().st_size
        if size > _MOST_FILE_BYTES:
            raise MediaError(
                f"{frames.path}: {size >> 20} MiB is too large to send ({_MOST_FILE_BYTES >> 20} MiB at most)",
                "use --send frames, which sends only what the model sees",
            )
        return path.read_bytes()
    except OSError as error:
        raise MediaError(f"{frames.path}: can't be read: {error.strerror}") from None


def _with_sound(frames: Frames) -> str:
    """Return a file's absolute path. Raises `MediaError` if there is no sound in it."""
    from ..video.demux import open_video
    from ..video.limits import Deadline, Limits

    path = _file_of(frames)
    with open_video(frames.path, Deadline(frames.path, Limits())) as video:
        if not video.container.streams.audio:
            raise MediaError(
                f"{frames.path}: transformers serve can't read a video without sound",
                "use --send frames, which adds a silent sound track",
            )
    return os.path.abspath(path)  # noqa: PTH100 - keeps links


def _png(pixels: Any) -> str:
    from PIL import Image

    target = io.BytesIO()
    Image.fromarray(pixels).save(target, format="png", compress_level=1)
    return _data_url("image/png", target.getvalue())


def _data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
