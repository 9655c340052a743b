"""Strict configuration: defaults < YAML file < --set key.path=value.

    class Recipe(StrictModel): ...
    recipe = load_config(Recipe, "recipe.yaml", ["train.steps=200"])
    save_config(recipe, run / "config.yaml")        # reloads equal

An unknown key is an error with a suggestion; every fault of one configuration is in one ConfigError. The
model class is the one source of each default, and cross-field rules live in its validators.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from cairn.errors import ConfigError, did_you_mean
from cairn.files import write_text

__all__ = ["StrictModel", "load_config", "parse_config", "read_yaml", "save_config"]

Model = TypeVar("Model", bound=BaseModel)


class StrictModel(BaseModel):
    """Base of every configuration: unknown keys are refused, values are frozen after checking."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, protected_namespaces=())


class _Loader(yaml.SafeLoader):
    """Safe YAML, with two traps of YAML 1.1 removed: a repeated key is refused, and 1e-3 is a number."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if (key.tag, key.value) in seen:
                raise yaml.composer.ComposerError(None, None, f"key {key.value!r} is given twice", key.start_mark)
            seen.add((key.tag, key.value))
        return node


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads back equal."""


def _dump_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = '"' if set(text) & set("\x85\u2028\u2029\ufeff") else None  # YAML takes these for line breaks
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _dump_text)
for _kind in (_Loader, _Dumper):  # the dumper must know it too, and put the text "1e-3" into quotes
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+\Z"), list("-+0123456789")
    )


def _load_yaml(text: str) -> Any:
    return yaml.load(text, Loader=_Loader)  # a SafeLoader: builds plain values only


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Reads a YAML file whose top level is a mapping.

    Raises:
        ConfigError: the file is missing, unreadable, not YAML, or not a mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(str(path), ["no such file"], next="check the path; recipes/ has working ones") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), [f"cannot be read ({error})"]) from None
    try:
        loaded = _load_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(str(path), [f"is not valid YAML: {' '.join(str(error).split())}"]) from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(str(path), [f"top level is a {type(loaded).__name__}, allowed: a mapping of keys to values"])
    return loaded


def load_config(model: type[Model], path: str | Path | None = None, overrides: Iterable[str] = ()) -> Model:
    """Builds `model` from its defaults, a YAML file and `key.path=value` overrides, in that order.

    Args:
        model: a StrictModel class.
        path: YAML file, or None for defaults only.
        overrides: texts such as `train.steps=200` or `stages.0.retries=2` (a list counts from 0); the value is
            parsed as YAML.

    Raises:
        ConfigError: the file cannot be read, or any key or value is wrong (all faults at once).
    """
    overrides = list(overrides)
    data = read_yaml(path) if path is not None else {}
    source = str(path) if path is not None else "defaults"
    faults: list[str] = []
    for override in overrides:
        fault = _apply(data, override)
        if fault:
            faults.append(fault)
    if faults:
        raise ConfigError("--set", faults)
    if overrides:
        source += " with --set " + " ".join(overrides)
    return parse_config(model, data, source)


def parse_config(model: type[Model], data: dict[str, Any], source: str) -> Model:
    """Checks a mapping against `model`.

    Raises:
        ConfigError: listing every fault with its key, its value and what is allowed.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ConfigError(source, [_fault(model, item) for item in error.errors()]) from None


def save_config(config: BaseModel, path: str | Path) -> None:
    """Writes the resolved configuration as YAML; `load_config` of the file gives an equal object."""
    data = config.model_dump(mode="json")
    write_text(path, yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def _fault(model: type[BaseModel], item: Any) -> str:
    place = ".".join(str(part) for part in item["loc"]) or "(whole file)"
    if item["type"] == "extra_forbidden":
        known = _keys_at(model, item["loc"][:-1])
        suggestion = did_you_mean(str(item["loc"][-1]), known)
        return f"{place}: unknown key{suggestion}, allowed: {', '.join(known) or 'none'}"
    message = item["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if item["type"] == "missing":
        return f"{place}: required, but missing"
    if isinstance(item.get("input"), dict | list) or item["type"] == "value_error":
        return f"{place}: {message}"
    return f"{place}: {item.get('input')!r}: {message}"


def _apply(data: dict[str, Any], override: str) -> str | None:
    """Puts one `key.path=value` into `data`; returns the fault, if any."""
    key, equals, raw = override.partition("=")
    if not equals or not all(key.split(".")):
        return f"--set {override!r}: allowed: key.path=value"
    try:
        value = _load_yaml(raw)
    except yaml.YAMLError:
        return f"--set {override!r}: value is not valid YAML"
    node: Any = data
    parts, depth = key.split("."), 0
    while depth < len(parts):
        if isinstance(node, list):
            part = parts[depth]
            if not part.isdigit() or int(part) >= len(node):
                place, most = ".".join(parts[:depth]), len(node) - 1
                return f"--set {override!r}: {place} is a list, allowed: a number from 0 to {most}, not {part!r}"
            at: Any = int(part)
        elif isinstance(node, dict):
            at = _key_that_begins(node, parts[depth:])
        else:
            return f"--set {override!r}: {'.'.join(parts[:depth])} is {node!r}, not a mapping"
        depth += 1 + str(at).count(".")
        if depth == len(parts):
            node[at] = value
        else:  # a copy, because a YAML anchor can put one mapping into two places
            below = node.get(at) if isinstance(node, dict) else node[at]
            node[at] = {} if below is None else copy.copy(below)
            node = node[at]
    return None


def _key_that_begins(node: Mapping[str, Any], parts: list[str]) -> str:
    """Returns the key of a mapping that a path begins with: its own if it has one, dots and all, else the first part.

    The variants of an ablation or a sweep have keys such as `training.lora.rank`.
    """
    paths = (".".join(parts[:count]) for count in range(len(parts), 0, -1))
    return next((path for path in paths if path in node), parts[0])


def _keys_at(model: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """Returns the field names allowed at a location, following nested models, lists, dicts and tagged unions."""
    models: list[type[BaseModel]] = [model]
    for part in loc:
        holders = [one for one in models if part in one.model_fields]
        tagged = [one for one in models if part == one.__name__ or part in _tags(one)]
        if len(models) > 1 and tagged:  # the name of a union's branch, which pydantic puts into the path
            models = tagged
        elif holders:
            models = [inner for one in holders for inner in _models_in(one.model_fields[part].annotation)]
    return list(dict.fromkeys(name for one in models for name in one.model_fields))


def _tags(model: type[BaseModel]) -> set[Any]:
    literals = [field.annotation for field in model.model_fields.values() if get_origin(field.annotation) is Literal]
    return {value for literal in literals for value in get_args(literal)}


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and get_origin(annotation) is None and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for argument in get_args(annotation) for found in _models_in(argument)]
