"""What a comparison leaves to be read: traces.jsonl, report.html, result.json, and the tables on the terminal.

The demo and `cairn compare` write the same files, from the same answers.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cairn.errors import DataError
from cairn.evaluation.systems import Question
from cairn.files import atomic_file, sha256_file, write_json
from cairn.runs import read_jsonl
from cairn.verbs.comparison.answers import Answered
from cairn.verbs.comparison.recipe import CompareSettings

__all__ = [
    "counts_by_task",
    "mean_by_task",
    "print_result",
    "training_curves",
    "write_comparison",
    "write_page_again",
    "write_traces",
]

_LOG_WIDTH = 130  # columns of the table in a file, where nobody asks how wide it is


def write_traces(
    file: Path,
    questions: Sequence[Question],
    answers: Mapping[str, Sequence[Answered]],
    stages: Iterable[Sequence[dict[str, Any]]],
    *,
    most: int,
    stack: str = "stack",
    rows: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """Writes one line a question, with every system's answer and the stack's hand-offs.

    Args:
        file: traces.jsonl.
        questions: in order.
        answers: system -> its answers in that order.
        stages: the stack's hand-offs in that order, taken one by one.
        most: questions that the page shows.
        stack: the system that they are chosen by: half of them, if there are as many, answered wrong.
        rows: question id -> row of the table by group; by default the question's task.

    Returns:
        Those that the page shows.
    """
    from cairn.evaluation.report import report_item

    chosen = _shown([one.outcome.correct for one in answers[stack]], most)
    shown = []
    with atomic_file(file) as temporary, open(temporary, "w", encoding="utf-8") as stream:
        for place, (question, hand_offs) in enumerate(zip(questions, stages, strict=True)):
            outcomes = {name: made[place].outcome for name, made in answers.items()}
            item = report_item(outcomes, question.inputs, hand_offs, rows[question.id] if rows else None)
            stream.write(json.dumps(item, ensure_ascii=False) + "\n")
            if place in chosen:
                shown.append(item)
    return shown


def write_comparison(
    out: Path,
    result: Mapping[str, Any],
    shown: Sequence[dict[str, Any]],
    *,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    title: str,
    note: str,
) -> None:
    """Writes report.html, and result.json last.

    Args:
        out: the run folder.
        result: of `compare_seeds`.
        shown: of `write_traces`.
        curves: of `training_curves`.
        title: of the page.
        note: a sentence more below its verdict.
    """
    _write_page(out, result, shown, curves=curves, title=title, note=note)
    write_json(out / "result.json", dict(result))


def _write_page(
    out: Path,
    result: Mapping[str, Any],
    shown: Sequence[dict[str, Any]],
    *,
    curves: Mapping[str, Sequence[tuple[float, float]]],
    title: str,
    note: str,
) -> None:
    from cairn.evaluation.report import write_report

    total = result["n_test"]
    part = f"{len(shown):,} of {total:,} questions, wrong answers preferred,"
    part = "All questions" if len(shown) == total else part
    note = f"{part} can be read below with every hand-off; traces.jsonl has all. {note}"
    file = out / "ablate" / "result.json"
    ablation = json.loads(file.read_text(encoding="utf-8")) if file.exists() else None
    write_report(
        out / "report.html", result, shown, curves=curves, title=title, note=note.strip(), ablation=ablation
    )


def write_page_again(out: Path, most: int | None = None) -> dict[str, Any]:
    """Writes report.html anew from what is in a run folder: result, traces, curves, and an ablation made since.

    Args:
        out: the run folder of a comparison, or of the demo.
        most: questions shown; by default as many as the run's settings say.

    Returns:
        The result.

    Raises:
        DataError: the folder has no result, or its traces are damaged.
        StorageError: the page cannot be written.
    """
    files = [out / "result.json", out / "traces.jsonl"]
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise DataError(
            "no finished comparison there", value=str(out), allowed=f"a folder with {' and '.join(missing)}",
            next="cairn compare RECIPE.yaml",
        )  # fmt: skip
    result = json.loads(files[0].read_text(encoding="utf-8"))
    items, stack = read_jsonl(files[1]), result["stack"]
    most = most or result.get("settings", {}).get("shown_traces") or CompareSettings().shown_traces
    chosen = _shown([item["answers"][stack]["correct"] for item in items], most)
    stacks = [*(out / f"seed-{seed}" / "stack" for seed in result.get("seeds", [])[:1]), out / "stack"]
    curves = next((training_curves(folder) for folder in stacks if folder.is_dir()), {})
    words = {"title": "A stack against single models", "note": "", **result.get("report", {})}
    _write_page(out, result, [items[place] for place in sorted(chosen)], curves=curves, **words)
    manifest = out / "manifest.json"
    if manifest.exists():
        facts = json.loads(manifest.read_text(encoding="utf-8"))
        facts["files"]["report.html"] = sha256_file(out / "report.html")
        write_json(manifest, facts)
    return result


def _shown(correct: Sequence[bool], most: int) -> set[int]:
    """Returns at most `most` places: half of them, if there are as many, of wrong answers."""
    wrong = [place for place, right in enumerate(correct) if not right]
    right = [place for place, right in enumerate(correct) if right]
    taken_wrong = _spread(wrong, max(most // 2, most - len(right)))
    return {*taken_wrong, *_spread(right, most - len(taken_wrong))}


def _spread(places: Sequence[int], most: int) -> list[int]:
    """Returns at most `most` places, evenly spread."""
    if len(places) <= most:
        return list(places)
    return [places[number * len(places) // most] for number in range(most)]


def training_curves(stack: Path) -> dict[str, list[tuple[float, float]]]:
    """Returns name -> (step, loss) of every training run in a stack folder."""
    curves = {}
    for file in sorted((stack / "training").glob("*/metrics.jsonl")):
        curves[file.parent.name] = [(row["step"], row["loss"]) for row in read_jsonl(file) if "loss" in row]
    return curves


def counts_by_task(answers: Sequence[Answered], fact: str) -> dict[str, int]:
    """Returns by task of how many questions a fact holds (see `Answered`)."""
    counts: dict[str, int] = {}
    for one in answers:
        counts[one.outcome.task] = counts.get(one.outcome.task, 0) + bool(one.facts.get(fact))
    return counts


def mean_by_task(answers: Sequence[Answered], fact: str) -> dict[str, float]:
    """Returns by task the mean of a numeric fact over the questions that have it."""
    values: dict[str, list[float]] = {}
    for one in answers:
        if fact in one.facts:
            values.setdefault(one.outcome.task, []).append(one.facts[fact])
    return {task: sum(found) / len(found) for task, found in values.items()}


def print_result(out: Path, result: Mapping[str, Any]) -> None:
    """Prints the tables of a result, and where its files are."""
    from rich.console import Console

    from cairn.evaluation.report import print_table

    console = Console()
    print_table(result, console if console.is_terminal else Console(width=_LOG_WIDTH))
    minutes, seconds = divmod(round(result["seconds_total"]), 60)
    print(f"\n{minutes} min {seconds} s in all, at most {result['peak_memory_mib']:,} MiB of memory")
    print(f"report   {out / 'report.html'}\nresult   {out / 'result.json'}")
