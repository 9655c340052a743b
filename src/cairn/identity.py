"""What tells one base model from another, and whether an adapter belongs to it.

    base ──> base_identity ──> cairn_adapter.json in the adapter folder    written by `cairn finetune`
                                      │
    another day, another base ──> check_adapter ──> AdapterError, or the adapter is loaded

The frozen base and its adapters are separate files: an adapter on another base of the same shape gives text, the
wrong one, and no error. So every adapter folder carries the identity of its base, and both are compared before use.
An adapter that some other tool wrote carries none: the shapes of its matrices are compared then.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cairn.bases import base_folder, check_model_files, check_safetensors, first_line, load_tokenizer, weight_files
from cairn.errors import AdapterError
from cairn.files import sha256_file, sha256_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["ADAPTER_CARD", "base_identity", "check_adapter", "model_identity", "same_base"]

ADAPTER_CARD = "cairn_adapter.json"
_UNSTABLE_CONFIG = ("transformers_version", "_name_or_path", "dtype", "torch_dtype")
_SHAPE = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "vocab_size": "vocab_size"}  # second: GPT-2's names


def base_identity(name: str | Path) -> dict[str, Any]:
    """Returns what tells a base from any other, written into every adapter folder made for it.

    Args:
        name: as in `resolve_base`.

    Returns:
        name, config_sha256 (shape, without versions), weights_sha256, tokenizer_fingerprint, hidden_size,
        num_hidden_layers, vocab_size.

    Raises:
        CheckpointError, TokenizerError: as `load_base`.
    """
    folder = base_folder(str(name))
    check_model_files(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    weights = {file.name: sha256_file(file) for file in weight_files(folder)}
    return {
        "name": str(name),
        **_config_facts(config),
        "weights_sha256": sha256_json(weights),
        "tokenizer_fingerprint": _fingerprint(load_tokenizer(str(name))),
    }


def model_identity(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Returns the identity of a model in memory: as `base_identity`, but without hashes of files."""
    facts = _config_facts(model.config.to_dict())
    return {
        "name": type(model).__name__,
        **{**facts, "config_sha256": None},
        "weights_sha256": None,
        "tokenizer_fingerprint": _fingerprint(tokenizer),
    }


def _config_facts(config: Mapping[str, Any]) -> dict[str, Any]:
    stable = {key: value for key, value in config.items() if key not in _UNSTABLE_CONFIG}
    shape = {key: config.get(key, config.get(other)) for key, other in _SHAPE.items()}
    return {"config_sha256": sha256_json(stable), **shape}


def _fingerprint(tokenizer: PreTrainedTokenizerBase) -> str | None:
    from cairn.models.tokenization import tokenizer_fingerprint

    try:
        return tokenizer_fingerprint(tokenizer)
    except TypeError:  # a slow tokenizer has no rules to read
        return None


def same_base(mine: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Returns how two identities differ, one text per fact; facts that one of them does not know are left out."""
    facts = ("hidden_size", "num_hidden_layers", "vocab_size", "tokenizer_fingerprint", "weights_sha256")
    found = []
    for fact in facts:
        left, right = mine.get(fact), other.get(fact)
        if left is not None and right is not None and left != right:
            found.append(f"{fact} {str(left)[:12]} instead of {str(right)[:12]}")
    return found


def check_adapter(folder: str | Path, identity: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Checks an adapter folder against the base it is to run on, before it is loaded.

    Args:
        folder: a PEFT folder; with `cairn_adapter.json` the identity of its base is compared, and always the shape
            of each LoRA matrix with the weight it belongs to.
        identity: of the base (`base_identity` or `model_identity`).
        shapes: shape of each weight of the base, by its name.

    Raises:
        AdapterError: it is missing, damaged, or made for another base.
    """
    folder = Path(folder)
    again = "train it again with `cairn finetune`, or copy the folder again"
    if not (folder / "adapter_config.json").is_file():
        raise AdapterError("no adapter in this folder: adapter_config.json is missing", value=str(folder), next=again)
    weights = folder / "adapter_model.safetensors"
    if not weights.is_file():
        raise AdapterError("the adapter has no adapter_model.safetensors", value=str(folder), next=again)
    check_safetensors(weights, AdapterError, again)
    card = folder / ADAPTER_CARD
    other = "give the base it was made for with --base, or train it again with `cairn finetune`"
    try:
        settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        made_for = json.loads(card.read_text(encoding="utf-8"))["base"] if card.is_file() else {}
    except (OSError, ValueError, KeyError) as error:
        raise AdapterError(f"the adapter is damaged ({first_line(error)})", value=str(folder), next=again) from None
    differences = same_base(identity, made_for)
    if differences:
        raise AdapterError(
            f"the adapter was made for another base: this one has {', '.join(differences)}", value=str(folder),
            allowed=f"base {made_for.get('name', 'unknown')}", next=other,
        )  # fmt: skip
    if settings.get("peft_type") != "LORA":
        return
    _check_lora_shapes(folder, weights, shapes, other)


def _check_lora_shapes(folder: Path, weights: Path, shapes: Mapping[str, tuple[int, ...]], next: str) -> None:
    with open(weights, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    for key, entry in header.items():
        side = _lora_side(key)
        if side is None:
            continue
        target = key.removeprefix("base_model.model.").split(f".lora_{side}.")[0] + ".weight"
        axis = 1 if side == "A" else 0  # A is [rank, inputs], B is [outputs, rank]; the base's weight [outputs, inputs]
        expected = shapes.get(target)
        if expected is None or len(expected) != 2 or entry["shape"][axis] not in expected:
            raise AdapterError(
                f"the adapter was made for another base: {target} is "
                + ("not in this one" if expected is None else f"{list(expected)} here"),
                value=f"{key} {entry['shape']} in {folder}",
                next=next,
            )


def _lora_side(key: str) -> str | None:
    """Returns which half of a LoRA pair a tensor is, "A" or "B"; None for other tensors."""
    for side in ("A", "B"):
        if f".lora_{side}." in key:
            return side
    return None
