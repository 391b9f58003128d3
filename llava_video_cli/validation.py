"""The strict reader of what people write: presets, conversations, files of requests, requests to the server.

A shape has the keys that are allowed, and the type of each. Any other key is an error that names the most similar one.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cache
from itertools import islice
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from types import NoneType
from typing import (
    Any,
    BinaryIO,
    Literal,
    NewType,
    NoReturn,
    Protocol,
    TypeAlias,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

from .errors import LlvidError, UsageError, nearest

MOST_BYTES = 2**18  # of a file or a conversation: twice the text that the longest context (32,768 tokens) holds
MOST_LINE_BYTES = 2**26  # a record has some MB at most
_MOST_SHOWN = 100  # characters of a value in an error
_MOST_NESTED = 32
_MOST_DIGITS = 1000  # of a YAML number: Python shows none of more than 4,300
_MOST_LISTED = 20  # keys in a hint
_YAML_INT, _YAML_FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"

Text = NewType("Text", str)  # not empty
Shape: TypeAlias = Mapping[str, Any]  # the type of each key, or the shape below it

_WORDS = {
    NoneType: "null", str: "text", Text: "text", int: "a whole number", float: "a number", bool: "true or false",
    list: "a non-empty list", dict: "an object",
}  # fmt: skip


class InputError(UsageError):
    """Input that is not understood; `field` is its place: `.messages[0].content[1]`."""

    def __init__(self, message: str, hint: str | None = None, field: str = "") -> None:
        super().__init__(message, hint)
        self.field = field


@contextmanager
def placed(place: str = "", field: str = "") -> Iterator[None]:
    """Prefix the line of an error with the place of the input, and the error's field with `field`."""
    try:
        yield
    except UsageError as error:
        message = f"{place}: {error}" if place else str(error)
        raise InputError(message, error.hint, field + getattr(error, "field", "")) from None


def is_unicode(text: str) -> bool:
    """Return whether a text has no half of a character, which bytes that are not UTF-8 become: tokenizers refuse it."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def brief(value: object) -> str:
    """Return a value as an error shows it: in JSON's words, and shortened if it is long."""
    text = _shown(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def _shown(value: object, nested: int = 0) -> str:
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if not isinstance(value, list | dict):
        return repr(value)
    if nested > _MOST_NESTED:
        return "..."
    if isinstance(value, list):
        return f"[{', '.join(_shown(each, nested + 1) for each in value[:_MOST_SHOWN])}]"
    pairs = islice(value.items(), _MOST_SHOWN)
    return f"{{{', '.join(f'{key!r}: {_shown(each, nested + 1)}' for key, each in pairs)}}}"


def encodable(text: str) -> str:
    """Return the text; raises UsageError for half of a surrogate pair, which JSON allows and tokenizers refuse."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{text[error.start]!r} is only half of a character") from None
    return text


def is_special(path: Path) -> bool:
    """Return whether a path is a pipe, a device or a socket: opening one could wait forever, reading it never end."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # whoever opens it says why it can't be opened
        return False
    return not S_ISREG(mode) and not S_ISDIR(mode)


def bounded_lines(file: BinaryIO, failure: type[LlvidError] = LlvidError) -> Iterator[bytes]:
    """Yield the lines of a file; raises `failure` for one of more than MOST_LINE_BYTES, without reading all of it."""
    number = 0
    while line := file.readline(MOST_LINE_BYTES + 1):
        number += 1
        if len(line) > MOST_LINE_BYTES:
            raise failure(f"{file.name}, line {number}: longer than {MOST_LINE_BYTES:,} bytes")
        yield line


def read_file(path: Path, kind: str) -> bytes:
    """Return the content of a file; raises UsageError if it can't be read, or is too long for its kind."""
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} can't be read: {getattr(error, 'strerror', None) or error}") from None
    if len(content) > MOST_BYTES:
        raise UsageError(f"{path}: too long for a {kind} (more than {MOST_BYTES:,} bytes)")
    return content


def read_yaml(content: bytes | str) -> object:
    """Return plain data; raises UsageError with the line of an error, such as a key that appears twice, NaN, infinity.

    Aliases are not allowed: with them, a text of a few lines can grow to gigabytes.
    """
    import yaml

    class Reader(yaml.SafeLoader):
        nested = 0

        def compose_node(self, parent: Any, index: Any) -> Any:
            self.nested += 1
            if self.nested > _MOST_NESTED or self.check_event(yaml.AliasEvent):
                event: Any = self.peek_event()  # type: ignore[no-untyped-call]
                problem = "nested too deeply" if self.nested > _MOST_NESTED else "aliases are not allowed"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
            node = super().compose_node(parent, index)
            if isinstance(node, yaml.ScalarNode) and node.tag == _YAML_INT and len(node.value) > _MOST_DIGITS:
                raise yaml.MarkedYAMLError(problem="the number has too many digits", problem_mark=node.start_mark)
            if (
                isinstance(node, yaml.ScalarNode)
                and node.tag == _YAML_FLOAT
                and not math.isfinite(self.construct_yaml_float(node))
            ):
                raise yaml.MarkedYAMLError(problem=f"{node.value} is not allowed", problem_mark=node.start_mark)
            self.nested -= 1
            return node

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
            seen = set[str]()
            for key, _ in node.value:
                if isinstance(key, yaml.ScalarNode) and key.value in seen:
                    problem = f"the key {brief(key.value)} appears twice"
                    raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
                seen.add(str(key.value))
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(_decoded(content), Reader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        # a character that YAML forbids has a `reason`: the text of that error has two lines
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or error
        raise InputError(f"{where}not YAML: {problem}") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError):  # what PyYAML makes of `!!bool x`, "\UFFFFFFFF"
        raise InputError("not YAML: a value is not what its tag says, or has a character that does not exist") from None


def parse_json(content: bytes | str) -> Any:
    """Return the values of JSON that a program wrote; raises ValueError, also for what is nested too deeply."""
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_json(content: bytes | str, encoding: str = "utf-8-sig") -> object:
    """Return the values of JSON; raises UsageError, also for a key that appears twice, NaN, and infinity (1e999)."""
    try:
        text = _decoded(content, encoding)
        return json.loads(text, object_pairs_hook=_each_once, parse_constant=_no_number, parse_float=_finite)
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise InputError(f"not JSON: {error.msg} ({line}column {error.colno})") from None
    except RecursionError:
        raise InputError("not JSON: nested too deeply") from None
    except ValueError as error:
        raise InputError(f"not JSON: {error}") from None


def read_object(content: bytes, encoding: str = "utf-8-sig") -> dict[str, Any]:
    """Return the values of a JSON object; raises UsageError."""
    values = read_json(content, encoding)
    if not isinstance(values, dict):
        raise InputError(f"must be a JSON object, got {brief(values)}")
    return values


class Numbered(Protocol):
    """What a line of a file says; no two lines may have the same id."""

    @property
    def id(self) -> str | int:
        """Its own, or the line's number."""


Line = TypeVar("Line", bound=Numbered)


def read_lines(path: Path, read: Callable[[dict[str, Any], int], Line]) -> Iterator[Line]:
    """Yield what `read` makes of the object and the number of each line that is not empty.

    Raises UsageError for the first line that is not understood, with its number, and for a file that can't be read.
    """
    ids = set[str | int]()
    # what a shell passes as an open descriptor, as `<(command)` does, is read
    if is_special(path) and not os.fspath(path).startswith(("/dev/stdin", "/dev/fd/", "/proc/self/fd/")):
        raise UsageError(f"{path} can't be read: not a regular file")
    try:
        with path.open("rb") as file:
            for number, content in enumerate(bounded_lines(file, UsageError), start=1):
                if not content.strip():
                    continue
                with placed(f"{path}, line {number}"):
                    line = read(read_object(content), number)
                    if line.id in ids:
                        raise UsageError(f"the id {brief(line.id)} appears twice")
                ids.add(line.id)
                yield line
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}") from None


def schema_text(schema: object) -> str:
    """Return a JSON schema as text; raises UsageError for what is no object, or too long."""
    if not isinstance(schema, Mapping):
        raise InputError(f"a JSON schema must be an object, got {brief(schema)}")
    try:
        text = encodable(json.dumps(schema, ensure_ascii=False))
    except (RecursionError, TypeError) as error:
        problem = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InputError(f"not a JSON schema: {problem}") from None
    if len(text) > MOST_BYTES:
        raise InputError(f"a JSON schema can have at most {MOST_BYTES:,} characters, got {len(text):,}")
    return text


_type_hints = cache(get_type_hints)  # which takes 0.1 ms, for each request to the server


def shape_of(kind: type) -> dict[str, Any]:
    """Return the fields of a dataclass and their types."""
    types = _type_hints(kind)
    return {field.name: types[field.name] for field in fields(kind)}


def read_fields(values: object, shape: Shape, where: str = "", *, null_is_missing: bool = False) -> dict[str, Any]:
    """Return the values of a mapping, each of the type that the shape has for its key; keys may be missing.

    `where` is the name of the mapping in errors. Raises UsageError for an unknown key or a wrong value.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"{where} must be a mapping of keys to values, got {brief(values)}")
    for key in values:
        if key not in shape:
            message = f"unknown key {brief(key)}" + (f" in {where}" if where else "")
            keys = f"the keys are {', '.join(sorted(shape))}" if len(shape) <= _MOST_LISTED else None
            raise InputError(message, nearest(str(key), shape) or keys, f".{str(key)[:_MOST_SHOWN]}")
    result = {}
    for key, value in values.items():
        if null_is_missing and value is None:
            continue
        allowed = shape[key]
        with placed(field=f".{key}"):
            if isinstance(allowed, Mapping):
                result[key] = read_fields(value, allowed, key, null_is_missing=null_is_missing)
            else:
                result[key] = fitting(value, allowed, f"{where}: {key}" if where else repr(key))
    return result


def fitting(value: object, allowed: Any, name: str) -> Any:
    """Return a value, checked against a type; an int counts as a float. Raises UsageError."""
    if isinstance(value, str) and allowed is not Any:
        with placed(name):
            encodable(value)  # msgspec would raise a UnicodeEncodeError
    fit: Any = value
    if type(value) is not allowed and allowed is not Any:  # our presets need no msgspec, whose import takes 9 ms
        import msgspec

        try:
            fit = msgspec.convert(value, allowed, strict=True)
        except (msgspec.ValidationError, UnicodeEncodeError):  # the second for half of a character in a list
            hint = nearest(str(value), get_args(allowed)) if get_origin(allowed) is Literal else None
            raise InputError(f"{name} must be {_words(allowed)}, got {brief(value)}", hint) from None
    is_blank = Text in (allowed, *get_args(allowed)) and isinstance(fit, str) and not fit.strip()
    if is_blank or (allowed is list and not fit):
        raise InputError(f"{name} must be {_words(allowed)}, got {brief(value)}")
    return fit


@dataclass(frozen=True)
class MessageForm:
    """How messages are written: the roles and their meaning, the kinds of media, and the key of a path or URL."""

    roles: Mapping[str, str]
    kinds: Sequence[str]
    place: str
    ignored: Sequence[str] = ()


def read_message(message: object, form: MessageForm) -> tuple[str, str, list[tuple[int, str | list[str]]]]:
    """Return the role of a chat message, its text, and the part number and the path or URL of each medium.

    A video may have a list of them, of its pictures. Empty keys are ignored: chat clients write them. Raises
    UsageError.
    """
    if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
        raise InputError(f"a message needs 'role' and 'content', got {brief(message)}")
    for key, value in message.items():
        if key not in ("role", "content", *form.ignored) and value not in (None, []):
            raise InputError(f"unknown key {brief(key)} in a message", nearest(str(key), ("role", "content")))
    role, content = message["role"], message["content"]
    if not isinstance(role, str) or role not in form.roles:
        raise InputError(f"the role must be {_either(form.roles.values())}, got {brief(role)}", field=".role")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    with placed(field=".content"):
        parts = fitting(content, list, "'content'")
    texts: list[str] = []
    media: list[tuple[int, Any]] = []
    for number, part in enumerate(parts):
        values = part if isinstance(part, dict) else {}
        kind, text = str(values.get("type")), values.get("text")
        place = values.get(form.place, values.get(kind))
        if isinstance(place, dict):
            place = place.get(form.place)
        with placed(field=f".content[{number}]"):
            if kind == "text" and isinstance(text, str):
                texts.append(encodable(text))
            elif kind in form.kinds and _is_place(place, kind) and form.roles[role] == "user":
                media.append((number, place))
            else:
                expected = f"a text, or, from the user, {_either(form.kinds)} with a {form.place}"
                raise InputError(f"a part of a message must be {expected}, got {brief(part)}")
    return form.roles[role], "\n".join(texts), media


def _is_place(place: object, kind: str) -> bool:
    if isinstance(place, list) and kind.startswith("video"):
        return bool(place) and all(isinstance(each, str) and each for each in place)
    return isinstance(place, str) and bool(place)


def _words(allowed: Any) -> str:
    """Return a type in plain English."""
    parts = get_args(allowed)
    if get_origin(allowed) is Literal:
        return f"one of {', '.join(parts)}"
    if get_origin(allowed) is list:
        return f"a list of {_words(parts[0])}s"
    return " or ".join(map(_words, parts)) if parts else _WORDS[allowed]


def _either(words: Iterable[str]) -> str:
    *others, last = dict.fromkeys(words)
    return f"{', '.join(others)} or {last}"


def _decoded(content: bytes | str, encoding: str = "utf-8-sig") -> str:
    try:
        return content if isinstance(content, str) else content.decode(encoding)
    except UnicodeDecodeError:
        raise InputError("not UTF-8 text") from None


def _each_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {brief(twice)} appears twice")
    return values


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not allowed")


def _finite(text: str) -> float:
    if math.isinf(number := float(text)):
        raise ValueError(f"{brief(text)} is too large")
    return number
