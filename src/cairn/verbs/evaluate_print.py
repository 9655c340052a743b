"""What `cairn eval` prints: one table for each kind of measure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["print_result"]

_SHARES = ("acc", "exact_match", "pass@", "f1", "em,")  # metrics that are shares of the items, shown in percent


def print_result(result: Mapping[str, Any]) -> None:
    """Prints every measure that a result holds, as tables on the terminal."""
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
    if "harness" in result:
        _print_harness(console, Table, result["harness"])


def _print_harness(console: Any, table_class: Any, found: Mapping[str, Any]) -> None:
    """Prints groups, then tasks: one line a figure, chance beside it; then what a reader must know."""
    inside = {name for group in found["groups"].values() if group["metrics"] for name in group["tasks"]}
    shown = {**found["groups"], **{name: one for name, one in found["tasks"].items() if name not in inside}}
    title = f"lm-evaluation-harness {found['lm_eval']}"
    table = _table(table_class, title, "task", "metric", "%", "± s.e.", "95% interval", "chance", "shots", "n")
    for name, one in shown.items():
        for key, metric in one["metrics"].items():
            scale = 100 if key.startswith(_SHARES) else 1
            low, high = metric["ci95"] or (None, None)
            table.add_row(
                name, key.removesuffix(",none").replace(",", ", "), _number(metric["value"], scale),
                _number(metric["stderr"], scale), f"{_number(low, scale)} to {_number(high, scale)}" if high else "",
                _number(one.get("chance"), scale), str(one.get("shots", "")), f"{one['n']:,}",
            )  # fmt: skip
    console.print(table)
    for name, one in shown.items():
        lines = [*_extra(one), *one.get("notes", [])]
        if "constant" in one:
            place, accuracy = one["constant"]["place"] + 1, one["constant"]["accuracy"]
            lines.insert(0, f"always choosing place {place} would get {100 * accuracy:.1f}%")
        for line in lines:
            console.print(f"{name}: {line}", highlight=False, markup=False, soft_wrap=True)
    inner = [f"{name}: {note}" for name in inside for note in found["tasks"][name]["notes"]]
    for line in sorted(set(inner)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _extra(one: Mapping[str, Any]) -> list[str]:
    """Returns the figures that only some tasks have, as sentences."""
    lines = []
    if "ties_half" in one:
        half, (low, high) = one["ties_half"], one["ties_half"]["ci95"]
        lines.append(
            f"acc above is the harness's: a tie counts as right. With ties at one half the macro mean of "
            f"{len(half['paradigms'])} paradigms is {100 * half['accuracy']:.1f}% ({100 * low:.1f} to "
            f"{100 * high:.1f}, {half['ties']:,} ties); both put a space before each sentence, which --blimp does not"
        )
    if "code" in one:
        code = one["code"]
        counts = ", ".join(f"{count} {name}" for name, count in code["outcomes"].items())
        lines.append(f"generated code was held by {', '.join(code['held_by'])}: {counts}")
    irt = one.get("gp_irt", {})
    if "missing" in irt:
        lines.append(f"no gp-IRT estimate: {irt['missing']}")
    for key, estimate in irt.get("estimates", {}).items():
        lines.append(f"gp-IRT of {key.removesuffix(',none')}: {estimate['gpirt']:.4f}")
    if "floors" in irt:
        random, constant = irt["floors"]["random"], irt["floors"]["constant"]
        always = ", ".join(f"{int(place) + 1}: {value['gpirt']:.4f}" for place, value in constant.items())
        low, high = random["middle95"]
        lines.append(
            f"gp-IRT of {random['draws']} random scorers: {random['gpirt']:.4f} (95% of them {low:.4f} to {high:.4f}); "
            f"of always the same place, {always}"
        )
    return lines


def _number(value: float | None, scale: int = 1) -> str:
    """Returns a share in percent, or another figure as it is."""
    if value is None:
        return ""
    return f"{scale * value:.1f}" if scale == 100 else f"{value:.4f}"


def _table(table_class: Any, title: str, *columns: str) -> Any:
    from rich import box

    table = table_class(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right", overflow="fold")
    return table
