"""What a stage promises, and what breaks it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter

from cairn.config import StrictModel, parse_config
from cairn.contracts import Contract, check, describe, normalise
from cairn.errors import ConfigError


class Holder(StrictModel):
    contract: Contract


def make(**data: Any) -> Contract:
    return TypeAdapter(Contract).validate_python(data)


SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "minLength": 2}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}

CASES: list[tuple[dict[str, Any], str, list[str]]] = [
    ({"kind": "free"}, "anything", []),
    ({"kind": "free"}, "", ["it is empty"]),
    ({"kind": "choices", "values": ["yes", "no"]}, "yes", []),
    ({"kind": "choices", "values": ["yes", "no"]}, "Yes", ["promised one of yes, no, but got 'Yes'"]),
    ({"kind": "choices", "values": ["yes", "no"], "ignore_case": True}, "YES", []),
    ({"kind": "regex", "pattern": r"\d+"}, "12", []),
    ({"kind": "regex", "pattern": r"\d+"}, "12a", [r"matches \d+, but got '12a'"]),
    ({"kind": "length", "max_words": 2}, "a b c", ["at most 2 words, but got 3"]),
    ({"kind": "length", "min_words": 2, "max_characters": 2}, "abc", ["at least 2 words", "at most 2 characters"]),
    ({"kind": "length", "max_words": 3}, "a b c", []),
    ({"kind": "copied_from_input", "fields": ["story"]}, "went home", []),
    ({"kind": "copied_from_input", "fields": ["story"]}, "Went home", ["copied from story, but 'Went home'"]),
    ({"kind": "copied_from_input", "fields": ["story"], "ignore_case": True}, "Went home", []),
    ({"kind": "copied_from_input", "fields": ["story"], "allow": ["none"]}, "none", []),
    ({"kind": "copied_from_input", "fields": ["story"], "unit": "lines"}, "Mary\nhome.\nJohn", ["'John' is not there"]),
    ({"kind": "copied_from_input", "fields": ["story"], "unit": "words"}, "home Mary", []),
    ({"kind": "copied_from_input", "fields": ["story"], "unit": "words"}, "home, ho", ["'ho' is not there"]),
    ({"kind": "labels", "field": "story", "values": ["no", "who"]}, "1 who 2 no 3 no", []),
    ({"kind": "labels", "field": "story", "values": ["no", "who"]}, "1 who 3 no 2 no", ["each of 3 words"]),
    ({"kind": "labels", "field": "story", "values": ["no", "who"]}, "1 who 2 no 3", ["each of 3 words"]),
    ({"kind": "labels", "field": "story", "values": ["no", "who"]}, "1 it 2 no 3 that", ["'it'", "'that'"]),
    ({"kind": "json_schema", "json_schema": SCHEMA}, '{"name": "Jo", "age": 3}', []),
    ({"kind": "json_schema", "json_schema": SCHEMA}, "{name", ["promised JSON"]),
    (
        {"kind": "json_schema", "json_schema": SCHEMA},
        '{"age": -1, "x": true}',
        ["'name' is missing", "'x' is not promised", "$.age: promised at least 0, but got -1"],
    ),
    ({"kind": "json_schema", "json_schema": SCHEMA}, '{"name": "J", "age": true}', ["$.name", "$.age: promised int"]),
    ({"kind": "json_schema", "json_schema": {"type": "array", "items": {"enum": [1]}}}, "[1, true]", ["$[1]"]),
]


@pytest.mark.parametrize(("data", "text", "messages"), CASES)
def test_check(data: dict[str, Any], text: str, messages: list[str]) -> None:
    found = check(make(**data), text, {"story": "Mary went home."})
    assert len(found) == len(messages), found
    for violation, message in zip(found, messages, strict=True):
        assert violation.rule == data["kind"]
        assert message in violation.message


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"kind": "choices", "values": [True, "no"]}, 'put the word into quotes: "yes"'),
        ({"kind": "choices", "values": [" a"]}, "white space"),
        ({"kind": "choices", "values": ["a", "a"]}, "distinct"),
        ({"kind": "choices", "values": []}, "at least 1 item"),
        ({"kind": "regex", "pattern": "("}, "not a regular expression"),
        ({"kind": "length"}, "needs one of"),
        ({"kind": "length", "min_words": 3, "max_words": 2}, "min_words 3 is above max_words 2"),
        ({"kind": "json_schema", "json_schema": {"oneOf": []}}, "unknown keyword 'oneOf'"),
        ({"kind": "json_schema", "json_schema": {"items": {"type": "text"}}}, "$[]: type 'text'"),
        ({"kind": "nothing"}, "'free'"),
    ],
)
def test_faults_of_a_contract_are_config_errors(data: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(Holder, {"contract": data}, "stack.yaml")
    assert message in str(caught.value)


def test_normalise_gives_the_listed_spelling() -> None:
    contract = make(kind="choices", values=["Yes", "No"], ignore_case=True)
    assert normalise(contract, "yes") == "Yes"
    assert normalise(contract, "maybe") == "maybe"
    assert normalise(make(kind="choices", values=["Yes"]), "yes") == "yes"


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"kind": "free"}, "Any text that is not empty."),
        ({"kind": "choices", "values": ["yes", "no"]}, "One of: yes, no."),
        ({"kind": "length", "min_words": 1, "max_words": 2}, "At least 1 words and at most 2 words."),
        ({"kind": "copied_from_input", "fields": ["a", "b"], "unit": "lines", "allow": ["none"]},
         "Each line occurs in a or b, or is one of: none."),
        ({"kind": "labels", "field": "a", "values": ["x", "y"]}, "For each word of a its number and one of: x, y."),
        ({"kind": "regex", "pattern": "a+"}, "Matches the regular expression a+ as a whole."),
    ],
)  # fmt: skip
def test_describe_is_one_sentence(data: dict[str, Any], sentence: str) -> None:
    assert describe(make(**data)) == sentence
