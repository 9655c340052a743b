"""What `cairn finetune` puts around the trained adapters, so that the folder can be run and read elsewhere.

    OUT/stages/, comparators/     adapters (training/finetune.py)
    OUT/base/                     the base, if it was a local folder
    OUT/base.json                 its fingerprints
    OUT/training.json             every number of the training
    OUT/README.md                 card
    OUT/stack.yaml                written last: where it is, the folder is whole
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cairn.config import save_config
from cairn.files import atomic_folder, write_json, write_text
from cairn.stacks.spec import StackSpec
from cairn.training.finetune_plan import StackTraining

__all__ = ["comparator_folder", "training_facts", "write_stack_folder"]

_BASE_FILES = ("*.json", "*.safetensors", "*.bin", "*.model", "*.txt", "*.jinja", "*.py", "README*", "LICENSE*")


def comparator_folder(folder: str | Path, name: str) -> Path:
    """Returns where a trained stack keeps a comparator: comparators/NAME."""
    return Path(folder) / "comparators" / name


def training_facts(
    spec: StackSpec,
    training: StackTraining,
    results: Mapping[str, Mapping[str, Any]],
    *,
    ranks: Mapping[str, int],
    ambiguous: Mapping[str, int],
) -> dict[str, Any]:
    """Returns the numbers of the stack, of each adapter and of each comparator.

    Args:
        spec: the stack.
        training: its settings.
        results: adapter or comparator -> fields of its AdapterResult.
        ranks: adapter or comparator -> LoRA rank.
        ambiguous: adapter or comparator -> pairs whose prompt also occurs with another completion.
    """
    adapters = spec.adapter_names()
    rows = {name: {**row, "rank": ranks[name], "ambiguous_pairs": ambiguous[name]} for name, row in results.items()}
    sums = ("trained_parameters", "training_tokens", "steps", "seconds")
    return {
        "stack": {"name": spec.name, **{key: sum(rows[name][key] for name in adapters) for key in sums}},
        "adapters": {name: rows[name] for name in adapters},
        "comparators": {name: row for name, row in rows.items() if name not in adapters},
        "settings": training.model_dump(mode="json"),
    }


def write_stack_folder(
    spec: StackSpec,
    out: Path,
    identity: Mapping[str, Any],
    facts: Mapping[str, Any],
    examples: Path,
    *,
    bundle_base: bool,
) -> None:
    """Completes a stack folder whose adapters are trained.

    Args:
        spec: the stack as it was trained.
        out: the folder.
        identity: of the base.
        facts: for training.json.
        examples: the file that it was trained from; stack.yaml names it relative to `out`.
        bundle_base: copy a base that is a local folder into `out`; else stack.yaml names its relative path.

    Raises:
        StorageError: the disk is full or `out` may not be written.
    """
    name, place = spec.base, Path(spec.base_place).expanduser()
    if place.is_dir():
        name = "base" if bundle_base else _relative(place, out)
        if bundle_base:
            _bundle(place, out / "base", identity)
    write_json(out / "base.json", dict(identity))
    write_json(out / "training.json", dict(facts))
    write_text(out / "README.md", _card(spec, identity, facts))
    save_config(spec.model_copy(update={"base": name, "examples": _relative(examples, out)}), out / "stack.yaml")


def _relative(path: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()
    except ValueError:  # another drive, on Windows
        return str(path.resolve())


def _bundle(source: Path, target: Path, identity: Mapping[str, Any]) -> None:
    """Copies a model folder, unless the same base is there already."""
    from cairn.identity import base_identity, same_base

    if (target / "config.json").is_file() and not same_base(base_identity(target), identity):
        return
    files = sorted({file for pattern in _BASE_FILES for file in source.glob(pattern) if file.is_file()})
    with atomic_folder(target) as temporary:
        for file in files:
            shutil.copyfile(file, temporary / file.name)


def _card(spec: StackSpec, identity: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    rows = [
        f"| {kind} | {row['name']} | {row['rank']} | {row['trained_parameters']:,} | {row['training_tokens']:,} |"
        f" {row['steps']:,} | {row['seconds']:.0f} |"
        for kind in ("adapters", "comparators")
        for row in facts[kind].values()
    ]
    total = facts["stack"]
    stages = [f"- **{stage.name}** ({stage.kind}), adapter `{stage.adapter_name}`" for stage in spec.stages]
    return "\n".join(
        [
            f"# {spec.name}",
            "",
            spec.description or "A stack of small language models.",
            "",
            "```",
            'cairn run FOLDER "..."     # FOLDER is this one',
            "```",
            "",
            f"Base: `{identity['name']}` ({identity['num_hidden_layers']} layers x {identity['hidden_size']}); its "
            "fingerprints are in base.json. Stages, in the order they run:",
            "",
            *stages,
            "",
            f"Trained parameters of the stack: {total['trained_parameters']:,}; training tokens: "
            f"{total['training_tokens']:,}; examples: {facts['examples']['training']:,}. "
            "All numbers are in training.json.",
            "",
            "| kind | name | rank | parameters | tokens | steps | seconds |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )
