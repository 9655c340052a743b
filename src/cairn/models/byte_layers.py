"""The parts around the core of a byte-pooled model; this file travels inside checkpoints.

    window attention   byte t looks at bytes t - window + 1 .. t, computed in blocks:

        keys     [ block i-1 | block i ]        cost grows with the length, not with its square
        queries              [ block i ]

    pooling            bytes of one patch -> one vector, as sums over the patch: an open patch is carried on
    smoothing          the learned rule's running mean over patches, which gives its boundaries a gradient

No loop over patches or bytes: sums by `index_add`, look-ups by `index_select`, the running mean as a product.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .byte_cache import WindowLayer
from .byte_config import BytePooling
from .byte_rules import context_hash
from .layers import FeedForward, RMSNorm, output_projection, rotate

__all__ = ["LocalLayer", "NgramEmbedding", "PatchPooling", "smoothed", "window_bias"]

_CAP = 10.0  # of a pooling score: its exponential stays within float32 without looking at the other bytes
_SPAN = 128  # patches that are smoothed in one product


class NgramEmbedding(nn.Module):
    """Adds up one hashed embedding for each n-gram that ends at a byte. Source: arXiv 2412.09871, section 3.2.1."""

    def __init__(self, settings: BytePooling) -> None:
        super().__init__()
        self.sizes, self.rows = settings.ngram_sizes, settings.ngram_rows
        self.table = nn.Embedding(len(self.sizes) * self.rows, settings.local_size)

    def forward(self, ids: Tensor, length: int) -> Tensor:
        """Returns [batch, length, local] for ids [batch, history + length]."""
        places = [context_hash(ids, size, self.rows, length) + n * self.rows for n, size in enumerate(self.sizes)]
        return self.table(torch.stack(places, dim=-1)).sum(dim=2)  # [batch, length, sizes, local] before the sum


def window_bias(real: Tensor, window: int, dtype: torch.dtype) -> Tensor:
    """Returns what is added to the scores of the window attention: 0 where a byte may look, else a very low number.

    Args:
        real: keys that exist and are no padding, [batch or 1, window + seq], bool; the first ones are the past.
        window: bytes that may be seen, the own one included (which always may: no row of scores is empty).
        dtype: of the scores.

    Returns:
        [batch or 1, 1, blocks, block, window + block].
    """
    length = real.shape[1] - window
    block = min(window, length)
    query = torch.arange(block, device=real.device)[:, None]
    key = torch.arange(window + block, device=real.device)[None]
    seen = (key > query) & (key <= query + window)
    there = F.pad(real, (0, -length % block)).unfold(1, window + block, block)  # [batch, blocks, window + block]
    allowed = (seen & there[:, :, None]) | (key == query + window)
    bias = torch.zeros(allowed.shape, dtype=dtype, device=real.device)
    return bias.masked_fill_(~allowed, torch.finfo(dtype).min / 2)[:, None]


class LocalAttention(nn.Module):
    """Self-attention over a window of bytes with rotary positions; [batch, seq, local] -> [batch, seq, local]."""

    def __init__(self, config: Any, window: int) -> None:
        super().__init__()
        size = config.hidden_size
        self.heads, self.window = config.num_attention_heads, window
        self.q_proj = nn.Linear(size, size, bias=False)
        self.k_proj = nn.Linear(size, size, bias=False)
        self.v_proj = nn.Linear(size, size, bias=False)
        self.o_proj = output_projection(config, size)
        self.qk_norm = config.qk_norm
        if config.qk_norm:
            self.q_norm = RMSNorm(size // self.heads, config.rms_norm_eps)
            self.k_norm = RMSNorm(size // self.heads, config.rms_norm_eps)

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], bias: Tensor, cache: WindowLayer | None, count: Tensor | None
    ) -> Tensor:
        batch, length, _ = x.shape
        heads = (batch, length, self.heads, -1)
        query, key = self.q_proj(x).view(heads), self.k_proj(x).view(heads)
        value = self.v_proj(x).view(heads).transpose(1, 2)  # [batch, heads, seq, head_dim]
        if self.qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        query, key = (rotate(part.transpose(1, 2), *rotary).to(value.dtype) for part in (query, key))
        if cache is None:
            key, value = F.pad(key, (0, 0, self.window, 0)), F.pad(value, (0, 0, self.window, 0))
        else:
            key, value = cache.extended(key, value, count)
        mixed = self._blocks(query, key, value, bias)
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, -1))

    def _blocks(self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        """Returns [batch, heads, seq, head_dim]; keys and values hold a window before the first query."""
        length, width = query.shape[2:]
        block = min(self.window, length)
        tail = -length % block
        query = F.pad(query * width**-0.5, (0, 0, 0, tail)).unflatten(2, (-1, block))
        with torch.autocast(query.device.type, enabled=False):  # else every softmax would be copied to float32
            key, value = (self._pairs(F.pad(x, (0, 0, 0, tail)), block) for x in (key, value))
            scores = query @ key.transpose(-1, -2)  # [batch, heads, blocks, block, window + block]
            mixed = scores.add_(bias).softmax(-1) @ value
        return mixed.flatten(2, 3)[:, :, :length]

    def _pairs(self, x: Tensor, block: int) -> Tensor:
        """Returns for each block the window before it and itself: [batch, heads, blocks, window + block, head_dim]."""
        if x.shape[2] == self.window + block:
            return x[:, :, None]
        x = x.unflatten(2, (-1, block))  # more than one block: then a block is as long as the window
        return torch.cat((x[:, :, :-1], x[:, :, 1:]), dim=3)


class LocalLayer(nn.Module):
    """Pre-norm window attention and feed-forward, each added to the stream of bytes."""

    def __init__(self, config: Any, window: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = LocalAttention(config, window)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = FeedForward(config)

    def forward(
        self, x: Tensor, rotary: tuple[Tensor, Tensor], bias: Tensor, cache: WindowLayer | None, count: Tensor | None
    ) -> Tensor:
        """Returns the stream after this layer [batch, seq, local]; `count` as in `WindowLayer.extended`."""
        x = x + self.self_attn(self.input_layernorm(x), rotary, bias, cache, count)
        return x + self.mlp(self.post_attention_layernorm(x))


class PatchPooling(nn.Module):
    """Pools the bytes of each patch into one vector: a weighted mean, whose sums an open patch carries on.

    mean: every byte weighs the same. last: only the last byte counts. attention: each head weighs a byte by its
    score with a learned query, exp(score), the scores softly capped.
    """

    def __init__(self, settings: BytePooling, eps: float) -> None:
        super().__init__()
        self.kind = settings.pooling
        self.heads = settings.pooling_heads if settings.pooling == "attention" else 1
        self.norm = RMSNorm(settings.local_size, eps)
        if settings.pooling == "attention":
            self.score = nn.Linear(settings.local_size, self.heads, bias=False)
            self.value = nn.Linear(settings.local_size, settings.local_size, bias=False)

    def forward(
        self, x: Tensor, real: Tensor, ends: Tensor, patches: int, carried: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Pools.

        Args:
            x: states of the bytes, [batch, seq, local].
            real: no padding, [batch, seq], bool; padding weighs nothing.
            ends: last bytes of patches, [batch, seq], bool.
            patches: the most patches that end in one row.
            carried: sums of the patch that an earlier call left open, or nothing.

        Returns:
            [batch, patches, local], zeros behind a row's last patch; and the sums of the patch left open.
        """
        batch, length, size = x.shape
        x = self.norm(x)
        value = self.value(x) if self.kind == "attention" else x
        wide = torch.float32 if value.dtype in (torch.bfloat16, torch.float16) else value.dtype
        if self.kind == "attention":
            score = self.score(x).to(wide)
            weight = (_CAP * torch.tanh(score / _CAP)).exp() * real[..., None]  # [batch, seq, heads]
        else:
            weight = (ends if self.kind == "last" else real)[..., None].to(wide)
        value = value.to(wide).unflatten(-1, (self.heads, -1)) * weight[..., None]
        row = torch.arange(batch, device=x.device)[:, None] * (patches + 1)
        place = (row + ends.cumsum(1) - ends.long()).flatten()  # patch of each byte; the last of a row is left open
        sums = value.new_zeros(batch * (patches + 1), size).index_add(0, place, value.view(-1, size))
        weights = weight.new_zeros(batch * (patches + 1), self.heads).index_add(0, place, weight.view(-1, self.heads))
        sums, weights = sums.view(batch, -1, size), weights.view(batch, -1, self.heads)
        if carried:
            sums = torch.cat((sums[:, :1] + carried["sum"][:, None], sums[:, 1:]), dim=1)
            weights = torch.cat((weights[:, :1] + carried["weight"][:, None], weights[:, 1:]), dim=1)
        rows, last = torch.arange(batch, device=x.device), ends.sum(1)
        left = {"sum": sums[rows, last], "weight": weights[rows, last]}
        sums, weights = sums[:, :patches], weights[:, :patches].clamp(min=1e-12)
        pooled = sums.unflatten(-1, (self.heads, -1)) / weights[..., None]
        return pooled.flatten(2).to(x.dtype), left


def smoothed(x: Tensor, chance: Tensor, before: Tensor) -> Tensor:
    """Returns the running mean y_k = p_k x_k + (1 - p_k) y_(k-1).

    Args:
        x: [batch, patches, size].
        chance: p, [batch, patches], float32 or float64.
        before: y before the first patch, [batch, size].

    Source: smoothing module, arXiv 2507.07955, section 2.2.
    """
    parts = []
    before = before.to(chance.dtype)
    for start in range(0, x.shape[1], _SPAN):
        p, part = chance[:, start : start + _SPAN], x[:, start : start + _SPAN].to(chance.dtype)
        fade = torch.log1p(-p.clamp(max=1 - 1e-6)).cumsum(1)  # [batch, span]
        order = torch.arange(p.shape[1], device=x.device)
        later = order[:, None] >= order
        kept = (fade[:, :, None] - fade[:, None]).masked_fill(~later, float("-inf")).exp()  # [batch, span, span]
        y = (kept * p[:, None]) @ part + fade.exp()[..., None] * before[:, None]
        parts.append(y)
        before = y[:, -1]
    return torch.cat(parts, dim=1).to(x.dtype)
