"""Families of the look-up text about words as such: repeat, reverse, pick, swap, sort, continue, spell.

    random words ──> line ──> the same line, once changed by a stated rule

The words are drawn at random, so the only way to a low loss is to copy from the context (induction).
"""

from __future__ import annotations

from cairn.data.lookup_layout import Episode, Pair
from cairn.data.lookup_lines import happenings
from cairn.data.lookup_words import NAMES, RARE, THINGS, Dice, joined

__all__ = ["echoes", "induction", "picks", "rewrites", "sorts", "spelling", "substitutes"]

_ORDINALS = "first second third fourth fifth sixth seventh eighth".split()


def _line(d: Dice, count: int, sep: str) -> tuple[list[str], str]:
    words = d.words(count)
    return words, sep.join(words)


def echoes(d: Dice, want: int) -> Episode:
    """Repeat lines: once, twice, in quotes, or after a named speaker."""
    out: list[str] = []
    ask, reply = d.pick(
        [
            ("Say", "Said"),
            ("Line", "Copy"),
            ("Write", "Written"),
            ("Read", "Repeat"),
            ("In", "Out"),
            ("Call", "Echo"),
            ("Source", "Copy"),
            ("Repeat", "Answer"),
        ]
    )
    if d.random() < 0.4:
        one, two = d.people(2)
        ask, reply = f"{one}", f"{two}"
        out.append(
            d.pick(
                [
                    f"{two} repeats every word that {one} says.",
                    f"Whatever {one} says, {two} says it too.",
                    f"{two} copies {one}.",
                ]
            )
        )
    for _ in range(want + 1):
        line = happenings(d, 1)[0][0] if d.random() < 0.5 else _line(d, d.between(2, 7), d.pick([" ", ", "]))[1]
        out += [f"{ask}: {line}", f"{reply}: {line}"]
    return Episode(out, sort="raw")


def picks(d: Dice, want: int) -> Episode:
    """The n-th, last, next or previous word of a line; is a word in it?"""
    sep = d.pick([" ", ", ", " ", " - ", " / "])
    words, line = _line(d, d.between(3, 8), sep)
    if sep == ", " and d.random() < 0.3:
        line = joined(words)
    pairs: dict[str, Pair] = {}
    for _ in range(want * 2):
        if len(pairs) == want:
            break
        spot, kind = d.between(0, len(words) - 1), d.held([0, 0, 1, 2, 3, 4, 5])
        word = words[spot]
        if kind == 0:
            question, answer = (
                d.held(
                    ["What is the {n} word?", "Give the {n} word.", "Which word is {n}?", "Word number {m}?"]
                ).format(n=_ORDINALS[spot], m=spot + 1),
                word,
            )
        elif kind == 1:
            last = d.random() < 0.7
            question, answer = (
                ("Which word is last?", words[-1]) if last else ("Which word is the last but one?", words[-2])
            )
        elif kind == 2 and spot + 1 < len(words):
            question, answer = (
                d.held(["Which word follows {w}?", "What comes right after {w}?"]).format(w=word),
                words[spot + 1],
            )
        elif kind == 3 and spot:
            question, answer = (
                d.held(["Which word stands before {w}?", "What comes right before {w}?"]).format(w=word),
                words[spot - 1],
            )
        elif kind == 4:
            yes = d.random() < 0.5
            shown = word if yes else d.pick([one for one in d.words(len(words) + 1) if one not in words])
            question, answer = (
                d.held(["Is {w} in the line?", "Does the line hold the word {w}?"]).format(w=shown),
                "yes" if yes else "no",
            )
        else:
            question, answer = "How many words are there?", str(len(words))
        pairs[question] = Pair(question, answer)
    return Episode([line], list(pairs.values()))


def rewrites(d: Dice, want: int) -> Episode:
    """Reverse a list, drop a word, double it, join two lists, keep the first or last few."""
    sep = d.pick([" ", ", ", " "])
    rule = d.held(["reverse", "reverse", "reverse", "drop", "twice", "join", "first", "last", "ends"])
    count = 1 if want == 1 else d.between(2, 5)
    forms = {
        "reverse": ["Write the list backwards.", "Reverse the order.", "Start from the end.", "Back to front, please."],
        "drop": ["Leave out the {n} word.", "Copy all but the {n} word."],
        "twice": ["Write every word two times.", "Double each word."],
        "join": ["Join the two lists, left one first.", "Put both lists together in order."],
        "first": ["Keep the first {m} words.", "Copy only the first {m} words."],
        "last": ["Keep the last {m} words.", "Copy only the last {m} words."],
        "ends": ["Swap the first and the last word.", "Let the first and the last word change places."],
    }
    spot = d.held([0, 1, 2])
    task = d.held(forms[rule]).format(n=_ORDINALS[spot], m=["two", "three", "two"][spot])
    lines, results = [], []
    for _ in range(count):
        words, line = _line(d, d.between(3, 6), sep)
        if rule == "reverse":
            words = words[::-1]
        elif rule == "drop":
            words = words[:spot] + words[spot + 1 :]
        elif rule == "twice":
            words = [word for word in words for _ in "12"]
        elif rule == "join":
            more, second = _line(d, d.between(2, 4), sep)
            words, line = words + more, f"{line} + {second}"
        elif rule == "first":
            words = words[: [2, 3, 2][spot]]
        elif rule == "last":
            words = words[-[2, 3, 2][spot] :]
        else:
            words = [words[-1], *words[1:-1], words[0]]
        lines.append(line)
        results.append(sep.join(words))
    if count == 1:
        return Episode(lines, [Pair("", results[0])], task=task, marked=False)
    arrow = d.pick([" -> ", " => ", " becomes ", " = "])
    return Episode([task, *[line + arrow + done for line, done in zip(lines, results, strict=True)]], sort="raw")


def substitutes(d: Dice, want: int) -> Episode:
    """Copy lines with one name or thing put in place of another."""
    lines, people, things, _ = happenings(d, d.between(2, min(5, 2 + want)))
    if d.held([0, 1]):
        old, new = d.pick(people), next(one for one in d.people(9) if one not in people)
    else:
        old, new = d.pick(things), next(one for one in d.things(9) if one not in things)
    if not any(old in line for line in lines):
        return substitutes(d, want)
    task = d.held(
        [
            "Write {n} in place of {o}.",
            "Copy the text, but change {o} to {n}.",
            "Replace {o} with {n}.",
            "Every {o} becomes {n}.",
        ]
    ).format(o=old, n=new)
    done = []
    for line in lines:
        head, *rest = line.split(old)
        for part in rest:  # whole words only
            cut = (head and head[-1].isalnum()) or (part and part[0].isalnum())
            head += (old if cut else new) + part
        done.append(head)
    return Episode(lines, [Pair("", "\n".join(done))], prose=False, marked=False, task=task)


def sorts(d: Dice, want: int) -> Episode:
    """Put some words into an order that is given first; which of two comes first in it?"""
    order = d.words(d.between(5, 8))
    head = d.pick(
        [
            "The order is {x}.",
            "Always keep to this order: {x}.",
            "Order of calling: {x}.",
            "They stand in line so: {x}.",
        ]
    )
    pairs: dict[str, Pair] = {}
    for _ in range(want * 2):
        if len(pairs) == want:
            break
        if d.held([0, 0, 1]):
            one, two = d.some(order, 2)
            question = d.held(
                ["Which comes first, {a} or {b}?", "Who or what is earlier in the order, {a} or {b}?"]
            ).format(a=one, b=two)
            answer = min(one, two, key=order.index)
        elif d.held([0, 0, 0, 1]):
            one, two = d.some(order, 2)
            question = d.held(["Is {a} before {b}?", "Does {a} come earlier than {b}?"]).format(a=one, b=two)
            answer = "yes" if order.index(one) < order.index(two) else "no"
        else:
            part = d.some(order, d.between(2, 4))
            question = d.held(["Sort these: {x}.", "Put into order: {x}.", "Arrange {x}."]).format(x=", ".join(part))
            answer = ", ".join(sorted(part, key=order.index))
        pairs[question] = Pair(question, answer)
    return Episode([head.format(x=", ".join(order))], list(pairs.values()))


def induction(d: Dice, want: int) -> Episode:
    """A random sequence, told again (whole, or from some point on), so that the second telling must be copied."""
    words = d.words(d.between(4, 10))
    form, sep = d.between(0, 4), d.pick([" ", ", ", "\n", " - "])
    if form == 0:
        return Episode([sep.join(words * d.between(2, 3))], sort="raw")
    if form == 1:
        names = d.people(2)
        return Episode(
            [f"{names[0]} called out: {', '.join(words)}.", f"{names[1]} called back: {', '.join(words)}."], sort="raw"
        )
    if form == 2:
        cut = d.between(1, len(words) - 2)
        lines = [", ".join(words) + "."]
        lines += [
            f"{d.pick(['Start from', 'Go on after', 'Continue from'])} {words[cut - 1]}: {', '.join(words[cut:])}."
        ]
        return Episode([*lines, f"And after {words[cut]}: {', '.join(words[cut + 1 :])}."], sort="raw")
    if form == 3:  # pairs that come again in another order
        other = [word for word in d.words(len(words) * 2) if word not in words][: len(words)]
        tied = list(zip(words, other, strict=False))
        link = d.pick([" ", " - ", " goes with ", ": ", " & ", " calls for "])
        told = [first + link + second for first, second in tied + d.mixed(tied) + (d.mixed(tied) if want > 2 else [])]
        return Episode([d.pick(["\n", "; ", ", "]).join(told)], sort="raw")
    lines, *_ = happenings(d, d.between(2, 4))
    head = d.pick(["Again:", "Once more:", "The same again:", "Copy:", "Read back:"])
    return Episode([*lines, head, *lines], sort="raw")


def spelling(d: Dice, want: int) -> Episode:
    """Spell words out and join letters up; first letters, last letters, same or different."""
    rule = d.held(["spell", "join", "initial", "final", "same", "length"])
    task, mark = {
        "spell": (["Spell the word.", "Write the word letter by letter.", "Take the word apart."], [" ", "-", ", "]),
        "join": (["Join the letters.", "Write the letters as one word.", "What word is it?"], [" ", "-", ", "]),
        "initial": (["What is the first letter?", "Give the letter it starts with."], [""]),
        "final": (["What is the last letter?", "Give the letter it ends with."], [""]),
        "same": (["Are the two words the same?", "Same word?", "Same or not?"], [" / ", " and ", " = "]),
        "length": (["How many letters?", "Count the letters."], [""]),
    }[rule]
    gap, lines, results = d.pick(mark), [], []
    for _ in range(d.between(2, 3 + want)):
        word = d.made_up() if d.random() < 0.5 else d.pick(d.pick([RARE, THINGS, NAMES]))
        if rule == "spell":
            lines, results = [*lines, word], [*results, gap.join(word)]
        elif rule == "join":
            lines, results = [*lines, gap.join(word)], [*results, word]
        elif rule == "initial":
            lines, results = [*lines, word], [*results, word[0]]
        elif rule == "final":
            lines, results = [*lines, word], [*results, word[-1]]
        elif rule == "same":
            yes = d.random() < 0.5
            spot = d.between(0, len(word) - 1)
            other = word if yes else word[:spot] + d.pick("abcdefghijklmnoprstuvwyz") + word[spot + 1 :]
            lines, results = [*lines, word + gap + other], [*results, "yes" if word == other else "no"]
        else:
            lines, results = [*lines, word], [*results, str(len(word))]
    arrow = d.pick([" -> ", ": ", " => ", " | ", "\n= "])
    return Episode(
        [d.pick(task), *[line + arrow + done for line, done in zip(lines, results, strict=True)]], sort="raw"
    )
