"""A stack is checked whole before a weight is loaded, and its calls are the same in training and serving."""

from __future__ import annotations

from pathlib import Path

import pytest

from cairn.config import save_config
from cairn.errors import ConfigError, InputError
from cairn.stacks.spec import StackSpec, check_artifacts, check_budgets, load_stack
from tests.stacks.stack_yaml import INPUTS, QUESTION, STACK, STORY, write_stack


@pytest.fixture
def spec(tmp_path: Path) -> StackSpec:
    return load_stack(write_stack(tmp_path))


def faults(tmp_path: Path, *replacements: tuple[str, str], overrides: tuple[str, ...] = ()) -> list[str]:
    text = STACK
    for old, new in replacements:
        assert old in text
        text = text.replace(old, new, 1)
    with pytest.raises(ConfigError) as caught:
        load_stack(write_stack(tmp_path, text), overrides)
    return caught.value.faults


def test_loads_from_file_or_folder_and_saves_back_equal(tmp_path: Path, spec: StackSpec) -> None:
    assert load_stack(tmp_path) == spec
    assert spec.folder == tmp_path.resolve()
    save_config(spec, tmp_path / "again.yaml")
    assert load_stack(tmp_path / "again.yaml") == spec


def test_what_a_stack_knows(spec: StackSpec) -> None:
    assert spec.answer_stage == "answer"
    assert spec.adapter_names() == ["mention", "link", "answer"]
    assert [stage.name for stage in spec.stages_of("mention")] == ["mention", "follow"]
    assert spec.chain_stages == ["mention", "link", "follow", "answer"]
    assert spec.comparator_prompt == "{story}\n{question}\nAnswer:"
    with pytest.raises(ConfigError, match=r"no stage 'folow' \(did you mean follow\?\)"):
        spec.stage("folow")


def test_calls_of_map_and_once(spec: StackSpec) -> None:
    calls = spec.calls(spec.stage("mention"), INPUTS)
    sentences = ["John took the milk.", "Mary went to the garden.", "John went to the office."]
    assert [call.item for call in calls] == sentences
    assert calls[0].prompt == f"{QUESTION}\nJohn took the milk.\nMentioned:"
    fields = {**INPUTS, "follow": "John went to the office."}
    once = spec.calls(spec.stage("answer"), fields)
    assert [(call.item, call.prompt) for call in once] == [(None, f"John went to the office.\n{QUESTION}\nAnswer:")]


def test_value_keeps_items(spec: StackSpec) -> None:
    stage = spec.stage("mention")
    items = spec.items(stage, INPUTS)
    assert stage.value(INPUTS, items, ["yes", "no", "yes"]) == "John took the milk. John went to the office."
    assert stage.value(INPUTS, items, ["no", "no", "no"]) == "none"


def test_a_map_over_nothing_kept_makes_no_call(tmp_path: Path) -> None:
    text = STACK.replace("over: story\n    split: sentences\n    keep: \"yes\"\n    join: \" \"\n    reads: [link]",
                         "over: mention\n    split: sentences\n    reads: [link]")  # fmt: skip
    spec = load_stack(write_stack(tmp_path, text))
    stage = spec.stage("follow")
    assert spec.calls(stage, {**INPUTS, "mention": "none", "link": "x"}) == []
    assert stage.value({}, [], []) == "none"
    assert len(spec.calls(stage, {**INPUTS, "mention": STORY, "link": "x"})) == 3


def test_missing_field_of_a_call(spec: StackSpec) -> None:
    with pytest.raises(InputError, match="unknown field.*'story'. Allowed: question"):
        spec.calls(spec.stage("mention"), {"question": "x"})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("reads: [mention]", "reads: [mentoin]", "stage link: reads unknown field 'mentoin' (did you mean mention?)"),
        ("reads: [mention]", "reads: [mention, answer]", "stage link: reads 'answer' is a later stage (a cycle)"),
        ("reads: [mention]", "reads: [mention, link]", "stage link: reads 'link' is the stage itself"),
        ("reads: [follow]", "reads: []", "stage answer: prompt uses {follow}, which is not among its reads"),
        ("{follow}\\n", "{stroy}\\n", "prompt uses unknown field 'stroy' (did you mean story?)"),
        ("{follow}\\n", "{follow\\n", "stage answer: prompt: "),
        ("name: link", "name: mention", "stage 'mention' is there 2 times"),
        ("name: link", "name: story", "stage 'story' has the name of an input"),
        ("name: link", "name: item", "'item' is the item of a map stage"),
        ("    over: story\n", "", "stage mention: kind map needs over"),
        ("over: story", "over: tale", "stage mention: over unknown field 'tale'"),
        ("    kind: map\n", "", "stage mention: over is for kind map"),
        ('keep: "yes"', "keep: maybe", "stage mention: keep 'maybe' is not a value that its contract allows"),
        ("{item}", "it", "stage mention: prompt of a map stage must read {item}"),
        ("fields: [mention, question]", "fields: [mentoin]", "stage link: contract copies from 'mentoin'"),
        ("inputs: [story", "output: anser\ninputs: [story", "output: no stage 'anser' (did you mean answer?)"),
        ("inputs: [story", "chain: [answer, link]\ninputs: [story", "chain: must end with the answer's stage 'answer'"),
        ("inputs: [story", "chain: [lin, answer]\ninputs: [story", "chain: no stage 'lin' (did you mean link?)"),
        ("inputs: [story", "direct_prompt: '{x}'\ninputs: [story", "direct_prompt uses unknown field 'x'"),
        ("reads: [follow]", "reads: [follow]\n    constrain: true", "constrain needs a contract of kind choices"),
        ('keep: "yes"', "keep: yes", 'put the word into quotes: "yes"'),
        ("kind: map", "knid: map", "stages.0.knid: unknown key (did you mean kind?)"),
        ("max_new_tokens: 3", "max_new_tokens: 0", "stages.0.sampling.max_new_tokens"),
    ],
)  # fmt: skip
def test_each_fault_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert any(message in fault for fault in faults(tmp_path, (old, new)))


def test_all_faults_in_one_error(tmp_path: Path) -> None:
    found = faults(
        tmp_path,
        ("reads: [mention]", "reads: [nothing]"),
        ('keep: "yes"', "keep: maybe"),
        ("inputs: [story", "output: nowhere\ninputs: [story"),
    )
    assert [fault.split(":")[0] for fault in found] == ["stage mention"] + ["stage link"] * 3 + ["output"]


def test_no_stack_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no stack there. Next: give a folder with a stack.yaml"):
        load_stack(tmp_path / "nothing")


EXPERIMENT = "recipe: experiment\nname: trial\ncompare: {seeds: [0, 1]}\nstack:\n"


def test_a_stack_can_be_a_section_of_an_experiment(tmp_path: Path, spec: StackSpec) -> None:
    indented = "".join(f"  {line}\n" for line in STACK.splitlines())
    (tmp_path / "recipes").mkdir()
    recipe = tmp_path / "recipes" / "trial.yaml"
    recipe.write_text(EXPERIMENT + indented)
    loaded = load_stack(recipe)
    assert loaded.model_dump() == spec.model_dump()
    assert loaded.folder == (tmp_path / "recipes").resolve()
    assert load_stack(recipe, ["base=org/model", "stages.0.retries=3"]).stages[0].retries == 3
    wrong = indented.replace("reads: [mention]", "reads: [mentoin]").replace('keep: "yes"', "keep: maybe")
    recipe.write_text(EXPERIMENT + wrong)
    with pytest.raises(ConfigError) as caught:
        load_stack(recipe)
    assert all(fault.startswith("stack: stage ") for fault in caught.value.faults)
    assert {fault.split(":")[1] for fault in caught.value.faults} == {" stage mention", " stage link", " stage follow"}
    recipe.write_text("recipe: experiment\nname: trial\n")
    with pytest.raises(ConfigError, match="stack: required, but missing"):
        load_stack(recipe)
    recipe.write_text(EXPERIMENT + "  nmae: x\n")
    with pytest.raises(ConfigError, match=r"stack.nmae: unknown key \(did you mean name\?\)"):
        load_stack(recipe)


def test_overrides(tmp_path: Path) -> None:
    path = write_stack(tmp_path)
    assert load_stack(path, ["base=org/model"]).base == "org/model"
    assert faults(tmp_path, overrides=("bsae=x",)) == [
        "bsae: unknown key (did you mean base?), allowed: name, stages, inputs, description, base, output, examples, "
        "chain, direct_prompt, training"
    ]


def test_a_base_beside_the_stack_is_found(tmp_path: Path) -> None:
    (tmp_path / "stack" / "base").mkdir(parents=True)
    path = write_stack(tmp_path / "stack")
    assert load_stack(path, ["base=base"]).base_place == str(tmp_path.resolve() / "stack" / "base")
    assert load_stack(path, ["base=org/base"]).base_place == "org/base"


def test_artifacts_missing_or_damaged_are_one_error(tmp_path: Path, spec: StackSpec) -> None:
    good, empty = tmp_path / "stages" / "mention", tmp_path / "stages" / "link"
    for folder in (good, empty):
        folder.mkdir(parents=True)
        (folder / "adapter_config.json").write_text("{}")
    (good / "adapter_model.safetensors").write_bytes(b"weights")
    (empty / "adapter_model.safetensors").touch()
    with pytest.raises(ConfigError) as caught:
        check_artifacts(spec)
    assert len(caught.value.faults) == 2
    assert "adapter 'link' is damaged" in caught.value.faults[0]
    assert "adapter 'answer' is missing" in caught.value.faults[1]
    assert "Next: train it with `cairn finetune" in str(caught.value)
    with pytest.raises(ConfigError, match="has no folder"):
        check_artifacts(StackSpec.model_validate(spec.model_dump()))


def test_budgets(spec: StackSpec) -> None:
    check_budgets(spec, 64)
    with pytest.raises(ConfigError) as caught:
        check_budgets(spec, 32)
    assert len(caught.value.faults) == 3  # all but mention, which writes 3
    assert "max_new_tokens 32 leaves no room" in caught.value.faults[0]
