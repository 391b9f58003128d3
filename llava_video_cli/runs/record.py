"""Records: what is said of a video, with all that is needed to trust it and to get it again; and failures."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from ..conversation import Answer, Media, Scores, Segment, Usage
from ..errors import LlvidError
from ..model import Model
from ..preset import Preset
from ..prompt.subtitles import Subtitles
from ..video.files import PictureList, typed_name
from ..video.image import Picture

_LIBRARIES = (
    *("llava-video-cli", "torch", "torchvision", "transformers", "av", "pillow", "bitsandbytes"),
    *("llguidance", "peft"),
)
EMPTY_ANSWER = "the answer is empty"
_TEXTS = ("caption", "answer", "transcript")
_SCHEME = "file:"  # of a path that is no text
_LEAST_SHARE = 0.9  # of a picture; a user is told that the model gets less


@dataclass(frozen=True)
class Record:
    """A success: the JSON values of its line.

    `values` holds `key`, which names the video as it was, the model and all that was asked: a record with the same
    key needn't be made again.
    """

    values: Mapping[str, Any]

    @property
    def key(self) -> str:
        """The key, 32 hexadecimal digits."""
        return str(self.values["key"])

    @property
    def request_key(self) -> str:
        """Names what `key` names, but for the state of the video: a replaced video's record has the same one."""
        return str(self.values.get("settings", {}).get("request_key", ""))

    @property
    def path(self) -> str:
        """The video's path, as the system knows it."""
        return text_to_path(str(self.values.get("video_path") or self.values.get("video") or ""))

    @property
    def text(self) -> str:
        """The caption, the answer or the transcript."""
        return str(next((self.values[name] for name in _TEXTS if name in self.values), ""))

    @property
    def is_cut(self) -> bool:
        """Whether it ends where no more new tokens were allowed, maybe in the middle of a sentence."""
        return self.values.get("finish_reason") == "length"

    @property
    def segments(self) -> tuple[Segment, ...]:
        """What is said of each part of the video."""
        names = [field.name for field in fields(Segment)]
        return tuple(Segment(**{name: segment[name] for name in names}) for segment in self.values.get("segments", ()))

    @property
    def scores(self) -> Mapping[str, float]:
        """The probability of each choice; empty if there were none."""
        scores: Mapping[str, float] = self.values.get("scores") or {}
        return scores


@dataclass(frozen=True)
class Failure:
    """A video or request that failed, and why; `names` and `request_key` are what the record would have."""

    names: Mapping[str, Any]
    cause: LlvidError
    request_key: str = ""

    @property
    def values(self) -> dict[str, Any]:
        """The JSON values of its line in the file of errors."""
        return {**self.names, "error": str(self.cause), "hint": self.cause.hint}


def path_to_text(path: str, *, encoded: bool = False) -> str:
    """Return a path as text that every format can hold.

    That is the path itself, or what was typed for what has none. One whose bytes are not UTF-8 becomes `file:` and its
    bytes, percent-encoded, and so does one that begins with `file:` itself, and each one if it is to be `encoded`.
    """
    path = typed_name(path)
    raw = os.fsencode(path)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        encoded = True
    return _SCHEME + quote(raw) if encoded or text.startswith(_SCHEME) else text


def text_to_path(text: str) -> str:
    """Return the path that `path_to_text` made the text of."""
    if not text.startswith(_SCHEME):
        return text
    return os.fsdecode(unquote_to_bytes(text.removeprefix(_SCHEME)))


def medium_name(path: str) -> str | list[str]:
    """Return a medium's path as a JSON value: of a list of pictures, a list."""
    if isinstance(path, PictureList):
        return [path_to_text(each) for each in path.paths]
    return path_to_text(path)


def ask_values(
    media: Sequence[Mapping[str, Any]], question: str, answer: Answer, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the JSON values of an answered question, from those of its media (if any) and of the settings."""
    notes = [line for medium in media for line in medium["notes"]]
    tokens = answer.usage.media_tokens or (None,) * len(media)
    media = [{**each, "frames": with_tokens(each["frames"], count)} for each, count in zip(media, tokens, strict=True)]
    first, *others = media or ({"path": None, "frames": None, "notes": ()},)
    return {
        "video": first["path"],
        "video_path": first["path"],
        "question": question,
        "answer": answer.text,
        **({"scores": dict(answer.scores)} if answer.scores else {}),
        "model": settings["model"],
        "family": settings.get("family"),
        **({"adapter": settings["adapter"]} if settings.get("adapter") else {}),
        "finish_reason": answer.finish_reason,
        "frames": first["frames"],
        **({"with": others} if others else {}),
        "notes": notes if answer.text.strip() else [*notes, EMPTY_ANSWER],
        "usage": answer.usage.values(),
        "settings": dict(settings),
    }


def media_values(path: str, medium: Media) -> dict[str, Any]:
    """Return a medium's path, its frames (None for a picture) and its notes."""
    if isinstance(medium, Picture):
        return {"path": medium_name(path), "frames": None, "notes": list(medium.notes)}
    frames = {
        "count": len(medium.images),
        "times_seconds": list(medium.times_seconds),
        "sampling": medium.sampling.mode,
        "duration_seconds": medium.info.duration_seconds,
        "fit": medium.input.came_to(medium.sampling.fit) if medium.input else medium.sampling.fit,
        "visible_share": medium.visible and round(medium.visible[0] * medium.visible[1], 3),
        "size": [medium.info.width, medium.info.height],
        "input_size": [medium.input.width, medium.input.height] if medium.input and medium.input.width else None,
        **({"time_marks": medium.input.time_marks} if medium.input and medium.input.time_marks else {}),
        **({"shots": [list(shot) for shot in medium.shots]} if medium.shots else {}),
    }
    return {"path": medium_name(path), "frames": frames, "notes": list(medium.notes)}


def mean_scores(parts: Sequence[Scores | None]) -> dict[str, float]:
    """Return the mean probability of each choice over the windows of a video."""
    scores = [each for each in parts if each]
    return {choice: sum(each[choice] for each in scores) / len(scores) for choice in scores[0]}


def join_frames(parts: Sequence[Mapping[str, Any] | None], tokens: int = 0) -> dict[str, Any] | None:
    """Join what is said of the frames of each window; `tokens` are those of all of them in prompts, if known."""
    videos = [part for part in parts if part is not None]
    if not videos:
        return None
    times = [time for part in videos for time in part["times_seconds"]]
    shots = [shot for part in videos for shot in part.get("shots", ())]
    joined = {**videos[0], "count": len(times), "times_seconds": times, **({"shots": shots} if shots else {})}
    return with_tokens(joined, tokens)


def total_usage(usages: Sequence[Usage]) -> Usage:
    """Add up what the windows cost; the first token is the first window's."""
    return replace(
        usages[0],
        prompt_tokens=sum(usage.prompt_tokens for usage in usages),
        cached_tokens=sum(usage.cached_tokens for usage in usages),
        generated_tokens=sum(usage.generated_tokens for usage in usages),
        thinking_tokens=sum(usage.thinking_tokens for usage in usages),
        media_tokens=tuple(map(sum, zip(*(usage.media_tokens for usage in usages), strict=False))),
        total_seconds=sum(usage.total_seconds for usage in usages),
        peak_memory_bytes=max(usage.peak_memory_bytes for usage in usages),
    )


def with_tokens(frames: Mapping[str, Any] | None, tokens: int | None) -> dict[str, Any] | None:
    """Return what is said of a video's frames, with how many tokens of the prompt each takes on average, if known."""
    if frames is None or not tokens:
        return None if frames is None else dict(frames)
    return {**frames, "tokens_each": round(tokens / frames["count"], 2)}


class CutNote:
    """Tells a user, once, that the model gets a part of the pictures only."""

    def __init__(self) -> None:
        self._is_told = False

    def lines(self, *frames: Mapping[str, Any] | None) -> list[str]:
        """Return the line, or none; `frames` are those of `media_values` or of a record, None for a picture."""
        shares = [each.get("visible_share") for each in frames if each is not None]
        least = min((share for share in shares if share is not None), default=1.0)
        if self._is_told or least >= _LEAST_SHARE:
            return []
        self._is_told = True
        return [f"the model sees the middle {int(100 * least + 0.5)} % of each frame; --fit pad shows it all"]


def settings_values(model: Model, preset: Preset, subtitles: Subtitles | None = None) -> dict[str, Any]:
    """Return everything needed to repeat a run, library versions included."""
    return {
        "preset": preset.name,
        "system": preset.system,
        "timestamps": preset.timestamps,
        **({"subtitles": path_to_text(subtitles.path)} if subtitles else {}),
        "sampling": preset.sampling.values(),
        "generation": preset.generation.values(),
        **model.settings,
        "versions": versions(),
    }


@cache
def versions(*more: str) -> dict[str, str]:
    """Return the versions of Python, of the libraries that answers hang on, and of others."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": platform.python_version()}
    for library in (*_LIBRARIES, *more):
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found
