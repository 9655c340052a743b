"""Four systems over the same questions: the stack, two single adapters, and the bare base.

    OUT/stack ── one engine, all adapters ──> base, single_direct, single_chain, stack
                                                 │ task by task
                                                 ▼
                                    OUT/answers/SYSTEM-TASK.jsonl     a killed run goes on after what is there
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cairn.engines.base import Engine
from cairn.evaluation.systems import Question
from cairn.stacks.spec import StackSpec
from cairn.verbs.comparison.answers import Answer, Answered, Rooms, Systems, cached_answers
from cairn.verbs.demo_data import DemoConfig

__all__ = ["SYSTEMS", "answer_all"]

SYSTEMS = ("base", "single_direct", "single_chain", "stack")
# Tokens a chain may write beyond the length of its prompt. It quotes what is kept about the question and about the
# link: two parts of one story, rarely more than the story together. A right one needs at most 118; a longer one goes in
# circles.
_CHAIN_EXTRA = 160


def answer_all(
    system: str,
    questions: Sequence[Question],
    train: Sequence[Question],
    spec: StackSpec,
    settings: DemoConfig,
    folder: Path,
    open_engine: Callable[[], Engine],
    sizes: Mapping[str, int],
) -> list[Answered]:
    """Lets one system answer all questions, task by task; what an earlier session finished is read.

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
        StorageError: the folder cannot be written.
    """

    def open_system() -> Answer:
        rooms = Rooms(spec.stage(spec.answer_stage).sampling.max_new_tokens, lambda read: read + _CHAIN_EXTRA)
        systems = Systems(spec, open_engine(), sizes, rooms, train, shots=settings.shots, seed=settings.seed)
        return getattr(systems, system.removeprefix("single_"))

    answers: list[Answered] = []
    for task in dict.fromkeys(question.task for question in questions):
        asked = [question for question in questions if question.task == task]
        made_with = {"system": system, "demo": settings.model_dump(mode="json")}
        file = folder / f"{system}-{task}.jsonl"
        answers += cached_answers(file, made_with, asked, open_system, f"eval {system} {task}", stages=True)
    return answers
