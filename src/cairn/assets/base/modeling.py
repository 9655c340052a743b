"""Cairn's decoder as a Hugging Face model; this file travels inside every checkpoint.

    input_ids [batch, seq] -> embed_tokens -> [batch, seq, hidden]
      N x  x = x + o_proj(attention(q_norm(Wq n), k_norm(Wk n), Wv n))    n = RMSNorm(x)
           x = x + down(silu(gate n) * up n)                              n = RMSNorm(x)
      RMSNorm -> lm_head (tied) -> logits [batch, seq, vocab]

The parameter names are those of Llama (and of Qwen3 when `qk_norm` is on), so that a checkpoint can be exported
by renaming nothing. Attention goes through transformers' attention interface with every keyword passed on: that
is what makes static and paged caches, packed batches and continuous batching right. Rotary tables are computed in
each forward pass from the configuration, never cached on a class: several models of different shape live in one
process.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration import CairnConfig

__all__ = ["CairnForCausalLM", "CairnModel", "CairnPreTrainedModel"]


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
    """Grouped-query self-attention with rotary positions; [batch, seq, hidden] -> [batch, seq, hidden]."""

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

    def forward(
        self,
        x: Tensor,
        rotary: tuple[Tensor, Tensor],
        attention_mask: Tensor | None,
        past_key_values: Cache | None,
        **kwargs: Any,
    ) -> Tensor:
        heads = (*x.shape[:-1], -1, self.head_dim)
        query = self.q_proj(x).view(heads)  # [batch, seq, heads, head_dim]
        key = self.k_proj(x).view(heads)  # [batch, seq, kv_heads, head_dim]
        value = self.v_proj(x).view(heads).transpose(1, 2)
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
        return self.o_proj(mixed.reshape(*x.shape[:-1], -1))  # [batch, seq, hidden]


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate x) * up x). Source: arXiv 2002.05202."""

    def __init__(self, config: CairnConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = output_projection(config, config.intermediate_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    """Pre-norm attention and feed-forward, each added to the residual stream."""

    def __init__(self, config: CairnConfig, layer_idx: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, layer_idx)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, **kwargs: Any) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), **kwargs)
        return x + self.mlp(self.post_attention_layernorm(x))


class CairnPreTrainedModel(PreTrainedModel):
    config_class = CairnConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = False
    _no_split_modules = ["DecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.initializer_range
        if isinstance(module, nn.Linear | nn.Embedding):
            scale = getattr(module, "init_scale", 1.0)
            init.zeros_(module.weight) if scale == 0 else init.normal_(module.weight, mean=0.0, std=std * scale)
        elif isinstance(module, RMSNorm):
            init.ones_(module.weight)


class CairnModel(CairnPreTrainedModel):
    """The decoder without its output head."""

    def __init__(self, config: CairnConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Runs the layers.

        Args:
            input_ids: token ids [batch, seq], int64; or `inputs_embeds` [batch, seq, hidden].
            attention_mask: [batch, past + seq], 1 = real token, 0 = padding; or a 4-D mask.
            position_ids: [batch, seq]; None counts on from the cache.
            past_key_values: cache of earlier keys and values, updated in place.
            use_cache: make a cache if none is given. None follows the configuration, and is off while training.
            output_hidden_states: also return the stream before each layer and after the last norm.

        Raises:
            ValueError: both or neither of `input_ids` and `inputs_embeds` are given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        x = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if torch.is_autocast_enabled(x.device.type):  # keep the residual stream in the autocast type: half the traffic
            x = x.to(torch.get_autocast_dtype(x.device.type))
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            seen = past_key_values.get_seq_length() if past_key_values is not None else 0
            position_ids = torch.arange(seen, seen + x.shape[1], device=x.device)[None]
        mask = create_causal_mask(
            config=self.config, inputs_embeds=x, attention_mask=attention_mask,
            past_key_values=past_key_values, position_ids=position_ids,
        )
        rotary = rotary_tables(position_ids, self.config.head_dim, self.config.rope_theta, x.dtype)
        states = [x]
        for layer in self.layers:
            x = layer(
                x, rotary=rotary, attention_mask=mask, past_key_values=past_key_values,
                position_ids=position_ids, **kwargs,
            )
            states.append(x)
        x = self.norm(x)
        states[-1] = x
        return BaseModelOutputWithPast(
            last_hidden_state=x,
            past_key_values=past_key_values,
            hidden_states=tuple(states) if output_hidden_states else None,
        )


class CairnForCausalLM(CairnPreTrainedModel, GenerationMixin):
    """The decoder with its output head, tied to the embedding when the configuration says so."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: CairnConfig) -> None:
        super().__init__(config)
        self.model = CairnModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast | tuple:
        """Returns logits [batch, kept, vocab] and, with `labels` [batch, seq] (-100 = no target), the mean loss.

        Args:
            logits_to_keep: 0 = all positions; n = the last n; a tensor = those positions.
            (others): as in `CairnModel.forward`.
        """
        out = self.model(
            input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids,
            past_key_values=past_key_values, inputs_embeds=inputs_embeds, use_cache=use_cache, **kwargs,
        )
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(out.last_hidden_state[:, kept])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        result = CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=out.past_key_values, hidden_states=out.hidden_states
        )
        return result if return_dict is not False else result.to_tuple()
