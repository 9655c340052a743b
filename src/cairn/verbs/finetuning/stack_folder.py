"""What `cairn finetune` puts around the trained adapters, so that the folder can be run and read elsewhere.

    OUT/stages/, comparators/     adapters (training/finetune.py)
    OUT/training/                 run folders: settings, curves; adapters of earlier phases; the stack's own answers
    OUT/base/                     the base, if it was a local folder
    OUT/base.json                 its fingerprints
    OUT/training.json             every number of the training
    OUT/README.md                 card
    OUT/stack.yaml                written last: where it is, the folder is whole
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cairn.config import save_config
from cairn.data.examples import ambiguous_prompts
from cairn.files import atomic_folder, write_json, write_text
from cairn.stacks.spec import StackSpec
from cairn.training.finetune_plan import StackTraining
from cairn.verbs.finetuning.finetune_jobs import Job

__all__ = ["comparator_folder", "training_facts", "write_stack_folder"]

_BASE_FILES = ("*.json", "*.safetensors", "*.bin", "*.model", "*.txt", "*.jinja", "*.py", "README*", "LICENSE*")


def comparator_folder(folder: str | Path, name: str) -> Path:
    """Returns where a trained stack keeps a comparator: comparators/NAME."""
    return Path(folder) / "comparators" / name


def training_facts(
    spec: StackSpec,
    training: StackTraining,
    results: Sequence[tuple[Job, Mapping[str, Any]]],
    notes: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """Returns the numbers of the stack, of each adapter over its phases, of each phase, and of each comparator.

    The stack's tokens, steps and seconds are those of all phases; its trained parameters are those of the adapters
    that serve. What the stack's own answers cost stands with their phase and is no part of the sums.

    Args:
        spec: the stack.
        training: its settings.
        results: every job with the fields of its AdapterResult, in order of training.
        notes: "hand_off_dropout" (adapter -> counts) and "answers" (phase -> facts of the stack's own answers).
    """
    rows = [
        (job, {**row, "rank": job.config.lora.rank, "ambiguous_pairs": ambiguous_prompts(job.pairs)})
        for job, row in results
    ]
    phases: dict[str, dict[str, dict[str, Any]]] = {}
    for job, row in rows:
        if job.phase != "comparator":
            phases.setdefault(job.phase, {})[job.name] = row
    adapters = {}
    for name in spec.adapter_names():
        mine = [made[name] for made in phases.values() if name in made]
        adapters[name] = {**mine[-1], **_sums(mine), **notes["hand_off_dropout"][name]}
    return {
        "stack": {
            "name": spec.name,
            "trained_parameters": sum(row["trained_parameters"] for row in adapters.values()),
            **_sums([row for made in phases.values() for row in made.values()]),
        },
        "adapters": adapters,
        "phases": [
            {"name": name, **_sums(made.values()), "adapters": made, "answers": notes["answers"].get(name)}
            for name, made in phases.items()
        ],
        "comparators": {job.name: row for job, row in rows if job.phase == "comparator"},
        "settings": training.model_dump(mode="json"),
    }


def _sums(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    listed = list(rows)
    sums = {key: sum(row[key] for row in listed) for key in ("training_tokens", "steps", "seconds")}
    return {**sums, "seconds": round(sums["seconds"], 3)}


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


def _phases(facts: Mapping[str, Any]) -> str:
    """Returns a sentence on the phases; nothing if gold pairs were the only one."""
    if len(facts["phases"]) == 1:
        return ""
    parts = [f"{phase['name']} {phase['training_tokens']:,}" for phase in facts["phases"]]
    return f" Phases, with their training tokens: {', '.join(parts)}."


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
            f"All numbers are in training.json.{_phases(facts)}",
            "",
            "| kind | name | rank | parameters | tokens | steps | seconds |",
            "|---|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )
