"""What an answer must look like: `response_format` of OpenAI's API, and vLLM's `structured_outputs`.

Sources: https://platform.openai.com/docs/guides/structured-outputs, https://docs.vllm.ai/en/latest/features/structured_outputs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ..conversation import ANY_OBJECT
from ..errors import UsageError
from ..validation import MOST_BYTES, InputError, brief, encodable, placed, read_fields, read_json, schema_text

_FORMATS = {"text": "text", "json_object": "JSON object", "json_schema": "JSON that fits a schema"}
_SCHEMA_SHAPE = {"name": str, "description": Any, "schema": dict, "strict": bool}
# Of vLLM's flags, those that change nothing here: white space is always as Python writes JSON.
_OUTPUT_SHAPE: dict[str, Any] = {
    "choice": list, "json": Any, "regex": str, "json_object": bool,
    **dict.fromkeys(("disable_any_whitespace", "disable_additional_properties", "disable_fallback"), bool),
}  # fmt: skip
_MOST_CHOICES = 1000


def read_answer_format(response_format: object, structured_outputs: object) -> dict[str, str | None]:
    """Return the fields of a `Generation` that two fields of a request ask for; none if both are None.

    Raises UsageError.
    """
    if structured_outputs is None:
        with placed(field="response_format"):
            return {} if response_format is None else _of_format(response_format)
    if response_format not in (None, {"type": "text"}):
        raise InputError("use response_format or structured_outputs, not both", field="structured_outputs")
    with placed(field="structured_outputs"):
        return _of_outputs(structured_outputs)


def _of_format(value: object) -> dict[str, str | None]:
    values = value if isinstance(value, Mapping) else {}
    kind = str(values.get("type"))
    if kind not in _FORMATS:
        raise InputError(f"'response_format' must have a type of {', '.join(_FORMATS)}, got {brief(value)}")
    read_fields(values, {"type": str, **({"json_schema": Any} if kind == "json_schema" else {})}, "response_format")
    if kind == "text":
        return {"schema": None, "regex": None}
    if kind == "json_object":
        return {"schema": ANY_OBJECT, "regex": None}
    with placed(field=".json_schema"):
        given = read_fields(values.get("json_schema"), _SCHEMA_SHAPE, "json_schema", null_is_missing=True)
        with placed(field=".schema"):
            return {"schema": schema_text(given.get("schema")), "regex": None}


def _of_outputs(value: object) -> dict[str, str | None]:
    given = read_fields(value, _OUTPUT_SHAPE, "structured_outputs", null_is_missing=True)
    for flag in ("disable_additional_properties", "json_object"):
        if given.get(flag) is False:
            del given[flag]
    if "disable_additional_properties" in given:
        raise InputError("'disable_additional_properties' is not supported here", "write it into the schema")
    kinds = [name for name in ("choice", "json", "regex", "json_object") if name in given]
    if len(kinds) != 1:
        raise InputError(f"'structured_outputs' must have one of choice, json and regex, got {brief(value)}")
    (kind,) = kinds
    with placed(field=f".{kind}"):
        if kind == "json_object":
            return {"schema": ANY_OBJECT, "regex": None}
        if kind == "json":
            schema = given["json"]
            return {"schema": schema_text(read_json(schema) if isinstance(schema, str) else schema), "regex": None}
        regex = given["regex"] if kind == "regex" else "|".join(re.escape(each) for each in _choices(given["choice"]))
        if not 0 < len(regex) <= MOST_BYTES:
            raise UsageError(f"'{kind}' must have 1 to {MOST_BYTES:,} characters, got {len(regex):,}")
        return {"schema": None, "regex": encodable(regex)}


def _choices(values: list[Any]) -> list[str]:
    if len(values) > _MOST_CHOICES or not all(isinstance(each, str) and each for each in values):
        raise UsageError(f"'choice' must be a list of 1 to {_MOST_CHOICES:,} texts, got {brief(values)}")
    return values
