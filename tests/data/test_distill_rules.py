"""Rule teachers: what they derive from a gold answer, and what becomes of a function that fails."""

from __future__ import annotations

import json

import pytest

from cairn.data.distill_rules import derive, find_rule_teacher, key_words
from cairn.errors import ConfigError, InputError

TEXT = "Tom bakes bread. His sister sells it in the village. The mill is old."


def test_qa_finds_the_sentence_that_holds_the_answer() -> None:
    asked = {"text": TEXT, "question": "Who sells the bread?"}
    assert derive("qa", "find", {**asked, "gold": "his sister"}) == ["no", "yes", "no"]
    assert derive("qa", "find", {**asked, "gold": "she sells it"}) == ["no", "yes", "no"], "most words shared"


def test_extract_writes_a_line_for_each_fact() -> None:
    gold = json.dumps({"item": "lamp", "count": 4, "new": True})
    assert derive("extract", "find", {"text": "x", "gold": gold}) == ["item: lamp\ncount: 4\nnew: true"]
    with pytest.raises(InputError, match="the answer is no JSON object"):
        derive("extract", "find", {"text": "x", "gold": "four lamps"})


def test_words_that_carry_meaning() -> None:
    assert key_words("The cat and the dog saw the Cat") == ["cat", "dog", "saw"]
    assert derive("classify", "gist", {"text": "Is it in the?", "gold": "x"}) == ["Is"]
    assert derive("instruct", "points", {"request": "x", "gold": "A cork floats."}) == ["cork floats"]


def broken(fields: dict[str, str]) -> dict[str, object]:
    return {"points": 3 if fields["gold"] == "number" else fields["nothing"]}


def test_a_function_of_ones_own() -> None:
    name = "tests.data.test_distill_rules:broken"
    with pytest.raises(InputError, match="no hand-off for points.*KeyError: 'nothing'"):
        derive(name, "points", {"gold": "x"})
    with pytest.raises(InputError, match="points is no text: 3"):
        derive(name, "points", {"gold": "number"})
    for wrong, why in [("clasify", r"did you mean classify\?"), ("no.such:thing", "cannot be imported"),
                       ("json:nothing", "cannot be imported"), ("json:__name__", "is a str, allowed: a function")]:
        with pytest.raises(ConfigError, match=why):
            find_rule_teacher(wrong)
