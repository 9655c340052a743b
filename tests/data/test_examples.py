"""Stage examples: what is refused and how it is said, and that training prompts are the serving prompts."""

import json

import pytest

from cairn.data.examples import (
    TextPair,
    adapter_pairs,
    ambiguous_prompts,
    chain_pairs,
    direct_pairs,
    gold_fields,
    hold_out,
    read_examples,
)
from cairn.errors import DataError
from cairn.prompts import completion_text, parse_chain, parse_output
from cairn.stacks.spec import StackSpec

YES_NO = {"kind": "choices", "values": ["yes", "no"]}
SPEC = StackSpec.model_validate(
    {
        "name": "toy",
        "inputs": ["story", "question"],
        "stages": [
            {"name": "mention", "kind": "map", "over": "story", "split": "sentences", "keep": "yes",
             "contract": YES_NO, "prompt": "{question}\nSentence: {item}\nNeeded:"},
            {"name": "holder", "reads": ["mention"], "prompt": "{mention}\nWho:"},
            {"name": "again", "kind": "map", "over": "story", "split": "sentences", "keep": "yes", "adapter": "mention",
             "contract": YES_NO, "reads": ["holder"], "prompt": "{holder}\nSentence: {item}\nNeeded:"},
            {"name": "answer", "reads": ["again"], "prompt": "{again}\n{question}\nAnswer:"},
        ],
    }
)  # fmt: skip
ROW = {
    "id": "1",
    "inputs": {"story": "Ann took the cup. Bob slept. Ann went home.", "question": "Where is the cup?"},
    "stages": {"mention": ["yes", "no", "no"], "holder": "Ann", "again": ["yes", "no", "yes"], "answer": "home"},
    "answer": "home",
}


def changed(**changes):
    """A copy of ROW with `a__b=value` set at ["a"]["b"]; None removes the key."""
    row = json.loads(json.dumps(ROW))
    for place, value in changes.items():
        node = row
        *parents, leaf = place.split("__")
        for parent in parents:
            node = node[parent]
        if value is None:
            del node[leaf]
        else:
            node[leaf] = value
    return row


def write(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_gold_values_flow_through_the_stack(tmp_path):
    [example] = read_examples(write(tmp_path / "e.jsonl", ROW), SPEC)
    fields = gold_fields(SPEC, example)
    assert fields["mention"] == "Ann took the cup."
    assert fields["again"] == "Ann took the cup.\nAnn went home."
    assert fields["answer"] == "home"


def test_training_prompts_are_the_prompts_a_runner_makes(tmp_path):
    """Plays a runner whose model always writes the gold value, and collects the prompts that it was given."""
    [example] = read_examples(write(tmp_path / "e.jsonl", ROW), SPEC)
    served = {name: [] for name in SPEC.adapter_names()}
    fields = dict(example.inputs)
    for stage in SPEC.stages:
        gold = example.stages[stage.name]
        gold = [gold] if isinstance(gold, str) else list(gold)
        calls = SPEC.calls(stage, fields)
        served[stage.adapter_name] += [(call.prompt, completion_text(v)) for call, v in zip(calls, gold, strict=True)]
        outputs = [parse_output(completion_text(value)) for value in gold]
        fields[stage.name] = stage.value(fields, SPEC.items(stage, fields), outputs)
    for adapter in SPEC.adapter_names():
        assert sorted(adapter_pairs(SPEC, adapter, [example])) == sorted(served[adapter])
    assert len(served["mention"]) == 6, "both stages of the shared adapter"
    assert served["answer"] == [("Ann took the cup.\nAnn went home.\nWhere is the cup?\nAnswer:", " home")]


def test_comparators_share_a_prompt_and_the_chain_ends_with_the_answer(tmp_path):
    examples = read_examples(write(tmp_path / "e.jsonl", ROW), SPEC)
    [direct], [chain] = direct_pairs(SPEC, examples), chain_pairs(SPEC, examples)
    assert direct.prompt == chain.prompt
    assert ROW["inputs"]["story"] in direct.prompt and ROW["inputs"]["question"] in direct.prompt
    assert direct.completion == " home"
    assert parse_chain(chain.completion) == {
        "mention": "Ann took the cup.",
        "holder": "Ann",
        "again": "Ann took the cup.\nAnn went home.",
        "answer": "home",
    }
    short = SPEC.model_copy(update={"chain": ["again", "answer"]})
    assert list(parse_chain(chain_pairs(short, examples)[0].completion)) == ["again", "answer"]


def test_balance_keeps_every_kept_item_and_draws_the_others_by_seed(tmp_path):
    rows = [changed(id=str(number), stages__mention=["yes", "no", "no"]) for number in range(40)]
    examples = read_examples(write(tmp_path / "e.jsonl", *rows), SPEC)
    everything = adapter_pairs(SPEC, "mention", examples)
    balanced = adapter_pairs(SPEC, "mention", examples, balance=0.5, seed=3)

    def count(pairs, word):
        return sum(pair.completion == f" {word}" for pair in pairs)

    assert (count(everything, "yes"), count(everything, "no")) == (40 + 80, 80 + 40)
    assert (count(balanced, "yes"), count(balanced, "no")) == (120, 20 + 40)
    assert balanced == adapter_pairs(SPEC, "mention", examples, balance=0.5, seed=3)
    assert balanced != adapter_pairs(SPEC, "mention", examples, balance=0.5, seed=4)
    assert len(adapter_pairs(SPEC, "mention", examples, limit=7)) == 7


def test_balance_is_refused_where_it_means_nothing(tmp_path):
    examples = read_examples(write(tmp_path / "e.jsonl", ROW), SPEC)
    with pytest.raises(DataError, match="map stages that keep a value: 'holder'"):
        adapter_pairs(SPEC, "holder", examples, balance=1.0)
    with pytest.raises(DataError, match=r"no stage has this adapter \(did you mean holder\?\): 'holdr'"):
        adapter_pairs(SPEC, "holdr", examples)


def test_an_item_list_that_its_maker_left_empty_makes_no_pair(tmp_path):
    spec = StackSpec.model_validate(
        {
            "name": "toy",
            "inputs": ["story"],
            "stages": [
                {"name": "pick", "kind": "map", "over": "story", "keep": "yes", "prompt": "{item}?"},
                {"name": "again", "kind": "map", "over": "pick", "prompt": "{item}!"},
            ],
        }
    )
    row = {"id": "1", "inputs": {"story": "a\nb"}, "stages": {"pick": ["no", "no"], "again": []}, "answer": "none"}
    [example] = read_examples(write(tmp_path / "e.jsonl", row), spec)
    assert len(adapter_pairs(spec, "pick", [example])) == 2
    assert adapter_pairs(spec, "again", [example]) == []


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("{not json", "line 2: is not JSON"),
        ("[1]", "line 2: is a list, allowed: an object with id, inputs, stages and answer"),
        (changed(id="2", answer=None), "line 2: answer is missing"),
        (changed(id="2", answer="  "), "line 2: answer is empty"),
        (changed(id=2), "line 2: id is a int, allowed: a text"),
        (changed(id="1"), "line 2: id '1' was used in line 1"),
        (changed(id="2", inputs__story=None), "line 2: inputs.story is missing"),
        (changed(id="2", inputs__stori="x"), "line 2: unknown input 'stori' (did you mean story?)"),
        (changed(id="2", inputs=None), "line 2: inputs is missing, allowed: story, question"),
        (changed(id="2", stages__holder=None), "line 2: stages.holder is missing"),
        (changed(id="2", stages__holdr="Ann"), "line 2: unknown stage 'holdr' (did you mean holder?)"),
        (changed(id="2", stages__holder=""), "line 2: stages.holder is empty"),
        (changed(id="2", stages__mention="yes"), "line 2: stages.mention is a str, allowed: a list with one text"),
        (changed(id="2", stages__mention=["yes"]), "line 2: stages.mention has 1 values, but 'story' is cut into 3"),
        (changed(id="2", stages__mention=["yes", "", "no"]), "line 2: stages.mention[1] is empty"),
        (changed(id="2", stages__mention=["yes", "no", "maybe"]), "line 2: stages.mention[2]: promised one of yes, no"),
        (changed(id="2", answer="garden"), "line 2: answer 'garden' is not the value of the last stage answer: 'home'"),
        (changed(id="2", extra=1), "line 2: unknown key 'extra', allowed: id, inputs, stages, answer"),
    ],
)
def test_a_bad_line_is_named(tmp_path, row, fault):
    with pytest.raises(DataError) as error:
        read_examples(write(tmp_path / "e.jsonl", ROW, row), SPEC)
    assert fault in str(error.value)
    assert "e.jsonl: 1 fault" in str(error.value)


def test_all_faults_are_counted_and_only_some_are_listed(tmp_path):
    rows = [changed(id=str(number), answer="garden") for number in range(30)]
    with pytest.raises(DataError) as error:
        read_examples(write(tmp_path / "e.jsonl", *rows), SPEC, shown=5)
    text = str(error.value)
    assert "30 faults" in text and "line 5:" in text and "line 6:" not in text and "and 25 more" in text


def test_files_without_examples(tmp_path):
    with pytest.raises(DataError, match="the example file is empty"):
        read_examples(write(tmp_path / "e.jsonl", "", ""), SPEC)
    with pytest.raises(DataError, match="no such example file.*check `examples` in stack.yaml"):
        read_examples(tmp_path / "none.jsonl", SPEC)
    (tmp_path / "bytes.jsonl").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(DataError, match="cannot be read"):
        read_examples(tmp_path / "bytes.jsonl", SPEC)


def test_ambiguous_prompts_are_counted():
    pairs = [TextPair("p", " a"), TextPair("p", " b"), TextPair("q", " a"), TextPair("q", " a")]
    assert ambiguous_prompts(pairs) == 2


def test_hold_out_is_seeded_and_disjoint(tmp_path):
    examples = read_examples(write(tmp_path / "e.jsonl", *(changed(id=str(n)) for n in range(20))), SPEC)
    train, held = hold_out(examples, 5, seed=1)
    assert len(held) == 5 and len(train) == 15
    assert not {e.id for e in train} & {e.id for e in held}
    assert (train, held) == hold_out(examples, 5, seed=1) and held != hold_out(examples, 5, seed=2)[1]
    with pytest.raises(DataError, match="leaves none for training: 20"):
        hold_out(examples, 20, seed=1)
