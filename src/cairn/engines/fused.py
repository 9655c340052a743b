"""Cairn's decoder for writing on a CPU: the same weights in fewer, larger products.

    x ─ norm ─ [q k v] x ─ norm and turn q, k together ─ cache ─ attention ─ o ─ + ─ norm ─ [gate up] x ─ down ─ + ─▶

One token of a tiny model is a few hundred small operations, and much of its time is their overhead, not arithmetic.
Here the three projections before attention are one product, gate and up another, and a step of one token makes no
causal mask. The weights are not copied: the model's own become views of the joined ones, so that both say the same.
Results are the model's up to rounding, because a sum is formed in another order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from cairn.models.layers import Attention, FeedForward, RMSNorm, rotary_tables, rotate
from cairn.models.modeling import CairnForCausalLM, CairnModel

__all__ = ["FusedDecoder", "can_fuse"]


@dataclass(frozen=True)
class _Layer:
    """The joined weights of one decoder layer; `before` and `between` are its two norms."""

    before: RMSNorm
    qkv: Tensor  # [(heads + 2 kv_heads) * head_dim, hidden]
    qk_gain: Tensor | None  # [heads + kv_heads, head_dim]
    out: Tensor
    between: RMSNorm
    wide: Tensor  # [2 * intermediate, hidden], or [intermediate, hidden] without a gate
    down: Tensor


@dataclass(frozen=True)
class Written:
    """What a forward pass returns: logits [batch, places, vocab] of the last places."""

    logits: Tensor


def can_fuse(model: PreTrainedModel) -> bool:
    """Returns whether a model has what `FusedDecoder` joins: plain layers of its own, on the CPU, through sdpa."""
    if not isinstance(model, CairnForCausalLM) or not isinstance(model.model, CairnModel):
        return False
    config = model.config
    plain = all(
        type(module) is nn.Linear and module.bias is None
        for layer in model.model.layers
        for part in (layer.self_attn, layer.mlp)
        for module in part.children()
        if not isinstance(module, RMSNorm)
    )
    return (
        plain and config.sharing is None and not config.value_residual and config.early_exit is None
        and model.device.type == "cpu"
        and config._attn_implementation == "sdpa"
    )  # fmt: skip


class FusedDecoder:
    """A Cairn model that writes; `model` stays usable, its projections being views of the joined weights.

    Args:
        model: for which `can_fuse` is true, in evaluation mode; nobody may change its weights afterwards.
    """

    def __init__(self, model: CairnForCausalLM) -> None:
        self._model = model
        config = model.config
        self._heads, self._kv_heads = config.num_attention_heads, config.num_key_value_heads
        self._head_dim, self._scale, self._eps = config.head_dim, config.head_dim**-0.5, config.rms_norm_eps
        self._gated = config.feed_forward == "swiglu"
        self._layers = [
            _Layer(
                layer.input_layernorm, _joined(_projections(layer.self_attn)), self._gain(layer.self_attn),
                _joined([layer.self_attn.o_proj]), layer.post_attention_layernorm, _joined(_wide(layer.mlp)),
                _joined([layer.mlp.down_proj]),
            )
            for layer in model.model.layers
        ]  # fmt: skip
        positions = torch.arange(config.max_position_embeddings)[None]
        cos, sin = rotary_tables(positions, config.head_dim, config.rope_theta, model.dtype)
        self._cos, self._sin = cos[0, 0], sin[0, 0]  # [positions, head_dim]

    def __call__(
        self,
        *,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        position_ids: Tensor,
        past_key_values: Any,
        logits_to_keep: int = 1,
        **_: Any,
    ) -> Written:
        """Reads tokens and returns the logits that follow the last ones of each row.

        Args:
            input_ids: [batch, seq].
            attention_mask: [batch, past + seq], 1 = real token, 0 = padding; None where there is no padding.
            position_ids: [batch or 1, seq].
            past_key_values: cache of earlier keys and values, updated in place.
            logits_to_keep: how many of the last tokens of each row.
        """
        decoder = self._model.model
        if input_ids.shape[1] == 1:  # one token sees all that was before: no mask but that of the padding
            x = decoder.embed_tokens(input_ids)
            mask = attention_mask[:, None, None].bool() if attention_mask is not None else None
        else:
            x, inputs = decoder.begin(input_ids, attention_mask, position_ids, past_key_values, use_cache=True)
            mask = inputs.attention_mask
        rotary = (self._cos[position_ids][:, None], self._sin[position_ids][:, None])  # [batch or 1, 1, seq, head_dim]
        causal = mask is None and input_ids.shape[1] > 1
        for number, layer in enumerate(self._layers):
            x = x + self._attention(x, number, layer, rotary, mask, causal, past_key_values)
            wide = F.linear(self._norm(x, layer.between), layer.wide)
            if self._gated:
                gate, up = wide.chunk(2, dim=-1)
                wide = F.silu(gate) * up
            else:
                wide = F.relu(wide).square()
            x = x + F.linear(wide, layer.down)
        return Written(self._model.lm_head(self._norm(x[:, -logits_to_keep:], decoder.norm)))

    def _attention(
        self, x: Tensor, number: int, layer: _Layer, rotary: tuple[Tensor, Tensor], mask: Tensor | None, causal: bool,
        cache: Any,
    ) -> Tensor:  # fmt: skip
        both = self._heads + self._kv_heads
        states = F.linear(self._norm(x, layer.before), layer.qkv).unflatten(-1, (-1, self._head_dim))
        turned, value = states[:, :, :both], states[:, :, both:].transpose(1, 2)
        if layer.qk_gain is not None:
            turned = _normed(turned, layer.qk_gain, self._eps)
        turned = rotate(turned.transpose(1, 2), *rotary)  # [batch, heads + kv_heads, seq, head_dim]
        key, value = cache.update(turned[:, self._heads :], value, number)
        mixed = F.scaled_dot_product_attention(
            turned[:, : self._heads], key, value, attn_mask=mask, is_causal=causal, scale=self._scale,
            enable_gqa=self._heads != self._kv_heads,
        )  # [batch, heads, seq, head_dim]
        return F.linear(mixed.transpose(1, 2).flatten(2), layer.out)

    def _norm(self, x: Tensor, norm: RMSNorm) -> Tensor:
        return _normed(x, norm.weight, norm.eps) if x.dtype == torch.float32 else norm(x)

    def _gain(self, attention: Attention) -> Tensor | None:
        """Returns the gains of queries and keys, one row a head."""
        if not self._model.config.qk_norm:
            return None
        rows = [attention.q_norm.weight] * self._heads + [attention.k_norm.weight] * self._kv_heads
        return torch.stack([row.detach() for row in rows])


def _normed(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """RMSNorm written out; torch's own takes longer on the few numbers of one token. Sums are made in float32."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * gain).to(x.dtype)


def _projections(attention: Attention) -> list[nn.Linear]:
    return [attention.q_proj, attention.k_proj, attention.v_proj]


def _wide(feed_forward: FeedForward) -> list[nn.Linear]:
    return [feed_forward.gate_proj, feed_forward.up_proj] if feed_forward.gated else [feed_forward.up_proj]


def _joined(linears: list[nn.Linear]) -> Tensor:
    """Returns the weights as one [out, in], rows below rows; each linear's own weight becomes a view of its rows.

    In float32 they lie in memory input by input: a product with a few rows is then half as fast again. In bfloat16,
    whose products have an order of their own, they stay output by output.
    """
    weight = torch.cat([linear.weight.detach() for linear in linears])
    if weight.dtype == torch.float32:
        weight = weight.t().contiguous().t()
    start = 0
    for linear in linears:
        rows = linear.weight.shape[0]
        linear.weight = nn.Parameter(weight[start : start + rows], requires_grad=False)
        start += rows
    return weight
