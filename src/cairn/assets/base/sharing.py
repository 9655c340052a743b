"""Layers that share weights: which layer keeps them, how they are tied, and what each layer adds of its own.

    num_hidden_layers = 6        layer that keeps the weights of layer    0 1 2 3 4 5
      feed_forward  {scheme: all}                                         0 0 0 0 0 0   of the feed-forward layer
      feed_forward  {scheme: interior, free: 1}                           0 1 1 1 1 5
      feed_forward  {scheme: groups, groups: [[0, 1, 2], [3, 4, 5]]}      0 0 0 3 3 3
      attention_output {scheme: ...}                 the same three       of the attention's output projection
      blocks        {repeat: 2}                                           0 0 2 2 4 4   of the whole layer
      recurrence    {first: 1, last: 2, times: 2}                         0 1 2 1 2 5   of the whole layer

A layer is counted as often as it is run: each run has keys and values of its own, so that caches need no change.
Weights are tied by parameter: every layer has its own module around one tensor, so that LoRA gives every layer an
adapter of its own, and `delta_rank` a small low-rank matrix that is trained with the model. Feed-forward layers may
also be tied by module: one module, one adapter for all. This file travels inside every checkpoint.

Source: feed-forward sharing with low-rank deltas arXiv 2405.14159 and its code's pre-registration; blocks repeated at
once (MobileLLM-LS) 2402.14905, section 3.2; blocks repeated in a loop (Universal Transformer) 1807.03819.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["PARTS", "DeltaLinear", "Sharing", "share_layers", "sharing_of"]

# part of a layer -> its modules. A layer's own value mix (two numbers) is never shared.
_MODULES = {
    "attention_output": ("self_attn.o_proj",),
    "feed_forward": ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
    "attention": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.q_norm", "self_attn.k_norm"),
    "norms": ("input_layernorm", "post_attention_layernorm"),
}
PARTS = tuple(_MODULES)
_KEYS = {
    "feed_forward": ("scheme", "free", "groups", "by", "delta_rank"),
    "attention_output": ("scheme", "free", "groups", "delta_rank"),
    "blocks": ("repeat", "delta_rank"),
    "recurrence": ("first", "last", "times", "delta_rank"),
}
_SCHEMES = ("all", "interior", "groups")


@dataclass(frozen=True)
class Sharing:
    """Who keeps the weights of whom.

    Args:
        owners: part of a layer -> for each layer, the first layer with the same weights (itself if it has its own).
        delta_rank: part -> rank of what each sharing layer adds of its own; 0 for nothing.
        by_module: whether the feed-forward layers of a group are one module.
    """

    owners: dict[str, tuple[int, ...]]
    delta_rank: dict[str, int]
    by_module: bool = False

    def kept(self, part: str) -> int:
        """Returns how many copies of a part are kept."""
        return len(set(self.owners[part]))

    def sharers(self, part: str) -> list[int]:
        """Returns the layers whose part is not theirs alone."""
        owners = self.owners[part]
        return [layer for layer, owner in enumerate(owners) if owners.count(owner) > 1]


def sharing_of(given: Mapping[str, Any] | None, layers: int) -> Sharing:
    """Returns the checked meaning of `CairnConfig.sharing`.

    Args:
        given: the mapping; None and {} share nothing.
        layers: decoder layers.

    Raises:
        ValueError: settings are unknown, contradict each other, or do not fit the layers; all faults in one text.
    """
    given = given or {}
    owners = {part: tuple(range(layers)) for part in PARTS}
    ranks = dict.fromkeys(PARTS, 0)
    faults = [_unknown(name, _KEYS) for name in given if name not in _KEYS]
    asked = {name: given[name] for name in _KEYS if given.get(name) is not None}
    whole = [name for name in ("blocks", "recurrence") if name in asked]
    if whole and len(asked) > 1:
        faults.append(f"{whole[0]} shares whole layers beside {', '.join(n for n in asked if n != whole[0])}, allowed: "
                      "one of blocks and recurrence alone, or feed_forward and attention_output")  # fmt: skip
    for name, settings in asked.items():
        if not isinstance(settings, Mapping):
            faults.append(f"{name} is {settings!r}, allowed: a mapping with {', '.join(_KEYS[name])}")
            continue
        faults += [f"{name}.{_unknown(key, _KEYS[name])}" for key in settings if key not in _KEYS[name]]
        found, wrong = (_whole_layers if name in whole else _grouped)(settings, layers)
        wrong += _delta_faults(settings)
        faults += [f"{name}.{fault}" for fault in wrong]
        if not wrong:
            for part in PARTS if name in whole else (name,):
                owners[part] = found
                ranks[part] = 0 if part == "norms" else settings.get("delta_rank") or 0
    if faults:
        raise ValueError("sharing: " + "; ".join(faults))
    by_module = asked.get("feed_forward", {}).get("by") == "module"
    return Sharing(owners, ranks, by_module)


def _unknown(name: Any, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(str(name), list(known), n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"{name} is no setting{hint}, allowed: {', '.join(known)}"


def _count(settings: Mapping[str, Any], key: str, least: int, most: int) -> str | None:
    value = settings.get(key)
    if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
        return None
    return f"{key} is {value!r}, allowed: a whole number of {least} to {most}"


def _delta_faults(settings: Mapping[str, Any]) -> list[str]:
    rank = settings.get("delta_rank", 0)
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 0:
        return [f"delta_rank is {rank!r}, allowed: a whole number of at least 0"]
    by = settings.get("by", "parameter")
    if by not in ("parameter", "module"):
        return [f"by is {by!r}, allowed: parameter, module"]
    if by == "module" and rank:
        return [f"delta_rank is {rank} with by: module, allowed: 0 (one module has no part for each layer)"]
    return []


def _whole_layers(settings: Mapping[str, Any], layers: int) -> tuple[tuple[int, ...], list[str]]:
    """Returns the owners of `blocks` or `recurrence`, and what is wrong with them."""
    if "repeat" in settings or not {"first", "last", "times"} & set(settings):
        fault = _count(settings, "repeat", 2, layers)
        if fault is None and layers % settings["repeat"]:
            fault = f"repeat is {settings['repeat']}, allowed: a divisor of num_hidden_layers ({layers})"
        if fault:
            return (), [fault]
        return tuple(layer - layer % settings["repeat"] for layer in range(layers)), []
    wrong = [_count(settings, "first", 0, layers - 1), _count(settings, "last", 0, layers - 1),
             _count(settings, "times", 2, layers)]  # fmt: skip
    faults = [fault for fault in wrong if fault]
    if faults:
        return (), faults
    first, last, times = (settings[key] for key in ("first", "last", "times"))
    if last < first:
        return (), [f"last is {last}, allowed: at least first ({first})"]
    length = last - first + 1
    end = first + length * times  # first layer behind the loop
    if end > layers:
        return (), [
            f"times is {times}: layers {first} to {last} run {times} times end behind layer {end - 1}, allowed: "
            f"num_hidden_layers of at least {end} (it counts every run; it is {layers})"
        ]
    inside = range(first, end)
    return tuple(first + (layer - first) % length if layer in inside else layer for layer in range(layers)), []


def _grouped(settings: Mapping[str, Any], layers: int) -> tuple[tuple[int, ...], list[str]]:
    """Returns the owners of a scheme over one part, and what is wrong with it."""
    scheme, free, groups = (settings.get(key) for key in ("scheme", "free", "groups"))
    if scheme not in _SCHEMES:
        return (), [f"scheme is {scheme!r}, allowed: {', '.join(_SCHEMES)}"]
    faults = []
    if free is not None and scheme != "interior":
        faults.append(f"free is {free!r} with scheme {scheme}, allowed: only with scheme interior")
    if groups is not None and scheme != "groups":
        faults.append(f"groups are given with scheme {scheme}, allowed: only with scheme groups")
    if scheme == "interior":
        fault = _count(settings, "free", 1, (layers - 2) // 2)
        if layers < 4:
            fault = f"scheme is interior, allowed: only with at least 4 layers (there are {layers})"
        faults += [fault] if fault else []
    if scheme == "all" and layers < 2:
        faults.append(f"scheme is all, allowed: only with at least 2 layers (there are {layers})")
    if scheme == "groups":
        faults += _group_faults(groups, layers)
    if faults:
        return (), faults
    if scheme == "interior":
        groups = [range(free, layers - free)]
    owners = list(range(layers))
    for group in [range(layers)] if scheme == "all" else groups:
        for layer in group:
            owners[layer] = min(group)
    return tuple(owners), []


def _group_faults(groups: Any, layers: int) -> list[str]:
    lists = isinstance(groups, list | tuple) and all(isinstance(group, list | tuple) and group for group in groups)
    flat = [layer for group in groups for layer in group] if lists else []
    if not flat or not all(isinstance(layer, int) and not isinstance(layer, bool) for layer in flat):
        return [f"groups is {groups!r}, allowed: lists of layer numbers, such as [[0, 1], [2, 3]]"]
    faults = []
    outside = sorted({layer for layer in flat if not 0 <= layer < layers})
    twice = sorted({layer for layer in flat if flat.count(layer) > 1})
    missing = sorted(set(range(layers)) - set(flat))
    if outside:
        faults.append(f"groups name layers {_listed(outside)}, allowed: 0 to {layers - 1}")
    if twice:
        faults.append(f"groups name layers {_listed(twice)} more than once, allowed: every layer in one group")
    if missing:
        faults.append(f"groups do not cover layers {_listed(missing)}, allowed: every layer in one group (a layer "
                      "that shares with none is a group of one)")  # fmt: skip
    return faults


def _listed(layers: Sequence[int]) -> str:
    return ", ".join(map(str, layers))


class DeltaLinear(nn.Linear):
    """A linear layer whose weight others share, and a low-rank matrix of its own: y = W x + up (down x).

    `delta_up` starts at zero, so that layers which share begin as one.
    """

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__(inputs, outputs, bias=False)
        self.delta_down = nn.Parameter(torch.zeros(rank, inputs))
        self.delta_up = nn.Parameter(torch.zeros(outputs, rank))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + F.linear(F.linear(x, self.delta_down), self.delta_up)

    def full_weight(self) -> Tensor:
        """Returns W + up down [out, in], summed in float32 and rounded once."""
        delta = self.delta_up.float() @ self.delta_down.float()
        return (self.weight.float() + delta).to(self.weight.dtype)


def share_layers(layers: nn.ModuleList, given: Mapping[str, Any] | None) -> dict[str, str]:
    """Ties the weights of layers in place, and puts in their low-rank deltas.

    Args:
        layers: the decoder's layers.
        given: `CairnConfig.sharing`.

    Returns:
        Name of each place of a weight that is kept elsewhere -> name of the place where it is kept; names begin with
        "layers.". Saving leaves the former out, loading ties them again.
    """
    if not given:
        return {}
    sharing = sharing_of(given, len(layers))
    tied: dict[str, str] = {}
    for part, modules in _MODULES.items():
        if part == "feed_forward" and sharing.by_module:
            for layer, owner in enumerate(sharing.owners[part]):
                layers[layer].mlp = layers[owner].mlp
        if sharing.delta_rank[part]:
            for layer in sharing.sharers(part):
                for name in modules:
                    _widen(layers[layer], name, sharing.delta_rank[part])
        for layer, owner in enumerate(sharing.owners[part]):
            if layer == owner:
                continue
            for name in modules:
                if _has(layers[owner], name):
                    layers[layer].get_submodule(name).weight = layers[owner].get_submodule(name).weight
                    tied[f"layers.{layer}.{name}.weight"] = f"layers.{owner}.{name}.weight"
    return tied


def _has(layer: nn.Module, name: str) -> bool:
    parent, _, child = name.rpartition(".")
    return hasattr(layer.get_submodule(parent), child)


def _widen(layer: nn.Module, name: str, rank: int) -> None:
    """Puts a `DeltaLinear` where a linear layer was."""
    parent, _, child = name.rpartition(".")
    holder = layer.get_submodule(parent)
    old = getattr(holder, child, None)
    if isinstance(old, nn.Linear):
        new = DeltaLinear(old.in_features, old.out_features, rank)
        if hasattr(old, "init_scale"):
            new.init_scale = old.init_scale
        setattr(holder, child, new)
