"""The subset of JSON Schema that a contract can promise: what lies outside it, and what breaks it.

Source: JSON Schema, draft 2020-12; `contracts.JsonContract` lists the keywords.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

__all__ = ["schema_faults", "schema_violations", "short"]

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,), "array": (list,), "string": (str,), "integer": (int,), "number": (int, float),
    "boolean": (bool,), "null": (type(None),),
}  # fmt: skip
_KEYWORDS = {
    "type", "enum", "const", "properties", "required", "additionalProperties", "items", "minItems", "maxItems",
    "minLength", "maxLength", "pattern", "minimum", "maximum", "title", "description",
}  # fmt: skip


def schema_faults(schema: Any, place: str = "$") -> list[str]:
    """Returns what in a schema lies outside the subset that `JsonContract` documents."""
    if not isinstance(schema, dict):
        return [f"{place}: a schema must be a mapping"]
    faults = [f"{place}: unknown keyword {word!r}" for word in schema if word not in _KEYWORDS]
    kind = schema.get("type")
    if kind is not None and (not isinstance(kind, str) or kind not in _TYPES):
        faults.append(f"{place}: type {kind!r}, allowed: {', '.join(_TYPES)}")
    properties = schema.get("properties", {})
    if not isinstance(properties, dict):
        faults.append(f"{place}: properties must be a mapping")
        properties = {}
    for name, inner in properties.items():
        faults += schema_faults(inner, f"{place}.{name}")
    if "items" in schema:
        faults += schema_faults(schema["items"], f"{place}[]")
    if not isinstance(schema.get("additionalProperties", True), bool):
        faults.append(f"{place}: additionalProperties must be true or false")
    if not isinstance(schema.get("required", []), list):
        faults.append(f"{place}: required must be a list of names")
    if not isinstance(schema.get("enum", []), list):
        faults.append(f"{place}: enum must be a list")
    for word in ("minItems", "maxItems", "minLength", "maxLength", "minimum", "maximum"):
        if word in schema and (isinstance(schema[word], bool) or not isinstance(schema[word], int | float)):
            faults.append(f"{place}: {word} must be a number")
    if "pattern" in schema:
        try:
            re.compile(schema["pattern"])
        except (re.error, TypeError) as error:
            faults.append(f"{place}: pattern is not a regular expression: {error}")
    return faults


def short(text: str) -> str:
    """Returns a text in quotes, cut to 80 characters."""
    shown = repr(text)
    return shown if len(shown) <= 80 else shown[:77] + "..."


def _same_json(left: Any, right: Any) -> bool:
    """JSON equality: Python alone would take 1 for true."""
    return left == right and isinstance(left, bool) == isinstance(right, bool)


def schema_violations(schema: Mapping[str, Any], value: Any, place: str = "$") -> list[str]:
    """Returns what in a value breaks a schema without faults, each with its place."""
    kind = schema.get("type")
    if kind is not None:
        fits = isinstance(value, _TYPES[kind]) and (kind == "boolean" or not isinstance(value, bool))
        if not fits:
            return [f"{place}: promised {kind}, but got {short(json.dumps(value))}"]
    found: list[str] = []
    if "enum" in schema and not any(_same_json(value, allowed) for allowed in schema["enum"]):
        found.append(f"{place}: promised one of {json.dumps(schema['enum'])}, but got {short(json.dumps(value))}")
    if "const" in schema and not _same_json(value, schema["const"]):
        found.append(f"{place}: promised {json.dumps(schema['const'])}, but got {short(json.dumps(value))}")
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        found += [f"{place}: {name!r} is missing" for name in schema.get("required", []) if name not in value]
        if schema.get("additionalProperties", True) is False:
            found += [f"{place}: {name!r} is not promised" for name in value if name not in properties]
        for name, inner in properties.items():
            if name in value:
                found += schema_violations(inner, value[name], f"{place}.{name}")
    elif isinstance(value, list):
        found += _bounds(schema, "Items", len(value), place, "items")
        for index, item in enumerate(value):
            found += schema_violations(schema.get("items", {}), item, f"{place}[{index}]")
    elif isinstance(value, str):
        found += _bounds(schema, "Length", len(value), place, "characters")
        if "pattern" in schema and not re.search(schema["pattern"], value):
            found.append(f"{place}: promised a text with {schema['pattern']}, but got {short(value)}")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        found += _bounds(schema, "imum", value, place, "")
    return found


def _bounds(schema: Mapping[str, Any], suffix: str, size: float, place: str, unit: str) -> list[str]:
    found = []
    low, high = schema.get(f"min{suffix}"), schema.get(f"max{suffix}")
    if low is not None and size < low:
        found.append(f"{place}: promised at least {low} {unit}".rstrip() + f", but got {size}")
    if high is not None and size > high:
        found.append(f"{place}: promised at most {high} {unit}".rstrip() + f", but got {size}")
    return found
