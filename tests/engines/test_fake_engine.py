"""The scripted engine, which other people's tests lean on."""

from __future__ import annotations

import pytest

from cairn.engines.base import Engine, GenerationRequest, Sampling, ScoreRequest, require
from cairn.engines.fake_engine import FakeEngine
from cairn.errors import EngineError


def ask(engine: FakeEngine, *prompts: str) -> list[str]:
    return [made.text for made in engine.generate([GenerationRequest(prompt) for prompt in prompts])]


def test_it_is_an_engine() -> None:
    assert isinstance(FakeEngine(), Engine)


def test_replies_in_order_then_an_error() -> None:
    engine = FakeEngine([" a", " b"])
    assert ask(engine, "x", "y") == [" a", " b"]
    assert [request.prompt for request in engine.requests] == ["x", "y"]
    with pytest.raises(EngineError, match="at its end after 2 replies: 'z'"):
        ask(engine, "z")


def test_replies_by_what_the_prompt_holds() -> None:
    engine = FakeEngine({"milk": " kitchen", "Where": " garden"})
    assert ask(engine, "Where is the milk?", "Where is Mary?") == [" kitchen", " garden"]
    with pytest.raises(EngineError, match="no reply to this prompt: 'Who'. Allowed: milk, Where"):
        ask(engine, "Who")


def test_replies_by_function_and_adapters_are_checked() -> None:
    engine = FakeEngine(lambda request: f" {request.adapter}", adapters=["answer"])
    assert engine.generate([GenerationRequest("x", "answer")])[0].text == " answer"
    assert "".join(engine.stream(GenerationRequest("x", "answer"))) == " answer"
    with pytest.raises(EngineError, match=r"not loaded \(did you mean answer\?\): 'anser'. Allowed: answer"):
        engine.generate([GenerationRequest("x", "anser")])


def test_scores() -> None:
    engine = FakeEngine(scores={"yes": -1.0, " no": 0.0})
    scores = engine.loglikelihood([ScoreRequest("x", " yes"), ScoreRequest("x", " no")])
    assert [score.logprob for score in scores] == [-1.0, 0.0]
    assert [score.greedy for score in scores] == [False, True]
    assert FakeEngine(scores=[-2.0]).loglikelihood_rolling(["a b"])[0].tokens == 2
    with pytest.raises(EngineError, match="at its end"):
        FakeEngine().loglikelihood([ScoreRequest("x", "y")])


def test_a_missing_capability_is_an_error_up_front() -> None:
    with pytest.raises(EngineError, match="engine fake cannot do what is needed: 'logprobs'"):
        require(FakeEngine(), "adapters", "logprobs")
    require(FakeEngine(scores=[0.0]), "logprobs")


def test_sampling_is_checked_hashable_and_changed_by_copy() -> None:
    assert hash(Sampling(stop=("a",))) == hash(Sampling(stop=("a",)))
    assert Sampling().model_copy(update={"seed": 3}).seed == 3
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        Sampling(max_new_tokens=0)
