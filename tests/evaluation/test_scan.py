"""SCAN's gold hand-offs, held against a second reading of the language over all of its commands; and its task."""

from __future__ import annotations

import itertools
import json
import lzma
from pathlib import Path

import pytest

from cairn.bases import load_tokenizer
from cairn.data.examples import adapter_pairs, chain_pairs, direct_pairs, read_examples
from cairn.engines.fake_engine import FakeEngine
from cairn.errors import ConfigError, DataError
from cairn.evaluation.tasks.registry import task_by_name, task_options
from cairn.evaluation.tasks.scan import SPLITS, TASK, ScanOptions, ScanRow, read_scan
from cairn.evaluation.tasks.scan_steps import gold_stages, interpret, phrases_rule, spelled_rule, stage_example
from cairn.models.tokenization import completion_ids, prompt_ids
from cairn.prompts import split_items
from cairn.stacks.runner import Runner
from cairn.stacks.spec import StackSpec
from cairn.verbs.comparison.recipe import ExperimentRecipe, load_recipe

STAGES = ("parts", "times", "steps", "act")


def phrases() -> list[str]:
    verbs = ["walk", "look", "run", "jump"]
    aimed = [f"{verb} {side}" for verb in [*verbs, "turn"] for side in ("left", "right")]
    turned = [phrase.replace(" ", f" {how} ") for phrase in aimed for how in ("opposite", "around")]
    return [f"{phrase}{count}" for phrase in [*verbs, *aimed, *turned] for count in ("", " twice", " thrice")]


def commands() -> list[str]:
    once = phrases()
    return [*once, *(f"{a} {word} {b}" for a, b in itertools.product(once, repeat=2) for word in ("and", "after"))]


def meaning(text: str) -> list[str]:
    """The interpretation rules of the paper's figure 7, by recursion on the text from its outside in."""
    if " and " in text:
        first, second = text.split(" and ")
        return meaning(first) + meaning(second)
    if " after " in text:
        first, second = text.split(" after ")
        return meaning(second) + meaning(first)
    for word, count in ((" twice", 2), (" thrice", 3)):
        if text.endswith(word):
            return meaning(text.removesuffix(word)) * count
    words = text.split()
    turn = [] if len(words) == 1 else [f"I_TURN_{words[-1].upper()}"]
    act = [] if words[0] == "turn" else [f"I_{words[0].upper()}"]
    if "around" in words:
        return (turn + act) * 4
    return turn * (2 if "opposite" in words else 1) + act


@pytest.fixture(scope="module")
def recipe(request: pytest.FixtureRequest) -> ExperimentRecipe:
    return load_recipe(request.config.rootpath / "recipes" / "scan.yaml")


def test_the_hand_offs_of_every_command_mean_what_the_paper_says() -> None:
    everything = commands()
    assert len(everything) == len(set(everything)) == 20_910  # the size that the paper gives
    for command in everything:
        stages = gold_stages(command)
        assert stages["act"] == meaning(command)
        # Each hand-off has one output per item of the one before, as the stack will cut it.
        assert len(stages["times"]) == len(split_items(stages["parts"], "lines"))
        assert len(stages["steps"]) == sum(len(split_items(text, "lines")) for text in stages["times"])
        spelled = [spelled_rule({"item": text}) for text in stages["steps"]]
        assert len(stages["act"]) == sum(len(split_items(text, "lines")) for text in spelled)
        assert max(len(text.split()) for text in stages["steps"]) <= 9
        phrases = phrases_rule({"command": command, "parts": stages["parts"]})
        assert not {"and", "after"} & set(phrases.split()) and len(phrases.split()) >= len(command.split()) - 1


def test_a_few_commands_written_by_hand() -> None:
    assert interpret("jump") == "I_JUMP"
    assert interpret("turn left twice") == "I_TURN_LEFT I_TURN_LEFT"
    assert interpret("run opposite right") == "I_TURN_RIGHT I_TURN_RIGHT I_RUN"
    assert interpret("look after walk left") == "I_TURN_LEFT I_WALK I_LOOK"
    assert gold_stages("walk and jump left twice") == {
        "parts": "1\n 3 4 5",
        "times": ["walk", "jump left\n jump left"],
        "steps": ["walk: do", "jump: left do", "jump: left do"],
        "act": ["I_WALK", "I_TURN_LEFT", "I_JUMP", "I_TURN_LEFT", "I_JUMP"],
    }


def test_the_rules_between_the_stages() -> None:
    assert gold_stages("look after turn around left")["parts"] == "3 4 5\n 1"
    assert gold_stages("turn opposite left")["steps"] == ["turn: left left"]
    assert phrases_rule({"command": "look after turn left", "parts": "3 4\n 1"}) == "turn left\n look"
    assert spelled_rule({"item": "jump: left do left do"}) == "left\n jump\n left\n jump"
    with pytest.raises(DataError, match="no word has this number"):
        phrases_rule({"command": "look after turn left", "parts": "3 5"})


@pytest.mark.parametrize(
    "command", ["hop", "turn", "walk around", "walk upwards left", "walk twice twice", "run and run and run", "and", ""]
)
def test_what_is_no_command_is_refused(command: str) -> None:
    with pytest.raises(DataError, match="not a SCAN command"):
        gold_stages(command)


def test_an_example_that_differs_from_the_file_is_refused() -> None:
    with pytest.raises(DataError, match="x: the rules give 'I_WALK I_WALK' for 'walk twice', the file other actions"):
        stage_example("x", "walk twice", ["I_WALK"])


def test_examples_are_right_for_the_recipe_and_fit_its_base(tmp_path: Path, recipe: ExperimentRecipe) -> None:
    longest = ["run around right thrice and look around left thrice", "turn opposite left thrice after jump"]
    rows = [stage_example(str(n), c, meaning(c)) for n, c in enumerate([*phrases(), *longest])]
    file = tmp_path / "train.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    examples = read_examples(file, recipe.stack)
    assert [example.answer for example in examples] == [row["answer"] for row in rows]

    tokenizer = load_tokenizer(recipe.stack.base)
    stages = {name: adapter_pairs(recipe.stack, name, examples) for name in STAGES}
    whole = {"direct": direct_pairs(recipe.stack, examples), "chain": chain_pairs(recipe.stack, examples)}
    longest_of: dict[str, int] = {}
    for name, pairs in {**stages, **whole}.items():
        sizes = [(len(prompt_ids(tokenizer, p)), len(completion_ids(tokenizer, c))) for p, c in set(pairs)]
        longest_of[name] = max(map(sum, sizes))
        if name in stages:  # room for the longest right output, its end mark included
            assert max(written for _, written in sizes) <= recipe.stack.stage(name).sampling.max_new_tokens
    assert max(longest_of[name] for name in STAGES) < 128
    assert max(longest_of.values()) < 1024


def test_the_rules_may_stand_in_the_stack(recipe: ExperimentRecipe) -> None:
    """A stack of rules alone answers phrases and compounds, by the stack's own cutting and joining."""
    rows = recipe.stack.model_dump(exclude_unset=True)
    for stage in rows["stages"]:
        for key in ("prompt", "sampling", "retries"):
            stage.pop(key, None)
        stage.setdefault("rule", f"cairn.evaluation.tasks.scan_steps:{stage['name']}_rule")
    asked = [*phrases(), *commands()[60::397]]
    traces = Runner(StackSpec(**rows), FakeEngine()).run([{"command": command} for command in asked])
    assert [trace.answer for trace in traces] == [" ".join(meaning(command)) for command in asked]
    assert not any(trace.violations for trace in traces)


def write(folder: Path, split: str, train: list[str], test: list[str]) -> None:
    for part, chosen in (("train", train), ("test", test)):
        lines = "".join(f"IN: {command} OUT: {' '.join(meaning(command))}\n" for command in chosen)
        (folder / f"tasks_{part}_{SPLITS[split]}.txt.xz").write_bytes(lzma.compress(lines.encode()))


def test_a_split_is_read_drawn_and_scored(tmp_path: Path) -> None:
    train = ["jump", "jump", "jump", "walk twice", "run left and look"]
    write(tmp_path, "add_jump", train, ["jump twice", "walk and jump around left thrice", "jump left"])
    task = task_by_name("scan")
    data = task.load(tmp_path, task_options(task, {"split": "add_jump"}, "here"))
    assert [row["inputs"]["command"] for row in data.train] == train  # repeats stay: a test of the split relies on them
    assert len({row["id"] for row in data.train}) == 5 and {row["task"] for row in data.train} == {"add_jump"}
    assert data.facts["counts"]["train"] == 5 and data.facts["counts"]["train_distinct"] == 3
    first, second, _ = data.test
    assert (first.inputs, first.answer, first.stages["parts"]) == (
        {"command": "jump twice"},
        "I_JUMP I_JUMP",
        "1 2",
    )
    assert second.stages["act"] == tuple(second.answer.split())
    assert [task.groups(question) for question in data.test] == ["actions 01-08", "actions 25-32", "actions 01-08"]
    assert task.score("I_JUMP  I_JUMP\n", first) == 1.0
    assert task.score("I_JUMP", first) == task.score("", first) == 0.0
    answers = ["I_JUMP I_WALK", second.answer, ""]
    assert task.measures(answers, data.test) == {"right_length": pytest.approx(2 / 3)}

    drawn = [
        TASK.load(tmp_path, ScanOptions(split="add_jump", train_questions=2, test_questions=1, seed=s))
        for s in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] and len(drawn[0].train) == 2 and len(drawn[0].test) == 1
    with pytest.raises(DataError, match="train_questions asks for more rows than there are"):
        TASK.load(tmp_path, ScanOptions(split="add_jump", train_questions=6))


@pytest.mark.parametrize(
    ("guide", "held"),
    [
        ("walk", {"walk twice", "walk and jump"}),
        ("turn right", {"turn right twice", "run and turn right"}),
        ("longest", {"run left thrice", "turn right twice and look around left"}),
    ],
)
def test_a_guide_takes_its_questions_from_training_and_never_opens_the_test_file(
    tmp_path: Path, guide: str, held: set[str]
) -> None:
    rows = {
        "walk": ["walk", "walk twice", "walk and jump", "jump"],
        "turn right": ["turn right", "turn right twice", "run and turn right", "turn opposite right"],
        "longest": ["jump", "run left thrice", "look twice", "turn right twice and look around left"],
    }[guide]
    write(tmp_path, "simple", rows, ["look"])
    (tmp_path / "tasks_test_simple.txt.xz").unlink()
    data = TASK.load(tmp_path, ScanOptions(guide=guide))
    assert {question.inputs["command"] for question in data.test} == held
    assert {row["inputs"]["command"] for row in data.train} == set(rows) - held
    assert data.facts["guide"] == guide and data.facts["counts"]["left_out_of_training_for_guide"] == len(held)


def test_a_random_guide_never_shares_a_command_with_training(tmp_path: Path) -> None:
    write(tmp_path, "simple", phrases() * 2, ["look"])
    data = TASK.load(tmp_path, ScanOptions(guide="random"))
    asked = {question.inputs["command"] for question in data.test}
    assert len(asked) == len(data.test) == len(phrases()) // 10
    assert not asked & {row["inputs"]["command"] for row in data.train}


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--set task.folder"):
        TASK.load(tmp_path, ScanOptions())
    file = tmp_path / "tasks_train_simple.txt"
    for line in ("walk OUT: I_WALK", "IN: walk", "IN: OUT: I_WALK", "IN: walk OUT:"):
        file.write_text(f"IN: run OUT: I_RUN\n{line}\n")
        with pytest.raises(DataError, match="line 2: not a SCAN line"):
            read_scan(file, "a")
    file.write_text("\n")
    with pytest.raises(DataError, match="the file is empty"):
        read_scan(file, "a")
    file.write_text("IN: run twice OUT: I_RUN I_RUN\n")
    assert read_scan(file, "a") == [ScanRow("a-1", "run twice", ("I_RUN", "I_RUN"))]
    (tmp_path / "tasks_test_simple.txt").write_text("IN: run twice OUT: I_RUN I_RUN\n")
    with pytest.raises(DataError, match="test commands are in training too"):
        TASK.load(tmp_path, ScanOptions())
    with pytest.raises(ConfigError, match="split"):
        task_options(TASK, {"split": "addprim_jump"}, "here")
