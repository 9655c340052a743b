"""Checkpoints in the layouts that other tools read, and back.

    CairnForCausalLM ──▶ LlamaForCausalLM    (qk_norm off)
                     ──▶ Qwen3ForCausalLM    (qk_norm on: Qwen3 is Llama with per-head RMSNorm on queries and keys)

Parameter names are the same on both sides, so a conversion moves tensors and translates the configuration; nothing
is approximated. Weights that layers share are written out for each of them. What a layout cannot hold is refused.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from cairn.models.configuration import CairnConfig
from cairn.models.modeling import CairnForCausalLM
from cairn.models.sharing import DeltaLinear

__all__ = ["from_llama", "to_llama", "untied"]

_SHARED = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings",
    "attention_dropout", "initializer_range", "pad_token_id", "bos_token_id", "eos_token_id",
)


# field -> what it must be in a Llama layout; the same network cannot be written down otherwise
_PLAIN = {"feed_forward": "swiglu", "value_residual": False, "logit_softcap": None, "byte_pooling": None,
          "early_exit": None}  # fmt: skip


def to_llama(model: CairnForCausalLM) -> PreTrainedModel:
    """Returns the same network as a LlamaForCausalLM, or as a Qwen3ForCausalLM if it has QK-norm.

    The result shares no memory with `model` and gives the same logits. Shared layers become layers of their own, with
    their low-rank parts added in. Dropout between layers, which only training sees, is left out.

    Raises:
        ValueError: the model has what a Llama layout cannot hold (byte pooling, early exit, another feed-forward
            layer, value residual, softcapped logits).
    """
    config = model.config
    faults = [
        f"{name} is {getattr(config, name)!r}, allowed: {allowed!r}"
        for name, allowed in _PLAIN.items()
        if getattr(config, name) != allowed
    ]
    if faults:
        raise ValueError(
            "a Llama layout cannot hold this model: " + "; ".join(faults) + ". Next: model.save_pretrained(folder) "
            "keeps all of it, and loads with AutoModelForCausalLM(trust_remote_code=True)"
        )
    if config.sharing:
        model = untied(model)
    fields: dict[str, Any] = {name: getattr(config, name) for name in _SHARED}
    fields["rope_parameters"] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.qk_norm:
        target: PreTrainedModel = Qwen3ForCausalLM(
            Qwen3Config(**fields, attention_bias=False, use_sliding_window=False)
        )
    else:
        target = LlamaForCausalLM(LlamaConfig(**fields))
    return _filled(target, model)


def from_llama(model: PreTrainedModel) -> CairnForCausalLM:
    """Returns a LlamaForCausalLM or Qwen3ForCausalLM as a CairnForCausalLM; the inverse of `to_llama`.

    Raises:
        ValueError: another architecture, or a feature that this decoder does not have (biases, scaled RoPE,
            sliding windows, another activation).
    """
    config = model.config
    rope = dict(getattr(config, "rope_parameters", None) or {})
    faults = []
    if config.model_type not in {"llama", "qwen3"}:
        faults.append(f"model_type is {config.model_type!r}, allowed: 'llama', 'qwen3'")
    if rope.get("rope_type", "default") != "default":
        faults.append(f"rope_type is {rope['rope_type']!r}, allowed: 'default'")
    for name, allowed in (("attention_bias", False), ("mlp_bias", False), ("use_sliding_window", False)):
        if getattr(config, name, allowed) != allowed:
            faults.append(f"{name} is {getattr(config, name)!r}, allowed: {allowed}")
    if getattr(config, "hidden_act", "silu") != "silu":
        faults.append(f"hidden_act is {config.hidden_act!r}, allowed: 'silu'")
    if faults:
        raise ValueError("cannot become a CairnForCausalLM: " + "; ".join(faults))
    fields = {name: getattr(config, name) for name in _SHARED}
    target = CairnForCausalLM(
        CairnConfig(**fields, rope_theta=rope.get("rope_theta", 10000.0), qk_norm=config.model_type == "qwen3")
    )
    return _filled(target, model)


@torch.no_grad()
def untied(model: CairnForCausalLM) -> CairnForCausalLM:
    """Returns the same network with weights of its own in every layer, low-rank parts added in, and sharing None.

    The result shares no memory with `model`; embedding and head stay tied if they are.
    """
    config = copy.deepcopy(model.config)
    config.sharing = None
    weights = dict(model.state_dict())  # a shared weight has a name in every layer
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, DeltaLinear):
            weights[f"{name}.weight"] = module.full_weight()
            del weights[f"{name}.delta_down"], weights[f"{name}.delta_up"]
    target = CairnForCausalLM._from_config(config, attn_implementation=model.config._attn_implementation)
    target.to(device=model.device, dtype=model.dtype).train(model.training)
    target.load_state_dict(weights, strict=True)
    target.generation_config = model.generation_config
    return target


@torch.no_grad()
def _filled(target: Any, source: PreTrainedModel) -> Any:
    """Copies the weights of `source` into `target`, which takes its dtype; names must be the same."""
    target.to(source.dtype).eval()
    target.load_state_dict(source.state_dict(), strict=True)
    target.generation_config = source.generation_config
    return target
