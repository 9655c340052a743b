"""Four systems over the same questions: the stack, two single adapters, and the bare base.

    OUT/stack ── one engine, all adapters ──> base, single_direct, single_chain, stack
                                                 │ task by task
                                                 ▼
                                    OUT/answers/SYSTEM-TASK.jsonl     whole or not there: a killed run goes on after it
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cairn import prompts
from cairn.engines.base import Engine, Sampling
from cairn.evaluation.cost import FlopsCounter
from cairn.evaluation.systems import (
    Outcome,
    Question,
    chain_answer,
    run_base,
    run_single,
    run_stack,
    token_counter,
    trace_stages,
)
from cairn.files import write_text
from cairn.progress import Progress
from cairn.runs import read_jsonl
from cairn.stacks.runner import Runner
from cairn.stacks.spec import StackSpec, check_artifacts
from cairn.verbs.demo_data import DemoConfig
from cairn.verbs.stack_folder import comparator_folder

__all__ = ["SYSTEMS", "Answers", "answer_all", "open_systems"]

SYSTEMS = ("base", "single_direct", "single_chain", "stack")
_WAVE = 256
_CHAIN_EXTRA = 160  # tokens a chain may write beyond the length of its prompt; a right one needs at most 118


@dataclass(frozen=True)
class Answers:
    """What one system answered.

    Args:
        outcomes: one per question, in order.
        stages: hand-offs of each question in the report's form; empty but for the stack.
        facts: what the result should say of it (examples shown, questions whose chain had less room).
    """

    outcomes: list[Outcome]
    stages: list[list[dict[str, Any]]]
    facts: dict[str, Any]


def open_systems(spec: StackSpec, *, device: str = "auto", dtype: str = "auto") -> Engine:
    """Loads the base of a trained stack with the stack's adapters and its comparators.

    Raises:
        CheckpointError, TokenizerError, AdapterError: see `TorchEngine`.
        ConfigError: the stack's adapters are missing.
    """
    from cairn.engines.torch_engine import TorchEngine

    adapters = dict(check_artifacts(spec))
    for name in SYSTEMS:
        folder = comparator_folder(spec.folder or Path(), name)
        if folder.is_dir():
            adapters[name] = folder
    return TorchEngine(spec.base_place, adapters, device=device, dtype=dtype)


def answer_all(
    system: str,
    questions: Sequence[Question],
    train: Sequence[Question],
    spec: StackSpec,
    settings: DemoConfig,
    folder: Path,
    open_engine: Callable[[], Engine],
    sizes: Mapping[str, int],
) -> Answers:
    """Lets one system answer all questions, task by task; tasks that an earlier session finished are read.

    Args:
        system: one of SYSTEMS.
        questions: the test set, in order of task.
        train: where the bare base's solved examples come from.
        spec: the trained stack.
        settings: of the demo.
        folder: of the answers.
        open_engine: called only if something is left to answer.
        sizes: adapter or comparator -> trained parameters.

    Raises:
        InputError: a question is longer than the base's context.
        StorageError: the folder cannot be written.
    """
    answers = Answers([], [], {})
    with Progress(f"eval {system}", total=len(questions), unit="question") as progress:
        for task in dict.fromkeys(question.task for question in questions):
            asked = [question for question in questions if question.task == task]
            file = folder / f"{system}-{task}.jsonl"
            rows = read_jsonl(file) if file.exists() else []
            if len(rows) != len(asked) + 1:
                engine = open_engine()
                flops = FlopsCounter(engine.config, sizes)
                rows = _answer(system, asked, train, spec, settings, engine, flops, progress)
                write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            else:
                progress.advance(len(asked))
            answers.facts[task] = rows[0]["facts"]
            answers.outcomes.extend(Outcome(**row["outcome"]) for row in rows[1:])
            answers.stages.extend(row["stages"] for row in rows[1:])
    return answers


def _answer(
    system: str,
    questions: Sequence[Question],
    train: Sequence[Question],
    spec: StackSpec,
    settings: DemoConfig,
    engine: Engine,
    flops: FlopsCounter,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Returns the rows of one file: its facts first, then an outcome with its hand-offs per question."""
    start = progress.done

    def moved(done: int, _: int) -> None:
        progress.advance(start + done - progress.done)

    stages: list[list[dict[str, Any]]] = [[] for _ in questions]
    facts: Any = None
    if system == "stack":
        runner = Runner(spec, engine, wave=_WAVE)
        outcomes, traces = run_stack(runner, questions, flops, progress=moved)
        stages = [trace_stages(spec, trace) for trace in traces]
        facts = sum(bool(trace.violations) for trace in traces)
    elif system == "base":
        outcomes, shown = run_base(
            engine, questions, train, spec.comparator_prompt, flops, shots=settings.shots, seed=settings.seed,
            progress=moved,
        )  # fmt: skip
        facts = shown[questions[0].task]
    elif system == "single_direct":
        sampling = spec.stage(spec.answer_stage).sampling
        outcomes = run_single(
            engine, questions, _prompt_of(spec), flops, adapter=system, sampling=sampling, progress=moved
        )
    else:
        outcomes, facts = _run_chain(system, questions, spec, engine, flops, moved)
    head = {"system": system, "facts": facts}
    return [head, *({"outcome": o.as_json(), "stages": s} for o, s in zip(outcomes, stages, strict=True))]


def _prompt_of(spec: StackSpec) -> Callable[[Question], str]:
    return lambda question: prompts.render(spec.comparator_prompt, question.inputs)


def _run_chain(
    system: str,
    questions: Sequence[Question],
    spec: StackSpec,
    engine: Engine,
    flops: FlopsCounter,
    moved: Callable[[int, int], None],
) -> tuple[list[Outcome], int]:
    """Lets the chain comparator write as much as a right chain needs, or as its context holds.

    A chain quotes what is kept about the question and about the link: two parts of one story, rarely more than the
    story together. So the length of its prompt and some words is enough; a longer one goes in circles.

    Returns:
        The outcomes in order, and for how many questions the context held less than that.
    """
    prompt_of, answer_of = _prompt_of(spec), chain_answer(spec.chain_stages)
    count, context = token_counter(engine), engine.capabilities.context_tokens
    room, short = {}, 0
    for question in questions:
        read = count(prompt_of(question))
        wanted = read + _CHAIN_EXTRA
        room[question.id] = wanted if context is None else min(wanted, max(context - read, 1))
        short += room[question.id] < wanted
    outcomes = run_single(
        engine, questions, prompt_of, flops, adapter=system, answer_of=answer_of, progress=moved,
        sampling=lambda question: Sampling(max_new_tokens=room[question.id]),
    )  # fmt: skip
    return outcomes, short
