"""`cairn run`: ask a stack, one question with its hand-offs shown, or a file of them.

    one question   stage after stage printed as it is made, then the answer
    --input FILE   wave ── answers appended to --output, flushed ── wave ── ...     killed? the same command goes on
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from io import FileIO
from pathlib import Path
from typing import Annotated

import typer

from cairn.engines.base import Engine
from cairn.errors import ConfigError, DataError, InputError, storage_error
from cairn.progress import Progress
from cairn.runs import read_jsonl
from cairn.stacks.runner import Runner, check_inputs
from cairn.stacks.spec import StackSpec, check_artifacts, load_stack
from cairn.stacks.trace import StageRecord, Trace, format_inputs, format_stage, format_totals, to_json

__all__ = ["open_engine", "open_stack", "run"]

_EMBEDDED = "embedded:"
_LINE_START = b'{"id": '


@dataclass(frozen=True)
class _Question:
    id: str
    inputs: dict[str, str]


def run(
    stack: Annotated[str, typer.Argument(metavar="STACK", help="A stack folder, its stack.yaml, or embedded:NAME.")],
    text: Annotated[
        str | None, typer.Argument(metavar="TEXT", help="The first input field that no --field gives.")
    ] = None,
    field: Annotated[
        list[str] | None, typer.Option(metavar="NAME=TEXT", help="An input; NAME=@FILE reads a file. Repeatable.")
    ] = None,
    input: Annotated[Path | None, typer.Option(metavar="FILE", help="JSON lines with many questions.")] = None,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Where their answers go, as JSON lines.")] = None,
    compact: Annotated[bool, typer.Option("--compact", help="Write id, answer and violations only.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the trace of one question as JSON.")] = False,
    base: Annotated[str | None, typer.Option(metavar="BASE", help="Another base than the stack's own.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")] = "auto",
    wave: Annotated[int, typer.Option(min=1, help="Questions of a file that go through the stages together.")] = 64,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value of stack.yaml; repeatable.")
    ] = None,
) -> None:
    """Ask a stack, and see each hand-off between its stages.

    One question: every stage is printed as soon as it is done. A map stage shows its items with their outputs, those
    it keeps marked with a star; a loop its calls by number, below the state it starts from; what the stage hands on
    stands behind the arrow; a broken contract behind an exclamation mark. A stage that is a plain function is marked
    as a rule.

      cairn run runs/demo/stack --field story=@story.txt "Where is the milk?"
      cairn run runs/demo/stack --field story="Mary went home." --field question="Where is Mary?" --json

    Many questions: one JSON object a line, {"id": ..., "inputs": {FIELD: TEXT}} or {"id": ..., FIELD: TEXT}. The
    answers are appended to --output in the same order; the same command goes on after an interrupt.

      cairn run runs/demo/stack --input questions.jsonl --output answers.jsonl

    A question that cannot be asked, one longer than the model reads for example, gets a line with "error" in the place
    of an answer; the others are answered, and the command ends with exit code 2.

    An output that breaks its stage's contract is asked for once more (stage.retries), then used as it is and recorded
    in the trace, as are a rule that fails and a loop that had to be ended.
    """
    spec = open_stack(stack, set_ or (), base=base)
    if input is None:
        if output is not None:
            raise InputError("--output is for many questions", value=str(output), next="give --input FILE as well")
        question = _one_question(spec, text, field or [])
        check_inputs(spec, question)
        engine = open_engine(spec, device=device, dtype=dtype)
        _show(spec, engine, question, as_json)
        return
    if output is None:
        raise InputError("--input needs --output", value=str(input), next="give --output FILE.jsonl")
    if text is not None or field or as_json:
        raise InputError("--input brings its own questions", allowed="no TEXT, --field or --json beside it")
    questions = _read_questions(spec, input)
    done, refused = _answered(spec, questions, output)
    with _open_append(output) as file:  # before the weights: a folder without permission is known at once
        left = [question for question in questions if question.id not in done]
        if left:
            runner = Runner(spec, open_engine(spec, device=device, dtype=dtype), wave=wave)
            refused |= _run_many(runner, left, file, output, wave, compact, len(done))
    answers = len(questions) - len(refused)
    print(f"{answers:,} answers in {output}" + (f" ({len(done):,} were there)" if done else ""))
    if refused:
        name, why = next(iter(refused.items()))
        raise InputError(
            f"{len(refused):,} of {len(questions):,} questions were refused, the first: question {name}: {why}",
            next=f"their lines in {output} have \"error\"; correct them and ask for them with another --output",
        )


def open_stack(stack: str, overrides: Sequence[str] = (), *, base: str | None = None) -> StackSpec:
    """Loads a stack and checks that its adapters are there, before any weight is loaded.

    Args:
        stack: folder, stack.yaml, or "embedded:NAME" (shipped with Cairn).
        overrides: key.path=value texts.
        base: another base than the stack's own.

    Raises:
        ConfigError: no such stack, a fault in it, or adapters missing: all faults in one error.
    """
    place = Path(stack)
    if stack.startswith(_EMBEDDED):
        assets = Path(str(resources.files("cairn"))) / "assets"
        place = assets / stack.removeprefix(_EMBEDDED)
        if not (place / "stack.yaml").is_file():
            present = [f"{_EMBEDDED}{path.parent.name}" for path in sorted(assets.glob("*/stack.yaml"))]
            raise ConfigError(
                stack,
                [f"this installation holds no such stack, allowed: {', '.join(present) or 'a stack folder'}"],
                next="`cairn demo` trains one in runs/demo/stack",
            )
    spec = load_stack(place, overrides)
    check_artifacts(spec)
    if base is not None:
        spec = spec.model_copy(update={"base": base})
    return spec


def open_engine(spec: StackSpec, *, device: str = "auto", dtype: str = "auto") -> Engine:
    """Loads the base and the adapters of a trained stack.

    Raises:
        CheckpointError, TokenizerError, AdapterError: see `TorchEngine`.
    """
    from cairn.engines.torch_engine import TorchEngine

    return TorchEngine(spec.base_place, check_artifacts(spec), device=device, dtype=dtype)


def _one_question(spec: StackSpec, text: str | None, fields: Iterable[str]) -> dict[str, str]:
    question: dict[str, str] = {}
    for given in fields:
        name, equals, value = given.partition("=")
        if not equals:
            raise InputError("--field needs a name", value=given, allowed="NAME=TEXT or NAME=@FILE")
        if name in question:
            raise InputError("--field is given twice", value=name)
        question[name] = _read_field(value[1:]) if value.startswith("@") else value
    if text is not None:
        free = [name for name in spec.inputs if name not in question]
        if not free:
            raise InputError("TEXT is left over: every input has a --field", value=text, allowed="one of both")
        question = {**question, free[0]: text}
    return {**{name: question[name] for name in spec.inputs if name in question}, **question}


def _read_field(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the file of a field cannot be read ({error})", value=path) from None


def _show(spec: StackSpec, engine: Engine, question: Mapping[str, str], as_json: bool) -> None:
    runner = Runner(spec, engine)
    if as_json:
        print(to_json(runner.run([question])[0]))
        return
    width = max(60, min(shutil.get_terminal_size((100, 24)).columns, 120))
    print(format_inputs(dict(question), width) + "\n", flush=True)
    number = 0

    def show(_: int, record: StageRecord) -> None:
        nonlocal number
        number += 1
        print(format_stage(record, number, width), flush=True)

    trace = runner.run([question], on_handoff=show)[0]
    broken = len(trace.violations)
    print(f"\nanswer: {trace.answer}")
    print(f"({format_totals([trace])}{f'; {broken} broken promises' if broken else ''})")


def _read_questions(spec: StackSpec, path: Path) -> list[_Question]:
    try:
        rows = read_jsonl(path)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the questions cannot be read ({error})", value=str(path)) from None
    questions: list[_Question] = []
    seen: set[str] = set()
    for number, row in enumerate(rows, start=1):
        name = str(row.get("id", number))
        inputs = row["inputs"] if isinstance(row.get("inputs"), dict) else {k: v for k, v in row.items() if k != "id"}
        where = f"{path}, question {number}: "
        check_inputs(spec, inputs, where)
        if name in seen:
            raise InputError(f"{where}id is used twice", value=name, allowed="distinct ids")
        seen.add(name)
        questions.append(_Question(name, inputs))
    if not questions:
        raise InputError("the file has no questions", value=str(path), allowed="one JSON object a line")
    return questions


def _answered(spec: StackSpec, questions: Sequence[_Question], output: Path) -> tuple[set[str], dict[str, str]]:
    """Returns the ids that an earlier call did and why it refused some; cuts off a line that it left unfinished."""
    if not output.is_file():
        return set(), {}
    other = "choose another --output, or delete this file"
    by_id = {question.id: question for question in questions}
    done: set[str] = set()
    refused: dict[str, str] = {}
    try:
        rows, data = read_jsonl(output), output.read_bytes()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the answers of an earlier call cannot be read ({error})", value=str(output)) from None
    whole = data.rfind(b"\n") + 1
    complete = sum(1 for line in data[:whole].split(b"\n") if line.strip())
    for row in rows[:complete]:
        name = row.get("id")
        if name not in by_id or row.get("inputs", by_id[name].inputs) != by_id[name].inputs:
            raise DataError(f"{output} holds answers to other questions", value=name, next=other)
        if row.get("stack", spec.name) != spec.name:
            raise DataError(f"{output} holds answers of another stack", value=row["stack"], next=other)
        done.add(name)
        refused |= {name: row["error"]} if row.get("error") else {}
    if whole < len(data):
        if not _LINE_START.startswith(data[whole:][: len(_LINE_START)]):
            raise DataError("this file holds something else than answers", value=str(output), next=other)
        try:
            os.truncate(output, whole)
        except OSError as error:
            raise storage_error(error, output) from error
    return done, refused


def _open_append(path: Path) -> FileIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return FileIO(path, "a")  # unbuffered: what is written is written
    except OSError as error:
        raise storage_error(error, path) from error


def _run_many(
    runner: Runner, left: Sequence[_Question], file: FileIO, path: Path, wave: int, compact: bool, before: int
) -> dict[str, str]:
    """Answers the questions that are left; returns why it refused some."""
    broken, refused = 0, {}
    with Progress("run", before + len(left), unit="question", start=before) as progress:
        for start in range(0, len(left), wave):
            for made in _traces(runner, left[start : start + wave]):
                refused |= {question.id: why for question, why in made if isinstance(why, str)}
                broken += sum(len(trace.violations) for _, trace in made if isinstance(trace, Trace))
                _append(file, path, [_line(runner.spec, *one, compact) for one in made])
                progress.advance(len(made), violations=broken, **({"refused": len(refused)} if refused else {}))
    return refused


def _traces(runner: Runner, chunk: Sequence[_Question]) -> Iterable[list[tuple[_Question, Trace | str]]]:
    """Yields the questions of a wave with their traces, one by one where one of them is refused, with its reason."""
    try:
        traces = runner.run([question.inputs for question in chunk], ids=[question.id for question in chunk])
        yield list(zip(chunk, traces, strict=True))
        return
    except InputError:
        pass
    for question in chunk:
        try:
            yield [(question, runner.run([question.inputs], ids=[question.id])[0])]
        except InputError as error:
            yield [(question, str(error))]


def _line(spec: StackSpec, question: _Question, made: Trace | str, compact: bool) -> str:
    if isinstance(made, Trace) and not compact:
        return to_json(made)
    if isinstance(made, Trace):
        row = {"id": made.id, "answer": made.answer, "violations": made.violations}
    else:
        row = {"id": question.id, "stack": spec.name, "inputs": question.inputs, "answer": None, "error": made}
    return json.dumps(row, ensure_ascii=False)


def _append(file: FileIO, path: Path, lines: Sequence[str]) -> None:
    rest = memoryview("".join(line + "\n" for line in lines).encode())
    try:
        while rest:
            rest = rest[file.write(rest) :]
        if path.is_file():
            os.fsync(file.fileno())
    except OSError as error:
        raise storage_error(error, path) from error
