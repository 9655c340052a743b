"""bAbI question answering: reader of the standard text format, and how an answer is judged.

    1 John took the milk.                         a sentence: number, text
    2 Sandra journeyed to the office.
    3 Where is the milk?<TAB>office<TAB>1 2       a question: text, answer, numbers of the supporting sentences
    4 John dropped the milk.                      the story goes on; a later question sees all sentences so far
    1 Mary went home.                             numbering restarts: a new story

lm-evaluation-harness has a bAbI task too, but it needs the hub and drops the supporting facts, which are the gold
hand-offs of a stack's stages.

Source: Weston et al., "Towards AI-complete question answering" (arXiv 1502.05698).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cairn.errors import DataError
from cairn.evaluation.textfiles import open_text

__all__ = ["BabiQuestion", "exact_match", "normalise_answer", "read_babi"]


@dataclass(frozen=True)
class BabiQuestion:
    """One question with the part of its story that comes before it.

    Args:
        id: unique within a file: task, story number, line number.
        story_id: equal for all questions of one story, which are not independent of each other.
        task: name of the task, such as "qa2".
        sentences: the sentences before the question, without earlier questions.
        question: text with its question mark.
        answer: gold answer, as written in the file.
        supporting: places in `sentences` (from 0) of the facts that give the answer.
    """

    id: str
    story_id: str
    task: str
    sentences: tuple[str, ...]
    question: str
    answer: str
    supporting: tuple[int, ...]

    @property
    def story(self) -> str:
        """The sentences, one a line: the form in which stages and prompts read them."""
        return "\n".join(self.sentences)


def read_babi(source: str | Path | Iterable[str], task: str | None = None) -> list[BabiQuestion]:
    """Reads every question of a bAbI file.

    Args:
        source: path (plain, .gz or .xz) or lines.
        task: task name; by default taken from the file name (qa2_test.txt.xz -> qa2).

    Raises:
        DataError: the file cannot be read, holds no question, or a line is not in the format (with its number).
    """
    if isinstance(source, str | Path):
        path = Path(source)
        task = task or _task_of(path.name)
        with open_text(path) as lines:
            questions = list(_parse(lines, task, str(path)))
        name = str(path)
    else:
        name = "bAbI lines"
        questions = list(_parse(source, task or "babi", name))
    if not questions:
        raise DataError("no question found", value=name, allowed="lines 'NUMBER question<TAB>answer<TAB>supporting'")
    return questions


def normalise_answer(text: str) -> str:
    """Returns an answer in the form in which it is compared: lower case, single spaces, no final stop."""
    return " ".join(text.lower().split()).rstrip(".!, ")


def exact_match(answer: str, gold: str) -> bool:
    """Returns True if the answers are equal after `normalise_answer`; lists ("milk,apple") in any order."""
    given, wanted = normalise_answer(answer), normalise_answer(gold)
    if "," in wanted:
        return sorted(_items(given)) == sorted(_items(wanted))
    return given == wanted


def _items(text: str) -> list[str]:
    return [normalise_answer(part) for part in text.split(",")]


def _task_of(name: str) -> str:
    return re.split(r"[_.]", name, maxsplit=1)[0] or name


def _parse(lines: Iterable[str], task: str, source: str) -> Iterator[BabiQuestion]:
    story, previous = -1, 0
    sentences: list[str] = []
    place_of: dict[int, int] = {}  # line number within the story -> place in sentences
    for line_number, line in enumerate(lines, start=1):
        line = line.rstrip("\r\n")
        if not line.strip():
            continue
        number_text, _, text = line.strip(" ").partition(" ")
        if not number_text.isdecimal() or not text.strip():
            raise DataError(f"{source}, line {line_number}: not a bAbI line", value=line, allowed="'NUMBER text'")
        number = int(number_text)
        if number <= previous or story < 0:
            story, sentences, place_of = story + 1, [], {}
        previous = number
        if "\t" not in text:
            place_of[number] = len(sentences)
            sentences.append(text.strip())
            continue
        fields = [field.strip() for field in text.split("\t")]
        support = _supporting(fields, place_of, source, line_number, line)
        yield BabiQuestion(
            f"{task}-{story}-{number}", f"{task}-{story}", task, tuple(sentences), fields[0], fields[1], support
        )


def _supporting(
    fields: Sequence[str], place_of: dict[int, int], source: str, line_number: int, line: str
) -> tuple[int, ...]:
    try:
        numbers = [int(part) for part in fields[2].split()] if len(fields) > 2 else []
        places = tuple(place_of[number] for number in numbers)
    except (ValueError, KeyError):
        places = None
    if places is None or len(fields) > 3 or not fields[0] or not fields[1]:
        raise DataError(
            f"{source}, line {line_number}: not a bAbI question",
            value=line,
            allowed="'NUMBER question<TAB>answer<TAB>numbers of earlier sentences'",
        )
    return places
