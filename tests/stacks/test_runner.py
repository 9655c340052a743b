"""A stack on the scripted engine: waves, hand-offs, retries, broken promises, counts."""

from __future__ import annotations

from pathlib import Path

import pytest

from cairn.data.examples import StackExample, adapter_pairs
from cairn.engines.base import GenerationRequest
from cairn.engines.fake_engine import FakeEngine
from cairn.errors import ConfigError, EngineError, InputError
from cairn.stacks.runner import RETRY_TEMPERATURE, Runner
from cairn.stacks.spec import StackSpec, load_stack
from tests.stacks.stack_yaml import INPUTS, QUESTION, REPLIES, STACK, STORY, write_stack

ADAPTERS = ("mention", "link", "answer")


@pytest.fixture
def spec(tmp_path: Path) -> StackSpec:
    return load_stack(write_stack(tmp_path))


def test_hand_offs_flow_to_the_answer(spec: StackSpec) -> None:
    engine = FakeEngine(REPLIES, adapters=ADAPTERS)
    seen: list[tuple[int, str, str]] = []
    runner = Runner(spec, engine)
    trace = runner.run([INPUTS], on_handoff=lambda n, record: seen.append((n, record.name, record.value)))[0]
    assert trace.answer == "office"
    assert seen == [
        (0, "mention", "John took the milk."),
        (0, "link", "John"),
        (0, "follow", "John took the milk. John went to the office."),
        (0, "answer", "office"),
    ]
    assert [call.kept for call in trace.stage("mention").calls] == [True, False, False]
    assert trace.inputs == INPUTS
    assert trace.violations == []
    assert [request.adapter for request in engine.requests] == ["mention"] * 3 + ["link"] + ["mention"] * 3 + ["answer"]
    assert engine.requests[-1].prompt == f"John took the milk. John went to the office.\n{QUESTION}\nAnswer:"


def test_the_prompts_of_serving_are_those_of_training(spec: StackSpec) -> None:
    gold = {"mention": ("yes", "no", "no"), "link": "John", "follow": ("yes", "no", "yes"), "answer": "office"}
    example = StackExample("1", INPUTS, gold, "office")
    engine = FakeEngine(REPLIES, adapters=ADAPTERS)
    Runner(spec, engine).run([INPUTS])
    for adapter in ADAPTERS:
        served = [request.prompt for request in engine.requests if request.adapter == adapter]
        trained = adapter_pairs(spec, adapter, [example])
        assert sorted(pair.prompt for pair in trained) == sorted(served)
        assert {pair.completion for pair in trained} <= set(REPLIES.values())


def test_a_wave_is_one_call_of_the_engine_per_stage(spec: StackSpec) -> None:
    engine = FakeEngine(REPLIES, adapters=ADAPTERS)
    other = {"story": "Mary went to the garden. John took it.", "question": QUESTION}
    traces = Runner(spec, engine, dedupe=False).run([INPUTS, other, INPUTS], ids=["a", "b", "c"])
    assert engine.batches == [8, 3, 8, 3]
    assert [trace.id for trace in traces] == ["a", "b", "c"]
    assert [len(trace.stage("mention").calls) for trace in traces] == [3, 2, 3]
    alone = Runner(spec, FakeEngine(REPLIES, adapters=ADAPTERS), dedupe=False).run([other], ids=["b"])
    assert traces[1] == alone[0]


def test_waves_bound_what_runs_together(spec: StackSpec) -> None:
    engine = FakeEngine(REPLIES, adapters=ADAPTERS)
    seen: list[int] = []
    traces = Runner(spec, engine, wave=1, dedupe=False).run([INPUTS] * 3, on_handoff=lambda n, _: seen.append(n))
    assert engine.batches == [3, 1, 3, 1] * 3
    assert seen == [0] * 4 + [1] * 4 + [2] * 4
    assert len(traces) == 3


def test_identical_requests_run_once_and_count_always(spec: StackSpec) -> None:
    engine = FakeEngine(REPLIES, adapters=ADAPTERS)
    first, second = Runner(spec, engine).run([INPUTS, INPUTS])
    assert len(engine.requests) == 8
    assert first.totals.calls == second.totals.calls == 8
    assert (first.totals.calls_run, second.totals.calls_run) == (8, 0)
    assert first.totals.prompt_tokens == second.totals.prompt_tokens > 0


def test_a_retry_that_keeps_the_promise_is_used(spec: StackSpec) -> None:
    def reply(request: GenerationRequest) -> str:
        if "Mary went" in request.prompt and request.sampling.temperature == 0:
            return " perhaps"
        return next(text for key, text in REPLIES.items() if key in request.prompt)

    engine = FakeEngine(reply, adapters=ADAPTERS)
    trace = Runner(spec, engine).run([INPUTS])[0]
    call = trace.stage("mention").calls[1]
    assert (call.value, call.violations, call.rejected) == ("no", [], [" perhaps"])
    again = [request for request in engine.requests if request.sampling.temperature > 0]
    assert [request.sampling.temperature for request in again] == [RETRY_TEMPERATURE] * 2  # in mention and in follow
    assert [request.sampling.seed for request in again] == [1, 1]
    assert trace.answer == "office"
    assert trace.totals.calls == 10


def test_a_promise_broken_for_good_is_recorded_and_the_first_text_used(spec: StackSpec) -> None:
    outputs = iter([" Sandra", " Daniel"])

    def reply(request: GenerationRequest) -> str:
        if "Who:" in request.prompt:
            return next(outputs)
        return next((text for key, text in REPLIES.items() if key in request.prompt), " no")

    trace = Runner(spec, FakeEngine(reply, adapters=ADAPTERS)).run([INPUTS])[0]
    call = trace.stage("link").calls[0]
    assert (call.value, call.rejected) == ("Sandra", [" Daniel"])
    assert trace.violations == ["link: promised words from mention, question, but 'Sandra' is not there"]
    assert trace.stage("follow").value == "none"
    assert trace.answer == "office"  # the run goes on


def test_no_retries_if_the_stage_wants_none(tmp_path: Path) -> None:
    text = STACK.replace("reads: [mention]", "reads: [mention]\n    retries: 0")
    spec = load_stack(write_stack(tmp_path, text))
    engine = FakeEngine({**REPLIES, "Who:": " Sandra", "Sandra": " no"}, adapters=ADAPTERS)
    trace = Runner(spec, engine).run([INPUTS])[0]
    assert trace.stage("link").calls[0].rejected == []
    assert len(trace.violations) == 1


def test_an_empty_output_is_a_broken_promise(spec: StackSpec) -> None:
    trace = Runner(spec, FakeEngine({**REPLIES, "Answer:": " "}, adapters=ADAPTERS)).run([INPUTS])[0]
    assert trace.answer == ""
    assert trace.violations == ["answer: promised a text, but it is empty"]


def test_a_violation_in_a_map_names_its_item(spec: StackSpec) -> None:
    replies = {f"{QUESTION}\nMary": " perhaps", **REPLIES}
    trace = Runner(spec, FakeEngine(replies, adapters=ADAPTERS)).run([INPUTS])[0]
    assert trace.violations == ["mention[1]: promised one of yes, no, but got 'perhaps'"]
    assert trace.stage("mention").calls[1].kept is False


def test_the_bare_base_may_run_the_stages(spec: StackSpec) -> None:
    engine = FakeEngine(REPLIES)
    assert Runner(spec, engine, adapters=False).run([INPUTS])[0].answer == "office"
    assert {request.adapter for request in engine.requests} == {None}


def test_what_the_engine_lacks_is_known_before_it_runs(spec: StackSpec, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"no adapter for this stage \(did you mean lnik\?\): 'link'"):
        Runner(spec, FakeEngine(adapters=("mention", "lnik", "answer")))
    with pytest.raises(ConfigError, match="leaves no room"):
        Runner(spec, FakeEngine(adapters=ADAPTERS, context_tokens=16))
    text = STACK.replace("sampling: {max_new_tokens: 3}", "constrain: true")
    constrained = load_stack(write_stack(tmp_path / "constrained", text))
    with pytest.raises(EngineError, match="constraints"):
        Runner(constrained, FakeEngine(adapters=ADAPTERS))


@pytest.mark.parametrize(
    ("question", "message"),
    [
        ({"story": STORY}, "the stack needs field 'question'"),
        ({**INPUTS, "quesion": "x"}, r"unknown field \(did you mean question\?\): 'quesion'. Allowed: story, question"),
        ({**INPUTS, "story": " \n"}, "field 'story' is empty"),
        ({**INPUTS, "story": 3}, "field 'story' is not a text: 3"),
    ],
)
def test_bad_questions_are_refused_before_anything_runs(spec: StackSpec, question: dict, message: str) -> None:
    engine = FakeEngine(REPLIES, adapters=ADAPTERS)
    with pytest.raises(InputError, match=message):
        Runner(spec, engine).run([question])
    with pytest.raises(InputError, match=f"question b: {message}"):
        Runner(spec, engine).run([INPUTS, question], ids=["a", "b"])
    assert engine.requests == []
    with pytest.raises(InputError, match="need as many ids"):
        Runner(spec, engine).run([INPUTS], ids=["a", "b"])
