"""Running a stack again with gold in the place of hand-offs: only what changes is asked, and the rest is as it was."""

from __future__ import annotations

from typing import Any

import pytest

from cairn.engines.fake_engine import FakeEngine
from cairn.engines.wrapped import WrappedEngine
from cairn.stacks.attribution import (
    Case,
    RecallingEngine,
    Rerun,
    affected,
    handing_on,
    needed,
    replacements,
    run_again,
    values_with,
)
from cairn.stacks.runner import Runner
from cairn.stacks.spec import StackSpec

STAGES = [
    {"name": "a", "prompt": "A {text}:", "retries": 0},
    {"name": "b", "prompt": "B {text}:", "retries": 0},
    {"name": "c", "prompt": "C {a}:", "reads": ["a"], "retries": 0},
    {"name": "d", "kind": "repeat", "over": "c", "start": "{b}", "prompt": "D {state} {item}:", "reads": ["b"],
     "retries": 0},
    {"name": "e", "rule": "copy", "arguments": {"text": "{d}!"}, "reads": ["d"]},
]  # fmt: skip
SPEC = StackSpec.model_validate({"name": "s", "inputs": ["text"], "stages": STAGES})


def case(**own: str) -> Case:
    gold = {name: f"gold {name}" for name in "abcde"}
    return Case("q", {"text": "x"}, {name: own.get(name, f"gold {name}") for name in "abcde"}, gold)


def test_sets_of_stages_are_those_alone_those_up_to_each_and_the_pairs() -> None:
    assert handing_on(SPEC) == ["a", "b", "c", "d"]
    alone, up_to = [("a",), ("b",), ("c",), ("d",)], [("a", "b"), ("a", "b", "c"), ("a", "b", "c", "d")]
    pairs = [("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "d")]
    assert replacements(SPEC, pairs=False) == [*alone, *up_to]
    assert replacements(SPEC) == [*alone, *up_to, *pairs]
    early = StackSpec.model_validate({"name": "s", "inputs": ["text"], "stages": STAGES[:3], "output": "b"})
    assert handing_on(early) == ["a"]  # what comes after the answer cannot be to blame


def test_only_readers_are_affected_through_reads_and_through_over() -> None:
    assert affected(SPEC, ["a"]) == ["c", "d", "e"]
    assert affected(SPEC, ["b"]) == ["d", "e"]
    assert affected(SPEC, []) == []


def test_a_stage_that_was_right_is_needed_only_to_hold_it_against_earlier_changes() -> None:
    assert needed(SPEC, case(), ("a", "b", "c")) == ()
    assert needed(SPEC, case(a="wrong"), ("a",)) == ("a",)
    assert needed(SPEC, case(a="wrong"), ("a", "b", "c")) == ("a", "c")  # c would change with a, b would not
    assert needed(SPEC, case(b="wrong"), ("a", "b")) == ("b",)


def engine() -> FakeEngine:
    return FakeEngine(lambda request: f" [{request.prompt}]", adapters=SPEC.adapter_names())


def test_what_reads_nothing_new_is_not_run_and_keeps_its_value() -> None:
    fake = engine()
    one = case(a="wrong", b="own b", c="own c", d="own d", e="own e")
    made = next(run_again(Runner(SPEC, fake), [Rerun(one, ("a",))]))
    assert [request.prompt for request in fake.requests] == ["C gold a:", "D own b [C gold a:]:"]
    assert made == {
        "a": "gold a", "b": "own b", "c": "[C gold a:]", "d": "[D own b [C gold a:]:]", "e": "[D own b [C gold a:]:]!",
    }  # fmt: skip


def test_questions_with_different_stages_replaced_run_together() -> None:
    fake = engine()
    one = case(a="wrong", b="wrong", d="own d")
    made = list(run_again(Runner(SPEC, fake), [Rerun(one, ("a",)), Rerun(one, ("b",)), Rerun(one, ("b", "c"))]))
    assert [row["b"] for row in made] == ["wrong", "gold b", "gold b"]
    assert made[1]["d"] == "[D gold b gold c:]" == made[2]["d"]
    assert fake.batches == [1, 2]  # stage by stage over all three; equal requests of one wave once


def test_values_come_from_the_own_run_or_from_what_was_run_again() -> None:
    right, wrong = case(), case(a="wrong", e="own e")
    made: dict[Any, Any] = {("q", ("a", "c")): {"e": "made"}}
    assert values_with(SPEC, right, ("a", "c"), made) is right.own
    assert values_with(SPEC, wrong, ("b",), made) is wrong.own
    assert values_with(SPEC, wrong, ("a", "b", "c"), made) == {"e": "made"}


def test_an_equal_request_is_asked_once_over_all_runs() -> None:
    fake = engine()
    recalling = RecallingEngine(fake)
    runner = Runner(SPEC, recalling)
    jobs = [Rerun(case(a="wrong", b="own b"), ("a",)), Rerun(case(a="also wrong", b="own b"), ("a",))]
    first, second = next(run_again(runner, jobs[:1])), next(run_again(runner, jobs[1:]))
    assert first == second and len(fake.requests) == 2
    assert (recalling.asked, recalling.recalled) == (2, 2)
    again = recalling.generate([fake.requests[0], fake.requests[0]])
    assert again[0] == again[1] and again[0].seconds == 0.0 and again[0].text == " [C gold a:]"


def test_a_wrapped_engine_passes_everything_on() -> None:
    fake = FakeEngine([" yes", " no"], scores=[-1.0, -2.0], adapters=["a"])
    fake.config = "shape"  # type: ignore[attr-defined]
    wrapped = WrappedEngine(fake)
    assert wrapped.adapters() == ["a"] and wrapped.capabilities is fake.capabilities
    assert wrapped.config == "shape" and getattr(wrapped, "count_tokens", None) is None
    with pytest.raises(AttributeError):
        getattr(object.__new__(WrappedEngine), "shape")  # half made: an error, not an endless search  # noqa: B009
