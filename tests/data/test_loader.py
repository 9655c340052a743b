"""A batch is a pure function of the step, and any number of processes sees the same global batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cairn.data.loader import PackedLoader
from cairn.data.shards import ShardSet, write_shards
from cairn.errors import ConfigError, DataError
from cairn.models.tokenization import train_bpe

SEQUENCE = 8


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    out = tmp_path_factory.mktemp("shards")
    documents = [f"document {n} says {n * 7} and {n * 11} to {n * 13}." for n in range(40)]
    tokenizer = train_bpe(documents, 400)
    write_shards(documents, tokenizer, out, shard_tokens=100)
    return ShardSet.open(out, tokenizer)


def starts(loader: PackedLoader, shards: ShardSet, steps: range) -> list[int]:
    """The block number of every row, found by comparing its ids with the stream."""
    stream = shards.tokens(0, len(shards)).astype(np.int64)
    blocks = {stream[i * SEQUENCE : (i + 1) * SEQUENCE + 1].tobytes(): i for i in range(loader.blocks)}
    assert len(blocks) == loader.blocks  # all different, so that rows can be told apart
    found = []
    for step in steps:
        batch = loader.batch(step)
        for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            found.append(blocks[np.append(ids, labels[-1]).tobytes()])
    return found


def test_labels_are_the_next_tokens_and_shapes_and_types_are_those_of_torch(shards: ShardSet) -> None:
    batch = PackedLoader(shards, SEQUENCE, 4, seed=0).batch(3)
    assert {name: (rows.shape, rows.dtype) for name, rows in batch.items()} == {
        "input_ids": ((4, SEQUENCE), np.int64), "labels": ((4, SEQUENCE), np.int64)
    }  # fmt: skip
    assert (batch["input_ids"][:, 1:] == batch["labels"][:, :-1]).all()
    assert batch["input_ids"].flags.c_contiguous and batch["labels"].flags.writeable


def test_every_block_is_seen_once_per_epoch_even_when_batches_straddle_epochs(shards: ShardSet) -> None:
    loader = PackedLoader(shards, SEQUENCE, 3, seed=5)
    rows = starts(loader, shards, range(loader.blocks))  # blocks steps of 3 rows = 3 epochs
    epochs = [rows[i * loader.blocks : (i + 1) * loader.blocks] for i in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(loader.blocks))
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs[0] != sorted(epochs[0])


def test_in_the_order_of_the_stream_every_epoch_goes_round_from_the_same_share_of_it(shards: ShardSet) -> None:
    loader = PackedLoader(shards, SEQUENCE, 3, seed=5, order="stream")
    rows = starts(loader, shards, range(loader.blocks))  # 3 epochs
    assert all((after - before) % loader.blocks == 1 for before, after in zip(rows, rows[1:], strict=False))
    longer = PackedLoader(shards, 2 * SEQUENCE, 3, seed=5, order="stream")
    first = int(longer.block_numbers(0)[0])
    assert abs(first / longer.blocks - rows[0] / loader.blocks) <= 1 / longer.blocks
    others = {int(PackedLoader(shards, SEQUENCE, 3, seed, order="stream").block_numbers(0)[0]) for seed in range(8)}
    assert len(others) > 4


def test_every_token_but_the_first_is_a_target_once_per_epoch(shards: ShardSet) -> None:
    loader = PackedLoader(shards, SEQUENCE, 1, seed=5)
    targets = np.concatenate([loader.batch(step)["labels"].ravel() for step in range(loader.blocks)])
    used = loader.blocks * SEQUENCE
    assert sorted(targets) == sorted(shards.tokens(1, used + 1))
    assert len(shards) - 1 - used < SEQUENCE


def test_a_step_gives_the_same_rows_whatever_was_asked_before(shards: ShardSet) -> None:
    straight = PackedLoader(shards, SEQUENCE, 4, seed=1)
    rows = [straight.batch(step)["input_ids"] for step in range(120)]
    for step in (119, 3, 60, 0, 119):
        np.testing.assert_array_equal(straight.batch(step)["input_ids"], rows[step])
        np.testing.assert_array_equal(PackedLoader(shards, SEQUENCE, 4, seed=1).batch(step)["input_ids"], rows[step])
    other = PackedLoader(shards, SEQUENCE, 4, seed=2)
    assert any((other.batch(step)["input_ids"] != rows[step]).any() for step in range(3))


def test_global_random_state_is_neither_used_nor_touched(shards: ShardSet) -> None:
    np.random.seed(3)
    before = np.random.get_state()[1].copy()
    first = PackedLoader(shards, SEQUENCE, 4, seed=1).batch(0)["input_ids"]
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    np.random.seed(4)
    np.testing.assert_array_equal(PackedLoader(shards, SEQUENCE, 4, seed=1).batch(0)["input_ids"], first)


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_ranks_together_see_the_batch_of_one_process(shards: ShardSet, world_size: int) -> None:
    whole = PackedLoader(shards, SEQUENCE, 6, seed=7)
    ranks = [PackedLoader(shards, SEQUENCE, 6, 7, rank, world_size) for rank in range(world_size)]
    for step in range(0, 90, 7):
        for name in ("input_ids", "labels"):
            parts = [loader.batch(step)[name] for loader in ranks]
            assert all(len(part) == 6 // world_size for part in parts)
            np.testing.assert_array_equal(np.concatenate(parts), whole.batch(step)[name])


def test_a_batch_larger_than_the_data_spans_several_epochs(shards: ShardSet) -> None:
    blocks = PackedLoader(shards, SEQUENCE, 1, seed=0).blocks
    loader = PackedLoader(shards, SEQUENCE, 2 * blocks, seed=0)
    rows = starts(loader, shards, range(1))
    assert sorted(rows) == sorted(list(range(blocks)) * 2)


def test_epoch_counts_passes(shards: ShardSet) -> None:
    loader = PackedLoader(shards, SEQUENCE, 2, seed=0)
    assert loader.epoch(0) == 0.0
    assert loader.epoch(loader.blocks) == pytest.approx(2.0)
    assert loader.steps_per_epoch == loader.blocks / 2
    assert loader.tokens_per_step == 2 * SEQUENCE


def test_wrong_settings_are_refused_all_at_once(shards: ShardSet) -> None:
    with pytest.raises(ConfigError, match="batch_size: 5 rows do not divide among 2 processes, allowed: a mult"):
        PackedLoader(shards, SEQUENCE, 5, seed=0, rank=0, world_size=2)
    with pytest.raises(ConfigError) as caught:
        PackedLoader(shards, 0, 0, seed=0, rank=2, world_size=2)
    assert len(caught.value.faults) == 3 and "rank 2 of world_size 2" in str(caught.value)
    with pytest.raises(DataError, match=r"shorter than one row: '\d+ tokens'. Allowed: at least sequence_length"):
        PackedLoader(shards, 100_000, 1, seed=0)
    with pytest.raises(IndexError, match="step -1 is negative"):
        PackedLoader(shards, SEQUENCE, 1, seed=0).batch(-1)


def test_the_shortest_stream_gives_its_one_block(tmp_path: Path) -> None:
    tokenizer = train_bpe(["abc abc"], 320)
    write_shards(["abc"], tokenizer, tmp_path)
    stream = ShardSet.open(tmp_path)
    batch = PackedLoader(stream, len(stream) - 1, 1, seed=0).batch(9)
    np.testing.assert_array_equal(batch["input_ids"][0], stream.tokens(0, len(stream) - 1))
