"""Objectives: `(model, batch) -> (summed loss, metrics)`. The loop divides by the global number of targets.

A batch holds `input_ids` [rows, seq] and `labels` [rows, seq]; labels are already shifted (labels[i] is what should
follow input_ids[i]) and -100 marks positions without a target.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["Objective", "completion", "next_token", "target_logits"]

Objective = Callable[[nn.Module, Mapping[str, Tensor]], tuple[Tensor, dict[str, Tensor]]]


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
