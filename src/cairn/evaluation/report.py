"""One comparison as a page and as a terminal table.

    result.json (compare.compare) ─┬─ print_table      the terminal
    traces.jsonl (report_item)  ───┴─ write_report     one HTML file: opens offline, asks for no other resource

The page holds the table, the plots and every question with its hand-offs, to be filtered and read. All text of
models and data is escaped; the embedded JSON cannot end its own script element.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cairn.errors import InputError
from cairn.evaluation.plots import Points, accuracy_by_flops, accuracy_by_task, curves_plot, si
from cairn.evaluation.systems import Outcome
from cairn.files import write_text

__all__ = ["print_table", "report_html", "report_item", "verdict", "write_report"]

_TEMPLATE = "report.html.jinja"
# (light, dark) by place; the stack is given the strongest colour, the base the greyest.
_STACK, _BASE = ("#1d7a4c", "#4fb97f"), ("#a5a8ad", "#70757d")
_OTHERS = [("#4a7fbd", "#6d9fd8"), ("#d9942f", "#dba24d"), ("#8a63ad", "#a886c9"), ("#b8574f", "#d57a72"),
           ("#3f9a9a", "#5fb9b9")]  # fmt: skip
_LINES = [_STACK, *_OTHERS, ("#8d6e3f", "#b8976a"), ("#c46a9f", "#d88fb9"), _BASE]


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
    return (
        f"On {result['n_test']:,} held-out questions the {stack} is right in {_percent(result['accuracy'][stack])}, "
        f"{paired['against']} in {_percent(result['accuracy'][paired['against']])}: a paired difference of "
        f"{_points(paired['difference'])} points (95% interval {_points(low)} to {_points(high)}). {meaning}"
    )


def print_table(result: Mapping[str, Any], console: Any = None) -> None:
    """Prints a comparison to the terminal.

    Args:
        result: of `compare`.
        console: a rich Console; standard output by default.
    """
    from rich.console import Console
    from rich.table import Table

    console = console or Console()
    title = f"{result['n_test']:,} held-out questions, {result['n_stories']:,} stories"
    for heading, columns in (
        (title, {"accuracy": "accuracy", "95% interval": "interval", "stack minus it": "difference"}),
        ("Cost", {"FLOPs/question": "flops", "calls": "calls", "tok/s": "speed", "seconds": "seconds",
                  "trained": "trained"}),
    ):  # two tables: each fits 80 columns
        table = Table(title=heading, title_justify="left")
        table.add_column("system", no_wrap=True)
        for name in columns:
            table.add_column(name, justify="right", no_wrap=True)
        for row in _rows(result):
            table.add_row(row["name"], *(row[key] for key in columns.values()), style="bold" if row["chief"] else None)
        console.print(table)
    if len(result["tasks"]) > 1:
        by_task = Table(title="Accuracy by task (%)", title_justify="left")
        by_task.add_column("task")
        by_task.add_column("questions", justify="right")
        for name in [*result["systems"], f"stack minus {result['best_single']}"]:
            by_task.add_column(name, justify="right")
        for row in _task_rows(result):
            by_task.add_row(row["name"], str(row["n"]), *row["cells"], row["difference"])
        console.print(by_task)
    console.print(verdict(result), highlight=False)


def report_item(
    answers: Mapping[str, Outcome], inputs: Mapping[str, str], stages: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    """Returns one question as the page shows it: a line of traces.jsonl.

    Args:
        answers: system -> its outcome for this question.
        inputs: the input fields.
        stages: hand-offs, each with name, kind, over, value, prompt, kept (places of the items kept, or None) and
            calls (item, output, violations); see `systems.trace_stages`.

    Raises:
        InputError: there is no answer, or the answers belong to different questions.
    """
    outcomes = list(answers.values())
    if not outcomes or len({outcome.id for outcome in outcomes}) != 1:
        raise InputError("answers must belong to one question", value=[outcome.id for outcome in outcomes])
    first = outcomes[0]
    return {
        "id": first.id,
        "task": first.task,
        "gold": first.gold,
        "inputs": dict(inputs),
        "stages": [dict(stage) for stage in stages],
        "answers": {
            name: {"answer": outcome.answer, "correct": outcome.correct, "text": outcome.text}
            for name, outcome in answers.items()
        },
    }


def write_report(
    path: str | Path,
    result: Mapping[str, Any],
    items: Iterable[Mapping[str, Any]] = (),
    *,
    curves: Mapping[str, Points] | None = None,
    title: str = "A stack against single models",
    note: str = "",
) -> None:
    """Writes the page.

    Args:
        path: HTML file, replaced whole or not at all.
        result: of `compare`.
        items: of `report_item`, all of them shown.
        curves: name -> (step, loss) points of the training runs.
        title: heading of the page.
        note: a sentence below the verdict.

    Raises:
        StorageError: the file cannot be written.
    """
    write_text(path, report_html(result, items, curves=curves, title=title, note=note))


def report_html(
    result: Mapping[str, Any],
    items: Iterable[Mapping[str, Any]] = (),
    *,
    curves: Mapping[str, Points] | None = None,
    title: str = "A stack against single models",
    note: str = "",
) -> str:
    """Returns the page of `write_report` as text."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    shown = list(items)
    stack = result["stack"]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    template = environment.from_string(Path(__file__).with_name(_TEMPLATE).read_text(encoding="utf-8"))
    data = {
        "systems": list(result["systems"]),
        "stack": stack,
        "singles": [name for name in result["systems"] if name.startswith("single")],
        "items": shown,
    }
    return template.render(
        title=title,
        note=note,
        verdict=verdict(result),
        colours=_colours(result),
        lines=_LINES,
        rows=_rows(result),
        method=_method(result),
        systems=list(result["systems"]),
        best=result["best_single"],
        task_rows=_task_rows(result),
        by_task=Markup(accuracy_by_task(result)),
        by_flops=Markup(accuracy_by_flops(result)),
        wide=len(result["tasks"]) > 6,
        curves=Markup(curves_plot(curves or {}, colour_of=_curve_colours(result, curves or {}))),
        item_count=len(shown),
        item_note=f"{len(shown):,} questions with every hand-off. Keys j and k go to the next and the one before.",
        data=Markup(_script_json(data)),
        facts=_facts(result),
    )


def _script_json(value: Any) -> str:
    """Returns JSON that cannot end the script element it stands in, nor break older JavaScript readers."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character, escaped in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026"), ("\u2028", "\\u2028"),
                               ("\u2029", "\\u2029")):  # fmt: skip
        text = text.replace(character, escaped)
    return text


def _colours(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    free = iter(_OTHERS * (len(result["systems"]) // len(_OTHERS) + 1))
    fixed = {result["stack"]: _STACK, "base": _BASE}
    return [fixed[name] if name in fixed else next(free) for name in result["systems"]]


def _curve_colours(result: Mapping[str, Any], curves: Mapping[str, Points]) -> dict[str, str]:
    """A curve named after a system has that system's colour; the stages take colours that no system has."""
    systems = list(result["systems"])
    taken = set(_colours(result))
    free = [place for place, colour in enumerate(_LINES) if colour not in taken]
    stages = [name for name in curves if name not in systems]
    own = {name: f"--c{free[place % len(free)]}" for place, name in enumerate(stages)}
    return {name: own.get(name) or f"--s{systems.index(name)}" for name in curves}


def _rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    stack = result["stack"]
    for name in result["systems"]:
        low, high = result["ci95"][name]
        paired = result["paired_all"].get(name)
        trained = result["trained_params"].get(name, 0)
        seconds = result["seconds"][name]
        rows.append(
            {
                "name": name,
                "chief": name == stack,
                "accuracy": _percent(result["accuracy"][name]),
                "interval": f"{100 * low:.1f} to {100 * high:.1f}",
                "difference": "" if paired is None else _difference(paired),
                "flops": si(result["flops_per_question"][name]),
                "calls": f"{result['calls_per_question'][name]:.1f}",
                "tokens": f"{result['prompt_tokens_per_question'][name]:,.0f} + "
                f"{result['new_tokens_per_question'][name]:,.0f}",
                "seconds": f"{seconds:,.1f}",
                "speed": f"{result['tokens_per_second'][name]:,.0f}",
                "trained": f"{trained:,}" if trained else "none",
            }
        )
    return rows


def _task_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "n": part["n"],
            "cells": [f"{100 * part['accuracy'][system]:.1f}" for system in result["systems"]],
            "difference": _difference(part["paired"]),
        }
        for name, part in result["tasks"].items()
    ]


def _difference(paired: Mapping[str, Any]) -> str:
    low, high = paired["ci95"]
    return f"{_points(paired['difference'])} ({_points(low)} to {_points(high)})"


def _method(result: Mapping[str, Any]) -> str:
    paired = result["paired"]
    return (
        f"Best single adapter, picked on these same questions: {result['best_single']}. Intervals: Wilson with a "
        f"design effect for questions of one story; differences: paired bootstrap over {paired['groups']:,} stories, "
        f"{paired['resamples']:,} resamples, p = {paired['p_value']:.2g} (exact McNemar, which takes questions as "
        f"independent: {paired['mcnemar_p']:.2g}). They speak about new stories, not about other training seeds. "
        f"FLOPs count every call, retries included; seconds are for answering all questions."
    )


def _facts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = [("base", f"{result['base_params']:,} parameters, frozen")]
    if result.get("seconds_total") is not None:
        facts.append(("whole experiment", f"{result['seconds_total']:,.0f} s"))
    shown = {
        "seconds_total", "n_test", "n_stories", "base_params", "trained_params", "systems", "best_single", "accuracy",
        "ci95", "paired", "paired_all", "tasks", "flops_per_question", "seconds", "seconds_per_question", "stack",
        "calls_per_question", "prompt_tokens_per_question", "new_tokens_per_question", "tokens_per_second",
    }  # fmt: skip
    for key, value in result.items():
        if key not in shown:
            facts.append((key.replace("_", " "), _plain(value)))
    return facts


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {_plain(inner)}" for key, inner in value.items())
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}" if value >= 10_000 else str(value)
    if isinstance(value, list | tuple):
        return ", ".join(_plain(inner) for inner in value)
    return "not known" if value is None else str(value)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"
