"""CLINC150: the intents, outliers, metrics against hand-computed values, and the recipe's examples."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from cairn.contracts import ChoicesContract
from cairn.data.examples import direct_pairs, read_examples
from cairn.engines.fake_engine import FakeEngine
from cairn.errors import DataError
from cairn.evaluation.tasks.clinc150 import TASK, Clinc150Options
from cairn.evaluation.tasks.clinc150_intents import DOMAINS, OOS, decision, domain_of
from cairn.evaluation.tasks.registry import Task, task_by_name, task_options
from cairn.stacks.runner import Runner
from cairn.verbs.comparison.recipe import ExperimentRecipe, load_recipe

TRAIN = [
    {"text": "someone took my card", "intent": "report_lost_card", "domain": "credit_cards"},
    {"text": "set a clock for ten", "intent": "alarm", "domain": "utility"},
    {"text": "who wrote the oldest poem", "intent": "oos", "domain": "oos"},
    {"text": "wake me at nine", "intent": "alarm", "domain": "utility"},
]
TEST = [
    {"text": "my card is gone", "intent": "report_lost_card", "domain": "credit_cards"},
    {"text": "Wake me at nine", "intent": "alarm", "domain": "utility"},
    {"text": "how high is that hill", "intent": "oos", "domain": "oos"},
    {"text": "how deep is that lake", "intent": "oos", "domain": "oos"},
]
OTHERS = [
    {"task": "facts", "question": "Do seven geese swim?\nOptions:\n- yes\n- no"},
    {"task": "facts", "question": "How high is that hill?"},  # a test command
    {"task": "facts", "question": "Do seven geese swim?"},
    {"task": "facts", "question": "Would a question that goes on much longer than any command be left out?"},
    {"task": "sums", "question": "What is 3 + 4?"},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, rows in (("clinc150_train", TRAIN), ("clinc150_test", TEST), ("others", OTHERS)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture(scope="module")
def recipe(request: pytest.FixtureRequest) -> ExperimentRecipe:
    return load_recipe(request.config.rootpath / "recipes" / "clinc150.yaml")


def test_there_are_150_intents_in_ten_domains() -> None:
    assert len(DOMAINS) == 10 and {len(intents) for intents in DOMAINS.values()} == {15}
    assert len({intent for intents in DOMAINS.values() for intent in intents}) == 150
    assert domain_of("report lost card") == "credit cards" and domain_of("make tea") == domain_of(OOS) == OOS


def test_decision() -> None:
    assert decision({"scope": "yes", "intent": "alarm"}) == "alarm"
    assert decision({"scope": "no", "intent": "alarm"}) == OOS
    assert decision({"scope": "yes", "intent": OOS}) == OOS


def test_load(folder: Path) -> None:
    data = TASK.load(folder, Clinc150Options())
    assert [row["answer"] for row in data.train] == ["report lost card", "alarm", "oos"]
    assert [row["stages"]["scope"] for row in data.train] == ["yes", "yes", "no"]
    assert [question.task for question in data.test] == ["credit cards", "utility", "oos", "oos"]
    assert data.facts["counts"] == {
        "train": 3, "test": 4, "train out of scope": 1, "of these from outliers": 0, "test out of scope": 2,
    }  # fmt: skip
    assert data.facts["left_out"] == {"training commands that are test commands too": 1}
    assert isinstance(TASK, Task) and task_by_name("clinc150") is TASK


def test_outliers_are_short_questions_that_no_split_has(folder: Path) -> None:
    data = TASK.load(folder, Clinc150Options(outliers="others.jsonl"))
    added = [row["inputs"]["command"] for row in data.train[3:]]
    assert added == ["do seven geese swim", "what is 3 + 4"]
    assert all(row["answer"] == OOS and row["task"] == OOS for row in data.train[3:])
    assert data.facts["counts"]["of these from outliers"] == 2
    assert set(data.facts["files"]) == {"clinc150_train.jsonl", "clinc150_test.jsonl", "others.jsonl"}
    only = TASK.load(folder, Clinc150Options(outliers="others.jsonl", outlier_tasks=["sums"]))
    assert [row["inputs"]["command"] for row in only.train[3:]] == ["what is 3 + 4"]
    assert len(TASK.load(folder, Clinc150Options(outliers="others.jsonl", outlier_count=1)).train) == 4
    with pytest.raises(DataError, match=r"a data file is missing.*nowhere\.jsonl"):
        TASK.load(folder, Clinc150Options(outliers="nowhere.jsonl"))


def test_questions_are_drawn_by_the_seed(folder: Path) -> None:
    rows = [{"text": f"wake me at {n}", "intent": "alarm", "domain": "utility"} for n in range(30)]
    (folder / "clinc150_train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    drawn = [
        [row["id"] for row in TASK.load(folder, Clinc150Options(train_questions=6, test_questions=2, seed=seed)).train]
        for seed in (1, 1, 2)
    ]
    assert len(drawn[0]) == 6 and drawn[0] == drawn[1] != drawn[2]


def test_an_unknown_intent_is_an_error(folder: Path) -> None:
    (folder / "clinc150_train.jsonl").write_text(json.dumps({**TRAIN[0], "intent": "make_tea"}))
    with pytest.raises(DataError, match="no intent of CLINC150: 'make_tea'"):
        TASK.load(folder, Clinc150Options())


def test_scores_and_measures_by_hand(folder: Path) -> None:
    questions = TASK.load(folder, Clinc150Options()).test
    assert [TASK.score(answer, questions[0]) for answer in ("Report_lost_card.", "new card")] == [1.0, 0.0]
    # In scope: 1 of 2 right, both in the right domain; out of scope: 1 of 2 found, and 1 of the 1 said to be.
    assert TASK.measures(["new card", "alarm", "oos", "weather"], questions) == {
        "in_scope_accuracy": 0.5, "oos_recall": 0.5, "oos_precision": 1.0, "domain_accuracy": 1.0,
    }  # fmt: skip
    assert "oos_precision" not in TASK.measures(["new card"], questions[:1])


def test_the_examples_fit_the_recipe(folder: Path, recipe: ExperimentRecipe, tmp_path: Path) -> None:
    (folder / "flan_cot.jsonl").write_text(json.dumps({**OTHERS[0], "task": "strategyqa"}))
    options = task_options(task_by_name(recipe.task.name), recipe.task.options, "clinc150.yaml")
    data = TASK.load(folder, options)
    file = tmp_path / "examples.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in data.train))
    pairs = direct_pairs(recipe.stack, read_examples(file, recipe.stack))
    assert tuple(pairs[0]) == ("someone took my card\nIntent:", " report lost card")
    assert tuple(pairs[-1]) == ("do seven geese swim\nIntent:", " oos")
    contract = recipe.stack.stage("intent").contract
    assert isinstance(contract, ChoicesContract)
    assert set(contract.values) == {OOS, *(intent for intents in DOMAINS.values() for intent in intents)}


def test_the_stack_answers(recipe: ExperimentRecipe) -> None:
    engine = FakeEngine(
        {"a duck\nIn scope:": " no", "In scope:": " yes", "Intent:": " alarm"}, adapters=["scope", "intent"]
    )
    engine.capabilities = replace(engine.capabilities, constraints=True)
    traces = Runner(recipe.stack, engine).run([{"command": "wake me"}, {"command": "what is a duck"}])
    assert [trace.answer for trace in traces] == ["alarm", OOS]
