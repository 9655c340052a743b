"""Cairn's decoder as a Hugging Face model; this file travels inside every checkpoint.

    input_ids [batch, seq] -> embed_tokens -> [batch, seq, hidden]
      N x  x = x + o_proj(attention(q_norm(Wq n), k_norm(Wk n), Wv n))    n = RMSNorm(x)
           x = x + down(silu(gate n) * up n)                              n = RMSNorm(x)
      RMSNorm -> lm_head (tied) -> logits [batch, seq, vocab]

A variant is a value of the configuration: layers may share weights (`sharing.py`), and another decoder may stand
between ids and head (`build_decoder`). `CairnModel.begin`, `run_layers` and `norm` are the forward pass in parts.

The parameter names are those of Llama (and of Qwen3 when `qk_norm` is on), so that a checkpoint can be exported
by renaming nothing. Rotary tables are computed in each forward pass from the configuration, never cached on a class:
several models of different shape live in one process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .configuration import CairnConfig
from .early_exit import ExitGate, early_exit_of
from .layers import DecoderLayer, RMSNorm, SoftcappedHead, rotary_tables
from .sharing import DeltaLinear, share_layers

__all__ = ["CairnForCausalLM", "CairnModel", "CairnPreTrainedModel", "LayerInputs", "build_decoder"]


@dataclass
class LayerInputs:
    """What the layers read beside the residual stream; made by `CairnModel.begin` for the positions of one pass.

    Args:
        rotary: cos and sin [batch, 1, seq, head_dim].
        attention_mask: what the attention function takes; None is plain causal attention.
        past_key_values: cache that each layer appends to; None keeps nothing.
        position_ids: [batch, seq].
        rest: further keywords for the attention function (packed and paged batches).
        first_value: the first layer's values [batch, kv_heads, seq, head_dim], once it has run.
    """

    rotary: tuple[Tensor, Tensor]
    attention_mask: Any
    past_key_values: Cache | None
    position_ids: Tensor
    rest: dict[str, Any]
    first_value: Tensor | None = None


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
            if isinstance(module, DeltaLinear):
                init.normal_(module.delta_down, mean=0.0, std=std)
                init.zeros_(module.delta_up)
        elif isinstance(module, RMSNorm):
            init.ones_(module.weight)
        elif isinstance(module, ExitGate):
            init.normal_(module.gate_in, mean=0.0, std=std)
            init.normal_(module.gate_out, mean=0.0, std=std)
        elif hasattr(module, "value_mix"):
            init.constant_(module.value_mix, 0.5)

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """Ties what is shared, as transformers does, and refuses a checkpoint that has several values for it.

        Raises:
            ValueError: layers that the configuration says share weights have weights of their own.
        """
        super().tie_weights(*args, **kwargs)
        for decoder in self.modules():
            if isinstance(decoder, CairnModel):
                for place, kept in decoder._tied_weights_keys.items():
                    if decoder.get_parameter(place) is not decoder.get_parameter(kept):
                        raise ValueError(
                            f"{place} and {kept} are shared by this configuration, and the checkpoint has two values "
                            "for them. Allowed: the `sharing` that the checkpoint was trained with"
                        )

    def set_hidden_dropout(self, share: float) -> None:
        """Sets the dropout of every decoder layer; the configuration keeps what the model began with.

        Raises:
            ValueError: `share` is not in 0..1 (1 excluded).
        """
        if not 0 <= share < 1:
            raise ValueError(f"hidden_dropout is {share}, allowed: at least 0 and less than 1")
        for module in self.modules():
            if isinstance(module, DecoderLayer):
                module.hidden_dropout = share


class CairnModel(CairnPreTrainedModel):
    """The decoder without its output head; `output_size` is the width of what it returns."""

    def __init__(self, config: CairnConfig) -> None:
        super().__init__(config)
        self.output_size = config.hidden_size
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, index) for index in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        exits = early_exit_of(config.early_exit, config.num_hidden_layers)
        if exits.norm == "own":
            self.exit_norms = nn.ModuleDict(
                {str(layer): RMSNorm(config.hidden_size, config.rms_norm_eps) for layer in exits.layers}
            )
        if exits.gate:
            self.exit_gates = nn.ModuleDict({str(layer): ExitGate(config.hidden_size) for layer in exits.layers})
        self._tied_weights_keys = share_layers(self.layers, config.sharing)  # place of a weight -> where it is kept
        self.post_init()

    def get_expanded_tied_weights_keys(self, all_submodels: bool = False) -> dict[str, str]:
        """Returns the shared weights of the layers; transformers forgets them where embedding and head are not tied."""
        if all_submodels:
            return super().get_expanded_tied_weights_keys(all_submodels=True)
        return dict(self._tied_weights_keys)

    def begin(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, LayerInputs]:
        """Returns the stream before the first layer [batch, seq, hidden] and what the layers read beside it.

        Args:
            (all): as in `forward`.

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
        return x, LayerInputs(rotary, mask, past_key_values, position_ids, kwargs)

    def run_layers(
        self, x: Tensor, inputs: LayerInputs, start: int = 0, stop: int | None = None,
        states: list[Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        """Runs the layers start..stop-1 and returns the stream after them [batch, seq, hidden], not normed.

        Args:
            x: the stream before layer `start` [batch, seq, hidden].
            inputs: from `begin` for the same positions; changed in place by the first layer.
            stop: first layer that is not run; None runs to the last.
            states: takes the stream after each layer.
        """
        for layer in list(self.layers)[start:stop]:  # slicing a ModuleList builds a new one
            x, value = layer(
                x, rotary=inputs.rotary, attention_mask=inputs.attention_mask,
                past_key_values=inputs.past_key_values, position_ids=inputs.position_ids,
                first_value=inputs.first_value, **inputs.rest,
            )
            if self.config.value_residual and layer.self_attn.layer_idx == 0:
                inputs.first_value = value
            if states is not None:
                states.append(x)
        return x

    def norm_after(self, layers: int) -> RMSNorm:
        """Returns the norm before the output head after so many layers (see `early_exit.py`)."""
        own = getattr(self, "exit_norms", {})
        return own[str(layers)] if str(layers) in own else self.norm

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        exit_layer: int | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Runs all layers, or the first ones.

        Args:
            input_ids: token ids [batch, seq], int64; or `inputs_embeds` [batch, seq, hidden].
            attention_mask: [batch, past + seq], 1 = real token, 0 = padding; or a 4-D mask.
            position_ids: [batch, seq]; None counts on from the cache.
            past_key_values: cache of earlier keys and values, updated in place.
            use_cache: make a cache if none is given. None follows the configuration, and is off while training.
            output_hidden_states: also return the stream before each layer and after the last norm.
            exit_layer: answer after so many layers; None runs all. Later layers keep nothing in the cache.

        Raises:
            ValueError: both or neither of `input_ids` and `inputs_embeds` are given; or `exit_layer` is not in 1 to
                the number of layers.
        """
        if exit_layer is not None and not 1 <= exit_layer <= len(self.layers):
            raise ValueError(f"exit_layer is {exit_layer}, allowed: 1 to {len(self.layers)}")
        x, inputs = self.begin(
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, use_cache, **kwargs
        )
        states = [x] if output_hidden_states else None
        stop = len(self.layers) if exit_layer is None else exit_layer
        x = self.norm_after(stop)(self.run_layers(x, inputs, stop=stop, states=states))
        if states is not None:
            states[-1] = x
        return BaseModelOutputWithPast(
            last_hidden_state=x,
            past_key_values=inputs.past_key_values,
            hidden_states=None if states is None else tuple(states),
        )


def build_decoder(config: CairnConfig) -> CairnPreTrainedModel:
    """Returns what stands between ids and output head: ids [batch, seq] -> last_hidden_state [batch, seq, output_size].

    Everything that it returns has `embed_tokens`, `output_size` and the forward arguments of `CairnModel`.
    """
    if config.byte_pooling is not None:
        from .byte_pooling import BytePooledModel

        return BytePooledModel(config)
    return CairnModel(config)


class CairnForCausalLM(CairnPreTrainedModel, GenerationMixin):
    """The decoder with its output head, tied to the embedding when the configuration says so."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: CairnConfig) -> None:
        super().__init__(config)
        self.model = build_decoder(config)
        width, cap = self.model.output_size, config.logit_softcap
        self.lm_head = (
            SoftcappedHead(width, config.vocab_size, cap) if cap else nn.Linear(width, config.vocab_size, bias=False)
        )
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
