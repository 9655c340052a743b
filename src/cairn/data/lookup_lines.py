"""Families of the look-up text about lines: which ones are about X, keep them, drop them, count them, find the n-th.

happenings() ──> lines ──┬── is this line about X?      yes / no
                         ├── the lines about X          copied whole, in order, or "none"
                         └── how many, first, last      a number, a line
"""

from __future__ import annotations

from cairn.data.lookup_layout import Episode, Pair
from cairn.data.lookup_words import Dice

__all__ = ["counts", "drops", "edges", "filters", "happenings", "marks", "mentions", "positions"]

_DEEDS = [
    "{p} mended the {t} at the {l}.",
    "{p} hid the {t} behind the {l}.",
    "At the {l}, {p} found the {t}.",
    "{p} borrowed the {t} from {q}.",
    "{q} gave {p} the {t}.",
    "The {t} was sold to {p}.",
    "{p} swept the {l}.",
    "{p} painted the {t} for {q}.",
    "{p} met {q} near the {l}.",
    "{p} walked past the {l}.",
    "The {l} was closed.",
    "{p} waited for {q} by the {l}.",
    "Rain fell on the {l}.",
    "{p} carried the {t} to the {l}.",
    "{p} cleaned the {t}.",
    "{p} could not lift the {t}.",
    "{p} wrapped the {t} in cloth.",
    "The {t} fell from a shelf at the {l}.",
    "{p} showed {q} the way to the {l}.",
    "{p} wrote to {q} about the {t}.",
    "{p} left the {l} at noon.",
    "{p} slept at the {l}.",
    "{p} sang for {q}.",
    "{p} sharpened a pencil.",
    "{q} and {p} shared a loaf of bread.",
    "{p} came back from the {l}.",
    "Nobody at the {l} had seen the {t}.",
    "{p} weighed the {t} twice.",
    "The {t} stood at the {l} all day.",
    "{p} asked {q} for the {t}.",
    "{p} forgot the {t}.",
    "{p} mislaid the {t}.",
    "{p} took the {t} from the {l}.",
    "{q} paid {p} for the {t}.",
    "{p} locked the {l}.",
    "{p} waved to {q}.",
    "A letter for {p} came to the {l}.",
    "{p} ran from the {l} to the boats.",
    "{p} keeps the {t} dry.",
    "{p} set the {t} on a table.",
    "{p} thanked {q}.",
    "{p} is tired of the {t}.",
    "The {t} is not for sale.",
    "{p} drew a map of the {l}.",
    "{p} will visit {q} tomorrow.",
    "{p} has never been to the {l}.",
    "{p} went out.",
    "{p} rang the bell at the {l}.",
    "The roof of the {l} leaks.",
    "{p} repaired the roof of the {l}.",
    "{q} heard {p} at the {l}.",
    "{p} slid the {t} across to {q}.",
    "The {t} has a new owner, {p}.",
    "{p} laughed at {q}.",
    "{p} reached the {l}.",
    "{p} put the {t} down at the {l}.",
    "{p} has the {t}.",
    "{p} and {q} crossed the {l}.",
]


def happenings(d: Dice, count: int) -> tuple[list[str], list[str], list[str], list[str]]:
    """Draws different everyday sentences, and the people, things and places in them."""
    people, things, places = d.people(d.between(2, 4)), d.things(d.between(2, 3)), d.places(d.between(2, 3))
    lines: list[str] = []
    while len(lines) < count:
        one, two = d.some(people, 2)
        line = d.pick(_DEEDS).format(p=one, q=two, t=d.pick(things), l=d.pick(places))
        if line not in lines:
            lines.append(line)
    return lines, people, things, places


def _about(lines: list[str], topic: str) -> list[str]:
    return [line for line in lines if _has(line, topic)]


def _has(line: str, topic: str) -> bool:
    start = line.find(topic)
    while start >= 0:  # whole words only: "oar" is not in "roar"
        end = start + len(topic)
        if (start == 0 or not line[start - 1].isalnum()) and (end == len(line) or not line[end].isalnum()):
            return True
        start = line.find(topic, start + 1)
    return False


def _topic(d: Dice, people: list[str], things: list[str], places: list[str]) -> str:
    return d.pick(d.held([people, people, things, places]))


def mentions(d: Dice, want: int) -> Episode:
    """One line after another: is it about X?"""
    lines, people, things, places = happenings(d, want + d.between(2, 6))
    topic = _topic(d, people, things, places)
    yes, no = _about(lines, topic), [line for line in lines if not _has(line, topic)]
    chosen: list[str] = []
    while yes and no and len(chosen) < want:  # ends when one answer runs out, so that the next is never foregone
        pool = yes if d.random() < 0.5 else no
        chosen.append(pool.pop(int(d.random() * len(pool))))
    if not chosen:
        return mentions(d, want)
    say, deny = d.held([("yes", "no"), ("yes", "no"), ("yes", "no"), ("Yes", "No"), ("true", "false")])
    lowered = topic if topic in people else "the " + topic
    answers = [say if _has(line, topic) else deny for line in chosen]
    form = d.held([0, 1, 2, 3, 4])
    ask = d.held(
        [
            "Is this line about {x}?",
            "Does the line mention {x}?",
            "Does {x} appear in it?",
            "Is {x} named here?",
            "About {x}?",
        ]
    ).format(x=lowered)
    if form == 0:  # one line as the passage, the question below
        if want == 1:
            return Episode([chosen[0]], [Pair(ask, answers[0])])
        label, reply = d.pick([("Line", "Answer"), ("Sentence", "Mentioned"), ("Text", "Result"), ("Line", "About it")])
        out = [ask]
        for line, answer in zip(chosen, answers, strict=True):
            out += [f"{label}: {line}", f"{reply}: {answer}"]
        return Episode(out, sort="raw")
    if form == 1:
        about, reply = d.held([("About", "Answer"), ("Name", "Mentioned"), ("Topic", "On topic"), ("Wanted", "Here")])
        out = []
        every = [*people, *things, *places]
        for line in chosen:  # a new topic for each line: it has to be read again every time
            here, elsewhere = [x for x in every if _has(line, x)], [x for x in every if not _has(line, x)]
            topic = d.pick((here if d.random() < 0.5 else elsewhere) or here or elsewhere)
            out += [f"Line: {line}", f"{about}: {topic}", f"{reply}: {say if _has(line, topic) else deny}", ""]
        return Episode(out[:-1], sort="raw")
    if form == 2:
        head = d.pick(["Is each line about {x}?", "Mark every line: is it about {x}?", "Look for {x}."]).format(
            x=lowered
        )
        mark = d.pick([" - ", " -> ", " | ", " => "])
        return Episode(
            [head, *[line + mark + answer for line, answer in zip(chosen, answers, strict=True)]], sort="raw"
        )
    if form == 3:
        return Episode([f'"{line}" {ask} {answer}' for line, answer in zip(chosen, answers, strict=True)], sort="raw")
    pairs = []
    for line, answer in zip(chosen, answers, strict=True):
        pairs.append(Pair(f"Does line {lines.index(line) + 1} mention {lowered}?", answer))
    return Episode([f"{n}. {line}" for n, line in enumerate(lines, 1)], pairs, prose=False, marked=False)


def filters(d: Dice, want: int) -> Episode:
    """Copy the lines that mention X, in order; "none" if there are none."""
    lines, people, things, places = happenings(d, d.between(3, 7))
    none = d.held(["none", "none", "none", "nothing", "no line"])
    task = d.held(
        [
            "Copy the lines that mention {x}.",
            "Keep only the lines about {x}.",
            "Which lines speak of {x}?",
            "Write down every line with {x}, in order.",
            "Select what is said about {x}.",
            "Lines about {x}, please.",
        ]
    )
    pairs, asked = [], set()
    join = d.held(["\n", "\n", " "])
    for _ in range(min(want, 3)):
        topic = _topic(d, people, things, places) if d.random() < 0.85 else d.people(1)[0]
        if topic in asked:
            continue
        asked.add(topic)
        shown = "the " + topic if topic in things or topic in places else topic
        pairs.append(Pair(task.format(x=shown), join.join(_about(lines, topic)) or none))
    label = d.pick(["Lines kept", "Kept", "Found", "Lines", "Selected", "Result", "Copy"])
    if len(pairs) == 1 and d.style is None:
        pair = pairs[0]
        body = "\n".join(lines)
        head = d.pick(["Text", "Lines", "Notes", "Log", "Story"])
        kept = f"{label}:\n{pair.answer}" if "\n" in pair.answer else f"{label}: {pair.answer}"
        return Episode(
            [f"{head}:\n{body}", pair.question, kept] if d.random() < 0.5 else [pair.question, body, kept], sort="raw"
        )
    if d.style is None:
        out = [*lines]
        for pair in pairs:
            out += ["", pair.question, pair.answer]
        return Episode(out, sort="raw")
    return Episode(lines, pairs, prose=join == " ", marked=False)


def drops(d: Dice, want: int) -> Episode:
    """Copy all lines except those that mention X."""
    lines, people, things, places = happenings(d, d.between(3, 6))
    topic = _topic(d, people, things, places)
    shown = topic if topic in people else "the " + topic
    task = d.held(
        [
            "Leave out every line that mentions {x}.",
            "Drop the lines about {x} and copy the rest.",
            "Remove all lines with {x}.",
            "Strike out the lines in which {x} appears.",
        ]
    ).format(x=shown)
    rest = "\n".join([line for line in lines if not _has(line, topic)]) or "none"
    return Episode(lines, [Pair("", rest)], prose=False, marked=False, task=task)


def counts(d: Dice, want: int) -> Episode:
    """How many lines mention X, Y, Z?"""
    lines, people, things, places = happenings(d, d.between(3, 8))
    topics = d.mixed([*people, *things, *places])[: max(1, want)]
    form = d.held(
        [
            "How many lines mention {x}?",
            "In how many lines does {x} appear?",
            "Count the lines about {x}.",
            "Number of lines with {x}?",
        ]
    )
    pairs = []
    for topic in topics:
        shown = topic if topic in people else "the " + topic
        pairs.append(Pair(form.format(x=shown), str(len(_about(lines, topic)))))
    return Episode(lines, pairs, prose=d.held([True, False, False]))


def edges(d: Dice, want: int) -> Episode:
    """The first or last line that mentions X."""
    lines, people, things, places = happenings(d, d.between(4, 7))
    pairs: dict[str, Pair] = {}
    for _ in range(min(want, 4) * 2):
        topic = _topic(d, people, things, places)
        kept = _about(lines, topic)
        if len(pairs) == want or not kept:
            continue
        shown = topic if topic in people else "the " + topic
        last = d.held([False, True, True])
        word = "last" if last else "first"
        question = d.held(
            [
                "Copy the {w} line that mentions {x}.",
                "What is the {w} line about {x}?",
                "Which line is the {w} to name {x}?",
                "{W} line with {x}?",
            ]
        )
        question = question.format(w=word, W=word.capitalize(), x=shown)
        pairs[question] = Pair(question, kept[-1] if last else kept[0])
    return Episode(lines, list(pairs.values()), prose=False) if pairs else edges(d, want)


_ORDINALS = "first second third fourth fifth sixth seventh eighth ninth tenth".split()


def positions(d: Dice, want: int) -> Episode:
    """The n-th line, the line before or after another, the number of a line."""
    count = d.between(3, 6)
    lines = happenings(d, count)[0] if d.random() < 0.6 else [" ".join(d.words(d.between(2, 5))) for _ in range(count)]
    if len(set(lines)) < count:
        return positions(d, want)
    pairs: dict[str, Pair] = {}
    for _ in range(want * 2):
        if len(pairs) == min(want, 5):
            break
        spot, kind = d.between(0, count - 1), d.held([0, 0, 0, 1, 2, 3])
        if kind == 0:
            question, answer = (
                d.held(
                    [
                        "Copy the {n} line.",
                        "What is the {n} line?",
                        "Read the {n} line aloud.",
                        "Repeat the line that comes {n}.",
                    ]
                ).format(n=_ORDINALS[spot]),
                lines[spot],
            )
        elif kind == 1 and spot + 1 < count:
            question, answer = f'Which line comes after "{lines[spot]}"', lines[spot + 1]
        elif kind == 2 and spot:
            question, answer = f'Which line comes before "{lines[spot]}"', lines[spot - 1]
        else:
            question, answer = f'Which number has the line "{lines[spot]}"', str(spot + 1)
        question += "" if question[-1] in ".?" else "?"
        pairs[question] = Pair(question, answer)
    return Episode(lines, list(pairs.values()), prose=False, marked=kind == 0)


def marks(d: Dice, want: int) -> Episode:
    """Copy what stands between two marks, before a mark or after it."""
    start, end = d.pick(
        [("BEGIN", "END"), ("<<", ">>"), ("---", "---"), ("[open]", "[close]"), ("*", "*"), ("START", "STOP")]
    )
    lines, *_ = (
        happenings(d, d.between(4, 7))
        if d.random() < 0.6
        else ([" ".join(d.words(3)) for _ in range(d.between(4, 7))], 0)
    )
    low = d.between(0, len(lines) - 2)
    high = d.between(low + 1, len(lines))
    marked = [*lines[:low], start, *lines[low:high], end, *lines[high:]]
    same = start == end
    kind = d.held([0, 0, 0, 1, 2])
    if kind == 0 or same:
        task = "Copy the lines between the two marks." if same else f"Copy the lines between {start} and {end}."
        answer = "\n".join(lines[low:high])
    elif kind == 1:
        task, answer = f"Copy what comes before {start}.", "\n".join(lines[:low]) or "nothing"
    else:
        task, answer = f"Copy what comes after {end}.", "\n".join(lines[high:]) or "nothing"
    return Episode(marked, [Pair("", answer)], prose=False, marked=False, task=task)
