"""Gold hand-offs of all 20 bAbI tasks: stories written by hand, the demo's shipped stories, and what a step may see."""

from __future__ import annotations

from functools import cache
from importlib import resources
from pathlib import Path

import pytest

from cairn.errors import DataError
from cairn.evaluation.tasks import babi_notes as notes
from cairn.evaluation.tasks.babi import BabiQuestion, read_babi
from cairn.evaluation.tasks.babi_notes import NONE, NOTHING, STOP
from cairn.evaluation.tasks.babi_rounds import check_rounds, gold_rounds, round_stages

SHIPPED = resources.files("cairn") / "assets" / "demo" / "babi"
ALL_TASKS = [f"qa{number}" for number in range(1, 21)]


@cache
def samples() -> dict[str, list[BabiQuestion]]:
    parts = Path(__file__).with_name("babi_samples.txt").read_text(encoding="utf-8").split("## ")[1:]
    blocks = [part.partition("\n") for part in parts]
    return {name.strip(): read_babi(text.splitlines(), name.strip()) for name, _, text in blocks}


def shipped(split: str, count: int) -> list[BabiQuestion]:
    tasks = ("qa1", "qa2", "qa12", "qa14", "qa15")
    return [question for task in tasks for question in read_babi(str(SHIPPED / f"{task}_{split}.txt.xz"))[:count]]


def test_samples_have_all_tasks() -> None:
    assert list(samples()) == ALL_TASKS


@pytest.mark.parametrize("task", ALL_TASKS)
def test_rules_give_the_gold_answer_of_every_task(task: str) -> None:
    for question in samples()[task]:
        gold = gold_rounds(question.sentences, question.question)
        check_rounds(gold, question)
        assert len(gold.find) == len(gold.notes) == 3
        for find, made in zip(gold.find, gold.notes, strict=True):
            assert made == (STOP,) if find == NOTHING else len(made) == len(question.sentences)


def test_rules_give_the_gold_answer_of_shipped_questions() -> None:
    for question in [*shipped("test", 1000), *shipped("train", 500)]:
        check_rounds(gold_rounds(question.sentences, question.question), question)


def test_a_step_depends_on_what_a_call_sees_and_nothing_else() -> None:
    """The same find, note and sentence always make the same note, and the same question and notes the same answer."""
    steps: dict[tuple[str, str, str], str] = {}
    asked: dict[tuple[str, ...], str] = {}
    for question in [*(q for found in samples().values() for q in found), *shipped("test", 300)]:
        gold = gold_rounds(question.sentences, question.question)
        known = [question.question]
        for find, made in zip(gold.find, gold.notes, strict=True):
            assert asked.setdefault(tuple(known), find) == find
            note = NONE
            for sentence, after in zip(question.sentences, made, strict=False):
                assert steps.setdefault((find, note, sentence), after) == after
                note = NONE if after == STOP else after
            known.append(note)
        assert asked.setdefault(tuple(known), gold.answer) == gold.answer
    assert len(steps) > 2000 and len(asked) > 500


@pytest.mark.parametrize(
    ("reading", "sentences", "made"),
    [
        (
            notes.where_is("Mary"),
            ["Mary and John went to the office.", "Then they moved to the garden.", "John took the milk.",
             "Then they moved to the hallway.", "Mary is not in the garden.", "Mary is in the office."],
            ("office, now", "garden, now", "garden", "garden", "not garden, now", "office, now"),
        ),
        (
            notes.taken_to("milk", "office"),
            ["John went to the office.", "John got the milk.", "John went to the garden.", "John went to the office.",
             "John dropped the milk.", "Mary moved to the office.", "Mary took the milk."],
            (NONE, "John; none", "John; none", "John; John", "none; John", "none; John", "Mary; John"),
        ),
        (
            notes.taken_from("John", "milk", "office"),
            ["John went to the garden.", "Mary got the milk.", "John grabbed the milk.", "John went to the office.",
             "John put down the milk.", "John went to the office."],
            ("without; garden; none", "without; garden; none", "with; garden; none", "with; office; garden",
             "without; office; garden", "without; office; garden"),
        ),
        (
            notes.holding("Mary"),
            ["John took the milk.", "John gave Mary the milk.", "Mary got the apple.", "Mary gave John the milk.",
             "Mary let go of the apple."],
            (NONE, "milk", "milk, apple", "apple", NONE),
        ),
        (
            notes.place_at_last("Mary", ("yesterday", "this morning")),
            ["Mary went to the office this morning.", "Yesterday Mary went to the garden.",
             "This evening Mary moved to the kitchen.", "This morning John moved to the kitchen."],
            ("office, this morning",) * 4,
        ),
        (
            notes.bigger_things(["box"]),
            ["The chest is bigger than the box.", "The suitcase is bigger than the chest.",
             "The suitcase is bigger than the box.", "The box is bigger than the box of chocolates."],
            ("chest", "chest, suitcase", "chest, suitcase", "chest, suitcase"),
        ),
        (
            notes.neighbours("red square"),
            ["The red square is above the square.", "The circle is to the left of the red square.",
             "The circle is below the square."],
            ("square below", "square below, circle left", "square below, circle left"),
        ),
        (
            notes.way_from(["garden", "hall"], "office"),
            ["The office is east of the attic.", "The hall is south of the office.", "The garden is west of the hall."],
            (NONE, "hall north", "hall north"),
        ),
        (
            notes.neighbours("hall"),
            ["The hall is east of the garden.", "The office is east of the hall.", "The den is north of the attic."],
            ("garden west", "garden west, office east", "garden west, office east"),
        ),
    ],
)  # fmt: skip
def test_notes_sentence_by_sentence(reading: notes.Reading, sentences: list[str], made: tuple[str, ...]) -> None:
    assert reading.notes(sentences) == made


def test_rounds_of_one_question_read_as_text() -> None:
    question = samples()["qa3"][-1]
    stages = round_stages(gold_rounds(question.sentences, question.question))
    assert list(stages) == ["ask1", "read1", "ask2", "read2", "ask3", "read3", "answer"]
    assert stages["ask1"] == "who took the apple to the office"
    assert stages["ask2"] == "whence Daniel took the apple to the office"
    assert stages["read2"][-1] == "without; office; kitchen"
    assert (stages["ask3"], stages["read3"], stages["answer"]) == ("nothing", ["stop"], "kitchen")


@pytest.mark.parametrize(
    ("sentences", "question", "message"),
    [
        (["Mary ate the apple."], "Where is Mary?", "a sentence of a form that the rules do not know: 'Mary ate"),
        (["Mary went to the office."], "Who is Mary?", "a question of a form that the rules do not know"),
        (["Mary went to the office."], "Where is John?", "the story does not answer the question"),
        (["Mary is not in the office."], "Is Mary in the garden?", "the story does not answer the question"),
        (["The office is north of the garden."], "What is east of the garden?", "the story does not answer"),
        (["The office is north of the garden."], "What is the path from garden to hall?", "the story does not answer"),
    ],
)
def test_unknown_forms_and_open_questions_are_refused(sentences: list[str], question: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        gold_rounds(sentences, question)


def test_another_gold_answer_is_refused() -> None:
    question = read_babi(["1 Mary went to the office.", "2 Where is Mary?\tgarden\t1"], "qa1")[0]
    with pytest.raises(DataError, match="qa1-0-2: the rules give 'office', the file another answer: 'garden'"):
        check_rounds(gold_rounds(question.sentences, question.question), question)
