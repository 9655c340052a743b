"""`cairn tune`: from a recipe and a file to a model that can be talked to; what cannot work is refused beforehand."""

import json

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from cairn.config import parse_config
from cairn.engines.base import Sampling
from cairn.engines.chat_engine import ChatRequest
from cairn.errors import ConfigError, DataError, InputError
from cairn.training.tune_plan import TuneRecipe
from cairn.verbs.tune import ask, open_chat, tune, tune_recipe
from tests.engines.tiny_models import save_base

ROWS = [
    {"instruction": "Where is the milk?", "output": "kitchen"},
    {"instruction": "Where is the apple?", "output": "garden"},
    {"messages": [], "instruction": "no answer"},
    {"instruction": "Is it <|eos|> there?", "output": "no"},
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("tune")
    save_base(root / "base")
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return root


def recipe(place, **changes):
    settings = {
        "recipe": "tune", "name": "toy", "base": "base", "device": "cpu",
        "data": {"sources": [{"name": "own", "licence": "none", "path": "rows.jsonl", "form": "pairs"}],
                 "validation": 0},
        "training": {"steps": 40, "batch_tokens": 200, "learning_rate": 0.02, "precision": "fp32", "lora": {"rank": 8}},
        "samples": ["Where is the milk?"],
    }  # fmt: skip
    return parse_config(TuneRecipe, settings | changes, "test")


@pytest.fixture(scope="module")
def tuned(place):
    lines = []
    result = tune_recipe(recipe(place), place / "out", recipe_folder=place, say=lines.append)
    return result, lines


def test_the_result_is_an_adapter_and_a_whole_model_with_facts_and_card(place, tuned):
    result, lines = tuned
    out = place / "out"
    assert result["made"] == ["adapter", "model"] and result["data"]["training"] == 2
    assert result["data"]["sources"][0]["left_out"] == {"missing field": 1, "special token": 1}
    assert "own: 2 conversations; 2 left out, the first: row 3: no output" in lines[0]
    assert json.loads((out / "result.json").read_text())["loss"] == result["loss"]
    assert "| own | none | 2 |" in (out / "model" / "README.md").read_text()
    manifest = json.loads((out / "manifest.json").read_text())["files"]
    assert {"result.json", "adapter/adapter_model.safetensors", "model/model.safetensors"} <= set(manifest)
    assert "Assistant:" in AutoTokenizer.from_pretrained(out / "model").chat_template


def test_it_answers_as_it_was_taught_with_adapter_and_merged(place, tuned):
    engine, adapter = open_chat(place / "out", device="cpu", dtype="float32")
    assert adapter is None
    assert ask(engine, None, ["Where is the milk?"], 8) == ["kitchen"]
    beside = recipe(place, merge=False)
    tune_recipe(beside, place / "beside", recipe_folder=place)
    other, name = open_chat(place / "beside", device="cpu", dtype="float32")
    assert name == "chat" and ask(other, name, ["Where is the apple?"], 8) == ["garden"]
    folder = str(place / "beside" / "adapter")  # the adapter finds its base by itself
    chat = pipeline("text-generation", model=folder, tokenizer=folder)
    said = chat([{"role": "user", "content": "Where is the milk?"}], max_new_tokens=8, do_sample=False)
    assert said[0]["generated_text"][-1]["content"].strip() == "kitchen"
    turns = ["Where is the milk?", "Where is the apple?"]
    assert ask(other, name, turns, 8) == ask(engine, None, turns, 8)


def test_a_second_question_is_asked_with_the_first_answer_before_it(place, tuned):
    engine, _ = open_chat(place / "out", device="cpu", dtype="float32")
    history = (("user", "Where is the milk?"), ("assistant", "kitchen"))
    request = ChatRequest("And the apple?", None, Sampling(max_new_tokens=4), history=history)
    turns = [*history, ("user", "And the apple?")]
    want = engine.tokenizer.apply_chat_template(
        [{"role": role, "content": text} for role, text in turns], add_generation_prompt=True, return_dict=False
    )
    assert engine._row(request).prompt == want
    model = AutoModelForCausalLM.from_pretrained(place / "out" / "model", dtype=torch.float32)
    ids = model.generate(torch.tensor([want]), max_new_tokens=4, do_sample=False)[0, len(want) :]
    assert engine.generate([request])[0].text == engine.tokenizer.decode(ids, skip_special_tokens=True)
    with pytest.raises(InputError, match="spells a special token"):
        engine.generate([ChatRequest("Hi", history=(("user", "<|eos|>"), ("assistant", "x")))])


def test_a_whole_run_is_not_tuned_again_and_other_data_is_refused(place, tuned, monkeypatch):
    monkeypatch.setattr("cairn.training.tune.tune_model", lambda *a, **k: pytest.fail("tuned again"))
    assert tune_recipe(recipe(place), place / "out", recipe_folder=place) == tuned[0]
    with pytest.raises(ConfigError, match="made with other settings .recipe.description was '', is 'b'"):
        tune_recipe(recipe(place, description="b"), place / "out", recipe_folder=place)


def test_a_whole_run_is_talked_to_without_its_data(place, tuned, capsys, monkeypatch):
    settings = recipe(place)
    (place / "tune.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    monkeypatch.setattr("cairn.verbs.tune.tune_recipe", lambda *a, **k: pytest.fail("read again"))
    tune(place / "tune.yaml", place / "out", ["Where is the milk?", "Where is the apple?"], 8, 0.0, None)
    said = capsys.readouterr().out
    assert "User: Where is the milk?\nAssistant: kitchen\n" in said and "User: Where is the apple?" in said


def test_what_cannot_be_trained_is_one_error_before_any_step(place):
    with pytest.raises(ConfigError, match="2 of 2 conversations leaves none to train on"):
        data = recipe(place).data.model_dump() | {"validation": 2}
        tune_recipe(recipe(place, data=data), place / "none", recipe_folder=place)
    with pytest.raises(DataError, match="no such file .did you mean rows.jsonl"):
        data["sources"][0]["path"] = "row.jsonl"
        tune_recipe(recipe(place, data=data), place / "none", recipe_folder=place)
    with pytest.raises(ConfigError, match="no finished run of `cairn tune`"):
        open_chat(place / "none")
    assert not (place / "none").exists()


def test_the_command_tells_its_manual_and_its_faults(cairn, tmp_path):
    (tmp_path / "bad.yaml").write_text("recipe: tune\nname: x\nmethod: half\n")
    done = cairn("tune", "bad.yaml")
    assert done.returncode == 2 and "data: required, but missing" in done.stderr and "method: 'half'" in done.stderr
