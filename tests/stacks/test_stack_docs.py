"""docs/stacks.md says what is so: its stacks load, its examples fit them, its tables have every key and default."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, TypeAdapter

from cairn.contracts import Contract
from cairn.data.examples import StackExample, gold_fields, read_examples
from cairn.engines.base import Sampling
from cairn.engines.fake_engine import FakeEngine
from cairn.stacks.rules import RULES
from cairn.stacks.runner import Runner
from cairn.stacks.spec import StackSpec, load_stack
from cairn.stacks.stage import StageSpec
from cairn.stacks.trace import format_stage

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "stacks.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
YAML = [body for language, body in BLOCKS if language == "yaml"]
STACKS = [body for body in YAML if isinstance(yaml.safe_load(body), dict)]


def table(heading: str) -> dict[str, str]:
    """Returns first cell -> second cell of the first table after a heading."""
    section = TEXT.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [line.split("|") for line in section.splitlines() if line.startswith("| `")]
    return {row[1].strip(" `"): row[2].strip() for row in rows}


def examples() -> list[tuple[str, dict[str, Any]]]:
    """Returns each example with the stack above it."""
    found, stack = [], ""
    for language, body in BLOCKS:
        stack = body if language == "yaml" else stack
        found += [(stack, json.loads(body))] if language == "json" else []
    return found


def load(text: str, folder: Path) -> StackSpec:
    (folder / "stack.yaml").write_text(text, encoding="utf-8")
    return load_stack(folder / "stack.yaml")


@pytest.mark.parametrize("text", STACKS, ids=[re.search(r"name: (\S+)", text)[1] for text in STACKS])
def test_every_stack_loads(text: str, tmp_path: Path) -> None:
    assert load(text, tmp_path).stages


def test_the_other_blocks_are_contracts_of_every_kind() -> None:
    [contracts] = [yaml.safe_load(body) for body in YAML if body not in STACKS]
    for contract in contracts:
        TypeAdapter(Contract).validate_python(contract)
    kinds = TypeAdapter(Contract).json_schema()["discriminator"]["mapping"]
    assert {contract["kind"] for contract in contracts} == set(kinds)


@pytest.mark.parametrize(("stack", "row"), examples())
def test_every_example_fits_its_stack(stack: str, row: dict[str, Any], tmp_path: Path) -> None:
    spec = load(stack, tmp_path)
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    [example] = read_examples(tmp_path / "train.jsonl", spec)
    assert gold_fields(spec, example)[spec.answer_stage] == row["answer"]


def test_the_run_shown_is_what_a_run_shows(tmp_path: Path) -> None:
    [shown] = [body for language, body in BLOCKS if language == "text"]
    stack, row = examples()[0]
    spec = load(stack, tmp_path)
    example = StackExample(row["id"], row["inputs"], row["stages"], row["answer"])
    engine = FakeEngine(list(example.stages["place"]), adapters=spec.adapter_names())
    assert format_stage(Runner(spec, engine).run([example.inputs])[0].stages[0], 1) == shown.rstrip()


@pytest.mark.parametrize(
    ("heading", "model"),
    [("Keys of the stack", StackSpec), ("Keys of a stage", StageSpec), ("Sampling", Sampling)],
)
def test_the_tables_have_every_key_and_its_default(heading: str, model: Any) -> None:
    shown = table(heading)
    assert set(shown) == set(model.model_fields)
    for name, cell in shown.items():
        field = model.model_fields[name]
        default = None if field.is_required() else field.default
        said = yaml.safe_load(cell.strip("`")) if cell else None
        if isinstance(default, BaseModel):
            assert type(default).model_validate(said) == default, name
        else:
            assert said == (list(default) if isinstance(default, tuple) else default), name


def test_the_table_of_rules_has_every_rule_and_what_it_needs() -> None:
    assert {name: cell.replace("`", "").split(", ") for name, cell in table("Rules").items()} == {
        name: list(rule.needs) for name, rule in RULES.items()
    }
