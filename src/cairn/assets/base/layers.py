"""The layers of Cairn's decoder; this file travels inside every checkpoint.

    x [batch, seq, hidden] ─┬─ RMSNorm ─ Attention ───┬─ + ─┬─ RMSNorm ─ FeedForward ─┬─ + ─▶ x
                            └─────────────────────────┘     └─────────────────────────┘

The parameter names are those of Llama (and of Qwen3 when `qk_norm` is on). Attention goes through transformers'
attention interface with every keyword passed on: that is what makes static and paged caches, packed batches and
continuous batching right.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration import CairnConfig

__all__ = [
    "Attention", "DecoderLayer", "FeedForward", "RMSNorm", "SoftcappedHead", "eager_attention", "output_projection",
    "rotary_tables", "rotate",
]  # fmt: skip


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last dimension, with a learned gain.

    Args:
        size: width of the last dimension.
        eps: added to the mean square.

    Source: arXiv 1910.07467, eq. 4.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


def rotary_tables(position_ids: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Returns cos and sin [batch, 1, seq, head_dim] for `position_ids` [batch, seq], computed in float32."""
    powers = torch.arange(0, head_dim, 2, device=position_ids.device, dtype=torch.float32) / head_dim
    angles = position_ids[:, None, :, None].float() * (theta**-powers)  # [batch, 1, seq, head_dim / 2]
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turns each pair (i, i + head_dim / 2) of x [batch, heads, seq, head_dim] by its position's angle."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention written out: query [batch, heads, q, head_dim], key and value [batch, kv_heads, k, head_dim].

    Returns:
        Output [batch, q, heads, head_dim] and weights [batch, heads, q, k].
    """
    groups = query.shape[1] // key.shape[1]
    key = key.repeat_interleave(groups, dim=1)
    value = value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(2, 3) * scaling  # [batch, heads, q, k]
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def output_projection(config: CairnConfig, inputs: int) -> nn.Linear:
    """A Linear that writes into the residual stream; `init_scale` tells `_init_weights` how small it starts."""
    linear = nn.Linear(inputs, config.hidden_size, bias=False)
    linear.init_scale = 0.0 if config.zero_init_projections else (2 * config.num_hidden_layers) ** -0.5
    return linear


class Attention(nn.Module):
    """Grouped-query self-attention with rotary positions; [batch, seq, hidden] -> [batch, seq, hidden].

    With `value_residual`, layers after the first mix in the first layer's values: v = m0 * first + m1 * v.
    Source: arXiv 2410.17897, eq. 4 (learnable form, both weights start at a half).
    """

    def __init__(self, config: CairnConfig, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = config.head_dim**-0.5
        self.is_causal = True
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.o_proj = output_projection(config, queries)
        if config.qk_norm:
            self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
            self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        if config.value_residual and layer_idx > 0:
            self.value_mix = nn.Parameter(torch.full((2,), 0.5))

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        past_key_values: Cache | None,
        first_value: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        """Returns the output [batch, seq, hidden] and its own values [batch, kv_heads, seq, head_dim]."""
        heads = (*x.shape[:-1], -1, self.head_dim)
        query = self.q_proj(x).view(heads)  # [batch, seq, heads, head_dim]
        key = self.k_proj(x).view(heads)  # [batch, seq, kv_heads, head_dim]
        value = own_value = self.v_proj(x).view(heads).transpose(1, 2)
        if first_value is not None and hasattr(self, "value_mix"):
            value = self.value_mix[0] * first_value + self.value_mix[1] * own_value
        if self.config.qk_norm:
            query, key = self.q_norm(query), self.k_norm(key)
        query = rotate(query.transpose(1, 2), *rotary)
        key = rotate(key.transpose(1, 2), *rotary)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention)
        mixed, _ = attend(
            self, query, key, value, attention_mask, scaling=self.scaling,
            dropout=self.config.attention_dropout if self.training else 0.0, **kwargs,
        )
        return self.o_proj(mixed.reshape(*x.shape[:-1], -1)), own_value  # [batch, seq, hidden]


class FeedForward(nn.Module):
    """SwiGLU, down(silu(gate x) * up x), or squared ReLU, down(relu(up x)^2).

    Source: arXiv 2002.05202, eq. 6; arXiv 2109.08668, section 3.
    """

    def __init__(self, config: CairnConfig) -> None:
        super().__init__()
        self.gated = config.feed_forward == "swiglu"
        if self.gated:
            self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = output_projection(config, config.intermediate_size)

    def forward(self, x: Tensor) -> Tensor:
        if self.gated:
            return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return self.down_proj(F.relu(self.up_proj(x)).square())


class DecoderLayer(nn.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream.

    `hidden_dropout` acts on what is added, while training; see `CairnPreTrainedModel.set_hidden_dropout`.
    """

    def __init__(self, config: CairnConfig, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer_idx)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = FeedForward(config)
        self.hidden_dropout = config.hidden_dropout

    def forward(self, x: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Returns the stream after this layer [batch, seq, hidden] and the values of its attention."""
        mixed, value = self.self_attn(self.input_layernorm(x), **kwargs)
        x = x + self._dropped(mixed)
        return x + self._dropped(self.mlp(self.post_attention_layernorm(x))), value

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.hidden_dropout) if self.training and self.hidden_dropout > 0 else x


class SoftcappedHead(nn.Linear):
    """An output head whose logits stay within -cap..cap: cap * tanh(W x / cap). Source: arXiv 2408.00118, section 2."""

    def __init__(self, inputs: int, outputs: int, cap: float) -> None:
        super().__init__(inputs, outputs, bias=False)
        self.cap = cap

    def forward(self, x: Tensor) -> Tensor:
        return self.cap * torch.tanh(super().forward(x) / self.cap)
