"""Comparing a stack with single models on the same questions: the numbers of result.json.

    {"base": [Outcome ...], "single_direct": [...], "single_chain": [...], "stack": [...]}
        │  same question ids in the same order, else an error
        ▼
    accuracy and interval of each · stack minus best single, paired, stories resampled · by task · cost of each

The best single adapter is picked on the same questions that it is then compared on: this favours the single model,
never the stack. The intervals speak about new stories of these tasks, not about other training seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cairn.errors import InputError, did_you_mean
from cairn.evaluation.statistics import accuracy_interval, bootstrap_paired_difference, mcnemar
from cairn.evaluation.systems import Outcome

__all__ = ["SINGLES", "compare"]

SINGLES = ("single_direct", "single_chain")


def compare(
    systems: Mapping[str, Sequence[Outcome]],
    *,
    base_params: int,
    trained_params: Mapping[str, int],
    stack: str = "stack",
    singles: Sequence[str] = SINGLES,
    seed: int = 0,
    resamples: int = 10_000,
    seconds_total: float | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns the whole comparison as a JSON-able dict.

    Args:
        systems: name -> its outcomes; every system the same questions in the same order.
        base_params: parameters of the frozen base.
        trained_params: system -> parameters trained for it (0 or absent for the base).
        stack: the system that is compared with every other.
        singles: the candidates for "best single"; those that are not in `systems` are left out.
        seed: of the bootstrap.
        resamples: bootstrap draws.
        seconds_total: of the whole experiment, training included.
        extra: more keys for the result (training tokens, few-shot examples shown, versions); none may overwrite.

    Returns:
        seconds_total, n_test, n_stories, base_params, trained_params, systems, stack, best_single, accuracy, ci95,
        paired (stack minus best single: difference, ci95, p_value, mcnemar_p, n, groups, against), paired_all,
        tasks (the same by task), and by system: flops_per_question, seconds, seconds_per_question, calls_per_question,
        prompt_tokens_per_question, new_tokens_per_question, tokens_per_second (read and written).

    Raises:
        InputError: a system is missing, has no outcome, or answered other questions than the stack.
    """
    names = list(systems)
    if stack not in systems:
        raise InputError(f"no such system{did_you_mean(stack, names)}", value=stack, allowed=", ".join(names) or "none")
    others = [name for name in names if name != stack]
    candidates = [name for name in singles if name in systems] or others
    if not candidates:
        raise InputError("there is nothing to compare with", value=stack, allowed="two systems or more")
    _check_same_questions(systems, stack)

    accuracy = {name: _accuracy(systems[name]) for name in names}
    best = max(candidates, key=lambda name: accuracy[name])
    paired_all = {name: _paired(systems, stack, name, seed, resamples) for name in others}
    tasks = {}
    for task in dict.fromkeys(outcome.task for outcome in systems[stack]):
        part = {name: [outcome for outcome in systems[name] if outcome.task == task] for name in names}
        tasks[task] = {
            "n": len(part[stack]),
            "accuracy": {name: _accuracy(part[name]) for name in names},
            "ci95": {name: _interval(part[name]) for name in names},
            "paired": _paired(part, stack, best, seed, resamples),
        }
    result: dict[str, Any] = {
        "seconds_total": seconds_total,
        "n_test": len(systems[stack]),
        "n_stories": len({outcome.group for outcome in systems[stack]}),
        "base_params": base_params,
        "trained_params": dict(trained_params),
        "systems": names,
        "stack": stack,
        "best_single": best,
        "accuracy": accuracy,
        "ci95": {name: _interval(systems[name]) for name in names},
        "paired": paired_all[best],
        "paired_all": paired_all,
        "tasks": tasks,
        **_costs(systems),
        "seed": seed,
    }
    for key, value in (extra or {}).items():
        if key in result:
            raise InputError("extra would overwrite a key of the result", value=key, allowed="another name")
        result[key] = value
    return result


def _check_same_questions(systems: Mapping[str, Sequence[Outcome]], stack: str) -> None:
    wanted = [outcome.id for outcome in systems[stack]]
    if not wanted:
        raise InputError("the stack answered no question", value=stack, allowed="at least one")
    if len(set(wanted)) != len(wanted):
        raise InputError("question ids are not unique", allowed="one outcome per question")
    for name, outcomes in systems.items():
        ids = [outcome.id for outcome in outcomes]
        if ids != wanted:
            same = min(len(ids), len(wanted))
            place = next((i for i in range(same) if ids[i] != wanted[i]), same)
            raise InputError(
                f"{name} did not answer the same questions as {stack}",
                value=f"{len(ids)} and {len(wanted)} questions, first difference at number {place + 1}",
                allowed="the same ids in the same order",
            )


def _accuracy(outcomes: Sequence[Outcome]) -> float:
    return sum(outcome.correct for outcome in outcomes) / len(outcomes)


def _interval(outcomes: Sequence[Outcome]) -> list[float]:
    return list(accuracy_interval([o.correct for o in outcomes], [o.group for o in outcomes]))


def _paired(
    systems: Mapping[str, Sequence[Outcome]], stack: str, other: str, seed: int, resamples: int
) -> dict[str, Any]:
    first = [outcome.correct for outcome in systems[stack]]
    second = [outcome.correct for outcome in systems[other]]
    groups = [outcome.group for outcome in systems[stack]]
    found = bootstrap_paired_difference(first, second, seed, resamples, groups)
    return {**found.as_json(), "mcnemar_p": mcnemar(first, second), "against": other}


def _costs(systems: Mapping[str, Sequence[Outcome]]) -> dict[str, dict[str, float]]:
    keys = (
        "flops_per_question", "seconds", "seconds_per_question", "calls_per_question", "prompt_tokens_per_question",
        "new_tokens_per_question", "tokens_per_second",
    )  # fmt: skip
    costs: dict[str, dict[str, float]] = {key: {} for key in keys}
    for name, outcomes in systems.items():
        count = len(outcomes)
        seconds = sum(outcome.seconds for outcome in outcomes)
        read = sum(outcome.prompt_tokens for outcome in outcomes)
        written = sum(outcome.new_tokens for outcome in outcomes)
        values = (
            sum(outcome.flops for outcome in outcomes) / count, seconds, seconds / count,
            sum(outcome.calls for outcome in outcomes) / count, read / count, written / count,
            (read + written) / seconds if seconds > 0 else 0.0,
        )  # fmt: skip
        for key, value in zip(keys, values, strict=True):
            costs[key][name] = value
    return costs
