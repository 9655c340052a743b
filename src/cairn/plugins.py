"""Objects by name: ours, those that installed packages bring, and any that Python can import.

    nim                       built in, or an entry point of an installed package
    package.module:object     as it is
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from cairn.errors import ConfigError, did_you_mean

__all__ = ["load_named", "plugin_names"]


def plugin_names(known: Mapping[str, Any], group: str) -> list[str]:
    """Returns the names that are built in and those of a group of entry points, sorted."""
    return sorted({*known, *(point.name for point in metadata.entry_points(group=group))})


def load_named(name: str, known: Mapping[str, Any], group: str, *, key: str, what: str, kind: str = "object") -> Any:
    """Returns an object, imported where that is needed.

    Args:
        name: built in, of an entry point, or "package.module:object".
        known: what is built in: name -> the object, or "package.module:object".
        group: of entry points.
        key: place of the name in the configuration, for the error.
        what: what it is for, for the error: "game".
        kind: what it must be, for the error: "function".

    Raises:
        ConfigError: there is none of this name, two packages bring one, or it cannot be imported.
    """
    place = name
    if ":" not in name:
        brought = {point.value for point in metadata.entry_points(group=group) if point.name == name}
        owners = [*(["Cairn"] if name in known else []), *sorted(brought)]
        if len(owners) > 1:
            whose = ", ".join(owners)
            raise ConfigError(key, [f"{what} {name!r} has {len(owners)} owners: {whose}; give package.module:{kind}"])
        if not owners:
            names = plugin_names(known, group)
            allowed = f"{', '.join(names)}, or package.module:{kind}"
            raise ConfigError(key, [f"no such {what}: {name!r}{did_you_mean(name, names)}, allowed: {allowed}"])
        found = known.get(name, owners[0])
        if not isinstance(found, str):
            return found
        place = found
    module, _, path = place.partition(":")
    try:
        return functools.reduce(getattr, path.strip().split("."), importlib.import_module(module.strip()))
    except (Exception, SystemExit) as error:  # whatever the module does while it is imported
        shown = f"{name!r}" + ("" if place == name else f" ({place})")
        advice = "install its package, or put its folder on PYTHONPATH"
        fault = f"{what} {shown} cannot be imported ({type(error).__name__}: {error}); {advice}"
        raise ConfigError(key, [fault]) from error
