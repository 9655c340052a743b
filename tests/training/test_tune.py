"""Instruction tuning: only answers are learnt, with an adapter or all weights; stopped and run again equals whole."""

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

import cairn.training.loop as loop
from cairn.config import parse_config
from cairn.data.chat_template import chat_sequences, prepare_chat_tokenizer
from cairn.errors import ConfigError
from cairn.models import CairnConfig, CairnForCausalLM
from cairn.models.tokenization import train_bpe
from cairn.runs import RunFolder, read_jsonl
from cairn.training.batching import IGNORED, pad_pairs
from cairn.training.finetune_plan import FinetuneConfig
from cairn.training.tune import chat_pair, tune_model
from cairn.training.tune_plan import TuneRecipe

FRUITS = ["pear", "plum", "apple", "fig"]
TALKS = [
    (("user", f"Say {one}."), ("assistant", one), ("user", "Now the other."), ("assistant", other))
    for one in FRUITS for other in FRUITS if one != other
] + [(("user", f"Say {one}."), ("assistant", one)) for one in FRUITS]


def toy_tokenizer():
    text = "User: Say pear. Assistant: plum apple fig User: Now the other."
    return prepare_chat_tokenizer(train_bpe([text] * 4, 360))


def toy_base(tokenizer):
    torch.manual_seed(7)
    return CairnForCausalLM(
        CairnConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=96, qk_norm=True, initializer_range=0.6, hidden_dropout=0.0,
        )
    ).eval()  # fmt: skip


def toy_config(**changes):
    settings = {"steps": 12, "batch_tokens": 200, "learning_rate": 1e-2, "precision": "fp32", "seed": 3}
    settings |= {"evaluate_every": 6, "checkpoint_every": 5, "lora": {"rank": 4, "dropout": 0.1}}
    return parse_config(FinetuneConfig, settings | changes, "test")


def toy_pairs(tokenizer, talks=TALKS):
    return [chat_pair(one) for talk in talks for one in chat_sequences(tokenizer, talk)]


def toy_run(out, config):
    return RunFolder(out, config, seed=config.seed)


@pytest.fixture(scope="module")
def tokenizer():
    return toy_tokenizer()


def test_labels_are_the_answers_of_every_turn_and_nothing_else(tokenizer):
    (pair,) = toy_pairs(tokenizer, TALKS[:1])
    longer = toy_pairs(tokenizer, [(("user", "Say pear. " * 5), ("assistant", "fig"))])[0]
    batch = pad_pairs([pair, longer], tokenizer.pad_token_id)
    for row, want in zip(batch["labels"], ([" pear<|eos|>", " plum<|eos|>"], [" fig<|eos|>"]), strict=True):
        stretches, last = [], False
        for label in row:
            if label != IGNORED and not last:
                stretches.append([])
            if label != IGNORED:
                stretches[-1].append(int(label))
            last = label != IGNORED
        assert [tokenizer.decode(one, skip_special_tokens=False) for one in stretches] == want
    assert pair.targets == int((batch["labels"][0] != IGNORED).sum())


@pytest.mark.parametrize("method", ["lora", "full"])
def test_it_learns_and_what_is_saved_answers_through_a_transformers_chat_pipeline(method, tokenizer, tmp_path):
    base = toy_base(tokenizer)
    before = {name: value.clone() for name, value in base.state_dict().items()}
    config = toy_config(steps=60, learning_rate=2e-2 if method == "lora" else 5e-3, lora={"rank": 8})
    single = TALKS[-len(FRUITS) :]
    result = tune_model(
        base, tokenizer, toy_pairs(tokenizer, single), config, toy_run(tmp_path, config), method=method,
        validation=toy_pairs(tokenizer, single[:2]), samples=[[("user", "Say fig.")]], base={"name": "toy"},
    )  # fmt: skip
    assert result.validation_loss < 0.1 < 1 < result.validation_loss_before and result.loss < 0.1
    assert "Say fig. -> fig" in read_jsonl(tmp_path / "metrics.jsonl")[-1]["sample"]
    same = all(torch.equal(value, before[name]) for name, value in base.state_dict().items())
    assert same == (method == "lora")
    if method == "lora":
        model = PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
        folder = tmp_path / "adapter"
    else:
        folder = tmp_path / "model"
        model = AutoModelForCausalLM.from_pretrained(folder)
    chat = pipeline("text-generation", model=model, tokenizer=AutoTokenizer.from_pretrained(folder))
    for fruit in FRUITS:
        messages = [{"role": "user", "content": f"Say {fruit}."}]
        (answer,) = chat(messages, max_new_tokens=4, do_sample=False)
        assert answer["generated_text"][-1] == {"role": "assistant", "content": f" {fruit}"}


@pytest.mark.parametrize("method", ["lora", "full"])
def test_stopped_and_run_again_equals_uninterrupted(method, tokenizer, tmp_path, monkeypatch):
    pairs, config = toy_pairs(tokenizer), toy_config()

    def go(out):
        run = toy_run(out, config)
        return tune_model(toy_base(tokenizer), tokenizer, pairs, config, run, method=method, validation=pairs[:2])

    whole, out = go(tmp_path / "whole"), tmp_path / "killed"
    real = loop.schedule_factor

    def counted(schedule, step, steps):
        if step == 8:
            raise SystemExit("killed")
        return real(schedule, step, steps)

    monkeypatch.setattr(loop, "schedule_factor", counted)
    with pytest.raises(SystemExit):
        go(out)
    monkeypatch.setattr(loop, "schedule_factor", real)
    assert [path.name for path in (out / "checkpoints").iterdir()] == ["step-00000005"]
    again = go(out)
    assert (again.loss, again.validation_loss) == (whole.loss, whole.validation_loss)
    file = "adapter/adapter_model.safetensors" if method == "lora" else "model/model.safetensors"
    first, second = load_file(tmp_path / "whole" / file), load_file(out / file)
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)
    assert [row["step"] for row in read_jsonl(out / "metrics.jsonl") if "validation_loss" in row] == [0, 6, 12]


def recipe(**changes):
    data = {"sources": [{"name": "a", "licence": "none", "path": "a.jsonl"}]}
    return parse_config(TuneRecipe, {"recipe": "tune", "name": "x", "data": data} | changes, "test")


def test_budget_and_rate_follow_the_method():
    assert recipe().training.resolved("lora", 100).tokens == 300
    assert recipe().training.resolved("lora", 100).learning_rate == 2e-3
    assert recipe(training={"steps": 7}).training.resolved("full", 100).steps == 7
    assert recipe(training={"epochs": 0.5}).training.resolved("full", 100).tokens == 50
    assert recipe().training.resolved("full", 100).learning_rate == 3e-4


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"training": {"epochs": 1, "steps": 2}}, "give one of epochs, tokens, steps; given: epochs, steps"),
     ({"method": "full", "training": {"lora": {"rank": 4}}}, "training.lora is for method: lora"),
     ({"methode": "full"}, "unknown key .did you mean method"),
     ({"data": {"sources": []}}, "at least 1 item"),
     ({"data": {"sources": [{"name": "a", "licence": "n", "path": "a"}] * 2}}, "the name a is used twice"),
     ({"data": {"sources": [{"name": "a", "licence": "n", "path": "a"}], "validation": 1.5}}, "a share below 1")],
)  # fmt: skip
def test_what_a_recipe_may_not_say(changes, message):
    with pytest.raises(ConfigError, match=message):
        recipe(**changes)
