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
from cairn.evaluation.plots import accuracy_by_flops, accuracy_by_task, curves_plot, si
from cairn.evaluation.report import print_table, report_html, report_item, verdict, write_report
from cairn.evaluation.systems import Outcome

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
    assert data["items"][1]["answers"]["single_chain"] == {"answer": "hall", "correct": True, "text": " hall"}
    assert data["singles"] == ["single_direct", "single_chain"] and data["stack"] == "stack"
    raw = report_html(result, given)
    assert "<script>alert" not in raw and "\u2028" not in Page(raw).scripts[0]
    # The code of the page builds text nodes only.
    assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|\beval\(", page.scripts[1])


def test_the_page_asks_for_nothing(result: dict[str, Any]) -> None:
    page = Page(report_html(result, items(), curves={"answer": [(0, 2.0), (1, 1.0)]}))
    assert not [tag for tag, _ in page.tags if tag in ("link", "img", "iframe", "base", "object")]
    assert not [(tag, attrs) for tag, attrs in page.tags if {"src", "href", "srcset"} & set(attrs)]
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
