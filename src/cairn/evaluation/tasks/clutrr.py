"""CLUTRR: stories about families; how is one person related to another, some 2 to 10 facts apart?

    train.jsonl[.xz], test.jsonl[.xz]      records of the generator of facebookresearch/clutrr: id, hops, story,
                                           ordered_story, query, target, edges, revisits_person,
                                           proof_uses_unsound_rule

Models see the story, whose sentences are in no order, and the two names. The gold hand-offs (clutrr_kin.py) come from
the edges: their sentences are found through `ordered_story`, which tells them in the order of the chain.

Two flags of a record are kept in a question's id, and `measures` gives the score without such questions as well:
`unsound`, the proof takes an in-law for a blood relation or the like, so that the gold relation need not follow from
the story; `revisits`, the chain comes to a person twice, so that the story names more than one way on from there.

The data is CC BY-NC 4.0: to measure with, never to ship.

Source: Sinha et al., "CLUTRR" (arXiv 1908.06177).
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from cairn.config import StrictModel
from cairn.errors import DataError
from cairn.evaluation.systems import Question
from cairn.evaluation.tasks.babi import normalise_answer
from cairn.evaluation.tasks.clutrr_kin import (
    RELATIONS,
    Edge,
    done_line,
    full_walk,
    gold_walk,
    name_of,
    places,
)
from cairn.evaluation.tasks.registry import TaskData
from cairn.evaluation.tasks.split_files import file_hashes, find_split, read_split
from cairn.prompts import split_items

__all__ = ["TASK", "Clutrr", "ClutrrOptions", "learn_forms", "rule_answer", "stage_example", "story_edges"]

_FLAGS = {"proof_uses_unsound_rule": "unsound", "revisits_person": "revisits"}
_FIELDS: dict[str, type] = {
    "id": str, "hops": int, "story": str, "ordered_story": str, "query": list, "target": str, "edges": list,
    **dict.fromkeys(_FLAGS, bool),
}  # fmt: skip
_NAME = r"[^\s.,;:?!'’]+"

Row = Mapping[str, Any]


class ClutrrOptions(StrictModel):
    """Options of the task `clutrr`.

    Args:
        train_hops: hops of the training stories.
        train_questions: so many training stories of each hops, drawn with the seed; None takes all.
        test_hops: hops of the test stories.
        test_questions: so many test stories of each hops, drawn with the seed; None takes all.
        guide: do not open the test file, but test on training stories of `test_hops`: those of hops that are not
            trained on, and a tenth, left out of training, of those that are. To choose a stack with.
        seed: of the draws.
    """

    train_hops: list[int] = Field(default=[2, 3, 4], min_length=1)
    train_questions: int | None = Field(default=None, ge=1)
    test_hops: list[int] = Field(default=[2, 3, 4, 5, 6, 7, 8, 9, 10], min_length=1)
    test_questions: int | None = Field(default=None, ge=1)
    guide: bool = False
    seed: int = Field(default=0, ge=0)


def story_edges(row: Row) -> list[Edge]:
    """Returns the fact that each sentence of a story tells, in the order of the story.

    Raises:
        DataError: the sentences of `story` are not those of `ordered_story`, there is not one for each edge, or one
            does not name the persons and the relation of its edge.
    """
    ordered = split_items(row["ordered_story"], "sentences")
    edges = [Edge(*edge) for edge in row["edges"]]
    if len(ordered) != len(edges):
        raise DataError(f"{row['id']}: not one sentence per edge", value=len(ordered), allowed=str(len(edges)))
    told: dict[str, list[Edge]] = {}
    for sentence, edge in zip(ordered, edges, strict=True):
        words = re.findall(r"[\w-]+", sentence)
        if not all(word in words for word in edge):
            raise DataError(f"{row['id']}: a sentence does not tell its edge", value=sentence, allowed=edge.line)
        told.setdefault(sentence, []).append(edge)
    sentences = split_items(row["story"], "sentences")
    if sorted(sentences) != sorted(ordered):
        raise DataError(f"{row['id']}: story and ordered_story differ", value=row["story"])
    return [told[sentence].pop(0) for sentence in sentences]


def _gold(row: Row) -> dict[str, Any]:
    """Returns the hand-offs of a record, its own relation being that of the last place whatever the file says."""
    walk = gold_walk([Edge(*edge) for edge in row["edges"]], row["query"][1])
    reached = places([edge.relation for edge in walk])
    return {
        "edges": [edge.line for edge in story_edges(row)],
        "walk": [*(edge.line for edge in walk), done_line(row["query"][1])],
        "place": [place.text for place in reached],
        "answer": name_of(reached[-1]),
    }


def stage_example(row: Row) -> dict[str, Any]:
    """Returns one row of an examples file.

    Raises:
        DataError: the hand-offs cannot be derived (see `story_edges` and `clutrr_kin`), or they lead to another
            relation than the record's.
    """
    stages = _gold(row)
    if stages["answer"] != row["target"]:
        raise DataError(f"{row['id']}: the places give {stages['answer']!r}", value=row["target"])
    return {"id": row["id"], "inputs": _inputs(row), "stages": stages, "answer": row["target"]}


class Clutrr:
    """The task `clutrr`: an answer is right if it is the gold relation."""

    name = "clutrr"
    Options = ClutrrOptions

    def load(self, folder: Path, options: ClutrrOptions) -> TaskData:
        """Reads training and test stories.

        A training story whose hand-offs do not lead to its gold relation is left out and counted. A test story stays
        whatever its hand-offs give: its gold answer is the file's, and its gold hand-offs are left away if they would
        end elsewhere.

        Raises:
            DataError: a file is missing, a record has not the fields above, or a draw asks for more than there is.
        """
        files = [find_split(folder, "train.jsonl")]
        known = read_split(files[0], _FIELDS)
        held: list[Row] = []
        if options.guide:
            held = asked = _held_out(known, options)
        else:
            files.append(find_split(folder, "test.jsonl"))
            asked = [row for row in read_split(files[1], _FIELDS) if row["hops"] in options.test_hops]
        out = {row["id"] for row in held}
        trained = [row for row in known if row["hops"] in options.train_hops and row["id"] not in out]
        trained = _drawn(trained, options.train_hops, options.train_questions, "train_questions", options.seed)
        asked = _drawn(asked, options.test_hops, options.test_questions, "test_questions", options.seed)
        examples, refused = [], Counter[str]()
        for row in trained:
            try:
                examples.append({**stage_example(row), "task": self.name, "group": _group(row)})
            except DataError:
                refused[_flags(row)] += 1
        test = [_question(row) for row in asked]
        forms = learn_forms(trained)
        right = sum(rule_answer(question.inputs, forms) == question.answer for question in test)
        facts = {
            "source": "facebookresearch/clutrr, generated, synthetic sentences",
            "licence": "CC BY-NC 4.0: for measuring only",
            "files": file_hashes(files),
            "guide": options.guide,
            "counts": {
                "train": len(examples), "test": len(test),
                "test_by_flags": dict(Counter(_flags(row) for row in asked)),
                "test_without_gold_hand_offs": sum(not question.stages for question in test),
            },
            "left_out_of_training": {
                "why": "the relation of the last place is not the gold relation", "by_flags": dict(refused),
            },
            "rule_baseline": right / len(test),
        }  # fmt: skip
        return TaskData(examples, test, facts)

    def score(self, answer: str, question: Question) -> float:
        """Returns 1.0 if the answer is the gold relation, else 0.0."""
        return float(normalise_answer(answer) == normalise_answer(question.answer))

    def measures(self, answers: Sequence[str], questions: Sequence[Question]) -> dict[str, float]:
        """Returns the scores of the questions that are not flagged, for both flags; the data facts count them."""
        found: dict[str, float] = {}
        for name, flags in (("not_unsound", ("unsound",)), ("not_flagged", ("unsound", "revisits"))):
            kept = [
                self.score(answer, question)
                for answer, question in zip(answers, questions, strict=True)
                if not any(flag in question.id.split("-") for flag in flags)
            ]
            if kept:
                found[name] = sum(kept) / len(kept)
        return found

    def groups(self, question: Question) -> str:
        """Returns the hops, which are the sentences of the story: "02 hops" to "10 hops"."""
        return f"{len(split_items(question.inputs['story'], 'sentences')):02d} hops"


def learn_forms(rows: Sequence[Row]) -> list[re.Pattern[str]]:
    """Returns the forms of the sentences in training stories, as patterns with groups head, relation and tail.

    The forms are the data's own, so none is written here: each is a training sentence with its names and relation
    made blanks.

    Raises:
        DataError: see `story_edges`.
    """
    relations = "|".join(sorted(map(re.escape, RELATIONS), key=len, reverse=True))
    blanks = {"head": _NAME, "relation": relations, "tail": _NAME}
    forms: Counter[str] = Counter()
    for row in rows:
        for sentence, edge in zip(split_items(row["story"], "sentences"), story_edges(row), strict=True):
            names = dict(zip(edge, blanks, strict=True))
            pieces = re.split(r"([\w-]+)", sentence)
            forms["".join(_blank(names.get(piece), blanks) or re.escape(piece) for piece in pieces)] += 1
    return [re.compile(form) for form, _ in forms.most_common()]


def _blank(group: str | None, blanks: Mapping[str, str]) -> str:
    return f"(?P<{group}>{blanks[group]})" if group else ""


def rule_answer(inputs: Mapping[str, str], forms: Sequence[re.Pattern[str]]) -> str:
    """Returns the relation that rules alone find, "" for none: the baseline without any model.

    Args:
        inputs: story, person and relative.
        forms: of `learn_forms`.
    """
    edges = []
    for sentence in split_items(inputs["story"], "sentences"):
        match = next((match for form in forms if (match := form.fullmatch(sentence))), None)
        if match is None:
            return ""
        edges.append(Edge(match["head"], match["relation"], match["tail"]))
    try:
        walk = full_walk(edges, inputs["person"], inputs["relative"])
        return name_of(places([edge.relation for edge in walk])[-1])
    except DataError:
        return ""


def _inputs(row: Row) -> dict[str, str]:
    return {"story": row["story"], "person": row["query"][0], "relative": row["query"][1]}


def _group(row: Row) -> str:
    return f"family-{row['family_seed']}" if "family_seed" in row else str(row["id"])


def _flags(row: Row) -> str:
    return "-".join(name for key, name in _FLAGS.items() if row[key]) or "plain"


def _question(row: Row) -> Question:
    try:
        gold = stage_example(row)["stages"]
    except DataError:
        gold = {}
    stages = {name: value if isinstance(value, str) else tuple(value) for name, value in gold.items()}
    name = f"{row['hops']}hops-{_flags(row)}-{row['id']}"
    return Question(name, _group(row), TASK.name, _inputs(row), row["target"], stages=stages)


def _held_out(rows: Sequence[Row], options: ClutrrOptions) -> list[Row]:
    held: list[Row] = []
    for number in options.test_hops:
        there = [row for row in rows if row["hops"] == number]
        if number in options.train_hops:
            there = random.Random(f"guide-{number}-{options.seed}").sample(there, (len(there) + 9) // 10)
        held += there
    return held


def _drawn(rows: list[Row], hops: Sequence[int], count: int | None, key: str, seed: int) -> list[Row]:
    drawn: list[Row] = []
    for number in hops:
        there = [row for row in rows if row["hops"] == number]
        if not there or (count is not None and count > len(there)):
            raise DataError(
                f"{key}: too few stories of {number} hops", value=len(there), allowed=f"at least {count or 1}"
            )
        drawn += there if count is None else random.Random(f"{key}-{number}-{seed}").sample(there, count)
    return drawn


TASK = Clutrr()
