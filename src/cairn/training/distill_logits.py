"""Logit distillation: the student is drawn towards the teacher's distribution over the next token.

    teacher, once ─▶ k likeliest tokens and the mass of the rest, per position ─▶ disk    (teacher_logits.py)
    training       ─▶ (1 - weight) * cross-entropy + weight * T^2 * KL over those k + 1 outcomes

All that the teacher did not keep is one outcome, `the rest`, on both sides: the loss is a true KL divergence of two
distributions, coarser than that over the whole vocabulary and never larger; with k = vocabulary it is that one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from cairn.config import StrictModel
from cairn.training.objectives import PretrainObjective, summed_cross_entropy

__all__ = ["Distill", "DistillLogitsConfig", "coarse_divergence"]

_LEAST = 1e-6  # probability: below it, the rest has no logarithm worth comparing


class DistillLogitsConfig(StrictModel):
    """Settings of logit distillation.

    Args:
        teacher: "embedded:base", a folder (relative to the recipe, or to here) or a Hugging Face name; any causal
            model with exactly the tokenizer of this run.
        divergence: `forward` KL(teacher, student): cover all the teacher says; `reverse` KL(student, teacher): say only
            what it says.
        temperature: both distributions are softened by it; the loss is multiplied by its square.
        top_k: tokens kept per position.
        weight: of the divergence at the first step; the cross-entropy of the text has the rest.
        weight_end: at the last step, linearly between; None: as at the first.
        cache: folder for the teacher's logits of every row of the data, which other runs on the same data then read;
            None keeps those of this run's steps in its own folder.
        teacher_rows: rows the teacher reads at once.
        teacher_dtype: as `--dtype` elsewhere.

    Source: arXiv 1503.02531 (temperature and its square); reverse KL for language models, arXiv 2306.08543.
    """

    kind: Literal["distill"]
    teacher: str = Field(min_length=1)
    divergence: Literal["forward", "reverse"] = "forward"
    temperature: float = Field(1.0, gt=0)
    top_k: int = Field(32, ge=1, le=65536)
    weight: float = Field(0.5, ge=0, le=1)
    weight_end: float | None = Field(None, ge=0, le=1)
    cache: str | None = None
    teacher_rows: int = Field(8, ge=1)
    teacher_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"

    @model_validator(mode="after")
    def _counts(self) -> DistillLogitsConfig:
        if not self.weight and not self.weight_end:
            raise ValueError("weight is 0 throughout: the teacher would not be heard; allowed: above 0 at one end, or "
                             "objective.kind next_token")
        return self


class Distill(PretrainObjective):
    """Cross-entropy of the text and divergence from the teacher.

    Args:
        config: settings.
        vocab_size: of the student; where the teacher kept as many, there is no rest.
        steps: of the training.
    """

    def __init__(self, config: DistillLogitsConfig, vocab_size: int, steps: int) -> None:
        self._config, self._steps, self._vocab_size = config, steps, vocab_size

    def prepare(self, batch: dict[str, np.ndarray], step: int, first_row: int) -> dict[str, np.ndarray]:
        """Adds `distill_weight` [rows]; the loader has put in what the teacher said."""
        config = self._config
        end = config.weight if config.weight_end is None else config.weight_end
        weight = config.weight + (end - config.weight) * step / max(self._steps - 1, 1)
        return {**batch, "distill_weight": np.full(len(batch["labels"]), weight, np.float32)}

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        logits = model(input_ids=batch["input_ids"], use_cache=False).logits  # [rows, seq, vocab]
        text = summed_cross_entropy(logits, batch["labels"])  # [rows]
        config = self._config
        divergence = coarse_divergence(
            logits, batch["teacher_ids"], batch["teacher_logprobs"],
            None if batch["teacher_ids"].shape[-1] >= self._vocab_size else batch["teacher_rest"],
            config.temperature, config.divergence,
        )
        divergence = torch.where(batch["labels"] == -100, 0.0, divergence).sum(1) * config.temperature**2  # [rows]
        weight = batch["distill_weight"]
        loss = ((1 - weight) * text + weight * divergence).sum()
        return loss, {"next_token_loss": text.sum(), "divergence": divergence.sum()}


def coarse_divergence(
    logits: Tensor, ids: Tensor, teacher: Tensor, rest: Tensor | None, temperature: float, direction: str
) -> Tensor:
    """Kullback-Leibler divergence over the teacher's tokens and `the rest`, in nats.

    Args:
        logits: of the student [..., vocab].
        ids: the teacher's tokens [..., k].
        teacher: their log-probabilities at `temperature` [..., k].
        rest: log-probability of all other tokens [...]; None: there are none.
        temperature: of the student's softmax.
        direction: `forward` KL(teacher, student) or `reverse` KL(student, teacher).

    Returns:
        [...], 0 or more but for rounding.
    """
    student = F.log_softmax(logits.float() / temperature, dim=-1).gather(-1, ids)  # [..., k]
    teacher = teacher.float()
    if rest is not None:
        left = (1 - student.exp().sum(-1)).clamp(min=_LEAST).log()
        student = torch.cat((student, left[..., None]), -1)
        teacher = torch.cat((teacher, rest.float().clamp(min=float(np.log(_LEAST)))[..., None]), -1)
    if direction == "forward":
        return (teacher.exp() * (teacher - student)).sum(-1)
    return (student.exp() * (student - teacher)).sum(-1)
