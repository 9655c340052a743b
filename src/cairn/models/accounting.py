"""What a decoder costs, computed from its configuration alone: parameters, FLOPs, cache and training memory.

Works for `CairnConfig` and for the Llama, Qwen and GPT-NeoX families, so that a stack on any base is accounted in
the same way. One multiply-add counts as two FLOPs. Embedding look-ups count as zero. Weights that layers share are
kept once and run as often as there are layers: parameters and FLOPs part there. A token of a model with byte pooling
is a byte: its core runs once per `stride` bytes, which is exact for fixed patches and an assumption for the others.
"""

from __future__ import annotations

import math
from typing import Any

from cairn.models.byte_config import BytePooling, byte_parameters, byte_pooling_of
from cairn.models.early_exit import early_exit_of, gate_parameters
from cairn.models.sharing import Sharing, sharing_of

__all__ = [
    "flops_per_token",
    "forward_flops",
    "interface_parameters",
    "kv_bytes_per_token",
    "lora_flops_per_token",
    "lora_parameters",
    "parameters_by_part",
    "training_memory_bytes",
]


def _shape(config: Any) -> dict[str, int]:
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    gated = getattr(config, "model_type", "") not in {"gpt_neox", "gpt2", "opt"}
    gated = gated and getattr(config, "feed_forward", "swiglu") == "swiglu"
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


def _sharing(config: Any) -> Sharing:
    given = getattr(config, "sharing", None)
    return sharing_of(given if isinstance(given, dict) else None, config.num_hidden_layers)


def _pooling(config: Any) -> BytePooling | None:
    given = getattr(config, "byte_pooling", None)
    return byte_pooling_of(given, config.hidden_size) if isinstance(given, dict) else None


def _local(config: Any) -> dict[str, float]:
    """Returns what stands around the core of a byte model; of other models the same with nothing in it.

    Returns:
        positions of the core per token, matrices per token, width of local attention over all layers, its window, and
        the width that the head reads.
    """
    pooling = _pooling(config)
    if pooling is None:
        return {"patches": 1.0, "matrices": 0, "attention": 0, "window": 0, "width": config.hidden_size}
    parts, layers = byte_parameters(config), pooling.encoder_layers + pooling.decoder_layers
    patches = 1.0 if pooling.flat else 1 / pooling.stride
    return {
        "patches": patches, "matrices": parts["encoder"] + parts["decoder"] + parts["pooling"] * patches,
        "attention": layers * pooling.local_size, "window": pooling.window, "width": pooling.local_size,
    }  # fmt: skip


def _linears(s: dict[str, int]) -> dict[str, list[tuple[int, int]]]:
    """Returns inputs and outputs of each matrix of one layer, by the part that may be shared."""
    queries, keys = s["heads"] * s["head_dim"], s["kv_heads"] * s["head_dim"]
    return {
        "attention": [(s["hidden"], queries), (s["hidden"], keys), (s["hidden"], keys)],
        "attention_output": [(queries, s["hidden"])],
        "feed_forward": [(s["hidden"], s["inner"])] * (s["ffn_matrices"] - 1) + [(s["inner"], s["hidden"])],
    }


def _matrices(s: dict[str, int]) -> dict[str, int]:
    """Returns the numbers in the matrices of one layer, by part."""
    return {part: sum(inputs * outputs for inputs, outputs in pairs) for part, pairs in _linears(s).items()}


def _deltas(config: Any, s: dict[str, int]) -> int:
    """Returns the numbers in the low-rank matrices that layers with shared weights have of their own."""
    sharing = _sharing(config)
    return sum(
        sharing.delta_rank[part] * len(sharing.sharers(part)) * sum(inputs + outputs for inputs, outputs in pairs)
        for part, pairs in _linears(s).items()
    )


def parameters_by_part(config: Any) -> dict[str, int]:
    """Counts parameters of a decoder from its configuration, weights that layers share once.

    Returns:
        embedding (with n-gram tables), attention, feed_forward, norms, head (0 when tied), total; `deltas` where
        sharing layers have some, `byte_layers` where bytes are pooled, `exit_gates` where exits have them.
        Exact for CairnConfig and Llama; for families with biases (GPT-NeoX) biases are left out.
    """
    s = _shape(config)
    one, sharing = _matrices(s), _sharing(config)
    attention = sum(sharing.kept(part) * one[part] for part in ("attention", "attention_output"))
    mixes = 2 * (s["layers"] - 1) if getattr(config, "value_residual", False) else 0
    norms = sharing.kept("norms") * 2 * s["hidden"] + s["hidden"]
    if getattr(config, "qk_norm", False):
        norms += sharing.kept("attention") * 2 * s["head_dim"]
    exits = getattr(config, "early_exit", None)
    if isinstance(exits, dict) and early_exit_of(exits, s["layers"]).norm == "own":
        norms += len(early_exit_of(exits, s["layers"]).layers) * s["hidden"]
    parts = {
        "embedding": s["vocab"] * s["hidden"],
        "attention": attention + mixes,
        "feed_forward": sharing.kept("feed_forward") * one["feed_forward"],
        "norms": norms,
        "head": 0 if getattr(config, "tie_word_embeddings", False) else s["vocab"] * s["hidden"],
    }
    if deltas := _deltas(config, s):
        parts["deltas"] = deltas
    if isinstance(exits, dict) and (gates := gate_parameters(early_exit_of(exits, s["layers"]), s["hidden"])):
        parts["exit_gates"] = gates
    if _pooling(config) is not None:
        around = byte_parameters(config)
        parts |= {"embedding": around["embedding"] + around["ngrams"], "head": around["head"]}
        parts["byte_layers"] = around["encoder"] + around["pooling"] + around["decoder"]
    return {**parts, "total": sum(parts.values())}


def interface_parameters(config: Any) -> int:
    """Counts the parameters between text and core: embedding, head, and the layers that pool and unpool bytes."""
    parts = parameters_by_part(config)
    return parts["embedding"] + parts["head"] + parts.get("byte_layers", 0)


def flops_per_token(config: Any, context: int, *, training: bool = False, head: bool = True) -> int:
    """FLOPs of one token that attends to `context` positions (itself included).

    Args:
        config: model configuration.
        context: positions attended to.
        training: forward and backward (three times the forward).
        head: include the output head (vocabulary product).

    Source: arXiv 2001.08361, section 2.1, with the attention term kept.
    """
    s, around = _shape(config), _local(config)
    core = s["layers"] * sum(_matrices(s).values()) + _deltas(config, s)  # shared ones run in every layer
    core += s["layers"] * 2 * context * around["patches"] * s["heads"] * s["head_dim"]  # scores and mix, multiply-adds
    local = around["matrices"] + 2 * around["attention"] * min(context, around["window"])
    local += s["vocab"] * around["width"] if head else 0
    return (3 if training else 1) * round(2 * (core * around["patches"] + local))


def lora_parameters(config: Any, rank: int) -> int:
    """Counts what a LoRA adapter of this rank trains on all matrices of the core.

    Layers with tied parameters have an adapter each; feed-forward layers that are one module have one together.
    """
    s, sharing = _shape(config), _sharing(config)
    once = {"feed_forward": sharing.kept("feed_forward")} if sharing.by_module else {}
    return rank * sum(
        once.get(part, s["layers"]) * sum(inputs + outputs for inputs, outputs in pairs)
        for part, pairs in _linears(s).items()
    )


def lora_flops_per_token(trained_parameters: int) -> int:
    """Forward FLOPs per token that an unmerged LoRA adapter adds: two per trained parameter."""
    return 2 * trained_parameters


def forward_flops(config: Any, prompt_tokens: int, new_tokens: int, trained_parameters: int = 0) -> int:
    """FLOPs to read a prompt once and generate `new_tokens` with a cache.

    The prompt's tokens are read in one pass with the head on the last of them only; every generated token but the
    last one is read back. Average context of the prompt pass is half its length.
    """
    s, around = _shape(config), _local(config)
    per_token = flops_per_token(config, 0, head=False) + lora_flops_per_token(trained_parameters)
    read = prompt_tokens + max(new_tokens - 1, 0)
    pairs = read * (read + 1) // 2  # causal attention: token i sees i positions
    attention = s["layers"] * 4 * pairs * around["patches"] ** 2 * s["heads"] * s["head_dim"]
    attention += 4 * around["attention"] * min(pairs, read * around["window"])
    return read * per_token + round(attention + max(new_tokens, 1) * 2 * s["vocab"] * around["width"])


def kv_bytes_per_token(config: Any, dtype_bytes: int = 2) -> int:
    """Bytes that one token adds to the key-value cache, all layers (default 2 bytes a number: bf16).

    The local layers of a byte model keep no more than their window.
    """
    s = _shape(config)
    core = 2 * s["layers"] * s["kv_heads"] * s["head_dim"] * dtype_bytes
    return math.ceil(core * _local(config)["patches"])


def training_memory_bytes(config: Any, batch_tokens: int, sequence_length: int = 512) -> dict[str, int]:
    """Estimates the memory of full training in fp32 with bf16 autocast and two optimizer moments.

    Args:
        batch_tokens: tokens of one micro-batch.
        sequence_length: tokens of one sequence (attention scores are not stored: fused kernels).

    Returns:
        weights, gradients, optimizer, activations, logits, total; in bytes. Activations are counted from what the
        layers keep for the backward pass; expect the true figure within about 30%.
    """
    s, around = _shape(config), _local(config)
    total = parameters_by_part(config)["total"]
    queries = s["heads"] * s["head_dim"]
    keys = s["kv_heads"] * s["head_dim"]
    kept = 4 * s["hidden"] * 2 + (3 * queries + 3 * keys) * 2 + 3 * s["inner"] * 2  # bf16 numbers per token and layer
    parts = {
        "weights": 4 * total,
        "gradients": 4 * total,
        "optimizer": 8 * total,
        "activations": round(batch_tokens * (s["layers"] * kept * around["patches"] + around["attention"] * 36)),
        "logits": batch_tokens * s["vocab"] * 6,  # bf16 logits and their fp32 softmax
    }
    return {**parts, "total": sum(parts.values())}
