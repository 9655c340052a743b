"""What a run of lm-evaluation-harness says, as entries of a result: figures with intervals, chance levels, floors.

    samples ── rows (one a document) ──> metrics with interval · ties of BLiMP · gp-IRT and its floor
    choices ── chance, and the best constant place
    entries ── the harness's own aggregation ──> groups
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from cairn.evaluation.statistics import accuracy_interval
from cairn.evaluation.suites import blimp_summary
from cairn.evaluation.tiny_irt import ITEMS, IrtFile

__all__ = ["Choices", "chance", "gp_irt", "group_entry", "item_rows", "metrics", "ties"]

Choices = Sequence[tuple[int, int | None]]  # (number of choices, place of the right one) of each document


def item_rows(lm: Any, task: Any, samples: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns one row per document for the log: what was asked, what came, how it counted under each filter."""
    rows: dict[int, dict[str, Any]] = {}
    for sample in samples:
        number, arguments = sample["doc_id"], sample["arguments"]
        if number not in rows:
            context = arguments[0][0]
            row: dict[str, Any] = {"doc_id": number, "target": sample["target"], "context": context}
            if task.OUTPUT_TYPE == "generate_until":
                row["outputs"] = sample["resps"][0]
            else:
                row["continuations"] = [pair[-1] for pair in arguments]
                if task.multiple_input:
                    row["context"] = [pair[0] for pair in arguments]
                row["logprobs"] = [_first(response[0]) for response in sample["resps"]]
            cut = [lm.cut.get((pair[0], pair[1] if isinstance(pair[1], str) else ""), 0) for pair in arguments
                   if len(pair) > 1]  # fmt: skip
            if any(cut):
                row["tokens_cut"] = cut
            row |= lm.details(context, sample["doc"])
            row["metrics"] = {}
            rows[number] = row
        rows[number]["metrics"] |= {f"{name},{sample['filter']}": _plain(sample[name]) for name in sample["metrics"]}
    return [rows[number] for number in sorted(rows)]


def _first(response: Any) -> Any:
    return response[0] if isinstance(response, tuple | list) else response


def _plain(value: Any) -> Any:
    """Returns a metric of one document as JSON has it."""
    if isinstance(value, bool | str) or value is None:
        return value
    try:
        return float(value)
    except (TypeError, ValueError):
        return [_plain(one) for one in value] if isinstance(value, Sequence) else str(value)


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Returns metric -> its value for each document, of the metrics that are one number each."""
    columns: dict[str, list[float]] = {}
    for row in rows:
        for key, value in row["metrics"].items():
            if isinstance(value, int | float):
                columns.setdefault(key, []).append(float(value))
    return columns


def metrics(
    result: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], higher: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Returns the harness's figures, each with its standard error and an interval."""
    columns, found = _columns(rows), {}
    for key, value in result.items():
        name, comma, filter_ = key.partition(",")
        if not comma or name.endswith("_stderr") or not isinstance(value, int | float):
            continue
        stderr = result.get(f"{name}_stderr,{filter_}")
        stderr = float(stderr) if isinstance(stderr, int | float) else None
        values = columns.get(key, [])
        found[key] = {
            "value": float(value), "stderr": stderr, "ci95": _interval(float(value), stderr, values),
            "higher_is_better": higher.get(name, True),
        }  # fmt: skip
    return found


def _interval(value: float, stderr: float | None, values: Sequence[float]) -> list[float] | None:
    """Returns Wilson's interval of right and wrong answers; of other metrics value ± 1.96 standard errors."""
    if values and all(one in (0.0, 1.0) for one in values):
        return list(accuracy_interval([one == 1.0 for one in values]))
    return None if stderr is None else [value - 1.96 * stderr, value + 1.96 * stderr]


def chance(choices: Choices) -> dict[str, Any]:
    """Returns what a scorer gets that guesses, and what the best one gets that always takes the same place."""
    if not choices:
        return {}
    found: dict[str, Any] = {
        "chance": sum(1 / count for count, _ in choices) / len(choices),
        "choices": dict(sorted(Counter(str(count) for count, _ in choices).items())),
    }
    gold = Counter(right for _, right in choices)
    if None not in gold and len(gold) > 1:  # where one place is always right, as in BLiMP, that says nothing
        place, hits = max(gold.items(), key=lambda item: (item[1], -item[0]))
        found["constant"] = {"place": place, "accuracy": hits / len(choices)}
    return found


def ties(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns BLiMP's accuracy with a tie counting one half; the harness counts it as right."""
    gaps = [row["logprobs"][0] - row["logprobs"][1] for row in rows]
    equal = sum(gap == 0 for gap in gaps)
    return {"accuracy": (sum(gap > 0 for gap in gaps) + 0.5 * equal) / len(gaps), "ties": equal, "n": len(gaps)}


def gp_irt(
    rows: Sequence[Mapping[str, Any]],
    index: Sequence[Any],
    choices: Choices,
    scenario: str,
    irt: IrtFile | None,
    seed: int,
) -> dict[str, Any]:
    """Returns the estimate of a tiny* task for each metric with its floors, or why there is none.

    Args:
        rows: see `item_rows`.
        index: of each item, its place in the full test set; None where the data do not say: then the order counts.
        choices: of each item; empty if the task has none, and then there are no floors.
        scenario: see `IrtFile.estimate`.
        irt: the parameter file.
        seed: of the random scorers.
    """
    if irt is None:
        return {"missing": "no parameter file was given (--irt-file tinyBenchmarks.pkl)"}
    order = list(range(len(index)))
    if len(order) != ITEMS:
        return {"missing": f"{len(order)} of {ITEMS} items were scored"}
    if all(isinstance(one, int) for one in index):
        expected = irt.positions(scenario)
        if sorted(index) != sorted(expected):
            return {"missing": "the items are not those that the parameter file was made for"}
        place = {one: number for number, one in enumerate(index)}
        order = [place[one] for one in expected]
    found: dict[str, Any] = {"file": irt.path, "estimates": {}}
    for key, values in _columns(rows).items():
        found["estimates"][key] = irt.estimate([values[number] for number in order], scenario)
    if choices and all(right is not None for _, right in choices):
        counts, gold = zip(*(choices[number] for number in order), strict=True)
        found["floors"] = irt.floors(scenario, counts, gold, seed=seed)
    return found


def group_entry(group: Any, entries: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the entry of a group: the harness's aggregate over its tasks."""
    names = [task.task_name for task in group.get_all_tasks()]
    flat = {name: _flat(entries[name]) for name in names}
    made = group.aggregate(flat)
    figures = {}
    for key, value in made.items():
        name, comma, filter_ = key.partition(",")
        if comma and not name.endswith("_stderr") and isinstance(value, int | float):
            stderr = made.get(f"{name}_stderr,{filter_}")
            stderr = float(stderr) if isinstance(stderr, int | float) else None
            figures[key] = {"value": float(value), "stderr": stderr, "ci95": _interval(float(value), stderr, [])}
    counts = [entries[name]["n"] for name in names]
    entry: dict[str, Any] = {"metrics": figures, "n": sum(counts), "tasks": names, "version": group.version}
    if all("chance" in entries[name] for name in names):
        by_size = any(metric.weight_by_size for metric in group.aggregate_metric_list or [])
        weights = counts if by_size else [1] * len(counts)
        chances = [weight * entries[name]["chance"] for weight, name in zip(weights, names, strict=True)]
        entry["chance"] = sum(chances) / sum(weights)
    if group.name == "blimp":
        entry["ties_half"] = blimp_summary({name.removeprefix("blimp_"): entries[name]["ties"] for name in names})
    return entry


def _flat(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an entry's metrics in the harness's own shape."""
    flat: dict[str, Any] = {"sample_len": entry["n"]}
    for key, metric in entry["metrics"].items():
        name, _, filter_ = key.partition(",")
        flat[key] = metric["value"]
        flat[f"{name}_stderr,{filter_}"] = "N/A" if metric["stderr"] is None else metric["stderr"]
    return flat
