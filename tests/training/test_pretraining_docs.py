"""docs/pretraining.md says what is so: its tables have every key and default, its settings load."""

import re
from pathlib import Path

import pytest
import yaml

from cairn.config import load_config, parse_config
from cairn.data.written import WrittenConfig
from cairn.training.averaging import AveragingConfig
from cairn.training.distill_logits import DistillLogitsConfig
from cairn.training.hybrid import HybridConfig
from cairn.training.multi_token import MultiTokenConfig
from cairn.training.next_thought import NextThoughtConfig
from cairn.training.pretrain_recipe import DataConfig, PretrainRecipe, TokenizerConfig
from cairn.training.schedules import DropoutConfig, LengthWarmupConfig
from tests.doc_tables import check_table

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "pretraining.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("heading", "model"),
    [("Keys", PretrainRecipe), ("Tokenizer", TokenizerConfig), ("Data", DataConfig),
     ("Multi-token prediction", MultiTokenConfig), ("Causal and masked", HybridConfig),
     ("Next thought", NextThoughtConfig), ("Distillation from logits", DistillLogitsConfig),
     ("Distillation across tokenizers", WrittenConfig), ("Dropout over the steps", DropoutConfig),
     ("Shorter rows at the start", LengthWarmupConfig), ("Averaged weights", AveragingConfig)],
)  # fmt: skip
def test_the_tables_have_every_key_and_its_default(heading, model):
    check_table(TEXT, heading, model)


def test_its_settings_are_settings():
    blocks = [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)]
    assert [sorted(block) for block in blocks] == [["objective", "tokenizer"], ["data"]]
    for block in blocks:
        recipe = {"recipe": "pretrain", "name": "docs", "steps": 9, "data": {"sources": [
            {"name": "words", "path": "text.jsonl", "licence": "made by a test"}]}, **block}
        parse_config(PretrainRecipe, recipe, "docs")


def test_its_commands_are_commands():
    commands = re.findall(r"^cairn pretrain (\S+)(.*?)(?:#.*)?$", TEXT, re.MULTILINE)
    assert len(commands) == 3
    for recipe, rest in commands:
        load_config(PretrainRecipe, ROOT / recipe, re.findall(r"--set '([^']+)'", rest))
