"""Finding where a story answers a question by the words that they share: a rule, without a model.

    question ── words that say something ──┐
    sentences ── the same ─────────────────┴─ each shared word counts log(sentences / sentences that have it)

A word is in lower case, its ending cut off (-s, -ed, -ing), so that "asked" finds "asks". Words that every question has
count nothing. Equal scores go by place. The rule needs no training; as stage `near` of a stack it is marked as a rule.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from cairn.evaluation.tasks.fairytaleqa_rouge import rouge_words
from cairn.prompts import split_items

__all__ = ["best_sections", "helpful", "near", "near_sentences", "shorten_passage"]

NEAR = 4  # sentences that the rule stage hands on

_EMPTY = frozenset(
    "a about after all an and are as at be because been before by can could did do does for from had has have he her"
    " him his how i if in into is it its me my no not of off on or out s said she so than that the their them then"
    " there they this to too up us was we were what when where which who whom whose why will with would you"
    " your".split()
)
_ENDING = re.compile(r"(?<=\w{3})(?:ing|ed|es|s)\Z")


def _stems(text: str) -> set[str]:
    return {_ENDING.sub("", word) for word in rouge_words(text) if word not in _EMPTY}


def _scores(pieces: Sequence[str], question: str) -> list[float]:
    stems = [_stems(piece) for piece in pieces]
    held = Counter(stem for one in stems for stem in one)
    asked = _stems(question)
    return [sum(math.log((len(pieces) + 1) / held[stem]) for stem in asked & one) for one in stems]


def _best(scores: Sequence[float]) -> list[int]:
    return sorted(range(len(scores)), key=lambda place: (-scores[place], place))


def near_sentences(passage: str, question: str, count: int = NEAR) -> list[str]:
    """Returns the `count` sentences that share most with the question, in the order of the passage."""
    sentences = split_items(passage, "sentences")
    chosen = _best(_scores(sentences, question))[:count]
    return [sentences[place] for place in sorted(chosen)]


def near(fields: Mapping[str, str]) -> str:
    """Rule: the sentences of `passage` that share most with `question`, one a line."""
    return "\n".join(near_sentences(fields["passage"], fields["question"]))


def helpful(sentences: Sequence[str], question: str, answers: Sequence[str]) -> list[bool]:
    """Returns which sentence helps to answer, by rule from the gold answers: the one with most of an answer's words.

    Ties go to the sentence that shares more with the question. Where no sentence holds a word of any answer, the one
    that shares most with the question is taken, so that one always helps.
    """
    stems = [_stems(sentence) for sentence in sentences]
    shared = _scores(sentences, question)
    highest = max(shared, default=0.0) or 1.0
    best = [0.0] * len(sentences)
    for answer in answers:
        wanted = _stems(answer)
        for place, one in enumerate(stems):
            if wanted:
                best[place] = max(best[place], len(wanted & one) / len(wanted))
    ranked = [(best[place] + 0.3 * shared[place] / highest, -place) for place in range(len(sentences))]
    top = max(ranked, default=None)
    return [rank == top for rank in ranked]


def best_sections(sections: Sequence[str], question: str, words: int) -> list[str]:
    """Returns the sections that share most with the question, in story order, as long as they fit into `words`.

    The best one is always there, however long.
    """
    chosen: list[int] = []
    room = words
    for place in _best(_scores(sections, question)):
        size = len(sections[place].split())
        if chosen and size > room:
            continue
        chosen.append(place)
        room -= size
        if room <= 0:
            break
    return [sections[place] for place in sorted(chosen)]


def shorten_passage(passage: str, question: str, words: int) -> str:
    """Returns the passage, or, if it is longer than `words`, its best sentences that fit, in order.

    The best sentence is always there, however long.
    """
    if len(passage.split()) <= words:
        return passage
    sentences = split_items(passage, "sentences")
    chosen: list[int] = []
    room = words
    for place in _best(_scores(sentences, question)):
        size = len(sentences[place].split())
        if not chosen or size <= room:
            chosen.append(place)
            room -= size
    return " ".join(sentences[place] for place in sorted(chosen))
