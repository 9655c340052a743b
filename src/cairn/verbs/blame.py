"""`cairn blame`: which stage of a stack loses the points? Its hand-offs are replaced by the right ones, one by one.

    own answers of a trained stack ─┐
    right hand-offs, per question ──┴─ stacks.attribution: what has to run again ── OUT/seed-S/blame.jsonl, kept
                                                                 └─ evaluation.blame ── table, result

`cairn compare` does the same for its own test questions, and puts it into its result and report.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from cairn.errors import DataError, InputError
from cairn.evaluation.blame import BlameSettings
from cairn.evaluation.systems import Question
from cairn.evaluation.tasks.registry import Task, task_by_name
from cairn.files import write_json
from cairn.stacks.spec import check_artifacts
from cairn.verbs.comparison.answers import Answer, Answered, Systems, cached_answers, rescored
from cairn.verbs.comparison.blame_section import blame_questions, blame_section
from cairn.verbs.comparison.comparison import OpenEngine, open_engine, stack_settings
from cairn.verbs.comparison.experiment import (
    TrainedSeed,
    check_questions,
    experiment_task,
    read_questions_file,
    trained_seeds,
)
from cairn.verbs.comparison.recipe import load_recipe

__all__ = ["blame", "with_handoffs"]

Say = Callable[[str], Any]


def blame(
    stacks: Annotated[
        list[Path], typer.Argument(metavar="RUN | STACK...", help="A run of cairn compare, or trained stacks.")
    ],
    test: Annotated[Path | None, typer.Option(help="Questions with gold hand-offs, in the form of examples.")] = None,
    teacher: Annotated[
        Path | None, typer.Option(help="Right hand-offs of the same questions, written by a teacher (cairn distill).")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder; default the run, or runs/NAME-blame.")] = None,
    task: Annotated[str | None, typer.Option(help="How answers are scored; default the run's own, or exact.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many questions.")] = 200,
    pairs: Annotated[bool, typer.Option(help="Also replace every pair of stages.")] = True,
    worst: Annotated[int, typer.Option(min=0, help="Wrong answers kept with both sides of their hand-offs.")] = 12,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result, and nothing else, on stdout.")] = False,
) -> None:
    """Name the stage that loses the points, by giving the stack the right hand-offs.

    Each stage's output is replaced by gold, or by a teacher's: alone, together with all stages before it, and in pairs.
    What is not changed by that is not run again. The table shows for each stage

      lost here    points that go wrong in this stage: what gold here brings if all before it is gold already
      lift         what gold in the place of this hand-off alone would bring: the room that is left
      right        how often its hand-off is the gold one, by itself and after gold hand-offs
      broken       calls that broke its contract

    with paired intervals over questions (whole groups) and training seeds. While you design a stack, look at questions
    that no result is reported on: RUN/data/valid.jsonl. docs/report.md explains the rest.

    Examples:

      cairn blame runs/snips --test runs/snips/data/valid.jsonl
      cairn blame runs/a/stack runs/b/stack --test questions.jsonl --no-pairs
    """
    say: Say = (lambda text: print(text, file=sys.stderr, flush=True)) if as_json else (lambda t: print(t, flush=True))
    run = stacks[0] if len(stacks) == 1 and (stacks[0] / "data" / "test.jsonl").exists() else None
    seeds = trained_seeds(sorted(run.glob("seed-*/stack")) if run else stacks)
    file = test or (run / "data" / "test.jsonl" if run else None)
    if file is None:
        raise InputError("trained stacks need questions with gold hand-offs", value=str(stacks[0]), next="--test FILE")
    questions = read_questions_file(file)
    if teacher is not None:
        questions = with_handoffs(questions, read_questions_file(teacher), str(teacher))
    spec = seeds[0].spec
    check_questions(questions, spec)
    settings = BlameSettings(questions=limit, pairs=pairs, worst=worst, source="teacher" if teacher else "gold")
    scorer = experiment_task(load_recipe(run)) if run and task is None else task_by_name(task or "examples")
    folder = out or run or Path("runs") / f"{spec.name}-blame"
    asked = blame_questions(questions, settings)
    if not asked:
        raise DataError("no question has gold hand-offs", value=str(file), allowed="questions with `stages`")

    def opened(seed: TrainedSeed, adapters: Mapping[str, Path]) -> Any:
        return open_engine(seed, adapters, device=device)

    own = [_own_answers(seed, asked, scorer, folder / f"seed-{seed.seed}" / "blame", opened) for seed in seeds]
    stages = [[one.stages for one in made] for made in own]
    section = blame_section(seeds, asked, own, stages, scorer, settings, folder, engine=opened, say=say) or {}
    write_json(folder / "blame.json", section)
    if as_json:
        print(json.dumps(section, ensure_ascii=False))
    else:
        from cairn.evaluation.report_terminal import print_blame

        print_blame(section)
        print(f"\nresult   {folder / 'blame.json'}")


def with_handoffs(questions: Sequence[Question], others: Sequence[Question], where: str) -> list[Question]:
    """Returns the questions that `others` know, by id, with the hand-offs from there.

    Raises:
        DataError: none is known.
    """
    known = {one.id: one.stages for one in others if one.stages}
    found = [replace(question, stages=known[question.id]) for question in questions if question.id in known]
    if not found:
        raise DataError(
            "none of the questions has hand-offs there", value=where, allowed="examples with the questions' ids"
        )
    return found


def _own_answers(
    seed: TrainedSeed, questions: Sequence[Question], task: Task, place: Path, engine: OpenEngine
) -> list[Answered]:
    opened: list[Any] = []

    def open_system() -> Answer:
        opened.append(engine(seed, check_artifacts(seed.spec)))
        return Systems(seed.spec, opened[0], seed.sizes(), score=task.score).stack

    try:
        settings, file = stack_settings(seed, seed.spec), place / "own.jsonl"
        made = cached_answers(file, settings, questions, open_system, f"stack, seed {seed.seed}", stages=True)
    finally:
        for one in opened:
            one.close()
    return rescored(made, questions, task.score)
