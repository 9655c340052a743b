"""docs/distill.md says what is so: its recipe is right, its tables have every key with its default."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from cairn.data.distill_config import (
    DistillConfig,
    HuggingFaceTeacher,
    OpenAITeacher,
    RecordedTeacherSettings,
    RuleTeacherSettings,
    StagePlan,
    distill_config,
)
from cairn.data.distill_rules import RULE_TEACHERS
from cairn.data.instructions import SourceSettings
from cairn.verbs.comparison.recipe import load_recipe
from cairn.verbs.init import FIELDS

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "distill.md").read_text(encoding="utf-8")


def table(before: str) -> dict[str, str]:
    """Returns first cell -> second cell of the first table after a text."""
    block = re.search(r"((?:^\|.*\n)+)", TEXT.split(before, 1)[1], re.MULTILINE)
    assert block, before
    rows = [re.split(r"(?<!\\)\|", line) for line in block[1].splitlines()[2:]]
    return {row[1].strip(" `"): row[2].strip() for row in rows}


TABLES = {
    "### Keys of `distill`": DistillConfig, "### Keys of `source`": SourceSettings, "### Keys of a plan": StagePlan,
    "**`openai`**": OpenAITeacher, "**`huggingface`**": HuggingFaceTeacher, "**`recorded`**": RecordedTeacherSettings,
    "**`rule`**": RuleTeacherSettings,
}  # fmt: skip


@pytest.mark.parametrize("place", TABLES)
def test_every_key_stands_in_its_table_with_its_default(place: str) -> None:
    model: type[BaseModel] = TABLES[place]
    shown, fields = table(place), {key: field for key, field in model.model_fields.items() if key != "kind"}
    assert list(shown) == list(fields)
    for key, cell in shown.items():
        default = fields[key].get_default()
        if fields[key].is_required() or isinstance(default, BaseModel):
            assert cell == "", key
        else:
            assert cell == f"`{default if isinstance(default, str) else json.dumps(default)}`", key


def test_the_recipe_shown_is_right(tmp_path: Path) -> None:
    (body,) = re.findall(r"^```yaml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    (tmp_path / "recipe.yaml").write_text(body)
    recipe = load_recipe(tmp_path / "recipe.yaml")
    config = distill_config(recipe.distill, recipe.stack, "docs/distill.md")
    assert isinstance(config.teacher, OpenAITeacher) and config.teacher.url in TEXT


def test_kinds_and_rules_are_named() -> None:
    kinds = table("## A beginning")
    assert list(kinds) == list(FIELDS) == [name for name in ("qa", "extract", "classify", "instruct")]
    assert all(re.sub(r" \(.*?\)", "", kinds[kind]) == ", ".join(FIELDS[kind]) for kind in FIELDS)
    assert set(RULE_TEACHERS) == set(FIELDS)


RECIPES = [path for path in sorted((ROOT / "recipes").glob("*.yaml")) if "distill" in yaml.safe_load(path.read_text())]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_the_section_of_every_recipe_is_right(path: Path) -> None:
    recipe = load_recipe(path)
    assert distill_config(recipe.distill, recipe.stack, path.name).source.licence
