"""Training an adapter quickly is training it: outputs and gradients of PEFT's own way, and nothing stays behind."""

import copy

import pytest
import torch
from peft import get_peft_model_state_dict
from peft.tuners.lora import Linear as LoraLinear
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

from cairn.errors import AdapterError, ConfigError
from cairn.models import CairnConfig, CairnForCausalLM
from cairn.training.finetune_plan import LoraSettings
from cairn.training.lora import joint_lora, quick_training, start_from, trained_parameters, with_adapter

SHAPE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
MODELS = {
    "cairn": lambda: CairnForCausalLM(CairnConfig(**SHAPE, num_key_value_heads=2, qk_norm=True)),
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, num_key_value_heads=2)),
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SHAPE)),
}
IDS = torch.randint(3, 64, (5, 17), generator=torch.Generator().manual_seed(2))


def built(name):
    torch.manual_seed(0)
    return MODELS[name]()


def loss_and_gradients(model, autocast):
    torch.manual_seed(5)  # dropout
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    return loss.item(), gradients


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("autocast", [False, True])
def test_quick_training_is_peft_s_own_forward_and_gradients(name, autocast):
    model = built(name).train()
    with with_adapter(model, LoraSettings(rank=4, dropout=0.0 if autocast else 0.2, scale=3.0), seed=1):
        with torch.no_grad():  # B starts at zero, which would hide the adapter
            for key, parameter in model.named_parameters():
                if "lora_B" in key:
                    parameter.normal_(std=0.1)
        plain, gradients = loss_and_gradients(model, autocast)
        with quick_training(model, autocast=autocast):
            quick, others = loss_and_gradients(model, autocast)
    assert quick == pytest.approx(plain, rel=5e-3 if autocast else 1e-5)
    assert gradients.keys() == others.keys() and len(gradients) >= 16
    for key, gradient in gradients.items():
        distance = (gradient - others[key]).norm() / gradient.norm()
        assert distance < (0.1 if autocast else 1e-4), key


def test_quick_training_leaves_nothing_behind():
    model = built("llama")
    before = copy.deepcopy(model.config.to_dict())
    with with_adapter(model, LoraSettings(rank=2), seed=0):
        layers = [module for module in model.modules() if isinstance(module, LoraLinear)]
        with pytest.raises(RuntimeError, match="stop"), quick_training(model, autocast=True):
            assert model.config._attn_implementation == "cairn_sdpa_float32"
            assert all("forward" in vars(layer) for layer in layers)
            raise RuntimeError("stop")
        assert layers and not any("forward" in vars(layer) for layer in layers)
    assert model.config._attn_implementation == "sdpa" and model.config.to_dict() == before


def test_an_eager_model_stays_eager():
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, attn_implementation="eager"))
    with with_adapter(model, LoraSettings(rank=2), seed=0), quick_training(model, autocast=True):
        assert model.config._attn_implementation == "eager"


def test_the_global_generator_goes_on_as_if_nothing_had_been():
    model = built("llama")
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    with with_adapter(model, LoraSettings(rank=2), seed=8):
        torch.rand(10)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("name", MODELS)
def test_one_adapter_trains_as_many_numbers_as_several_that_train_different_layers(name):
    model = built(name)
    layers = [key for key, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    one, two = layers[0].rpartition(".")[2], layers[1].rpartition(".")[2]
    parts = [LoraSettings(rank=2, targets=[one]), LoraSettings(rank=3), LoraSettings(rank=1, targets=[one, two])]
    joint = joint_lora(model, parts, LoraSettings(scale=1.5))
    assert trained_parameters(model, joint) == sum(trained_parameters(model, part) for part in parts)
    assert sorted(set(joint.ranks.values())) == sorted({3, 3 + 1, 3 + 1 + 2} if one != two else {3, 6})
    with with_adapter(model, joint, seed=0) as adapter:
        found = {module.scaling["default"] for module in adapter.modules() if isinstance(module, LoraLinear)}
    assert found == {1.5}
    same_layers = joint_lora(model, [LoraSettings(rank=2), LoraSettings(rank=5)], LoraSettings(scale=1.5))
    assert same_layers == LoraSettings(rank=7, scale=1.5)


def test_ranks_of_layers_that_are_not_trained_are_refused():
    with pytest.raises(ConfigError, match="lora.ranks.v_proj: no layer that is trained has this name"):
        trained_parameters(built("cairn"), LoraSettings(targets=["q_proj"], ranks={"v_proj": 2}))


def test_an_adapter_starts_with_the_weights_of_another_bit_for_bit(tmp_path):
    model, lora = built("cairn"), LoraSettings(rank=4)
    with with_adapter(model, lora, seed=1) as adapter:
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if "lora_" in key:
                    parameter.normal_()
        before = {key: value.clone() for key, value in get_peft_model_state_dict(adapter).items()}
        adapter.save_pretrained(tmp_path / "a", save_embedding_layers=False)
    with with_adapter(model, lora, seed=2) as adapter:
        start_from(adapter, tmp_path / "a")
        after = get_peft_model_state_dict(adapter)
        assert after.keys() == before.keys() and all(torch.equal(after[key], before[key]) for key in before)
        assert all(parameter.requires_grad == ("lora_" in key) for key, parameter in model.named_parameters())
    with with_adapter(model, LoraSettings(rank=3), seed=2) as adapter:
        with pytest.raises(AdapterError, match="an adapter of another shape cannot be gone on from"):
            start_from(adapter, tmp_path / "a")
