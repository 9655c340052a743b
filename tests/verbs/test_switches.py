"""The switches of `training:` on a toy stack: what each promises, what they cost, and going on after a kill."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import cairn.training.finetune as training_finetune
import cairn.verbs.finetuning.own_answers as own_answers
from cairn.cli import main
from cairn.data.examples import StackExample, adapter_pairs, read_examples
from cairn.engines.fake_engine import FakeEngine
from cairn.errors import InputError
from cairn.runs import read_jsonl
from cairn.stacks.spec import load_stack
from cairn.stacks.trace import from_json
from cairn.training.checkpoint import trained_state
from cairn.training.finetune_plan import StackTraining, stack_training
from cairn.verbs.finetune import finetune_stack
from cairn.verbs.finetuning.finetune_pairs import GoldPairs
from tests.verbs.toy_stack import STACK, changed, make_home, same, weights

PLAIN = {
    **STACK["training"], "tokens_total": 2500, "batch_tokens": 150, "validation_examples": 2, "lora": {"rank": 2},
    "adapters": {"mention": {"share": 0.6, "balance": 1.0}, "answer": {"share": 0.4}}, "evaluate_every": None,
}  # fmt: skip
ALL = {
    **PLAIN, "global_first": 0.3, "handoff_dropout": 0.2, "on_policy": {"share": 0.25},
    "keep_right_chains": {"share": 0.25},
}  # fmt: skip
LONGEST = 96  # tokens of a pair, at most


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a tiny base, examples and stack.yaml; one thread, as forked processes need it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield make_home(tmp_path_factory.mktemp("home"))
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def small_waves(monkeypatch):
    monkeypatch.setattr(own_answers, "_WAVE", 2)


# `answer` sees the story too, so that its gold target can be right whatever `mention` hands on.
STAGES = [STACK["stages"][0], {**STACK["stages"][1], "prompt": "{story}\n{mention}\n{who}:"}]


def stack(home, folder, training):
    folder.mkdir(exist_ok=True)
    return changed(home, folder, training=training, stages=STAGES)


@pytest.fixture(scope="module")
def everything(home, tmp_path_factory):
    """A stack trained with every switch on: its folder, its facts, what was said, and where each training started."""
    folder, said, started = tmp_path_factory.mktemp("all"), [], {}
    real = training_finetune.train

    def train(model, *arguments, **keywords):
        names = {name: f"base_model.model.{name.replace('.default', '')}" for name in trained_state(model)}
        started[keywords["title"]] = {names[name]: value.clone() for name, value in trained_state(model).items()}
        return real(model, *arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(own_answers, "_WAVE", 2)
        patch.setattr(training_finetune, "train", train)
        facts = finetune_stack(stack(home, folder, ALL), folder / "out", say=said.append)
    return folder / "out", facts, said, started


def test_every_token_of_every_phase_counts_and_the_comparators_get_as_many(everything):
    out, facts, said, _ = everything
    assert [phase["name"] for phase in facts["phases"]] == ["global", "gold", "on_policy", "right_chains"]
    rows = [row for phase in facts["phases"] for row in phase["adapters"].values()]
    assert [len(phase["adapters"]) for phase in facts["phases"]] == [1, 2, 1, 2]  # mention reads no hand-off
    for key in ("training_tokens", "steps"):
        assert facts["stack"][key] == sum(row[key] for row in rows) == sum(phase[key] for phase in facts["phases"])
    assert facts["stack"]["seconds"] == pytest.approx(sum(row["seconds"] for row in rows), abs=0.01)
    assert 2500 - len(rows) * LONGEST < facts["stack"]["training_tokens"] <= 2500
    for row in facts["comparators"].values():
        assert row["trained_parameters"] == facts["stack"]["trained_parameters"]
        assert 2500 - LONGEST < row["training_tokens"] <= 2500
    logged = {file.parent.name: read_jsonl(file) for file in (out / "training").glob("*/metrics.jsonl")}
    trained = sum(max(row.get("tokens", 0) for row in rows) for name, rows in logged.items() if "single" not in name)
    assert len(logged) == len(rows) + 2 and trained == facts["stack"]["training_tokens"], "as the loop itself counted"
    assert facts["adapters"]["answer"]["training_tokens"] == sum(
        phase["adapters"]["answer"]["training_tokens"] for phase in facts["phases"][1:]
    )
    assert json.loads((out / "training.json").read_text()) == facts
    assert [line[: line.index("]") + 1] for line in said if line.startswith("[")] == [f"[{n}/8]" for n in range(1, 9)]
    assert "Phases, with their training tokens: global " in (out / "README.md").read_text()


def test_every_training_has_a_curve_of_more_than_one_point(everything):
    _, facts, said, _ = everything
    for row in [row for phase in facts["phases"] for row in phase["adapters"].values()]:
        steps = [point["step"] for point in row["curve"]]
        assert len(steps) >= min(4, row["steps"]) and steps[-1] == row["steps"]
        assert row["curve"][-1]["exact_match"] == row["exact_match"]
    assert re.search(r"answer \(on_policy\): .* held-out pairs exact: [\d.]+% [\d.]+%", "\n".join(said))


def test_own_answers_are_kept_and_their_cost_stands_apart(everything):
    out, facts, _, _ = everything
    for phase in facts["phases"][2:]:
        rows = read_jsonl(out / "training" / f"{phase['name']}.answers.jsonl")
        traces = [from_json(json.dumps(row)) for row in rows[1:]]
        spent = phase["answers"]
        assert spent["questions"] == len(traces) == facts["examples"]["training"] == 7
        assert spent["new_tokens"] == sum(trace.totals.new_tokens for trace in traces) > 0
        assert spent["seconds"] > 0 and spent["seconds"] not in (phase["seconds"],)
        pairs = spent["pairs"]["answer"]
        assert phase["adapters"]["answer"]["pairs"] == pairs["gold"] + pairs["own"]
    assert facts["phases"][0]["answers"] is None and facts["phases"][1]["answers"] is None


def test_on_policy_trains_real_hand_offs_with_gold_targets(home, everything, monkeypatch):
    out, facts, _, _ = everything
    spec = load_stack(out)
    gold = {one.id: one for one in read_examples(home / "train.jsonl", spec)}
    traces = [from_json(json.dumps(row)) for row in read_jsonl(out / "training" / "on_policy.answers.jsonl")[1:]]
    trained = {}
    real = training_finetune.train_adapter

    def look(model, tokenizer, pairs, config, folder, **others):
        trained[others["title"]] = pairs
        return real(model, tokenizer, pairs, config, folder, **others)

    monkeypatch.setattr(training_finetune, "train_adapter", look)
    finetune_stack(load_stack(out.parent / "stack.yaml"), out)
    known = {pair.prompt for pair in adapter_pairs(spec, "answer", list(gold.values()))}
    answers = {trace.stage("answer").calls[0].prompt: f" {gold[trace.id].answer}" for trace in traces}
    counts = facts["phases"][2]["answers"]["pairs"]["answer"]
    later = trained["answer (on_policy)"]
    assert set(later[: counts["gold"]]) <= set(trained["answer"])
    assert len(later) == counts["gold"] + counts["own"] and counts["own"] > 0
    for prompt, completion in later[counts["gold"] :]:
        assert answers[prompt] == completion
        assert prompt not in known


def test_a_stage_starts_exactly_where_the_phase_before_ended(everything):
    out, _, _, started = everything
    ended = {"mention": "all-stages", "answer": "all-stages", "answer (on_policy)": "answer",
             "answer (right_chains)": "answer.on_policy", "mention (right_chains)": "mention"}  # fmt: skip
    assert set(started) == {"all-stages", "single_direct", "single_chain", *ended}
    for title, before in ended.items():
        end = weights(out / "training" / before / "adapter")
        assert started[title].keys() == end.keys()
        assert all(torch.equal(started[title][key], end[key]) for key in end), title
    assert all(not value.any() for key, value in started["all-stages"].items() if "lora_B" in key)
    assert not same(out / "training" / "all-stages" / "adapter", out / "stages" / "answer")


def test_a_second_call_trains_nothing_and_says_the_same(everything, monkeypatch):
    out, facts, _, _ = everything
    monkeypatch.setattr(training_finetune, "train", lambda *a, **k: pytest.fail("trained again"))
    monkeypatch.setattr(own_answers, "_wave", lambda *a: pytest.fail("answered again"))
    assert finetune_stack(load_stack(out.parent / "stack.yaml"), out) == facts


def killed_at(place, spec, out):
    """Trains in a forked process that is killed (signal 9) at a place; returns whether it came so far."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == signal.SIGKILL
    try:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        kill, counts = (lambda: os.kill(os.getpid(), signal.SIGKILL)), {"waves": 0}
        if place.startswith("wave"):
            real = own_answers._append

            def append(*arguments):
                counts["waves"] += 1
                real(*arguments)
                counts["waves"] == int(place.split()[1]) and kill()

            own_answers._append = append
        else:
            title, step = place.rsplit(" ", 1)
            real_train = training_finetune.train

            def train(*arguments, **keywords):
                if keywords["title"] == title:
                    source = arguments[2].batch
                    arguments[2].batch = lambda number: kill() if number == int(step) else source(number)
                return real_train(*arguments, **keywords)

            training_finetune.train = train
        finetune_stack(spec, out, comparators=False)
    finally:
        os._exit(0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_between_and_inside_phases_it_ends_with_the_same_weights(home, everything, tmp_path):
    whole, facts, _, _ = everything
    spec, out = stack(home, tmp_path, ALL), tmp_path / "out"
    places = ["all-stages 3", "answer 1", "wave 1", "answer (on_policy) 0", "wave 2", "mention (right_chains) 1"]
    code = (
        "import sys; from pathlib import Path; from cairn.stacks.spec import load_stack\n"
        "from tests.verbs.test_switches import killed_at, own_answers\n"
        "own_answers._WAVE = 2\n"
        "spec, out = load_stack(sys.argv[1]), Path(sys.argv[2])\n"
        "for place in sys.argv[3:]:\n"
        "    if not killed_at(place, spec, out) or (out / 'stack.yaml').exists(): sys.exit(f'not killed at {place}')\n"
    )  # a process of its own: one that other tests have left threads in cannot be forked safely
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "stack.yaml"), str(out), *places], capture_output=True, text=True,
        cwd=Path(__file__).parents[2], env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not (out / "stack.yaml").exists()
    again = finetune_stack(spec, out, comparators=False)
    folders = [path.parent.relative_to(whole) for path in whole.rglob("adapter_model.safetensors")]
    for folder in [folder for folder in folders if "single" not in str(folder)]:
        assert same(whole / folder, out / folder), folder
    for phase, other in zip(facts["phases"], again["phases"], strict=True):
        kept = {key: value for key, value in (phase["answers"] or {}).items() if key != "seconds"}
        assert kept == {key: value for key, value in (other["answers"] or {}).items() if key != "seconds"}


def test_some_now_and_the_rest_later_is_the_same_stack(home, everything, tmp_path):
    whole, _, _, _ = everything
    spec, out, said = stack(home, tmp_path, ALL), tmp_path / "out", []
    first = finetune_stack(spec, out, only=["answer"], comparators=False, say=said.append)
    assert first == {"missing": ["mention"]} and not (out / "stages" / "answer").exists()
    second = finetune_stack(spec, out, only=["mention"], comparators=False, say=said.append)
    assert second == {"missing": ["answer (on_policy)"]}
    facts = finetune_stack(spec, out, comparators=False)
    assert set(facts["adapters"]) == {"mention", "answer"}
    for name in ("mention", "answer"):
        assert same(whole / "stages" / name, out / "stages" / name)


def test_two_side_by_side_are_the_same_as_one_after_the_other(home, everything, tmp_path, capsys):
    whole, facts, _, _ = everything
    stack(home, tmp_path, ALL)
    command = ["finetune", str(tmp_path / "stack.yaml"), "--out", str(tmp_path / "out"), "--jobs", "2"]
    code = main([*command, "--no-comparators"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    folders = [path.parent.relative_to(tmp_path / "out") for path in tmp_path.rglob("adapter_model.safetensors")]
    assert len(folders) == 6
    for folder in folders:
        assert same(whole / folder, tmp_path / "out" / folder), folder
    again = json.loads((tmp_path / "out" / "training.json").read_text())
    assert again["stack"]["training_tokens"] == facts["stack"]["training_tokens"]
    assert again["adapters"]["answer"]["curve"] == facts["adapters"]["answer"]["curve"]
    assert "answer (on_policy): step" in captured.err and "[6/6]" in captured.out


def many(count=400):
    """Examples enough to see a rate."""
    return [
        StackExample(str(number), {"story": f"Ann is in room {number}. Bob is out.", "who": "Ann"},
                     {"mention": ("yes", "no"), "answer": f"room {number}"}, f"room {number}")
        for number in range(count)
    ]  # fmt: skip


def test_hand_off_dropout_has_its_rate_and_leaves_the_rest_alone(home):
    spec = load_stack(home / "stack.yaml")
    examples, held_out = many(), many(20)

    def pairs(probability, seed=0):
        settings = {"handoff_dropout": probability, "seed": seed, "adapters": {"mention": {"balance": 1.0}}}
        return GoldPairs(spec, stack_training(settings, ["mention", "answer"], "stack.yaml"), examples, held_out)

    plain, dropped, again = pairs(0.0), pairs(0.25), pairs(0.25)
    assert plain.training["answer"] == adapter_pairs(spec, "answer", examples)
    assert dropped.training == again.training and dropped.training["answer"] != pairs(0.25, seed=1).training["answer"]
    without = [pair for pair in dropped.training["answer"] if pair.prompt == "none\nWhere:"]
    assert len(without) / len(examples) == pytest.approx(0.25, abs=0.06)
    assert dropped.dropout["answer"] == {"hand_offs": 400, "dropped": len(without)}
    both = list(zip(plain.training["answer"], dropped.training["answer"], strict=True))
    assert sum(one != other for one, other in both) == len(without), "the others are as they were"
    assert all(one.completion == other.completion for one, other in both)
    assert dropped.training["mention"] == plain.training["mention"], "a stage that reads no hand-off loses none"
    assert dropped.validation == plain.validation, "held-out pairs are whole"


def test_distinct_and_even_reach_the_pairs_of_their_adapter(home):
    spec = load_stack(home / "stack.yaml")
    examples = [replace(one, task=f"task {number % 2}") for number, one in enumerate([*many(30), *many(30)])]
    plans = {"answer": {"distinct": True, "even": True, "limit": 8}}
    settings = stack_training({"adapters": plans}, ["mention", "answer"], "stack.yaml")
    gold = GoldPairs(spec, settings, examples, examples[:10])
    assert gold.training["mention"] == adapter_pairs(spec, "mention", examples)
    chosen = gold.training["answer"]
    assert chosen == adapter_pairs(spec, "answer", examples, distinct=True, even=True, limit=8)
    assert len(set(chosen)) == len(chosen) == 8


def test_questions_that_do_not_fit_are_left_out_and_counted(home, tmp_path, monkeypatch):
    spec, examples = load_stack(home / "stack.yaml"), many(5)

    def reply(request):
        if "room 3" in request.prompt:
            raise InputError("the input is longer than the model's context", value=request.prompt)
        return " yes"

    def engine(*arguments, **keywords):
        return FakeEngine(reply, adapters=["mention", "answer"])

    monkeypatch.setattr("cairn.engines.torch_engine.TorchEngine", engine)
    folders = {}
    for name in ("mention", "answer"):
        folders[name] = tmp_path / name
        folders[name].mkdir()
        (folders[name] / "adapter_model.safetensors").write_bytes(name.encode())
    answered = own_answers.answer_questions(spec, folders, examples, tmp_path / "a.jsonl", title="t")
    assert [one.trace is None for one in answered] == [False, False, False, True, False]
    facts = own_answers.answer_facts(spec, answered)
    assert (facts["questions"], facts["too_long"], facts["right"]) == (5, 1, 0)

    said = []
    monkeypatch.setattr("cairn.engines.torch_engine.TorchEngine", lambda *a, **k: pytest.fail("answered again"))
    again = own_answers.answer_questions(spec, folders, examples, tmp_path / "a.jsonl", title="t", say=said.append)
    assert again == answered and said == []
    (folders["answer"] / "adapter_model.safetensors").write_bytes(b"other")
    monkeypatch.setattr("cairn.engines.torch_engine.TorchEngine", engine)
    own_answers.answer_questions(spec, folders, examples, tmp_path / "a.jsonl", title="t", say=said.append)
    assert "those of other adapters or questions; they are made anew" in said[0]


def test_drawn_questions_keep_their_order_and_their_seed():
    examples = many(50)
    drawn = own_answers.draw_questions(examples, 10, seed=3)
    assert len(drawn) == 10 and drawn == sorted(drawn, key=lambda one: int(one.id))
    assert drawn == own_answers.draw_questions(examples, 10, seed=3) != own_answers.draw_questions(examples, 10, seed=4)
    assert own_answers.draw_questions(examples, None, seed=3) == examples == own_answers.draw_questions(examples, 99, 0)


def test_the_demo_stack_has_several_points_on_every_curve():
    from cairn.verbs.demo_data import demo_folder

    settings = StackTraining.model_validate(load_stack(demo_folder() / "stack.yaml").training)
    assert settings.evaluate_every is None
