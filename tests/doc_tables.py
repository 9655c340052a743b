"""What the tests of the reference pages share: a table under a heading, held against a settings model."""

from __future__ import annotations

import re
from typing import Any

import yaml
from pydantic import BaseModel


def table(text: str, heading: str) -> dict[str, str]:
    """Returns first cell -> second cell of the first table of keys under a heading of any level."""
    below = re.split(rf"\n##+ {re.escape(heading)}\n", text, maxsplit=1)[1]
    section = re.split(r"\n##+ ", below, maxsplit=1)[0]
    lines = section[section.index("\n| `") + 1 :].split("\n\n", 1)[0].splitlines()
    cells = [line.split("|") for line in lines if line.startswith("| `")]
    return {row[1].strip(" `"): row[2].strip(" `") for row in cells}


def check_table(text: str, heading: str, model: type[BaseModel]) -> None:
    """Asserts that a table has every key of a model and its default; required keys and whole sections have none."""
    shown = table(text, heading)
    assert set(shown) == set(model.model_fields)
    for name, cell in shown.items():
        default: Any = model.model_fields[name].get_default(call_default_factory=True)
        if model.model_fields[name].is_required() or isinstance(default, BaseModel):
            assert not cell, name
        else:
            assert yaml.safe_load(cell) == default, name
