"""Gold hand-offs of the SCAN stack: a command of simple English becomes a list of actions in four small decisions.

    command ──numbered (rule)──> 1 look 2 after 3 jump 4 around 5 left 6 twice
               parts ──> numbers of its phrases, in the order they are done           3 4 5 6, 1
             phrases (rule) ──> their words                                           jump around left twice, look
                 │ each phrase alone
               times ──> as often as it says                                          jump around left (twice)
                 │ each alone
               steps ──> its verb, then its steps, "do" for the verb               jump: left do left do left do left do
             spelled (rule) ──> one word a step                                       left, jump, left, jump, ...
                 │ each word alone
                 act ──> its action                                                   I_TURN_LEFT, I_JUMP, ...

No step knows how long the whole is: the longest thing that is ever written is one turn around. And a verb that was seen
alone only goes through: it is never to be written among words that it was not seen with, but stands for itself in
front (`steps`), is pointed at by number (`parts`), or is asked for alone (`act`).

The rules below are the whole language, so every stage could be done without a model: `interpret` is that baseline, and
each `*_rule` may stand in a stack.yaml as `rule:` in the place of its stage's prompt. They are written from the
grammar, not from the data: what they say of a command is held against the file (`stage_example` refuses a difference).

Source: Lake and Baroni, "Generalization without Systematicity" (arXiv 1711.00350), figure 6 (grammar) and figure 7
(meaning); the stages are ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cairn.errors import DataError
from cairn.stacks.rules import needs

__all__ = [
    "ACTIONS",
    "LINE",
    "act_rule",
    "gold_stages",
    "interpret",
    "parts_rule",
    "phrases_rule",
    "spelled_rule",
    "stage_example",
    "steps_rule",
    "times_rule",
]

# The word of a step -> the action it is.
ACTIONS = {
    "walk": "I_WALK", "look": "I_LOOK", "run": "I_RUN", "jump": "I_JUMP",
    "left": "I_TURN_LEFT", "right": "I_TURN_RIGHT",
}  # fmt: skip

# Lines follow each other with a space at their front: a word is then the same tokens wherever it stands.
LINE = "\n "

_VERBS = ("walk", "look", "run", "jump", "turn")
_SIDES = ("left", "right")
_COUNTS = {"twice": 2, "thrice": 3}
_VERB = "do"  # stands for the verb of a phrase in its steps


def _parts(command: str) -> list[list[int]]:
    """Returns the places of the words of every phrase, counted from 1, the phrase that is done first in front."""
    words = command.split()
    if words.count("and") + words.count("after") > 1:
        raise _not_scan(command, "at most one `and` or `after`")
    everything = list(range(1, len(words) + 1))
    for word in ("after", "and"):
        if word in words:
            place = words.index(word)
            before, behind = everything[:place], everything[place + 1 :]
            return [behind, before] if word == "after" else [before, behind]
    return [everything]


def _pick(command: str, places: Sequence[int]) -> str:
    words = command.split()
    return " ".join(words[place - 1] for place in places)


def _times(part: str) -> list[str]:
    words = part.split()
    if words and words[-1] in _COUNTS:
        return [" ".join(words[:-1])] * _COUNTS[words[-1]]
    return [part]


def _steps(phrase: str) -> list[str]:
    words = phrase.split()
    verb, how, side = (words[0] if words else ""), words[1:-1], words[-1] if words else ""
    own = [] if verb == "turn" else [verb]
    if verb not in _VERBS or (len(words) == 1 and not own):
        raise _not_scan(phrase, f"one of {', '.join(_VERBS[:-1])}, or turn with left or right")
    if len(words) == 1:
        return own
    if side not in _SIDES or how not in ([], ["opposite"], ["around"]):
        raise _not_scan(phrase, "a verb, then at most opposite or around, then left or right")
    if how == ["around"]:
        return [side, *own] * 4
    return [side] * (2 if how else 1) + own


def _not_scan(text: str, allowed: str) -> DataError:
    return DataError("not a SCAN command", value=text, allowed=allowed)


def _written(phrase: str) -> str:
    """Returns the steps of a phrase behind its verb, the verb itself as "do"."""
    verb = phrase.split()[0] if phrase.split() else ""
    return " ".join([f"{verb}:", *(_VERB if word == verb else word for word in _steps(phrase))])


@needs("command")
def parts_rule(fields: Mapping[str, str]) -> str:
    """Returns the numbers of the words of each phrase of `command`, in the order they are done, a line a phrase.

    It is the stage `parts` without a model.

    Raises:
        DataError: more than one `and` or `after`.
    """
    return LINE.join(" ".join(map(str, places)) for places in _parts(fields["command"]))


@needs("command", "parts")
def phrases_rule(fields: Mapping[str, str]) -> str:
    """Returns the words of `command` that the numbers of `parts` name, line by line.

    Raises:
        DataError: a number that no word has.
    """
    count = len(fields["command"].split())
    lines = [[int(number) for number in line.split()] for line in fields["parts"].splitlines() if line.strip()]
    wrong = [number for places in lines for number in places if not 1 <= number <= count]
    if wrong:
        raise DataError("no word has this number", value=wrong[0], allowed=f"1 to {count}")
    return LINE.join(_pick(fields["command"], places) for places in lines)


@needs("item")
def times_rule(fields: Mapping[str, str]) -> str:
    """Returns the phrase `item` without twice or thrice, as often as it says: the stage `times` without a model."""
    return LINE.join(_times(fields["item"]))


@needs("item")
def steps_rule(fields: Mapping[str, str]) -> str:
    """Returns the verb of `item`, then its steps with "do" for the verb: the stage `steps` without a model.

    Raises:
        DataError: `item` is no phrase of the language.
    """
    return _written(fields["item"])


@needs("item")
def spelled_rule(fields: Mapping[str, str]) -> str:
    """Returns the steps behind the colon of `item`, one a line, with the verb before the colon for every "do"."""
    verb, _, steps = fields["item"].partition(":")
    return LINE.join(verb.strip() if word == _VERB else word for word in steps.split())


@needs("item")
def act_rule(fields: Mapping[str, str]) -> str:
    """Returns the action of the word `item`: the stage `act` without a model.

    Raises:
        DataError: there is no such step.
    """
    word = fields["item"]
    if word not in ACTIONS:
        raise DataError("no such step", value=word, allowed=", ".join(ACTIONS))
    return ACTIONS[word]


def interpret(command: str) -> str:
    """Returns the actions of a command: the rule baseline, right on every command of the language.

    Raises:
        DataError: it is no command of the language.
    """
    actions = gold_stages(command)["act"]
    return " ".join(actions)


def gold_stages(command: str) -> dict[str, Any]:
    """Derives the hand-offs of a command.

    Returns:
        Stage that a model answers -> its gold output, a list of one per item for the three that map.

    Raises:
        DataError: it is no command of the language.
    """
    parts = _parts(command)
    repeated = [_times(_pick(command, places)) for places in parts]
    phrases = [phrase for several in repeated for phrase in several]
    stepped = [_steps(phrase) for phrase in phrases]
    return {
        "parts": LINE.join(" ".join(map(str, places)) for places in parts),
        "times": [LINE.join(several) for several in repeated],
        "steps": [_written(phrase) for phrase in phrases],
        "act": [ACTIONS[word] for words in stepped for word in words],
    }


def stage_example(name: str, command: str, actions: Sequence[str]) -> dict[str, Any]:
    """Returns one row of an examples file.

    Args:
        name: its id.
        command: the words.
        actions: gold, of the file.

    Raises:
        DataError: it is no command of the language, or the rules give other actions than the file.
    """
    stages = gold_stages(command)
    if stages["act"] != list(actions):
        raise DataError(
            f"{name}: the rules give {' '.join(stages['act'])!r} for {command!r}, the file other actions",
            value=" ".join(actions),
        )
    return {"id": name, "inputs": {"command": command}, "stages": stages, "answer": " ".join(actions)}
