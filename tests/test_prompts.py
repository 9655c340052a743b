"""Fields to prompts and back."""

from __future__ import annotations

import pytest

from cairn import prompts
from cairn.errors import ConfigError, InputError


def test_render_fills_names_keeps_braces_and_drops_the_last_white_space() -> None:
    fields = {"a": "x {b}", "b": "y", "unused": "z"}
    assert prompts.render("{{{a}}} and {b} \n", fields) == "{x {b}} and y"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{a", "single '{' at character 0"),
        ("a}", "single '}' at character 1"),
        ("{a!r}", "'{a!r}' at character 0"),
        ("{a:>3}", "'{a:>3}' at character 0"),
        ("{}", "'{}' at character 0"),
        ("{a.b}", "'{a.b}'"),
    ],
)
def test_only_plain_names_are_fields(template: str, message: str) -> None:
    with pytest.raises(ConfigError, match="prompt template") as caught:
        prompts.render(template, {"a": "x"})
    assert message in str(caught.value)


def test_all_faults_of_a_template_come_at_once() -> None:
    assert len(prompts.template_faults("{a b} } {ok}")) == 2


def test_unknown_field_lists_the_fields() -> None:
    with pytest.raises(InputError) as caught:
        prompts.render("{stroy}", {"story": "x", "question": "y"})
    assert str(caught.value).startswith("unknown field (did you mean story?): 'stroy'. Allowed: story, question")


def test_missing_value_is_an_error() -> None:
    with pytest.raises(InputError, match="field 'a' has no text: None"):
        prompts.render("{a}", {"a": None})  # type: ignore[dict-item]


def test_template_fields_in_order_each_once() -> None:
    assert prompts.template_fields("{b} {a} {{c}} {b}") == ["b", "a"]


def test_completion_and_output_are_inverse() -> None:
    assert prompts.completion_text("  kitchen\n") == " kitchen"
    assert prompts.parse_output(prompts.completion_text("a\nb")) == "a\nb"
    with pytest.raises(InputError, match='"none"'):
        prompts.completion_text("  ")


def test_few_shot_ends_with_the_open_prompt() -> None:
    shots = prompts.few_shot("Q: {q}\nA:", [({"q": "1"}, "one"), ({"q": "2"}, "two")], {"q": "3"})
    assert shots == "Q: 1\nA: one\n\nQ: 2\nA: two\n\nQ: 3\nA:"


def test_chain_reads_back_what_was_written() -> None:
    stages = [("mention", "Mary went.\nMary: hello."), ("link", "Mary"), ("answer", "home")]
    text = prompts.chain_text(stages)
    assert text == "mention: Mary went.\nMary: hello.\nlink: Mary\nanswer: home"
    assert prompts.parse_chain(text, ["mention", "link", "answer"]) == dict(stages)
    assert list(prompts.parse_chain(text, ["mention", "link", "answer"]))[-1] == "answer"


def test_chain_refuses_a_value_that_could_not_be_read_back() -> None:
    with pytest.raises(InputError, match="begins with the name of a stage"):
        prompts.chain_text([("facts", "x\nanswer: y"), ("answer", "z")])


def test_chain_of_a_model_that_rambles() -> None:
    found = prompts.parse_chain("so\nlink: Mary\nlink: John\nanswer:", ["link", "answer"])
    assert found == {"link": "John", "answer": ""}
    assert prompts.parse_chain("nothing here", ["link"]) == {}


def test_split_and_join() -> None:
    assert prompts.split_items("A is. B was!  Is C?\nD", "sentences") == ["A is.", "B was!", "Is C?", "D"]
    lines = prompts.split_items(" A is. B.\n\n C ", "lines")
    assert lines == ["A is. B.", "C"]
    assert prompts.split_items(prompts.join_items(lines), "lines") == lines
    assert prompts.split_items("  ", "sentences") == []


def test_combine_keeps_items_in_order_or_joins_values() -> None:
    items, values = ["a", "b", "c"], ["yes", "no", "yes"]
    assert prompts.combine_outputs(items, values, keep="yes", join=" ") == "a c"
    assert prompts.combine_outputs(items, values) == "yes\nno\nyes"
    assert prompts.combine_outputs(items, ["no"] * 3, keep="yes", empty="nothing") == "nothing"
    with pytest.raises(InputError, match="one value per item"):
        prompts.combine_outputs(items, ["yes"])
