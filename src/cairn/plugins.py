"""Objects by name: ours, those that installed packages bring, and any that can be imported.

    nim                       built in: name -> "package.module:object"
    connect_four              an entry point of an installed package
    package.module:object     as it is
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from cairn.errors import ConfigError, did_you_mean

__all__ = ["load_named", "plugin_names"]


def plugin_names(known: Mapping[str, str], group: str) -> list[str]:
    """Returns the names that are built in and those of a group of entry points, sorted."""
    return sorted({*known, *(point.name for point in metadata.entry_points(group=group))})


def load_named(name: str, known: Mapping[str, str], group: str, *, key: str, what: str) -> tuple[Any, str]:
    """Imports an object.

    Args:
        name: built in, of an entry point, or "package.module:object".
        known: what is built in, name -> "package.module:object".
        group: of entry points.
        key: place of the name in the configuration, for the error.
        what: the kind of object, for the error: "game".

    Returns:
        The object, and the place that it was imported from.

    Raises:
        ConfigError: there is none of this name, or it cannot be imported.
    """
    points = {point.name: point.value for point in metadata.entry_points(group=group)}
    place = known.get(name) or points.get(name, name)
    module, colon, attribute = place.partition(":")
    if not colon:
        names = plugin_names(known, group)
        allowed = f"{', '.join(names)}, or package.module:object"
        raise ConfigError(key, [f"{name!r}: no such {what}{did_you_mean(name, names)}, allowed: {allowed}"])
    try:
        return getattr(importlib.import_module(module), attribute), place
    except (ImportError, AttributeError) as error:
        raise ConfigError(key, [f"{name!r}: {place} cannot be imported ({error})"]) from error
