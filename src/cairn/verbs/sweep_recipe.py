"""The recipe of `cairn sweep`: a pretraining run, named changes of it, and the one thing that is held equal.

    recipe: sweep
    name: vocabulary
    baseline: sweep-baseline.yaml              # a pretrain recipe, or its keys right here
    set: {tokenizer.vocab_size: 4096}          # changes that the baseline and all variants share
    budget: {wall_clock_s: 240}                # or {flops: 2.0e+14}, or {parameters: baseline}
    variants:
      bpe_1k: {tokenizer.vocab_size: 1024}
      bpe_8k: {tokenizer.vocab_size: 8192}
    seeds: [0, 1, 2]

A baseline that is a file name stands beside the recipe. What would make two variants incomparable (their own steps,
seed or data; a stream cut or mixed by tokens where the tokens differ) is refused before anything is trained.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, PrivateAttr, StringConstraints, field_validator, model_validator

from cairn.config import StrictModel, load_config, parse_config, read_yaml
from cairn.contracts import quoted_words
from cairn.errors import ConfigError, did_you_mean
from cairn.verbs.comparison.ablate_variants import grid_name
from cairn.verbs.comparison.recipe import Label

if TYPE_CHECKING:
    from cairn.training.pretrain import PretrainRecipe

__all__ = [
    "BudgetConfig",
    "CalibrationConfig",
    "SameSizeConfig",
    "ScoreConfig",
    "SizeDimension",
    "SweepRecipe",
    "changed",
    "load_sweep",
]

_BASELINE = "baseline."
_FOLLOWS = {
    "steps": "the budget decides the steps of every variant",
    "seed": "the sweep's seeds are those of every variant",
    "recipe": "a variant is a pretraining run as well",
    "name": "the variant has its name already",
    "data": "all variants read the same data in the same order",
    "device": "all variants run on the same device",
}
_KINDS = ("wall_clock_s", "flops", "parameters")


class BudgetConfig(StrictModel):
    """What is equal between the variants: exactly one of three.

    Args:
        wall_clock_s: seconds of training steps on this machine (evaluation and saving are not counted).
        flops: training FLOPs, forward and backward.
        parameters: of the model, "baseline" or a number, reached through `same_size`; every variant is trained on as
            many bytes of text as the baseline reads in its `steps`.
    """

    wall_clock_s: float | None = Field(default=None, gt=0)
    flops: float | None = Field(default=None, gt=0)
    parameters: Literal["baseline"] | Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> BudgetConfig:
        given = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(_KINDS)}; given: {', '.join(given) or 'none'}")
        return self

    @property
    def kind(self) -> str:
        """Which of the three it is."""
        return next(kind for kind in _KINDS if getattr(self, kind) is not None)


class SizeDimension(StrictModel):
    """A number of the model's configuration, and the steps in which it may be changed.

    Args:
        dimension: a key of `model.changes`; dots lead into a mapping.
        multiple_of: only multiples of this are tried.
    """

    dimension: str = "intermediate_size"
    multiple_of: int = Field(default=8, ge=1)


class SameSizeConfig(SizeDimension):
    """How a variant is brought to the same number of parameters.

    Args:
        variants: other dimensions for some variants.
        tolerance: largest share by which the parameters may differ; beyond it the variant is refused.
    """

    variants: dict[str, SizeDimension] = {}
    tolerance: float = Field(default=0.01, gt=0, lt=1)

    def of(self, variant: str) -> SizeDimension:
        """Returns the dimension that is widened or narrowed for a variant."""
        return self.variants.get(variant, self)


class CalibrationConfig(StrictModel):
    """How the speed of a variant is measured for `wall_clock_s`.

    Args:
        steps: timed steps of one round, a short training of its own; its first step is not timed.
        warm_steps: steps of a training before the first round, not timed.
        rounds: the variants take turns so many times; the median of the rounds counts.
    """

    steps: int = Field(default=10, ge=1)
    warm_steps: int = Field(default=3, ge=1)
    rounds: int = Field(default=3, ge=1)


class ScoreConfig(StrictModel):
    """How a trained model is scored.

    Args:
        sources: names of the baseline's data.validation; None takes all.
        bytes: read from the start of each.
        piece_bytes: longer documents are cut into pieces of at most so many bytes, each scored alone.
        resamples: draws of the bootstrap.
        seed: of the bootstrap.
    """

    sources: list[str] | None = Field(default=None, min_length=1)
    bytes: int = Field(default=100_000, ge=1)
    piece_bytes: int = Field(default=2000, ge=16)
    resamples: int = Field(default=10_000, ge=100)
    seed: int = Field(default=0, ge=0)


class SweepRecipe(StrictModel):
    """A whole sweep.

    Args:
        recipe: "sweep".
        name: short; also the name of the run folder.
        baseline: a pretrain recipe, or the name of its file beside this one.
        budget: what is equal.
        variants: name -> key.path -> value over the baseline.
        grid: key.path -> values; every combination is a variant more.
        description: one or two sentences.
        baseline_name: of the baseline, in tables.
        set: key.path -> value over the baseline, for all.
        same_size: brings every variant to the same number of parameters; needed by the budget `parameters`, and
            possible with the others.
        seeds: of initialisation and order; each variant is trained once for each.
        calibration: how the speed is measured for `wall_clock_s`.
        score: how bits per byte are measured.
        curve_points: looks at the validation text while training, for the curves; they cost time that is not counted.
    """

    recipe: Literal["sweep"]
    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
    baseline: str | dict[str, Any]
    budget: BudgetConfig
    variants: dict[Label, dict[str, Any]] = {}
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = {}
    description: str = ""
    baseline_name: Label = "baseline"
    set: dict[str, Any] = {}
    same_size: SameSizeConfig | None = None
    seeds: list[Annotated[int, Field(ge=0)]] = Field(default=[0, 1, 2], min_length=1)
    calibration: CalibrationConfig = CalibrationConfig()
    score: ScoreConfig = ScoreConfig()
    curve_points: int = Field(default=0, ge=0)

    _recipes: dict[str, Any] = PrivateAttr(default_factory=dict)
    _folder: Path = PrivateAttr(default=Path())

    @field_validator("variants", mode="before")
    @classmethod
    def _names(cls, variants: Any) -> Any:
        quoted_words(list(variants) if isinstance(variants, dict) else [])
        return variants

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) != len(seeds):
            raise ValueError("seeds must be distinct")
        return seeds

    @model_validator(mode="after")
    def _fits(self) -> SweepRecipe:
        faults = []
        names = self.changes()
        if not names:
            faults.append("there is no variant: give variants or grid")
        if self.baseline_name in names:
            faults.append(f"{self.baseline_name!r} is the baseline's name, allowed: another name for the variant")
        if self.budget.kind == "parameters" and self.same_size is None:
            faults.append("the budget `parameters` needs same_size: say which dimension is widened or narrowed")
        if self.budget.kind != "parameters" and "steps" in self.set:
            faults.append(f"set.steps contradicts the budget: {_FOLLOWS['steps']}")
        if self.same_size is not None:
            known = [self.baseline_name, *names]
            faults += [
                f"same_size.variants: no variant {name!r}{did_you_mean(name, known)}, allowed: {', '.join(known)}"
                for name in self.same_size.variants if name not in known
            ]  # fmt: skip
            for name, change in names.items():
                key = f"model.changes.{self.same_size.of(name).dimension}"
                if key in change:
                    faults.append(f"{name}: {key} is set, and same_size changes it; allowed: one of the two")
        for name, change in names.items():
            for key in change:
                reason = _FOLLOWS.get(key.split(".")[0])
                if reason:
                    faults.append(f"{name}: {key} cannot differ: {reason}")
        if faults:
            raise ValueError("; ".join(faults))
        return self

    def changes(self) -> dict[str, dict[str, Any]]:
        """Returns every variant's changes of the baseline, those of the grid last."""
        found = dict(self.variants)
        for values in itertools.product(*self.grid.values()) if self.grid else []:
            combination = dict(zip(self.grid, values, strict=True))
            found[grid_name(combination)] = combination
        return found

    @property
    def folder(self) -> Path:
        """Where relative paths of the baseline start."""
        return self._folder

    @property
    def recipes(self) -> dict[str, PretrainRecipe]:
        """Name -> pretrain recipe, the baseline first; there after `load_sweep`."""
        return self._recipes


def load_sweep(path: str | Path, overrides: Sequence[str] = ()) -> SweepRecipe:
    """Reads a sweep and checks it whole, with every variant as a pretraining run.

    Args:
        path: the YAML file.
        overrides: `key.path=value` texts; `baseline.data.root=...` reaches into the baseline's own file.

    Raises:
        ConfigError: the file or the baseline cannot be read, or anything in them is wrong: all faults at once.
    """
    from cairn.training.pretrain import PretrainRecipe

    path = Path(path)
    named = read_yaml(path).get("baseline")
    own = [text for text in overrides if text.startswith(_BASELINE)] if isinstance(named, str) else []
    sweep = load_config(SweepRecipe, path, [text for text in overrides if text not in own])
    sweep._folder = path.parent
    if isinstance(sweep.baseline, str):
        file = path.parent / sweep.baseline
        base = load_config(PretrainRecipe, file, [text.removeprefix(_BASELINE) for text in own])
        data, sweep._folder = base.model_dump(mode="json", exclude_unset=True), file.parent
    else:
        data = copy.deepcopy(sweep.baseline)
    data = changed(data, sweep.set, "set")
    base = parse_config(PretrainRecipe, data, f"{path}, baseline")
    found, faults = {sweep.baseline_name: base}, []
    for name, change in sweep.changes().items():
        try:
            made = parse_config(PretrainRecipe, changed(data, change, name), name)
        except ConfigError as error:
            faults += [f"{name}: {fault}" for fault in error.faults]
            continue
        same = next((other for other, one in found.items() if one == made), None)
        if same is not None:
            faults.append(f"{name}: the same run as {same}; allowed: a change")
        found[name] = made
    faults += _data_faults(sweep, found)
    if faults:
        raise ConfigError(str(path), faults)
    sweep._recipes = found
    return sweep


def _data_faults(sweep: SweepRecipe, recipes: Mapping[str, PretrainRecipe]) -> list[str]:
    """Returns what keeps these recipes from reading the same text in the same order, or from being scored."""
    base = recipes[sweep.baseline_name]
    known = [source.name for source in base.data.validation]
    faults = [
        f"score.sources: no {name!r} in the baseline's data.validation{did_you_mean(name, known)}, "
        f"allowed: {', '.join(known) or 'none'}"
        for name in sweep.score.sources or [] if name not in known
    ]  # fmt: skip
    if not known:
        faults.append("baseline: data.validation is empty, allowed: at least one source, for the bits per byte")
    if base.data.written is not None:
        faults.append("baseline: data.written needs a teacher, and a sweep has none; allowed: text that is there "
                      "(cairn pretrain writes it; name its file as a source)")
    tokens = [name for name, one in recipes.items() if one.tokenizer != base.tokenizer]
    rows = [
        name for name, one in recipes.items()
        if (one.sequence_length, one.batch_rows) != (base.sequence_length, base.batch_rows)
    ]  # fmt: skip
    if (tokens or rows) and base.data.order != "stream":
        others = ", ".join(dict.fromkeys([*tokens, *rows]))
        faults.append(
            f"baseline: data.order is {base.data.order!r}, and {others} cut the text otherwise; allowed: stream, the "
            "order that does not depend on the cut"
        )
    if tokens and base.data.total_tokens is not None:
        faults.append(
            f"baseline: data.total_tokens counts tokens, and {', '.join(tokens)} have others; allowed: none, and "
            "max_bytes at the sources"
        )
    if tokens and len(base.data.sources) > 1 and any(source.weight is not None for source in base.data.sources):
        faults.append(
            f"baseline: weights of data.sources are shares of tokens, and {', '.join(tokens)} have others; allowed: "
            "sources without weight, with repeat or max_bytes"
        )
    return faults


def changed(data: Mapping[str, Any], change: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns a copy of a recipe with values put at dotted paths.

    Raises:
        ConfigError: a path leads through a value that is no mapping.
    """
    made = copy.deepcopy(dict(data))
    for key, value in change.items():
        *path, last = key.split(".")
        node: Any = made
        for depth, part in enumerate(path):
            if node.get(part) is None:
                node[part] = {}
            node = node[part]
            if not isinstance(node, dict):
                place = ".".join(path[: depth + 1])
                raise ConfigError(name, [f"{key}: {place} is {json.dumps(node)}, not a mapping"])
        node[last] = copy.deepcopy(value)
    return made
