"""The whole demo on a tiny base with random weights: scores are chance, but every step and file is real."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cairn.cli import main
from cairn.evaluation.tasks.babi_stages import STAGE_TASKS
from cairn.verbs.demo_data import demo_folder, demo_questions, resolve_demo
from cairn.verbs.demo_systems import SYSTEMS

_SMALL = [
    "--set", "training.tokens_total=6000", "--set", "training.validation_examples=5", "--set", "training.lora.rank=2",
    "--set", "training.adapters.mention.limit=200", "--set", "training.precision=fp32",
    "--set", "demo.train_questions=12", "--set", "demo.test_questions=4", "--set", "demo.resamples=200",
    "--set", "demo.train_sentences=16",
]  # fmt: skip


@pytest.fixture(scope="module")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    from cairn.models.configuration import CairnConfig
    from cairn.models.modeling import CairnForCausalLM
    from cairn.models.tokenization import train_bpe

    folder = tmp_path_factory.mktemp("base")
    texts = [f"{q.inputs['story']} {q.inputs['question']} {q.answer}\nStory: Sentence: Sentences: Question: Look for:"
             f" About it: Answer: mention: link: follow: answer: yes no this evening"
             for q in demo_questions(resolve_demo(["demo.test_questions=40"]).demo)]  # fmt: skip
    tokenizer = train_bpe(texts, 600, model_max_length=512)
    torch.manual_seed(0)
    config = CairnConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512,
    )  # fmt: skip
    CairnForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def finished(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    out = tmp_path_factory.mktemp("runs") / "demo"
    command = ["demo", "--out", str(out), "--set", f"base={tiny_base}", *_SMALL]
    assert main(command) == 0
    return out, command


def test_result_has_what_the_readers_of_it_need(finished: tuple[Path, list[str]], tiny_base: Path) -> None:
    from transformers import AutoModelForCausalLM

    result = json.loads((finished[0] / "result.json").read_text())
    assert result["n_test"] == 4 * len(STAGE_TASKS)
    assert set(result["accuracy"]) == set(result["ci95"]) == set(result["flops_per_question"]) == set(SYSTEMS)
    assert all(0 <= low <= result["accuracy"][name] <= high <= 1 for name, (low, high) in result["ci95"].items())
    assert set(result["trained_params"]) == {"stack", "single_direct", "single_chain"}
    assert len(set(result["trained_params"].values())) == 1
    spent = result["training_tokens"].values()
    assert max(spent) <= 6000 and min(spent) > 6000 - 3 * 400  # each budget ends less than one pair before its limit
    assert all(tokens > 0 for tokens in result["paired"]["training_tokens"].values())
    low, high = result["paired"]["ci95"]
    assert low <= result["paired"]["difference"] <= high
    assert result["seconds_total"] > 0
    model = AutoModelForCausalLM.from_pretrained(tiny_base)
    assert result["base_params"] == sum(weight.numel() for weight in model.parameters())
    assert result["tasks"].keys() == set(STAGE_TASKS)


def test_every_file_of_the_run_is_there_and_readable(finished: tuple[Path, list[str]]) -> None:
    out = finished[0]
    listed = json.loads((out / "manifest.json").read_text())["files"]
    assert set(listed) == {"stack.yaml", "train.jsonl", "test.jsonl", "result.json", "traces.jsonl", "report.html"}
    traces = [json.loads(line) for line in (out / "traces.jsonl").read_text().splitlines()]
    assert [item["id"] for item in traces] == [
        json.loads(line)["id"] for line in (out / "test.jsonl").read_text().splitlines()
    ]
    assert all(set(item["answers"]) == set(SYSTEMS) for item in traces)
    assert [stage["name"] for stage in traces[0]["stages"]] == ["mention", "link", "follow", "answer"]
    assert len(traces[0]["stages"][0]["calls"]) == traces[0]["inputs"]["story"].count(".")
    report = (out / "report.html").read_text()
    assert "single_chain" in report and "<svg" in report and traces[0]["inputs"]["question"] in report


def test_a_finished_demo_is_shown_again_and_nothing_is_trained(
    finished: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    out, command = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    started = time.monotonic()
    assert main(command) == 0
    assert time.monotonic() - started < 5
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before
    shown = capsys.readouterr().out
    assert "nothing is trained again" in shown and "single_direct" in shown and "report.html" in shown
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((out / "result.json").read_text())


def test_the_trained_stack_answers_by_itself(
    finished: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The demo has no private path: `cairn run` on its folder gives the answers that the demo counted."""
    out = finished[0]
    answers = tmp_path / "answers.jsonl"
    assert main(["run", str(out / "stack"), "--input", str(out / "test.jsonl"), "--output", str(answers)]) == 0
    mine = {row["id"]: row["answer"] for row in map(json.loads, answers.read_text().splitlines())}
    counted = {row["id"]: row["answers"]["stack"]["answer"] for row in
               map(json.loads, (out / "traces.jsonl").read_text().splitlines())}  # fmt: skip
    assert mine == counted


def test_other_settings_in_the_same_folder_are_refused(
    finished: tuple[Path, list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*finished[1], "--set", "demo.shots=1"]) == 2
    assert "made with other settings" in capsys.readouterr().err


def test_a_missing_base_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["demo", "--out", str(tmp_path / "run"), "--set", "base=./nowhere", *_SMALL])
    assert code == 3
    assert "no such model folder: './nowhere'" in capsys.readouterr().err


def test_killed_at_any_moment_it_goes_on_and_ends_the_same(
    finished: tuple[Path, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, command = finished
    out = tmp_path / "killed"
    arguments = ["demo", "--out", str(out), *command[3:]]
    _kill_when(arguments, lambda: (out / "stack" / "stages" / "link").is_dir())
    assert not (out / "manifest.json").exists()
    kept = (out / "stack" / "stages" / "mention" / "adapter_model.safetensors").stat().st_mtime_ns
    earlier = json.loads((out / "seconds.json").read_text())["seconds"]
    capsys.readouterr()
    assert main(arguments) == 0
    assert "goes on after" in capsys.readouterr().out
    assert (out / "stack" / "stages" / "mention" / "adapter_model.safetensors").stat().st_mtime_ns == kept
    mine, other = (json.loads((folder / "result.json").read_text()) for folder in (out, whole))
    assert mine["seconds_total"] >= earlier
    assert mine["accuracy"] == other["accuracy"] and mine["paired_all"] == other["paired_all"]
    for adapter in ("stages/mention", "stages/link", "stages/answer", "comparators/single_chain"):
        weights = [(folder / "stack" / adapter / "adapter_model.safetensors").read_bytes() for folder in (out, whole)]
        assert weights[0] == weights[1], adapter


def _kill_when(arguments: list[str], ready: Callable[[], bool]) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "cairn", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=os.environ,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not ready() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None, "the demo ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def test_the_shipped_stack_is_small_enough_to_ship() -> None:
    assert sum(path.stat().st_size for path in demo_folder().rglob("*") if path.is_file()) < 1_500_000
