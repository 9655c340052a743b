"""A whole experiment for tests: a tiny base, a stack with every kind of stage, data, and a recipe of seconds.

    find (map, kept) ── count (repeat over what was kept) ── answer (a rule)      "how many of the words are blue?"
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml

from cairn.config import save_config
from cairn.engines.base import GenerationRequest
from cairn.engines.fake_engine import FakeEngine
from cairn.stacks.spec import StackSpec
from cairn.verbs.comparison.experiment import TrainedSeed

CONFIG = SimpleNamespace(
    model_type="cairn", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    head_dim=8, intermediate_size=64, vocab_size=320, tie_word_embeddings=True,
)  # fmt: skip
COLOURS = ("red", "blue", "green")
NUMBERS = ("zero", "one", "two", "three", "four", "five")


def stack(base: Path | str) -> dict[str, Any]:
    return {
        "name": "counting",
        "base": str(base),
        "inputs": ["words", "colour"],
        "direct_prompt": "Words: {words}\nColour: {colour}\nAnswer:",
        "stages": [
            {
                "name": "find", "kind": "map", "over": "words", "split": "lines", "keep": "yes",
                "prompt": "Colour: {colour}\nWord: {item}\nSame:", "sampling": {"max_new_tokens": 3},
                "contract": {"kind": "choices", "values": ["yes", "no"]}, "retries": 0,
            },
            {
                "name": "count", "kind": "repeat", "over": "find", "start": "zero", "at_most": 8, "reads": ["find"],
                "prompt": "Count: {state}\nWord: {item}\nNow:", "sampling": {"max_new_tokens": 4}, "retries": 0,
            },
            {"name": "answer", "rule": "copy", "arguments": {"text": "{count}"}, "reads": ["count"]},
        ],
        "training": {
            "tokens_total": 3000, "batch_tokens": 500, "precision": "fp32", "validation_examples": 2,
            "evaluate_every": 1000, "lora": {"rank": 2}, "adapters": {"find": {"share": 0.5}, "count": {"share": 0.5}},
        },
    }  # fmt: skip


def row(number: int, draw: random.Random) -> dict[str, Any]:
    words = [draw.choice(COLOURS) for _ in range(draw.randint(2, 5))]
    colour = draw.choice(COLOURS)
    found = ["yes" if word == colour else "no" for word in words]
    total = found.count("yes")
    return {
        "id": f"q{number}", "task": f"{len(words)} words", "group": f"g{number // 2}",
        "inputs": {"words": "\n".join(words), "colour": colour},
        "stages": {"find": found, "count": [NUMBERS[place + 1] for place in range(total)]},
        "answer": NUMBERS[total],
    }  # fmt: skip


def write_data(folder: Path, train: int = 60, test: int = 24) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    rows = [row(number, draw) for number in range(train + test)]
    for name, part in (("train", rows[:train]), ("test", rows[train:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in part))


def write_recipe(folder: Path, base: Path | str, **sections: Any) -> Path:
    """Writes recipe, examples and questions into a folder; returns the recipe's path."""
    write_data(folder)
    recipe = {
        "recipe": "experiment", "name": "counting", "examples": "train.jsonl", "test": "test.jsonl",
        "stack": stack(base),
        "compare": {"seeds": [0, 1], "resamples": 200, "token_tolerance": 0.2, "shots": 2},
        "cost": {"questions": 3, "warmup": 0, "processes": False},
        **sections,
    }  # fmt: skip
    file = folder / "counting.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False))
    return file


def write_trained(folder: Path) -> list[Path]:
    """Writes two trained stacks, seeds 3 and 4, as far as a scripted engine needs them."""
    write_data(folder)
    made = []
    for seed in (3, 4):
        place = folder / f"stack-{seed}"
        spec = StackSpec.model_validate({**stack("embedded:base"), "examples": "../train.jsonl"})
        place.mkdir()
        save_config(spec, place / "stack.yaml")
        sides = {name: {"trained_parameters": 50, "training_tokens": 900, "seconds": 1.0} for name in ("find", "count")}
        single = {"trained_parameters": 100, "training_tokens": 1800, "seconds": 2.0}
        facts = {
            "stack": single, "adapters": sides, "comparators": {"single_direct": single, "single_chain": single},
            "settings": {"seed": seed}, "examples": {"sha256": "x", "training": 60},
        }  # fmt: skip
        (place / "training.json").write_text(json.dumps(facts))
        (place / "base.json").write_text("{}")
        for name in ("stages/find", "stages/count", "comparators/single_direct", "comparators/single_chain"):
            (place / name).mkdir(parents=True)
            (place / name / "adapter_config.json").write_text("{}")
            (place / name / "adapter_model.safetensors").write_text(f"{name} {seed}")
            (place / name / "cairn_adapter.json").write_text(json.dumps({"weights_sha256": f"{name} {seed}"}))
        made.append(place)
    return made


def scripted(seed: TrainedSeed, adapters: Mapping[str, Path]) -> FakeEngine:
    """The stack is always right, the chain knows how many words there are, direct answers "one"."""

    def reply(request: GenerationRequest) -> str:
        lines = request.prompt.split("\n")
        last = {line.partition(": ")[0]: line.partition(": ")[2] for line in lines}
        if request.adapter == "find":
            return " yes" if last["Word"] == last["Colour"] else " no"
        if request.adapter == "count":
            return f" {NUMBERS[NUMBERS.index(last['Count']) + 1]}"
        if request.adapter == "single_chain":
            return f" find: x\ncount: one\nanswer: {NUMBERS[min(len(lines) - 2, 5)]}"
        return " one"

    engine = FakeEngine(reply, adapters=list(adapters))
    engine.config = CONFIG  # type: ignore[attr-defined]
    return engine


def write_base(folder: Path) -> Path:
    import torch

    from cairn.models.configuration import CairnConfig
    from cairn.models.modeling import CairnForCausalLM
    from cairn.models.tokenization import train_bpe

    texts = [f"Words: {' '.join(COLOURS)} Colour: Word: Same: yes no Count: Now: Answer: {' '.join(NUMBERS)}\n"
             "words: colour: find: count: answer:"] * 8  # fmt: skip
    tokenizer = train_bpe(texts, 320, model_max_length=256)
    torch.manual_seed(0)
    config = CairnConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256,
    )  # fmt: skip
    CairnForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
