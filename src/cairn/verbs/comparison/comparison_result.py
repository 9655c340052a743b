"""From all answers of a comparison to its result: docs/compare.md explains every key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cairn.evaluation.compare import compare_seeds
from cairn.verbs.comparison.comparison import Comparison
from cairn.verbs.comparison.recipe import COMPARATORS, HANDOFFS

__all__ = ["comparison_result"]

_FACTS = ("unread", "less_room", "broken")


def comparison_result(comparison: Comparison, *, base_params: int, extra: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the result of a comparison whose answers are all made.

    Args:
        comparison: after `run`.
        base_params: parameters of the frozen base.
        extra: further keys: name, data, versions, seconds.
    """
    inputs, settings = comparison.inputs, comparison.settings
    order = [name for name in (*COMPARATORS, "stack", *HANDOFFS) if name in comparison.systems]
    trained, tokens = _budgets(comparison, "trained_parameters"), _budgets(comparison, "training_tokens")
    return compare_seeds(
        {name: comparison.outcomes(name) for name in order}, base_params=base_params, trained_params=trained,
        training_tokens=tokens, seeds=[seed.seed for seed in comparison.seeds], comparators=comparison.candidates,
        best=comparison.best, rows={question.id: inputs.task.groups(question) for question in inputs.test},
        seed=settings.seed, resamples=settings.resamples,
        extra={
            "training_tokens": tokens,
            "training_seconds": _budgets(comparison, "seconds"),
            "validation": {"n": len(inputs.valid), "accuracy": comparison.validation_score() if inputs.valid else {}},
            "measures": _measures(comparison, order),
            "vote": comparison.vote,
            "ensemble": comparison.ensemble,
            "systems_left_out": comparison.left_out,
            "gold_questions": comparison.gold_questions,
            "stages": [
                {"name": stage.name, "kind": stage.kind, "by": stage.by, "adapter": stage.adapter_name}
                for stage in comparison.spec.stages
            ],
            "questions_with": _counts(comparison, order),
            "examples_shown_to_base": _shown(comparison),
            **extra,
        },
    )  # fmt: skip


def _budgets(comparison: Comparison, key: str) -> dict[str, int]:
    """Returns what was spent on the training of every system, as the mean of the seeds; the base has nothing."""
    sides = [{"stack": seed.facts["stack"], **seed.facts["comparators"]} for seed in comparison.seeds]
    known = {name: round(sum(side[name][key] for side in sides) / len(sides)) for name in sides[0]}
    known |= dict.fromkeys(HANDOFFS, known["stack"])
    if comparison.vote:
        known["vote"] = known[comparison.vote["single"]]
    if comparison.ensemble:
        known["ensemble"] = known[comparison.ensemble["single"]] * comparison.ensemble["members"]
    return {name: known[name] for name in comparison.systems if name in known}


def _measures(comparison: Comparison, order: list[str]) -> dict[str, dict[str, Any]]:
    """Returns the task's further figures: system -> figure -> mean and by seed."""
    found: dict[str, dict[str, Any]] = {}
    for name in order:
        rows = [
            comparison.inputs.task.measures([one.answer for one in run], comparison.inputs.test)
            for run in comparison.outcomes(name)
        ]
        keys = rows[0]
        found[name] = {
            key: {"mean": sum(row[key] for row in rows) / len(rows), "by_seed": [row[key] for row in rows]}
            for key in keys
        }
    return {name: figures for name, figures in found.items() if figures}


def _counts(comparison: Comparison, order: list[str]) -> dict[str, dict[str, float]]:
    """Returns fact -> system -> questions that it holds of, as the mean of the seeds; only those that are not 0."""
    counts: dict[str, dict[str, float]] = {}
    for fact in _FACTS:
        for name in order:
            runs = comparison.answers[name]
            count = sum(bool(one.facts.get(fact)) for run in runs for one in run)
            if count:
                counts.setdefault(fact, {})[name] = count / len(runs)
    return counts


def _shown(comparison: Comparison) -> float | None:
    """Returns how many solved examples the base was shown, as the mean of the questions; None without the base."""
    shown = [one.facts["shown"] for one in comparison.answers.get("base", [[]])[0] if "shown" in one.facts]
    return sum(shown) / len(shown) if shown else None
