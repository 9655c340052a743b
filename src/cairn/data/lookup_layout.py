"""How an episode of the generated text is laid out on the page.

    Episode ──render()──> one passage, many pairs     Note / list / numbered / prose, then Q: ... A: ...
    lines   ──interleaved> pairs asked as it goes on   told line, question, told line, question
    pairs   ──few_shot()─> several solved examples     Text: ... Kept: ...   (same wording in each)

A family decides what is true; this file decides what it looks like. The labels vary so widely because the base has
to learn "find the asked thing above" and not one form of asking.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from cairn.data.lookup_words import NAMES, Dice

__all__ = ["Episode", "Pair", "few_shot", "render"]


@dataclass(slots=True)
class Pair:
    """One question and its answer.

    Args:
        question: what is asked; empty when the task line already asks it.
        answer: what follows from the lines asked about.
        after: how many lines have been told when it is asked; -1 for all of them.
    """

    question: str
    answer: str
    after: int = -1


@dataclass(slots=True)
class Episode:
    """A passage and what is asked about it.

    Args:
        lines: sentences or table rows, in order.
        pairs: questions about them.
        prose: whether the lines may be joined to a paragraph.
        marked: whether the lines may carry numbers or dashes (not where the answer repeats whole lines).
        task: one instruction that every pair shares; stands before or after the passage.
        sort: "running" asks pairs between the lines; "raw" has its whole text in lines.
    """

    lines: list[str]
    pairs: list[Pair] = field(default_factory=list)
    prose: bool = True
    marked: bool = True
    task: str = ""
    sort: str = "plain"


_PASSAGE = [
    "Note",
    "Text",
    "Passage",
    "Log",
    "Notes",
    "Report",
    "Record",
    "Entry",
    "Diary",
    "Account",
    "Message",
    "Page",
]
_PASSAGE += ["Context", "Input", "Story", "Facts", "Lines", "Sheet", "Letter", "Excerpt", "Given", "Read this"]
_ASK = [
    ("Question", "Answer"),
    ("Q", "A"),
    ("Ask", "Reply"),
    ("Query", "Result"),
    ("Question", "Reply"),
    ("Asked", "Found"),
    ("Input", "Output"),
    ("Task", "Answer"),
    ("Prompt", "Response"),
    ("Request", "Reply"),
    ("User", "Assistant"),
    ("Reader", "Clerk"),
    ("Pupil", "Tutor"),
    ("Question", "Short answer"),
    ("Look up", "Entry"),
    ("Check", "Outcome"),
    ("Question", "Answer"),
    ("Q", "A"),
    ("Visitor", "Guide"),
    ("Captain", "Mate"),
    ("Problem", "Solution"),
]
_TASK = ["Task", "Instruction", "To do", "Job", "Instructions", "Exercise", "Do this", "Order"]
_ONLY_ANSWER = ["Answer", "Result", "Output", "Reply", "Response", "Solution", "A", "Found", "Final answer"]
_HEADS = [
    "",
    "",
    "",
    "Read the note and answer.",
    "Use only what is written.",
    "Answer from the text.",
]


def _passage(d: Dice, episode: Episode) -> str:
    lines = episode.lines
    luck = d.random()
    if len(lines) == 1:
        return lines[0]
    if episode.prose and luck < 0.45:
        return " ".join(lines)
    if not episode.marked or luck < 0.75:
        return "\n".join(lines)
    if luck < 0.85:
        return "\n".join([f"{number}. {line}" for number, line in enumerate(lines, 1)])
    if luck < 0.9:
        return "\n".join([f"({number}) {line}" for number, line in enumerate(lines, 1)])
    mark = d.pick(["- ", "* ", "> ", "+ "])
    return mark + ("\n" + mark).join(lines)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:] + ("" if text[-1] in ".!?" else ".")


def _labelled(label: str, body: str) -> str:
    return f"{label}:\n{body}" if "\n" in body else f"{label}: {body}"


def _pairs(d: Dice, pairs: list[Pair], taken: str) -> str:
    """Writes the pairs below a passage, all in one form."""
    luck = d.random()
    gap = "\n\n" if d.random() < 0.3 else "\n"
    if luck < 0.52:
        ask, reply = d.pick(_ASK)
        if luck < 0.12:  # the sharper form, label in capitals or after a bar
            ask, reply = (ask.upper(), reply.upper()) if luck < 0.06 else (f"[{ask}]", f"[{reply}]")
        return gap.join([f"{ask}: {pair.question}\n{reply}: {pair.answer}" for pair in pairs])
    if luck < 0.62:
        return " ".join([f"{pair.question} {_sentence(pair.answer)}" for pair in pairs])
    if luck < 0.70:
        return "\n".join([f"{pair.question} {pair.answer}" for pair in pairs])
    if luck < 0.78:
        arrow = d.pick([" -> ", " => ", " | ", " = ", " :: "])
        return "\n".join([pair.question + arrow + pair.answer for pair in pairs])
    if luck < 0.83:
        name, value = d.pick([("question", "answer"), ("ask", "reply"), ("q", "a"), ("input", "output")])
        return "\n".join([json.dumps({name: pair.question, value: pair.answer}, ensure_ascii=False) for pair in pairs])
    if luck < 0.88:
        return gap.join([f"{n}. {pair.question}\n   {pair.answer}" for n, pair in enumerate(pairs, 1)])
    one, two = d.some(NAMES, 2)
    while one in taken or two in taken:
        one, two = d.some(NAMES, 2)
    if luck < 0.95:
        return gap.join([f"{one}: {pair.question}\n{two}: {_sentence(pair.answer)}" for pair in pairs])
    verb, back = d.pick([("asked", "said"), ("asks", "says"), ("wrote", "wrote back"), ("wanted to know", "read out")])
    out = []
    for pair in pairs:
        question = pair.question.replace('"', "'")  # no quotation inside a quotation of the same marks
        question = question[:-1] + "," if question[-1] == "." else question
        out.append(f'"{question}" {one} {verb}. "{_sentence(pair.answer)[:-1]}," {two} {back}.')
    return "\n".join(out)


def render(d: Dice, episode: Episode) -> str:
    """Lays out one episode in a form drawn from the dice."""
    if episode.sort == "raw":
        return "\n".join(episode.lines)
    if episode.sort == "running":
        return _running(d, episode)
    if episode.task:
        return _tasked(d, episode)
    body = _passage(d, episode)
    if len(episode.pairs) == 1 and d.random() < 0.15:  # the question first
        pair = episode.pairs[0]
        label = d.pick(_PASSAGE)
        ask, reply = d.pick(_ASK)
        return f"{ask}: {pair.question}\n{_labelled(label, body)}\n{reply}: {pair.answer}"
    head = d.pick(_HEADS) if d.random() < 0.2 else ""
    if d.random() < 0.45:
        body = _labelled(d.pick(_PASSAGE), body)
    gap = "\n\n" if d.random() < 0.4 else "\n"
    return (head + "\n" if head else "") + body + gap + _pairs(d, episode.pairs, body)


def _tasked(d: Dice, episode: Episode) -> str:
    """Lays out a shared instruction, the passage, and one labelled answer for each pair."""
    body = _passage(d, episode)
    gap = "\n\n" if d.random() < 0.25 else "\n"
    parts = [_labelled(d.pick(_PASSAGE), body)]
    task = f"{d.pick(_TASK)}: {episode.task}" if d.random() < 0.7 else episode.task
    if d.random() < 0.6:
        parts.insert(0, task)
    else:
        parts.append(task)
    label, what = d.pick(_ONLY_ANSWER), d.pick(["Item", "Ask", "About", "Query", "Given", "Case", "Question"])
    for pair in episode.pairs:
        if pair.question:
            parts.append(f"{what}: {pair.question}\n{_labelled(label, pair.answer)}")
        else:
            parts.append(_labelled(label, pair.answer))
    return gap.join(parts)


def _running(d: Dice, episode: Episode) -> str:
    """Lays out the lines with each pair asked right after the line it follows."""
    luck = d.random()
    ask, reply = d.pick(_ASK)
    out: list[str] = []
    for number, line in enumerate(episode.lines, 1):
        out.append(line)
        for pair in episode.pairs:
            if pair.after == number or (pair.after < 0 and number == len(episode.lines)):
                if luck < 0.5:
                    out += [f"{ask}: {pair.question}", f"{reply}: {pair.answer}"]
                elif luck < 0.8:
                    out.append(f"{pair.question} {_sentence(pair.answer)}")
                else:
                    out.append(f"({pair.question} {_sentence(pair.answer)})")
    return (" " if 0.5 <= luck and d.random() < 0.4 else "\n").join(out)


def few_shot(d: Dice, episodes: list[Episode]) -> str:
    """Lays out several small episodes of one family as solved examples, each like the others."""
    label, (ask, reply) = d.pick(_PASSAGE), d.pick(_ASK)
    blocks = []
    join = "\n" if not all(e.prose for e in episodes) or d.random() < 0.35 else " "
    bare, inline = d.random() < 0.25, d.random() < 0.25
    for episode in episodes:
        body = join.join(episode.lines)
        pair = episode.pairs[0]
        question = " ".join(part for part in (episode.task, pair.question) if part)
        block = body if bare else _labelled(label, body)
        if inline:
            blocks.append(f"{block}\n{question} {pair.answer}")
        else:
            blocks.append(f"{block}\n{ask}: {question}\n{_labelled(reply, pair.answer)}")
    return d.pick(["\n\n", "\n\n", "\n---\n", "\n\n###\n\n"]).join(blocks)
