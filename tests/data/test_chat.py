"""Conversations out of every form of instruction data, and what is left out with its reason."""

import gzip
import json

import pytest

from cairn.config import parse_config
from cairn.data.chat import ChatSource, checked_turns, read_conversations
from cairn.data.instructions import RowFault
from cairn.errors import ConfigError, DataError


def read(tmp_path, rows, name="rows.jsonl", **settings):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    file = tmp_path / name
    file.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    source = parse_config(ChatSource, {"name": "s", "licence": "none", "path": name, **settings}, "test")
    return read_conversations(source, tmp_path, seed=1)


def turns(found):
    return [one.turns for one in found.conversations]


def test_alpaca_dolly_and_other_pairs(tmp_path):
    rows = [
        {"instruction": "Add.", "input": "1 and 2", "output": " 3 "},
        {"instruction": "Who?", "context": "Ann is here.", "response": "Ann", "category": "qa"},
        {"prompt": "Say hi", "completion": "hi"},
        {"question": "Why?", "answer": "Because."},
        {"instruction": "Nothing below", "input": "", "output": "ok"},
    ]
    assert turns(read(tmp_path, rows, "rows.jsonl.gz")) == [
        (("user", "Add.\n\n1 and 2"), ("assistant", "3")),
        (("user", "Who?\n\nAnn is here."), ("assistant", "Ann")),
        (("user", "Say hi"), ("assistant", "hi")),
        (("user", "Why?"), ("assistant", "Because.")),
        (("user", "Nothing below"), ("assistant", "ok")),
    ]
    own = [{"Question": "Q", "Reply": "A"}]
    columns = {"instruction": "Question", "output": "Reply"}
    assert turns(read(tmp_path, own, columns=columns)) == [(("user", "Q"), ("assistant", "A"))]


def test_messages_of_several_turns_and_sharegpt(tmp_path):
    rows = [
        {"messages": [
            {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "More"},
            {"role": "user", "content": "please"}, {"role": "assistant", "content": "Hello again"},
            {"role": "user", "content": "unanswered"}]},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Ho"}]},
    ]  # fmt: skip
    assert turns(read(tmp_path, rows)) == [
        (("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "More\n\nplease"),
         ("assistant", "Hello again")),
        (("user", "Hi"), ("assistant", "Ho")),
    ]  # fmt: skip


MESSAGES = [
    {"message_id": "r", "parent_id": None, "role": "prompter", "text": "Hi", "lang": "en"},
    {"message_id": "b", "parent_id": "r", "role": "assistant", "text": "worse", "rank": 1, "lang": "en"},
    {"message_id": "a", "parent_id": "r", "role": "assistant", "text": "better", "rank": 0, "lang": "en"},
    {"message_id": "c", "parent_id": "a", "role": "prompter", "text": "And?", "lang": "en"},
    {"message_id": "d", "parent_id": "c", "role": "assistant", "text": "gone", "deleted": True, "lang": "en"},
    {"message_id": "e", "parent_id": "c", "role": "assistant", "text": "This.", "rank": None, "lang": "en"},
    {"message_id": "x", "parent_id": None, "role": "prompter", "text": "Hallo", "lang": "de"},
    {"message_id": "y", "parent_id": "x", "role": "assistant", "text": "Ja", "lang": "de"},
]


def test_openassistant_follows_the_best_reply_in_rows_and_in_trees(tmp_path):
    best = (("user", "Hi"), ("assistant", "better"), ("user", "And?"), ("assistant", "This."))
    found = read(tmp_path, MESSAGES, where={"lang": ["en"]})
    assert turns(found) == [best] and found.conversations[0].id == "r" and found.passed_over == 3

    def tree(name):
        one = next(message for message in MESSAGES if message["message_id"] == name)
        return {**one, "replies": [tree(below["message_id"]) for below in MESSAGES if below["parent_id"] == name]}

    trees = [{"message_tree_id": name, "tree_state": "ready", "prompt": tree(name)} for name in ("r", "x")]
    assert turns(read(tmp_path, trees))[0] == best and len(turns(read(tmp_path, trees))) == 2


def test_what_cannot_be_used_is_counted_and_the_limit_is_drawn_with_the_seed(tmp_path):
    good = [{"instruction": f"q{number}", "output": "a"} for number in range(20)]
    bad = [{"instruction": "x"}, {"instruction": "x", "output": "y" * 300}, {"instruction": 3, "output": "a"}]
    found = read(tmp_path, good + bad, limit=5, max_characters=200)
    assert dict(found.faults) == {"missing field": 1, "too long": 1, "wrong field": 1}
    assert found.first_fault.startswith("row 21: no output") and found.not_drawn == 15
    drawn = turns(read(tmp_path, good + bad, limit=5, max_characters=200))
    assert turns(found) == drawn and len(drawn) == 5 and drawn != turns(read(tmp_path, good))[:5]
    with pytest.raises(DataError, match="has no conversation .*1 x missing field.*the first: row 1: no output"):
        read(tmp_path, bad[:1])
    with pytest.raises(ConfigError, match="exactly one of path, hub"):
        parse_config(ChatSource, {"name": "s", "licence": "none"}, "test")


@pytest.mark.parametrize(
    ("said", "kind"),
    [([("user", "a"), ("tool", "b"), ("assistant", "c")], "unknown role"),
     ([("user", "a"), ("assistant", "  ")], "empty turn"), ([("user", "a")], "no answer"),
     ([("assistant", "a"), ("user", "b"), ("assistant", "c")], "wrong order"),
     ([("user", "\ud800"), ("assistant", "c")], "not Unicode")],
)  # fmt: skip
def test_turns_that_no_template_can_take(said, kind):
    with pytest.raises(RowFault) as caught:
        checked_turns(said)
    assert caught.value.kind == kind
