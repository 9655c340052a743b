"""Joined weights: what a model writes with them is what it writes without, and the model itself stays what it was."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from cairn.engines.base import GenerationRequest, Sampling, ScoreRequest
from cairn.engines.cache import roomy_cache
from cairn.engines.fused import FusedDecoder, can_fuse
from cairn.engines.torch_engine import TorchEngine
from cairn.models import CairnConfig, CairnForCausalLM
from tests.engines.tiny_models import save_adapter, tiny_llama, tiny_tokenizer

SHAPE = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.4, "zero_init_projections": False,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "plain": {"num_key_value_heads": 4},
    "grouped": {"qk_norm": True},
    "relu2": {"feed_forward": "relu2", "qk_norm": True},
    "softcap": {"logit_softcap": 5.0, "tie_word_embeddings": False},
}


def model_of(**changes: Any) -> CairnForCausalLM:
    torch.manual_seed(5)
    model = CairnForCausalLM(CairnConfig(**SHAPE | changes)).eval()
    with torch.no_grad():  # gains of one would hide a norm in the wrong place
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 1.5)
    return model


@torch.inference_mode()
def written(write: Any, model: PreTrainedModel) -> torch.Tensor:
    """Logits of a padded batch: a prompt, two tokens one by one, then three at once, of which the last one's."""
    ids = torch.randint(3, 320, (3, 13), generator=torch.Generator().manual_seed(1))
    starts = torch.tensor([0, 3, 5])
    mask = (torch.arange(13)[None] >= starts[:, None]).long()
    positions = (torch.arange(13)[None] - starts[:, None]).clamp(min=0)
    cache, found = roomy_cache(model.config), []
    for start, end in ((0, 8), (8, 9), (9, 10), (10, 13)):
        logits = write(
            input_ids=ids[:, start:end], attention_mask=mask[:, :end], position_ids=positions[:, start:end],
            past_key_values=cache,
        ).logits  # fmt: skip
        found.append(logits[:, -1])
    return torch.stack(found)


@pytest.mark.parametrize("kind", KINDS)
def test_joined_weights_write_what_the_model_writes(kind: str) -> None:
    model = model_of(**KINDS[kind])
    reference = copy.deepcopy(model)
    assert can_fuse(model)
    decoder = FusedDecoder(model)
    fused = written(decoder, model)
    assert torch.allclose(fused, written(reference, reference), atol=2e-5)
    assert torch.allclose(written(model, model), written(reference, reference), atol=2e-5), "the model is what it was"
    assert all(torch.equal(value, reference.state_dict()[name]) for name, value in model.state_dict().items())
    for layer, joined in zip(model.model.layers, decoder._layers, strict=True):
        ours = [layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj]
        for linear, whole in [*((one, joined.qkv) for one in ours), (layer.mlp.up_proj, joined.wide)]:
            places = [weight.untyped_storage().data_ptr() for weight in (linear.weight, whole)]
            assert places[0] == places[1], "nothing is kept twice"


def test_without_padding_and_in_bfloat16() -> None:
    model = model_of(qk_norm=True).to(torch.bfloat16)
    reference = copy.deepcopy(model)
    ids = torch.randint(3, 320, (1, 9), generator=torch.Generator().manual_seed(2))
    sides: list[list[torch.Tensor]] = [[], []]
    for write, found in zip((FusedDecoder(model), reference), sides, strict=True):
        cache = roomy_cache(model.config)
        with torch.inference_mode():
            for start, end in ((0, 8), (8, 9)):
                logits = write(
                    input_ids=ids[:, start:end], attention_mask=None, position_ids=torch.arange(start, end)[None],
                    past_key_values=cache,
                ).logits  # fmt: skip
                found.append(logits[:, -1].float())
    for mine, other in zip(*sides, strict=True):
        assert (mine - other).abs().max() < 0.03 * other.abs().max()


@pytest.mark.parametrize(
    "changes",
    [
        {"value_residual": True},
        {"sharing": {"feed_forward": {"scheme": "all"}}},
        {"early_exit": {"layers": [1]}},
        {"attn_implementation": "eager"},
    ],
    ids=str,
)
def test_what_has_other_layers_is_left_alone(changes: dict[str, Any]) -> None:
    assert can_fuse(model_of())
    assert not can_fuse(model_of(**changes))
    assert not can_fuse(tiny_llama())


def test_an_engine_joins_what_is_its_own_alone(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    model = model_of(vocab_size=len(tokenizer), qk_norm=True)
    model.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    adapter = save_adapter(tmp_path / "x", tmp_path / "base", 1)
    requests = [
        GenerationRequest(text, name, Sampling(max_new_tokens=9))
        for text in ("Mary went", "Where is the milk? John took", "yes") for name in (None, "x")
    ]  # fmt: skip
    settings = {"adapters": {"x": adapter}, "dtype": "float32", "device": "cpu"}
    owned = TorchEngine(str(tmp_path / "base"), merge=True, **settings)
    texts = [one.text for one in owned.generate(requests)]
    assert all(owned._fused[name] is not None for name in (None, "x"))
    beside = TorchEngine(str(tmp_path / "base"), merge=False, **settings)
    assert [one.text for one in beside.generate(requests)] == texts and not beside._fused
    asked = [ScoreRequest("Mary", " went to the garden", name) for name in (None, "x")]
    for mine, other in zip(owned.loglikelihood(asked), beside.loglikelihood(asked), strict=True):
        assert mine.logprob == pytest.approx(other.logprob, abs=1e-4)
    given = TorchEngine(model, tokenizer=tokenizer, device="cpu")
    before = given.generate([GenerationRequest("Mary went", None, Sampling(max_new_tokens=9))])[0].text
    assert before == texts[0] and not given._fused
    with torch.no_grad():  # somebody else's model: what it has learnt since counts
        model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight.flip(0))
    assert given.generate([GenerationRequest("Mary went", None, Sampling(max_new_tokens=9))])[0].text != before
