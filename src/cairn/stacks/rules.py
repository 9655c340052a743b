"""Rules: plain Python functions that answer in the place of a model.

    rule: look_up                    one of this file
    rule: NAME                       one that an installed package names in its entry points, group `cairn.rules`
    rule: package.module:function    any function that Python can import

    fields: the inputs, what the stage reads, item, state, arguments ── function ──> text

A rule is for work that needs no learning: arithmetic, a table, a copy. It costs no tokens, and every trace and report
marks what it said, so that what a model did and what a rule did stay apart. The rules here are the few that stacks of
very different work share; anything that knows one task is the user's own function.
"""

from __future__ import annotations

import ast
import functools
import inspect
import operator
import re
from collections.abc import Callable, Mapping
from decimal import Decimal, localcontext
from fractions import Fraction

from cairn.errors import CairnError, ConfigError, InputError
from cairn.plugins import load_named

__all__ = ["RULES", "Rule", "calculate", "copy", "find_rule", "look_up", "mentions", "needs", "number", "run_rule"]

Rule = Callable[[Mapping[str, str]], str]

_GROUP = "cairn.rules"
_LONGEST_EXPRESSION = 1000  # characters
_LARGEST_BITS = 4096  # of a number in an expression: some 1,200 digits
_NUMBER = re.compile(r"[0-9]+(\.[0-9]*)?|\.[0-9]+")
_THOUSANDS = re.compile(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))")
_OPERATORS: dict[type[ast.AST], Callable[..., Fraction]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: lambda left, right: Fraction(left // right), ast.Mod: operator.mod,
    ast.USub: operator.neg, ast.UAdd: operator.pos,
}  # fmt: skip


def needs(*names: str) -> Callable[[Rule], Rule]:
    """Says which fields a rule reads, so that a stack without them is refused before it runs.

        @needs("price", "count")
        def total(fields): return str(int(fields["price"]) * int(fields["count"]))
    """

    def mark(rule: Rule) -> Rule:
        rule.needs = names  # type: ignore[attr-defined]
        return rule

    return mark


@needs("expression")
def calculate(fields: Mapping[str, str]) -> str:
    """Works out `expression`: numbers, + - * / // % ** and brackets, exactly, with commas between thousands allowed.

    A result that is no whole number has at most 12 significant digits.

    Raises:
        InputError: it is no such expression, is longer than 1,000 characters, divides by zero, or grows beyond some
            1,200 digits.
    """
    text = fields["expression"].strip()
    if len(text) > _LONGEST_EXPRESSION:
        raise InputError("the expression is too long", value=text, allowed=f"{_LONGEST_EXPRESSION} characters")
    plain = _THOUSANDS.sub("", text)
    try:
        result = _evaluate(ast.parse(plain, mode="eval").body, plain)
    except ZeroDivisionError:
        raise InputError("the expression divides by zero", value=text) from None
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise InputError(
            "not an expression", value=text, allowed="numbers, + - * / // % **, brackets, numbers of 1,200 digits"
        ) from None
    if result.denominator == 1:
        return str(result.numerator)
    with localcontext() as context:
        context.prec = 12
        return f"{(Decimal(result.numerator) / Decimal(result.denominator)).normalize():f}"


def _evaluate(node: ast.AST, text: str) -> Fraction:
    if isinstance(node, ast.Constant):
        number = ast.get_source_segment(text, node) or ""
        if not _NUMBER.fullmatch(number):
            raise ValueError(number)
        result = Fraction(number)
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        base, exponent = _evaluate(node.left, text), _evaluate(node.right, text)
        bits = max(base.numerator.bit_length(), base.denominator.bit_length())
        if exponent.denominator != 1 or bits * abs(exponent.numerator) > _LARGEST_BITS:
            raise ValueError(text)
        result = Fraction(base**exponent.numerator)
    elif isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        result = _OPERATORS[type(node.op)](_evaluate(node.left, text), _evaluate(node.right, text))
    elif isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATORS:
        result = _OPERATORS[type(node.op)](_evaluate(node.operand, text))
    else:
        raise ValueError(text)
    if max(result.numerator.bit_length(), result.denominator.bit_length()) > _LARGEST_BITS:
        raise ValueError(text)
    return result


@needs("text")
def copy(fields: Mapping[str, str]) -> str:
    """Hands `text` on as it is; with `arguments: {text: "{intent}: {place}"}` it puts several fields into one."""
    return fields["text"]


@needs("table", "key")
def look_up(fields: Mapping[str, str]) -> str:
    """Looks `key` up in `table`, whose lines are `key: value`; other lines are no entries.

    Capitals and white space around a key do not count. Of a key that is there twice the last line holds, as in a list
    of what happened. A key that is not there has no value: the stage's `empty`.
    """
    wanted, found = fields["key"].strip().casefold(), ""
    for line in fields["table"].splitlines():
        key, colon, value = line.partition(":")
        if colon and key.strip().casefold() == wanted:
            found = value.strip()
    return found


@needs("text", "word")
def mentions(fields: Mapping[str, str]) -> str:
    """Says "yes" if `text` holds `word` as whole words, in any capitals, else "no"; of several lines of words, any one.

    On a map stage with `keep: "yes"` it keeps the sentences that mention something.
    """
    words = [line.strip() for line in fields["word"].splitlines() if line.strip()]
    found = any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", fields["text"], re.IGNORECASE) for word in words)
    return "yes" if found else "no"


@needs("text")
def number(fields: Mapping[str, str]) -> str:
    """Puts its number before every word of `text`: "1 play 2 some 3 jazz".

    A tiny model that must write a name it never saw gets it wrong letter by letter; the number of a word it can write.
    """
    return " ".join(f"{place} {word}" for place, word in enumerate(fields["text"].split(), start=1))


RULES: dict[str, Rule] = {
    "calculate": calculate, "copy": copy, "look_up": look_up, "mentions": mentions, "number": number,
}  # fmt: skip


@functools.cache
def find_rule(name: str) -> Rule:
    """Returns a rule by its name, or by "package.module:function".

    Raises:
        ConfigError: there is no such rule, two have the name, it cannot be imported, or it is no function of one
            argument.
    """
    rule = load_named(name, RULES, _GROUP, key=name, what="rule", kind="function")
    if not callable(rule):
        raise ConfigError(name, [f"rule {name!r} is a {type(rule).__name__}, allowed: a function"])
    try:
        inspect.signature(rule).bind({})
    except TypeError as error:
        fault = f"rule {name!r} cannot be called with one argument, the fields ({error})"
        raise ConfigError(name, [fault]) from None
    except ValueError:  # a function of C that has no signature
        pass
    return rule


def run_rule(name: str, fields: Mapping[str, str]) -> str:
    """Returns what a rule says to some fields.

    Raises:
        ConfigError: as `find_rule`.
        InputError: the rule raised an exception, or returned something else than text.
    """
    rule = find_rule(name)
    try:
        said = rule(dict(fields))
    except CairnError as error:
        raise InputError(f"rule {name} failed: {error}") from error
    except Exception as error:  # a user's function may raise anything; the caller records it
        raise InputError(f"rule {name} failed: {type(error).__name__}: {error}") from error
    if not isinstance(said, str):
        raise InputError(f"rule {name} failed: it returned {said!r}, allowed: a text")
    return said
