"""The comparison: its keys, its pairing, and what it refuses."""

from __future__ import annotations

import json

import pytest

from cairn.errors import InputError
from cairn.evaluation.compare import compare
from cairn.evaluation.statistics import accuracy_interval, bootstrap_paired_difference
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
