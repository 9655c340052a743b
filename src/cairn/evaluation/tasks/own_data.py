"""Your own data as a task: two files in the form of a stack's examples, one to train from and one to test with.

    {"id": "7", "inputs": {...}, "stages": {...}, "answer": "kitchen",
     "task": "easy", "group": "story 3", "references": ["the kitchen"]}        the last three if they are there

The same rows are how every task's questions are kept in a run folder: `question_row` and `row_question`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cairn.config import StrictModel
from cairn.errors import DataError
from cairn.evaluation.systems import Question
from cairn.evaluation.tasks.babi import exact_match
from cairn.evaluation.tasks.registry import TaskData
from cairn.evaluation.textfiles import read_rows
from cairn.files import sha256_file

__all__ = ["TASK", "OwnData", "OwnDataOptions", "question_row", "row_question"]

_FORM = '{"id": ..., "inputs": {...}, "answer": "..."}'


class OwnDataOptions(StrictModel):
    """Options of the task `examples`.

    Args:
        train: file of examples with gold stages, relative to the task's folder.
        test: file of questions; gold stages may be there.
    """

    train: str = "train.jsonl"
    test: str = "test.jsonl"


class OwnData:
    """Two files of examples; an answer is right or wrong (see `tasks.babi.exact_match`)."""

    name = "examples"
    Options = OwnDataOptions

    def load(self, folder: Path, options: OwnDataOptions) -> TaskData:
        """Reads both files, plain or packed.

        Raises:
            DataError: a file is missing or a row is no question, or a test id is used twice.
        """
        files = {split: folder / getattr(options, split) for split in ("train", "test")}
        for split, file in files.items():
            if not file.is_file():
                raise DataError(f"no such {split} file", value=str(file), next=f"check `{split}`, or the task's folder")
        train = [dict(row) for row in read_rows(files["train"])]
        test = [row_question(row, f"{files['test']}, row {n}") for n, row in enumerate(read_rows(files["test"]), 1)]
        if not train or not test:
            raise DataError("a file is empty", value=str(files["test"] if train else files["train"]))
        facts = {
            "files": {file.name: sha256_file(file) for file in files.values()},
            "counts": {"train": len(train), "test": len(test)},
        }
        return TaskData(train, test, facts)

    def score(self, answer: str, question: Question) -> float:
        """Returns 1.0 if the answer is the gold answer or one of its references, else 0.0."""
        return float(any(exact_match(answer, gold) for gold in (question.answer, *question.references)))

    def measures(self, answers: Sequence[str], questions: Sequence[Question]) -> dict[str, float]:
        """Returns nothing: the score says it all."""
        return {}

    def groups(self, question: Question) -> str:
        """Returns the question's own task."""
        return question.task


TASK = OwnData()


def question_row(question: Question) -> dict[str, Any]:
    """Returns a question as a row of a file; `row_question` gives it back."""
    row: dict[str, Any] = {"id": question.id, "task": question.task, "group": question.group}
    row["inputs"] = dict(question.inputs)
    if question.stages:
        row["stages"] = {k: list(v) if isinstance(v, tuple) else v for k, v in question.stages.items()}
    row["answer"] = question.answer
    if question.references:
        row["references"] = list(question.references)
    return row


def row_question(row: Mapping[str, Any], where: str) -> Question:
    """Returns the question in a row.

    Args:
        row: as above; `group` is the row's own id, and `task` "test", where they are not given.
        where: for the error.

    Raises:
        DataError: it is none.
    """
    inputs, answer, name = row.get("inputs"), row.get("answer"), str(row.get("id", where))
    stages, references = ({} if row.get("stages") is None else row["stages"]), row.get("references", [])
    texts = isinstance(inputs, dict) and bool(inputs) and all(isinstance(text, str) for text in inputs.values())
    if not texts or not isinstance(answer, str) or not isinstance(stages, dict) or not isinstance(references, list):
        raise DataError(f"{where}: no question", value=row, allowed=_FORM)
    gold = {key: tuple(value) if isinstance(value, list) else value for key, value in stages.items()}
    group, task = str(row.get("group", name)), str(row.get("task", "test"))
    return Question(name, group, task, inputs, answer, tuple(str(text) for text in references), gold)
