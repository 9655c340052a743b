"""The measures of `cairn eval` that are Cairn's own: bits per byte, BLiMP, and answers to question files.

Each returns its part of the result. What is done is kept by `Partial`, so that an interrupted command goes on.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cairn.errors import storage_error
from cairn.files import sha256_json
from cairn.progress import Progress
from cairn.runs import read_jsonl
from cairn.stacks.spec import StackSpec

__all__ = ["Files", "Partial", "model_parts", "read_files", "stack_parts"]


class Partial:
    """The parts that are done, appended to OUT.partial.jsonl; of another command's they are not used."""

    def __init__(self, out: Path | None, settings: Mapping[str, Any]) -> None:
        self._path = None if out is None else out.with_name(out.name + ".partial.jsonl")
        self._done: dict[tuple[str, str], Any] = {}
        if self._path is None:
            return
        stamp = {"settings_sha256": sha256_json(settings)}
        rows = read_jsonl(self._path) if self._path.exists() else []
        if rows[:1] == [stamp]:
            self._end_last_line(self._path)
            self._done = {(row["part"], row["name"]): row["value"] for row in rows[1:]}
            print(f"goes on after {len(self._done)} parts in {self._path}", file=sys.stderr)
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps(stamp) + "\n", encoding="utf-8")
        except OSError as error:
            raise storage_error(error, self._path) from error

    @staticmethod
    def _end_last_line(path: Path) -> None:
        """Cuts off a line that a kill left unfinished: the next one may not be appended to it."""
        data = path.read_bytes()
        if not data.endswith(b"\n"):
            os.truncate(path, data.rfind(b"\n") + 1)

    def of(self, part: str) -> dict[str, Any]:
        """Returns name -> value of a part."""
        return {name: value for (kind, name), value in self._done.items() if kind == part}

    def keep(self, part: str, name: str, value: Any) -> None:
        """Adds one value and flushes it."""
        self._done[part, name] = value
        if self._path is not None:
            try:
                with open(self._path, "a", encoding="utf-8") as file:
                    file.write(json.dumps({"part": part, "name": name, "value": value}) + "\n")
            except OSError as error:
                raise storage_error(error, self._path) from error

    def once(self, part: str, name: str, make: Callable[[], Any]) -> Any:
        """Returns a value, made only if it is not there."""
        if (part, name) not in self._done:
            self.keep(part, name, make())
        return self._done[part, name]

    def remove(self) -> None:
        """Deletes the file: the result holds everything."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Files:
    """What a command measures on, read before any weight: faults in a file are known at once."""

    documents: Mapping[str, list[str]]
    pairs: list[dict[str, Any]]
    questions: Mapping[str, Sequence[Any]]
    solved: Sequence[Any]


def read_files(
    settings: Mapping[str, Any],
    text: Sequence[Path],
    blimp: Path | None,
    data: Sequence[Path],
    train: Sequence[Path],
    spec: StackSpec | None,
) -> Files:
    """Reads every file of the command.

    Raises:
        DataError: a file cannot be read, or is not as expected. InputError: a question lacks a field of the stack.
    """
    from cairn.evaluation.tasks.reading import read_questions, story_join
    from cairn.evaluation.textfiles import read_rows
    from cairn.stacks.runner import check_inputs

    maps = [] if spec is None else [stage for stage in spec.stages if stage.over in spec.inputs]
    join = story_join([stage.split for stage in maps])
    questions = {str(path): read_questions(settings["task"], path, join=join) for path in data}
    for name, asked in questions.items() if spec is not None else ():
        check_inputs(spec, dict(asked[0].inputs), f"{name}: ")
    return Files(
        documents={str(path): _documents(path, settings["max_bytes"]) for path in text},
        pairs=list(read_rows(blimp)) if blimp is not None else [],
        questions=questions,
        solved=[one for path in train for one in read_questions(settings["task"], path)],
    )


def model_parts(engine: Any, files: Files, settings: Mapping[str, Any], kept: Partial) -> dict[str, Any]:
    """Returns what a model scores on the files."""
    from cairn.evaluation.suites import blimp as score_blimp

    parts: dict[str, Any] = {"parameters": sum(weight.numel() for weight in engine.model.parameters())}
    if files.documents:
        parts["text"] = {
            name: kept.once("text", name, lambda name=name: _bits(engine, name, files.documents[name], settings))
            for name in files.documents
        }
    if files.pairs:
        done = kept.of("blimp")
        pairs = Counter(str(row.get("UID")) for row in files.pairs)
        total = sum(min(count, settings["limit"] or count) for count in pairs.values())
        start = sum(value["n"] for uid, value in done.items() if uid in pairs)
        with Progress("BLiMP", total=total, unit="pair", start=start) as progress:
            parts["blimp"] = score_blimp(
                engine, files.pairs, limit=settings["limit"], done=done,
                on_paradigm=lambda uid, value: kept.keep("blimp", uid, value), progress=_into(progress),
            )  # fmt: skip
    if files.questions:
        parts["tasks"] = {
            name: kept.once("task", name, lambda name=name: _few_shot(engine, name, files, settings))
            for name in files.questions
        }
    return parts


def _documents(path: Path, max_bytes: int | None) -> list[str]:
    from cairn.evaluation.suites import first_bytes
    from cairn.evaluation.textfiles import read_documents

    return list(first_bytes(read_documents(path), max_bytes))


def _bits(engine: Any, name: str, documents: list[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    from cairn.evaluation.suites import bits_per_byte

    total = sum(len(document.encode()) for document in documents)
    with Progress(Path(name).name, total=total, unit="byte") as progress:
        return bits_per_byte(
            engine, documents, context=settings["context"], stride=settings["stride"], progress=_into(progress)
        )


def _few_shot(engine: Any, name: str, files: Files, settings: Mapping[str, Any]) -> dict[str, Any]:
    from cairn.evaluation.cost import FlopsCounter
    from cairn.evaluation.systems import run_base

    asked = list(files.questions[name])[: settings["limit"]]
    fields = list(asked[0].inputs)
    template = "\n".join([*(f"{field.capitalize()}: {{{field}}}" for field in fields), "Answer:"])
    with Progress(Path(name).name, total=len(asked), unit="question") as progress:
        outcomes, shown = run_base(
            engine, asked, files.solved, template, FlopsCounter(engine.config), shots=settings["shots"],
            seed=settings["seed"], progress=_into(progress),
        )  # fmt: skip
    return {**_score(outcomes), "examples_shown": shown, "template": template}


def stack_parts(
    spec: StackSpec, engine: Any, files: Files, settings: Mapping[str, Any], kept: Partial
) -> dict[str, Any]:
    """Returns what a stack answers to the questions."""
    from cairn.stacks.runner import Runner
    from cairn.verbs.info import describe

    adapters = describe(str(spec.folder))["adapters"]
    sizes = {name: one["parameters"] for name, one in adapters.items()}
    parts: dict[str, Any] = {"stack": spec.name, "base": spec.base, "trained_parameters": sizes}
    if files.questions:
        runner = Runner(spec, engine, wave=64)
        asked = {name: questions[: settings["limit"]] for name, questions in files.questions.items()}
        parts["tasks"] = {
            name: kept.once("task", name, lambda name=name: _stack_score(runner, name, asked[name], sizes))
            for name in asked
        }
    return parts


def _stack_score(runner: Any, name: str, questions: Sequence[Any], sizes: Mapping[str, int]) -> dict[str, Any]:
    from cairn.evaluation.cost import FlopsCounter
    from cairn.evaluation.systems import run_stack

    with Progress(Path(name).name, total=len(questions), unit="question") as progress:
        flops = FlopsCounter(runner.engine.config, sizes)
        outcomes, traces = run_stack(runner, questions, flops, progress=_into(progress))
    return {**_score(outcomes), "violations": sum(bool(trace.violations) for trace in traces)}


def _score(outcomes: Sequence[Any]) -> dict[str, Any]:
    from cairn.evaluation.statistics import accuracy_interval

    n, seconds = len(outcomes), sum(outcome.seconds for outcome in outcomes)
    correct, groups = [outcome.correct for outcome in outcomes], [outcome.group for outcome in outcomes]
    return {
        "accuracy": sum(correct) / n,
        "ci95": list(accuracy_interval(correct, groups)),
        "n": n,
        "groups": len(set(groups)),
        "flops_per_question": sum(outcome.flops for outcome in outcomes) / n,
        "calls_per_question": sum(outcome.calls for outcome in outcomes) / n,
        "tokens_per_question": sum(outcome.prompt_tokens + outcome.new_tokens for outcome in outcomes) / n,
        "seconds": seconds,
    }


def _into(progress: Progress) -> Callable[[int, int], None]:
    """Returns a callback that moves a progress bar to `done`; its second argument is not needed."""

    def move(done: int, _: int) -> None:
        progress.advance(max(0, done - progress.done))

    return move


