"""Keeps evaluation text out of training text.

A score on a public benchmark means nothing if the benchmark was read during training. Two rules decide what counts as
having been read; both compare lower-case words, so punctuation and spacing do not matter:

    evaluation text, n words or more ──> every run of n words       ──┐
    evaluation text, shorter         ──> each whole sentence of it  ──┴─> sorted 64-bit hashes, one owner each
                                         with at least m words               │
    document ──> words ──> hashes of its runs of n words and of its whole sentences ──> looked up

n = 13 is the length used for GPT-3 and since: shorter runs are met by chance in ordinary prose. Benchmarks of single
short sentences (BLiMP: 4 to 12 words) have no such run, so there a document counts only if one whole sentence of it,
from stop to stop, is a whole evaluation sentence of at least m = 6 words; five words or fewer ("What did he do then?")
are ordinary English that no one can own, and a part of a longer sentence is not the test item.

Only hashes are kept: 8 bytes for a run and 2 for its owner. A hash of words w0 w1 ... is the sum of hash(wi) * B**i
modulo 2**64, so one cumulative sum over a document gives every run and every sentence of it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np

from cairn.errors import ConfigError, DataError

__all__ = ["Decontaminator", "Report"]

_TOKEN = re.compile(r"[^\W_]+|[.!?;:\n\"]")  # a word, or a mark that ends a sentence
_STOPS = frozenset('.!?;:\n"')
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that it has an inverse modulo 2**64
_INVERSE = np.uint64(pow(0x9E3779B97F4A7C15, -1, 1 << 64))
_SKETCH_BITS = 24  # a table of 16 MB that tells most words of a document apart from the evaluation text at once


@dataclass
class Report:
    """What a pass of filter() kept and dropped.

    Args:
        kept: documents passed on.
        dropped: documents held back.
        by_set: documents held back on account of each evaluation set (a document may count for several).
        examples: for each evaluation set, up to five runs of words that were found.
    """

    kept: int = 0
    dropped: int = 0
    by_set: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def __str__(self) -> str:
        each = ", ".join(f"{name} {count}" for name, count in self.by_set.items() if count) or "none"
        return f"{self.kept:,} documents kept, {self.dropped:,} dropped ({each})"


class _WordHashes(dict[str, int]):
    """The 64-bit hash of each word met so far; the same in every process."""

    def __missing__(self, word: str) -> int:
        value = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
        if len(self) < 2_000_000:  # made-up words and numbers must not fill the memory
            self[word] = value
        return value


class Decontaminator:
    """Finds and removes documents that hold text of evaluation sets.

    Args:
        ngram: how many words in a row count as evaluation text.
        sentence: from how many words on a whole short sentence counts as evaluation text.

    Raises:
        ConfigError: if ngram or sentence is below 3, or sentence is longer than ngram.
    """

    def __init__(self, ngram: int = 13, sentence: int = 6) -> None:
        faults = [
            f"{name}: {value}; allowed: 3 or more"
            for name, value in [("ngram", ngram), ("sentence", sentence)]
            if value < 3
        ]
        if sentence > ngram:
            faults.append(f"sentence: {sentence} is longer than ngram: {ngram}; allowed: at most ngram")
        if faults:
            raise ConfigError("decontamination", faults)
        self.ngram, self.sentence = ngram, sentence
        self.report = Report()
        self._names: list[str] = []
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []
        self._hashes = np.empty(0, np.uint64)
        self._owners = np.empty(0, np.uint16)
        self._sketch = np.zeros(1 << _SKETCH_BITS, bool)
        self._words = _WordHashes()
        self._powers = self._inverses = np.ones(1, np.uint64)

    def add(self, name: str, texts: Iterable[str]) -> int:
        """Takes in the texts of one evaluation set.

        Args:
            name: the set's name, as it is to stand in reports.
            texts: questions, sentences, answers; one string for each.

        Returns: how many runs and sentences are now known of these texts.

        Raises:
            DataError: if none of the texts is long enough to be recognised, so that nothing would be checked.
        """
        if name not in self._names:
            self._names.append(name)
        runs = [self._marks(text)[0] for text in texts]
        found = np.unique(np.concatenate(runs)) if runs else np.empty(0, np.uint64)
        if not len(found):
            raise DataError(
                "no evaluation text long enough to be recognised",
                value=name,
                allowed=f"texts of {self.ngram} words, or sentences of {self.sentence}",
                next="look at the file that was read, or lower the limits",
            )
        self._parts.append((found, np.full(len(found), self._names.index(name), np.uint16)))
        self._sketch[found >> np.uint64(64 - _SKETCH_BITS)] = True
        self._hashes = np.empty(0, np.uint64)  # sorted again at the next question
        return len(found)

    def overlaps(self, text: str) -> list[tuple[str, str]]:
        """Finds evaluation text in a document.

        Args:
            text: the document.

        Returns: for each run or sentence found, the name of the evaluation set and the words in lower case.
        """
        if not len(self._hashes):
            self._sort()
        marks, starts, lengths, words = self._marks(text, whole=False)
        maybe = np.flatnonzero(self._sketch[marks >> np.uint64(64 - _SKETCH_BITS)])
        if not len(maybe):
            return []
        left = np.searchsorted(self._hashes, marks[maybe], "left")
        right = np.searchsorted(self._hashes, marks[maybe], "right")
        found: dict[tuple[str, str], None] = {}
        for spot, low, high in zip(maybe.tolist(), left.tolist(), right.tolist(), strict=True):
            for owner in self._owners[low:high].tolist():
                start = int(starts[spot])
                found[self._names[owner], " ".join(words[start : start + int(lengths[spot])])] = None
        return list(found)

    def filter(self, documents: Iterable[str]) -> Iterator[str]:
        """Passes on the documents that hold no evaluation text, and counts the others in `report`."""
        for text in documents:
            found = self.overlaps(text)
            if not found:
                self.report.kept += 1
                yield text
                continue
            self.report.dropped += 1
            for name in dict.fromkeys(name for name, _ in found):
                self.report.by_set[name] = self.report.by_set.get(name, 0) + 1
                shown = self.report.examples.setdefault(name, [])
                if len(shown) < 5:
                    shown.append(next(words for owner, words in found if owner == name))

    def _sort(self) -> None:
        if self._parts:
            hashes = np.concatenate([part for part, _ in self._parts])
            owners = np.concatenate([owner for _, owner in self._parts])
            pairs = np.unique(np.rec.fromarrays([hashes, owners], names="hash,owner"))
            self._hashes, self._owners = pairs["hash"].copy(), pairs["owner"].copy()
            self._parts = [(self._hashes, self._owners)]

    def _marks(self, text: str, whole: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
        """Hashes the runs and sentences of a text.

        Args:
            text: a document or an evaluation text.
            whole: True for an evaluation text: sentences count only if it has no run of n words.

        Returns: hashes (uint64), first word and number of words of each, and the words of the text.
        """
        words: list[str] = []
        stops, lines = [0], [0]  # a line end may end a sentence (a list) or not (wrapped prose): both are tried
        for token in _TOKEN.findall(text.lower()):
            if token not in _STOPS:
                words.append(token)
            else:
                lines.append(len(words))
                if token != "\n":
                    stops.append(len(words))
        if len(lines) == len(stops):
            lines = [0]
        count, n = len(words), self.ngram
        table = self._words
        values = np.fromiter((table[word] for word in words), np.uint64, count)
        if count >= len(self._powers):
            size = 2 * count + 1024
            self._powers = np.cumprod(np.concatenate(([np.uint64(1)], np.full(size, _BASE))), dtype=np.uint64)
            self._inverses = np.cumprod(np.concatenate(([np.uint64(1)], np.full(size, _INVERSE))), dtype=np.uint64)
        sums = np.zeros(count + 1, np.uint64)
        np.cumsum(values * self._powers[:count], out=sums[1:], dtype=np.uint64)
        starts, lengths = np.empty(0, np.int64), np.empty(0, np.int64)
        if not (whole and count >= n):
            first = np.asarray(stops + lines, np.int64)
            size = np.asarray([*stops[1:], count, *lines[1:], count], np.int64) - first
            short = (size >= self.sentence) & (size < n)
            starts, lengths = first[short], size[short]
        if count >= n:
            starts = np.concatenate((np.arange(count - n + 1), starts))
            lengths = np.concatenate((np.full(count - n + 1, n), lengths))
        marks = (sums[starts + lengths] - sums[starts]) * self._inverses[starts]
        return marks, starts, lengths, words
