"""One comparison as a page and as a terminal table.

    result.json (compare_seeds, blame, cost) ─┬─ print_table      the terminal
    traces.jsonl (report_item)  ──────────────┴─ write_report     one HTML file

The page opens offline and asks for no other resource. It holds the tables, the plots and every question with its
hand-offs, to be filtered and read. All text of models and data is escaped; the embedded JSON cannot end its own script
element. A section that the result does not have is left out: the demo's page is made by the same template.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cairn.errors import InputError
from cairn.evaluation.plots import (
    Points,
    accuracy_by_flops,
    accuracy_by_group,
    accuracy_by_latency,
    accuracy_by_task,
    blame_plot,
    curves_plot,
)
from cairn.evaluation.report_tables import (
    ablation_rows,
    blame_rows,
    blame_words,
    cost_rows,
    cost_words,
    facts,
    group_rows,
    measure_rows,
    method,
    pair_rows,
    paired_rows,
    second_test,
    system_rows,
    verdict,
)
from cairn.evaluation.report_terminal import print_table
from cairn.evaluation.systems import Outcome
from cairn.files import write_text

__all__ = ["print_table", "report_html", "report_item", "verdict", "write_report"]

_TEMPLATE, _STYLE, _SCRIPT = "report.html.jinja", "report.css", "report.js"
_BARS = 48  # so many bars can be told apart; more groups or systems are drawn as rows of dots
# (light, dark) by place; the stack is given the strongest colour, the base the greyest.
_STACK, _BASE = ("#1d7a4c", "#4fb97f"), ("#a5a8ad", "#70757d")
_OTHERS = [("#4a7fbd", "#6d9fd8"), ("#d9942f", "#dba24d"), ("#8a63ad", "#a886c9"), ("#b8574f", "#d57a72"),
           ("#3f9a9a", "#5fb9b9"), ("#8d6e3f", "#b8976a"), ("#c46a9f", "#d88fb9")]  # fmt: skip
_LINES = [_STACK, *_OTHERS, _BASE]


def report_item(
    answers: Mapping[str, Outcome],
    inputs: Mapping[str, str],
    stages: Sequence[Mapping[str, Any]] = (),
    row: str | None = None,
) -> dict[str, Any]:
    """Returns one question as the page shows it: a line of traces.jsonl.

    Args:
        answers: system -> its outcome for this question.
        inputs: the input fields.
        stages: hand-offs, each with name, kind, by, over, value, prompt, kept (places of the items kept, or None) and
            calls (item, state, output, violations); see `systems.trace_stages`.
        row: of the table by group; by default the question's task.

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
        "row": first.task if row is None else row,
        "gold": first.gold,
        "inputs": dict(inputs),
        "stages": [dict(stage) for stage in stages],
        "answers": {
            name: {"answer": one.answer, "correct": one.correct, "score": one.score, "text": one.text}
            for name, one in answers.items()
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
    ablation: Mapping[str, Any] | None = None,
) -> None:
    """Writes the page.

    Args:
        path: HTML file, replaced whole or not at all.
        result: of `compare_seeds`; its sections `blame` and `cost` are shown where they are there.
        items: of `report_item`, all of them shown.
        curves: name -> (step, loss) points of the training runs.
        title: heading of the page.
        note: a sentence below the verdict.
        ablation: result of `cairn ablate` on the same experiment.

    Raises:
        StorageError: the file cannot be written.
    """
    write_text(path, report_html(result, items, curves=curves, title=title, note=note, ablation=ablation))


def report_html(
    result: Mapping[str, Any],
    items: Iterable[Mapping[str, Any]] = (),
    *,
    curves: Mapping[str, Points] | None = None,
    title: str = "A stack against single models",
    note: str = "",
    ablation: Mapping[str, Any] | None = None,
) -> str:
    """Returns the page of `write_report` as text."""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    shown = list(items)
    here = {name: Path(__file__).with_name(name).read_text(encoding="utf-8") for name in (_TEMPLATE, _STYLE, _SCRIPT)}
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    systems, drawn, by_task = list(result["systems"]), *_by_group(result)
    data = {
        "systems": systems,
        "stack": result["stack"],
        "singles": [name for name in systems if name.startswith("single")],
        "items": shown,
    }
    measure_names, measures = measure_rows(result)
    drawn_curves = curves_plot(curves or {}, colour_of=_curve_colours(result, curves or {}))
    return environment.from_string(here[_TEMPLATE]).render(
        title=title,
        note=note,
        verdict=verdict(result),
        style=Markup(here[_STYLE]),
        script=Markup(here[_SCRIPT]),
        colours=_colours(result),
        lines=_LINES,
        measure=result.get("measure", "accuracy").capitalize(),
        rows=system_rows(result),
        paired=paired_rows(result),
        second_test=second_test(result),
        method=method(result),
        systems=systems,
        stack=result["stack"],
        seeds=result.get("seeds", [0]),
        best=result["best_single"],
        measure_names=measure_names,
        measure_rows=measures,
        task_rows=group_rows(result),
        drawn=drawn,
        by_task=Markup(by_task),
        by_flops=Markup(accuracy_by_flops(result)),
        by_latency=Markup(accuracy_by_latency(result) if result.get("cost") else ""),
        blame=_blame(result.get("blame"), Markup),
        cost_rows=cost_rows(result),
        cost_words=cost_words(result) if result.get("cost") else "",
        ablation=_ablation(ablation),
        curves=Markup(drawn_curves),
        item_count=len(shown),
        item_note=f"{len(shown):,} questions with every hand-off. Keys j and k go to the next and the one before.",
        trace_ids={item["id"] for item in shown},
        data=Markup(_script_json(data)),
        facts=facts(result),
        sections=_sections(result, ablation, bool(drawn_curves), bool(shown)),
    )


def _sections(
    result: Mapping[str, Any], ablation: Mapping[str, Any] | None, curves: bool, items: bool
) -> list[tuple[str, str]]:
    """Returns the places of the page that are there, with their names."""
    there = {
        "groups": ("By group", len(result["tasks"]) > 1),
        "blame": ("Blame", bool(result.get("blame"))),
        "cost": ("Cost", bool(result.get("cost") and result["cost"]["systems"])),
        "ablation": ("Ablation", bool(ablation)),
        "training": ("Training", curves),
        "traces": ("Traces", items),
    }
    found = [(place, name) for place, (name, is_there) in there.items() if is_there]
    return [("result", "Result"), *found, ("facts", "How it was made")]


def _blame(section: Mapping[str, Any] | None, markup: type[str]) -> dict[str, Any] | None:
    if not section:
        return None
    return {
        "words": blame_words(section),
        "plot": markup(blame_plot(section)),
        "rows": blame_rows(section),
        "pairs": pair_rows(section),
        "wrong": f"{section['wrong_answers']:.1f}".removesuffix(".0"),
        "worst": section["worst"],
    }


def _ablation(ablation: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if not ablation:
        return None
    return {
        "rows": ablation_rows(ablation),
        "n": f"{ablation['n_test']:,}",
        "seeds": ablation["seeds"],
        "measure": ablation["measure"].capitalize(),
    }


def _by_group(result: Mapping[str, Any]) -> tuple[list[str], str]:
    """Returns the systems that are drawn, and the plot: bars of all, or dots of some where bars would be too many."""
    systems, stack = list(result["systems"]), result["stack"]
    groups = len(result["tasks"]) + (len(result["tasks"]) > 1)
    if groups * len(systems) <= _BARS:
        return systems, accuracy_by_task(result)
    chosen = {result["best_single"], stack, "base", *(name for name in systems if name.startswith("single"))}
    drawn = [name for name in systems if name in chosen]
    return drawn, accuracy_by_group(result, drawn)


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
    free = [place for place, colour in enumerate(_LINES) if colour not in taken] or list(range(len(_LINES)))
    stages = [name for name in curves if name not in systems]
    own = {name: f"--c{free[place % len(free)]}" for place, name in enumerate(stages)}
    return {name: own.get(name) or f"--s{systems.index(name)}" for name in curves}
