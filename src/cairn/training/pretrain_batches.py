"""The batches of a pretraining: rows of the stream, what the teacher says about them, cut short, made ready.

    loader.batch(step) ─┬─ teacher's logits of the same blocks ─▶ cut to the step's length ─▶ objective.prepare
                        └─ [rows, seq]                            [rows * k, seq / k]

Every part is a function of the step alone, so the whole is: resuming needs only the step's number.
"""

from __future__ import annotations

import numpy as np

from cairn.data.loader import PackedLoader
from cairn.training.objectives import PretrainObjective
from cairn.training.schedules import LengthWarmupConfig, cut_rows, row_length
from cairn.training.teacher_logits import TeacherLogits

__all__ = ["PretrainBatches"]


class PretrainBatches:
    """Batches for the loop.

    Args:
        loader: rows of full length.
        objective: makes them ready.
        steps: of the training.
        length_warmup: shorter rows at the start; None: all are full.
        teacher: what it says about the rows, for logit distillation.
    """

    def __init__(
        self,
        loader: PackedLoader,
        objective: PretrainObjective,
        steps: int,
        length_warmup: LengthWarmupConfig | None = None,
        teacher: TeacherLogits | None = None,
    ) -> None:
        self._loader, self._objective, self._steps = loader, objective, steps
        self._warmup, self._teacher = length_warmup, teacher

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Returns this process's rows of step `step`: input_ids, labels [rows, seq] and the objective's own arrays."""
        loader = self._loader
        batch = loader.batch(step)
        if self._teacher is not None:
            batch |= self._teacher.rows(loader.block_numbers(step))
        pieces = 1
        if self._warmup is not None:
            length = row_length(self._warmup, step, self._steps, loader.sequence_length)
            pieces = loader.sequence_length // length
            batch = cut_rows(batch, length)
        first_row = loader.rank * (loader.batch_size // loader.world_size) * pieces
        return self._objective.prepare(batch, step, first_row)
