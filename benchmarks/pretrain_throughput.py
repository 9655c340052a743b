"""Training rate of Cairn's loop beside a plain transformers loop of the same shape, and of the machine's ceiling.

    python -m benchmarks.pretrain_throughput [--quick]

Both sides: the same decoder shape (no QK-norm, which Llama lacks), batches, AdamW, gradient clipping, and
precision: bf16 autocast where the CPU multiplies it natively, else fp32.
The two sides take turns, so that a drift of the machine hits both; medians over the turns. The ceiling is the best of
a few matrix products of that precision, measured first.
A third line is Cairn's loop with torch.compile, beside the same reference.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel
from transformers import LlamaForCausalLM, PreTrainedModel

from benchmarks.rows import finish, row
from cairn.bases import pick_precision
from cairn.models import CairnForCausalLM
from cairn.models.accounting import flops_per_token
from cairn.models.export import to_llama
from cairn.models.presets import preset_config
from cairn.runs import RunFolder
from cairn.training.loop import LoopConfig, train
from cairn.training.objectives import next_token
from cairn.training.optim import OptimizerConfig, ScheduleConfig, build_optimizers

ROWS, LENGTH = 8, 256
PRECISION = pick_precision("auto", torch.device("cpu"))
WARM = 2  # steps at the start of each turn that do not count


class RandomTokens:
    """Batches of random tokens: the rate does not depend on what they say."""

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def batch(self, step: int) -> dict[str, np.ndarray]:
        ids = np.random.default_rng(step).integers(0, self.vocab_size, (ROWS, LENGTH + 1))
        return {"input_ids": ids[:, :-1], "labels": ids[:, 1:]}


class Nothing(BaseModel):
    """A run without settings."""


def ceiling_gflops(seconds: float) -> float:
    """Returns the best rate of matrix products in the training's precision, of training-like and square shapes."""
    best, dtype = 0.0, torch.bfloat16 if PRECISION == "bf16" else torch.float32
    for n, k, m in ((2048, 2048, 2048), (4096, 384, 1024), (8192, 256, 1024)):
        a, b = torch.randn(n, k, dtype=dtype), torch.randn(k, m, dtype=dtype)
        a @ b
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            a @ b
            count += 1
        best = max(best, 2 * n * k * m * count / (time.perf_counter() - began) / 1e9)
    return best


def ours(model: CairnForCausalLM, steps: int, compiled: bool) -> float:
    """Returns tokens per second of Cairn's loop: the median step, without the first ones (they may compile)."""
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder(Path(folder) / "run", Nothing())
        train(
            model, next_token, RandomTokens(model.config.vocab_size), build_optimizers(model, OptimizerConfig()),
            ScheduleConfig(kind="constant"), WARM + steps,
            LoopConfig(compile=compiled, log_every=1, checkpoint_every=0), run,
        )
        return statistics.median(entry["tokens_per_s"] for entry in run.metrics()[WARM:])


def plain(model: PreTrainedModel, steps: int) -> float:
    """Returns tokens per second of a loop written out with transformers and torch alone: the median step."""
    batches = RandomTokens(model.config.vocab_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)
    model.train()
    seconds = []
    for step in range(WARM + steps):
        began = time.perf_counter()
        batch = {name: torch.from_numpy(values) for name, values in batches.batch(step).items()}
        with torch.autocast("cpu", torch.bfloat16, enabled=PRECISION == "bf16"):
            logits = model(input_ids=batch["input_ids"], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch["labels"].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        seconds.append(time.perf_counter() - began)
    return ROWS * LENGTH / statistics.median(seconds[WARM:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer turns; under five minutes")
    quick = parser.parse_args().quick
    turns, steps = (5, 4) if quick else (9, 12)
    ceiling = ceiling_gflops(0.5 if quick else 2.0)
    print(f"{PRECISION} matrix products: {ceiling:,.0f} GFLOP/s, {torch.get_num_threads()} threads")
    rows = []
    for preset in ("5m", "10m"):
        config = preset_config(preset, qk_norm=False, zero_init_projections=False)
        torch.manual_seed(0)
        sides = {
            "loop": lambda model, n: ours(model, n, False),
            "loop, compiled": lambda model, n: ours(model, n, True),
            "plain": plain,
        }
        models = {name: CairnForCausalLM(config) for name in ("loop", "loop, compiled")}
        models["plain"] = to_llama(models["loop"])
        if not isinstance(models["plain"], LlamaForCausalLM):
            raise TypeError(f"the reference is a {type(models['plain']).__name__}, not a LlamaForCausalLM")
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(turns):
            for name, side in sides.items():
                rates[name].append(side(models[name], steps))
        per_token = flops_per_token(config, LENGTH // 2, training=True)
        reference = statistics.median(rates["plain"])
        for name in ("loop", "loop, compiled"):
            median = statistics.median(rates[name])
            share = median * per_token / 1e9 / ceiling
            print(f"{preset} {name}: {median:,.0f} tokens/s ({min(rates[name]):,.0f} to {max(rates[name]):,.0f}), "
                  f"{share:.0%} of the ceiling; plain transformers {reference:,.0f}")
            rows.append(row(
                f"{preset}, {name}", "tokens/s", median, reference, "plain transformers LlamaForCausalLM loop", 0.95,
                precision=PRECISION, ceiling_gflops=ceiling, turns=turns,
                spread=[min(rates[name]), max(rates[name])], **{f"share_of_{PRECISION}_ceiling": share},
            ))
    return finish("pretrain_throughput", rows)


if __name__ == "__main__":
    sys.exit(main())
