"""The comparison: its keys, its pairing, and what it refuses."""

from __future__ import annotations

import json

import pytest

from cairn.errors import InputError
from cairn.evaluation.compare import best_of, compare, compare_seeds
from cairn.evaluation.statistics import (
    accuracy_interval,
    bootstrap_paired_difference,
    cohens_h,
    mcnemar,
    sign_flip_test,
)
from cairn.evaluation.systems import Outcome

PATTERNS = {"base": "0001", "single_direct": "0011", "single_chain": "0110", "stack": "1110"}


def outcomes(pattern: str, n: int = 80, flops: int = 100, calls: int = 1) -> list[Outcome]:
    made = []
    for number in range(n):
        correct = pattern[number % len(pattern)] == "1"
        task, answer = f"qa{1 + number % 2}", "hall" if correct else "office"
        made.append(
            Outcome(
                f"q{number}", f"s{number // 4}", task, "hall", answer, correct, f" {answer}", calls, 30, 2, flops, 0.5
            )
        )
    return made


SYSTEMS = {name: outcomes(pattern, flops=100 * (1 + place)) for place, (name, pattern) in enumerate(PATTERNS.items())}
TRAINED = {"stack": 500, "single_direct": 500, "single_chain": 500}


def test_result_has_the_promised_keys_and_survives_json() -> None:
    extra = {"versions": {"a": 1}}
    result = compare(SYSTEMS, base_params=7000, trained_params=TRAINED, seconds_total=12.5, extra=extra)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["seconds_total"] == 12.5 and result["base_params"] == 7000 and result["trained_params"] == TRAINED
    assert result["n_test"] == 80 and result["n_stories"] == 20
    assert result["accuracy"] == {"base": 0.25, "single_direct": 0.5, "single_chain": 0.5, "stack": 0.75}
    for key in ("accuracy", "ci95", "flops_per_question", "seconds", "tokens_per_second", "calls_per_question"):
        assert list(result[key]) == list(PATTERNS), key
    assert result["flops_per_question"] == {"base": 100, "single_direct": 200, "single_chain": 300, "stack": 400}
    assert result["seconds"]["stack"] == 40 and result["tokens_per_second"]["stack"] == 64
    assert result["versions"] == {"a": 1}
    groups = [o.group for o in SYSTEMS["stack"]]
    assert result["ci95"]["stack"] == list(accuracy_interval([o.correct for o in SYSTEMS["stack"]], groups))


def test_paired_difference_is_against_the_best_single_by_story() -> None:
    systems = {**SYSTEMS, "single_chain": outcomes("0100"), "single_other": outcomes("1111")}
    result = compare(systems, base_params=1, trained_params=TRAINED, seed=5)
    assert result["best_single"] == "single_direct"  # not single_other, which is no candidate unless it is named
    wanted = bootstrap_paired_difference(
        [o.correct for o in systems["stack"]], [o.correct for o in systems["single_direct"]], 5,
        groups=[o.group for o in systems["stack"]],
    )  # fmt: skip
    paired = result["paired"]
    assert (paired["difference"], paired["ci95"], paired["n"]) == (wanted.difference, list(wanted.ci95), 80)
    assert paired["against"] == "single_direct" and paired["groups"] == 20 and 0 <= paired["mcnemar_p"] <= 1
    assert set(result["paired_all"]) == {"base", "single_direct", "single_chain", "single_other"}
    named = compare(systems, base_params=1, trained_params=TRAINED, singles=["single_other", "single_direct"])
    assert named["best_single"] == "single_other" and named["paired"]["difference"] == -0.25


def test_each_task_has_its_own_numbers() -> None:
    result = compare(SYSTEMS, base_params=1, trained_params=TRAINED)
    assert list(result["tasks"]) == ["qa1", "qa2"]
    assert result["tasks"]["qa1"]["n"] == 40
    assert result["tasks"]["qa1"]["accuracy"] == {"base": 0, "single_direct": 0.5, "single_chain": 0.5, "stack": 1}
    assert result["tasks"]["qa2"]["paired"]["difference"] == pytest.approx(0.0)


def test_a_negative_result_is_reported_as_such() -> None:
    result = compare({"single_direct": outcomes("1110"), "stack": outcomes("0100")}, base_params=1, trained_params={})
    assert result["paired"]["difference"] == -0.5 and result["paired"]["ci95"][1] < 0


@pytest.mark.parametrize(
    ("systems", "message"),
    [
        ({"single_direct": SYSTEMS["base"]}, "no such system.*'stack'"),
        ({"stack": SYSTEMS["stack"]}, "nothing to compare with"),
        ({"stack": [], "base": []}, "answered no question"),
        ({"stack": SYSTEMS["stack"], "base": SYSTEMS["base"][:-1]}, "base did not answer the same questions as stack"),
        ({"stack": SYSTEMS["stack"], "base": SYSTEMS["base"][::-1]}, "first difference at number 1"),
        ({"stack": SYSTEMS["stack"] * 2, "base": SYSTEMS["base"] * 2}, "not unique"),
    ],
)
def test_what_cannot_be_compared_is_refused(systems: dict[str, list[Outcome]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        compare(systems, base_params=1, trained_params={})


def test_extra_may_not_overwrite() -> None:
    with pytest.raises(InputError, match="would overwrite a key of the result: 'accuracy'"):
        compare(SYSTEMS, base_params=1, trained_params=TRAINED, extra={"accuracy": 1})


def graded(scores: list[float], n: int = 40) -> list[Outcome]:
    made = []
    for number in range(n):
        score = scores[number % len(scores)]
        task, right = f"qa{1 + number % 2}", score >= 1
        made.append(Outcome(f"q{number}", f"s{number // 4}", task, "a", "b", right, "b", 1, 30, 2, 100, 0.5, score))
    return made


def test_several_seeds_are_paired_over_seeds_and_stories() -> None:
    systems = {
        "single_direct": [outcomes("0011"), outcomes("0110")],
        "vote": [outcomes("0111", flops=300), outcomes("0111", flops=500)],
        "stack": [outcomes("1110", flops=400), outcomes("1111", flops=400)],
    }
    result = compare_seeds(
        systems, base_params=7, trained_params={"stack": 5, "vote": 5}, training_tokens={"stack": 90, "vote": 91},
        seeds=[3, 8], best="vote", seed=1, resamples=2000,
    )  # fmt: skip
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["seeds"] == [3, 8] and result["measure"] == "accuracy"
    assert result["accuracy"] == {"single_direct": 0.5, "vote": 0.75, "stack": 0.875}
    assert result["accuracy_by_seed"]["stack"] == [0.75, 1.0]
    paired = result["paired"]
    scores = {name: [[o.score for o in run] for run in runs] for name, runs in systems.items()}
    groups = [o.group for o in systems["stack"][0]]
    wanted = bootstrap_paired_difference(scores["stack"], scores["vote"], 1, 2000, groups)
    assert paired["against"] == result["best_single"] == "vote" and result["best_chosen_on"] == "validation"
    assert (paired["difference"], paired["n"], paired["groups"], paired["seeds"]) == (0.125, 80, 20, [3, 8])
    assert paired["ci95"] == pytest.approx(wanted.ci95) and paired["p_value"] == pytest.approx(wanted.p_value)
    assert paired["mcnemar_p"] == mcnemar(scores["stack"], scores["vote"])
    assert paired["cohens_h"] == pytest.approx(cohens_h(0.875, 0.75))
    assert [row["seed"] for row in paired["by_seed"]] == [3, 8]
    assert [row["difference"] for row in paired["by_seed"]] == [0.0, 0.25]
    assert paired["by_seed"][1]["mcnemar_p"] == mcnemar(scores["stack"][1], scores["vote"][1])
    assert paired["trained_parameters"] == {"stack": 5, "vote": 5}
    assert paired["training_tokens"] == {"stack": 90, "vote": 91}
    assert paired["flops_per_item"] == {"stack": 400, "vote": 400}
    assert result["closest"] == "vote" and set(result["paired_all"]) == {"single_direct", "vote"}


def test_scores_between_0_and_1_have_a_permutation_test_in_the_place_of_mcnemars() -> None:
    systems = {"single_direct": [graded([0.2, 0.5]), graded([0.3, 0.4])], "stack": [graded([0.9, 0.4])] * 2}
    result = compare_seeds(systems, base_params=1, trained_params={}, seeds=[0, 1], resamples=400)
    paired = result["paired"]
    assert result["measure"] == "mean score" and "mcnemar_p" not in paired and "cohens_h" not in paired
    groups = [o.group for o in systems["stack"][0]]
    rows = [[[o.score for o in run] for run in systems[name]] for name in ("stack", "single_direct")]
    assert paired["permutation_p"] == sign_flip_test(*rows, groups, 0, 400)
    # differences of the means of the seeds: 0.65 and -0.05 in turn
    assert paired["cohens_d"] == pytest.approx(0.3 / (0.35 * (40 / 39) ** 0.5))


def test_the_row_of_the_table_may_be_another_than_the_task() -> None:
    rows = {f"q{n}": "10 hops" if n < 50 else "2 hops" for n in range(80)}
    result = compare_seeds(
        {name: [made] for name, made in SYSTEMS.items()}, base_params=1, trained_params={}, rows=rows, resamples=200
    )
    assert [(row, part["n"]) for row, part in result["tasks"].items()] == [("2 hops", 30), ("10 hops", 50)]
    part = result["tasks"]["2 hops"]
    assert set(part["ci95"]) == set(PATTERNS) and set(part["paired_all"]) == {"base", "single_direct", "single_chain"}


def test_of_equal_comparators_the_first_named_is_best() -> None:
    assert best_of({"a": 0.5, "b": 0.7, "c": 0.7}, ["a", "c", "b"]) == "c"


def test_a_system_without_a_run_for_every_seed_is_refused() -> None:
    systems = {"single_direct": [SYSTEMS["base"]], "stack": [SYSTEMS["stack"]] * 2}
    with pytest.raises(InputError, match="single_direct has not one run per seed: 1"):
        compare_seeds(systems, base_params=1, trained_params={}, seeds=[0, 1])
    with pytest.raises(InputError, match="no such system.*did you mean single_direct"):
        compare_seeds({k: [v] for k, v in SYSTEMS.items()}, base_params=1, trained_params={}, best="single_dire")
