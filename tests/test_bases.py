"""Base models from names, and adapters of other bases: each fault is one clear error."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from cairn.bases import (
    _tell_emulated,
    load_base,
    load_tokenizer,
    pick_device,
    pick_dtype,
    pick_precision,
    resolve_base,
)
from cairn.errors import AdapterError, CheckpointError, TokenizerError
from cairn.identity import base_identity, check_adapter, model_identity, same_base
from tests.engines.tiny_models import save_adapter, save_base, tiny_llama, tiny_tokenizer


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("bases") / "base")


@pytest.fixture
def base(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "base"))


def load(folder: Path) -> torch.nn.Module:
    return load_base(str(folder), dtype="float32", device="cpu")[0]


def test_a_whole_folder_loads(base: Path) -> None:
    model, tokenizer = load_base(str(base), dtype="bfloat16", device="cpu")
    assert model.dtype == torch.bfloat16
    assert not model.training
    assert tokenizer.eos_token_id == 2
    assert load_tokenizer(str(base)).get_vocab() == tokenizer.get_vocab()
    expected = tiny_llama().state_dict()
    for name, weight in load(base).state_dict().items():
        assert torch.equal(weight, expected[name]), name


def test_names_that_are_nothing() -> None:
    with pytest.raises(CheckpointError, match="no such embedded model: 'embedded:nothing'.*Next: train one with"):
        resolve_base("embedded:nothing")
    with pytest.raises(CheckpointError, match="no such embedded model"):
        resolve_base("embedded:../base")
    with pytest.raises(CheckpointError, match="no such model folder: './nothing'"):
        resolve_base("./nothing")
    with pytest.raises(CheckpointError, match="cannot get this base from the Hugging Face hub.*check the name"):
        load_base("nobody/nothing-at-all")
    assert resolve_base("org/name") == "org/name"


def test_a_file_is_no_base(base: Path) -> None:
    with pytest.raises(CheckpointError, match="the base is a file"):
        resolve_base(str(base / "config.json"))


def test_no_config(base: Path) -> None:
    (base / "config.json").unlink()
    with pytest.raises(CheckpointError, match="has no config.json"):
        load(base)


def test_damaged_config(base: Path) -> None:
    (base / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="config.json is damaged"):
        load(base)


def test_no_weights(base: Path) -> None:
    (base / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="the model has no weights.*Allowed: model.safetensors"):
        load(base)


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights(base: Path, keep: int) -> None:
    weights = base / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"truncated|damaged|promises") as caught:
        load(base)
    assert "Next: copy the folder again" in str(caught.value)


def test_a_weight_that_is_missing_is_not_made_up(base: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(base / "model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="1 weights are missing from the model: 'model.layers.1.mlp.up_proj"):
        load(base)


def test_config_and_weights_of_two_models(base: Path, tmp_path: Path) -> None:
    other = save_base(tmp_path / "other", hidden_size=64)
    shutil.copy(other / "config.json", base / "config.json")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load(base)


def test_no_tokenizer(base: Path) -> None:
    (base / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match="the model has no tokenizer"):
        load(base)


def test_damaged_tokenizer(base: Path) -> None:
    (base / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match="the tokenizer cannot be read"):
        load(base)


def test_tokenizer_of_a_bigger_model(base: Path) -> None:
    tiny_llama(vocab_size=300).save_pretrained(base)
    with pytest.raises(TokenizerError, match=r"does not match the model.*highest id is \d+. Allowed: ids below 300"):
        load(base)


def test_auto_device_and_dtype_are_usable() -> None:
    device = pick_device("auto")
    assert pick_dtype("auto", device) in (torch.float32, torch.bfloat16)
    assert pick_dtype("float16", device) == torch.float16


def test_identity_is_of_the_content_not_of_the_place(base: Path, saved: Path, tmp_path: Path) -> None:
    mine, original = base_identity(base), base_identity(saved)
    assert same_base(mine, original) == []
    assert {**mine, "name": ""} == {**original, "name": ""}
    other = base_identity(save_base(tmp_path / "other", seed=1))
    assert [fact.split()[0] for fact in same_base(mine, other)] == ["weights_sha256"]
    wider = base_identity(save_base(tmp_path / "wider", hidden_size=64))
    assert "hidden_size 32 instead of 64" in same_base(mine, wider)


def test_identity_of_a_model_in_memory_compares_what_it_knows(saved: Path) -> None:
    identity = model_identity(tiny_llama(), tiny_tokenizer())
    assert same_base(identity, base_identity(saved)) == []
    assert same_base(model_identity(tiny_llama(vocab_size=400), tiny_tokenizer()), base_identity(saved)) != []


def test_damaged_adapter_card(saved: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "x", saved, 1)
    shapes = {name: tuple(weight.shape) for name, weight in tiny_llama().state_dict().items()}
    check_adapter(adapter, base_identity(saved), shapes)
    (adapter / "cairn_adapter.json").write_text(json.dumps({}))
    with pytest.raises(AdapterError, match="the adapter is damaged"):
        check_adapter(adapter, base_identity(saved), shapes)


@pytest.mark.parametrize(("native", "precision"), [(True, "bf16"), (False, "fp32")])
def test_a_training_multiplies_as_the_cpu_does_fast(monkeypatch, caplog, native, precision):
    monkeypatch.setattr("cairn.bases._cpu_has", lambda probe: native)
    _tell_emulated.cache_clear()
    cpu = torch.device("cpu")
    assert pick_precision("auto", cpu) == precision
    assert pick_precision("fp32", cpu) == pick_precision("none", cpu) == "fp32"
    assert not caplog.records, "nothing to warn of"
    assert [pick_precision("bf16", cpu) for _ in range(2)] == ["bf16", "bf16"], "what is asked for is done"
    told = ["this CPU emulates bf16, many times slower than fp32; precision auto takes what it multiplies fast"]
    assert [record.getMessage() for record in caplog.records] == ([] if native else told)
    assert pick_precision("auto", torch.device("mps")) == "fp32"
