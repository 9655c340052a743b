"""What a decoder costs, computed from its configuration alone: parameters, FLOPs, cache and training memory.

Works for `CairnConfig` and for the Llama, Qwen and GPT-NeoX families, so that a stack on any base is accounted in
the same way. One multiply-add counts as two FLOPs. Embedding look-ups count as zero.
"""

from __future__ import annotations

from typing import Any

__all__ = [
    "flops_per_token",
    "forward_flops",
    "kv_bytes_per_token",
    "lora_flops_per_token",
    "parameters_by_part",
    "training_memory_bytes",
]


def _shape(config: Any) -> dict[str, int]:
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    gated = getattr(config, "model_type", "") not in {"gpt_neox", "gpt2", "opt"}
    return {
        "hidden": config.hidden_size,
        "layers": config.num_hidden_layers,
        "heads": heads,
        "kv_heads": getattr(config, "num_key_value_heads", None) or heads,
        "head_dim": head_dim,
        "inner": config.intermediate_size,
        "vocab": config.vocab_size,
        "ffn_matrices": 3 if gated else 2,
    }


def parameters_by_part(config: Any) -> dict[str, int]:
    """Counts parameters of a decoder from its configuration.

    Returns:
        embedding, attention, feed_forward, norms, head (0 when tied), total. Exact for CairnConfig and Llama; for
        families with biases (GPT-NeoX) biases are left out.
    """
    s = _shape(config)
    attention = s["hidden"] * s["head_dim"] * (2 * s["heads"] + 2 * s["kv_heads"])
    norms = 2 * s["hidden"] + (2 * s["head_dim"] if getattr(config, "qk_norm", False) else 0)
    parts = {
        "embedding": s["vocab"] * s["hidden"],
        "attention": s["layers"] * attention,
        "feed_forward": s["layers"] * s["ffn_matrices"] * s["hidden"] * s["inner"],
        "norms": s["layers"] * norms + s["hidden"],
        "head": 0 if getattr(config, "tie_word_embeddings", False) else s["vocab"] * s["hidden"],
    }
    return {**parts, "total": sum(parts.values())}


def flops_per_token(config: Any, context: int, *, training: bool = False, head: bool = True) -> int:
    """FLOPs of one token that attends to `context` positions (itself included).

    Args:
        config: model configuration.
        context: positions attended to.
        training: forward and backward (three times the forward).
        head: include the output head (vocabulary product).

    Source: arXiv 2001.08361, section 2.1, with the attention term kept.
    """
    s = _shape(config)
    parts = parameters_by_part(config)
    matrices = parts["attention"] + parts["feed_forward"] + (s["vocab"] * s["hidden"] if head else 0)
    attention = s["layers"] * 2 * context * s["heads"] * s["head_dim"]  # scores and mix, multiply-adds
    return (3 if training else 1) * 2 * (matrices + attention)


def lora_flops_per_token(trained_parameters: int) -> int:
    """Forward FLOPs per token that an unmerged LoRA adapter adds: two per trained parameter."""
    return 2 * trained_parameters


def forward_flops(config: Any, prompt_tokens: int, new_tokens: int, trained_parameters: int = 0) -> int:
    """FLOPs to read a prompt once and generate `new_tokens` with a cache.

    The prompt's tokens are read in one pass with the head on the last of them only; every generated token but the
    last one is read back. Average context of the prompt pass is half its length.
    """
    s = _shape(config)
    per_token = flops_per_token(config, 0, head=False) + lora_flops_per_token(trained_parameters)
    read = prompt_tokens + max(new_tokens - 1, 0)
    pairs = read * (read + 1) // 2  # causal attention: token i sees i positions
    attention = s["layers"] * 4 * pairs * s["heads"] * s["head_dim"]
    return read * per_token + attention + max(new_tokens, 1) * 2 * s["vocab"] * s["hidden"]


def kv_bytes_per_token(config: Any, dtype_bytes: int = 2) -> int:
    """Bytes that one token adds to the key-value cache, all layers (default 2 bytes a number: bf16)."""
    s = _shape(config)
    return 2 * s["layers"] * s["kv_heads"] * s["head_dim"] * dtype_bytes


def training_memory_bytes(config: Any, batch_tokens: int, sequence_length: int = 512) -> dict[str, int]:
    """Estimates the memory of full training in fp32 with bf16 autocast and two optimizer moments.

    Args:
        batch_tokens: tokens of one micro-batch.
        sequence_length: tokens of one sequence (attention scores are not stored: fused kernels).

    Returns:
        weights, gradients, optimizer, activations, logits, total; in bytes. Activations are counted from what the
        layers keep for the backward pass; expect the true figure within about 30%.
    """
    s = _shape(config)
    total = parameters_by_part(config)["total"]
    queries = s["heads"] * s["head_dim"]
    keys = s["kv_heads"] * s["head_dim"]
    kept = 4 * s["hidden"] * 2 + (3 * queries + 3 * keys) * 2 + 3 * s["inner"] * 2  # bf16 numbers per token and layer
    parts = {
        "weights": 4 * total,
        "gradients": 4 * total,
        "optimizer": 8 * total,
        "activations": batch_tokens * s["layers"] * kept,
        "logits": batch_tokens * s["vocab"] * 6,  # bf16 logits and their fp32 softmax
    }
    return {**parts, "total": sum(parts.values())}
