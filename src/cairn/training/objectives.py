"""Objectives: `(model, batch) -> (summed loss, metrics)`. The loop divides by the global number of targets.

A batch holds `input_ids` [rows, seq] and `labels` [rows, seq]; labels are already shifted (labels[i] is what should
follow input_ids[i]) and -100 marks positions without a target.

An objective of the pretraining may bring more (`PretrainObjective`): heads of its own, and what a batch needs beside
ids and labels, drawn from the step's number alone so that a resumed run sees the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "NextToken", "Objective", "PretrainObjective", "WithModelLoss", "completion", "head_logits", "next_token",
    "summed_cross_entropy", "target_logits",
]

Objective = Callable[[nn.Module, Mapping[str, Tensor]], tuple[Tensor, dict[str, Tensor]]]


class PretrainObjective:
    """Base of the pretraining objectives: an `Objective` that may have heads and prepare its batches.

        loader ─▶ prepare(batch, step, first_row) ─▶ loop ─▶ __call__(model, batch) ─▶ summed loss, metrics

    `heads` are trained, checkpointed and clipped with the model and never reach the saved model, unless
    `keep_heads` says so.
    """

    heads: nn.Module | None = None
    keep_heads: bool = False

    def prepare(self, batch: dict[str, np.ndarray], step: int, first_row: int) -> dict[str, np.ndarray]:
        """Returns the batch with what this objective needs beside ids and labels.

        Args:
            batch: input_ids and labels [rows, seq] of this process; every array is [rows, ...].
            step: counted from 0; whatever changes or is drawn depends on it and on the row alone.
            first_row: number of the first row within the global batch.
        """
        return batch

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the summed loss, in nats, and sums that are logged divided by the number of targets."""
        raise TypeError(f"{type(self).__name__} has no loss: __call__ is missing")


class NextToken(PretrainObjective):
    """Every token from those before it."""

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return next_token(model, batch)


class WithModelLoss(PretrainObjective):
    """An objective, and what the decoder itself asks for while it trains: learned patch boundaries have such a loss.

    Args:
        inner: the objective. The decoder's `aux_loss`, a mean over the positions of its last pass, is added to it
            as if it were one more part of every target's loss; it is logged as `model_loss`.
    """

    def __init__(self, inner: PretrainObjective) -> None:
        self.inner, self.heads, self.keep_heads = inner, inner.heads, inner.keep_heads

    def prepare(self, batch: dict[str, np.ndarray], step: int, first_row: int) -> dict[str, np.ndarray]:
        """As the inner objective."""
        return self.inner.prepare(batch, step, first_row)

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        loss, metrics = self.inner(model, batch)
        own = getattr(model.get_decoder(), "aux_loss", None)
        if own is None:
            return loss, metrics
        own = own * (batch["labels"] != -100).sum()
        return loss + own, {**metrics, "next_token_loss": metrics.get("next_token_loss", loss), "model_loss": own}


def next_token(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Summed cross-entropy of every target token, in nats.

    Args:
        model: a Hugging Face causal LM.
        batch: input_ids and labels [rows, seq], optional attention_mask [rows, seq].
    """
    logits = model(
        input_ids=batch["input_ids"], attention_mask=batch.get("attention_mask"), use_cache=False
    ).logits  # [rows, seq, vocab]
    loss = F.cross_entropy(logits.flatten(0, 1).float(), batch["labels"].flatten(), reduction="sum")
    return loss, {}


def summed_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the cross-entropy of logits [rows, seq, vocab] under labels [rows, seq], summed over each row: [rows]."""
    losses = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), reduction="none")
    return losses.view(labels.shape).sum(1)


def head_logits(model: nn.Module, hidden: Tensor) -> Tensor:
    """Returns what the model's output head gives for final hidden states [..., hidden]: [..., vocab]."""
    return model.get_output_embeddings()(hidden)


def target_logits(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Returns logits [targets, vocab] and labels [targets] only where there is a target.

    In completion-only training most positions are prompt: the output head (the largest product of a tiny model)
    is computed for the others alone.
    """
    hidden = model.get_decoder()(
        input_ids=batch["input_ids"], attention_mask=batch.get("attention_mask"), use_cache=False
    ).last_hidden_state
    wanted = batch["labels"] != -100  # [rows, seq]
    return model.get_output_embeddings()(hidden[wanted]), batch["labels"][wanted]


def completion(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Summed cross-entropy of the completion tokens, the head computed there alone; equals `next_token`."""
    logits, labels = target_logits(model, batch)
    right = (logits.detach().argmax(-1) == labels).sum()
    return F.cross_entropy(logits.float(), labels, reduction="sum"), {"right_tokens": right}
