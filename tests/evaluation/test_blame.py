"""Blame names the stage that is wrong, by its own fault and not by what it was handed."""

from __future__ import annotations

import pytest

from cairn.evaluation.blame import BlameRun, BlameSettings, blame_figures
from cairn.evaluation.report_tables import blame_words
from cairn.evaluation.systems import exact_score
from cairn.stacks.attribution import Case
from cairn.stacks.spec import StackSpec
from tests.evaluation.made_up import SPEC, question, run

ASKED = [question(number) for number in range(60)]
NAMES = ["mention", "link", "walk", "answer"]


def section(errors, seeds=(0,), settings=None):
    runs = [run(ASKED, errors, seed)[0] for seed in seeds]
    return blame_figures(SPEC, ASKED, runs, exact_score, settings or BlameSettings(), resamples=400)


def by_name(found):
    return {stage["name"]: stage for stage in found["stages"]}


@pytest.mark.parametrize("name", ["mention", "link", "walk"])
def test_the_one_stage_that_errs_is_named_and_no_other_has_lost_a_point(name: str) -> None:
    found = section({name: 0.25})
    stages = by_name(found)
    assert found["weakest"] == name
    assert found["own"]["score"] < 1
    assert stages[name]["lost_here"]["difference"] == pytest.approx(1 - found["own"]["score"])
    assert stages[name]["lost_here"]["ci95"][0] > 0
    for other in set(NAMES) - {name}:
        assert stages[other]["lost_here"]["difference"] == 0.0
        assert stages[other]["right_after_gold"] == 1.0
    assert stages[name]["right_after_gold"] < 1 and found["ceiling"]["score"] == found["answer_itself"]["score"] == 1.0
    assert f"The weakest stage is {name}:" in blame_words(found)


def test_the_lift_of_a_later_hand_off_mends_earlier_faults_but_is_not_taken_for_its_own() -> None:
    stages = by_name(section({"link": 0.3}))
    lost = stages["link"]["lost_here"]["difference"]
    assert stages["link"]["lift"]["difference"] == stages["walk"]["lift"]["difference"] == lost > 0
    assert stages["mention"]["lift"]["difference"] == 0.0
    assert stages["walk"]["right"] < 1.0 == stages["walk"]["right_after_gold"]
    assert stages["answer"]["lift"] is None and stages["answer"]["by"] == "rule"


def test_what_is_lost_adds_up_to_what_is_missing() -> None:
    found = section({"mention": 0.05, "link": 0.2, "walk": 0.1}, seeds=(0, 1, 2))
    assert found["seeds"] == [0, 1, 2]
    assert all(stage["lost_here"]["seeds"] == [0, 1, 2] for stage in found["stages"])
    lost = sum(stage["lost_here"]["difference"] for stage in found["stages"])
    assert lost == pytest.approx(found["answer_itself"]["score"] - found["own"]["score"])
    best = max(found["stages"], key=lambda stage: stage["lost_here"]["difference"])
    assert found["weakest"] == best["name"] == "link"
    for pair in found["pairs"]:
        each = [by_name(found)[name]["lift"]["difference"] for name in pair["stages"]]
        assert pair["beyond_each_alone"] == pytest.approx(pair["lift"]["difference"] - sum(each))
    assert [pair["stages"] for pair in found["pairs"]] == [["mention", "link"], ["mention", "walk"], ["link", "walk"]]
    assert sum(stage["first_wrong"] for stage in found["stages"]) == pytest.approx(found["wrong_answers"])


def test_without_a_settled_loss_no_stage_is_named() -> None:
    found = section({})
    assert found["weakest"] is None and found["own"]["score"] == 1.0 and found["worst"] == []
    assert "No stage is named" in blame_words(found) and "No hand-off alone has room" in blame_words(found)
    rare = section({"walk": 0.01})  # one question of sixty: the interval reaches zero
    assert 0 < by_name(rare)["walk"]["lost_here"]["difference"] < 0.1 and rare["weakest"] is None
    assert "More may be lost in walk" in blame_words(rare) and "The hand-off with the most room" in blame_words(rare)


def test_intervals_draw_whole_groups() -> None:
    alone = [type(one)(**{**vars(one), "group": one.id}) for one in ASKED]
    same = [type(one)(**{**vars(one), "group": f"g{number // 10}"}) for number, one in enumerate(ASKED)]
    made = run(ASKED, {"link": 0.3})[0]
    settings = BlameSettings(pairs=False)
    wide, narrow = (blame_figures(SPEC, asked, [made], exact_score, settings, resamples=800) for asked in (same, alone))
    assert wide["groups"] == 6 and narrow["groups"] == 60
    one, other = by_name(wide)["link"]["lost_here"], by_name(narrow)["link"]["lost_here"]
    assert one["difference"] == other["difference"] and one["ci95"] != other["ci95"]


def test_broken_contracts_are_counted_by_stage() -> None:
    stages = by_name(section({"link": 0.3}))
    wrong = 1 - stages["link"]["right"]
    link = stages["link"]  # "Zoe" is not copied from the story
    assert link["calls_broken"] == link["questions_broken"] == pytest.approx(wrong)
    assert stages["walk"]["calls_broken"] == stages["mention"]["calls_broken"] == 0.0
    lines = sum(len(one.inputs["story"].split("\n")) for one in ASKED)
    assert stages["walk"]["calls_per_question"] == stages["mention"]["calls_per_question"] == lines / len(ASKED)


def test_worst_cases_show_both_sides_call_by_call() -> None:
    found = section({"walk": 0.08, "mention": 0.05}, settings=BlameSettings(worst=5, pairs=False))
    assert len(found["worst"]) == 5 and found["pairs"] == []
    asked = {one.id: one for one in ASKED}
    walked = [case for case in found["worst"] if case["first_wrong"] == "walk"]
    assert walked
    for case in walked:
        one = asked[case["id"]]
        assert case["score"] == 0.0 and case["gold"] == one.answer != case["answer"] and "walk" in case["mended_by"]
        stage = {stage["name"]: stage for stage in case["stages"]}
        assert stage["link"]["own"] == stage["link"]["gold"] and stage["walk"]["own"] != stage["walk"]["gold"]
        assert stage["answer"]["by"] == "rule" and stage["link"]["calls"] == []
        calls = stage["walk"]["calls"]
        assert [call["item"] for call in calls] == one.inputs["story"].split("\n")
        assert [call["gold"] for call in calls] == list(one.stages["walk"])
        assert any(call["own"] == "street" for call in calls)
        assert [call["gold"] for call in stage["mention"]["calls"]] == list(one.stages["mention"])


def test_gold_that_is_not_right_itself_is_said() -> None:
    made = run(ASKED, {"walk": 0.2})[0]
    settings = BlameSettings(source="teacher")
    found = blame_figures(
        SPEC, ASKED, [made], lambda answer, one: 0.5 * exact_score(answer, one), settings, resamples=200
    )
    assert found["answer_itself"]["score"] == 0.5 and found["measure"] == "mean score"
    assert found["source"] == "teacher" and "The teacher's own answers have 50.0%" in blame_words(found)


def test_a_stack_of_one_stage_has_only_itself_to_blame() -> None:
    stages = [{"name": "answer", "prompt": "{story}:"}]
    spec = StackSpec.model_validate({"name": "one", "inputs": ["story"], "stages": stages})
    cases = [Case(one.id, one.inputs, {"answer": "attic"}, {"answer": one.answer}) for one in ASKED]
    record = [{"name": "answer", "calls": [{"item": None, "output": "attic", "violations": []}]}]
    scores = [float(one.answer == "attic") for one in ASKED]
    made = BlameRun(0, cases, scores, [record] * len(ASKED), {})
    found = blame_figures(spec, ASKED, [made], exact_score, BlameSettings(), resamples=200)
    assert found["weakest"] == "answer" and found["pairs"] == []
    assert found["stages"][0]["lost_here"]["difference"] == pytest.approx(1 - found["own"]["score"])
