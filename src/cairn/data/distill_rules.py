"""Rule teachers: hand-offs derived from the gold answer by plain Python, for machines without any language model.

    fields of a row, inputs, gold ── function ──> {stage: text, or one text per call}

What a rule derives is poorer than what a language model writes: it knows the answer and looks back. It lets a stack be
trained, run and measured at once, and its provenance says "rule teacher" wherever it spoke. The four here belong to the
four kinds of `cairn init`; a function of your own is named "package.module:function".
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence

from cairn.data.distill_checks import LANGUAGES
from cairn.errors import ConfigError, InputError
from cairn.plugins import load_named
from cairn.prompts import split_items

__all__ = [
    "RULE_TEACHERS",
    "RuleTeacher",
    "classify",
    "derive",
    "extract",
    "find_rule_teacher",
    "instruct",
    "key_words",
    "qa",
]

RuleTeacher = Callable[[Mapping[str, str]], Mapping[str, str | Sequence[str]]]

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")
_MORE_SMALL = "a an to in on at by as or if so do did does i my me he she they his her their our your can could will"
_SMALL_WORDS = frozenset(_MORE_SMALL.split()).union(*LANGUAGES.values())
_KEY_WORDS = 8
_POINTS = 12


def qa(fields: Mapping[str, str]) -> dict[str, list[str]]:
    """Derives `find`: for each sentence of `text`, whether it holds the answer.

    If none does, the sentence that shares most words with question and answer is taken.
    """
    sentences = split_items(fields["text"], "sentences")
    gold = _words(fields["gold"])
    holds = [_within(gold, _words(sentence)) for sentence in sentences]
    if sentences and not any(holds):
        wanted = set(key_words(fields["question"])) | set(gold)
        shared = [len(wanted & set(_words(sentence))) for sentence in sentences]
        holds[shared.index(max(shared))] = True
    return {"find": ["yes" if held else "no" for held in holds]}


def extract(fields: Mapping[str, str]) -> dict[str, str]:
    """Derives `find`: a line `name: value` for each value of the gold answer, a JSON object.

    Raises:
        InputError: the answer is no JSON object.
    """
    try:
        found = json.loads(fields["gold"])
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InputError("the answer is no JSON object", value=fields["gold"], allowed='{"name": "value"}')
    lines = [f"{name}: {value if isinstance(value, str) else json.dumps(value)}" for name, value in found.items()]
    return {"find": "\n".join(lines) or "none"}


def classify(fields: Mapping[str, str]) -> dict[str, str]:
    """Derives `gist`: the first words of `text` that carry meaning."""
    return {"gist": " ".join(key_words(fields["text"])[:_KEY_WORDS]) or fields["text"].split()[0]}


def instruct(fields: Mapping[str, str]) -> dict[str, str]:
    """Derives `points`: the first words of the answer that carry meaning."""
    return {"points": " ".join(key_words(fields["gold"])[:_POINTS]) or "none"}


RULE_TEACHERS: dict[str, RuleTeacher] = {"classify": classify, "extract": extract, "instruct": instruct, "qa": qa}


def find_rule_teacher(name: str) -> RuleTeacher:
    """Returns a rule teacher: ours, of an entry point in the group `cairn.rule_teachers`, or "package.module:function".

    Raises:
        ConfigError: there is none, or it cannot be imported or called.
    """
    found = load_named(
        name, RULE_TEACHERS, "cairn.rule_teachers", key="distill.teacher.function", what="rule teacher", kind="function"
    )
    if not callable(found):
        raise ConfigError("distill.teacher.function", [f"{name!r} is a {type(found).__name__}, allowed: a function"])
    return found


def derive(name: str, stage: str, fields: Mapping[str, str]) -> list[str]:
    """Returns what a rule teacher says for one stage, one text per call.

    Args:
        name: see `find_rule_teacher`.
        stage: name of the stage.
        fields: of the row, the inputs, `gold`, and the hand-offs made so far.

    Raises:
        InputError: the function failed, or says nothing for this stage.
    """
    try:
        said = find_rule_teacher(name)(dict(fields))
        value = said[stage]
    except (InputError, ConfigError):
        raise
    except Exception as error:  # a user's function may raise anything; the caller records it
        raise InputError(f"rule teacher {name}: no hand-off for {stage} ({type(error).__name__}: {error})") from error
    outputs = [value] if isinstance(value, str) else value
    if not isinstance(outputs, list | tuple) or not all(isinstance(text, str) for text in outputs):
        raise InputError(f"rule teacher {name}: {stage} is no text", value=value, allowed="a text, or a list of texts")
    return list(outputs)


def key_words(text: str) -> list[str]:
    """Returns the words of a text that carry meaning, each once, as they are written."""
    found: dict[str, str] = {}
    for word in _WORD.findall(text):
        if word.casefold() not in _SMALL_WORDS:
            found.setdefault(word.casefold(), word)
    return list(found.values())


def _words(text: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(text)]


def _within(part: Sequence[str], whole: Sequence[str]) -> bool:
    """Tells whether words stand in a row in others."""
    return bool(part) and any(list(whole[start : start + len(part)]) == list(part) for start in range(len(whole)))
