"""The demo's gold hand-offs: held against every shipped question, and against rules written a second time."""

from __future__ import annotations

import hashlib
from functools import cache
from importlib import resources

import pytest

from cairn.errors import DataError
from cairn.evaluation.tasks.babi import BabiQuestion, read_babi
from cairn.evaluation.tasks.babi_stages import STAGE_TASKS, check_chain, gold_chain, stage_example
from cairn.evaluation.textfiles import open_text

FOLDER = resources.files("cairn") / "assets" / "demo" / "babi"


@cache
def questions(task: str, split: str) -> list[BabiQuestion]:
    return read_babi(str(FOLDER / f"{task}_{split}.txt.xz"))


@pytest.mark.parametrize("task", STAGE_TASKS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_every_shipped_question_has_a_whole_chain(task: str, split: str) -> None:
    """Derived answer = gold answer, every supporting fact kept: stage_example raises otherwise."""
    found = questions(task, split)
    assert len(found) == (10_000 if split == "train" else 1_000)
    for question in found:
        example = stage_example(question)
        sentences = question.sentences
        assert len(example["stages"]["mention"]) == len(example["stages"]["follow"]) == len(sentences)
        assert example["stages"]["answer"] == example["answer"] == question.answer
        assert example["inputs"]["story"].split(". ") == [*(s[:-1] for s in sentences[:-1]), sentences[-1]]


@pytest.mark.parametrize("task", STAGE_TASKS)
def test_the_answer_follows_from_the_kept_sentences_alone(task: str) -> None:
    """A second, cruder reader: it sees only the followed sentences and the question, as text."""
    for question in questions(task, "test"):
        chain = gold_chain(question.sentences, question.question)
        kept = [question.sentences[place].rstrip(".").split() for place in chain.follow]
        if task == "qa15":
            answers = [words[-1] for words in kept]
            assert len(answers) == 1 and answers[0][:1] == question.answer[:1]  # mice: mouse, wolves: wolf
        elif task == "qa14":
            asked = question.question.split()[2]
            mine = [words for words in kept if asked in words]
            assert len(mine) == 1 and question.answer in mine[0]
        else:
            moves = [words for words in kept if "to" in words]
            assert moves[-1][-1] == question.answer


@pytest.mark.parametrize("task", STAGE_TASKS)
def test_kept_sentences_are_few_and_the_link_is_copied(task: str) -> None:
    kept = total = 0
    for question in questions(task, "test"):
        chain = gold_chain(question.sentences, question.question)
        kept += len(chain.follow)
        total += len(question.sentences)
        seen = " ".join([question.question, *(question.sentences[place] for place in chain.mention)])
        assert chain.link.lower() in seen.lower()
    assert kept < 0.6 * total  # the hand-off is really a choice


@pytest.mark.parametrize("task", STAGE_TASKS)
def test_no_story_is_in_train_and_test(task: str) -> None:
    def stories(split: str) -> set[tuple[str, ...]]:
        return {question.sentences for question in questions(task, split) if len(question.sentences) > 2}

    longest = {question.story_id: question.sentences for question in questions(task, "test")}
    assert len(longest) >= 200
    assert not set(longest.values()) & stories("train")


def test_shipped_files_are_those_of_the_checksums() -> None:
    listed = [line.split("  ") for line in (FOLDER / "SHA256SUMS").read_text().splitlines()]
    names = [f"{task}_{split}.txt" for task in STAGE_TASKS for split in ("train", "test")]
    assert [name for _, name in listed] == names
    for digest, name in listed:
        with open_text(str(FOLDER / f"{name}.xz")) as lines:
            assert hashlib.sha256(lines.read().encode()).hexdigest() == digest
    assert sum(len(file.read_bytes()) for file in FOLDER.iterdir()) < 1_500_000
    assert "Copyright (c) 2015-present, Facebook, Inc." in (FOLDER / "LICENSE.md").read_text()


def test_a_story_that_shows_every_rule() -> None:
    took = ["John took the milk.", "Mary got the milk.", "Mary went to the hall.", "John went to the yard."]
    chain = gold_chain([*took, "Mary got the ball."], "Where is the milk?")
    assert (chain.mention, chain.link, chain.follow, chain.answer) == ((0, 1), "Mary", (1, 2, 4), "hall")
    went = ["Yesterday Mary went to the park.", "Mary moved to the office this evening."]
    chain = gold_chain([*went, "This morning Mary went to the zoo."], "Where was Mary before the office?")
    assert (chain.link, chain.follow, chain.answer) == ("this morning", (2,), "zoo")


@pytest.mark.parametrize(
    ("sentences", "question", "message"),
    [
        (["Mary sang a song."], "Where is Mary?", "a sentence of a form that the demo's rules do not know: 'Mary sang"),
        (["Mary went to the park."], "Who is Mary?", "a question of a form that the demo's rules do not know: 'Who is"),
        (["Mary went to the park."], "Where is John?", "no sentence is about what the question asks: 'Where is John?'"),
        (["Mary took the milk."], "Where is Mary?", "the sentences about the link do not answer the question"),
        (["Mary went to the park."], "What is Mary afraid of?", "do not say where to look next"),
    ],
)
def test_what_the_rules_do_not_know_is_an_error(sentences: list[str], question: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        gold_chain(sentences, question)
    assert message in str(caught.value)


def test_a_chain_that_differs_from_the_gold_is_refused() -> None:
    story = ("Mary went to the park.", "John went to the zoo.", "Mary went to the yard.")
    chain = gold_chain(story, "Where is Mary?")
    with pytest.raises(DataError, match="the rules give 'yard', the file another answer: 'park'"):
        check_chain(chain, BabiQuestion("qa1-0-4", "qa1-0", "qa1", story, "Where is Mary?", "park", (2,)))
    with pytest.raises(DataError, match="no stage keeps a supporting fact: .'John went to the zoo.'."):
        check_chain(chain, BabiQuestion("qa1-0-4", "qa1-0", "qa1", story, "Where is Mary?", "yard", (1,)))
