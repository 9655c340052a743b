"""Families of the look-up text in which something is written down once and has to be found again.

key ──> value      lists, rows, sentences, both ways round
several rows ──>   counting, comparing, which rows agree
"""

from __future__ import annotations

from cairn.data.lookup_layout import Episode, Pair
from cairn.data.lookup_words import ADJECTIVES, RARE, THINGS, Dice, joined, plural

__all__ = ["associations", "dialogue", "inventories", "keepers", "members", "prices", "rows"]

_SHAPES = [
    "{k}: {v}",
    "{k} - {v}",
    "{k} = {v}",
    "{k} -> {v}",
    "{k} | {v}",
    "{k}, {v}",
    "{k} ... {v}",
    "{k} ({v})",
    "{v} <- {k}",
]
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten eleven twelve".split()


def _phone(d: Dice) -> str:
    return f"{d.between(100, 999)}-{d.between(1000, 9999)}"


def _values(d: Dice, count: int) -> tuple[str, list[str]]:
    """Draws what a list may say of its keys: the word for it and different values."""
    luck = d.random()
    if luck < 0.15:
        return "phone number", [_phone(d) for _ in range(count)]
    if luck < 0.3:
        return "number", [str(n) for n in d.some(range(2, 1000), count)]
    if luck < 0.45:
        return "code", d.codes(count)
    if luck < 0.6:
        return "word", d.made_ups(count)
    if luck < 0.7:
        return "word", d.some(RARE, count)
    if luck < 0.8:
        return "colour", d.some(
            "red blue green yellow black white brown grey purple orange violet scarlet ivory amber".split(), count
        )
    if luck < 0.9:
        return "place", d.places(count)
    return "thing", d.things(count)


def associations(d: Dice, want: int) -> Episode:
    """A list of keys and values; say the value of a key, or the key of a value."""
    count = d.between(3, 5 + want)
    sort, values = _values(d, count)
    keys = d.people(count) if d.random() < 0.4 else d.words(count)
    while len(set(keys) | set(values)) < 2 * count:
        keys = d.words(count)
    shape = d.pick(_SHAPES)
    lines = [shape.format(k=key, v=value) for key, value in zip(keys, values, strict=True)]
    forward = [
        "What {s} stands next to {k}?",
        "What is the {s} of {k}?",
        "Which {s} belongs to {k}?",
        "Give the {s} for {k}.",
        "Look up {k}.",
        "{k}?",
        "What does the list say for {k}?",
    ]
    back = [
        "Which entry has the {s} {v}?",
        "Whose {s} is {v}?",
        "{v} is the {s} of which entry?",
        "Find the entry with {v}.",
        "To which entry does {v} belong?",
    ]
    pairs = []
    for spot in d.some(range(count), min(want, count)):
        key, value, luck = keys[spot], values[spot], d.held([0, 0, 0, 1, 1, 2])
        if luck == 0:
            pairs.append(Pair(d.held(forward).format(s=sort, k=key), value))
        elif luck == 1:
            pairs.append(Pair(d.held(back).format(s=sort, v=value), key))
        else:
            yes = d.random() < 0.5
            shown = value if yes else d.pick([other for other in values if other != value])
            question = d.held(
                ["Is {v} the {s} of {k}?", "Does {k} go with {v}?", "{k} and {v}: do they belong together?"]
            )
            pairs.append(Pair(question.format(s=sort, k=key, v=shown), "yes" if yes else "no"))
    return Episode(lines, pairs, prose=False, marked=shape[0] == "{")


_KEEPS = [
    ("{p} keeps the {t}.", "Who keeps the {t}?", "What does {p} keep?"),
    ("{p} is in charge of the {t}.", "Who is in charge of the {t}?", "What is {p} in charge of?"),
    ("The {t} belongs to {p}.", "To whom does the {t} belong?", "What belongs to {p}?"),
    ("{p} repairs the {t}.", "Who repairs the {t}?", "What does {p} repair?"),
    ("The {t} was made by {p}.", "Who made the {t}?", "What was made by {p}?"),
    ("{p} lost the {t}.", "Who lost the {t}?", "What did {p} lose?"),
    ("{p} would like the {t}.", "Who would like the {t}?", "What would {p} like?"),
    ("{p} painted a picture of the {t}.", "Who painted the {t}?", "What did {p} paint?"),
    ("{p} bought the {t} at the fair.", "Who bought the {t}?", "What did {p} buy?"),
    ("The {t} is a present from {p}.", "Who gave the {t} as a present?", "What was the present from {p}?"),
    ("{p} guards the {t}.", "Who guards the {t}?", "What does {p} guard?"),
]
_LIVES = [
    ("{p} works at the {t}.", "Who works at the {t}?", "Where does {p} work?"),
    ("{p} lives near the {t}.", "Who lives near the {t}?", "Where does {p} live?"),
    ("The {t} is looked after by {p}.", "Who looks after the {t}?", "What does {p} look after?"),
    ("{p} has the key to the {t}.", "Who has the key to the {t}?", "What does {p} have the key to?"),
    ("{p} was born beside the {t}.", "Who was born beside the {t}?", "Where was {p} born?"),
    ("{p} sweeps the {t}.", "Who sweeps the {t}?", "What does {p} sweep?"),
]


def keepers(d: Dice, want: int) -> Episode:
    """Sentences that tie a person to a thing or place, sometimes to both; asked both ways round."""
    count = d.between(3, 4 + want)
    people = d.people(count)
    ties = [(d.held(_KEEPS), d.things(count))]
    if d.random() < 0.5:
        ties = [(d.held(_LIVES), d.places(count))] + (ties if d.random() < 0.5 else [])
    facts = [(form, person, thing) for form, things in ties for person, thing in zip(people, things, strict=True)]
    lines = d.mixed([form[0].format(p=person, t=thing) for form, person, thing in facts])
    pairs = []
    for form, person, thing in d.some(facts, min(want, len(facts))):
        kind = d.held([0, 0, 1, 1, 2]) if len(ties) == 2 else d.held([0, 1])
        if kind == 0:
            pairs.append(Pair(form[1].format(t=thing), person))
        elif kind == 1:
            where = "the " if d.style is None and form in _KEEPS and d.random() < 0.3 else ""
            pairs.append(Pair(form[2].format(p=person), where + thing))
        else:  # two look-ups: thing -> person -> place
            spot = people.index(person)
            (live, places), (keep, things) = ties
            question = {
                "{p} works at the {t}.": "At which place does the one work who {k}?",
                "{p} lives near the {t}.": "What place is near the home of the one who {k}?",
                "{p} was born beside the {t}.": "Beside which place was the one born who {k}?",
            }.get(live[0], "Which place goes with the one who {k}?")
            verb = keep[1].format(t=things[spot])
            if not verb.startswith("Who "):
                pairs.append(Pair(form[1].format(t=thing), person))
                continue
            pairs.append(Pair(question.format(k=verb[4:-1]), places[spot]))
    return Episode(lines, pairs)


def rows(d: Dice, want: int) -> Episode:
    """A table with named columns; say one cell, or the row that has it."""
    count, wide = d.between(3, 6), d.between(2, 3)
    columns: dict[str, list[str]] = {}
    while len(columns) < wide:
        sort, values = _values(d, count)
        columns[sort] = values
    names = d.people(count) if d.random() < 0.6 else d.some(THINGS, count)
    bar = d.pick([" | ", "; ", "\t", ", ", " / "])
    lines = [bar.join(["name", *columns])] + [
        bar.join([names[n], *(c[n] for c in columns.values())]) for n in range(count)
    ]
    found: dict[str, Pair] = {}
    for _ in range(want * 2):
        if len(found) == want:
            break
        spot, sort = d.between(0, count - 1), d.pick(list(columns))
        value = columns[sort][spot]
        if d.held([0, 0, 1]) == 0:
            question = d.held(
                [
                    "What is the {s} in the row of {n}?",
                    "{s} of {n}?",
                    "Row {n}, column {s}?",
                    "Read out the {s} of {n}.",
                ]
            )
            question, answer = question.format(s=sort, n=names[spot]), value
        else:
            question = d.held(["Which name has the {s} {v}?", "Whose row shows {v} as its {s}?", "Name with {s} {v}?"])
            question, answer = question.format(s=sort, v=value), names[spot]
            if columns[sort].count(value) > 1:
                continue
        found[question] = Pair(question[0].upper() + question[1:], answer)
    return Episode(lines, list(found.values()), prose=False, marked=False)


def inventories(d: Dice, want: int) -> Episode:
    """How many of each thing stand in which store; look up, add, compare."""
    places, kinds = d.places(d.between(1, 3)), d.some(THINGS, d.between(2, 4))
    stock: dict[tuple[str, str], int] = {}
    lines = []
    for place in places:
        held = d.some(kinds, d.between(1, len(kinds)))
        parts = []
        for kind in held:
            stock[place, kind] = number = d.between(1, 12)
            parts.append(f"{_NUMBER_WORDS[number]} {kind if number == 1 else plural(kind)}")
        form = d.pick(
            ["The {l} holds {x}.", "At the {l} one can count {x}.", "Kept at the {l}: {x}.", "We found {x} at the {l}."]
        )
        lines.append(form.format(l=place, x=joined(parts)))
    found: dict[str, Pair] = {}
    for _ in range(want * 2):
        if len(found) == want:
            break
        (place, kind), ask = d.pick(list(stock)), d.held([0, 0, 0, 1, 1, 2, 3])
        many = plural(kind)
        if ask == 0:
            question, answer = (
                d.held(
                    ["How many {m} are at the {l}?", "Number of {m} at the {l}?", "Count the {m} at the {l}."]
                ).format(m=many, l=place),
                _NUMBER_WORDS[stock[place, kind]],
            )
        elif ask == 1:
            yes = d.random() < 0.5
            absent = [(p, k) for p in places for k in kinds if (p, k) not in stock]
            if not absent:
                absent = [(place, next(thing for thing in d.some(THINGS, 5) if thing not in kinds))]
            p, k = (place, kind) if yes else d.pick(absent)
            question, answer = (
                d.held(["Are there any {m} at the {l}?", "Does the list show {m} at the {l}?"]).format(
                    m=plural(k), l=p
                ),
                "yes" if yes else "no",
            )
        elif ask == 2:
            sites = [p for p in places if (p, kind) in stock]
            question = d.held(["Which places have {m}?", "Name every place with {m}."]).format(m=many)
            answer = joined(sites)
        else:
            kinds_here = [k for p, k in stock if p == place]
            question, answer = (
                d.held(
                    ["How many kinds of things does the {l} have?", "How many different kinds are listed for the {l}?"]
                ).format(l=place),
                _NUMBER_WORDS[len(kinds_here)],
            )
        found[question] = Pair(question, answer)
    return Episode(lines, list(found.values())) if found else inventories(d, want)


def prices(d: Dice, want: int) -> Episode:
    """Prices, ages or lengths; look one up, say which of two is more, which is the most."""
    unit, more, most, less, least, form = d.held(
        [
            ("coins", "costs more", "costs the most", "costs less", "costs the least", "The {t} costs {n} coins."),
            ("years", "is older", "is the oldest", "is younger", "is the youngest", "The {t} is {n} years old."),
            ("feet", "is longer", "is the longest", "is shorter", "is the shortest", "The {t} is {n} feet long."),
            (
                "pounds",
                "weighs more",
                "weighs the most",
                "weighs less",
                "weighs the least",
                "The {t} weighs {n} pounds.",
            ),
        ]
    )
    things = d.things(d.between(3, 5))
    size = dict(zip(things, d.some(range(2, 100), len(things)), strict=True))
    lines = [form.format(t=thing, n=number) for thing, number in size.items()]
    found: dict[str, Pair] = {}
    for _ in range(want * 2):
        if len(found) == want:
            break
        one, two = d.some(things, 2)
        ask = d.held([0, 0, 1, 1, 2, 3])
        if ask == 0:
            question, answer = (
                d.held(["How many {u} for the {t}?", "Which number of {u} is given for the {t}?"]).format(
                    u=unit, t=one
                ),
                str(size[one]),
            )
        elif ask == 1:
            up = d.random() < 0.5
            question = f"Which {more if up else less}, the {one} or the {two}?"
            answer = one if (size[one] > size[two]) == up else two
        elif ask == 2:
            up = d.random() < 0.5
            question = f"Which of them {most if up else least}?"
            answer = (max if up else min)(things, key=size.__getitem__)
        else:
            question, answer = (
                f"True or false: the {one} {more} than the {two}.",
                "true" if size[one] > size[two] else "false",
            )
        found[question] = Pair(question, answer)
    return Episode(lines, list(found.values()))


def members(d: Dice, want: int) -> Episode:
    """Short lists of words under headings; is it in the list, which list has it, how many has it?"""
    heads = d.some(["shelf", "row", "tray", "bay", "hook", "bunk", "deck", "lane", "table", "page"], 1)[0]
    titles = [f"{heads} {n}" for n in d.some(range(1, 40), d.between(2, 4))]
    if d.random() < 0.4:
        titles = [f"the {word} team" for word in d.some(ADJECTIVES, len(titles))]
    words = d.words(sum(sizes := [d.between(1, 5) for _ in titles]))
    lists: dict[str, list[str]] = {}
    for title, size in zip(titles, sizes, strict=True):
        lists[title], words = words[:size], words[size:]
    lines = [f"{title[0].upper()}{title[1:]}: {', '.join(group)}" for title, group in lists.items()]
    found: dict[str, Pair] = {}
    for _ in range(want * 2):
        if len(found) == want:
            break
        title, ask = d.pick(titles), d.held([0, 0, 1, 1, 2, 3, 4])
        group, word = lists[title], d.pick(lists[title])
        if ask == 0:
            question, answer = (
                d.held(["Where is {w} listed?", "Which line has {w}?", "Under what is {w} written?"]).format(w=word),
                title,
            )
        elif ask == 1:
            yes = d.random() < 0.5
            other = [one for t in titles if t != title for one in lists[t]]
            shown = word if yes else d.pick(other)
            question, answer = (
                d.held(["Is {w} listed under {t}?", "Does {t} include {w}?"]).format(w=shown, t=title),
                "yes" if yes else "no",
            )
        elif ask == 2:
            question, answer = (
                d.held(["How many are listed under {t}?", "How many words stand after {t}?"]).format(t=title),
                str(len(group)),
            )
        elif ask == 3:
            question, answer = d.held(["What comes last under {t}?", "Last one under {t}?"]).format(t=title), group[-1]
        else:
            question, answer = d.held(["What is listed under {t}?", "Read out {t}."]).format(t=title), ", ".join(group)
        found[question] = Pair(question, answer)
    return Episode(lines, list(found.values()), prose=False)


_ROLES = [
    ("the smith", "the shop"),
    ("the guide", "the route"),
    ("the clerk", "the order"),
    ("the captain", "the cargo"),
    ("the baker", "the oven list"),
    ("the nurse", "the ward list"),
    ("the porter", "the keys"),
    ("the miller", "the sacks"),
]


def dialogue(d: Dice, want: int) -> Episode:
    """One reads a note aloud to another, who asks about it line by line."""
    one, two, *others = d.people(2 + d.between(3, 5))
    sort, values = _values(d, len(others))
    note = dict(zip(others, values, strict=True))
    role, matter = d.pick(_ROLES)
    opening = d.pick(
        [
            "{a} is {r}. {b} holds the note about {m}.",
            "{a} has mislaid the list, so {b} reads from a copy.",
            "{a} cannot read the note without glasses. {b} can.",
            "A note about {m} hangs on the door. {a} asks, {b} looks.",
            "{b} keeps {m} in a small book. {a} wants to know what it says.",
        ]
    ).format(a=one, b=two, r=role, m=matter)
    rows = d.pick([["{k}: {v}"], ["{k} has {s} {v}."], ["For {k} it says {v}."], ["{k} = {v}"], ["{v} for {k}."]])[0]
    lines = [opening, "", *[rows.format(k=k, v=v, s=sort) for k, v in note.items()], ""]
    for key in d.some(others, min(want + 1, len(others))):
        luck = d.random()
        if luck < 0.55:
            ask = d.pick(
                [
                    "What does it say for {k}?",
                    "And {k}?",
                    "What about {k}?",
                    "Can you look up {k} for me?",
                    "{k}, please.",
                ]
            )
            lines += [
                f"{one}: {ask.format(k=key)}",
                d.pick(
                    [f"{two}: {note[key]}.", f"{two}: It says {note[key]}.", f"{two}: {key}, let me see: {note[key]}."]
                ),
            ]
        elif luck < 0.8:
            lines += [f"{one}: Who has {note[key]}?", d.pick([f"{two}: {key}.", f"{two}: That is {key}."])]
        else:
            yes = d.random() < 0.5
            shown = note[key] if yes else d.pick([value for value in values if value != note[key]])
            lines += [
                f"{one}: Is it {shown} for {key}?",
                f"{two}: " + ("Yes." if yes else d.pick([f"No, {note[key]}.", f"No. For {key} it is {note[key]}."])),
            ]
    return Episode(lines, sort="raw")
