"""One run of a sweep, and the measuring of its speed: train, score piece by piece, keep the figures.

    OUT/calibration.json                        seconds of a step of every variant, measured in turns
    OUT/runs/VARIANT/seed-S/                    a run folder of `cairn pretrain`; checkpoints go when it is done
    OUT/runs/VARIANT/seed-S/training.json       written when it is trained, and
    OUT/runs/VARIANT/seed-S/score.json          with the bits of every piece: what is there is not done again
"""

from __future__ import annotations

import json
import math
import os
import platform
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cairn.errors import ConfigError, DataError, EngineError
from cairn.files import sha256_json, write_json
from cairn.runs import read_jsonl
from cairn.verbs.sweep_plan import VariantPlan, link_data
from cairn.verbs.sweep_recipe import SweepRecipe

if TYPE_CHECKING:
    from cairn.training.loop import LoopResult
    from cairn.training.pretrain import PretrainRecipe

__all__ = ["Piece", "calibrate", "machine", "read_pieces", "run_folder", "train_and_score"]

Say = Callable[[str], Any]
_CURVE_BYTES = 20_000  # of each validation source, at every point of a curve
_SPREAD = 1.15  # slowest by fastest round, above which a measured speed is doubtful


@dataclass(frozen=True)
class Piece:
    """A text that is scored alone: source, number of its document there, text."""

    source: str
    document: int
    text: str

    @property
    def size(self) -> int:
        """Raw UTF-8 bytes."""
        return len(self.text.encode())


def read_pieces(sweep: SweepRecipe) -> list[Piece]:
    """Returns the validation texts, long documents cut between two characters; nothing is left out in between.

    Raises:
        DataError: a file cannot be read, or has no text.
    """
    from cairn.data.corpora import iterate
    from cairn.evaluation.suites import first_bytes

    base = sweep.recipes[sweep.baseline_name]
    root = sweep.folder / (base.data.root or ".")
    wanted = sweep.score.sources or [source.name for source in base.data.validation]
    pieces = []
    for source in base.data.validation:
        if source.name not in wanted:
            continue
        documents = first_bytes(iterate(source, root=root, seed=base.data.seed + 1), sweep.score.bytes)
        pieces += [
            Piece(source.name, number, text)
            for number, document in enumerate(documents)
            for text in _cut(document, sweep.score.piece_bytes)
        ]
    if not pieces:
        raise DataError("the validation sources have no text", value=", ".join(wanted), allowed="at least one byte")
    return pieces


def _cut(document: str, most: int) -> list[str]:
    raw, parts, start = document.encode(), [], 0
    while start < len(raw):
        text = raw[start : start + most].decode(errors="ignore")  # a character that does not fit begins the next piece
        parts.append(text)
        start += len(text.encode())
    return parts


def machine(device: str) -> dict[str, Any]:
    """Returns what a measured speed belongs to: processor, cores, threads, torch and device."""
    import torch

    from cairn.bases import pick_device

    chosen = pick_device(device)
    processor = platform.processor() or platform.machine()
    listed = Path("/proc/cpuinfo")
    if listed.exists():
        names = [line.split(":", 1)[1].strip() for line in listed.read_text(errors="replace").splitlines()
                 if line.startswith("model name")]  # fmt: skip
        processor = names[0] if names else processor
    return {
        "processor": processor, "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(chosen) if chosen.type == "cuda" else chosen.type,
    }  # fmt: skip


def calibrate(sweep: SweepRecipe, plans: Sequence[VariantPlan], out: Path, say: Say) -> dict[str, dict[str, Any]]:
    """Measures seconds of a step for every variant that has none yet, the variants in turns; keeps them.

    Variants whose steps do the same work (they differ in rates and schedules only) are measured as one: the noise of
    the clock must not give one of them more steps than the other.

    Returns:
        variant -> seconds_per_step (median of the rounds), tokens_per_s, rounds, spread (slowest by fastest round),
        load (of the machine before), doubtful, variant (that was measured), measured (when).

    Raises:
        ConfigError: the speeds kept in `out` were measured on another machine.
    """
    file = out / "calibration.json"
    here = machine(plans[0].recipe.device)
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {"machine": here, "speeds": {}}
    if kept["machine"] != here:
        was = "; ".join(f"{key} was {kept['machine'].get(key)!r}, is {here[key]!r}" for key in here
                        if kept["machine"].get(key) != here[key])  # fmt: skip
        raise ConfigError(
            str(file), [f"speeds were measured on another machine ({was}): equal time there is not equal time here"],
            next="go on there, or choose another folder with --out",
        )
    keys = {plan.name: _work_key(plan.recipe) for plan in plans}
    known = kept["speeds"]
    new: dict[str, VariantPlan] = {}
    for plan in plans:
        if keys[plan.name] not in known:
            new.setdefault(keys[plan.name], plan)
    todo = list(new.values())
    if todo:
        settings = sweep.calibration
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else math.nan
        say(f"speed: {len(todo)} variants in turns, {settings.rounds} rounds of {settings.steps} steps")
        rounds: dict[str, list[float]] = {plan.name: [] for plan in todo}
        for number in range(settings.rounds):
            for plan in todo:
                folder = out / "calibration" / f"{plan.name}-{number}"
                if not number:
                    _seconds_per_step(sweep, plan, folder, settings.warm_steps)
                rounds[plan.name].append(_seconds_per_step(sweep, plan, folder, settings.steps))
        for plan in todo:
            middle, spread = statistics.median(rounds[plan.name]), max(rounds[plan.name]) / min(rounds[plan.name])
            busy = load > (os.cpu_count() or 1) / 2
            known[keys[plan.name]] = {
                "variant": plan.name, "seconds_per_step": middle, "tokens_per_s": plan.tokens_per_step / middle,
                "rounds": rounds[plan.name], "spread": round(spread, 4),
                "load": None if math.isnan(load) else round(load, 2), "doubtful": busy or spread > _SPREAD,
                "measured": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            }  # fmt: skip
        write_json(file, kept)
        shutil.rmtree(out / "calibration", ignore_errors=True)
        doubtful = [known[keys[plan.name]] for plan in todo if known[keys[plan.name]]["doubtful"]]
        if doubtful:
            names, spread = ", ".join(one["variant"] for one in doubtful), max(one["spread"] for one in doubtful)
            say(f"speed: doubtful for {names}: the machine was not idle (load {load:.1f} before, rounds differ by a "
                f"factor of up to {spread:.2f}); delete {file} to measure anew")
    return {plan.name: known[keys[plan.name]] for plan in plans}


def _work_key(recipe: PretrainRecipe) -> str:
    """Returns a fingerprint of what decides the work of a step: everything but learning rates and their schedule."""
    data = recipe.model_dump(mode="json", exclude={"name", "schedule", "optimizer"})
    return sha256_json([data, recipe.optimizer.kind])[:16]


def _seconds_per_step(sweep: SweepRecipe, plan: VariantPlan, folder: Path, steps: int) -> float:
    """Returns the mean of a whole, short training but its first step: what changes over the steps is all in it."""
    shutil.rmtree(folder, ignore_errors=True)  # a round that was killed begins anew
    recipe = _as_run(sweep, plan, sweep.seeds[0], steps + 1)
    loop = recipe.loop.model_copy(update={"log_every": 1, "eval_every": 0, "checkpoint_every": 0})
    data = recipe.data.model_copy(update={"validation": []})
    _pretrain(recipe.model_copy(update={"loop": loop, "data": data}), plan, folder, sweep)
    rows = {row["step"]: row["seconds"] for row in read_jsonl(folder / "metrics.jsonl") if "seconds" in row}
    shutil.rmtree(folder)
    return (rows[steps + 1] - rows[1]) / steps


def run_folder(out: Path, variant: str, seed: int) -> Path:
    """Returns where a run of a sweep is."""
    return out / "runs" / variant / f"seed-{seed}"


def train_and_score(
    sweep: SweepRecipe, plan: VariantPlan, seed: int, out: Path, pieces: Sequence[Piece], say: Say
) -> dict[str, Any]:
    """Trains one variant with one seed, or goes on where an earlier call stopped, and scores it.

    Returns:
        bits (of each piece), steps, tokens, seconds (of training steps), seconds_per_step, loss, lossless, curve
        (share of the budget, bits per byte); or failed (what went wrong: a loss that is not finite).

    Raises:
        ConfigError: the run's folder was made with other settings.
        EngineError: the baseline failed.
    """
    folder = run_folder(out, plan.name, seed)
    recipe = _as_run(sweep, plan, seed, plan.steps)
    trained = _kept(folder / "training.json", sha256_json(recipe.model_dump(mode="json")))
    if trained is None:
        trained = {"key": sha256_json(recipe.model_dump(mode="json")), **_train(sweep, plan, recipe, folder, say)}
        write_json(folder / "training.json", trained)
    for part in ("checkpoints", "shards"):  # the model stays; the shards are OUT/data's
        shutil.rmtree(folder / part, ignore_errors=True)
    if "failed" in trained:
        return trained
    key = sha256_json([trained["key"], [[piece.source, piece.document, piece.text] for piece in pieces]])
    scored = _kept(folder / "score.json", key)
    if scored is None:
        scored = {"key": key, **_score(folder / "model", recipe, pieces)}
        write_json(folder / "score.json", scored)
    return {**trained, **scored}


def _kept(file: Path, key: str) -> dict[str, Any] | None:
    """Returns what a file holds if it was made from the same."""
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return kept if kept.get("key") == key else None


def _train(sweep: SweepRecipe, plan: VariantPlan, recipe: PretrainRecipe, folder: Path, say: Say) -> dict[str, Any]:
    try:
        result = _pretrain(recipe, plan, folder, sweep)
    except EngineError as error:
        if plan.name == sweep.baseline_name:
            raise
        say(f"  {plan.name} failed: {error}")
        return {"failed": str(error)}
    rows = [row for row in read_jsonl(folder / "metrics.jsonl") if "seconds" in row] or [{"step": 0, "seconds": 0.0}]
    first, last = rows[0], rows[-1]
    timed = last["step"] - first["step"]  # without the first steps, which are slower
    rate = (last["seconds"] - first["seconds"]) / timed if timed else result.seconds / result.steps
    return {
        "steps": result.steps, "tokens": result.tokens, "seconds": round(result.seconds, 3),
        "seconds_per_step": rate, "loss": result.loss, "curve": _curve(folder, plan.steps),
    }  # fmt: skip


def _as_run(sweep: SweepRecipe, plan: VariantPlan, seed: int, steps: int) -> PretrainRecipe:
    """Returns the whole recipe of one run."""
    recipe, points = plan.recipe, sweep.curve_points
    data = recipe.data.model_copy(
        update={"validation": recipe.data.validation if points else [], "validation_bytes": _CURVE_BYTES}
    )
    loop = recipe.loop.model_copy(update={"eval_every": math.ceil(steps / points) if points else 0, "keep": 1})
    return recipe.model_copy(
        update={"name": f"{sweep.name}.{plan.name}", "seed": seed, "steps": steps, "samples": [], "data": data,
                "loop": loop}
    )  # fmt: skip


def _pretrain(recipe: PretrainRecipe, plan: VariantPlan, folder: Path, sweep: SweepRecipe) -> LoopResult:
    from cairn.training.pretrain import pretrain

    if recipe.loop.compile:
        import torch

        torch._dynamo.reset()  # compiled code is counted per function: the ninth model would silently run uncompiled
    link_data(plan.data, folder)
    return pretrain(recipe, folder, recipe_folder=sweep.folder, say=lambda line: None)


def _score(model: Path, recipe: PretrainRecipe, pieces: Sequence[Piece]) -> dict[str, Any]:
    """Returns the bits of each piece: every one scored alone, in windows of the length that was trained."""
    from cairn.engines.torch_engine import TorchEngine
    from cairn.evaluation.suites import bits_per_byte
    from cairn.progress import Progress

    context = recipe.sequence_length
    engine = TorchEngine(str(model), device=recipe.device, dtype="float32")
    bits, lossless = [], True
    try:
        with Progress("score", total=sum(piece.size for piece in pieces), unit="byte") as progress:
            for piece in pieces:
                found = bits_per_byte(engine, [piece.text], context=context, stride=max(1, context // 2))
                bits.append(found["bits_per_byte"] * found["bytes"])
                lossless = lossless and found["lossless"] is not False
                progress.advance(piece.size)
    finally:
        engine.close()
    return {"bits": bits, "lossless": lossless, "context": context}


def _curve(folder: Path, steps: int) -> list[list[float]]:
    rows: Mapping[int, list[float]] = {
        row["step"]: [value for key, value in row.items() if key.startswith("bits_per_byte/")]
        for row in read_jsonl(folder / "metrics.jsonl")
    }
    return [[step / steps, sum(values) / len(values)] for step, values in rows.items() if values]
