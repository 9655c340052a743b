"""Batches for pretraining as a pure function of the step: resuming needs nothing but the step's number.

    stream   t0 t1 t2 t3 t4 t5 t6 t7 ...            block i = tokens[i*seq : i*seq + seq + 1]
    block 0  [t0 t1 t2 t3] t4                       input_ids = block[:-1], labels = block[1:]
    block 1              [t4 t5 t6 t7] t8           so every token but the first is a target exactly once per epoch

Blocks are permuted anew in every epoch, from seed and epoch alone; or, with `order="stream"`, read one after the other
from a place that the seed draws as a share of the stream: then models with other tokenizers or row lengths read the
same text in the same order. Rows of step s are numbers s*batch .. s*batch +
batch - 1 of the endless sequence of permuted blocks; each rank takes its share of those rows, so that any number of
processes sees the same global batch.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from cairn.data.shards import ShardSet
from cairn.errors import ConfigError, DataError

__all__ = ["PackedLoader"]


class PackedLoader:
    """Random access to the batches of a token stream.

    Args:
        shards: the stream.
        sequence_length: tokens per row, 1 or more.
        batch_size: rows of the global batch, over all ranks.
        seed: of the block order.
        rank: this process, 0 <= rank < world_size.
        world_size: processes; must divide batch_size.
        order: `shuffled` blocks, or the `stream` as it is (its pieces were shuffled when it was written).

    Raises:
        ConfigError: a number is out of range, or world_size does not divide batch_size.
        DataError: the stream is shorter than one block.
    """

    def __init__(
        self, shards: ShardSet, sequence_length: int, batch_size: int, seed: int, rank: int = 0, world_size: int = 1,
        order: Literal["shuffled", "stream"] = "shuffled",
    ) -> None:  # fmt: skip
        faults = []
        if sequence_length < 1:
            faults.append(f"sequence_length: {sequence_length}, allowed: 1 or more")
        if batch_size < 1:
            faults.append(f"batch_size: {batch_size}, allowed: 1 or more")
        if world_size < 1 or not 0 <= rank < world_size:
            faults.append(f"rank {rank} of world_size {world_size}, allowed: 0 <= rank < world_size")
        elif batch_size % world_size:
            faults.append(f"batch_size: {batch_size} rows do not divide among {world_size} processes, "
                          f"allowed: a multiple of {world_size}")
        if faults:
            raise ConfigError("loader", faults)
        self.blocks = (len(shards) - 1) // sequence_length
        if self.blocks < 1:
            raise DataError("the token stream is shorter than one row", value=f"{len(shards)} tokens",
                            allowed=f"at least sequence_length + 1 = {sequence_length + 1}",
                            next="add text, or lower sequence_length")
        self.shards = shards
        self.sequence_length = sequence_length
        self.batch_size = batch_size
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.order = order
        self._orders: dict[int, np.ndarray] = {}

    @property
    def steps_per_epoch(self) -> float:
        """Steps in which every block is seen once; a batch may straddle two epochs."""
        return self.blocks / self.batch_size

    @property
    def tokens_per_step(self) -> int:
        """Target tokens of the global batch."""
        return self.batch_size * self.sequence_length

    def epoch(self, step: int) -> float:
        """Returns how many passes over the blocks are complete before `step`, with its fraction."""
        return step * self.batch_size / self.blocks

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Returns this rank's rows of a step.

        Args:
            step: 0 or more; the same step always gives the same rows.

        Returns:
            input_ids and labels, int64 `[batch_size / world_size, sequence_length]`; labels are already shifted:
            labels[r, i] is the token that follows input_ids[r, i].

        Raises:
            IndexError: the step is negative.
        """
        numbers = self.block_numbers(step)
        rows = np.empty((len(numbers), self.sequence_length + 1), np.int64)
        for row, number in enumerate(numbers):
            rows[row] = self.block(number)
        return {"input_ids": rows[:, :-1].copy(), "labels": rows[:, 1:].copy()}

    def block(self, number: int) -> np.ndarray:
        """Returns the ids of a block and the one after it, `[sequence_length + 1]`."""
        start = int(number) * self.sequence_length
        return self.shards.tokens(start, start + self.sequence_length + 1)

    def block_numbers(self, step: int, *, all_ranks: bool = False) -> np.ndarray:
        """Returns the numbers of the blocks that are this rank's rows of a step, or those of the whole batch.

        Raises:
            IndexError: the step is negative.
        """
        if step < 0:
            raise IndexError(f"step {step} is negative")
        share = self.batch_size if all_ranks else self.batch_size // self.world_size
        first = step * self.batch_size + (0 if all_ranks else self.rank * share)
        numbers = np.empty(share, np.int64)
        for row in range(share):
            epoch, place = divmod(first + row, self.blocks)
            numbers[row] = self._order(epoch)[place]
        return numbers

    def _order(self, epoch: int) -> np.ndarray:
        if self.order == "stream":
            if not self._orders:
                first = int(np.random.default_rng(self.seed).random() * self.blocks)
                self._orders = {0: np.roll(np.arange(self.blocks), -first)}
            return self._orders[0]
        if epoch not in self._orders:
            # Only neighbours are kept: a batch touches at most its own epoch and later ones.
            self._orders = {known: order for known, order in self._orders.items() if abs(known - epoch) <= 1}
            self._orders[epoch] = np.random.default_rng([self.seed, epoch]).permutation(self.blocks)
        return self._orders[epoch]
