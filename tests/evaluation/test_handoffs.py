"""Hand-offs that stand in for a stage's own: which stages, and what they are given."""

from __future__ import annotations

from typing import Any

from cairn.evaluation.handoffs import empty_handoffs, handed_on, shuffled_handoffs
from cairn.evaluation.systems import Question
from cairn.stacks.spec import StackSpec


def stack(*names: str, rules: tuple[str, ...] = ()) -> StackSpec:
    stages: list[dict[str, Any]] = []
    for place, name in enumerate(names):
        reads = list(names[:place])
        text = " ".join(f"{{{read}}}" for read in reads) + " {question}"
        by = {"rule": "copy", "arguments": {"text": text}} if name in rules else {"prompt": text}
        stages.append({"name": name, "reads": reads, "empty": f"no {name}", **by})
    return StackSpec.model_validate({"name": "s", "inputs": ["question"], "stages": stages})


def questions(*tasks: str) -> list[Question]:
    return [Question(f"q{n}", f"q{n}", task, {"question": "?"}, "x") for n, task in enumerate(tasks)]


def test_all_stages_before_the_last_model_are_replaced() -> None:
    assert handed_on(stack("a", "b", "c")) == ["a", "b"]
    assert handed_on(stack("a", "b", "c", rules=("c",))) == ["a"]  # a rule at the end goes on running
    assert handed_on(stack("a", "b", "c", rules=("a",))) == ["a", "b"]
    assert handed_on(stack("a")) == handed_on(stack("a", "b", rules=("a", "b"))) == []


def test_empty_hand_offs_are_the_stages_own_words_for_nothing() -> None:
    asked = questions("t", "t")
    assert empty_handoffs(stack("a", "b", "c"), asked) == {q.id: {"a": "no a", "b": "no b"} for q in asked}


def test_shuffled_hand_offs_come_from_one_other_question_of_the_task() -> None:
    spec, asked = stack("a", "b", "c"), questions(*("t" * 20), *("u" * 15))
    made = {q.id: {"a": f"a of {q.id}", "b": f"b of {q.id}", "c": "answer"} for q in asked}
    given = shuffled_handoffs(spec, asked, made, seed=3)
    task = {q.id: q.task for q in asked}
    donors = {}
    for name, values in given.items():
        assert set(values) == {"a", "b"}
        donor = values["a"].removeprefix("a of ")
        assert donor != name and task[donor] == task[name] and values["b"] == f"b of {donor}"
        donors[name] = donor
    assert sorted(donors) == sorted(donors.values()) == sorted(task)  # everybody gives once
    assert given == shuffled_handoffs(spec, asked, made, seed=3) != shuffled_handoffs(spec, asked, made, seed=4)


def test_questions_alone_in_their_task_change_places_with_each_other() -> None:
    spec, asked = stack("a", "b"), questions("t", "t", "u", "v")
    made = {q.id: {"a": q.id} for q in asked}
    given = shuffled_handoffs(spec, asked, made, seed=0)
    assert given["q2"] == {"a": "q3"} and given["q3"] == {"a": "q2"} and given["q0"] == {"a": "q1"}
    assert shuffled_handoffs(spec, asked[:3], made, seed=0)["q2"] == {"a": "q2"}  # nobody is left to change with
