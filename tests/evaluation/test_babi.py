"""The bAbI reader, on text written by hand."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import pytest

from cairn.errors import DataError
from cairn.evaluation.tasks.babi import exact_match, normalise_answer, read_babi

TEXT = """1 John took the milk.
2 Sandra went to the office.
3 Where is Sandra? \toffice\t2
4 John went to the hall.
5 Where is the milk?\thall\t1 4
1 Mary went home.
2 Where is Mary?\thome\t1
"""


def test_numbering_questions_and_stories() -> None:
    first, second, third = read_babi(TEXT.splitlines(), "qa2")
    assert first.sentences == ("John took the milk.", "Sandra went to the office.")
    assert (first.question, first.answer, first.supporting) == ("Where is Sandra?", "office", (1,))
    # The second question skips the number of the first one, and does not see its text.
    assert second.sentences == (*first.sentences, "John went to the hall.")
    assert second.supporting == (0, 2)
    assert [second.sentences[i] for i in second.supporting] == ["John took the milk.", "John went to the hall."]
    # Numbering restarts: a new story, nothing is carried over.
    assert third.sentences == ("Mary went home.",) and third.supporting == (0,)
    assert first.story_id == second.story_id != third.story_id
    assert len({q.id for q in (first, second, third)}) == 3 and {q.task for q in (first, second, third)} == {"qa2"}
    assert first.story == "John took the milk.\nSandra went to the office."


@pytest.mark.parametrize("packer", [None, gzip, lzma])
def test_files_plain_and_packed(tmp_path: Path, packer: object) -> None:
    path = tmp_path / ("qa7_test.txt" + {None: "", gzip: ".gz", lzma: ".xz"}[packer])
    path.write_bytes(TEXT.encode() if packer is None else packer.compress(TEXT.encode()))
    questions = read_babi(path)
    assert [q.answer for q in questions] == ["office", "hall", "home"] and questions[0].task == "qa7"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("John took the milk.", "line 2: not a bAbI line: 'John took the milk.'"),
        ("2 Where?\thall\t9", "line 2: not a bAbI question"),
        ("2 Where?\thall\tx", "line 2: not a bAbI question"),
        ("2 Where?\t\t1", "line 2: not a bAbI question"),
        ("2 Where?\thall\t1\tmore", "line 2: not a bAbI question"),
    ],
)
def test_bad_lines_are_named(line: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_babi(["1 John took the milk.", line])


def test_missing_damaged_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_babi(tmp_path / "qa1.txt")
    packed = tmp_path / "qa1.txt.xz"
    packed.write_bytes(lzma.compress(TEXT.encode() * 50)[:-20])
    with pytest.raises(DataError, match="damaged or cut-off archive"):
        read_babi(packed)
    with pytest.raises(DataError, match="no question found"):
        read_babi(["1 John took the milk."])
    latin = tmp_path / "qa1.txt"
    latin.write_bytes("1 Zoë sat.\n".encode("latin-1"))
    with pytest.raises(DataError, match="not UTF-8"):
        read_babi(latin)


def test_exact_match() -> None:
    assert normalise_answer(" Hall.\n") == "hall"
    assert exact_match(" Hall.", "hall")
    assert not exact_match("hallway", "hall")
    assert not exact_match("", "hall")
    assert exact_match("apple, milk", "milk,apple")
    assert not exact_match("milk", "milk,apple")
