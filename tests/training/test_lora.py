"""Training an adapter quickly is training it: outputs and gradients of PEFT's own way, and nothing stays behind."""

import copy

import pytest
import torch
from peft.tuners.lora import Linear as LoraLinear
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

from cairn.models import CairnConfig, CairnForCausalLM
from cairn.training.finetune_plan import LoraSettings
from cairn.training.lora import quick_training, with_adapter

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
