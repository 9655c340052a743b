"""What the page and the terminal say of a result: its sentences and the rows of its tables, as text.

    result.json ── verdict, blame_words              sentences, the same whichever way it came out
                └─ system_rows, paired_rows, ...     one dict a row, every figure rounded here and nowhere else
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cairn.evaluation.plots import si

__all__ = [
    "ablation_rows",
    "blame_rows",
    "blame_words",
    "cost_rows",
    "cost_words",
    "facts",
    "group_rows",
    "measure_rows",
    "method",
    "pair_rows",
    "paired_rows",
    "percent",
    "points",
    "second_test",
    "system_rows",
    "verdict",
    "with_interval",
]

_TESTS = {"mcnemar_p": "exact McNemar", "permutation_p": "permutation"}
_SHOWN = {
    "seconds_total", "n_test", "n_stories", "base_params", "trained_params", "systems", "best_single", "accuracy",
    "ci95", "paired", "paired_all", "tasks", "flops_per_question", "seconds", "seconds_per_question", "stack",
    "calls_per_question", "prompt_tokens_per_question", "new_tokens_per_question", "tokens_per_second",
    "accuracy_by_seed", "measures", "stages", "settings", "validation", "equal_training", "blame", "cost", "report",
}  # fmt: skip


def percent(share: float) -> str:
    """Returns a share as `64.2%`."""
    return f"{100 * share:.1f}%"


def points(share: float) -> str:
    """Returns a difference of shares as points with its sign: `+3.1`."""
    return f"{100 * share:+.1f}"


def with_interval(difference: Mapping[str, Any] | None) -> str:
    """Returns a difference with its interval, `+3.1 (+1.0 to +5.2)`; nothing for None."""
    if difference is None:
        return ""
    low, high = difference["ci95"]
    return f"{points(difference['difference'])} ({points(low)} to {points(high)})"


def verdict(result: Mapping[str, Any]) -> str:
    """Returns the outcome of a comparison as two sentences, with the same words whichever way it came out."""
    paired = result["paired"]
    low, high = paired["ci95"]
    stack = result["stack"]
    if low > 0:
        meaning = f"The {stack} is better: the interval lies above zero."
    elif high < 0:
        meaning = f"The {stack} is worse: the interval lies below zero."
    else:
        meaning = "The difference is not settled: the interval includes zero."
    says = "is right in" if result.get("measure", "accuracy") == "accuracy" else "has a mean score of"
    also = "in" if says == "is right in" else "of"
    return (
        f"On {result['n_test']:,} held-out questions the {stack} {says} {percent(result['accuracy'][stack])}, "
        f"{paired['against']} {also} {percent(result['accuracy'][paired['against']])}: a paired difference of "
        f"{points(paired['difference'])} points (95% interval {points(low)} to {points(high)}). {meaning}"
    )


def method(result: Mapping[str, Any]) -> str:
    """Returns how intervals and tests were made."""
    paired, seeds = result["paired"], result.get("seeds", [0])
    chosen = (
        f"Best comparator, chosen on held-out training examples: {result['best_single']}."
        if result.get("best_chosen_on") == "validation"
        else f"Best single adapter, picked on these same questions: {result['best_single']}."
    )
    drawn = f"{paired['groups']:,} stories" + (f" and {len(seeds)} training seeds" if len(seeds) > 1 else "")
    test = (
        f"exact McNemar, which takes questions as independent: {_p(paired['mcnemar_p'])}"
        if "mcnemar_p" in paired
        else f"permutation of whole stories: {_p(paired['permutation_p'])}"
    )
    about = "" if len(seeds) > 1 else "They speak about new stories, not about other training seeds. "
    return (
        f"{chosen} Intervals: Wilson with a design effect for questions of one story; differences: paired bootstrap "
        f"over {drawn}, {paired['resamples']:,} resamples, p = {paired['p_value']:.2g} ({test}). {about}"
        f"FLOPs count every call, retries included; seconds are for answering all questions."
    )


def _p(value: float) -> str:
    """An exact p-value may be smaller than any float."""
    return f"{value:.2g}" if value else "below 1e-300"


def system_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the table of systems."""
    rows = []
    stack = result["stack"]
    for name in result["systems"]:
        low, high = result["ci95"][name]
        trained = result["trained_params"].get(name, 0)
        read, written = (result[f"{key}_tokens_per_question"][name] for key in ("prompt", "new"))
        rows.append(
            {
                "name": name,
                "chief": name == stack,
                "accuracy": percent(result["accuracy"][name]),
                "interval": f"{100 * low:.1f} to {100 * high:.1f}",
                "by_seed": ", ".join(f"{100 * one:.1f}" for one in result.get("accuracy_by_seed", {}).get(name, [])),
                "difference": with_interval(result["paired_all"].get(name)),
                "flops": si(result["flops_per_question"][name]),
                "calls": f"{result['calls_per_question'][name]:.1f}",
                "tokens": f"{read:,.0f} + {written:,.0f}",
                "seconds": f"{result['seconds'][name]:,.1f}",
                "speed": f"{result['tokens_per_second'][name]:,.0f}",
                "trained": f"{trained:,}" if trained else "none",
            }
        )
    return rows


def paired_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the table of paired tests: the stack minus every other system."""
    rows = []
    one_test = second_test(result) != ""
    stack = result["stack"]
    for name, paired in result["paired_all"].items():
        test = next((key for key in _TESTS if key in paired), None)
        effect = next((key for key in ("cohens_h", "cohens_d") if key in paired), None)
        trained, flops = (paired.get(key, {}) for key in ("trained_parameters", "flops_per_item"))
        rows.append(
            {
                "name": name,
                "best": name == result["best_single"],
                "difference": with_interval(paired),
                "p": f"{paired['p_value']:.2g}",
                "test": "" if test is None else f"{_p(paired[test])}{'' if one_test else f' ({_TESTS[test]})'}",
                "effect": "" if effect is None else f"{effect[-1]} = {paired[effect]:+.2f}",
                "n": f"{paired['n']:,}",
                "seeds": ", ".join(map(str, paired.get("seeds", []))),
                "by_seed": ", ".join(points(one["difference"]) for one in paired.get("by_seed", [])),
                "trained": f"{si(trained[stack])} / {si(trained[name])}" if trained else "",
                "flops": f"{si(flops[stack])} / {si(flops[name])}" if flops else "",
            }
        )
    return rows


def second_test(result: Mapping[str, Any]) -> str:
    """Returns the name of the test beside the bootstrap; nothing if the systems were not all tested by the same one."""
    found = {_TESTS[key] for paired in result["paired_all"].values() for key in _TESTS if key in paired}
    return found.pop() if len(found) == 1 else ""


def group_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the table by group: a cell for each system, and the stack minus the best comparator."""
    return [
        {
            "name": name,
            "n": part["n"],
            "cells": [f"{100 * part['accuracy'][system]:.1f}" for system in result["systems"]],
            "difference": with_interval(part["paired"]),
        }
        for name, part in result["tasks"].items()
    ]


def measure_rows(result: Mapping[str, Any]) -> tuple[list[str], list[dict[str, Any]]]:
    """Returns the task's further figures: their names, and a row for each system; empty without any."""
    measures = result.get("measures") or {}
    names = list(dict.fromkeys(key for figures in measures.values() for key in figures))
    rows = []
    for system, figures in measures.items():
        cells = [f"{100 * figures[name]['mean']:.1f}" if name in figures else "" for name in names]
        rows.append({"name": system, "chief": system == result["stack"], "cells": cells})
    return names, rows


def blame_words(section: Mapping[str, Any]) -> str:
    """Returns what the blame section found, as a few sentences."""
    source = "gold" if section["source"] == "gold" else "the teacher's"
    own, ceiling, whole = (section[key]["score"] for key in ("own", "ceiling", "answer_itself"))
    seeds = section["seeds"]
    drawn = f"{section['n']:,} questions" + (f", {len(seeds)} training seeds" if len(seeds) > 1 else "")
    text = (
        f"With its own hand-offs the stack has {percent(own)} of {drawn}; with {source} in every hand-off "
        f"{percent(ceiling)}. "
    )
    if whole < 1:
        text += f"{'Gold' if source == 'gold' else 'The teacher'}'s own answers have {percent(whole)}. "
    rows = {stage["name"]: stage for stage in section["stages"]}
    if section["weakest"] is None:
        text += "No stage is named: none loses points that the interval sets apart from zero. "
    else:
        row = rows[section["weakest"]]
        rule = ", a rule," if row["by"] == "rule" else ""
        text += (
            f"The weakest stage is {row['name']}{rule}: {with_interval(row['lost_here'])} points are lost in it, of "
            f"{100 * (whole - own):.1f} that are missing. "
        )
    least = rows[section["weakest"]]["lost_here"]["difference"] if section["weakest"] else 0.0
    for row in section["stages"]:
        if row["lost_here"]["difference"] > least and row["name"] != section["weakest"]:
            text += f"More may be lost in {row['name']}, {with_interval(row['lost_here'])}: not settled. "
    lifts = [stage for stage in section["stages"] if stage["lift"] is not None]
    if lifts:
        most = max(lifts, key=lambda stage: stage["lift"]["difference"])
        text += (
            f"The hand-off with the most room is that of {most['name']}: {source} there alone brings "
            f"{with_interval(most['lift'])} points."
            if most["lift"]["difference"] > 0
            else f"No hand-off alone has room: {source} in its place brings nothing."
        )
    return text.strip()


def blame_rows(section: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the table of stages."""
    return [
        {
            "name": stage["name"],
            "kind": stage["kind"],
            "rule": stage["by"] == "rule",
            "weakest": stage["name"] == section["weakest"],
            "lost": with_interval(stage["lost_here"]),
            "p": f"{stage['lost_here']['p_value']:.2g}",
            "lift": "" if stage["lift"] is None else with_interval(stage["lift"]),
            "right": percent(stage["right"]),
            "right_after_gold": percent(stage["right_after_gold"]),
            "first_wrong": f"{stage['first_wrong']:.1f}".removesuffix(".0"),
            "calls": f"{stage['calls_per_question']:.1f}",
            "broken": percent(stage["calls_broken"]),
            "questions_broken": percent(stage["questions_broken"]),
        }
        for stage in section["stages"]
    ]


def pair_rows(section: Mapping[str, Any]) -> list[dict[str, str]]:
    """Returns the table of pairs, those that bring the most first."""
    pairs = sorted(section["pairs"], key=lambda pair: -pair["lift"]["difference"])
    return [
        {"name": " + ".join(pair["stages"]), "lift": with_interval(pair["lift"]),
         "beyond": points(pair["beyond_each_alone"])}
        for pair in pairs
    ]  # fmt: skip


def cost_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the table of costs, in the order of the systems."""
    section = result.get("cost") or {"systems": {}}
    return [
        {
            "name": name,
            "place": place,
            "chief": name == result["stack"],
            "accuracy": percent(result["accuracy"][name]),
            "p50": _figure(row["latency_ms"]["p50"]),
            "p95": _figure(row["latency_ms"]["p95"]),
            "first": _figure(row["first_token_ms"]["p50"]),
            "read": _figure(row["read_tokens_per_second"]),
            "written": _figure(row["written_tokens_per_second"]),
            "memory": _figure(row.get("peak_memory_mib")) + ("" if _own_process(row) else " shared"),
            "flops": si(row["flops_per_question"]),
            "joules": _figure(row["energy_j_per_answer"]),
            "joules_right": _figure(row["energy_j_per_correct"]),
            "energy": row["energy"],
        }
        for place, name in enumerate(result["systems"])
        if (row := section["systems"].get(name)) is not None
    ]


def cost_words(result: Mapping[str, Any]) -> str:
    """Returns how the costs were measured."""
    section = result["cost"]
    rows = list(section["systems"].values())
    if not rows:
        return "Nothing could be measured: " + "; ".join(section["left_out"].values())
    timed = sorted({row["questions_timed"] for row in rows})
    counts = f"{timed[0]}" if len(timed) == 1 else f"{timed[0]} to {timed[-1]}"
    own = [row for row in rows if _own_process(row)]
    threads = sorted({row["threads"] for row in own})
    text = (
        f"One question at a time, after a warm-up, {counts} questions a system, with the training of seed "
        f"{section['seed']}. Calls of one stage go to the engine together. First token: of the call that writes the "
        "answer; a vote, and a stack that ends with a rule, show nothing before the end. Tokens per second: reading "
        "prompts up to the first token, and writing after it. "
    )
    if own:
        on = f" ({', '.join(sorted({row['device'] for row in own}))}, {threads[0]} threads)"
        text += (
            f"Memory: the peak of a process with this system alone{on}, of which Python and its libraries are "
            f"{min(row['libraries_mib'] for row in own):,.0f} MiB. "
        )
    if len(own) < len(rows):
        text += "Shared memory: the peak of one process that held every system. "
    how = list(dict.fromkeys(f"{row['energy']} ({row['energy_by']})" for row in rows))
    kinds = {row["energy"] for row in rows}
    if kinds == {"estimated"}:
        watts = section["settings"]["watts_per_core"]
        reason = rows[0]["energy_by"].partition("; ")[2]
        text += f"Energy is estimated, not measured: busy processor seconds at {watts:g} W a core ({reason}). "
    else:
        text += f"Energy: {'; '.join(how[:3])}. "
    for name, why in section["left_out"].items():
        text += f"{name} is left out: {why}. "
    return text.strip()


def ablation_rows(ablation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the table of an ablation: the whole stack first, then every variant and the whole minus it."""
    rows = []
    for name in ablation["systems"]:
        low, high = ablation["ci95"][name]
        paired = ablation["paired_all"].get(name)
        variant = ablation["variants"].get(name, {})
        rows.append(
            {
                "name": name,
                "chief": paired is None,
                "change": _plain({key: value for key, value in variant.get("change", {}).items() if value}),
                "depth": str(ablation["depth"] if paired is None else variant["depth"]),
                "trained": f"{ablation['trained_params'][name]:,}",
                "flops": si(ablation["flops_per_question"][name]),
                "accuracy": percent(ablation["accuracy"][name]),
                "interval": f"{100 * low:.1f} to {100 * high:.1f}",
                "difference": with_interval(paired),
                "p": "" if paired is None else f"{paired['p_value']:.2g}",
            }
        )
    return rows


def facts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns everything else that the result says, as names and texts."""
    found = [("base", f"{result['base_params']:,} parameters, frozen")]
    if result.get("seconds_total") is not None:
        found.append(("whole experiment", f"{result['seconds_total']:,.0f} s"))
    for key, value in result.items():
        if key not in _SHOWN and value not in ({}, [], None):
            found.append((key.replace("_", " "), _plain(value)))
    return found


def _own_process(row: Mapping[str, Any]) -> bool:
    return "libraries_mib" in row


def _figure(value: float | None) -> str:
    """Returns a number with about three significant digits; a dash for one that is not known."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_plain(inner)}" for key, inner in value.items())
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}" if value >= 10_000 else str(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_plain(inner) for inner in value)
    return "not known" if value is None else str(value)
