"""SCAN: commands to actions, in splits that ask for more than was shown.

    tasks_{train,test}_SPLIT.txt[.xz]      IN: walk twice OUT: I_WALK I_WALK

    simple      commands drawn at random
    length      trained on at most 22 actions, tested on 24 to 48
    add_jump    of "jump" only the command "jump" itself is in training; tested on every other command with it
    turn_left   the same for "turn left"

Training rows repeat as the files have them (a tenth of add_jump's is the command "jump"). To choose a stack without
looking at the test file, `guide` makes test questions out of training rows that are then left out of training: a random
part, the longest, or every command in which a verb (or "turn right") is not alone.

Source: Lake and Baroni, "Generalization without Systematicity" (arXiv 1711.00350); files of brendenlake/SCAN (BSD).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field

from cairn.config import StrictModel
from cairn.errors import DataError
from cairn.evaluation.systems import Question
from cairn.evaluation.tasks.registry import TaskData
from cairn.evaluation.tasks.scan_steps import stage_example
from cairn.evaluation.tasks.split_files import file_hashes, find_split
from cairn.evaluation.textfiles import open_text

__all__ = ["SPLITS", "TASK", "Scan", "ScanOptions", "ScanRow", "read_scan"]

# Split -> the part of its file's name.
SPLITS = {"simple": "simple", "length": "length", "add_jump": "addprim_jump", "turn_left": "addprim_turn_left"}

_BUCKET = 8  # actions: width of a row of the table by length
_FORM = "'IN: words OUT: actions'"


@dataclass(frozen=True)
class ScanRow:
    """One line of a file.

    Args:
        id: split, "train" or "test", line number.
        command: the words.
        actions: gold.
    """

    id: str
    command: str
    actions: tuple[str, ...]


class ScanOptions(StrictModel):
    """Options of the task `scan`.

    Args:
        split: which of the four.
        train_questions: so many training rows, drawn with the seed; None takes all.
        test_questions: so many test rows, drawn with the seed; None takes all.
        guide: "off" tests on the test file. Else the test file is not opened, and the test questions are training
            rows that are not trained on: "random", a tenth of the commands; "longest", those with more than half as
            many actions as the longest; or words that stand for the held-back ones: all commands that have more than
            them.
        seed: of the draws.
    """

    split: Literal["simple", "length", "add_jump", "turn_left"] = "simple"
    train_questions: int | None = Field(default=None, ge=1)
    test_questions: int | None = Field(default=None, ge=1)
    guide: Literal["off", "random", "longest", "walk", "look", "run", "turn right"] = "off"
    seed: int = Field(default=0, ge=0)


def read_scan(path: Path, name: str) -> list[ScanRow]:
    """Reads a file of commands.

    Args:
        path: plain or packed.
        name: of the rows; their line number is added.

    Raises:
        DataError: the file cannot be read, is empty, or a line is not in the format (with its number).
    """
    rows = []
    with open_text(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            before, given, actions = line.partition("OUT:")
            mark, _, command = before.strip().partition(" ")
            if mark != "IN:" or not given or not command.strip() or not actions.strip():
                raise DataError(f"{path}, line {number}: not a SCAN line", value=line.rstrip(), allowed=_FORM)
            rows.append(ScanRow(f"{name}-{number}", " ".join(command.split()), tuple(actions.split())))
    if not rows:
        raise DataError("the file is empty", value=str(path), allowed=f"lines {_FORM}")
    return rows


class Scan:
    """The task `scan`: an answer is right if it is the whole list of actions."""

    name = "scan"
    Options = ScanOptions

    def load(self, folder: Path, options: ScanOptions) -> TaskData:
        """Reads one split, the hand-offs of every row derived by rule and held against its actions.

        Raises:
            DataError: a file is missing or damaged, the rules give other actions than a row has, or a draw asks for
                more rows than there are.
        """
        files = [_file(folder, "train", options.split)]
        train = read_scan(files[0], f"{options.split}-train")
        if options.guide == "off":
            files.append(_file(folder, "test", options.split))
            test = read_scan(files[1], f"{options.split}-test")
            left_out = 0
        else:
            all_rows = len(train)
            train, test = _guided(train, options)
            left_out = all_rows - len(train)
        counts = {"train_rows": len(train), "test_rows": len(test), "left_out_of_training_for_guide": left_out}
        known = {row.command for row in train}
        shared = sum(row.command in known for row in test)
        if shared:
            raise DataError("test commands are in training too", value=shared, allowed="none")
        train = _drawn(train, options.train_questions, "train_questions", options.seed)
        test = _drawn(test, options.test_questions, "test_questions", options.seed)
        facts = {
            "source": "brendenlake/SCAN", "licence": "BSD",
            "files": file_hashes(files),
            "split": options.split, "guide": options.guide,
            "counts": {
                **counts, "train": len(train), "train_distinct": len({row.command for row in train}), "test": len(test),
            },
            "rule_baseline": "scan_steps.interpret, 1.0 on every row read: each was checked against it",
        }  # fmt: skip
        examples = [{**stage_example(row.id, row.command, row.actions), "task": options.split} for row in train]
        return TaskData(examples, [_question(row, options.split) for row in test], facts)

    def score(self, answer: str, question: Question) -> float:
        """Returns 1.0 if the answer is the gold list of actions, else 0.0."""
        return float(answer.split() == question.answer.split())

    def measures(self, answers: Sequence[str], questions: Sequence[Question]) -> dict[str, float]:
        """Returns the share of answers with the right number of actions: a wrong join or count shows here."""
        if not questions:
            return {}
        pairs = zip(answers, questions, strict=True)
        right = sum(len(answer.split()) == len(question.answer.split()) for answer, question in pairs)
        return {"right_length": right / len(questions)}

    def groups(self, question: Question) -> str:
        """Returns the bucket of the gold answer's length: "actions 01-08", "actions 09-16", ..."""
        bucket = (len(question.answer.split()) - 1) // _BUCKET
        return f"actions {bucket * _BUCKET + 1:02d}-{(bucket + 1) * _BUCKET:02d}"


def _file(folder: Path, part: str, split: str) -> Path:
    return find_split(folder, f"tasks_{part}_{SPLITS[split]}.txt")


def _guided(rows: list[ScanRow], options: ScanOptions) -> tuple[list[ScanRow], list[ScanRow]]:
    if options.guide == "random":
        commands = sorted({row.command for row in rows})
        drawn = set(random.Random(options.seed).sample(commands, max(1, len(commands) // 10)))
        held = [row.command in drawn for row in rows]
    elif options.guide == "longest":
        longest = max(len(row.actions) for row in rows)
        held = [len(row.actions) > longest // 2 for row in rows]
    else:
        held = [f" {options.guide} " in f" {row.command} " and row.command != options.guide for row in rows]
    train = [row for row, out in zip(rows, held, strict=True) if not out]
    test = list({row.command: row for row, out in zip(rows, held, strict=True) if out}.values())
    if not train or not test:
        raise DataError(f"guide {options.guide} leaves no row for training or for testing", value=len(rows))
    return train, test


def _drawn(rows: list[ScanRow], count: int | None, key: str, seed: int) -> list[ScanRow]:
    if count is None:
        return rows
    if count > len(rows):
        raise DataError(f"{key} asks for more rows than there are", value=count, allowed=f"at most {len(rows)}")
    return [rows[place] for place in sorted(random.Random(f"{key}-{seed}").sample(range(len(rows)), count))]


def _question(row: ScanRow, split: str) -> Question:
    gold = stage_example(row.id, row.command, row.actions)["stages"]
    stages = {name: value if isinstance(value, str) else tuple(value) for name, value in gold.items()}
    return Question(row.id, row.id, split, {"command": row.command}, " ".join(row.actions), stages=stages)


TASK = Scan()
