"""Putting PEFT adapters on a base: beside it, or merged into a copy of it.

    folder ── every tensor of the file must find its place ──┬─> PeftModel with all adapters, one active at a time
                                                              └─> plain model, W + B A * scale written into the weights
                                                                  (layers that share a weight get one each before)

PEFT only warns about tensors that it could not place, and goes on with an adapter that does nothing there. Into a
weight that several layers share it merges the part of every layer, without a word: each layer then has all of them.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from transformers import PreTrainedModel

from cairn.bases import first_line
from cairn.errors import AdapterError
from cairn.models.export import untied
from cairn.models.modeling import CairnForCausalLM

__all__ = ["load_merged", "load_peft", "lora_shares_weights"]


def load_peft(model: PreTrainedModel, adapters: Mapping[str, str | Path]) -> PeftModel:
    """Returns the base with all adapters beside it; the base itself is wrapped, not copied.

    Args:
        model: the base.
        adapters: name -> PEFT folder, at least one.

    Raises:
        AdapterError: an adapter cannot be loaded, or its file does not hold exactly the tensors it promises.
    """
    peft: PeftModel | None = None
    for name, folder in adapters.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what PEFT warns of is checked below, as an error
                if peft is None:
                    peft = PeftModel.from_pretrained(model, str(folder), adapter_name=name)
                else:
                    peft.load_adapter(str(folder), adapter_name=name)
        except Exception as error:  # PEFT, safetensors and torch raise every kind here
            raise AdapterError(
                f"the adapter cannot be loaded ({first_line(error)})",
                value=str(folder),
                next="train it again with `cairn finetune`, or copy the folder again",
            ) from error
        if peft.peft_config[name].is_prompt_learning:
            raise AdapterError(
                "an adapter of learnt prompts cannot be switched on and off here", value=str(folder), allowed="LoRA"
            )
        _check_complete(peft, name, Path(folder))
    if peft is None:
        raise AdapterError("no adapter given", next="give at least one folder")
    return peft.eval()


def load_merged(model: PreTrainedModel, name: str, folder: str | Path) -> PreTrainedModel:
    """Returns the base with one adapter merged into its weights.

    The sum is formed in float32 and rounded once to the model's own dtype. Where several layers of a Cairn model share
    a weight that the adapter changes, the result shares none: each layer gets its own part.

    Args:
        model: a copy of the base that may be changed.
        name: the adapter's name.
        folder: its PEFT folder.

    Raises:
        AdapterError: as `load_peft`; or the adapter changes a weight that is used elsewhere too and cannot be given
            two values here (shared layers of other architectures, a head tied to the embedding), or a head whose
            logits are softcapped, behind which an adapter adds.
    """
    if lora_shares_weights(model, folder) and isinstance(model, CairnForCausalLM) and model.config.sharing:
        model = untied(model)
    if lora_shares_weights(model, folder):
        raise AdapterError(
            "the adapter cannot be merged: it changes a weight that several layers share",
            value=str(folder),
            next="use merge=False",
        )
    targets = _targets(Path(folder))
    if getattr(model.config, "logit_softcap", None) and any(name.endswith("lm_head") for name in targets):
        raise AdapterError(
            "the adapter cannot be merged: it adds to logits that are softcapped before", value=str(folder),
            next="use merge=False",
        )  # fmt: skip
    dtype = model.dtype
    merged = load_peft(model.float(), {name: folder}).merge_and_unload()
    return merged.to(dtype).eval().requires_grad_(False)


def lora_shares_weights(model: PreTrainedModel, folder: str | Path) -> bool:
    """Returns True if an adapter changes a weight that another module of the model has too.

    One module that stands in several layers counts once: it has one adapter, and a merge is right.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    holders: dict[int, set[int]] = {}  # weight -> modules
    for module in modules.values():
        for weight in module.parameters(recurse=False):
            holders.setdefault(id(weight), set()).add(id(module))
    weights = [getattr(modules.get(target), "weight", None) for target in _targets(Path(folder))]
    return any(len(holders.get(id(weight), ())) > 1 for weight in weights if weight is not None)


def _targets(folder: Path) -> list[str]:
    keys = _header(folder)
    return [key.removeprefix("base_model.model.").split(".lora_A.")[0] for key in keys if ".lora_A." in key]


def _header(folder: Path) -> dict[str, Any]:
    with open(folder / "adapter_model.safetensors", "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__", None)
    return header


def _check_complete(peft: PeftModel, name: str, folder: Path) -> None:
    wanted = set(get_peft_model_state_dict(peft, adapter_name=name, save_embedding_layers=False))
    there = set(_header(folder))
    missing, foreign = sorted(wanted - there), sorted(there - wanted)
    foreign = [key for key in foreign if "embed" not in key and "lm_head" not in key]  # saved whole by some tools
    if missing or foreign:
        count, example = (len(missing), missing[0]) if missing else (len(foreign), foreign[0])
        raise AdapterError(
            f"the adapter does not fit this base: {count} tensors are "
            + ("missing from its file" if missing else "for places that this base does not have"),
            value=f"{example} in {folder}",
            next="give the base it was made for with --base, or train it again with `cairn finetune`",
        )
