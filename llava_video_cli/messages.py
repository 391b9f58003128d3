"""Conversations as files: the roles and content parts of transformers' chat format, in YAML or JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast, get_args

from .conversation import Generation, Media, Role, Turn
from .errors import LlvidError, UsageError, nearest
from .model import Quantize
from .preset import Preset, checked
from .record import path_to_text, text_to_path
from .sampling import Sampling
from .wholefile import whole_file

_MEDIA_KINDS = ("video", "image")
_KEYS = ("model", "quantize", "sampling", "generation", "messages")
_SUFFIXES = (".yaml", ".yml", ".json")
_MOST_BYTES = 2**18  # twice the text that the longest context (32,768 tokens) holds
_MOST_SHOWN = 100  # characters of a value in an error


@dataclass(frozen=True)
class Draft:
    """A turn whose media are still paths."""

    role: Role
    text: str
    paths: tuple[str, ...] = ()


@dataclass(frozen=True)
class Conversation:
    """What a file holds: the turns, and the settings that it was made with, named as in a preset.

    `sampling` and `generation` have only the values that the file gives.
    """

    drafts: tuple[Draft, ...]
    model: str | None = None
    quantize: Quantize | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    generation: Mapping[str, Any] = field(default_factory=dict)

    @property
    def system(self) -> str | None:
        """The system text."""
        return next((draft.text for draft in self.drafts if draft.role == "system"), None)

    def over(self, preset: Preset) -> Preset:
        """Return the preset with the file's settings over it."""
        sampling = {"fps": None, **self.sampling} if "frames" in self.sampling else self.sampling
        return replace(
            preset,
            model=self.model or preset.model,
            quantize=self.quantize or preset.quantize,
            sampling=replace(preset.sampling, **sampling),
            generation=replace(preset.generation, **self.generation),
        )


def turns_of(drafts: Iterable[Draft], media: Iterable[Media]) -> tuple[Turn, ...]:
    """Return the turns, with the media in their places."""
    rest = iter(media)
    return tuple(Turn(draft.role, draft.text, tuple(next(rest) for _ in draft.paths)) for draft in drafts)


def read_conversation(path: Path) -> Conversation:
    """Return what a file holds: a list of messages, or a mapping with the list and settings.

    Media are relative to the file's folder. Raises UsageError for a file that is not understood to the last key.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise UsageError(f"longer than {_MOST_BYTES:,} bytes: no conversation")
        values = _parsed(content.decode("utf-8-sig"), path)
        return _conversation(values if isinstance(values, dict) else {"messages": values}, path.parent)
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not text in UTF-8") from None
    except UsageError as error:
        raise UsageError(f"{path}: {error}", error.hint) from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}") from None


def write_conversation(path: Path, conversation: Conversation) -> None:
    """Write a file that `read_conversation` takes back, whole or not at all, over one that is there.

    Media below the file's folder are written relative to it, and so are those whose path was relative. Raises
    UsageError for a name that ends in something else than .yaml, .yml or .json.
    """
    if path.suffix.lower() not in _SUFFIXES:
        raise UsageError(f"{path} must end in {', '.join(_SUFFIXES)}")
    values = {
        "model": conversation.model,
        "quantize": conversation.quantize,
        "sampling": dict(conversation.sampling),
        "generation": dict(conversation.generation),
        "messages": [_message(draft, path.parent) for draft in conversation.drafts],
    }
    values = {key: value for key, value in values.items() if value}
    if path.suffix.lower() == ".json":
        text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    else:
        from .yamltext import write_yaml

        text = "# A conversation: `llvid chat --load` goes on with it.\n" + write_yaml(values)
    try:
        with whole_file(path) as beside:
            beside.write_text(text, encoding="utf-8")
    except LlvidError as error:
        raise LlvidError(str(error), "name another place") from None


def read_draft(message: object, place: Callable[[str], str]) -> Draft:
    """Return a message of the chat format of transformers; `place` makes a path of what is written for one."""
    if not isinstance(message, dict) or not {"role", "content"} >= set(message) or len(message) != 2:
        raise UsageError(f"a message holds 'role' and 'content', got {brief(message)}")
    role, content = message["role"], message["content"]
    if role not in get_args(Role):
        raise UsageError(f"the role must be system, user or assistant, got {brief(role)}")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    texts, paths = [], []
    for part in items(content, "content"):
        values = part if isinstance(part, dict) else {}
        kind = str(values.get("type"))
        text, where = values.get("text"), values.get("path", values.get(kind))
        if kind == "text" and isinstance(text, str):
            texts.append(encodable(text))
        elif kind in _MEDIA_KINDS and isinstance(where, str) and where and role == "user":
            paths.append(place(where))
        else:
            raise UsageError(
                f"a part of a message is a text, or a user's video or image with a path, got {brief(part)}"
            )
    return Draft(cast("Role", role), "\n".join(texts), tuple(paths))


def below(folder: Path, path: str) -> str:
    """Return a path that is relative to a folder as it is reached from here."""
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        raise UsageError(f"no path can be {path!r}") from None
    return path if folder == Path() else os.path.join(folder, path)  # noqa: PTH118 - a path stays as it was written


def items(value: object, name: str) -> list[Any]:
    """Return a list that has something in it; raises UsageError for anything else."""
    if not isinstance(value, list) or not value:
        raise UsageError(f"{name!r} must be a list with something in it, got {brief(value)}")
    return value


def encodable(text: str) -> str:
    """Return the text; JSON can hold halves of characters, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{text[error.start]!r} is half a character") from None
    return text


def brief(value: object) -> str:
    """Return a value as an error shows it: of a long one, the beginning."""
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def _parsed(text: str, path: Path) -> object:
    if path.suffix.lower() != ".json":
        from .yamltext import read_yaml

        return read_yaml(text)
    try:
        return json.loads(text, object_pairs_hook=_each_once)
    except (json.JSONDecodeError, RecursionError) as error:
        raise UsageError(f"not JSON: {error}") from None


def _each_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise UsageError(f"a key stands there twice: {brief([key for key, _ in pairs])}")
    return values


def _conversation(values: Mapping[Any, Any], folder: Path) -> Conversation:
    for key in values:
        if key not in _KEYS:
            raise UsageError(f"there is no key {brief(key)}", nearest(str(key), _KEYS) or f"keys: {', '.join(_KEYS)}")
    drafts = []
    for number, message in enumerate(items(values.get("messages"), "messages"), start=1):
        try:
            drafts.append(read_draft(message, lambda path: below(folder, text_to_path(path))))
        except UsageError as error:
            raise UsageError(f"message {number}: {error}", error.hint) from None
    model, quantize = values.get("model"), values.get("quantize")
    if model is not None and (not isinstance(model, str) or not model):
        raise UsageError(f"'model' must be text, got {brief(model)}")
    if quantize is not None and quantize not in get_args(Quantize):
        raise UsageError(f"'quantize' must be one of {', '.join(get_args(Quantize))}, got {brief(quantize)}")
    sampling = checked(values.get("sampling", {}), Sampling, "sampling")
    generation = checked(values.get("generation", {}), Generation, "generation")
    found = Conversation(tuple(drafts), encodable(model) if model else None, quantize, sampling, generation)
    found.over(Preset("", ""))  # values outside their ranges
    return found


def _message(draft: Draft, folder: Path) -> dict[str, Any]:
    if not draft.paths:
        return {"role": draft.role, "content": draft.text}
    parts = [{"type": _kind(path), "path": path_to_text(_seen_from(folder, path))} for path in draft.paths]
    return {"role": draft.role, "content": parts + ([{"type": "text", "text": draft.text}] if draft.text else [])}


def _kind(path: str) -> str:
    from .image import is_picture

    return "image" if is_picture(path) else "video"


def _seen_from(folder: Path, path: str) -> str:
    """Return a path as a file in the folder names it: relative where it lies below it or was relative here."""
    try:
        relative = os.path.relpath(path, folder)
        near = not Path(path).is_absolute() or not relative.startswith(os.pardir)
        if near and (folder / relative).samefile(path):  # a symbolic link can lead `..` elsewhere
            return relative
    except (OSError, ValueError):  # on another drive, or gone
        pass
    return os.path.abspath(path)  # noqa: PTH100 - links in a path stay
