"""Instruction and question data, read row by row into named fields, whatever form it comes in.

    alpaca   {"instruction", "input", "output"}                       ─┐
    chat     {"messages": [{"role", "content"}, ...]}, ShareGPT's too  ├─ SourceRow(number, id, fields)
    qa       {"question", "choices", "answer", a rationale}            │     or, with what is wrong with it,
    rows     any columns: JSON lines, a JSON list, CSV, TSV            │     SourceRow(..., fault)
             files also .gz .xz .zst; a Hugging Face dataset          ─┘

A file that cannot be trusted (not UTF-8, not JSON, cut off) is an error that names the line. A row that cannot be used
(a field missing, too long, an id for the second time) is kept with its fault, so that the caller can record it.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from cairn.config import StrictModel
from cairn.data.row_files import file_rows
from cairn.errors import DataError, MissingExtraError, did_you_mean

__all__ = [
    "ANSWER_FIELD", "Form", "RowFault", "SourceRow", "SourceSettings", "chat_turns", "detect_form", "read_source",
    "renamed_row", "row_id", "source_rows",
]  # fmt: skip

Form = Literal["alpaca", "chat", "qa", "rows"]

# Form -> the field that holds the right answer.
ANSWER_FIELD: dict[str, str] = {"alpaca": "output", "chat": "output", "qa": "answer", "rows": "answer"}

_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}  # ShareGPT and others
_RATIONALES = ("rationale", "llm_rationale", "explanation", "response")
_PEEKED = 20  # rows by which the form is told: the first one may be damaged


class SourceSettings(StrictModel):
    """Where rows come from.

    Args:
        name: how provenance and reports call the data.
        licence: or origin, carried into the provenance of every example.
        path: file, relative to the recipe; or
        hub: dataset name or folder for `datasets.load_dataset`.
        hub_config: configuration name of a hub dataset.
        hub_split: its split.
        form: "auto" looks at the first row.
        columns: our field -> the column that holds it (`{instruction: prompt, output: response}`).
        limit: at most so many rows, drawn with `seed` of the recipe; None takes all.
        max_characters: of all fields of a row together; a longer row is rejected.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    licence: str = Field(min_length=1)
    path: str | None = None
    hub: str | None = None
    hub_config: str | None = None
    hub_split: str = "train"
    form: Literal["auto", "alpaca", "chat", "qa", "rows"] = "auto"
    columns: dict[str, str] = {}
    limit: int | None = Field(default=None, ge=1)
    max_characters: int = Field(default=8000, ge=1)

    @model_validator(mode="after")
    def _one_origin(self) -> SourceSettings:
        given = [key for key in ("path", "hub") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of path, hub; given: {', '.join(given) or 'none'}")
        if self.hub is None and (self.hub_config is not None or self.hub_split != "train"):
            raise ValueError("hub_config and hub_split need hub")
        return self


@dataclass(frozen=True)
class SourceRow:
    """One row.

    Args:
        number: from 1, its place in the data.
        id: its own, or its number.
        fields: name -> text; empty if the row has a fault.
        fault: why it cannot be used; None if it can.
        kind: of the fault, in one or two words.
    """

    number: int
    id: str
    fields: Mapping[str, str] = field(default_factory=dict)
    fault: str | None = None
    kind: str = ""


class RowFault(Exception):
    """What is wrong with one row, which then is left out; `kind` says it in one or two words."""

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(what)
        self.kind = kind


def read_source(source: SourceSettings, root: str | Path | None = None) -> Iterator[SourceRow]:
    """Yields every row of a source, in order, those with faults as well.

    Args:
        source: what to read.
        root: folder that a relative path starts from.

    Raises:
        DataError: the file is missing, unreadable, damaged, not UTF-8 or not of its format; the dataset cannot be
            loaded; there is no row.
        MissingExtraError: .zst without zstandard, or hub without datasets.
    """
    first_with: dict[str, int] = {}
    rows: Iterable[Mapping[Any, Any]] = source_rows(source, root)
    form: str = source.form
    if form == "auto":
        rows = iter(rows)
        head = list(itertools.islice(rows, _PEEKED))
        form = _form_of(head, source.columns)
        rows = itertools.chain(head, rows)
    number = 0
    for number, raw in enumerate(rows, start=1):
        name = str(number)
        try:
            renamed = renamed_row(raw, source.columns)
            name = row_id(renamed, number)
            fields = _FORMS[form](renamed)
            size = sum(len(text) for text in fields.values())
            if size > source.max_characters:
                raise RowFault("too long", f"{size:,} characters, allowed: {source.max_characters:,}")
            if first_with.setdefault(name, number) != number:
                raise RowFault("id used twice", f"id {name!r} was used in row {first_with[name]}")
        except RowFault as fault:
            yield SourceRow(number, name, {}, str(fault), fault.kind)
            continue
        yield SourceRow(number, name, fields)
    if not number:
        raise DataError("the data has no rows", value=source.path or source.hub, allowed="at least one")


def source_rows(source: SourceSettings, root: str | Path | None = None) -> Iterator[Mapping[Any, Any]]:
    """Yields the raw rows of a source, columns under their own names.

    Raises:
        DataError, MissingExtraError: as `read_source`, but for a source without rows.
    """
    yield from _hub_rows(source) if source.hub is not None else file_rows(
        Path(root or ".") / Path(str(source.path)).expanduser()
    )


def _form_of(rows: Iterable[Mapping[Any, Any]], columns: Mapping[str, str]) -> str:
    """Returns the form that the first rows have."""
    forms = []
    for raw in rows:
        try:
            forms.append(detect_form(renamed_row(raw, columns)))
        except RowFault:
            continue
    told = Counter(form for form in forms if form != "rows")
    return told.most_common(1)[0][0] if told else "rows"


def renamed_row(raw: Mapping[Any, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """Returns the row with its columns under our names.

    Raises:
        RowFault: a cell too many or too few, or a column is not there.
    """
    if None in raw:
        raise RowFault("wrong columns", str(raw[None]))
    row = {str(name): value for name, value in raw.items()}
    for theirs in columns.values():
        if theirs not in row:
            raise RowFault("missing field", f"no column {theirs!r}{did_you_mean(theirs, row)}; it has {_listed(row)}")
    others = {name: value for name, value in row.items() if name not in columns.values()}
    return {**others, **{ours: row[theirs] for ours, theirs in columns.items()}}


def row_id(row: Mapping[str, Any], number: int) -> str:
    """Returns a row's own id, or its number as text.

    Raises:
        RowFault: the id is neither text nor number.
    """
    given = row.get("id")
    if given is None or given == "":
        return str(number)
    if not isinstance(given, str | int) or isinstance(given, bool):
        raise RowFault("wrong field", f"id is a {type(given).__name__}, allowed: a text or a number")
    return str(given)


def detect_form(row: Mapping[str, Any]) -> Form:
    """Returns the form that a row has by its fields: chat, alpaca, qa, or just rows."""
    if "messages" in row or "conversations" in row:
        return "chat"
    if "instruction" in row and "output" in row:
        return "alpaca"
    return "qa" if "question" in row and ("answer" in row or "answerKey" in row) else "rows"


def _alpaca(row: Mapping[str, Any]) -> dict[str, str]:
    return {**_plain(row), "input": "", **_needed(row, "instruction", "output"), **_optional(row, "input")}


def chat_turns(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns (role, text) of every turn of a chat row; roles of ShareGPT and others under the usual names.

    Raises:
        RowFault: there is no list of turns, or a turn has no role or no text.
    """
    turns = row.get("messages", row.get("conversations"))
    if isinstance(turns, str):  # a cell of a table, or a dataset that keeps JSON as text
        try:
            turns = json.loads(turns)
        except ValueError:
            turns = None
    if not isinstance(turns, list) or not turns:
        raise RowFault("missing field", "messages is no list of turns")
    said: list[tuple[str, str]] = []
    for place, turn in enumerate(turns):
        role = turn.get("role", turn.get("from")) if isinstance(turn, dict) else None
        text = turn.get("content", turn.get("value")) if isinstance(turn, dict) else None
        if not isinstance(role, str) or not isinstance(text, str):
            raise RowFault("missing field", f"messages[{place}] has no role or no content")
        said.append((_ROLES.get(role, role), text.strip()))
    return said


def _chat(row: Mapping[str, Any]) -> dict[str, str]:
    """Takes the last answer of the assistant as output, what was asked before it as instruction."""
    said = chat_turns(row)
    system = "\n".join(text for role, text in said if role == "system")
    talk = [(role, text) for role, text in said if role in ("user", "assistant") and text]
    while talk and talk[-1][0] != "assistant":
        talk.pop()
    if len(talk) < 2 or talk[-2][0] != "user":
        raise RowFault("missing field", "messages has no answer of the assistant to something that the user said")
    history = "\n".join(f"{role.capitalize()}: {text}" for role, text in talk[:-2])
    rest = {name: value for name, value in row.items() if name not in ("messages", "conversations")}
    own = {"system": system, "history": history, "instruction": talk[-2][1], "input": "", "output": talk[-1][1]}
    return {**_plain(rest), **own}


def _qa(row: Mapping[str, Any]) -> dict[str, str]:
    """Takes choices as lines, and an answer given by letter or number as its text."""
    texts, labels = _choices(row.get("choices", row.get("options")))
    answer = row.get("answer", row.get("answerKey"))
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(texts):
        answer = texts[answer]
    elif isinstance(answer, str) and answer not in texts and answer in labels:
        answer = texts[labels.index(answer)]
    if texts and answer not in texts:
        raise RowFault("wrong field", f"answer {answer!r} is none of the choices {texts}")
    fields = {**_plain(row), **_needed({**row, "answer": answer}, "question", "answer")}
    if texts:
        fields["choices"] = "\n".join(texts)
    for name in _RATIONALES:
        if isinstance(row.get(name), str) and row[name].strip():
            fields.setdefault("rationale", row[name])
    return fields


def _choices(value: Any) -> tuple[list[str], list[str]]:
    """Returns texts and labels of choices: a list of texts, or the hub's {"text": [...], "label": [...]}."""
    if value is None:
        return [], []
    texts = value.get("text") if isinstance(value, dict) else value
    labels = value.get("label") if isinstance(value, dict) else None
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise RowFault("wrong field", "choices is no list of texts")
    labels = labels if isinstance(labels, list) else [chr(ord("A") + place) for place in range(len(texts))]
    if len(labels) != len(texts):
        raise RowFault("wrong field", f"{len(texts)} choices with {len(labels)} labels, allowed: one each")
    return texts, [str(label) for label in labels]


def _rows(row: Mapping[str, Any]) -> dict[str, str]:
    return _plain(row)


_FORMS: dict[str, Callable[[Mapping[str, Any]], dict[str, str]]] = {
    "alpaca": _alpaca, "chat": _chat, "qa": _qa, "rows": _rows,
}  # fmt: skip


def _plain(row: Mapping[str, Any]) -> dict[str, str]:
    """Returns the fields of a row as text; objects and lists as JSON; what is empty is left out."""
    fields = {}
    for name, value in row.items():
        if isinstance(value, str):
            text = value
        elif value is None:
            continue
        else:
            text = json.dumps(value, ensure_ascii=False)
        _encodable(name, text)
        if text.strip():
            fields[name] = text
    return fields


def _needed(row: Mapping[str, Any], *names: str) -> dict[str, str]:
    fields = {}
    for name in names:
        value = row.get(name)
        if value is None or (isinstance(value, str) and not value.strip()):
            lack = "missing" if value is None else "empty"
            raise RowFault("missing field", f"{name} is {lack}; it has {_listed(row)}")
        if isinstance(value, dict | list):
            raise RowFault("wrong field", f"{name} is a {type(value).__name__}, allowed: a text")
        fields[name] = value if isinstance(value, str) else json.dumps(value)
        _encodable(name, fields[name])
    return fields


def _optional(row: Mapping[str, Any], name: str) -> dict[str, str]:
    value = row.get(name)
    return {name: value} if isinstance(value, str) else {}


def _encodable(name: str, text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RowFault("not Unicode", f"{name} has a lone surrogate at character {error.start}") from None


def _listed(row: Mapping[str, Any]) -> str:
    return ", ".join(map(str, row)) or "none"


def _hub_rows(source: SourceSettings) -> Iterator[dict[str, Any]]:
    try:
        import datasets
    except ImportError:
        raise MissingExtraError("datasets", "data") from None
    name = str(source.hub)
    try:
        if (Path(name) / "state.json").exists():  # a folder of Dataset.save_to_disk
            rows: Any = datasets.load_from_disk(name)
        elif (Path(name) / "dataset_dict.json").exists():
            rows = datasets.load_from_disk(name)[source.hub_split]
        else:
            rows = datasets.load_dataset(name, source.hub_config, split=source.hub_split)
        yield from rows
    except Exception as error:  # datasets raises its own, the network's and the builders' errors alike
        reason = " ".join(str(error).split())
        raise DataError(
            f"hub dataset cannot be loaded ({type(error).__name__}: {reason})", value=name,
            next="check hub, hub_config and hub_split, and the network",
        ) from error  # fmt: skip
