"""Scoring models and stacks on lm-evaluation-harness's own tasks, and saying what the figures are worth.

    load_tasks ── one task after the other ── harness's `evaluate` over our LM ──> entry: figures, what was cut, cost
                                                   │                                  └── groups, as the harness has it
                                                   └── items: one JSON line a document

Numbers are the harness's. Beside them stand what it leaves out: an interval, the chance level, the score of always
choosing the same place, ties of BLiMP at one half, the floor of gp-IRT.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cairn.engines.base import require
from cairn.errors import DataError
from cairn.evaluation.harness_figures import Choices, chance, gp_irt, group_entry, item_rows, metrics, ties
from cairn.evaluation.harness_tasks import LoadedTasks
from cairn.evaluation.tiny_irt import IrtFile
from cairn.files import sha256_json, write_text

__all__ = ["TINY", "score_tasks"]

TINY = {
    "tinyArc": "arc", "tinyGSM8k": "gsm8k", "tinyHellaswag": "hellaswag", "tinyMMLU": "mmlu",
    "tinyTruthfulQA": "truthfulqa", "tinyWinogrande": "winogrande",
}  # fmt: skip
_BOOTSTRAP = 1000  # resamples of the harness, for metrics that are no mean
_FLOOR = "the figure above is the raw share of the items; gp-IRT has a floor above chance, see docs/evaluation.md"

OnTask = Callable[[str, dict[str, Any]], None]


def score_tasks(
    lm: Any,
    loaded: LoadedTasks,
    *,
    limit: int | None = None,
    irt: IrtFile | None = None,
    seed: int = 0,
    items: Path | None = None,
    done: Mapping[str, dict[str, Any]] | None = None,
    on_task: OnTask | None = None,
    progress: Callable[[str], Callable[[int, int], None]] | None = None,
) -> dict[str, Any]:
    """Scores tasks one after the other.

    Args:
        lm: `harness_lm.HarnessModel` or `harness_stack.HarnessStack`.
        loaded: the tasks.
        limit: the first so many documents of each task, for a quick look.
        irt: parameters for the tiny* tasks.
        seed: of gp-IRT's random scorers.
        items: folder for one JSON-lines file per task; None writes none.
        done: entries of an earlier, interrupted run, by the key that `on_task` got.
        on_task: told (key, entry) as soon as a task is done; the key changes with the task's data and settings.
        progress: task name -> callback (requests done, requests in all).

    Returns:
        lm_eval (its version), asked, seed, tasks (name -> entry), groups (name -> entry).

    Raises:
        EngineError: the engine lacks what a task needs.
        DataError: a document's right choice is none of its choices.
    """
    import lm_eval

    choices = {name: _choices(task, limit) for name, task in loaded.tasks.items()}  # faults before the first score
    if any(task.OUTPUT_TYPE != "generate_until" for task in loaded.tasks.values()):
        require(lm.engine, "logprobs")
    entries: dict[str, dict[str, Any]] = {}
    for name, task in loaded.tasks.items():
        key = f"{name} {_fingerprint(name, task, loaded, limit, lm_eval.__version__)}"
        if done is not None and key in done:
            entries[name] = done[key]
            continue
        lm.begin(progress(name) if progress else None)
        made = _scored(lm, name, task, limit)
        entry = entries[name] = {**_entry(lm, name, task, loaded, made), **chance(choices[name])}
        if name.startswith("blimp"):
            entry["ties"] = ties(made.rows)
        if name in TINY:
            entry["gp_irt"] = gp_irt(made.rows, made.index, choices[name], TINY[name], irt, seed)
            entry["notes"].append(_FLOOR)
        if items is not None:
            entry["items"] = str(_write_items(items, name, made.rows).relative_to(items.parent))
        if on_task:
            on_task(key, entry)
    groups = {name: group_entry(group, entries) for name, group in loaded.groups.items()}
    return {
        "lm_eval": lm_eval.__version__, "asked": loaded.asked, "seed": loaded.seed, "tasks": entries, "groups": groups,
    }  # fmt: skip


def _fingerprint(name: str, task: Any, loaded: LoadedTasks, limit: int | None, version: str) -> str:
    """Returns what must be equal for an earlier entry to be used."""
    splits = loaded.splits.get(name)
    files = [] if splits is None else [
        [split, str(path), path.stat().st_size, path.stat().st_mtime_ns] for split, path in sorted(splits.files.items())
    ]  # fmt: skip
    return sha256_json([version, str(task.VERSION), loaded.shots[name], limit, files])[:16]


def _choices(task: Any, limit: int | None) -> Choices:
    """Returns (number of choices, place of the right one) of each document; empty if the task has no choices.

    Raises:
        DataError: a document has fewer than two choices, or its right one is none of them.
    """
    if task.OUTPUT_TYPE != "multiple_choice":
        return []
    found = []
    for number, doc in task.doc_iterator(limit=limit):
        texts = task.doc_to_choice(doc)
        gold = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
        if isinstance(gold, str):
            gold = texts.index(gold) if gold in texts else -1
        right = gold if isinstance(gold, list) else [gold]
        if len(texts) < 2 or not all(isinstance(one, int) and 0 <= one < len(texts) for one in right):
            raise DataError(
                f"{task.task_name}, document {number}: the right choice {gold} is none of {len(texts)} choices",
                value=dict(doc), next="correct the data",
            )  # fmt: skip
        found.append((len(texts), None if isinstance(gold, list) else gold))
    return found


@dataclass(frozen=True)
class _Made:
    """One task's run: the harness's result, a row per document, their places in the full set, cost."""

    result: dict[str, Any]
    rows: list[dict[str, Any]]
    index: list[Any]
    usage: dict[str, float]
    seconds: float


def _scored(lm: Any, name: str, task: Any, limit: int | None) -> _Made:
    """Runs one task through the harness."""
    from lm_eval.evaluator import evaluate

    before, started = _usage(lm.engine), time.perf_counter()
    result = evaluate(
        lm=lm, task_dict={"tasks": {name: task}, "groups": {}}, limit=limit, bootstrap_iters=_BOOTSTRAP,
        log_samples=True, confirm_run_unsafe_code=True,
    )  # fmt: skip
    seconds, after = time.perf_counter() - started, _usage(lm.engine)
    samples = result["samples"][name]
    docs = {sample["doc_id"]: sample["doc"] for sample in samples}
    index = [docs[number].get("index") if isinstance(docs[number], Mapping) else None for number in sorted(docs)]
    usage = {key: after[key] - before[key] for key in after}
    return _Made(result, item_rows(lm, task, samples), index, usage, seconds)


def _entry(lm: Any, name: str, task: Any, loaded: LoadedTasks, made: _Made) -> dict[str, Any]:
    """Returns the entry of one task."""
    config, splits, result = task.config, loaded.splits.get(name), made.result
    entry: dict[str, Any] = {
        "metrics": metrics(result["results"][name], made.rows, result["higher_is_better"].get(name, {})),
        "n": result["n-samples"][name]["effective"],
        "n_split": result["n-samples"][name]["original"],
        "shots": loaded.shots[name],
        "version": task.VERSION,
        "dataset": {"path": config.dataset_path, "name": config.dataset_name,
                    "split": config.test_split or config.validation_split},
        "files": {} if splits is None else {split: str(path) for split, path in splits.files.items()},
        "output_type": task.OUTPUT_TYPE,
        "prompts_sha256": _digest(task),
        "counts": dict(lm.counts),
        "notes": [*loaded.notes.get(name, []), *([] if splits is None else splits.notes), *_told(lm.counts)],
        "usage": made.usage,
        "seconds": made.seconds,
    }  # fmt: skip
    calls = loaded.checker.calls
    if calls:
        for row, runs in zip(made.rows, calls, strict=False):
            row["code"] = [{"outcome": run.outcome, "raised": run.raised} for run in runs]
        entry["code"] = loaded.checker.facts()
    task._instances = None  # its prompts are not needed any more
    return entry


def _write_items(folder: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> Path:
    path = folder / (name.replace("/", "_").replace("::", "-") + ".jsonl")
    write_text(path, "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows))
    return path


def _usage(engine: Any) -> dict[str, float]:
    usage = getattr(engine, "usage", None)
    names = ("calls", "prompt_tokens", "new_tokens", "seconds")
    return {} if usage is None else {name: getattr(usage, name) for name in names if hasattr(usage, name)}


def _digest(task: Any) -> str:
    """Returns a SHA-256 of all requests: equal ones mean that two runs were asked the same."""
    digest = hashlib.sha256()
    for instance in task.instances:
        digest.update(json.dumps(instance.args, default=str).encode())
    return digest.hexdigest()


def _told(counts: Counter[str]) -> list[str]:
    """Returns the counts of what did not go as asked, in words."""
    notes = []
    if counts["contexts_cut"]:
        cut = [f"{counts[f'{unit}_cut']:,} {unit}" for unit in ("tokens", "characters") if counts[f"{unit}_cut"]]
        notes.append(
            f"{counts['contexts_cut']:,} requests did not fit the context: {' and '.join(cut)} cut on the left"
        )
    if counts["outputs_shortened"]:
        notes.append(f"{counts['outputs_shortened']:,} outputs had less room than the task gives them")
    if counts["empty_continuations"]:
        notes.append(f"{counts['empty_continuations']:,} continuations have no token: scored as the end mark")
    return notes
