"""A sweep as terminal tables and as one static page: HTML and SVG, no script, no external resource.

    result.json ─┬─ print_sweep        the terminal
                 └─ sweep_html         a page that opens offline

Differences are bits per byte of a variant minus those of the baseline: fewer is better, so a gain is negative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from cairn.evaluation.plots import curves_plot, differences_plot, si

__all__ = ["print_plan", "print_sweep", "sweep_html", "sweep_words"]

_OFF_TIME = 0.1  # share by which the time of a run may differ from its plan, unmentioned
_LOG_WIDTH = 150  # columns in a file or a pipe, where nobody says how wide it is
_LIGHT = {"page": "#fbfaf7", "card": "#ffffff", "ink": "#22252b", "soft": "#5d646f", "faint": "#e4e2db",
          "grid": "#e7e5de", "right": "#1d7a4c", "wrong": "#b3362b", "mark": "#fff0bf", "link": "#2b5f9e",
          "code": "#f3f1ea"}  # fmt: skip
_DARK = {"page": "#15171b", "card": "#1d2025", "ink": "#e6e4de", "soft": "#9aa1ab", "faint": "#31353c",
         "grid": "#2b2f36", "right": "#5fc48d", "wrong": "#f0857a", "mark": "#4b421c", "link": "#8ab8ee",
         "code": "#262a30"}  # fmt: skip
_LINES = ("#5d646f", "#4a7fbd", "#d9942f", "#8a63ad", "#b8574f", "#3f9a9a", "#8d6e3f", "#c46a9f", "#1d7a4c")

Cells = list[list[str]]


def sweep_words(result: Mapping[str, Any]) -> str:
    """Returns what was held equal and what came out, in two sentences."""
    said = [row["difference"]["verdict"] for row in result["variants"].values() if row.get("difference")]
    failed = [name for name, row in result["variants"].items() if "failed" in row]
    seeds = len(result["seeds"])
    if seeds == 1:
        found = "With one seed nothing is called better or worse."
    else:
        count = {word: said.count(word) for word in ("better", "worse", "not shown")}
        found = (
            f"Of {len(said)} variants {count['better']} better than {result['baseline']}, {count['worse']} worse, "
            f"{count['not shown']} without a difference that both intervals show."
        )
    broken = f" Not trained to the end: {', '.join(failed)}." if failed else ""
    lossy = [name for name, row in result["variants"].items() if row.get("lossless") is False]
    if lossy:
        broken += f" The tokenizer does not give every text back, which flatters the figure: {', '.join(lossy)}."
    late = [f"{name} ({share:.2f} of it)" for name, share in _time_shares(result).items() if abs(share - 1) > _OFF_TIME]
    if late:
        broken += f" The time was not equal, or the machine not idle: {', '.join(late)}."
    return f"{_budget_words(result)}, {seeds} seed{'s' if seeds > 1 else ''}. {found}{broken}"


def print_plan(result: Mapping[str, Any], console: Any = None) -> None:
    """Prints what every variant weighs and gets."""
    head, rows = _plan_cells(result)
    _print(_budget_words(result), head, rows, console)


def print_sweep(result: Mapping[str, Any], console: Any = None) -> None:
    """Prints the result of a sweep.

    Args:
        result: of `cairn sweep`.
        console: a rich Console; standard output by default.
    """
    print_plan(result, console)
    head, rows = _score_cells(result)
    _print("Bits per byte of raw text, fewer is better", head, rows, console)
    (console or _console()).print(sweep_words(result), highlight=False)


def sweep_html(result: Mapping[str, Any]) -> str:
    """Returns the page of a sweep as text."""
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    light = "".join(f"--{name}: {value}; " for name, value in _LIGHT.items())
    dark = "".join(f"--{name}: {value}; " for name, value in _DARK.items())
    lines = "".join(f"--c{place}: {value}; " for place, value in enumerate(_LINES))
    scores, plan = _table(*_score_cells(result)), _table(*_plan_cells(result))
    sources, facts = _table(*_source_cells(result)), "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in _facts(result)
    )
    curves = {name: row["curve"] for name, row in result["variants"].items() if row.get("curve")}
    colours = {name: f"--c{place % len(_LINES)}" for place, name in enumerate(curves)}
    drawn = curves_plot(curves, "share of the budget", "bits per byte", colour_of=colours)
    learning = (
        f'<h2>While training</h2><figure><figcaption>First seed, first bytes of each validation text</figcaption>'
        f"{drawn}</figure>" if drawn else ""
    )  # fmt: skip
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>Sweep: {escape(result["name"])}</title>
<style>
:root {{ color-scheme: light dark; {light}{lines}}}
@media (prefers-color-scheme: dark) {{ :root {{ {dark}}} }}
{style}
</style>
</head>
<body>
<main>
<h1>Sweep: {escape(result["name"])}</h1>
<p class="lead">{escape(sweep_words(result))}</p>
<p class="soft">{escape(result["description"])}</p>
<h2>Result</h2>
{scores}
<p class="small soft">Intervals: 95%. Over seeds: Student's, of the differences seed by seed. Over seeds and documents:
crossed bootstrap. A variant is called better or worse where both leave out zero; with many variants, one in twenty is
expected to do so by chance.</p>
<figure class="wide"><figcaption>Bits per byte minus the baseline's, with the interval over seeds and documents;
small dots are seeds</figcaption>{differences_plot(_difference_rows(result), "bits per byte minus the baseline's")}
</figure>
<h2>By text</h2>
{sources}
<h2>What each variant got</h2>
{plan}
{learning}
<h2>How it was made</h2>
<dl>{facts}</dl>
</main>
</body>
</html>
"""


def _budget_words(result: Mapping[str, Any]) -> str:
    budget = result["budget"]
    if budget.get("wall_clock_s"):
        words = f"Equal time: {budget['wall_clock_s']:g} s of training steps each"
    elif budget.get("flops"):
        words = f"Equal compute: {si(budget['flops'])}FLOPs of training each"
    else:
        words = "Equal parameters, and the same text read"
    same = result.get("same_size") and not budget.get("parameters")
    return words + (", equal parameters as well" if same else "")


def _time_shares(result: Mapping[str, Any]) -> dict[str, float]:
    """Returns the share of the planned time that each variant's steps took, for the budget of equal time."""
    return {
        name: row["seconds_per_step"] / row["plan"]["seconds_per_step"]
        for name, row in result["variants"].items()
        if row.get("seconds_per_step") and row["plan"]["seconds_per_step"]
    }


def _plan_cells(result: Mapping[str, Any]) -> tuple[list[str], Cells]:
    head = ["variant", "parameters", "resized", "steps", "tokens", "bytes/token", "MB read", "epochs", "FLOPs",
            "ms/step planned", "ms/step measured"]  # fmt: skip
    rows = []
    for name, row in result["variants"].items():
        plan, size = row["plan"], row["plan"]["size"]
        resized = f"{size['dimension']} {size['was']} to {size['is']} ({size['difference']:+,})" if size else ""
        planned, measured = plan["seconds_per_step"], row.get("seconds_per_step")
        doubtful = " ?" if (row.get("calibration") or {}).get("doubtful") else ""
        rows.append([
            name, f"{plan['parameters']:,}", resized, f"{plan['steps']:,}", si(plan["tokens"]),
            f"{plan['bytes_per_token']:.2f}", f"{plan['raw_bytes'] / 1e6:.2f}", f"{plan['epochs']:.2f}",
            "not known" if plan["flops"] is None else si(plan["flops"]),
            "" if planned is None else f"{1000 * planned:.0f}{doubtful}",
            "" if measured is None else f"{1000 * measured:.0f}",
        ])  # fmt: skip
    return _filled(head, rows)


def _score_cells(result: Mapping[str, Any]) -> tuple[list[str], Cells]:
    head = ["variant", "bits/byte", "by seed", "minus baseline", "over seeds", "seeds x documents", "p", ""]
    rows = []
    for name, row in result["variants"].items():
        if "failed" in row:
            rows.append([name, "failed", *[""] * 5, row["failed"].split(";")[0][:60]])
            continue
        if "bits_per_byte" not in row:
            rows.append([name, *[""] * 6, "not run yet"])
            continue
        gap = row.get("difference")
        by_seed = " ".join(f"{value:.4f}" for value in row["by_seed"])
        rows.append([
            name, f"{row['bits_per_byte']:.4f}", by_seed,
            *(["", "", "", "", "baseline"] if gap is None else [
                f"{gap['value']:+.4f}", _span(gap["ci95_seeds"]), _span(gap["ci95"]), f"{gap['p_value']:.2g}",
                gap["verdict"],
            ]),
        ])  # fmt: skip
    return head, rows


def _source_cells(result: Mapping[str, Any]) -> tuple[list[str], Cells]:
    shown = {name: row for name, row in result["variants"].items() if "by_source" in row}
    sources = list(next(iter(shown.values()))["by_source"]) if shown else []
    rows = []
    for name, row in shown.items():
        gaps = (row.get("difference") or {}).get("by_source", {})
        rows.append([name, *(
            f"{row['by_source'][source]:.4f}" + (f" ({gaps[source]:+.4f})" if source in gaps else "")
            for source in sources
        )])  # fmt: skip
    return ["variant", *sources], rows


def _difference_rows(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    meaning = {"better": True, "worse": False}
    return [
        {"name": name, "value": gap["value"], "ci95": gap["ci95"], "by_seed": gap["by_seed"],
         "better": meaning.get(gap["verdict"])}
        for name, row in result["variants"].items() if (gap := row.get("difference"))
    ]  # fmt: skip


def _facts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = [("budget", ", ".join(f"{key} {value}" for key, value in result["budget"].items() if value is not None)),
             ("seeds", ", ".join(map(str, result["seeds"]))),
             ("validation", ", ".join(f"{name}: {part['documents']:,} documents, {part['bytes']:,} bytes"
                                      for name, part in result["validation"].items()))]  # fmt: skip
    for name, row in result["variants"].items():
        change = row["plan"]["change"]
        facts.append((name, ", ".join(f"{key} = {value}" for key, value in change.items()) or "the baseline"))
    if result.get("machine"):
        facts.append(("speed measured on", ", ".join(f"{key} {value}" for key, value in result["machine"].items())))
    made = result["versions"]
    return [*facts, ("command", str(made["command"])), ("commit", str(made["commit"])), ("started", made["started"])]


def _span(ends: Sequence[float] | None) -> str:
    return "" if ends is None else f"{ends[0]:+.4f} to {ends[1]:+.4f}"


def _filled(head: list[str], rows: Cells) -> tuple[list[str], Cells]:
    """Leaves out columns that are empty in every row."""
    kept = [place for place in range(len(head)) if any(row[place] for row in rows)]
    return [head[place] for place in kept], [[row[place] for place in kept] for row in rows]


def _table(head: Sequence[str], rows: Cells) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(
            f"<{tag}{' class=num' if place else ''}>{escape(cell)}</{tag}>" for place, cell in enumerate(cells)
        ) + "</tr>"

    body = "\n".join(line(row, "td") for row in rows)
    return f'<div class="scroll"><table>\n<thead>{line(head, "th")}</thead>\n<tbody>{body}</tbody></table></div>'


def _console() -> Any:
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=_LOG_WIDTH)


def _print(title: str, head: Sequence[str], rows: Cells, console: Any) -> None:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column(head[0], no_wrap=True)
    for name in head[1:]:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    (console or _console()).print(table)
