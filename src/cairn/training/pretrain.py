"""Pretraining: from a recipe to a model folder.

    recipe ─▶ sample of every source ─▶ tokenizer ─▶ mixture of sources ─▶ shards ─▶ loop ─▶ model folder

    RUN/tokenizer/       trained once                     RUN/shards/     written once, hashes checked
    RUN/checkpoints/     written as the loop goes         RUN/model/      weights in bf16, tokenizer, code: the result

Each part is finished before the next begins, and a part that is there and whole is not made again: the same command
goes on where it was. Under torchrun every process runs this; the first one writes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging

from cairn.config import StrictModel
from cairn.data.corpora import SourceConfig, iterate
from cairn.data.decontaminate import Decontaminator
from cairn.data.loader import PackedLoader
from cairn.data.mixture import write_mixture
from cairn.data.shards import ShardProgress, ShardSet, ShardSummary
from cairn.errors import ConfigError
from cairn.files import atomic_folder, sha256_json
from cairn.models import CairnForCausalLM
from cairn.models.presets import PRESETS, preset_config
from cairn.models.tokenization import completion_ids, prompt_ids, train_bpe
from cairn.runs import RunFolder
from cairn.training.loop import LoopConfig, LoopResult, train
from cairn.training.objectives import next_token
from cairn.training.optim import OptimizerConfig, ScheduleConfig, build_optimizers

__all__ = ["PretrainRecipe", "bits_per_byte", "pretrain"]


class TokenizerConfig(StrictModel):
    """The tokenizer: trained on the first `train_bytes` of the mixture's sources, or taken from a folder or the hub."""

    vocab_size: int = Field(4096, ge=320)
    train_bytes: int = Field(30_000_000, gt=0)
    source: str | None = None


class DataConfig(StrictModel):
    """The text: sources and their mixture, validation files, and evaluation sets to keep out.

    Args:
        sources: what to mix; relative paths start at `root`.
        root: folder of relative paths; None = the recipe's own folder.
        total_tokens: length of the stream; None = one pass over the sources.
        validation: sources for bits per byte while training; a generator gets another seed than in training.
        validation_bytes: bytes read from the start of each.
        keep_out: evaluation texts that must not be trained on; a piece that overlaps one is dropped and counted.
        seed: of shuffles and generators.
    """

    sources: list[SourceConfig] = Field(min_length=1)
    root: str | None = None
    total_tokens: int | None = Field(None, ge=1)
    validation: list[SourceConfig] = []
    validation_bytes: int = Field(100_000, gt=0)
    keep_out: list[SourceConfig] = []
    seed: int = 0


class ModelConfig(StrictModel):
    """The shape: a preset and the fields that differ from it (`vocab_size` follows the tokenizer)."""

    preset: str = "base"
    changes: dict[str, Any] = {}

    @field_validator("preset")
    @classmethod
    def _known(cls, value: str) -> str:
        preset_config(value)
        return value

    @field_validator("changes")
    @classmethod
    def _fields(cls, value: dict[str, Any]) -> dict[str, Any]:
        if "vocab_size" in value:
            raise ValueError("vocab_size follows the tokenizer; set tokenizer.vocab_size")
        preset_config(next(iter(PRESETS)), **value)
        return value


class PretrainRecipe(StrictModel):
    """A whole pretraining run.

    Args:
        steps: optimizer steps.
        sequence_length: tokens per row.
        batch_rows: rows of the global batch, over all processes.
        samples: prompts continued at every evaluation.
    """

    recipe: Literal["pretrain"]
    name: str
    seed: int = 0
    tokenizer: TokenizerConfig = TokenizerConfig()
    data: DataConfig
    model: ModelConfig = ModelConfig()
    steps: int = Field(ge=1)
    sequence_length: int = Field(512, ge=8)
    batch_rows: int = Field(32, ge=1)
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    loop: LoopConfig = LoopConfig()
    samples: list[str] = ["Once upon a time"]
    device: str = "auto"


def pretrain(
    recipe: PretrainRecipe,
    out: str | Path,
    *,
    recipe_folder: str | Path = ".",
    say: Callable[[str], None] = print,
) -> LoopResult:
    """Runs a recipe to the end, or on from where an earlier call stopped.

    Args:
        recipe: what to do.
        out: run folder.
        recipe_folder: where relative paths of the recipe start.
        say: prints a line of what is being done.

    Returns:
        What the loop reports; the model is in `out`/model.

    Raises:
        ConfigError: `out` holds another run, or the model cannot take `sequence_length`.
        DataError, ShardError, TokenizerError, CheckpointError, StorageError: as their parts say.
    """
    rank, world, device = _processes(recipe.device)
    root = Path(recipe_folder) / (recipe.data.root or ".")
    out = Path(out)
    if rank == 0:
        run = RunFolder(out, recipe, seed=recipe.seed)
    _barrier(world)
    if rank:
        run = RunFolder(out, recipe, seed=recipe.seed)
    if rank == 0:
        tokenizer = _tokenizer(recipe, root, out, say)
        _shards(recipe, root, out, tokenizer, say)
    _barrier(world)
    tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer")
    shards = ShardSet.open(out / "shards", tokenizer, verify=rank == 0)
    torch.manual_seed(recipe.seed)
    config = preset_config(
        recipe.model.preset, **{**recipe.model.changes, "vocab_size": len(tokenizer)}
    )
    if recipe.sequence_length > config.max_position_embeddings:
        raise ConfigError(
            str(out), [f"sequence_length: {recipe.sequence_length}, allowed: at most the model's "
                       f"max_position_embeddings ({config.max_position_embeddings})"],
        )
    model = CairnForCausalLM(config).to(device)
    loader = PackedLoader(shards, recipe.sequence_length, recipe.batch_rows, recipe.seed, rank, world)
    if rank == 0:
        say(f"model: {model.num_parameters():,} parameters; stream: {len(shards):,} tokens; "
            f"{recipe.steps:,} steps of {loader.tokens_per_step:,} tokens ({loader.epoch(recipe.steps):.2f} epochs); "
            f"{world} process(es), {torch.get_num_threads()} threads, {device}")
    validation = {
        source.name: list(_head(iterate(source, root=root, seed=recipe.data.seed + 1), recipe.data.validation_bytes))
        for source in recipe.data.validation
    } if rank == 0 else {}

    def evaluate(step: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if rank == 0:
            with torch.autocast(device.type, torch.bfloat16, enabled=recipe.loop.autocast == "bf16"):
                for name, texts in validation.items():
                    found[f"bits_per_byte/{name}"] = bits_per_byte(model, tokenizer, texts, recipe.sequence_length)
                found["sample"] = "\n".join(sample(model, tokenizer, prompt) for prompt in recipe.samples)
        return found

    result = train(
        model, next_token, loader, build_optimizers(model, recipe.optimizer), recipe.schedule, recipe.steps,
        recipe.loop, run, evaluate=evaluate, title=f"pretrain {recipe.name}",
    )
    if rank == 0:
        if not run.finished:
            logging.disable_progress_bar()  # of one file, written at once
            with atomic_folder(out / "model") as folder:
                model.to(torch.bfloat16).save_pretrained(folder)
                tokenizer.save_pretrained(folder)
            run.finish(sorted(str(f.relative_to(out)) for f in (out / "model").iterdir() if f.is_file()))
        say(f"model folder: {out / 'model'}")
    _barrier(world)
    return result


def bits_per_byte(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], window: int, rows: int = 8
) -> float:
    """Bits per raw UTF-8 byte of texts, cut into windows without overlap (a monitor: `cairn eval` slides).

    Args:
        model: causal LM.
        tokenizer: its tokenizer.
        texts: documents; each is encoded with its start and end markers, and the bits of both count.
        window: tokens per window.
        rows: windows per forward pass.
    """
    device = next(model.parameters()).device
    ids: list[int] = []
    size = 0
    for text in texts:
        ids += prompt_ids(tokenizer, "") + completion_ids(tokenizer, text)
        size += len(text.encode())
    windows = [torch.tensor(ids[i : i + window + 1]) for i in range(0, len(ids) - 1, window)]
    nats = 0.0
    with torch.no_grad():
        for start in range(0, len(windows), rows):
            part = nn.utils.rnn.pad_sequence(windows[start : start + rows], batch_first=True, padding_value=-100)
            part = part.to(device)
            logits = model(input_ids=part[:, :-1].clamp(min=0), use_cache=False).logits
            nats += float(F.cross_entropy(logits.flatten(0, 1).float(), part[:, 1:].flatten(), reduction="sum"))
    return nats / math.log(2) / size


def sample(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompt: str, new_tokens: int = 48, seed: int = 0
) -> str:
    """Continues a prompt at temperature 0.8, without touching the global random state."""
    ids = torch.tensor([prompt_ids(tokenizer, prompt)], device=model.device)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=True, temperature=0.8,
            top_k=40, pad_token_id=tokenizer.pad_token_id,
        )
    return tokenizer.decode(out[0], skip_special_tokens=True)


def _tokenizer(
    recipe: PretrainRecipe, root: Path, out: Path, say: Callable[[str], None]
) -> PreTrainedTokenizerBase:
    folder = out / "tokenizer"
    if not folder.exists():
        if recipe.tokenizer.source:
            tokenizer: Any = AutoTokenizer.from_pretrained(recipe.tokenizer.source)
        else:
            say(f"tokenizer: training {recipe.tokenizer.vocab_size:,} entries on "
                f"{recipe.tokenizer.train_bytes / 1e6:.0f} MB of the sources")
            tokenizer = train_bpe(_tokenizer_texts(recipe, root), recipe.tokenizer.vocab_size)
        with atomic_folder(folder) as temporary:
            tokenizer.save_pretrained(temporary)
    return AutoTokenizer.from_pretrained(folder)


def _tokenizer_texts(recipe: PretrainRecipe, root: Path) -> Iterator[str]:
    """Yields an equal number of bytes from each source (a weighted one: its share), `train_bytes` in all."""
    sources = recipe.data.sources
    given = sum(source.weight or 0 for source in sources)
    others = sum(source.weight is None for source in sources)
    for source in sources:
        share = source.weight if source.weight is not None else max(1 - given, 0) / others
        yield from _head(iterate(source, root=root, seed=recipe.data.seed), int(recipe.tokenizer.train_bytes * share))


def _shards(
    recipe: PretrainRecipe, root: Path, out: Path, tokenizer: PreTrainedTokenizerBase, say: Callable[[str], None]
) -> ShardSummary:
    if (out / "shards" / "manifest.json").exists():  # written by an earlier call; whole, or the loader refuses it
        return ShardSet.open(out / "shards", tokenizer, verify=False).summary
    last = {"source": None, "bytes": 0}

    def report(progress: ShardProgress) -> None:
        if progress.source != last["source"] or progress.raw_bytes - last["bytes"] > 20_000_000:
            last.update(source=progress.source, bytes=progress.raw_bytes)
            say(f"shards: {progress.source}: {progress.raw_bytes / 1e6:.1f} MB, {progress.tokens:,} tokens, "
                f"{progress.mb_per_s:.2f} MB/s")

    keep = None
    if recipe.data.keep_out:
        keep = Decontaminator()
        for known in recipe.data.keep_out:
            keep.add(known.name, iterate(known, root=root))
            say(f"keeping out: {known.name}")
    summary = write_mixture(
        recipe.data.sources, tokenizer, out / "shards", recipe.data.seed, recipe.data.total_tokens, root=root,
        on_progress=report, reject=keep.overlaps if keep else None,
        reject_key=sha256_json([known.model_dump(mode="json") for known in recipe.data.keep_out]),
    )
    say(f"shards: {summary.tokens:,} tokens, {summary.raw_bytes / 1e6:.1f} MB of text, "
        f"{summary.bytes_per_token:.2f} bytes per token, {summary.mb_per_s:.2f} MB/s")
    return summary


def _head(texts: Iterable[str], size: int) -> Iterator[str]:
    """Yields texts until `size` characters are reached, the last one cut."""
    for text in texts:
        yield text[:size]
        size -= len(text)
        if size <= 0:
            return


def _processes(device: str) -> tuple[int, int, torch.device]:
    """Joins the process group that torchrun describes; returns rank, world size and this process's device."""
    from cairn.bases import pick_device

    chosen = pick_device(device)
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1:
        return 0, 1, chosen
    if not dist.is_initialized():
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    if chosen.type == "cuda":
        chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(chosen)
    return dist.get_rank(), world, chosen


def _barrier(world: int) -> None:
    if world > 1:
        dist.barrier()
