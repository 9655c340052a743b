"""Traces: back from JSON equal, and readable."""

from __future__ import annotations

import json

import pytest

from cairn.errors import DataError
from cairn.stacks.trace import Call, StageRecord, Trace, format_stage, format_trace, from_json, to_json

TRACE = Trace(
    "7",
    "where",
    {"story": "John took the milk. Mary went to the garden.", "question": "Where is the milk?"},
    [
        StageRecord("mention", "map", "mention", "John took the milk.", [
            Call("p1", " yes", "yes", "John took the milk.", True, prompt_tokens=5, new_tokens=2, seconds=0.5),
            Call("p2", " perhaps", "perhaps", "Mary went to the garden.", False,
                 ["promised one of yes, no"], [" may"], 10, 4, 0.25, True),
        ]),
        StageRecord("answer", "once", "shared", "héré", [Call("p3", " héré", "héré", prompt_tokens=7, new_tokens=2)]),
    ],
    "héré",
)  # fmt: skip


def test_json_reads_back_equal_on_one_line() -> None:
    line = to_json(TRACE)
    assert "\n" not in line
    assert from_json(line) == TRACE
    row = json.loads(line)
    assert row["violations"] == ["mention[1]: promised one of yes, no"]
    assert row["totals"] == {
        "calls": 4, "calls_run": 2, "prompt_tokens": 22, "new_tokens": 8, "seconds": 0.75, "rule_calls": 0
    }  # fmt: skip
    assert "héré" in line


def test_a_trace_written_before_there_were_loops_and_rules_still_reads() -> None:
    row = json.loads(to_json(TRACE))
    for record in row["stages"]:
        del record["by"], record["rule"]
        for call in record["calls"]:
            del call["state"]
    assert from_json(json.dumps(row)) == TRACE


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"id": "1", "stages": [{"calls": [{}]}]}'])
def test_a_line_that_is_no_trace(line: str) -> None:
    with pytest.raises(DataError, match="not a trace"):
        from_json(line)


def test_stage_by_name() -> None:
    assert TRACE.stage("answer").value == "héré"
    with pytest.raises(DataError, match="no such stage: 'nothing'. Allowed: mention, answer"):
        TRACE.stage("nothing")


def test_format_is_aligned_marks_what_is_kept_and_shows_broken_promises() -> None:
    assert format_trace(TRACE, 60).splitlines() == [
        "story     John took the milk. Mary went to the garden.",
        "question  Where is the milk?",
        "",
        "1 mention  (1 of 2 items kept)",
        "  * John took the milk.                              yes",
        "    Mary went to the garden.                         perhaps",
        "  ! promised one of yes, no",
        "  ! asked again after ' may'",
        "  > John took the milk.",
        "2 answer  (adapter shared)",
        "  > héré",
        "",
        "answer: héré",
        "(4 calls, 22 tokens read, 8 written, 0.75 s; 1 broken promise)",
    ]


def test_long_texts_are_wrapped_to_the_width() -> None:
    long = "word " * 60
    record = StageRecord("s", "map", "s", long, [Call("p", long, long.strip(), long.strip())])
    text = format_stage(record, 3, 60)
    assert max(len(line) for line in text.splitlines()) <= 60
    assert text.splitlines()[0] == "3 s  (1 item)"
    assert text.count("word") > 120  # item and hand-off in full
