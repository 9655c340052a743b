"""The memory of a byte-pooled model while it writes, at both levels; this file travels inside checkpoints.

    cache.layers = [ StateLayer | WindowLayer x encoder | PatchLayer x core | WindowLayer x decoder ]

    StateLayer    what the rows carry: last ids, the open patch's sums, the core's last output
    WindowLayer   keys and values of the last `window` bytes, the same for all rows
    PatchLayer    keys and values of the patches, a different number in each row

Whoever decodes hands in an ordinary empty DynamicCache, as for any model; its layers are exchanged at the first call
(`byte_layers`). Selecting, repeating and reordering rows then reach every part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

from .byte_config import BytePooling

__all__ = ["PatchLayer", "PatchView", "StateLayer", "WindowLayer", "byte_layers", "last_real"]

_ROOM = 64  # patches added whenever a buffer is full


class _RowLayer(CacheLayerMixin):
    """A layer whose tensors all have one row per sequence; it cannot be cropped."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, Tensor] = {}

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        raise ValueError("this layer is written by the byte-pooled model alone")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        self.rows = {}
        self.is_initialized = False

    def crop(self, tokens_to_remove: int) -> None:
        if tokens_to_remove:
            raise ValueError("bytes cannot be taken back from a byte-pooled model's cache: their patch is pooled")

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._exchange(lambda rows: rows.index_select(0, beam_idx.to(rows.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._exchange(lambda rows: rows.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._exchange(lambda rows: rows[indices])

    def _exchange(self, change: Callable[[Tensor], Tensor]) -> None:
        self.rows = {name: change(rows) for name, rows in self.rows.items()}


class StateLayer(_RowLayer):
    """What each row carries from call to call, in `rows`; `seen` counts positions read, padding included."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def get_seq_length(self) -> int:
        return self.seen

    def reset(self) -> None:
        super().reset()
        self.seen = 0


class WindowLayer(_RowLayer):
    """Keys and values of the last `window` bytes, [batch, heads, window, head_dim], zero before the first."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window

    def extended(self, keys: Tensor, values: Tensor, count: Tensor | None) -> tuple[Tensor, Tensor]:
        """Appends [batch, heads, new, head_dim] and returns the window before them and them.

        Args:
            keys, values: of the new bytes, a row's padding behind them.
            count: bytes of each row that are no padding, [batch]; None is all.
        """
        found = []
        for name, new in (("keys", keys), ("values", values)):
            if name not in self.rows:
                self.rows[name] = new.new_zeros(*new.shape[:2], self.window, new.shape[-1])
            both = torch.cat((self.rows[name], new), dim=2)
            self.rows[name] = last_real(both, self.window, count, dim=2)
            found.append(both)
        return found[0], found[1]


def last_real(x: Tensor, size: int, count: Tensor | None, dim: int = 1) -> Tensor:
    """Returns the last `size` entries before each row's padding along `dim`.

    Args:
        x: [batch, ..., size + new, ...]: `size` entries of the past, then the new ones, padding last.
        count: new entries of each row that are no padding, [batch]; None is all.
    """
    if count is None:
        return x.narrow(dim, x.shape[dim] - size, size).clone()
    places = count[:, None] + torch.arange(size, device=x.device)  # [batch, size]
    places = places.view(len(x), *(size if axis == dim else 1 for axis in range(1, x.ndim)))
    return x.gather(dim, places.expand(*(size if axis == dim else width for axis, width in enumerate(x.shape))))


class PatchLayer(_RowLayer):
    """Keys and values of one core layer, [batch, heads, room, head_dim], filled to a different length in each row."""

    def write(self, new: dict[str, Tensor], batch: int, rows: Tensor | None, starts: Tensor) -> list[Tensor]:
        """Writes [rows, heads, new, head_dim] behind each row's own patches and returns all of these rows.

        Args:
            new: "keys" and "values".
            batch: rows of the whole batch.
            rows: which of them are written; None is all.
            starts: patches that each of the written rows holds already, [rows].
        """
        found = []
        for name, states in new.items():
            count, heads, length, width = states.shape
            needed = int(starts.max()) + length
            old = self.rows.get(name)
            if old is None or old.shape[2] < needed:
                room = states.new_zeros(batch, heads, needed + _ROOM, width)  # zeros: masked, but read
                if old is not None:
                    room[:, :, : old.shape[2]] = old
                self.rows[name] = old = room
            which = torch.arange(count, device=states.device) if rows is None else rows
            places = starts[:, None] + torch.arange(length, device=states.device)  # [rows, new]
            old[which[:, None], :, places] = states.transpose(1, 2)
            found.append(old[:, :, :needed] if rows is None else old[rows, :, :needed])
        return found


class PatchView(Cache):
    """The core's part of the cache for one call, as the core's layers expect a cache to be.

    Args:
        layers: the PatchLayers.
        batch: rows of the whole batch.
        rows: the rows that the core runs on; None is all.
        starts: patches that each of these rows holds already, [rows].
    """

    def __init__(self, layers: list[PatchLayer], batch: int, rows: Tensor | None, starts: Tensor) -> None:
        super().__init__(layers=layers)
        self._batch, self._rows, self._starts = batch, rows, starts

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        new = {"keys": key_states, "values": value_states}
        keys, values = self.layers[layer_idx].write(new, self._batch, self._rows, self._starts)
        return keys, values


def byte_layers(cache: Cache, settings: BytePooling, core_layers: int) -> list[Any]:
    """Returns the layers of a byte-pooled model's cache; an empty DynamicCache is given them first.

    Args:
        cache: of whoever decodes; changed in place.
        settings: of the model.
        core_layers: layers of the core that keep keys and values; more if the cache was made for more.

    Raises:
        ValueError: the cache is of a fixed size, or holds what another model has written.
    """
    layers = cache.layers
    if layers and hasattr(layers[0], "seen"):
        return layers
    if any(layer.is_initialized and layer.get_seq_length() for layer in layers):
        raise ValueError("past_key_values was written by another model; give an empty DynamicCache")
    if getattr(cache, "is_compileable", False) or getattr(cache, "offloading", False):
        raise ValueError(
            f"a byte-pooled model cannot use {type(cache).__name__} here, allowed: an empty DynamicCache "
            "(cache_implementation 'dynamic')"
        )
    core: list[Any] = layers or [DynamicLayer() for _ in range(core_layers)]
    if not settings.flat:
        core = [PatchLayer() for _ in core]
    own: list[Any] = [StateLayer()]
    own += [WindowLayer(settings.window) for _ in range(settings.encoder_layers)]
    own += core
    own += [WindowLayer(settings.window) for _ in range(settings.decoder_layers)]
    cache.layers = own
    cache.layer_class_to_replicate = None
    return own
