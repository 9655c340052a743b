"""Comparing a stack with single models on the same questions: the numbers of result.json.

    {"base": [[Outcome ...] of seed 0, [...] of seed 1], "single_direct": [...], ..., "stack": [...]}
        │  same question ids in the same order for every system and seed, else an error
        ▼
    score and interval of each · stack minus each, paired over stories and seeds · by row of the table · cost of each

The best comparator is chosen on validation questions, where the caller has them: then its test score is not the best
of many. Without them it is chosen on the test questions themselves: this favours the comparator, never the stack.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cairn.errors import InputError, did_you_mean
from cairn.evaluation.statistics import (
    cohens_h,
    mcnemar,
    paired_difference,
    resampled_means,
    score_interval,
    sign_flip_test,
)
from cairn.evaluation.systems import Outcome

__all__ = ["SINGLES", "best_of", "compare", "compare_seeds", "mean_score"]

SINGLES = ("single_direct", "single_chain")

Runs = Sequence[Sequence[Outcome]]  # the outcomes of each seed


def compare(
    systems: Mapping[str, Sequence[Outcome]],
    *,
    base_params: int,
    trained_params: Mapping[str, int],
    training_tokens: Mapping[str, int] | None = None,
    stack: str = "stack",
    singles: Sequence[str] = SINGLES,
    seed: int = 0,
    resamples: int = 10_000,
    seconds_total: float | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns a comparison of one training seed: `compare_seeds`, the best single being chosen on the test questions.

    Args:
        systems: name -> its outcomes; every system the same questions in the same order.
        singles: the candidates for "best single"; those that are not in `systems` are left out.
        (others): see `compare_seeds`.
    """
    candidates = [name for name in singles if name in systems]
    return compare_seeds(
        {name: [outcomes] for name, outcomes in systems.items()}, base_params=base_params,
        trained_params=trained_params, training_tokens=training_tokens, stack=stack, comparators=candidates or None,
        seed=seed, resamples=resamples, seconds_total=seconds_total, extra=extra,
    )  # fmt: skip


def compare_seeds(
    systems: Mapping[str, Runs],
    *,
    base_params: int,
    trained_params: Mapping[str, int],
    training_tokens: Mapping[str, int] | None = None,
    seeds: Sequence[int] = (0,),
    stack: str = "stack",
    comparators: Sequence[str] | None = None,
    best: str | None = None,
    rows: Mapping[str, str] | None = None,
    seed: int = 0,
    resamples: int = 10_000,
    seconds_total: float | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Returns the whole comparison as a JSON-able dict; docs/compare.md explains every key.

    Args:
        systems: name -> its outcomes of each seed; every system and seed the same questions in the same order.
        base_params: parameters of the frozen base.
        trained_params: system -> parameters trained for it (0 or absent for the base).
        training_tokens: system -> tokens that it was trained on.
        seeds: the training seeds, in the order of the outcomes.
        stack: the system that is compared with every other.
        comparators: candidates for the best comparator; by default every other system.
        best: the best comparator as validation chose it; None takes the one with the best score here.
        rows: question id -> row of the table by group, sorted; by default the question's task, as they come.
        seed: of the bootstrap.
        resamples: bootstrap draws.
        seconds_total: of the whole experiment, training included.
        extra: more keys for the result (few-shot examples shown, versions); none may overwrite.

    Raises:
        InputError: a system is missing, has no outcome or another number of seeds, or answered other questions than
            the stack.
    """
    names = list(systems)
    if stack not in systems:
        raise InputError(f"no such system{did_you_mean(stack, names)}", value=stack, allowed=", ".join(names) or "none")
    others = [name for name in names if name != stack]
    candidates = list(comparators) if comparators is not None else others
    if not candidates:
        raise InputError("there is nothing to compare with", value=stack, allowed="two systems or more")
    for name in [*candidates, *([best] if best else [])]:
        if name not in others:
            raise InputError(f"no such system{did_you_mean(name, others)}", value=name, allowed=", ".join(others))
    _check_same_questions(systems, stack, len(seeds))

    score = {name: mean_score(systems[name]) for name in names}
    chosen = best or best_of(score, candidates)
    sides = {
        "trained_parameters": {name: trained_params.get(name, 0) for name in names},
        "training_tokens": {name: (training_tokens or {}).get(name, 0) for name in names},
        "flops_per_item": {name: _mean(systems[name], "flops") for name in names},
    }
    whole = _Part(systems, stack, seeds, seed, resamples, sides)
    paired = whole.paired()
    places: dict[str, list[int]] = {}
    for place, outcome in enumerate(systems[stack][0]):
        places.setdefault(rows[outcome.id] if rows else outcome.task, []).append(place)
    tasks = {}
    for row, members in sorted(places.items(), key=lambda item: _natural(item[0])) if rows else places.items():
        part = {name: [[run[place] for place in members] for run in systems[name]] for name in names}
        table = whole if len(places) == 1 else _Part(part, stack, seeds, seed, resamples, sides)
        differences = table.paired()
        tasks[row] = {
            "n": len(members),
            "accuracy": {name: mean_score(part[name]) for name in names},
            "ci95": table.intervals(),
            "paired": differences[chosen],
            "paired_all": differences,
        }
    result: dict[str, Any] = {
        "seconds_total": seconds_total,
        "n_test": len(systems[stack][0]),
        "n_stories": len({outcome.group for outcome in systems[stack][0]}),
        "seeds": list(seeds),
        "measure": "accuracy" if whole.binary else "mean score",
        "base_params": base_params,
        "trained_params": dict(trained_params),
        "systems": names,
        "stack": stack,
        "best_single": chosen,
        "best_chosen_on": "validation" if best else "test",
        "closest": min(candidates, key=lambda name: paired[name]["difference"]),
        "accuracy": score,
        "accuracy_by_seed": {name: [_mean([run], "score") for run in systems[name]] for name in names},
        "ci95": whole.intervals(),
        "paired": paired[chosen],
        "paired_all": paired,
        "tasks": tasks,
        **_costs(systems),
        "seed": seed,
    }
    for key, value in (extra or {}).items():
        if key in result:
            raise InputError("extra would overwrite a key of the result", value=key, allowed="another name")
        result[key] = value
    return result


def mean_score(runs: Runs) -> float:
    """Returns the mean score over all questions and seeds."""
    return _mean(runs, "score")


def best_of(score: Mapping[str, float], candidates: Sequence[str]) -> str:
    """Returns the candidate with the highest score; of equal ones the first."""
    return max(candidates, key=lambda name: score[name])


class _Part:
    """The numbers of some questions: one set of bootstrap draws for all systems, so that differences are paired."""

    def __init__(
        self,
        systems: Mapping[str, Runs],
        stack: str,
        seeds: Sequence[int],
        seed: int,
        resamples: int,
        sides: Mapping[str, Mapping[str, float]],
    ) -> None:
        self._stack, self._seeds, self._seed, self._resamples, self._sides = stack, list(seeds), seed, resamples, sides
        self._names = list(systems)
        self._groups = [outcome.group for outcome in systems[stack][0]]
        self._scores = np.array(
            [[[outcome.score for outcome in run] for run in systems[name]] for name in self._names], dtype=float
        )  # [systems, seeds, questions]
        self._draws = resampled_means(self._scores, self._groups, seed, resamples)
        self.binary = bool(np.isin(self._scores, (0.0, 1.0)).all())

    def intervals(self) -> dict[str, list[float]]:
        """Returns the interval of every system."""
        return {
            name: list(score_interval(self._scores[place], self._draws[place], self._groups))
            for place, name in enumerate(self._names)
        }

    def paired(self) -> dict[str, dict[str, Any]]:
        """Returns the stack minus every other system."""
        return {name: self._against(name) for name in self._names if name != self._stack}

    def _against(self, other: str) -> dict[str, Any]:
        first, second = self._names.index(self._stack), self._names.index(other)
        a, b = self._scores[first], self._scores[second]
        found = paired_difference(a, b, self._draws[first] - self._draws[second], self._groups, self._seed)
        test = self._test(a, b)
        return {
            **found.as_json(),
            "seeds": self._seeds,
            "against": other,
            **test,
            **_effect(a, b, self.binary),
            "by_seed": [
                {"seed": seed, "difference": float(x.mean() - y.mean()), **self._test(x[None], y[None])}
                for seed, x, y in zip(self._seeds, a, b, strict=True)
            ],
            **{key: {name: side[name] for name in (self._stack, other)} for key, side in self._sides.items()},
        }

    def _test(self, a: np.ndarray, b: np.ndarray) -> dict[str, float]:
        if self.binary:
            return {"mcnemar_p": mcnemar(a, b)}
        return {"permutation_p": sign_flip_test(a, b, self._groups, self._seed, self._resamples)}


def _effect(a: np.ndarray, b: np.ndarray, binary: bool) -> dict[str, float]:
    """Returns the size of an effect: Cohen's h of two shares, or of other scores the mean difference in its spreads."""
    if binary:
        return {"cohens_h": cohens_h(float(a.mean()), float(b.mean()))}
    differences = (a - b).mean(axis=0)
    spread = float(differences.std(ddof=1)) if len(differences) > 1 else 0.0
    return {"cohens_d": float(differences.mean()) / spread if spread else 0.0}


def _natural(text: str) -> list[tuple[int, str]]:
    """Returns a key that sorts numbers inside a text by their size: 2 hops, 10 hops."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]


def _check_same_questions(systems: Mapping[str, Runs], stack: str, seeds: int) -> None:
    wanted = [outcome.id for outcome in systems[stack][0]] if systems[stack] else []
    if not wanted:
        raise InputError("the stack answered no question", value=stack, allowed="at least one")
    if len(set(wanted)) != len(wanted):
        raise InputError("question ids are not unique", allowed="one outcome per question")
    for name, runs in systems.items():
        if len(runs) != seeds:
            raise InputError(f"{name} has not one run per seed", value=len(runs), allowed=f"{seeds} runs")
        for run in runs:
            ids = [outcome.id for outcome in run]
            if ids != wanted:
                same = min(len(ids), len(wanted))
                place = next((i for i in range(same) if ids[i] != wanted[i]), same)
                raise InputError(
                    f"{name} did not answer the same questions as {stack}",
                    value=f"{len(ids)} and {len(wanted)} questions, first difference at number {place + 1}",
                    allowed="the same ids in the same order",
                )


def _mean(runs: Runs, key: str) -> float:
    values = [float(getattr(outcome, key)) for run in runs for outcome in run]
    return sum(values) / len(values)


def _costs(systems: Mapping[str, Runs]) -> dict[str, dict[str, float]]:
    """Returns what answering cost, by system; `seconds` are for all questions, the mean of the seeds."""
    costs: dict[str, dict[str, float]] = {}
    for name, runs in systems.items():
        read, written, seconds = (_mean(runs, key) for key in ("prompt_tokens", "new_tokens", "seconds"))
        values = {
            "flops_per_question": _mean(runs, "flops"),
            "seconds": seconds * len(runs[0]),
            "seconds_per_question": seconds,
            "calls_per_question": _mean(runs, "calls"),
            "prompt_tokens_per_question": read,
            "new_tokens_per_question": written,
            "tokens_per_second": (read + written) / seconds if seconds > 0 else 0.0,
        }
        for key, value in values.items():
            costs.setdefault(key, {})[name] = value
    return costs
