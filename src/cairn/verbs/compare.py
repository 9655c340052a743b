"""`cairn compare`: one experiment whole, from the data to the answer whether the stack is worth it.

    recipe ─ data ─ train, per seed ─ equal? ─ every system answers ─ vote, ensemble ─ test, intervals ─ report
               │         │                          │                                     │
               └─────────┴── each part is kept ─────┴── killed? the same command goes on  └─ OUT/result.json

    stack folders (one a seed) and a file of questions: the same without data and training
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from cairn.config import StrictModel, load_config, read_yaml
from cairn.errors import DataError, InputError
from cairn.evaluation.blame import BlameSettings
from cairn.evaluation.cost import CostSettings, peak_memory_mib
from cairn.evaluation.tasks.registry import task_by_name
from cairn.files import sha256_file
from cairn.runs import RunFolder, versions
from cairn.verbs.comparison.answers import stored_stages
from cairn.verbs.comparison.blame_section import blame_section
from cairn.verbs.comparison.comparison import Comparison, Inputs, OpenEngine, base_parameters, open_engine
from cairn.verbs.comparison.comparison_files import print_result, training_curves, write_comparison, write_traces
from cairn.verbs.comparison.comparison_result import comparison_result
from cairn.verbs.comparison.cost import cost_section
from cairn.verbs.comparison.experiment import (
    FREE_SETTINGS,
    RunSettings,
    TrainedSeed,
    check_equal_training,
    check_questions,
    evenly,
    experiment_task,
    prepare,
    read_questions_file,
    resolved_recipe,
    run_settings,
    train_stack,
    trained_seeds,
)
from cairn.verbs.comparison.recipe import COMPARATORS, CompareSettings, ExperimentRecipe, load_recipe
from cairn.verbs.spent_seconds import SpentSeconds

__all__ = ["LookSettings", "compare", "compare_folders", "compare_recipe"]

Say = Callable[[str], Any]
_OUTPUTS = ["result.json", "traces.jsonl", "report.html"]


class LookSettings(StrictModel):
    """What a comparison looks at beside the scores; both may be changed later in the same folder.

    Args:
        blame: which stage loses the points.
        cost: of an answer.
    """

    blame: BlameSettings = BlameSettings()
    cost: CostSettings = CostSettings()


class _Settings(LookSettings):
    """The settings of a comparison without a recipe."""

    compare: CompareSettings = CompareSettings()


def compare(
    what: Annotated[
        list[Path], typer.Argument(metavar="RECIPE.yaml | STACK...", help="An experiment, or trained stacks.")
    ],
    out: Annotated[Path | None, typer.Option("--out", help="Run folder; default runs/NAME.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Training seeds, such as 0,1,2.")] = None,
    systems: Annotated[str | None, typer.Option(help="Only these systems, with commas between them.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many test questions.")] = None,
    test: Annotated[Path | None, typer.Option(help="Questions for trained stacks, in the form of examples.")] = None,
    valid: Annotated[Path | None, typer.Option(help="Validation questions for trained stacks.")] = None,
    task: Annotated[str, typer.Option(help="How the answers of trained stacks are scored.")] = "examples",
    jobs: Annotated[int, typer.Option(min=1, help="Adapters trained side by side.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print result.json, and nothing else, on stdout.")] = False,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe; repeatable.")
    ] = None,
) -> None:
    """Compare a stack with single models of equal training and equal inference FLOPs.

    For each seed it trains the stack and two single adapters with as many trained parameters and training tokens. Then
    all answer the same test questions:

      base            the bare base after solved examples
      single_direct   one adapter, all inputs -> the answer
      single_chain    one adapter, all inputs -> every hand-off as one text
      vote            several samples of the better single one, voted; at least the FLOPs of the stack
      ensemble        the direct adapters of several seeds, writing together
      stack           the stack; stack_empty, stack_shuffled, stack_gold: with other hand-offs

    Differences are paired over questions, clustered by group, and over seeds; the best comparator is chosen on held-out
    training examples. docs/compare.md explains the result.

    Killed at any moment, the same command goes on where it was. More seeds, other systems or more resamples may be
    asked for later in the same folder; any other change needs another --out.

    Examples:

      cairn compare recipes/snips.yaml --set task.folder=data/snips
      cairn compare recipes/snips.yaml --seeds 0 --limit 100 --out runs/quick
      cairn compare runs/a runs/b runs/c --test questions.jsonl
    """
    say: Say = (lambda text: print(text, file=sys.stderr, flush=True)) if as_json else (lambda t: print(t, flush=True))
    changes = list(overrides or [])
    for key, value in (("seeds", seeds), ("systems", systems)):
        changes += [f"compare.{key}=[{value}]"] if value is not None else []
    changes += [f"compare.test_questions={limit}"] if limit is not None else []
    if _is_recipe(what):
        given = {"--test": test, "--valid": valid, "--task": None if task == "examples" else task}
        for name, value in given.items():
            if value is not None:
                raise InputError(f"{name} is for trained stacks", value=str(value), next="set it in the recipe")
        recipe = load_recipe(what[0], changes)
        folder = out or (what[0] if what[0].is_dir() else Path("runs") / recipe.name)
        result = compare_recipe(recipe, folder, jobs=jobs, device=device, say=say)
    else:
        if test is None:
            raise InputError("trained stacks need questions", value=str(what[0]), allowed="--test FILE")
        settings = load_config(_Settings, None, changes)
        folder = out or Path("runs") / f"{what[0].resolve().name}-compared"
        result = compare_folders(
            what, test, folder, settings.compare, settings, valid=valid, task=task, device=device, say=say
        )
    if as_json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        print_result(folder, result)


def _is_recipe(what: Sequence[Path]) -> bool:
    if len(what) != 1:
        return False
    if what[0].is_dir():
        return (what[0] / "recipe.yaml").exists()
    return not what[0].exists() or "recipe" in read_yaml(what[0])


def compare_recipe(
    recipe: ExperimentRecipe,
    out: Path,
    *,
    jobs: int = 1,
    device: str = "auto",
    engine: OpenEngine | None = None,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Runs what is not done yet of a recipe's comparison, and returns its result.

    Args:
        recipe: as `load_recipe` gives it.
        out: the run folder.
        jobs: adapters trained side by side.
        device: see `bases.pick_device`.
        engine: opens the engine of a training; by default the one that runs in this process.
        say: takes lines for the reader.

    Raises:
        ConfigError: `out` holds the work of another recipe (what differs is named), the training of the systems would
            not be equal, or a system that was asked for is not possible.
        DataError: the data cannot be used.
        StorageError: `out` cannot be written.
    """
    recipe = resolved_recipe(recipe)
    settings, scorer = recipe.compare, experiment_task(recipe)
    run = RunFolder(out, run_settings(recipe), seed=settings.seed)
    looks = LookSettings(blame=recipe.blame, cost=recipe.cost)
    free = _free(settings, looks)
    known = _known_result(run, free)
    if known is not None:
        say(f"{out} is whole: nothing is done again (delete it, or give another --out, to start anew)\n")
        return known
    examples = out / "data" / "train.jsonl"
    with SpentSeconds(out / "seconds.json") as spent:
        data = prepare(recipe, out)
        counts = data["questions"]
        say(
            f"1 data      {scorer.name}: {counts['train']:,} training, {counts['valid']:,} validation, "
            f"{counts['test']:,} test questions -> {out / 'data'}"
        )
        seeds = []
        asked = set(COMPARATORS).intersection(settings.systems or COMPARATORS)
        for seed in settings.seeds:
            say(f"2 train     seed {seed}")
            seeds.append(
                train_stack(
                    recipe.stack, examples, out / f"seed-{seed}" / "stack", seed,
                    comparators=bool(asked - {"base"}), jobs=jobs, device=device,
                    say=lambda text: say(f"            {text}"),
                )
            )  # fmt: skip
        equal = check_equal_training(seeds, settings.token_tolerance)
        say("3 answer    the same questions for every system")
        test, held, train = (read_questions_file(out / "data" / f"{name}.jsonl") for name in ("test", "valid", "train"))
        inputs = Inputs(test, held, train, examples, scorer)
        facts = {"name": recipe.name, "data": data, "equal_training": equal, "settings": free}
        return _answer(run, seeds, inputs, settings, looks, facts, engine, device, spent, say)


def compare_folders(
    stacks: Sequence[Path],
    test: Path,
    out: Path,
    settings: CompareSettings,
    looks: LookSettings | None = None,
    *,
    valid: Path | None = None,
    task: str = "examples",
    device: str = "auto",
    engine: OpenEngine | None = None,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Compares stacks that are trained already, one folder a seed, on a file of questions.

    Args:
        stacks: folders that `cairn finetune` made, equal but for their seeds.
        test: questions in the form of examples.
        out: the run folder.
        settings: `seeds` are those of the folders.
        looks: at blame and cost; by default as a recipe that does not speak of them.
        valid: held-out questions; without them the best comparator is chosen on the test, and the result says so.
        task: name of the task that scores the answers.
        (others): see `compare_recipe`.

    Raises:
        ConfigError: the folders are not the same stack with different seeds, or see `compare_recipe`.
        DataError: a file cannot be used.
    """
    seeds, looks = trained_seeds(stacks), looks or LookSettings()
    settings = settings.model_copy(update={"seeds": [seed.seed for seed in seeds]})
    scorer, spec = task_by_name(task), seeds[0].spec
    examples = (spec.folder or Path()) / (spec.examples or "")
    if not examples.is_file():
        raise DataError(
            "the examples that the stack was trained from are not there", value=str(examples),
            next="put them there: they say how much single models may write, and the base is shown some",
        )  # fmt: skip
    files = {"test": test, "examples": examples, **({"valid": valid} if valid else {})}
    questions = {name: read_questions_file(file) for name, file in files.items()}
    asked = evenly(questions["test"], settings.test_questions)
    check_questions(asked, spec)
    fixed = RunSettings(
        name=spec.name, task={"name": task},
        stack={str(one.folder): sha256_file(one.folder / "training.json") for one in seeds},
        files={name: sha256_file(file) for name, file in files.items()},
        compare=settings.model_dump(mode="json", exclude={*FREE_SETTINGS, "seeds"}),
    )  # fmt: skip
    run = RunFolder(out, fixed, seed=settings.seed)
    free = _free(settings, looks)
    known = _known_result(run, free)
    if known is not None:
        say(f"{out} is whole: nothing is done again (delete it, or give another --out, to start anew)\n")
        return known
    with SpentSeconds(out / "seconds.json") as spent:
        equal = check_equal_training(seeds, settings.token_tolerance)
        say(f"{len(seeds)} trainings of {spec.name}, {len(asked):,} test questions -> {out}")
        inputs = Inputs(asked, questions.get("valid", []), questions["examples"], examples, scorer)
        facts = {"name": spec.name, "data": {"files": fixed.files}, "equal_training": equal, "settings": free}
        return _answer(run, seeds, inputs, settings, looks, facts, engine, device, spent, say)


def _free(settings: CompareSettings, looks: LookSettings) -> dict[str, Any]:
    """Returns the settings that may be changed later in the same folder."""
    return {**settings.model_dump(mode="json", include=FREE_SETTINGS), **looks.model_dump(mode="json")}


def _known_result(run: RunFolder, free: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the result of a whole run with these settings, if it is there."""
    if not run.finished or not (run.path / "result.json").exists():
        return None
    result = json.loads((run.path / "result.json").read_text(encoding="utf-8"))
    return result if result.get("settings") == dict(free) else None


def _answer(
    run: RunFolder,
    seeds: Sequence[TrainedSeed],
    inputs: Inputs,
    settings: CompareSettings,
    looks: LookSettings,
    facts: Mapping[str, Any],
    engine: OpenEngine | None,
    device: str,
    spent: SpentSeconds,
    say: Say,
) -> dict[str, Any]:
    """Lets every system answer, and writes the result."""
    out = run.path
    opened = engine or partial(open_engine, device=device)
    comparison = Comparison(seeds, inputs, settings, out, engine=opened, say=say)
    comparison.run()
    chosen = f"best comparator by validation: {comparison.best}" if comparison.best else "no validation questions"
    say(f"4 compare   {chosen}")
    first = {name: runs[0] for name, runs in comparison.answers.items()}
    stages = stored_stages(comparison.answers_file("stack", seeds[0].seed))
    rows = {question.id: inputs.task.groups(question) for question in inputs.test}
    shown = write_traces(out / "traces.jsonl", inputs.test, first, stages, most=settings.shown_traces, rows=rows)
    peak = round(max(spent.memory_mib, peak_memory_mib()))
    extra = {**facts, "peak_memory_mib": peak, "versions": versions(settings.seed)}
    result = comparison_result(comparison, base_params=base_parameters(seeds[0]), extra=extra)
    say("5 blame     gold in the place of each hand-off")
    calls = [stored_stages(comparison.answers_file("stack", seed.seed)) for seed in seeds]
    result["blame"] = blame_section(
        seeds, inputs.test, comparison.answers["stack"], calls, inputs.task, looks.blame, out, engine=opened,
        seed=settings.seed, resamples=settings.resamples, say=say,
    )  # fmt: skip
    say("6 cost      one question at a time")
    result["cost"] = cost_section(comparison, result, looks.cost, device=device, engine=engine, say=say)
    result["seconds_total"] = round(spent.total, 1)
    names = ", ".join(f"{one.name} (a rule)" if one.by == "rule" else one.name for one in comparison.spec.stages)
    result["report"] = {
        "title": f"{facts['name']}: a stack against single models",
        "note": f"Answers and hand-offs are those of seed {seeds[0].seed}. Stages: {names}.",
    }
    write_comparison(out, result, shown, curves=training_curves(seeds[0].folder), **result["report"])
    run.finish(_OUTPUTS)
    return result
