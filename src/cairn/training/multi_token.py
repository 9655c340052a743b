"""Multi-token prediction: beside the next token, heads of their own predict the ones after it.

    hidden [rows, seq, hidden] ──────────────── model's head ─▶ token t+1      counts 1
             ├─ ahead 1: x + W2 silu(W1 norm x) ─ model's head ─▶ token t+2      counts `weight`
             └─ ahead 2: x + W2 silu(W1 norm x) ─ model's head ─▶ token t+3      counts `weight`

The heads share the model's output matrix, begin as the identity, and are gone after the training. They are smaller than
those of the paper, which gives each a whole layer: in a tiny model a layer is a tenth of everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from cairn.config import StrictModel
from cairn.training.objectives import PretrainObjective, head_logits, summed_cross_entropy

__all__ = ["MultiToken", "MultiTokenConfig"]


class MultiTokenConfig(StrictModel):
    """Settings of multi-token prediction.

    Args:
        ahead: tokens predicted after the next one, each by a head of its own.
        weight: of each head's loss beside the next token's.
        curriculum: `constant`: all heads from the first step to the last; `forward`: one more after every
            1 / (ahead + 1) of the steps, none at first; `reverse`: one less, none at the end.
        keep_heads: put the heads into the model folder too (objective_heads.safetensors).

    Source: multi-token prediction, arXiv 2404.19737; curricula, which repair it for small models, arXiv 2505.22757.
    """

    kind: Literal["multi_token"]
    ahead: int = Field(2, ge=1, le=16)
    weight: float = Field(0.3, gt=0)
    curriculum: Literal["constant", "forward", "reverse"] = "constant"
    keep_heads: bool = False

    def faults(self, shortest_row: int) -> list[str]:
        """Returns what does not fit rows of this length."""
        if self.ahead >= shortest_row:
            return [f"objective.ahead: {self.ahead}, allowed: less than the shortest row ({shortest_row} tokens)"]
        return []


class AheadHead(nn.Module):
    """A residual feed-forward on the final state; begins as the identity. [..., hidden] -> [..., hidden]."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.inner = nn.Linear(hidden, hidden, bias=False)
        self.outer = nn.Linear(hidden, hidden, bias=False)
        nn.init.zeros_(self.outer.weight)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(F.silu(self.inner(F.rms_norm(x, x.shape[-1:]))))


class MultiToken(PretrainObjective):
    """The loss of the next token and of those after it.

    Args:
        config: settings.
        hidden_size: of the model's final states.
        steps: of the training.
    """

    def __init__(self, config: MultiTokenConfig, hidden_size: int, steps: int) -> None:
        self._config, self._steps = config, steps
        self.heads = nn.ModuleList(AheadHead(hidden_size) for _ in range(config.ahead))
        self.keep_heads = config.keep_heads

    def active(self, step: int) -> int:
        """Returns how many heads count at `step`."""
        ahead = self._config.ahead
        stage = step * (ahead + 1) // self._steps  # 0 .. ahead
        return {"constant": ahead, "forward": stage, "reverse": ahead - stage}[self._config.curriculum]

    def prepare(self, batch: dict[str, np.ndarray], step: int, first_row: int) -> dict[str, np.ndarray]:
        """Adds `ahead_weight` [rows, active heads]: their number is its width, so that the others cost nothing."""
        shape = (len(batch["labels"]), self.active(step))
        return {**batch, "ahead_weight": np.full(shape, self._config.weight, np.float32)}

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        labels, weights = batch["labels"], batch["ahead_weight"]
        hidden = model.get_decoder()(input_ids=batch["input_ids"], use_cache=False).last_hidden_state
        loss = summed_cross_entropy(head_logits(model, hidden), labels).sum()
        metrics = {"next_token_loss": loss}
        for number in range(1, weights.shape[1] + 1):
            state = self.heads[number - 1](hidden[:, :-number])  # [rows, seq - number, hidden]
            per_row = summed_cross_entropy(head_logits(model, state), labels[:, number:])
            loss = loss + (weights[:, number - 1] * per_row).sum()
            metrics[f"ahead_{number}_loss"] = per_row.sum()
        return loss, metrics
