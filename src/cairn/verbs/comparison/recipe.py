"""One experiment in one file: what every verb of an experiment reads, each its own section.

    recipe: experiment
    name: snips
    task: {name: snips, folder: data/snips}      # or examples: train.jsonl and test: test.jsonl
    distill: {...}                               # cairn distill
    stack: {...}                                 # a whole stack.yaml with `training:`: cairn finetune, run, info
    compare: {seeds: [0, 1, 2], shots: 4}        # cairn compare
    blame: {questions: 200}                      # its look at the stages
    cost: {questions: 40}                        # its look at time, memory and energy
    ablate: {variants: {...}}                    # cairn ablate
    eval: {tasks: [...]}                         # cairn eval

Relative paths count from the recipe's folder where they exist there, else from here. Sections of other verbs are kept
as they are and checked by those verbs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, StringConstraints, field_validator, model_validator

from cairn.config import StrictModel, load_config, read_yaml
from cairn.contracts import quoted_words
from cairn.errors import ConfigError, did_you_mean
from cairn.evaluation.blame import BlameSettings
from cairn.evaluation.cost import CostSettings
from cairn.stacks.spec import StackSpec, load_stack

__all__ = [
    "COMPARATORS",
    "HANDOFFS",
    "SYSTEMS",
    "AblateSettings",
    "CompareSettings",
    "ExperimentRecipe",
    "TaskSection",
    "Variant",
    "load_recipe",
]

COMPARATORS = ("base", "single_direct", "single_chain", "vote", "ensemble")
HANDOFFS = ("stack_empty", "stack_shuffled", "stack_gold")
SYSTEMS = (*COMPARATORS, "stack", *HANDOFFS)

_STACK = "stack."
_NEXT_FAULT = "\n  - "
Label = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._=,-]*$", max_length=64)]


class TaskSection(StrictModel, extra="allow"):
    """Which task, and where the user's copy of its data is; every other key is an option of the task.

    Args:
        name: of `evaluation.tasks.registry`, or `package.module:object`.
        folder: of the data.
    """

    name: str
    folder: str = "."

    @property
    def options(self) -> dict[str, Any]:
        """The task's own options, not checked yet."""
        return dict(self.model_extra or {})


class CompareSettings(StrictModel):
    """How the stack is compared.

    Args:
        seeds: of training; everything is trained once for each.
        test_questions: at most so many, spread evenly over the test set; None takes all.
        validation_questions: training examples held out from all training, on which the best comparator is chosen; at
            most so many, and at most a fifth of the examples; whole groups are drawn. 0 chooses on the test questions.
        shots: solved examples shown to the bare base.
        votes: fewest samples of the vote; it takes more where the FLOPs of the stack pay for more.
        vote_temperature: of its samples; the first is the greedy answer.
        resamples: draws of the bootstrap and of the permutation test.
        systems: those that answer; None takes all that the data allows.
        token_tolerance: by how much the training tokens of the stack and of a single adapter may differ, as a share:
            a training ends less than one pair before its budget.
        shown_traces: questions in the report; traces.jsonl has all.
        seed: of the bootstrap, of the samples, of the shuffled hand-offs and of the examples shown to the base.
    """

    seeds: list[Annotated[int, Field(ge=0)]] = Field(default=[0, 1, 2], min_length=1)
    test_questions: int | None = Field(default=None, ge=1)
    validation_questions: int = Field(default=200, ge=0)
    shots: int = Field(default=4, ge=0)
    votes: int = Field(default=1, ge=1)
    vote_temperature: float = Field(default=0.7, gt=0)
    resamples: int = Field(default=10_000, ge=100)
    systems: list[str] | None = None
    token_tolerance: float = Field(default=0.02, ge=0, lt=1)
    shown_traces: int = Field(default=400, ge=1)
    seed: int = Field(default=0, ge=0)

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) != len(seeds):
            raise ValueError("seeds must be distinct")
        return seeds

    @field_validator("systems")
    @classmethod
    def _known(cls, systems: list[str] | None) -> list[str] | None:
        for name in systems or []:
            if name not in SYSTEMS:
                raise ValueError(f"no system {name!r}{did_you_mean(name, SYSTEMS)}, allowed: {', '.join(SYSTEMS)}")
        if systems is not None and ("stack" not in systems or not set(systems) & set(COMPARATORS)):
            raise ValueError(f"the stack and at least one of {', '.join(COMPARATORS)} are needed for a comparison")
        singles = {"vote": {"single_direct", "single_chain"}, "ensemble": {"single_direct"}}
        for name, needs in singles.items():
            if systems is not None and name in systems and not needs & set(systems):
                raise ValueError(f"{name} needs the answers of {' or '.join(sorted(needs))}; add it to the systems")
        return None if systems is None else [name for name in SYSTEMS if name in systems]


class Variant(StrictModel):
    """One change of the stack, trained and tested like the stack itself. Several keys are applied in this order.

    Args:
        merge: lists of neighbouring stages that one call writes as one text, a line `name: value` each.
        drop: stages left out: readers of a stage that keeps items read all items instead; of any other, its `empty`.
        swap: pairs of stages that change places in the order.
        replace: stage -> keys of its definition that are replaced.
        set: key.path -> value over the stack, such as `training.lora.rank`; `stages.NAME.key` finds a stage by name.
        base: stages that run on the bare base, without their adapter: nothing is trained anew for this alone.
    """

    merge: list[Annotated[list[str], Field(min_length=2)]] = []
    drop: list[str] = []
    swap: list[Annotated[list[str], Field(min_length=2, max_length=2)]] = []
    replace: dict[str, dict[str, Any]] = {}
    set: dict[str, Any] = {}
    base: list[str] = []

    @model_validator(mode="after")
    def _changes_something(self) -> Variant:
        if not any((self.merge, self.drop, self.swap, self.replace, self.set, self.base)):
            raise ValueError(f"the variant changes nothing, allowed: {', '.join(Variant.model_fields)}")
        return self


class AblateSettings(StrictModel):
    """What `cairn ablate` changes, one variant at a time.

    Args:
        variants: name -> change.
        grid: key.path -> values; every combination is a variant more.
        seeds: those of `compare` by default.
    """

    variants: dict[Label, Variant] = {}
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    seeds: list[int] | None = Field(default=None, min_length=1)

    @field_validator("variants", mode="before")
    @classmethod
    def _names(cls, variants: Any) -> Any:
        quoted_words(list(variants) if isinstance(variants, dict) else [])
        return variants


class ExperimentRecipe(StrictModel):
    """A whole experiment.

    Args:
        recipe: "experiment".
        name: short; also the name of the run folder.
        stack: as a stack.yaml, or the name of one beside the recipe; its `examples` are made from the task or the file
            below.
        description: one or two sentences.
        task: public data with its own score; or
        examples: stage examples to train from, and
        test: questions to test with, in the form of examples.
        distill: settings of `cairn distill`.
        compare: settings of `cairn compare`;
        blame: how closely it looks at the stages,
        cost: and how it measures what an answer costs.
        ablate: settings of `cairn ablate`.
        eval: settings of `cairn eval`.
    """

    recipe: Literal["experiment"]
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
    stack: StackSpec
    description: str = ""
    task: TaskSection | None = None
    examples: str | None = None
    test: str | None = None
    distill: dict[str, Any] | None = None
    compare: CompareSettings = CompareSettings()
    blame: BlameSettings = BlameSettings()
    cost: CostSettings = CostSettings()
    ablate: AblateSettings = AblateSettings()
    eval: dict[str, Any] | None = None

    _folder: Path | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _one_source(self) -> ExperimentRecipe:
        if self.task is not None and (self.examples or self.test):
            raise ValueError("give task, or examples and test, not both")
        return self

    @property
    def folder(self) -> Path:
        """The folder that the recipe was read from; the current one if it was made in code."""
        return self._folder or Path()

    def place(self, path: str) -> Path:
        """Returns where a path of the recipe is: beside the recipe if it is there, else counted from here."""
        beside = self.folder / Path(path).expanduser()
        return beside if beside.exists() else Path(path).expanduser()


class _WithStackFile(ExperimentRecipe):
    """A recipe whose stack is in a file of its own."""

    stack: str  # type: ignore[assignment]


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> ExperimentRecipe:
    """Reads a recipe and checks it whole.

    Args:
        path: the YAML file, or a run folder with its recipe.yaml.
        overrides: `key.path=value` texts, such as `compare.shots=2` or `stack.training.lora.rank=4`.

    Raises:
        ConfigError: the file cannot be read, is no experiment, or anything in it is wrong: all faults at once.
    """
    path = Path(path)
    file = path / "recipe.yaml" if path.is_dir() else path
    named = read_yaml(file).get("stack")
    if isinstance(named, str):
        own = [override for override in overrides if override.startswith(_STACK)]
        outer = load_config(_WithStackFile, file, [override for override in overrides if override not in own])
        stack = load_stack(file.resolve().parent / named, [override.removeprefix(_STACK) for override in own])
        sections = {name: getattr(outer, name) for name in ExperimentRecipe.model_fields if name != "stack"}
        recipe = ExperimentRecipe(**sections, stack=stack)
        recipe._folder, recipe.stack._folder = file.resolve().parent, stack.folder
        return recipe
    try:
        recipe = load_config(ExperimentRecipe, file, overrides)
    except ConfigError as error:  # the faults of the stack's graph come as one text: one line each
        faults = [
            line if place == 0 else f"stack: {line}"
            for fault in error.faults
            for place, line in enumerate(fault.split(_NEXT_FAULT))
        ]
        raise ConfigError(error.source, faults, next=error.next) from None
    recipe._folder = recipe.stack._folder = file.resolve().parent
    return recipe
