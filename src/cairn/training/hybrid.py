"""Causal and masked rows in one training: the hybrid objective of GPT-BERT.

    causal row    a b c d e f     attends backwards      every position predicts the next token
    masked row    a b # d # f     attends everywhere     position i predicts token i+1 where that was hidden (#)

Both predict token i+1 at position i, so one model and one head do both, and what is saved is an ordinary causal model.
Which rows are masked is fixed by their number in the batch, what is hidden by seed, step and row. Every masked row
hides the same number of tokens, so that the weights of both losses are known without looking: causal rows count by
their share of the rows, masked rows by theirs, each as the mean over its own targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from cairn.config import StrictModel
from cairn.training.objectives import PretrainObjective, summed_cross_entropy

__all__ = ["Hybrid", "HybridConfig"]


class HybridConfig(StrictModel):
    """Settings of the hybrid objective.

    Args:
        masked_share: of the rows that are masked.
        hidden_start, hidden_end: share of a masked row's tokens that are hidden, falling linearly over the steps.
        random_share: of the hidden tokens, replaced by a random token instead of the mask.
        kept_share: of the hidden tokens, left as they are (and still predicted).
        mask_token: token that stands for a hidden one; None is the tokenizer's padding, which no row of the
            pretraining contains otherwise.

    Source: arXiv 2410.24159 (shifted masked prediction, 0.3 to 0.15 hidden, 0.1 random, 0.1 kept; there most rows are
        masked, and spans are hidden: here single tokens are).
    """

    kind: Literal["hybrid"]
    masked_share: float = Field(0.5, gt=0, lt=1)
    hidden_start: float = Field(0.3, gt=0, lt=1)
    hidden_end: float = Field(0.15, gt=0, lt=1)
    random_share: float = Field(0.1, ge=0, le=1)
    kept_share: float = Field(0.1, ge=0, le=1)
    mask_token: str | None = None

    def faults(self, rows: int) -> list[str]:
        """Returns what does not fit a batch of so many rows."""
        faults = []
        if self.random_share + self.kept_share > 1:
            faults.append(f"objective.random_share {self.random_share} and kept_share {self.kept_share} are more than "
                          "all hidden tokens, allowed: sum <= 1")
        if not 0 < int(self.masked_share * rows) < rows:
            faults.append(f"objective.masked_share: {self.masked_share} of {rows} rows leaves no masked or no causal "
                          "row, allowed: at least one of each")
        return faults


class Hybrid(PretrainObjective):
    """Next-token loss of the causal rows and shifted masked loss of the others.

    Args:
        config: settings.
        mask_id: token that stands for a hidden one.
        vocab_size: random tokens are drawn below it.
        steps: of the training.
        batch_rows: of the global batch at full length.
        sequence_length: the full length.
        seed: of what is hidden.
    """

    def __init__(
        self, config: HybridConfig, *, mask_id: int, vocab_size: int, steps: int, batch_rows: int,
        sequence_length: int, seed: int,
    ) -> None:
        self._config, self._steps, self._seed = config, steps, seed
        self._mask_id, self._vocab_size = mask_id, vocab_size
        self._batch_tokens = batch_rows * sequence_length

    def masked(self, rows: np.ndarray) -> np.ndarray:
        """Returns which rows, given by their numbers within the global batch, are masked; spread evenly."""
        share = self._config.masked_share
        return np.floor((rows + 1) * share) > np.floor(rows * share)

    def prepare(self, batch: dict[str, np.ndarray], step: int, first_row: int) -> dict[str, np.ndarray]:
        """Hides tokens and adds `bidirectional`, `row_weight` and `row_share` (of the rows of its kind), all [rows]."""
        ids, labels = batch["input_ids"].copy(), batch["labels"].copy()
        count, length = ids.shape
        rows = np.arange(first_row, first_row + count)
        masked = self.masked(rows)
        all_rows = self._batch_tokens // length
        masked_rows = int(self.masked(np.arange(all_rows)).sum())
        hidden = self._hidden_tokens(step, length)
        for place in np.flatnonzero(masked):
            draw = np.random.default_rng([self._seed, step, int(rows[place])])
            chosen = draw.choice(length - 1, hidden, replace=False)  # labels i; label i stands at input i + 1
            kept = np.full(length, -100, labels.dtype)
            kept[chosen] = labels[place, chosen]
            labels[place] = kept
            fate = draw.random(hidden)
            random_ids = draw.integers(0, self._vocab_size, hidden)
            shown = np.where(fate < self._config.random_share, random_ids, self._mask_id)
            stays = fate >= 1 - self._config.kept_share
            ids[place, chosen + 1] = np.where(stays, ids[place, chosen + 1], shown)
        # The loop divides by all targets of the batch; these weights turn that into means over each kind's own.
        targets = (all_rows - masked_rows) * length + masked_rows * hidden
        weight = np.where(masked, targets / (all_rows * hidden), targets / (all_rows * length))
        share = np.where(masked, masked_rows, all_rows - masked_rows) / all_rows
        return {
            **batch, "input_ids": ids, "labels": labels, "bidirectional": masked,
            "row_weight": weight.astype(np.float32), "row_share": share.astype(np.float32),
        }

    def _hidden_tokens(self, step: int, length: int) -> int:
        config = self._config
        done = step / max(self._steps - 1, 1)
        share = config.hidden_start + (config.hidden_end - config.hidden_start) * done
        return min(max(round(share * length), 1), length - 1)

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        mask = _attention_mask(batch["bidirectional"], batch["input_ids"].shape[1], model.config)
        logits = model(input_ids=batch["input_ids"], attention_mask=mask, use_cache=False).logits
        per_row = summed_cross_entropy(logits, batch["labels"]) * batch["row_weight"]  # [rows]
        masked, alone = batch["bidirectional"], per_row / batch["row_share"]
        return per_row.sum(), {
            "causal_loss": torch.where(masked, 0.0, alone).sum(),
            "masked_loss": torch.where(masked, alone, 0.0).sum(),
        }


def _attention_mask(bidirectional: Tensor, length: int, config: Any) -> Tensor:
    """Returns who sees whom, [rows, 1, seq, seq]: True where it may, or 0 and -inf where attention adds the mask."""
    causal = torch.ones(length, length, dtype=torch.bool, device=bidirectional.device).tril()
    seen = causal | bidirectional[:, None, None, None]
    if config._attn_implementation == "sdpa":
        return seen
    return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, -torch.inf)
