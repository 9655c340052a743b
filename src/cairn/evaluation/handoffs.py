"""What if a stage had been handed something else? Values that stand in for stages that then do not run.

    empty      every hand-off says nothing           what is left is a single model with one stage's prompt
    shuffled   the stack's own, of another question   right in form, foreign in content
    gold       what the data says                     the room that is left above the stack

They stand in for every stage before the last one that a model answers; that one runs, and so do rules after it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from cairn.evaluation.systems import Question
from cairn.stacks.spec import StackSpec

__all__ = ["empty_handoffs", "handed_on", "shuffled_handoffs"]

Given = dict[str, dict[str, str]]  # question id -> stage -> value


def handed_on(spec: StackSpec) -> list[str]:
    """Returns the stages whose values are replaced: those before the last one that a model answers."""
    places = [place for place, stage in enumerate(spec.stages) if stage.by == "model"]
    return [stage.name for stage in spec.stages[: places[-1]]] if places else []


def empty_handoffs(spec: StackSpec, questions: Sequence[Question]) -> Given:
    """Returns the `empty` text of every stage, for every question."""
    values = {name: spec.stage(name).empty for name in handed_on(spec)}
    return {question.id: dict(values) for question in questions}


def shuffled_handoffs(
    spec: StackSpec, questions: Sequence[Question], made: Mapping[str, Mapping[str, str]], seed: int
) -> Given:
    """Returns for every question what the stack handed on for another one, all hand-offs from the same.

    Questions change places within their task, where the form of a hand-off is the same; a question that is alone in
    its task, with any others that are alone. One that is the only one left keeps its own.

    Args:
        made: question id -> stage -> value, as the stack handed it on.
        seed: of the shuffle.
    """
    names = handed_on(spec)
    by_task: dict[str, list[str]] = {}
    for question in questions:
        by_task.setdefault(question.task, []).append(question.id)
    lonely = [ids[0] for ids in by_task.values() if len(ids) == 1]
    circles = [ids for ids in by_task.values() if len(ids) > 1] + ([lonely] if lonely else [])
    draw = random.Random(f"shuffled-{seed}")
    given: Given = {}
    for ids in circles:
        order = ids[:]
        draw.shuffle(order)
        for place, name in enumerate(order):  # one circle: nobody keeps their own
            donor = order[(place + 1) % len(order)]
            given[name] = {stage: made[donor][stage] for stage in names}
    return given
