"""Named shapes of the decoder, from 1M to 100M parameters, and the shape of the shipped base.

Deep and thin with grouped-query attention and a tied head, vocabulary 4,096 up to 10M (where a bigger table would
eat the layers) and 8,192 or more above.
"""

from __future__ import annotations

import difflib
from typing import Any

from cairn.models.configuration import CairnConfig

__all__ = ["PRESETS", "preset_config"]

_TINY = {"vocab_size": 4096, "qk_norm": True, "zero_init_projections": True}

PRESETS: dict[str, dict[str, Any]] = {
    "1m": {**_TINY, "vocab_size": 2048, "hidden_size": 128, "intermediate_size": 320, "num_hidden_layers": 5,
           "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512},
    "5m": {**_TINY, "hidden_size": 224, "intermediate_size": 576, "num_hidden_layers": 8,
           "num_attention_heads": 7, "num_key_value_heads": 7, "max_position_embeddings": 1024},
    "base": {**_TINY, "hidden_size": 256, "intermediate_size": 736, "num_hidden_layers": 8,
             "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 1024},
    "10m": {**_TINY, "hidden_size": 320, "intermediate_size": 832, "num_hidden_layers": 8,
            "num_attention_heads": 10, "num_key_value_heads": 5, "max_position_embeddings": 1024},
    "50m": {**_TINY, "vocab_size": 8192, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 13,
            "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 2048},
    "100m": {**_TINY, "vocab_size": 16384, "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 14,
             "num_attention_heads": 12, "num_key_value_heads": 4, "max_position_embeddings": 2048},
}


def preset_config(name: str, **changes: Any) -> CairnConfig:
    """Builds the configuration of a preset.

    Args:
        name: a key of `PRESETS`.
        changes: fields of `CairnConfig` that differ from the preset.

    Raises:
        ValueError: no such preset, or an unknown field in `changes`.
    """
    if name not in PRESETS:
        close = difflib.get_close_matches(name, PRESETS, n=1, cutoff=0.3)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ValueError(f"unknown preset {name!r}{hint}, allowed: {', '.join(PRESETS)}")
    known = set(vars(CairnConfig()))
    unknown = sorted(set(changes) - known)
    if unknown:
        close = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        raise ValueError(f"unknown model field {unknown[0]!r}{hint}")
    return CairnConfig(**{**PRESETS[name], **changes})
