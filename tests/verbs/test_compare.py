"""`cairn compare`: whole on a tiny base with seconds of training, and its numbers on a scripted engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cairn.verbs.compare as compare_verb
from cairn.cli import main
from cairn.errors import ConfigError, DataError, InputError
from cairn.evaluation.cost import FlopsCounter
from cairn.stacks.spec import load_stack
from cairn.verbs.compare import compare_folders
from cairn.verbs.comparison.experiment import TrainedSeed, check_equal_training
from cairn.verbs.comparison.recipe import SYSTEMS, CompareSettings, load_recipe
from tests.verbs.tiny_experiment import CONFIG, NUMBERS, scripted, write_base, write_recipe, write_trained


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experiment")
    return write_recipe(folder, write_base(folder / "base"))


@pytest.fixture(scope="module")
def finished(recipe: Path) -> tuple[Path, list[str]]:
    out = recipe.parent / "out"
    command = ["compare", str(recipe), "--out", str(out)]
    assert main(command) == 0
    return out, command


def result_of(out: Path) -> dict[str, Any]:
    return json.loads((out / "result.json").read_text())


def test_one_command_goes_from_the_data_to_the_result(finished: tuple[Path, list[str]]) -> None:
    out = finished[0]
    result = result_of(out)
    assert result["systems"] == list(SYSTEMS) and result["systems_left_out"] == {}
    assert result["seeds"] == [0, 1] and result["n_test"] == 24 and result["validation"]["n"] == 12
    assert set(result["tasks"]) == {f"{n} words" for n in range(2, 6)}
    for name, paired in result["paired_all"].items():
        assert {"difference", "ci95", "p_value", "n", "seeds", "mcnemar_p", "cohens_h"} <= set(paired), name
        assert set(paired["trained_parameters"]) == set(paired["flops_per_item"]) == {"stack", name}
        assert paired["n"] == 24 and paired["seeds"] == [0, 1] and len(paired["by_seed"]) == 2
    trained = result["trained_params"]
    assert trained["stack"] == trained["single_direct"] == trained["single_chain"] == trained["vote"] > 0
    assert trained["ensemble"] == 2 * trained["stack"] and "base" not in trained
    flops = result["flops_per_question"]
    single, samples = result["vote"]["single"], result["vote"]["samples"]
    assert samples == max(1, -(-flops["stack"] // flops[single]))
    assert flops["vote"] >= 0.95 * flops["stack"]  # samples may be shorter than the greedy answer
    assert result["ensemble"]["members"] == 2
    assert flops["stack_gold"] < flops["stack"] and result["best_chosen_on"] == "validation"
    best = max(result["validation"]["accuracy"].values())
    assert result["validation"]["accuracy"][result["best_single"]] == best
    assert [stage["by"] for stage in result["stages"]] == ["model", "model", "rule"]
    assert result["data"]["questions"] == {"train": 48, "valid": 12, "test": 24}


def test_the_run_folder_holds_every_part(finished: tuple[Path, list[str]], recipe: Path) -> None:
    out = finished[0]
    rows = {name: [json.loads(line) for line in (out / "data" / f"{name}.jsonl").read_text().splitlines()]
            for name in ("train", "valid", "test")}  # fmt: skip
    groups = {name: {row["group"] for row in part} for name, part in rows.items()}
    assert not groups["train"] & groups["valid"]  # whole groups are held out
    spec = load_stack(out)
    assert spec.examples == "data/train.jsonl" and Path(spec.base).is_absolute()
    again = load_recipe(out)
    assert again.stack.base == spec.base and again.examples == str(recipe.parent / "train.jsonl")
    for seed in (0, 1):
        facts = json.loads((out / f"seed-{seed}" / "stack" / "training.json").read_text())
        assert facts["settings"]["seed"] == seed and facts["examples"]["training"] == 46  # and 2 held out by training
    traces = [json.loads(line) for line in (out / "traces.jsonl").read_text().splitlines()]
    assert [one["id"] for one in traces] == [row["id"] for row in rows["test"]]
    assert set(traces[0]["answers"]) == set(SYSTEMS)
    assert [stage["by"] for stage in traces[0]["stages"]] == ["model", "model", "rule"]
    assert "chosen on held-out training examples" in (out / "report.html").read_text()


def test_gold_hand_offs_go_to_the_last_model_alone(finished: tuple[Path, list[str]]) -> None:
    out = finished[0]
    test = {row["id"]: row for row in map(json.loads, (out / "data" / "test.jsonl").read_text().splitlines())}
    for line in (out / "seed-0" / "answers" / "stack_gold.test.jsonl").read_text().splitlines()[1:]:
        row = json.loads(line)
        question = test[row["outcome"]["id"]]
        words = question["inputs"]["words"].split("\n")
        kept = [word for word, same in zip(words, question["stages"]["find"], strict=True) if same == "yes"]
        find, count, answer = row["stages"]
        assert (find["by"], find["value"], find["calls"]) == ("given", "\n".join(kept) or "none", [])
        assert len(count["calls"]) == len(kept) == row["outcome"]["calls"]
        assert answer["by"] == "rule" and row["outcome"]["answer"] == answer["value"]


def test_a_finished_one_is_shown_again_and_more_seeds_cost_those_seeds_only(
    finished: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    out, command = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    started = time.monotonic()
    assert main(command) == 0
    assert time.monotonic() - started < 3
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before
    assert "is whole: nothing is done again" in capsys.readouterr().out
    assert main([*command, "--seeds", "0", "--systems", "stack,single_direct", "--json"]) == 0
    fewer = json.loads(capsys.readouterr().out)
    assert fewer["seeds"] == [0] and fewer["systems"] == ["single_direct", "stack"]
    kept = out / "seed-1" / "stack" / "stages" / "find" / "adapter_model.safetensors"
    assert kept.stat().st_mtime_ns == before[kept]
    assert main(command) == 0  # and back: nothing is trained or answered again
    capsys.readouterr()
    answers = [path for path in before if path.parent.name == "answers" or path.suffix == ".safetensors"]
    assert len(answers) > 20 and all(path.stat().st_mtime_ns == before[path] for path in answers)


def test_no_single_adapter_is_trained_until_a_system_needs_it(finished: tuple[Path, list[str]], tmp_path: Path) -> None:
    command = [*finished[1][:2], "--out", str(tmp_path / "out"), "--seeds", "0", "--systems"]
    assert main([*command, "base,stack"]) == 0
    stack = tmp_path / "out" / "seed-0" / "stack"
    kept = stack / "stages" / "find" / "adapter_model.safetensors"
    trained = kept.stat().st_mtime_ns
    assert not (stack / "comparators").exists() and result_of(tmp_path / "out")["systems"] == ["base", "stack"]
    assert main([*command, "single_direct,stack"]) == 0
    assert kept.stat().st_mtime_ns == trained, "the stack is not trained again"
    whole = finished[0] / "seed-0" / "stack" / "comparators" / "single_direct" / "adapter_model.safetensors"
    late = stack / "comparators" / "single_direct" / "adapter_model.safetensors"
    assert late.read_bytes() == whole.read_bytes()


def test_another_recipe_in_the_same_folder_is_an_error_that_says_what_differs(
    finished: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*finished[1], "--set", "stack.training.lora.rank=4"]) == 2
    error = capsys.readouterr().err
    assert "made with other settings (stack.training.lora.rank was 2, is 4)" in error and "--out" in error


def test_unequal_training_is_refused(
    finished: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*finished[1], "--seeds", "0", "--set", "compare.token_tolerance=0"]) == 2
    error = capsys.readouterr().err
    assert "the training is not equal" in error and "single_chain was trained on" in error
    assert "allowed: 0% more or less" in error and "compare.token_tolerance" in error
    spec = load_stack(finished[0] / "seed-0" / "stack")
    side = {"trained_parameters": 100, "training_tokens": 1000}
    facts = {"stack": side, "comparators": {"single_direct": {**side, "training_tokens": 1019}}}
    found = check_equal_training([TrainedSeed(0, spec, facts)], 0.02)
    assert found["training_tokens"] == {"stack": 1000, "single_direct": 1019}
    facts["comparators"]["single_direct"] = {**side, "trained_parameters": 101, "training_tokens": 900}
    with pytest.raises(ConfigError) as caught:
        check_equal_training([TrainedSeed(7, spec, facts)], 0.02)
    assert len(caught.value.faults) == 2
    assert "seed 7: single_direct has 101 trained parameters, the stack 100" in str(caught.value)


def test_killed_at_any_moment_it_goes_on_and_ends_the_same(finished: tuple[Path, list[str]], recipe: Path) -> None:
    out = recipe.parent / "killed"
    arguments = ["compare", str(recipe), "--out", str(out), "--seeds", "0", "--systems", "single_chain,stack"]
    kill_when(arguments, lambda: (out / "seed-0" / "stack" / "stages" / "find").is_dir())
    kept = out / "seed-0" / "stack" / "stages" / "find" / "adapter_model.safetensors"
    stamp = kept.stat().st_mtime_ns
    assert main(arguments) == 0
    assert kept.stat().st_mtime_ns == stamp
    mine, other = result_of(out), result_of(finished[0])
    for name in ("single_chain", "stack"):
        assert mine["accuracy"][name] == other["accuracy_by_seed"][name][0]
        answers = [(folder / "seed-0" / "answers" / f"{name}.test.jsonl").read_text() for folder in (out, finished[0])]
        rows = [[json.loads(line)["outcome"]["text"] for line in text.splitlines()[1:]] for text in answers]
        assert rows[0] == rows[1]


def test_answers_that_were_cut_off_are_gone_on_with(tmp_path: Path) -> None:
    """A kill while a line is written: the line is made again, those before it are kept, the others made."""
    from cairn.evaluation.systems import Outcome, Question
    from cairn.verbs.comparison.answers import Answered, cached_answers

    asked = [Question(f"q{n}", "g", "t", {"x": str(n)}, "a") for n in range(6)]
    seen: list[str] = []

    def answer(questions: Any) -> list[Answered]:
        seen.extend(one.id for one in questions)
        return [Answered(Outcome(q.id, q.group, q.task, "a", "a", True, "a", 1, 1, 1, 1, 0.0)) for q in questions]

    file = tmp_path / "x.test.jsonl"
    whole = cached_answers(file, {"k": 1}, asked, lambda: answer, "x")
    text = file.read_text()
    file.write_text(text[: text.index('"id": "q4"') + 5])
    seen.clear()
    assert cached_answers(file, {"k": 1}, asked, lambda: answer, "x") == whole and seen == ["q4", "q5"]
    assert file.read_text() == text
    seen.clear()
    cached_answers(file, {"k": 1}, asked, lambda: answer, "x")
    assert not seen
    cached_answers(file, {"k": 2}, asked, lambda: answer, "x")  # of other settings: made anew
    assert len(seen) == 6
    file.write_text(file.read_text().replace('"outcome"', "outcome", 1))
    with pytest.raises(DataError, match="line 2 of a file of answers is damaged.*delete the file"):
        cached_answers(file, {"k": 2}, asked, lambda: answer, "x")


def kill_when(arguments: list[str], ready: Callable[[], bool]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "cairn", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=os.environ,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not ready() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    assert process.poll() is None, "the command ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return write_trained(tmp_path)


def test_trained_stacks_are_compared_on_a_file(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare_verb, "base_parameters", lambda seed: 1234)
    said: list[str] = []
    result = compare_folders(
        folders, tmp_path / "test.jsonl", tmp_path / "out", CompareSettings(resamples=200), engine=scripted,
        say=said.append,
    )  # fmt: skip
    test = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    ones = sum(row["answer"] == "one" for row in test) / len(test)
    assert result["seeds"] == [3, 4] and result["base_params"] == 1234
    assert result["accuracy"]["stack"] == result["accuracy"]["stack_gold"] == 1.0
    assert result["accuracy"]["single_direct"] == result["accuracy"]["ensemble"] == result["accuracy"]["base"] == ones
    assert result["accuracy"]["stack_empty"] == sum(row["answer"] == "zero" for row in test) / len(test)
    assert result["accuracy"]["stack_shuffled"] < 1
    assert result["best_chosen_on"] == "test" and result["best_single"] == "ensemble"  # equal: the strongest is first
    counter = FlopsCounter(CONFIG, {"find": 50, "count": 50, "single_direct": 100, "single_chain": 100})
    spent = 0
    for row in test:
        words = row["inputs"]["words"].split("\n")
        spent += len(words) * counter.call("find", 5, 2)
        spent += row["stages"]["find"].count("yes") * counter.call("count", 5, 2)
    assert result["flops_per_question"]["stack"] == pytest.approx(spent / len(test))
    vote = result["vote"]
    assert vote["samples"] * result["flops_per_question"][vote["single"]] >= result["flops_per_question"]["stack"]
    assert result["calls_per_question"]["vote"] == vote["samples"]
    assert result["calls_per_question"]["ensemble"] == 2
    assert any("no validation questions" in line for line in said)
    changed = CompareSettings(resamples=200, shots=1)
    with pytest.raises(ConfigError, match="made with other settings .compare.shots was 4, is 1"):
        compare_folders(folders, tmp_path / "test.jsonl", tmp_path / "out", changed, engine=scripted)


def test_validation_chooses_and_the_test_does_not(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the validation file the chain is right, on the test the direct adapter: the chain is the best comparator."""
    monkeypatch.setattr(compare_verb, "base_parameters", lambda seed: 1)
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    all_same = [row for row in rows if row["answer"] == NUMBERS[len(row["inputs"]["words"].split("\n"))]]
    (tmp_path / "valid.jsonl").write_text("".join(json.dumps(row) + "\n" for row in all_same))
    assert all_same and not any(row["answer"] == "one" for row in all_same)
    result = compare_folders(
        folders, tmp_path / "test.jsonl", tmp_path / "out", CompareSettings(resamples=200, systems=None),
        valid=tmp_path / "valid.jsonl", engine=scripted,
    )  # fmt: skip
    assert result["accuracy"]["single_chain"] < result["accuracy"]["single_direct"]
    assert result["vote"]["single"] == "single_chain" and result["best_chosen_on"] == "validation"
    assert result["best_single"] == "vote" and result["closest"] != "vote"
    assert result["validation"]["accuracy"]["single_chain"] == 1.0


def test_what_is_not_possible_is_left_out_and_said_or_refused_if_asked_for(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare_verb, "base_parameters", lambda seed: 1)
    rows = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    (tmp_path / "bare.jsonl").write_text("".join(json.dumps({**row, "stages": {}}) + "\n" for row in rows))
    settings = CompareSettings(resamples=200)
    result = compare_folders(
        folders[:1], tmp_path / "bare.jsonl", tmp_path / "out", settings, engine=scripted
    )  # fmt: skip
    assert set(result["systems_left_out"]) == {"ensemble", "stack_gold"}
    assert "two seeds" in result["systems_left_out"]["ensemble"]
    asked = settings.model_copy(update={"systems": ["single_direct", "stack", "stack_gold"]})
    with pytest.raises(ConfigError, match="stack_gold: not possible, the test questions have no gold hand-offs"):
        compare_folders(folders[:1], tmp_path / "bare.jsonl", tmp_path / "out2", asked, engine=scripted)


def test_a_question_without_gold_hand_offs_is_answered_by_the_stack_alone(
    folders: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare_verb, "base_parameters", lambda seed: 1)
    rows = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    some = [{**row, "stages": {}} if number % 2 else row for number, row in enumerate(rows)]
    (tmp_path / "some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    asked = CompareSettings(resamples=200, systems=["single_direct", "stack", "stack_gold"])
    result = compare_folders(folders[:1], tmp_path / "some.jsonl", tmp_path / "out", asked, engine=scripted)
    assert result["gold_questions"] == len(rows[::2]) and "stack_gold" not in result["systems_left_out"]
    folder = tmp_path / "out" / f"seed-{result['seeds'][0]}" / "answers"

    def answers(name: str) -> dict:
        lines = (folder / f"{name}.test.jsonl").read_text().splitlines()[1:]
        return {row["id"]: row for row in (json.loads(line)["outcome"] for line in lines)}

    own, gold = answers("stack"), answers("stack_gold")
    assert all(own[row["id"]]["calls"] == gold[row["id"]]["calls"] for row in rows[1::2])
    assert all(own[row["id"]]["calls"] > gold[row["id"]]["calls"] for row in rows[::2])


def test_folders_of_other_stacks_or_with_equal_seeds_are_refused(folders: list[Path], tmp_path: Path) -> None:
    settings = CompareSettings(resamples=200)
    with pytest.raises(ConfigError, match=r"seeds \[3, 3\] are not distinct"):
        compare_folders([folders[0], folders[0]], tmp_path / "test.jsonl", tmp_path / "out", settings)
    facts = json.loads((folders[1] / "training.json").read_text())
    facts["settings"]["learning_rate"] = 1.0
    (folders[1] / "training.json").write_text(json.dumps(facts))
    with pytest.raises(ConfigError, match="training differs from that of"):
        compare_folders(folders, tmp_path / "test.jsonl", tmp_path / "out", settings)


def test_bad_questions_are_clear_errors(folders: list[Path], tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (tmp_path / "test.jsonl").read_text().splitlines()]
    settings = CompareSettings(resamples=200)
    for change, kind, message in (
        ({"inputs": {"words": "red"}}, InputError, "test question q60: the stack needs field 'colour'"),
        ({"stages": {"find": ["yes"]}}, InputError, "gold hand-offs of test question q60 do not fit the stack"),
    ):
        (tmp_path / "bad.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [{**rows[0], **change}]))
        with pytest.raises(kind, match=message):
            compare_folders(folders, tmp_path / "bad.jsonl", tmp_path / f"out {message}", settings, engine=scripted)


def test_wrong_commands_say_what_is_needed(
    recipe: Path, folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", str(folders[0])]) == 2
    assert "trained stacks need questions" in capsys.readouterr().err
    assert main(["compare", str(recipe), "--test", "x.jsonl"]) == 2
    assert "--test is for trained stacks" in capsys.readouterr().err
    assert main(["compare", str(tmp_path / "nothing.yaml")]) == 2
    assert "no such file" in capsys.readouterr().err
    out = ["--out", str(tmp_path / "out")]
    assert main(["compare", str(recipe), *out, "--set", "examples=missing.jsonl"]) == 3
    assert "no such train file" in capsys.readouterr().err
    assert main(["compare", str(recipe), *out, "--systems", "stack,vot"]) == 2
    assert "no system 'vot' (did you mean vote?)" in capsys.readouterr().err
