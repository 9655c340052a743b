"""Tiny byte-pooled models for tests: 2 core layers, 32 wide, one local layer on each side, and large weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cairn.models import CairnConfig, CairnForCausalLM
from cairn.models.tokenization import byte_ids

RULES = ("fixed", "space", "entropy", "learned", "bpe", "none")
TEXT = "The cat, naïve 🙂 & 12 owls; ran home.\n\x00 Ω of them"
_LOCAL = {"local_size": 16, "local_heads": 2, "encoder_layers": 1, "decoder_layers": 1, "window": 5, "stride": 3}


def byte_model(
    rule: str = "space", seed: int = 0, *, core: dict[str, Any] | None = None, **pooling: Any
) -> CairnForCausalLM:
    """Returns a model in evaluation mode whose fitted tables, if its rule has one, cut at a third of the contexts."""
    torch.manual_seed(seed)
    local = {} if rule == "none" else _LOCAL
    shape = {
        "vocab_size": 259, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "initializer_range": 0.3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    }  # fmt: skip
    model = CairnForCausalLM(
        CairnConfig(**{**shape, **(core or {}), "byte_pooling": {"rule": rule, **local, **pooling}})
    ).eval()
    if rule != "none":
        model.model.before_first.data.normal_()
    if rule in ("entropy", "bpe"):
        table = model.model.rule.table
        table.copy_((torch.rand(table.shape, generator=torch.Generator().manual_seed(1)) < 0.35).to(torch.uint8))
    return model


def rows(count: int = 3, text: str = TEXT, seed: int = 1) -> Tensor:
    """Returns ids [count, seq]: the text, and random bytes of the same length, each behind a beginning mark."""
    ids = torch.tensor([[1, *byte_ids(text.encode())]]).repeat(count, 1)
    noise = torch.randint(3, 259, ids.shape, generator=torch.Generator().manual_seed(seed))
    ids[1:, 1:] = noise[1:, 1:]
    return ids
