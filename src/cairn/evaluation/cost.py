"""What an answer costs: FLOPs, tokens, seconds, memory and energy, counted in the same way for every system.

    questions ── one at a time, warm ── TimedEngine ── every batch: tokens, seconds ──┬─ latency, first token
                                            │                                         ├─ tokens/s, reading and writing
                                            └── asked again for one token: reading ───┘  apart
                 the same time ── EnergyMeter ── joules an answer

FLOPs are computed from token counts and the model's shape, never estimated from time, so that a stack of many short
calls and one long call are comparable on any machine. Every call counts, retries and mapped items included.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from pydantic import Field

from cairn.config import StrictModel
from cairn.engines.base import Engine, Generation, GenerationRequest
from cairn.engines.wrapped import WrappedEngine
from cairn.errors import InputError
from cairn.evaluation.energy import EnergyMeter

__all__ = [
    "AT_LEAST",
    "CostSettings",
    "EnergyMeter",
    "FlopsCounter",
    "TimedEngine",
    "cost_figures",
    "latency_ms",
    "measured_cost",
    "peak_memory_mib",
]

AT_LEAST = 20  # questions that are timed, however long they take


class CostSettings(StrictModel):
    """How the cost of an answer is measured.

    Args:
        questions: timed at most, evenly spread over the test; 0 measures nothing.
        seconds: of one system, after which no further question is asked once 20 were.
        warmup: questions answered untimed beforehand.
        watts_per_core: of a busy processor core: the assumption of an energy estimate where no counter can be read;
            null leaves energy `not measured` there. 7 W is the thermal design power per core of a four-core laptop
            chip of 28 W; many-core server chips have 4 to 7 W, desktop chips 8 to 16 W.
        processes: measure each system in a process of its own, so that memory is that of this system alone.
    """

    questions: int = Field(default=40, ge=0)
    seconds: float = Field(default=60.0, gt=0)
    warmup: int = Field(default=3, ge=0)
    watts_per_core: float | None = Field(default=7.0, gt=0)
    processes: bool = True


class FlopsCounter:
    """Counts the FLOPs of calls to one base with adapters.

    Args:
        config: configuration of the base (CairnConfig, or one that `models.accounting` knows).
        trained_parameters: adapter name -> number of its parameters, which are counted as run beside the base; 0 for
            an adapter that is merged into the weights and costs nothing.
    """

    def __init__(self, config: Any, trained_parameters: Mapping[str, int] | None = None) -> None:
        self.config = config
        self.trained_parameters = dict(trained_parameters or {})

    def call(self, adapter: str | None, prompt_tokens: int, new_tokens: int) -> int:
        """Returns the FLOPs of one call.

        Args:
            adapter: its name, None for the base.
            prompt_tokens: tokens read.
            new_tokens: tokens written.

        Raises:
            InputError: the adapter's size is not known, so that its FLOPs would silently be left out.
        """
        from cairn.models.accounting import forward_flops

        if adapter is not None and adapter not in self.trained_parameters:
            raise InputError(
                "size of an adapter is not known",
                value=adapter,
                allowed=", ".join(self.trained_parameters) or "none",
                next="give its parameter count to FlopsCounter",
            )
        extra = self.trained_parameters[adapter] if adapter is not None else 0
        return forward_flops(self.config, prompt_tokens, new_tokens, extra)


def latency_ms(run_one: Callable[[Any], Any], inputs: Sequence[Any], warmup: int = 2) -> dict[str, float]:
    """Times single questions one after the other, which is what a waiting person sees.

    Args:
        run_one: answers one input.
        inputs: at least one; the first `warmup` of them are also run beforehand, untimed.
        warmup: untimed runs.

    Returns:
        p50, p95 and n (milliseconds; number of timed runs).

    Raises:
        InputError: there is no input.
    """
    if not inputs:
        raise InputError("nothing to time", allowed="at least one input")
    for item in inputs[:warmup]:
        run_one(item)
    times = []
    for item in inputs:
        start = time.perf_counter()
        run_one(item)
        times.append(1000 * (time.perf_counter() - start))
    return _spread(times)


def peak_memory_mib() -> float:
    """Returns the most memory this process has held resident so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


@dataclass
class _Batch:
    """Requests that went to the engine together, what came back, and the seconds it took."""

    requests: list[GenerationRequest]
    made: list[Generation]
    seconds: float


class TimedEngine(WrappedEngine):
    """Passes requests on and notes every batch with its time.

    Args:
        engine: does the work.
        clock: returns seconds; replaced in tests.
    """

    name = "timed"

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.perf_counter) -> None:
        super().__init__(engine)
        self._clock = clock
        self.batches: list[_Batch] = []

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """Returns what the engine within writes."""
        start = self._clock()
        made = self.engine.generate(requests)
        self.batches.append(_Batch(list(requests), made, self._clock() - start))
        return made

    def reading_seconds(self, batch: _Batch) -> float:
        """Returns how long the requests of a batch take up to their first token: they are asked again for one."""
        again = [
            replace(request, sampling=request.sampling.model_copy(update={"max_new_tokens": 1, "stop": ()}),
                    constraint=None)
            for request in batch.requests
        ]  # fmt: skip
        start = self._clock()
        self.engine.generate(again)
        return min(self._clock() - start, batch.seconds)


def measured_cost(
    answer: Callable[[Sequence[Any]], Any],
    engine: TimedEngine,
    questions: Sequence[Any],
    settings: CostSettings,
    *,
    streams: bool = True,
    device: str = "cpu",
    meter: Callable[..., EnergyMeter] = EnergyMeter,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Any]:
    """Times one system, one question at a time, after a warm-up.

    Args:
        answer: answers a list of questions, here always of one.
        engine: what `answer` asks.
        questions: at least one; the first `AT_LEAST` of them are asked in any case, the others while
            `settings.seconds` last.
        settings: questions, seconds, warm-up and the assumption of an estimate.
        streams: the last call writes the answer, so that its first token can be shown; False for a vote, and where a
            rule comes last: there nothing can be shown before the end.
        device: where the engine runs.
        meter: makes the energy meter.
        clock: returns seconds; replaced in tests.

    Returns:
        latency_ms and first_token_ms (p50, p95, n), read_tokens_per_second, written_tokens_per_second (None if no
        second token was ever written), energy_j_per_answer, energy, energy_by, questions_timed.

    Raises:
        InputError: there is no question.
    """
    asked = list(questions[: settings.questions])
    if not asked:
        raise InputError("nothing to time", allowed="at least one question")
    for question in asked[: settings.warmup]:
        answer([question])
    times: list[float] = []
    batches: list[list[_Batch]] = []
    with meter(device=device, watts_per_core=settings.watts_per_core) as energy:
        began = clock()
        for question in asked:
            if len(times) >= AT_LEAST and clock() - began > settings.seconds:
                break
            engine.batches = []
            start = clock()
            answer([question])
            times.append(clock() - start)
            batches.append(engine.batches)
    first, read_tokens, read_seconds, later_tokens, later_seconds = [], 0, 0.0, 0, 0.0
    for took, mine in zip(times, batches, strict=True):
        reading = [engine.reading_seconds(batch) for batch in mine]
        first.append(took - (mine[-1].seconds - reading[-1]) if mine and streams else took)
        made = [one for batch in mine for one in batch.made]
        read_tokens += sum(one.prompt_tokens for one in made)
        later_tokens += sum(max(one.new_tokens - 1, 0) for one in made)
        read_seconds += sum(reading)
        later_seconds += sum(batch.seconds for batch in mine) - sum(reading)
    joules = energy.as_json()
    return {
        "questions_timed": len(times),
        "latency_ms": _spread([1000 * seconds for seconds in times]),
        "first_token_ms": _spread([1000 * seconds for seconds in first]),
        "read_tokens_per_second": read_tokens / read_seconds if read_seconds > 0 else None,
        "written_tokens_per_second": later_tokens / later_seconds if later_tokens and later_seconds > 0 else None,
        "energy_j_per_answer": None if joules["energy_j"] is None else joules["energy_j"] / len(times),
        "energy": joules["energy"],
        "energy_by": joules["energy_by"],
    }


def cost_figures(
    measured: Mapping[str, Mapping[str, Any]], accuracy: Mapping[str, float], flops: Mapping[str, float]
) -> dict[str, dict[str, Any]]:
    """Returns the cost of every system that was measured, with what depends on how often it is right.

    Args:
        measured: system -> `measured_cost`, and peak_memory_mib and memory where they are known.
        accuracy: system -> mean score.
        flops: system -> FLOPs per question.
    """
    found = {}
    for name, row in measured.items():
        joules = row["energy_j_per_answer"]
        right = accuracy[name]
        found[name] = {
            **row,
            "energy_j_per_correct": joules / right if joules is not None and right > 0 else None,
            "flops_per_question": flops[name],
            "flops_per_correct": flops[name] / right if right > 0 else None,
        }
    return found


def _spread(times_ms: Sequence[float]) -> dict[str, float]:
    p50, p95 = np.quantile(times_ms, [0.5, 0.95])
    return {"p50": float(p50), "p95": float(p95), "n": len(times_ms)}
