"""`cairn ablate`: which part of a stack does what? The same experiment with one thing changed at a time.

    OUT/seed-S/stack                 the whole stack (shared with `cairn compare`)
    OUT/ablate/VARIANT/train.jsonl   examples, where stages were merged or dropped
    OUT/ablate/VARIANT/seed-S/stack  trained like the whole one, without comparators
    OUT/ablate/VARIANT/seed-S/*.jsonl  its answers to the same test questions
    OUT/ablate/result.json           the whole stack minus each variant, paired over questions and seeds

Each part is kept: an interrupted ablation goes on, and a variant more costs that variant only.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from cairn.config import StrictModel
from cairn.data.examples import read_examples
from cairn.engines.base import Engine
from cairn.errors import ConfigError, DataError, did_you_mean
from cairn.evaluation.compare import compare_seeds
from cairn.evaluation.systems import Question
from cairn.evaluation.tasks.registry import Task
from cairn.files import write_json, write_text
from cairn.runs import RunFolder, read_jsonl, versions
from cairn.stacks.spec import StackSpec, check_artifacts
from cairn.verbs.comparison.ablate_variants import BARE, VariedStack, gold_text, merged_row, plan_variants
from cairn.verbs.comparison.answers import Answer, Answered, Systems, cached_answers, rescored
from cairn.verbs.comparison.bare_stages import BareStages
from cairn.verbs.comparison.comparison import OpenEngine, base_parameters, open_engine, stack_settings
from cairn.verbs.comparison.comparison_files import write_page_again
from cairn.verbs.comparison.experiment import (
    TrainedSeed,
    experiment_task,
    prepare,
    read_questions_file,
    resolved_recipe,
    run_settings,
    train_stack,
)
from cairn.verbs.comparison.recipe import ExperimentRecipe, load_recipe
from cairn.verbs.spent_seconds import SpentSeconds

__all__ = ["ablate", "ablate_recipe"]

Say = Callable[[str], Any]
FULL = "whole"
_LOG_WIDTH = 130


class _VariantSettings(StrictModel):
    """What the folder of a variant was made with."""

    change: dict[str, Any]


def ablate(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="An experiment with a section `ablate`.")],
    out: Annotated[Path | None, typer.Option("--out", help="Run folder; default runs/NAME, as for compare.")] = None,
    seeds: Annotated[str | None, typer.Option(help="Training seeds, such as 0,1,2.")] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="VARIANT", help="Only this variant; repeatable.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many test questions.")] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Adapters trained side by side.")] = 1,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result, and nothing else, on stdout.")] = False,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe; repeatable.")
    ] = None,
) -> None:
    """Change one thing of a stack at a time, train and test it again, and see what it was worth.

    The recipe names the variants; docs/compare.md has an example of each:

      ablate:
        variants:
          depth1: {merge: [[mention, link, follow, answer]]}   # one call writes all hand-offs as one text
          no_follow: {drop: [follow]}                          # its readers read all items instead of those kept
          rank4: {set: {training.lora.rank: 4}}
          own_policy: {set: {training.on_policy: true}}
          bare_answer: {base: [answer]}                        # the bare base in the place of one stage
        grid: {training.lora.rank: [2, 8], training.learning_rate: [0.001, 0.002]}

    The table shows the whole stack minus each variant, paired over questions and seeds. Killed at any moment, the same
    command goes on where it was.

    Examples:

      cairn ablate recipes/snips.yaml --set task.folder=data/snips
      cairn ablate recipes/snips.yaml --only no_follow --seeds 0 --limit 200
    """
    say: Say = (lambda text: print(text, file=sys.stderr, flush=True)) if as_json else (lambda t: print(t, flush=True))
    changes = list(overrides or [])
    changes += [f"ablate.seeds=[{seeds}]"] if seeds is not None else []
    changes += [f"compare.test_questions={limit}"] if limit is not None else []
    loaded = load_recipe(recipe, changes)
    folder = out or (recipe if recipe.is_dir() else Path("runs") / loaded.name)
    result = ablate_recipe(loaded, folder, only=only or (), jobs=jobs, device=device, say=say)
    if as_json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        _print(result)
        print(f"\nresult   {folder / 'ablate' / 'result.json'}")


def ablate_recipe(
    recipe: ExperimentRecipe,
    out: Path,
    *,
    only: Sequence[str] = (),
    jobs: int = 1,
    device: str = "auto",
    engine: OpenEngine | None = None,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Trains and tests what is not done yet of a recipe's variants, and returns the result.

    Args:
        recipe: as `load_recipe` gives it.
        out: the run folder, the same as that of `cairn compare`.
        only: names of variants; all if empty.
        jobs: adapters trained side by side.
        device: see `bases.pick_device`.
        engine: opens the engine of a training; by default the one that runs in this process.
        say: takes lines for the reader.

    Raises:
        ConfigError: a variant cannot be made, or `out` holds the work of another recipe.
        DataError: the data cannot be used.
        StorageError: `out` cannot be written.
    """
    recipe = resolved_recipe(recipe)
    scorer = experiment_task(recipe)
    _chosen(plan_variants(recipe.stack, recipe.ablate, lambda group: 1), only)  # a faulty one leaves nothing behind
    run = RunFolder(out, run_settings(recipe), seed=recipe.compare.seed)
    opened = engine or (lambda seed, adapters: open_engine(seed, adapters, device=device))
    with SpentSeconds(out / "ablate" / "seconds.json") as spent:
        prepare(recipe, out)
        examples = out / "data" / "train.jsonl"
        varied = plan_variants(recipe.stack, recipe.ablate, _token_counter(recipe.stack, examples))
        varied = _chosen(varied, only)
        test = read_questions_file(out / "data" / "test.jsonl")
        files = {one.name: _variant_examples(recipe.stack, one, examples, out / "ablate" / one.name) for one in varied}
        for one in varied:
            RunFolder(out / "ablate" / one.name, _VariantSettings(change=dict(one.change)), seed=recipe.compare.seed)
        say(f"{recipe.name}: {len(varied)} variants, {len(test):,} test questions -> {out / 'ablate'}")
        runs: dict[str, list[list[Answered]]] = {}
        trained: dict[str, list[TrainedSeed]] = {}
        for seed in recipe.ablate.seeds or recipe.compare.seeds:
            place = out / f"seed-{seed}" / "stack"
            whole = train_stack(
                recipe.stack, examples, place, seed, comparators=(place / "comparators").exists(), jobs=jobs,
                device=device, say=say,
            )  # fmt: skip
            for one in [None, *varied]:
                name, mine, spec = FULL, whole, whole.spec
                file = out / f"seed-{seed}" / "answers" / "stack.test.jsonl"  # where compare keeps them
                if one is not None:
                    name, folder = one.name, out / "ablate" / one.name
                    file = folder / f"seed-{seed}" / "answers.jsonl"
                    if one.trains:
                        mine = train_stack(
                            one.spec, files[one.name],
                            folder / f"seed-{seed}" / "stack", seed, comparators=False, jobs=jobs, device=device,
                            say=say,
                        )  # fmt: skip
                    spec = mine.spec if one.trains else one.spec
                made = _answers(name, spec, mine, file, test, scorer, opened)
                runs.setdefault(name, []).append(made)
                trained.setdefault(name, []).append(mine)
                say(f"  seed {seed}: {name} {sum(a.outcome.score or 0 for a in made) / len(made):.3f}")
        result = _result(recipe, varied, runs, trained, test, scorer)
        result["seconds_total"] = round(spent.total, 1)
    write_json(run.path / "ablate" / "result.json", result)
    if (run.path / "result.json").exists():  # the comparison's page shows the table
        write_page_again(run.path)
    return result


def _chosen(varied: Sequence[VariedStack], only: Sequence[str]) -> list[VariedStack]:
    names = [one.name for one in varied]
    wrong = [f"{name!r}{did_you_mean(name, names)}, allowed: {', '.join(names)}" for name in only if name not in names]
    if wrong:
        raise ConfigError("--only", wrong)
    return [one for one in varied if not only or one.name in only]


def _token_counter(spec: StackSpec, examples: Path) -> Callable[[Sequence[str]], int]:
    """Returns a function that says how many tokens a merged stage may write: a quarter more than any gold text."""

    def tokens_of(group: Sequence[str]) -> int:
        from cairn.bases import load_tokenizer
        from cairn.models.tokenization import completion_ids
        from cairn.prompts import completion_text

        tokenizer = load_tokenizer(spec.base_place)
        texts = [gold_text(spec, example, group) for example in read_examples(examples, spec)]
        return math.ceil(1.25 * max(len(completion_ids(tokenizer, completion_text(text))) for text in texts)) + 8

    return tokens_of


def _variant_examples(spec: StackSpec, varied: VariedStack, examples: Path, folder: Path) -> Path:
    """Returns the examples of a variant: the whole stack's, or a file of its own where stages came or went.

    Raises:
        ConfigError: the gold values do not hold without what was changed.
    """
    if [one.name for one in varied.spec.stages] == [one.name for one in spec.stages]:
        return examples
    file = folder / "train.jsonl"
    rows = [merged_row(spec, row, varied) for row in read_jsonl(examples)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        write_text(file, text)
    try:
        read_examples(file, varied.spec, shown=1)
    except DataError as error:
        raise ConfigError("ablate", [f"{varied.name}: the examples do not hold for it: {error}"]) from None
    return file


def _answers(
    name: str,
    spec: StackSpec,
    seed: TrainedSeed,
    file: Path,
    test: Sequence[Question],
    scorer: Task,
    opened: OpenEngine,
) -> list[Answered]:
    engines: list[Engine] = []

    def open_system() -> Answer:
        bare = [adapter for adapter in spec.adapter_names() if adapter.endswith(BARE)]
        engines.append(BareStages(opened(seed, check_artifacts(seed.spec)), bare))
        return Systems(spec, engines[0], seed.sizes() | dict.fromkeys(bare, 0), score=scorer.score).stack

    try:
        made = cached_answers(file, stack_settings(seed, spec), test, open_system, f"{name}, seed {seed.seed}")
    finally:
        for engine in engines:
            engine.close()
    return rescored(made, test, scorer.score)


def _result(
    recipe: ExperimentRecipe,
    varied: Sequence[VariedStack],
    runs: Mapping[str, Sequence[Sequence[Answered]]],
    trained: Mapping[str, Sequence[TrainedSeed]],
    test: Sequence[Question],
    scorer: Task,
) -> dict[str, Any]:
    settings = recipe.compare

    def mean(key: str) -> dict[str, int]:
        sums = {name: sum(one.facts["stack"][key] for one in seeds) for name, seeds in trained.items()}
        return {name: round(total / len(trained[name])) for name, total in sums.items()}

    result = compare_seeds(
        {name: [[one.outcome for one in run] for run in made] for name, made in runs.items()}, stack=FULL,
        base_params=base_parameters(trained[FULL][0]), trained_params=mean("trained_parameters"),
        training_tokens=mean("training_tokens"), seeds=[one.seed for one in trained[FULL]],
        rows={question.id: scorer.groups(question) for question in test}, seed=settings.seed,
        resamples=settings.resamples,
        extra={
            "name": recipe.name,
            "training_tokens": mean("training_tokens"),
            "variants": {
                one.name: {"change": dict(one.change), "depth": one.depth, "trained": one.trains} for one in varied
            },
            "depth": sum(stage.by == "model" for stage in recipe.stack.stages),
            "versions": versions(settings.seed),
        },
    )  # fmt: skip
    for key in ("best_single", "best_chosen_on", "closest", "paired"):  # no variant is a comparator
        del result[key]
    return result


def _print(result: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    console = console if console.is_terminal else Console(width=_LOG_WIDTH)
    seeds = ", ".join(map(str, result["seeds"]))
    table = Table(title=f"{result['n_test']:,} questions, seeds {seeds}", title_justify="left")
    table.add_column("variant", no_wrap=True)
    for name in ("models", "trained", "FLOPs/question", result["measure"], "95% interval", "whole minus it", "p"):
        table.add_column(name, justify="right", no_wrap=True)
    from cairn.evaluation.plots import si

    for name in result["systems"]:
        low, high = result["ci95"][name]
        paired = result["paired_all"].get(name)
        depth = result["depth"] if paired is None else result["variants"][name]["depth"]
        difference = "" if paired is None else _interval(paired["difference"], *paired["ci95"])
        table.add_row(
            name, str(depth), f"{result['trained_params'][name]:,}", si(result["flops_per_question"][name]),
            f"{100 * result['accuracy'][name]:.1f}", f"{100 * low:.1f} to {100 * high:.1f}", difference,
            "" if paired is None else f"{paired['p_value']:.2g}",
        )  # fmt: skip
    console.print(table)


def _interval(middle: float, low: float, high: float) -> str:
    return f"{100 * middle:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
