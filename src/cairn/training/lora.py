"""Putting a low-rank adapter into a frozen base for training, and taking it out again.

    base linear   x [tokens, in] ─▶ W ─────────────────────────▶ + ─▶ [tokens, out]
                  └─▶ dropout ─▶ A [rank, in] ─▶ x scale ─▶ B ───┘

PEFT makes and saves the adapter. While it trains, three detours are avoided, much of a tiny model's time: PEFT
scales the wide result and casts the wide input once more for every layer (here the narrow middle is scaled); autocast
rounds every frozen weight to bfloat16 in every forward pass (here once); and torch's fused attention on the CPU in
bfloat16 is several times slower backwards on short sequences than in float32 (here it runs in float32). All give what
the plain way gives, up to rounding, and all end with the training.
"""

from __future__ import annotations

import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from cairn.errors import ConfigError
from cairn.training.finetune_plan import LoraSettings

__all__ = ["quick_training", "trained_parameters", "with_adapter"]

_FLOAT32_ATTENTION = "cairn_sdpa_float32"


@contextmanager
def with_adapter(model: PreTrainedModel, lora: LoraSettings, seed: int) -> Iterator[PeftModel]:
    """Puts a fresh adapter into the frozen base, and takes it out again, unmerged, however the body ends.

    Args:
        model: the base; only the adapter asks for gradients inside.
        lora: shape of the adapter.
        seed: of its first weights, and of torch's global generator inside the body (dropout).

    Raises:
        ConfigError: `lora.targets` names no layer of the base.
    """
    asked = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # PEFT's use of a name that transformers renames
                adapter = get_peft_model(
                    model,
                    LoraConfig(
                        r=lora.rank, lora_alpha=lora.scale * lora.rank, lora_dropout=lora.dropout,
                        target_modules=lora.targets, bias="none", task_type="CAUSAL_LM",
                    ),
                )  # fmt: skip
        except ValueError as error:  # PEFT names the layers that it did not find
            raise ConfigError(
                "lora.targets", [f"{lora.targets!r}: no such layer in this base ({error})"],
                next='use "all-linear", or layer names of this base',
            ) from None  # fmt: skip
        try:
            yield adapter
        finally:
            adapter.unload()
            model.eval()
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(asked[name])


def trained_parameters(model: PreTrainedModel, lora: LoraSettings) -> int:
    """Returns how many numbers an adapter of this shape trains on this base; the base is left as it was.

    Raises:
        ConfigError: `lora.targets` names no layer of the base.
    """
    with with_adapter(model, lora, seed=0):
        return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


@contextmanager
def quick_training(model: PreTrainedModel, *, autocast: bool) -> Iterator[None]:
    """Trains the adapters inside a base without the detours that the module docstring names.

    Args:
        model: a base with one adapter named "default" in it.
        autocast: whether it trains under bfloat16 autocast.
    """
    layers = [module for module in model.modules() if isinstance(module, LoraLinear)]
    attention = model.config._attn_implementation
    on_cpu = model.get_input_embeddings().weight.device.type == "cpu"
    exchange = autocast and on_cpu and attention == "sdpa" and getattr(model, "_supports_attention_backend", False)
    if exchange:
        AttentionInterface.register(_FLOAT32_ATTENTION, _float32_attention)
        AttentionMaskInterface.register(_FLOAT32_ATTENTION, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
        model.set_attn_implementation(_FLOAT32_ATTENTION)
    frozen = [layer.base_layer.weight for layer in layers]
    for layer in layers:
        layer.forward = types.MethodType(_narrow_forward, layer)
        if autocast:  # what autocast would do to a frozen weight in every forward pass, done once
            rounded = layer.base_layer.weight.detach().to(torch.bfloat16)
            layer.base_layer.weight = nn.Parameter(rounded, requires_grad=False)
    try:
        yield
    finally:
        for layer, weight in zip(layers, frozen, strict=True):
            del layer.forward  # the class's own is behind it
            layer.base_layer.weight = weight
        if exchange:
            model.set_attn_implementation(attention)


def _narrow_forward(layer: Any, x: Tensor) -> Tensor:
    """PEFT's LoRA forward for one unmerged adapter: x [..., in] -> [..., out], scaled between A and B."""
    narrow = F.linear(layer.lora_dropout["default"](x), layer.lora_A["default"].weight)  # [..., rank]
    out = layer.base_layer(x)
    scaled = (narrow * layer.scaling["default"]).flatten(0, -2)  # [tokens, rank]
    return torch.addmm(out.flatten(0, -2), scaled, layer.lora_B["default"].weight.t()).view_as(out)


def _float32_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    with torch.autocast(query.device.type, enabled=False):
        mixed, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **kwargs)
    return mixed.to(query.dtype), None
