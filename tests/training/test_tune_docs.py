"""docs/instruct.md says what is so: its recipe loads, and its tables have every key and default."""

import re
from pathlib import Path

import pytest
import yaml

from cairn.config import parse_config
from cairn.training.tune_plan import TuneData, TuneRecipe, TuneTraining
from tests.doc_tables import check_table

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "instruct.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("heading", "model"), [("The recipe", TuneRecipe), ("The data", TuneData), ("The training", TuneTraining)]
)
def test_the_tables_have_every_key_and_its_default(heading, model):
    check_table(TEXT, heading, model)


def test_its_recipe_is_a_recipe():
    (block,) = re.findall(r"^```yaml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    recipe = parse_config(TuneRecipe, yaml.safe_load(block), "docs")
    assert recipe.training.lora.rank == 16 and [source.name for source in recipe.data.sources] == ["mine", "dolly"]
