"""A toy stack with a tiny base, for tests of training: mention (map, kept) -> answer."""

import json
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file

from cairn.models import CairnConfig, CairnForCausalLM
from cairn.models.tokenization import train_bpe
from cairn.stacks.spec import load_stack

NAMES, PLACES = ("Ann", "Bob", "Mary"), ("kitchen", "garden", "office")
YES_NO = {"kind": "choices", "values": ["yes", "no"]}
STACK = {
    "name": "toy",
    "base": "model",
    "inputs": ["story", "who"],
    "examples": "train.jsonl",
    "stages": [
        {"name": "mention", "kind": "map", "over": "story", "split": "sentences", "keep": "yes", "contract": YES_NO,
         "prompt": "{item}\n{who}?"},
        {"name": "answer", "reads": ["mention"], "prompt": "{mention}\nWhere:", "sampling": {"max_new_tokens": 6}},
    ],
    "training": {
        "tokens_total": 4000, "batch_tokens": 200, "precision": "fp32", "learning_rate": 0.01,
        "validation_examples": 4, "evaluate_every": 50, "checkpoint_every": 2,
        "adapters": {"mention": {"share": 0.75, "rank": 3, "balance": 1.0}, "answer": {"share": 0.25, "rank": 1}},
    },
}  # fmt: skip


def example_rows():
    rows = []
    for shift in range(3):
        for turn in range(3):
            places = {name: PLACES[(number + shift) % 3] for number, name in enumerate(NAMES)}
            who = NAMES[turn]
            story = " ".join(f"{name} is in the {place}." for name, place in places.items())
            row = {"inputs": {"story": story, "who": who}, "answer": places[who]}
            row["stages"] = {"mention": ["yes" if name == who else "no" for name in NAMES], "answer": places[who]}
            rows.append({"id": f"{shift}-{turn}", **row})
    return rows


def make_home(folder):
    """Writes a tiny base, examples and stack.yaml."""
    rows = example_rows()
    tokenizer = train_bpe([row["inputs"]["story"] + " yes no Where: mention: answer: ?" for row in rows] * 3, 400)
    torch.manual_seed(1)
    model = CairnForCausalLM(
        CairnConfig(vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                    num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=96)
    )  # fmt: skip
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "stack.yaml").write_text(yaml.safe_dump(STACK))
    return folder


def changed(home, tmp_path, **changes):
    """The stack with other top-level keys, in a folder of its own."""
    for name in ("train.jsonl", "model"):
        (tmp_path / name).exists() or (tmp_path / name).symlink_to(home / name)
    (tmp_path / "stack.yaml").write_text(yaml.safe_dump({**STACK, **changes}))
    return load_stack(tmp_path / "stack.yaml")


def weights(folder):
    return load_file(Path(folder) / "adapter_model.safetensors")


def same(first, second):
    """True if two adapter folders hold the same weights, bit for bit."""
    one, other = weights(first), weights(second)
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
