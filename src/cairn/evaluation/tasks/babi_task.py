"""All 20 bAbI tasks as a task of experiments: rows to train from, with gold hand-offs, and test questions.

    FOLDER/qa3_train.txt.xz ── the first questions ──> rules of babi_rounds ──> rows with ask1, read1, ... answer
    FOLDER/qa3_test.txt.xz  ── the first questions ──> the same rules       ──> Questions, hand-offs for blame only

One stack answers all tasks; nothing tells it which task a question is from. recipes/babi.yaml has that stack.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from cairn.config import StrictModel
from cairn.errors import DataError
from cairn.evaluation.systems import Question
from cairn.evaluation.tasks.babi import BabiQuestion, exact_match, read_babi
from cairn.evaluation.tasks.babi_rounds import STORY_JOIN, check_rounds, gold_rounds, round_stages
from cairn.evaluation.tasks.registry import TaskData
from cairn.files import sha256_file

__all__ = ["SOLVED", "TASK", "Babi", "BabiOptions"]

SOLVED = 0.95  # the field's bar for a solved task (arXiv 1502.05698, section 4)

TaskNumber = Annotated[int, Field(ge=1, le=20)]
Count = Annotated[int, Field(ge=1, le=10_000)]


class BabiOptions(StrictModel):
    """Options of the task `babi`.

    Args:
        tasks: numbers of bAbI tasks.
        train_questions: training questions of each task, the first of its file.
        more_questions: task number -> training questions of that task instead.
        test_questions: test questions of each task.
        test_split: "test" takes the first questions of the test files; "train_end" the last ones of the training
            files, none of them trained on: for choosing settings without a look at the test files.
        max_sentences: longest story of a training question; None has no limit. Test questions have none either.
    """

    tasks: list[TaskNumber] = Field(default=list(range(1, 21)), min_length=1)
    train_questions: Count = 2000
    more_questions: dict[TaskNumber, Count] = {}
    test_questions: Annotated[int, Field(ge=1, le=1000)] = 1000
    test_split: Literal["test", "train_end"] = "test"
    max_sentences: int | None = Field(default=None, ge=2)

    @field_validator("tasks")
    @classmethod
    def _distinct(cls, tasks: list[int]) -> list[int]:
        if len(set(tasks)) != len(tasks):
            raise ValueError("tasks must be distinct")
        return sorted(tasks)

    @model_validator(mode="after")
    def _of_these_tasks(self) -> BabiOptions:
        strange = sorted(set(self.more_questions) - set(self.tasks))
        if strange:
            allowed = ", ".join(map(str, self.tasks))
            raise ValueError(f"more_questions: {', '.join(map(str, strange))} not among tasks, allowed: {allowed}")
        return self


class Babi:
    """bAbI question answering; an answer is right or wrong, a list of things right in any order."""

    name = "babi"
    Options = BabiOptions

    def load(self, folder: Path, options: BabiOptions) -> TaskData:
        """Reads the files of the tasks asked for, plain or packed.

        Raises:
            DataError: a file is missing, damaged or has too few questions; or the rules of the gold hand-offs do not
                give its answer to a question.
        """
        train: list[dict[str, Any]] = []
        test: list[Question] = []
        files: dict[str, str] = {}
        counts: dict[str, dict[str, int]] = {}
        for number in options.tasks:
            place = _file(folder, number, "train")
            files[place.name] = sha256_file(place)
            found = read_babi(place)
            chosen, too_long = _training(found, options.more_questions.get(number, options.train_questions), options)
            if options.test_split == "test":
                other = _file(folder, number, "test")
                files[other.name] = sha256_file(other)
                asked = read_babi(other)[: options.test_questions]
            else:
                asked = _untouched(found, chosen, options.test_questions)
            _enough(place if options.test_split != "test" else other, asked, options.test_questions, "test_questions")
            train += [_row(question) for question in chosen]
            test += [_question(question) for question in asked]
            counts[f"qa{number}"] = {"train": len(chosen), "test": len(asked), "train_left_out_as_too_long": too_long}
        facts = {
            "files": files,
            "licence": "BSD-3-Clause (facebookarchive/bAbI-tasks generator)",
            "counts": counts,
            "test_split": options.test_split,
            "hand_offs": "derived by the rules of evaluation/tasks/babi_rounds.py from story and question, and refused "
            "where their answer is not the file's; no rule runs when a question is answered",
            "answers": "lists of things in the order in which they were taken, in training; scored in any order",
        }
        return TaskData(train, test, facts)

    def score(self, answer: str, question: Question) -> float:
        """Returns 1.0 if the answer is the gold answer, lists in any order, else 0.0."""
        return float(exact_match(answer, question.answer))

    def measures(self, answers: Sequence[str], questions: Sequence[Question]) -> dict[str, float]:
        """Returns the mean of the tasks' accuracies, and the share of tasks that are solved: at least 0.95 right."""
        right: dict[str, list[float]] = {}
        for answer, question in zip(answers, questions, strict=True):
            right.setdefault(question.task, []).append(self.score(answer, question))
        means = [sum(scores) / len(scores) for scores in right.values()]
        if not means:
            return {}
        return {"macro_accuracy": sum(means) / len(means), "tasks_solved": sum(m >= SOLVED for m in means) / len(means)}

    def groups(self, question: Question) -> str:
        """Returns the name of the bAbI task, such as "qa3"."""
        return question.task


TASK = Babi()


def _file(folder: Path, number: int, split: str) -> Path:
    names = [f"qa{number}_{split}.txt{packed}" for packed in ("", ".xz", ".gz")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise DataError(
        f"no {split} file of bAbI task {number}", value=str(folder), allowed=" or ".join(names),
        next="give the folder of the bAbI files, or fewer tasks",
    )  # fmt: skip


def _training(found: Sequence[BabiQuestion], wanted: int, options: BabiOptions) -> tuple[list[BabiQuestion], int]:
    """Returns the first questions that are short enough, and how many longer ones were passed over for them."""
    chosen: list[BabiQuestion] = []
    too_long = 0
    for question in found:
        if len(chosen) == wanted:
            break
        if options.max_sentences is not None and len(question.sentences) > options.max_sentences:
            too_long += 1
        else:
            chosen.append(question)
    _enough(Path(f"{found[0].task}_train"), chosen, wanted, "train_questions")
    return chosen, too_long


def _untouched(found: Sequence[BabiQuestion], chosen: Sequence[BabiQuestion], wanted: int) -> list[BabiQuestion]:
    """Returns the last questions, as far as no story of theirs is trained on."""
    used = {question.story_id for question in chosen}
    return [question for question in found[-wanted:] if question.story_id not in used]


def _enough(place: Path, found: Sequence[BabiQuestion], wanted: int, option: str) -> None:
    if len(found) < wanted:
        raise DataError(
            f"{place} has too few questions for this", value=len(found), allowed=f"at least {option} = {wanted}",
            next=f"lower {option}",
        )  # fmt: skip


def _gold(question: BabiQuestion) -> dict[str, Any]:
    gold = gold_rounds(question.sentences, question.question)
    check_rounds(gold, question)
    return round_stages(gold)


def _inputs(question: BabiQuestion) -> dict[str, str]:
    return {"story": STORY_JOIN.join(question.sentences), "question": question.question}


def _row(question: BabiQuestion) -> dict[str, Any]:
    stages = _gold(question)
    return {
        "id": f"train-{question.id}",
        "task": question.task,
        "group": f"train-{question.story_id}",
        "inputs": _inputs(question),
        "stages": stages,
        "answer": stages["answer"],
    }


def _question(question: BabiQuestion) -> Question:
    stages: Mapping[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in _gold(question).items()
    }
    return Question(question.id, question.story_id, question.task, _inputs(question), question.answer, stages=stages)
