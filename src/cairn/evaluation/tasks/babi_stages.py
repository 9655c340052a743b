"""Gold hand-offs of the demo's stack for five bAbI tasks, derived by rules that read only story and question.

    question ──topic──> mention: which sentences are about the topic?            "John took the milk."
                             │
                           link: what must be looked up next, read from those    "John"
                             │
                         follow: which sentences are about that?                 "John took the milk. John went home."
                             │
                         answer: read from those                                 "home"

The tasks are those in which every step is a small decision about one sentence or a few:

    qa1   one fact            Where is Mary?                        link = the person asked about
    qa12  conjunction         Where is Mary? (two people move)      link = the person asked about
    qa2   two facts           Where is the milk?                    link = who took it last
    qa14  time, two facts     Where was Mary before the office?     link = the time just before she was there
    qa15  deduction, 2 facts  What is Emily afraid of?              link = her kind of animal

A sentence is *about* its actors, the thing they handle, its time, or the kind of animal whose fear it tells.

The rules are a solver of their own, written without looking at the gold: `check_chain` holds them against the file's
answer and supporting facts, and refuses a question on which they differ, so that a gold hand-off is never a guess.

Source: Weston et al., "Towards AI-complete question answering" (arXiv 1502.05698) for the tasks; the stages are ours.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from cairn.errors import DataError
from cairn.evaluation.tasks.babi import BabiQuestion

__all__ = ["STAGE_TASKS", "STORY_JOIN", "GoldChain", "check_chain", "gold_chain", "stage_example"]

STAGE_TASKS = ("qa1", "qa2", "qa12", "qa14", "qa15")

# Sentences follow each other on one line: each then begins with a space, and a name is the same tokens in the story,
# in a hand-off and in an answer.
STORY_JOIN = " "

_TIMES = ("yesterday", "this morning", "this afternoon", "this evening")  # in the order of the clock
_SINGULAR = {"mice": "mouse", "wolves": "wolf", "cats": "cat", "sheep": "sheep"}

_TIME = "|".join(_TIMES)
_MOVE = re.compile(
    rf"(?:(?P<first>{_TIME}) )?(?P<a>[A-Z]\w+)(?: and (?P<b>[A-Z]\w+))? (?:went|moved|travelled|journeyed)"
    rf" to the (?P<place>\w+)(?: (?P<last>{_TIME}))?\.",
)
_HANDLE = re.compile(r"(?P<a>[A-Z]\w+) (?P<verb>took|got|grabbed|put down|let go of|dropped) the (?P<thing>\w+)\.")
_KIND = re.compile(r"(?P<a>[A-Z]\w+) is a (?P<kind>\w+)\.")
_FEAR = re.compile(r"(?P<kinds>[A-Z]\w+) are afraid of (?P<feared>\w+)\.")

_WHERE_PERSON = re.compile(r"Where is (?P<topic>[A-Z]\w+)\?")
_WHERE_THING = re.compile(r"Where is the (?P<topic>\w+)\?")
_BEFORE = re.compile(r"Where was (?P<topic>[A-Z]\w+) before the (?P<place>\w+)\?")
_AFRAID = re.compile(r"What is (?P<topic>[A-Z]\w+) afraid of\?")


@dataclass(frozen=True)
class GoldChain:
    """The hand-offs of one question.

    Args:
        topic: who or what the question asks about.
        mention: places in the story (from 0) of the sentences about the topic.
        link: what must be looked up next.
        follow: places in the story of the sentences about the link.
        answer: read from the followed sentences alone.
    """

    topic: str
    mention: tuple[int, ...]
    link: str
    follow: tuple[int, ...]
    answer: str


@dataclass(frozen=True)
class _Fact:
    about: frozenset[str]
    actors: tuple[str, ...] = ()
    place: str | None = None
    time: str | None = None
    kind: str | None = None
    feared: str | None = None


def gold_chain(sentences: Sequence[str], question: str) -> GoldChain:
    """Derives the hand-offs of one question by rule, without its gold answer.

    Args:
        sentences: the story before the question, in order.
        question: the question with its question mark.

    Raises:
        DataError: a sentence or the question is of a form that the rules do not know, or a link leads nowhere.
    """
    facts = [_read_sentence(sentence) for sentence in sentences]
    asked, match = _read_question(question)
    topic = match["topic"]
    mention = tuple(place for place, fact in enumerate(facts) if topic in fact.about)
    if not mention:
        raise DataError("no sentence is about what the question asks", value=question)
    link = _link(asked, match, [facts[place] for place in mention], question)
    follow = tuple(place for place, fact in enumerate(facts) if link in fact.about)
    answer = _answer(asked, topic, [facts[place] for place in follow], question)
    return GoldChain(topic, mention, link, follow, answer)


def check_chain(chain: GoldChain, question: BabiQuestion) -> None:
    """Holds derived hand-offs against the file's gold.

    Raises:
        DataError: the derived answer is another one, or a supporting fact is in neither kept set of sentences.
    """
    if chain.answer != question.answer:
        raise DataError(
            f"{question.id}: the rules give {chain.answer!r}, the file another answer", value=question.answer
        )
    lost = set(question.supporting) - set(chain.mention) - set(chain.follow)
    if lost:
        raise DataError(
            f"{question.id}: no stage keeps a supporting fact", value=[question.sentences[place] for place in lost]
        )


def stage_example(question: BabiQuestion) -> dict[str, Any]:
    """Returns one line of a stage-example file: inputs, the gold output of every stage, answer, and the cluster.

    Map stages carry one "yes" or "no" per sentence.

    Raises:
        DataError: see `gold_chain` and `check_chain`.
    """
    chain = gold_chain(question.sentences, question.question)
    check_chain(chain, question)
    places = range(len(question.sentences))
    return {
        "id": question.id,
        "inputs": {"story": STORY_JOIN.join(question.sentences), "question": question.question},
        "stages": {
            "mention": ["yes" if place in chain.mention else "no" for place in places],
            "link": chain.link,
            "follow": ["yes" if place in chain.follow else "no" for place in places],
            "answer": chain.answer,
        },
        "answer": question.answer,
    }


@lru_cache(maxsize=65_536)  # the tasks repeat a few thousand sentences
def _read_sentence(sentence: str) -> _Fact:
    text = sentence
    for time in _TIMES:  # "This morning Mary ..." and "Mary ... this morning" are one form
        if text.lower().startswith(time + " "):
            text = time + text[len(time) :]
    if match := _MOVE.fullmatch(text):
        actors = tuple(name for name in (match["a"], match["b"]) if name)
        time = match["first"] or match["last"]
        return _Fact(frozenset((*actors, *((time,) if time else ()))), actors, match["place"], time)
    if match := _HANDLE.fullmatch(text):
        return _Fact(frozenset((match["a"], match["thing"])), (match["a"],))
    if match := _KIND.fullmatch(text):
        return _Fact(frozenset((match["a"],)), (match["a"],), kind=match["kind"])
    if match := _FEAR.fullmatch(text):
        kinds, feared = match["kinds"].lower(), match["feared"]
        if kinds in _SINGULAR and feared in _SINGULAR:
            return _Fact(frozenset((_SINGULAR[kinds],)), feared=_SINGULAR[feared])
    raise DataError(
        "a sentence of a form that the demo's rules do not know", value=sentence, allowed=f"tasks {STAGE_TASKS}"
    )


def _read_question(question: str) -> tuple[str, re.Match[str]]:
    forms = {"person": _WHERE_PERSON, "thing": _WHERE_THING, "before": _BEFORE, "afraid": _AFRAID}
    for asked, pattern in forms.items():
        if match := pattern.fullmatch(question):
            return asked, match
    raise DataError(
        "a question of a form that the demo's rules do not know", value=question, allowed=f"tasks {STAGE_TASKS}"
    )


def _link(asked: str, match: re.Match[str], kept: Sequence[_Fact], question: str) -> str:
    if asked == "person":
        return str(match["topic"])
    if asked == "thing":
        return kept[-1].actors[0]
    if asked == "afraid":
        kinds = [fact.kind for fact in kept if fact.kind]
        if kinds:
            return kinds[-1]
    if asked == "before":
        timed = {fact.time: fact.place for fact in kept if fact.time and fact.place}
        ordered = [time for time in _TIMES if time in timed]
        there = [number for number, time in enumerate(ordered) if timed[time] == match["place"]]
        if there and there[-1] > 0:
            return ordered[there[-1] - 1]
    raise DataError("the sentences about the topic do not say where to look next", value=question)


def _answer(asked: str, topic: str, kept: Sequence[_Fact], question: str) -> str:
    if asked == "before":
        found = [fact.place for fact in kept if topic in fact.actors and fact.place]
    elif asked == "afraid":
        found = [fact.feared for fact in kept if fact.feared]
    else:
        found = [fact.place for fact in kept if fact.place]
    if not found:
        raise DataError("the sentences about the link do not answer the question", value=question)
    return found[-1]
