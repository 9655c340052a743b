"""`cairn pretrain`: a recipe in, a model folder out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cairn.config import load_config

__all__ = ["pretrain"]


def pretrain(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="The recipe; recipes/ has working ones.")],
    out: Annotated[Path | None, typer.Option("--out", help="Run folder; default runs/NAME.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe; repeatable.")
    ] = None,
) -> None:
    """Train a tiny base model from raw text.

    A recipe names text sources (JSONL, plain text, packed with xz, gz or zst, Hugging Face datasets, Cairn's own
    generator), a tokenizer, a model shape and a schedule. The command trains the tokenizer, writes token shards,
    trains, and leaves a Hugging Face model folder in OUT/model. Objectives (multi-token, causal and masked, next
    thought, distillation), dropout and length schedules and averaging are sections of the recipe: docs/pretraining.md.

    Killed at any moment, the same command goes on where it was and ends with the same weights. Ctrl-C ends the
    running step and writes a checkpoint first. Several processes: torchrun --nproc-per-node 2 -m cairn pretrain ...

    \b
    Run folder   config.yaml, versions.json, metrics.jsonl, tokenizer/, shards/, checkpoints/, model/, manifest.json

    Examples:

        cairn pretrain recipes/tiny.yaml
        cairn pretrain recipes/base.yaml --set data.root=/data/text --out runs/base
        cairn pretrain recipes/tiny.yaml --set steps=200 --set optimizer.kind=adamw
    """
    from cairn.training.pretrain import PretrainRecipe
    from cairn.training.pretrain import pretrain as run_recipe

    loaded = load_config(PretrainRecipe, recipe, overrides or [])
    teacher = None
    if loaded.data.written is not None:
        from cairn.verbs.distill import open_teacher

        root = recipe.parent / (loaded.data.root or ".")
        teacher = open_teacher(
            loaded.data.written.teacher, lambda path: str(root / path) if (root / path).exists() else path
        )
    run_recipe(
        loaded, out or Path("runs") / loaded.name, recipe_folder=recipe.parent, teacher=teacher, say=typer.echo
    )
