"""Votes and ensembles: what the FLOPs of a stack buy a single model."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from cairn.engines.base import Capabilities, GenerationRequest, Sampling
from cairn.engines.fake_engine import FakeEngine
from cairn.errors import EngineError
from cairn.evaluation.cost import FlopsCounter
from cairn.evaluation.equal_compute import fair_count, majority, run_ensemble, run_vote
from cairn.evaluation.systems import Question

CONFIG = SimpleNamespace(
    model_type="cairn", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    head_dim=8, intermediate_size=64, vocab_size=320, tie_word_embeddings=True,
)  # fmt: skip
QUESTIONS = [Question(name, name, "t", {"q": name}, answer) for name, answer in (("one", "hall"), ("two", "park"))]


def test_the_comparator_never_has_fewer_flops_than_the_stack() -> None:
    assert [fair_count(stack, 10) for stack in (1, 10, 10.1, 45)] == [1, 1, 2, 5]
    assert fair_count(45, 10, least=7) == 7 and fair_count(45, 10, least=2, most=3) == 3


@pytest.mark.parametrize(
    ("answers", "place"),
    [
        (["hall", "park", "park"], 1), (["hall", "park"], 0), (["Hall.", "park", "hall"], 0), (["", "", "park"], 2),
        (["", ""], 0),
    ],
)  # fmt: skip
def test_the_answer_given_most_often_wins_and_of_equal_ones_the_first(answers: list[str], place: int) -> None:
    assert majority(answers) == place


def test_a_vote_is_one_greedy_call_and_samples_with_seeds_of_their_own() -> None:
    def reply(request: GenerationRequest) -> str:
        if request.sampling.temperature == 0:
            return " wrong"
        return " hall" if "one" in request.prompt else f" {request.sampling.seed}"

    engine = FakeEngine(reply, adapters=["single_direct"])
    flops = FlopsCounter(CONFIG, {"single_direct": 100})
    made = run_vote(
        engine, QUESTIONS, lambda q: f"{q.inputs['q']} ?", flops, adapter="single_direct", samples=4, temperature=0.5,
        sampling=Sampling(max_new_tokens=3), seed=7,
    )  # fmt: skip
    assert [(one.id, one.answer, one.correct) for one in made] == [("one", "hall", True), ("two", "wrong", False)]
    sampled = [request.sampling for request in engine.requests if request.sampling.temperature]
    assert len(engine.requests) == 8 and len({one.seed for one in sampled}) == 6
    assert {one.temperature for one in sampled} == {0.5} and {one.max_new_tokens for one in sampled} == {3}
    assert made[0].calls == 4 and made[0].prompt_tokens == 8
    assert made[0].flops == 4 * flops.call("single_direct", 2, 2)
    again = FakeEngine(reply, adapters=["single_direct"])
    run_vote(
        again, QUESTIONS[1:], lambda q: f"{q.inputs['q']} ?", flops, adapter="single_direct", samples=4,
        temperature=0.5, sampling=Sampling(max_new_tokens=3), seed=7,
    )  # fmt: skip
    assert again.requests == engine.requests[4:]  # a sample depends on its question alone, not on its neighbours


def test_an_ensemble_is_one_request_that_costs_as_many_calls_as_it_has_members() -> None:
    engine = FakeEngine(lambda request: " hall", adapters=["a", "b"])
    flops = FlopsCounter(CONFIG, {"a": 100, "b": 300})
    made = run_ensemble(
        engine, QUESTIONS, lambda q: "where ?", flops, members=["a", "b"], sampling=Sampling(max_new_tokens=3)
    )
    assert [request.ensemble for request in engine.requests] == [("a", "b"), ("a", "b")]
    assert [one.correct for one in made] == [True, False]
    assert made[0].flops == flops.call("a", 2, 2) + flops.call("b", 2, 2)
    assert (made[0].calls, made[0].prompt_tokens, made[0].new_tokens) == (2, 4, 4)


def test_an_engine_that_cannot_average_adapters_is_refused() -> None:
    engine = FakeEngine([" hall"], adapters=["a"])
    engine.capabilities = Capabilities(False, True, True, False, False, None)
    with pytest.raises(EngineError, match="cannot do what is needed: 'ensembles'"):
        run_ensemble(engine, QUESTIONS, str, FlopsCounter(CONFIG), members=["a"], sampling=Sampling())
