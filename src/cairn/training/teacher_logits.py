"""What a teacher says about every position of the training data, read once and kept on the disk.

    rows of the data ─▶ teacher ─▶ log-softmax at T ─▶ top k, the rest ─▶ FOLDER/rows-00000.npy ... manifest.json (last)

    record of a position   k ids, k log-probabilities (float16), the log-probability of all other tokens

The files are memory-mapped while training, so that a step reads its own rows only. A kill loses the file under way;
the same call makes what is missing. settings.json names teacher, tokenizer, data and settings: logits of another
teacher, or for other rows, are refused. The manifest, written last, has each file's SHA-256.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cairn.bases import load_base, load_tokenizer
from cairn.data.loader import PackedLoader
from cairn.errors import ArtifactError, CheckpointError, TokenizerError
from cairn.files import atomic_file, sha256_file, sha256_json, write_json
from cairn.identity import base_identity
from cairn.models.tokenization import tokenizer_fingerprint
from cairn.progress import Progress
from cairn.training.distill_logits import DistillLogitsConfig

__all__ = ["TeacherLogits", "check_teacher_tokenizer", "write_teacher_logits"]

_ROWS_EACH = 256  # in one file
_FLOOR = -20.0  # log-probability of a rest that is nothing: float16 holds no -inf that would not spoil sums
_MANIFEST = "manifest.json"


def check_teacher_tokenizer(teacher: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Checks that a teacher reads the same ids, before it is asked anything.

    Raises:
        TokenizerError: its tokenizer has another fingerprint. CheckpointError: there is no such teacher.
    """
    own, theirs = tokenizer_fingerprint(tokenizer), tokenizer_fingerprint(load_tokenizer(teacher))
    if own != theirs:
        raise TokenizerError(
            f"the teacher {teacher} has another tokenizer: its logits are about other tokens", value=theirs[:16],
            allowed=f"the fingerprint of this run's tokenizer, {own[:16]}",
            next=f"set tokenizer.source={teacher} to train the student on the teacher's tokens, or let the teacher "
            "write text instead (data.written), which crosses tokenizers",
        )


def write_teacher_logits(
    config: DistillLogitsConfig, teacher: str, loader: PackedLoader, steps: int, vocab_size: int, folder: Path,
    device: torch.device, *, say: Callable[[str], None] = lambda line: None,
) -> TeacherLogits:
    """Reads the data with the teacher, or finishes what an earlier call began.

    Args:
        config: settings.
        teacher: name or folder, resolved.
        loader: the rows of the training; under several processes each makes its share of the files.
        steps: of the training: only their rows are read, unless `config.cache` asks for all.
        vocab_size: of the student; the teacher's further outputs (padding of its table) are cut off.
        folder: where the files go.
        device: where the teacher runs.
        say: takes lines for the reader.

    Returns:
        The rows; `finish` them when every process is done.

    Raises:
        CheckpointError: the teacher cannot be loaded, its vocabulary is smaller than the student's, or its context
            shorter than the rows.
        ArtifactError: the folder holds the logits of another teacher or other rows, or is damaged.
        StorageError: the disk is full or may not be written.
    """
    wanted = _wanted_blocks(config, loader, steps)
    k = min(config.top_k, vocab_size)
    facts = {
        "format": "cairn-teacher-logits", "version": 1, "teacher": _teacher_facts(teacher),
        "tokenizer": loader.shards.tokenizer_fingerprint, "data": loader.shards.fingerprint,
        "sequence_length": loader.sequence_length, "top_k": k, "temperature": config.temperature,
        "vocab_size": vocab_size, "rows": len(wanted), "rows_sha256": sha256_json(wanted.tolist()),
        "dtype": config.teacher_dtype,
    }
    stamp = folder / "settings.json"
    if stamp.exists() and json.loads(stamp.read_text(encoding="utf-8")) != facts:
        raise ArtifactError(
            "this folder holds the logits of another teacher, other rows or other settings", value=str(folder),
            allowed="what its settings.json says", next="choose another objective.cache, or delete the folder",
        )
    if loader.rank == 0 and not stamp.exists():
        write_json(stamp, facts)
    names = [f"rows-{start // _ROWS_EACH:05d}.npy" for start in range(0, len(wanted), _ROWS_EACH)]
    left = [
        (name, wanted[number * _ROWS_EACH : (number + 1) * _ROWS_EACH])
        for number, name in enumerate(names)
        if number % loader.world_size == loader.rank and not (folder / name).exists()
    ]
    if left and not (folder / _MANIFEST).exists():
        size = len(wanted) * loader.sequence_length * _record(k, vocab_size).itemsize
        if loader.rank == 0:
            say(f"teacher: {teacher} reads {len(wanted):,} rows of {loader.sequence_length} tokens; {size / 1e6:,.0f} "
                f"MB in {folder}")
        model = _load_teacher(teacher, config.teacher_dtype, device, loader.sequence_length, vocab_size)
        with Progress("teacher", sum(len(rows) for _, rows in left)) as progress:
            for name, rows in left:
                made = _read_rows(model, loader, rows, k, vocab_size, config, progress.advance)
                with atomic_file(folder / name) as temporary, open(temporary, "wb") as file:
                    np.save(file, made)
    return TeacherLogits(folder, wanted, names)


class TeacherLogits:
    """The rows on the disk; `finish` once all files are there, then `rows` gives those of any blocks.

    Args:
        folder: where they are.
        blocks: the block number of each row, ascending.
        names: the files, in order.
    """

    def __init__(self, folder: Path, blocks: np.ndarray, names: list[str]) -> None:
        self.folder, self._blocks, self._names = folder, blocks, names
        self._files: dict[int, np.ndarray] = {}

    def finish(self, *, write: bool) -> None:
        """Writes the manifest if it is not there yet, or checks the files against it.

        Args:
            write: this process writes; the others only look.

        Raises:
            ArtifactError: a file is missing or has changed.
        """
        if not write:
            return
        path = self.folder / _MANIFEST
        found = {name: sha256_file(self.folder / name) for name in self._names if (self.folder / name).exists()}
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else found
        wrong = [name for name in self._names if name not in found or known.get(name) != found[name]]
        if wrong:
            raise ArtifactError(
                "the teacher's logits are damaged: a file is missing or has changed",
                value=str(self.folder / wrong[0]), next=f"delete {self.folder} and run the same command again",
            )
        if not path.exists():
            write_json(path, found)

    def rows(self, blocks: np.ndarray) -> dict[str, np.ndarray]:
        """Returns what the teacher says about blocks of the data.

        Returns:
            teacher_ids int64 [rows, seq, k], teacher_logprobs float32 [rows, seq, k], teacher_rest float32 [rows, seq].

        Raises:
            KeyError: a block was not read.
        """
        places = np.searchsorted(self._blocks, blocks)
        if (places >= len(self._blocks)).any() or (self._blocks[places] != blocks).any():
            raise KeyError(f"the teacher has not read all of the blocks {blocks.tolist()}")
        found = [self._file(int(place) // _ROWS_EACH)[int(place) % _ROWS_EACH] for place in places]
        return {
            "teacher_ids": np.stack([row["ids"] for row in found]).astype(np.int64),
            "teacher_logprobs": np.stack([row["logprobs"] for row in found]).astype(np.float32),
            "teacher_rest": np.stack([row["rest"] for row in found]).astype(np.float32),
        }

    def _file(self, number: int) -> np.ndarray:
        if number not in self._files:
            self._files[number] = np.load(self.folder / self._names[number], mmap_mode="r")
        return self._files[number]


def _wanted_blocks(config: DistillLogitsConfig, loader: PackedLoader, steps: int) -> np.ndarray:
    if config.cache is not None or steps * loader.batch_size >= loader.blocks:
        return np.arange(loader.blocks)
    return np.unique(np.concatenate([loader.block_numbers(step, all_ranks=True) for step in range(steps)]))


def _teacher_facts(teacher: str) -> dict[str, Any]:
    facts = base_identity(teacher)
    return {key: facts[key] for key in ("config_sha256", "weights_sha256", "tokenizer_fingerprint")}


def _load_teacher(
    teacher: str, dtype: str, device: torch.device, sequence_length: int, vocab_size: int
) -> PreTrainedModel:
    model, _ = load_base(teacher, dtype=dtype, device=device)
    rows = model.get_output_embeddings().weight.shape[0]
    if rows < vocab_size:
        raise CheckpointError("the teacher's vocabulary is smaller than the student's", value=rows,
                              allowed=f"at least {vocab_size}", next="choose a teacher of this tokenizer")
    context = getattr(model.config, "max_position_embeddings", None)
    if context is not None and context < sequence_length:
        raise CheckpointError("the teacher's context is shorter than the rows", value=context,
                              allowed=f"at least sequence_length = {sequence_length}",
                              next=f"set sequence_length={context}, or choose another teacher")
    return model


def _record(k: int, vocab_size: int) -> np.dtype:
    number = "<u2" if vocab_size <= 2**16 else "<u4"
    return np.dtype([("ids", number, (k,)), ("logprobs", "<f2", (k,)), ("rest", "<f2")])


@torch.no_grad()
def _read_rows(
    model: PreTrainedModel, loader: PackedLoader, blocks: np.ndarray, k: int, vocab_size: int,
    config: DistillLogitsConfig, advance: Callable[[int], None],
) -> np.ndarray:
    """Returns the records of blocks, [rows, seq]."""
    made = np.empty((len(blocks), loader.sequence_length), _record(k, vocab_size))
    for start in range(0, len(blocks), config.teacher_rows):
        part = blocks[start : start + config.teacher_rows]
        ids = torch.from_numpy(np.stack([loader.block(number)[:-1] for number in part]).astype(np.int64))
        logits = model(input_ids=ids.to(model.device), use_cache=False).logits[..., :vocab_size].float()
        logprobs: Tensor = F.log_softmax(logits / config.temperature, dim=-1)
        top, places = logprobs.topk(k, dim=-1)  # [rows, seq, k]
        rest = (1 - top.exp().sum(-1)).clamp(min=np.exp(_FLOOR)).log()
        rows = made[start : start + len(part)]
        rows["ids"], rows["logprobs"], rows["rest"] = places.cpu().numpy(), top.cpu().numpy(), rest.cpu().numpy()
        advance(len(part))
    return made
