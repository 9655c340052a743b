"""CommonsenseQA with rationales: the cut, what a rationale ends on, and the recipe's examples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cairn.data.examples import adapter_pairs, read_examples
from cairn.errors import DataError
from cairn.evaluation.tasks.csqa import TASK, CsqaOptions, split_rationale
from cairn.evaluation.tasks.registry import Task, task_by_name, task_options
from cairn.verbs.comparison.recipe import ExperimentRecipe, load_recipe


def row(name: str, answer: str, rationale: str) -> dict:
    return {
        "id": name, "question": f" What does number {name} boil water in? ", "answer": answer,
        "choices": ["kettle", "hat", "letter", "cloud", "shoe"], "llm_rationale": rationale,
        "abstractive_explanation": "kettles are made for it",
    }  # fmt: skip


RIGHT = row("1", "kettle", "It must hold water. Of the above choices, only a kettle does. So the answer is (a) kettle.")
WRONG = row("2", "kettle", "It must hold water. So the answer is (b) hat.")
NONE = row("3", "kettle", "Several hold water. So the answer is one of these.")
EMPTY = row("4", "kettle", "So the answer is (a) kettle.")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, rows in {
        "train": [RIGHT, WRONG, NONE, EMPTY],
        "test": [row("5", "hat", RIGHT["llm_rationale"])],
    }.items():
        file = tmp_path / f"commonsenseqa_{split}_rationales.jsonl"
        file.write_text("".join(json.dumps(one) + "\n" for one in rows))
    return tmp_path


@pytest.fixture(scope="module")
def recipe(request: pytest.FixtureRequest) -> ExperimentRecipe:
    return load_recipe(request.config.rootpath / "recipes" / "csqa.yaml")


def test_a_rationale_is_cut_before_its_answer() -> None:
    assert split_rationale(RIGHT["llm_rationale"]) == (
        "It must hold water. Of the above choices, only a kettle does.",
        "(a) kettle.",
    )
    assert split_rationale("It floats.") == ("It floats.", "")
    assert split_rationale("So the answer is (c).") == ("", "(c).")


def test_load_counts_what_the_rationales_say(folder: Path) -> None:
    data = TASK.load(folder, CsqaOptions())
    assert [r["id"] for r in data.train] == ["1", "2", "3"]
    assert data.train[0]["stages"]["rationale"] == "It must hold water. Of the above choices, only a kettle does."
    assert data.facts["rationales"] == {
        "training rationales that end on another answer": 1,
        "training rationales that end on no answer": 1,
        "training rationales that end on right": 2,
    }
    assert data.facts["left_out"] == {"rationale ends on another answer": 0, "empty rationale": 1}
    assert data.test[0].inputs == {
        "question": "What does number 5 boil water in?",
        "choices": "kettle | hat | letter | cloud | shoe",
    }
    assert data.test[0].task == "rationale another answer"  # it says kettle, and the answer is hat
    assert isinstance(TASK, Task) and task_by_name("csqa") is TASK


def test_only_right_rationales(folder: Path) -> None:
    data = TASK.load(folder, CsqaOptions(only_right=True))
    assert [r["id"] for r in data.train] == ["1"]
    assert data.facts["left_out"] == {"rationale ends on another answer": 2, "empty rationale": 1}


def test_human_rationales_and_validation(folder: Path) -> None:
    data = TASK.load(folder, CsqaOptions(rationale="human", validation=2))
    assert len(data.train) == len(data.test) == 2
    assert not {r["id"] for r in data.train} & {question.id for question in data.test}
    assert all(r["stages"]["rationale"] == "kettles are made for it" for r in data.train)


def test_scores_by_hand(folder: Path) -> None:
    questions = TASK.load(folder, CsqaOptions()).test
    assert TASK.score("Hat.", questions[0]) == 1.0
    assert TASK.score("kettle", questions[0]) == 0.0
    assert TASK.measures(["teapot"], questions) == {"among_choices": 0.0}
    assert TASK.measures(["Kettle"], questions) == {"among_choices": 1.0}
    assert TASK.groups(questions[0]) == "rationale another answer"


def test_a_row_without_rationale_is_an_error(folder: Path) -> None:
    broken = {key: value for key, value in RIGHT.items() if key != "llm_rationale"}
    (folder / "commonsenseqa_train_rationales.jsonl").write_text(json.dumps(broken))
    with pytest.raises(DataError, match="row 1: llm_rationale missing"):
        TASK.load(folder, CsqaOptions())


def test_the_examples_fit_the_recipe(folder: Path, recipe: ExperimentRecipe, tmp_path: Path) -> None:
    options = task_options(task_by_name(recipe.task.name), recipe.task.options, "csqa.yaml")
    data = TASK.load(folder, options)
    file = tmp_path / "examples.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in data.train))
    examples = read_examples(file, recipe.stack)
    pair = adapter_pairs(recipe.stack, "answer", examples)[0]
    assert "kettle | hat | letter | cloud | shoe" in pair.prompt and pair.completion == " kettle"
    assert "only a kettle does." in pair.prompt and "So the answer" not in pair.prompt
