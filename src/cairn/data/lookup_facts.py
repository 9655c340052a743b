"""Families of the look-up text in which an answer follows from facts and a plain rule.

chains     taller, earlier, heavier: a > b, b > c    ──> a > c, the most, the least
compass    north, left of, above                      ──> the same told from the other side
sorts      a zib is a mel, mels love dups             ──> what does the zib love?
"""

from __future__ import annotations

from cairn.data.lookup_layout import Episode, Pair
from cairn.data.lookup_words import THINGS, Dice, a, joined, plural

__all__ = ["agreement", "chains", "compass", "kinds_of", "rules", "sameness"]

_SCALES = [
    ("taller", "shorter", "tallest", "shortest", 0),
    ("older", "younger", "oldest", "youngest", 0),
    ("faster", "slower", "fastest", "slowest", 0),
    ("louder", "quieter", "loudest", "quietest", 0),
    ("stronger", "weaker", "strongest", "weakest", 0),
    ("richer", "poorer", "richest", "poorest", 0),
    ("heavier", "lighter", "heaviest", "lightest", 1),
    ("longer", "shorter", "longest", "shortest", 1),
    ("wider", "narrower", "widest", "narrowest", 1),
    ("newer", "older", "newest", "oldest", 1),
    ("warmer", "colder", "warmest", "coldest", 1),
    ("cheaper", "dearer", "cheapest", "dearest", 1),
    ("brighter", "darker", "brightest", "darkest", 1),
    ("smoother", "rougher", "smoothest", "roughest", 1),
]


def chains(d: Dice, want: int) -> Episode:
    """Neighbours on a scale; compare any two, name the most and the least."""
    up, down, top, bottom, of_things = d.held(_SCALES)
    count = d.between(3, 5)
    items = [f"the {thing}" for thing in d.things(count)] if of_things else d.people(count)
    lines = []
    for high, low in zip(items, items[1:], strict=False):
        line = f"{high} is {up} than {low}." if d.random() < 0.6 else f"{low} is {down} than {high}."
        lines.append(line[0].upper() + line[1:])
    if d.random() < 0.7:
        lines = d.mixed(lines)
    pairs: dict[str, Pair] = {}
    for _ in range(want * 2):
        if len(pairs) == want:
            break
        one, two = d.some(items, 2)
        higher = items.index(one) < items.index(two)
        kind, upward = d.held([0, 0, 1, 1, 2]), d.random() < 0.5
        if kind == 0:
            question, answer = f"Is {one} {up if upward else down} than {two}?", "yes" if higher == upward else "no"
        elif kind == 1:
            question = f"{'Which' if of_things else 'Who'} is {up if upward else down}, {one} or {two}?"
            answer = one if higher == upward else two
        else:
            question = f"{'Which' if of_things else 'Who'} is the {top if upward else bottom} of all?"
            answer = items[0] if upward else items[-1]
        pairs[question] = Pair(question, answer)
    return Episode(lines, list(pairs.values()))


_SIDES = [
    ("north of", "south of"),
    ("east of", "west of"),
    ("to the left of", "to the right of"),
    ("uphill from", "downhill from"),
    ("above", "below"),
    ("in front of", "behind"),
    ("upstream of", "downstream of"),
    ("ahead of", "behind"),
]


def compass(d: Dice, want: int) -> Episode:
    """Places told by their side; turn the relation round, name the neighbour."""
    places = [f"the {place}" for place in d.places(d.between(3, 5))]
    ties, lines = [], []
    sides = d.some(_SIDES[:2], 2) if d.random() < 0.6 else [d.pick(_SIDES[2:])]
    for spot, (one, two) in enumerate(zip(places, places[1:], strict=False)):
        side = sides[spot % len(sides)]
        if d.random() < 0.5:
            side = side[::-1]
        ties.append((one, side, two))
        line = d.pick(["{a} is {s} {b}.", "{a} lies {s} {b}.", "{a} stands {s} {b}."]).format(a=one, s=side[0], b=two)
        lines.append(line[0].upper() + line[1:])
    if d.random() < 0.5:
        order = d.mixed(range(len(ties)))
        lines = [lines[n] for n in order]
    pairs: dict[str, Pair] = {}
    for _ in range(want * 2):
        if len(pairs) == want:
            break
        (one, (side, back), two), kind = d.pick(ties), d.held([0, 0, 1, 1, 2, 2])
        if kind == 0:
            question, answer = f"Is {one} {side} {two}?", "yes"
            if d.random() < 0.5:
                question, answer = (
                    (f"Is {one} {back} {two}?", "no") if d.random() < 0.6 else (f"Is {two} {side} {one}?", "no")
                )
            elif d.random() < 0.5:
                question = f"Is {two} {back} {one}?"
        elif kind == 1:
            question, answer = f"From {one}, on which side is {two}?", back.removesuffix(" of").removesuffix(" from")
            if sides[0] not in _SIDES[:2]:
                question, answer = f"Finish the line: {two} is ... {one}.", back
            else:
                question = d.held(
                    [f"Which way from {one} is {two}?", f"In which direction does {two} lie, seen from {one}?"]
                )
        else:
            if len(_beyond(ties, (side, back), two)) > 1:  # more than one place follows: no single answer
                continue
            question, answer = (
                d.held(["What is {s} {b}?", "Which place is {s} {b}?"]).format(s=side, b=two),
                one.removeprefix("the "),
            )
        pairs[question] = Pair(question, answer)
    return Episode(lines, list(pairs.values())) if pairs else compass(d, want)


def _beyond(ties: list[tuple[str, tuple[str, str], str]], side: tuple[str, str], start: str) -> set[str]:
    """Returns every place that follows to be on that side of `start`, over any number of steps."""
    found: set[str] = set()
    edge = {start}
    while edge:
        edge = {x for x, s, y in ties if y in edge and s == side} | {
            y for x, s, y in ties if x in edge and s == side[::-1]
        }
        edge -= found
        found |= edge
    return found


_BONDS = [
    ("like", "likes", "What does {p} like?"),
    ("live near", "lives near", "What does {p} live near?"),
    ("carve", "carves", "What does {p} carve?"),
    ("collect", "collects", "What does {p} collect?"),
    ("need", "needs", "What does {p} need?"),
    ("guard", "guards", "What does {p} guard?"),
    ("avoid", "avoids", "What does {p} avoid?"),
    ("build", "builds", "What does {p} build?"),
]


def kinds_of(d: Dice, want: int) -> Episode:
    """Made-up kinds with habits, and members of each; what does the member do?"""
    count = d.between(2, 4)
    kinds = d.made_ups(count)
    bond = d.held(_BONDS)
    objects = [plural(word) for word in (d.made_ups(count) if d.random() < 0.4 else d.some(THINGS, count))]
    if len(set(objects) | set(kinds)) < 2 * count:
        return kinds_of(d, want)
    lines = [
        d.pick(["{K} {v} {o}.", "All {k} {v} {o}.", "Every {s} {w} {o}."]).format(
            K=plural(k).capitalize(), k=plural(k), s=k, v=bond[0], w=bond[1], o=o
        )
        for k, o in zip(kinds, objects, strict=True)
    ]
    members = d.people(d.between(count, count + 1))
    of: dict[str, int] = {}
    subs = d.made_ups(2)
    for member in members:
        spot = d.between(0, count - 1)
        of[member] = spot
        if d.random() < 0.15 and subs and subs[-1] not in kinds:  # one step more: a member of a kind of the kind
            sub = subs.pop()
            lines += [f"{a(sub).capitalize()} is a kind of {kinds[spot]}.", f"{member} is {a(sub)}."]
        else:
            lines.append(
                d.pick(["{m} is {k}.", "{m} belongs to the {ks}."]).format(
                    m=member, k=a(kinds[spot]), ks=plural(kinds[spot])
                )
            )
    if d.random() < 0.6:
        lines = d.mixed(lines)
    pairs: dict[str, Pair] = {}
    for _ in range(want * 2):
        if len(pairs) == want:
            break
        member, kind = d.pick(members), d.held([0, 0, 0, 1, 2])
        spot = of[member]
        if kind == 0:
            question, answer = bond[2].format(p=member), objects[spot]
        elif kind == 1:
            yes = d.random() < 0.5
            shown = objects[spot] if yes else d.pick([o for o in objects if o != objects[spot]])
            question, answer = f"Does {member} {bond[0]} {shown}?", "yes" if yes else "no"
        else:
            here = [one for one in members if of[one] == spot]
            question, answer = f"Who {bond[1]} {objects[spot]}?", joined(here)
        pairs[question] = Pair(question, answer)
    return Episode(lines, list(pairs.values()))


def sameness(d: Dice, want: int) -> Episode:
    """Two words, lists or lines: same or different?"""
    ask, yes, no = d.held(
        [
            ("Are they the same?", "yes", "no"),
            ("Same or different?", "same", "different"),
            ("Do the two agree?", "yes", "no"),
            ("Is the second a true copy of the first?", "yes", "no"),
            ("Equal?", "yes", "no"),
        ]
    )
    out = [ask] if want > 1 else []
    one_label, two_label, reply = d.held(
        [
            ("First", "Second", "Answer"),
            ("Left", "Right", "Result"),
            ("Original", "Copy", "Verdict"),
            ("A", "B", "Check"),
        ]
    )
    for _ in range(want):
        words = d.words(d.between(1, 4))
        other, same = list(words), d.random() < 0.5
        if not same:
            spot = d.between(0, len(words) - 1)
            luck = d.random()
            if luck < 0.4 and len(words) > 1:
                other[0], other[-1] = other[-1], other[0]
            else:
                other[spot] = next(word for word in d.words(6) if word not in words)
        out += [f"{one_label}: {' '.join(words)}", f"{two_label}: {' '.join(other)}"]
        if want == 1:
            out.append(ask)
        out.append(f"{reply}: {yes if same else no}")
    return Episode(out, sort="raw")


_CLAIMS = [
    "{p} has the {t}",
    "the {t} is broken",
    "{p} is at the {l}",
    "the {l} is open",
    "{p} is awake",
    "{p} knows the way to the {l}",
    "the {t} is ready",
    "{p} can swim",
    "the {l} is flooded",
    "{p} owns the {l}",
    "the {t} is heavy",
    "{p} sings well",
]


def agreement(d: Dice, want: int) -> Episode:
    """Claims told as true or as not so; is this one said, denied, or not said at all?"""
    people, things, places = d.people(4), d.things(4), d.places(4)
    claims: list[str] = []
    for form in d.some(_CLAIMS, d.between(5, 7)):
        claims.append(form.format(p=d.pick(people), t=d.pick(things), l=d.pick(places)))
    told = claims[: d.between(3, len(claims) - 1)]
    truth = {claim: d.random() < 0.5 for claim in told}
    lines = []
    for claim, held in truth.items():
        line = (
            claim
            if held
            else d.pick(
                [
                    "it is not true that " + claim,
                    claim.replace(" is ", " is not ", 1) if " is " in claim else "nobody says any more that " + claim,
                ]
            )
        )
        if line.startswith("nobody"):
            line = "it is false that " + claim
        lines.append(line[0].upper() + line[1:] + ".")
    unsaid = d.held(["not said", "unknown", "not known", "it does not say"])
    pairs: dict[str, Pair] = {}
    for _ in range(want * 2):
        if len(pairs) == want:
            break
        luck = d.random()
        pool = (
            [c for c in told if truth[c]]
            if luck < 0.44
            else [c for c in told if not truth[c]]
            if luck < 0.8
            else claims[len(told) :]
        )
        if not pool:
            continue
        claim = d.pick(pool)
        question = d.held(["Is it true that {c}?", "Does the text say that {c}?", "True that {c}?"])
        if question.startswith("Does") and claim not in truth:
            answer = "no"
        else:
            answer = ("yes" if truth[claim] else "no") if claim in truth else unsaid
        question = question.format(c=claim)
        pairs[question] = Pair(question, answer)
    return Episode(lines, list(pairs.values())) if pairs else agreement(d, want)


def rules(d: Dice, want: int) -> Episode:
    """A house rule that ties a sign to a deed; say what to do at a sign, or what the sign was."""
    signs = d.pick(
        [
            [f"{c} flag" for c in d.some("red blue green yellow black white brown grey orange violet".split(), 4)],
            [f"{n} bells" for n in d.some("two three four five six seven eight".split(), 4)],
            [f"{s} on the door" for s in d.some("ring,cross,star,circle,arrow,square,spiral,crown".split(","), 4)],
            [f"mark {m}" for m in d.made_ups(4)],
        ]
    )
    place = d.places(4)
    deeds = d.some(
        [
            "close the gate",
            "wake the cook",
            "bring water",
            "light the lamps",
            "ring the bell",
            "count the sacks",
            "feed the goats",
            "fetch a rope",
            "call the ferry",
            "wait by the {l}",
            "meet at the {l}",
            "run to the {l}",
            "lock the {l}",
            "sweep the {l}",
            "say nothing",
            "sing loudly",
            "hide the {t}",
            "clean the {t}",
        ],
        4,
    )
    deeds = [deed.format(l=place[n], t=d.things(1)[0]) for n, deed in enumerate(deeds)]
    count = d.between(3, 4)
    form = d.held(["Rule for {s}: {w}.", "At {s}, {w}.", "When you meet {s}, {w}.", "For {s}: {w}."])
    lines = []
    for sign, deed in zip(signs[:count], deeds, strict=False):
        shown = sign if sign.startswith("mark") or "bells" in sign else a(sign)
        line = form.format(s=shown, w=deed)
        lines.append(line[0].upper() + line[1:])
    pairs: dict[str, Pair] = {}
    for spot in d.some(range(count), min(want, count)):
        shown = signs[spot] if signs[spot].startswith("mark") or "bells" in signs[spot] else a(signs[spot])
        if d.held([0, 0, 1]) == 0:
            question = d.held(["What must one do at {s}?", "What follows {s}?", "What is the rule for {s}?"]).format(
                s=shown
            )
            answer = deeds[spot]
        else:
            question, answer = f'Which sign means "{deeds[spot]}"?', shown
        pairs[question] = Pair(question, answer)
    return Episode(lines, list(pairs.values()))
