"""What single models can do with the FLOPs of a stack: vote over several samples, or write together.

    vote       one adapter, k calls: the greedy answer and k - 1 samples ── the answer that most of them gave
    ensemble   m adapters, one text: each token chosen from the mean of their distributions

`fair_count` says how many calls or members the FLOPs of the stack pay for, rounded up: the comparator never has less.
Every sample reads its prompt anew in the count, as every call of a stack does.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace

from cairn import prompts
from cairn.engines.base import Engine, GenerationRequest, Sampling, require
from cairn.evaluation.cost import FlopsCounter
from cairn.evaluation.systems import Outcome, Question, Scorer, exact_score, make_outcome
from cairn.evaluation.tasks.babi import normalise_answer

__all__ = ["fair_count", "majority", "run_ensemble", "run_vote"]


def fair_count(stack_flops: float, single_flops: float, least: int = 1, most: int | None = None) -> int:
    """Returns how many calls of a single model cost at least as many FLOPs as the stack.

    Args:
        stack_flops: per question.
        single_flops: per question, above 0.
        least, most: bounds.
    """
    count = max(least, math.ceil(stack_flops / single_flops - 1e-9))
    return count if most is None else min(count, most)


def majority(answers: Sequence[str]) -> int:
    """Returns the place of the first answer of those given most often, compared as `normalise_answer` writes them.

    Of answers given equally often the one that came first wins; an empty answer wins only if all are empty.
    """
    counts: dict[str, int] = {}
    for answer in answers:
        key = normalise_answer(answer)
        counts[key] = counts.get(key, 0) + (1 if key else 0)
    best = max(counts, key=lambda key: counts[key])
    return next(place for place, answer in enumerate(answers) if normalise_answer(answer) == best)


def run_vote(
    engine: Engine,
    questions: Sequence[Question],
    prompt_of: Callable[[Question], str],
    flops: FlopsCounter,
    *,
    adapter: str | None,
    samples: int,
    temperature: float,
    sampling: Sampling | Callable[[Question], Sampling],
    answer_of: Callable[[str], str] = prompts.parse_output,
    score: Scorer = exact_score,
    seed: int = 0,
) -> list[Outcome]:
    """Answers every question with the answer that most of several samples of one model give.

    Args:
        samples: calls a question: the first is greedy, the others are drawn.
        temperature: of those drawn.
        sampling: of the greedy call.
        seed: of the samples; each has one of its own, made from the question's id and its number.
        (others): as in `systems.run_single`.
    """
    requests = []
    for question in questions:
        greedy = sampling(question) if callable(sampling) else sampling
        prompt = prompt_of(question)
        requests.append(GenerationRequest(prompt, adapter, greedy))
        for number in range(1, samples):
            drawn = {"temperature": temperature, "seed": zlib.crc32(f"{seed}/{question.id}/{number}".encode())}
            requests.append(GenerationRequest(prompt, adapter, greedy.model_copy(update=drawn)))
    made = engine.generate(requests)
    outcomes = []
    for place, question in enumerate(questions):
        mine = made[place * samples : (place + 1) * samples]
        answers = [answer_of(one.text) for one in mine]
        winner = majority(answers)
        spent = sum(flops.call(adapter, one.prompt_tokens, one.new_tokens) for one in mine)
        outcomes.append(make_outcome(question, answers[winner], mine[winner].text, score, mine, spent))
    return outcomes


def run_ensemble(
    engine: Engine,
    questions: Sequence[Question],
    prompt_of: Callable[[Question], str],
    flops: FlopsCounter,
    *,
    members: Sequence[str],
    sampling: Sampling | Callable[[Question], Sampling],
    answer_of: Callable[[str], str] = prompts.parse_output,
    score: Scorer = exact_score,
) -> list[Outcome]:
    """Answers every question with one text that several adapters write together; every member counts as a call.

    Args:
        members: names of adapters.
        (others): as in `systems.run_single`.

    Raises:
        EngineError: the engine cannot average adapters.
    """
    require(engine, "ensembles")
    requests = [
        GenerationRequest(prompt_of(one), None, sampling(one) if callable(sampling) else sampling, None, tuple(members))
        for one in questions
    ]
    outcomes = []
    for question, made in zip(questions, engine.generate(requests), strict=True):
        spent = sum(flops.call(name, made.prompt_tokens, made.new_tokens) for name in members)
        parts = [made, *[replace(made, seconds=0.0)] * (len(members) - 1)]  # its time is that of all members
        outcomes.append(make_outcome(question, answer_of(made.text), made.text, score, parts, spent))
    return outcomes
