"""Sources: every form becomes the same named fields, a bad row keeps its reason, a bad file is an error."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from cairn.data.instructions import SourceSettings, read_source
from cairn.errors import DataError

ALPACA = {"instruction": "Add the numbers.", "input": "2, 3", "output": "5"}
CHAT = {"messages": [
    {"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "Name a bird."},
    {"role": "assistant", "content": "A wren."}, {"role": "user", "content": "Thanks!"}]}  # fmt: skip
WHY = "It is light."
QA = {"id": "q", "question": "Which floats?", "choices": ["iron", "cork"], "answer": "cork", "llm_rationale": WHY}


def source(folder: Path, name: str, **settings: Any) -> SourceSettings:
    return SourceSettings(name="test", licence="made for this test", path=str(folder / name), **settings)


def lines(folder: Path, *rows: Any, name: str = "rows.jsonl") -> Path:
    (folder / name).write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return folder / name


def read(folder: Path, *rows: Any, **settings: Any) -> list[Any]:
    lines(folder, *rows)
    return list(read_source(source(folder, "rows.jsonl", **settings)))


def test_alpaca(tmp_path: Path) -> None:
    first, second = read(tmp_path, ALPACA, {**ALPACA, "id": 7, "input": ""})
    assert first.id == "1" and first.fields == ALPACA and first.fault is None
    assert second.id == "7" and second.fields["input"] == "", "an empty input is no fault"


@pytest.mark.parametrize("sharegpt", [False, True])
def test_chats_end_with_the_last_answer(tmp_path: Path, sharegpt: bool) -> None:
    row: dict[str, Any] = CHAT
    if sharegpt:
        names = {"system": "system", "user": "human", "assistant": "gpt"}
        row = {"conversations": [{"from": names[t["role"]], "value": t["content"]} for t in CHAT["messages"]]}
    (one,) = read(tmp_path, row)
    assert one.fields == {
        "system": "Be kind.", "history": "User: Hi\nAssistant: Hello.", "instruction": "Name a bird.", "input": "",
        "output": "A wren.",
    }  # fmt: skip


def test_questions_whatever_their_answer_is_given_as(tmp_path: Path) -> None:
    hub = {"text": ["iron", "cork"], "label": ["1", "2"]}
    rows = [QA, {**QA, "id": "b", "answer": 1}, {**QA, "id": "c", "answer": "B"},
            {"id": "d", "question": "Which floats?", "choices": hub, "answerKey": "2"}]  # fmt: skip
    made = read(tmp_path, *rows)
    assert [one.fault for one in made] == [None] * 4
    assert {(one.fields["answer"], one.fields["choices"]) for one in made} == {("cork", "iron\ncork")}
    assert made[0].fields["rationale"] == made[0].fields["llm_rationale"] == WHY


def test_tables_and_renamed_columns(tmp_path: Path) -> None:
    table = '\ufeffid,body,queue\n1,"late, again\nand again",post\n2,,bills\n'
    (tmp_path / "t.csv").write_text(table, encoding="utf-8")
    first, second = read_source(source(tmp_path, "t.csv", columns={"text": "body", "answer": "queue"}))
    assert first.fields == {"id": "1", "text": "late, again\nand again", "answer": "post"}
    assert "text" not in second.fields
    (tmp_path / "t.tsv").write_text("a\tb\n1\t2\n")
    assert [row.fields for row in read_source(source(tmp_path, "t.tsv"))] == [{"a": "1", "b": "2"}]


def test_packed_files_and_a_json_list_read_the_same(tmp_path: Path) -> None:
    data = lines(tmp_path, ALPACA, QA).read_bytes()
    (tmp_path / "a.jsonl.xz").write_bytes(lzma.compress(data))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(data))
    (tmp_path / "a.json").write_text(json.dumps([ALPACA, QA], indent=1))
    (tmp_path / "b.json").write_bytes(data)
    want = list(read_source(source(tmp_path, "rows.jsonl", form="rows")))
    for name in ("a.jsonl.xz", "a.jsonl.gz", "a.json", "b.json"):
        assert list(read_source(source(tmp_path, name, form="rows"))) == want, name
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(data)[:-12])
    with pytest.raises(DataError, match="damaged or cut off"):
        list(read_source(source(tmp_path, "cut.jsonl.gz")))


def test_a_dataset_of_the_hub_is_read_by_name_or_folder(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.Dataset.from_list([ALPACA, {**ALPACA, "output": "6"}]).save_to_disk(tmp_path / "saved")
    hub = SourceSettings(name="test", licence="none", hub=str(tmp_path / "saved"))
    assert [row.fields["output"] for row in read_source(hub)] == ["5", "6"]
    with pytest.raises(DataError, match="hub dataset cannot be loaded.*check hub, hub_config and hub_split"):
        list(read_source(SourceSettings(name="test", licence="none", hub="no-such/data-set-at-all")))


FAULTS = [
    ({**ALPACA, "output": ""}, "missing field", "output is empty"),
    ({"instruction": "x", "input": ""}, "missing field", "output is missing; it has instruction, input"),
    ({**ALPACA, "output": ["5"]}, "wrong field", "output is a list, allowed: a text"),
    ({**ALPACA, "instruction": "x" * 9000}, "too long", "9,005 characters, allowed: 8,000"),
    ({**ALPACA, "id": {"a": 1}}, "wrong field", "id is a dict"),
    ({**ALPACA, "id": "first"}, "id used twice", "id 'first' was used in row 1"),
    ({**ALPACA, "output": "half \ud83d"}, "not Unicode", "output has a lone surrogate at character 5"),
]


@pytest.mark.parametrize(("row", "kind", "why"), FAULTS)
def test_a_bad_row_keeps_its_reason_and_the_others_are_read(tmp_path: Path, row: Any, kind: str, why: str) -> None:
    made = read(tmp_path, {**ALPACA, "id": "first"}, row, {**ALPACA, "id": "last"})
    assert [one.fault is None for one in made] == [True, False, True]
    assert made[1].number == 2 and made[1].kind == kind and why in made[1].fault


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({**QA, "id": "x", "answer": "wood"}, "answer 'wood' is none of the choices"),
        ({**QA, "id": "x", "choices": []}, "choices is no list of texts"),
        ({**QA, "id": "x", "choices": {"text": ["a", "b"], "label": ["A"]}}, "2 choices with 1 labels"),
        ({"id": "x", "messages": []}, "question is missing"),
    ],
)
def test_bad_questions(tmp_path: Path, row: Any, why: str) -> None:
    assert why in read(tmp_path, QA, row)[1].fault


@pytest.mark.parametrize(
    ("turns", "why"),
    [([], "no list of turns"), ([{"role": "user", "content": "hi"}], "has no answer of the assistant"),
     ([{"role": "user"}], r"messages\[0\] has no role or no content"), ("{", "no list of turns")],
)  # fmt: skip
def test_bad_chats(tmp_path: Path, turns: Any, why: str) -> None:
    import re

    assert re.search(why, read(tmp_path, CHAT, {"messages": turns})[1].fault)


def test_rows_of_a_table_with_too_many_or_too_few_cells(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n3\n4,5,6\n")
    made = list(read_source(source(tmp_path, "t.csv")))
    than = "cells than the header has"
    assert [one.fault for one in made] == [None, f"1 fewer {than}", f"1 more {than}"]


BAD_FILES = [
    ("a.jsonl", '{"a": "naïve"}\n{"a": "naïve"}\n'.encode("latin-1"), r"line 1: not UTF-8 .*iconv -f LATIN1 -t UTF-8"),
    ("a.csv", "a,b\n1,naïve\n".encode("latin-1"), "line 2: not UTF-8"),
    ("a.json", '[{"a": 1},\n{"a": "naïve"}]'.encode("latin-1"), "line 2: not UTF-8"),
    ("a.jsonl", b'{"a": 1}\n{"a": \n', "line 2: not JSON"),
    ("a.jsonl", b"[1]\n", "line 1: a JSON list"),
    ("a.json", b"[1]", "item 1: a JSON int"),
    ("a.json", b"[{]", "not JSON"),
    ("a.csv", b'a,b\n1,"2\n3,4\n', "not a table"),
    ("a.csv", b"a,a\n1,2\n", "the first line is no header"),
    ("a.jsonl", b"\n\n", "the data has no rows"),
    ("a.parquet", b"x", r"cannot tell the format of the file.*\.jsonl"),
]


@pytest.mark.parametrize(("name", "data", "why"), BAD_FILES)
def test_a_file_that_cannot_be_trusted_is_an_error(tmp_path: Path, name: str, data: bytes, why: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=why):
        list(read_source(source(tmp_path, name)))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    lines(tmp_path, ALPACA, name="data.jsonl")
    with pytest.raises(DataError, match=r"no such file \(did you mean data.jsonl\?\)"):
        list(read_source(source(tmp_path, "dta.jsonl")))


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    made = read(tmp_path, {"body": "x", "label": "y"}, columns={"text": "boddy"})
    assert made[0].fault == "no column 'boddy' (did you mean body?); it has body, label"


def test_the_form_is_told_by_several_rows(tmp_path: Path) -> None:
    made = read(tmp_path, {"instruction": "damaged"}, ALPACA)
    assert "output is missing" in made[0].fault and made[1].fields == ALPACA
