"""The one training loop: pretraining, fine-tuning and every later method differ only in batch and objective.

    for step in steps:
        rows = batches.batch(step)                 a pure function of the step: resuming needs only its number
        for micro in rows:                         gradient accumulation
            loss_sum = objective(model, micro)     bf16 autocast where it is fast
            (loss_sum / global targets).backward()
        all-reduce gradients over processes        torchrun; nothing to do with one
        clip, optimizer step under the schedule
        log, evaluate, checkpoint

The loss is the mean over the targets of the whole global batch, so accumulation and the number of processes change
nothing but rounding. Killed at any moment, the same call goes on from the last checkpoint and ends with the same
weights, bit for bit on CPU. The first Ctrl-C (or SIGTERM) ends the running step, writes a checkpoint and stops.
"""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn

from cairn.bases import pick_precision
from cairn.config import StrictModel
from cairn.errors import EngineError
from cairn.progress import Progress
from cairn.runs import RunFolder
from cairn.training.averaging import WeightAverage
from cairn.training.checkpoint import Stateful, latest_checkpoint, load_checkpoint, save_checkpoint
from cairn.training.objectives import Objective
from cairn.training.optim import Optimizers, ScheduleConfig, schedule_factor

__all__ = ["Batches", "LoopConfig", "LoopResult", "train"]


class LoopConfig(StrictModel):
    """How the loop runs.

    Args:
        micro_rows: rows of one forward pass; the batch is split into as many as needed. None = the whole batch.
            Where rows are shorter than the full length, as many more are taken.
        grad_clip: largest global gradient norm; None = no clipping.
        autocast: `bf16`, `none`, or `auto`: what the device multiplies fast (`bases.pick_precision`).
        compile: torch.compile of the objective; costs a minute at the start, pays in long runs of fixed shape.
        log_every, eval_every, checkpoint_every: in steps; 0 = only at the end (evaluation, checkpoint) or never (log).
        keep: checkpoints kept.
    """

    micro_rows: int | None = Field(None, ge=1)
    grad_clip: float | None = Field(1.0, gt=0)
    autocast: Literal["auto", "bf16", "none"] = "auto"
    compile: bool = False
    log_every: int = Field(10, ge=0)
    eval_every: int = Field(0, ge=0)
    checkpoint_every: int = Field(100, ge=0)
    keep: int = Field(2, ge=1)


class Batches(Protocol):
    """Where batches come from."""

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Returns this process's rows of step `step`: input_ids and labels [rows, seq] (labels shifted)."""
        ...


@dataclass(frozen=True)
class LoopResult:
    """What a finished loop reports: steps, real tokens seen, last mean loss (nats per target), seconds of training."""

    steps: int
    tokens: int
    loss: float
    seconds: float


def train(
    model: nn.Module,
    objective: Objective,
    batches: Batches,
    optimizers: Optimizers,
    schedule: ScheduleConfig,
    steps: int,
    config: LoopConfig,
    run: RunFolder,
    *,
    evaluate: Callable[[int], dict[str, Any]] | None = None,
    title: str = "train",
    pad_token_id: int | None = None,
    heads: nn.Module | None = None,
    average: WeightAverage | None = None,
    before_step: Callable[[int], None] | None = None,
    full_length: int | None = None,
) -> LoopResult:
    """Trains the parameters of `model` that ask for gradients, resuming from `run` if it holds a checkpoint.

    Args:
        model: on its device already; weights that ask for gradients in fp32.
        objective: (model, batch) -> (summed loss, metrics).
        batches: batch source, a pure function of the step.
        optimizers: over the trained parameters.
        schedule: learning-rate schedule over `steps`.
        steps: optimizer steps in all.
        run: where metrics.jsonl and checkpoints/ go.
        evaluate: called with the steps done; what it returns is logged (a text under `sample` is also shown).
        title: shown in the progress line.
        pad_token_id: tokens with this id are not counted as seen where the labels are -100; None counts all.
        heads: of the objective, on the same device: trained, clipped and checkpointed with the model.
        average: told of every step, and part of each checkpoint.
        before_step: called with the number of each step, counted from 0, before its batch is made.
        full_length: tokens per row that `config.micro_rows` is meant for; None: the rows are what they are.

    Raises:
        EngineError: loss, gradient or weights are not finite; the last checkpoint is from before that.
        KeyboardInterrupt: after a checkpoint, when interrupted.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = next(model.parameters()).device
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    parameters += list(heads.parameters()) if heads is not None else []
    pairs: dict[str, Stateful | None] = {"heads": heads, "average": average}
    along = {name: part for name, part in pairs.items() if part is not None}
    checkpoints = run.path / "checkpoints"
    step, counters = 0, {"seconds": 0.0, "tokens": 0, "loss": math.nan}
    newest = latest_checkpoint(checkpoints)
    if newest is not None:
        step, counters = load_checkpoint(newest, model, optimizers, along)
        if rank == 0:
            run.trim_metrics(step)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=pick_precision(config.autocast, device) == "bf16")

    def forward(rows: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        with autocast:
            return objective(model, rows)

    if config.compile:
        forward = torch.compile(forward, dynamic=False)

    def save() -> None:
        if not all(bool(torch.isfinite(parameter).all()) for parameter in parameters):
            raise _not_finite("a weight", step, math.nan, checkpoints)
        if rank == 0:
            save_checkpoint(checkpoints, model, optimizers, step, counters, config.keep, along)

    model.train()
    with _interruptible() as interrupted, _progress(title, steps, step, rank) as progress:
        while step < steps:
            began = time.perf_counter()
            if before_step is not None:
                before_step(step)
            batch = batches.batch(step)
            labels = batch["labels"]
            targets = int(_sum((labels != -100).sum(), world, device))
            real = (batch["input_ids"] != pad_token_id) | (labels != -100)  # all of them where there is no padding
            tokens = int(_sum(real.sum(), world, device))
            total, sums = torch.zeros((), device=device), {}
            rows = len(labels)
            shorter = max(1, full_length // labels.shape[1]) if full_length else 1
            size = config.micro_rows * shorter if config.micro_rows else rows
            for start in range(0, rows, size):
                micro = {
                    name: torch.from_numpy(np.ascontiguousarray(values[start : start + size])).to(device)
                    for name, values in batch.items()
                }
                loss, metrics = forward(micro)
                (loss / targets).backward()
                total += loss.detach()
                for name, value in metrics.items():
                    sums[name] = sums.get(name, 0) + value.detach()
            mean_loss = float(_sum(total, world, device)) / targets
            if not math.isfinite(mean_loss):
                raise _not_finite("loss", step + 1, mean_loss, checkpoints)
            _reduce_gradients(parameters, world)
            norm = float(nn.utils.clip_grad_norm_(parameters, config.grad_clip or math.inf))
            if not math.isfinite(norm):  # before the step: the weights are still good
                raise _not_finite("gradient", step + 1, norm, checkpoints)
            factor = schedule_factor(schedule, step, steps)
            optimizers.step(factor)
            step += 1
            if average is not None:
                average.after_step(step)
            seconds = time.perf_counter() - began
            counters = {
                "seconds": counters["seconds"] + seconds, "tokens": counters["tokens"] + tokens, "loss": mean_loss
            }
            progress.advance(1, rates={"tokens": tokens}, loss=mean_loss)
            last = step == steps
            if rank == 0 and config.log_every and (step % config.log_every == 0 or last):
                run.log(
                    step=step, loss=mean_loss, learning_rate_factor=factor, grad_norm=norm,
                    tokens=counters["tokens"], tokens_per_s=tokens / seconds, seconds=round(counters["seconds"], 3),
                    **{name: float(value) / targets for name, value in sums.items()},
                )
            if evaluate is not None and (last or (config.eval_every and step % config.eval_every == 0)):
                model.eval()
                found = evaluate(step)
                model.train()
                if rank == 0:
                    run.log(step=step, **found)
                    progress.note(_evaluation_text(title, step, found))
            if last or interrupted.is_set() or (config.checkpoint_every and step % config.checkpoint_every == 0):
                save()
            if interrupted.is_set() and not last:
                raise KeyboardInterrupt
    model.eval()
    return LoopResult(step, int(counters["tokens"]), counters["loss"], counters["seconds"])


def _not_finite(what: str, step: int, value: float, checkpoints: Path) -> EngineError:
    """Says where the training broke and what is left of it."""
    newest = latest_checkpoint(checkpoints)
    good = f"the same command goes on from the last good checkpoint, {newest}; " if newest else ""
    return EngineError(
        f"{what} is not finite at step {step}", value=value,
        next=f"{good}if it comes again, lower the learning rate and choose another folder with --out",
    )


def _sum(value: Any, world: int, device: torch.device) -> Tensor:
    """Adds a number over all processes, in float64."""
    total = torch.as_tensor(value, dtype=torch.float64, device=device)
    if world > 1:
        dist.all_reduce(total)
    return total


def _reduce_gradients(parameters: list[nn.Parameter], world: int) -> None:
    """Adds gradients over all processes (each holds its share of the global mean), in one message."""
    if world == 1:
        return
    gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for parameter, part in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = part.view_as(parameter)


def _evaluation_text(title: str, step: int, found: dict[str, Any]) -> str:
    figures = ", ".join(f"{key} {value:.4f}" for key, value in found.items() if isinstance(value, float))
    sample = f"\n    sample: {found['sample']!r}" if "sample" in found else ""
    return f"{title}: step {step:,}: {figures}{sample}"


def _progress(title: str, steps: int, start: int, rank: int) -> contextlib.AbstractContextManager[Any]:
    if rank == 0:
        return Progress(title, steps, start=start)
    silent = type("Silent", (), {"advance": lambda *a, **k: None, "note": lambda *a: None})()
    return contextlib.nullcontext(silent)


@contextlib.contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Turns the first SIGINT or SIGTERM into a flag; a second one acts at once."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return
    before = {}

    def handle(number: int, frame: Any) -> None:
        flag.set()
        for one, old in before.items():
            signal.signal(one, old)

    for number in (signal.SIGINT, signal.SIGTERM):
        before[number] = signal.signal(number, handle)
    try:
        yield flag
    finally:
        for number, old in before.items():
            signal.signal(number, old)
