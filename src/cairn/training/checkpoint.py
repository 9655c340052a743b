"""Training checkpoints: weights, optimizer, position and random state, written so that a kill never spoils one.

    RUN/checkpoints/step-00001200/state.pt      model (trained parameters), optimizer, step, seconds, RNG; what goes
                                                along with the training (heads of the objective, averages), if anything
                                  sha256        written with it; checked before it is read

The folder is made under a temporary name, fsynced and renamed. The newest `keep` stay.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from cairn.errors import CheckpointError
from cairn.files import atomic_folder, sha256_file
from cairn.training.optim import Optimizers

__all__ = ["Stateful", "latest_checkpoint", "load_checkpoint", "save_checkpoint"]


class Stateful(Protocol):
    """What can be part of a checkpoint beside the model: an `nn.Module` is one."""

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any) -> Any: ...


def trained_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """Returns the parameters that ask for gradients, by name (tied ones once)."""
    return {name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad}


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizers: Optimizers,
    step: int,
    progress: dict[str, float],
    keep: int = 2,
    along: Mapping[str, Stateful] | None = None,
) -> Path:
    """Writes the state after `step` steps and deletes all but the newest `keep` checkpoints.

    Args:
        folder: where checkpoints live.
        step: steps done.
        progress: counters that go on over restarts (seconds, tokens).
        along: what else goes along with the training, by name.

    Raises:
        StorageError: the disk is full or may not be written; older checkpoints are untouched.
    """
    target = folder / f"step-{step:08d}"
    state = {
        "step": step,
        "progress": progress,
        "model": trained_state(model),
        "optimizers": optimizers.state_dict(),
        "rng": torch.get_rng_state(),
        "cuda_rng": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        **({"along": {name: part.state_dict() for name, part in along.items()}} if along else {}),
    }
    with atomic_folder(target) as temporary:
        torch.save(state, temporary / "state.pt")
        (temporary / "sha256").write_text(sha256_file(temporary / "state.pt"))
    for old in sorted(folder.glob("step-*"))[:-keep]:
        shutil.rmtree(old)
    return target


def latest_checkpoint(folder: Path) -> Path | None:
    """Returns the newest whole checkpoint folder, or None."""
    found = sorted(folder.glob("step-*"))
    return found[-1] if found else None


def load_checkpoint(
    path: Path, model: nn.Module, optimizers: Optimizers, along: Mapping[str, Stateful] | None = None
) -> tuple[int, dict[str, float]]:
    """Restores weights, optimizer, random state and what goes along with the training.

    Returns:
        Steps done and the counters given to `save_checkpoint`.

    Raises:
        CheckpointError: the file is damaged, or was written for a model of another shape or another objective.
    """
    file, stamp = path / "state.pt", path / "sha256"
    again = f"delete {path} to go on from the checkpoint before it"
    if not file.exists() or not stamp.exists() or sha256_file(file) != stamp.read_text().strip():
        raise CheckpointError("checkpoint is damaged", value=str(path), allowed="state.pt with its sha256", next=again)
    state = torch.load(file, map_location="cpu", weights_only=True)
    own = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    theirs = state["model"]
    wrong = sorted(set(own) ^ set(theirs)) or [n for n in own if own[n].shape != theirs[n].shape]
    if wrong:
        raise CheckpointError(
            f"checkpoint {path} was written for another model; {len(wrong)} parameters differ, first", value=wrong[0],
            next="choose another folder with --out",
        )
    parts = state.get("along", {})
    if set(parts) != set(along or {}):
        raise CheckpointError(
            f"checkpoint {path} was written for another training: beside the model it holds", value=sorted(parts),
            allowed=str(sorted(along or {})), next="choose another folder with --out",
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(theirs[name])
    for name, part in (along or {}).items():
        part.load_state_dict(parts[name])
    optimizers.load_state_dict(state["optimizers"])
    torch.set_rng_state(state["rng"])
    if torch.cuda.is_available() and len(state["cuda_rng"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda_rng"])
    return state["step"], state["progress"]
