"""Settings of fine-tuning, and how the budget of a stack is shared out.

    training:                       ┌─ mention        0.4 x tokens_total, rank 8 ─┐
      tokens_total: 1200000   ──────┼─ holder         0.3 x tokens_total, rank 4  ├─ together: tokens_total, rank 16
      adapters: {mention: ...}      ├─ answer         0.3 x tokens_total, rank 4 ─┘
                                    ├─ single_direct  tokens_total, rank 16      (comparators: the same budget and
                                    └─ single_chain   tokens_total, rank 16       the same trained parameters in one)

A comparison of one adapter with several is fair only if both may train as many numbers on as many tokens. So the
rank and budget of the comparators follow from the stack's and cannot be set. No torch here: a recipe is checked
before anything heavy is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from cairn.config import StrictModel, parse_config
from cairn.errors import ConfigError, did_you_mean

__all__ = [
    "COMPARATORS",
    "AdapterPlan",
    "FinetuneConfig",
    "LoraSettings",
    "StackTraining",
    "adapter_configs",
    "comparator_config",
    "stack_training",
]

COMPARATORS = ("single_direct", "single_chain")


class LoraSettings(StrictModel):
    """Shape of a low-rank adapter.

    Args:
        rank: inner width of each pair of matrices.
        scale: what the product is multiplied by (PEFT's lora_alpha / rank), the same for every rank.
        dropout: on the adapter's input while training.
        targets: "all-linear" (every linear layer but the output head), or names of layers.

    Source: LoRA, arXiv 2106.09685, section 4.1.
    """

    rank: int = Field(default=8, ge=1)
    scale: float = Field(default=2.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: Literal["all-linear"] | list[str] = "all-linear"


class _Method(StrictModel):
    """How an adapter is trained, whatever its budget.

    Args:
        batch_tokens: real tokens in a batch, at most.
        learning_rate: AdamW's, at its height.
        schedule: what follows the warmup: cosine or linear to zero, or constant.
        warmup: share of the steps in which the learning rate rises from zero.
        weight_decay: AdamW's.
        clip: largest norm of the gradient.
        precision: "bf16" autocast, or "fp32".
        seed: of the adapter's start, the order of the pairs and dropout.
        evaluate_every: steps between evaluations on held-out pairs; the last step always has one.
        checkpoint_every: steps between checkpoints.
        lora: shape of the adapter.
    """

    batch_tokens: int = Field(default=2000, ge=1)
    learning_rate: float = Field(default=2e-3, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(default=0.05, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    clip: float = Field(default=1.0, gt=0)
    precision: Literal["bf16", "fp32"] = "bf16"
    seed: int = 0
    evaluate_every: int = Field(default=200, ge=1)
    checkpoint_every: int = Field(default=200, ge=1)
    lora: LoraSettings = LoraSettings()


class FinetuneConfig(_Method):
    """How one adapter is trained.

    Args:
        tokens: budget in real tokens (prompt and completion, no padding); or
        steps: budget in batches.
        (others): see the base class.
    """

    tokens: int | None = Field(default=None, ge=1)
    steps: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _one_budget(self) -> FinetuneConfig:
        if (self.tokens is None) == (self.steps is None):
            raise ValueError("give tokens or steps, one of them")
        return self


class AdapterPlan(StrictModel):
    """What one adapter of a stack has for itself.

    Args:
        share: of tokens_total; the shares of a stack sum to 1.
        rank: instead of lora.rank.
        balance: see `data.examples.adapter_pairs`: other items per kept item of its map stages.
        limit: at most so many training pairs.
    """

    share: float | None = Field(default=None, gt=0, le=1)
    rank: int | None = Field(default=None, ge=1)
    balance: float | None = Field(default=None, gt=0)
    limit: int | None = Field(default=None, ge=1)


class StackTraining(_Method):
    """The `training:` section of a stack.yaml.

    Args:
        tokens_total: budget of the whole stack in real tokens; each comparator gets as much.
        validation_examples: examples held out from all training, drawn with the seed.
        adapters: adapter name -> its own plan. Without any share all adapters get the same.
        (others): see the base class.
    """

    tokens_total: int = Field(default=500_000, ge=1)
    validation_examples: int = Field(default=50, ge=0)
    adapters: dict[str, AdapterPlan] = {}


def stack_training(section: Mapping[str, Any], adapters: Sequence[str], source: str) -> StackTraining:
    """Checks the `training:` section of a stack against the adapters that the stack has.

    Args:
        section: the mapping as read.
        adapters: the stack's adapter names.
        source: file name for the error.

    Raises:
        ConfigError: an unknown key or adapter, a wrong value, shares for some adapters only, or shares that do
            not sum to 1.
    """
    training = parse_config(StackTraining, dict(section), f"{source}, training")
    faults = [
        f"adapters.{name}: no stage has this adapter{did_you_mean(name, adapters)}, allowed: {', '.join(adapters)}"
        for name in training.adapters
        if name not in adapters
    ]
    plans = {name: training.adapters.get(name, AdapterPlan()) for name in adapters}
    shares = {name: plan.share for name, plan in plans.items() if plan.share is not None}
    without = [name for name in adapters if name not in shares]
    total = math.fsum(shares.values())
    if not faults and shares and without:
        faults.append(f"share is missing for {', '.join(without)}, allowed: a share for every adapter, or for none")
    elif not faults and shares and abs(total - 1) > 1e-6:
        faults.append(f"the shares of {', '.join(shares)} sum to {total:.6g}, allowed: 1")
    if faults:
        raise ConfigError(f"{source}, training", faults)
    return training


def adapter_configs(training: StackTraining, adapters: Sequence[str]) -> dict[str, FinetuneConfig]:
    """Returns the settings of every adapter of a stack, budgets and ranks filled in."""
    configs = {}
    for name in adapters:
        plan = training.adapters.get(name, AdapterPlan())
        share = plan.share if plan.share is not None else 1 / len(adapters)
        configs[name] = _config(training, round(training.tokens_total * share), plan.rank or training.lora.rank)
    return configs


def comparator_config(training: StackTraining, adapters: Sequence[str]) -> FinetuneConfig:
    """Returns the settings of a single adapter with the whole stack's budget and the sum of its ranks."""
    rank = sum(config.lora.rank for config in adapter_configs(training, adapters).values())
    return _config(training, training.tokens_total, rank)


def _config(training: StackTraining, tokens: int, rank: int) -> FinetuneConfig:
    method = {name: getattr(training, name) for name in _Method.model_fields}
    method["lora"] = training.lora.model_copy(update={"rank": rank})
    return FinetuneConfig(**method, tokens=max(tokens, 1))
