"""A sweep's statistics on numbers whose answer is known, and its tables and page."""

from __future__ import annotations

import math

import numpy as np
import pytest
from rich.console import Console

from cairn.errors import InputError
from cairn.evaluation.plots import differences_plot
from cairn.evaluation.statistics import student_interval
from cairn.evaluation.sweep_report import print_sweep, sweep_html, sweep_words
from cairn.evaluation.sweep_result import sweep_scores

SIZES = [100, 300, 50, 50]  # the first two are one document


def scores(bits, **changes):
    given = {"baseline": "base", "sources": "aabb", "documents": [0, 0, 1, 2], "resamples": 500, **changes}
    return sweep_scores(bits, SIZES, **given)


def test_every_byte_counts_the_same_and_differences_are_paired_by_seed() -> None:
    base = [[200.0, 300.0, 100.0, 150.0], [220.0, 310.0, 120.0, 150.0]]
    better = [[bits - 0.25 * size for bits, size in zip(row, SIZES, strict=True)] for row in base]
    found = scores({"better": better, "base": base})
    assert list(found) == ["base", "better"]
    assert found["base"]["by_seed"] == [1.5, 1.6] and found["base"]["bits_per_byte"] == pytest.approx(1.55)
    assert found["base"]["by_source"] == {"a": pytest.approx(1030 / 800), "b": pytest.approx(2.6)}
    gap = found["better"]["difference"]
    assert gap["value"] == pytest.approx(-0.25) and gap["by_seed"] == pytest.approx([-0.25, -0.25])
    assert gap["ci95"] == pytest.approx([-0.25, -0.25])  # the same in every seed and piece: nothing is left to chance
    assert gap["ci95_seeds"] == pytest.approx([-0.25, -0.25]) and gap["verdict"] == "better"
    assert gap["by_source"] == {"a": pytest.approx(-0.25), "b": pytest.approx(-0.25)}
    assert "difference" not in found["base"]


def test_a_difference_that_changes_its_sign_from_seed_to_seed_is_not_shown() -> None:
    base = [[100.0] * 4] * 3
    wavering = [[100.0 + shift] * 4 for shift in (-2, 1, -1)]
    steady = [[100.0 + shift] * 4 for shift in (30, 31, 29)]
    found = scores({"base": base, "wavering": wavering, "steady": steady})
    assert found["wavering"]["difference"]["verdict"] == "not shown"
    assert found["steady"]["difference"]["verdict"] == "worse"
    alone = scores({"base": base[:1], "steady": steady[:1]})["steady"]["difference"]
    assert alone["ci95_seeds"] is None and alone["verdict"] == "one seed"


def test_documents_are_drawn_whole() -> None:
    """Two pieces of one document give the same interval as that document in one piece."""
    cut = scores({"base": [[100.0] * 4], "other": [[110.0, 130.0, 98.0, 99.0]]})["other"]["difference"]
    whole = sweep_scores(
        {"base": [[200.0, 100.0, 100.0]], "other": [[240.0, 98.0, 99.0]]}, [400, 50, 50], baseline="base",
        sources="abb", documents=[0, 1, 2], resamples=500,
    )["other"]["difference"]  # fmt: skip
    assert cut["ci95"] == pytest.approx(whole["ci95"]) and cut["ci95"][0] < 0 < cut["ci95"][1]
    alone = scores({"base": [[100.0] * 4], "other": [[110.0, 130.0, 98.0, 99.0]]}, documents=[0, 1, 2, 3])
    assert alone["other"]["difference"]["ci95"] != cut["ci95"]


def test_scores_that_cannot_be_paired_are_refused() -> None:
    with pytest.raises(InputError, match="different seeds or pieces"):
        scores({"base": [[1.0] * 4], "other": [[1.0] * 4] * 2})
    with pytest.raises(InputError, match="the baseline has no scores"):
        scores({"other": [[1.0] * 4]})


@pytest.mark.parametrize(
    ("count", "quantile"), [(2, 12.7062), (3, 4.3027), (6, 2.5706), (10, 2.2622), (11, 2.2281), (31, 2.0423)]
)  # fmt: skip
def test_student_interval_is_that_of_the_tables(count: int, quantile: float) -> None:
    values = np.random.default_rng(count).normal(size=count)
    low, high = student_interval(values.tolist())
    assert (high - low) / 2 == pytest.approx(quantile * values.std(ddof=1) / math.sqrt(count), rel=2e-4)
    assert (high + low) / 2 == pytest.approx(values.mean())
    assert student_interval([3.0]) is None


def result() -> dict:
    found = scores({"base": [[100.0] * 4] * 3, "<b>wide</b>": [[90.0 - n] * 4 for n in range(3)]})
    plan = {"parameters": 1000, "size": {"dimension": "intermediate_size", "was": 8, "is": 6, "difference": -3},
            "steps": 10, "tokens": 320, "bytes_per_token": 3.5, "raw_bytes": 1120, "epochs": 0.5, "flops": None,
            "seconds_per_step": 0.1, "change": {}}  # fmt: skip
    rows = {name: {"plan": plan, "calibration": {"doubtful": True}, "seconds_per_step": 0.109,
                   "curve": [[0.5, 2.0], [1.0, 1.5]], **row} for name, row in found.items()}  # fmt: skip
    rows["hot"] = {"plan": plan, "calibration": None, "failed": "loss is not finite at step 3"}
    return {
        "name": "shape", "description": "", "baseline": "base", "seeds": [0, 1, 2], "variants": rows,
        "budget": {"wall_clock_s": 60.0, "flops": None, "parameters": None}, "same_size": {}, "machine": {"cores": 2},
        "validation": {"a": {"documents": 3, "bytes": 500}},
        "versions": {"command": "cairn sweep", "commit": "abc", "started": "2026-01-01T00:00:00Z"},
    }  # fmt: skip


def test_the_words_say_what_was_equal_and_what_came_out() -> None:
    said = sweep_words(result())
    assert said.startswith("Equal time: 60 s of training steps each, 3 seeds. Of 1 variants 1 better than base, ")
    assert said.endswith("Not trained to the end: hot.")
    slow = result()
    slow["variants"]["base"]["seconds_per_step"] = 0.13
    assert sweep_words(slow).endswith("The time was not equal, or the machine not idle: base (1.30 of it).")


def test_tables_show_doubt_failure_and_size(capsys: pytest.CaptureFixture[str]) -> None:
    print_sweep(result(), Console(width=160))
    said = capsys.readouterr().out
    for shown in ("100 ?", "109", "not known", "intermediate_size 8 to 6 (-3)", "not finite at step 3", "better"):
        assert shown in said


def test_the_page_escapes_names_and_draws_what_is_there() -> None:
    page = sweep_html(result())
    assert "<b>wide" not in page and "&lt;b&gt;wide" in page and page.count("<svg") == 2
    rows = [{"name": "x", "value": -0.1, "ci95": [-0.2, 0.0], "by_seed": [-0.1], "better": None}]
    assert "x: -0.1000 (-0.2000 to +0.0000)" in differences_plot(rows, "gap") and differences_plot([], "gap") == ""
