"""`cairn demo`: the whole path on a real benchmark, from the shipped base to a fair comparison.

    shipped base and stories
      ├─ 1 data      OUT/stack.yaml, train.jsonl, test.jsonl
      ├─ 2 finetune  OUT/stack            what `cairn finetune` makes: adapters and comparators
      ├─ 3 run       one question, every hand-off shown, as `cairn run` does
      ├─ 4 eval      OUT/answers          four systems, the same questions
      └─ 5 compare   OUT/result.json, traces.jsonl, report.html      table, intervals, paired test

Each step finds what an earlier session finished and goes on after it.
"""

from __future__ import annotations

import json
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cairn.runs import RunFolder, versions

if TYPE_CHECKING:
    from cairn.engines.base import Engine
    from cairn.evaluation.systems import Question
    from cairn.stacks.spec import StackSpec
    from cairn.stacks.trace import StageRecord
    from cairn.verbs.comparison.answers import Answered
    from cairn.verbs.demo_data import ResolvedDemo
    from cairn.verbs.spent_seconds import SpentSeconds

__all__ = ["demo"]

Say = Callable[[str], Any]
_OUTPUTS = ["stack.yaml", "train.jsonl", "test.jsonl", "result.json", "traces.jsonl", "report.html"]
_SHOWN_TASK = "qa2"  # two supporting facts


def demo(
    out: Annotated[Path, typer.Option("--out", help="Run folder.")] = Path("runs/demo"),
    full: Annotated[bool, typer.Option("--full", help="1,000 test questions of each task instead of 200.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="A minute's run that shows that everything works; its scores mean nothing.")
    ] = False,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; repeatable.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print result.json, and nothing else, on stdout.")] = False,
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Adapters trained side by side.")] = 2,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
) -> None:
    """Fine-tune a stack on a real benchmark, watch it answer, compare it with one model.

    From the base that ships with Cairn it trains a stack of four stages on bAbI questions (tasks 1, 2, 12, 14, 15), and
    beside it two single adapters with as many trained parameters and training tokens: one on direct answers, one on
    the stack's whole chain as one text. All answer the same held-out questions, the bare base too.

    Killed at any moment, the same command goes on where it was; a finished one is shown again.

      OUT/report.html    table, plots, and every hand-off to read
      OUT/result.json    all figures
      OUT/stack          the trained stack: cairn run OUT/stack ...

    Settings: training.* and the rest of the stack are in OUT/stack.yaml; demo.* are train_questions, train_sentences,
    test_questions, shots, shown_traces, resamples, seed.

      cairn demo
      cairn demo --full --out runs/demo-full
      cairn demo --out runs/longer --set training.tokens_total=1500000 --set demo.test_questions=500
    """
    from cairn.verbs.demo_data import resolve_demo
    from cairn.verbs.spent_seconds import SpentSeconds

    settings = resolve_demo(overrides or [], full=full, quick=quick)
    say: Say = (lambda text: print(text, file=sys.stderr, flush=True)) if as_json else _say
    run = RunFolder(out, settings, seed=settings.demo.seed)
    if not run.finished:
        with SpentSeconds(out / "seconds.json") as spent:
            _work(run, settings, spent, jobs, device, say)
    elif not as_json:
        say(f"{out} is whole: nothing is trained again (delete it, or give another --out, to start anew)\n")
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    if as_json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        _show_result(out, result)


def _say(text: str) -> None:
    print(text, flush=True)


def _work(run: RunFolder, settings: ResolvedDemo, spent: SpentSeconds, jobs: int, device: str, say: Say) -> None:
    from cairn.stacks.spec import load_stack
    from cairn.verbs.comparison.comparison import open_engine, seed_adapters
    from cairn.verbs.comparison.experiment import TrainedSeed
    from cairn.verbs.demo_data import demo_questions, write_inputs
    from cairn.verbs.demo_systems import SYSTEMS, answer_all
    from cairn.verbs.finetune import finetune_stack

    out = run.path
    if run.resumed:
        say(f"{out}: goes on after {spent.total:.0f} s of earlier work")
    write_inputs(settings, out)
    questions, train = demo_questions(settings.demo), demo_questions(settings.demo, "train")
    say(
        f"1 data      {len(train):,} training and {len(questions):,} test questions of bAbI tasks "
        f"{', '.join(dict.fromkeys(question.task for question in questions))} -> {out}"
    )
    say(f"2 finetune  as `cairn finetune {out / 'stack.yaml'} --out {out / 'stack'}`")
    facts = finetune_stack(
        load_stack(out), out / "stack", jobs=jobs, device=device, say=lambda text: say(f"  {text}")
    )
    spec = load_stack(out / "stack")
    trained = TrainedSeed(settings.demo.seed, spec, facts)
    opened: list[Engine] = []

    def engine() -> Engine:
        if not opened:
            opened.append(open_engine(trained, seed_adapters(trained), device=device))
        return opened[0]

    _show_one(spec, engine(), questions, out, say)
    say("\n4 eval      base, one adapter on direct answers, one on the whole chain, the stack: the same questions")
    answers = {
        system: answer_all(system, questions, train, spec, settings.demo, out / "answers", engine, trained.sizes())
        for system in SYSTEMS
    }
    say("\n5 compare")
    _compare(out, settings, facts, answers, questions, spec, engine(), spent)
    run.finish(_OUTPUTS)


def _show_one(spec: StackSpec, engine: Engine, questions: Sequence[Question], out: Path, say: Say) -> None:
    """Asks the stack the first test question with two supporting facts whose story is not the shortest."""
    from cairn.stacks.runner import Runner
    from cairn.stacks.trace import format_inputs, format_stage, format_totals

    asked = [question for question in questions if question.task == _SHOWN_TASK] or list(questions)
    question = next((one for one in asked if one.inputs["story"].count(".") >= 7), asked[0])
    width = max(60, min(shutil.get_terminal_size((100, 24)).columns, 110))
    fields = [f"--field={name}={text}" for name, text in question.inputs.items()]
    say(f"\n3 run       {question.id}, a question with two supporting facts; to ask it yourself:")
    say(shlex.join(["cairn", "run", str(out / "stack"), *fields]))
    say(f"\n{format_inputs(dict(question.inputs), width)}\n")
    runner = Runner(spec, engine)
    names = [stage.name for stage in spec.stages]

    def show(_: int, record: StageRecord) -> None:
        say(format_stage(record, names.index(record.name) + 1, width))

    trace = runner.run([question.inputs], ids=[question.id], on_handoff=show)[0]
    say(f"\nanswer: {trace.answer}  (gold: {question.answer}; {format_totals([trace])})")


def _compare(
    out: Path,
    settings: ResolvedDemo,
    facts: Mapping[str, Any],
    answers: Mapping[str, Sequence[Answered]],
    questions: Sequence[Question],
    spec: StackSpec,
    engine: Any,
    spent: SpentSeconds,
) -> None:
    """Writes traces.jsonl, result.json and report.html."""
    from cairn.evaluation.compare import compare
    from cairn.evaluation.cost import peak_memory_mib
    from cairn.verbs.comparison.comparison_files import (
        counts_by_task,
        mean_by_task,
        training_curves,
        write_comparison,
        write_traces,
    )

    trained = {"stack": facts["stack"], **facts["comparators"]}
    tokens = {name: row["training_tokens"] for name, row in trained.items()}
    stages = [one.stages for one in answers["stack"]]
    shown = write_traces(out / "traces.jsonl", questions, answers, stages, most=settings.demo.shown_traces)
    result = compare(
        {name: [one.outcome for one in made] for name, made in answers.items()},
        base_params=sum(weight.numel() for weight in engine.model.parameters()),
        trained_params={name: row["trained_parameters"] for name, row in trained.items()},
        training_tokens=tokens,
        seed=settings.demo.seed,
        resamples=settings.demo.resamples,
        extra={
            "training_tokens": tokens,
            "training_seconds": {name: row["seconds"] for name, row in trained.items()},
            "training_questions": facts["examples"]["training"],
            "examples_shown_to_base": mean_by_task(answers["base"], "shown"),
            "chains_with_less_room": counts_by_task(answers["single_chain"], "less_room"),
            "questions_with_broken_promises": counts_by_task(answers["stack"], "broken"),
            "questions_left_out": 0,
            "peak_memory_mib": round(max(spent.memory_mib, peak_memory_mib())),
            "versions": versions(settings.demo.seed),
        },
    )
    result["seconds_total"] = round(spent.total, 1)
    names = ", ".join(stage.name for stage in spec.stages)
    write_comparison(
        out, result, shown, curves=training_curves(out / "stack"),
        title="A stack of four small decisions against one model",
        note=f"Stages: {names}. bAbI is a toy world: stories of the test are not in training, but the sentences and "
        "questions that they are made of are.",
    )  # fmt: skip


def _show_result(out: Path, result: Mapping[str, Any]) -> None:
    from cairn.verbs.comparison.comparison_files import print_result

    print_result(out, result)
    print(f"stack    {out / 'stack'}")
