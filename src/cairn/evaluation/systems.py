"""Running the systems of a comparison over the same questions, all through the engine seam and all greedy.

    questions ─┬─ base           solved examples + question ─ first words of the output ─┐
               ├─ single_direct  one prompt ─ the output ────────────────────────────────┼─ list[Outcome] each
               ├─ single_chain   one prompt ─ last line of the chain ────────────────────┤
               └─ stack          Runner, every hand-off in a trace ──────────────────────┘ + list[Trace]

Each system gets the same questions in the same order. How right and wrong are told apart is one function for all.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from cairn import prompts
from cairn.engines.base import Engine, Generation, GenerationRequest, Sampling
from cairn.errors import InputError
from cairn.evaluation.cost import FlopsCounter
from cairn.evaluation.tasks.babi import exact_match
from cairn.stacks.runner import Runner
from cairn.stacks.spec import StackSpec
from cairn.stacks.trace import Trace

__all__ = [
    "Outcome",
    "Question",
    "Scorer",
    "chain_answer",
    "exact_score",
    "first_line",
    "first_words",
    "fit_few_shot",
    "make_outcome",
    "run_base",
    "run_single",
    "run_stack",
    "token_counter",
    "trace_stages",
    "unread_outcome",
]

Progress = Callable[[int, int], None]  # questions done, questions in all
_CHUNK = 256  # questions handed to the engine at once: enough to batch well, few enough to show progress


@dataclass(frozen=True)
class Question:
    """One test question.

    Args:
        id: unique in the test set.
        group: what it shares with questions that are not independent of it (its story).
        task: for the table by task.
        inputs: the input fields, name -> text.
        answer: gold.
        references: other right answers.
        stages: gold hand-offs, stage -> its gold output, or one per call, as in an examples file; empty if unknown.
    """

    id: str
    group: str
    task: str
    inputs: Mapping[str, str]
    answer: str
    references: tuple[str, ...] = ()
    stages: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one system answered to one question, and what it cost.

    Args:
        correct: wholly right: a score of 1.
        text: everything the system wrote for its final answer, before parsing.
        calls: model calls, retries and mapped items included.
        seconds: its share of the wall time.
        score: how right, 0 to 1; by default 1 where it is correct and 0 elsewhere.
    """

    id: str
    group: str
    task: str
    gold: str
    answer: str
    correct: bool
    text: str
    calls: int
    prompt_tokens: int
    new_tokens: int
    flops: int
    seconds: float
    score: float | None = None

    def __post_init__(self) -> None:
        if self.score is None:
            object.__setattr__(self, "score", float(self.correct))

    def as_json(self) -> dict[str, Any]:
        """Returns the fields as a dict."""
        return asdict(self)


Scorer = Callable[[str, Question], float]  # answer, question -> 0 to 1


def exact_score(answer: str, question: Question) -> float:
    """Returns 1.0 if the answer is the gold answer or one of its references, else 0.0."""
    return float(any(exact_match(answer, gold) for gold in (question.answer, *question.references)))


def run_single(
    engine: Engine,
    questions: Sequence[Question],
    prompt_of: Callable[[Question], str],
    flops: FlopsCounter,
    *,
    adapter: str | None,
    sampling: Sampling | Callable[[Question], Sampling],
    answer_of: Callable[[str], str] = prompts.parse_output,
    score: Scorer = exact_score,
    progress: Progress | None = None,
) -> list[Outcome]:
    """Answers every question with one call of one model.

    Args:
        engine: holds the base and the adapter.
        questions: the test set.
        prompt_of: question -> prompt; use `prompts.render` with the template of the training.
        flops: counter for this base.
        adapter: name of the adapter; None is the base.
        sampling: greedy for a comparison; the same for all systems but for max_new_tokens; may depend on the question.
        answer_of: output text -> answer (`chain_answer(names)` for a chain).
        score: how right an answer is.
        progress: told (done, all) after each chunk.

    Returns:
        One outcome per question, in order.
    """
    outcomes = []
    for chunk in _chunks(questions):
        requests = [
            GenerationRequest(prompt_of(question), adapter, sampling(question) if callable(sampling) else sampling)
            for question in chunk
        ]
        for question, made in zip(chunk, engine.generate(requests), strict=True):
            answer = answer_of(made.text)
            spent = flops.call(adapter, made.prompt_tokens, made.new_tokens)
            outcomes.append(make_outcome(question, answer, made.text, score, [made], spent))
        if progress:
            progress(len(outcomes), len(questions))
    return outcomes


def make_outcome(
    question: Question, answer: str, text: str, score: Scorer, made: Sequence[Generation], flops: int
) -> Outcome:
    """Returns the outcome of an answer that took these generations."""
    value = score(answer, question)
    return Outcome(
        question.id, question.group, question.task, question.answer, answer, value >= 1, text, len(made),
        sum(one.prompt_tokens for one in made), sum(one.new_tokens for one in made), flops,
        sum(one.seconds for one in made), value,
    )  # fmt: skip


def unread_outcome(question: Question) -> Outcome:
    """Returns the outcome of a question that is longer than the system's context: no answer, a score of 0."""
    return Outcome(question.id, question.group, question.task, question.answer, "", False, "", 0, 0, 0, 0, 0.0, 0.0)


def run_base(
    engine: Engine,
    questions: Sequence[Question],
    train: Sequence[Question],
    template: str,
    flops: FlopsCounter,
    *,
    shots: int = 4,
    sampling: Sampling | None = None,
    answer_of: Callable[[str], str] | None = None,
    seed: int = 0,
    score: Scorer = exact_score,
    progress: Progress | None = None,
) -> tuple[list[Outcome], dict[str, float]]:
    """Answers every question with the bare base, shown solved training examples of the same task.

    The output counts up to the end of its first line or sentence, because a base was never taught to stop.

    Args:
        train: where the examples come from; `fit_few_shot` says how they are chosen.
        template: of the direct comparator.
        shots: examples wanted; fewer where the context is too short for them.
        answer_of: output text -> answer; `first_words` by default.

    Returns:
        The outcomes, and the mean number of examples shown by task.
    """
    sampling = sampling or Sampling(max_new_tokens=8, stop=("\n",))
    shown: dict[str, list[int]] = {}
    room = (engine.capabilities.context_tokens or 2**31) - sampling.max_new_tokens
    counted = token_counter(engine)

    def prompt_of(question: Question) -> str:
        prompt, used = fit_few_shot(question, train, template, shots, room, counted, seed)
        shown.setdefault(question.task, []).append(used)
        return prompt

    outcomes = run_single(
        engine, questions, prompt_of, flops, adapter=None, sampling=sampling, answer_of=answer_of or first_words,
        score=score, progress=progress,
    )  # fmt: skip
    return outcomes, {task: sum(used) / len(used) for task, used in shown.items()}


def run_stack(
    runner: Runner,
    questions: Sequence[Question],
    flops: FlopsCounter,
    *,
    given: Sequence[Mapping[str, str]] | None = None,
    score: Scorer = exact_score,
    progress: Progress | None = None,
) -> tuple[list[Outcome], list[Trace]]:
    """Answers every question with a stack; every call counts, those too that the runner answered only once.

    Args:
        runner: holds the stack and the engine.
        flops: counter that knows the size of every adapter of the stack.
        given: of each question, values of stages that are not to run (see `Runner.iterate`).

    Returns:
        One outcome and one trace per question, in order.
    """
    outcomes: list[Outcome] = []
    traces: list[Trace] = []
    inputs, ids = [dict(question.inputs) for question in questions], [question.id for question in questions]
    for question, trace in zip(questions, runner.iterate(inputs, ids=ids, given=given), strict=True):
        totals, value = trace.totals, score(trace.answer, question)
        answer_stage = trace.stage(runner.spec.answer_stage)
        outcomes.append(
            Outcome(
                question.id, question.group, question.task, question.answer, trace.answer, value >= 1,
                answer_stage.calls[-1].output if answer_stage.calls else "", totals.calls, totals.prompt_tokens,
                totals.new_tokens, _trace_flops(trace, flops), totals.seconds, value,
            )
        )  # fmt: skip
        traces.append(trace)
        if progress:
            progress(len(outcomes), len(questions))
    return outcomes, traces


def _trace_flops(trace: Trace, flops: FlopsCounter) -> int:
    total = 0
    for record in trace.stages:
        for call in record.calls if record.by == "model" else []:
            tries = 1 + len(call.rejected)  # the tokens of all tries are summed: every try reads the same prompt
            total += tries * flops.call(record.adapter, call.prompt_tokens // tries, round(call.new_tokens / tries))
    return total


def trace_stages(spec: StackSpec, trace: Trace) -> list[dict[str, Any]]:
    """Returns a trace's hand-offs in the short form of the report: one prompt per stage, no token counts."""
    stages = []
    for record in trace.stages:
        stage = spec.stage(record.name)
        stages.append(
            {
                "name": record.name,
                "kind": record.kind,
                "by": record.by,
                "over": stage.over,
                "value": record.value,
                "prompt": record.calls[0].prompt if record.calls else "",
                "kept": None if stage.keep is None else [i for i, call in enumerate(record.calls) if call.kept],
                "calls": [
                    {"item": call.item, "state": call.state, "output": call.value, "violations": call.violations}
                    for call in record.calls
                ],
            }
        )
    return stages


def fit_few_shot(
    question: Question,
    train: Sequence[Question],
    template: str,
    shots: int,
    room: int,
    count_tokens: Callable[[str], int],
    seed: int = 0,
) -> tuple[str, int]:
    """Returns a prompt of solved examples and the open question that fits into `room` tokens.

    The examples are drawn by the seed from the shorter half of the task's training questions, with answers as varied
    as they come, the same ones for every question of a task; if they do not all fit, the last ones are left out.

    Returns:
        The prompt, and the number of examples in it.

    Raises:
        InputError: `train` has no question of the task.
    """
    pool = [solved for solved in train if solved.task == question.task]
    if not pool:
        raise InputError("no training question for the task", value=question.task, allowed="the tasks of the test set")
    pool.sort(key=lambda solved: sum(len(text) for text in solved.inputs.values()))
    pool = pool[: max(shots, (len(pool) + 1) // 2)]
    random.Random(f"{seed}-{question.task}").shuffle(pool)
    seen: set[str] = set()
    fresh = [solved for solved in pool if not (solved.answer in seen or seen.add(solved.answer))]
    chosen = (fresh + [solved for solved in pool if solved not in fresh])[:shots]
    while True:
        prompt = prompts.few_shot(template, [(solved.inputs, solved.answer) for solved in chosen], question.inputs)
        if not chosen or count_tokens(prompt) <= room:
            return prompt, len(chosen)  # a question that alone is too long is refused by the engine
        chosen.pop()


def chain_answer(names: Sequence[str]) -> Callable[[str], str]:
    """Returns a parser that takes the last named value out of a chain text; "" if the chain ended before it."""

    def answer_of(text: str) -> str:
        return prompts.parse_chain(text, names).get(names[-1], "")

    return answer_of


def first_words(text: str) -> str:
    """Returns the output up to the end of its first line or sentence."""
    return re.split(r"[\n.?!]", prompts.parse_output(text), maxsplit=1)[0].strip()


def first_line(text: str) -> str:
    """Returns the output up to the end of its first line."""
    return prompts.parse_output(text).split("\n")[0].strip()


def token_counter(engine: Engine) -> Callable[[str], int]:
    """Returns a function that counts the prompt tokens of a text; bytes, an upper bound, if it cannot say."""
    counted = getattr(engine, "count_tokens", None)
    return counted if counted is not None else lambda text: len(text.encode()) + 1


def _chunks(questions: Sequence[Question]) -> Iterator[Sequence[Question]]:
    for start in range(0, len(questions), _CHUNK):
        yield questions[start : start + _CHUNK]
