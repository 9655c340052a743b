"""The blame section of a result: what has to run again with right hand-offs is run, and kept.

    own answers and gold hand-offs ── stacks.attribution: what has to run again ── OUT/seed-S/blame/again.jsonl
                                                       └─ evaluation.blame: the figures
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cairn.data.examples import StackExample, gold_outputs
from cairn.errors import CairnError, InputError, storage_error
from cairn.evaluation.blame import BlameRun, BlameSettings, blame_figures
from cairn.evaluation.systems import Question
from cairn.evaluation.tasks.registry import Task
from cairn.files import sha256_json, write_text
from cairn.progress import Progress
from cairn.runs import read_jsonl
from cairn.stacks.attribution import Case, RecallingEngine, Replaced, Rerun, needed, replacements, run_again
from cairn.stacks.runner import Runner
from cairn.stacks.spec import StackSpec, check_artifacts
from cairn.verbs.comparison.answers import Answered
from cairn.verbs.comparison.comparison import OpenEngine, stack_settings
from cairn.verbs.comparison.experiment import TrainedSeed, evenly

__all__ = ["blame_questions", "blame_section", "question_case"]

Say = Callable[[str], Any]
_CHUNK = 256  # runs made, and kept, at once


def blame_questions(questions: Sequence[Question], settings: BlameSettings) -> list[Question]:
    """Returns the questions that are looked at: of those with gold hand-offs as many as asked for, evenly drawn."""
    return evenly([question for question in questions if question.stages], settings.questions)


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
    asked = blame_questions(questions, settings)
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
