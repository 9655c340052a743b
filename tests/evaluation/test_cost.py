"""Costs: FLOPs follow the accounting; reading, writing and waiting are told apart; every system is timed alike."""

from __future__ import annotations

import time
from functools import partial
from types import SimpleNamespace

import pytest

from cairn.engines.base import Generation, GenerationRequest, Sampling
from cairn.engines.fake_engine import FakeEngine
from cairn.errors import ConfigError, InputError
from cairn.evaluation.cost import (
    CostSettings,
    FlopsCounter,
    TimedEngine,
    cost_figures,
    latency_ms,
    measured_cost,
    peak_memory_mib,
)
from cairn.models.accounting import forward_flops

CONFIG = SimpleNamespace(
    model_type="cairn", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    head_dim=8, intermediate_size=64, vocab_size=320, tie_word_embeddings=True,
)  # fmt: skip


def test_flops_are_those_of_the_accounting_with_the_adapter_on_top() -> None:
    counter = FlopsCounter(CONFIG, {"answer": 1000})
    assert counter.call(None, 50, 4) == forward_flops(CONFIG, 50, 4)
    assert counter.call("answer", 50, 4) == forward_flops(CONFIG, 50, 4) + 2 * 1000 * 53


def test_an_adapter_of_unknown_size_is_not_counted_as_free() -> None:
    with pytest.raises(InputError, match="size of an adapter is not known: 'holder'. Allowed: answer"):
        FlopsCounter(CONFIG, {"answer": 1000}).call("holder", 50, 4)


def test_latency_times_every_input_after_the_warm_up() -> None:
    seen: list[int] = []
    found = latency_ms(lambda item: (seen.append(item), time.sleep(0.01)), [1, 2, 3], warmup=1)
    assert seen == [1, 1, 2, 3] and found["n"] == 3
    assert 10 <= found["p50"] <= found["p95"]
    with pytest.raises(InputError, match="nothing to time"):
        latency_ms(print, [])


def test_peak_memory_is_that_of_a_python_process() -> None:
    assert 5 < peak_memory_mib() < 1_000_000


class Slow(FakeEngine):
    """Takes 10 ms for every token it reads and 100 ms for every one it writes after the first, by its own clock."""

    now = 0.0

    def generate(self, requests):
        found = []
        for request in requests:
            self.requests.append(request)
            read, written = len(request.prompt.split()), min(5, request.sampling.max_new_tokens)
            Slow.now += 0.01 * read + 0.1 * (written - 1)
            found.append(Generation(" x", read, written, "stop", 0.0))
        return found


def clock() -> float:
    return Slow.now


def measure(answer, engine, asked, **changes):
    timed = TimedEngine(engine, clock)
    settings = CostSettings(**{"warmup": 1, "watts_per_core": None, **changes})
    return measured_cost(partial(answer, timed), timed, asked, settings, clock=clock)


def two_calls(engine, questions):
    """A stack of two stages: 20 tokens read, then 10; five written each time."""
    for _ in questions:
        engine.generate([GenerationRequest("word " * 20)])
        engine.generate([GenerationRequest("word " * 10)])
        Slow.now += 0.5  # what is no call: rules, parsing


def test_latency_first_token_reading_and_writing_are_told_apart() -> None:
    figures = measure(two_calls, Slow(), list(range(25)))
    whole = 1000 * (0.2 + 0.4 + 0.1 + 0.4 + 0.5)
    assert figures["latency_ms"] == {"p50": pytest.approx(whole), "p95": pytest.approx(whole), "n": 25}
    assert figures["first_token_ms"]["p50"] == pytest.approx(whole - 400)  # all but the last call's writing
    assert figures["read_tokens_per_second"] == pytest.approx(30 / 0.3)
    assert figures["written_tokens_per_second"] == pytest.approx(8 / 0.8)
    assert figures["energy"] == "not measured" and figures["energy_j_per_answer"] is None


def test_what_shows_nothing_before_the_end_has_its_first_token_there() -> None:
    timed = TimedEngine(Slow(), clock)
    settings = CostSettings(warmup=0, watts_per_core=None)
    figures = measured_cost(partial(two_calls, timed), timed, [1] * 20, settings, streams=False, clock=clock)
    assert figures["first_token_ms"] == figures["latency_ms"]


def test_twenty_are_timed_in_any_case_and_more_only_while_there_is_time() -> None:
    asked: list[int] = []

    def answer(engine, questions):
        asked.extend(questions)
        engine.generate([GenerationRequest("word")])
        Slow.now += 10

    figures = measure(answer, Slow(), list(range(40)), seconds=1.0)
    assert figures["questions_timed"] == 20 and asked == [0, *range(20)]  # one beforehand, untimed
    assert measure(answer, Slow(), list(range(40)), seconds=1e6)["questions_timed"] == 40
    assert measure(answer, Slow(), list(range(40)), questions=30, seconds=1e6)["questions_timed"] == 30
    with pytest.raises(InputError, match="nothing to time"):
        measure(answer, Slow(), [])


def test_a_system_that_writes_one_token_has_no_writing_speed_and_constraints_do_not_hinder() -> None:
    from cairn.engines.base import Constraint

    engine = Slow()

    def answer(timed, questions):
        timed.generate([GenerationRequest("a b", None, Sampling(max_new_tokens=1), Constraint(("yes", "no")))])

    assert measure(answer, engine, [1, 2, 3])["written_tokens_per_second"] is None
    assert engine.requests[-1].constraint is None and engine.requests[-1].sampling.max_new_tokens == 1


def test_cost_of_a_right_answer_follows_from_how_many_are_right() -> None:
    row = {"energy_j_per_answer": 3.0}
    found = cost_figures({"a": row, "b": row, "c": {"energy_j_per_answer": None}}, {"a": 0.5, "b": 0.0, "c": 1.0},
                         {"a": 10.0, "b": 4.0, "c": 2.0})  # fmt: skip
    assert (found["a"]["energy_j_per_correct"], found["a"]["flops_per_correct"]) == (6.0, 20.0)
    assert (found["b"]["energy_j_per_correct"], found["b"]["flops_per_correct"]) == (None, None)
    assert found["c"]["energy_j_per_correct"] is None and found["c"]["flops_per_question"] == 2.0


def test_settings_are_checked() -> None:
    from cairn.config import load_config

    with pytest.raises(ConfigError, match="watts_per_core"):
        load_config(CostSettings, None, ["watts_per_core=0"])
    assert load_config(CostSettings, None, ["watts_per_core=null"]).watts_per_core is None
