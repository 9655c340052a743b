"""SNIPS: a spoken command becomes a frame, its intent and its slots, with values copied from the command.

    {"text": "Add Don and Sherri to my rare groove playlist", "intent": "AddToPlaylist",
     "slots": [{"name": "entity_name", "start": 4, "end": 18, "value": "Don and Sherri"}, ...]}
              │ load
              ▼
    inputs   command, and what a list of names knows of it, if asked for
    stages   intent, numbered, tags, frame (see `snips_frames`)
    answer   the frame as JSON

13,084 commands to train from, 700 to validate, 700 to test; 7 intents, 39 slot names. Licence: CC0 1.0.

Source: Coucke et al., "Snips Voice Platform" (arXiv 1805.10190); the split of Goo et al., "Slot-Gated Modeling for
Joint Slot Filling and Intent Prediction" (NAACL 2018), who also count a sentence as right only if its whole frame is.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from cairn.config import StrictModel
from cairn.errors import DataError
from cairn.evaluation.systems import Question
from cairn.evaluation.tasks.registry import TaskData
from cairn.evaluation.tasks.snips_frames import INTENTS, SLOTS, frame, frame_text, read_frame, tags_text
from cairn.evaluation.tasks.snips_known import Lexicon
from cairn.evaluation.tasks.split_files import file_hashes, find_split, read_split
from cairn.stacks.rules import run_rule

__all__ = ["STAGES", "TASK", "Snips", "SnipsOptions", "frame_f1", "snips_stages"]

STAGES = ("intent", "numbered", "tags", "frame")

_FIELDS: dict[str, type | tuple[type, ...]] = {"text": str, "intent": str, "slots": list}
_SHORT_INTENTS = {name: word for word, name in INTENTS.items()}


class SnipsOptions(StrictModel):
    """Options of the task `snips`.

    Args:
        stages: the hand-offs whose gold the rows hold: those of the stack.
        train_questions: at most so many commands to train from, drawn with `seed`; None takes all.
        known: give every system a second input, `known`: the values of slots in (other) training commands that the
            command holds (`snips_known`).
        test_split: the file to test with; "valid" while a stack is being designed.
        seed: of the draw.
    """

    stages: list[Literal["intent", "numbered", "tags", "frame"]] = Field(default=list(STAGES), min_length=1)
    train_questions: int | None = Field(default=None, ge=1)
    known: bool = False
    test_split: Literal["test", "valid"] = "test"
    seed: int = 0


class Snips:
    """Commands to frames. An answer is right if it is JSON with the gold intent and exactly the gold slots."""

    name = "snips"
    Options = SnipsOptions

    def load(self, folder: Path, options: SnipsOptions) -> TaskData:
        """Reads snips_train.jsonl and snips_test.jsonl (or valid), plain or packed.

        Left out of training: a command that is also a test command, in any case of letters, and one in which two slots
        of a name stand side by side, which tags cannot say. Tests stay whole.

        Raises:
            DataError: a file is missing or damaged, or a row's slots are not where they say.
        """
        paths = [find_split(folder, f"snips_{split}.jsonl") for split in ("train", options.test_split)]
        rows, asked = (read_split(path, _FIELDS) for path in paths)
        known = {row["text"].casefold() for row in asked}
        usable, shared, beside = [], 0, 0
        for number, row in enumerate(rows, 1):
            sayable = _tags_can_say(row)
            if row["text"].casefold() in known:
                shared += 1
            elif not sayable:
                beside += 1
            else:
                usable.append((number, row))
        if options.train_questions is not None and options.train_questions < len(usable):
            drawn = random.Random(options.seed).sample(range(len(usable)), options.train_questions)
            usable = [usable[place] for place in sorted(drawn)]
        lexicon = Lexicon([row for _, row in usable]) if options.known else None
        test = [
            _question(row, f"{options.test_split}-{number}", options, lexicon) for number, row in enumerate(asked, 1)
        ]
        train = [
            {**_row(row, f"train-{number}", options, lexicon, own=row), "group": row["text"].casefold()}
            for number, row in usable
        ]
        facts = {
            "files": file_hashes(paths),
            "licence": "CC0 1.0",
            "counts": {"train": len(train), "test": len(test)},
            "left_out": {
                "training commands that are test commands too": shared,
                "training commands with two slots of one name side by side": beside,
            },
        }
        return TaskData(train, test, facts)

    def score(self, answer: str, question: Question) -> float:
        """Returns 1.0 if intent and slots are the gold ones, in any order, else 0.0."""
        given, gold = read_frame(answer), read_frame(question.answer)
        if given is None or gold is None:
            return 0.0
        return float(given[0] == gold[0] and Counter(given[1]) == Counter(gold[1]))

    def measures(self, answers: Sequence[str], questions: Sequence[Question]) -> dict[str, float]:
        """Returns the share of right intents, the F1 of slots, and the share of answers that are frames at all."""
        frames = [read_frame(answer) for answer in answers]
        gold = [read_frame(question.answer) for question in questions]
        pairs = [(given, wanted) for given, wanted in zip(frames, gold, strict=True) if wanted is not None]
        count = max(len(pairs), 1)
        return {
            "intent_accuracy": sum(given is not None and given[0] == wanted[0] for given, wanted in pairs) / count,
            "slot_f1": frame_f1([(given[1] if given else (), wanted[1]) for given, wanted in pairs]),
            "well_formed": sum(given is not None for given, _ in pairs) / count,
        }

    def groups(self, question: Question) -> str:
        """Returns the gold intent."""
        return question.task


TASK = Snips()


def frame_f1(pairs: Sequence[tuple[Sequence[tuple[str, str]], Sequence[tuple[str, str]]]]) -> float:
    """Returns the micro F1 of slots over all commands, as conlleval counts it.

    A slot is right if name and whole value are; it is known by its value instead of its place, which differs from
    conlleval only where a command says a value twice. 1.0 if there is no slot on either side.

    Args:
        pairs: (slots given, gold slots) of each command.
    """
    right = given = gold = 0
    for mine, wanted in pairs:
        right += sum((Counter(mine) & Counter(wanted)).values())
        given += len(mine)
        gold += len(wanted)
    return 2 * right / (given + gold) if given + gold else 1.0


def snips_stages(row: Mapping[str, Any]) -> dict[str, str]:
    """Returns the gold hand-offs of one command, all of `STAGES`.

    Raises:
        DataError: an intent or slot that SNIPS does not have, or a slot that is not where it says.
    """
    slots = sorted(row["slots"], key=lambda slot: slot["start"])
    for slot in slots:
        if row["text"][slot["start"] : slot["end"]] != slot["value"]:
            raise DataError(f"slot {slot['name']} is not where it says", value=row["text"], allowed=slot["value"])
        if slot["name"] not in SLOTS.values():
            raise DataError("no slot of SNIPS", value=slot["name"], allowed=", ".join(sorted(SLOTS.values())))
    if row["intent"] not in _SHORT_INTENTS:
        raise DataError("no intent of SNIPS", value=row["intent"], allowed=", ".join(INTENTS.values()))
    return {
        "intent": _SHORT_INTENTS[row["intent"]],
        "numbered": run_rule("number", {"text": row["text"]}),
        "tags": tags_text(row["text"], [(slot["name"], slot["start"], slot["end"]) for slot in slots]),
        "frame": frame_text(row["intent"], [(slot["name"], " ".join(slot["value"].split())) for slot in slots]),
    }


def _tags_can_say(row: Mapping[str, Any]) -> bool:
    """Whether the rule makes the gold frame of the gold tags: not of two slots of one name side by side."""
    gold = snips_stages(row)
    return frame({"command": row["text"], **gold}) == gold["frame"]


def _row(
    row: Mapping[str, Any],
    name: str,
    options: SnipsOptions,
    lexicon: Lexicon | None,
    own: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    everything = snips_stages(row)
    known = {} if lexicon is None else {"known": lexicon.known(row["text"], own)}
    return {
        "id": name,
        "inputs": {"command": row["text"], **known},
        "stages": {stage: everything[stage] for stage in options.stages},
        "answer": everything["frame"],
        "task": row["intent"],
    }


def _question(row: Mapping[str, Any], name: str, options: SnipsOptions, lexicon: Lexicon | None) -> Question:
    made = _row(row, name, options, lexicon)
    return Question(name, row["text"].casefold(), row["intent"], made["inputs"], made["answer"], (), made["stages"])
