"""Intervals and paired tests, against closed forms and by brute force."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats

from cairn.errors import InputError
from cairn.evaluation.statistics import (
    accuracy_interval,
    bootstrap_mean,
    bootstrap_paired_difference,
    cohens_h,
    design_effect,
    mcnemar,
    resampled_means,
    score_interval,
    sign_flip_test,
    wilson_interval,
)


@pytest.mark.parametrize(("correct", "n"), [(0, 10), (3, 10), (10, 10), (970, 1000), (1, 1)])
def test_wilson_equals_scipy(correct: int, n: int) -> None:
    wanted = stats.binomtest(correct, n).proportion_ci(0.95, method="wilson")
    assert wilson_interval(correct, n) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


def test_wilson_solves_its_own_equation() -> None:
    """The ends are the proportions that lie exactly z standard errors from what was seen."""
    for end in wilson_interval(37, 120):
        assert abs(37 / 120 - end) / np.sqrt(end * (1 - end) / 120) == pytest.approx(1.959964, abs=1e-5)


@pytest.mark.parametrize(("correct", "n"), [(1, 0), (5, 4), (-1, 4)])
def test_wilson_refuses_what_is_no_proportion(correct: int, n: int) -> None:
    with pytest.raises(InputError, match="no such proportion.*Allowed: 0 <= correct <= n"):
        wilson_interval(correct, n)


@pytest.mark.parametrize(("only_a", "only_b", "both"), [(0, 0, 5), (3, 1, 2), (10, 0, 0), (6, 6, 1), (40, 22, 9)])
def test_mcnemar_equals_the_binomial_test(only_a: int, only_b: int, both: int) -> None:
    a = [True] * only_a + [False] * only_b + [True] * both
    b = [False] * only_a + [True] * only_b + [True] * both
    wanted = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert mcnemar(a, b) == pytest.approx(wanted, rel=1e-9)


def test_paired_bootstrap_equals_all_resamples_counted_out() -> None:
    """Four questions: the 256 equally likely resamples give the exact distribution of the difference."""
    a, b = [1, 1, 1, 0], [1, 0, 0, 0]
    d = np.array(a) - np.array(b)
    exact = np.array([d[list(draw)].mean() for draw in itertools.product(range(4), repeat=4)])
    found = bootstrap_paired_difference(a, b, seed=1, resamples=40_000)
    assert found.difference == 0.5
    assert found.ci95 == pytest.approx(tuple(np.quantile(exact, [0.025, 0.975])), abs=1e-9)
    assert found.p_value == pytest.approx(np.mean(np.abs(exact - 0.5) >= 0.5), abs=0.01)


def test_paired_bootstrap_depends_on_its_seed_alone() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.random(300) < 0.8, rng.random(300) < 0.6
    first = bootstrap_paired_difference(a, b, seed=3)
    assert first == bootstrap_paired_difference(a, b, seed=3)
    assert first.ci95 != bootstrap_paired_difference(a, b, seed=4, resamples=999).ci95
    state = np.random.get_state()[1].tolist()
    bootstrap_paired_difference(a, b, seed=3, resamples=10)
    assert np.random.get_state()[1].tolist() == state


def test_paired_bootstrap_covers_a_known_difference() -> None:
    """Truth 0.2; a 95% interval must hold it in about 95 of 100 experiments, and not in all."""
    rng = np.random.default_rng(7)
    held = 0
    for seed in range(200):
        a, b = rng.random(150) < 0.7, rng.random(150) < 0.5
        low, high = bootstrap_paired_difference(a, b, seed=seed, resamples=500).ci95
        held += low <= 0.2 <= high
    assert 178 <= held <= 199


def test_stories_are_drawn_whole() -> None:
    """Ten questions of one story count as one: the clustered interval is as wide as that of the stories alone."""
    rng = np.random.default_rng(2)
    story_a, story_b = rng.random(60) < 0.7, rng.random(60) < 0.5
    a, b, groups = np.repeat(story_a, 10), np.repeat(story_b, 10), np.repeat(np.arange(60), 10).tolist()
    clustered = bootstrap_paired_difference(a, b, seed=5, groups=groups)
    stories = bootstrap_paired_difference(story_a, story_b, seed=5)
    naive = bootstrap_paired_difference(a, b, seed=5)
    assert clustered.groups == 60 and clustered.n == 600
    assert clustered.ci95 == pytest.approx(stories.ci95)
    width = clustered.ci95[1] - clustered.ci95[0]
    assert width > 2.5 * (naive.ci95[1] - naive.ci95[0])


def test_equal_systems_differ_by_nothing() -> None:
    found = bootstrap_paired_difference([1, 0, 1], [1, 0, 1])
    assert (found.difference, found.ci95, found.p_value) == (0.0, (0.0, 0.0), 1.0)


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(InputError, match="different numbers of questions: '2 and 3'"):
        bootstrap_paired_difference([1, 0], [1, 0, 1])
    with pytest.raises(InputError, match="a is empty"):
        bootstrap_paired_difference([], [])
    with pytest.raises(InputError, match="one group per question"):
        bootstrap_paired_difference([1, 0], [1, 1], groups=["s"])


def test_design_effect_and_accuracy_interval() -> None:
    whole = [True] * 10 + [False] * 10
    assert design_effect(whole, [i // 10 for i in range(20)]) == pytest.approx(10)
    assert design_effect(whole, list(range(20))) == pytest.approx(1)
    assert design_effect([True] * 20, [0] * 20) == 1
    assert accuracy_interval(whole, [i // 10 for i in range(20)]) == pytest.approx(wilson_interval(1, 2))
    assert accuracy_interval(whole) == wilson_interval(10, 20)


def test_bootstrap_mean_is_near_the_normal_interval() -> None:
    values = np.random.default_rng(1).normal(0.7, 0.1, size=400)
    low, high = bootstrap_mean(values, seed=0)
    spread = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - spread, values.mean() + spread), abs=0.002)


def test_seeds_and_stories_are_resampled_together_as_all_draws_counted_out() -> None:
    """Two seeds, three stories of unequal size: the 4 x 27 equally likely draws give the exact distribution."""
    a = np.array([[1.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
    b = np.array([[0.0, 0.0, 1.0, 0.0], [0.0, 1.0, 0.0, 0.0]])
    groups = ["x", "x", "y", "z"]
    members = {"x": [0, 1], "y": [2], "z": [3]}
    exact = []
    for seeds in itertools.product(range(2), repeat=2):
        for stories in itertools.product("xyz", repeat=3):
            cells = [q for story in stories for q in members[story]]
            exact.append(np.mean([[a[s, q] - b[s, q] for q in cells] for s in seeds]))
    found = bootstrap_paired_difference(a, b, seed=1, resamples=60_000, groups=groups)
    assert found.difference == (a - b).mean() and (found.n, found.groups) == (4, 3)
    draws = resampled_means(np.stack([a, b]), groups, 1, 60_000)
    difference = draws[0] - draws[1]
    for value in np.unique(np.round(exact, 9)):
        wanted = np.mean(np.abs(np.array(exact) - value) < 1e-9)
        assert np.mean(np.abs(difference - value) < 1e-9) == pytest.approx(wanted, abs=0.008)
    assert found.ci95 == pytest.approx(tuple(np.quantile(difference, [0.025, 0.975])))


def test_seeds_that_disagree_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    b = (rng.random((3, 400)) < 0.5).astype(float)
    steady = np.repeat([[0.7]], 3, axis=0)
    shaky = np.array([[0.9], [0.7], [0.5]])
    widths = []
    for rate in (steady, shaky):
        low, high = bootstrap_paired_difference((rng.random((3, 400)) < rate).astype(float), b, seed=2).ci95
        widths.append(high - low)
    assert widths[1] > 2 * widths[0]


def test_one_seed_is_the_plain_bootstrap() -> None:
    rng = np.random.default_rng(3)
    a, b, groups = rng.random(50) < 0.8, rng.random(50) < 0.6, (np.arange(50) // 3).tolist()
    assert bootstrap_paired_difference([a], [b], 4, 500, groups) == bootstrap_paired_difference(a, b, 4, 500, groups)


def test_sign_flips_equal_all_patterns_counted_out_and_the_drawn_ones_come_near() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.random((2, 12)), rng.random((2, 12)) * 0.8
    sums = (a - b).sum(axis=0).reshape(6, 2).sum(axis=1)
    groups = np.repeat(np.arange(6), 2).tolist()
    flips = np.array([np.dot(signs, sums) for signs in itertools.product([1, -1], repeat=6)])
    exact = np.mean(np.abs(flips) >= abs(sums.sum()) - 1e-12)
    assert sign_flip_test(a, b, groups) == pytest.approx(exact)
    c, d = rng.random(40), rng.random(40) * 0.75
    wanted = stats.permutation_test(
        (c, d), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=20_000, random_state=1
    ).pvalue
    assert sign_flip_test(c, d, seed=1, resamples=20_000) == pytest.approx(wanted, abs=0.01)
    assert sign_flip_test(c, c) == 1.0


def test_sign_flips_of_right_and_wrong_are_mcnemars_test() -> None:
    a, b = [1] * 9 + [0] * 3 + [1] * 8, [0] * 9 + [1] * 3 + [1] * 8
    assert sign_flip_test(a, b) == pytest.approx(mcnemar(a, b))


def test_pooled_mcnemar_takes_every_answer_of_every_seed() -> None:
    a, b = np.array([[1, 1, 0], [1, 0, 1]]), np.array([[0, 1, 0], [0, 1, 0]])
    assert mcnemar(a, b) == mcnemar(a.ravel(), b.ravel()) == pytest.approx(stats.binomtest(1, 4).pvalue)
    assert mcnemar([True] * 3000 + [False] * 2900, [False] * 3000 + [True] * 2900) == pytest.approx(
        stats.binomtest(3000, 5900).pvalue
    )


def test_cohens_h_is_the_difference_of_arcs() -> None:
    assert cohens_h(0.5, 0.25) == pytest.approx(np.pi / 6)
    assert cohens_h(1.0, 0.0) == pytest.approx(np.pi)
    assert cohens_h(0.2, 0.9) == -cohens_h(0.9, 0.2) < 0


def test_interval_of_several_seeds_is_wilsons_on_the_questions_that_its_variance_is_worth() -> None:
    rng = np.random.default_rng(9)
    same = np.repeat((rng.random(300) < 0.8).astype(float)[None], 3, axis=0)  # three seeds that agree
    draws = resampled_means(same[None], None, 0, 20_000)[0]
    low, high = score_interval(same, draws)
    wanted = wilson_interval(same[0].sum(), 300)
    assert (low, high) == pytest.approx(wanted, abs=0.004)
    perfect = np.ones((3, 40))
    assert score_interval(perfect, np.ones(100)) == wilson_interval(40, 40)  # not [1, 1], and not 120 questions
    assert score_interval(perfect, np.ones(100), [i // 2 for i in range(40)]) == wilson_interval(20, 20)
    assert score_interval(same[0]) == accuracy_interval(same[0].tolist())
    graded = rng.random((2, 50))
    some = resampled_means(graded[None], None, 0, 500)[0]
    assert score_interval(graded, some) == tuple(np.quantile(some, [0.025, 0.975]))
    with pytest.raises(InputError, match="draws are needed"):
        score_interval(graded)
