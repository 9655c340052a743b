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

from cairn.runs import RunFolder, read_jsonl, versions

if TYPE_CHECKING:
    from cairn.engines.base import Engine
    from cairn.evaluation.systems import Question
    from cairn.stacks.spec import StackSpec
    from cairn.stacks.trace import StageRecord
    from cairn.verbs.demo_data import ResolvedDemo
    from cairn.verbs.demo_systems import Answers

__all__ = ["demo"]

Say = Callable[[str], Any]
_OUTPUTS = ["stack.yaml", "train.jsonl", "test.jsonl", "result.json", "traces.jsonl", "report.html"]
_SHOWN_TASK = "qa2"  # two supporting facts
_LOG_WIDTH = 130  # columns of the table in a file, where nobody asks how wide it is


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
    from cairn.verbs.demo_data import SpentSeconds, resolve_demo

    settings = resolve_demo(overrides or [], full=full, quick=quick)
    say: Say = (lambda text: print(text, file=sys.stderr, flush=True)) if as_json else _say
    run = RunFolder(out, settings, seed=settings.demo.seed)
    if not run.finished:
        with SpentSeconds(out / "seconds.json") as spent:
            _work(run, settings, lambda: spent.total, device, say)
    elif not as_json:
        say(f"{out} is whole: nothing is trained again (delete it, or give another --out, to start anew)\n")
    result = json.loads((out / "result.json").read_text(encoding="utf-8"))
    if as_json:
        print(json.dumps(result, ensure_ascii=False))
    else:
        _show_result(out, result)


def _say(text: str) -> None:
    print(text, flush=True)


def _work(run: RunFolder, settings: ResolvedDemo, seconds: Callable[[], float], device: str, say: Say) -> None:
    from cairn.stacks.spec import load_stack
    from cairn.verbs.demo_data import demo_questions, write_inputs
    from cairn.verbs.demo_systems import SYSTEMS, answer_all, open_systems
    from cairn.verbs.finetune import finetune_stack

    out = run.path
    if run.resumed:
        say(f"{out}: goes on after {seconds():.0f} s of earlier work")
    write_inputs(settings, out)
    questions, train = demo_questions(settings.demo), demo_questions(settings.demo, "train")
    say(
        f"1 data      {len(train):,} training and {len(questions):,} test questions of bAbI tasks "
        f"{', '.join(dict.fromkeys(question.task for question in questions))} -> {out}"
    )
    say(f"2 finetune  as `cairn finetune {out / 'stack.yaml'} --out {out / 'stack'}`")
    facts = finetune_stack(load_stack(out), out / "stack", device=device, say=lambda text: say(f"  {text}"))
    spec = load_stack(out / "stack")
    opened: list[Engine] = []

    def engine() -> Engine:
        if not opened:
            opened.append(open_systems(spec, device=device))
        return opened[0]

    _show_one(spec, engine(), questions, out, say)
    say("\n4 eval      base, one adapter on direct answers, one on the whole chain, the stack: the same questions")
    sizes = {name: row["trained_parameters"] for name, row in {**facts["adapters"], **facts["comparators"]}.items()}
    answers = {
        system: answer_all(system, questions, train, spec, settings.demo, out / "answers", engine, sizes)
        for system in SYSTEMS
    }
    say("\n5 compare")
    _compare(out, settings, facts, answers, questions, spec, engine(), seconds)
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
    answers: Mapping[str, Answers],
    questions: Sequence[Question],
    spec: StackSpec,
    engine: Any,
    seconds: Callable[[], float],
) -> None:
    """Writes traces.jsonl, result.json and report.html."""
    from cairn.evaluation.compare import compare
    from cairn.evaluation.cost import peak_memory_mib
    from cairn.evaluation.report import report_item, write_report
    from cairn.files import write_json, write_text

    trained = {"stack": facts["stack"], **facts["comparators"]}
    items = [
        report_item({name: one.outcomes[place] for name, one in answers.items()}, question.inputs, stages)
        for place, (question, stages) in enumerate(zip(questions, answers["stack"].stages, strict=True))
    ]
    write_text(out / "traces.jsonl", "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items))
    result = compare(
        {name: one.outcomes for name, one in answers.items()},
        base_params=sum(weight.numel() for weight in engine.model.parameters()),
        trained_params={name: row["trained_parameters"] for name, row in trained.items()},
        seed=settings.demo.seed,
        resamples=settings.demo.resamples,
        seconds_total=seconds(),
        extra={
            "training_tokens": {name: row["training_tokens"] for name, row in trained.items()},
            "training_seconds": {name: row["seconds"] for name, row in trained.items()},
            "training_questions": facts["examples"]["training"],
            "examples_shown_to_base": answers["base"].facts,
            "chains_with_less_room": answers["single_chain"].facts,
            "questions_with_broken_promises": answers["stack"].facts,
            "questions_left_out": 0,
            "peak_memory_mib": round(peak_memory_mib()),
            "versions": versions(settings.demo.seed),
        },
    )
    shown = _shown(items, settings.demo.shown_traces)
    write_report(
        out / "report.html", result, shown, curves=_curves(out / "stack"),
        title="A stack of four small decisions against one model",
        note=_note(len(shown), len(items), spec),
    )  # fmt: skip
    write_json(out / "result.json", {**result, "seconds_total": round(seconds(), 1)})


def _shown(items: Sequence[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """Returns at most `most` items in their order: half of them, if there are as many, answered wrong by the stack."""
    wrong = [place for place, item in enumerate(items) if not item["answers"]["stack"]["correct"]]
    right = [place for place, item in enumerate(items) if item["answers"]["stack"]["correct"]]
    taken_wrong = _spread(wrong, max(most // 2, most - len(right)))
    chosen = sorted([*taken_wrong, *_spread(right, most - len(taken_wrong))])
    return [items[place] for place in chosen]


def _spread(places: Sequence[int], most: int) -> list[int]:
    """Returns at most `most` places, evenly spread."""
    if len(places) <= most:
        return list(places)
    return [places[number * len(places) // most] for number in range(most)]


def _note(shown: int, total: int, spec: StackSpec) -> str:
    part = "All questions" if shown == total else f"{shown:,} of {total:,} questions, wrong answers preferred,"
    return (
        f"{part} can be read below with every hand-off; traces.jsonl has all. Stages: "
        f"{', '.join(stage.name for stage in spec.stages)}. bAbI is a toy world: stories of the test are not in "
        "training, but the sentences and questions that they are made of are."
    )


def _curves(stack: Path) -> dict[str, list[tuple[float, float]]]:
    """Returns name -> (step, loss) of every training run."""
    curves = {}
    for file in sorted((stack / "training").glob("*/metrics.jsonl")):
        curves[file.parent.name] = [(row["step"], row["loss"]) for row in read_jsonl(file) if "loss" in row]
    return curves


def _show_result(out: Path, result: Mapping[str, Any]) -> None:
    from rich.console import Console

    from cairn.evaluation.report import print_table

    console = Console()
    print_table(result, console if console.is_terminal else Console(width=_LOG_WIDTH))
    minutes, seconds = divmod(round(result["seconds_total"]), 60)
    print(f"\n{minutes} min {seconds} s in all, at most {result['peak_memory_mib']:,} MiB of memory")
    print(f"report   {out / 'report.html'}\nresult   {out / 'result.json'}\nstack    {out / 'stack'}")
