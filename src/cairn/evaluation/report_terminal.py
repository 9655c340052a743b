"""A result as tables on the terminal: each fits 80 columns where its names are short."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cairn.evaluation.report_tables import (
    blame_rows,
    blame_words,
    cost_rows,
    cost_words,
    group_rows,
    pair_rows,
    system_rows,
    verdict,
)

__all__ = ["print_blame", "print_cost", "print_table"]

_SYSTEMS_BY_GROUP = 5  # so many columns are shown
_LOG_WIDTH = 130  # columns in a file or a pipe, where nobody says how wide it is


def print_table(result: Mapping[str, Any], console: Any = None) -> None:
    """Prints a comparison to the terminal.

    Args:
        result: of `compare_seeds`.
        console: a rich Console; standard output by default.
    """
    console = console or _console()
    rows = system_rows(result)
    title = f"{result['n_test']:,} held-out questions, {result['n_stories']:,} stories"
    measure = result.get("measure", "accuracy")
    _print(console, title, rows, {measure: "accuracy", "95% interval": "interval", "stack minus it": "difference"})
    spent = {"FLOPs/question": "flops", "calls": "calls", "tok/s": "speed", "seconds": "seconds", "trained": "trained"}
    _print(console, "Cost of answering them all", rows, spent)
    if result.get("cost"):
        print_cost(result, console)
    if len(result["tasks"]) > 1:
        _print_groups(result, console)
    if result.get("blame"):
        print_blame(result["blame"], console)
    console.print(verdict(result), highlight=False)


def _print_groups(result: Mapping[str, Any], console: Any) -> None:
    """Prints the table by group: of many systems only the stack and the best comparator."""
    systems, best = list(result["systems"]), result["best_single"]
    shown = systems if len(systems) <= _SYSTEMS_BY_GROUP else [best, result["stack"]]
    last = f"stack minus {best}"
    rows = []
    for row in group_rows(result):
        cells = dict(zip(systems, row["cells"], strict=True))
        rows.append({"name": row["name"], "n": str(row["n"]), last: row["difference"], **cells})
    columns = {"questions": "n", **{name: name for name in [*shown, last]}}
    _print(console, f"{result.get('measure', 'accuracy').capitalize()} by task (%)", rows, columns, "task", wrap=True)


def print_cost(result: Mapping[str, Any], console: Any = None) -> None:
    """Prints the cost section of a result."""
    console = console or _console()
    rows = cost_rows(result)
    waiting = {"p50 ms": "p50", "p95 ms": "p95", "first token ms": "first", "peak MiB": "memory"}
    _print(console, "One question at a time", rows, waiting)
    speed = {"reads tok/s": "read", "writes tok/s": "written", "J/answer": "joules", "J/correct": "joules_right"}
    _print(console, "Speed and energy", rows, speed)
    console.print(cost_words(result), highlight=False)
    console.print()


def print_blame(section: Mapping[str, Any], console: Any = None) -> None:
    """Prints the blame section of a result."""
    console = console or _console()
    rows = [
        {**row, "name": f"{row['name']} (rule)" if row["rule"] else row["name"], "chief": row["weakest"]}
        for row in blame_rows(section)
    ]
    columns = {
        "points lost here": "lost", "gold here alone": "lift", "right": "right", "right after gold": "right_after_gold",
        "broken": "broken",
    }  # fmt: skip
    _print(console, "Blame: where the points go", rows, columns, "stage", wrap=True)
    pairs = pair_rows(section)
    if pairs:
        _print(console, "Two hand-offs gold", pairs, {"brings": "lift", "beyond each alone": "beyond"}, "stages")
    console.print(blame_words(section), highlight=False)
    console.print()


def _console() -> Any:
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=_LOG_WIDTH)


def _print(
    console: Any,
    title: str,
    rows: Sequence[Mapping[str, Any]],
    columns: Mapping[str, str],
    first: str = "system",
    *,
    wrap: bool = False,
) -> None:
    """Prints one table: a column for each title, with the key of its text; the chief row is bold."""
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    table.add_column(first, no_wrap=not wrap)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=not wrap)
    for row in rows:
        cells = [Text(row[key]) for key in ("name", *columns.values())]
        table.add_row(*cells, style="bold" if row.get("chief") else None)
    console.print(table)
