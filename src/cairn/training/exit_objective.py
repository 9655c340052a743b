"""Training for early exit: layers are left out at random, and exits are asked for the next token as the end is.

    embed ─ layer 0 ─ layer 1 ─┬─ layer 2 ─ layer 3 ─┬─ ... ─ last layer ─ norm ─ head ─▶ loss of the end    counts 1
             rate 0    ...     └─ norm ─ head        └─ norm ─ head    rate `dropout`
                                  └─▶ loss of exit 2    └─▶ loss of exit 4      count `weight` * k / layers (by depth)

    loss = (end + sum of weights * exits) / (1 + sum of weights)

Where exits have gates (`models/early_exit.py`), these learn along, from the states as they are: their loss moves
nothing else. They see every fourth position.

A layer is left out for whole rows: their stream passes by it. Exits cost a pass of the head each, the largest product
of a tiny model: `rotating` asks one exit per step. Which layers are left out for which row, and which exits count, is
drawn from seed, step and row alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from cairn.config import StrictModel
from cairn.models.early_exit import early_exit_of
from cairn.training.objectives import PretrainObjective, head_logits, summed_cross_entropy

_GATE_STRIDE = 4
_GATE_WEIGHT = 0.1  # of the gates' loss: its size only matters where gradients are clipped

__all__ = ["EarlyExitObjective", "EarlyExitObjectiveConfig", "dropout_rates", "exit_weights"]


class EarlyExitObjectiveConfig(StrictModel):
    """Settings of the training for early exit; the exits themselves are the model's (`model.changes.early_exit`).

    Args:
        exits: `all` at every step, or `rotating`: one of those that count, in turn.
        weight: of an exit's loss beside the end's.
        weights: `depth`: in proportion to the layers below the exit; `equal`: the same for all.
        curriculum: `none`: every exit counts from the first step; `gradual`: the deepest exit first, one more after
            each equal part of the first half of the steps.
        dropout: probability that the last layer is left out, 0 for no layer dropout; the first layer never is.
        dropout_curriculum: `constant`, or rising over the steps from 0 to its full rates (`linear`, `exponential`).

    Source: arXiv 2404.16710, section 4.1: rates by depth (eq. 2, exponential) and curricula; its weights grow with the
        square of the depth.
    """

    kind: Literal["early_exit"]
    exits: Literal["all", "rotating"] = "all"
    weight: float = Field(0.5, gt=0)
    weights: Literal["depth", "equal"] = "depth"
    curriculum: Literal["none", "gradual"] = "none"
    dropout: float = Field(0.0, ge=0, lt=1)
    dropout_curriculum: Literal["constant", "linear", "exponential"] = "constant"

    def faults(self, changes: Mapping[str, Any]) -> list[str]:
        """Returns what does not fit the model of a recipe."""
        if not changes.get("early_exit"):
            return ["objective.kind: early_exit needs a model with exits, allowed: with model.changes.early_exit, for "
                    "example {layers: [2, 4]}"]
        return []


def dropout_rates(config: EarlyExitObjectiveConfig, layers: int, step: int, steps: int) -> list[float]:
    """Returns the probability that each layer is left out at `step` of `steps` (counted from 0); rising with depth."""
    done = step / max(steps - 1, 1)
    scale = {"constant": 1.0, "linear": done, "exponential": math.expm1(done * math.log(2))}[config.dropout_curriculum]
    top = max(layers - 1, 1)
    return [config.dropout * scale * math.expm1(layer / top * math.log(2)) for layer in range(layers)]


def exit_weights(
    config: EarlyExitObjectiveConfig, exits: Sequence[int], layers: int, step: int, steps: int
) -> dict[int, float]:
    """Returns the exits that count at `step` of `steps` (counted from 0), and how much beside the end."""
    active = list(exits)
    if config.curriculum == "gradual":
        part = max(steps / 2 / len(active), 1)  # steps until one more counts
        active = active[-min(1 + int(step / part), len(active)) :]
    if config.exits == "rotating":
        active = [active[step % len(active)]]
    return {layer: config.weight * (layer / layers if config.weights == "depth" else 1.0) for layer in active}


class EarlyExitObjective(PretrainObjective):
    """The loss of the end and of the exits, with layers left out.

    Args:
        config: settings.
        model_config: of the model, with exits.
        steps: of the training.
        seed: of what is left out.
    """

    def __init__(self, config: EarlyExitObjectiveConfig, model_config: Any, *, steps: int, seed: int) -> None:
        self._config, self._steps, self._seed = config, steps, seed
        self._layers = model_config.num_hidden_layers
        self._exits = early_exit_of(model_config.early_exit, self._layers).layers

    def prepare(self, batch: dict[str, np.ndarray], step: int, first_row: int) -> dict[str, np.ndarray]:
        """Adds `exit_K_weight` [rows] for each exit K that counts, and `layer_kept` [rows, layers] if any is dropped.

        What does not count is not there, so that it costs nothing, and a compiled loop compiles once for each case.
        """
        rows = len(batch["labels"])
        weights = exit_weights(self._config, self._exits, self._layers, step, self._steps)
        added: dict[str, np.ndarray] = {
            f"exit_{layer}_weight": np.full(rows, weight, np.float32) for layer, weight in weights.items()
        }
        if self._config.dropout:
            rates = np.array(dropout_rates(self._config, self._layers, step, self._steps))
            draws = [np.random.default_rng([self._seed, step, first_row + row]).random(self._layers)
                     for row in range(rows)]
            added["layer_kept"] = np.stack(draws) >= rates
        return {**batch, **added}

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        decoder, labels, kept = model.get_decoder(), batch["labels"], batch.get("layer_kept")
        x, inputs = decoder.begin(
            input_ids=batch["input_ids"], attention_mask=batch.get("attention_mask"), use_cache=False
        )
        total: Tensor | float = 0.0
        weights: Tensor | float = 1.0
        metrics: dict[str, Tensor] = {}
        gates, seen = getattr(decoder, "exit_gates", {}), []
        for layer in range(self._layers):
            ran = decoder.run_layers(x, inputs, layer, layer + 1)
            x = ran if kept is None else torch.where(kept[:, layer, None, None], ran, x)
            weight = batch.get(f"exit_{layer + 1}_weight")  # [rows]
            if weight is not None:
                state = decoder.norm_after(layer + 1)(x)
                logits = head_logits(model, state)
                loss = summed_cross_entropy(logits, labels)  # [rows]
                if str(layer + 1) in gates:
                    seen.append((gates[str(layer + 1)], state, logits))
                total, weights = total + weight * loss, weights + weight
                metrics[f"exit_{layer + 1}_loss"] = loss.sum()
        logits = head_logits(model, decoder.norm_after(self._layers)(x))
        loss = summed_cross_entropy(logits, labels)
        metrics["last_layer_loss"] = loss.sum()
        total = ((total + loss) / weights).sum()
        if seen:
            metrics["gate_loss"] = sum(_gate_loss(*one, logits, labels) for one in seen)
            total = total + _GATE_WEIGHT * metrics["gate_loss"]
        return total, metrics


def _gate_loss(gate: nn.Module, state: Tensor, logits: Tensor, end_logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the summed cross-entropy of a gate's guesses at an exit's states [rows, seq, hidden]."""
    some = slice(None, None, _GATE_STRIDE)
    with torch.no_grad():
        end, own = (one[:, some].float().log_softmax(-1) for one in (end_logits, logits))  # [rows, places, vocab]
        same = (-(end.exp() * (end - own)).sum(-1)).exp()  # exp(-KL(end || exit)), at most 1 but for rounding
        wanted = torch.stack([same.clamp(max=1), (end.argmax(-1) == own.argmax(-1)).float()], -1)
    scores = gate.scores(state[:, some].detach()).float()  # [rows, places, 2]
    losses = F.binary_cross_entropy_with_logits(scores, wanted, reduction="none").sum(-1)
    return _GATE_STRIDE * (losses * (labels[:, some] != -100)).sum()
