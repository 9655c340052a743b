"""Settings of fine-tuning: what the `training:` section of a stack.yaml may say, and what an adapter is trained by.

    training:
      tokens_total: 1200000            the stack's whole budget; each comparator gets as much
      lora: {rank: 8}                  adapters may differ: rank, scale, dropout, targets
      adapters: {mention: {share: 0.5, rank: 4, batch_tokens: 600}, answer: {share: 0.5}}
      comparators: {single_chain: {learning_rate: 4.0e-3}}
      global_first: {share: 0.3}       one adapter on all stages first; each stage goes on from it
      handoff_dropout: 0.1             gold prompts without some of their hand-offs
      on_policy: {share: 0.25}         then the stack's real hand-offs, with the gold targets
      keep_right_chains: {share: 0.2}  then the stack's own hand-offs from chains that ended right

`training/phases.py` shares the budget out. No torch here: a recipe is checked before anything heavy is loaded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from cairn.config import StrictModel, parse_config
from cairn.errors import ConfigError, did_you_mean

__all__ = [
    "ALL_STAGES",
    "COMPARATORS",
    "AdapterPlan",
    "FinetuneConfig",
    "GlobalFirst",
    "LoraSettings",
    "MethodPlan",
    "OnPolicy",
    "OwnAnswers",
    "RightChains",
    "StackTraining",
    "adapter_lora",
    "stack_training",
]

COMPARATORS = ("single_direct", "single_chain")
ALL_STAGES = "all-stages"  # the adapter of the global phase; no stage can have this name


class LoraSettings(StrictModel):
    """Shape of a low-rank adapter.

    Args:
        rank: inner width of each pair of matrices.
        scale: what the product is multiplied by (PEFT's lora_alpha / rank), the same for every rank.
        dropout: on the adapter's input while training.
        targets: "all-linear" (every linear layer but the output head), or names of layers.
        ranks: layer -> another rank there (PEFT's rank_pattern); a name counts from its end, as in `targets`.

    Source: LoRA, arXiv 2106.09685, section 4.1.
    """

    rank: int = Field(default=8, ge=1)
    scale: float = Field(default=2.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: Literal["all-linear"] | list[str] = "all-linear"
    ranks: dict[str, int] = {}


class _Method(StrictModel):
    """How an adapter is trained, whatever its budget.

    Args:
        batch_tokens: real tokens in a batch, at most.
        learning_rate: AdamW's, at its height.
        schedule: what follows the warmup: cosine or linear to zero, or constant.
        warmup: share of the steps in which the learning rate rises from zero.
        weight_decay: AdamW's.
        clip: largest norm of the gradient.
        precision: "bf16" autocast, "fp32", or "auto": what the device multiplies fast (`bases.pick_precision`). A
            record of a training says which of the two it was.
        seed: of the adapter's start, the order of the pairs and dropout.
        evaluate_every: steps between evaluations on held-out pairs; None for a quarter of the steps, however few
            they are. The last step always has one.
        checkpoint_every: steps between checkpoints.
        lora: shape of the adapter.
    """

    batch_tokens: int = Field(default=2000, ge=1)
    learning_rate: float = Field(default=2e-3, gt=0)
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = Field(default=0.05, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    clip: float = Field(default=1.0, gt=0)
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    seed: int = 0
    evaluate_every: int | None = Field(default=None, ge=1)
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


class MethodPlan(StrictModel):
    """What one training has for itself beside its budget: a short decision wants small batches, a long text does not.

    Args:
        batch_tokens, learning_rate: instead of the stack's.
    """

    batch_tokens: int | None = Field(default=None, ge=1)
    learning_rate: float | None = Field(default=None, gt=0)


class AdapterPlan(MethodPlan):
    """What one adapter of a stack has for itself.

    Args:
        share: of tokens_total, the global phase taken off; the shares of a stack sum to 1.
        rank, scale, dropout, targets: instead of those in `lora`.
        balance, limit, distinct, even, weights: which gold training pairs it has; see `data.examples.adapter_pairs`.
        (others): see the base class; in the global phase the stack's own hold.
    """

    share: float | None = Field(default=None, gt=0, le=1)
    rank: int | None = Field(default=None, ge=1)
    scale: float | None = Field(default=None, gt=0)
    dropout: float | None = Field(default=None, ge=0, lt=1)
    targets: Literal["all-linear"] | list[str] | None = None
    balance: float | None = Field(default=None, gt=0)
    limit: int | None = Field(default=None, ge=1)
    distinct: bool | Annotated[int, Field(ge=1)] = False
    even: bool = False
    weights: dict[str, Annotated[float, Field(gt=0)]] = {}


class _Phase(StrictModel):
    """A part of the training beside the plain one. A number alone is its share; `true` takes every default.

    Args:
        share: of the budget.
        learning_rate: instead of the stack's.
    """

    share: float = Field(default=0.25, gt=0, lt=1)
    learning_rate: float | None = Field(default=None, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if value is True:
            return {}
        return {"share": value} if isinstance(value, int | float) else value


class GlobalFirst(_Phase):
    """One adapter is trained on the pairs of all stages; each stage's adapter then starts with its weights.

    Args:
        share: of tokens_total; the rest is divided among the adapters.
        (others): see the base class.

    Source: global-to-local progressive fine-tuning of multi-model agents, arXiv 2401.07324.
    """


class OwnAnswers(_Phase):
    """A later round, for which the stack trained so far answers its own training questions.

    Args:
        share: of each adapter's own budget; what is left of it trains the gold pairs before.
        questions: training questions that are answered, drawn with the seed; None for all.
        mix: share of pairs from own answers in the round, as far as `repeat` allows; the others are gold.
        repeat: how often a pair from own answers is seen in the round, at most.
        (others): see the base class.
    """

    questions: int | None = Field(default=500, ge=1)
    mix: float = Field(default=0.5, gt=0, lt=1)
    repeat: int = Field(default=4, ge=1)


class OnPolicy(OwnAnswers):
    """Stages that read hand-offs are trained on real ones, with the gold targets (as DAgger does with actions).

    Args:
        stages: for which stages pairs are made; None for all that read a hand-off.
        (others): see the base class.

    Source: learning from the states that the learner itself visits: DAgger, arXiv 1011.0686, algorithm 3.1.
    """

    stages: list[str] | None = None


class RightChains(OwnAnswers):
    """The stack's own hand-offs, from the chains whose final answer is right, are trained beside the gold.

    Args:
        where_gold_differs: for a prompt to which gold has another completion: "both" are trained, "gold" leaves the
            stack's own out, "own" leaves the gold pair out.
        (others): see the base class.

    Source: STaR, arXiv 2203.14465, section 3.1, without its rationalisation.
    """

    where_gold_differs: Literal["both", "gold", "own"] = "both"


class StackTraining(_Method):
    """The `training:` section of a stack.yaml.

    Args:
        tokens_total: budget of the whole stack in real tokens, every phase included; each comparator gets as much.
        validation_examples: examples held out from all training, drawn with the seed.
        adapters: adapter name -> its own plan. Without any share all adapters get the same.
        comparators: single_direct or single_chain -> its own plan; parameters and tokens are the stack's whatever it
            says.
        global_first: train one adapter on all stages first.
        handoff_dropout: probability with which a hand-off in a gold training prompt is replaced by the `empty` text
            of the stage that makes it.
        on_policy: a round on the stack's real hand-offs.
        keep_right_chains: a round on the stack's own hand-offs from chains that ended right.
        (others): see the base class.
    """

    tokens_total: int = Field(default=500_000, ge=1)
    validation_examples: int = Field(default=50, ge=0)
    adapters: dict[str, AdapterPlan] = {}
    comparators: dict[Literal["single_direct", "single_chain"], MethodPlan] = {}
    global_first: GlobalFirst | None = None
    handoff_dropout: float = Field(default=0.0, ge=0, lt=1)
    on_policy: OnPolicy | None = None
    keep_right_chains: RightChains | None = None

    @field_validator("global_first", "on_policy", "keep_right_chains", mode="before")
    @classmethod
    def _off(cls, value: Any) -> Any:
        return None if value is False else value


def adapter_lora(training: StackTraining, name: str) -> LoraSettings:
    """Returns the shape of a stack's adapter: the stack's `lora`, with what the adapter's own plan changes."""
    plan = training.adapters.get(name, AdapterPlan())
    own = {key: getattr(plan, key) for key in ("rank", "scale", "dropout", "targets")}
    return training.lora.model_copy(update={key: value for key, value in own.items() if value is not None})


def stack_training(
    section: Mapping[str, Any], adapters: Sequence[str], source: str, readers: Mapping[str, str] | None = None
) -> StackTraining:
    """Checks the `training:` section of a stack against the adapters that the stack has.

    Args:
        section: the mapping as read.
        adapters: the stack's adapter names.
        source: file name for the error.
        readers: stage that reads a hand-off and has an adapter -> that adapter's name; needed for `on_policy`.

    Raises:
        ConfigError: an unknown key or adapter, a wrong value, shares for some adapters only, shares that do not sum
            to 1 or leave nothing for the gold pairs, adapters of several shapes in a global phase, or `on_policy`
            for stages that read no hand-off.
    """
    training = parse_config(StackTraining, dict(section), f"{source}, training")
    faults = [
        f"adapters.{name}: no stage has this adapter{did_you_mean(name, adapters)}, allowed: {', '.join(adapters)}"
        for name in training.adapters
        if name not in adapters
    ]
    faults += [
        f"adapter {name!r} has the name of a comparator, allowed: any other name; rename it in its stages"
        for name in adapters
        if name in COMPARATORS
    ]
    plans = {name: training.adapters.get(name, AdapterPlan()) for name in adapters}
    shares = {name: plan.share for name, plan in plans.items() if plan.share is not None}
    without = [name for name in adapters if name not in shares]
    total = math.fsum(shares.values())
    if not faults and shares and without:
        faults.append(f"share is missing for {', '.join(without)}, allowed: a share for every adapter, or for none")
    elif not faults and shares and abs(total - 1) > 1e-6:
        faults.append(f"the shares of {', '.join(shares)} sum to {total:.6g}, allowed: 1")
    faults += _phase_faults(training, adapters, dict(readers or {}))
    if faults:
        raise ConfigError(f"{source}, training", faults)
    return training


def _phase_faults(training: StackTraining, adapters: Sequence[str], readers: Mapping[str, str]) -> list[str]:
    faults: list[str] = []
    later = {key: getattr(training, key) for key in ("on_policy", "keep_right_chains") if getattr(training, key)}
    total = math.fsum(phase.share for phase in later.values())
    if total >= 1:
        faults.append(
            f"the shares of {' and '.join(later)} sum to {total:.6g}, allowed: less than 1, because gold comes first"
        )
    shapes = {name: adapter_lora(training, name) for name in adapters}
    if training.global_first is not None:
        for key in ("rank", "targets", "scale"):
            values = {name: getattr(lora, key) for name, lora in shapes.items()}
            if len({str(value) for value in values.values()}) > 1:
                shown = ", ".join(f"{name} {value}" for name, value in values.items())
                faults.append(f"global_first: {key} differs ({shown}), allowed: the same {key} for all adapters")
    if training.on_policy is not None:
        asked = training.on_policy.stages
        wrong = [name for name in asked or [] if name not in readers]
        allowed = ", ".join(readers) or "none, because no stage with an adapter reads a hand-off: drop on_policy"
        faults += [f"on_policy.stages: {name!r}{did_you_mean(name, readers)}, allowed: {allowed}" for name in wrong]
        if not readers and not wrong:
            faults.append("on_policy: no stage with an adapter reads a hand-off, allowed: a stack that hands text on")
        elif asked == []:
            faults.append(f"on_policy.stages: is empty, allowed: {allowed}")
    return faults
