"""`cairn init`: folders that run as they are, from samples and from one's own data, and clear refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from cairn.cli import main
from cairn.contracts import check
from cairn.data.distill_config import distill_config
from cairn.data.examples import read_examples
from cairn.stacks.spec import load_stack
from cairn.training.finetune_plan import stack_training
from cairn.verbs.comparison.recipe import load_recipe
from cairn.verbs.init import FIELDS
from tests.engines.tiny_models import save_base


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def refused(capsys: Any, *arguments: str) -> str:
    code = main(["init", *arguments])
    text = capsys.readouterr().err.strip()
    assert code in (2, 3) and "Traceback" not in text
    return text


@pytest.mark.parametrize("kind", FIELDS)
def test_ten_sample_rows_that_every_verb_can_read(here: Path, kind: str, capsys: Any) -> None:
    assert main(["init", "mine", "--kind", kind]) == 0
    shown = capsys.readouterr().out
    assert "mine: 10 rows, 8 examples to train from, 2 to test with" in shown
    assert "cairn finetune mine/stack.yaml --out mine/trained" in shown
    folder = here / "mine"
    assert len(rows_of(folder / "rows.jsonl")) == 10
    spec = load_stack(folder)
    assert spec.name == "mine" and spec.base == "embedded:base"
    examples = read_examples(folder / str(spec.examples), spec)
    assert len(examples) == 8
    stack_training(spec.training, spec.adapter_names(), "stack.yaml")
    recipe = load_recipe(folder / "recipe.yaml")
    assert recipe.stack == spec and recipe.name == "mine"
    assert recipe.place(str(recipe.examples)).is_file() and recipe.place(str(recipe.test)).is_file()
    assert {row["by"] for row in rows_of(folder / "data" / "provenance.jsonl")[0]["stages"]["answer"]} == {"row"}
    comments = [line for line in (folder / "stack.yaml").read_text().splitlines() if "#" in line]
    assert len(comments) >= 10, "it is commented"
    again = main(["distill", str(folder / "recipe.yaml"), "--out", str(folder / "data")])
    assert again == 0 and "whole: " in capsys.readouterr().out


@pytest.mark.parametrize("kind", FIELDS)
def test_the_commented_teacher_of_the_recipe_is_right(here: Path, kind: str) -> None:
    assert main(["init", "mine", "--kind", kind]) == 0
    text = (here / "mine" / "recipe.yaml").read_text()
    marked = [line for line in text.splitlines() if line.startswith("  #   ")]
    section = {**yaml.safe_load(text)["distill"], **yaml.safe_load("\n".join(line[4:] for line in marked))}
    config = distill_config(section, load_stack(here / "mine"), "recipe.yaml")
    assert config.teacher is not None and config.teacher.kind == "openai"


def test_it_is_trained_run_and_scored_at_once(here: Path, capsys: Any) -> None:
    assert main(["init", "mine", "--kind", "classify"]) == 0
    base = save_base(here / "base", context=512)
    small = ["--set", "training.tokens_total=1500", "--set", "training.batch_tokens=300", "--no-comparators"]
    assert main(["finetune", "mine/stack.yaml", "--out", "mine/trained", "--base", str(base), *small]) == 0
    assert main(["run", "mine/trained", "The bell of my bicycle fell off.", "--json"]) == 0
    trace = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert trace["answer"] in ("repair", "order", "opening hours"), "held to its classes"
    assert main(["eval", "mine/trained", "--task", "examples", "--data", "mine/data/test.jsonl", "--json"]) == 0
    (score,) = json.loads(capsys.readouterr().out.splitlines()[-1])["tasks"].values()
    assert score["n"] == 2


def test_classes_lengths_and_budget_come_from_ones_own_table(here: Path, capsys: Any) -> None:
    rows = "".join(f'{n},"Message number {n}, with a comma",{"bills" if n % 3 else "post office"}\n' for n in range(30))
    (here / "t.csv").write_text("nr,body,queue\n" + rows)
    asked = ["--kind", "classify", "--from", "t.csv", "--map", "text=body", "--map", "answer=queue", "--map", "id=nr"]
    assert main(["init", "tickets", *asked, "--licence", "ours"]) == 0
    assert "30 rows, 27 examples to train from, 3 to test with" in capsys.readouterr().out
    spec = load_stack(here / "tickets")
    answer = spec.stage("answer")
    assert answer.contract.values == ["bills", "post office"] and answer.sampling.max_new_tokens == 14
    assert spec.training["tokens_total"] == 30000 and spec.training["validation_examples"] == 2
    assert rows_of(here / "tickets" / "rows.jsonl")[0] == {
        "id": "0", "text": "Message number 0, with a comma", "answer": "post office",
    }  # fmt: skip
    assert rows_of(here / "tickets" / "data" / "provenance.jsonl")[0]["licence"] == "ours"


def test_several_columns_become_json_with_its_schema(here: Path) -> None:
    rows = [{"mail": f"Send {n} lamps to Mill Road.", "count": n, "place": "Mill Road", "x": None} for n in range(8)]
    (here / "o.json").write_text(json.dumps(rows))
    asked = ["--kind", "extract", "--from", "o.json", "--map", "text=mail", "--map", "answer=count,place"]
    assert main(["init", "orders", *asked]) == 0
    spec = load_stack(here / "orders")
    example = read_examples(here / "orders" / str(spec.examples), spec)[0]
    assert json.loads(example.answer).keys() == {"count", "place"}
    assert not check(spec.stage("answer").contract, example.answer)
    assert check(spec.stage("answer").contract, '{"count": "1"}') and check(spec.stage("answer").contract, "no JSON")


def test_chats_and_alpaca_are_known(here: Path) -> None:
    talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    rows = [{"messages": [*talk, {"role": "user", "content": f"Name bird {n}."},
                          {"role": "assistant", "content": f"A wren of kind {n}."}]} for n in range(7)]  # fmt: skip
    (here / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["init", "helper", "--kind", "instruct", "--from", "chats.jsonl"]) == 0
    first = rows_of(here / "helper" / "rows.jsonl")[0]
    assert first["request"] == "User: Hi\nAssistant: Hello.\nName bird 0." and first["answer"] == "A wren of kind 0."


GOOD = [{"id": str(n), "text": f"Text {n}. Two sentences.", "question": f"What is text {n}?", "answer": f"text {n}"}
        for n in range(8)]  # fmt: skip


def write(here: Path, *changes: dict[str, Any]) -> list[str]:
    rows = [*GOOD, *({**GOOD[0], "id": f"bad{n}", **change} for n, change in enumerate(changes))]
    kept = [{key: value for key, value in row.items() if value is not None} for row in rows]
    (here / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    return ["mine", "--kind", "qa", "--from", "own.jsonl"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"question": None}, "row 9: no question; it has id, text, answer"),
        ({"answer": "  "}, "row 9: no answer; it has id, text, question"),
        ({"text": "x" * 4000}, "row 9: 4,0"),
        ({"id": "3"}, "row 9: id '3' was used in row 4"),
    ],
)
def test_bad_rows_are_refused_or_left_out_on_request(here: Path, capsys: Any, change: Any, why: str) -> None:
    asked = write(here, change)
    text = refused(capsys, *asked)
    assert "own.jsonl: 1 of 9 rows cannot be used" in text and why in text and "--drop-faulty" in text
    assert not (here / "mine").exists()
    assert main(["init", *asked, "--drop-faulty"]) == 0
    assert "1 faulty rows left out: mine/faulty.jsonl" in capsys.readouterr().out
    assert rows_of(here / "mine" / "faulty.jsonl")[0]["row"] == 9 and len(rows_of(here / "mine" / "rows.jsonl")) == 8


def test_refusals(here: Path, capsys: Any) -> None:
    asked = write(here)
    assert "mine is there already" in (main(["init", *asked]), refused(capsys, *asked))[1]
    asked[0] = "other"
    assert "8 of 8 rows cannot be used" in (text := refused(capsys, *asked, "--map", "text=boddy"))
    assert "no column 'boddy'" in text and "map other columns: --map OURS=THEIRS" in text
    assert "qa has no field 'label', allowed: text, question, answer, id" in refused(capsys, *asked, "--map", "label=x")
    assert "'text', allowed: OURS=THEIRS" in refused(capsys, *asked, "--map", "text")
    assert "several columns are for the answer of extract" in refused(capsys, *asked, "--map", "text=a,b")
    assert "is for data of your own" in refused(capsys, "other", "--map", "text=a")
    assert "cannot be the name of a stack" in refused(capsys, "a b")
    as_classes = ["other", "--kind", "classify", "--from", "own.jsonl"]
    assert "the answers are no classes: 8 different ones in 8 rows" in refused(capsys, *as_classes)
    as_facts = ["other", "--kind", "extract", "--from", "own.jsonl"]
    assert "answer 'text 0' is no JSON object" in refused(capsys, *as_facts)
    (here / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in GOOD[:3]))
    assert "too few rows: 3. Allowed: 6 or more" in refused(capsys, *asked)
    (here / "own.jsonl").write_bytes('{"text": "naïve"}\n'.encode("latin-1"))
    assert "line 1: not UTF-8" in refused(capsys, *asked)
    assert "no such file" in refused(capsys, "other", "--from", "nothing.csv")
    assert not (here / "other").exists()
