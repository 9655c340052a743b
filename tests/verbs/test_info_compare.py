"""`cairn info --compare`: the account is that of built models, and the published claim is named for what it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig

from cairn import cli
from cairn.errors import CheckpointError
from cairn.models import CairnConfig, CairnForCausalLM
from cairn.models.accounting import lora_parameters
from cairn.models.presets import preset_config
from cairn.training.finetune_plan import LoraSettings
from cairn.training.lora import trained_parameters
from cairn.verbs.info_compare import compare_accounts, published_byte_interface

DOCS = Path(__file__).resolve().parents[2] / "docs" / "sharing.md"


@pytest.fixture
def say(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Runs `cairn info ARGUMENTS...`; returns exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "140")

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(["info", *arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def count(config: CairnConfig) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in CairnForCausalLM(config).parameters())


def test_the_claim_is_that_of_the_interface() -> None:
    """Published: interface 38.6M tied, 77.2M untied, 5.7M in bytes; core 50.1M (arXiv 2405.14159 and its code)."""
    facts = compare_accounts()
    rows = {row["interface"]: row for row in facts["interfaces"]}
    assert facts["core"]["parameters"] == pytest.approx(50.1e6, rel=2e-3)
    assert rows["BPE 50,257, tied"]["parameters"] == pytest.approx(38.6e6, rel=1e-3)
    assert rows["BPE 50,257, untied"]["parameters"] == pytest.approx(77.2e6, rel=1e-3)
    assert rows["bytes, pooled, as published"]["parameters"] == pytest.approx(5.7e6, rel=0.02)
    reached = facts["claim"]["reached"]["bytes, pooled, as published"]
    low, high = facts["claim"]["claimed"]
    assert low < reached["BPE 50,257, untied"] < high, "the claim holds against an untied head"
    assert reached["BPE 50,257, tied"] == pytest.approx(0.85, abs=0.005), "and not against a tied one"
    assert facts["claim"]["of_the_whole_model"]["bytes, pooled, as published"] < 0.6, "nor of the whole model"
    assert facts["claim"]["small_bpe"]["BPE 50,257, untied"] > high, "a small BPE saves as much"


@pytest.mark.parametrize("name", ["1m", "5m"])
def test_the_account_is_that_of_built_models(name: str) -> None:
    facts = compare_accounts(name)
    shape = {**preset_config(name).to_dict(), "vocab_size": 4096}
    for row in facts["sharing"]:
        assert row["model"] == count(CairnConfig(**{**shape, "sharing": row["sharing"]})), row["scheme"]
    interfaces = {row["interface"]: row["model"] for row in facts["interfaces"]}
    shape |= {"vocab_size": 259}
    pooled = {"byte_pooling": {"rule": "fixed"}}
    assert interfaces["bytes, pooled, tied"] == count(CairnConfig(**{**shape, **pooled}))
    assert interfaces["bytes, flat, tied"] == count(CairnConfig(**shape))
    plain = {**shape, "vocab_size": 50257, "tie_word_embeddings": False}
    assert interfaces["BPE 50,257, untied"] == count(CairnConfig(**plain))
    # every row has the same core, and what is shared is run as often
    assert {row["model"] - row["parameters"] for row in facts["interfaces"]} == {facts["core"]["parameters"]}
    flops = {row["flops_per_token"] for row in facts["sharing"] if "rank" not in row["scheme"]}
    assert len(flops) == 1


@pytest.mark.parametrize("by", ["parameter", "module"])
def test_adapters_are_counted_as_they_are_trained(by: str) -> None:
    config = CairnConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, sharing={"feed_forward": {"scheme": "interior", "free": 1, "by": by}},
    )  # fmt: skip
    assert lora_parameters(config, 3) == trained_parameters(CairnForCausalLM(config), LoraSettings(rank=3))


def test_tables_and_json_say_the_same(say: Callable) -> None:
    code, out, err = say("5m", "--compare")
    assert code == 0, err
    facts = json.loads(say("5m", "--compare", "--json")[1])
    for row in facts["interfaces"]:
        assert row["interface"] in out and f"{row['parameters']:,}" in out and f"{row['model']:,}" in out
    for row in facts["sharing"]:
        assert row["scheme"] in out and f"{row['core']:,}" in out
    words = " ".join(out.split())
    assert "are a share of the interface, not of the model" in words
    assert "A tied BPE of 4,096 alone saves 95.9% and 91.8% of the interface, without bytes." in words


def test_schemes_that_a_model_of_one_layer_cannot_have_are_left_out(tmp_path: Path) -> None:
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    CairnConfig(**shape).save_pretrained(tmp_path)
    assert [row["scheme"] for row in compare_accounts(str(tmp_path))["sharing"]] == ["nothing shared"]


def test_what_cannot_be_compared_is_refused(say: Callable, tmp_path: Path) -> None:
    code, _, err = say("10n", "--compare")
    assert code == 2 and "no such preset or model folder (did you mean 10m?)" in err
    LlamaConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="--compare knows Cairn's own decoder only"):
        compare_accounts(str(tmp_path))


def test_the_page_quotes_the_account() -> None:
    facts = compare_accounts()
    text = DOCS.read_text(encoding="utf-8")
    for row in facts["interfaces"]:
        line = next(line for line in text.splitlines() if line.startswith(f"| {row['interface']} |"))
        assert f"| {row['parameters']:,} | {row['share_of_model']:.1%} |" in line
        assert f"| {row['model']:,} |" in line
    for row in facts["sharing"]:
        line = next(line for line in text.splitlines() if line.startswith(f"| {row['scheme']} |"))
        assert f"| {row['core']:,} |" in line and f"| {row['adapter_rank_8']:,} |" in line
    assert f"{published_byte_interface(768):,}" in text
    claim = facts["claim"]
    reached = claim["reached"]["bytes, pooled, as published"].values()
    whole, small = claim["of_the_whole_model"]["bytes, pooled, as published"], claim["small_bpe"]["BPE 50,257, untied"]
    for share in (*reached, whole, small):
        assert f"{share:.1%}" in text.split("## The account")[1]
