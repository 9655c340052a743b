"""`cairn init`: a folder in which a stack of one's own begins, from ten sample rows or from one's own data.

    templates/KIND ─┐                    ┌─ stack.yaml    commented; labels, schema and lengths as the data has them
    --from FILE ────┴─ rows, checked ────┼─ recipe.yaml   how the examples are made, and what else there is to do
       (--map OURS=THEIRS)               ├─ rows.jsonl    the data under the stack's own names
                                         └─ data/         examples for every stage, made offline by a rule
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cairn.data.distill_config import distill_config
from cairn.data.instructions import SourceRow, SourceSettings, read_source
from cairn.errors import ConfigError, DataError
from cairn.files import atomic_folder, write_text
from cairn.verbs.comparison.recipe import load_recipe
from cairn.verbs.distill import distill_stack

__all__ = ["FIELDS", "Kind", "init", "init_folder"]

Kind = Literal["qa", "extract", "classify", "instruct"]

# Kind -> the fields of a row, the answer last.
FIELDS: dict[str, tuple[str, ...]] = {
    "qa": ("text", "question", "answer"),
    "extract": ("text", "answer"),
    "classify": ("text", "answer"),
    "instruct": ("request", "answer"),
}

_MARK = re.compile(r"^(?P<key>\s*(?:- )?\w+: ).*?(?P<mark>  # from the data: (?P<name>\w+))$", re.MULTILINE)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_FEWEST_ROWS = 6
_MOST_LABELS = 100
_SHOWN = 5
_TEST_SHARE, _MOST_TEST = 0.1, 500
_EPOCHS = 3  # of the training that is proposed
_FEWEST_TOKENS, _MOST_TOKENS = 30_000, 2_000_000  # of it
_CHARACTERS_PER_TOKEN = 3.5  # English text in the shipped base's vocabulary, roughly
_MOST_ANSWER_TOKENS = 400  # beside a prompt in the shipped base's context of 1,024


def init(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The folder to make; its name is the stack's.")],
    kind: Annotated[Kind, typer.Option(help="What the stack is to do.")] = "qa",
    source: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="Your data: CSV, TSV, JSON lines, a JSON list, chats.")
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="OURS=THEIRS", help="Which column holds a field (see below); repeatable."),
    ] = None,
    licence: Annotated[str, typer.Option(help="Of your data; goes into the provenance of every example.")] = "my own",
    drop_faulty: Annotated[
        bool, typer.Option("--drop-faulty", help="Leave rows with faults out, listed in NAME/faulty.jsonl.")
    ] = False,
    max_characters: Annotated[
        int, typer.Option(min=1, help="Of a row's fields together; the shipped base reads 1,024 tokens at once.")
    ] = 3000,
) -> None:
    """Start a stack of your own: stack.yaml, recipe.yaml and rows that run as they are.

    Without --from, ten sample rows; with it, your own. Each kind has its fields:

    \b
      qa        text, question, answer     find the sentences that are needed, then answer
      extract   text, answer (JSON)        find the facts, then write them as JSON
      classify  text, answer (class)       pick the words that matter, then the class
      instruct  request, answer            put down the points, then answer

    A column of another name is given with --map; several columns for the answer of extract make a JSON object. Chats
    (`messages`) and Alpaca rows are known to instruct as they are.

      cairn init planets --kind qa
      cairn init tickets --kind classify --from tickets.csv --map text=body --map answer=queue
      cairn init orders --kind extract --from orders.csv --map text=mail --map answer=item,count,place
      cairn init helper --kind instruct --from chats.jsonl

    The examples for every stage are made at once, by a rule; `distill:` in recipe.yaml says how a language model makes
    better ones.
    """
    facts = init_folder(
        name, kind, source=source, columns=columns or (), licence=licence, drop_faulty=drop_faulty,
        max_characters=max_characters,
    )  # fmt: skip
    folder = Path(name)
    question = " ".join(f'--field {key}="..."' for key in FIELDS[kind][:-1])
    if facts["dropped"]:
        typer.echo(f"{facts['dropped']:,} faulty rows left out: {folder / 'faulty.jsonl'}")
    typer.echo(
        f"{folder}: {facts['rows']:,} rows, {facts['train']:,} examples to train from, {facts['test']:,} to test with\n"
        f"Next:\n  cairn finetune {folder / 'stack.yaml'} --out {folder / 'trained'}\n"
        f"  cairn run {folder / 'trained'} {question}\n"
        f"  cairn eval {folder / 'trained'} --task examples --data {folder / 'data' / 'test.jsonl'}"
    )


def init_folder(
    name: str,
    kind: Kind,
    *,
    source: Path | None = None,
    columns: Sequence[str] = (),
    licence: str = "my own",
    drop_faulty: bool = False,
    max_characters: int = 3000,
) -> dict[str, int]:
    """Makes the folder, whole or not at all.

    Args:
        name: the folder.
        kind: one of `FIELDS`.
        source: the user's data; None takes the samples.
        columns: texts OURS=THEIRS.
        licence: of the user's data.
        drop_faulty: leave faulty rows out and list them, instead of refusing.
        max_characters: of a row's fields together.

    Returns:
        Counts: rows, dropped, train, test.

    Raises:
        ConfigError: the folder is there already, or a mapping is wrong.
        DataError: the data cannot be read, has faulty rows, too few rows, or does not fit the kind.
        StorageError: the folder cannot be written.
    """
    folder = Path(name)
    if not _NAME.fullmatch(folder.name):
        allowed = "letters, digits, . _ and -, at most 64, a letter or digit first"
        raise ConfigError("NAME", [f"{folder.name!r} cannot be the name of a stack, allowed: {allowed}"])
    if folder.exists():
        raise ConfigError("NAME", [f"{folder} is there already"], next="choose another name, or delete it")
    if source is None and columns:
        raise ConfigError("--map", ["is for data of your own"], next="give --from FILE as well")
    template = Path(str(resources.files("cairn"))) / "assets" / "templates" / kind
    texts = {file: (template / file).read_text(encoding="utf-8") for file in ("stack.yaml", "recipe.yaml")}
    faulty: list[SourceRow] = []
    if source is None:
        rows = [json.loads(line) for line in (template / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
        values: dict[str, Any] = {"name": folder.name}
    else:
        rows, faulty = _own_rows(source, kind, _mapping(kind, columns), max_characters, drop_faulty)
        values = {"name": folder.name, "licence": licence, "max_characters": max_characters, **_measured(kind, rows)}
    with atomic_folder(folder) as making:
        for file, text in texts.items():
            write_text(making / file, _filled(text, values))
        write_text(making / "rows.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        if faulty:
            lines = [json.dumps({"row": row.number, "id": row.id, "fault": row.fault}) + "\n" for row in faulty]
            write_text(making / "faulty.jsonl", "".join(lines))
        recipe = load_recipe(making / "recipe.yaml")
        config = distill_config(recipe.distill, recipe.stack, "recipe.yaml")
        report = distill_stack(
            recipe.stack, config, making / "data", place=lambda path: str(making / path), quiet=True
        )
    left = report["rows"] - report["kept"]
    if left:
        typer.echo(f"{left:,} rows gave no example: {folder / 'data' / 'rejected.jsonl'} says why")
    kept, test = report["kept"], report["test"]
    return {"rows": len(rows), "dropped": len(faulty), "train": kept - test, "test": test}


def _mapping(kind: Kind, columns: Sequence[str]) -> dict[str, list[str]]:
    """Returns our field -> columns, from texts OURS=THEIRS."""
    found: dict[str, list[str]] = {}
    ours_known = (*FIELDS[kind], "id")
    for text in columns:
        ours, equals, theirs = text.partition("=")
        names = [name.strip() for name in theirs.split(",") if name.strip()]
        if not equals or not names:
            raise ConfigError("--map", [f"{text!r}, allowed: OURS=THEIRS"])
        if ours not in ours_known:
            raise ConfigError("--map", [f"{kind} has no field {ours!r}, allowed: {', '.join(ours_known)}"])
        if ours in found:
            raise ConfigError("--map", [f"{ours!r} is given twice"])
        if len(names) > 1 and (kind, ours) != ("extract", "answer"):
            raise ConfigError("--map", [f"{text!r}: several columns are for the answer of extract"])
        found[ours] = names
    return found


def _own_rows(
    source: Path, kind: Kind, mapping: Mapping[str, list[str]], max_characters: int, drop_faulty: bool
) -> tuple[list[dict[str, str]], list[SourceRow]]:
    """Returns the user's rows under our names, and those with faults."""
    settings = SourceSettings(
        name="own", licence="own", path=str(source), max_characters=max_characters,
        form="auto" if kind == "instruct" and not mapping else "rows",
        columns={ours: theirs[0] for ours, theirs in mapping.items() if len(theirs) == 1},
    )  # fmt: skip
    rows: list[dict[str, str]] = []
    faulty: list[SourceRow] = []
    for row in read_source(settings):
        fault = row.fault
        made: dict[str, str] = {}
        if fault is None:
            made, fault = _own_row(kind, row, mapping.get("answer", []))
        if fault is None:
            rows.append({"id": row.id, **made})
        else:
            faulty.append(SourceRow(row.number, row.id, {}, fault))
    if faulty and not (drop_faulty and rows):
        listed = "".join(f"\n  - row {row.number}: {row.fault}" for row in faulty[:_SHOWN])
        more = f"\n  - and {len(faulty) - _SHOWN} more" if len(faulty) > _SHOWN else ""
        advice = "correct them, or leave them out: --drop-faulty" if rows else "map other columns: --map OURS=THEIRS"
        what = f"{source}: {len(faulty):,} of {len(faulty) + len(rows):,} rows cannot be used{listed}{more}"
        raise DataError(what, next=advice)
    if len(rows) < _FEWEST_ROWS:
        raise DataError("too few rows", value=len(rows), allowed=f"{_FEWEST_ROWS} or more", next="give more data")
    return rows, faulty


def _own_row(kind: Kind, row: SourceRow, answer_columns: Sequence[str]) -> tuple[dict[str, str], str | None]:
    """Returns the fields of a row under our names, or what is wrong with it."""
    fields = dict(row.fields)
    if kind == "instruct" and "instruction" in fields and "output" in fields:  # a chat, or Alpaca
        asked = [fields.get("history", ""), fields["instruction"], fields.get("input", "")]
        fields |= {"request": "\n".join(text for text in asked if text), "answer": fields["output"]}
    if len(answer_columns) > 1:
        lacking = [name for name in answer_columns if name not in fields]
        if lacking:
            return {}, f"no value in {', '.join(lacking)}"
        fields["answer"] = json.dumps({name: fields[name].strip() for name in answer_columns}, ensure_ascii=False)
    lacking = [name for name in FIELDS[kind] if not fields.get(name, "").strip()]
    if lacking:
        return {}, f"no {', '.join(lacking)}; it has {', '.join(row.fields) or 'nothing'}"
    if kind == "extract":
        try:
            found = json.loads(fields["answer"])
        except ValueError:
            found = None
        if not isinstance(found, dict) or not found:
            return {}, f"answer {fields['answer'][:60]!r} is no JSON object"
        fields["answer"] = json.dumps(found, ensure_ascii=False)
    return {name: fields[name].strip() for name in FIELDS[kind]}, None


def _measured(kind: Kind, rows: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Returns what the files say about the data: classes, schema, lengths, budgets."""
    answers = [row["answer"] for row in rows]
    longest = max(map(len, answers))
    characters = sum(sum(len(row[name]) for name in FIELDS[kind]) for row in rows)
    test = min(_MOST_TEST, max(1, round(len(rows) * _TEST_SHARE)))
    tokens = min(max(round(2 * _EPOCHS * characters / _CHARACTERS_PER_TOKEN, -3), _FEWEST_TOKENS), _MOST_TOKENS)
    values: dict[str, Any] = {
        "answer_tokens": {"max_new_tokens": min(_MOST_ANSWER_TOKENS, 8 + math.ceil(longest / 2))},
        "answer_words": {"kind": "length", "max_words": max(len(answer.split()) for answer in answers)},
        "tokens": int(tokens),
        "test_examples": test,
        "validation": max(1, min(50, (len(rows) - test) // 10)),
    }
    if kind == "classify":
        labels = [label for label, _ in Counter(answers).most_common()]
        if len(labels) > _MOST_LABELS or len(labels) * 2 > len(rows):
            raise DataError(
                f"the answers are no classes: {len(labels):,} different ones in {len(rows):,} rows", value=labels[:3],
                allowed=f"at most {_MOST_LABELS}, each at least twice on average",
                next="map another column with --map answer=COLUMN, or take --kind instruct",
            )  # fmt: skip
        if len(labels) < 2:
            raise DataError("all rows have the same class", value=labels[0], allowed="two or more classes")
        values["labels"] = labels
    if kind == "extract":
        values["schema"] = _schema([json.loads(answer) for answer in answers])
    return values


def _schema(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns a schema that all objects fit."""
    kinds = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array", dict: "object"}
    names = list(dict.fromkeys(name for one in found for name in one))
    properties: dict[str, dict[str, str]] = {}
    for name in names:
        types = {kinds.get(type(one[name]), "") for one in found if name in one}
        types = {"number"} if types == {"integer", "number"} else types
        properties[name] = {"type": types.pop()} if len(types) == 1 and "" not in types else {}
    required = [name for name in names if all(name in one for one in found)]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _filled(text: str, values: Mapping[str, Any]) -> str:
    """Puts values into the lines that a template marks; lines without a value stay as they are."""

    def line(match: re.Match[str]) -> str:
        if match["name"] not in values:
            return match[0]
        return f"{match['key']}{json.dumps(values[match['name']], ensure_ascii=False)}{match['mark']}"

    return _MARK.sub(line, text)
