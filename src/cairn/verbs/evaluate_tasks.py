"""`cairn eval --tasks`: lm-evaluation-harness's tasks, for models and stacks.

    --tasks, --shots, --harness, or a recipe's `eval:` ── EvalSettings ── open_tasks (before the weights)
                                                              score_opened ── each task kept as soon as it is done
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from cairn.config import StrictModel, parse_config
from cairn.errors import InputError
from cairn.progress import Progress
from cairn.stacks.spec import StackSpec
from cairn.verbs.evaluate_parts import Partial

__all__ = ["EvalSettings", "OpenTasks", "check_stack", "open_tasks", "parse_harness", "parse_shots", "recipe_settings",
           "score_opened"]  # fmt: skip

_ALL = "*"


class EvalSettings(StrictModel):
    """The section `eval:` of a recipe; the command line has the same settings, and goes before.

    Args:
        tasks: names of lm-evaluation-harness: tasks, groups or tags.
        shots: solved examples, by name of a task or group; under "*" for all others. The harness's own by default.
        harness: for a stack, input field -> Jinja template over the document's fields and `{{context}}`; not needed
            for a stack with one input, which gets the whole context.
        data_dir: where the tasks' data are; None asks the Hugging Face hub.
        irt_file: tinyBenchmarks.pkl, for the tiny* tasks.
        limit: the first so many documents of each task.
        seed: draws the solved examples; None is the harness's own.
    """

    tasks: list[str] = []
    shots: dict[str, Annotated[int, Field(ge=0)]] = {}
    harness: dict[str, str] = {}
    data_dir: str | None = None
    irt_file: str | None = None
    limit: int | None = Field(default=None, ge=1)
    seed: int | None = Field(default=None, ge=0)


def parse_shots(given: Sequence[str]) -> dict[str, int]:
    """Returns task -> number of `--shots 4` and `--shots TASK=25`; a number alone is for all tasks.

    Raises:
        InputError: no number of 0 or more.
    """
    found = {}
    for text in given:
        name, equals, number = text.rpartition("=")
        if not number.isdecimal() or (equals and not name):
            raise InputError("--shots takes a number", value=text, allowed="--shots 4, or --shots TASK=4")
        found[name if equals else _ALL] = int(number)
    return found


def parse_harness(given: Sequence[str]) -> dict[str, str]:
    """Returns input field -> template of `--harness FIELD=TEMPLATE`.

    Raises:
        InputError: there is no field name.
    """
    found = {}
    for text in given:
        name, equals, template = text.partition("=")
        if not (name and equals and template):
            raise InputError("--harness needs a field and a template", value=text, allowed="FIELD='{{context}}'")
        found[name] = template
    return found


def recipe_settings(path: Path | None) -> EvalSettings:
    """Returns the section `eval:` of a recipe; the defaults without one.

    Raises:
        ConfigError: the file is no recipe, or a key of the section is wrong.
    """
    if path is None:
        return EvalSettings()
    from cairn.verbs.comparison.recipe import load_recipe

    return parse_config(EvalSettings, dict(load_recipe(path).eval or {}), f"{path}, eval")


@dataclass(frozen=True)
class OpenTasks:
    """Tasks built, data read, parameter file checked: all that can go wrong before a weight is loaded."""

    settings: EvalSettings
    loaded: Any
    irt: Any


def open_tasks(settings: EvalSettings) -> OpenTasks:
    """Builds the tasks.

    Raises:
        MissingExtraError: lm_eval is not installed.
        InputError: a task is unknown, or is asked for twice.
        DataError: its data are missing or wrong, or the parameter file is.
    """
    from cairn.evaluation.harness_data import LocalData
    from cairn.evaluation.harness_tasks import load_tasks, require_lm_eval

    require_lm_eval()
    irt = None
    if settings.irt_file is not None:
        from cairn.evaluation.tiny_irt import load_irt

        irt = load_irt(settings.irt_file)
    data = None if settings.data_dir is None else LocalData(settings.data_dir)
    return OpenTasks(settings, load_tasks(settings.tasks, data=data, shots=settings.shots, seed=settings.seed), irt)


def check_stack(spec: StackSpec, settings: EvalSettings) -> None:
    """Checks that every input of a stack has a template.

    Raises:
        ConfigError: one has none, or a template is wrong.
    """
    from cairn.evaluation.harness_stack import field_templates

    field_templates(spec, settings.harness)


def score_opened(opened: OpenTasks, engine: Any, spec: StackSpec | None, kept: Partial, out: Path | None) -> dict:
    """Returns the figures of all tasks; see `harness.score_tasks`.

    Args:
        spec: a stack; None scores the engine's base.
        kept: each task is kept as soon as it is done.
        out: the result's file; the items go into a folder beside it.
    """
    from cairn.evaluation.harness import score_tasks

    settings = opened.settings
    if spec is None:
        from cairn.evaluation.harness_lm import HarnessModel

        lm: Any = HarnessModel(engine, seed=settings.seed or 0)
    else:
        from cairn.evaluation.harness_stack import HarnessStack

        lm = HarnessStack(spec, engine, settings.harness)
    with ExitStack() as open_bars:
        found = score_tasks(
            lm, opened.loaded, limit=settings.limit, irt=opened.irt, seed=settings.seed or 0,
            items=None if out is None else out.with_name(out.stem + ".items"), done=kept.of("lm_eval"),
            on_task=lambda key, entry: kept.keep("lm_eval", key, entry),
            progress=_bars(opened.loaded, settings.limit, open_bars),
        )  # fmt: skip
    templates = {} if spec is None else {"harness": lm.templates}
    return {**found, "dtype": str(getattr(getattr(engine, "model", None), "dtype", "unknown")), **templates}


def _bars(
    loaded: Any, limit: int | None, open_bars: ExitStack
) -> Callable[[str], Callable[[int, int], None]]:
    """Returns a callback for each task that moves one bar over the documents of all tasks."""
    sizes = {name: min(len(task.eval_docs), limit or 1 << 62) for name, task in loaded.tasks.items()}
    bar = open_bars.enter_context(Progress("lm_eval", total=sum(sizes.values()), unit="document"))
    before = dict(zip(sizes, _sums(sizes), strict=True))

    def of_task(name: str) -> Callable[[int, int], None]:
        def move(done: int, total: int) -> None:
            there = before[name] + sizes[name] * done // max(total, 1)
            bar.advance(max(0, there - bar.done), task=name)

        return move

    return of_task


def _sums(sizes: Mapping[str, int]) -> list[int]:
    """Returns for each size the sum of those before it."""
    sums, total = [], 0
    for size in sizes.values():
        sums.append(total)
        total += size
    return sums
