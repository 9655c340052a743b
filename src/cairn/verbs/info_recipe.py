"""What a pretraining recipe costs before it is begun: parameters, text, FLOPs, memory, and hours on two machines.

    recipe.yaml ── shape, steps ──> tokens, FLOPs ─┬─ one consumer GPU: its data sheet, and a share of it (assumed)
                                                   └─ this CPU: seconds of a few training passes (measured here)
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

from cairn.config import load_config
from cairn.errors import CheckpointError, InputError

__all__ = ["recipe_facts", "recipe_tables"]

# NVIDIA's data sheet of the RTX 4090: dense bf16 products, summed in fp32.
GPU = {"name": "RTX 4090", "tflops": 165.2, "share": 0.3}
_PASSES = 3  # timed on this CPU, after one that is not


def recipe_facts(path: Path) -> dict[str, Any]:
    """Returns what a recipe of kind `pretrain` costs.

    Raises:
        ConfigError: the recipe is wrong.
        CheckpointError: its tokenizer cannot be read.
        InputError: its model takes a share of its cost from the text (byte patches of no fixed length, early exits,
            other objectives), so that nothing can be said beforehand.
    """
    from cairn.models import accounting
    from cairn.models.presets import preset_config
    from cairn.training.pretrain_recipe import PretrainRecipe

    recipe = load_config(PretrainRecipe, path)
    config = preset_config(recipe.model.preset, **{**recipe.model.changes, "vocab_size": _vocabulary(recipe)})
    if config.byte_pooling is not None or config.early_exit is not None or recipe.objective.kind != "next_token":
        raise InputError(
            "the cost of this recipe is not known beforehand", value=str(path),
            allowed="decoders of tokens trained on the next one",
            next="cairn sweep RECIPE --plan measures the speed of such a training",
        )  # fmt: skip
    tokens = recipe.steps * recipe.batch_rows * recipe.sequence_length
    each = accounting.flops_per_token(config, recipe.sequence_length // 2, training=True)
    memory = accounting.training_memory_bytes(
        config, recipe.loop.micro_rows * recipe.sequence_length, recipe.sequence_length
    )
    rate = cpu_tokens_per_s(config, recipe.sequence_length)
    return {
        "kind": "recipe",
        "name": recipe.name,
        "parameters": accounting.parameters_by_part(config),
        "text": {
            "sources": [
                {"name": one.name, "from": one.hub or one.path or one.generator, "licence": one.licence}
                for one in recipe.data.sources
            ],
            "stream_tokens": recipe.data.total_tokens,
            "passes": None if recipe.data.total_tokens is None else tokens / recipe.data.total_tokens,
        },
        "training": {
            "steps": recipe.steps, "tokens_per_step": recipe.batch_rows * recipe.sequence_length, "tokens": tokens,
            "flops_per_token": each, "flops": each * tokens, "memory_bytes": memory["total"],
            "micro_batch_tokens": recipe.loop.micro_rows * recipe.sequence_length,
        },
        "gpu": {
            **GPU, "hours": each * tokens / (GPU["tflops"] * 1e12 * GPU["share"]) / 3600,
            "method": "estimated: data sheet times the assumed share; the loop reaches less on small micro-batches",
        },
        "cpu": {
            "tokens_per_s": rate, "hours": tokens / rate / 3600,
            "method": f"estimated from {_PASSES} passes over a row of {recipe.sequence_length} tokens, timed now; "
            "optimizer and data not counted",
        },
    }  # fmt: skip


def _vocabulary(recipe: Any) -> int:
    if recipe.tokenizer.source is None and recipe.tokenizer.kind == "bpe":
        return int(recipe.tokenizer.vocab_size)
    from transformers import AutoTokenizer

    from cairn.models.tokenization import byte_tokenizer

    if recipe.tokenizer.source is None:
        return len(byte_tokenizer())
    try:
        return len(AutoTokenizer.from_pretrained(recipe.tokenizer.source))
    except (OSError, ValueError) as error:
        raise CheckpointError("the recipe's tokenizer cannot be read", value=recipe.tokenizer.source,
                              next="give a folder, or a name while the hub is in reach") from error  # fmt: skip


def cpu_tokens_per_s(config: Any, sequence_length: int) -> float:
    """Returns tokens per second of forward and backward of one row as it trains on this CPU: the median."""
    import torch

    from cairn.bases import pick_precision
    from cairn.models import CairnForCausalLM
    from cairn.training.objectives import next_token

    model = CairnForCausalLM(config)
    ids = torch.randint(0, config.vocab_size, (1, sequence_length + 1))
    mixed = pick_precision("auto", torch.device("cpu")) == "bf16"
    seconds = []
    for _ in range(1 + _PASSES):
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            loss, _ = next_token(model, {"input_ids": ids[:, :-1], "labels": ids[:, 1:]})
        loss.backward()
        model.zero_grad()
        seconds.append(time.perf_counter() - began)
    return sequence_length / statistics.median(seconds[1:])


def recipe_tables(facts: dict[str, Any], table: Any) -> list[Any]:
    """Returns what the terminal shows of `recipe_facts`.

    Args:
        facts: of one recipe.
        table: makes an empty table: (title, *columns).
    """
    training, text, gpu, cpu = (facts[name] for name in ("training", "text", "gpu", "cpu"))
    source = table("Text", "source", "from", "licence")
    for one in text["sources"]:
        source.add_row(one["name"], one["from"], one["licence"])
    costs = table("Training", "what", "amount")
    costs.add_row("parameters", f"{facts['parameters']['total']:,}")
    costs.add_row("steps", f"{training['steps']:,} of {training['tokens_per_step']:,} tokens")
    passes = "" if text["passes"] is None else f", {text['passes']:.2f} passes"
    costs.add_row("tokens", f"{training['tokens'] / 1e9:,.3f} billion{passes}")
    costs.add_row("FLOPs", f"{training['flops']:.2e}")
    memory = f"{training['memory_bytes'] / 2**30:,.1f} GiB"
    costs.add_row(f"memory, {training['micro_batch_tokens']:,} tokens a micro-batch (estimate)", memory)
    costs.add_row(f"one {gpu['name']}, {gpu['share']:.0%} of {gpu['tflops']:g} TFLOP/s (assumed)", _time(gpu["hours"]))
    costs.add_row(f"this CPU, {cpu['tokens_per_s']:,.0f} tokens/s (measured now)", _time(cpu["hours"]))
    return [f"{facts['name']}: what `cairn pretrain` would cost", source, costs]


def _time(hours: float) -> str:
    return f"{hours / 24:,.1f} days" if hours > 72 else f"{hours:,.1f} hours"
