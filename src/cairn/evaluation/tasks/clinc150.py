"""CLINC150: what a user wants, one of 150 intents in 10 domains, or nothing that the assistant can do (out of scope).

    command ─┬─> scope: is it anything that the assistant can do? yes or no
             ├─> domain: one of 10, or oos
             ├─> intent: one of 150, or oos
             └─> decision (rule): the intent, unless scope says no

Intents are written as words ("report lost card"); `oos` stays as it is. 15,100 commands to train from, 3,100 to
validate, 5,500 to test (1,000 of them out of scope). Licence: CC BY 3.0.

Only 100 of the training commands are out of scope, so a classifier hardly learns what that means. `outliers` adds
questions of another data set to the training rows as `oos`, for every system alike; the result says how many.

Source: Larson et al., "An Evaluation Dataset for Intent Classification and Out-of-Scope Prediction" (arXiv 1909.02027),
the version named data_full.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from cairn.config import StrictModel
from cairn.errors import DataError
from cairn.evaluation.systems import Question
from cairn.evaluation.tasks.clinc150_intents import OOS, domain_of
from cairn.evaluation.tasks.registry import TaskData
from cairn.evaluation.tasks.split_files import file_hashes, find_split, read_split

__all__ = ["STAGES", "TASK", "Clinc150", "Clinc150Options", "clinc150_stages"]

STAGES = ("scope", "domain", "intent", "decision")

_FIELDS: dict[str, type | tuple[type, ...]] = {"text": str, "intent": str, "domain": str}


class Clinc150Options(StrictModel):
    """Options of the task `clinc150`.

    Args:
        stages: the hand-offs whose gold the rows hold: those of the stack.
        outliers: JSON lines with questions (field `question`, of which the first line counts) that no assistant's
            intent answers, relative to the task's folder; as many as `outlier_count` become training rows out of
            scope, in small letters and without their mark at the end, as the commands are. None adds none.
        outlier_tasks: take only rows whose field `task` is one of these; None takes all.
        outlier_count: how many, drawn with `seed`, none longer than the longest command.
        train_questions, test_questions: at most so many, drawn with `seed`; None takes all.
        test_split: the file to test with; "valid" while a stack is being designed.
        seed: of the draws.
    """

    stages: list[Literal["scope", "domain", "intent", "decision"]] = Field(
        default=["scope", "intent", "decision"], min_length=1
    )
    outliers: str | None = None
    outlier_tasks: list[str] | None = None
    outlier_count: int = Field(default=3000, ge=1)
    train_questions: int | None = Field(default=None, ge=1)
    test_questions: int | None = Field(default=None, ge=1)
    test_split: Literal["test", "valid"] = "test"
    seed: int = 0


class Clinc150:
    """Commands to intents. An answer is right if it names the gold intent, with spaces or underscores, or `oos`."""

    name = "clinc150"
    Options = Clinc150Options

    def load(self, folder: Path, options: Clinc150Options) -> TaskData:
        """Reads clinc150_train.jsonl and clinc150_test.jsonl (or valid), plain or packed.

        Raises:
            DataError: a file is missing or damaged, or names an intent that CLINC150 does not have.
        """
        paths = [find_split(folder, f"clinc150_{split}.jsonl") for split in ("train", options.test_split)]
        rows, asked = (read_split(path, _FIELDS) for path in paths)
        known = {row["text"].casefold() for row in asked}
        shared = sum(row["text"].casefold() in known for row in rows)
        kept = [(n, row) for n, row in enumerate(rows, 1) if row["text"].casefold() not in known]
        train = [_row(row, f"train-{n}", options) for n, row in _drawn(kept, options.train_questions, options.seed)]
        outliers = _outliers(folder, options, rows, known) if options.outliers is not None else []
        train += [_row(row, f"outlier-{n}", options) for n, row in enumerate(outliers, 1)]
        paths += [find_split(folder, options.outliers)] if options.outliers is not None else []
        questions = _drawn(list(enumerate(asked, 1)), options.test_questions, options.seed)
        test = [_question(row, f"{options.test_split}-{n}", options) for n, row in questions]
        facts = {
            "files": file_hashes(paths),
            "licence": "CC BY 3.0",
            "counts": {
                "train": len(train),
                "test": len(test),
                "train out of scope": sum(row["answer"] == OOS for row in train),
                "of these from outliers": len(outliers),
                "test out of scope": sum(question.answer == OOS for question in test),
            },
            "left_out": {"training commands that are test commands too": shared},
        }
        return TaskData(train, test, facts)

    def score(self, answer: str, question: Question) -> float:
        """Returns 1.0 if the answer is the gold intent, else 0.0."""
        return float(_plain(answer) == _plain(question.answer))

    def measures(self, answers: Sequence[str], questions: Sequence[Question]) -> dict[str, float]:
        """Returns accuracy in scope, and recall and precision of `oos`; a figure without cases is left out."""
        pairs = [(_plain(answer), _plain(question.answer)) for answer, question in zip(answers, questions, strict=True)]
        parts = {
            "in_scope_accuracy": [given == gold for given, gold in pairs if gold != OOS],
            "oos_recall": [given == OOS for given, gold in pairs if gold == OOS],
            "oos_precision": [gold == OOS for given, gold in pairs if given == OOS],
            "domain_accuracy": [domain_of(given) == domain_of(gold) for given, gold in pairs if gold != OOS],
        }
        return {name: sum(right) / len(right) for name, right in parts.items() if right}

    def groups(self, question: Question) -> str:
        """Returns the gold domain, or `oos`."""
        return question.task


TASK = Clinc150()


def clinc150_stages(intent: str) -> dict[str, str]:
    """Returns the gold hand-offs of a command, all of `STAGES`.

    Args:
        intent: as words, or `oos`.
    """
    return {
        "scope": "no" if intent == OOS else "yes",
        "domain": domain_of(intent),
        "intent": intent,
        "decision": intent,
    }


def _row(row: Mapping[str, Any], name: str, options: Clinc150Options) -> dict[str, Any]:
    intent = row["intent"].replace("_", " ")
    if intent != OOS and domain_of(intent) == OOS:
        raise DataError("no intent of CLINC150", value=row["intent"], allowed="one of its 150 intents, or oos")
    everything = clinc150_stages(intent)
    return {
        "id": name,
        "inputs": {"command": row["text"]},
        "stages": {stage: everything[stage] for stage in options.stages},
        "answer": intent,
        "task": domain_of(intent),
    }


def _question(row: Mapping[str, Any], name: str, options: Clinc150Options) -> Question:
    made = _row(row, name, options)
    return Question(name, name, made["task"], made["inputs"], made["answer"], (), made["stages"])


def _outliers(
    folder: Path, options: Clinc150Options, rows: Sequence[Mapping[str, Any]], known: set[str]
) -> list[dict[str, Any]]:
    """Returns rows out of scope made of another data set's questions, none of them a command of CLINC150."""
    longest = max(len(row["text"]) for row in rows)
    taken = known | {row["text"].casefold() for row in rows}
    found: dict[str, None] = {}
    for row in read_split(find_split(folder, options.outliers or ""), {"question": str}):
        text = row["question"].split("\n")[0].strip().lower().rstrip(".?! ")
        if options.outlier_tasks is not None and row.get("task") not in options.outlier_tasks:
            continue
        if text and len(text) <= longest and text not in taken:
            found[text] = None
    texts = _drawn(list(found), options.outlier_count, options.seed)
    return [{"text": text, "intent": OOS, "domain": OOS} for text in texts]


def _drawn(rows: list[Any], count: int | None, seed: int) -> list[Any]:
    if count is None or count >= len(rows):
        return rows
    return [rows[place] for place in sorted(random.Random(seed).sample(range(len(rows)), count))]


def _plain(text: str) -> str:
    return " ".join(text.casefold().replace("_", " ").split()).rstrip(".")
