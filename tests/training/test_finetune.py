"""Fine-tuning one adapter: it learns, leaves the base alone, goes on after a kill, and is not trained twice."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from cairn.config import parse_config
from cairn.errors import ConfigError, DataError, EngineError, StorageError
from cairn.models import CairnConfig, CairnForCausalLM
from cairn.models.tokenization import train_bpe
from cairn.runs import read_jsonl
from cairn.training.batching import encode_pairs
from cairn.training.completions import completion_scores
from cairn.training.finetune import train_adapter
from cairn.training.finetune_plan import FinetuneConfig, LoraSettings
from cairn.training.lora import trained_parameters

SENTENCES = [
    f"{who} {what} the {thing}."
    for who in ("Ann", "Bob", "Mary", "John")
    for what in ("took", "dropped", "saw")
    for thing in ("cup", "milk", "ball", "book")
]
PAIRS = [(f"{text}\nIs it the cup?", " yes" if "cup" in text else " no") for text in SENTENCES]
VALIDATION = [("Mary found the cup.\nIs it the cup?", " yes"), ("Bob found the ball.\nIs it the cup?", " no")]


def toy_tokenizer():
    return train_bpe([" ".join(SENTENCES) + " Is it the cup? yes no found" for _ in range(3)], 400)


def toy_base(vocab_size):
    torch.manual_seed(7)
    return CairnForCausalLM(
        CairnConfig(
            vocab_size=vocab_size, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=64, qk_norm=True, initializer_range=0.6,
        )
    ).eval()  # fmt: skip


def toy_config(**changes):
    settings = {"steps": 24, "batch_tokens": 200, "learning_rate": 1e-2, "precision": "fp32", "seed": 3}
    settings |= {"evaluate_every": 10, "checkpoint_every": 5, "lora": {"rank": 4, "dropout": 0.1}}
    return parse_config(FinetuneConfig, settings | changes, "test")


@pytest.fixture(scope="module")
def tokenizer():
    return toy_tokenizer()


@pytest.fixture
def base(tokenizer):
    return toy_base(len(tokenizer))


def test_a_tiny_model_learns_a_rule_and_the_saved_adapter_knows_it(base, tokenizer, tmp_path):
    config = toy_config(steps=80, learning_rate=2e-2, lora={"rank": 8})
    result = train_adapter(base, tokenizer, PAIRS, config, tmp_path / "rule", validation=VALIDATION)
    assert result.loss < 0.05 and result.exact_match == 1.0 and result.validation_loss < 0.2
    rows = read_jsonl(tmp_path / ".rule.run" / "metrics.jsonl")
    assert rows[0]["loss"] > 10 * result.loss
    assert [row["step"] for row in rows if "exact_match" in row] == [*range(10, 81, 10)]
    assert "(gold: " in next(row["sample"] for row in rows if "sample" in row)
    encoded = encode_pairs(tokenizer, PAIRS, 64)
    untrained = completion_scores(base, encoded, batch_tokens=500, pad_id=0)["exact_match"]
    served = PeftModel.from_pretrained(base, tmp_path / "rule").eval()
    assert completion_scores(served.get_base_model(), encoded, batch_tokens=500, pad_id=0)["exact_match"] == 1.0
    assert untrained < 0.8


def test_base_is_bit_identical_afterwards_and_takes_the_next_adapter(base, tokenizer, tmp_path, recwarn):
    before = {name: value.clone() for name, value in base.state_dict().items()}
    modules = [(name, type(module)) for name, module in base.named_modules()]
    ids = torch.arange(3, 40)[None]
    logits = base(ids).logits
    train_adapter(base, tokenizer, PAIRS, toy_config(), tmp_path / "a")
    train_adapter(base, tokenizer, PAIRS, toy_config(), tmp_path / "b")
    assert [(name, type(module)) for name, module in base.named_modules()] == modules
    assert base.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    assert torch.equal(base(ids).logits, logits) and not base.training
    assert all(parameter.requires_grad for parameter in base.parameters())
    first, second = (load_file(tmp_path / name / "adapter_model.safetensors") for name in "ab")
    assert all(torch.equal(first[key], second[key]) for key in first), "the first left nothing behind for the second"
    assert max(value.abs().max() for key, value in first.items() if "lora_B" in key) > 0
    assert not [w for w in recwarn if "second time" in str(w.message)]


@pytest.mark.parametrize("native", [True, False])
def test_precision_auto_is_recorded_as_what_it_became(base, tokenizer, tmp_path, monkeypatch, native):
    monkeypatch.setattr("cairn.bases._cpu_has", lambda probe: native)
    became = "bf16" if native else "fp32"
    train_adapter(base, tokenizer, PAIRS, toy_config(precision="auto", steps=3), tmp_path / "a")
    card = json.loads((tmp_path / "a" / "cairn_adapter.json").read_text())
    assert card["config"]["precision"] == became
    train_adapter(base, tokenizer, PAIRS, toy_config(precision=became, steps=3), tmp_path / "b")
    auto, named = (load_file(tmp_path / name / "adapter_model.safetensors") for name in "ab")
    assert all(torch.equal(auto[key], named[key]) for key in auto)
    monkeypatch.setattr("cairn.bases._cpu_has", lambda probe: not native)
    with pytest.raises(ConfigError, match="trained with other settings"):  # on a machine of another kind
        train_adapter(base, tokenizer, PAIRS, toy_config(precision="auto", steps=3), tmp_path / "a")


def test_base_is_left_clean_when_training_fails(base, tokenizer, tmp_path):
    modules = [name for name, _ in base.named_modules()]
    with pytest.raises(EngineError, match="loss is not finite"):
        train_adapter(base, tokenizer, PAIRS, toy_config(learning_rate=1e30, clip=1e30), tmp_path / "a")
    assert [name for name, _ in base.named_modules()] == modules
    assert not (tmp_path / "a").exists()


KILLED = """
import os, sys
from pathlib import Path
sys.path.insert(0, {here!r})
import cairn.training.loop as loop
from test_finetune import PAIRS, VALIDATION, toy_base, toy_config, toy_tokenizer
from cairn.training.finetune import train_adapter
real = loop.schedule_factor
def counted(config, step, steps):
    if step == 13:
        os.kill(os.getpid(), 9)
    return real(config, step, steps)
loop.schedule_factor = counted
tokenizer = toy_tokenizer()
train_adapter(toy_base(len(tokenizer)), tokenizer, PAIRS, toy_config(), {out!r}, validation=VALIDATION)
"""


def test_killed_and_run_again_equals_uninterrupted(base, tokenizer, tmp_path):
    whole = train_adapter(base, tokenizer, PAIRS, toy_config(), tmp_path / "whole" / "a", validation=VALIDATION)
    out = tmp_path / "killed" / "a"
    out.parent.mkdir()
    script = KILLED.format(here=str(Path(__file__).parent), out=str(out))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == -9, done.stderr
    assert not out.exists()
    assert [path.name for path in (out.parent / ".a.run" / "checkpoints").iterdir()] == ["step-00000010"]

    again = train_adapter(base, tokenizer, PAIRS, toy_config(), out, validation=VALIDATION)
    first = load_file(tmp_path / "whole" / "a" / "adapter_model.safetensors")
    second = load_file(out / "adapter_model.safetensors")
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    for field in ("loss", "validation_loss", "exact_match", "training_tokens", "steps"):
        assert getattr(again, field) == getattr(whole, field)
    steps = [row["step"] for row in read_jsonl(out.parent / ".a.run" / "metrics.jsonl") if "loss" in row]
    assert steps == sorted(set(steps)), "no step is logged twice"
    assert not (out.parent / ".a.run" / "checkpoints").exists()


def test_a_finished_adapter_is_not_trained_again(base, tokenizer, tmp_path, monkeypatch):
    first = train_adapter(base, tokenizer, PAIRS, toy_config(), tmp_path / "a", card={"stages": ["mention"]})
    card = json.loads((tmp_path / "a" / "cairn_adapter.json").read_text())
    assert card["stages"] == ["mention"] and card["trained_parameters"] == first.trained_parameters
    assert card["config"]["steps"] == 24 and card["seed"] == 3 and card["base"]["vocab_size"] == len(tokenizer)
    monkeypatch.setattr("cairn.training.finetune.train", lambda *a, **k: pytest.fail("trained again"))
    assert train_adapter(base, tokenizer, PAIRS, toy_config(), tmp_path / "a") == first
    for change, pairs in ((toy_config(seed=4), PAIRS), (toy_config(), PAIRS[:-1])):
        with pytest.raises(ConfigError, match="trained with other settings, data or base.*choose another folder"):
            train_adapter(base, tokenizer, pairs, change, tmp_path / "a")


@pytest.mark.parametrize("damage", ["weights", "card", "no card"])
def test_a_damaged_adapter_folder_is_trained_again_and_said_so(base, tokenizer, tmp_path, caplog, damage):
    out = tmp_path / "a"
    train_adapter(base, tokenizer, PAIRS, toy_config(), out)
    good = (out / "adapter_model.safetensors").read_bytes()
    if damage == "weights":
        (out / "adapter_model.safetensors").write_bytes(good[:-100])
    elif damage == "card":
        (out / "cairn_adapter.json").write_text('{"base": ')
    else:
        (out / "cairn_adapter.json").unlink()
    train_adapter(base, tokenizer, PAIRS, toy_config(), out)
    assert "holds a damaged adapter" in caplog.text and "trained again" in caplog.text
    assert (out / "adapter_model.safetensors").read_bytes() == good
    assert (out / "cairn_adapter.json").is_file()
    steps = [row["step"] for row in read_jsonl(tmp_path / ".a.run" / "metrics.jsonl")]
    assert steps == sorted(set(steps))


def test_trained_parameters_grow_with_the_rank_so_that_sums_match(base):
    parts = [trained_parameters(base, LoraSettings(rank=rank)) for rank in (8, 4, 3)]
    assert sum(parts) == trained_parameters(base, LoraSettings(rank=15)) > 0
    with pytest.raises(ConfigError, match="no such layer in this base"):
        trained_parameters(base, LoraSettings(targets=["qkv_projection"]))
    assert all(parameter.requires_grad for parameter in base.parameters())


def test_scale_does_not_depend_on_the_rank(base, tokenizer, tmp_path):
    for rank in (2, 6):
        out = tmp_path / str(rank)
        train_adapter(base, tokenizer, PAIRS, toy_config(steps=1, lora={"rank": rank, "scale": 1.5}), out)
        settings = json.loads((out / "adapter_config.json").read_text())
        assert settings["lora_alpha"] / settings["r"] == 1.5 and settings["bias"] == "none"
        assert not [key for key in load_file(out / "adapter_model.safetensors") if "lm_head" in key]


def test_bad_input_is_refused_before_training(base, tokenizer, tmp_path):
    with pytest.raises(DataError, match="1 of 49 training pairs are longer than the base's context of 64 tokens"):
        train_adapter(base, tokenizer, [*PAIRS, ("cup " * 80, " yes")], toy_config(), tmp_path / "a")
    with pytest.raises(DataError, match="no training pairs"):
        train_adapter(base, tokenizer, [], toy_config(), tmp_path / "a")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot write"):
        train_adapter(base, tokenizer, PAIRS, toy_config(), tmp_path / "file" / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_run_folder_of_other_settings_is_refused(base, tokenizer, tmp_path):
    train_adapter(base, tokenizer, PAIRS, toy_config(), tmp_path / "a")
    shutil.rmtree(tmp_path / "a")
    with pytest.raises(ConfigError, match="this run folder was made with other settings"):
        train_adapter(base, tokenizer, PAIRS, toy_config(seed=9), tmp_path / "a")
