"""Random JSON schemas, and whether a text is an answer to one."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

import jsonschema

NAMES = ("shape", "colour", "größe", "日本", "a b", 'quote"d', "back\\slash", "émoji 🎈", "x", "y_1")
WORDS = ("red", "blau", "été", "絵", "🎈🎈", 'say "hi"', "tab\there", "", "-", "0")
PATTERNS = (
    "^[a-f0-9]{4}$",
    "^(red|blue|grün)( (light|dark))?$",
    "^[A-Z][a-z]{2,6}$",
    r"^\d{1,3}(\.\d{2})?$",
    "^é+[^x]$",
)
FORMATS = ("date", "time", "uuid", "ipv4")


class Schemas:
    """Draws schemas whose answers are short: nothing in them can go on for ever."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)

    def draw(self) -> dict[str, Any]:
        """Return an object schema, nested up to four deep; one of eight refers to itself."""
        schema = self._object(3)
        if self._draw.random() < 1 / 8:
            schema["properties"]["next"] = {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}
            schema["$defs"] = {"node": {"type": "object", "properties": {"of": self._leaf()}, "required": ["of"]}}
            schema["$defs"]["node"] |= {"additionalProperties": False}
        return schema

    def _object(self, depth: int) -> dict[str, Any]:
        names = self._draw.sample(NAMES, self._draw.randint(1, 4))
        schema: dict[str, Any] = {"type": "object", "properties": {name: self._any(depth - 1) for name in names}}
        schema["required"] = [name for name in names if self._draw.random() < 0.7]
        schema["additionalProperties"] = False
        if self._draw.random() < 0.1:
            schema["patternProperties"] = {"^n_[a-z]$": {"type": "boolean"}}
        return schema

    def _any(self, depth: int) -> dict[str, Any]:
        kind = self._draw.random()
        if depth > 0 and kind < 0.25:
            return self._object(depth)
        if depth > 0 and kind < 0.4:
            return self._array(depth)
        if depth > 0 and kind < 0.5:
            return {"anyOf": [self._any(depth - 1), self._leaf()]}
        if depth > 0 and kind < 0.55:
            return {"oneOf": [{"type": "string", "maxLength": 3}, {"type": "boolean"}, {"type": "null"}]}
        if kind < 0.6:
            return {"allOf": [{"type": "integer", "minimum": -5}, {"maximum": self._draw.randint(0, 40)}]}
        return self._leaf()

    def _array(self, depth: int) -> dict[str, Any]:
        least = self._draw.randint(0, 2)
        schema = {"type": "array", "items": self._any(depth - 1), "minItems": least}
        schema["maxItems"] = least + self._draw.randint(0, 2)
        if self._draw.random() < 0.3:
            schema["prefixItems"] = [self._leaf()]
        return schema

    def _leaf(self) -> dict[str, Any]:
        low = self._draw.randint(-300, 300)
        high = low + self._draw.randint(0, 500)
        return self._draw.choice(
            (
                {"type": "integer", "minimum": low, "maximum": high},
                {"type": "integer", "multipleOf": self._draw.choice((2, 5, 7)), "minimum": 0, "maximum": 99},
                {"type": "number", "minimum": low, "exclusiveMaximum": high + 0.5},
                {"type": "number", "multipleOf": 0.25, "minimum": 0, "maximum": 9},
                {"type": "string", "minLength": self._draw.randint(0, 2), "maxLength": self._draw.randint(2, 9)},
                {"type": "string", "pattern": self._draw.choice(PATTERNS)},
                {"type": "string", "format": self._draw.choice(FORMATS)},
                {"enum": [*self._draw.sample(WORDS, 3), None, 3, [True, 1.5], {"k": "v"}]},
                {"const": self._draw.choice((*WORDS, 1, None, ["é"]))},
                {"type": ["boolean", "null"]},
            )
        )


def fault(text: str, schema: dict[str, Any]) -> str | None:
    """Return what is wrong with an answer; None if it is JSON that fits, and repeats no name that is listed."""
    twice: list[str] = []

    def note(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs if not name.startswith("n_")]
        twice.extend(name for name in names if names.count(name) > 1)
        return dict(pairs)

    try:
        value = json.loads(text, object_pairs_hook=note)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
        validator = jsonschema.Draft202012Validator
        validator(schema, format_checker=validator.FORMAT_CHECKER).validate(value)
    except (ValueError, jsonschema.ValidationError) as error:
        return f"{str(error).splitlines()[0]}: {text}"
    return f"twice {twice}: {text}" if twice else None


def nested(depth: int, around: Any, inner: Any) -> Any:
    for _ in range(depth):
        inner = around(inner)
    return inner


def doubling(keyword: str) -> dict[str, Any]:
    """Return thirty schemas, each of which refers twice to the next one."""
    twice = {f"a{n}": {keyword: [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(30)}
    return {"$defs": {**twice, "a30": {"type": "integer"}}, "$ref": "#/$defs/a0"}


# What a stranger may send, and words of the error, or None where answers can be given.
HOSTILE: dict[str, tuple[Any, str | None]] = {
    "enum": ({"enum": [f"word number {number}" for number in range(9000)]}, None),
    "deep": (nested(400, lambda inner: {"type": "array", "items": inner}, {}), "nested too deeply"),
    "deep required": (
        nested(200, lambda inner: {"type": "object", "properties": {"a": inner}, "required": ["a"]}, {}),
        "nested too deeply",
    ),
    "plus of plus": ({"type": "string", "pattern": "^(a+)+$"}, None),
    "repeated repetition": ({"type": "string", "pattern": "^((a{1,1000}){1,1000}){1,1000}$"}, None),
    "many states": ({"type": "string", "pattern": "^.*a.{30}$"}, None),
    "long pattern": ({"type": "string", "pattern": "(x+x+)+y|(.*)*z" * 500}, None),
    "many alternatives": ({"type": "string", "pattern": f"^({'|'.join(f'[a-z]{{{n}}}b' for n in range(400))})$"}, None),
    "pattern and length": ({"type": "string", "pattern": "a.*b.*c", "minLength": 5000, "maxLength": 9000}, "empty"),
    "long text": ({"type": "string", "minLength": 10**8, "maxLength": 10**9}, None),
    "long list": ({"type": "array", "items": {"type": "integer"}, "minItems": 10**9}, None),
    "lists of lists": (
        nested(6, lambda inner: {"type": "array", "items": inner, "minItems": 500, "maxItems": 1000}, {}),
        None,
    ),
    "large numbers": ({"type": "integer", "minimum": -(10**300), "maximum": 10**300}, "integer range"),
    "multiples": ({"allOf": [{"type": "integer", "multipleOf": n} for n in (99991, 99989, 99971)]}, "fuel"),
    "doubled allOf": (doubling("allOf"), None),
    "doubled anyOf": (doubling("anyOf"), None),
    "product": (
        {
            "allOf": [
                {"anyOf": [{"type": "object", "properties": {f"k{n}": {"const": m}}} for m in range(4)]}
                for n in range(12)
            ]
        },
        "too large",
    ),
    "many names": ({"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(2500)}}, "row"),
    "itself": ({"$ref": "#"}, "no answer fits"),
    "endless": (
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"], "additionalProperties": False},
        None,
    ),
    "impossible": ({"type": "integer", "minimum": 3, "maximum": 1}, "Unsatisfiable"),
    "file": ({"$ref": "file:///etc/passwd"}, "not present"),
    "path": ({"$ref": "/etc/passwd"}, "not present"),
    "URL": ({"$ref": "http://127.0.0.1:9/schema.json"}, "not present"),
    "URL of the id": ({"$id": "http://127.0.0.1:9/a/b.json", "$ref": "c.json"}, "not present"),
    "URL of the draft": ({"$schema": "http://127.0.0.1:9/draft", "type": "integer"}, "not present"),
}
# What llguidance can't honour, or would only approximate.
UNSUPPORTED: tuple[dict[str, Any], ...] = (
    {"type": "array", "uniqueItems": True},
    {"not": {"type": "string"}},
    {"if": {"type": "string"}, "then": {"maxLength": 3}},
    {"type": "array", "contains": {"const": 1}},
    {"type": "object", "dependentRequired": {"a": ["b"]}},
    {"type": "object", "propertyNames": {"maxLength": 3}},
    {"type": "object", "unevaluatedProperties": False},
    {"oneOf": [{"type": "integer"}, {"type": "number"}]},
    {"type": "string", "format": "mine"},
    {"type": "string", "pattern": "^(?=a)b"},
    {"type": "object", "minProperties": 3},
    {"type": "array", "uniqueItems": True, "x-guidance": {"lenient": True}},
    {"oneOf": [{"type": "integer"}, {"type": "number"}], "x-guidance": {"coerce_one_of": True}},
)
