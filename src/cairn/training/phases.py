"""How the budget of a stack is shared out: phases, one after the other, and what each adapter may spend in each.

    tokens_total ─┬─ global        one adapter on the pairs of all stages
                  └─ the rest ─┬─ mention  0.4 ─┬─ gold          starts from the global phase's weights
                               ├─ holder   0.3  ├─ on_policy     goes on from gold
                               └─ answer   0.3  └─ right_chains  goes on from that
    comparators: single_direct, single_chain, each tokens_total and the same trained parameters in one adapter

A comparison of one adapter with several is fair only if both may train as many numbers on as many tokens. So the rank
and budget of the comparators follow from the stack's and cannot be set. The budgets of all phases and adapters sum to
tokens_total, to the token; each leaves less unspent than its next pair would have cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cairn.training.finetune_plan import (
    ALL_STAGES,
    AdapterPlan,
    FinetuneConfig,
    LoraSettings,
    MethodPlan,
    OwnAnswers,
    StackTraining,
    adapter_lora,
)

__all__ = ["Phase", "comparator_config", "plan_phases"]


@dataclass(frozen=True)
class Phase:
    """One part of a stack's training.

    Args:
        name: "global", "gold", "on_policy" or "right_chains".
        configs: adapter -> its settings in this phase. In "global" the one adapter is named ALL_STAGES.
        answers: settings of the stack's own answers, from which this phase takes pairs; None for gold pairs alone.
    """

    name: str
    configs: Mapping[str, FinetuneConfig]
    answers: OwnAnswers | None = None


def plan_phases(
    training: StackTraining, adapters: Sequence[str], readers: Mapping[str, str] | None = None
) -> list[Phase]:
    """Returns the phases in order; the last one of an adapter writes the adapter that serves.

    An adapter without a stage of its own in `on_policy` spends that share on its gold pairs.

    Args:
        training: checked settings.
        adapters: the stack's adapter names.
        readers: as in `finetune_plan.stack_training`.
    """
    total = training.tokens_total
    first = round(total * training.global_first.share) if training.global_first is not None else 0
    shares = [training.adapters[name].share if name in training.adapters else None for name in adapters]
    own = dict(zip(adapters, _apportion(total - first, [share or 1.0 for share in shares]), strict=True))
    taught = set(_taught(training, readers or {}))
    on_policy = _part(own, training.on_policy, [name for name in adapters if name in taught])
    chains = _part(own, training.keep_right_chains, adapters)
    gold = {name: own[name] - on_policy.get(name, 0) - chains.get(name, 0) for name in adapters}
    phases = []
    if training.global_first is not None:
        own_rate = {"learning_rate": training.global_first.learning_rate}
        config = _config(training, first, adapter_lora(training, adapters[0]), 0, own_rate)
        phases.append(Phase("global", {ALL_STAGES: config}))
    for place, (name, budgets, settings) in enumerate(
        (("gold", gold, None), ("on_policy", on_policy, training.on_policy),
         ("right_chains", chains, training.keep_right_chains))
    ):  # fmt: skip
        rate = {"learning_rate": settings.learning_rate if settings is not None else None}
        configs = {}
        for adapter, tokens in budgets.items():
            plan = _method(training.adapters.get(adapter, AdapterPlan()))
            configs[adapter] = _config(training, tokens, adapter_lora(training, adapter), place, plan, rate)
        if configs:
            phases.append(Phase(name, configs, settings))
    return phases


def comparator_config(
    training: StackTraining, name: str, adapters: Sequence[str], lora: LoraSettings | None = None
) -> FinetuneConfig:
    """Returns the settings of a single adapter with the whole stack's budget and all of its trained parameters.

    Args:
        training: checked settings.
        name: of the comparator.
        adapters: the stack's adapter names.
        lora: its shape, where the adapters train different layers (`lora.joint_lora`); by default the stack's `lora`
            with the sum of the ranks.
    """
    rank = sum(adapter_lora(training, name).rank for name in adapters)
    shape = lora or training.lora.model_copy(update={"rank": rank})
    plan = _method(training.comparators.get(name, MethodPlan()))
    return _config(training, training.tokens_total, shape, 0, plan)


def _method(plan: MethodPlan) -> dict[str, Any]:
    return {name: getattr(plan, name) for name in MethodPlan.model_fields}


def _taught(training: StackTraining, readers: Mapping[str, str]) -> list[str]:
    """Returns the adapters for which on_policy makes pairs."""
    if training.on_policy is None:
        return []
    asked = training.on_policy.stages
    return [adapter for stage, adapter in readers.items() if asked is None or stage in asked]


def _part(own: Mapping[str, int], settings: OwnAnswers | None, adapters: Sequence[str]) -> dict[str, int]:
    return {name: round(own[name] * settings.share) for name in adapters} if settings is not None else {}


def _apportion(total: int, shares: Sequence[float]) -> list[int]:
    """Divides a whole number by shares so that the parts sum to it: the largest remainders are rounded up."""
    exact = [total * share / sum(shares) for share in shares]
    parts = [int(value) for value in exact]
    order = sorted(range(len(parts)), key=lambda place: (parts[place] - exact[place], place))
    for place in order[: total - sum(parts)]:
        parts[place] += 1
    return parts


def _config(
    training: StackTraining, tokens: int, lora: LoraSettings, place: int, *plans: Mapping[str, Any]
) -> FinetuneConfig:
    """Returns settings of one training; each later round has a seed, and so an order of pairs, of its own.

    Args:
        plans: what goes before the stack's own method, the last before the others; None says nothing.
    """
    shared = set(FinetuneConfig.model_fields) & set(StackTraining.model_fields)
    method = {name: getattr(training, name) for name in FinetuneConfig.model_fields if name in shared}
    method |= {"lora": lora, "seed": training.seed + place}
    for plan in plans:
        method |= {name: value for name, value in plan.items() if value is not None}
    return FinetuneConfig(**method, tokens=max(tokens, 1))
