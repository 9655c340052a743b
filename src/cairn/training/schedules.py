"""What changes over the steps beside the learning rate: dropout, and the length of the rows.

    dropout rate          none ______   constant ------   early --|__   late __|--   triangle /\\/\\/\\
                          linear_up  __,--'   linear_down  '--.__

    rows of a step        [ 512 ][ 512 ]   full length
                          [128][128][128][128][128]...  the same tokens, cut shorter, at the start of the training

Both are pure functions of the step, so that a resumed run needs nothing but its number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from pydantic import Field, model_validator

from cairn.config import StrictModel

__all__ = ["DropoutConfig", "DropoutSchedule", "LengthWarmupConfig", "cut_rows", "dropout_rate", "row_length"]

_STEPWISE = ("linear_up", "linear_down", "triangle")


class DropoutConfig(StrictModel):
    """Dropout over the steps, set in the model while it trains and taken out afterwards.

    Args:
        kind: `constant`; `linear_up` from 0 to the rate and `linear_down` back; `early`: the rate for the first
            `share` of the steps, then 0; `late`: 0 for all but the last `share`; `triangle`: up and down again,
            `cycles` times.
        rate: the highest rate.
        share: of the steps with dropout, for `early` and `late`.
        cycles: for `triangle`.
        where: `hidden` after attention and feed-forward, `attention` on the attention weights, or both.

    Source: the kinds that arXiv 2409.05423 compares.
    """

    kind: Literal["constant", "linear_up", "linear_down", "early", "late", "triangle"]
    rate: float = Field(0.1, gt=0, lt=1)
    share: float = Field(0.25, gt=0, lt=1)
    cycles: int = Field(3, ge=1)
    where: list[Literal["hidden", "attention"]] = Field(["hidden", "attention"], min_length=1)

    @property
    def stepwise(self) -> bool:
        """Whether the rate changes at every step, so that a compiled model would be compiled anew each time."""
        return self.kind in _STEPWISE

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of the model's configuration that follow the schedule."""
        return tuple(f"{place}_dropout" for place in ("attention", "hidden") if place in self.where)

    @model_validator(mode="after")
    def _only_what_counts(self) -> DropoutConfig:
        faults = [
            f"{key} is of no effect with kind {self.kind}, allowed: with kind {kinds}"
            for key, kinds, used in (("share", "early or late", self.kind in ("early", "late")),
                                     ("cycles", "triangle", self.kind == "triangle"))
            if not used and getattr(self, key) != type(self).model_fields[key].default
        ]
        if faults:
            raise ValueError("; ".join(faults))
        return self


def dropout_rate(config: DropoutConfig, step: int, steps: int) -> float:
    """Returns the dropout rate of `step` of `steps` (counted from 0), between 0 and `config.rate`."""
    done = step / max(steps - 1, 1)  # 0 at the first step, 1 at the last
    if config.kind == "linear_up":
        return config.rate * done
    if config.kind == "linear_down":
        return config.rate * (1 - done)
    if config.kind == "early":
        return config.rate if step < round(config.share * steps) else 0.0
    if config.kind == "late":
        return config.rate if step >= steps - round(config.share * steps) else 0.0
    if config.kind == "triangle":
        place = (step * config.cycles / steps) % 1  # within its cycle
        return config.rate * (1 - abs(2 * place - 1))
    return config.rate


class DropoutSchedule:
    """Sets a model's dropout before each step, and puts back what it had before.

    Args:
        config: the schedule.
        model: a Cairn model.
        steps: of the training.
    """

    def __init__(self, config: DropoutConfig, model: Any, steps: int) -> None:
        self._config, self._model, self._steps = config, model, steps
        self._before = {field: getattr(model.config, field) for field in config.fields}

    def __call__(self, step: int) -> None:
        rate = dropout_rate(self._config, step, self._steps)
        self._set(dict.fromkeys(self._before, rate))

    def restore(self) -> None:
        """Puts back the rates of before, which are those that the model is saved with."""
        self._set(self._before)

    def _set(self, rates: Mapping[str, float]) -> None:
        if "attention_dropout" in rates:
            self._model.config.attention_dropout = rates["attention_dropout"]
        if "hidden_dropout" in rates:  # kept in the layers: the configuration says what the model began with
            self._model.set_hidden_dropout(rates["hidden_dropout"])


class LengthWarmupConfig(StrictModel):
    """Short rows first: the tokens of every step stay those of a run without, cut into shorter rows.

    The length doubles from `start` up to the recipe's `sequence_length`, in stages of equal numbers of steps over
    the first `share` of the training. Tokens per step, their order and the learning-rate schedule do not change.

    Args:
        start: tokens per row at first; the recipe's `sequence_length` is `start` times a power of two.
        share: of the steps that run below the full length.

    Source: sequence-length warmup, arXiv 2108.06084 (there the batch shrinks with the rows; here it does not).
    """

    start: int = Field(64, ge=8)
    share: float = Field(0.3, gt=0, lt=1)

    def faults(self, sequence_length: int) -> list[str]:
        """Returns what does not fit a full length."""
        lengths = [self.start]
        while lengths[-1] < sequence_length:
            lengths.append(2 * lengths[-1])
        if lengths[-1] != sequence_length or len(lengths) == 1:
            return [f"length_warmup.start: {self.start}, allowed: sequence_length ({sequence_length}) halved once or "
                    "more often"]
        return []


def row_length(config: LengthWarmupConfig, step: int, steps: int, sequence_length: int) -> int:
    """Returns the tokens per row of `step` of `steps` (counted from 0)."""
    stages = (sequence_length // config.start).bit_length() - 1  # doublings up to the full length
    short_steps = round(config.share * steps)
    if step >= short_steps:
        return sequence_length
    return config.start << (step * stages // short_steps)


def cut_rows(batch: Mapping[str, np.ndarray], length: int) -> dict[str, np.ndarray]:
    """Cuts every row [rows, seq, ...] into pieces of `length`: [rows * seq / length, length, ...], in order."""
    return {
        name: values.reshape(len(values) * (values.shape[1] // length), length, *values.shape[2:])
        for name, values in batch.items()
    }
