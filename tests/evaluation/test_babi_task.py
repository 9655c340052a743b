"""bAbI as a task of experiments: what is loaded, how it fits the shipped recipe, and how answers are scored."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from cairn.bases import base_folder, load_tokenizer
from cairn.data.examples import StackExample, TextPair, adapter_pairs, chain_pairs, direct_pairs, read_examples
from cairn.errors import ConfigError, DataError
from cairn.evaluation.tasks.babi_task import TASK, BabiOptions
from cairn.evaluation.tasks.registry import Task, TaskData, task_by_name, task_options
from cairn.models.tokenization import completion_ids, prompt_ids
from cairn.stacks.spec import StackSpec, load_stack
from cairn.verbs.comparison.recipe import load_recipe

SAMPLES = Path(__file__).with_name("babi_samples.txt")
STAGES = ["ask1", "read1", "ask2", "read2", "ask3", "read3", "answer"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of all 20 tasks, plain for training and packed for testing, two questions each at least."""
    place = tmp_path_factory.mktemp("babi")
    for part in SAMPLES.read_text(encoding="utf-8").split("## ")[1:]:
        name, _, text = part.partition("\n")
        (place / f"{name.strip()}_train.txt").write_text(text * 3, encoding="utf-8")
        (place / f"{name.strip()}_test.txt.xz").write_bytes(lzma.compress(text.encode()))
    return place


@pytest.fixture(scope="module")
def data(folder: Path) -> TaskData:
    return TASK.load(folder, BabiOptions(train_questions=2, test_questions=1))


@pytest.fixture(scope="module")
def stack(repository: Path) -> StackSpec:
    return load_stack(repository / "recipes" / "babi.yaml")


@pytest.fixture(scope="module")
def examples(data: TaskData, stack: StackSpec, tmp_path_factory: pytest.TempPathFactory) -> list[StackExample]:
    """The rows through the stack's own check, which knows every contract, loop and stop value."""
    file = tmp_path_factory.mktemp("rows") / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in data.train), encoding="utf-8")
    return read_examples(file, stack)


def test_the_registry_finds_a_task() -> None:
    assert task_by_name("babi") is TASK and isinstance(TASK, Task)


def test_rows_and_questions_of_all_tasks(data: TaskData, folder: Path) -> None:
    assert [row["task"] for row in data.train] == [f"qa{n}" for n in range(1, 21) for _ in range(2)]
    assert [question.task for question in data.test] == [f"qa{n}" for n in range(1, 21)]
    assert len({row["id"] for row in data.train} | {q.id for q in data.test}) == 60
    row, question = data.train[0], data.test[0]
    assert row["inputs"] == question.inputs and question.inputs["question"] == "Where is Sandra?"
    assert list(row["stages"]) == list(question.stages) == STAGES and row["answer"] == question.answer == "kitchen"
    assert question.stages["read1"] == ("garden, now", "garden", "kitchen, now")
    assert question.group == "qa1-0" and TASK.groups(question) == "qa1"
    assert data.facts["counts"]["qa20"] == {"train": 2, "test": 1, "train_left_out_as_too_long": 0}
    assert len(data.facts["files"]) == 40 and data.facts["licence"].startswith("BSD-3")


def test_lists_are_trained_in_the_order_of_the_notes_and_scored_in_any(data: TaskData) -> None:
    rows = {row["task"]: row for row in data.train}
    assert rows["qa8"]["answer"] == "milk"
    both = next(row for row in data.train if row["task"] == "qa8")
    assert both["answer"] == "apple,milk" and both["stages"]["read1"] == ["apple", "apple, milk"]
    question = next(question for question in data.test if question.task == "qa8")
    assert question.answer == "milk,apple"
    assert [TASK.score(text, question) for text in ("apple,milk", "milk, apple", "milk", "")] == [1.0, 1.0, 0.0, 0.0]


def test_every_gold_call_and_comparator_fits_the_context(stack: StackSpec, examples: list[StackExample]) -> None:
    tokenizer = load_tokenizer("embedded:base")
    context = json.loads((base_folder("embedded:base") / "config.json").read_text())["max_position_embeddings"]

    def tokens(pair: TextPair) -> int:
        return len(prompt_ids(tokenizer, pair.prompt)) + len(completion_ids(tokenizer, pair.completion))

    assert len(examples) == 40
    for adapter in stack.adapter_names():
        room = min(stage.sampling.max_new_tokens for stage in stack.stages_of(adapter))
        pairs = adapter_pairs(stack, adapter, examples)
        assert pairs and all(len(completion_ids(tokenizer, pair.completion)) <= room for pair in pairs)
        assert all(tokens(pair) <= 80 for pair in pairs)  # a few dozen: small decisions are what the stack is made of
    for pair in [*direct_pairs(stack, examples), *chain_pairs(stack, examples)]:
        assert tokens(pair) <= context


def test_the_recipe_loads_and_its_options_are_right(repository: Path) -> None:
    recipe = load_recipe(repository / "recipes" / "babi.yaml")
    assert recipe.task is not None and recipe.task.name == "babi"
    options = task_options(TASK, recipe.task.options, "babi.yaml")
    assert options.tasks == list(range(1, 21)) and options.test_split == "test" and options.test_questions == 1000
    assert recipe.stack.adapter_names() == ["ask", "read", "answer"]
    assert all(stage.by == "model" for stage in recipe.stack.stages)  # no rule does the thinking


def test_measures_count_solved_tasks(data: TaskData) -> None:
    right = [question.answer for question in data.test]
    assert TASK.measures(right, data.test) == {"macro_accuracy": 1.0, "tasks_solved": 1.0}
    assert TASK.measures(["?", *right[1:]], data.test) == {"macro_accuracy": pytest.approx(0.95), "tasks_solved": 0.95}
    assert TASK.measures([], []) == {}


def test_some_tasks_more_questions_and_short_stories(folder: Path) -> None:
    found = TASK.load(folder, BabiOptions(tasks=[5, 1], train_questions=2, more_questions={5: 4}, test_questions=2))
    assert [row["task"] for row in found.train] == ["qa1"] * 2 + ["qa5"] * 4
    short = TASK.load(folder, BabiOptions(tasks=[7], train_questions=3, test_questions=1, max_sentences=3))
    assert all(row["inputs"]["story"].count(".") <= 3 for row in short.train)
    assert short.facts["counts"]["qa7"]["train_left_out_as_too_long"] == 2


def test_the_end_of_the_training_files_is_never_trained_on(folder: Path) -> None:
    options: dict[str, Any] = {"tasks": [1], "test_questions": 2, "test_split": "train_end"}
    found = TASK.load(folder, BabiOptions(train_questions=4, **options))
    assert [question.id for question in found.test] == ["qa1-2-4", "qa1-2-5"]
    assert list(found.facts["files"]) == ["qa1_train.txt"]  # the test files are not even opened
    with pytest.raises(DataError, match="too few questions for this: 0. Allowed: at least test_questions = 2"):
        TASK.load(folder, BabiOptions(train_questions=5, **options))  # the last story is partly trained on


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": [0, 21]}, "tasks.1: 21: input should be less than or equal to 20"),
        ({"tasks": [1, 1]}, "tasks must be distinct"),
        ({"tasks": [1], "more_questions": {"2": 5}}, "more_questions: 2 not among tasks, allowed: 1"),
        ({"train_question": 5}, "did you mean train_questions?"),
        ({"test_split": "valid"}, "test_split"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        task_options(TASK, options, "babi.yaml")
    assert message in str(caught.value)


def test_missing_and_small_files(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no train file of bAbI task 1.*qa1_train.txt or qa1_train.txt.xz"):
        TASK.load(tmp_path, BabiOptions())
    with pytest.raises(DataError, match="too few questions for this: 6. Allowed: at least train_questions = 2000"):
        TASK.load(folder, BabiOptions(tasks=[1]))
    (tmp_path / "qa1_train.txt").write_text("1 Mary went to the office.\n2 Where is Mary?\tgarden\t1\n", "utf-8")
    (tmp_path / "qa1_test.txt").write_text("1 Mary went to the office.\n2 Where is Mary?\toffice\t1\n", "utf-8")
    with pytest.raises(DataError, match="qa1-0-2: the rules give 'office', the file another answer"):
        TASK.load(tmp_path, BabiOptions(tasks=[1], train_questions=1, test_questions=1))
