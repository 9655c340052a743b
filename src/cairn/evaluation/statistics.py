"""Intervals and paired tests for scores of 0 to 1, in numpy only.

A score without its interval says little at a few hundred questions, and questions that share a story are not
independent: an interval that forgets this is too narrow. So every function that resamples takes `groups`, and draws
whole groups (stories) instead of single questions. The same goes for training seeds: a system that was trained three
times has one row of scores for each.

    score[seed, i] of system a ──┐                          ┌─ stories, with replacement ─┐
                                 ├─ difference per cell ────┤                             ├─ mean ─ interval, p-value
    score[seed, i] of system b ──┘                          └─ seeds, with replacement ───┘

Seeds and questions are crossed, not nested: every seed answers every question. One draw takes as many stories and as
many seeds as there are, each with replacement and independently, and averages the cells where drawn seeds meet drawn
stories, as often as both were drawn (Owen, "The pigeonhole bootstrap", Annals of Applied Statistics 2007: it errs
towards wide intervals). With one seed only stories are drawn, and the interval says nothing about other seeds.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from statistics import NormalDist
from typing import Any

import numpy as np

from cairn.errors import InputError

__all__ = [
    "PairedDifference",
    "accuracy_interval",
    "bootstrap_mean",
    "bootstrap_paired_difference",
    "cohens_h",
    "design_effect",
    "mcnemar",
    "paired_difference",
    "resampled_means",
    "score_interval",
    "sign_flip_test",
    "student_interval",
    "wilson_interval",
]

_BLOCK = 4_000_000  # drawn indices held at once: 32 MB
_EXACT_GROUPS = 16  # up to so many, all sign patterns are counted out
# 97.5% quantiles where the expansion is not yet exact: degrees of freedom -> value
_STUDENT = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706, 6: 2.4469, 7: 2.3646, 8: 2.3060}


Scores = Sequence[float] | Sequence[Sequence[float]] | np.ndarray


@dataclass(frozen=True)
class PairedDifference:
    """Mean score of a minus mean score of b on the same questions.

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
    low, high = np.quantile(resampled_means(array[None, None], None, seed, resamples), [0.025, 0.975])
    return float(low), float(high)


def bootstrap_paired_difference(
    a: Scores, b: Scores, seed: int = 0, resamples: int = 10_000, groups: Sequence[Hashable] | None = None
) -> PairedDifference:
    """Compares two systems on the same questions by a paired (and, with groups, clustered) bootstrap.

    Args:
        a: scores of the first system, one per question; or [seed][question], if it was trained more than once.
        b: the same of the second system, in the same order.
        seed: of the resampling; the same seed gives the same interval.
        resamples: bootstrap draws.
        groups: story of each question; whole stories are drawn.

    Raises:
        InputError: the lengths differ, or there is no question.
    """
    first, second = _pair(a, b)
    draws = resampled_means(np.stack([first, second]), groups, seed, resamples)
    return paired_difference(first, second, draws[0] - draws[1], groups, seed)


def paired_difference(
    a: Scores, b: Scores, draws: np.ndarray, groups: Sequence[Hashable] | None, seed: int
) -> PairedDifference:
    """Returns the difference of two systems with the interval and p-value of draws made by `resampled_means`.

    Args:
        a, b: as in `bootstrap_paired_difference`.
        draws: resampled difference [resamples].
        groups: those that were drawn.
        seed: for the record.
    """
    first, second = _pair(a, b)
    observed = float(first.mean() - second.mean())
    low, high = np.quantile(draws, [0.025, 0.975])
    # Under "no difference" the draws scatter around 0 as they do here around the observed value.
    if np.array_equal(first, second):
        p_value = 1.0
    else:
        extreme = int((np.abs(draws - observed) >= abs(observed) - 1e-12).sum())
        p_value = (extreme + 1) / (len(draws) + 1)
    n = first.shape[1]
    count = n if groups is None else len(set(groups))
    return PairedDifference(observed, (float(low), float(high)), p_value, n, count, len(draws), seed)


def resampled_means(
    columns: np.ndarray, groups: Sequence[Hashable] | None, seed: int = 0, resamples: int = 10_000
) -> np.ndarray:
    """Returns the bootstrap means of several systems over the same draws, so that their differences are paired.

    Args:
        columns: scores [systems, seeds, questions].
        groups: story of each question; None takes every question for itself.
        seed: of the draws.
        resamples: how many.

    Returns:
        [systems, resamples].
    """
    systems, seeds, n = columns.shape
    index = np.arange(n) if groups is None else _group_index(groups, n)
    count = int(index.max()) + 1
    sums = np.stack([np.bincount(index, weights=row, minlength=count) for row in columns.reshape(-1, n)])
    sizes = np.bincount(index, minlength=count).astype(float)
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK // count)
    means = []
    for start in range(0, resamples, block):
        size = min(block, resamples - start)
        drawn = generator.integers(0, count, size=(size, count)) + count * np.arange(size)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count).astype(float)
        means.append((weights @ sums.T) / (weights @ sizes)[:, None])
    by_seed = np.concatenate(means).reshape(resamples, systems, seeds)
    if seeds == 1:
        return by_seed[:, :, 0].T
    picked = np.random.default_rng([seed, 1]).integers(0, seeds, size=(resamples, seeds))
    shares = np.stack([(picked == place).mean(axis=1) for place in range(seeds)], axis=1)  # [resamples, seeds]
    return (by_seed * shares[:, None, :]).sum(axis=2).T


def student_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Returns the 95% Student interval of the mean of a few independent values; None for a single one.

    With three training seeds a bootstrap over seeds is too narrow (it knows ten different draws); this is not.

    Raises:
        InputError: there are no values.

    Source: quantiles from degrees of freedom by Cornish and Fisher's expansion, Abramowitz and Stegun 26.7.5.
    """
    array = _as_floats("values", values)
    if len(array) == 1:
        return None
    freedom, z = len(array) - 1, NormalDist().inv_cdf(0.975)
    quantile = _STUDENT.get(freedom) or (
        z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )  # fmt: skip
    half = quantile * float(array.std(ddof=1)) / math.sqrt(len(array))
    return float(array.mean()) - half, float(array.mean()) + half


def score_interval(
    scores: Scores, draws: np.ndarray | None = None, groups: Sequence[Hashable] | None = None
) -> tuple[float, float]:
    """Returns a 95% interval of a mean score.

    Right-or-wrong scores of one seed: `accuracy_interval`. Of several seeds: Wilson on as many independent questions
    as would have the variance of the draws; where every draw is the same, on the stories of one seed. Other scores:
    the percentiles of the draws.

    Args:
        scores: one per question, or [seed][question].
        draws: of `resampled_means`; not needed for right-or-wrong scores of one seed.
        groups: story of each question.
    """
    table = np.atleast_2d(np.asarray(scores, dtype=float))
    binary = bool(np.isin(table, (0.0, 1.0)).all())
    if binary and len(table) == 1:
        return accuracy_interval(table[0].tolist(), groups)
    if draws is None:
        raise InputError("draws are needed for scores between 0 and 1 or of several seeds", value=table.shape)
    if not binary:
        low, high = np.quantile(draws, [0.025, 0.975])
        return float(low), float(high)
    rate, variance = float(table.mean()), float(draws.var())
    units = table.shape[1] if groups is None else len(set(groups))
    effective = min(rate * (1 - rate) / variance, table.size) if variance > 0 else units
    return wilson_interval(rate * effective, effective)


def cohens_h(a: float, b: float) -> float:
    """Returns Cohen's h of two shares: 0.2 is called small, 0.5 medium, 0.8 large; positive where a is greater.

    Source: Cohen, "Statistical power analysis for the behavioral sciences" (1988), chapter 6.
    """
    return 2 * math.asin(math.sqrt(min(max(a, 0.0), 1.0))) - 2 * math.asin(math.sqrt(min(max(b, 0.0), 1.0)))


def sign_flip_test(
    a: Scores, b: Scores, groups: Sequence[Hashable] | None = None, seed: int = 0, resamples: int = 10_000
) -> float:
    """Returns the two-sided p-value of a paired permutation test: which system is which is exchanged story by story.

    The differences of a story (of all its questions and seeds) are added and change their sign together. Up to 16
    stories with a difference all patterns are counted, otherwise `resamples` are drawn.

    Raises:
        InputError: the lengths differ, or there is no question.
    """
    first, second = _pair(a, b)
    cells = (first - second).sum(axis=0)
    index = np.arange(len(cells)) if groups is None else _group_index(groups, len(cells))
    sums = np.bincount(index, weights=cells)
    sums = sums[np.abs(sums) > 1e-12]
    if not len(sums):
        return 1.0
    observed = abs(sums.sum()) - 1e-9
    if len(sums) <= _EXACT_GROUPS:
        patterns = (np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums))) & 1
        return float((np.abs((1 - 2 * patterns) @ sums) >= observed).mean())
    generator = np.random.default_rng(seed)
    block = max(1, _BLOCK // len(sums))
    extreme = 0
    for start in range(0, resamples, block):
        signs = 1 - 2 * generator.integers(0, 2, size=(min(block, resamples - start), len(sums)), dtype=np.int8)
        extreme += int((np.abs(signs @ sums) >= observed).sum())
    return (extreme + 1) / (resamples + 1)


def mcnemar(a: Scores, b: Scores) -> float:
    """Returns the exact two-sided McNemar p-value: a sign test on the questions where only one system is right.

    It takes questions as independent, and so, with [seed][question], each answer of each seed.

    Raises:
        InputError: the lengths differ, or there is no question.

    Source: McNemar (1947); exact binomial form.
    """
    first, second = (scores > 0.5 for scores in _pair(a, b))
    only_a = int((first & ~second).sum())
    only_b = int((second & ~first).sum())
    discordant = only_a + only_b
    tail = term = 1
    for k in range(min(only_a, only_b)):
        term = term * (discordant - k) // (k + 1)  # the binomial coefficient of k + 1
        tail += term
    return float(min(Fraction(1), Fraction(2 * tail, 2**discordant)))


def _pair(a: Scores, b: Scores) -> tuple[np.ndarray, np.ndarray]:
    """Returns both as [seeds, questions]."""
    first, second = (np.atleast_2d(_as_floats(name, scores)) for name, scores in (("a", a), ("b", b)))
    if first.shape != second.shape:
        raise InputError(
            "paired systems answered different numbers of questions",
            value=" and ".join(str(scores.shape[1]) for scores in (first, second)),
            allowed="one answer of each system per question and seed",
        )
    return first, second


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
