"""Families of the look-up text in which people change place, alone or together, and the last change counts.

    people ──walk, told in order──────> places
       ├──walk together, part─────────> places
       └──at a time, told in any order> places

The sentences of coming and going are here too; lookup_things.py, where people carry things about, uses them.
"""

from __future__ import annotations

from cairn.data.lookup_layout import Episode, Pair
from cairn.data.lookup_words import Dice, joined

__all__ = ["ARRIVE", "IDLE", "WHERE_PERSON", "groups", "ordered", "placed", "said", "timed", "walks"]

ARRIVE = [
    "{p} walked over to the {l}.",
    "{p} is at the {l} now.",
    "{p} has just reached the {l}.",
    "{p} strolled down to the {l}.",
    "{p} set off for the {l} and soon arrived.",
    "The {l} was where {p} stopped next.",
    "{p} rode to the {l}.",
    "{p} turned up at the {l}.",
    "{p} hurried across to the {l}.",
    "Next, {p} came to the {l}.",
    "{p} was seen at the {l}.",
    "A cart brought {p} to the {l}.",
    "{p} made for the {l} and stayed a while.",
    "Someone called {p} over to the {l}.",
    "{p} settled down at the {l}.",
    "Then {p} stepped into view at the {l}.",
    "{p} wandered as far as the {l}.",
    "{p} waited at the {l}.",
    "After a rest, {p} climbed up to the {l}.",
    "The ferry set {p} down at the {l}.",
]
IDLE = [
    "{p} hummed a tune.",
    "{p} yawned.",
    "{p} looked at the sky.",
    "{p} ate a slice of bread.",
    "{p} told a long story.",
    "{p} wrote a few words on a card.",
    "It began to rain.",
    "The wind dropped.",
    "A bell rang twice.",
    "{p} felt cold.",
    "{p} counted the gulls overhead.",
    "Nobody spoke for a while.",
    "{p} laughed at something.",
    "The sun came out.",
]
_TEASE = [
    "{p} talked about the {l} but did not go.",
    "{p} thought of the {l} and stayed put.",
    "{p} had never liked the {l}.",
    "{p} asked for news from the {l}.",
    "{p} would not go near the {l} that day.",
    "{p} dreamt of the {l}.",
]
WHERE_PERSON = [
    "Where is {x} now?",
    "Where would you find {x}?",
    "Where did {x} end up?",
    "What is the last place {x} came to?",
    "Which place is {x} at?",
    "At which place is {x} now?",
    "Where has {x} got to?",
    "Tell me where {x} is.",
]
_AT = [
    "Is {x} at the {l} now?",
    "Would you find {x} at the {l}?",
    "Did {x} end up at the {l}?",
    "{x} is at the {l}. True?",
]
_TIMES = [
    "After breakfast,",
    "Later on,",
    "At noon,",
    "Before dusk,",
    "A little later,",
    "Soon after,",
    "Then",
    "That evening,",
    "Meanwhile,",
    "By and by,",
    "An hour later,",
    "Afterwards,",
    "When the rain stopped,",
]


def said(d: Dice, templates: list[str], **words: str) -> str:
    """Returns one of the templates with its words filled in."""
    return d.pick(templates).format(**words)


def timed(d: Dice, line: str, names: list[str]) -> str:
    """Puts a time phrase before some lines that start with a name or "the"."""
    if d.random() < 0.2 and not (" is " in line or " are " in line or " has " in line or " both " in line):
        if line.startswith(("The ", "A ", "Someone ")):
            return d.pick(_TIMES) + " " + line[0].lower() + line[1:]
        if line.split(" ", 1)[0] in names:
            return d.pick(_TIMES) + " " + line
    return line


def placed(d: Dice, place: str, style: float) -> str:
    """Returns a place with its preposition and article, in one of a few wordings."""
    return place if style < 0.6 else "the " + place if style < 0.8 else "at the " + place


def walks(d: Dice, want: int) -> Episode:
    """People go from place to place; where is each now, where before, is he at that place?"""
    people, places = d.people(d.between(2, 4)), d.places(d.between(3, 6))
    been: dict[str, list[str]] = {person: [] for person in people}
    lines: list[str] = []
    pairs: list[Pair] = []
    running = want > 2 and d.random() < 0.35
    short = d.random() if d.style is None else d.style
    steps = d.between(3, 5 + want)
    while len(lines) < steps:
        person, luck = d.pick(people), d.random()
        if luck < 0.12:
            lines.append(said(d, IDLE, p=person))
        elif luck < 0.24:
            lines.append(said(d, _TEASE, p=person, l=d.pick(places)))
        else:
            place = d.pick(places)
            if been[person] and been[person][-1] == place:
                continue
            if been[person] and luck > 0.92:
                lines.append(f"{person} is no longer at the {been[person][-1]}, but at the {place}.")
            else:
                lines.append(timed(d, said(d, ARRIVE, p=person, l=place), people))
            been[person].append(place)
        if running and len(pairs) < want and d.random() < 0.5:
            pairs += _ask_walk(d, been, places, short, len(lines), 1)
    seen = [person for person in people if been[person]]
    if not seen:
        return walks(d, want)
    if not running or not pairs:
        pairs = _ask_walk(d, been, places, short, -1, want)
        return Episode(lines, pairs)
    return Episode(lines, pairs, sort="running")


def _ask_walk(
    d: Dice, been: dict[str, list[str]], places: list[str], short: float, after: int, want: int
) -> list[Pair]:
    seen = [person for person, path in been.items() if path]
    found: dict[str, Pair] = {}
    for _ in range(want * 2):
        if not seen or len(found) == want:
            break
        person, kind = d.pick(seen), d.held([0, 0, 0, 0, 0, 1, 1, 2, 2, 3])
        path = been[person]
        if kind == 2 and (len(path) < 2 or path.count(path[-1]) > 1):
            kind = 0
        if kind == 3 and len(places) == 1:
            kind = 0
        if kind == 0:
            question, answer = d.held(WHERE_PERSON).format(x=person), placed(d, path[-1], short)
        elif kind == 1:
            yes = d.random() < 0.5
            place = path[-1] if yes else d.pick([p for p in places if p != path[-1]])
            question, answer = d.held(_AT).format(x=person, l=place), "yes" if yes else "no"
        elif kind == 2:
            question = d.held(["Where was {x} just before the {l}?", "From which place did {x} come to the {l}?"])
            question, answer = question.format(x=person, l=path[-1]), placed(d, path[-2], short)
        else:
            place = d.pick(path)
            here = [one for one in seen if been[one][-1] == place]
            question = d.held(
                ["Who is at the {l} now?", "Name everyone who is at the {l} now.", "Who can be met at the {l}?"]
            )
            question, answer = question.format(l=place), joined(here) if here else "nobody"
        found[question] = Pair(question, answer, after)
    return list(found.values())


def groups(d: Dice, want: int) -> Episode:
    """Two or three move together, then part; where is each?"""
    people, places = d.people(d.between(3, 5)), d.places(d.between(3, 5))
    at: dict[str, str] = {}
    lines = []
    for _ in range(d.between(3, 4 + want)):
        place = d.pick(places)
        team = [one for one in d.some(people, d.between(1, 3)) if at.get(one) != place]
        if not team:
            continue
        if len(team) == 1:
            line = said(d, ARRIVE, p=team[0], l=place)
        else:
            who = joined(team)
            line = d.pick(
                [
                    "{w} walked to the {l}.",
                    "{w} set out together and came to the {l}.",
                    "{w} met at the {l}.",
                    "{w} are at the {l}.",
                    "A boat took {w} to the {l}.",
                    "Together, {w} reached the {l}.",
                    "The {l} was where {w} stopped to rest.",
                    "{w} left for the {l} and reached it together.",
                    "{w} both stopped at the {l}.",
                ][: 9 if len(team) == 2 else 8]
            ).format(w=who, l=place)
            line = timed(d, line, people) if line.startswith(who) else line
        for one in team:
            at[one] = place
        lines.append(line)
    if not at:
        return groups(d, want)
    short = d.random() if d.style is None else d.style
    seen, found = list(at), {}
    for _ in range(want * 2):
        if len(found) == want:
            break
        person, kind = d.pick(seen), d.held([0, 0, 0, 1, 2])
        if kind == 0:
            question, answer = d.held(WHERE_PERSON).format(x=person), placed(d, at[person], short)
        elif kind == 1:
            together = [one for one in seen if at[one] == at[person] and one != person]
            apart = [one for one in seen if at[one] != at[person]]
            if not together or not apart:  # asked only where both answers are possible
                continue
            yes = d.random() < 0.5
            other = d.pick(together if yes else apart)
            question = d.held(["Are {p} and {q} at the same place now?", "Is {p} in the same place as {q}?"])
            question, answer = question.format(p=person, q=other), "yes" if yes else "no"
        else:
            yes = d.random() < 0.5
            place = at[person] if yes else d.pick([one for one in places if one != at[person]])
            question, answer = d.held(_AT).format(x=person, l=place), "yes" if yes else "no"
        found[question] = Pair(question, answer)
    if not found:
        return groups(d, want)
    return Episode(lines, list(found.values()))


_HOURS = ["at dawn", "in the morning", "at noon", "in the afternoon", "in the evening", "at night"]
_DAYS = ["on Monday", "on Tuesday", "on Wednesday", "on Thursday", "on Friday", "on Saturday", "on Sunday"]
_CLOCK = [
    f"at {hour} o'clock" for hour in ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
]
_MONTHS = [
    f"in {m}" for m in "January February March April May June July August September October November December".split()
]


def ordered(d: Dice, want: int) -> Episode:
    """Visits with times, told out of order; where was one at, before or after that time?"""
    when = d.held([_HOURS, _DAYS, _CLOCK, _MONTHS])
    people, places = d.people(d.between(1, 2)), d.places(d.between(3, 6))
    visits: dict[str, list[tuple[int, str]]] = {}
    told: list[str] = []
    for person in people:
        times = sorted(d.some(range(len(when)), min(len(places), d.between(3, 4), len(when))))
        visits[person] = list(zip(times, d.some(places, len(times)), strict=True))
        for slot, place in visits[person]:
            time = when[slot]
            told.append(
                d.pick(
                    [
                        "{T} {p} was at the {l}.",
                        "{p} was at the {l} {t}.",
                        "{p} called at the {l} {t}.",
                        "{T} {p} could be seen at the {l}.",
                        "{p} worked at the {l} {t}.",
                    ]
                ).format(T=time[0].upper() + time[1:], t=time, p=person, l=place)
            )
    lines = d.mixed(told) if d.random() < 0.75 else told
    found: dict[str, Pair] = {}
    for _ in range(want * 2):
        if len(found) == want:
            break
        person = d.pick(people)
        path, kind = visits[person], d.held([0, 0, 1, 1, 2, 2, 3])
        spot = d.between(0, len(path) - 1)
        if kind == 0:
            question, answer = f"Where was {person} {when[path[spot][0]]}?", path[spot][1]
        elif kind == 1 and spot:
            question = d.held(["Where was {p} just before the {l}?", "Which place did {p} visit right before the {l}?"])
            question, answer = question.format(p=person, l=path[spot][1]), path[spot - 1][1]
        elif kind == 2 and spot + 1 < len(path):
            question = d.held(["Where was {p} right after the {l}?", "Which place did {p} visit next after the {l}?"])
            question, answer = question.format(p=person, l=path[spot][1]), path[spot + 1][1]
        else:
            time = when[path[spot][0]]
            question, answer = f"When was {person} at the {path[spot][1]}?", time
        found[question] = Pair(question, answer)
    return Episode(lines, list(found.values()))
