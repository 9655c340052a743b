"""Intervals and paired tests for right-or-wrong answers, in numpy only.

A score without its interval says little at a few hundred questions, and questions that share a story are not
independent: an interval that forgets this is too narrow. So every function that resamples takes `groups`, and draws
whole groups (stories) instead of single questions.

    correct[i] of system a ──┐
                             ├─ difference per question ─ resample stories ─ 95% interval and p-value
    correct[i] of system b ──┘
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from cairn.errors import InputError

__all__ = [
    "PairedDifference",
    "accuracy_interval",
    "bootstrap_mean",
    "bootstrap_paired_difference",
    "design_effect",
    "mcnemar",
    "wilson_interval",
]

_BLOCK = 4_000_000  # drawn indices held at once: 32 MB


@dataclass(frozen=True)
class PairedDifference:
    """Accuracy of a minus accuracy of b on the same questions.

    Args:
        difference: mean(a) - mean(b), in -1..1.
        ci95: percentile bootstrap interval of the difference.
        p_value: two-sided bootstrap p-value of "no difference", at least 1 / (resamples + 1).
        n: questions.
        groups: independent units that were resampled (stories, or n where no groups were given).
    """

    difference: float
    ci95: tuple[float, float]
    p_value: float
    n: int
    groups: int
    resamples: int
    seed: int

    def as_json(self) -> dict[str, Any]:
        """Returns the fields as a JSON-able dict."""
        return {**asdict(self), "ci95": list(self.ci95)}


def wilson_interval(correct: float, n: float, confidence: float = 0.95) -> tuple[float, float]:
    """Returns the Wilson score interval of a proportion.

    Args:
        correct: number of right answers, 0..n (a fraction after a design-effect correction is fine).
        n: number of questions, above 0.
        confidence: coverage, 0..1.

    Raises:
        InputError: n is not positive, or correct lies outside 0..n.

    Source: Wilson (1927), "Probable inference, the law of succession, and statistical inference".
    """
    if n <= 0 or not 0 <= correct <= n:
        raise InputError("no such proportion", value=f"{correct} of {n}", allowed="0 <= correct <= n and n > 0")
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = correct / n
    spread = z * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    middle = rate + z * z / (2 * n)
    low = 0.0 if correct == 0 else (middle - spread) / scale
    high = 1.0 if correct == n else (middle + spread) / scale
    return low, high


def design_effect(correct: Sequence[bool], groups: Sequence[Hashable]) -> float:
    """Returns how many times wider (in variance) the mean is than if all questions were independent; at least 1.

    Where every answer is right, or every one wrong, nothing can be estimated and 1 is returned.

    Source: Miller, "Adding error bars to evals" (arXiv 2411.00640), clustered standard errors.
    """
    values = _as_floats("correct", correct)
    index = _group_index(groups, len(values))
    rate = values.mean()
    independent = rate * (1 - rate) / len(values)
    if independent == 0:
        return 1.0
    residual_sums = np.bincount(index, weights=values - rate)
    clustered = float((residual_sums**2).sum()) / len(values) ** 2
    return max(1.0, clustered / independent)


def accuracy_interval(correct: Sequence[bool], groups: Sequence[Hashable] | None = None) -> tuple[float, float]:
    """Returns a 95% interval of an accuracy: Wilson, on the effective number of independent questions.

    Args:
        correct: one value per question.
        groups: story of each question; questions of one story may hang together.
    """
    values = _as_floats("correct", correct)
    effect = 1.0 if groups is None else design_effect(correct, groups)
    return wilson_interval(values.sum() / effect, len(values) / effect)


def bootstrap_mean(values: Sequence[float], seed: int = 0, resamples: int = 10_000) -> tuple[float, float]:
    """Returns the 95% percentile bootstrap interval of the mean of independent values.

    Raises:
        InputError: there are no values.
    """
    array = _as_floats("values", values)
    totals, counts = _resample(array, np.arange(len(array)), np.random.default_rng(seed), resamples)
    low, high = np.quantile(totals / counts, [0.025, 0.975])
    return float(low), float(high)


def bootstrap_paired_difference(
    a: Sequence[bool],
    b: Sequence[bool],
    seed: int = 0,
    resamples: int = 10_000,
    groups: Sequence[Hashable] | None = None,
) -> PairedDifference:
    """Compares two systems on the same questions by a paired (and, with groups, clustered) bootstrap.

    Args:
        a: right or wrong of the first system, one value per question.
        b: the same of the second system, in the same order.
        seed: of the resampling; the same seed gives the same interval.
        resamples: bootstrap draws.
        groups: story of each question; whole stories are drawn.

    Raises:
        InputError: the lengths differ, or there is no question.
    """
    first, second = _as_floats("a", a), _as_floats("b", b)
    if len(first) != len(second):
        raise InputError(
            "paired systems answered different numbers of questions",
            value=f"{len(first)} and {len(second)}",
            allowed="one answer of each system per question",
        )
    difference = first - second
    index = np.arange(len(difference)) if groups is None else _group_index(groups, len(difference))
    totals, counts = _resample(difference, index, np.random.default_rng(seed), resamples)
    drawn = totals / counts
    observed = float(difference.mean())
    low, high = np.quantile(drawn, [0.025, 0.975])
    # Under "no difference" the draws scatter around 0 as they do here around the observed value.
    if np.all(difference == 0):
        p_value = 1.0
    else:
        extreme = int((np.abs(drawn - observed) >= abs(observed) - 1e-12).sum())
        p_value = (extreme + 1) / (resamples + 1)
    return PairedDifference(
        observed, (float(low), float(high)), p_value, len(difference), int(index.max()) + 1, resamples, seed
    )


def mcnemar(a: Sequence[bool], b: Sequence[bool]) -> float:
    """Returns the exact two-sided McNemar p-value: a sign test on the questions where only one system is right.

    Raises:
        InputError: the lengths differ, or there is no question.

    Source: McNemar (1947); exact binomial form.
    """
    first, second = _as_floats("a", a) > 0.5, _as_floats("b", b) > 0.5
    if len(first) != len(second):
        raise InputError("paired systems answered different numbers of questions", value=(len(first), len(second)))
    only_a = int((first & ~second).sum())
    only_b = int((second & ~first).sum())
    discordant = only_a + only_b
    tail = sum(math.comb(discordant, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**discordant)


def _resample(
    values: np.ndarray, index: np.ndarray, generator: np.random.Generator, resamples: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draws groups with replacement; returns sum of values and number of questions of each draw, both [resamples]."""
    sums = np.bincount(index, weights=values)
    sizes = np.bincount(index).astype(float)
    block = max(1, _BLOCK // len(sums))
    totals, counts = [], []
    for start in range(0, resamples, block):
        drawn = generator.integers(0, len(sums), size=(min(block, resamples - start), len(sums)))
        totals.append(sums[drawn].sum(axis=1))
        counts.append(sizes[drawn].sum(axis=1))
    return np.concatenate(totals), np.concatenate(counts)


def _as_floats(name: str, values: Sequence[float]) -> np.ndarray:
    array = np.asarray(list(values), dtype=float)
    if array.size == 0:
        raise InputError(f"{name} is empty", allowed="at least one question")
    return array


def _group_index(groups: Sequence[Hashable], n: int) -> np.ndarray:
    if len(groups) != n:
        raise InputError("one group per question is needed", value=f"{len(groups)} groups for {n} questions")
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(group, len(numbers)) for group in groups])
