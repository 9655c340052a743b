"""CommonsenseQA with rationales of a bigger model as the hand-off between reading and choosing.

    question, choices ─> rationale ("The answer must be a place where beavers get wood. Of the above choices, only ...")
                             └─> answer: one of the choices

The rationales end with the bigger model's own answer, which can be wrong. That last sentence is cut off, because the
answer stage would only copy it; what the sentence said is counted in the facts, and `only_right` leaves out training
questions whose rationale ends on a wrong answer.

9,741 questions to train from, 1,221 to test (the official validation set: the labels of the official test set are not
public). Licence: MIT / Apache-2.0.

Source: Talmor et al., "CommonsenseQA" (arXiv 1811.00937); rationales of Hsieh et al., "Distilling Step-by-Step!"
(arXiv 2305.02301).
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from cairn.config import StrictModel
from cairn.evaluation.systems import Question
from cairn.evaluation.tasks.registry import TaskData
from cairn.evaluation.tasks.split_files import file_hashes, find_split, read_split

__all__ = ["TASK", "Csqa", "CsqaOptions", "split_rationale"]

_FIELDS: dict[str, type | tuple[type, ...]] = {
    "id": str, "question": str, "choices": list, "answer": str, "llm_rationale": str, "abstractive_explanation": str,
}  # fmt: skip
_CONCLUSION = re.compile(r"\s*So the answer is\b(?P<said>.*)\Z", re.DOTALL)
_LETTER = re.compile(r"\s*\(?([a-e])\)?\s")


class CsqaOptions(StrictModel):
    """Options of the task `csqa`.

    Args:
        rationale: "llm", the bigger model's, or "human", the annotators' explanation.
        only_right: leave out training questions whose rationale ends on another answer than the gold one, or on none.
        train_questions, test_questions: at most so many, drawn with `seed`; None takes all.
        validation: test on so many training questions instead, which are then not trained on; None tests on the test
            file. For the design of a stack.
        seed: of the draws.
    """

    rationale: Literal["llm", "human"] = "llm"
    only_right: bool = False
    train_questions: int | None = Field(default=None, ge=1)
    test_questions: int | None = Field(default=None, ge=1)
    validation: int | None = Field(default=None, ge=1)
    seed: int = 0


class Csqa:
    """Five choices, one of them right. An answer is right if it is the gold choice's text."""

    name = "csqa"
    Options = CsqaOptions

    def load(self, folder: Path, options: CsqaOptions) -> TaskData:
        """Reads commonsenseqa_train_rationales.jsonl and commonsenseqa_test_rationales.jsonl, plain or packed.

        Raises:
            DataError: a file is missing or damaged.
        """
        paths = [find_split(folder, f"commonsenseqa_{split}_rationales.jsonl") for split in ("train", "test")]
        rows, asked = (read_split(path, _FIELDS) for path in paths)
        draw = random.Random(options.seed)
        if options.validation is not None:
            held = set(draw.sample(range(len(rows)), min(options.validation, len(rows) - 1)))
            asked = [row for place, row in enumerate(rows) if place in held]
            rows = [row for place, row in enumerate(rows) if place not in held]
        said = Counter(_verdict(row) for row in rows)
        usable = [row for row in rows if not options.only_right or _verdict(row) == "right"]
        empty = [row for row in usable if not _hand_off(row, options)]
        usable = _drawn([row for row in usable if _hand_off(row, options)], options.train_questions, draw)
        asked = _drawn(asked, options.test_questions, draw)
        test = [_question(row, options) for row in asked]
        facts = {
            "files": file_hashes(paths),
            "licence": "MIT / Apache-2.0",
            "counts": {"train": len(usable), "test": len(test)},
            "rationales": {f"training rationales that end on {name}": count for name, count in sorted(said.items())},
            "left_out": {
                "rationale ends on another answer": len(rows) - said["right"] if options.only_right else 0,
                "empty rationale": len(empty),
            },
        }
        return TaskData([_row(row, options) for row in usable], test, facts)

    def score(self, answer: str, question: Question) -> float:
        """Returns 1.0 if the answer is the gold choice, whatever the case of its letters, else 0.0."""
        return float(_plain(answer) == _plain(question.answer))

    def measures(self, answers: Sequence[str], questions: Sequence[Question]) -> dict[str, float]:
        """Returns the share of answers that are one of the choices at all."""
        among = [
            _plain(answer) in {_plain(choice) for choice in question.inputs["choices"].split(" | ")}
            for answer, question in zip(answers, questions, strict=True)
        ]
        return {"among_choices": sum(among) / max(len(among), 1)}

    def groups(self, question: Question) -> str:
        """Returns whether the rationale of the bigger model ends on the right answer."""
        return question.task


TASK = Csqa()


def split_rationale(text: str) -> tuple[str, str]:
    """Returns a rationale without its last sentence "So the answer is ...", and what that sentence says."""
    match = _CONCLUSION.search(text)
    return (text, "") if match is None else (text[: match.start()].strip(), match["said"].strip())


def _verdict(row: Mapping[str, Any]) -> str:
    said = split_rationale(row["llm_rationale"])[1]
    letter = _LETTER.match(said + " ")
    place = "abcde".index(letter[1]) if letter else len(row["choices"])
    if place >= len(row["choices"]):
        return "no answer"
    return "right" if row["choices"][place] == row["answer"] else "another answer"


def _hand_off(row: Mapping[str, Any], options: CsqaOptions) -> str:
    text = row["abstractive_explanation"] if options.rationale == "human" else split_rationale(row["llm_rationale"])[0]
    return " ".join(text.split())


def _row(row: Mapping[str, Any], options: CsqaOptions) -> dict[str, Any]:
    return {
        "id": row["id"],
        "inputs": {"question": row["question"].strip(), "choices": " | ".join(row["choices"])},
        "stages": {"rationale": _hand_off(row, options), "answer": row["answer"]},
        "answer": row["answer"],
        "task": "rationale " + _verdict(row),
    }


def _question(row: Mapping[str, Any], options: CsqaOptions) -> Question:
    made = _row(row, options)
    gold = {name: text for name, text in made["stages"].items() if text}
    return Question(row["id"], row["id"], made["task"], made["inputs"], made["answer"], (), gold)


def _drawn(rows: list[Any], count: int | None, draw: random.Random) -> list[Any]:
    if count is None or count >= len(rows):
        return rows
    return [rows[place] for place in sorted(draw.sample(range(len(rows)), count))]


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".")
