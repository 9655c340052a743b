"""What the demo reads and writes: shipped bAbI stories become stage examples and test questions in the run folder.

    assets/demo/babi/*.txt.xz ── rules of evaluation/tasks/babi_stages ──> OUT/train.jsonl   gold hand-offs
                                                                      └──> OUT/test.jsonl    questions and answers
    assets/demo/stack.yaml + --set ─────────────────────────────────────> OUT/stack.yaml     with every setting

The three files are all that `cairn finetune` and `cairn run` need: the demo has no way of its own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from cairn.config import StrictModel, load_config, save_config
from cairn.errors import DataError
from cairn.evaluation.systems import Question
from cairn.evaluation.tasks.babi import BabiQuestion, read_babi
from cairn.evaluation.tasks.babi_stages import STAGE_TASKS, STORY_JOIN, gold_chain, stage_example
from cairn.files import write_text
from cairn.stacks.spec import StackSpec, load_stack

__all__ = [
    "DemoConfig",
    "ResolvedDemo",
    "demo_folder",
    "demo_questions",
    "resolve_demo",
    "write_inputs",
]

Split = Literal["train", "test"]
_PREFIX = "demo."


class DemoConfig(StrictModel):
    """Settings of the demo beside those of its stack.

    Args:
        train_questions: training questions of each task, the first of its file.
        train_sentences: most sentences of a training question: its story and what `mention` and `follow` keep of it,
            together. With more, the text of the chain comparator would not fit the context of the shipped base, and
            all systems train on the same questions. Test questions have no limit.
        test_questions: test questions of each task, the first of its file.
        shots: solved examples shown to the bare base.
        shown_traces: questions in the report; traces.jsonl has all.
        resamples: draws of the bootstrap.
        seed: of the bootstrap and of the choice of shown examples; training has its own.
    """

    train_questions: int = Field(default=2000, ge=1, le=10_000)
    train_sentences: int = Field(default=84, ge=3)
    test_questions: int = Field(default=200, ge=1, le=1000)
    shots: int = Field(default=4, ge=1)
    shown_traces: int = Field(default=400, ge=1)
    resamples: int = Field(default=10_000, ge=100)
    seed: int = 0


class ResolvedDemo(StrictModel):
    """Everything that decides what a demo does."""

    demo: DemoConfig
    stack: StackSpec


def demo_folder() -> Path:
    """Returns the folder of the shipped stack and its data."""
    return Path(str(resources.files("cairn"))) / "assets" / "demo"


def resolve_demo(overrides: Sequence[str] = (), *, full: bool = False, quick: bool = False) -> ResolvedDemo:
    """Returns the settings of a demo.

    Args:
        overrides: `demo.KEY=value` for DemoConfig, any other `key.path=value` for stack.yaml; they win over flags.
        full: 1,000 test questions a task.
        quick: a minute's run that shows that everything works here; its scores mean nothing.

    Raises:
        ConfigError: a key or a value is wrong.
    """
    own = ["test_questions=1000"] if full else []
    stack: list[str] = []
    if quick:
        own += ["train_questions=200", "test_questions=8", "resamples=1000"]
        stack += ["training.tokens_total=30000"]
    for override in overrides:
        if override.startswith(_PREFIX):
            own.append(override.removeprefix(_PREFIX))
        else:
            stack.append(override)
    demo = load_config(DemoConfig, None, own)
    return ResolvedDemo(demo=demo, stack=load_stack(demo_folder() / "stack.yaml", stack))


def write_inputs(settings: ResolvedDemo, out: Path) -> None:
    """Writes OUT/stack.yaml, OUT/train.jsonl and OUT/test.jsonl, unless they are there (a resumed run).

    Raises:
        DataError: a shipped file is missing or damaged, or too few training stories are short enough.
        StorageError: the folder cannot be written.
    """
    if not (out / "train.jsonl").exists():
        rows = [stage_example(question) for question in _chosen("train", settings.demo)]
        write_text(out / "train.jsonl", _lines(rows))
    if not (out / "test.jsonl").exists():
        rows = [
            {"id": question.id, "task": question.task, "story_id": question.story_id, "inputs": _inputs(question),
             "answer": question.answer}
            for question in _chosen("test", settings.demo)
        ]  # fmt: skip
        write_text(out / "test.jsonl", _lines(rows))
    if not (out / "stack.yaml").exists():
        save_config(settings.stack, out / "stack.yaml")


def demo_questions(settings: DemoConfig, split: Split = "test") -> list[Question]:
    """Returns the questions of a split as the evaluation takes them, in the order of the files.

    Raises:
        DataError: as `write_inputs`.
    """
    return [
        Question(question.id, question.story_id, question.task, _inputs(question), question.answer)
        for question in _chosen(split, settings)
    ]


def _chosen(split: Split, settings: DemoConfig) -> list[BabiQuestion]:
    wanted = settings.train_questions if split == "train" else settings.test_questions
    longest = settings.train_sentences if split == "train" else None
    chosen: list[BabiQuestion] = []
    for task in STAGE_TASKS:
        fitting: list[BabiQuestion] = []
        for question in _shipped(task, split):
            if len(fitting) == wanted:
                break
            if longest is None or _sentences(question) <= longest:
                fitting.append(question)
        if len(fitting) < wanted:
            raise DataError(
                f"{task}_{split}.txt.xz has too few questions with at most {longest} sentences", value=len(fitting),
                allowed=f"at least demo.train_questions = {wanted}", next="raise demo.train_sentences",
            )  # fmt: skip
        chosen += fitting
    return chosen


def _sentences(question: BabiQuestion) -> int:
    chain = gold_chain(question.sentences, question.question)
    return len(question.sentences) + len(chain.mention) + len(chain.follow)


@cache
def _shipped(task: str, split: Split) -> list[BabiQuestion]:
    return read_babi(demo_folder() / "babi" / f"{task}_{split}.txt.xz")


def _inputs(question: BabiQuestion) -> dict[str, str]:
    return {"story": STORY_JOIN.join(question.sentences), "question": question.question}


def _lines(rows: Sequence[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
