"""`cairn eval`: score a model or a stack, with the number of questions and an interval beside every figure.

    model   --text FILE ...  bits per byte        --blimp FILE  minimal pairs      --data FILE ...  few-shot answers
    stack                                                                          --data FILE ...  the stack's answers

    each part, as soon as it is done ──> OUT.partial.jsonl ──(all done)──> OUT     killed? the same command goes on
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from cairn.errors import InputError, storage_error
from cairn.files import sha256_json, write_json
from cairn.progress import Progress
from cairn.runs import read_jsonl, versions

__all__ = ["evaluate"]


def evaluate(
    model: Annotated[
        str, typer.Argument(help="Model (embedded:base, folder, Hugging Face name) or stack folder.")
    ] = "embedded:base",
    text: Annotated[list[Path] | None, typer.Option(help="Text file for bits per byte. May be repeated.")] = None,
    blimp: Annotated[Path | None, typer.Option(help="BLiMP as JSON lines: all 67 paradigms in one file.")] = None,
    task: Annotated[str, typer.Option(help="How --data is read: babi, or examples (a stack's own format).")] = "babi",
    data: Annotated[list[Path] | None, typer.Option(help="Question file. May be repeated.")] = None,
    train: Annotated[list[Path] | None, typer.Option(help="Where a model's solved examples come from.")] = None,
    shots: Annotated[int, typer.Option(min=0, help="Solved examples shown to a model.")] = 4,
    limit: Annotated[int | None, typer.Option(min=1, help="First N questions a file, pairs a paradigm.")] = None,
    max_bytes: Annotated[int | None, typer.Option(min=1, help="First N bytes of each text file.")] = None,
    context: Annotated[int | None, typer.Option(min=1, help="Tokens read at once for bits per byte.")] = None,
    stride: Annotated[int | None, typer.Option(min=1, help="Tokens scored per window; default context / 2.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the result as JSON; an interrupted run goes on.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of tables.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="auto (float32 for a model, as `cairn run` for a stack), float32, bfloat16 or float16.")
    ] = "auto",
    seed: Annotated[int, typer.Option(help="Draws the solved examples.")] = 0,
    set_: Annotated[list[str] | None, typer.Option("--set", help="key.path=value over stack.yaml.")] = None,
) -> None:
    """Score a stack or a model: tasks, or bits per byte.

    Bits per byte: JSON lines with a field "text", or plain text; .gz, .xz and .zst as well. A window slides
    over each document, every token is scored once, and raw UTF-8 bytes are counted.

      cairn eval embedded:base --text valid.jsonl.xz --max-bytes 1000000

    BLiMP: share of the pairs whose grammatical sentence is likelier, a tie counting one half, as the mean of the
    paradigms.

      cairn eval embedded:base --blimp blimp.jsonl.xz --limit 100

    Questions: a stack answers with its stages; a model, shown --shots solved examples of the same task from --train.

      cairn eval runs/demo/stack --data qa1_test.txt.xz --data qa2_test.txt.xz
      cairn eval embedded:base --data qa1_test.txt --train qa1_train.txt

    With --out, each part is kept as soon as it is done, and the same command goes on after an interrupt.
    """
    wanted = {"--text": text, "--blimp": blimp, "--data": data}
    if not any(wanted.values()):
        raise InputError("nothing to measure", allowed=", ".join(wanted), next="cairn eval --help")
    is_stack = _is_stack(model)
    if is_stack and (text or blimp):
        raise InputError("a stack answers questions only", value=model, allowed="--data", next="give its base instead")
    if is_stack and train:
        raise InputError("a stack needs no solved examples", value=str(train[0]), allowed="no --train")
    if not is_stack and set_:
        raise InputError("--set is for a stack", value=set_[0], allowed="no --set with a model")
    if data and not is_stack and shots and not train:
        raise InputError(
            "a model answers after solved examples", value=f"--shots {shots}", allowed="--train FILE, or --shots 0"
        )
    if dtype == "auto" and not is_stack:
        dtype = "float32"  # log-likelihoods in bfloat16 are off in the third digit
    files = [*(text or []), *([blimp] if blimp else []), *(data or []), *(train or [])]
    settings = {
        "model": model, "text": [str(path) for path in text or []], "blimp": str(blimp) if blimp else None,
        "task": task if data else None, "data": [str(path) for path in data or []],
        "train": [str(path) for path in train or []], "shots": shots, "limit": limit, "max_bytes": max_bytes,
        "context": context, "stride": stride, "dtype": dtype, "seed": seed, "set": set_ or [],
    }  # fmt: skip
    kept = _Partial(out, {**settings, "files": _stamps([Path(model), *files])})
    started = time.perf_counter()
    if is_stack:
        kind, parts = "stack", _stack_parts(model, task, data or [], limit, device, dtype, set_ or [], kept)
    else:
        kind, parts = "model", _model_parts(settings, text, blimp, data, train, device, kept)
    from cairn.evaluation.cost import peak_memory_mib

    result = {
        "kind": kind, "settings": settings, **parts, "seconds": time.perf_counter() - started,
        "peak_memory_mib": peak_memory_mib(), "versions": versions(seed),
    }  # fmt: skip
    if out is not None:
        write_json(out, result)
        kept.remove()
    if as_json:
        print(json.dumps(result, ensure_ascii=False, allow_nan=False))
    else:
        _print(result)
        if out is not None:
            print(f"written to {out}")


class _Partial:
    """The parts that are done, appended to OUT.partial.jsonl; of another command's they are not used."""

    def __init__(self, out: Path | None, settings: Mapping[str, Any]) -> None:
        self._path = None if out is None else out.with_name(out.name + ".partial.jsonl")
        self._done: dict[tuple[str, str], Any] = {}
        if self._path is None:
            return
        stamp = {"settings_sha256": sha256_json(settings)}
        rows = read_jsonl(self._path) if self._path.exists() else []
        if rows[:1] == [stamp]:
            self._done = {(row["part"], row["name"]): row["value"] for row in rows[1:]}
            print(f"goes on after {len(self._done)} parts in {self._path}", file=sys.stderr)
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps(stamp) + "\n", encoding="utf-8")
        except OSError as error:
            raise storage_error(error, self._path) from error

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


def _is_stack(model: str) -> bool:
    path = Path(model)
    if model.startswith("embedded:"):
        from importlib import resources

        path = Path(str(resources.files("cairn"))) / "assets" / model.removeprefix("embedded:")
    return (path / "stack.yaml").is_file() or path.suffix in (".yaml", ".yml")


def _stamps(paths: Sequence[Path]) -> list[list[Any]]:
    """Returns name, size and time of change of every file: another model or file is another run."""
    files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.is_file()]


def _model_parts(
    settings: Mapping[str, Any],
    text: Sequence[Path] | None,
    blimp: Path | None,
    data: Sequence[Path] | None,
    train: Sequence[Path] | None,
    device: str,
    kept: _Partial,
) -> dict[str, Any]:
    from cairn.engines.torch_engine import TorchEngine
    from cairn.evaluation.suites import blimp as score_blimp
    from cairn.evaluation.tasks.reading import read_questions
    from cairn.evaluation.textfiles import read_rows

    questions = {str(path): read_questions(settings["task"], path) for path in data or []}  # faults before weights
    solved = [one for path in train or [] for one in read_questions(settings["task"], path)]
    rows = list(read_rows(blimp)) if blimp is not None else []
    documents = {str(path): _documents(path, settings["max_bytes"]) for path in text or []}
    engine = TorchEngine(settings["model"], device=device, dtype=settings["dtype"])
    parts: dict[str, Any] = {"parameters": sum(weight.numel() for weight in engine.model.parameters())}
    if text:
        parts["text"] = {
            name: kept.once("text", name, lambda name=name: _bits(engine, name, documents[name], settings))
            for name in documents
        }
    if blimp is not None:
        done = kept.of("blimp")
        pairs = Counter(str(row.get("UID")) for row in rows)
        total = sum(min(count, settings["limit"] or count) for count in pairs.values())
        start = sum(value["n"] for uid, value in done.items() if uid in pairs)
        with Progress("BLiMP", total=total, unit="pair", start=start) as progress:
            parts["blimp"] = score_blimp(
                engine, rows, limit=settings["limit"], done=done,
                on_paradigm=lambda uid, value: kept.keep("blimp", uid, value), progress=_into(progress),
            )  # fmt: skip
    if data:
        parts["tasks"] = {
            name: kept.once("task", name, lambda name=name: _few_shot(engine, name, questions[name], solved, settings))
            for name in questions
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


def _few_shot(
    engine: Any, name: str, questions: Sequence[Any], solved: Sequence[Any], settings: Mapping[str, Any]
) -> dict[str, Any]:
    from cairn.evaluation.cost import FlopsCounter
    from cairn.evaluation.systems import run_base

    asked = list(questions)[: settings["limit"]]
    fields = list(asked[0].inputs)
    template = "\n".join([*(f"{field.capitalize()}: {{{field}}}" for field in fields), "Answer:"])
    with Progress(Path(name).name, total=len(asked), unit="question") as progress:
        outcomes, shown = run_base(
            engine, asked, solved, template, FlopsCounter(engine.config), shots=settings["shots"],
            seed=settings["seed"], progress=_into(progress),
        )  # fmt: skip
    return {**_score(outcomes), "examples_shown": shown, "template": template}


def _stack_parts(
    model: str, task: str, data: Sequence[Path], limit: int | None, device: str, dtype: str, overrides: Sequence[str],
    kept: _Partial,
) -> dict[str, Any]:  # fmt: skip
    from cairn.evaluation.tasks.reading import read_questions, story_join
    from cairn.stacks.runner import Runner, check_inputs
    from cairn.verbs.info import describe
    from cairn.verbs.run import open_engine, open_stack

    spec = open_stack(model, overrides)
    join = story_join([stage.split for stage in spec.stages if stage.kind == "map" and stage.over in spec.inputs])
    questions = {str(path): read_questions(task, path, join=join) for path in data}
    for name, asked in questions.items():
        check_inputs(spec, dict(asked[0].inputs), f"{name}: ")
    engine = open_engine(spec, device=device, dtype=dtype)
    runner = Runner(spec, engine, wave=64)
    adapters = describe(str(spec.folder))["adapters"]
    sizes = {name: one["parameters"] for name, one in adapters.items()}
    tasks = {
        name: kept.once("task", name, lambda name=name: _stack_score(runner, name, questions[name][:limit], sizes))
        for name in questions
    }
    return {"stack": spec.name, "base": spec.base, "trained_parameters": sizes, "tasks": tasks}


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


def _print(result: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if "text" in result:
        table = _table(Table, "Bits per byte", "file", "bits/byte", "± s.e.", "bytes", "tokens", "context, stride")
        for name, one in result["text"].items():
            window = f"{one['context']}, {one['stride']}"
            note = "" if one["lossless"] else " (the tokenizer loses text: too low)"
            table.add_row(
                Path(name).name, f"{one['bits_per_byte']:.4f}{note}", f"{one['stderr']:.4f}", f"{one['bytes']:,}",
                f"{one['tokens']:,}", window,
            )  # fmt: skip
        console.print(table)
    if "blimp" in result:
        found = result["blimp"]
        low, high = found["ci95"]
        table = _table(Table, "BLiMP", "paradigm", "accuracy", "pairs", "ties")
        for name, one in sorted(found["paradigms"].items(), key=lambda item: -item[1]["accuracy"]):
            table.add_row(name, f"{100 * one['accuracy']:.1f}%", f"{one['n']:,}", str(one["ties"]))
        console.print(table)
        console.print(
            f"BLiMP macro mean of {len(found['paradigms'])} paradigms: {100 * found['accuracy']:.2f}% "
            f"(95% interval {100 * low:.2f} to {100 * high:.2f}, {found['n']:,} pairs, chance 50%)",
            highlight=False,
        )
    if "tasks" in result:
        table = _table(Table, "Questions", "file", "accuracy", "95% interval", "questions", "groups", "FLOPs/question")
        for name, one in result["tasks"].items():
            low, high = one["ci95"]
            table.add_row(
                Path(name).name, f"{100 * one['accuracy']:.1f}%", f"{100 * low:.1f} to {100 * high:.1f}",
                f"{one['n']:,}", f"{one['groups']:,}", f"{one['flops_per_question']:.3g}",
            )  # fmt: skip
        console.print(table)


def _table(table_class: Any, title: str, *columns: str) -> Any:
    from rich import box

    table = table_class(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    return table
