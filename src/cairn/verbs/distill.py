"""`cairn distill`: a recipe in, stage examples out, written by a teacher.

    recipe: distill + stack ─ checked whole ─ rows read ─ Distiller ──> OUT/train.jsonl, report.json, stack.yaml ...
                                                             │  └─ OUT/answers.jsonl, a line per answer, fsynced
                                                             └─ the teacher is opened when the first answer is missing
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from cairn.config import StrictModel, save_config
from cairn.data.distill import Distiller
from cairn.data.distill_answers import Answers, Budget
from cairn.data.distill_config import (
    DistillConfig,
    HuggingFaceTeacher,
    OpenAITeacher,
    RecordedTeacherSettings,
    distill_config,
)
from cairn.data.distill_report import coverage, coverage_text, write_examples
from cairn.data.distill_rows import prepare
from cairn.data.distill_rules import find_rule_teacher
from cairn.data.examples import read_examples
from cairn.data.teacher import EngineTeacher, LaterTeacher, NoTeacher, RecordedTeacher, Teacher
from cairn.errors import ConfigError, DataError, EngineError
from cairn.progress import Progress
from cairn.runs import RunFolder
from cairn.stacks.spec import StackSpec
from cairn.verbs.comparison.recipe import ExperimentRecipe, load_recipe

__all__ = ["distill", "distill_stack", "open_teacher"]

# Of a stage, what has no part in the examples: how the trained model is asked.
_OF_THE_STUDENT = {"prompt", "sampling", "adapter", "retries", "constrain"}


class _Settings(StrictModel):
    """What decides the examples: a folder is gone on with only if these are equal."""

    distill: DistillConfig
    inputs: list[str]
    stages: list[dict[str, Any]]


def distill(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="The recipe, with a section distill.")],
    out: Annotated[Path | None, typer.Option("--out", help="Folder to make; default runs/NAME-data.")] = None,
    max_calls: Annotated[
        int | None, typer.Option(min=0, help="Stop when the teacher has given so many answers, all runs together.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=0, help="Stop when it has read and written so many tokens, all runs together.")
    ] = None,
    concurrency: Annotated[
        int | None, typer.Option(min=1, max=512, help="Requests under way at once, instead of the recipe's.")
    ] = None,
    answers: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="answers.jsonl of another run, looked up before the teacher is asked."),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value of the recipe; repeatable.")
    ] = None,
) -> None:
    """Make stage examples: a teacher writes each stage's hand-off.

    The recipe's section `distill:` names the data (Alpaca, chats, questions with rationales, tables, a Hugging Face
    dataset), the teacher (an OpenAI-compatible URL, a local Hugging Face model, recorded answers, a Python function)
    and what the teacher is asked for each stage. What it says is held to the stage's contract, asked again once, and
    otherwise rejected with the reason. docs/distill.md tells it all.

      cairn distill recipes/fslm-alpaca-base.yaml --out runs/alpaca --max-calls 100
      cairn finetune runs/alpaca/stack.yaml --out runs/alpaca-stack

    Every answer is on the disk before it is used. Killed at any moment, or stopped by --max-calls or --max-tokens, the
    same command goes on, and no answered call is made again. OUT/answers.jsonl replays a run without the teacher:

      cairn distill my.yaml --out runs/again --set 'distill.teacher={kind: recorded, path: runs/my/answers.jsonl}'

    \b
    OUT   train.jsonl, test.jsonl, stack.yaml, provenance.jsonl, rejected.jsonl, answers.jsonl, report.json
    """
    loaded = load_recipe(recipe, overrides or [])
    config = distill_config(loaded.distill, loaded.stack, str(recipe))
    if concurrency is not None:
        if not isinstance(config.teacher, OpenAITeacher):
            raise ConfigError("--concurrency", ["is for a teacher of kind openai, but the recipe's is another"])
        config = config.model_copy(update={"teacher": config.teacher.model_copy(update={"concurrency": concurrency})})
    distill_stack(
        loaded.stack, config, out or Path("runs") / f"{loaded.name}-data", place=_placer(loaded), max_calls=max_calls,
        max_tokens=max_tokens, answers=answers or (), say=typer.echo,
    )  # fmt: skip


def distill_stack(
    spec: StackSpec,
    config: DistillConfig,
    out: str | Path,
    *,
    place: Callable[[str], str] = str,
    max_calls: int | None = None,
    max_tokens: int | None = None,
    answers: Sequence[str | Path] = (),
    teacher: Teacher | None = None,
    quiet: bool = False,
    say: Callable[[str], Any] = lambda text: None,
) -> dict[str, Any]:
    """Makes examples for a stack, or goes on making them.

    Args:
        spec: the stack.
        config: the section `distill:`, checked against it.
        out: the folder.
        place: path in the recipe -> path to open.
        max_calls: answered calls of all runs in this folder. max_tokens: tokens read and written. None: no limit.
        answers: files of answers that are looked up first.
        teacher: instead of the one that the section names.
        quiet: show no progress.
        say: takes lines for the reader.

    Returns:
        The report, as in report.json.

    Raises:
        ConfigError: `out` holds a run with other settings, or the teacher's address, key or model is wrong.
        DataError: the source cannot be read; nothing satisfies a stage; no row gave an example.
        EngineError: the teacher is down, or failed on single rows: what it answered is kept.
        StorageError: `out` cannot be written.
    """
    out = Path(out)
    run = RunFolder(out, _settings(config, spec), seed=config.seed)
    if teacher is None:
        teacher = open_teacher(config.teacher, place)
    prepared = prepare(_placed(config, place), spec, "")
    known = Answers(out / "answers.jsonl", answers)
    budget = Budget(known, max_calls, max_tokens)
    try:
        stream = io.StringIO() if quiet else None
        with Progress("distill", total=len(prepared.works), unit="row", stream=stream) as progress:

            def tell(rows: int, figures: Mapping[str, Any]) -> None:
                progress.advance(rows, **figures)

            made = Distiller(config, spec, teacher, known, budget, tell)
            made.run(prepared)
    finally:
        known.close()
    facts = {"teacher": teacher.name, "tokens_estimated": getattr(teacher, "tokens_estimated", False)}
    report = coverage(config, prepared, made, known, facts)
    files = write_examples(out, prepared, made, report)
    say(coverage_text(report))
    if made.stopped is not None:
        raise made.stopped
    if report["complete"] and not report["kept"]:
        reasons = ", ".join(f"{kind} {one['rows']}" for kind, one in report["rejected"].items())
        raise DataError(f"no row gave an example ({reasons})", value=str(out), next="see rejected.jsonl there")
    if (out / "train.jsonl").exists():
        _write_stack(spec, out)
        files.append("stack.yaml")
    left = report["unanswered"]
    if budget.spent:
        say(
            f"stopped at the budget ({_budget_text(max_calls, max_tokens)}): {left['rows']:,} rows are left. "
            "Next: the same command with a higher budget goes on"
        )
    elif left["rows"]:
        raise EngineError(
            f"{left['rows']:,} rows have no answer: {left['examples'][0]['why']}", value=teacher.name,
            next="the same command asks for them again; the others are kept",
        )  # fmt: skip
    else:
        run.finish([*files, "answers.jsonl"])
        say(f"whole: {out}. Next: cairn finetune {out / 'stack.yaml'} --out {out}-stack")
    return report


def _settings(config: DistillConfig, spec: StackSpec) -> _Settings:
    stages = [stage.model_dump(mode="json", exclude=_OF_THE_STUDENT) for stage in spec.stages]
    return _Settings(distill=config.identity(), inputs=spec.inputs, stages=stages)


def _placer(recipe: ExperimentRecipe) -> Callable[[str], str]:
    """Returns how a path of a recipe is found: beside the recipe if it is there, else from here; globs as well."""

    def place(path: str) -> str:
        plain = Path(path).expanduser()
        if not plain.is_absolute() and any(recipe.folder.glob(path)):
            return str(recipe.folder / plain)
        return str(plain)

    return place


def _placed(config: DistillConfig, place: Callable[[str], str]) -> DistillConfig:
    """Returns the settings with every path as it is to be opened."""
    source, keep_out = config.source, config.keep_out
    if source.path is not None:
        source = source.model_copy(update={"path": place(source.path)})
    keep_out = [one.model_copy(update={"path": place(one.path)}) if one.path else one for one in keep_out]
    return config.model_copy(update={"source": source, "keep_out": keep_out})


def open_teacher(settings: Any, place: Callable[[str], str] = str) -> Teacher:
    """Returns the teacher that a recipe names; an engine is opened when it is asked for the first time.

    Args:
        settings: one of the kinds of teacher in `data.distill_config`; None: there is none.
        place: path in the recipe -> path to open.
    """
    if isinstance(settings, OpenAITeacher):
        return LaterTeacher(f"openai:{settings.model}", settings.system, lambda name: _server(settings, name))
    if isinstance(settings, HuggingFaceTeacher):
        return LaterTeacher(f"huggingface:{settings.model}", settings.system, lambda name: _local(settings, name))
    if isinstance(settings, RecordedTeacherSettings):
        return RecordedTeacher(place(settings.path), system=settings.system)
    if settings is None:
        return NoTeacher()
    find_rule_teacher(settings.function)
    return NoTeacher(f"rule:{settings.function}")


def _server(settings: OpenAITeacher, name: str) -> EngineTeacher:
    from cairn.engines.openai_engine import OpenAIEngine

    engine = OpenAIEngine(
        settings.url, settings.model, api=settings.api, system=settings.system, api_key_env=settings.api_key_env,
        concurrency=settings.concurrency, timeout_s=settings.timeout_s, retries=settings.retries,
        extra_body=settings.extra_body,
    )  # fmt: skip
    return EngineTeacher(engine, name, system=settings.system)


def _local(settings: HuggingFaceTeacher, name: str) -> EngineTeacher:
    from cairn.engines.chat_engine import ChatEngine, has_chat_template
    from cairn.engines.torch_engine import TorchEngine

    chat = has_chat_template(settings.model) if settings.chat is None else settings.chat
    if settings.system is not None and not chat:
        raise ConfigError("distill.teacher.system", [f"{settings.model} has no chat template"], next="drop it")
    place = {"device": settings.device, "dtype": settings.dtype}
    kind = ChatEngine if chat else TorchEngine
    engine = kind(settings.model, **place, **({"system": settings.system} if chat else {}))
    return EngineTeacher(engine, name, system=settings.system, batch=settings.batch)


def _write_stack(spec: StackSpec, out: Path) -> None:
    """Writes the stack beside its examples, so that `cairn finetune` can begin; checks that it reads them."""
    base = spec.base
    if Path(spec.base_place).is_dir():
        base = Path(os.path.relpath(Path(spec.base_place).resolve(), out.resolve())).as_posix()
    save_config(spec.model_copy(update={"base": base, "examples": "train.jsonl"}), out / "stack.yaml")
    read_examples(out / "train.jsonl", spec)


def _budget_text(max_calls: int | None, max_tokens: int | None) -> str:
    limits = {"--max-calls": max_calls, "--max-tokens": max_tokens}
    return ", ".join(f"{name} {limit:,}" for name, limit in limits.items() if limit is not None)
