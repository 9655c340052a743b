"""`cairn sweep`: which ideas pay? Variants of a pretraining run against a baseline, one thing held equal.

    OUT/config.yaml                      baseline, budget and score: what all variants share
    OUT/data/KEY/                        tokenizer and shards, once for all variants that read the same
    OUT/calibration.json                 seconds of a step, for equal time
    OUT/runs/VARIANT/seed-S/             a run of `cairn pretrain`, and its score
    OUT/result.json, OUT/sweep.html      bits per byte, paired differences to the baseline, intervals

Each part is kept: a sweep that was killed goes on, and a variant or a seed more costs that one only.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from cairn.config import StrictModel
from cairn.errors import ConfigError, did_you_mean
from cairn.files import write_json, write_text
from cairn.runs import RunFolder, versions
from cairn.verbs.spent_seconds import SpentSeconds
from cairn.verbs.sweep_plan import VariantPlan, plan_sweep, prepare_data, set_steps
from cairn.verbs.sweep_recipe import BudgetConfig, SameSizeConfig, SweepRecipe, load_sweep
from cairn.verbs.sweep_runs import Piece, calibrate, machine, read_pieces, train_and_score

__all__ = ["sweep", "sweep_recipe"]

Say = Callable[[str], Any]


class _Shared(StrictModel):
    """What the folder of a sweep was made with: all that its variants share."""

    name: str
    baseline: dict[str, Any]
    budget: BudgetConfig
    same_size: SameSizeConfig | None


def sweep(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="A recipe of kind `sweep`.")],
    out: Annotated[Path | None, typer.Option("--out", help="Run folder; default runs/NAME.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Training seeds, such as 0,1,2.")] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="VARIANT", help="The baseline and this one; repeatable.")
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Show what each variant would get, and train nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result, and nothing else, on stdout.")] = False,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe; repeatable.")
    ] = None,
) -> None:
    """Train variants of one pretraining run under one budget, and see which are better than the baseline.

    The recipe names the baseline, the changes and the one thing that is equal; docs/sweep.md explains each:

      recipe: sweep
      name: vocabulary
      baseline: sweep-baseline.yaml
      budget: {wall_clock_s: 240}                  # or {flops: 2.0e+14}, or {parameters: baseline}
      variants:
        bpe_1k: {tokenizer.vocab_size: 1024}
        relu2: {model.changes.activation: relu2}
      seeds: [0, 1, 2]

    All variants read the same text in the same order. The table shows bits per byte of raw text and each variant minus
    the baseline, paired over seeds and documents. Killed at any moment, the same command goes on where it was.

    Examples:

      cairn sweep recipes/sweep-vocabulary.yaml --set baseline.data.root=data
      cairn sweep recipes/sweep-architecture.yaml --only muon --seeds 0 --set budget.wall_clock_s=60
      cairn sweep recipes/sweep-sharing.yaml --plan
    """
    say: Say = (lambda text: print(text, file=sys.stderr, flush=True)) if as_json else (lambda t: print(t, flush=True))
    changes = [*(overrides or []), *([f"seeds=[{seeds}]"] if seeds is not None else [])]
    loaded = load_sweep(recipe, changes)
    folder = out or Path("runs") / loaded.name
    result = sweep_recipe(loaded, folder, only=only or (), plan_only=plan, say=say)
    if as_json:
        print(json.dumps(result, ensure_ascii=False))
        return
    from cairn.evaluation.sweep_report import print_plan, print_sweep

    if plan:
        print_plan(result)
    else:
        print_sweep(result)
        print(f"\nresult   {folder / 'result.json'}\npage     {folder / 'sweep.html'}")


def sweep_recipe(
    recipe: SweepRecipe,
    out: Path,
    *,
    only: Sequence[str] = (),
    plan_only: bool = False,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Trains and scores what is not done yet of a sweep, and returns the result.

    Args:
        recipe: as `load_sweep` gives it.
        out: the run folder.
        only: names of variants, beside the baseline; all if empty.
        plan_only: make data, measure speed, and train nothing.
        say: takes lines for the reader.

    Returns:
        What result.json holds; of a plan, the plan alone.

    Raises:
        ConfigError: a variant cannot be made, a budget pays for no step, or `out` holds the work of another sweep.
        DataError: the data cannot be used.
        EngineError: the baseline's training failed.
        StorageError: `out` cannot be written.
    """
    chosen = _chosen(recipe, only)
    base = recipe.recipes[recipe.baseline_name]
    shared = _Shared(name=recipe.name, baseline=base.model_dump(mode="json"), budget=recipe.budget,
                     same_size=recipe.same_size)  # fmt: skip
    run = RunFolder(out, shared, seed=recipe.score.seed)
    with SpentSeconds(out / "seconds.json") as spent:
        pieces = read_pieces(recipe)
        plans = plan_sweep(recipe, prepare_data(recipe, out, say, chosen))
        speeds = calibrate(recipe, plans, out, say) if recipe.budget.kind == "wall_clock_s" else {}
        plans = set_steps(recipe, plans, {name: one["seconds_per_step"] for name, one in speeds.items()})
        result = _facts(recipe, plans, speeds, pieces)
        if plan_only:
            return result
        say(f"{recipe.name}: {len(plans)} variants, {len(recipe.seeds)} seeds -> {out}")
        runs: dict[str, list[dict[str, Any]]] = {plan.name: [] for plan in plans}
        for number, seed in enumerate(recipe.seeds):
            for plan in plans:
                if any("failed" in one for one in runs[plan.name]):
                    continue  # with an earlier seed: it has no paired difference any more
                runs[plan.name].append(train_and_score(recipe, plan, seed, out, pieces, say))
                _tell(plan, seed, runs[plan.name][-1], pieces, say)
            result = _result(recipe, plans, speeds, pieces, runs, recipe.seeds[: number + 1])
            result["seconds_total"] = round(spent.total, 1)
            _write(run.path, result)  # after every seed: a long sweep can be read before its end
    return result


def _chosen(recipe: SweepRecipe, only: Sequence[str]) -> list[str]:
    names = list(recipe.recipes)
    wrong = [f"{name!r}{did_you_mean(name, names)}, allowed: {', '.join(names)}" for name in only if name not in names]
    if wrong:
        raise ConfigError("--only", wrong)
    return [name for name in names if not only or name in only or name == recipe.baseline_name]


def _tell(plan: VariantPlan, seed: int, run: Mapping[str, Any], pieces: Sequence[Piece], say: Say) -> None:
    if "failed" not in run:
        rate = sum(run["bits"]) / sum(piece.size for piece in pieces)
        say(f"  seed {seed}: {plan.name} {rate:.4f} bits per byte, {run['steps']:,} steps, {run['seconds']:.1f} s")


def _facts(
    recipe: SweepRecipe, plans: Sequence[VariantPlan], speeds: Mapping[str, Any], pieces: Sequence[Piece]
) -> dict[str, Any]:
    texts: dict[str, dict[str, Any]] = {}
    for source in dict.fromkeys(piece.source for piece in pieces):
        own = [piece for piece in pieces if piece.source == source]
        texts[source] = {"documents": len({piece.document for piece in own}), "pieces": len(own),
                         "bytes": sum(piece.size for piece in own)}  # fmt: skip
    return {
        "name": recipe.name,
        "description": recipe.description,
        "baseline": recipe.baseline_name,
        "measure": "bits per byte",
        "budget": recipe.budget.model_dump(mode="json"),
        "same_size": None if recipe.same_size is None else recipe.same_size.model_dump(mode="json"),
        "seeds": recipe.seeds,
        "validation": texts,
        "machine": machine(plans[0].recipe.device),
        "variants": {
            plan.name: {"plan": plan.as_json(), "calibration": speeds.get(plan.name)} for plan in plans
        },
        "versions": versions(recipe.score.seed),
    }  # fmt: skip


def _result(
    recipe: SweepRecipe,
    plans: Sequence[VariantPlan],
    speeds: Mapping[str, Any],
    pieces: Sequence[Piece],
    runs: Mapping[str, Sequence[Mapping[str, Any]]],
    seeds: Sequence[int],
) -> dict[str, Any]:
    """Returns the result of the seeds that are done."""
    from cairn.evaluation.sweep_result import sweep_scores

    whole = {name: made for name, made in runs.items() if not any("failed" in one for one in made)}
    scores = sweep_scores(
        {name: [one["bits"] for one in made] for name, made in whole.items()}, [piece.size for piece in pieces],
        baseline=recipe.baseline_name, sources=[piece.source for piece in pieces],
        documents=[(piece.source, piece.document) for piece in pieces], seed=recipe.score.seed,
        resamples=recipe.score.resamples,
    )  # fmt: skip
    result = {**_facts(recipe, plans, speeds, pieces), "seeds": list(seeds)}
    for name, made in runs.items():
        row = result["variants"][name]
        if name not in whole:
            row["failed"] = next(one["failed"] for one in made if "failed" in one)
            continue
        row.update(scores[name])
        row["seconds"] = [one["seconds"] for one in made]
        row["tokens_read"] = [one["tokens"] for one in made]
        row["seconds_per_step"] = sum(one["seconds_per_step"] for one in made) / len(made)
        row["lossless"] = all(one["lossless"] for one in made)
        row["curve"] = made[0]["curve"]
    return result


def _write(out: Path, result: Mapping[str, Any]) -> None:
    from cairn.evaluation.sweep_report import sweep_html

    write_json(out / "result.json", result)
    write_text(out / "sweep.html", sweep_html(result))
