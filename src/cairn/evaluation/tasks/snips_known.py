"""What a list of names knows about a command: words that filled a slot in other commands.

    training commands ── Lexicon ──┬─ a command ──────────> "3 4 cook, 8 state"    numbers of words, and their slot
                                   └─ one of the training ─> the same without what only this command taught

A model of a few million parameters has no room for the countries and states of the world, and need not: a list has. It
is an input like the command itself, the same for every system. A training command must not see its own values as known,
or the model would learn that every name is on the list.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cairn.errors import DataError
from cairn.evaluation.tasks.snips_frames import short_slot
from cairn.evaluation.textfiles import read_rows
from cairn.files import write_text

__all__ = ["Lexicon"]

_MOST_WORDS = 8
_LEAST_SHARE = 0.3  # of the commands' uses of some words that fill the slot: "in" is Indiana now and then
_NOTHING = "none"

Words = tuple[str, ...]


class Lexicon:
    """Words that fill slots, in any capitals, and how often they do.

    Args:
        rows: commands: text, and slots with name, start, end.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._slots: dict[Words, Counter[str]] = defaultdict(Counter)
        for row in rows:
            for words, name in _values(row):
                self._slots[words][name] += 1
        self._uses = Counter(words for row in rows for _, words in _parts(row["text"]) if words in self._slots)

    def save(self, path: str | Path) -> None:
        """Writes what the list knows, without the commands: a line of JSON for each name.

        Raises:
            StorageError: the file cannot be written.
        """
        lines = [
            json.dumps({"words": " ".join(words), "slots": dict(slots), "uses": self._uses[words]})
            for words, slots in sorted(self._slots.items())
        ]
        write_text(path, "\n".join(lines) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Lexicon:
        """Reads what `save` wrote, packed or not; it answers as the list that was saved.

        Raises:
            DataError: a line is not one of `save`.
        """
        made = cls([])
        for number, row in enumerate(read_rows(path), start=1):
            try:
                words = tuple(row["words"].split())
                made._slots[words] = Counter({str(name): int(count) for name, count in row["slots"].items()})
                made._uses[words] = int(row["uses"])
            except (KeyError, TypeError, ValueError, AttributeError):
                raise DataError(
                    f"{path}, line {number}: not a name of a list", value=row,
                    allowed='{"words": "new york", "slots": {"city": 3}, "uses": 4}',
                ) from None  # fmt: skip
        return made

    def known(self, text: str, own: Mapping[str, Any] | None = None) -> str:
        """Returns what the list knows of a command: from left to right, the longest first, no word twice.

        Args:
            text: the command.
            own: its row, if it is a training command: what that one taught does not count.

        Returns:
            "3 4 cook, 8 state": numbers of words and the short word of the slot; "none" if nothing is known.
        """
        slots: Counter[tuple[Words, str]] = Counter()
        uses: Counter[Words] = Counter()
        if own is not None:
            slots.update(_values(own))
            uses.update(words for _, words in _parts(own["text"]))
        found, free = [], 0
        for start, words in _parts(text):
            if start < free or words not in self._slots:
                continue
            left = {name: count - slots[words, name] for name, count in self._slots[words].items()}
            best = max(left, key=lambda name: left[name])
            if left[best] > 0 and left[best] >= _LEAST_SHARE * (self._uses[words] - uses[words]):
                free = start + len(words)
                numbers = " ".join(str(number + 1) for number in range(start, free))
                found.append(f"{numbers} {short_slot(best)}")
        return ", ".join(found) or _NOTHING


def _parts(text: str) -> Iterator[tuple[int, Words]]:
    """Yields every run of words with the number of its first one, counted from 0, the longest first at each place."""
    words = text.casefold().split()
    for start in range(len(words)):
        for end in range(min(len(words), start + _MOST_WORDS), start, -1):
            yield start, tuple(words[start:end])


def _values(row: Mapping[str, Any]) -> list[tuple[Words, str]]:
    """Returns (words, slot) of each slot that fills whole words."""
    text = f" {row['text']} "
    return [
        (tuple(text[slot["start"] + 1 : slot["end"] + 1].casefold().split()), slot["name"])
        for slot in row["slots"]
        if text[slot["start"]].isspace() and text[slot["end"] + 1].isspace()
    ]
