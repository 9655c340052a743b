"""The whole path from text to a model folder, killed, resumed and spread over two processes."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from cairn.config import load_config, parse_config
from cairn.errors import ConfigError
from cairn.models.tokenization import prompt_ids
from cairn.training.pretrain import PretrainRecipe, bits_per_byte, pretrain

WORDS = "the a red old boat hill man sees takes puts under over and lamp near small river".split()


def recipe(folder, **changes):
    draw = random.Random(5)
    lines = [json.dumps({"text": " ".join(draw.choices(WORDS, k=60)) + "."}) for _ in range(60)]
    (folder / "text.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "held.txt").write_text(" ".join(draw.choices(WORDS, k=200)))
    data = {
        "recipe": "pretrain", "name": "tiny", "seed": 3, "steps": 12, "sequence_length": 32, "batch_rows": 4,
        "tokenizer": {"vocab_size": 330, "train_bytes": 20000},
        "data": {
            "sources": [
                {"name": "words", "path": "text.jsonl", "licence": "none: made by a test"},
                {"name": "lookup", "generator": "lookup", "weight": 0.3, "licence": "Apache-2.0"},
            ],
            "validation": [{"name": "held", "path": "held.txt", "licence": "none: made by a test"}],
        },
        "model": {"preset": "1m", "changes": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                                              "attention_dropout": 0.2}},
        "optimizer": {"kind": "muon"},
        "loop": {"autocast": "none", "log_every": 1, "eval_every": 5, "checkpoint_every": 3},
        "samples": ["the old man"], "device": "cpu",
        **changes,
    }
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(data))
    return path


def command(path, out, processes=1):
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    return [sys.executable, *launch, "-m", "cairn", "pretrain", str(path), "--out", str(out)]


def losses(out):
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows if "loss" in row}, [row for row in rows if "sample" in row]


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """An uninterrupted run, made in this process."""
    folder = tmp_path_factory.mktemp("straight")
    path = recipe(folder)
    said = []
    pretrain(load_config(PretrainRecipe, path), folder / "run", recipe_folder=folder, say=said.append)
    return folder, said


def test_autocast_auto_is_recorded_as_what_it_became(tmp_path, monkeypatch):
    monkeypatch.setattr("cairn.bases._cpu_has", lambda probe: False)
    path = recipe(tmp_path, loop={"log_every": 1}, steps=2)
    pretrain(load_config(PretrainRecipe, path), tmp_path / "run", recipe_folder=tmp_path, say=lambda line: None)
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["loop"]["autocast"] == "none"
    monkeypatch.setattr("cairn.bases._cpu_has", lambda probe: True)
    with pytest.raises(ConfigError, match="loop.autocast was 'none', is 'bf16'"):
        pretrain(load_config(PretrainRecipe, path), tmp_path / "run", recipe_folder=tmp_path, say=lambda line: None)


def test_leaves_a_model_that_loads_scores_and_speaks(straight):
    folder, said = straight
    model_folder = folder / "run" / "model"
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    assert model.dtype == torch.bfloat16 and model.config.vocab_size == len(tokenizer)
    ids = torch.tensor([prompt_ids(tokenizer, "the old man")])
    assert model.generate(ids, max_new_tokens=4, do_sample=False).shape[1] == ids.shape[1] + 4
    by_step, evaluations = losses(folder / "run")
    assert sorted(by_step) == list(range(1, 13))
    assert by_step[12] < by_step[1] - 0.3
    assert [row["step"] for row in evaluations] == [5, 10, 12]
    assert evaluations[-1]["bits_per_byte/held"] < evaluations[0]["bits_per_byte/held"]
    assert evaluations[-1]["sample"].startswith("the old man")
    assert any("MB/s" in line for line in said)
    manifest = json.loads((folder / "run" / "manifest.json").read_text())
    assert "model/model.safetensors" in manifest["files"] and "model/modeling.py" in manifest["files"]


def test_killed_anywhere_it_ends_with_the_same_weights(straight, tmp_path):
    """kill -9 at three moments of the run (seeded, spread over its whole length), the same command each time."""
    folder, _ = straight
    path, out = recipe(tmp_path), tmp_path / "run"
    draw = random.Random(11)
    kills = 0
    for wanted in (draw.randint(1, 3), draw.randint(4, 7), draw.randint(8, 11)):
        process = subprocess.Popen(command(path, out), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            metrics = out / "metrics.jsonl"
            if metrics.exists() and f'"step": {wanted},' in metrics.read_text():
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.002)
        process.wait()
    done = subprocess.run(command(path, out), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert kills >= 2
    ours = load_file(out / "model" / "model.safetensors")
    theirs = load_file(folder / "run" / "model" / "model.safetensors")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert losses(out)[0] == losses(folder / "run")[0]


def test_two_processes_give_the_losses_of_one(tmp_path):
    without = {"attention_dropout": 0.0, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    path = recipe(tmp_path, model={"preset": "1m", "changes": without}, steps=5)
    pretrain(load_config(PretrainRecipe, path), tmp_path / "one", recipe_folder=tmp_path, say=lambda line: None)
    done = subprocess.run(command(path, tmp_path / "two", processes=2), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 process(es)" in done.stdout
    one, two = losses(tmp_path / "one")[0], losses(tmp_path / "two")[0]
    assert sorted(one) == sorted(two) == [1, 2, 3, 4, 5]
    assert all(one[step] == pytest.approx(two[step], rel=1e-4) for step in one)
    assert one[1] != one[5]


def test_other_settings_in_the_same_folder_are_refused(straight):
    folder, _ = straight
    changed = load_config(PretrainRecipe, folder / "recipe.yaml", ["steps=13"])
    with pytest.raises(ConfigError, match="made with other settings.*Next: choose another folder with --out"):
        pretrain(changed, folder / "run", recipe_folder=folder, say=lambda line: None)


def test_sequence_longer_than_the_context_is_refused(tmp_path):
    path = recipe(tmp_path, sequence_length=600)
    with pytest.raises(ConfigError, match=r"sequence_length: 600, allowed: at most .*max_position_embeddings \(512\)"):
        pretrain(load_config(PretrainRecipe, path), tmp_path / "run", recipe_folder=tmp_path, say=lambda line: None)


def test_wrong_recipe_lists_every_fault(tmp_path):
    data = yaml.safe_load(recipe(tmp_path).read_text())
    data["model"] = {"preset": "1n", "changes": {"hiden_size": 3}}
    data["stesp"] = 4
    with pytest.raises(ConfigError) as error:
        parse_config(PretrainRecipe, data, "recipe.yaml")
    text = str(error.value)
    assert "stesp: unknown key (did you mean steps?)" in text
    assert "unknown preset '1n' (did you mean 1m?)" in text
    assert "unknown model field 'hiden_size' (did you mean hidden_size?)" in text


class Uniform(torch.nn.Module):
    """Gives every token the same probability."""

    def __init__(self, vocabulary):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.vocabulary = vocabulary

    def forward(self, input_ids, use_cache):
        logits = self.weight + torch.zeros(*input_ids.shape, self.vocabulary)
        return type("Out", (), {"logits": logits})


@pytest.mark.parametrize("window", [7, 32, 1000])
def test_bits_per_byte_of_a_uniform_model(straight, window):
    """Every token costs log2(vocabulary) bits, whatever the window; bytes are raw UTF-8."""
    tokenizer = AutoTokenizer.from_pretrained(straight[0] / "run" / "model")
    texts = ["the red boat", "naïve 🙂"]
    predicted = sum(len(tokenizer(t, add_special_tokens=False)["input_ids"]) + 2 for t in texts) - 1
    expected = predicted * math.log2(330) / sum(len(t.encode()) for t in texts)
    assert bits_per_byte(Uniform(330), tokenizer, texts, window) == pytest.approx(expected, rel=1e-5)
