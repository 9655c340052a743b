"""Strict configuration: every fault at once, with its place, its value and what is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError, model_validator

from cairn.config import StrictModel, load_config, parse_config, read_yaml, save_config
from cairn.errors import ConfigError


class Optimizer(StrictModel):
    rate: float = Field(default=1e-3, gt=0)
    name: Literal["adamw", "muon"] = "adamw"


class Choices(StrictModel):
    kind: Literal["choices"] = "choices"
    values: list[str]


class Length(StrictModel):
    kind: Literal["length"] = "length"
    longest: int


class Stage(StrictModel):
    name: str
    retries: int = 1
    contract: Annotated[Choices | Length, Field(discriminator="kind")] | None = None


class Recipe(StrictModel):
    steps: int = 100
    optimizer: Optimizer = Optimizer()
    stages: list[Stage] = []
    named: dict[str, Stage] = {}
    folder: Path | None = None
    extra: dict[str, Any] = {}

    @model_validator(mode="after")
    def _cross(self) -> Recipe:
        if self.steps < len(self.stages):
            raise ValueError(f"steps is {self.steps}, allowed: at least one a stage ({len(self.stages)})")
        return self


def _write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def _faults(data: dict[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_config(Recipe, data, "recipe.yaml")
    return caught.value.faults


def test_defaults_then_file_then_overrides(tmp_path: Path) -> None:
    path = _write(tmp_path / "r.yaml", "steps: 5\noptimizer: {rate: 0.5}\n")
    assert load_config(Recipe).steps == 100
    assert load_config(Recipe, path).optimizer == Optimizer(rate=0.5)
    loaded = load_config(Recipe, path, ["optimizer.name=muon", "steps=7"])
    assert (loaded.steps, loaded.optimizer.rate, loaded.optimizer.name) == (7, 0.5, "muon")


def test_unknown_key_has_a_suggestion_and_the_allowed_keys() -> None:
    (fault,) = _faults({"step": 3})
    assert fault.startswith("step: unknown key (did you mean steps?), allowed: steps, optimizer,")
    (fault,) = _faults({"optimizer": {"rte": 1}})
    assert fault == "optimizer.rte: unknown key (did you mean rate?), allowed: rate, name"


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (
            {"stages": [{"name": "a"}, {"name": "b", "retrys": 2}]},
            "stages.1.retrys: unknown key (did you mean retries?), allowed: name, retries, contract",
        ),
        ({"named": {"a": {"name": "a", "nam": 1}}}, "named.a.nam: unknown key (did you mean name?)"),
        (
            {"stages": [{"name": "a", "contract": {"kind": "length", "longest": 1, "longes": 2}}]},
            "stages.0.contract.length.longes: unknown key (did you mean longest?), allowed: kind, longest",
        ),
        (
            {"stages": [{"name": "a", "contract": {"kind": "choices", "values": [], "value": 2}}]},
            "stages.0.contract.choices.value: unknown key (did you mean values?), allowed: kind, values",
        ),
    ],
)
def test_unknown_key_inside_lists_dicts_and_unions(data: dict[str, Any], fault: str) -> None:
    (found,) = _faults(data)
    assert found.startswith(fault)


def test_all_faults_at_once() -> None:
    faults = _faults({"steps": "many", "optimizer": {"rate": -1, "name": "sgd"}, "stages": [{}], "zzz": 1})
    text = "\n".join(faults)
    assert len(faults) == 5
    assert "steps: 'many': input should be a valid integer" in text
    assert "optimizer.rate: -1: input should be greater than 0" in text
    assert "optimizer.name: 'sgd': input should be 'adamw' or 'muon'" in text
    assert "stages.0.name: required, but missing" in text
    assert "zzz: unknown key, allowed:" in text


def test_cross_field_rule_reads_well() -> None:
    assert _faults({"steps": 0, "stages": [{"name": "a"}]}) == [
        "(whole file): steps is 0, allowed: at least one a stage (1)"
    ]


def test_override_values_are_yaml() -> None:
    overrides = ["extra.a=1e-4", "extra.b=[1, two]", "extra.c=null", "extra.d='3'", "extra.e=a=b"]
    loaded = load_config(Recipe, None, overrides)
    assert loaded.extra == {"a": 1e-4, "b": [1, "two"], "c": None, "d": "3", "e": "a=b"}


def test_override_of_a_list_entry(tmp_path: Path) -> None:
    path = _write(tmp_path / "r.yaml", "stages:\n- {name: a}\n- {name: b}\n")
    loaded = load_config(Recipe, path, ["stages.1.retries=3", "stages.0.name=first"])
    assert [(stage.name, stage.retries) for stage in loaded.stages] == [("first", 1), ("b", 3)]


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("steps", "--set 'steps': allowed: key.path=value"),
        ("=3", "--set '=3': allowed: key.path=value"),
        ("a..b=3", "--set 'a..b=3': allowed: key.path=value"),
        ("steps=[1", "--set 'steps=[1': value is not valid YAML"),
        ("steps.x=1", "--set 'steps.x=1': steps is 5, not a mapping"),
        ("stages.1.name=x", "--set 'stages.1.name=x': stages is a list, allowed: a number from 0 to 0, not '1'"),
        ("stages.first.name=x", "stages is a list, allowed: a number from 0 to 0, not 'first'"),
    ],
)
def test_wrong_overrides(tmp_path: Path, override: str, fault: str) -> None:
    path = _write(tmp_path / "r.yaml", "steps: 5\nstages: [{name: a}]\n")
    with pytest.raises(ConfigError) as caught:
        load_config(Recipe, path, [override])
    assert fault in str(caught.value)


def test_override_of_an_unknown_key_names_the_override() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(Recipe, None, ["optimizer.lr=1"])
    assert "--set optimizer.lr=1" in str(caught.value) and "optimizer.lr: unknown key" in str(caught.value)


def test_override_does_not_reach_through_an_anchor(tmp_path: Path) -> None:
    path = _write(tmp_path / "r.yaml", "named:\n  a: &s {name: x}\n  b: *s\n")
    loaded = load_config(Recipe, path, ["named.a.retries=9"])
    assert (loaded.named["a"].retries, loaded.named["b"].retries) == (9, 1)


def test_override_of_keys_that_have_dots(tmp_path: Path) -> None:
    """As in the variants of an ablation: the whole key is found, or the longest that is there."""
    path = _write(tmp_path / "r.yaml", "extra:\n  v: {t.lora.rank: 4, t.own: {share: 0.5}, t: {x: 1}}\n")
    loaded = load_config(Recipe, path, ["extra.v.t.lora.rank=8", "extra.v.t.own.questions=9", "extra.v.t.y=2"])
    assert loaded.extra["v"] == {"t.lora.rank": 8, "t.own": {"share": 0.5, "questions": 9}, "t": {"x": 1, "y": 2}}


def test_saved_file_reloads_equal(tmp_path: Path) -> None:
    config = Recipe(
        steps=7, optimizer=Optimizer(rate=3e-07), folder=Path("a/b"), extra={"text": "no", "é": [None, 1.5, "1e-3"]},
        stages=[Stage(name="yes", contract=Choices(values=["yes", "no", "1"]))],
    )  # fmt: skip
    save_config(config, tmp_path / "saved.yaml")
    assert load_config(Recipe, tmp_path / "saved.yaml") == config


@settings(max_examples=30)
@given(st.floats(allow_nan=False, allow_infinity=False, min_value=1e-300), st.text(max_size=20))
def test_any_value_survives_saving(tmp_path_factory: pytest.TempPathFactory, rate: float, text: str) -> None:
    config = Recipe(optimizer=Optimizer(rate=rate), extra={"text": text})
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    save_config(config, path)
    assert load_config(Recipe, path) == config


def test_values_are_frozen() -> None:
    with pytest.raises(ValidationError):
        Recipe().steps = 5


def test_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert load_config(Recipe, _write(tmp_path / "r.yaml", "# nothing\n")) == Recipe()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("- a\n- b\n", "top level is a list, allowed: a mapping of keys to values"),
        ("a: [1\n", "is not valid YAML"),
        ("steps: 1\nsteps: 2\n", "key 'steps' is given twice"),
        ("optimizer:\n  rate: 1\n  rate: 2\n", "line 3"),
        ("a: !!python/object/apply:os.system ['true']\n", "is not valid YAML"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, fault: str) -> None:
    with pytest.raises(ConfigError, match="r.yaml") as caught:
        read_yaml(_write(tmp_path / "r.yaml", text))
    assert fault in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="missing.yaml: no such file. Next: check the path"):
        read_yaml(tmp_path / "missing.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"a: \xff\xfe\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path / "latin.yaml")


def test_merge_keys_are_no_repeated_keys(tmp_path: Path) -> None:
    text = "extra:\n  one: &one {x: 1, y: 1}\n  two: &two {<<: *one, x: 2}\n  three: {<<: *two}\n"
    path = _write(tmp_path / "r.yaml", text)
    assert load_config(Recipe, path).extra["three"] == {"x": 2, "y": 1}
