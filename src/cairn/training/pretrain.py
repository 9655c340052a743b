"""Pretraining: from a recipe to a model folder.

    recipe ─▶ (teacher's text) ─▶ tokenizer ─▶ mixture ─▶ shards ─▶ (teacher's logits) ─▶ loop ─▶ model folder

    RUN/tokenizer/       trained once                     RUN/shards/     written once, hashes checked
    RUN/checkpoints/     written as the loop goes         RUN/model/      weights in bf16, tokenizer, code: the result
    RUN/written/         texts of a teacher, if any       RUN/teacher_logits/   of a teacher, if any

Each part is finished before the next begins, and a part that is there and whole is not made again: the same command
goes on where it was. Under torchrun every process runs this; the first one writes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging

from cairn.bases import pick_device, pick_precision
from cairn.data.corpora import SourceConfig, iterate
from cairn.data.decontaminate import Decontaminator
from cairn.data.loader import PackedLoader
from cairn.data.mixture import write_mixture
from cairn.data.shards import ShardProgress, ShardSet, ShardSummary
from cairn.data.teacher import Teacher
from cairn.data.written import TEXT_FILE, write_teacher_text
from cairn.errors import ConfigError
from cairn.files import atomic_folder, sha256_json, write_json
from cairn.models import CairnConfig, CairnForCausalLM
from cairn.models.byte_fit import fit_patch_rule, needs_fitting
from cairn.models.presets import preset_config
from cairn.models.tokenization import byte_tokenizer, completion_ids, prompt_ids, train_bpe
from cairn.runs import RunFolder
from cairn.training.averaging import WeightAverage
from cairn.training.checkpoint import latest_checkpoint
from cairn.training.distill_logits import DistillLogitsConfig
from cairn.training.loop import LoopResult, train
from cairn.training.objective_config import build_objective
from cairn.training.objectives import PretrainObjective
from cairn.training.optim import build_optimizers
from cairn.training.pretrain_batches import PretrainBatches
from cairn.training.pretrain_recipe import PretrainRecipe
from cairn.training.schedules import DropoutSchedule
from cairn.training.teacher_logits import TeacherLogits, check_teacher_tokenizer, write_teacher_logits

__all__ = ["PretrainRecipe", "bits_per_byte", "model_config", "prepare", "pretrain"]

_PATCH_SAMPLE_BYTES = 4_000_000  # of text, from which the patch rule of a byte model is counted


def pretrain(
    recipe: PretrainRecipe,
    out: str | Path,
    *,
    recipe_folder: str | Path = ".",
    teacher: Teacher | None = None,
    say: Callable[[str], None] = print,
) -> LoopResult:
    """Runs a recipe to the end, or on from where an earlier call stopped.

    Args:
        recipe: what to do.
        out: run folder.
        recipe_folder: where relative paths of the recipe start.
        teacher: writes the texts that `data.written` asks for.
        say: prints a line of what is being done.

    Returns:
        What the loop reports; the model is in `out`/model.

    Raises:
        ConfigError: `out` holds another run, or the steps need more passes over the data than `data.max_epochs`.
        DataError, ShardError, TokenizerError, CheckpointError, StorageError: as their parts say.
        EngineError: the loss is not finite, or the teacher failed.
    """
    rank, world, device = _processes(recipe.device)
    root = Path(recipe_folder) / (recipe.data.root or ".")
    out = Path(out)
    autocast = "bf16" if pick_precision(recipe.loop.autocast, device) == "bf16" else "none"
    recipe = recipe.model_copy(update={"loop": recipe.loop.model_copy(update={"autocast": autocast})})
    if rank == 0:
        run = RunFolder(out, recipe, seed=recipe.seed)
    _barrier(world)
    if rank:
        run = RunFolder(out, recipe, seed=recipe.seed, alone=False)
    if rank == 0:
        prepare(recipe, out, recipe_folder=recipe_folder, teacher=teacher, say=say)
    _barrier(world)
    tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer")
    shards = ShardSet.open(out / "shards", tokenizer, verify=rank == 0)
    loader = PackedLoader(
        shards, recipe.sequence_length, recipe.batch_rows, recipe.seed, rank, world, recipe.data.order
    )
    if latest_checkpoint(out / "checkpoints") is None:  # a run under way goes on
        _check_epochs(recipe, loader, out)
    torch.manual_seed(recipe.seed)
    model = CairnForCausalLM(model_config(recipe, tokenizer)).to(device)
    if needs_fitting(model):  # the same texts give the same table, so a resumed run has it too
        facts = fit_patch_rule(model, _sample_texts(recipe, _sources(recipe, out), root, _PATCH_SAMPLE_BYTES))
        if rank == 0:
            shown = (f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}"
                     for name, value in facts.items())
            say("patches: " + ", ".join(shown))
    objective = build_objective(
        recipe.objective, tokenizer, hidden_size=model.get_output_embeddings().weight.shape[1], steps=recipe.steps,
        batch_rows=recipe.batch_rows, sequence_length=recipe.sequence_length, seed=recipe.seed,
        model_config=model.config,
    )
    if objective.heads is not None:
        objective.heads.to(device)
    if rank == 0:
        heads = sum(one.numel() for one in objective.heads.parameters()) if objective.heads is not None else 0
        say(f"model: {model.num_parameters():,} parameters{f' and {heads:,} of training heads' if heads else ''}; "
            f"stream: {len(shards):,} tokens; {recipe.steps:,} steps of {loader.tokens_per_step:,} tokens "
            f"({loader.epoch(recipe.steps):.2f} epochs); {world} process(es), {torch.get_num_threads()} threads, "
            f"{device}, {'bf16 autocast' if autocast == 'bf16' else 'fp32'}")
    logits = _teacher_logits(recipe, out, Path(recipe_folder), loader, len(tokenizer), device, say)
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

    average = WeightAverage(recipe.averaging, model, recipe.steps) if recipe.averaging is not None else None
    dropout = DropoutSchedule(recipe.dropout, model, recipe.steps) if recipe.dropout is not None else None
    trained = model if objective.heads is None else nn.ModuleList([model, objective.heads])
    result = train(
        model, objective, PretrainBatches(loader, objective, recipe.steps, recipe.length_warmup, logits),
        build_optimizers(trained, recipe.optimizer), recipe.schedule, recipe.steps, recipe.loop, run,
        evaluate=evaluate, title=f"pretrain {recipe.name}", heads=objective.heads, average=average,
        before_step=dropout, full_length=recipe.sequence_length,
    )
    if dropout is not None:
        dropout.restore()
    if rank == 0:
        if not run.finished:
            if average is not None:
                average.write()
                _log_average(run, result.steps, evaluate(result.steps), say)
            _save(recipe, model, tokenizer, objective, out / "model")
            run.finish(sorted(str(f.relative_to(out)) for f in (out / "model").iterdir() if f.is_file()))
        say(f"model folder: {out / 'model'}")
    _barrier(world)
    return result


def prepare(
    recipe: PretrainRecipe,
    out: str | Path,
    *,
    recipe_folder: str | Path = ".",
    teacher: Teacher | None = None,
    say: Callable[[str], None] = print,
) -> PreTrainedTokenizerBase:
    """Makes the tokenizer and the shards of a recipe in `out`, where they are not there yet; trains nothing.

    Raises:
        ConfigError: `data.written` asks for texts that are not there, and there is no `teacher`.
        TokenizerError: the teacher of a logit distillation has another tokenizer.
        DataError, ShardError, TokenizerError, StorageError: as their parts say.
    """
    root, out = Path(recipe_folder) / (recipe.data.root or "."), Path(out)
    if recipe.data.written is not None:
        write_teacher_text(recipe.data.written, teacher, out / "written", recipe.data.seed, root=root, say=say)
    sources = _sources(recipe, out)
    tokenizer = _tokenizer(recipe, sources, root, out, say)
    if isinstance(recipe.objective, DistillLogitsConfig):
        check_teacher_tokenizer(_teacher_place(recipe.objective.teacher, Path(recipe_folder)), tokenizer)
    _shards(recipe, sources, root, out, tokenizer, say)
    return tokenizer


def model_config(recipe: PretrainRecipe, tokenizer: PreTrainedTokenizerBase) -> CairnConfig:
    """Returns the shape of a recipe's model: its preset, its changes, and the tokenizer's vocabulary."""
    return preset_config(recipe.model.preset, **{**recipe.model.changes, "vocab_size": len(tokenizer)})


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


def _sources(recipe: PretrainRecipe, out: Path) -> list[SourceConfig]:
    """Returns the sources of the recipe and the teacher's texts, if it has any."""
    written = recipe.data.written
    return [*recipe.data.sources, *([written.source((out / "written" / TEXT_FILE).resolve())] if written else [])]


def _check_epochs(recipe: PretrainRecipe, loader: PackedLoader, out: Path) -> None:
    """Refuses a schedule that is longer than the data."""
    passes, allowed = loader.epoch(recipe.steps), recipe.data.max_epochs
    if passes > 1.01 * allowed:  # a stream that was ordered to measure may lack its last row
        fitting = max(1, int(loader.steps_per_epoch * allowed))
        raise ConfigError(
            str(out), [f"steps: {recipe.steps:,} steps of {loader.tokens_per_step:,} tokens read the stream of "
                       f"{len(loader.shards):,} tokens {passes:.2f} times, allowed: data.max_epochs = {allowed:g}"],
            next=f"--set steps={fitting}, or more text, or --set data.max_epochs={math.ceil(passes)} if the "
                 "repetition is meant; with another --out, because this folder keeps its recipe",
        )


def _teacher_place(name: str, folder: Path) -> str:
    """Returns a teacher's folder beside the recipe if there is one, else its name as it is."""
    return str(folder / name) if (folder / name / "config.json").is_file() else name


def _teacher_logits(
    recipe: PretrainRecipe, out: Path, recipe_folder: Path, loader: PackedLoader, vocab_size: int,
    device: torch.device, say: Callable[[str], None],
) -> TeacherLogits | None:
    """Lets the teacher of a logit distillation read the rows; None for every other objective."""
    config = recipe.objective
    if not isinstance(config, DistillLogitsConfig):
        return None
    folder = out / "teacher_logits" if config.cache is None else recipe_folder / config.cache
    place = _teacher_place(config.teacher, recipe_folder)
    state = torch.get_rng_state()  # whatever loading a teacher draws, the student's weights and dropout stay the same
    logits = write_teacher_logits(config, place, loader, recipe.steps, vocab_size, folder, device, say=say)
    torch.set_rng_state(state)
    _barrier(loader.world_size)
    logits.finish(write=loader.rank == 0)
    return logits


def _log_average(run: RunFolder, step: int, found: dict[str, Any], say: Callable[[str], None]) -> None:
    """Logs how the averaged weights do, once: a call that was killed while saving has logged it already."""
    figures = {f"averaged_{name}": value for name, value in found.items() if isinstance(value, float)}
    if figures and not any(set(figures) & set(row) for row in run.metrics()):
        run.log(step=step, **figures)
    say("averaged weights: " + (", ".join(f"{name} {value:.4f}" for name, value in figures.items()) or "saved"))


def _save(
    recipe: PretrainRecipe, model: CairnForCausalLM, tokenizer: PreTrainedTokenizerBase, objective: PretrainObjective,
    out: Path,
) -> None:
    logging.disable_progress_bar()  # of one file, written at once
    with atomic_folder(out) as folder:
        model.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        if objective.heads is not None and objective.keep_heads:
            weights = {name: one.to("cpu", torch.bfloat16) for name, one in objective.heads.state_dict().items()}
            save_file(weights, folder / "objective_heads.safetensors")
            write_json(folder / "objective.json", recipe.objective.model_dump(mode="json"))


def _tokenizer(
    recipe: PretrainRecipe, sources: list[SourceConfig], root: Path, out: Path, say: Callable[[str], None]
) -> PreTrainedTokenizerBase:
    folder = out / "tokenizer"
    if not folder.exists():
        if recipe.tokenizer.kind == "bytes":
            tokenizer: Any = byte_tokenizer()
        elif recipe.tokenizer.source:
            tokenizer = AutoTokenizer.from_pretrained(recipe.tokenizer.source)
        else:
            say(f"tokenizer: training {recipe.tokenizer.vocab_size:,} entries on "
                f"{recipe.tokenizer.train_bytes / 1e6:.0f} MB of the sources")
            tokenizer = train_bpe(_sample_texts(recipe, sources, root, recipe.tokenizer.train_bytes),
                                  recipe.tokenizer.vocab_size)
        with atomic_folder(folder) as temporary:
            tokenizer.save_pretrained(temporary)
    return AutoTokenizer.from_pretrained(folder)


def _sample_texts(recipe: PretrainRecipe, sources: list[SourceConfig], root: Path, size: int) -> Iterator[str]:
    """Yields an equal number of bytes from each source (a weighted one: its share), `size` in all."""
    given = sum(source.weight or 0 for source in sources)
    others = sum(source.weight is None for source in sources)
    for source in sources:
        share = source.weight if source.weight is not None else max(1 - given, 0) / others
        yield from _head(iterate(source, root=root, seed=recipe.data.seed), int(size * share))


def _shards(
    recipe: PretrainRecipe, sources: list[SourceConfig], root: Path, out: Path, tokenizer: PreTrainedTokenizerBase,
    say: Callable[[str], None],
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
        sources, tokenizer, out / "shards", recipe.data.seed, recipe.data.total_tokens, root=root,
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
