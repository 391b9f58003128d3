"""Conversations as files: the roles and content parts of transformers' chat format, in YAML or JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast, get_args

from ..conversation import Media, Role, Turn
from ..errors import LlvidError, UsageError
from ..model import Quantize
from ..preset import Preset, generation_shape, generation_values, sampling_shape, with_sampling
from ..system.files import whole_file
from ..validation import MessageForm, Text, placed, read_fields, read_file, read_json, read_message, read_yaml
from ..video.files import PictureList, Spooled
from ..video.image import is_picture
from ..video.spool import is_url
from .record import path_to_text, text_to_path

_FORM = MessageForm({role: role for role in get_args(Role)}, ("video", "image"), "path")
_SUFFIXES = (".yaml", ".yml", ".json")
_WIDTH = 120
# YAML takes these for ends of lines, too, and would read some of them back as another one.
_ODD_BREAKS = "\r\x85\u2028\u2029"


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
    adapter: str | None = None

    @property
    def system(self) -> str | None:
        """The system text."""
        return next((draft.text for draft in self.drafts if draft.role == "system"), None)

    def over(self, preset: Preset) -> Preset:
        """Return the preset with the file's settings over it."""
        return replace(
            preset,
            model=self.model or preset.model,
            quantize=self.quantize or preset.quantize,
            adapter=self.adapter or preset.adapter,
            sampling=with_sampling(preset.sampling, self.sampling),
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
    content = read_file(path, "conversation")
    with placed(str(path)):
        values = read_json(content) if path.suffix.lower() == ".json" else read_yaml(content)
        values = values if isinstance(values, dict) else {"messages": values}
        shape: dict[str, Any] = {"model": Text | None, "quantize": Quantize | None, "adapter": Text | None}
        shape["messages"] = list
        shape |= {"sampling": sampling_shape(), "generation": generation_shape()}
        found = read_fields({"messages": None, **values}, shape)
        found["generation"] = generation_values(found.get("generation", {}), path.parent)
        messages = found.pop("messages")
        drafts = read_drafts(messages, lambda written: below(path.parent, text_to_path(written)))
        conversation = Conversation(drafts, **found)
        conversation.over(Preset("", ""))  # values outside their ranges
        return conversation


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
        "adapter": conversation.adapter,
        "sampling": dict(conversation.sampling),
        "generation": dict(conversation.generation),
        "messages": [_message(draft, path.parent) for draft in conversation.drafts],
    }
    values = {key: value for key, value in values.items() if value}
    if path.suffix.lower() == ".json":
        text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    else:
        text = "# A conversation: `llvid chat --load` continues it.\n" + write_yaml(values)
    try:
        with whole_file(path) as beside:
            beside.write_text(text, encoding="utf-8")
    except LlvidError as error:
        raise LlvidError(str(error), "choose another path") from None


def read_drafts(messages: Iterable[object], locate: Callable[[str], str]) -> tuple[Draft, ...]:
    """Return messages of the chat format of transformers; `locate` makes a path of what is written for one."""
    drafts = []
    for number, message in enumerate(messages, start=1):
        with placed(f"message {number}"):
            role, text, media = read_message(message, _FORM)
            drafts.append(Draft(cast("Role", role), text, tuple(_path_of(each, locate) for _, each in media)))
    return tuple(drafts)


def _path_of(written: str | list[str], locate: Callable[[str], str]) -> str:
    return locate(written) if isinstance(written, str) else PictureList([locate(each) for each in written])


def below(folder: Path, path: str) -> str:
    """Return a path that is relative to a folder as it is reached from here; a URL stays as it is."""
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        raise UsageError(f"{path!r} can't be a path") from None
    return path if folder == Path() or is_url(path) else os.path.join(folder, path)  # noqa: PTH118 - a path stays as it was written


def write_yaml(value: object) -> str:
    """Return plain data as text that `read_yaml` takes back; texts of several lines are written as they look."""
    import yaml

    class Writer(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            del data
            return True

    def write_text(writer: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
        style = '"' if any(mark in text for mark in _ODD_BREAKS) else "|" if "\n" in text else None
        return writer.represent_scalar("tag:yaml.org,2002:str", text, style=style)

    Writer.add_representer(str, write_text)
    return yaml.dump(value, Dumper=Writer, allow_unicode=True, sort_keys=False, width=_WIDTH)


def _message(draft: Draft, folder: Path) -> dict[str, Any]:
    if not draft.paths:
        return {"role": draft.role, "content": draft.text}
    parts = [{"type": "image" if is_picture(path) else "video", "path": _written(folder, path)} for path in draft.paths]
    return {"role": draft.role, "content": parts + ([{"type": "text", "text": draft.text}] if draft.text else [])}


def _written(folder: Path, path: str) -> str | list[str]:
    if isinstance(path, PictureList):
        return [path_to_text(_seen_from(folder, each)) for each in path.paths]
    return path.typed if isinstance(path, Spooled) else path_to_text(_seen_from(folder, path))


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
