"""Rules: what the built-in ones say, how a user's function is found, and that its part stays marked."""

from __future__ import annotations

import random
import sys
from fractions import Fraction
from importlib import metadata
from pathlib import Path

import pytest

from cairn.config import parse_config, save_config
from cairn.engines.fake_engine import FakeEngine
from cairn.errors import ConfigError, InputError
from cairn.stacks.rules import RULES, find_rule, needs, run_rule
from cairn.stacks.runner import Runner
from cairn.stacks.spec import StackSpec, load_stack
from cairn.stacks.trace import Trace, format_trace, from_json, to_json

YES_NO = {"kind": "choices", "values": ["yes", "no"]}


def stack(*stages: dict, inputs: tuple[str, ...] = ("text",)) -> StackSpec:
    return parse_config(StackSpec, {"name": "s", "inputs": list(inputs), "stages": list(stages)}, "s")


def run(spec: StackSpec, script: object = (), **inputs: str) -> Trace:
    return Runner(spec, FakeEngine(script, adapters=spec.adapter_names())).run([inputs])[0]


def failing(fields: dict[str, str]) -> object:
    """Fails in each way on its word."""
    word = fields.get("item", fields.get("text", ""))
    if word == "raise":
        raise RuntimeError("no luck")
    return {"none": None, "number": 3, "empty": "  "}.get(word, word.upper())


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's own, importable; returns its name."""
    (tmp_path / "own_rules.py").write_text(
        "NUMBER = 3\n"
        "def shout(fields): return fields['text'].upper()\n"
        "def two(left, right): return left\n"
        "class Names:\n    @staticmethod\n    def first(fields): return sorted(fields)[0]\n"
    )
    (tmp_path / "broken_rules.py").write_text("import sys\nsys.exit('closed')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "own_rules"
    find_rule.cache_clear()
    for name in ("own_rules", "broken_rules"):
        sys.modules.pop(name, None)


def test_number_counts_words_and_leaves_them_as_they_are() -> None:
    assert run_rule("number", {"text": "  play Mira's  3 songs "}) == "1 play 2 Mira's 3 3 4 songs"
    assert run_rule("number", {"text": " "}) == ""


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2 + 3 * 4", "14"), ("(2 + 3) * 4", "20"), ("-7 // 2", "-4"), ("7 % 4", "3"), ("2 ** 10", "1024"),
        ("2 ** -1", "0.5"), ("0.1 + 0.2", "0.3"), ("10 / 4", "2.5"), ("10 / 5", "2"), ("1,234,567 + 1", "1234568"),
        ("1 / 3", "0.333333333333"), (" .5 * 2. ", "1"), ("+5", "5"), ("1" + "0" * 20, "1" + "0" * 20),
    ],
)  # fmt: skip
def test_calculate(expression: str, value: str) -> None:
    assert RULES["calculate"]({"expression": expression}) == value


def test_calculate_is_exact_arithmetic() -> None:
    draw = random.Random(0)
    for _ in range(200):
        numbers = [draw.randrange(1, 99) for _ in range(5)]
        signs = [draw.choice("+-*/") for _ in range(4)]
        text = "".join(f"{number} {sign} " for number, sign in zip(numbers, [*signs, ""], strict=True)).strip()
        exact = eval("".join(f"Fraction({n}) {s} " for n, s in zip(numbers, [*signs, ""], strict=True)))
        said = RULES["calculate"]({"expression": text})
        assert abs(Fraction(said) - exact) <= abs(exact) * Fraction(1, 10**11)


@pytest.mark.parametrize(
    "expression",
    ["", "two", "__import__('os')", "1 if 2 else 3", "9 ** 9 ** 9 ** 9", "2 ** 0.5", "1e9", "0x10", "1_000", "'a' * 9",
     "(" * 400 + "1" + ")" * 400, "1,2", "True", "2 ** 4097", "x + 1", "1 < 2", "[1]", "\x00",
     "10 ** 999 * 10 ** 999"],
)  # fmt: skip
def test_what_is_no_expression_is_refused_at_once(expression: str) -> None:
    with pytest.raises(InputError, match="not an expression"):
        RULES["calculate"]({"expression": expression})


def test_calculate_says_what_else_is_wrong() -> None:
    with pytest.raises(InputError, match=r"divides by zero: '1 / \(2 - 2\)'"):
        RULES["calculate"]({"expression": "1 / (2 - 2)"})
    with pytest.raises(InputError, match="too long"):
        RULES["calculate"]({"expression": "1+" * 600 + "1"})


def test_look_up_copy_and_mentions() -> None:
    table = "Ann: kitchen\nno entry\nBen: hall: left\nann : garden"
    for key, value in (("ann", "garden"), (" Ben ", "hall: left"), ("Eve", "")):
        assert RULES["look_up"]({"table": table, "key": key}) == value
    assert RULES["copy"]({"text": " as it is "}) == " as it is "
    for word, said in (("key", "yes"), ("KEY.", "no"), ("keys", "no"), ("lock\nthe key", "yes"), ("a", "no")):
        assert RULES["mentions"]({"text": "Ben has the Key, now.", "word": word}) == said


def test_a_rule_stands_in_any_kind_of_stage_and_is_marked() -> None:
    spec = stack(
        {"name": "about", "kind": "map", "over": "text", "rule": "mentions", "keep": "yes", "contract": YES_NO,
         "arguments": {"text": "{item}", "word": "key"}},
        {"name": "last", "kind": "repeat", "over": "about", "rule": "copy", "reads": [],
         "arguments": {"text": "{state}, {item}"}, "start": "so"},
        {"name": "say", "reads": ["last"], "prompt": "{last}:"},
    )  # fmt: skip
    assert (spec.adapter_names(), spec.stages[0].adapter_name) == (["say"], None)
    engine = FakeEngine(["fine"], adapters=["say"])
    trace = Runner(spec, engine).run([{"text": "the key\na lock\nmy key"}])[0]
    assert trace.stage("about").value == "the key\nmy key"
    assert trace.stage("last").value == "so, the key, my key"
    assert [(r.by, r.rule, r.adapter) for r in trace.stages] == [
        ("rule", "mentions", None), ("rule", "copy", None), ("model", None, "say"),
    ]  # fmt: skip
    assert [request.prompt for request in engine.requests] == ["so, the key, my key:"]
    totals = trace.totals
    assert (totals.calls, totals.calls_run, totals.rule_calls, totals.prompt_tokens) == (1, 1, 5, 5)
    assert from_json(to_json(trace)) == trace
    shown = format_trace(trace, 60).splitlines()
    assert "1 about  (2 of 3 items kept, rule mentions)" in shown and "2 last  (2 calls, rule copy)" in shown
    assert "(1 calls and 5 of rules, 5 tokens read, 2 written" in shown[-1]


def test_a_rule_sees_what_its_stage_reads_and_no_more() -> None:
    seen: list[dict[str, str]] = []
    spec = stack(
        {"name": "a", "prompt": "{text}"},
        {"name": "b", "rule": "copy", "arguments": {"of": "{text}"}},
    )  # fmt: skip
    stage = spec.stages[1]
    other = stack({"name": "a", "rule": "copy", "arguments": {"text": "{text}!"}})
    assert run(other, text="x").answer == "x!"  # an argument goes before a field of the same name
    seen += [dict(call.fields) for call in spec.calls(stage, {"text": "x", "a": "hidden"})]
    reads = stage.model_copy(update={"reads": ["a"]})
    seen += [dict(call.fields) for call in spec.calls(reads, {"text": "x", "a": "shown"})]
    assert seen == [{"text": "x", "of": "x"}, {"text": "x", "a": "shown", "of": "x"}]


def test_the_users_own_function(user: str, tmp_path: Path) -> None:
    spec = stack({"name": "loud", "rule": f"{user}:shout"})
    assert run(spec, text="hello").answer == "HELLO"
    save_config(spec, tmp_path / "stack.yaml")
    assert load_stack(tmp_path).model_dump() == spec.model_dump()
    assert run_rule(f"{user}:Names.first", {"b": "1", "a": "2"}) == "a"


def test_a_rule_of_an_installed_package(user: str, monkeypatch: pytest.MonkeyPatch) -> None:
    points = [metadata.EntryPoint(name, f"{user}:shout", "cairn.rules") for name in ("shout", "copy")]
    monkeypatch.setattr(metadata, "entry_points", lambda group: points if group == "cairn.rules" else [])
    assert run(stack({"name": "loud", "rule": "shout"}), text="hello").answer == "HELLO"
    with pytest.raises(ConfigError, match="rule 'copy' has 2 owners: Cairn, own_rules:shout; give package"):
        stack({"name": "a", "rule": "copy"})
    with pytest.raises(ConfigError, match=r"no such rule: 'shuot' \(did you mean shout\?\), allowed: calculate"):
        stack({"name": "a", "rule": "shuot"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rule": "own_rules:shuot"}, "rule 'own_rules:shuot' cannot be imported (AttributeError: module 'own_rules'"),
        ({"rule": "own_ruels:shout"}, "cannot be imported (ModuleNotFoundError: No module named 'own_ruels'); install"),
        ({"rule": "broken_rules:shout"}, "rule 'broken_rules:shout' cannot be imported (SystemExit: closed)"),
        ({"rule": "own_rules:NUMBER"}, "rule 'own_rules:NUMBER' is a int, allowed: a function"),
        ({"rule": "own_rules:two"}, "cannot be called with one argument, the fields (missing a required argument"),
        ({"rule": "calcualte"}, "no such rule: 'calcualte' (did you mean calculate?), allowed: calculate, copy"),
        ({"rule": "calculate"}, "rule 'calculate' needs 'expression': give `arguments: {expression: ...}`, or a field"),
        ({"rule": "copy", "prompt": "{text}"}, "has a prompt and a rule, allowed: one of both"),
        ({}, "stage a: needs a prompt, for a model, or a rule"),
        ({"rule": "copy", "adapter": "b"}, "adapter is for a model, but the stage is a rule"),
        ({"rule": "copy", "retries": 2}, "retries is for a model, but the stage is a rule"),
        ({"rule": "copy", "sampling": {"seed": 1}}, "sampling is for a model, but the stage is a rule"),
        ({"rule": "copy", "constrain": True}, "constrain is for a model, but the stage is a rule"),
        ({"rule": "copy", "arguments": {"of": "{txet}"}}, "arguments.of uses unknown field 'txet' (did you mean"),
        ({"prompt": "{text}", "arguments": {"of": "x"}}, "arguments are for a rule, but the stage has none"),
    ],
)
def test_each_fault_of_a_rule_is_named(user: str, changes: dict, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        stack({"name": "a", **changes})
    assert message in str(caught.value)



@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(sys.modules, "rules_of_a_test", sys.modules[__name__])
    yield "rules_of_a_test:failing"
    find_rule.cache_clear()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("raise", "failed: RuntimeError: no luck"),
        ("none", "failed: it returned None, allowed: a text"),
        ("number", "failed: it returned 3, allowed: a text"),
    ],
)
def test_a_rule_that_fails_on_one_question_is_recorded_and_the_others_go_on(
    here: str, text: str, message: str
) -> None:
    spec = stack({"name": "a", "rule": here, "empty": "nothing"}, {"name": "b", "reads": ["a"], "prompt": "{a}:"})
    engine = FakeEngine(lambda request: request.prompt, adapters=["b"])
    bad, good = Runner(spec, engine).run([{"text": text}, {"text": "fine"}])
    assert bad.violations == [f"a: rule {here} {message}"]
    assert (bad.stage("a").value, bad.answer, good.answer, good.violations) == ("nothing", "nothing:", "FINE:", [])


def test_a_rule_that_fails_on_an_item_or_in_a_loop(here: str) -> None:
    over = {"over": "text", "split": "lines", "rule": here, "empty": "nothing"}
    items = run(stack({"name": "a", "kind": "map", **over}), text="x\nraise\ny")
    assert items.answer == "X\nnothing\nY"
    assert items.violations == [f"a[1]: rule {here} failed: RuntimeError: no luck"]
    spec = stack({"name": "a", "kind": "repeat", **over})
    bad, good = Runner(spec, FakeEngine()).run([{"text": "x\nraise\ny"}, {"text": "x\ny\nz"}])
    assert (len(bad.stages[0].calls), bad.answer) == (2, "nothing")  # its end, and the whole stage's value
    assert bad.violations == items.violations
    assert (len(good.stages[0].calls), good.answer, good.violations) == (3, "Z", [])


def test_a_rule_that_has_nothing_to_say_breaks_nothing_but_its_contract(here: str) -> None:
    quiet = run(stack({"name": "a", "rule": here, "empty": "nothing"}), text="empty")
    assert (quiet.answer, quiet.violations) == ("nothing", [])
    bound = run(stack({"name": "a", "rule": here, "contract": YES_NO}), text="empty")
    assert bound.violations == ["a: promised one of yes, no, but got 'none'"]


def test_needs_is_checked_for_the_users_rules_too(here: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "failing", needs("wrod")(lambda fields: "x"))
    with pytest.raises(ConfigError, match="needs 'wrod'"):
        stack({"name": "a", "rule": here})


def test_failures_of_single_calls_do_not_hide_in_training(here: str) -> None:
    spec = stack({"name": "a", "rule": here})
    with pytest.raises(InputError, match="no luck"):
        spec.rule_outputs(spec.stages[0], {"text": "raise"})
    looping = stack({"name": "a", "kind": "repeat", "rule": "copy", "arguments": {"of": "x"}, "until": "never"})
    with pytest.raises(InputError, match="rule copy promised to end with 'never', but was ended by at_most 16"):
        looping.rule_outputs(looping.stages[0], {"text": "x"})
