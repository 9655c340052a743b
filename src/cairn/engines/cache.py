"""The memory of a batch that is being written: keys and values with room ahead.

    transformers' DynamicLayer   every token: cat(old, new)       copies everything that was there
    RoomyLayer                   every token: buffer[n] = new     hands out the part that is filled

A tiny model's forward step costs less than copying the memory of its batch, so the copy is most of the time of
long outputs. Sliding-window and other layers of a model keep transformers' own classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

__all__ = ["RoomyLayer", "roomy_cache"]

_ROOM = 128  # positions added whenever the buffer is full


class RoomyLayer(DynamicLayer):
    """Keys and values of one layer, [batch, heads, seq, head_dim], kept at the front of a larger buffer."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Appends [batch, heads, new, head_dim] to each and returns all that is filled, as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._buffers = [key_states[:, :, :0], value_states[:, :, :0]]
        filled = self.get_seq_length()
        total = filled + key_states.shape[-2]
        for place, new in enumerate((key_states, value_states)):
            old = self._buffers[place]
            if old.shape[-2] < total:
                grown = new.new_empty(*new.shape[:2], total + _ROOM, new.shape[-1])
                grown[:, :, :filled] = old[:, :, :filled]
                self._buffers[place] = old = grown
            old[:, :, filled:total] = new
        self.keys, self.values = (buffer[:, :, :total] for buffer in self._buffers)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps only these rows of the batch."""
        self._exchange(lambda buffer: buffer[indices])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats every row of the batch."""
        self._exchange(lambda buffer: buffer.repeat_interleave(repeats, dim=0))

    def _exchange(self, change: Callable[[Tensor], Tensor]) -> None:
        filled = self.get_seq_length()
        if filled:
            self._buffers = [change(buffer) for buffer in self._buffers]
            self.keys, self.values = (buffer[:, :, :filled] for buffer in self._buffers)


def roomy_cache(config: PretrainedConfig) -> DynamicCache:
    """Returns an empty cache for a model whose plain layers are RoomyLayers."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    if cache.layer_class_to_replicate is DynamicLayer:
        cache.layer_class_to_replicate = RoomyLayer
    return cache
