"""Configuration of Cairn's decoder; this file travels inside every checkpoint.

    CairnConfig ── sizes and switches            checked here
                ├─ sharing       a mapping       checked by sharing.py
                ├─ byte_pooling  a mapping       checked by byte_config.py
                └─ early_exit    a mapping       checked by early_exit.py

Every fault of a configuration is in one error. A key that a checkpoint of an earlier version lacks has the value
that leaves the model as it was.
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig

__all__ = ["FEED_FORWARDS", "CairnConfig"]

FEED_FORWARDS = ("swiglu", "relu2")


class CairnConfig(PreTrainedConfig):
    """Shape and switches of a `CairnForCausalLM`.

    Args:
        vocab_size: rows of the embedding table.
        hidden_size: width of the residual stream.
        intermediate_size: inner width of the feed-forward layer.
        num_hidden_layers: decoder layers as they are run; layers that share weights count each time (each has keys and
            values of its own in the cache).
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
        hidden_dropout: dropout on what attention and feed-forward add to the residual stream while training; a
            schedule changes it with `CairnPreTrainedModel.set_hidden_dropout`.
        feed_forward: `swiglu` (three matrices), or `relu2`, down(relu(up x)^2) (two matrices: `intermediate_size` is
            half as big again at equal parameters).
        value_residual: every layer after the first mixes the values of the first layer into its own.
        logit_softcap: c of c * tanh(logits / c); None leaves the logits as they are.
        sharing: which layers share which weights, see `sharing.py`; None shares nothing but the embedding.
        byte_pooling: bytes pooled into patches around the decoder, see `byte_config.py`; None reads tokens.
        early_exit: layers after which the model may answer, see `early_exit.py`; None runs all.

    Raises:
        ValueError: a size is not positive, heads do not divide, `head_dim` is odd, a share is not in 0..1, or a
            mapping is not right.

    Source: RMSNorm arXiv 1910.07467; RoPE 2104.09864; grouped-query attention 2305.13245; SwiGLU 2002.05202;
        squared ReLU 2109.08668; QK-norm 2010.04245; value residual 2410.17897; logit softcap 2408.00118.
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
        hidden_dropout: float = 0.0,
        feed_forward: str = "swiglu",
        value_residual: bool = False,
        logit_softcap: float | None = None,
        sharing: dict[str, Any] | None = None,
        byte_pooling: dict[str, Any] | None = None,
        early_exit: dict[str, Any] | None = None,
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
        self.hidden_dropout = hidden_dropout
        self.feed_forward = feed_forward
        self.value_residual = value_residual
        self.logit_softcap = logit_softcap
        self.sharing = sharing
        self.byte_pooling = byte_pooling
        self.early_exit = early_exit
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
        faults += [
            f"{name} is {getattr(self, name)}, allowed: at least 0 and less than 1"
            for name in ("attention_dropout", "hidden_dropout")
            if not 0 <= getattr(self, name) < 1
        ]
        if self.feed_forward not in FEED_FORWARDS:
            faults.append(f"feed_forward is {self.feed_forward!r}, allowed: {', '.join(FEED_FORWARDS)}")
        if self.logit_softcap is not None and not self.logit_softcap > 0:
            faults.append(f"logit_softcap is {self.logit_softcap}, allowed: null, or more than 0")
        if not faults:
            if self.num_attention_heads % self.num_key_value_heads:
                faults.append(
                    f"num_key_value_heads is {self.num_key_value_heads}, allowed: a divisor of "
                    f"num_attention_heads ({self.num_attention_heads})"
                )
            if self.head_dim % 2:
                faults.append(f"head_dim is {self.head_dim}, allowed: an even number (rotary embedding turns pairs)")
            faults += self._faults_of_mappings()
        if faults:
            raise ValueError("the model cannot be built: " + "; ".join(faults))

    def _faults_of_mappings(self) -> list[str]:
        # Imported here: these files may themselves need the model, which needs this file.
        from .byte_config import byte_pooling_of
        from .early_exit import early_exit_of
        from .sharing import sharing_of

        checks = {
            "sharing": lambda given: sharing_of(given, self.num_hidden_layers),
            "byte_pooling": lambda given: byte_pooling_of(given, self.hidden_size),
            "early_exit": lambda given: early_exit_of(given, self.num_hidden_layers),
        }
        faults = []
        for name, check in checks.items():
            given = getattr(self, name)
            if isinstance(given, dict):
                try:
                    check(given)
                except ValueError as error:  # its text names the mapping and all faults in it
                    faults.append(str(error))
            elif given is not None:
                faults.append(f"{name} is {given!r}, allowed: null, or a mapping of settings")
        if self.early_exit is not None and self.byte_pooling is not None:
            faults.append("early_exit and byte_pooling are both set, allowed: one of them (a patch is many bytes: no "
                          "single byte can leave its layers early)")
        return faults
