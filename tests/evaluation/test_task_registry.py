"""Tasks by name, and your own files as one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cairn.errors import ConfigError, DataError
from cairn.evaluation.systems import Question
from cairn.evaluation.tasks.own_data import OwnData, question_row, row_question
from cairn.evaluation.tasks.registry import TASKS, Task, task_by_name, task_options

ROW = {"id": "1", "inputs": {"q": "where?"}, "stages": {"find": ["yes", "no"], "look": "x"}, "answer": "hall"}


def test_every_registered_task_is_one() -> None:
    for name in TASKS:
        task = task_by_name(name)
        assert isinstance(task, Task) and task.name == name
        task_options(task, {}, "recipe")


def test_an_unknown_name_is_an_error_with_a_suggestion() -> None:
    with pytest.raises(ConfigError, match=r"no such task: '\w+' \(did you mean snips\?\), allowed: babi, .*:object"):
        task_by_name("snip")
    with pytest.raises(ConfigError, match=r"task 'os:nothing' cannot be imported"):
        task_by_name("os:nothing")
    with pytest.raises(ConfigError, match=r"'os:path' is no task, it lacks name, Options, load"):
        task_by_name("os:path")


def test_a_task_of_your_own_is_named_by_its_place() -> None:
    found = task_by_name("cairn.evaluation.tasks.own_data:OwnData")  # a class is made without arguments
    assert isinstance(found, OwnData)


def test_options_are_checked_like_any_configuration() -> None:
    with pytest.raises(ConfigError, match=r"recipe x, task examples: tran: unknown key \(did you mean train\?\)"):
        task_options(task_by_name("examples"), {"tran": "a.jsonl"}, "recipe x")


def test_own_files_are_read_and_a_row_reads_back_equal(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps(ROW) + "\n")
    rows = [{**ROW, "task": "t", "group": "g", "references": ["the hall"]}, {**ROW, "id": "2"}]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = task_by_name("examples")
    data = task.load(tmp_path, task_options(task, {}, "recipe"))
    assert data.train == [ROW] and data.facts["counts"] == {"train": 1, "test": 2}
    first, second = data.test
    gold = {"find": ("yes", "no"), "look": "x"}
    assert first == Question("1", "g", "t", {"q": "where?"}, "hall", ("the hall",), gold)
    assert second == Question("2", "2", "test", {"q": "where?"}, "hall", (), gold)
    for question in data.test:
        assert row_question(json.loads(json.dumps(question_row(question))), "row") == question
    assert [task.score(text, first) for text in ("Hall.", "the hall", "a hall", "")] == [1.0, 1.0, 0.0, 0.0]
    assert task.score("the hall", second) == 0.0 and task.groups(first) == "t" and task.measures([], []) == {}


@pytest.mark.parametrize(
    "row", [{"id": "1", "answer": "x"}, {**ROW, "inputs": {"q": 3}}, {**ROW, "answer": None}, {**ROW, "stages": []}]
)
def test_a_row_that_is_no_question_is_an_error_with_its_number(tmp_path: Path, row: dict) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps(ROW) + "\n")
    (tmp_path / "test.jsonl").write_text(json.dumps(ROW) + "\n" + json.dumps({**row, "stages": row.get("stages", 1)}))
    task = task_by_name("examples")
    with pytest.raises(DataError, match="test.jsonl, row 2: no question"):
        task.load(tmp_path, task_options(task, {}, "recipe"))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    task = task_by_name("examples")
    with pytest.raises(DataError, match="no such train file.*train.jsonl"):
        task.load(tmp_path, task_options(task, {}, "recipe"))
