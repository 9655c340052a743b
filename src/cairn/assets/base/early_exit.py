"""Settings of early exit: after which layers the model may answer; this file travels inside every checkpoint.

    CairnConfig.early_exit = {"layers": [2, 4], "norm": "shared"}        None: only after the last layer

    embed ─ layer 0 ─ layer 1 ─┬─ layer 2 ─ layer 3 ─┬─ ... ─ last layer ─ norm ─ lm_head
                               └─ norm ─ lm_head     └─ norm ─ lm_head
                                  exit 2                exit 4

An exit is named by the number of layers below it. All exits have the one output head. The weights of the layers are
those of a model without exits: what changes is the training, and what decoding does with the exits.

A gate guesses, from the state at an exit alone, what the layers above would still change. The likeliest token's
probability cannot tell: where nobody can know the next token, the exit is as good as the end, and as unsure. And a gate
costs no pass of the head, which in a tiny model is as dear as a layer.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["NORMS", "EarlyExit", "ExitGate", "early_exit_of", "gate_parameters"]

NORMS = ("shared", "own")
_GATE_WIDTH = 64


@dataclass(frozen=True)
class EarlyExit:
    """Where the model may answer.

    Args:
        layers: exits, rising; exit k answers after the first k layers. Fewer than all layers: the last is no exit.
        norm: "shared": the model's final norm stands before the head at every exit; "own": each exit has a norm of its
            own (`hidden_size` weights).
        gate: every exit has an `ExitGate`.

    Source: early exit through one shared head, arXiv 2404.16710, section 4.1.2.
    """

    layers: tuple[int, ...]
    norm: str = "shared"
    gate: bool = False


class ExitGate(nn.Module):
    """Guesses what the layers above an exit would change: [..., hidden] -> [..., 2], between 0 and 1.

    The first guess is exp(-KL(end || exit)): 1 where both distributions are the same. The second is how likely end and
    exit find the same token likeliest. The weights are no `nn.Linear`, so that no adapter is put on them.

    Args:
        hidden: width of the normed state at the exit.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.gate_in = nn.Parameter(torch.empty(_GATE_WIDTH, hidden))
        self.gate_out = nn.Parameter(torch.empty(2, _GATE_WIDTH))

    def scores(self, x: Tensor) -> Tensor:
        """Returns the guesses before the sigmoid."""
        return F.linear(F.silu(F.linear(x, self.gate_in)), self.gate_out)

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(x).float().sigmoid()


def gate_parameters(settings: EarlyExit, hidden: int) -> int:
    """Returns the parameters of all gates."""
    return len(settings.layers) * _GATE_WIDTH * (hidden + 2) if settings.gate else 0


def early_exit_of(given: Mapping[str, Any] | None, num_hidden_layers: int) -> EarlyExit:
    """Returns the checked meaning of `CairnConfig.early_exit`.

    Args:
        given: fields of `EarlyExit`; without `layers`, every layer but the last is an exit; None has no exit.
        num_hidden_layers: layers of the model.

    Raises:
        ValueError: fields are unknown or out of range; all faults in one text.
    """
    if given is None:
        return EarlyExit(())
    known = ("layers", "norm", "gate")
    faults = []
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            faults.append(f"unknown field {name!r}" + (f" (did you mean {close[0]}?)" if close else ""))
    layers, norm, gate = given.get("layers"), given.get("norm", "shared"), given.get("gate", False)
    if layers is None:
        layers = range(1, num_hidden_layers)
    if isinstance(layers, list | tuple | range):
        wrong = [
            layer for layer in layers
            if not isinstance(layer, int) or isinstance(layer, bool) or not 1 <= layer < num_hidden_layers
        ]
        if wrong:
            last = num_hidden_layers - 1
            allowed = f"1 to {last}" if last else "none: a model of one layer has no exit"
            faults.append(
                f"exits {wrong} are out of range, allowed: whole numbers, {allowed} (layers run before the exit; "
                f"{num_hidden_layers} is the whole model)"
            )
        elif list(layers) != sorted(set(layers)) or not layers:
            faults.append(f"layers is {list(layers)}, allowed: rising numbers, at least one")
    else:
        faults.append(f"layers is {layers!r}, allowed: a list of whole numbers")
    if norm not in NORMS:
        faults.append(f"norm is {norm!r}, allowed: {', '.join(NORMS)}")
    if not isinstance(gate, bool):
        faults.append(f"gate is {gate!r}, allowed: true or false")
    if faults:
        raise ValueError("early_exit: " + "; ".join(faults))
    return EarlyExit(tuple(layers), norm, gate)
