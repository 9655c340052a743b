"""Conversations for instruction tuning, out of any form of instruction data.

    pairs   {"instruction", "input", "output"}: Alpaca                                  ─┐
            {"instruction", "context", "response"}: Dolly; prompt/completion and the like ├─ Conversation(id, source,
    chat    {"messages": [{"role", "content"}, ...]}, ShareGPT's too                      │      turns)
    oasst   OpenAssistant: a message a row, each with its parent; or a tree a row        ─┘

A conversation is an optional system turn, then user and assistant in turn, the assistant last. Of a tree the best
ranked reply is followed at every branch. A row that cannot be used is left out and counted, with its reason.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cairn.data.instructions import RowFault, SourceSettings, chat_turns, renamed_row, row_id, source_rows
from cairn.errors import DataError

__all__ = ["ChatSource", "Conversation", "ReadChats", "Turn", "checked_turns", "read_conversations"]

Turn = tuple[str, str]  # role, text

# Names under which the three columns of a pair are found, the first one that a row has.
_USER = ("instruction", "prompt", "question", "request")
_INPUT = ("input", "context")
_ASSISTANT = ("output", "response", "completion", "answer")
_ROLES = {"prompter": "user"}  # OpenAssistant's
_PEEKED = 20  # rows by which the form is told
_NO_RANK = 1 << 30  # a reply without a rank comes after those with one


class ChatSource(SourceSettings):
    """Where conversations come from.

    Args:
        form: "auto" looks at the first rows.
        columns: `instruction`, `input`, `output` of pairs, `messages` of chats -> the column that holds it.
        where: column -> values; rows with another value there are passed over (`{lang: [en]}`).
        limit: at most so many conversations, drawn with the recipe's seed.
        max_characters: of a conversation; a longer one is left out.
        (others): see the base class.
    """

    form: Literal["auto", "pairs", "chat", "oasst"] = "auto"  # type: ignore[assignment]
    where: dict[str, list[str | int | bool]] = {}


@dataclass(frozen=True)
class Conversation:
    """What was said, in order.

    Args:
        id: of its row, or of the tree's first message.
        source: name of the source.
        turns: (role, text): perhaps a system turn, then user and assistant in turn, the assistant last.
    """

    id: str
    source: str
    turns: tuple[Turn, ...]


@dataclass
class ReadChats:
    """The conversations of a source.

    Args:
        conversations: in the order of the data.
        faults: kind of fault -> rows left out.
        first_fault: the first of them, in words.
        passed_over: rows that `where` leaves out.
        not_drawn: usable conversations beyond the limit.
    """

    conversations: list[Conversation] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    first_fault: str = ""
    passed_over: int = 0
    not_drawn: int = 0


def read_conversations(source: ChatSource, root: str | Path | None = None, seed: int = 0) -> ReadChats:
    """Reads a source whole.

    Args:
        source: what to read.
        root: folder that a relative path starts from.
        seed: draws `limit` conversations.

    Raises:
        DataError: the data cannot be read, has no row, or no row that can be used.
        MissingExtraError: .zst without zstandard, or hub without datasets.
    """
    found = ReadChats()
    rows = _kept(source_rows(source, root), source, found)
    head = list(itertools.islice(rows, _PEEKED))
    form = _form(head, source.columns) if source.form == "auto" else source.form
    rows = itertools.chain(head, rows)
    made = _trees(rows, source, found) if form == "oasst" else _each(rows, form, source, found)
    for name, turns in made:
        try:
            checked = checked_turns(turns)
            size = sum(len(text) for _, text in checked)
            if size > source.max_characters:
                raise RowFault("too long", f"{size:,} characters, allowed: {source.max_characters:,}")
        except RowFault as fault:
            _record(found, name, fault)
            continue
        found.conversations.append(Conversation(name, source.name, checked))
    if not found.conversations:
        counted = ", ".join(f"{count} x {kind}" for kind, count in found.faults.items())
        passed = f"{found.passed_over} passed over by `where`" if found.passed_over else ""
        first = f"the first: {found.first_fault}" if counted else ""
        why = "; ".join(text for text in (counted, passed, first) if text)
        raise DataError(
            f"source {source.name} has no conversation ({why or 'no rows'})", value=source.path or source.hub,
            allowed="rows with instruction and output, with messages, or with OpenAssistant's message tree",
            next="check form, columns and where",
        )  # fmt: skip
    if source.limit is not None and source.limit < len(found.conversations):
        places = sorted(random.Random(seed).sample(range(len(found.conversations)), source.limit))
        found.not_drawn = len(found.conversations) - source.limit
        found.conversations = [found.conversations[place] for place in places]
    return found


def checked_turns(turns: Iterable[Turn]) -> tuple[Turn, ...]:
    """Returns turns as training and serving want them: one system turn at most, then user and assistant in turn.

    Texts are stripped, system texts joined and put first, several turns of one speaker joined, and what the user said
    last without an answer is left out.

    Raises:
        RowFault: another role, an assistant that begins, an empty turn, or no answer at all.
    """
    system: list[str] = []
    talk: list[Turn] = []
    for role, text in turns:
        role, text = _ROLES.get(role, role), text.strip()
        if role not in ("system", "user", "assistant"):
            raise RowFault("unknown role", f"a turn of {role!r}, allowed: system, user, assistant")
        if not text:
            raise RowFault("empty turn", f"a turn of {role} without text")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RowFault("not Unicode", f"a lone surrogate at character {error.start}") from None
        if role == "system":
            system.append(text)
        elif talk and talk[-1][0] == role:
            talk[-1] = (role, f"{talk[-1][1]}\n\n{text}")
        else:
            talk.append((role, text))
    while talk and talk[-1][0] != "assistant":
        talk.pop()
    if not talk:
        raise RowFault("no answer", "the assistant says nothing")
    if talk[0][0] != "user":
        raise RowFault("wrong order", "the assistant begins")
    head: list[Turn] = [("system", "\n".join(system))] if system else []
    return (*head, *talk)


def _record(found: ReadChats, name: str, fault: RowFault) -> None:
    found.faults[fault.kind] += 1
    found.first_fault = found.first_fault or f"row {name}: {fault}"


def _kept(rows: Iterable[Mapping[Any, Any]], source: ChatSource, found: ReadChats) -> Iterator[Mapping[Any, Any]]:
    for raw in rows:
        if all(raw.get(column) in values for column, values in source.where.items()):
            yield raw
        else:
            found.passed_over += 1


def _form(rows: Sequence[Mapping[Any, Any]], columns: Mapping[str, str]) -> str:
    votes: Counter[str] = Counter()
    for raw in rows:
        names = {*map(str, raw), *columns}
        if {"messages", "conversations"} & names:
            votes["chat"] += 1
        elif {"parent_id", "message_id"} <= names or "message_tree_id" in names:
            votes["oasst"] += 1
        else:
            votes["pairs"] += 1
    return votes.most_common(1)[0][0] if votes else "pairs"


def _each(
    rows: Iterable[Mapping[Any, Any]], form: str, source: ChatSource, found: ReadChats
) -> Iterator[tuple[str, list[Turn]]]:
    for number, raw in enumerate(rows, start=1):
        name = str(number)
        try:
            row = renamed_row(raw, source.columns)
            name = row_id(row, number)
            turns = chat_turns(row) if form == "chat" else _pair(row)
        except RowFault as fault:
            _record(found, name, fault)
            continue
        yield name, turns


def _pair(row: Mapping[str, Any]) -> list[Turn]:
    """Returns the two turns of an instruction with its answer; an input stands below the instruction."""
    texts = []
    for names in (_USER, _INPUT, _ASSISTANT):
        name = next((name for name in names if row.get(name) is not None), None)
        value = row[name] if name is not None else None
        if value is not None and not isinstance(value, str):
            raise RowFault("wrong field", f"{name} is a {type(value).__name__}, allowed: a text")
        texts.append((value or "").strip())
    asked, given, answer = texts
    if not asked or not answer:
        lack = "instruction" if not asked else "output"
        raise RowFault("missing field", f"no {lack}; it has {', '.join(map(str, row)) or 'nothing'}")
    return [("user", f"{asked}\n\n{given}" if given else asked), ("assistant", answer)]


def _trees(
    rows: Iterable[Mapping[Any, Any]], source: ChatSource, found: ReadChats
) -> Iterator[tuple[str, list[Turn]]]:
    """Yields the best path through every tree of OpenAssistant, whose rows are messages or whole trees."""
    roots: list[dict[str, Any]] = []
    below: dict[str, list[dict[str, Any]]] = {}
    for number, raw in enumerate(rows, start=1):
        try:
            row = renamed_row(raw, source.columns)
            message = row.get("prompt") if isinstance(row.get("prompt"), dict) else row
            name, parent = message.get("message_id"), message.get("parent_id")
            if not isinstance(name, str) or not isinstance(message.get("text"), str):
                raise RowFault("missing field", "message_id or text is missing")
        except RowFault as fault:
            _record(found, str(number), fault)
            continue
        if message.get("deleted") is True:
            found.passed_over += 1
        elif isinstance(parent, str):
            below.setdefault(parent, []).append(message)
        else:
            roots.append(message)
    for root in roots:
        path, message = [root], root
        while True:
            replies = [*below.get(message["message_id"], []), *(message.get("replies") or [])]
            replies = [one for one in replies if isinstance(one.get("text"), str) and one.get("deleted") is not True]
            if not replies:
                break
            message = min(replies, key=_rank)  # the first of those that rank alike
            path.append(message)
        yield root["message_id"], [(str(one.get("role")), one["text"]) for one in path]


def _rank(message: Mapping[str, Any]) -> int:
    rank = message.get("rank")
    return int(rank) if isinstance(rank, int | float) else _NO_RANK
