"""The page and the table: everything is in them, nothing breaks out of them, nothing is fetched."""

from __future__ import annotations

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from cairn.errors import InputError, StorageError
from cairn.evaluation.compare import compare
from cairn.evaluation.plots import (
    accuracy_by_flops,
    accuracy_by_group,
    accuracy_by_latency,
    accuracy_by_task,
    blame_plot,
    curves_plot,
    si,
)
from cairn.evaluation.report import print_table, report_html, report_item, verdict, write_report
from cairn.evaluation.report_tables import blame_rows, cost_rows, method, paired_rows, with_interval
from cairn.evaluation.systems import Outcome
from tests.evaluation import made_up

Experiment = tuple[dict[str, Any], list[dict[str, Any]]]
EVIL = "</script><script>alert(1)</script><!--\u2028&\"'"


def outcome(number: int, correct: bool, text: str = " hall") -> Outcome:
    answer = "hall" if correct else "office"
    return Outcome(
        f"qa{1 + number % 2}-{number}", f"s{number // 3}", f"qa{1 + number % 2}", "hall", answer, correct, text, 2, 30,
        3, 5 * 10**9, 0.25,
    )  # fmt: skip


SYSTEMS = {
    "base": [outcome(i, i % 5 == 0) for i in range(60)],
    "single_direct": [outcome(i, i % 2 == 0) for i in range(60)],
    "single_chain": [outcome(i, i % 3 > 0) for i in range(60)],
    "stack": [outcome(i, i % 10 > 0) for i in range(60)],
}


@pytest.fixture
def result() -> dict[str, Any]:
    trained = {"stack": 526000, "single_direct": 526000, "single_chain": 526000}
    extra = {"training_tokens": {"stack": 1_200_000}, "energy": "not measured", "note": EVIL}
    return compare(SYSTEMS, base_params=7_400_000, trained_params=trained, seconds_total=800.0, extra=extra)


def test_a_p_value_below_any_float_is_not_shown_as_zero(result: dict[str, Any]) -> None:
    result["paired_all"]["base"]["mcnemar_p"] = result["paired"]["mcnemar_p"] = 0.0
    assert {row["name"]: row["test"] for row in paired_rows(result)}["base"] == "below 1e-300"
    assert "as independent: below 1e-300" in method(result)


def items(inputs_text: str = "Mary went home.\nJohn sat.") -> list[dict[str, Any]]:
    stages = [
        {
            "name": "mention", "kind": "map", "over": "story", "value": "Mary went home.", "prompt": "p", "kept": [0],
            "calls": [{"item": "Mary went home.", "output": "yes", "violations": [EVIL]}],
        }
    ]  # fmt: skip
    return [
        report_item(
            {name: outcomes[i] for name, outcomes in SYSTEMS.items()},
            {"story": inputs_text, "question": f"Where is number {i}?"}, stages,
        )
        for i in range(60)
    ]  # fmt: skip


class Page(HTMLParser):
    """Collects what a browser would see: tags with attributes, and the text of each script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.scripts[-1] += data


def test_the_page_holds_every_trace_and_evil_text_stays_text(result: dict[str, Any]) -> None:
    given = items(EVIL)
    page = Page(report_html(result, given, title=EVIL, note=EVIL))
    assert len(page.scripts) == 2  # the data and our own code, none that a story brought
    data = json.loads(page.scripts[0])
    assert data["items"] == json.loads(json.dumps(given))
    assert [item["id"] for item in data["items"]] == [o.id for o in SYSTEMS["stack"]]
    chain = {"answer": "hall", "correct": True, "score": 1.0, "text": " hall"}
    assert data["items"][1]["answers"]["single_chain"] == chain
    assert data["singles"] == ["single_direct", "single_chain"] and data["stack"] == "stack"
    raw = report_html(result, given)
    assert "<script>alert" not in raw and "\u2028" not in Page(raw).scripts[0]
    # The code of the page builds text nodes only.
    assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|\beval\(", page.scripts[1])


def test_the_page_asks_for_nothing(result: dict[str, Any]) -> None:
    page = Page(report_html(result, items(), curves={"answer": [(0, 2.0), (1, 1.0)]}))
    assert not [tag for tag, _ in page.tags if tag in ("link", "img", "iframe", "base", "object")]
    assert not [(tag, attrs) for tag, attrs in page.tags if {"src", "srcset"} & set(attrs)]
    places = {attrs["id"] for _, attrs in page.tags if attrs.get("id")}
    links = [attrs["href"] for _, attrs in page.tags if "href" in attrs]
    assert links and all(link.startswith("#") and link[1:] in places for link in links)  # within the page, and there
    policy = [attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy and "default-src 'none'" in policy[0]


def test_the_page_shows_table_plots_and_facts(result: dict[str, Any]) -> None:
    curves = {"mention": [(0, 2.0), (50, 1.0)], "single_direct": [(0, 2.0), (50, 1.5)]}
    html = report_html(result, items(), curves=curves)
    stack = result["accuracy"]["stack"]
    assert f"{100 * stack:.1f}%" in html and verdict(result).replace("'", "&#39;") in html
    assert html.count("<svg") == 3 and "not measured" in html and "7,400,000" in html
    assert html.count("<polyline") == 2
    assert "526,000" in html and "5 G" in html
    bare = report_html(result)
    assert bare.count("<svg") == 2 and "<script" not in bare and "Traces" not in bare
    for section in ("blame", "cost", "ablation", "training"):
        assert f'id="{section}"' not in bare  # what the result does not have is left out


def test_plots_draw_one_mark_per_number(result: dict[str, Any]) -> None:
    bars = accuracy_by_task(result)
    assert bars.count("<rect") == 3 * 4  # all, qa1, qa2
    heights = [float(h) for h in re.findall(r'<rect [^>]*height="([\d.]+)"', bars)]
    assert heights[3] == pytest.approx(220 * result["accuracy"]["stack"], abs=0.1)
    assert accuracy_by_flops(result).count("<circle") == 4
    assert curves_plot({"a": [(0, float("nan"))]}, colour_of={"a": "--c0"}) == ""
    assert "alert" not in curves_plot({"<b>": [(0, 1.0)]}, colour_of={"<b>": "--c0"}) and si(1.234e9) == "1.23 G"


def test_writing_is_whole_or_not_at_all(tmp_path: Path, result: dict[str, Any]) -> None:
    path = tmp_path / "report.html"
    write_report(path, result, items())
    assert path.read_text(encoding="utf-8") == report_html(result, items())
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError):
        write_report(tmp_path / "file" / "report.html", result)


def test_items_belong_to_one_question() -> None:
    with pytest.raises(InputError, match="answers must belong to one question"):
        report_item({"stack": outcome(0, True), "base": outcome(1, True)}, {})


def test_verdict_says_it_in_either_direction(result: dict[str, Any]) -> None:
    assert verdict(result).endswith("The stack is better: the interval lies above zero.")
    swapped = compare({**SYSTEMS, "stack": SYSTEMS["base"], "base": SYSTEMS["stack"]}, base_params=1, trained_params={})
    assert verdict(swapped).endswith("The stack is worse: the interval lies below zero.")
    same = compare({"single_direct": SYSTEMS["stack"], "stack": SYSTEMS["stack"]}, base_params=1, trained_params={})
    assert verdict(same).endswith("The difference is not settled: the interval includes zero.")


def test_terminal_table_has_every_system_and_task(result: dict[str, Any]) -> None:
    from rich.console import Console

    out = io.StringIO()
    print_table(result, Console(file=out, width=160, no_color=True))
    text = out.getvalue()
    for name in (*SYSTEMS, "qa1", "qa2", "526,000", "FLOPs/question"):
        assert name in text
    assert f"{100 * result['accuracy']['single_chain']:.1f}%" in text
    assert "The stack is better" in " ".join(text.split())


@pytest.fixture(scope="module")
def experiment() -> Experiment:
    return made_up.experiment(40)


class Tables(HTMLParser):
    """Collects the cells of every row that follows a heading."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: dict[str, list[list[str]]] = {}
        self._section, self._in_cell = "", False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("h2", "h3"):
            self._section = "?"
        elif tag == "tr":
            self.rows.setdefault(self._section, []).append([])
        elif tag == "td":
            self.rows[self._section][-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = self._in_cell and tag != "td"

    def handle_data(self, data: str) -> None:
        if self._section == "?":
            self._section = data
        elif self._in_cell:
            self.rows[self._section][-1][-1] += data


def test_every_figure_of_the_page_is_the_results(experiment: Experiment) -> None:
    result, items = experiment
    rows = Tables(report_html(result, items, ablation=made_up.ablation())).rows
    for place, name in enumerate(result["systems"]):
        cells = rows["Result"][1 + place]
        low, high = result["ci95"][name]
        assert cells[:3] == [name, f"{100 * result['accuracy'][name]:.1f}%", f"{100 * low:.1f} to {100 * high:.1f}"]
        assert cells[3] == ", ".join(f"{100 * one:.1f}" for one in result["accuracy_by_seed"][name])
        cost, cells = result["cost"]["systems"][name], rows["Cost"][1 + place]
        assert cells[0] == name
        assert float(cells[2].replace(",", "")) == pytest.approx(cost["latency_ms"]["p50"], rel=5e-3)
        assert float(cells[9]) == pytest.approx(cost["energy_j_per_answer"], rel=5e-3) and cells[-1] == "estimated"
        right = cost["energy_j_per_answer"] / result["accuracy"][name]
        assert float(cells[10].replace(",", "")) == pytest.approx(right, rel=5e-3)
    for place, (name, paired) in enumerate(result["paired_all"].items()):
        cells = rows["Paired tests"][1 + place]
        assert cells[0].startswith(name)
        assert cells[1:3] == [with_interval(paired), f"{paired['p_value']:.2g}"]
        assert cells[3] == f"{paired['mcnemar_p']:.2g}" and cells[5] == "40"
    for place, stage in enumerate(result["blame"]["stages"]):
        cells = rows["Blame"][1 + place]
        assert cells[0].startswith(stage["name"]) and cells[1] == with_interval(stage["lost_here"])
        assert cells[4:6] == [f"{100 * stage[key]:.1f}%" for key in ("right", "right_after_gold")]
        assert ("rule, no model" in cells[0]) == (stage["by"] == "rule")
    for place, part in enumerate(result["tasks"].values()):
        cells = rows["By group"][1 + place]
        assert cells[3:] == [f"{100 * part['accuracy'][name]:.1f}" for name in result["systems"]]
    assert [cells[0] for cells in rows["Ablation"][1:]] == ["whole", "no_mention", "bare_link"]
    assert rows["Ablation"][2][1] == "drop: mention" and rows["Further measures"][1] == ["stack", "71.0"]


def test_traces_have_loops_rules_and_the_row_of_their_table(experiment: Experiment) -> None:
    result, items = experiment
    data = json.loads(Page(report_html(result, items)).scripts[0])
    assert {item["row"] for item in data["items"]} == set(result["tasks"])
    walk, answer = data["items"][0]["stages"][2:]
    assert walk["kind"] == "repeat" and [call["state"] for call in walk["calls"]][0] == "nowhere"
    assert answer["by"] == "rule" and walk["by"] == "model"


def test_worst_cases_are_escaped_and_link_to_their_trace(experiment: Experiment) -> None:
    result, items = json.loads(json.dumps(experiment))
    case = result["blame"]["worst"][0]
    case["inputs"]["story"] = case["stages"][2]["own"] = case["stages"][2]["calls"][0]["own"] = EVIL
    result["blame"]["stages"][0]["name"] = case["stages"][0]["name"] = "<b>mention</b>"
    html = report_html(result, items)
    assert len(Page(html).scripts) == 2 and "<script>alert" not in html and "<b>" not in html
    assert f'data-trace="{case["id"]}"' in html
    assert f'data-trace="{case["id"]}"' not in report_html(result, [item for item in items if item["id"] != case["id"]])


def test_the_page_of_many_groups_draws_rows_of_dots(experiment: Experiment) -> None:
    result = {**experiment[0], "tasks": {f"task <{n}>": experiment[0]["tasks"]["1 moves"] for n in range(20)}}
    dots = accuracy_by_group(result, ["vote", "stack"])
    assert dots.count("<circle") == 2 * 21 and "task &lt;19&gt;" in dots and "<b" not in dots
    assert "<circle" in report_html(result) and accuracy_by_task(result) not in report_html(result)
    x = [float(value) for value in re.findall(r'<circle cx="([\d.]+)"', dots)]
    ends = [float(value) for value in re.findall(r'<line x1="([\d.]+)" x2="[\d.]+" y1="26"', dots)]
    share = (x[1] - ends[0]) / (ends[4] - ends[0])
    assert share == pytest.approx(result["accuracy"]["stack"], abs=1e-3)


def test_plots_of_cost_and_blame_have_a_mark_for_each(experiment: Experiment) -> None:
    result = experiment[0]
    latency = accuracy_by_latency(result)
    assert latency.count("<circle") == 5 and "vote: " in latency and "at 190 ms" in latency
    bars = blame_plot(result["blame"])
    assert bars.count("<rect") == 4 + 3  # the answer has no lift
    names = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)" class="label">(\w+)<', latency)
    boxes = []
    for x, y, anchor, name in names:
        left = float(x) - (6.9 * len(name) if anchor == "end" else 0)
        boxes.append((left, float(y) - 10, left + 6.9 * len(name), float(y) + 3))
    clear = [a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1] for a in boxes for b in boxes if a is not b]
    assert len(names) == 5 and all(clear)


def test_points_in_one_place_still_have_names_that_can_be_read() -> None:
    result = {
        "systems": [f"system_{n}" for n in range(7)], "stack": "system_0",
        "accuracy": {f"system_{n}": 0.5 for n in range(7)}, "ci95": {f"system_{n}": [0.4, 0.6] for n in range(7)},
        "flops_per_question": {f"system_{n}": 1e9 * (1 + n / 100) for n in range(7)},
    }  # fmt: skip
    drawn = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)" class="label">', accuracy_by_flops(result))
    assert len(set(drawn)) == 7


def test_tables_say_what_is_not_known_or_not_equal() -> None:
    result, _ = made_up.experiment(12, seeds=(0,))
    row = result["cost"]["systems"]["stack"]
    row |= {"energy_j_per_answer": None, "energy_j_per_correct": None, "energy": "not measured"}
    del row["libraries_mib"]
    shown = {row["name"]: row for row in cost_rows(result)}
    assert shown["stack"]["joules"] == "–" and shown["stack"]["memory"] == "576 shared"
    assert shown["single_direct"]["written"] == "–"
    del result["paired_all"]["base"]["mcnemar_p"]
    result["paired_all"]["base"]["permutation_p"] = 0.25
    tests = {row["name"]: row["test"] for row in paired_rows(result)}
    assert tests["base"] == "0.25 (permutation)" and tests["vote"].endswith("(exact McNemar)")
    assert [row["name"] for row in blame_rows(result["blame"])] == ["mention", "link", "walk", "answer"]


def test_terminal_has_blame_and_cost(experiment: Experiment) -> None:
    from rich.console import Console

    out = io.StringIO()
    print_table(experiment[0], Console(file=out, width=130, no_color=True))
    text = " ".join(out.getvalue().split())
    result = experiment[0]
    weakest = result["blame"]["weakest"]
    assert f"The weakest stage is {weakest}" in text and "answer (rule)" in text
    lost = next(stage["lost_here"] for stage in result["blame"]["stages"] if stage["name"] == weakest)
    assert with_interval(lost) in text
    assert "Energy is estimated, not measured: busy processor seconds at 7 W a core" in text and "J/correct" in text
    wide = {**result, "systems": [*result["systems"], "stack_empty"]}
    for key in ("accuracy", "ci95", "flops_per_question", "calls_per_question", "seconds", "tokens_per_second",
                "prompt_tokens_per_question", "new_tokens_per_question", "trained_params"):  # fmt: skip
        wide[key] = {**result[key], "stack_empty": result[key]["stack"]}
    for name, part in result["tasks"].items():
        wide["tasks"] = {**wide["tasks"], name: {**part, "accuracy": {**part["accuracy"], "stack_empty": 0.1}}}
    out = io.StringIO()
    print_table(wide, Console(file=out, width=130, no_color=True))
    table = out.getvalue().partition("by task")[2].split("\n")[2]
    assert "vote" in table and "stack" in table and "single_chain" not in table  # as many columns as can be read


def test_the_documentation_names_every_key(experiment: Experiment, repository: Path) -> None:
    text = (repository / "docs" / "report.md").read_text(encoding="utf-8")
    blame, cost = experiment[0]["blame"], experiment[0]["cost"]["systems"]["stack"]
    keys = {*blame, *blame["stages"][0], *blame["pairs"][0], *cost}
    plain = {"name", "kind", "lost_here", "id", "by", "questions_timed", "threads", "device", "stages", "lift"}
    assert not [key for key in keys - plain if f"`{key}`" not in text]
