"""Repeat stages on the scripted engine: folds, stop values, bounds, and loops of many questions in step."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from functools import reduce
from pathlib import Path

import pytest

from cairn.config import parse_config
from cairn.data.examples import StackExample, adapter_pairs, read_examples
from cairn.engines.base import GenerationRequest
from cairn.engines.fake_engine import FakeEngine
from cairn.errors import ConfigError, InputError
from cairn.stacks.runner import Runner
from cairn.stacks.spec import StackSpec, check_budgets
from cairn.stacks.trace import Trace, format_stage, from_json, to_json

FOLD = {
    "name": "fold", "kind": "repeat", "over": "numbers", "start": "{first}", "at_most": 64,
    "prompt": "state {state} item {item} result:",
}  # fmt: skip
COUNT = {
    "name": "count", "kind": "repeat", "start": "{first}", "until": "done", "at_most": 9,
    "prompt": "down from {state} result:",
}  # fmt: skip


def stack(*stages: dict, **changes: object) -> StackSpec:
    first, *others = stages
    inputs = ["numbers", "first"] if "over" in first else ["first"]
    return parse_config(StackSpec, {"name": "s", "inputs": inputs, "stages": [{**first, **changes}, *others]}, "s")


def step(state: str, item: str) -> str:
    return str((int(state) * 31 + int(item)) % 97)


def reply(request: GenerationRequest) -> str:
    words = request.prompt.split()
    if words[0] == "state":
        return " " + step(words[1], words[3])
    return " done" if words[2] == "0" else f" {int(words[2]) - 1}"


def engine_of(spec: StackSpec) -> FakeEngine:
    return FakeEngine(reply, adapters=spec.adapter_names())


def question(items: int, seed: int) -> dict[str, str]:
    draw = random.Random(seed)
    return {"numbers": "\n".join(str(draw.randrange(97)) for _ in range(items)), "first": str(draw.randrange(97))}


def run(spec: StackSpec, *questions: dict[str, str]) -> list[Trace]:
    return Runner(spec, engine_of(spec)).run(questions)


def test_a_fold_is_the_computation_it_stands_for() -> None:
    spec = stack(FOLD)
    questions = [question(items, seed=items) for items in range(1, 20)]
    for trace, asked in zip(run(spec, *questions), questions, strict=True):
        numbers = asked["numbers"].split("\n")
        assert trace.answer == reduce(step, numbers, asked["first"])
        calls = trace.stage("fold").calls
        assert [call.item for call in calls] == numbers
        assert [call.state for call in calls] == [asked["first"], *(call.value for call in calls[:-1])]
        assert trace.violations == []


PICK = {
    "name": "pick", "kind": "repeat", "reads": ["lines"], "takes": "lines", "start": "{first}", "until": "done",
    "collect": "all", "at_most": 9, "prompt": "{lines}\nafter {state}:",
}  # fmt: skip


def test_a_loop_that_takes_sees_what_is_left_in_training_as_in_serving() -> None:
    """A story with a circle in it: A-B, B-A, A-C. Without `takes` the second visit of A looks like the first."""
    make = {"name": "lines", "rule": "copy", "arguments": {"text": "{first}-b\nb-{first}\n{first}-c"}}
    spec = parse_config(StackSpec, {"name": "s", "inputs": ["first"], "stages": [make, PICK]}, "s")

    def first_of_the_state(request: GenerationRequest) -> str:
        *lines, asked = request.prompt.splitlines()
        here = asked.removeprefix("after ").removesuffix(":").split("-")[-1]
        return next((f" {line}" for line in lines if line.startswith(f"{here}-")), " done")

    engine = FakeEngine(first_of_the_state, adapters=["pick"])
    trace = Runner(spec, engine).run([{"first": "a"}])[0]
    walked = ["a-b", "b-a", "a-c"]
    assert trace.answer.splitlines() == walked and trace.violations == []
    seen = ["a-b\nb-a\na-c\nafter a:", "b-a\na-c\nafter a-b:", "a-c\nafter b-a:", "none\nafter a-c:"]
    assert [call.prompt for call in trace.stage("pick").calls] == seen
    gold = StackExample("1", {"first": "a"}, {"pick": (*walked, "done")}, "\n".join(walked))
    assert [pair.prompt for pair in adapter_pairs(spec, "pick", [gold])] == seen
    other = Runner(spec, FakeEngine(lambda request: " a-b", adapters=["pick"])).run([{"first": "a"}])[0]
    assert other.stage("pick").calls[-1].prompt.startswith("b-a\na-c\n"), "a line is taken once, what is no line never"


def test_a_loop_may_end_with_an_output_that_reads_a_field(tmp_path: Path) -> None:
    """Where every output begins with a name, the stop may too: it is promised nothing else, and it is not kept."""
    changes = {"until": "{numbers}: done", "contract": {"kind": "choices", "values": ["b", "c"]}, "collect": "all"}
    count = {**COUNT, "prompt": "{numbers} after {state} result:"}
    spec = parse_config(StackSpec, {"name": "s", "inputs": ["numbers", "first"], "stages": [{**count, **changes}]}, "s")
    order = {"a": "b", "b": "c", "c": "z: done", "z:": "z: done"}
    engine = FakeEngine(lambda request: " " + order[request.prompt.split()[2]], adapters=["count"])
    calls = Runner(spec, engine).run([{"numbers": "z", "first": "a"}, {"numbers": "y", "first": "b"}])
    assert calls[0].answer.splitlines() == ["b", "c"] and calls[0].violations == []
    assert [call.kept for call in calls[0].stage("count").calls] == [True, True, False]
    assert calls[1].stage("count").calls[1].violations != [], "the stop of another question is no stop"
    gold = StackExample("1", {"numbers": "z", "first": "a"}, {"count": ("b", "c", "z: done")}, "b\nc")
    assert [pair.completion.strip() for pair in adapter_pairs(spec, "count", [gold])] == ["b", "c", "z: done"]
    row = {"id": "1", "inputs": gold.inputs, "stages": gold.stages, "answer": gold.answer}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row), "utf-8")
    assert len(read_examples(tmp_path / "rows.jsonl", spec)) == 1


def test_a_constrained_loop_may_copy_a_line_that_is_left_or_stop() -> None:
    make = {"name": "lines", "rule": "copy", "arguments": {"text": "{first}-b\nb-{first}"}}
    contract = {"kind": "copied_from_input", "fields": ["lines"], "unit": "lines", "allow": ["pass"]}
    pick = {**PICK, "contract": contract, "constrain": True, "until": "{first}: done"}
    spec = parse_config(StackSpec, {"name": "s", "inputs": ["first"], "stages": [make, pick]}, "s")
    engine = FakeEngine(lambda request: f" {request.constraint.choices[0]}", adapters=["pick"])
    engine.capabilities = replace(engine.capabilities, constraints=True)
    trace = Runner(spec, engine).run([{"first": "a"}])[0]
    held = [request.constraint.choices for request in engine.requests if request.constraint is not None]
    assert held[:2] == [("a-b", "b-a", "pass", "a: done"), ("b-a", "pass", "a: done")]
    assert trace.answer.splitlines()[:2] == ["a-b", "b-a"]


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"takes": "lins"}, "takes unknown field 'lins'"),
        ({"prompt": "after {state}:"}, "takes 'lines', which its prompt does not read"),
        ({"over": "lines", "until": None}, "takes 'lines', which is also what it goes over"),
        ({"kind": "once", "until": None, "start": "none", "at_most": 16, "collect": "last"}, "takes is for kind"),
        ({"until": "{lines}"}, "takes 'lines', which until reads as well"),
    ],
)
def test_what_cannot_be_taken_is_refused(change: dict[str, object], fault: str) -> None:
    make = {"name": "lines", "rule": "copy", "arguments": {"text": "{first}"}}
    with pytest.raises(ConfigError, match=fault):
        parse_config(StackSpec, {"name": "s", "inputs": ["first"], "stages": [make, {**PICK, **change}]}, "s")


def test_a_fold_goes_on_past_the_lengths_of_its_examples() -> None:
    spec = stack(FOLD)
    short, long = question(3, seed=0), question(50, seed=1)
    gold = []
    for number in short["numbers"].split("\n"):
        gold.append(step(gold[-1] if gold else short["first"], number))
    learned = adapter_pairs(spec, "fold", [StackExample("1", short, {"fold": tuple(gold)}, gold[-1])])
    shape = {tuple(pair.prompt.split()[::2]) for pair in learned}
    engine = engine_of(spec)
    trace = Runner(spec, engine).run([long])[0]
    assert len(trace.stage("fold").calls) == 50
    assert {tuple(request.prompt.split()[::2]) for request in engine.requests} == shape  # the same decision each time
    assert trace.answer == reduce(step, long["numbers"].split("\n"), long["first"])


@pytest.mark.parametrize("dedupe", [True, False])
def test_loops_of_different_length_in_step_are_each_loop_alone(dedupe: bool) -> None:
    spec = stack(COUNT)
    questions = [{"first": str(number)} for number in (3, 0, 5, 3)]
    engine = engine_of(spec)
    together = Runner(spec, engine, dedupe=dedupe).run(questions)
    for place, asked in enumerate(questions):
        alone = Runner(spec, engine_of(spec), dedupe=dedupe).run([asked], ids=[str(place)])[0]
        if place < 3 or not dedupe:
            assert together[place] == alone
        assert together[place].totals.calls == alone.totals.calls == int(asked["first"]) + 1
    assert engine.batches == ([3, 2, 2, 2, 1, 1] if dedupe else [4, 3, 3, 3, 1, 1])
    assert sum(trace.totals.calls_run for trace in together) == sum(engine.batches)


@pytest.mark.parametrize(("collect", "value"), [("last", "0"), ("all", "2\n1\n0")])
def test_the_stop_value_ends_a_loop_and_is_not_kept(collect: str, value: str) -> None:
    trace = run(stack(COUNT, collect=collect), {"first": "3"})[0]
    assert trace.answer == value
    assert [(call.value, call.kept) for call in trace.stages[0].calls] == [
        ("2", True), ("1", True), ("0", True), ("done", False),
    ]  # fmt: skip


def test_a_loop_that_keeps_nothing_has_its_start_or_says_so() -> None:
    assert run(stack(COUNT), {"first": "0"})[0].answer == "0"
    assert run(stack(COUNT, collect="all", empty="nothing"), {"first": "0"})[0].answer == "nothing"


def test_a_stop_value_ends_a_fold_early_and_items_end_it_without_one() -> None:
    spec = stack(FOLD, until="stop", prompt="{state} {item}")
    engine = FakeEngine({"b": "stop", "": "on"}, adapters=["fold"])
    first, second = Runner(spec, engine).run([{"numbers": t, "first": "x"} for t in ("a\nb\nc", "a\nc")])
    assert ([call.value for call in first.stages[0].calls], first.answer) == (["on", "stop"], "on")
    assert ([call.value for call in second.stages[0].calls], second.answer) == (["on", "on"], "on")
    assert first.violations == second.violations == []


def test_a_loop_that_its_bound_ends_is_a_broken_promise() -> None:
    trace = run(stack(COUNT), {"first": "20"})[0]
    assert len(trace.stages[0].calls) == 9
    assert trace.violations == ["count[8]: promised to end with 'done', but was ended by at_most 9"]
    assert trace.answer == "11"
    left = run(stack(FOLD, at_most=4), question(6, seed=0))[0]
    assert left.violations == ["fold[3]: promised to go over 6 items, but was ended by at_most 4"]
    assert run(stack(COUNT), {"first": "8"})[0].violations == []  # the ninth call is the stop value


def test_no_items_make_no_call() -> None:
    pick = {"name": "pick", "kind": "map", "over": "numbers", "keep": "yes", "prompt": "{item} {first}"}
    spec = stack(pick, {**FOLD, "over": "pick"})
    engine = FakeEngine({"": "no"}, adapters=spec.adapter_names())
    trace = Runner(spec, engine).run([{"numbers": "1\n2", "first": "7"}])[0]
    assert (trace.stage("pick").value, trace.stage("fold").calls, trace.answer) == ("none", [], "7")


@pytest.mark.parametrize(
    ("spec", "asked", "gold"),
    [
        (stack(FOLD), {"numbers": "1\n2\n3", "first": "4"}, None),
        (stack(COUNT), {"first": "3"}, ("2", "1", "0", "done")),
        (stack(COUNT, {"name": "say", "reads": ["count"], "prompt": "down from {count} now", "adapter": "count"}),
         {"first": "2"}, ("1", "0", "done")),
    ],
    ids=["fold", "until", "shared adapter"],
)  # fmt: skip
def test_the_prompts_of_training_are_those_of_serving(spec: StackSpec, asked: dict, gold: tuple | None) -> None:
    if gold is None:
        gold = tuple(step(*pair) for pair in (("4", "1"), (step("4", "1"), "2"), (step(step("4", "1"), "2"), "3")))
    stages = {spec.stages[0].name: gold, **{stage.name: "done" for stage in spec.stages[1:]}}
    engine = engine_of(spec)
    Runner(spec, engine).run([asked])
    pairs = adapter_pairs(spec, spec.adapter_names()[0], [StackExample("1", asked, stages, gold[-1])])
    assert [pair.prompt for pair in pairs] == [request.prompt for request in engine.requests]
    assert [pair.completion for pair in pairs] == [reply(request) for request in engine.requests]


def test_a_broken_promise_inside_a_loop_is_asked_again_and_recorded() -> None:
    spec = stack(COUNT, contract={"kind": "regex", "pattern": "[0-9]+"})

    def stutter(request: GenerationRequest) -> str:
        if "from 2" in request.prompt and request.sampling.temperature == 0:
            return " well"
        if "from 1" in request.prompt:
            return " zero"
        return " done" if "zero" in request.prompt else reply(request)

    trace = Runner(spec, FakeEngine(stutter, adapters=["count"])).run([{"first": "3"}])[0]
    second, third, last = trace.stages[0].calls[1:]
    assert (second.value, second.rejected, second.violations) == ("1", [" well"], [])
    assert (third.value, third.rejected) == ("zero", [" zero"])
    assert trace.violations == ["count[2]: promised a text that matches [0-9]+, but got 'zero'"]
    assert (last.state, last.value, last.violations) == ("zero", "done", [])  # the stop value breaks nothing
    assert trace.totals.calls == 4 + 2


def test_every_call_of_a_sampled_loop_has_its_own_seed() -> None:
    spec = stack(COUNT, sampling={"temperature": 1.0, "seed": 5})
    engine = FakeEngine(lambda request: " done" if request.sampling.seed > 2000 else " 7", adapters=["count"])
    traces = Runner(spec, engine).run([{"first": "7"}, {"first": "7"}])
    assert [request.sampling.seed for request in engine.requests] == [5, 1005, 2005]  # and asked once for both
    assert [call.value for call in traces[1].stages[0].calls] == ["7", "7", "done"]  # a state that came back moved on


def test_the_record_of_a_loop_reads_back_and_can_be_read() -> None:
    spec = stack(COUNT)
    trace = run(spec, {"first": "2"})[0]
    assert from_json(to_json(trace)) == trace
    assert format_stage(trace.stages[0], 1, 60).splitlines() == [
        "1 count  (3 calls, stopped by itself)",
        "    from: 2",
        "  1 1",
        "  2 0",
        "  3 done",
        "  > 0",
    ]
    fold = run(stack(FOLD), {"numbers": "1\n2", "first": "4"})[0]
    assert format_stage(fold.stages[0], 2, 40).splitlines() == [
        "2 fold  (2 calls)",
        "    from: 4",
        "  1 1                                 28",
        "  2 2                                 94",
        "  > 94",
    ]


def test_long_outputs_of_a_fold_are_shown_whole() -> None:
    spec = stack(FOLD, prompt="{state} {item}")
    engine = FakeEngine(lambda request: "word " * 20, adapters=["fold"])
    text = format_stage(Runner(spec, engine).run([{"numbers": "1\n2", "first": "4"}])[0].stages[0], 1, 60)
    assert text.count("word") == 60 and max(map(len, text.splitlines())) <= 60 and "…" not in text


def test_stages_that_are_given_do_not_run() -> None:
    spec = stack(COUNT, {"name": "say", "reads": ["count"], "prompt": "down from {count} now"})
    engine = engine_of(spec)
    told: list[tuple[int, str]] = []
    traces = Runner(spec, engine).run(
        [{"first": "2"}] * 3, given=[{"count": "7"}, {}, {"say": "x"}],
        on_handoff=lambda place, record: told.append((place, record.by)),
    )  # fmt: skip
    assert [trace.answer for trace in traces] == ["6", "done", "x"]
    record = traces[0].stage("count")
    assert (record.by, record.value, record.calls, record.adapter) == ("given", "7", [], None)
    assert told == [(0, "given"), (1, "model"), (2, "model"), (0, "model"), (1, "model"), (2, "given")]
    assert format_stage(record, 1) == "1 count  (given, not run)\n  > 7"
    assert from_json(to_json(traces[0])) == traces[0]
    with pytest.raises(InputError, match=r"no such stage to be given \(did you mean count\?\): 'cuont'"):
        Runner(spec, engine).run([{"first": "2"}], given=[{"cuont": "7"}])
    with pytest.raises(InputError, match="1 questions need as many sets of given stages: 2"):
        Runner(spec, engine).run([{"first": "2"}], given=[{}, {}])


def test_the_calls_of_a_loop_need_its_outputs() -> None:
    spec = stack(COUNT)
    with pytest.raises(InputError, match="what a repeat stage is asked depends on what it wrote: 'count'"):
        spec.calls(spec.stages[0], {"first": "2"})
    calls = spec.calls(spec.stages[0], {"first": "2"}, ["1", "0", "done", "never asked"])
    assert [call.state for call in calls] == ["2", "1", "0"]


def test_the_state_of_a_loop_must_fit_beside_what_is_written() -> None:
    spec = stack(COUNT, sampling={"max_new_tokens": 30})
    check_budgets(spec, 61)
    with pytest.raises(ConfigError, match=r"leaves no room .* where \{state\} may hold as many .* allowed: at most 29"):
        check_budgets(spec, 60)
    stateless = stack(FOLD, prompt="{item}:", sampling={"max_new_tokens": 30})
    check_budgets(stateless, 31)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"until": None}, "kind repeat needs until, the output that ends it, or over"),
        ({"until": " done"}, "until ' done' is empty or has white space around it"),
        ({"until": ""}, "until '' is empty"),
        ({"until": True}, 'put the word into quotes: "yes"'),
        ({"until": "{frist}: done"}, "until uses unknown field 'frist' (did you mean first?), allowed: first"),
        ({"until": "{state}"}, "until uses unknown field 'state'"),
        ({"contract": {"kind": "choices", "values": ["0", "1"]}},
         "until 'done' is not a value that its contract allows, allowed: 0, 1"),
        ({"start": "{frist}"}, "start uses unknown field 'frist' (did you mean first?), allowed: first"),
        ({"start": "{state}"}, "start uses unknown field 'state'"),
        ({"start": "{first"}, "start: single '{'"),
        ({"over": "nubmers"}, "over unknown field 'nubmers'"),
        ({"at_most": 0}, "at_most: 0: input should be greater than or equal to 1"),
        ({"at_most": 5000}, "at_most: 5000: input should be less than or equal to 4096"),
        ({"prompt": "again:"}, "prompt of a repeat stage must read {state}, else every call is the same"),
        ({"prompt": "{item}"}, "prompt uses unknown field 'item'"),
        ({"keep": "0"}, "keep is for kind map, but kind is repeat"),
        ({"split": "sentences"}, "split says how `over` is cut into items, but there is no over"),
        ({"join": ", "}, "join is for collect: all, but collect is last"),
        ({"kind": "once", "prompt": "{first}"}, "start is for kind repeat, but kind is once"),
        ({"kind": "once", "prompt": "{first}"}, "at_most is for kind repeat, but kind is once"),
        ({"kind": "repat"}, "'once', 'map' or 'repeat'"),
        ({"name": "state"}, "'state' is the state of a repeat stage, allowed: any other name"),
        ({"contract": {"kind": "copied_from_input", "fields": ["item"]}}, "contract copies from 'item'"),
    ],
)  # fmt: skip
def test_each_fault_of_a_loop_is_named(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        stack(COUNT, **changes)
    assert message in str(caught.value)


def test_a_stage_of_one_call_may_not_carry_what_others_read() -> None:
    with pytest.raises(ConfigError) as caught:
        stack({"name": "one", "prompt": "{first}", "join": " ", "split": "sentences", "collect": "all"})
    for key in ("join", "split", "collect"):
        assert f"stage one: {key} is for kind " in str(caught.value)
