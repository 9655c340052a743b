"""The cache with room ahead holds what transformers' growing cache holds."""

import pytest
import torch
from transformers import DynamicCache

from cairn.engines.cache import RoomyLayer, roomy_cache
from cairn.models.configuration import CairnConfig

CONFIG = CairnConfig(
    vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=512,
)  # fmt: skip


@pytest.mark.parametrize("lengths", [[5, 1, 1, 1], [3, *[1] * 300], [1, 200, 1, 150]])
def test_it_holds_what_the_growing_cache_holds(lengths: list[int]) -> None:
    """Past several enlargements, and after rows have left."""
    generator = torch.Generator().manual_seed(0)
    ours, theirs = roomy_cache(CONFIG), DynamicCache(config=CONFIG)
    rows = 6
    for place, length in enumerate(lengths):
        for layer in range(2):
            key, value = torch.randn(2, rows, 2, length, 8, generator=generator)
            got, want = ours.update(key, value, layer), theirs.update(key, value, layer)
            assert torch.equal(got[0], want[0])
            assert torch.equal(got[1], want[1])
        assert ours.get_seq_length() == theirs.get_seq_length()
        if place in (1, 2):
            kept = torch.arange(0, rows, 2)
            rows = len(kept)
            ours.batch_select_indices(kept)
            theirs.batch_select_indices(kept)


def test_an_update_within_the_room_copies_nothing_that_was_there() -> None:
    layer = RoomyLayer()
    key = torch.randn(1, 2, 4, 8)
    layer.update(key, key)
    before = layer.keys.data_ptr()
    for _ in range(100):
        layer.update(key[:, :, :1], key[:, :, :1])
    assert layer.keys.data_ptr() == before
    assert layer.keys.shape == (1, 2, 104, 8)
