"""`cairn eval --tasks` from the command line's side: offline, resumed, for models and stacks."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import CliRunner

from cairn.errors import CheckpointError, ConfigError, DataError, InputError
from cairn.verbs.evaluate import evaluate
from cairn.verbs.evaluate_tasks import EvalSettings, parse_harness, parse_shots
from tests.engines.tiny_models import save_adapter, save_base
from tests.evaluation.harness_files import write_files

STACK = {
    "name": "two", "base": "base", "inputs": ["question"],
    "stages": [
        {"name": "recall", "prompt": "{question}\nR:", "sampling": {"max_new_tokens": 4}, "retries": 0},
        {"name": "answer", "reads": ["recall"], "prompt": "{recall}\n{question}\nA:", "sampling": {"max_new_tokens": 4},
         "retries": 0},
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("eval")
    base = save_base(root / "base")
    for seed, name in enumerate(("recall", "answer")):
        save_adapter(root / "stages" / name, base, seed)
    (root / "stack.yaml").write_text(yaml.safe_dump(STACK))
    write_files(root / "data")
    return root


def call(*arguments: object) -> str:
    app = typer.Typer()
    app.command()(evaluate)
    done = CliRunner().invoke(app, [str(part) for part in arguments], catch_exceptions=False)
    return done.stdout


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Refuses every connection and records it, with the libraries allowed to try."""
    import datasets.config
    import huggingface_hub.constants

    tried: list[Any] = []

    def refuse(*arguments: Any, **_: Any) -> None:
        tried.append(arguments[-1:])
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    return tried


def test_tasks_are_scored_without_any_connection(folder: Path, tmp_path: Path, no_network: list[Any]) -> None:
    out = tmp_path / "deep" / "result.json"
    shown = call(
        folder / "base", "--tasks", "arc_easy, boolq", "--data-dir", folder / "data", "--out", out, "--shots", 0,
        "--limit", 2,
    )  # fmt: skip
    result = json.loads(out.read_text())
    tasks = result["harness"]["tasks"]
    assert result["kind"] == "model" and set(tasks) == {"arc_easy", "boolq"} and tasks["arc_easy"]["n"] == 2
    assert result["harness"]["lm_eval"] == result["versions"]["packages"]["lm_eval"]
    assert result["harness"]["seed"] == 1234
    assert result["harness"]["dtype"] == "torch.float32" and result["settings"]["tasks"]["shots"] == {"*": 0}
    assert "acc_norm" in shown and "titles" in shown and "written to" in shown
    assert sorted(path.name for path in out.parent.iterdir()) == ["result.items", "result.json"]
    rows = (out.parent / tasks["arc_easy"]["items"]).read_text().splitlines()
    assert len(rows) == 2 and len(json.loads(rows[0])["logprobs"]) == 3
    with pytest.raises(CheckpointError, match="cannot get this base from the Hugging Face hub"):
        call("nobody/nothing", "--tasks", "boolq", "--data-dir", folder / "data")
    with pytest.raises(DataError, match="triviaqa_train.jsonl"):
        call(folder / "base", "--tasks", "triviaqa", "--data-dir", folder / "data", "--shots", "triviaqa=1")
    assert no_network == []


def test_a_stack_is_scored_with_its_hand_offs(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    call(
        folder, "--tasks", "openbookqa", "--data-dir", folder / "data", "--out", out, "--harness",
        "question={{question_stem}}", "--dtype", "float32",
    )  # fmt: skip
    result = json.loads(out.read_text())
    assert result["kind"] == "stack" and set(result["trained_parameters"]) == {"recall", "answer"}
    assert result["harness"]["harness"] == {"question": "{{question_stem}}"} and "tasks" not in result
    (row,) = (json.loads(line) for line in (tmp_path / "result.items/openbookqa.jsonl").read_text().splitlines())
    assert row["inputs"] == {"question": "Milk is"} and set(row["handoffs"]) == {"recall"}


def test_a_killed_run_goes_on_after_the_last_whole_task(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import cairn.evaluation.harness as harness

    out = tmp_path / "result.json"
    arguments = (folder / "base", "--tasks", "openbookqa,boolq", "--data-dir", folder / "data", "--out", out)
    real, scored = harness._scored, []

    def counted(lm: Any, name: str, *rest: Any) -> Any:
        if name == "boolq" and not scored.count("stopped"):
            scored.append("stopped")
            raise KeyboardInterrupt
        scored.append(name)
        return real(lm, name, *rest)

    monkeypatch.setattr(harness, "_scored", counted)
    call(*arguments)
    assert not out.exists() and scored == ["openbookqa", "stopped"]
    with open(tmp_path / "result.json.partial.jsonl", "a") as file:
        file.write('{"part": "lm_eval", "na')  # a line that a kill cut off
    call(*arguments)
    assert scored == ["openbookqa", "stopped", "boolq"]
    assert set(json.loads(out.read_text())["harness"]["tasks"]) == {"openbookqa", "boolq"}
    assert not list(tmp_path.glob("*.partial.jsonl"))


def test_a_recipe_says_tasks_and_the_command_line_goes_before(folder: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    section = {"tasks": ["openbookqa"], "shots": {"openbookqa": 0}, "harness": {"question": "{{question_stem}}"},
               "data_dir": str(folder / "data"), "limit": 1}  # fmt: skip
    recipe.write_text(yaml.safe_dump({"recipe": "experiment", "name": "x", "stack": STACK, "eval": section}))
    result = json.loads(call(folder, "--recipe", recipe, "--json"))
    assert list(result["harness"]["tasks"]) == ["openbookqa"]
    field = "question={{passage}}"
    result = json.loads(
        call(folder, "--recipe", recipe, "--tasks", "boolq", "--harness", field, "--limit", 2, "--json")
    )
    assert result["harness"]["tasks"]["boolq"]["n"] == 2 and "openbookqa" not in result["harness"]["tasks"]
    with pytest.raises(ConfigError, match="taskz"):
        recipe.write_text(yaml.safe_dump({"recipe": "experiment", "name": "x", "stack": STACK, "eval": {"taskz": []}}))
        call(folder, "--recipe", recipe)


@pytest.mark.parametrize(("arguments", "error", "message"), [
    (["base", "--tasks", "boolq", "--data-dir", "data", "--harness", "a=b"], InputError, "--harness is for a stack"),
    (["base", "--text", "x", "--data-dir", "data"], InputError, "--data-dir is for --tasks: 'data'"),
    (["base", "--tasks", "boolq", "--data-dir", "none"], DataError, "no such data folder: 'none'"),
    (["base", "--tasks", "tinyArc", "--data-dir", "data"], DataError, "tinyArc needs split 'train'"),
    (["base", "--tasks", "boolq", "--data-dir", "data", "--irt-file", "stack.yaml"], DataError, "is refused"),
    ([".", "--tasks", "boolq", "--data-dir", "data", "--harness", "x=y"], ConfigError, "harness.x: the stack has no"),
    (["base", "--tasks", "boolq", "--shots", "many"], InputError, "--shots takes a number: 'many'"),
])  # fmt: skip
def test_wrong_commands_are_known_before_the_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], error: type[Exception], message: str
) -> None:
    import cairn.engines.torch_engine as torch_engine

    monkeypatch.chdir(folder)
    monkeypatch.setattr(torch_engine, "TorchEngine", None)
    with pytest.raises(error, match=message):
        call(*arguments)
    assert not list(folder.glob("*.partial.jsonl"))


def test_settings_are_read_from_texts() -> None:
    assert parse_shots(["4", "arc_easy=25"]) == {"*": 4, "arc_easy": 25} and parse_shots([]) == {}
    assert parse_harness(["q={{a}}=b", "c={{context}}"]) == {"q": "{{a}}=b", "c": "{{context}}"}
    for wrong in ("", "=3", "x=-1", "3.5"):
        with pytest.raises(InputError, match="--shots takes a number"):
            parse_shots([wrong])
    for wrong in ("question", "=x", "question="):
        with pytest.raises(InputError, match="--harness needs a field and a template"):
            parse_harness([wrong])
    assert EvalSettings() == EvalSettings(tasks=[], shots={}, harness={})
