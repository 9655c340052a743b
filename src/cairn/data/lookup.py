"""The project's own seeded text of look-up, tracking and copying, mixed into the pretraining of tiny bases.

A model of a few million parameters that has only read plain prose cannot look anything up: nothing in prose forces it
to. This text does. Every answer in it follows from the document itself, and the names, things, places, codes and
made-up words are drawn afresh each time, so nothing can be remembered and everything has to be found above.

    seed ──> Dice ──> family (FAMILIES, by weight) ──> Episode ──> layout ──> document, 60 to 1,800 characters
                                                         │
                        one passage, one question        ├── 30%
                        one passage, several questions   ├── 52%
                        several solved examples          └── 18%   (families with short episodes)

    tracking   15%   who went where, with whom, when                               lookup_tracking.py
    things     23%   who has it, where is it through its holder, boxes, swaps      lookup_things.py
    tables     20%   keys and values, rows, stores, prices, dialogues about a note lookup_tables.py
    lines      20%   is this line about X; keep, drop, count, first, last          lookup_lines.py
    copying    12%   repeat, reverse, pick, replace, sort, continue, spell         lookup_copy.py
    facts      10%   scales, compass, made-up kinds, same or not, rules            lookup_facts.py

The wording is our own and kept apart from every evaluation set (see RESERVED, and decontaminate.py which checks it).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from cairn.data import lookup_copy, lookup_facts, lookup_lines, lookup_tables, lookup_things, lookup_tracking
from cairn.data.lookup_layout import Episode, few_shot, render
from cairn.data.lookup_words import Dice
from cairn.errors import ConfigError, did_you_mean

__all__ = ["FAMILIES", "MAX_CHARACTERS", "MIN_CHARACTERS", "Family", "document", "documents", "episode", "kinds"]

MIN_CHARACTERS, MAX_CHARACTERS = 60, 1800


class Family(NamedTuple):
    """One kind of generated text.

    Args:
        weight: its share of the documents, in percent.
        make: draws an episode with up to so many questions.
        shots: whether several short episodes may stand in one document as solved examples.
    """

    weight: float
    make: Callable[[Dice, int], Episode]
    shots: bool = True


FAMILIES: dict[str, Family] = {
    "walks": Family(8, lookup_tracking.walks),
    "handing": Family(6, lookup_things.handing),
    "two_hop": Family(8, lookup_things.two_hop),
    "carrying": Family(3, lookup_things.carrying),
    "containers": Family(4, lookup_things.containers),
    "groups": Family(4, lookup_tracking.groups),
    "ordered": Family(3, lookup_tracking.ordered),
    "swaps": Family(2, lookup_things.swaps),
    "associations": Family(5, lookup_tables.associations),
    "keepers": Family(4, lookup_tables.keepers),
    "rows": Family(2, lookup_tables.rows),
    "inventories": Family(2, lookup_tables.inventories),
    "prices": Family(2, lookup_tables.prices),
    "members": Family(2, lookup_tables.members),
    "dialogue": Family(3, lookup_tables.dialogue, shots=False),
    "mentions": Family(7, lookup_lines.mentions, shots=False),
    "filters": Family(6, lookup_lines.filters),
    "drops": Family(1.5, lookup_lines.drops),
    "counts": Family(1.5, lookup_lines.counts),
    "edges": Family(2, lookup_lines.edges),
    "positions": Family(1, lookup_lines.positions),
    "marks": Family(1, lookup_lines.marks),
    "echoes": Family(1.5, lookup_copy.echoes, shots=False),
    "picks": Family(2, lookup_copy.picks),
    "rewrites": Family(2, lookup_copy.rewrites, shots=False),
    "substitutes": Family(1.5, lookup_copy.substitutes),
    "sorts": Family(1.5, lookup_copy.sorts),
    "induction": Family(2, lookup_copy.induction, shots=False),
    "spelling": Family(1.5, lookup_copy.spelling, shots=False),
    "chains": Family(2.5, lookup_facts.chains),
    "compass": Family(2, lookup_facts.compass),
    "kinds_of": Family(2, lookup_facts.kinds_of),
    "sameness": Family(1, lookup_facts.sameness, shots=False),
    "agreement": Family(1.5, lookup_facts.agreement),
    "rules": Family(1, lookup_facts.rules),
}

# Drawn from by position: one entry for each half percent.
_WHEEL = [name for name, family in FAMILIES.items() for _ in range(round(family.weight * 2))]


def kinds() -> list[str]:
    """Returns the names of all families, in the order of the table."""
    return list(FAMILIES)


def episode(kind: str, seed: int, questions: int = 4) -> Episode:
    """Draws one episode of a family before it is laid out: its lines and what is asked about them.

    Args:
        kind: a name from kinds().
        seed: the same seed gives the same episode.
        questions: how many questions at most.

    Raises:
        ConfigError: if there is no such family.
    """
    return _family(kind).make(Dice(seed), questions)


def document(kind: str, seed: int) -> str:
    """Writes one document of a family.

    Args:
        kind: a name from kinds().
        seed: the same seed gives the same document.

    Raises:
        ConfigError: if there is no such family.
    """
    return _write(Dice(seed), _family(kind))


def documents(seed: int) -> Iterator[str]:
    """Yields documents of all families without end, each 60 to 1,800 characters; the same seed gives the same text."""
    d = Dice(seed)
    while True:
        yield _write(d, FAMILIES[d.pick(_WHEEL)])


def _family(kind: str) -> Family:
    if kind not in FAMILIES:
        raise ConfigError(
            "look-up text", [f"no family {kind!r}{did_you_mean(kind, FAMILIES)}; allowed: {', '.join(FAMILIES)}"]
        )
    return FAMILIES[kind]


def _write(d: Dice, family: Family) -> str:
    while True:
        luck = d.random()
        d.style = None
        if luck < 0.18 and family.shots:
            d.style = d.random()
            text = few_shot(d, [family.make(d, 1) for _ in range(d.between(3, 6))])
            d.style = None
        else:
            text = render(d, family.make(d, 1 if luck < 0.48 else d.between(3, 8)))
        if MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS:
            return text
