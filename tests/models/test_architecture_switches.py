"""Switches of the architecture: what each computes, that caches and checkpoints hold it, and what an export refuses."""

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

from cairn.models import CairnConfig, CairnForCausalLM
from cairn.models.accounting import flops_per_token, parameters_by_part
from cairn.models.export import to_llama
from cairn.training.objectives import completion, next_token

SHAPE = dict(vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
             num_key_value_heads=2, max_position_embeddings=64)
SWITCHES = {
    "relu2": {"feed_forward": "relu2"},
    "value residual": {"value_residual": True},
    "softcap": {"logit_softcap": 0.5},
    "untied softcap": {"logit_softcap": 0.5, "tie_word_embeddings": False},
    "all": {"feed_forward": "relu2", "value_residual": True, "logit_softcap": 2.0, "qk_norm": True,
            "zero_init_projections": True, "hidden_dropout": 0.2, "sharing": {"recurrence":
            {"first": 0, "last": 0, "times": 2, "delta_rank": 2}}},
}
IDS = torch.randint(3, 61, (3, 15), generator=torch.Generator().manual_seed(1))


def built(**changes):
    torch.manual_seed(0)
    model = CairnForCausalLM(CairnConfig(**{**SHAPE, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model


@pytest.mark.parametrize("name", SWITCHES)
def test_caches_checkpoints_and_account_hold_it(name, tmp_path):
    from torch.utils.flop_counter import FlopCounterMode

    model = built(**SWITCHES[name])
    assert (model(IDS).logits - built()(IDS).logits).abs().max() > 1e-3
    cache, parts = None, []
    for start, stop in ((0, 5), (5, 6), (6, 15)):
        out = model(IDS[:, start:stop], past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        parts.append(out.logits)
    assert (torch.cat(parts, 1) - model(IDS).logits).abs().max() < 1e-5
    model.save_pretrained(tmp_path)
    again, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()) and torch.equal(again(IDS).logits, model(IDS).logits)
    assert parameters_by_part(model.config)["total"] == sum(parameter.numel() for parameter in model.parameters())
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        model(IDS[:1], use_cache=False)
    assert counter.get_total_flops() == 15 * flops_per_token(model.config, 15)


def test_relu2_is_two_matrices():
    layer = built(feed_forward="relu2").model.layers[0].mlp
    x = torch.randn(4, 32)
    expected = F.relu(x @ layer.up_proj.weight.T) ** 2 @ layer.down_proj.weight.T
    assert torch.allclose(layer(x), expected, atol=1e-6) and not hasattr(layer, "gate_proj")


def test_value_residual_mixes_the_first_layer_s_values():
    model, plain = built(value_residual=True), built()
    assert [hasattr(layer.self_attn, "value_mix") for layer in model.model.layers] == [False, True, True]
    fresh = CairnForCausalLM(CairnConfig(**SHAPE, value_residual=True)).model.layers[1].self_attn
    assert fresh.value_mix.tolist() == [0.5, 0.5]
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "value_mix" not in k})
    with torch.no_grad():
        for layer in model.model.layers[1:]:
            layer.self_attn.value_mix.copy_(torch.tensor([0.0, 1.0]))
        assert torch.allclose(model(IDS).logits, plain(IDS).logits, atol=1e-6)
        model.model.layers[2].self_attn.value_mix.copy_(torch.tensor([1.0, 0.0]))
        before = model(IDS).logits
        model.model.layers[2].self_attn.v_proj.weight.zero_()  # its own values no longer count
        assert torch.equal(model(IDS).logits, before)
        model.model.layers[0].self_attn.v_proj.weight.mul_(2)
        assert not torch.allclose(model(IDS).logits, before, atol=1e-3)


def test_softcap_bounds_what_every_objective_sees():
    model, cap = built(logit_softcap=0.5), 0.5
    plain = built()
    logits = model(IDS).logits
    assert logits.abs().max() <= cap and torch.allclose(logits, cap * torch.tanh(plain(IDS).logits / cap), atol=1e-6)
    batch = {"input_ids": IDS[:, :-1], "labels": IDS[:, 1:]}
    assert next_token(model, batch)[0].item() == pytest.approx(completion(model, batch)[0].item(), rel=1e-5)


def test_hidden_dropout_acts_while_training_and_follows_its_schedule():
    model, plain = built(hidden_dropout=0.3), built()
    assert torch.equal(model(IDS).logits, plain(IDS).logits)
    model.train(), plain.train()
    assert not torch.equal(model(IDS).logits, model(IDS).logits)
    state = torch.random.get_rng_state()
    model.set_hidden_dropout(0.0)
    assert torch.equal(model(IDS).logits, plain(IDS).logits)
    assert torch.equal(torch.random.get_rng_state(), state), "no random number is drawn where nothing is dropped"
    assert model.config.hidden_dropout == 0.3
    x = torch.ones(2000, 32)
    model.set_hidden_dropout(0.25)
    dropped = model.model.layers[0]._dropped(x)
    assert dropped.eq(0).float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert dropped.mean().item() == pytest.approx(1.0, abs=0.02)
    with pytest.raises(ValueError, match="hidden_dropout is 1.0, allowed: at least 0 and less than 1"):
        model.set_hidden_dropout(1.0)


def test_layers_run_in_parts_are_the_forward_pass():
    model = built(value_residual=True)
    whole = model.model(IDS, output_hidden_states=True)
    x, inputs = model.model.begin(IDS, use_cache=True)
    states = [x]
    x = model.model.run_layers(x, inputs, 0, 1, states)
    x = model.model.run_layers(x, inputs, 1, states=states)
    assert torch.equal(model.model.norm(x), whole.last_hidden_state)
    assert len(states) == 4 and all(map(torch.equal, states[:3], whole.hidden_states[:3]))
    assert inputs.past_key_values.get_seq_length() == 15


@pytest.mark.parametrize("name, text", [
    ("relu2", "feed_forward is 'relu2', allowed: 'swiglu'"),
    ("value residual", "value_residual is True, allowed: False"),
    ("softcap", "logit_softcap is 0.5, allowed: None"),
])
def test_export_refuses_what_a_llama_layout_cannot_hold(name, text):
    with pytest.raises(ValueError, match=f"a Llama layout cannot hold this model: {text}.*Next: model.save_pretrained"):
        to_llama(built(**SWITCHES[name]))


def test_a_checkpoint_without_the_new_keys_is_the_model_it_was():
    old = {key: value for key, value in CairnConfig(**SHAPE).to_dict().items()
           if key not in {"hidden_dropout", "feed_forward", "value_residual", "logit_softcap", "sharing",
                          "byte_pooling", "early_exit"}}  # fmt: skip
    torch.manual_seed(0)
    again = CairnForCausalLM(CairnConfig.from_dict(old))
    torch.manual_seed(0)
    assert torch.equal(again(IDS).logits, CairnForCausalLM(CairnConfig(**SHAPE))(IDS).logits)
    assert again.config.sharing is None and again.config.feed_forward == "swiglu"
