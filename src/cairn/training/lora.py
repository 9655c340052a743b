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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import Linear as LoraLinear
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from cairn.errors import AdapterError, ConfigError
from cairn.training.finetune_plan import LoraSettings

__all__ = ["joint_lora", "quick_training", "start_from", "trained_parameters", "with_adapter"]

_FLOAT32_ATTENTION = "cairn_sdpa_float32"


@contextmanager
def with_adapter(model: PreTrainedModel, lora: LoraSettings, seed: int) -> Iterator[PeftModel]:
    """Puts a fresh adapter into the frozen base, and takes it out again, unmerged, however the body ends.

    Args:
        model: the base; only the adapter asks for gradients inside.
        lora: shape of the adapter.
        seed: of its first weights, and of torch's global generator inside the body (dropout).

    Raises:
        ConfigError: `lora.targets` or `lora.ranks` names no layer of the base.
    """
    asked = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # PEFT's use of a name that transformers renames
                warnings.simplefilter("ignore", RuntimeWarning)  # of `ranks`, which are checked below
                adapter = get_peft_model(
                    model,
                    LoraConfig(
                        r=lora.rank, lora_alpha=lora.scale * lora.rank, lora_dropout=lora.dropout,
                        rank_pattern=dict(lora.ranks), target_modules=lora.targets, bias="none", task_type="CAUSAL_LM",
                        alpha_pattern={layer: lora.scale * rank for layer, rank in lora.ranks.items()},
                    ),
                )  # fmt: skip
        except ValueError as error:  # PEFT names the layers that it did not find
            raise ConfigError(
                "lora.targets", [f"{lora.targets!r}: no such layer in this base ({error})"],
                next='use "all-linear", or layer names of this base',
            ) from None  # fmt: skip
        try:
            _check_ranks(adapter, lora)
            yield adapter
        finally:
            adapter.unload()
            model.eval()
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(asked[name])


def _check_ranks(adapter: PeftModel, lora: LoraSettings) -> None:
    layers = [name for name, module in adapter.get_base_model().named_modules() if isinstance(module, LoraLinear)]
    faults = [
        f"lora.ranks.{key}: no layer that is trained has this name"
        for key in lora.ranks
        if not any(name == key or name.endswith(f".{key}") for name in layers)
    ]
    if faults:
        raise ConfigError("training", faults, next="use layer names of this base that lora.targets holds")


def start_from(adapter: PeftModel, folder: str | Path) -> None:
    """Gives a fresh adapter the weights of a saved one of the same shape, bit for bit.

    Args:
        adapter: what `with_adapter` yields.
        folder: PEFT folder.

    Raises:
        AdapterError: its tensors are not those of this shape.
    """
    weights = load_file(Path(folder) / "adapter_model.safetensors")
    own = get_peft_model_state_dict(adapter, save_embedding_layers=False)
    wrong = sorted(set(own) ^ set(weights)) or [key for key in own if own[key].shape != weights[key].shape]
    if wrong:
        raise AdapterError(
            f"an adapter of another shape cannot be gone on from; {len(wrong)} tensors differ, first", value=wrong[0],
            next=f"delete {folder}, so that it is trained again",
        )  # fmt: skip
    set_peft_model_state_dict(adapter, weights)


def joint_lora(model: PreTrainedModel, parts: Sequence[LoraSettings], shape: LoraSettings) -> LoraSettings:
    """Returns the shape of one adapter that trains as many numbers as several together, layer by layer.

    Args:
        model: the base; it is left as it was.
        parts: shapes of the several.
        shape: scale and dropout of the one.

    Raises:
        ConfigError: the targets of a part name no layer of the base.
    """
    if len({str(part.targets) for part in parts}) == 1 and not any(part.ranks for part in parts):
        return shape.model_copy(update={"rank": sum(part.rank for part in parts), "targets": parts[0].targets})
    ranks: dict[str, int] = {}
    for part in parts:
        with with_adapter(model, part, seed=0) as adapter:
            for name, module in adapter.get_base_model().named_modules():
                if isinstance(module, LoraLinear):
                    ranks[name] = ranks.get(name, 0) + module.r["default"]
    return shape.model_copy(update={"rank": max(ranks.values()), "targets": list(ranks), "ranks": ranks})


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
