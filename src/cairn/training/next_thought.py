"""Next thought: as an auxiliary loss, every position predicts the mean of the model's own states over what follows.

    states  h0 h1 h2 h3 h4 h5 ...                    of the model, after its last norm
    target at t = mean(h[t+1] .. h[t+span])          no gradient: it does not move towards the prediction
    loss   at t = 1 - cosine(predictor(h[t]), target)

Positions whose span crosses the end of a document, or of the row, have no target. The predictor is gone after the
training. The published next-thought model (a latent core between an encoder and a decoder) was never trained; this is
its idea in the smallest form that can be added to any decoder. Next-token prediction goes on beside it, which keeps the
states from all becoming the same; `thought_spread` in the log would show it (0 = all targets alike).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from cairn.config import StrictModel
from cairn.training.objectives import PretrainObjective, head_logits, summed_cross_entropy

__all__ = ["NextThought", "NextThoughtConfig"]


class NextThoughtConfig(StrictModel):
    """Settings of the next-thought loss.

    Args:
        span: positions whose states are pooled.
        weight: beside the next token's loss.
        keep_heads: put the predictor into the model folder too (objective_heads.safetensors).

    Source: the idea of arXiv 2405.14159 (next-thought prediction); the form is our own.
    """

    kind: Literal["next_thought"]
    span: int = Field(8, ge=1)
    weight: float = Field(0.1, gt=0)
    keep_heads: bool = False

    def faults(self, shortest_row: int) -> list[str]:
        """Returns what does not fit rows of this length."""
        if self.span >= shortest_row:
            return [f"objective.span: {self.span}, allowed: less than the shortest row ({shortest_row} tokens)"]
        return []


class NextThought(PretrainObjective):
    """Next-token loss, and the distance to the following span's pooled state.

    Args:
        config: settings.
        hidden_size: of the model's final states.
        end_id: token that ends a document.
    """

    def __init__(self, config: NextThoughtConfig, hidden_size: int, end_id: int) -> None:
        self._config, self._end_id = config, end_id
        self.heads = nn.Sequential(
            nn.Linear(hidden_size, 2 * hidden_size, bias=False), nn.SiLU(),
            nn.Linear(2 * hidden_size, hidden_size, bias=False),
        )
        self.keep_heads = config.keep_heads

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        hidden = model.get_decoder()(input_ids=batch["input_ids"], use_cache=False).last_hidden_state
        loss = summed_cross_entropy(head_logits(model, hidden), batch["labels"]).sum()
        span = self._config.span
        target = _mean_of_following(hidden.detach().float(), span)  # [rows, seq - span, hidden]
        inside = _mean_of_following((batch["input_ids"] == self._end_id).float()[..., None], span, itself=True) == 0
        distance = 1 - F.cosine_similarity(self.heads(hidden[:, :-span]).float(), target, dim=-1)
        counted = inside[..., 0].float()  # [rows, seq - span]
        thought = (distance * counted).sum()
        unit = F.normalize(target, dim=-1)
        spread = ((1 - (unit * unit.mean((0, 1))).sum(-1)) * counted).sum()
        return loss + self._config.weight * thought, {
            "next_token_loss": loss, "thought_loss": thought, "thought_spread": spread.detach()
        }


def _mean_of_following(x: Tensor, span: int, *, itself: bool = False) -> Tensor:
    """Means over the `span` positions after each one, [rows, seq, width] -> [rows, seq - span, width].

    With `itself` over the position and the span - 1 after it.
    """
    sums = F.pad(x.cumsum(1), (0, 0, 1, 0))  # sums[:, i] = x[:, :i] added up
    means = (sums[:, span:] - sums[:, :-span]) / span  # of positions i .. i + span - 1, [rows, seq - span + 1, width]
    return means[:, :-1] if itself else means[:, 1:]
