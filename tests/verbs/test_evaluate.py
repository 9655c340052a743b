"""`cairn eval` from the command line's side: real tiny model, real files, results that can be resumed."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml
from typer.testing import CliRunner

from cairn.errors import DataError, InputError
from cairn.verbs.evaluate import evaluate

BABI = """1 Mary went to the hall.
2 John went to the garden.
3 Where is Mary?\thall\t1
4 Mary went to the office.
5 Where is Mary?\toffice\t4
1 John went to the hall.
2 Where is John?\thall\t1
"""
STACK = {
    "name": "two",
    "base": "base",
    "inputs": ["story", "question"],
    "stages": [
        {
            "name": "mention", "kind": "map", "over": "story", "split": "sentences", "keep": "yes", "retries": 0,
            "prompt": "{item}\n{question}\nA:", "contract": {"kind": "choices", "values": ["yes", "no"]},
            "sampling": {"max_new_tokens": 2},
        },
        {
            "name": "answer", "reads": ["mention"], "prompt": "{mention}\n{question}\nA:", "retries": 0,
            "sampling": {"max_new_tokens": 2},
        },
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stack folder with its tiny base, two LoRA adapters, and files to measure on."""
    from peft import LoraConfig, get_peft_model

    from cairn.models import CairnConfig, CairnForCausalLM
    from cairn.models.tokenization import train_bpe

    root = tmp_path_factory.mktemp("stack")
    tokenizer = train_bpe([BABI] * 4, 380)
    torch.manual_seed(0)
    config = CairnConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.2,
    )  # fmt: skip
    model = CairnForCausalLM(config)
    model.save_pretrained(root / "base")
    tokenizer.save_pretrained(root / "base")
    for name in ("mention", "answer"):
        lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        adapted = get_peft_model(CairnForCausalLM(config), lora)
        adapted.save_pretrained(root / "stages" / name)
    (root / "stack.yaml").write_text(yaml.safe_dump(STACK))
    (root / "qa1_test.txt").write_text(BABI)
    (root / "text.jsonl.xz").write_bytes(lzma.compress(b'{"text": "Mary went to the hall."}\n{"text": "John sat."}\n'))
    pairs = [
        {"sentence_good": f"Mary went to {n}.", "sentence_bad": f"Mary to went {n}.", "UID": uid}
        for uid, count in (("a", 3), ("b", 1)) for n in range(count)
    ]  # fmt: skip
    (root / "blimp.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    return root


def call(*arguments: object) -> str:
    app = typer.Typer()
    app.command()(evaluate)
    return CliRunner().invoke(app, [str(part) for part in arguments], catch_exceptions=False).stdout


def test_a_model_gets_every_figure_with_its_count_and_versions(folder: Path) -> None:
    result = json.loads(
        call(
            folder / "base", "--text", folder / "text.jsonl.xz", "--blimp", folder / "blimp.jsonl", "--data",
            folder / "qa1_test.txt", "--train", folder / "qa1_test.txt", "--shots", 2, "--seed", 3, "--json",
        )
    )  # fmt: skip
    (bits,) = result["text"].values()
    assert bits["bytes"] == len("Mary went to the hall.John sat.") and bits["documents"] == 2 and bits["lossless"]
    assert 0 < bits["bits_per_byte"] < 100 and bits["stderr"] > 0
    assert result["blimp"]["n"] == 4 and set(result["blimp"]["paradigms"]) == {"a", "b"}
    (task,) = result["tasks"].values()
    assert (task["n"], task["groups"], task["examples_shown"]) == (3, 2, {"qa1": 2.0})
    assert task["flops_per_question"] > 0 and len(task["ci95"]) == 2
    assert result["versions"]["seed"] == 3 and "torch" in result["versions"]["packages"]
    assert result["kind"] == "model" and result["settings"]["dtype"] == "float32" and result["parameters"] > 0


def test_a_stack_answers_through_its_runner(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    shown = call(folder, "--data", folder / "qa1_test.txt", "--limit", 2, "--out", out, "--dtype", "float32")
    result = json.loads(out.read_text())
    (task,) = result["tasks"].values()
    assert result["kind"] == "stack" and result["stack"] == "two" and set(result["trained_parameters"]) == {
        "mention", "answer",
    }  # fmt: skip
    assert task["n"] == 2 and task["groups"] == 1
    assert task["calls_per_question"] == (2 + 1 + 3 + 1) / 2  # sentences and the answer, twice
    assert "qa1_test.txt" in shown and "written to" in shown
    assert list(tmp_path.iterdir()) == [out]  # the partial file is gone


def test_an_interrupted_run_goes_on(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import cairn.evaluation.suites as suites

    out = tmp_path / "deep" / "result.json"
    arguments = (
        folder / "base", "--text", folder / "text.jsonl.xz", "--blimp", folder / "blimp.jsonl", "--out", out,
    )  # fmt: skip
    real, calls = suites.bits_per_byte, []

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(suites, "bits_per_byte", lambda *a, **k: calls.append(1) or real(*a, **k))
    with monkeypatch.context() as interrupted:
        interrupted.setattr(suites, "blimp", stop)
        call(*arguments)
    assert not out.exists() and calls == [1]
    call(*arguments)
    assert calls == [1]  # the text was not scored again
    assert json.loads(out.read_text())["blimp"]["n"] == 4
    assert [path.name for path in out.parent.iterdir()] == ["result.json"]
    with monkeypatch.context() as interrupted:
        interrupted.setattr(suites, "blimp", stop)
        call(*arguments, "--max-bytes", 10)
    call(*arguments)  # other settings: nothing of the interrupted run may be used
    assert len(calls) == 3
    (bits,) = json.loads(out.read_text())["text"].values()
    assert bits["bytes"] == len("Mary went to the hall.John sat.")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["base"], InputError, "nothing to measure. Allowed: --text, --blimp, --data"),
        ([".", "--text", "text.jsonl.xz"], InputError, "a stack answers questions only"),
        (["base", "--data", "qa1_test.txt"], InputError, "a model answers after solved examples: '--shots 4'"),
        (["base", "--data", "qa1_test.txt", "--shots", "0", "--set", "a=b"], InputError, "--set is for a stack"),
        (["base", "--text", "none.txt"], DataError, "no such file"),
        (["base", "--blimp", "stack.yaml"], DataError, "line 1: not a JSON object"),
        ([".", "--data", "qa1_test.txt", "--task", "baby"], InputError, r"no such task \(did you mean babi\?\)"),
    ],
)
def test_wrong_commands_say_what_is_allowed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], error: type[Exception], message: str
) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(error, match=message):
        call(*arguments)


def test_the_module_does_not_import_torch() -> None:
    import subprocess
    import sys

    code = "import sys, cairn.verbs.evaluate; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
