"""The shipped base: BLiMP beside 65, and bits per byte beside a model of the nanoGPT recipe of its size and budget.

    python -m benchmarks.base_quality --data ROOT [--quick] [--out FOLDER]

    ROOT/eval/blimp.jsonl.xz ── shipped base ── macro mean, ties one half                      row 1
    recipes/base.yaml ── the same text, the same number of tokens ─┬─ shipped base (already trained)
                                                                   └─ GPT-2 shape, AdamW, cosine: here  rows 2...

ROOT is the `data.root` of recipes/base.yaml. The long form trains the reference for as many tokens as the recipe's own
run read (an hour and more on two cores); it goes on where it was killed. The quick form scores 50 pairs a paradigm, and
trains both sides for 24 steps, so that its ratios are those of the recipes, not of the shipped model.

The reference: learned positions, LayerNorm, GELU, a tied head and biases, AdamW (0.9, 0.95), learning rate 0.001 that
falls to a tenth by a cosine, weight decay 0.1, no dropout, clipped at 1. Source: nanoGPT's defaults for small models.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerBase

from benchmarks.rows import finish, row
from cairn.bases import load_base
from cairn.config import load_config
from cairn.data.loader import PackedLoader
from cairn.data.shards import ShardSet
from cairn.engines.torch_engine import TorchEngine
from cairn.evaluation.suites import bits_per_byte, blimp, first_bytes
from cairn.evaluation.textfiles import read_documents, read_rows
from cairn.runs import RunFolder
from cairn.training.loop import train
from cairn.training.objectives import next_token
from cairn.training.optim import OptimizerConfig, ScheduleConfig, build_optimizers
from cairn.training.pretrain import model_config, prepare, pretrain
from cairn.training.pretrain_recipe import PretrainRecipe

WANTED = 65.0  # BLiMP macro mean, percent
QUICK = ["steps=24", "data.total_tokens=700000", "tokenizer.train_bytes=4000000", "loop.compile=false",
         "loop.eval_every=0", "samples=[]"]  # fmt: skip
ROOT = Path(__file__).resolve().parents[1]


def nanogpt(tokenizer: PreTrainedTokenizerBase, recipe: PretrainRecipe) -> GPT2LMHeadModel:
    """Returns an untrained GPT-2 as deep and as wide as the recipe's model."""
    ours = model_config(recipe, tokenizer)
    torch.manual_seed(recipe.seed)
    return GPT2LMHeadModel(GPT2Config(
        vocab_size=len(tokenizer), n_positions=recipe.sequence_length, n_embd=ours.hidden_size,
        n_layer=ours.num_hidden_layers, n_head=ours.num_attention_heads, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
    ))  # fmt: skip


def reference(recipe: PretrainRecipe, out: Path) -> tuple[GPT2LMHeadModel, PreTrainedTokenizerBase]:
    """Returns the reference, trained on the recipe's text for its tokens; `out` keeps data and checkpoints."""
    tokenizer = prepare(recipe, out)
    shards = ShardSet.open(out / "shards", tokenizer)
    loader = PackedLoader(shards, recipe.sequence_length, recipe.batch_rows, recipe.seed, order=recipe.data.order)
    model = nanogpt(tokenizer, recipe)
    optimizers = build_optimizers(model, OptimizerConfig(kind="adamw", learning_rate=1e-3, weight_decay=0.1))
    schedule = ScheduleConfig(kind="cosine", warmup=min(0.5, 100 / recipe.steps), final=0.1)
    train(model, next_token, loader, optimizers, schedule, recipe.steps, recipe.loop, RunFolder(out, recipe),
          title="nanoGPT recipe")  # fmt: skip
    return model.eval(), tokenizer


def scores(model: PreTrainedModel, tokenizer: Any, recipe: PretrainRecipe, root: Path, size: int) -> dict[str, float]:
    """Returns bits per byte of each validation text of the recipe."""
    engine = TorchEngine(model, tokenizer=tokenizer)
    return {
        source.name: bits_per_byte(
            engine, list(first_bytes(read_documents(root / str(source.path)), size)),
            context=recipe.sequence_length, stride=recipe.sequence_length // 2,
        )["bits_per_byte"]
        for source in recipe.data.validation
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="ROOT", help="data.root of recipes/base.yaml")
    parser.add_argument("--quick", action="store_true", help="a few pairs and a few steps; under five minutes")
    parser.add_argument("--model", default="embedded:base", help="another base to score: folder or Hugging Face name")
    parser.add_argument("--out", type=Path, default=Path("runs/base_quality"), help="where the training is kept")
    given = parser.parse_args()
    out = given.out / ("quick" if given.quick else "full")
    changes = [f"data.root={given.data.resolve()}", *(QUICK if given.quick else [])]
    recipe = load_config(PretrainRecipe, ROOT / "recipes/base.yaml", changes)
    model, tokenizer = load_base(given.model, dtype="float32", device="cpu")
    pairs = read_rows(given.data / "eval/blimp.jsonl.xz")
    found = blimp(TorchEngine(model, tokenizer=tokenizer), pairs, limit=50 if given.quick else None)
    mean, interval = 100 * found["accuracy"], [100 * edge for edge in found["ci95"]]
    print(f"BLiMP {mean:.1f} ({interval[0]:.1f} to {interval[1]:.1f}), {found['n']:,} pairs, {found['ties']:,} ties")
    rows = [row("BLiMP, macro mean", "percent", mean, WANTED, "wanted of a base trained on a CPU", 1.0,
                spread=interval, pairs=found["n"])]  # fmt: skip
    ours = "shipped base"
    if given.quick:
        ours = f"recipes/base.yaml, {recipe.steps} steps"
        pretrain(recipe, out / "ours")
        model, tokenizer = load_base(str(out / "ours/model"), dtype="float32", device="cpu")
    other, its_tokenizer = reference(recipe, out / "reference")
    sizes = {"parameters": model.num_parameters(), "reference_parameters": other.num_parameters()}
    tokens = recipe.steps * recipe.batch_rows * recipe.sequence_length
    size = 60_000 if given.quick else 300_000
    sides = [scores(model, tokenizer, recipe, given.data, size), scores(other, its_tokenizer, recipe, given.data, size)]
    for name in sides[0]:
        print(f"{name}: {ours} {sides[0][name]:.4f} bits per byte, nanoGPT recipe {sides[1][name]:.4f}")
        rows.append(row(f"{ours}: {name}", "bits per byte", sides[0][name], sides[1][name],
                        f"nanoGPT recipe, {tokens:,} tokens of the same text", None, smaller_is_better=True, **sizes))
    return finish("base_quality", rows)


if __name__ == "__main__":
    sys.exit(main())
