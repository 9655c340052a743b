"""The only code that turns fields into prompt text, and output text back into fields.

    fields {"story": ..., "question": ...} ── render ──> prompt "...\\nAnswer:"
                                                            │ model, trained on completion_text(value)
    field value "kitchen" <── parse_output ──────────── " kitchen"

Training and serving call the same functions, so a prompt in training is the prompt in serving, byte for byte.
A prompt never ends in white space and a completion begins with one space: both sides are tokenised apart,
and byte-pair vocabularies hold the space at the front of a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from cairn.errors import ConfigError, InputError, did_you_mean

__all__ = [
    "Split",
    "chain_text",
    "combine_outputs",
    "completion_text",
    "few_shot",
    "field_text",
    "join_items",
    "parse_chain",
    "parse_output",
    "render",
    "split_items",
    "template_faults",
    "template_fields",
]

Split = Literal["lines", "sentences"]

_PIECE = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_CHAIN_LINE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*):(?: (.*)|\Z)")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+|\n+")


def _parse(template: str) -> tuple[list[tuple[str, str | None]], list[str]]:
    """Returns [(literal text, field after it or None)] and the faults found."""
    parts: list[tuple[str, str | None]] = []
    faults: list[str] = []
    literal, position = "", 0
    for match in _PIECE.finditer(template):
        literal += template[position : match.start()]
        position = match.end()
        piece, name = match.group(0), match.group(1)
        if piece in ("{{", "}}"):
            literal += piece[0]
        elif name is None:
            faults.append(f"single {piece!r} at character {match.start()}, allowed: {{name}}, or {piece * 2}")
        elif not _NAME.match(name):
            faults.append(f"{piece!r} at character {match.start()}, allowed: {{name}} with letters, digits and _ only")
        else:
            parts.append((literal, name))
            literal = ""
    parts.append((literal + template[position:], None))
    return parts, faults


def template_faults(template: str) -> list[str]:
    """Returns what is wrong with a template, one line per fault; empty if nothing is."""
    return _parse(template)[1]


def template_fields(template: str) -> list[str]:
    """Returns the field names that a template reads, each once, in order.

    Raises:
        ConfigError: the template is malformed (see `render`).
    """
    parts, faults = _parse(template)
    if faults:
        raise ConfigError("prompt template", faults)
    return list(dict.fromkeys(name for _, name in parts if name is not None))


def render(template: str, fields: Mapping[str, str]) -> str:
    """Fills a template: `{name}` is a field, `{{` and `}}` are braces, nothing else is special.

    White space at the end is dropped, because the completion brings its own leading space. Braces inside
    field values are kept as they are. Fields that the template does not read are ignored.

    Args:
        template: the text with `{name}` placeholders.
        fields: every field at hand, name -> text.

    Raises:
        ConfigError: the template is malformed.
        InputError: the template reads a field that is not there, or whose value is not text.
    """
    parts, faults = _parse(template)
    if faults:
        raise ConfigError("prompt template", faults)
    out: list[str] = []
    for literal, name in parts:
        out.append(literal)
        if name is None:
            continue
        out.append(field_text(name, fields))
    return "".join(out).rstrip()


def field_text(name: str, fields: Mapping[str, str]) -> str:
    """Returns the text of one field.

    Raises:
        InputError: it is not there, or is not text.
    """
    if name not in fields:
        raise InputError(
            f"unknown field{did_you_mean(name, fields)}",
            value=name,
            allowed=", ".join(fields) or "none",
            next="give the field with --field NAME=TEXT, or correct the prompt template",
        )
    value = fields[name]
    if not isinstance(value, str):
        raise InputError(
            f"field {name!r} has no text", value=value, allowed="a text", next=f"give it with --field {name}=TEXT"
        )
    return value


def completion_text(value: str) -> str:
    """Returns a field value as a model is trained to write it: one leading space, no white space around.

    Raises:
        InputError: the value is empty.
    """
    stripped = value.strip()
    if not stripped:
        raise InputError(
            "an empty value cannot be written by a stage", value=value, next='write an explicit word, such as "none"'
        )
    return " " + stripped


def parse_output(text: str) -> str:
    """Returns the field value in what a model wrote: the inverse of `completion_text`."""
    return text.strip()


def few_shot(template: str, examples: Iterable[tuple[Mapping[str, str], str]], fields: Mapping[str, str]) -> str:
    """Returns solved examples and then the open one, with a blank line between them.

    Args:
        template: as in `render`.
        examples: pairs (fields, value).
        fields: the fields of the open question.

    Raises:
        ConfigError, InputError: as `render` and `completion_text`.
    """
    shots = [render(template, solved) + completion_text(value) for solved, value in examples]
    return "\n\n".join([*shots, render(template, fields)])


def chain_text(stages: Sequence[tuple[str, str]]) -> str:
    """Returns the values of several stages as one text: a line `name: value` each, the last is the answer.

    A value of several lines goes on in the lines below its name.

    Raises:
        InputError: a later line of a value looks like the start of another stage, so that `parse_chain` could
            not take the text apart again.
    """
    names = {name for name, _ in stages}
    for name, value in stages:
        for line in value.strip().split("\n")[1:]:
            match = _CHAIN_LINE.match(line)
            if match and match.group(1) in names:
                raise InputError(f"a line of {name!r} begins with the name of a stage", value=line)
    return "\n".join(f"{name}: {value.strip()}" for name, value in stages)


def parse_chain(text: str, names: Iterable[str] | None = None) -> dict[str, str]:
    """Takes a chain text apart: stage name -> value, in the order written.

    Args:
        text: what a model trained on `chain_text` wrote; text before the first `name:` is left out, and of a
            name written twice the last value counts.
        names: the stage names; None takes any `word:` at the start of a line for one.
    """
    known = None if names is None else set(names)
    found: dict[str, str] = {}
    current: str | None = None
    for line in text.strip().split("\n"):
        match = _CHAIN_LINE.match(line)
        if match and (known is None or match.group(1) in known):
            current = match.group(1)
            found.pop(current, None)
            found[current] = match.group(2) or ""
        elif current is not None:
            found[current] += "\n" + line
    return {name: value.strip() for name, value in found.items()}


def split_items(text: str, how: Split) -> list[str]:
    """Cuts a field into the items that a map stage runs over.

    Args:
        text: the field.
        how: "lines", or "sentences": cut after `.`, `!` or `?` before white space, and at line ends (no list of
            abbreviations: give lines where that matters).

    Returns:
        The items without white space around them; empty ones are dropped.
    """
    pieces = text.splitlines() if how == "lines" else _SENTENCE_END.split(text)
    return [piece.strip() for piece in pieces if piece.strip()]


def join_items(items: Iterable[str], separator: str = "\n") -> str:
    """Returns items as one field, one a line: `split_items(..., "lines")` gives them back."""
    return separator.join(items)


def combine_outputs(
    items: Sequence[str],
    values: Sequence[str],
    *,
    keep: str | None = None,
    join: str = "\n",
    empty: str = "none",
) -> str:
    """Returns the value of a map stage from the values of its items.

    Args:
        items: what it ran over.
        values: one parsed value per item.
        keep: None joins the values; a text keeps the ITEMS whose value equals it, in order.
        join: put between them.
        empty: the result if nothing is left.

    Raises:
        InputError: there is not one value per item.
    """
    if len(items) != len(values):
        raise InputError(f"a map stage needs one value per item ({len(items)} items)", value=len(values))
    chosen = list(values) if keep is None else [i for i, value in zip(items, values, strict=True) if value == keep]
    return join_items(chosen, join) if chosen else empty
