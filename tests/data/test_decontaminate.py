"""Finding evaluation text in training text, compared with a plain and slow reading of the same two rules."""

from __future__ import annotations

import random
import re

import pytest

from cairn.data.decontaminate import Decontaminator
from cairn.errors import ConfigError, DataError

LONG = "A farmer who keeps nine brown hens beside the river sells their eggs at the gate every single Friday."
SHORT = "These painters could not annoy Theodore."


def test_a_run_of_13_words_is_found_whatever_its_punctuation() -> None:
    checker = Decontaminator()
    assert checker.add("tests", [LONG]) == 19 - 13 + 1
    text = "He read: a FARMER, who keeps nine brown hens -- beside the river -- sells their eggs; and left."
    assert checker.overlaps(text) == [
        ("tests", "a farmer who keeps nine brown hens beside the river sells their eggs"[:]),
    ]
    assert checker.overlaps(text.replace("brown", "white")) == []
    twelve = "Today a farmer who keeps nine brown hens beside the river sells their shoes."
    assert checker.overlaps(twelve) == []


def test_a_short_sentence_counts_only_whole() -> None:
    checker = Decontaminator()
    checker.add("short", [SHORT])
    sentence = "these painters could not annoy theodore"
    assert checker.overlaps("Hello. These painters could not annoy Theodore! Bye.") == [("short", sentence)]
    assert checker.overlaps("a list\nThese painters could not annoy Theodore\nanother line") == [("short", sentence)]
    assert checker.overlaps("Hello. These painters could not\nannoy Theodore. Bye.") == [("short", sentence)]
    assert checker.overlaps("I know that these painters could not annoy Theodore.") == []
    assert checker.overlaps("These painters could not annoy Theodore much.") == []


def test_five_words_are_ordinary_english() -> None:
    checker = Decontaminator()
    checker.add("short", [SHORT, "The boy saw a dog."])
    assert checker.overlaps("The boy saw a dog.") == []
    strict = Decontaminator(sentence=5)
    strict.add("short", ["The boy saw a dog."])
    assert strict.overlaps("Then it came. The boy saw a dog.") == [("short", "the boy saw a dog")]


def test_every_owner_of_a_run_is_named() -> None:
    checker = Decontaminator()
    checker.add("one", [LONG])
    checker.add("two", [LONG])
    checker.add("three", [SHORT])
    assert {name for name, _ in checker.overlaps(LONG)} == {"one", "two"}


def test_sets_may_be_added_after_a_question() -> None:
    checker = Decontaminator()
    checker.add("one", [LONG])
    assert checker.overlaps(SHORT) == []
    checker.add("two", [SHORT])
    assert [name for name, _ in checker.overlaps(SHORT)] == ["two"]
    assert {name for name, _ in checker.overlaps(LONG)} == {"one"}


def test_filter_keeps_order_and_reports_what_it_dropped() -> None:
    checker = Decontaminator()
    checker.add("long", [LONG])
    checker.add("short", [SHORT])
    documents = ["first", LONG, "second", f"{SHORT} {LONG}", "third"]
    assert list(checker.filter(documents)) == ["first", "second", "third"]
    assert (checker.report.kept, checker.report.dropped) == (3, 2)
    assert checker.report.by_set == {"long": 2, "short": 1}
    assert checker.report.examples["short"] == ["these painters could not annoy theodore"]
    assert str(checker.report) == "3 documents kept, 2 dropped (long 2, short 1)"


def test_nothing_to_look_for_finds_nothing() -> None:
    checker = Decontaminator()
    assert checker.overlaps(LONG) == []
    assert checker.overlaps("") == []


def test_agrees_with_a_plain_reading_on_random_text() -> None:
    rng = random.Random(4)
    words = "ash bay cot dew elm fig".split()

    def sentences(count: int) -> str:
        return " ".join(" ".join(rng.choices(words, k=rng.randint(2, 7))) + rng.choice(".!?") for _ in range(count))

    n, m = 5, 3
    evaluation = [sentences(rng.randint(1, 2)) for _ in range(40)]
    checker = Decontaminator(ngram=n, sentence=m)
    checker.add("set", evaluation)
    runs, short = set(), set()
    for text in evaluation:
        tokens = re.findall(r"\w+", text)
        if len(tokens) >= n:
            runs |= {tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)}
        else:
            short |= {tuple(s.split()) for s in re.split(r"[.!?]", text) if len(s.split()) >= m}
    hits = 0
    for _ in range(400):
        text = sentences(rng.randint(1, 4))
        tokens = re.findall(r"\w+", text)
        expected = {tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)} & runs
        expected |= {tuple(s.split()) for s in re.split(r"[.!?]", text)} & short
        assert {tuple(found.split()) for _, found in checker.overlaps(text)} == expected, text
        hits += bool(expected)
    assert 20 < hits < 380


def test_a_set_without_usable_text_is_refused() -> None:
    with pytest.raises(DataError, match="no evaluation text long enough.*'tiny'.*13 words.*Next"):
        Decontaminator().add("tiny", ["Yes.", "No."])
    with pytest.raises(DataError, match="no evaluation text long enough"):
        Decontaminator().add("empty", [])


def test_limits_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="ngram: 2; allowed: 3 or more"):
        Decontaminator(ngram=2, sentence=3)
    with pytest.raises(ConfigError, match="sentence: 9 is longer than ngram: 8"):
        Decontaminator(ngram=8, sentence=9)
