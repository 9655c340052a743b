"""Byte-level input with pooling: a model over bytes whose core sees patches; this file travels inside checkpoints.

    ids [batch, seq] -> bytes (+ hashed n-grams) -> local encoder ---------------+ [batch, seq, local]
                                                        |  rule: where patches end | byte residual
                                                     pooling                       |
                                                        |  [batch, patches, local] |
                                                  core (CairnModel)                |
                                                        |  to the bytes from the patch's end on
                                                        +------------------------->+
                                                                    local decoder -> [batch, seq, local] -> head

    byte      <bos>  T   h   e   _   c   a   t   _        a patch that ends with byte t is read by the core at t,
    patch        0   1   1   1   1   2   2   2   2        and helps to predict byte t + 1 and those after it;
    reads     z0 z0  z0  z0  z0  z1  z1  z1  z1  z2       inside a patch the local layers go on byte by byte

Training, scoring and decoding run the same lines: a call without a cache is one that starts with nothing carried on.
Nothing at a position depends on later bytes, and padding is never pooled, attended to or counted.

Source: arXiv 2405.14159 (pooled bytes), 2404.14408, 2412.09871 and 2507.07955 (causal patches).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPast

from .byte_cache import PatchView, byte_layers, last_real
from .byte_config import BYTE_VOCABULARY, PAD_ID, byte_pooling_of
from .byte_layers import LocalLayer, NgramEmbedding, PatchPooling, smoothed, window_bias
from .byte_rules import PatchRule
from .configuration import CairnConfig
from .layers import RMSNorm, rotary_tables
from .modeling import CairnModel, CairnPreTrainedModel

__all__ = ["BytePooledModel", "BytePooledOutput"]

_PACKED = ("cu_seq_lens_q", "cu_seq_lens_k", "block_table", "read_index", "write_index", "cache")


@dataclass
class BytePooledOutput(BaseModelOutputWithPast):
    """What the model returns beside the last states.

    Args:
        aux_loss: weighted ratio loss of the learned rule, a mean over the bytes; None with other rules.
        patch_ends: last bytes of patches [batch, seq], bool; None with rule "none".
    """

    aux_loss: Tensor | None = None
    patch_ends: Tensor | None = None


class BytePooledModel(CairnPreTrainedModel):
    """A decoder over bytes whose core runs once per patch; `output_size` is the width of what it returns.

    After a forward pass of the training, `aux_loss` holds the ratio loss of that pass (None with other rules), which
    the objective adds to the mean loss per byte.

    Args:
        config: with `byte_pooling`; all other sizes are the core's.

    Raises:
        ValueError: the vocabulary is not that of bytes.
    """

    def __init__(self, config: CairnConfig) -> None:
        super().__init__(config)
        if config.vocab_size != BYTE_VOCABULARY:
            raise ValueError(
                f"byte_pooling needs vocab_size {BYTE_VOCABULARY} (3 marks and 256 bytes), not {config.vocab_size}; "
                "next: use the tokenizer of models.tokenization.byte_tokenizer"
            )
        settings = byte_pooling_of(config.byte_pooling, config.hidden_size)
        config.byte_pooling = {**asdict(settings), "ngram_sizes": list(settings.ngram_sizes)}  # saved with all defaults
        self.settings = settings
        self.output_size = size = settings.local_size
        self.embed_tokens = nn.Embedding(config.vocab_size, size)
        if settings.ngram_sizes:
            self.ngrams = NgramEmbedding(settings)
        if not settings.flat:
            local = _local_config(config)
            self.local_encoder = nn.ModuleList(
                LocalLayer(local, settings.window) for _ in range(settings.encoder_layers)
            )
            self.rule = PatchRule(settings)
            self.pooling = PatchPooling(settings, config.rms_norm_eps)
            self.to_core = nn.Linear(size, config.hidden_size, bias=False)
            self.from_core = nn.Linear(config.hidden_size, size, bias=False)
            self.before_first = nn.Parameter(torch.zeros(size))
            self.local_decoder = nn.ModuleList(
                LocalLayer(local, settings.window) for _ in range(settings.decoder_layers)
            )
            self.norm = RMSNorm(size, config.rms_norm_eps)
        self.core = CairnModel(config)
        self.core.embed_tokens = None  # its positions are patches
        self.aux_loss: Tensor | None = None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PatchRule):
            if self.settings.rule == "learned":  # similar neighbours then begin inside one patch
                init.copy_(module.query.weight, torch.eye(self.settings.local_size))
                init.copy_(module.key.weight, torch.eye(self.settings.local_size))
        elif isinstance(module, BytePooledModel) and not self.settings.flat:
            init.zeros_(module.before_first)

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
    ) -> BytePooledOutput:
        """Runs encoder, core and decoder.

        Args:
            input_ids: byte ids [batch, seq], int64.
            attention_mask: [batch, past + seq], 1 = real byte, 0 = padding, on either side or between.
            position_ids: not needed, positions are counted; only looked at to refuse packed rows.
            past_key_values: an empty DynamicCache or one of this model, updated in place.
            use_cache: make a cache if none is given. None follows the configuration, and is off while training.
            output_hidden_states: also return the stream of bytes after the encoder and after the last norm.

        Raises:
            ValueError: there are no ids, embeddings instead of ids, packed rows, or a mask that is not 2-D.
        """
        self._refuse(input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, kwargs)
        length = input_ids.shape[1]
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        layers: list[Any] = []
        if past_key_values is not None:
            layers = byte_layers(past_key_values, self.settings, self.config.num_hidden_layers)
        state = layers[0] if layers else None
        carried = state.rows if state is not None else {}
        kept = order = count = None  # padding goes behind each row's bytes: the past then ends where they begin
        ids = input_ids
        if attention_mask is not None and not bool(attention_mask[:, -length:].all()):
            kept, order = attention_mask[:, -length:].bool().sort(dim=1, descending=True, stable=True)
            count = kept.sum(1)
            ids = torch.where(kept, ids.gather(1, order), PAD_ID)
        before = carried["ids"] if carried else ids.new_full((len(ids), self.settings.history), PAD_ID)
        known = torch.cat((before, ids), dim=1)  # [batch, history + seq]
        x = self.embed_tokens(ids)
        if self.settings.ngram_sizes:
            x = x + self.ngrams(known, length)
        if torch.is_autocast_enabled(x.device.type):  # keep the stream in the autocast type: half the traffic
            x = x.to(torch.get_autocast_dtype(x.device.type))
        back = order.argsort(dim=1) if order is not None else None
        if self.settings.flat:
            result, rows = self._flat(_placed(x, back), layers, attention_mask, kwargs), {}
        else:
            result, rows = self._pooled(x, known, kept, count, layers, kwargs)
            result.last_hidden_state = _placed(result.last_hidden_state, back)
            result.patch_ends = _placed(result.patch_ends, back)
            result.hidden_states = tuple(_placed(states, back) for states in result.hidden_states)
        if state is not None:
            state.rows = {**rows, "ids": last_real(known, before.shape[1], count)}
            state.seen += length
            state.is_initialized = True
        self.aux_loss = result.aux_loss if self.training and torch.is_grad_enabled() else None
        result.past_key_values = past_key_values
        if not output_hidden_states:
            result.hidden_states = None
        return result

    def _flat(self, x: Tensor, layers: list[Any], mask: Tensor | None, kwargs: dict[str, Any]) -> BytePooledOutput:
        """Every byte is a position of the core."""
        x = self.core(
            inputs_embeds=x, attention_mask=mask, past_key_values=Cache(layers=layers[1:]) if layers else None,
            position_ids=None if mask is None else (mask.cumsum(1) - 1).clamp(min=0)[:, -x.shape[1] :],
            use_cache=False, **kwargs,
        ).last_hidden_state  # fmt: skip
        return BytePooledOutput(last_hidden_state=x, hidden_states=(x,))

    def _pooled(
        self, x: Tensor, known: Tensor, kept: Tensor | None, count: Tensor | None, layers: list[Any],
        kwargs: dict[str, Any],
    ) -> tuple[BytePooledOutput, dict[str, Tensor]]:  # fmt: skip
        """Encoder, rule, pooling, core and decoder; returns what the next call needs beside the result.

        Args:
            x: embeddings [batch, seq, local], a row's padding behind its bytes.
            known: their ids and those before, [batch, history + seq].
            kept: no padding, [batch, seq], bool; None is all.
            count: bytes of each row that are no padding, [batch]; None is all.
            layers: of the cache; empty without one.
        """
        settings, length = self.settings, x.shape[1]
        carried = layers[0].rows if layers else {}
        encoder_caches, decoder_caches = layers[1 : 1 + settings.encoder_layers], layers[-settings.decoder_layers :]
        padding = known[:, -length - 1 :] == PAD_ID
        real = ~(padding[:, 1:] & padding[:, :-1])  # unmasked padding in a row is one mark, as few patches as can be
        real = real if kept is None else real & kept
        there = kept if kept is not None else torch.ones_like(real)
        seen = there.cumsum(1) + (carried["count"][:, None] if carried else 0)  # bytes up to here, this one included
        past = carried["there"] if carried else real.new_zeros(len(real), settings.window)
        there = torch.cat((past, there), dim=1)  # [batch, window + seq]
        bias = window_bias(there[:1] if not carried and kept is None else there, settings.window, x.dtype)
        head_dim = settings.local_size // settings.local_heads
        rotary = rotary_tables((seen - 1).clamp(min=0), head_dim, self.config.rope_theta, x.dtype)

        residual = x
        for place, layer in enumerate(self.local_encoder):
            x = layer(x, rotary, bias, encoder_caches[place] if layers else None, count)
        ends, chance, rule_state = self.rule(known, real, x, carried, count)
        reads = ends.cumsum(1)  # [batch, seq], patches that have ended: a byte reads the last of them
        most = reads[:, -1].max()
        if torch.compiler.is_compiling():  # every number of patches would be compiled anew
            most = (most + 31) // 32 * 32
        patches = int(most)
        sums = {name: carried[f"open_{name}"] for name in ("sum", "weight")} if carried else {}
        pooled, left = self.pooling(x, real, ends, patches, sums)
        first = carried["last"] if carried else self.before_first.to(x.dtype).expand(len(x), -1)
        core = self._core(pooled, reads[:, -1], layers, kwargs)  # [batch, patches, local]
        if chance is not None and patches:
            core = smoothed(core, _of_patches(chance, ends, reads, patches), first)
        table = torch.cat((first[:, None], core), dim=1)  # [batch, 1 + patches, local]
        row = torch.arange(len(x), device=x.device) * (1 + patches)
        flat = table.flatten(0, 1)
        read = flat.index_select(0, (row[:, None] + reads).flatten()).view(len(x), length, -1)
        if chance is not None:  # in value one, in gradient the confidence of the decision
            sure = torch.where(ends, chance, 1 - chance)[..., None]
            read = read * (sure + (1 - sure).detach()).to(read.dtype)
        encoded = x
        x = (x if settings.byte_residual else residual) + read
        for place, layer in enumerate(self.local_decoder):
            x = layer(x, rotary, bias, decoder_caches[place] if layers else None, count)
        x = self.norm(x)
        result = BytePooledOutput(
            last_hidden_state=x, hidden_states=(encoded, x), patch_ends=ends,
            aux_loss=self._ratio_loss(ends, chance, real) if chance is not None else None,
        )  # fmt: skip
        if not layers:
            return result, {}
        held = carried["patches"] if carried else torch.zeros_like(reads[:, -1])
        return result, {
            **rule_state, "count": seen[:, -1], "there": last_real(there, settings.window, count),
            "last": flat[row + reads[:, -1]], "patches": held + reads[:, -1],
            "open_sum": left["sum"], "open_weight": left["weight"],
        }  # fmt: skip

    def _core(self, pooled: Tensor, new: Tensor, layers: list[Any], kwargs: dict[str, Any]) -> Tensor:
        """Runs the core over the patches that ended in this call.

        Args:
            pooled: [batch, patches, local], a row's own patches first.
            new: how many of them are a row's own, [batch].
            layers: of the cache; empty without one.

        Returns:
            [batch, patches, local], any numbers behind a row's last patch.
        """
        batch, patches, _ = pooled.shape
        if not patches:
            return pooled
        if not layers:  # a row's surplus stands behind its own patches, where nothing looks
            x = self.core(inputs_embeds=self.to_core(pooled), use_cache=False, **kwargs).last_hidden_state
            return self.from_core(x)
        carried = layers[0].rows
        held = carried["patches"] if carried else torch.zeros_like(new)
        rows = None if bool((new > 0).all()) else new.nonzero()[:, 0]
        chosen, starts = (pooled, held) if rows is None else (pooled[rows], held[rows])
        positions = starts[:, None] + torch.arange(patches, device=pooled.device)  # [rows, patches]
        mask = None
        if bool((starts > 0).any()):
            keys = torch.arange(int(starts.max()) + patches, device=pooled.device)
            mask = (keys <= positions[:, :, None])[:, None]  # [rows, 1, patches, keys]
            if self.config._attn_implementation == "eager":
                lowest = torch.finfo(chosen.dtype).min
                mask = torch.zeros(mask.shape, dtype=chosen.dtype, device=mask.device).masked_fill_(~mask, lowest)
        place = 1 + self.settings.encoder_layers
        view = PatchView(layers[place : len(layers) - self.settings.decoder_layers], batch, rows, starts)
        x = self.core(
            inputs_embeds=self.to_core(chosen), attention_mask=mask, position_ids=positions, past_key_values=view,
            use_cache=False, **kwargs,
        ).last_hidden_state  # fmt: skip
        x = self.from_core(x)
        return x if rows is None else x.new_zeros(batch, patches, x.shape[-1]).index_copy(0, rows, x)

    def _ratio_loss(self, ends: Tensor, chance: Tensor, real: Tensor) -> Tensor:
        """Returns the weighted loss that draws the share of ends towards one in `stride` bytes.

        Source: ratio loss, arXiv 2507.07955, section 2.2.
        """
        number, stride = real.sum().clamp(min=1), self.settings.stride
        share, mean = ends.sum() / number, (chance * real).sum() / number
        loss = stride / (stride - 1) * ((stride - 1) * share * mean + (1 - share) * (1 - mean))
        return self.settings.ratio_weight * loss

    def _refuse(
        self, ids: Tensor | None, mask: Tensor | None, positions: Tensor | None, cache: Any, embeds: Any, kwargs: Any
    ) -> None:
        """Raises for inputs that would give wrong numbers without an error."""
        if ids is None or embeds is not None:
            raise ValueError("a byte-pooled model needs input_ids, not inputs_embeds: its patches follow the bytes")
        if not ids.shape[1]:
            raise ValueError("input_ids is empty, allowed: at least one id (the beginning mark of an empty text)")
        packed = [name for name in _PACKED if kwargs.get(name) is not None]
        if positions is not None and mask is None and cache is None and ids.shape[1] > 1:
            packed += ["position_ids that do not count on"] if bool((positions.diff(dim=-1) != 1).any()) else []
        if packed:
            raise ValueError(
                f"a byte-pooled model reads one sequence per row, not packed ones ({packed[0]}); next: pad the rows, "
                "and decode with generate() instead of continuous batching"
            )
        if mask is not None and mask.ndim != 2:
            raise ValueError(f"attention_mask has {mask.ndim} dimensions, allowed: 2 (patches are made from it)")


def _placed(x: Tensor, back: Tensor | None) -> Tensor:
    """Returns x [batch, seq, ...] in the order of the input."""
    if back is None:
        return x
    return x.gather(1, back.view(*back.shape, *(1,) * (x.ndim - 2)).expand_as(x))


def _of_patches(values: Tensor, ends: Tensor, reads: Tensor, patches: int) -> Tensor:
    """Returns values [batch, seq] at the last byte of each patch, [batch, patches]; 1 behind a row's last patch."""
    place = torch.where(ends, reads - 1, patches)  # bytes that end nothing go into a column that is dropped
    return values.new_ones(len(values), patches + 1).scatter(1, place, values)[:, :patches]


def _local_config(config: CairnConfig) -> CairnConfig:
    """Returns the configuration of a local layer: the core's switches in the local size."""
    settings = byte_pooling_of(config.byte_pooling, config.hidden_size)
    return CairnConfig(
        hidden_size=settings.local_size, intermediate_size=settings.local_inner,
        num_hidden_layers=config.num_hidden_layers + settings.encoder_layers + settings.decoder_layers,
        num_attention_heads=settings.local_heads, num_key_value_heads=None, qk_norm=config.qk_norm,
        rms_norm_eps=config.rms_norm_eps, zero_init_projections=config.zero_init_projections,
        feed_forward=config.feed_forward,
    )  # fmt: skip
