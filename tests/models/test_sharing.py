"""Sharing layers: one copy in memory and on disk, tied after loading, gradients summed; faults are refused."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from cairn.models import CairnConfig, CairnForCausalLM
from cairn.models.accounting import flops_per_token, parameters_by_part
from cairn.models.export import from_llama, to_llama, untied
from cairn.models.sharing import DeltaLinear, sharing_of

SHAPE = dict(vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=6, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=64)
SCHEMES = {
    "all": {"feed_forward": {"scheme": "all"}},
    "all by module": {"feed_forward": {"scheme": "all", "by": "module"}},
    "interior": {"feed_forward": {"scheme": "interior", "free": 1}},
    "groups": {"feed_forward": {"scheme": "groups", "groups": [[0, 3], [1, 2], [4], [5]]}},
    "delta": {"feed_forward": {"scheme": "interior", "free": 1, "delta_rank": 3}},
    "output": {"attention_output": {"scheme": "all", "delta_rank": 2}},
    "both": {"feed_forward": {"scheme": "all", "by": "module"}, "attention_output": {"scheme": "interior", "free": 2}},
    "blocks": {"blocks": {"repeat": 2}},
    "blocks with delta": {"blocks": {"repeat": 3, "delta_rank": 2}},
    "recurrence": {"recurrence": {"first": 1, "last": 2, "times": 2}},
}
IDS = torch.randint(3, 61, (3, 15), generator=torch.Generator().manual_seed(1))


def built(scheme, **changes):
    """A model whose every weight is drawn, deltas and value mixes too, so that nothing is hidden by a zero."""
    torch.manual_seed(0)
    sharing = SCHEMES[scheme] if isinstance(scheme, str) else scheme
    model = CairnForCausalLM(CairnConfig(**{**SHAPE, "sharing": sharing, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


def test_owners_are_those_of_the_drawing():
    assert sharing_of(SCHEMES["all"], 6).owners["feed_forward"] == (0, 0, 0, 0, 0, 0)
    assert sharing_of(SCHEMES["interior"], 6).owners["feed_forward"] == (0, 1, 1, 1, 1, 5)
    assert sharing_of(SCHEMES["groups"], 6).owners["feed_forward"] == (0, 1, 1, 0, 4, 5)
    assert sharing_of(SCHEMES["groups"], 6).sharers("feed_forward") == [0, 1, 2, 3]
    assert sharing_of(SCHEMES["both"], 6).owners["attention_output"] == (0, 1, 2, 2, 4, 5)
    assert set(sharing_of(SCHEMES["blocks"], 6).owners.values()) == {(0, 0, 2, 2, 4, 4)}
    assert set(sharing_of(SCHEMES["recurrence"], 6).owners.values()) == {(0, 1, 2, 1, 2, 5)}
    assert set(sharing_of(None, 6).owners.values()) == {tuple(range(6))}


@pytest.mark.parametrize("tied_head", [True, False])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_one_copy_on_disk_and_tied_again(scheme, tied_head, tmp_path):
    model = built(scheme, tie_word_embeddings=tied_head, qk_norm=True)
    kept = sum(parameter.numel() for parameter in model.parameters())
    assert kept == parameters_by_part(model.config)["total"] == model.num_parameters()
    assert kept < built({}, tie_word_embeddings=tied_head, qk_norm=True).num_parameters()
    model.save_pretrained(tmp_path)
    assert sum(tensor.numel() for tensor in load_file(tmp_path / "model.safetensors").values()) == kept
    again, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    assert sum(parameter.numel() for parameter in again.parameters()) == kept
    with torch.no_grad():  # a step on one place is a step on all
        again.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].self_attn.o_proj.weight.zero_()
    assert torch.equal(again(IDS).logits, model(IDS).logits)


@pytest.mark.parametrize("scheme", ["all", "all by module", "delta", "blocks", "recurrence"])
def test_gradient_is_the_sum_over_the_layers(scheme):
    model = built(scheme)
    separate = untied(model)
    for one in (model, separate):
        one(IDS, labels=IDS).loss.backward()
    assert torch.allclose(separate(IDS).logits, model(IDS).logits, atol=1e-5)
    owners = sharing_of(model.config.sharing, 6).owners["feed_forward"]
    for owner in set(owners):
        places = [layer for layer in range(6) if owners[layer] == owner]
        summed = sum(separate.model.layers[place].mlp.down_proj.weight.grad for place in places)
        assert torch.allclose(model.model.layers[owner].mlp.down_proj.weight.grad, summed, atol=1e-6)


def test_deltas_begin_as_nothing_and_belong_to_one_layer():
    torch.manual_seed(0)
    model = CairnForCausalLM(CairnConfig(**SHAPE, sharing=SCHEMES["delta"])).eval()
    before = model(IDS).logits
    linears = [module for module in model.modules() if isinstance(module, DeltaLinear)]
    assert len(linears) == 4 * 3 and not any(linear.delta_up.any() for linear in linears)
    assert all(linear.delta_down.std() > 0.01 for linear in linears)
    assert torch.allclose(untied(model)(IDS).logits, before, atol=1e-6)
    with torch.no_grad():
        model.model.layers[2].mlp.down_proj.delta_up.add_(1.0)
    separate = untied(model)
    first, second = (separate.model.layers[layer].mlp.down_proj.weight for layer in (1, 2))
    assert not torch.equal(first, second)
    assert torch.equal(first, model.model.layers[1].mlp.down_proj.weight)


@pytest.mark.parametrize("scheme", ["both", "delta", "blocks with delta", "recurrence"])
def test_cached_equals_uncached_and_exported_equals_shared(scheme):
    model = built(scheme, qk_norm=scheme == "both")
    greedy = model.generate(IDS, max_new_tokens=6, do_sample=False)
    assert torch.equal(greedy, model.generate(IDS, max_new_tokens=6, do_sample=False, use_cache=False))
    llama = to_llama(model)
    assert type(llama).__name__ == ("Qwen3ForCausalLM" if scheme == "both" else "LlamaForCausalLM")
    assert (llama(IDS).logits - model(IDS).logits).abs().max() < 1e-4
    layers = llama.model.layers
    assert layers[2].mlp.up_proj.weight.data_ptr() != layers[3].mlp.up_proj.weight.data_ptr()
    back = from_llama(llama)
    assert back.config.sharing is None and (back(IDS).logits - model(IDS).logits).abs().max() < 1e-4


@pytest.mark.parametrize("scheme", SCHEMES)
def test_shared_layers_cost_as_much_to_run(scheme):
    from torch.utils.flop_counter import FlopCounterMode

    model = built(scheme)
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        model(IDS[:1], use_cache=False)
    assert counter.get_total_flops() == 15 * flops_per_token(model.config, 15)


def test_a_checkpoint_with_other_weights_for_shared_layers_is_refused(tmp_path):
    built({}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="layers.1.mlp.gate_proj.weight and layers.0.mlp.gate_proj.weight are shared"):
        AutoModelForCausalLM.from_pretrained(tmp_path, sharing=SCHEMES["all"])


def test_byte_models_share_their_core(tmp_path):
    pooling = {"rule": "fixed", "local_size": 16, "local_heads": 2}
    model = built("interior", vocab_size=259, byte_pooling=pooling).bfloat16()
    kept = parameters_by_part(model.config)["total"]
    model.save_pretrained(tmp_path)
    assert not [name for name in load_file(tmp_path / "model.safetensors") if "core.layers.2.mlp" in name]
    again, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True, dtype=torch.bfloat16)
    assert not any(report.values()) and kept == sum(parameter.numel() for parameter in again.parameters())
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    assert torch.allclose(untied(model.float())(IDS).logits, model(IDS).logits, atol=1e-5)


BAD = {
    "groups do not cover layers 4, 5, allowed: every layer in one group":
        {"feed_forward": {"scheme": "groups", "groups": [[0, 1], [2, 3]]}},
    "groups name layers 1 more than once": {"feed_forward": {"scheme": "groups", "groups": [[0, 1, 2], [1, 3, 4, 5]]}},
    "groups name layers 6, allowed: 0 to 5": {"feed_forward": {"scheme": "groups", "groups": [[0, 1, 2, 3, 4, 5, 6]]}},
    "groups is 'half', allowed: lists of layer numbers": {"feed_forward": {"scheme": "groups", "groups": "half"}},
    "feed_forward.free is 3, allowed: a whole number of 1 to 2": {"feed_forward": {"scheme": "interior", "free": 3}},
    "free is 1 with scheme all": {"feed_forward": {"scheme": "all", "free": 1}},
    "scheme is 'inner', allowed: all, interior, groups": {"attention_output": {"scheme": "inner"}},
    r"feed_forwards is no setting \(did you mean feed_forward\?\)": {"feed_forwards": {"scheme": "all"}},
    r"attention_output.by is no setting": {"attention_output": {"scheme": "all", "by": "module"}},
    "delta_rank is 2 with by: module, allowed: 0": {"feed_forward": {"scheme": "all", "by": "module", "delta_rank": 2}},
    "blocks.repeat is 4, allowed: a divisor of num_hidden_layers": {"blocks": {"repeat": 4}},
    "num_hidden_layers of at least 7": {"recurrence": {"first": 1, "last": 2, "times": 3}},
    "blocks shares whole layers beside feed_forward": {"blocks": {"repeat": 2}, "feed_forward": {"scheme": "all"}},
    "sharing is 'all', allowed: null, or a mapping": "all",
}


@pytest.mark.parametrize("text", BAD)
def test_schemes_that_do_not_fit_are_refused(text):
    with pytest.raises(ValueError, match=text):
        CairnConfig(**SHAPE, sharing=BAD[text])


def test_all_faults_are_in_one_error():
    groups = {"scheme": "groups", "groups": [[0]]}
    sharing = {"feed_forward": {"scheme": "interior", "free": 9}, "attention_output": groups}
    with pytest.raises(ValueError) as error:
        CairnConfig(**SHAPE, sharing=sharing, feed_forward="relu3", hidden_dropout=1.0)
    text = str(error.value)
    assert "feed_forward is 'relu3', allowed: swiglu, relu2" in text and "hidden_dropout is 1.0" in text
    with pytest.raises(ValueError, match="free is 9.*; attention_output.groups do not cover layers 1, 2, 3, 4, 5"):
        CairnConfig(**SHAPE, sharing=sharing)
