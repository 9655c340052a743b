"""docs/training.md says what is so: its settings load, and its tables have every key and default."""

import re
from pathlib import Path

import pytest
import yaml

from cairn.training.finetune_plan import (
    AdapterPlan,
    GlobalFirst,
    LoraSettings,
    OnPolicy,
    RightChains,
    StackTraining,
    stack_training,
)
from tests.doc_tables import check_table

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "training.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("heading", "model"),
    [("Keys", StackTraining), ("Keys of `lora`", LoraSettings), ("Keys of an adapter", AdapterPlan),
     ("Global then local", GlobalFirst), ("On-policy", OnPolicy), ("Right chains", RightChains)],
)  # fmt: skip
def test_the_tables_have_every_key_and_its_default(heading, model):
    check_table(TEXT, heading, model)


def test_its_settings_are_settings():
    blocks = re.findall(r"^```yaml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    whole = {key: value for block in blocks for key, value in yaml.safe_load(block).items()}
    training = stack_training(whole, ["mention", "answer"], "docs", {"answer": "answer"})
    assert training.global_first.share == 0.3 and training.on_policy.stages == ["answer"]
    assert training.keep_right_chains.where_gold_differs == "gold" and training.handoff_dropout == 0.1


def test_every_reason_that_it_names_is_one_that_is_counted():
    file = Path(__file__).resolve().parents[2] / "src/cairn/verbs/finetuning/own_pairs.py"
    source = file.read_text(encoding="utf-8")
    section = TEXT.split("is counted by reason", 1)[1].split("\n\n", 1)[0]
    named = set(re.findall(r"`([a-z_]+)`", section))
    counted = set(re.findall(r'(?:count\([^()]*?, |return )"([a-z_]+)"', source)) - {"gold_differs", "taken"}
    assert "copies_what_is_gone" in counted and "as_gold" in counted
    assert named == counted | {"contradicts_gold", "as_gold", "repeated"}
