"""docs/selfplay.md says what is so: its recipe loads, its tables have every key and default, its games options."""

import re
from pathlib import Path

import pytest
import yaml

from cairn.config import parse_config
from cairn.evaluation.games.game import MEMBERS
from cairn.evaluation.games.registry import GAMES, open_game
from cairn.verbs.selfplay_recipe import MatchSettings, PlaySettings, SelfplayRecipe
from tests.doc_tables import check_table, table

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "selfplay.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("heading", "model"),
    [("The recipe", SelfplayRecipe), ("How a round is played", PlaySettings),
     ("How every round is measured", MatchSettings)],
)  # fmt: skip
def test_the_tables_have_every_key_and_its_default(heading, model):
    check_table(TEXT, heading, model)


def test_its_recipe_and_its_games_are_so():
    (block,) = re.findall(r"^```yaml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    recipe = parse_config(SelfplayRecipe, yaml.safe_load(block), "docs")
    assert open_game(recipe.game, recipe.options).openings()[-1] == (21, 0)
    shown = table(TEXT, "The games")
    assert set(shown) == set(GAMES)
    for name, options in shown.items():
        told = {key: yaml.safe_load(value) for key, value in re.findall(r"(\w+)`? (\w+)", options)}
        assert told == open_game(name).options.model_dump()
    assert len(MEMBERS) == 8 and all(f"`{member}`" in TEXT for member in MEMBERS)
