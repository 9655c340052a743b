"""From a question file to `Question`s: the one place that knows which task is read how.

    babi       the standard bAbI text format; fields story and question
    examples   a stack's own example file: {"id", "inputs", "answer"} a line, and if they are there "task" and "group"
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cairn.errors import DataError, InputError, did_you_mean
from cairn.evaluation.systems import Question
from cairn.evaluation.tasks.babi import BabiQuestion, read_babi
from cairn.evaluation.textfiles import read_rows

__all__ = ["TASKS", "babi_question", "read_questions", "story_join"]

TASKS = ("babi", "examples")


def read_questions(task: str, path: str | Path, *, join: str = "\n") -> list[Question]:
    """Reads a question file.

    Args:
        task: one of `TASKS`.
        path: the file, packed or plain.
        join: put between the sentences of a bAbI story.

    Raises:
        InputError: there is no such task.
        DataError: the file cannot be read, or a line is wrong (with its number).
    """
    if task == "babi":
        return [babi_question(question, join) for question in read_babi(path)]
    if task == "examples":
        return _examples(Path(path))
    raise InputError(f"no such task{did_you_mean(task, TASKS)}", value=task, allowed=", ".join(TASKS))


def babi_question(question: BabiQuestion, join: str = "\n") -> Question:
    """Returns a bAbI question as the fields `story` and `question`; its story is what makes it dependent on others."""
    inputs = {"story": join.join(question.sentences), "question": question.question}
    return Question(question.id, question.story_id, question.task, inputs, question.answer)


def _examples(path: Path) -> list[Question]:
    questions: list[Question] = []
    for number, row in enumerate(read_rows(path), start=1):
        inputs, answer = row.get("inputs"), row.get("answer")
        if not _texts(inputs) or not isinstance(answer, str):
            raise DataError(
                f"{path}, row {number}: no question", value=row, allowed='{"id": ..., "inputs": {...}, "answer": "..."}'
            )
        name = str(row.get("id", number))
        group, task = str(row.get("group", name)), str(row.get("task", path.name.split(".")[0]))
        questions.append(Question(name, group, task, inputs, answer))
    if not questions:
        raise DataError("no question found", value=str(path), allowed="one JSON object a line")
    return questions


def _texts(inputs: object) -> bool:
    return isinstance(inputs, dict) and bool(inputs) and all(isinstance(value, str) for value in inputs.values())


def story_join(splits: Sequence[str]) -> str:
    """Returns what stands between the sentences of a story, given how a stack's map stages cut it."""
    return " " if "sentences" in splits else "\n"
