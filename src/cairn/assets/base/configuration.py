"""Configuration of Cairn's decoder; this file travels inside every checkpoint."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

__all__ = ["CairnConfig"]


class CairnConfig(PreTrainedConfig):
    """Shape and switches of a `CairnForCausalLM`.

    Args:
        vocab_size: rows of the embedding table.
        hidden_size: width of the residual stream.
        intermediate_size: inner width of the SwiGLU feed-forward layer.
        num_hidden_layers: decoder layers.
        num_attention_heads: query heads.
        num_key_value_heads: key and value heads; divides `num_attention_heads`. None means as many as queries.
        head_dim: width of one head, even. None means `hidden_size // num_attention_heads`.
        max_position_embeddings: longest sequence the model is meant for, in tokens.
        rope_theta: base wavelength of the rotary position embedding.
        rms_norm_eps: epsilon inside RMSNorm.
        qk_norm: RMSNorm on every query and key head before the rotation.
        tie_word_embeddings: one matrix for input embedding and output head.
        initializer_range: standard deviation of the normal initialisation.
        zero_init_projections: start attention output and feed-forward output at zero, so that every layer begins
            as the identity; otherwise they start at `initializer_range / sqrt(2 * num_hidden_layers)`.
        attention_dropout: dropout on attention weights while training.

    Raises:
        ValueError: a size is not positive, heads do not divide, or `head_dim` is odd.

    Source: RMSNorm arXiv 1910.07467; RoPE 2104.09864; grouped-query attention 2305.13245; SwiGLU 2002.05202;
        QK-norm 2010.04245.
    """

    model_type = "cairn"
    keys_to_ignore_at_inference = ["past_key_values"]

    def __init__(
        self,
        *,
        vocab_size: int = 4096,
        hidden_size: int = 256,
        intermediate_size: int = 608,
        num_hidden_layers: int = 10,
        num_attention_heads: int = 8,
        num_key_value_heads: int | None = 4,
        head_dim: int | None = None,
        max_position_embeddings: int = 1024,
        rope_theta: float = 10000.0,
        rms_norm_eps: float = 1e-6,
        qk_norm: bool = False,
        tie_word_embeddings: bool = True,
        initializer_range: float = 0.02,
        zero_init_projections: bool = False,
        attention_dropout: float = 0.0,
        use_cache: bool = True,
        pad_token_id: int | None = 0,
        bos_token_id: int | None = 1,
        eos_token_id: int | list[int] | None = 2,
        **kwargs: Any,
    ) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.intermediate_size = intermediate_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.num_key_value_heads = num_attention_heads if num_key_value_heads is None else num_key_value_heads
        self.head_dim = hidden_size // num_attention_heads if head_dim is None else head_dim
        self.max_position_embeddings = max_position_embeddings
        self.rope_theta = rope_theta
        self.rms_norm_eps = rms_norm_eps
        self.qk_norm = qk_norm
        self.initializer_range = initializer_range
        self.zero_init_projections = zero_init_projections
        self.attention_dropout = attention_dropout
        self.use_cache = use_cache
        self._check()
        super().__init__(
            tie_word_embeddings=tie_word_embeddings,
            pad_token_id=pad_token_id,
            bos_token_id=bos_token_id,
            eos_token_id=eos_token_id,
            **kwargs,
        )

    def _check(self) -> None:
        faults = [
            f"{name} is {getattr(self, name)}, allowed: a whole number of at least 1"
            for name in (
                "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                "num_key_value_heads", "head_dim", "max_position_embeddings",
            )
            if not isinstance(getattr(self, name), int) or getattr(self, name) < 1
        ]
        if not faults:
            if self.num_attention_heads % self.num_key_value_heads:
                faults.append(
                    f"num_key_value_heads is {self.num_key_value_heads}, allowed: a divisor of "
                    f"num_attention_heads ({self.num_attention_heads})"
                )
            if self.head_dim % 2:
                faults.append(f"head_dim is {self.head_dim}, allowed: an even number (rotary embedding turns pairs)")
        if faults:
            raise ValueError("CairnConfig: " + "; ".join(faults))
