"""`cairn eval`: score a model or a stack, with the number of questions and an interval beside every figure.

    model   --tasks NAMES  lm-evaluation-harness    --data FILE ...  few-shot answers
            --text FILE ...  bits per byte          --blimp FILE     minimal pairs
    stack   --tasks NAMES  through its stages       --data FILE ...  the stack's answers

    each part, as soon as it is done ──> OUT.partial.jsonl ──(all done)──> OUT     killed? the same command goes on
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from cairn.errors import InputError
from cairn.files import write_json
from cairn.runs import versions
from cairn.verbs.evaluate_parts import Partial, model_parts, read_files, stack_parts
from cairn.verbs.evaluate_print import print_result
from cairn.verbs.evaluate_tasks import (
    EvalSettings,
    check_stack,
    open_tasks,
    parse_harness,
    parse_shots,
    recipe_settings,
    score_opened,
)

__all__ = ["evaluate"]

_DATA_SHOTS = 4  # solved examples for --data; the harness's tasks have their own


def evaluate(
    model: Annotated[
        str, typer.Argument(help="Model (embedded:base, folder, Hugging Face name) or stack folder.")
    ] = "embedded:base",
    tasks: Annotated[str | None, typer.Option(help="Tasks or groups of lm-evaluation-harness, with commas.")] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder with the tasks' data: no network is used. See docs/evaluation.md.")
    ] = None,
    harness: Annotated[
        list[str] | None, typer.Option(help="FIELD=TEMPLATE: what a stack's input gets of a task. May be repeated.")
    ] = None,
    irt_file: Annotated[Path | None, typer.Option(help="tinyBenchmarks.pkl, for gp-IRT of the tiny* tasks.")] = None,
    recipe: Annotated[Path | None, typer.Option(help="Take tasks and their settings from its `eval:` section.")] = None,
    text: Annotated[list[Path] | None, typer.Option(help="Text file for bits per byte. May be repeated.")] = None,
    blimp: Annotated[Path | None, typer.Option(help="BLiMP as JSON lines: all 67 paradigms in one file.")] = None,
    task: Annotated[str, typer.Option(help="How --data is read: babi, or examples (a stack's own format).")] = "babi",
    data: Annotated[list[Path] | None, typer.Option(help="Question file. May be repeated.")] = None,
    train: Annotated[list[Path] | None, typer.Option(help="Where a model's solved examples come from.")] = None,
    shots: Annotated[
        list[str] | None, typer.Option(help=f"Solved examples: N, or TASK=N. Default {_DATA_SHOTS}; a task's own.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="First N of a file or task, pairs a paradigm.")] = None,
    max_bytes: Annotated[int | None, typer.Option(min=1, help="First N bytes of each text file.")] = None,
    context: Annotated[int | None, typer.Option(min=1, help="Tokens read at once for bits per byte.")] = None,
    stride: Annotated[int | None, typer.Option(min=1, help="Tokens scored per window; default context / 2.")] = None,
    exit_threshold: Annotated[
        float | None, typer.Option(min=0.0, help="Let a model answer from its exits once they are this sure (0 to 1).")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the result as JSON; an interrupted run goes on.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of tables.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    dtype: Annotated[
        str, typer.Option(help="auto (float32 for a model, as `cairn run` for a stack), float32, bfloat16 or float16.")
    ] = "auto",
    seed: Annotated[
        int | None, typer.Option(min=0, help="Draws the solved examples. Default 0; for --tasks the harness's own.")
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="key.path=value over stack.yaml.")] = None,
) -> None:
    """Score a stack or a model: benchmark tasks, questions, or bits per byte.

    Tasks: those of lm-evaluation-harness (the extra `eval`), by their own prompts and metrics. A stack scores choices
    by its last stage's log-likelihood of each, given the hand-offs, and runs its chain where text is asked for. With
    --data-dir, their data are local files and no network is used. docs/evaluation.md says how each task is scored.

      cairn eval embedded:base --tasks arc_easy,blimp,mmlu_continuation --data-dir data/eval --out result.json
      cairn eval runs/qa/stack --tasks tinyArc --shots 0 --harness question='{{question}}'

    Bits per byte: JSON lines with a field "text", or plain text; .gz, .xz and .zst as well. A window slides
    over each document, every token is scored once, and raw UTF-8 bytes are counted.

      cairn eval embedded:base --text valid.jsonl.xz --max-bytes 1000000

    BLiMP: share of the pairs whose grammatical sentence is likelier, a tie counting one half, as the mean of the
    paradigms. (--tasks blimp is the harness's: a tie counts as right, and a space stands before each sentence.)

      cairn eval embedded:base --blimp blimp.jsonl.xz --limit 100

    Questions: a stack answers with its stages; a model, shown --shots solved examples of the same task from --train.

      cairn eval runs/demo/stack --data qa1_test.txt.xz --data qa2_test.txt.xz
      cairn eval embedded:base --data qa1_test.txt --train qa1_train.txt

    With --out, each part is kept as soon as it is done, and the same command goes on after an interrupt; the items of
    each task are written as JSON lines into a folder beside it.
    """
    own = recipe_settings(recipe)
    counts = parse_shots(shots or [])
    names = [name.strip() for name in tasks.split(",") if name.strip()] if tasks else own.tasks
    chosen = EvalSettings(
        tasks=names,
        shots={**{name: count for name, count in own.shots.items() if not tasks or name in ("*", *names)}, **counts},
        harness={**own.harness, **parse_harness(harness or [])},
        data_dir=str(data_dir) if data_dir else own.data_dir,
        irt_file=str(irt_file) if irt_file else own.irt_file,
        limit=limit or own.limit,
        seed=own.seed if seed is None else seed,
    )
    wanted = {"--text": text, "--blimp": blimp, "--data": data, "--tasks": chosen.tasks}
    if not any(wanted.values()):
        raise InputError("nothing to measure", allowed=", ".join(wanted), next="cairn eval --help")
    is_stack = _is_stack(model)
    data_shots = counts.get("*", _DATA_SHOTS)
    if is_stack and exit_threshold is not None:
        raise InputError("--exit-threshold is for a model", value=model, allowed="no --exit-threshold with a stack")
    _check(model, is_stack, wanted, train or [], data_shots, set_ or [], chosen)
    if dtype == "auto" and not is_stack:
        dtype = "float32"  # log-likelihoods in bfloat16 are off in the third digit
    files = [*(text or []), *([blimp] if blimp else []), *(data or []), *(train or [])]
    files += [Path(chosen.irt_file)] if chosen.irt_file else []
    settings = {
        "model": model, "text": [str(path) for path in text or []], "blimp": str(blimp) if blimp else None,
        "task": task if data else None, "data": [str(path) for path in data or []],
        "train": [str(path) for path in train or []], "shots": data_shots if data else None, "limit": chosen.limit,
        "max_bytes": max_bytes, "context": context, "stride": stride, "dtype": dtype, "seed": seed or 0,
        "set": set_ or [], "tasks": chosen.model_dump() if chosen.tasks else None,
        **({} if exit_threshold is None else {"exit_threshold": exit_threshold}),
    }  # fmt: skip
    stamp = {**settings, "files": _stamps([Path(model), *files])}
    started = time.perf_counter()
    with _offline(chosen):  # faults in tasks, files and stack are known before a weight is loaded or a file written
        opened = open_tasks(chosen) if chosen.tasks else None
        if is_stack:
            from cairn.verbs.run import open_engine, open_stack

            spec = open_stack(model, set_ or [])
            read = read_files(settings, [], None, data or [], [], spec)
            if opened is not None:
                check_stack(spec, chosen)
            kept = Partial(out, stamp)
            engine = open_engine(spec, device=device, dtype=dtype)
            parts = stack_parts(spec, engine, read, settings, kept)
        else:
            spec = None
            read = read_files(settings, text or [], blimp, data or [], train or [], None)
            kept = Partial(out, stamp)
            engine = _model_engine(model, device, dtype, exit_threshold)
            parts = model_parts(engine, read, settings, kept)
        if opened is not None:
            parts["harness"] = score_opened(opened, engine, spec, kept, out)
    from cairn.evaluation.cost import peak_memory_mib

    result = {
        "kind": "stack" if is_stack else "model", "settings": settings, **parts,
        "seconds": time.perf_counter() - started, "peak_memory_mib": peak_memory_mib(),
        "versions": versions(settings["seed"]),
    }  # fmt: skip
    if out is not None:
        write_json(out, result)
        kept.remove()
    if as_json:
        print(json.dumps(result, ensure_ascii=False, allow_nan=False))
    else:
        print_result(result)
        if out is not None:
            print(f"written to {out}")


def _model_engine(model: str, device: str, dtype: str, exit_threshold: float | None) -> Any:
    from cairn.engines.torch_engine import TorchEngine

    if exit_threshold is None:
        return TorchEngine(model, device=device, dtype=dtype)
    from cairn.engines.exit_engine import ExitDecoding, ExitEngine

    if exit_threshold <= 0:
        raise InputError("an exit is always surer than that", value=exit_threshold, allowed="more than 0")
    return ExitEngine(model, exits=ExitDecoding(threshold=exit_threshold), device=device, dtype=dtype)


def _check(
    model: str,
    is_stack: bool,
    wanted: dict[str, Any],
    train: Sequence[Path],
    shots: int,
    overrides: Sequence[str],
    chosen: EvalSettings,
) -> None:
    """Refuses what cannot go together."""
    if is_stack and (wanted["--text"] or wanted["--blimp"]):
        raise InputError(
            "a stack answers questions only", value=model, allowed="--data, --tasks", next="give its base instead"
        )
    if is_stack and train:
        raise InputError("a stack needs no solved examples", value=str(train[0]), allowed="no --train")
    if not is_stack and overrides:
        raise InputError("--set is for a stack", value=overrides[0], allowed="no --set with a model")
    if not is_stack and chosen.harness:
        raise InputError("--harness is for a stack", value=next(iter(chosen.harness)), allowed="no --harness")
    if wanted["--data"] and not is_stack and shots and not train:
        raise InputError(
            "a model answers after solved examples", value=f"--shots {shots}", allowed="--train FILE, or --shots 0"
        )
    if not chosen.tasks:
        for name, value in (("--data-dir", chosen.data_dir), ("--irt-file", chosen.irt_file)):
            if value is not None:
                raise InputError(f"{name} is for --tasks", value=value, next="name the tasks: --tasks arc_easy")


def _offline(chosen: EvalSettings) -> Any:
    """Returns a context in which nothing asks the network, if the tasks' data are local."""
    if not chosen.tasks or chosen.data_dir is None:
        return nullcontext()
    from cairn.evaluation.harness_tasks import offline, require_lm_eval

    require_lm_eval()
    return offline()


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
