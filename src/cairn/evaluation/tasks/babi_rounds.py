"""Gold hand-offs of all 20 bAbI tasks: up to three readings of the story, each for what the one before made findable.

    question "Where is the milk?"
       ask1   who has the milk         read1   none, none, John, John, ...          one note per sentence
       ask2   where is John            read2   none, kitchen, now, kitchen, ...
       ask3   nothing                  read3   stop
       answer kitchen

    tasks               readings
    1 6 9-13            where is Mary
    2                   who has the milk; where is John
    3                   who took the milk to the office; whence John took the milk to the office
    4                   what is next to the office
    5                   the question in its own words
    7 8                 what is John holding
    14                  when was John in the office; where was John yesterday or this morning
    15                  what animal is Winona; what are mice afraid of
    16                  what animal is Lily; who is a frog; what color is Brian or Greg
    18                  what is bigger than the box; and than those, too
    17 19               what is next to the kitchen; the way to the office from the garden or the hallway
    20                  how is Sumit

The rules read only sentences and question. `check_rounds` holds their answer against the file's and their notes
against its supporting facts, and refuses a question on which they differ, so that a gold hand-off is never a guess.

Source: Weston et al., "Towards AI-complete question answering" (arXiv 1502.05698) for the tasks; the stages are ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any

from cairn.errors import DataError
from cairn.evaluation.tasks import babi_notes as notes
from cairn.evaluation.tasks.babi import BabiQuestion, exact_match
from cairn.evaluation.tasks.babi_notes import NONE, NOTHING, OPPOSITE, Reading

__all__ = ["ROUNDS", "STORY_JOIN", "GoldRounds", "check_rounds", "gold_rounds", "round_stages"]

ROUNDS = 3
STORY_JOIN = " "  # a sentence then begins with a space, as a name in a hand-off or an answer does

_PLURAL = {"mouse": "mice", "wolf": "wolves", "cat": "cats", "sheep": "sheep"}
_SINGULAR = {plural: singular for singular, plural in _PLURAL.items()}
_NUMBERS = ("zero", "one", "two", "three")
_GOES = {"hungry": "kitchen", "thirsty": "kitchen", "tired": "bedroom", "bored": "garden"}

# Yields readings, is sent the last note of each, and returns the answer.
_Plan = Generator[Reading, str, str]


@dataclass(frozen=True)
class GoldRounds:
    """The hand-offs of one question.

    Args:
        find: what each of the rounds looks for, "nothing" where no more is needed.
        notes: of each round, the note after every sentence; only the stop word where nothing is looked for.
        answer: from the question and the last notes.
    """

    find: tuple[str, ...]
    notes: tuple[tuple[str, ...], ...]
    answer: str


def gold_rounds(sentences: Sequence[str], question: str) -> GoldRounds:
    """Derives the hand-offs of one question by rule, without its gold answer.

    Args:
        sentences: the story before the question, in order.
        question: the question with its question mark.

    Raises:
        DataError: a sentence or the question is of a form that the rules do not know, or the notes hold no answer.
    """
    for sentence in sentences:
        notes.known_sentence(sentence)
    plan = _plan(question)
    find: list[str] = []
    made: list[tuple[str, ...]] = []
    try:
        reading = next(plan)
        while True:
            find.append(reading.find)
            made.append(reading.notes(sentences))
            reading = plan.send(made[-1][-1])
    except StopIteration as done:
        answer = done.value
    except (ValueError, KeyError, IndexError) as error:  # a note that does not say what the next round needs
        raise DataError(f"the story does not answer the question ({error!r})", value=question) from None
    left = ROUNDS - len(find)
    nothing = Reading(NOTHING, lambda note, _: note).notes(sentences)
    return GoldRounds((*find, *[NOTHING] * left), (*made, *[nothing] * left), answer)


def check_rounds(gold: GoldRounds, question: BabiQuestion) -> None:
    """Holds derived hand-offs against the file's gold.

    Raises:
        DataError: the derived answer is another one.
    """
    if not exact_match(gold.answer, question.answer):
        raise DataError(
            f"{question.id}: the rules give {gold.answer!r}, the file another answer", value=question.answer
        )


def round_stages(gold: GoldRounds) -> dict[str, Any]:
    """Returns the `stages` of an examples file: ask1, read1, ask2, read2, ask3, read3, answer."""
    stages: dict[str, Any] = {}
    for number, (find, made) in enumerate(zip(gold.find, gold.notes, strict=True), start=1):
        stages[f"ask{number}"] = find
        stages[f"read{number}"] = list(made)
    return {**stages, "answer": gold.answer}


def _plan(question: str) -> _Plan:
    for pattern, plan in _FORMS:
        if match := pattern.fullmatch(question):
            return plan(*match.groups())
    raise DataError("a question of a form that the rules do not know", value=question, allowed="bAbI's 20 tasks")


def _bare(note: str) -> str:
    return note.removesuffix(", now")


def _found(note: str) -> str:
    if note == NONE:
        raise ValueError("nothing was found")
    return note


def _where_person(person: str) -> _Plan:
    return _bare(_found((yield notes.where_is(person))))


def _is_person(person: str, place: str) -> _Plan:
    note = _bare(_found((yield notes.where_is(person))))
    if " or " in note:
        return "maybe" if place in note.split(" or ") else "no"
    if note == f"not {place}" or not note.startswith("not "):
        return "yes" if note == place else "no"
    raise ValueError(note)  # not here, but perhaps there: no such question was generated


def _where_thing(thing: str) -> _Plan:
    holder = _found((yield notes.last_holder(thing)))
    return _bare(_found((yield notes.where_is(holder))))


def _thing_before(thing: str, place: str) -> _Plan:
    brought = (yield notes.taken_to(thing, place)).split("; ")[1]
    return _found((yield notes.taken_from(_found(brought), thing, place)).split("; ")[2])


def _who_did_give(giver: str, thing: str) -> _Plan:
    return _found((yield notes.giving(f"who did {giver} give the {thing} to", giver, None, thing)))


def _who_received(thing: str) -> _Plan:
    return _found((yield notes.giving(f"who received the {thing}", None, None, thing)))


def _what_given(giver: str, receiver: str) -> _Plan:
    return _found((yield notes.giving(f"what did {giver} give to {receiver}", giver, receiver, None)))


def _how_many(person: str) -> _Plan:
    note = yield notes.holding(person)
    return _NUMBERS[0 if note == NONE else len(note.split(", "))]


def _what_held(person: str) -> _Plan:
    note = yield notes.holding(person)
    return "nothing" if note == NONE else note.replace(", ", ",")


def _what_is(side: str, of: str) -> _Plan:
    beside = _sides((yield notes.neighbours(of)))
    return {where: room for room, where in beside.items()}[side]


def _what_of(what: str, side: str) -> _Plan:
    return (yield from _what_is(OPPOSITE[side], what))


def _person_before(person: str, place: str) -> _Plan:
    time = _found((yield notes.time_at(person, place)))
    earlier = notes.TIMES[: notes.TIMES.index(time)]
    return _found((yield notes.place_at_last(person, earlier))).split(", ")[0]


def _afraid(name: str) -> _Plan:
    kind = yield notes.kind_of(name)
    return _SINGULAR[(yield notes.fear_of(_PLURAL[kind]))]


def _color(name: str) -> _Plan:
    kind = _found((yield notes.kind_of(name)))
    names = _found((yield notes.members(kind))).split(", ")
    return _found((yield notes.colour_of(", ".join(other for other in names if other != name))))


def _sides(note: str) -> dict[str, str]:
    return dict(one.rsplit(" ", 1) for one in _found(note).split(", "))


def _is_figure(figure: str, side: str, other: str) -> _Plan:
    beside = _sides((yield notes.neighbours(other)))
    if figure in beside:
        return "yes" if beside[figure] == side else "no"
    between, second = _found((yield notes.way_from(list(beside), figure))).rsplit(" ", 1)
    return "yes" if side in (beside[between], second) else "no"


def _bigger(big: str, small: str) -> _Plan:
    note = yield notes.bigger_things([small])
    if note != NONE and big not in note.split(", "):
        note = yield notes.bigger_things([small, *note.split(", ")])
    return "yes" if big in note.split(", ") else "no"


def _way(start: str, goal: str) -> _Plan:
    beside = _sides((yield notes.neighbours(start)))
    between, second = _found((yield notes.way_from(list(beside), goal))).rsplit(" ", 1)
    return f"{beside[between][0]},{second[0]}"


def _will_go(person: str) -> _Plan:
    return _GOES[(yield notes.mood_of(person))]


def _why(person: str, _: str) -> _Plan:
    return _found((yield notes.mood_of(person)))


_FORMS: tuple[tuple[re.Pattern[str], Callable[..., _Plan]], ...] = tuple(
    (re.compile(form.replace("WHO", r"([A-Z]\w+)").replace("WHAT", r"(\w+)").replace("THING", r"(.+)")), plan)
    for form, plan in (
        (r"Where is WHO\?", _where_person),
        (r"Where is the WHAT\?", _where_thing),
        (r"Is WHO in the WHAT\?", _is_person),
        (r"Where was the WHAT before the WHAT\?", _thing_before),
        (r"Where was WHO before the WHAT\?", _person_before),
        (r"Who did WHO give the WHAT to last\?", _who_did_give),
        (r"Who received the WHAT last\?", _who_received),
        (r"What did WHO give to WHO last\?", _what_given),
        (r"How many objects is WHO holding\?", _how_many),
        (r"What is WHO holding\?", _what_held),
        (r"What is (north|south|east|west) of the WHAT\?", _what_is),
        (r"What is the WHAT (north|south|east|west) of\?", _what_of),
        (r"What is WHO afraid of\?", _afraid),
        (r"What color is WHO\?", _color),
        (r"Is the THING (above|below) the THING\?", _is_figure),
        (r"Is the THING to the (left|right) of the THING\?", _is_figure),
        (r"Is the THING bigger than the THING\?", _bigger),
        (r"Does the THING fit in the THING\?", lambda small, big: _bigger(big, small)),
        (r"What is the path from WHAT to WHAT\?", _way),
        (r"Where will WHO go\?", _will_go),
        (r"Why did WHO (go to|get) the \w+\?", _why),
    )
)
