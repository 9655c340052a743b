"""`cairn info` says what things hold and cost, and refuses what it cannot trust."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from cairn import cli
from cairn.errors import AdapterError, CheckpointError, InputError
from cairn.models.accounting import flops_per_token
from cairn.models.presets import PRESETS, preset_config
from cairn.verbs.info import describe

TINY = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "vocab_size": 64, "max_position_embeddings": 128,
}  # fmt: skip


@pytest.fixture
def say(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Runs `cairn info ARGUMENTS...`; returns exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.main(["info", *arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a configuration and weights of its true total size."""
    config = preset_config("1m", **TINY)
    folder = tmp_path / "model"
    config.save_pretrained(folder)
    from cairn.models.accounting import parameters_by_part

    total = parameters_by_part(config)["total"]
    save_file({"all": np.zeros(total, dtype=np.float16)}, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("name", PRESETS)
def test_preset_figures_add_up(name: str) -> None:
    facts = describe(name, batch_tokens=1000)
    parts = dict(facts["parameters"])
    assert parts.pop("total") == sum(parts.values())
    flops = facts["flops_per_token"]
    assert flops["training"] == 3 * flops["forward"] > 6 * (facts["parameters"]["total"] - parts["norms"])
    memory = dict(facts["training_memory_bytes"])
    assert memory.pop("batch_tokens") == 1000
    assert memory.pop("total") == sum(memory.values())


def test_context_moves_the_cost_and_is_checked() -> None:
    near, far = (describe("1m", context=position)["flops_per_token"]["forward"] for position in (1, 512))
    layers, width = PRESETS["1m"]["num_hidden_layers"], PRESETS["1m"]["hidden_size"]
    assert far - near == 511 * 4 * layers * width  # scores and mix, one multiply-add each
    with pytest.raises(InputError, match="--context is longer than the model's sequences: 513. Allowed: 1 to 512"):
        describe("1m", context=513)


def test_tables_name_every_part(say: Callable) -> None:
    code, out, err = say("10m")
    assert code == 0, err
    for words in ("10m: 8 layers x 320", "embedding", "attention", "feed forward", "norms", "head (the embedding)"):
        assert words in out
    for words in ("FLOPs per token at position 512, forward", "key-value cache per token", "training memory"):
        assert words in out
    total = describe("10m")["parameters"]["total"]
    assert f"{total:,}" in out


def test_overview_lists_the_presets(say: Callable) -> None:
    code, out, err = say()
    assert code == 0, err
    for name in PRESETS:
        assert f" {name} " in out
    assert "Embedded base" in out


def test_json_is_json(say: Callable) -> None:
    assert json.loads(say("1m", "--json")[1]) == describe("1m")


def test_model_folder(model: Path, say: Callable) -> None:
    facts = describe(str(model))
    assert facts["kind"] == "model" and facts["architecture"] == "cairn"
    assert facts["stored_parameters"] == facts["parameters"]["total"]
    code, out, err = say(str(model))
    assert f"{facts['stored_parameters']:,} parameters in" in out


def test_a_shared_model_holds_what_the_account_says(tmp_path: Path, say: Callable) -> None:
    from cairn.models import CairnForCausalLM

    sharing = {"feed_forward": {"scheme": "all", "delta_rank": 2}}
    CairnForCausalLM(preset_config("1m", **TINY, sharing=sharing)).save_pretrained(tmp_path)
    facts = describe(str(tmp_path))
    assert facts["stored_parameters"] == facts["parameters"]["total"] and facts["variant"] == {"sharing": sharing}
    code, out, err = say(str(tmp_path))
    assert code == 0, err
    assert 'variant: {"sharing": {"feed_forward"' in out and "deltas" in out


def test_damaged_weights_are_refused(model: Path, say: Callable) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="promises"):
        describe(str(model))
    code, out, err = say(str(model))
    assert code == 3 and err.startswith("cairn: error: a weight file has")
    weights.unlink()
    with pytest.raises(CheckpointError, match="no weights"):
        describe(str(model))


STACK = """
name: tiny
inputs: [story, question]
stages:
- {name: facts, prompt: "{story}\\nFacts:"}
- {name: answer, prompt: "{facts}\\n{question}\\nAnswer:", reads: [facts]}
"""


@pytest.fixture
def stack(tmp_path: Path) -> Path:
    """A stack folder with one of its two adapters trained."""
    folder = tmp_path / "stack"
    adapter = folder / "stages" / "facts"
    adapter.mkdir(parents=True)
    (folder / "stack.yaml").write_text(STACK)
    (adapter / "adapter_config.json").write_text('{"r": 4}')
    save_file({"a": np.zeros((4, 32), np.float32), "b": np.zeros((32, 4), np.float32)},
              adapter / "adapter_model.safetensors")  # fmt: skip
    return folder


def test_stack_folder(stack: Path, say: Callable) -> None:
    facts = describe(str(stack))
    assert facts["adapters"] == {
        "facts": {"trained": True, "rank": 4, "parameters": 256}, "answer": {"trained": False}
    }  # fmt: skip
    assert [stage["name"] for stage in facts["stages"]] == ["facts", "answer"] and facts["output"] == "answer"
    code, out, err = say(str(stack))
    assert code == 0, err
    assert "not trained" in out and "256" in out


def test_rules_and_loops_are_marked(tmp_path: Path, say: Callable) -> None:
    (tmp_path / "mine.yaml").write_text(
        "name: tiny\ninputs: [text]\nstages:\n"
        '- {name: fold, kind: repeat, over: text, at_most: 7, prompt: "{state} {item}"}\n'
        "- {name: answer, rule: calculate, reads: [fold], arguments: {expression: '{fold}'}}\n"
    )
    facts = describe(str(tmp_path / "mine.yaml"))
    assert [(stage["by"], stage["rule"], stage["adapter"]) for stage in facts["stages"]] == [
        ("model", None, "fold"), ("rule", "calculate", None),
    ]  # fmt: skip
    assert facts["adapters"] == {"fold": {"trained": False}}
    code, out, err = say(str(tmp_path / "mine.yaml"))
    assert code == 0, err
    assert "rule calculate" in out and "repeat over text, at most 7" in out


def test_damaged_adapter_is_refused(stack: Path) -> None:
    weights = stack / "stages" / "facts" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:40])
    with pytest.raises(AdapterError, match="truncated"):
        describe(str(stack))
    weights.unlink()
    with pytest.raises(AdapterError, match=r"a file is missing: '.*adapter_model.safetensors'. Next: cairn finetune"):
        describe(str(stack))


def test_shard_folder(tmp_path: Path, say: Callable) -> None:
    from cairn.data.shards import write_shards
    from cairn.errors import ShardError
    from cairn.models.tokenization import train_bpe

    texts = ["the cat sat on the mat and looked at the rain"] * 20
    write_shards(texts, train_bpe(texts, 320), tmp_path / "shards")
    facts = describe(str(tmp_path / "shards"))
    assert facts["kind"] == "shards" and facts["documents"] == 20 and facts["tokens"] > 40
    code, out, err = say(str(tmp_path / "shards"))
    assert code == 0, err
    assert f"{facts['tokens']:,} tokens" in out
    (part,) = (tmp_path / "shards").glob("shard-*")
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(ShardError):
        describe(str(tmp_path / "shards"))


def test_a_recipe_is_costed(tmp_path: Path, say: Callable) -> None:
    changes = {key: value for key, value in TINY.items() if key != "vocab_size"}
    recipe = {
        "recipe": "pretrain", "name": "mine", "steps": 1000, "batch_rows": 4, "sequence_length": 64,
        "tokenizer": {"vocab_size": 320}, "model": {"preset": "1m", "changes": changes}, "loop": {"micro_rows": 2},
        "data": {
            "sources": [{"name": "own", "generator": "lookup", "weight": 1.0, "licence": "mine"}],
            "total_tokens": 128000,
        },
    }  # fmt: skip
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(recipe))
    facts = describe(str(file))
    config = preset_config("1m", **{**TINY, "vocab_size": 320})
    each = flops_per_token(config, 32, training=True)
    training = facts["training"]
    assert (training["tokens"], training["flops"]) == (256_000, 256_000 * each) and facts["text"]["passes"] == 2.0
    gpu = facts["gpu"]
    assert gpu["hours"] == pytest.approx(256_000 * each / (gpu["tflops"] * 1e12 * gpu["share"] * 3600))
    cpu = facts["cpu"]
    assert cpu["hours"] == pytest.approx(256_000 / cpu["tokens_per_s"] / 3600) and cpu["tokens_per_s"] > 0
    code, out, err = say(str(file))
    assert code == 0, err
    assert "1,000 of 256 tokens" in out and "assumed" in out and "measured now" in out
    file.write_text(yaml.safe_dump({**recipe, "objective": {"kind": "multi_token"}}))
    code, out, err = say(str(file))
    assert code == 2 and "cost of this recipe is not known beforehand" in err and "cairn sweep" in err


def test_unknown_name_suggests(say: Callable) -> None:
    code, out, err = say("10n")
    assert code == 2 and "did you mean 10m?" in err and "Next: cairn info" in err


@pytest.mark.parametrize("what", [[], ["recipes/stlm-50m.yaml"], ["--compare"]])
@pytest.mark.parametrize("option", ["--context", "--batch-tokens"])
def test_options_that_say_nothing_are_refused(
    say: Callable[..., tuple[int, str, str]], pytestconfig: pytest.Config, what: list[str], option: str
) -> None:
    given = [str(pytestconfig.rootpath / one) if one.endswith("yaml") else one for one in what]
    code, _, err = say(*given, option, "64")
    assert code == 2 and f"{option} says nothing about" in err and "with a preset or a model" in err
