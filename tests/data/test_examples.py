"""Stage examples: what is refused and how it is said, and that training prompts are the serving prompts."""

import json
from collections import Counter

import pytest

from cairn.data.examples import (
    StackExample,
    TextPair,
    adapter_pairs,
    ambiguous_prompts,
    chain_pairs,
    direct_pairs,
    gold_calls,
    gold_fields,
    hold_out,
    read_examples,
)
from cairn.errors import DataError
from cairn.prompts import completion_text, parse_chain, parse_output
from cairn.stacks.spec import StackSpec
from cairn.stacks.stage import StageSpec

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


def test_balance_of_a_loop_goes_by_what_changes_its_state_and_with_even_task_by_task(tmp_path):
    read = {"name": "read", "kind": "repeat", "over": "story", "split": "sentences", "start": "none",
            "prompt": "{question} {state}. {item} Now:"}  # fmt: skip
    spec = SPEC.model_copy(update={"stages": [StageSpec.model_validate(read)], "output": "read"})
    notes = {"a": ["none", "none", "home"], "b": ["none", "out", "home"]}  # one call in three matters, and two
    rows = [
        {**ROW, "id": f"{task}{number}", "task": task, "stages": {"read": notes[task]}, "answer": "home"}
        for task in notes
        for number in range(10)
    ]
    examples = read_examples(write(tmp_path / "e.jsonl", *rows), spec)

    def count(**choice):
        made = Counter(pair.completion for pair in adapter_pairs(spec, "read", examples, **choice))
        return made[" home"], made[" out"], made[" none"]

    assert count() == (20, 10, 20 + 10)
    each = {"even": True, "limit": 1000}
    assert count(balance=0.5, **each) == (20, 10, 5 + 10), "of the first task half of 10, of the second half of 20"
    assert count(balance=0.3, **each) == (20, 10, 3 + 6)
    assert count(balance=0.8) == (20, 10, 24), "without even, of 30 in all"
    assert count(balance=9.0) == count()


def test_balance_is_refused_where_it_means_nothing(tmp_path):
    examples = read_examples(write(tmp_path / "e.jsonl", ROW), SPEC)
    with pytest.raises(DataError, match="map stages that keep a value, and of loops: 'holder'"):
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
        (changed(id="2", task=1), "line 2: task is a int, allowed: a text"),
        (changed(id="2", references="home"), "line 2: references, allowed: a list of other right answers"),
    ],
)
def test_a_bad_line_is_named(tmp_path, row, fault):
    with pytest.raises(DataError) as error:
        read_examples(write(tmp_path / "e.jsonl", ROW, row), SPEC)
    assert fault in str(error.value)
    assert "e.jsonl: 1 fault" in str(error.value)


LOOPS = StackSpec.model_validate(
    {
        "name": "loops",
        "inputs": ["moves", "limit"],
        "stages": [
            {"name": "place", "kind": "repeat", "over": "moves", "start": "home", "at_most": 4,
             "prompt": "{state}, {item}:"},
            {"name": "down", "kind": "repeat", "reads": ["place"], "start": "{limit}", "until": "done", "at_most": 3,
             "prompt": "{place} {state}:", "contract": {"kind": "regex", "pattern": "[0-9]+"}},
            {"name": "total", "rule": "calculate", "reads": ["down"], "arguments": {"expression": "{down} + {limit}"}},
            {"name": "say", "reads": ["place", "total"], "prompt": "{place} {total}."},
        ],
    }
)  # fmt: skip
LOOP_ROW = {
    "id": "1",
    "inputs": {"moves": "a\nb", "limit": "2"},
    "stages": {"place": ["hall", "yard"], "down": ["1", "0", "done"], "say": "well"},
    "answer": "well",
}


def looped(**stages):
    """A copy of LOOP_ROW with other gold values."""
    return {**LOOP_ROW, "stages": {**LOOP_ROW["stages"], **stages}}


def test_the_gold_calls_of_a_loop_have_gold_states(tmp_path):
    [example] = read_examples(write(tmp_path / "e.jsonl", LOOP_ROW), LOOPS)
    place, down = (gold_calls(LOOPS, LOOPS.stage(name), example) for name in ("place", "down"))
    assert [tuple(call) for call in place] == [("home, a:", "hall", "a", "home"), ("hall, b:", "yard", "b", "hall")]
    assert [(call.prompt, call.output) for call in down] == [("yard 2:", "1"), ("yard 1:", "0"), ("yard 0:", "done")]
    pairs = adapter_pairs(LOOPS, "down", [example])
    assert pairs == [TextPair(call.prompt, completion_text(call.output)) for call in down]
    dropped = gold_calls(LOOPS, LOOPS.stage("down"), example, {**gold_fields(LOOPS, example), "place": "none"})
    assert [call.prompt for call in dropped] == ["none 2:", "none 1:", "none 0:"]


def test_the_gold_of_a_rule_is_computed_or_given(tmp_path):
    rows = [LOOP_ROW, {**looped(total="7"), "id": "2"}]
    computed, given = read_examples(write(tmp_path / "e.jsonl", *rows), LOOPS)
    assert (computed.stages["total"], given.stages["total"]) == ("2", "7")
    assert [gold_fields(LOOPS, one)["total"] for one in (computed, given)] == ["2", "7"]
    assert [pair.prompt for pair in adapter_pairs(LOOPS, "say", [computed, given])] == ["yard 2.", "yard 7."]
    assert LOOPS.adapter_names() == ["place", "down", "say"]
    with pytest.raises(DataError, match="no stage has this adapter: 'total'. Allowed: place, down, say"):
        adapter_pairs(LOOPS, "total", [computed])


def test_the_chain_writes_a_loop_step_by_step(tmp_path):
    examples = read_examples(write(tmp_path / "e.jsonl", LOOP_ROW), LOOPS)
    [chain] = chain_pairs(LOOPS, examples)
    assert chain.completion == " place: hall\nplace: yard\ndown: 1\ndown: 0\ntotal: 2\nsay: well"
    assert parse_chain(chain.completion) == {"place": "yard", "down": "0", "total": "2", "say": "well"}
    collected = LOOPS.model_copy(update={"stages": [LOOPS.stages[0].model_copy(update={"collect": "all"})]})
    one = {"id": "1", "inputs": LOOP_ROW["inputs"], "stages": {"place": ["hall", "yard"]}, "answer": "hall\nyard"}
    examples = read_examples(write(tmp_path / "all.jsonl", one), collected)
    assert chain_pairs(collected, examples)[0].completion == " place: hall\nyard"


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        (looped(place="hall"), "stages.place is a str, allowed: a list with one text per call, the stop"),
        (looped(place=["hall"]), "stages.place has 1 values, but 'moves' is cut into 2 items"),
        (looped(place=["hall"] * 3), "stages.place has 3 values, but the loop ends after 2: 'moves' is cut into 2"),
        (looped(down=["1", "0"]), "stages.down has 2 values, but the last is not 'done'"),
        (looped(down=[]), "stages.down has 0 values, but the last is not 'done'"),
        (looped(down=["done", "1"]), "stages.down has 2 values, but the loop ends after 1: with 'done'"),
        (looped(down=["3", "2", "1"]), "stages.down: promised to end with 'done', but was ended by at_most 3; raise"),
        (looped(down=["3", "2", "1", "done"]), "stages.down has 4 values, but the loop ends after 3: by at_most 3"),
        (looped(down=["one", "done"]), "stages.down[0]: promised a text that matches [0-9]+, but got 'one'"),
        ({**LOOP_ROW, "inputs": {"moves": "a\nb", "limit": "two"}},
         "stages.total is not given: rule calculate failed: not an expression: '0 + two'"),
        (looped(total=3), "stages.total is a int, allowed: a text"),
        ({**LOOP_ROW, "inputs": {"moves": "a\nb\nc\nd\ne", "limit": "2"}, "stages": {**LOOP_ROW["stages"],
          "place": ["x"] * 4}}, "stages.place: promised to go over 5 items, but was ended by at_most 4; raise at_most"),
    ],
)  # fmt: skip
def test_a_loop_that_does_not_fit_its_stage_is_named(tmp_path, row, fault):
    with pytest.raises(DataError) as error:
        read_examples(write(tmp_path / "e.jsonl", row), LOOPS)
    assert f"line 1: {fault}" in str(error.value)


def test_keys_for_evaluation_may_be_there(tmp_path):
    row = {**ROW, "task": "3", "group": "story 1", "references": ["house"]}
    [plain], [kept] = (read_examples(write(tmp_path / "e.jsonl", one), SPEC) for one in (ROW, row))
    assert (plain.task, kept.task) == ("", "3")
    assert (kept.inputs, kept.stages, kept.answer) == (plain.inputs, plain.stages, plain.answer)


def test_pairs_can_be_distinct_and_drawn_evenly_from_tasks():
    counts = {"a": 3, "b": 40, "c": 60}
    row = {**ROW["stages"], "mention": ("yes", "no", "no"), "again": ("yes", "no", "yes")}
    examples = [
        StackExample(f"{task}{number}", {"story": f"Ann is {task}. Bob. {number}.", "question": "?"}, row, "home", task)
        for task, count in counts.items() for number in range(count)
    ]  # fmt: skip

    def by_task(pairs):
        return {task: sum(f"Ann is {task}." in pair.prompt for pair in pairs) for task in counts}

    assert by_task(adapter_pairs(SPEC, "holder", examples)) == counts
    assert by_task(adapter_pairs(SPEC, "holder", examples, limit=43, even=True)) == {"a": 3, "b": 20, "c": 20}
    assert by_task(adapter_pairs(SPEC, "holder", examples, limit=100, even=True)) == {"a": 3, "b": 40, "c": 57}
    assert adapter_pairs(SPEC, "holder", examples, limit=500, even=True) == adapter_pairs(SPEC, "holder", examples)
    weighted = adapter_pairs(SPEC, "holder", examples, limit=43, even=True, weights={"c": 3.0})
    assert by_task(weighted) == {"a": 3, "b": 10, "c": 30}
    few = adapter_pairs(SPEC, "holder", examples, limit=43, even=True, weights={"a": 9.0, "c": 0.25})
    assert by_task(few) == {"a": 3, "b": 32, "c": 8}, "a task that has less than its part leaves it to the others"
    distinct = adapter_pairs(SPEC, "holder", examples, distinct=True)
    everything = Counter(adapter_pairs(SPEC, "holder", examples))
    assert max(everything.values()) > 2
    assert Counter(adapter_pairs(SPEC, "holder", examples, distinct=2)) == {p: min(n, 2) for p, n in everything.items()}
    assert by_task(distinct) == {"a": 1, "b": 1, "c": 1} and len(set(distinct)) == len(distinct) == 3
    drawn = adapter_pairs(SPEC, "holder", examples, limit=43, even=True, seed=1)
    assert drawn == adapter_pairs(SPEC, "holder", examples, limit=43, even=True, seed=1)
    assert adapter_pairs(SPEC, "mention", examples, limit=20) == adapter_pairs(SPEC, "mention", examples, limit=20)
    with pytest.raises(DataError, match="even says how a limit is drawn, but there is none: 'holder'"):
        adapter_pairs(SPEC, "holder", examples, even=True)
    said: list[str] = []
    adapter_pairs(SPEC, "holder", examples, limit=43, even=True, weights={"a": 9.0, "c": 0.25}, say=said.append)
    assert said == ["fewer pairs than weights ask for: a 3 of 37; more examples of these tasks would be drawn"]
    with pytest.raises(DataError, match="weights are of the parts that even draws: 'holder'"):
        adapter_pairs(SPEC, "holder", examples, limit=9, weights={"a": 2.0})
    with pytest.raises(DataError, match=r"weights of adapter 'holder' name a task .*: 'd'.*Allowed: a, b, c"):
        adapter_pairs(SPEC, "holder", examples, limit=9, even=True, weights={"d": 2.0})


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
