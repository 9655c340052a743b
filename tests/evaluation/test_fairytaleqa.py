"""FairytaleQA: ROUGE-L against hand-computed values, the search rule, and the recipe's examples."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cairn.data.examples import adapter_pairs, read_examples
from cairn.errors import DataError
from cairn.evaluation.tasks.fairytaleqa import TASK, FairytaleqaOptions
from cairn.evaluation.tasks.fairytaleqa_rouge import longest_common, rouge_l, rouge_words
from cairn.evaluation.tasks.fairytaleqa_search import best_sections, helpful, near, near_sentences, shorten_passage
from cairn.evaluation.tasks.registry import Task, task_by_name, task_options
from cairn.verbs.comparison.recipe import ExperimentRecipe, load_recipe

MILL = "Old Brun kept a mill. His daughter fed seven geese. The geese slept under the wheel. Nobody came on Sundays."
WOOD = "A fox lived in the wood. It stole a goose one night. Brun was very angry and set a trap."
HILL = "Far away a shepherd sang. The hill was green."


def row(question: str, answers: list[str], **change: object) -> dict:
    return {"story": "the-mill", "question": question, "answers": answers, "sections": [MILL], "section_ids": ["1"],
            "attribute": "action", "local_or_sum": "local", "ex_or_im": "explicit", **change}  # fmt: skip


TRAIN = [
    row("What did the daughter feed?", ["seven geese", "She fed seven geese."]),
    row("How did Brun feel?", ["angry"], sections=[WOOD], attribute="feeling", ex_or_im="implicit"),
    row("Why?", ["..."]),
]
TEST = [row("What did the fox steal?", ["a goose", "one goose of Brun", "a goose"], sections=[WOOD], story="other")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, rows, story in (("train", TRAIN, "the-mill"), ("test", TEST, "other")):
        (tmp_path / f"fairytaleqa_{split}.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
        sections = {"story": story, "sections": [MILL, HILL, WOOD]}
        (tmp_path / f"fairytaleqa_stories_{split}.jsonl").write_text(json.dumps(sections))
    return tmp_path


@pytest.fixture(scope="module")
def recipe(request: pytest.FixtureRequest) -> ExperimentRecipe:
    return load_recipe(request.config.rootpath / "recipes" / "fairytaleqa.yaml")


@pytest.mark.parametrize(
    ("answer", "references", "f1"),
    [
        ("he was very happy indeed", ["He was happy."], 2 * (3 / 5) * (3 / 3) / (3 / 5 + 3 / 3)),  # = 0.75
        ("police killed the gunman", ["police kill the gunman"], 0.75),  # the ROUGE paper's sentences, section 3.1
        ("the gunman kill police", ["police kill the gunman"], 0.5),
        ("Seven-geese!", ["seven geese"], 1.0),
        ("geese seven", ["seven geese"], 0.5),
        ("a fox", ["the goose", "fox"], 2 / 3),  # the best reference counts
        ("...", ["seven geese"], 0.0),
        ("seven geese", ["..."], 0.0),
        ("geese", ["goose"], 0.0),  # no stemming
    ],
)
def test_rouge_l_by_hand(answer: str, references: list[str], f1: float) -> None:
    assert rouge_l(answer, references) == pytest.approx(f1)


@given(st.lists(st.sampled_from("abc"), max_size=7), st.lists(st.sampled_from("abc"), max_size=7))
def test_the_longest_common_subsequence_is_the_longest(left: list[str], right: list[str]) -> None:
    """Held against trying every subsequence."""
    subsequences = {
        combination for size in range(len(right) + 1) for combination in combinations(right, size)
    }  # fmt: skip
    expected = max(
        size for size in range(len(left) + 1) if any(c in subsequences for c in combinations(left, size))
    )  # fmt: skip
    assert longest_common(left, right) == longest_common(right, left) == expected


def test_words_of_rouge() -> None:
    assert rouge_words("It's 3 o'clock -- Brún!") == ["it", "s", "3", "o", "clock", "br", "n"]


def test_near_sentences_share_words_with_the_question() -> None:
    assert near_sentences(MILL, "Who slept under the wheel?", 1) == ["The geese slept under the wheel."]
    # "goose" and "geese" share nothing; "slept" finds "sleeps" no more than "sleep" does; "feeding" finds "feeds".
    assert near_sentences("He feeds a hen. She runs.", "Was he feeding hens?", 1) == ["He feeds a hen."]
    assert near_sentences(MILL, "What did the daughter feed the geese?", 2) == [
        "His daughter fed seven geese.",
        "The geese slept under the wheel.",
    ]
    assert near({"passage": HILL, "question": "Who sang?"}) == "Far away a shepherd sang.\nThe hill was green."


def test_the_helpful_sentence_holds_the_answer() -> None:
    sentences = near_sentences(WOOD, "What did the fox steal?")
    assert helpful(sentences, "What did the fox steal?", ["a goose"]) == [False, True, False]
    # No sentence holds a word of the answer: the one that shares most with the question.
    assert helpful(sentences, "Where did the fox live?", ["at home"]) == [True, False, False]
    assert sum(helpful(["Brun sang.", "Brun sang."], "Who sang?", ["Brun"])) == 1


def test_passages_are_cut_to_their_best_sentences() -> None:
    assert shorten_passage(WOOD, "What did it steal?", 100) == WOOD
    short = shorten_passage(WOOD, "Who was angry and set a trap?", 14)
    assert short == "A fox lived in the wood. Brun was very angry and set a trap."
    assert shorten_passage(WOOD, "Who was angry?", 2) == "Brun was very angry and set a trap."


def test_sections_of_a_story_are_picked_by_the_question() -> None:
    assert best_sections([MILL, HILL, WOOD], "Who stole a goose?", 20) == [WOOD]
    assert best_sections([MILL, HILL, WOOD], "Who stole a goose?", 30) == [HILL, WOOD]  # in story order, what fits
    assert best_sections([MILL], "Who?", 3) == [MILL]


def test_load_of_gold_sections(folder: Path) -> None:
    data = TASK.load(folder, FairytaleqaOptions())
    assert [r["id"] for r in data.train] == ["train-1-explicit", "train-2-implicit"]
    assert data.facts["left_out"] == {"no answer": 1, "another question type": 0, "answer too long": 0}
    first = data.train[0]
    assert first["inputs"] == {"passage": MILL, "question": "What did the daughter feed?"}
    assert first["stages"]["find"] == ["no", "yes", "no", "no"] and first["answer"] == "seven geese"
    question = data.test[0]
    assert (question.answer, question.references) == ("a goose", ("one goose of Brun",))
    assert question.group == "other" and TASK.groups(question) == "action"
    assert isinstance(TASK, Task) and task_by_name("fairytaleqa") is TASK


def test_load_of_whole_stories(folder: Path) -> None:
    data = TASK.load(folder, FairytaleqaOptions(context="story", passage_words=20))
    assert data.test[0].inputs["passage"] == WOOD
    assert data.train[0]["inputs"]["passage"].startswith("Old Brun")
    # "How did Brun feel?" finds the mill first, for Brun is in both; the wood has no room beside it.
    passages = data.facts["passages"]
    assert sum(one["gold section picked"] for one in passages.values()) == 2
    assert [passages[split]["questions"] for split in ("train", "test")] == [2, 1]
    mixed = TASK.load(folder, FairytaleqaOptions(context="story", train_context="section", passage_words=20))
    plain = TASK.load(folder, FairytaleqaOptions(passage_words=20))
    assert mixed.train == plain.train != data.train and mixed.test == data.test
    assert "gold section picked" not in mixed.facts["passages"]["train"]
    (folder / "fairytaleqa_stories_test.jsonl").write_text(json.dumps({"story": "a third", "sections": [HILL]}))
    with pytest.raises(DataError, match="story is not in the file of stories: 'other'"):
        TASK.load(folder, FairytaleqaOptions(context="story"))


def test_question_types_and_long_answers_are_left_out(folder: Path) -> None:
    data = TASK.load(folder, FairytaleqaOptions(kinds=["action"], answer_words=1))
    assert not data.train and len(data.test) == 1
    assert data.facts["left_out"] == {"no answer": 1, "another question type": 1, "answer too long": 1}


def test_scores_and_measures_by_hand(folder: Path) -> None:
    questions = TASK.load(folder, FairytaleqaOptions()).test
    assert TASK.score("a goose", questions[0]) == 1.0
    assert TASK.score("goose of Brun", questions[0]) == pytest.approx(2 * 3 / 7)  # against the second reference
    # The rule answers "It stole a goose one night." or another sentence of the wood; its best reference decides.
    sentence = near_sentences(WOOD, "What did the fox steal?", 1)[0]
    found = TASK.measures(["a goose"], questions)
    assert found == {
        "rouge_l_explicit": 1.0,
        "rouge_l_of_the_rule": pytest.approx(rouge_l(sentence, ["a goose", "one goose of Brun"])),
    }


def test_the_examples_fit_the_recipe(folder: Path, recipe: ExperimentRecipe, tmp_path: Path) -> None:
    options = task_options(task_by_name(recipe.task.name), recipe.task.options, "fairytaleqa.yaml")
    data = TASK.load(folder, options)
    file = tmp_path / "examples.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in data.train))
    examples = read_examples(file, recipe.stack)
    assert [pair.completion for pair in adapter_pairs(recipe.stack, "answer", examples)] == [" seven geese", " angry"]
