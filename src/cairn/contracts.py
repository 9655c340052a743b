"""What text a stage promises: one definition with four uses.

    contract ── check(text) ──> violations ──┬─ filter the teacher's text
                                             ├─ retry and record at run time
                                             └─ score ablations
             ── describe() ──> one sentence for the stage's documentation

A violation is data, not an exception: the caller decides whether to retry, to drop or to record.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from cairn.config import StrictModel
from cairn.json_schema import schema_faults, schema_violations, short

__all__ = [
    "ChoicesContract",
    "Contract",
    "CopiedContract",
    "FreeContract",
    "JsonContract",
    "LabelsContract",
    "LengthContract",
    "RegexContract",
    "Violation",
    "check",
    "describe",
    "listable",
    "listed",
    "normalise",
    "quoted_words",
]


@dataclass(frozen=True)
class Violation:
    """One broken promise.

    Args:
        rule: the contract's kind.
        message: what was promised and what came instead.
    """

    rule: str
    message: str


def quoted_words(value: Any) -> Any:
    """Refuses booleans where words are meant: YAML reads an unquoted yes, no, on or off as one."""
    for word in value if isinstance(value, list) else [value]:
        if isinstance(word, bool):
            raise ValueError(f'{word} is a YAML boolean; put the word into quotes: "{"yes" if word else "no"}"')
    return value


class FreeContract(StrictModel):
    """Any text that is not empty."""

    kind: Literal["free"] = "free"


class ChoicesContract(StrictModel):
    """One of a list of texts.

    Args:
        values: the texts allowed.
        ignore_case: take "Yes" for "yes".
    """

    kind: Literal["choices"]
    values: list[str] = Field(min_length=1)
    ignore_case: bool = False

    _quoted = field_validator("values", mode="before")(quoted_words)

    @field_validator("values")
    @classmethod
    def _distinct(cls, values: list[str]) -> list[str]:
        if any(not value.strip() or value != value.strip() for value in values):
            raise ValueError("choices must not be empty or have white space around them")
        if len(set(values)) != len(values):
            raise ValueError("choices must be distinct")
        return values


class RegexContract(StrictModel):
    """A text that a regular expression (Python's `re`) matches as a whole."""

    kind: Literal["regex"]
    pattern: str

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return pattern


class JsonContract(StrictModel):
    """JSON that fits a schema, in this subset of JSON Schema: type, enum, const, properties, required,
    additionalProperties (true or false), items, minItems, maxItems, minLength, maxLength, pattern, minimum,
    maximum; title and description are allowed and ignored. Any other keyword is refused.

    Args:
        json_schema: the schema.
    """

    kind: Literal["json_schema"]
    json_schema: dict[str, Any]

    @field_validator("json_schema")
    @classmethod
    def _known(cls, schema: dict[str, Any]) -> dict[str, Any]:
        faults = schema_faults(schema)
        if faults:
            raise ValueError("; ".join(faults))
        return schema


class LengthContract(StrictModel):
    """A text of bounded length.

    Args:
        min_words, max_words: words between white space.
        min_characters, max_characters: Unicode characters.
    """

    kind: Literal["length"]
    min_words: int | None = Field(default=None, ge=0)
    max_words: int | None = Field(default=None, ge=1)
    min_characters: int | None = Field(default=None, ge=0)
    max_characters: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _bounded(self) -> LengthContract:
        if all(v is None for v in (self.min_words, self.max_words, self.min_characters, self.max_characters)):
            raise ValueError("needs one of min_words, max_words, min_characters, max_characters")
        for unit in ("words", "characters"):
            low, high = getattr(self, f"min_{unit}"), getattr(self, f"max_{unit}")
            if low is not None and high is not None and low > high:
                raise ValueError(f"min_{unit} {low} is above max_{unit} {high}")
        return self


class CopiedContract(StrictModel):
    """A text, or each of its lines or words, that occurs in one of the named fields.

    Args:
        fields: where it must occur; "item" is the item of a map stage.
        unit: what must occur whole: the text, each line, or each word (punctuation around words does not count).
        allow: texts that are right without occurring, such as "none".
        ignore_case: take "Kitchen" for "kitchen".
    """

    kind: Literal["copied_from_input"]
    fields: list[str] = Field(min_length=1)
    unit: Literal["text", "lines", "words"] = "text"
    allow: list[str] = []
    ignore_case: bool = False

    _quoted = field_validator("allow", mode="before")(quoted_words)


class LabelsContract(StrictModel):
    """A label for every word of a field, each after the word's number: "1 no 2 song 3 song".

    Args:
        field: whose words, cut at white space, are labelled.
        values: the labels, one word each.
    """

    kind: Literal["labels"]
    field: str
    values: list[str] = Field(min_length=1)

    _quoted = field_validator("values", mode="before")(quoted_words)

    @field_validator("values")
    @classmethod
    def _words(cls, values: list[str]) -> list[str]:
        if any(len(value.split()) != 1 or value != value.strip() for value in values):
            raise ValueError("a label must be one word")
        if len(set(values)) != len(values):
            raise ValueError("labels must be distinct")
        return values


Contract = Annotated[
    FreeContract | ChoicesContract | RegexContract | JsonContract | LengthContract | CopiedContract | LabelsContract,
    Field(discriminator="kind"),
]


def normalise(contract: Contract, text: str) -> str:
    """Returns the text as the contract spells it: for choices that ignore case the listed spelling, else as is."""
    if isinstance(contract, ChoicesContract) and contract.ignore_case:
        for value in contract.values:
            if value.casefold() == text.casefold():
                return value
    return text


def check(contract: Contract, text: str, fields: Mapping[str, str] | None = None) -> list[Violation]:
    """Returns what a text breaks of its contract; an empty list if nothing.

    Args:
        contract: the promise.
        text: a field value, as `prompts.parse_output` gives it.
        fields: the fields that the stage saw, with "item" in a map stage.
    """
    if not text:
        return [Violation(contract.kind, "promised a text, but it is empty")]
    return [Violation(contract.kind, message) for message in _messages(contract, text, fields or {})]


def _messages(contract: Contract, text: str, fields: Mapping[str, str]) -> list[str]:
    if isinstance(contract, ChoicesContract):
        if normalise(contract, text) not in contract.values:
            return [f"promised one of {', '.join(contract.values)}, but got {short(text)}"]
    elif isinstance(contract, RegexContract):
        if not re.fullmatch(contract.pattern, text):
            return [f"promised a text that matches {contract.pattern}, but got {short(text)}"]
    elif isinstance(contract, JsonContract):
        try:
            value = json.loads(text)
        except ValueError as error:
            return [f"promised JSON, but got {short(text)} ({error})"]
        return schema_violations(contract.json_schema, value)
    elif isinstance(contract, LengthContract):
        messages = []
        for unit, count in (("words", len(text.split())), ("characters", len(text))):
            low, high = getattr(contract, f"min_{unit}"), getattr(contract, f"max_{unit}")
            if low is not None and count < low:
                messages.append(f"promised at least {low} {unit}, but got {count}")
            if high is not None and count > high:
                messages.append(f"promised at most {high} {unit}, but got {count}")
        return messages
    elif isinstance(contract, CopiedContract):
        return _not_copied(contract, text, fields)
    elif isinstance(contract, LabelsContract):
        return _not_labelled(contract, text, fields)
    return []


def _not_copied(contract: CopiedContract, text: str, fields: Mapping[str, str]) -> list[str]:
    def fold(value: str) -> str:
        return value.casefold() if contract.ignore_case else value

    if fold(text) in {fold(allowed) for allowed in contract.allow}:
        return []
    sources = [fold(fields.get(name, "")) for name in contract.fields]
    where = ", ".join(contract.fields)
    if contract.unit == "words":
        known = {_bare(word) for source in sources for word in source.split()}
        return [
            f"promised words from {where}, but {word!r} is not there"
            for word in text.split()
            if _bare(fold(word)) and _bare(fold(word)) not in known
        ]
    pieces = [text] if contract.unit == "text" else [line.strip() for line in text.splitlines() if line.strip()]
    noun = "a text" if contract.unit == "text" else "lines"
    return [
        f"promised {noun} copied from {where}, but {short(piece)} is not there"
        for piece in pieces
        if not any(fold(piece) in source for source in sources)
    ]


def _not_labelled(contract: LabelsContract, text: str, fields: Mapping[str, str]) -> list[str]:
    words, written = fields.get(contract.field, "").split(), text.split()
    labels = written[1::2]
    if written[::2] != [str(number) for number in range(1, len(words) + 1)] or len(labels) != len(words):
        return [f"promised a label for each of {len(words)} words, after its number, but got {short(text)}"]
    unknown = [label for label in labels if label not in contract.values]
    return [f"promised labels among {', '.join(contract.values)}, but got {label!r}" for label in unknown]


def listable(contract: Contract) -> bool:
    """Whether `listed` can list what keeps a promise."""
    return isinstance(contract, ChoicesContract | LabelsContract) or (
        isinstance(contract, CopiedContract) and contract.unit == "lines"
    )


def listed(contract: Contract, fields: Mapping[str, str]) -> list[list[str]]:
    """Returns what an output may be held to: one of the texts of each part, in order, a space between.

    Of choices, or of lines to copy, there is one part; of labels there are as many as words.

    Args:
        contract: one that is `listable`.
        fields: what the stage saw.
    """
    if isinstance(contract, ChoicesContract):
        return [list(contract.values)]
    if isinstance(contract, LabelsContract):
        numbers = range(1, len(fields.get(contract.field, "").split()) + 1)
        return [[f"{number} {label}" for label in contract.values] for number in numbers]
    if not isinstance(contract, CopiedContract) or contract.unit != "lines":
        return []
    lines = (line.strip() for name in contract.fields for line in fields.get(name, "").splitlines())
    return [list(dict.fromkeys([*filter(None, lines), *contract.allow]))]


def describe(contract: Contract) -> str:
    """Returns the promise as one sentence."""
    if isinstance(contract, ChoicesContract):
        return f"One of: {', '.join(contract.values)}{' (in any case)' if contract.ignore_case else ''}."
    if isinstance(contract, RegexContract):
        return f"Matches the regular expression {contract.pattern} as a whole."
    if isinstance(contract, JsonContract):
        return f"JSON that fits the schema {json.dumps(contract.json_schema)}."
    if isinstance(contract, LengthContract):
        bounds = [
            f"{word} {value} {unit}"
            for unit in ("words", "characters")
            for word, value in (
                ("at least", getattr(contract, f"min_{unit}")),
                ("at most", getattr(contract, f"max_{unit}")),
            )
            if value is not None
        ]
        return f"{' and '.join(bounds).capitalize()}."
    if isinstance(contract, CopiedContract):
        what = {"text": "The whole text", "lines": "Each line", "words": "Each word"}[contract.unit]
        allow = f", or is one of: {', '.join(contract.allow)}" if contract.allow else ""
        return f"{what} occurs in {' or '.join(contract.fields)}{allow}."
    if isinstance(contract, LabelsContract):
        return f"For each word of {contract.field} its number and one of: {', '.join(contract.values)}."
    return "Any text that is not empty."


def _bare(word: str) -> str:
    return word.strip(".,;:!?\"'()[]")
