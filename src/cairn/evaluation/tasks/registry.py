"""Tasks: data that people know, as stage examples to train from and questions to test with, and how answers are scored.

    task: {name: snips, folder: data/snips, train_questions: 2000}          (a recipe's section)
              │ task_by_name            └── Task.Options, checked like any other configuration
              ▼
    Task.load ── TaskData ─┬─ train   rows of an examples file: what `cairn finetune` reads
                           ├─ test    Questions, with gold hand-offs where the data has them
                           └─ facts   files, licence, counts, what was left out and why
    Task.score, .measures, .groups ── the numbers of a comparison

A task of your own is any object with the members of `Task`: name it `package.module:object`, or give it a name of its
own with an entry point in the group `cairn.tasks`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from cairn.config import StrictModel, parse_config
from cairn.errors import ConfigError
from cairn.evaluation.systems import Question
from cairn.plugins import load_named, plugin_names

__all__ = ["ENTRY_POINTS", "TASKS", "Task", "TaskData", "task_by_name", "task_names", "task_options"]

ENTRY_POINTS = "cairn.tasks"

# name -> where it is; the object is a Task, or a class of one that is made without arguments
TASKS: dict[str, str] = {
    "babi": "cairn.evaluation.tasks.babi_task:TASK",
    "clinc150": "cairn.evaluation.tasks.clinc150:TASK",
    "clutrr": "cairn.evaluation.tasks.clutrr:TASK",
    "csqa": "cairn.evaluation.tasks.csqa:TASK",
    "examples": "cairn.evaluation.tasks.own_data:TASK",
    "fairytaleqa": "cairn.evaluation.tasks.fairytaleqa:TASK",
    "scan": "cairn.evaluation.tasks.scan:TASK",
    "snips": "cairn.evaluation.tasks.snips:TASK",
}

_MEMBERS = ("name", "Options", "load", "score", "measures", "groups")


@dataclass(frozen=True)
class TaskData:
    """What a task brings to an experiment.

    Args:
        train: rows of an examples file: id, inputs, stages (the gold output of every stage), answer; and if they are
            there task, group, references. Validation questions are drawn from these.
        test: the test questions, none of them in `train`.
        facts: for the result: files with their hashes, licence, counts, what was left out and why.
    """

    train: list[dict[str, Any]]
    test: list[Question]
    facts: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class Task(Protocol):
    """A data set with its scores. `Options` holds the task's own settings: counts, filters, sub-tasks, splits."""

    name: str
    Options: type[StrictModel]

    def load(self, folder: Path, options: Any) -> TaskData:
        """Reads the user's copy of the public data, .xz or plain.

        Args:
            folder: where the files are.
            options: an instance of `Options`.

        Raises:
            DataError: a file is missing or damaged.
        """
        ...

    def score(self, answer: str, question: Question) -> float:
        """Returns how right an answer is, 0 to 1: exact match, frame match, ROUGE-L F1."""
        ...

    def measures(self, answers: Sequence[str], questions: Sequence[Question]) -> dict[str, float]:
        """Returns further figures of all answers together, such as the F1 of slots; empty if there are none."""
        ...

    def groups(self, question: Question) -> str:
        """Returns the row of the table by group that a question belongs to: task number, hops, question type."""
        ...


def task_names() -> list[str]:
    """Returns the names of all tasks, those of installed packages included."""
    return plugin_names(TASKS, ENTRY_POINTS)


def task_by_name(name: str) -> Task:
    """Returns a task.

    Args:
        name: a name of `TASKS` or of an entry point, or `package.module:object`.

    Raises:
        ConfigError: there is no such task, its module cannot be imported, or the object is no task.
    """
    found = load_named(name, TASKS, ENTRY_POINTS, key="task.name", what="task")
    task = found() if inspect.isclass(found) else found
    missing = [member for member in _MEMBERS if not hasattr(task, member)]
    if missing:
        raise ConfigError("task.name", [f"{name!r} is no task, it lacks {', '.join(missing)}"])
    return task


def task_options(task: Task, values: Mapping[str, Any], source: str) -> Any:
    """Returns a task's options, checked.

    Args:
        task: the task.
        values: the section `task:` of a recipe without name and folder.
        source: for the error.

    Raises:
        ConfigError: an unknown key or a wrong value; all faults at once.
    """
    return parse_config(task.Options, dict(values), f"{source}, task {task.name}")
