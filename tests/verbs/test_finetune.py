"""`cairn finetune`: a whole tiny stack, fair to its comparators, resumable, and able to travel."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import cairn.training.finetune as training_finetune
from cairn.cli import main
from cairn.errors import ConfigError, DataError, StorageError
from cairn.models.tokenization import prompt_ids
from cairn.stacks.spec import check_artifacts, load_stack
from cairn.training.batching import encode_pairs
from cairn.training.finetune_plan import stack_training
from cairn.training.phases import comparator_config, plan_phases
from cairn.verbs.finetune import finetune_stack
from tests.verbs.toy_stack import STACK, changed, example_rows, make_home, same


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return make_home(tmp_path_factory.mktemp("home"))


@pytest.fixture(scope="module")
def trained(home):
    out = home / "out"
    facts = finetune_stack(load_stack(home / "stack.yaml"), out)
    return out, facts


def test_the_folder_is_a_whole_stack(trained):
    out, facts = trained
    spec = load_stack(out)
    assert set(check_artifacts(spec)) == {"mention", "answer"}
    assert spec.stages == load_stack(out.parent / "stack.yaml").stages
    assert (spec.folder / spec.examples).resolve() == (out.parent / "train.jsonl").resolve()
    assert json.loads((out / "training.json").read_text()) == facts
    assert json.loads((out / "base.json").read_text())["hidden_size"] == 32
    assert {path.name for path in (out / "comparators").iterdir()} == {"single_direct", "single_chain"}
    card = json.loads((out / "comparators" / "single_chain" / "cairn_adapter.json").read_text())
    assert card["prompt"] == spec.comparator_prompt and card["writes"] == ["mention", "answer"]
    assert "| adapters | mention | 3 |" in (out / "README.md").read_text()
    assert str(out.parent) not in "".join(path.read_text() for path in out.rglob("*.json")), "no path of this machine"


def test_comparators_train_as_many_numbers_on_as_many_tokens(trained):
    _, facts = trained
    stack, singles = facts["stack"], facts["comparators"]
    assert {row["trained_parameters"] for row in singles.values()} == {stack["trained_parameters"]}
    assert {row["rank"] for row in singles.values()} == {4}
    longest = 96
    for row in singles.values():
        assert abs(row["training_tokens"] - stack["training_tokens"]) <= 2 * longest
        assert 4000 - longest < row["training_tokens"] <= 4000
    mention, answer = facts["adapters"]["mention"], facts["adapters"]["answer"]
    assert mention["training_tokens"] == pytest.approx(3000, abs=longest)
    assert answer["training_tokens"] == pytest.approx(1000, abs=longest)
    assert facts["examples"]["training"] == 5 and facts["examples"]["held_out"] == 4


def test_the_folder_runs_elsewhere_without_the_base_it_was_made_from(trained, tmp_path, capsys):
    out, _ = trained
    elsewhere = tmp_path / "moved"
    shutil.copytree(out, elsewhere)
    assert load_stack(elsewhere).base == "base"
    question = ["--field", "story=Ann is in the kitchen. Bob is in the office.", "--field", "who=Bob", "--json"]
    code = main(["run", str(elsewhere), *question])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    trace = json.loads(captured.out)
    assert len(trace["stages"]) == 2
    # training prompt = serving prompt: what the run sent is what the examples are rendered to
    assert "Bob is in the office.\nBob?" in captured.out.replace("\\n", "\n")


def test_a_second_call_trains_nothing(trained, monkeypatch):
    out, facts = trained
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    monkeypatch.setattr(training_finetune, "train", lambda *a, **k: pytest.fail("trained again"))
    again = finetune_stack(load_stack(out.parent / "stack.yaml"), out)
    assert again == facts
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == before


def test_interrupted_between_adapters_and_inside_one_goes_on_to_the_same_weights(home, trained, tmp_path, monkeypatch):
    out, _ = trained
    real, calls = training_finetune.train, []

    def interrupted(*arguments, **keywords):
        calls.append(keywords["title"])
        if len(calls) == 2:
            batches = arguments[2]
            source = batches.batch

            def stop(step):
                if step == 3:
                    raise KeyboardInterrupt
                return source(step)

            batches.batch = stop
        return real(*arguments, **keywords)

    monkeypatch.setattr(training_finetune, "train", interrupted)
    spec = load_stack(home / "stack.yaml")
    with pytest.raises(KeyboardInterrupt):
        finetune_stack(spec, tmp_path / "out")
    assert calls == ["mention", "answer"] and not (tmp_path / "out" / "stack.yaml").exists()
    finetune_stack(spec, tmp_path / "out")
    assert calls == ["mention", "answer", "answer", "single_direct", "single_chain"]
    for name in ("stages/mention", "stages/answer", "comparators/single_direct", "comparators/single_chain"):
        assert same(out / name, tmp_path / "out" / name), name


def test_only_some_now_and_the_rest_later(home, trained, tmp_path):
    out, _ = trained
    spec, said = load_stack(home / "stack.yaml"), []
    first = finetune_stack(spec, tmp_path / "out", only=["answer"], comparators=False, say=said.append)
    assert first == {"missing": ["mention"]} and "not trained yet: mention" in said[-1]
    assert not (tmp_path / "out" / "stack.yaml").exists()
    facts = finetune_stack(spec, tmp_path / "out", only=["mention"], comparators=False)
    assert list(facts["adapters"]) == ["mention", "answer"] and facts["comparators"] == {}
    assert same(out / "stages" / "answer", tmp_path / "out" / "stages" / "answer"), "alone or in a row: the same"
    with pytest.raises(ConfigError, match=r"--only: 'anser' \(did you mean answer\?\), allowed: mention, answer, "):
        finetune_stack(spec, tmp_path / "out", only=["anser"])


def test_the_base_on_disk_and_in_the_folder_stays_bit_identical(home, trained):
    out, _ = trained
    first, second = load_file(home / "model" / "model.safetensors"), load_file(out / "base" / "model.safetensors")
    assert all(torch.equal(first[key], second[key]) for key in first)
    card = json.loads((out / "stages" / "mention" / "cairn_adapter.json").read_text())
    assert card["base"] == json.loads((out / "base.json").read_text())


def test_without_bundling_the_base_is_named_relative_to_the_folder(home, tmp_path):
    spec = changed(home, tmp_path, training={**STACK["training"], "tokens_total": 800})
    finetune_stack(spec, tmp_path / "out", comparators=False, bundle_base=False)
    made = load_stack(tmp_path / "out")
    assert not Path(made.base).is_absolute() and not (tmp_path / "out" / "base").exists()
    assert Path(made.base_place).resolve() == (home / "model").resolve()


@pytest.mark.parametrize(
    ("training", "fault"),
    [
        ({"tokens_totl": 5}, r"tokens_totl: unknown key \(did you mean tokens_total\?\)"),
        ({"adapters": {"mentoin": {"share": 1.0}}}, r"adapters.mentoin: no stage has this adapter \(did you mean ment"),
        ({"adapters": {"mention": {"share": 0.5}, "answer": {"share": 0.4}}}, "shares of mention, answer sum to 0.9"),
        ({"adapters": {"mention": {"share": 0.5}}}, "share is missing for answer, allowed: a share for every adapter"),
        ({"lora": {"rank": 0}}, "lora.rank: 0: input should be greater than or equal to 1"),
        ({"lora": {"targets": ["qkv"]}, "validation_examples": 0}, "lora.targets: .'qkv'.: no such layer in this base"),
        ({"adapters": {"answer": {"balance": 1.0}}, "validation_examples": 0}, "value, and of loops: 'answer'"),
        ({"validation_examples": 9}, "holding out so many examples leaves none for training: 9"),
        ({"tokens_total": 20, "validation_examples": 0}, "mention: the token budget does not reach .* pair: 10"),
    ],
)
def test_a_bad_training_section_is_named(home, tmp_path, training, fault):
    with pytest.raises((ConfigError, DataError), match=fault):
        finetune_stack(changed(home, tmp_path, training=training), tmp_path / "out")
    assert not list(tmp_path.rglob("adapter_model.safetensors"))


def test_without_shares_all_adapters_get_the_same():
    training = stack_training({"tokens_total": 900}, ["a", "b", "c"], "stack.yaml")
    [gold] = plan_phases(training, ["a", "b", "c"])
    configs = gold.configs
    assert [config.tokens for config in configs.values()] == [300, 300, 300]
    assert comparator_config(training, "single_chain", ["a", "b", "c"]).lora.rank == 24
    assert comparator_config(training, "single_chain", ["a", "b", "c"]).tokens == 900


def test_bad_examples_are_named_before_training(home, tmp_path):
    spec = changed(home, tmp_path)
    (tmp_path / "train.jsonl").unlink()
    with pytest.raises(DataError, match="no such example file"):
        finetune_stack(spec, tmp_path / "out")
    (tmp_path / "train.jsonl").write_text("")
    with pytest.raises(DataError, match="the example file is empty"):
        finetune_stack(spec, tmp_path / "out")
    rows = example_rows()
    rows[3]["stages"]["anser"] = rows[3]["stages"].pop("answer")
    rows[4]["stages"]["mention"].pop()
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError) as error:
        finetune_stack(spec, tmp_path / "out")
    assert "line 4: unknown stage 'anser' (did you mean answer?)" in str(error.value)
    assert "line 5: stages.mention has 2 values" in str(error.value)
    with pytest.raises(ConfigError, match="examples: required for fine-tuning, but missing"):
        finetune_stack(changed(home, tmp_path, examples=None), tmp_path / "out")


def test_an_example_longer_than_the_context_is_named_before_any_training(home, tmp_path):
    spec = changed(home, tmp_path)
    (tmp_path / "train.jsonl").unlink()
    rows = example_rows()
    rows[0]["inputs"]["story"] += " Ann is in the kitchen." * 20
    rows[0]["stages"]["mention"] += [rows[0]["stages"]["mention"][0]] * 20
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match="answer: . of . training pairs are longer than the base's context of 96 tok"):
        finetune_stack(spec, tmp_path / "out")
    assert not (tmp_path / "out" / "stages").exists()


def test_out_that_cannot_be_used(home, trained, tmp_path):
    spec = load_stack(home / "stack.yaml")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match="cannot write"):
        finetune_stack(spec, tmp_path / "file" / "out")
    with pytest.raises(ConfigError, match="would overwrite its own stack.yaml"):
        finetune_stack(spec, home)
    other = load_stack(home / "stack.yaml", ["training.seed=9"])
    with pytest.raises(ConfigError, match="trained with other settings, data or base"):
        finetune_stack(other, trained[0])


def test_a_damaged_adapter_is_trained_again_and_the_others_are_not(trained, tmp_path, caplog, monkeypatch):
    out, facts = trained
    copy = tmp_path / "out"
    shutil.copytree(out, copy)
    file = copy / "stages" / "answer" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])
    real, calls = training_finetune.train, []
    monkeypatch.setattr(training_finetune, "train", lambda *a, **k: calls.append(k["title"]) or real(*a, **k))
    finetune_stack(load_stack(out.parent / "stack.yaml"), copy)
    assert calls == ["answer"] and "holds a damaged adapter" in caplog.text
    assert same(out / "stages" / "answer", copy / "stages" / "answer")


def test_training_ids_are_the_ids_that_serving_sends(home, trained):
    """The pairs of the example file, through the encoder of training, begin with the ids of the served prompt."""
    from cairn.bases import load_tokenizer
    from cairn.data.examples import adapter_pairs, read_examples

    spec = load_stack(trained[0])
    tokenizer = load_tokenizer(spec.base_place)
    [example] = read_examples(home / "train.jsonl", spec)[:1]
    [pair] = encode_pairs(tokenizer, adapter_pairs(spec, "answer", [example]), 96)
    fields = {**example.inputs, "mention": "Ann is in the kitchen."}
    [call] = spec.calls(spec.stage("answer"), fields)
    assert pair.ids[: pair.prompt_length].tolist() == prompt_ids(tokenizer, call.prompt)


def test_command_line(home, tmp_path, capsys):
    code = main(["finetune", str(home / "stack.yaml"), "--out", str(tmp_path / "out"), "--no-comparators",
                 "--set", "training.tokens_total=800"])  # fmt: skip
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert "[1/2] mention:" in captured.out and "cairn run" in captured.out
    assert main(["finetune", str(tmp_path / "none.yaml")]) == 2
    assert "no stack there" in capsys.readouterr().err
