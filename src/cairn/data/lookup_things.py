"""Families of the look-up text in which things change hands or place, alone or inside one another.

things ──lie at──> places          people ──take, drop, hand on, trade──> things
   └──inside── boxes ──inside── boxes, standing at a place
"""

from __future__ import annotations

from cairn.data.lookup_layout import Episode, Pair
from cairn.data.lookup_tracking import ARRIVE, IDLE, WHERE_PERSON, placed, said, timed
from cairn.data.lookup_words import BOXES, Dice, a, joined

__all__ = ["carrying", "containers", "handing", "swaps", "two_hop"]

_WHERE_THING = [
    "Where is the {x} now?",
    "Where would you find the {x}?",
    "Where did the {x} end up?",
    "Which place is the {x} at?",
    "At which place does the {x} rest now?",
    "Where must one look for the {x}?",
    "Tell me where the {x} is.",
]
_TAKE = [
    "{p} took hold of the {t}.",
    "{p} lifted the {t} and kept it.",
    "{p} slung the {t} over one shoulder.",
    "{p} packed the {t} to carry along.",
    "{p} has the {t} from now on.",
    "{p} found the {t} and held on to it.",
]
_DROP = [
    "{p} set the {t} down.",
    "{p} laid the {t} on the ground.",
    "{p} parted with the {t} on the spot.",
    "{p} put the {t} aside and let it lie.",
    "{p} stood the {t} in a corner and let go of it.",
]
_LIES = [
    "The {t} lay at the {l}.",
    "The {t} was kept at the {l}.",
    "At the {l} stood the {t}.",
    "Someone had left the {t} at the {l}.",
]
_PASS = [
    "{p} passed the {t} on to {q}.",
    "The {t} changed hands from {p} to {q}.",
    "{q} took over the {t} from {p}.",
    "{p} lent the {t} to {q}.",
    "{q} was trusted with the {t} by {p}.",
    "{p} let {q} have the {t}.",
    "{p} sold {q} the {t}.",
    "From {p} the {t} came to {q}.",
    "{q} asked {p} for the {t} and was given it.",
    "{p} sent the {t} over to {q}.",
]
_FIRST_HOLDER = [
    "The {t} belonged to {p} at first.",
    "{p} had the {t}.",
    "{p} owned the {t}.",
    "{p} came with the {t}.",
    "In the beginning the {t} was with {p}.",
]
_WHO_HAS = [
    "Who has the {t} now?",
    "Who holds the {t}?",
    "With whom is the {t} now?",
    "Who ended up with the {t}?",
    "Who was the last to get the {t}?",
    "Whose hands is the {t} in?",
    "Name the one who has the {t}.",
]


def handing(d: Dice, want: int) -> Episode:
    """Things pass from hand to hand; who has each now, who before, who first?"""
    people, things = d.people(d.between(3, 5)), d.things(d.between(1, 3))
    chain = {thing: [d.pick(people)] for thing in things}
    lines = [said(d, _FIRST_HOLDER, p=chain[thing][0], t=thing) for thing in things]
    for _ in range(d.between(2, 4 + want)):
        if d.random() < 0.15:
            lines.append(said(d, IDLE, p=d.pick(people)))
            continue
        thing = d.pick(things)
        holder = chain[thing][-1]
        taker = d.pick([person for person in people if person != holder])
        lines.append(timed(d, said(d, _PASS, p=holder, q=taker, t=thing), people))
        chain[thing].append(taker)
    found: dict[str, Pair] = {}
    for _ in range(want * 2):
        if len(found) == want:
            break
        thing, kind = d.pick(things), d.held([0, 0, 0, 1, 2, 3, 4])
        path = chain[thing]
        if kind == 1 and (len(path) < 2 or path.count(path[-1]) > 1):
            kind = 0
        if kind == 0:
            question, answer = d.held(_WHO_HAS).format(t=thing), path[-1]
        elif kind == 1:
            question = d.held(["Who had the {t} just before {q}?", "From whom did {q} get the {t}?"])
            question, answer = question.format(t=thing, q=path[-1]), path[-2]
        elif kind == 2:
            question, answer = (
                d.held(["Who had the {t} first?", "Who was the first owner of the {t}?"]).format(t=thing),
                path[0],
            )
        elif kind == 3:
            yes = d.random() < 0.5
            person = path[-1] if yes else d.pick([one for one in people if one != path[-1]])
            question = d.held(["Does {q} have the {t} now?", "Is the {t} with {q} now?"]).format(t=thing, q=person)
            answer = "yes" if yes else "no"
        else:
            question = d.held(["How many times did the {t} change hands?", "How often was the {t} passed on?"])
            question, answer = question.format(t=thing), str(len(path) - 1)
        found[question] = Pair(question, answer)
    return Episode(lines, list(found.values()))


def two_hop(d: Dice, want: int) -> Episode:
    """Things are carried about; where is the thing, through the person who has it?"""
    people, places, things = d.people(d.between(2, 3)), d.places(d.between(3, 5)), d.things(d.between(1, 3))
    at = {person: d.pick(places) for person in people}
    holder: dict[str, str] = {}
    spots = {thing: [at[d.pick(people)]] for thing in things}
    lines = [said(d, ARRIVE, p=person, l=at[person]) for person in people]
    lines += [said(d, _LIES, t=thing, l=spots[thing][0]) for thing in things]
    if d.random() < 0.5:
        lines = d.mixed(lines)
    for _ in range(d.between(3, 5 + want)):
        person, thing, luck = d.pick(people), d.pick(things), d.random()
        if thing not in holder and spots[thing][-1] == at[person] and luck < 0.8:
            lines.append(said(d, _TAKE, p=person, t=thing))
            holder[thing] = person
        elif holder.get(thing) == person and luck < 0.3:
            lines.append(said(d, _DROP, p=person, t=thing))
            del holder[thing]
        elif holder.get(thing) == person and luck < 0.5:
            other = d.pick([one for one in people if one != person])
            if at[other] == at[person]:
                lines.append(said(d, _PASS[:7], p=person, q=other, t=thing))
                holder[thing] = other
        elif luck > 0.92:
            lines.append(said(d, IDLE, p=person))
        else:
            place = d.pick([place for place in places if place != at[person]])
            lines.append(timed(d, said(d, ARRIVE, p=person, l=place), people))
            at[person] = place
            for one, by in holder.items():
                if by == person:
                    spots[one].append(place)
    found: dict[str, Pair] = {}
    short = d.random() if d.style is None else d.style
    for _ in range(want * 2):
        if len(found) == want:
            break
        thing, kind = d.pick(things), d.held([0, 0, 0, 0, 1, 2, 2, 3, 4])
        path = spots[thing]
        if kind == 0 or (kind == 2 and (len(path) < 2 or path.count(path[-1]) > 1)):
            question, answer = d.held(_WHERE_THING).format(x=thing), placed(d, path[-1], short)
        elif kind == 1:
            question, answer = d.held(_WHO_HAS[:3]).format(t=thing), holder.get(thing, "nobody")
        elif kind == 2:
            question = d.held(
                ["Where was the {t} before it came to the {l}?", "The {t} reached the {l} from which place?"]
            )
            question, answer = question.format(t=thing, l=path[-1]), placed(d, path[-2], short)
        elif kind == 3:
            yes = d.random() < 0.5
            place = path[-1] if yes else d.pick([place for place in places if place != path[-1]])
            question = d.held(["Is the {t} at the {l} now?", "Would you find the {t} at the {l}?"]).format(
                t=thing, l=place
            )
            answer = "yes" if yes else "no"
        else:
            person = d.pick(people)
            question, answer = d.held(WHERE_PERSON).format(x=person), placed(d, at[person], short)
        found[question] = Pair(question, answer)
    return Episode(lines, list(found.values()))


def carrying(d: Dice, want: int) -> Episode:
    """People load and unload things; what, and how many, does each have?"""
    people, things = d.people(d.between(2, 3)), d.things(d.between(3, 5))
    load: dict[str, list[str]] = {person: [] for person in people}
    free, lines = list(things), []
    for _ in range(d.between(4, 6 + want)):
        person = d.pick(people)
        if free and d.random() < 0.6:
            thing = free.pop(d.between(0, len(free) - 1))
            load[person].append(thing)
            lines.append(
                said(
                    d,
                    _TAKE + ["{p} put the {t} into a bag and shouldered it.", "{p} loads the {t}."],
                    p=person,
                    t=thing,
                )
            )
        elif load[person]:
            thing = load[person].pop(d.between(0, len(load[person]) - 1))
            free.append(thing)
            lines.append(said(d, _DROP + ["{p} unloads the {t}.", "{p} no longer carries the {t}."], p=person, t=thing))
    if not lines:
        return carrying(d, want)
    numbers = ["none", "one", "two", "three", "four", "five"]
    found: dict[str, Pair] = {}
    for _ in range(want * 2):
        if len(found) == want:
            break
        person, kind = d.pick(people), d.held([0, 0, 1, 1, 2])
        has = load[person]
        if kind == 0:
            question = d.held(
                ["What does {p} carry now?", "List what {p} has.", "What is {p} left with?", "Name {p}'s load."]
            )
            question, answer = question.format(p=person), joined(has, d.held([" and ", ", "])) if has else "nothing"
        elif kind == 1:
            question = d.held(["How many things does {p} have now?", "How many things is {p} left with?"]).format(
                p=person
            )
            answer = numbers[len(has)]
        else:
            yes = d.random() < 0.5
            loaded = [one for one in people if load[one]]
            if not loaded or any(len(load[one]) == len(things) for one in people):
                continue  # one of the two answers would be impossible
            person = d.pick(loaded if yes else people)
            thing = d.pick(load[person] if yes else [one for one in things if one not in load[person]])
            question, answer = (
                d.held(["Does {p} still have the {t}?", "Is the {t} with {p}?"]).format(p=person, t=thing),
                "yes" if yes else "no",
            )
        found[question] = Pair(question, answer)
    if not found:
        return carrying(d, want)
    return Episode(lines, list(found.values()))


def containers(d: Dice, want: int) -> Episode:
    """Things in boxes in boxes, some moved; in which box, and at which place, is the thing?"""
    boxes, places, things = d.some(BOXES, d.between(3, 4)), d.places(3), d.things(d.between(2, 4))
    stands = {box: d.pick(places) for box in boxes[:2]}
    inside = {box: d.pick(boxes[:2]) for box in boxes[2:]}
    holds = {thing: d.pick(boxes) for thing in things}
    lines = [
        d.pick(["The {b} stands at the {l}.", "At the {l} there is {ab}.", "Look for the {b} at the {l}."]).format(
            b=box, ab=a(box), l=place
        )
        for box, place in stands.items()
    ]
    lines += [
        d.pick(["The {b} is inside the {c}.", "Inside the {c} is {ab}.", "The {c} holds the {b}."]).format(
            b=box, ab=a(box), c=outer
        )
        for box, outer in inside.items()
    ]
    lines += [
        d.pick(["The {t} is in the {b}.", "In the {b} lies the {t}.", "Someone put the {t} into the {b}."]).format(
            t=thing, b=box
        )
        for thing, box in holds.items()
    ]
    if d.random() < 0.5:
        lines = d.mixed(lines)
    for _ in range(d.between(0, 3)):
        thing = d.pick(things)
        box = d.pick([box for box in boxes if box != holds[thing]])
        lines.append(
            d.pick(
                [
                    "The {t} was taken out of the {o} and put into the {b}.",
                    "The {t} is no longer in the {o}; it is in the {b}.",
                    "From the {o} the {t} was shifted to the {b}.",
                ]
            ).format(t=thing, o=holds[thing], b=box)
        )
        holds[thing] = box
    if d.random() < 0.3:
        box = boxes[0]
        stands[box] = d.pick([place for place in places if place != stands[box]])
        lines.append(
            d.pick(["The {b} was carried to the {l}.", "The {b} now stands at the {l}."]).format(b=box, l=stands[box])
        )
    found: dict[str, Pair] = {}
    for _ in range(want * 2):
        if len(found) == want:
            break
        thing, kind = d.pick(things), d.held([0, 0, 1, 1, 2, 3])
        box = holds[thing]
        place = stands[inside.get(box, box)]
        if kind == 0:
            question, answer = (
                d.held(["What is the {t} in?", "What directly holds the {t}?", "What holds the {t} itself?"]).format(
                    t=thing
                ),
                box,
            )
        elif kind == 1:
            question, answer = d.held(_WHERE_THING[:4] + ["At which place is the {x}?"]).format(x=thing), place
        elif kind == 2:
            has = [one for one in things if holds[one] == box]
            question, answer = (
                d.held(["What lies directly in the {b}?", "Which things are directly in the {b}?"]).format(b=box),
                joined(has),
            )
        else:
            yes = d.random() < 0.5
            shown = place if yes else d.pick([one for one in places if one != place])
            question, answer = (
                d.held(["Is the {t} at the {l}?", "Can the {t} be found at the {l}?"]).format(t=thing, l=shown),
                "yes" if yes else "no",
            )
        found[question] = Pair(question, answer)
    return Episode(lines, list(found.values()))


def swaps(d: Dice, want: int) -> Episode:
    """Things on pegs or with people trade places; what is where in the end?"""
    things = d.things(d.between(3, 4))
    keepers = d.people(len(things)) if d.random() < 0.6 else [f"peg {n}" for n in d.some(range(1, 30), len(things))]
    named = not keepers[0].startswith("peg")
    has = dict(zip(keepers, things, strict=True))
    if named:
        lines = [
            d.pick(["{k} brought the {t}.", "{k} had the {t}.", "{k} started with the {t}."]).format(k=k, t=t)
            for k, t in has.items()
        ]
    else:
        lines = [d.pick(["The {t} hangs on {k}.", "On {k} hangs the {t}."]).format(k=k, t=t) for k, t in has.items()]
    for _ in range(d.between(1, 3)):
        one, two = d.some(keepers, 2)
        if named:
            lines.append(
                d.pick(
                    ["{a} and {b} traded.", "{a} and {b} swapped what they had.", "{a} and {b} exchanged their things."]
                ).format(a=one, b=two)
            )
        else:
            lines.append(
                d.pick(["The things on {a} and {b} were swapped.", "What hung on {a} and on {b} changed over."]).format(
                    a=one, b=two
                )
            )
        has[one], has[two] = has[two], has[one]
    found: dict[str, Pair] = {}
    for _ in range(want * 2):
        if len(found) == want:
            break
        keeper = d.pick(keepers)
        if d.held([0, 1]):
            question = d.held(
                ["What does {k} have now?", "What did {k} end up with?"]
                if named
                else ["What hangs on {k} now?", "What is on {k} in the end?"]
            )
            question, answer = question.format(k=keeper), has[keeper]
        else:
            question = d.held(
                _WHO_HAS[:4] if named else ["Where does the {t} hang now?", "Which peg is the {t} on now?"]
            )
            question, answer = question.format(t=has[keeper]), keeper
        found[question] = Pair(question, answer)
    return Episode(lines, list(found.values()))
