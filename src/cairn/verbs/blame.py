"""`cairn blame`: which stage of a stack loses the points? Its hand-offs are replaced by the right ones, one by one.

    own answers of a trained stack ─┐
    right hand-offs, per question ──┴─ stacks.attribution: what has to run again ── OUT/seed-S/blame.jsonl, kept
                                                                 └─ evaluation.blame ── table, result

`cairn compare` does the same for its own test questions, and puts it into its result and report.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from cairn.data.examples import StackExample, gold_outputs
from cairn.errors import CairnError, DataError, InputError, storage_error
from cairn.evaluation.blame import BlameRun, BlameSettings, blame_figures
from cairn.evaluation.systems import Question
from cairn.evaluation.tasks.registry import Task, task_by_name
from cairn.files import sha256_json, write_json, write_text
from cairn.progress import Progress
from cairn.runs import read_jsonl
from cairn.stacks.attribution import Case, RecallingEngine, Replaced, Rerun, needed, replacements, run_again
from cairn.stacks.runner import Runner
from cairn.stacks.spec import StackSpec, check_artifacts
from cairn.verbs.comparison.answers import Answer, Answered, Systems, cached_answers, rescored
from cairn.verbs.comparison.comparison import OpenEngine, open_engine, stack_settings
from cairn.verbs.comparison.experiment import TrainedSeed, check_questions, evenly, experiment_task, read_questions_file
from cairn.verbs.comparison.recipe import load_recipe

__all__ = ["blame", "blame_section", "question_case", "with_handoffs"]

Say = Callable[[str], Any]
_CHUNK = 256  # runs made, and kept, at once


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
    from cairn.verbs.compare import trained_seeds

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
    asked = _asked(questions, settings)
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


def _asked(questions: Sequence[Question], settings: BlameSettings) -> list[Question]:
    return evenly([question for question in questions if question.stages], settings.questions)


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


def blame_section(
    seeds: Sequence[TrainedSeed],
    questions: Sequence[Question],
    own: Sequence[Sequence[Answered]],
    stages: Sequence[Iterable[list[dict[str, Any]]]],
    task: Task,
    settings: BlameSettings,
    out: Path,
    *,
    engine: OpenEngine,
    seed: int = 0,
    resamples: int = 10_000,
    say: Say = lambda text: None,
) -> dict[str, Any] | None:
    """Returns the blame section of a result; what an earlier session ran again is read.

    Args:
        seeds: the trainings.
        questions: of the test; those without gold hand-offs are left out, and the section says how many.
        own: the stack's answers to them, of each seed.
        stages: its hand-offs call by call, of each seed in the order of the questions (`answers.stored_stages`).
        task: scores the answers.
        settings: how closely to look.
        out: the run folder: OUT/seed-S/blame/again.jsonl is kept there.
        engine: opens one: (training, adapters) -> engine; only if something is left to run.
        seed, resamples: of the bootstrap.
        say: takes lines for the reader.

    Returns:
        None if nothing was asked for, or no question has gold hand-offs.

    Raises:
        InputError: the gold hand-offs of a question do not fit the stack.
        StorageError: the folder cannot be written.
    """
    asked = _asked(questions, settings)
    if not settings.questions or not asked:
        return None
    wanted = {question.id for question in asked}
    places = [place for place, question in enumerate(questions) if question.id in wanted]
    runs = []
    for training, answers, calls in zip(seeds, own, stages, strict=True):
        mine = [answers[place] for place in places]
        cases = [question_case(training.spec, asked[n], one.values) for n, one in enumerate(mine)]
        made = _run_again(training, cases, settings, out / f"seed-{training.seed}" / "blame" / "again.jsonl", engine)
        scores = [float(one.outcome.score or 0) for one in mine]
        shown = [one for place, one in enumerate(calls) if questions[place].id in wanted]
        runs.append(BlameRun(training.seed, cases, scores, shown, made))
    spec = seeds[0].spec
    section = blame_figures(spec, asked, runs, task.score, settings, seed=seed, resamples=resamples)
    section["questions_without_gold"] = sum(not question.stages for question in questions)
    section["settings"] = settings.model_dump(mode="json")
    weakest = section["weakest"] or "none: no stage loses points that the interval sets apart from zero"
    say(f"  weakest stage: {weakest}")
    return section


def question_case(spec: StackSpec, question: Question, own: Mapping[str, str]) -> Case:
    """Returns a question with its own and its gold hand-offs.

    Args:
        spec: the stack.
        question: with gold `stages`.
        own: stage -> what the stack handed on.

    Raises:
        InputError: the gold hand-offs do not fit the stack.
    """
    example = StackExample(question.id, question.inputs, question.stages, question.answer)
    fields, outputs = dict(question.inputs), {}
    try:
        for stage in spec.stages:
            outputs[stage.name] = gold_outputs(spec, stage, example, fields)
            fields[stage.name] = stage.value(fields, spec.items(stage, fields), outputs[stage.name])
    except (CairnError, KeyError) as error:
        raise InputError(
            f"the gold hand-offs of question {question.id} do not fit the stack ({error})",
            value={name: question.stages[name] for name in question.stages}, next="correct the data",
        ) from None  # fmt: skip
    gold = {stage.name: fields[stage.name] for stage in spec.stages}
    return Case(question.id, question.inputs, own, gold, outputs)


def _run_again(
    training: TrainedSeed, cases: Sequence[Case], settings: BlameSettings, file: Path, engine: OpenEngine
) -> dict[tuple[str, Replaced], dict[str, str]]:
    """Returns (question id, replaced stages) -> values, of all that has to run again; kept as it is made."""
    spec = training.spec
    marks = {case.id: sha256_json([case.inputs, case.own, case.gold]) for case in cases}
    jobs = {
        (case.id, key): Rerun(case, key)
        for replaced in replacements(spec, settings.pairs)
        for case in cases
        if (key := needed(spec, case, replaced))
    }
    head = {"settings_sha256": sha256_json(stack_settings(training, spec))}
    rows = read_jsonl(file) if file.exists() else []
    rows = rows[1:] if rows and rows[0] == head else []
    made = {(row["id"], tuple(row["replaced"])): row["values"] for row in rows if row["mark"] == marks.get(row["id"])}
    left = [job for key, job in jobs.items() if key not in made]
    if not left:
        return made
    opened = engine(training, check_artifacts(spec))
    try:
        runner = Runner(spec, RecallingEngine(opened), wave=_CHUNK)
        write_text(file, "".join(_line(row) for row in [head, *rows]))  # without a line that was cut off
        with Progress(f"blame, seed {training.seed}", total=len(jobs), unit="run", start=len(jobs) - len(left)) as bar:
            for start in range(0, len(left), _CHUNK):
                chunk = left[start : start + _CHUNK]
                lines = []
                for job, values in zip(chunk, run_again(runner, chunk), strict=True):
                    made[job.case.id, job.replaced] = values
                    row = {"id": job.case.id, "replaced": job.replaced, "mark": marks[job.case.id], "values": values}
                    lines.append(_line(row))
                try:
                    with open(file, "a", encoding="utf-8") as stream:
                        stream.write("".join(lines))
                except OSError as error:
                    raise storage_error(error, file) from error
                bar.advance(len(chunk))
    finally:
        opened.close()
    return made


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
