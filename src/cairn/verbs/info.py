"""`cairn info`: what a preset, a model, a stack, a recipe or a shard folder holds, and what it costs.

    name ──> preset | model, stack or shard folder | pretrain recipe ──> facts (a dict) ──> tables, or JSON
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer

from cairn.config import read_yaml
from cairn.errors import AdapterError, CheckpointError, ConfigError, InputError, did_you_mean

__all__ = ["describe", "info"]

_BATCH_TOKENS = 4096
_SWITCHES = {  # field -> its value in a plain decoder
    "sharing": None, "byte_pooling": None, "early_exit": None, "feed_forward": "swiglu", "value_residual": False,
    "logit_softcap": None, "hidden_dropout": 0.0,
}  # fmt: skip


def info(
    what: Annotated[
        str | None,
        typer.Argument(metavar="PRESET|FOLDER|RECIPE", help="A preset, a folder, a recipe, or embedded:base."),
    ] = None,
    context: Annotated[
        int | None, typer.Option("--context", min=1, help="Position to count FLOPs at; default: half the longest.")
    ] = None,
    batch_tokens: Annotated[
        int | None,
        typer.Option("--batch-tokens", min=1, help="Tokens of a micro-batch, for the training memory; default 4,096."),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Instead: interfaces and sharing schemes around the same layers.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Show what a preset, a model, a stack, a pretraining recipe or a data folder holds, and what it costs.

    Without an argument: the presets and the embedded base. Nothing is loaded or trained: figures of a model are
    computed from its configuration, and folders are checked as they are read. Only the hours of a recipe on this CPU
    come from a few seconds of passes through an untrained model.

        preset, model   parameters by part, FLOPs per token, cache, training memory
        recipe          tokens, FLOPs, memory, hours on one consumer GPU (estimated) and on this CPU
        stack folder    stages, what each reads, who answers it, contracts, trained parameters
        shard folder    sources, tokens, bytes per token; every hash is checked

    With --compare: the parameters of BPE, byte and byte-pooled interfaces and of every way to share weights, around
    the layers of a preset or a model; without one, around those of arXiv 2405.14159.

    Examples:

        cairn info
        cairn info 10m --context 1024
        cairn info runs/demo/stack
        cairn info recipes/stlm-50m.yaml
        cairn info embedded:base --json
        cairn info 50m --compare
    """
    if compare:
        from cairn.verbs.info_compare import compare_accounts

        _refuse_options("--compare", context, batch_tokens)
        facts = compare_accounts(what)
    else:
        facts = describe(what, context=context, batch_tokens=batch_tokens)
    if as_json:
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    console = Console(highlight=False)
    for part in _TABLES[facts["kind"]](facts):
        console.print(part)


def describe(what: str | None = None, *, context: int | None = None, batch_tokens: int | None = None) -> dict[str, Any]:
    """Returns the facts about a preset or a folder.

    Args:
        what: preset name, `embedded:NAME`, the path of a model, stack or shard folder, or of the YAML file of a stack
            or of a recipe of kind `pretrain`; None is an overview of presets and the embedded base.
        context: position at which FLOPs are counted, in tokens; default half the model's longest sequence, which is
            the average over a full one.
        batch_tokens: tokens of one micro-batch, for the training memory; default 4,096.

    Raises:
        InputError: neither a preset nor a folder that Cairn knows, or `context` or `batch_tokens` is given for what is
            no model.
        CairnError: the folder is damaged; the class says which kind.
    """
    if what is None:
        _refuse_options("an overview", context, batch_tokens)
        return _overview()
    path = Path(what).expanduser()
    if path.is_file() and path.suffix == ".yaml" and read_yaml(path).get("recipe") == "pretrain":
        from cairn.verbs.info_recipe import recipe_facts

        _refuse_options("a recipe, which has its own", context, batch_tokens)
        return recipe_facts(path)
    if (path / "stack.yaml").is_file() or path.suffix == ".yaml":
        _refuse_options("a stack", context, batch_tokens)
        return _stack(path)
    if (path / "manifest.json").is_file() and not (path / "config.json").is_file() and list(path.glob("shard-*")):
        _refuse_options("a shard folder", context, batch_tokens)
        return _shards(path)
    if what.startswith("embedded:") or (path / "config.json").is_file():
        return _model(what, context, batch_tokens)
    from cairn.models.presets import PRESETS, preset_config  # imports torch: folders of stacks are read without it

    if what in PRESETS:
        return {"kind": "preset", "name": what, **_model_facts(preset_config(what), context, batch_tokens)}
    raise InputError(
        f"no such preset, model, stack or data folder{did_you_mean(what, PRESETS)}", value=what,
        allowed=f"{', '.join(PRESETS)}, embedded:base, or a folder with config.json, stack.yaml or manifest.json",
        next="cairn info",
    )  # fmt: skip


def _refuse_options(kind: str, context: int | None, batch_tokens: int | None) -> None:
    for name, value in (("--context", context), ("--batch-tokens", batch_tokens)):
        if value is not None:
            raise InputError(f"{name} says nothing about {kind}", value=value, allowed="with a preset or a model")


def _model_facts(config: Any, context: int | None, batch_tokens: int | None) -> dict[str, Any]:
    from cairn.models import accounting

    batch_tokens = batch_tokens or _BATCH_TOKENS
    longest = int(getattr(config, "max_position_embeddings", 0) or 0)
    context = context or max(longest // 2, 1)
    if longest and context > longest:
        raise InputError("--context is longer than the model's sequences", value=context, allowed=f"1 to {longest}")
    parts = accounting.parameters_by_part(config)
    heads, keys = config.num_attention_heads, getattr(config, "num_key_value_heads", None)
    return {
        "shape": {
            "layers": config.num_hidden_layers, "hidden_size": config.hidden_size, "heads": heads,
            "key_value_heads": keys or heads, "intermediate_size": config.intermediate_size,
            "vocabulary": config.vocab_size, "longest_sequence": longest,
        },
        "variant": {
            name: getattr(config, name) for name, plain in _SWITCHES.items() if getattr(config, name, plain) != plain
        },
        "parameters": parts,
        "tied_head": bool(getattr(config, "tie_word_embeddings", False)),
        "flops_per_token": {
            "context": context,
            "forward": accounting.flops_per_token(config, context),
            "training": accounting.flops_per_token(config, context, training=True),
        },
        "kv_bytes_per_token": accounting.kv_bytes_per_token(config),
        "training_memory_bytes": {
            "batch_tokens": batch_tokens, **accounting.training_memory_bytes(config, batch_tokens)
        },
        "bf16_weight_bytes": 2 * parts["total"],
    }  # fmt: skip


def _model(what: str, context: int | None, batch_tokens: int | None) -> dict[str, Any]:
    from transformers import AutoConfig

    import cairn.models  # noqa: F401  (registers our architecture)
    from cairn.bases import resolve_base, weight_files

    folder = Path(resolve_base(what))
    files = weight_files(folder)
    if not files:
        raise CheckpointError("the model folder has no weights", value=str(folder), next="copy the folder again")
    stored = sum(math.prod(shape) for file in files for shape in _tensors(file, CheckpointError).values())
    try:
        config = AutoConfig.from_pretrained(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"config.json cannot be read ({error})", value=str(folder)) from error
    facts = {
        "kind": "model", "name": what, "architecture": getattr(config, "model_type", "unknown"),
        "stored_parameters": stored, "file_bytes": sum(file.stat().st_size for file in files),
    }  # fmt: skip
    try:
        return {**facts, **_model_facts(config, context, batch_tokens)}
    except (AttributeError, TypeError):  # an architecture whose shape the accounting does not know
        return facts


def _tensors(file: Path, kind: type[CheckpointError] | type[AdapterError]) -> dict[str, list[int]]:
    """Returns name -> shape from the header of a safetensors file that is checked first."""
    from cairn.bases import check_safetensors

    if file.suffix != ".safetensors":
        raise kind("weights are in another format", value=str(file), allowed="safetensors", next="save it again")
    check_safetensors(file, kind, "copy the folder again, or train it again")
    with open(file, "rb") as stream:
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}


def _stack(path: Path) -> dict[str, Any]:
    from cairn.stacks.spec import load_stack

    spec = load_stack(path)
    root = path if path.is_dir() else path.parent  # of a YAML file, where adapters would be
    comparators = root / "comparators"
    return {
        "kind": "stack", "name": spec.name, "description": spec.description, "base": spec.base,
        "inputs": list(spec.inputs), "output": spec.answer_stage,
        "stages": [
            {
                "name": stage.name, "kind": stage.kind, "over": stage.over, "reads": list(stage.reads),
                "at_most": stage.at_most if stage.kind == "repeat" else None,
                "contract": stage.contract.model_dump(mode="json"), "by": stage.by, "rule": stage.rule,
                "adapter": stage.adapter_name,
            }
            for stage in spec.stages
        ],
        "adapters": {name: _adapter(root / "stages" / name) for name in spec.adapter_names()},
        "comparators": {
            folder.name: _adapter(folder) for folder in sorted(comparators.iterdir()) if folder.is_dir()
        } if comparators.is_dir() else {},
        "scores": _scores(root / "scores.json"),
    }  # fmt: skip


def _adapter(folder: Path) -> dict[str, Any]:
    """Returns rank and trained parameters of an adapter; `trained` is False where there is none yet."""
    if not folder.is_dir():
        return {"trained": False}
    settings, weights = folder / "adapter_config.json", folder / "adapter_model.safetensors"
    if not settings.is_file() or not weights.is_file():
        missing = weights if settings.is_file() else settings
        raise AdapterError("the adapter is damaged: a file is missing", value=str(missing), next="cairn finetune")
    shapes = _tensors(weights, AdapterError)
    try:
        rank = json.loads(settings.read_text(encoding="utf-8")).get("r")
    except (ValueError, AttributeError):
        raise AdapterError("the adapter is damaged: not JSON", value=str(settings), next="cairn finetune") from None
    return {"trained": True, "rank": rank, "parameters": sum(math.prod(shape) for shape in shapes.values())}


def _scores(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ConfigError(str(path), ["is not JSON"], next="score the stack again with cairn eval") from None


def _shards(path: Path) -> dict[str, Any]:
    from cairn.data.shards import ShardSet

    shards = ShardSet.open(path)
    manifest = shards.manifest
    return {
        "kind": "shards", "name": str(path), "tokens": manifest["tokens"], "documents": manifest["documents"],
        "raw_bytes": manifest["raw_bytes"], "shards": len(manifest["shards"]), "vocabulary": shards.vocab_size,
        "tokenizer": shards.tokenizer_fingerprint, "sources": manifest["sources"],
    }  # fmt: skip


def _overview() -> dict[str, Any]:
    from cairn.bases import resolve_base
    from cairn.models.presets import PRESETS, preset_config

    presets = {name: _model_facts(preset_config(name), None, None) for name in PRESETS}
    try:
        resolve_base("embedded:base")
        base = _model("embedded:base", None, None)
    except CheckpointError as error:
        base = {"missing": str(error)}
    return {"kind": "overview", "presets": presets, "embedded_base": base}


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1024
    return ""


def _millions(count: float) -> str:
    return f"{count / 1e9:,.2f} G" if count >= 1e9 else f"{count / 1e6:,.2f} M"


def _table(title: str, *columns: str) -> Any:
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    return table


def _model_tables(facts: dict[str, Any]) -> list[Any]:
    if "shape" not in facts:
        return [
            f"{facts['name']}: {facts['architecture']}, {facts['stored_parameters']:,} parameters, "
            f"{_bytes(facts['file_bytes'])}. Costs are known for Llama-like decoders only."
        ]
    shape, memory = facts["shape"], dict(facts["training_memory_bytes"])
    head = (
        f"{facts['name']}: {shape['layers']} layers x {shape['hidden_size']}, {shape['heads']} query heads on "
        f"{shape['key_value_heads']} key-value heads, feed-forward {shape['intermediate_size']:,}, vocabulary "
        f"{shape['vocabulary']:,}, sequences to {shape['longest_sequence']:,}"
    )
    total = facts["parameters"]["total"]
    parts = _table("Parameters", "part", "count", "share")
    for name, count in facts["parameters"].items():
        label = "head (the embedding)" if name == "head" and facts["tied_head"] else name.replace("_", " ")
        parts.add_row(label, f"{count:,}", f"{count / total:.1%}", end_section=name == "head")
    flops = facts["flops_per_token"]
    costs = _table("Costs", "what", "amount")
    costs.add_row(f"FLOPs per token at position {flops['context']:,}, forward", _millions(flops["forward"]))
    costs.add_row(f"FLOPs per token at position {flops['context']:,}, training", _millions(flops["training"]))
    costs.add_row("key-value cache per token, bf16", _bytes(facts["kv_bytes_per_token"]))
    costs.add_row("weights in bf16", _bytes(facts["bf16_weight_bytes"]), end_section=True)
    tokens = memory.pop("batch_tokens")
    for name, count in memory.items():
        label = f"training memory, {tokens:,} tokens a batch (estimate)" if name == "total" else f"  {name}"
        costs.add_row(label, _bytes(count))
    tables = [head, parts, costs]
    if facts["variant"]:
        tables.insert(1, "variant: " + json.dumps(facts["variant"], ensure_ascii=False))
    if "file_bytes" in facts:
        tables.append(f"On disk: {facts['stored_parameters']:,} parameters in {_bytes(facts['file_bytes'])}.")
    return tables


def _stack_tables(facts: dict[str, Any]) -> list[Any]:
    inputs = ", ".join(facts["inputs"])
    head = f"{facts['name']}: {facts['description']}\nbase {facts['base']}, inputs {inputs}, answer {facts['output']}"
    stages = _table("Stages", "stage", "kind", "reads", "contract", "answered by")
    for stage in facts["stages"]:
        kind = stage["kind"] + (f" over {stage['over']}" if stage["over"] else "")
        kind += f", at most {stage['at_most']}" if stage["at_most"] else ""
        by = f"rule {stage['rule']}" if stage["by"] == "rule" else f"adapter {stage['adapter']}"
        stages.add_row(stage["name"], kind, ", ".join(stage["reads"]) or "inputs", stage["contract"]["kind"], by)
    adapters = _table("Adapters", "adapter", "rank", "trained parameters")
    rows = {**facts["adapters"], **{f"comparator {name}": one for name, one in facts["comparators"].items()}}
    for name, one in rows.items():
        adapters.add_row(name, str(one.get("rank", "-")), f"{one['parameters']:,}" if one["trained"] else "not trained")
    trained = sum(one.get("parameters", 0) for one in facts["adapters"].values())
    adapters.add_row("the stack's adapters together", "", f"{trained:,}")
    return [head, stages, adapters]


def _shard_tables(facts: dict[str, Any]) -> list[Any]:
    per_token = facts["raw_bytes"] / facts["tokens"] if facts["tokens"] else 0.0
    head = (
        f"{facts['name']}: {facts['tokens']:,} tokens of {facts['vocabulary']:,}, {_bytes(facts['raw_bytes'])} of text "
        f"({per_token:.2f} bytes a token), {facts['shards']} shards, every hash is right"
    )
    names = list(next(iter(facts["sources"].values()), {}))
    sources = _table("Sources", "source", *(name.replace("_", " ") for name in names))
    for source, counts in facts["sources"].items():
        cells = [counts.get(name) for name in names]
        sources.add_row(source, *(f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in cells))
    return [head, sources]


def _overview_tables(facts: dict[str, Any]) -> list[Any]:
    table = _table("Presets", "preset", "parameters", "layers", "width", "vocabulary", "FLOPs/token", "bf16")
    for name, one in facts["presets"].items():
        shape = one["shape"]
        table.add_row(
            name, f"{one['parameters']['total']:,}", str(shape["layers"]), str(shape["hidden_size"]),
            f"{shape['vocabulary']:,}", _millions(one["flops_per_token"]["forward"]), _bytes(one["bf16_weight_bytes"]),
        )  # fmt: skip
    base = facts["embedded_base"]
    if "missing" in base:
        return [table, f"Embedded base: {base['missing']}"]
    size = f"{base['stored_parameters']:,} parameters, {_bytes(base['file_bytes'])}"
    return [table, f"Embedded base (embedded:base): {size}. More: cairn info embedded:base"]


def _comparison_tables(facts: dict[str, Any]) -> list[Any]:
    from cairn.verbs.info_compare import comparison_tables

    return comparison_tables(facts, _table)


def _recipe_tables(facts: dict[str, Any]) -> list[Any]:
    from cairn.verbs.info_recipe import recipe_tables

    return recipe_tables(facts, _table)


_TABLES = {
    "preset": _model_tables, "model": _model_tables, "stack": _stack_tables, "shards": _shard_tables,
    "overview": _overview_tables, "comparison": _comparison_tables, "recipe": _recipe_tables,
}  # fmt: skip
