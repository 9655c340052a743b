"""Settings of byte-level input with pooling, their checks, and what it costs; this file travels inside checkpoints.

    CairnConfig.byte_pooling = {"rule": "space", "stride": 6, ...}   None: every token is a position of the core

The sizes of `CairnConfig` are the core's; those of the local layers around it stand here.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

__all__ = ["BYTE_VOCABULARY", "FIRST_BYTE", "PAD_ID", "RULES", "BytePooling", "byte_parameters", "byte_pooling_of"]

PAD_ID = 0
FIRST_BYTE = 3  # 0 padding, 1 beginning, 2 end, then the 256 bytes
BYTE_VOCABULARY = FIRST_BYTE + 256

RULES = ("fixed", "space", "entropy", "learned", "bpe", "none")
_POOLINGS = ("mean", "attention", "last")
_LOOKS_AHEAD = ("tokenizer", "token", "word", "regex", "gpt2")
_HIGHEST = {"ngram_sizes": 16, "table_order": 8, "table_rows": 1 << 24, "ngram_rows": 1 << 24}


@dataclass(frozen=True)
class BytePooling:
    """How bytes become positions of the core, and positions bytes again.

    Args:
        rule: where a patch ends, judged from the bytes up to there alone: "fixed" after every `stride` bytes; "space"
            after the first byte of a run of white space and marks; "entropy" where a small byte model is unsure of the
            next byte; "learned" where the local encoder's states turn; "bpe" where a BPE token most likely ends; "none"
            makes every byte a position (the flat control, which may have n-gram tables too).
        stride: mean bytes per patch: exact for "fixed", fitted on text for "entropy" and "bpe", the aim of the ratio
            loss for "learned", without effect for "space".
        max_patch: longest patch in bytes; None is `stride` for "fixed" and four times as much for the others.
        pooling: "mean" of the patch's bytes, "attention" with learned queries, or "last", the last byte's state.
        pooling_heads: queries of the attention pooling.
        local_size: width of the local encoder and decoder, and of the byte embedding.
        local_heads: attention heads of the local layers.
        local_inner: inner width of their feed-forward layers; None is 8/3 of `local_size`, rounded up to 16.
        encoder_layers, decoder_layers: local layers before the pooling and after the core.
        window: bytes that a local layer looks back, its own byte included.
        byte_residual: the local decoder starts from the encoder's state of each byte; otherwise from its embedding.
        ngram_sizes: lengths of byte n-grams that are hashed into embeddings and added to the byte's; empty for none.
        ngram_rows: rows of each n-gram table.
        table_order: bytes that the tables of "entropy" and "bpe" look back.
        table_rows: rows of that table.
        bpe_vocab: entries of the BPE whose token ends the "bpe" rule follows.
        ratio_weight: weight of the ratio loss of "learned".

    Raises:
        ValueError: see `byte_pooling_of`, which names all faults at once.

    Source: space arXiv 2404.14408, section 3; entropy and hashed n-grams 2412.09871, sections 2.3 and 3.2.1; learned
        2507.07955, section 2.2; bounding boxes of a BPE 2405.14159 (there looking ahead).
    """

    rule: str = "space"
    stride: int = 6
    max_patch: int | None = None
    pooling: str = "mean"
    pooling_heads: int = 4
    local_size: int = 128
    local_heads: int = 4
    local_inner: int | None = None
    encoder_layers: int = 2
    decoder_layers: int = 2
    window: int = 32
    byte_residual: bool = True
    ngram_sizes: tuple[int, ...] = ()
    ngram_rows: int = 4096
    table_order: int = 3
    table_rows: int = 1 << 16
    bpe_vocab: int = 4096
    ratio_weight: float = 0.03

    @property
    def flat(self) -> bool:
        """Whether every byte is a position of the core."""
        return self.rule == "none"

    @property
    def fitted(self) -> bool:
        """Whether the rule follows a table that is counted from text."""
        return self.rule in ("entropy", "bpe")

    @property
    def history(self) -> int:
        """Ids before a byte that the rules and n-grams look at."""
        return max(1, *(size - 1 for size in self.ngram_sizes), self.table_order - 1 if self.fitted else 1)


def byte_pooling_of(given: Mapping[str, Any], hidden_size: int) -> BytePooling:
    """Returns checked settings, derived values filled in.

    Args:
        given: fields of `BytePooling`.
        hidden_size: width of the core.

    Raises:
        ValueError: fields are unknown or out of range; all faults in one text.
    """
    known = [field.name for field in fields(BytePooling)]
    faults = [_unknown(name, known) for name in given if name not in known]
    values = {name: value for name, value in given.items() if name in known}
    if isinstance(values.get("ngram_sizes"), list | tuple):
        values["ngram_sizes"] = tuple(values["ngram_sizes"])
    if values.get("rule") == "none":  # nothing is local: the core reads the bytes itself
        for name, value in (("local_size", hidden_size), ("encoder_layers", 0), ("decoder_layers", 0)):
            if values.setdefault(name, value) != value:
                faults.append(f"{name} is {values[name]!r}, allowed: {value} with rule 'none', or leave it out")
    settings = BytePooling(**values)
    faults += _faults(settings)
    if faults:
        raise ValueError("byte_pooling: " + "; ".join(faults))
    derived = {
        "max_patch": settings.max_patch or (settings.stride if settings.rule == "fixed" else 4 * settings.stride),
        "local_inner": settings.local_inner or -(-settings.local_size * 8 // 48) * 16,
    }
    return BytePooling(**{**asdict(settings), **derived})


def _unknown(name: str, known: list[str]) -> str:
    if name in ("tokenizer", "boundaries", "look_ahead"):
        return (
            f"{name} is no field: the boundaries of a tokenizer depend on bytes to come, so a model trained on them "
            "sees the future; allowed: rule 'bpe', which predicts them from the past"
        )
    close = difflib.get_close_matches(name, known, n=1)
    return f"unknown field {name!r}" + (f" (did you mean {close[0]}?)" if close else "")


def _faults(settings: BytePooling) -> list[str]:
    faults = []
    for name, allowed in (("rule", RULES), ("pooling", _POOLINGS)):
        value = getattr(settings, name)
        if value not in allowed:
            why = " (it looks ahead: rule 'bpe' predicts its boundaries from the past)" if value in _LOOKS_AHEAD else ""
            faults.append(f"{name} is {value!r}{why}, allowed: {', '.join(allowed)}")
    lowest = {
        "stride": 1, "pooling_heads": 1, "local_size": 1, "local_heads": 1, "encoder_layers": 0, "window": 1,
        "decoder_layers": 0 if settings.flat else 1, "ngram_rows": 1, "table_order": 1, "table_rows": 1,
        "bpe_vocab": 320,
    }  # fmt: skip
    lowest |= {name: 1 for name in ("max_patch", "local_inner") if getattr(settings, name) is not None}
    for name, least in lowest.items():
        value = getattr(settings, name)
        most = _HIGHEST.get(name, 1 << 40)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            limit = f" and at most {most}" if name in _HIGHEST else ""
            faults.append(f"{name} is {value!r}, allowed: a whole number of at least {least}{limit}")
    sizes, most = settings.ngram_sizes, _HIGHEST["ngram_sizes"]
    if not isinstance(sizes, tuple) or not all(isinstance(size, int) and 2 <= size <= most for size in sizes):
        faults.append(f"ngram_sizes is {sizes!r}, allowed: whole numbers from 2 to {most}, or none")
    if not isinstance(settings.byte_residual, bool):
        faults.append(f"byte_residual is {settings.byte_residual!r}, allowed: true or false")
    if isinstance(settings.ratio_weight, bool) or not isinstance(settings.ratio_weight, int | float):
        faults.append(f"ratio_weight is {settings.ratio_weight!r}, allowed: a number of at least 0")
    elif settings.ratio_weight < 0:
        faults.append(f"ratio_weight is {settings.ratio_weight}, allowed: a number of at least 0")
    if faults:
        return faults
    if settings.local_size % settings.local_heads or settings.local_size // settings.local_heads % 2:
        if not settings.flat:
            faults.append(
                f"local_heads is {settings.local_heads}, allowed: a divisor of local_size ({settings.local_size}) that "
                "leaves an even width (rotary embedding turns pairs)"
            )
    if settings.pooling == "attention" and settings.local_size % settings.pooling_heads:
        faults.append(
            f"pooling_heads is {settings.pooling_heads}, allowed: a divisor of local_size ({settings.local_size})"
        )
    if settings.rule == "learned" and settings.stride < 2:
        faults.append("stride is 1, allowed: at least 2 with rule 'learned' (every byte a patch is rule 'none')")
    if settings.rule == "fixed" and settings.max_patch not in (None, settings.stride):
        faults.append(f"max_patch is {settings.max_patch}, allowed: the stride ({settings.stride}) with rule 'fixed'")
    return faults


def byte_parameters(config: Any) -> dict[str, int]:
    """Counts the parameters around the core of a byte-pooled model: the interface that stands for embedding and head.

    Args:
        config: a `CairnConfig` with `byte_pooling`.

    Returns:
        embedding, ngrams, encoder, pooling (with the learned rule's), decoder, head (0 when tied), total; exact.
    """
    settings = byte_pooling_of(config.byte_pooling, config.hidden_size)
    size = settings.local_size
    matrices = 3 if getattr(config, "feed_forward", "swiglu") == "swiglu" else 2
    layer = 4 * size * size + matrices * size * settings.local_inner + 2 * size
    norm_qk = 2 * (size // settings.local_heads) if getattr(config, "qk_norm", False) else 0
    pooled = 0 if settings.flat else size + 2 * size * config.hidden_size + size  # norm, in, out, start
    pooled += size * (size + settings.pooling_heads) if settings.pooling == "attention" and not settings.flat else 0
    pooled += 2 * size * size if settings.rule == "learned" else 0
    parts = {
        "embedding": config.vocab_size * size,
        "ngrams": len(settings.ngram_sizes) * settings.ngram_rows * size,
        "encoder": settings.encoder_layers * (layer + norm_qk),
        "pooling": pooled,
        "decoder": 0 if settings.flat else settings.decoder_layers * (layer + norm_qk) + size,
        "head": 0 if getattr(config, "tie_word_embeddings", False) else config.vocab_size * size,
    }
    return {**parts, "total": sum(parts.values())}
