"""Averages of the weights along the training: what is saved in place of the last step's weights.

    latest   steps  ... . . o . . o . . o     mean of the weights at the last `count` marks, `every` steps apart
    ema      a <- decay * a + (1 - decay) * w   after every step

The average lives in fp32 beside the weights, is part of each checkpoint, and the training never sees it: the run
without it has the same losses.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from cairn.config import StrictModel

__all__ = ["AveragingConfig", "WeightAverage"]


class AveragingConfig(StrictModel):
    """Which average of the weights becomes the model.

    Args:
        kind: `latest`: the plain mean of `count` states, `every` steps apart, the last step's among them;
            `ema`: an exponential moving average of all steps.
        count: states of `latest`.
        every: steps between them.
        decay: of `ema`.

    Source: means of the latest states, spaced apart: arXiv 2306.03241.
    """

    kind: Literal["latest", "ema"] = "latest"
    count: int = Field(5, ge=2)
    every: int = Field(50, ge=1)
    decay: float = Field(0.999, gt=0, lt=1)

    def faults(self, steps: int) -> list[str]:
        """Returns what does not fit a number of steps."""
        needed = (self.count - 1) * self.every + 1
        if self.kind == "latest" and needed > steps:
            return [f"averaging: {self.count} states {self.every} steps apart need {needed:,} steps, allowed: at most "
                    f"steps ({steps:,})"]
        return []

    @model_validator(mode="after")
    def _only_what_counts(self) -> AveragingConfig:
        others = ("decay",) if self.kind == "latest" else ("count", "every")
        fields = type(self).model_fields
        wrong = [key for key in others if getattr(self, key) != fields[key].default]
        if wrong:
            raise ValueError(f"{' and '.join(wrong)} of no effect with kind {self.kind}")
        return self


class WeightAverage:
    """Follows the trained parameters of a model.

    Args:
        config: which average.
        model: whose parameters; their shapes are fixed from here on.
        steps: of the training.
    """

    def __init__(self, config: AveragingConfig, model: nn.Module, steps: int) -> None:
        self._config, self._steps = config, steps
        self._own = {name: one for name, one in model.named_parameters() if one.requires_grad}
        self._mean: dict[str, Tensor] = {}
        self.states = 0

    def after_step(self, done: int) -> None:
        """Takes the weights in, if they count, after `done` steps."""
        config = self._config
        if config.kind == "latest":
            left = self._steps - done
            if left % config.every or left // config.every >= config.count:
                return
        self.states += 1
        if not self._mean:
            self._mean = {name: one.detach().float().clone() for name, one in self._own.items()}
            return
        part = 1 / self.states if config.kind == "latest" else 1 - config.decay
        for name, one in self._own.items():
            self._mean[name].lerp_(one.detach().float(), part)

    @torch.no_grad()
    def write(self) -> None:
        """Overwrites the model's weights with the average.

        Raises:
            ValueError: no state has been taken in.
        """
        if not self._mean:
            raise ValueError("there is no average yet: no step has been taken in")
        for name, one in self._own.items():
            one.copy_(self._mean[name])

    def state_dict(self) -> dict[str, Any]:
        return {"states": self.states, "mean": self._mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.states = state["states"]
        self._mean = {name: mean.to(self._own[name].device) for name, mean in state["mean"].items()}
