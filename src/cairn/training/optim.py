"""Optimizers and learning-rate schedules.

    matrices inside the layers ──▶ Muon   (orthogonalised momentum; torch.optim.Muon)
    embeddings, norms, LoRA    ──▶ AdamW
    schedule(step) in 0..1     ──▶ multiplies both learning rates
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import nn

from cairn.config import StrictModel
from cairn.errors import EngineError

__all__ = ["Optimizers", "OptimizerConfig", "ScheduleConfig", "build_optimizers", "schedule_factor"]


class OptimizerConfig(StrictModel):
    """Which optimizer moves which weights.

    Args:
        kind: `adamw` for everything, or `muon` for the matrices inside the layers and AdamW for the rest.
        learning_rate: peak of AdamW.
        muon_learning_rate: peak of Muon, on the scale of AdamW's (updates are matched to AdamW's RMS).
        weight_decay: decoupled; not applied to vectors (norm gains).
        betas, eps: of AdamW.
        muon_momentum: Nesterov momentum of Muon.

    Source: Muon, kellerjordan.github.io/posts/muon; RMS matching, arXiv 2502.16982, section 2.2.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = Field(3e-3, gt=0)
    muon_learning_rate: float = Field(3e-3, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(1e-8, gt=0)
    muon_momentum: float = Field(0.95, ge=0, lt=1)


class ScheduleConfig(StrictModel):
    """Learning rate over the steps, as a share of its peak.

    Args:
        kind: `wsd` (warmup, stable, linear decay to `final`), `cosine`, `linear` or `constant`, after the warmup.
        warmup: share of the steps that rise linearly from zero.
        decay: share of the steps that fall, for `wsd`.
        final: share of the peak at the last step.

    Source: WSD, arXiv 2404.06395, section 4.
    """

    kind: Literal["wsd", "cosine", "linear", "constant"] = "wsd"
    warmup: float = Field(0.02, ge=0, lt=1)
    decay: float = Field(0.25, ge=0, le=1)
    final: float = Field(0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _fits(self) -> ScheduleConfig:
        if self.kind == "wsd" and self.warmup + self.decay > 1:
            raise ValueError(f"warmup {self.warmup} and decay {self.decay} are more than all steps; allowed: sum <= 1")
        return self


def schedule_factor(config: ScheduleConfig, step: int, steps: int) -> float:
    """Returns the share of the peak learning rate for `step` of `steps` (counted from 0)."""
    warmup = round(config.warmup * steps)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if config.kind == "constant":
        return 1.0
    start = warmup if config.kind != "wsd" else steps - round(config.decay * steps)
    if step < start:
        return 1.0
    done = (step - start + 1) / (steps - start + 1)
    shape = 0.5 * (1 + math.cos(math.pi * done)) if config.kind == "cosine" else 1 - done
    return config.final + (1 - config.final) * shape


class Optimizers:
    """Several optimizers that step together under one schedule.

    Args:
        parts: optimizers; each parameter group's learning rate at construction is its peak.
    """

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self.parts = parts
        self.peaks = [[group["lr"] for group in part.param_groups] for part in parts]

    def step(self, factor: float) -> None:
        """Makes one step with every learning rate at `factor` of its peak, and clears the gradients."""
        for part, peaks in zip(self.parts, self.peaks, strict=True):
            for group, peak in zip(part.param_groups, peaks, strict=True):
                group["lr"] = peak * factor
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> list[dict[str, Any]]:
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for part, state in zip(self.parts, states, strict=True):
            part.load_state_dict(state)


def build_optimizers(model: nn.Module, config: OptimizerConfig) -> Optimizers:
    """Builds the optimizers over the parameters of `model` that ask for gradients.

    Raises:
        EngineError: `muon` is asked for and this torch has none (it came with 2.9).
    """
    matrices, tables, vectors = [], [], []
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if parameter.ndim < 2:
            vectors.append(parameter)
        elif config.kind == "muon" and parameter.ndim == 2 and id(parameter) not in embeddings:
            matrices.append(parameter)
        else:
            tables.append(parameter)
    groups = [
        {"params": tables, "weight_decay": config.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    parts: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=config.learning_rate, betas=config.betas, eps=config.eps
        )
    ] if tables or vectors else []
    if matrices:
        if not hasattr(torch.optim, "Muon"):
            raise EngineError(
                "this torch has no Muon optimizer", value=torch.__version__, allowed="torch >= 2.9",
                next="pip install 'torch>=2.9', or --set optimizer.kind=adamw",
            )
        parts.append(
            torch.optim.Muon(
                matrices, lr=config.muon_learning_rate, weight_decay=config.weight_decay,
                momentum=config.muon_momentum, nesterov=True, adjust_lr_fn="match_rms_adamw",
            )
        )
    return Optimizers(parts)
