"""The parameter account of `cairn info --compare`: interfaces and sharing schemes around one and the same core.

    text ── interface ──▶ core (the layers) ── interface ──▶ text      interface: embedding, head, what pools bytes
             BPE-50k, BPE-4k, bytes, pooled bytes                      core: the same in every row of the first table,
                                                                       shared in part in every row of the second

The 90-95% fewer parameters of super tiny language models are those of the interface, not of the model; the account
says of which interface, and what share of a model it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cairn.errors import CheckpointError, InputError, did_you_mean

__all__ = ["CLAIM", "compare_accounts", "comparison_tables", "published_byte_interface"]

CLAIM = (0.90, 0.95)  # arXiv 2405.14159 v1, abstract: "parameter reduction"; v2 says it of future work

# The core around which bytes were pooled: 10 layers, 50.1M. Source: byte_level.yaml in the code of arXiv 2405.14159
_PUBLISHED = {
    "hidden_size": 768, "intermediate_size": 1536, "num_hidden_layers": 10, "num_attention_heads": 16,
    "num_key_value_heads": 4, "max_position_embeddings": 512,
}  # fmt: skip
_LARGE, _SMALL, _BYTES = 50257, 4096, 259
_CORE = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "max_position_embeddings", "qk_norm", "feed_forward", "value_residual",
)  # fmt: skip
_RANK = 8  # of the adapters that are counted


def published_byte_interface(hidden_size: int) -> int:
    """Counts the parameters of the published byte embedder and decoder around a core of this width.

    258 bytes at width 128; four blocks 128 -> 256 -> 256 -> 256 -> core, whose feed-forward layer (512, then 1,024
    inside) makes the new width; back: a projection to 12 slots of 128, seven blocks of 128, an output layer of its own.
    Norms and positions, under 0.1%, are left out.

    Source: arXiv 2405.14159, models/experimental/byte_level of its code.
    """
    blocks = [(128, 512, 256), (256, 1024, 256), (256, 1024, 256), (256, 1024, hidden_size)] + [(128, 512, 128)] * 7
    layers = sum(4 * width**2 + width * inner + inner * out for width, inner, out in blocks)
    return 258 * 128 + layers + hidden_size * 12 * 128 + 128 * 258


def compare_accounts(what: str | None = None) -> dict[str, Any]:
    """Returns the parameter account of every interface and sharing scheme at an equal core.

    Args:
        what: a preset or the folder of a Cairn model, whose layers are the core; None takes the published core, 10
            layers of 768.

    Returns:
        core (shape and parameters), `interfaces` and `sharing` (a list of rows each), and `claim`.

    Raises:
        InputError: no such preset or folder.
        CheckpointError: the folder holds another architecture, or cannot be read.
    """
    from cairn.models.accounting import interface_parameters, parameters_by_part

    shape = _PUBLISHED if what is None else _shape_of(what)

    def built(**changes: Any) -> Any:
        from cairn.models import CairnConfig

        return CairnConfig(**{**shape, **changes})

    plain = built(vocab_size=_SMALL)
    core = parameters_by_part(plain)["total"] - interface_parameters(plain)
    interfaces = [
        {"interface": name, "parameters": count, "model": core + count, "share_of_model": count / (core + count)}
        for name, count in _interfaces(built).items()
    ]
    reference = {row["interface"]: row["parameters"] for row in interfaces}
    untied, tied = reference["BPE 50,257, untied"], reference["BPE 50,257, tied"]
    for row in interfaces:
        row["less_than_untied_50k"] = 1 - row["parameters"] / untied
        row["less_than_tied_50k"] = 1 - row["parameters"] / tied
        row["model_less_than_untied_50k"] = 1 - row["model"] / (core + untied)
    return {
        "kind": "comparison", "name": what or "the published core",
        "core": {
            "layers": plain.num_hidden_layers, "hidden_size": plain.hidden_size,
            "intermediate_size": plain.intermediate_size, "heads": plain.num_attention_heads,
            "key_value_heads": plain.num_key_value_heads, "parameters": core,
        },
        "interfaces": interfaces, "sharing": _sharing_rows(built, core), "claim": _claim(interfaces),
    }  # fmt: skip


def _shape_of(what: str) -> dict[str, Any]:
    from pathlib import Path

    from cairn.models.presets import PRESETS, preset_config

    if what in PRESETS:
        config: Any = preset_config(what)
    elif what.startswith("embedded:") or (Path(what).expanduser() / "config.json").is_file():
        from transformers import AutoConfig

        import cairn.models  # noqa: F401  (registers our architecture)
        from cairn.bases import resolve_base

        folder = str(resolve_base(what))
        try:
            config = AutoConfig.from_pretrained(folder)
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(f"config.json cannot be read ({error})", value=folder) from error
        if config.model_type != "cairn":
            raise CheckpointError(
                "--compare knows Cairn's own decoder only", value=f"{config.model_type} in {folder}",
                allowed="a preset, or the folder of a Cairn model",
            )  # fmt: skip
    else:
        raise InputError(
            f"no such preset or model folder{did_you_mean(what, PRESETS)}", value=what,
            allowed=f"{', '.join(PRESETS)}, embedded:base, or a folder with config.json", next="cairn info --compare",
        )  # fmt: skip
    return {name: getattr(config, name) for name in _CORE}


def _interfaces(built: Callable[..., Any]) -> dict[str, int]:
    from cairn.models.accounting import interface_parameters

    pooled = {"rule": "fixed"}
    configs = {
        "BPE 50,257, untied": built(vocab_size=_LARGE, tie_word_embeddings=False),
        "BPE 50,257, tied": built(vocab_size=_LARGE),
        "BPE 4,096, untied": built(vocab_size=_SMALL, tie_word_embeddings=False),
        "BPE 4,096, tied": built(vocab_size=_SMALL),
        "bytes, flat, tied": built(vocab_size=_BYTES),
        "bytes, pooled, tied": built(vocab_size=_BYTES, byte_pooling=pooled),
        "bytes, pooled, n-grams, tied": built(vocab_size=_BYTES, byte_pooling={**pooled, "ngram_sizes": [3, 4]}),
    }
    counts = {name: interface_parameters(config) for name, config in configs.items()}
    counts["bytes, pooled, as published"] = published_byte_interface(configs["bytes, flat, tied"].hidden_size)
    return counts


def _schemes(layers: int, hidden_size: int) -> dict[str, dict[str, Any] | None]:
    """Returns the schemes that fit so many layers, by the name that the table shows."""
    half = list(range(layers // 2))
    rank = max(1, min(64, hidden_size // 8))
    loop = (layers - 2) // 2
    schemes: dict[str, dict[str, Any] | None] = {"nothing shared": None}
    if layers >= 2:
        schemes |= {
            "feed-forward, all": {"feed_forward": {"scheme": "all"}},
            "feed-forward, all, by module": {"feed_forward": {"scheme": "all", "by": "module"}},
            "feed-forward, two groups": {
                "feed_forward": {"scheme": "groups", "groups": [half, list(range(layers // 2, layers))]}
            },
        }
    for free in (1, 2):
        if layers >= 2 * free + 2:
            schemes[f"feed-forward, interior, {free} free"] = {"feed_forward": {"scheme": "interior", "free": free}}
    if layers >= 4:
        schemes[f"feed-forward, interior, 1 free, rank {rank}"] = {
            "feed_forward": {"scheme": "interior", "free": 1, "delta_rank": rank}
        }
    if layers >= 2:
        schemes["attention output, all"] = {"attention_output": {"scheme": "all"}}
        schemes["feed-forward and attention output, all"] = {
            "feed_forward": {"scheme": "all"}, "attention_output": {"scheme": "all"}
        }  # fmt: skip
    if layers % 2 == 0:
        schemes["blocks, each twice"] = {"blocks": {"repeat": 2}}
    if loop >= 1:
        name = f"recurrence, layers 1 to {loop} twice" if loop > 1 else "recurrence, layer 1 twice"
        schemes[name] = {"recurrence": {"first": 1, "last": loop, "times": 2}}
    return schemes


def _sharing_rows(built: Callable[..., Any], core: int) -> list[dict[str, Any]]:
    from cairn.models.accounting import flops_per_token, interface_parameters, lora_parameters, parameters_by_part

    rows = []
    plain = built()
    for name, sharing in _schemes(plain.num_hidden_layers, plain.hidden_size).items():
        config = built(vocab_size=_SMALL, sharing=sharing)
        kept = parameters_by_part(config)["total"] - interface_parameters(config)
        rows.append({
            "scheme": name, "sharing": sharing, "core": kept, "core_less": 1 - kept / core,
            "model": kept + interface_parameters(config),
            "flops_per_token": flops_per_token(config, max(config.max_position_embeddings // 2, 1)),
            f"adapter_rank_{_RANK}": lora_parameters(config, _RANK),
        })  # fmt: skip
    return rows


def _claim(interfaces: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns what the 90-95% are a share of, and against which interface they hold."""
    rows = {row["interface"]: row for row in interfaces}
    pooled = ("bytes, pooled, as published", "bytes, pooled, tied")
    against = {"BPE 50,257, untied": "less_than_untied_50k", "BPE 50,257, tied": "less_than_tied_50k"}
    return {
        "claimed": list(CLAIM), "of": "the interface: embedding, head, and the layers that pool bytes",
        "reached": {name: {reference: rows[name][key] for reference, key in against.items()} for name in pooled},
        "of_the_whole_model": {name: rows[name]["model_less_than_untied_50k"] for name in pooled},
        "small_bpe": {reference: rows["BPE 4,096, tied"][key] for reference, key in against.items()},
    }


def comparison_tables(facts: dict[str, Any], table: Callable[..., Any]) -> list[Any]:
    """Returns what the terminal shows.

    Args:
        facts: from `compare_accounts`.
        table: makes a table of a title and columns.
    """
    core, claim = facts["core"], facts["claim"]
    head = (
        f"{facts['name']}: {core['layers']} layers x {core['hidden_size']}, feed-forward "
        f"{core['intermediate_size']:,}, {core['parameters']:,} parameters; the core of each row of the first table"
    )
    first = table("Interfaces", "interface", "parameters", "of the model", "vs 50k untied", "vs 50k tied", "model")
    for row in facts["interfaces"]:
        first.add_row(
            row["interface"], f"{row['parameters']:,}", f"{row['share_of_model']:.1%}",
            _change(row["less_than_untied_50k"]), _change(row["less_than_tied_50k"]), f"{row['model']:,}",
        )  # fmt: skip
    second = table("Sharing, with BPE 4,096 tied", "scheme", "core", "change", "model", "FLOPs/token",
                   f"adapter, rank {_RANK}")  # fmt: skip
    for row in facts["sharing"]:
        second.add_row(
            row["scheme"], f"{row['core']:,}", _change(row["core_less"]), f"{row['model']:,}",
            f"{row['flops_per_token'] / 1e6:,.1f} M", f"{row[f'adapter_rank_{_RANK}']:,}",
        )  # fmt: skip
    return [head, first, _verdict(facts, claim), second]


def _change(less: float) -> str:
    return "-" if abs(less) < 5e-5 else f"{-less:+.1%}"


def _verdict(facts: dict[str, Any], claim: dict[str, Any]) -> str:
    low, high = (f"{share:.0%}" for share in claim["claimed"])
    published, own = (claim["reached"][name] for name in ("bytes, pooled, as published", "bytes, pooled, tied"))
    untied, tied = "BPE 50,257, untied", "BPE 50,257, tied"
    return (
        f"The {low[:-1]}-{high} of arXiv 2405.14159 are a share of the interface, not of the model. Here the published "
        f"byte interface is {published[untied]:.1%} smaller than an untied 50k head and embedding, "
        f"{published[tied]:.1%} than a tied one; Cairn's {own[untied]:.1%} and {own[tied]:.1%}. The whole model is "
        f"{claim['of_the_whole_model']['bytes, pooled, as published']:.1%} smaller. A tied BPE of 4,096 alone saves "
        f"{claim['small_bpe'][untied]:.1%} and {claim['small_bpe'][tied]:.1%} of the interface, without bytes.\n"
    )
