"""The recipe of an experiment: its sections, its paths, its faults."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from cairn.config import save_config
from cairn.errors import ConfigError
from cairn.stacks.spec import load_stack
from cairn.verbs.comparison.experiment import evenly
from cairn.verbs.comparison.recipe import SYSTEMS, load_recipe
from tests.verbs.tiny_experiment import stack, write_recipe


def test_a_recipe_loads_and_reads_back_equal(tmp_path: Path) -> None:
    file = write_recipe(tmp_path, "embedded:base")
    recipe = load_recipe(file, ["compare.shots=1", "stack.training.lora.rank=4"])
    assert recipe.compare.shots == 1 and recipe.stack.training["lora"]["rank"] == 4
    assert recipe.folder == recipe.stack.folder == tmp_path
    save_config(recipe, tmp_path / "recipe.yaml")
    assert load_recipe(tmp_path) == recipe  # the folder's recipe.yaml
    assert load_stack(file).model_dump() == load_recipe(file).stack.model_dump()  # `cairn run` reads the same stack


def test_paths_count_from_the_recipe_if_they_are_there_else_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(write_recipe(tmp_path / "recipes", "embedded:base"))
    monkeypatch.chdir(tmp_path)
    assert recipe.place("train.jsonl") == tmp_path / "recipes" / "train.jsonl"
    assert recipe.place("elsewhere.jsonl") == Path("elsewhere.jsonl")


def test_the_stack_may_be_a_file_beside_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "stack.yaml").write_text(yaml.safe_dump(stack("embedded:base")))
    file = write_recipe(tmp_path, "embedded:base", stack="stack.yaml")
    recipe = load_recipe(file, ["stack.name=other", "compare.shots=3"])
    assert (recipe.stack.name, recipe.compare.shots) == ("other", 3)
    assert recipe.stack.stages == load_stack(tmp_path / "stack.yaml").stages
    with pytest.raises(ConfigError, match=r"nme: unknown key \(did you mean name\?\)"):
        load_recipe(file, ["stack.nme=x"])


def test_all_faults_are_in_one_error(tmp_path: Path) -> None:
    file = write_recipe(tmp_path, "embedded:base")
    wrong = ["compare.sots=1", "stack.stages.1.reads=[fnd]", "task={name: snips}", "compare.seeds=[1, 1]"]
    with pytest.raises(ConfigError) as caught:
        load_recipe(file, wrong)
    text = str(caught.value)
    assert "compare.sots: unknown key (did you mean shots?)" in text and "seeds must be distinct" in text
    assert "stage count: reads unknown field 'fnd' (did you mean find?)" in text
    with pytest.raises(ConfigError, match="give task, or examples and test, not both"):
        load_recipe(file, ["task={name: snips}"])


@pytest.mark.parametrize(
    ("systems", "message"),
    [
        ("[base]", "the stack and at least one of base"),
        ("[stack, stack_gold]", "the stack and at least one of base"),
        ("[stack, vote]", "vote needs the answers of single_chain or single_direct"),
        ("[stack, ensemble, single_chain]", "ensemble needs the answers of single_direct"),
        ("[stack, singel_direct]", r"no system 'singel_direct' \(did you mean single_direct\?\)"),
    ],
)
def test_systems_that_make_no_comparison_are_refused(tmp_path: Path, systems: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_recipe(write_recipe(tmp_path, "embedded:base"), [f"compare.systems={systems}"])


def test_systems_are_taken_in_their_own_order(tmp_path: Path) -> None:
    file = write_recipe(tmp_path, "embedded:base")
    recipe = load_recipe(file, ["compare.systems=[stack_gold, stack, single_direct]"])
    assert recipe.compare.systems == ["single_direct", "stack", "stack_gold"]
    assert load_recipe(file).compare.systems is None and len(set(SYSTEMS)) == 9


def test_variants_are_checked(tmp_path: Path) -> None:
    file = write_recipe(tmp_path, "embedded:base")
    with pytest.raises(ConfigError, match="empty: the variant changes nothing, allowed: merge, drop"):
        load_recipe(file, ["ablate.variants={empty: {}}"])
    with pytest.raises(ConfigError, match='false is a YAML boolean; put the word into quotes: "no"'):
        load_recipe(file, ["ablate.variants={no: {drop: [find]}}"])
    with pytest.raises(ConfigError, match=r"ablate.variants.x.drp: unknown key \(did you mean drop\?\)"):
        load_recipe(file, ["ablate.variants={x: {drp: [find]}}"])


def test_questions_are_drawn_evenly_from_a_list_that_repeats_itself() -> None:
    """bAbI's stories have five questions each, the first the easiest: every twentieth would be a first one."""
    places = evenly(range(1000), 50)
    assert places == sorted(set(places)) == evenly(range(1000), 50) and len(places) == 50
    assert [place // 20 for place in places] == list(range(50))
    assert min(sum(place % 5 == phase for place in places) for phase in range(5)) >= 4
    assert evenly(range(3), 5) == evenly(range(3), None) == [0, 1, 2]
