"""The Alpaca recipes end to end on tiny models of their bases' kinds: recorded teacher, short training, a question.

Only the base, the paths and the budgets are overridden; stages, prompts, contracts and method are the recipes' own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from cairn.cli import main
from cairn.data.distill_answers import prompt_hash
from cairn.data.distill_config import HuggingFaceTeacher, distill_config
from cairn.data.examples import read_examples
from cairn.models.tokenization import train_bpe
from cairn.prompts import render
from cairn.stacks.spec import check_budgets, load_stack
from cairn.training.finetune_plan import StackTraining, stack_training
from cairn.verbs.comparison.recipe import load_recipe

RECIPES = Path(__file__).parents[1] / "recipes"
NAMES = {"fslm-alpaca-pythia160m": "EleutherAI/pythia-160m", "fslm-alpaca-smollm2-135m": "HuggingFaceTB/SmolLM2-135M",
         "fslm-alpaca-base": "embedded:base"}  # fmt: skip
STAGES = ["task", "facts", "plan", "answer"]
THINGS = ("wren", "oak", "river", "lamp", "ladder", "kettle", "bell", "boat")
ROWS = [
    {"instruction": f"Write a sentence about a {thing}.", "input": "" if n % 2 else "Keep it short.",
     "output": f"The {thing} is in the garden behind the house."}
    for n, thing in enumerate(THINGS)
]  # fmt: skip
SAID = {"task": "write a sentence", "facts": "sentence {thing}", "plan": "a {thing}; in the garden"}


def gpt_neox(size: int) -> PreTrainedModel:
    config = GPTNeoXConfig(
        vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=2048, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return GPTNeoXForCausalLM(config)


def llama(size: int) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=2048, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def save(model_of: Any, folder: Path) -> Path:
    tokenizer = train_bpe([" ".join(row.values()) for row in ROWS] * 3, 400, model_max_length=2048)
    torch.manual_seed(0)
    model_of(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def record(name: str, path: Path) -> None:
    """Writes what the recipe's teacher would say, found by the hashes of the recipe's own prompts."""
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    config = distill_config(recipe.distill, recipe.stack, name)
    assert isinstance(config.teacher, HuggingFaceTeacher)
    lines = []
    for row, thing in zip(ROWS, THINGS, strict=True):
        fields = {"request": render(config.inputs["request"], row), "gold": row["output"]}
        for stage in STAGES[:-1]:
            prompt = render(str(config.stages[stage].prompt), fields)
            fields[stage] = SAID[stage].format(thing=thing)
            text = f"{fields[stage]}\n(This is what was asked for.)"
            lines.append({"prompt_sha256": prompt_hash(prompt, config.teacher.system), "text": text})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.mark.parametrize(
    ("name", "model_of"), [("fslm-alpaca-pythia160m", gpt_neox), ("fslm-alpaca-smollm2-135m", llama)]
)
def test_distill_finetune_run(name: str, model_of: Any, tmp_path: Path, capsys: Any) -> None:
    base = save(model_of, tmp_path / "base")
    record(name, tmp_path / "recorded.jsonl")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    system = distill_config(recipe.distill, recipe.stack, name).teacher.system  # type: ignore[union-attr]
    teacher = {"kind": "recorded", "path": str(tmp_path / "recorded.jsonl"), "system": system}
    changes = {
        "distill.source.hub": "null", "distill.source.path": str(tmp_path / "rows.jsonl"), "distill.keep_out": "[]",
        "distill.teacher": json.dumps(teacher), "distill.test_examples": "2", "stack.base": str(base),
        "stack.training.tokens_total": "1600", "stack.training.batch_tokens": "300",
        "stack.training.validation_examples": "0",
    }  # fmt: skip
    settings = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    assert main(["distill", str(RECIPES / f"{name}.yaml"), "--out", str(tmp_path / "data"), *settings]) == 0
    report = json.loads((tmp_path / "data" / "report.json").read_text())
    assert report["complete"] and report["kept"] == 8 and report["test"] == 2 and not report["rejected"]
    spec = load_stack(tmp_path / "data")
    examples = read_examples(tmp_path / "data" / "train.jsonl", spec)
    thing = next(thing for thing in THINGS if f" {thing}." in examples[0].inputs["request"])
    assert examples[0].stages["plan"] == f"a {thing}; in the garden"
    assert examples[0].inputs["request"].endswith("Keep it short.") is (THINGS.index(thing) % 2 == 0)
    trained = tmp_path / "trained"
    assert main(["finetune", str(tmp_path / "data" / "stack.yaml"), "--out", str(trained), "--no-comparators"]) == 0
    facts = json.loads((trained / "training.json").read_text())
    assert set(facts["adapters"]) == set(STAGES) and facts["settings"]["learning_rate"] == 5e-4
    capsys.readouterr()
    assert main(["run", str(trained), "Write a sentence about a door.", "--json"]) == 0
    trace = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [stage["name"] for stage in trace["stages"]] == STAGES and trace["answer"] == trace["stages"][-1]["value"]


@pytest.mark.parametrize("name", NAMES)
def test_every_number_is_written_out(name: str) -> None:
    recipe = load_recipe(RECIPES / f"{name}.yaml")
    stack = recipe.stack
    assert stack.base == NAMES[name] and [stage.name for stage in stack.stages] == STAGES
    config = distill_config(recipe.distill, stack, name)
    assert isinstance(config.teacher, HuggingFaceTeacher)
    assert config.teacher.model == "meta-llama/Llama-3.2-3B-Instruct" and config.source.hub == "tatsu-lab/alpaca"
    assert "NC" in config.source.licence
    training = stack_training(stack.training, stack.adapter_names(), name)
    switches = {"global_first", "handoff_dropout", "on_policy", "keep_right_chains", "comparators"}  # off by default
    unset = set(StackTraining.model_fields) - set(stack.training) - switches
    assert not unset, f"say {unset} and why"
    assert sum(plan.share or 0 for plan in training.adapters.values()) == pytest.approx(1)
    check_budgets(stack, 1024 if name == "fslm-alpaca-base" else 2048)
    assert recipe.eval is not None and recipe.eval["shots"] == {"*": 0}
    text = (RECIPES / f"{name}.yaml").read_text().splitlines()
    for key in ("tokens_total", "batch_tokens", "learning_rate", "rank", "targets", "warmup", "limit", "temperature"):
        (line,) = [line for line in text if line.strip().startswith(f"{key}:")]
        assert "#" in line, f"{key} has no reason"


def test_the_recipes_differ_only_where_their_bases_do() -> None:
    first, second = (load_recipe(RECIPES / f"{name}.yaml") for name in list(NAMES)[:2])
    assert first.distill == second.distill, "the same examples"
    assert first.stack.stages == second.stack.stages and first.stack.training == second.stack.training
