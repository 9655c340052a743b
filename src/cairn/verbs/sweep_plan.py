"""From a sweep's recipe to steps: what every variant weighs, costs and reads before the first of them is trained.

    recipes ─▶ tokenizer and shards, once for each kind ─▶ same size? ─▶ parameters, FLOPs per token
                                                                              │
              wall_clock_s: seconds of a step, measured, variants in turn  ───┤
              flops: models/accounting.py                                  ───┼──▶ steps of each variant
              parameters: bytes of text that the baseline reads            ───┘

Whatever the budget, a run stops after a number of steps: it can be repeated bit by bit, on another machine as well.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cairn.config import parse_config
from cairn.errors import ConfigError, TokenizerError
from cairn.files import atomic_folder, sha256_json
from cairn.verbs.sweep_recipe import SizeDimension, SweepRecipe, changed

if TYPE_CHECKING:
    from cairn.training.pretrain import PretrainRecipe

__all__ = ["VariantPlan", "link_data", "plan_sweep", "prepare_data", "set_steps"]

Say = Callable[[str], Any]
_WIDEST = 64  # times the baseline's own value: no dimension is tried beyond


@dataclass(frozen=True)
class VariantPlan:
    """One variant, as it will be trained.

    Args:
        name: of the variant.
        change: as the recipe says it.
        recipe: the pretraining run, without seed and steps.
        data: folder with its tokenizer and shards.
        parameters: of the model, tied weights counted once.
        size: what was widened or narrowed: dimension, was, is, target, difference; empty if nothing was.
        vocabulary: entries of the tokenizer.
        bytes_per_token: raw bytes of the stream per token.
        stream_tokens: tokens of the stream.
        tokens_per_step: of the global batch.
        flops_per_token: of training, None where they are not known;
        flops_note: and why they are not.
        seconds_per_step: measured, for the budget `wall_clock_s`.
        steps: optimizer steps; 0 before `set_steps`.
    """

    name: str
    change: Mapping[str, Any]
    recipe: PretrainRecipe
    data: Path
    parameters: int
    size: Mapping[str, Any]
    vocabulary: int
    bytes_per_token: float
    stream_tokens: int
    tokens_per_step: int
    flops_per_token: float | None
    flops_note: str = ""
    seconds_per_step: float | None = None
    steps: int = field(default=0)

    @property
    def tokens(self) -> int:
        """Tokens read in all steps."""
        return self.steps * self.tokens_per_step

    def as_json(self) -> dict[str, Any]:
        """Returns the figures of the plan as a JSON-able dict."""
        facts = {key: value for key, value in asdict(replace(self, change={}, size={})).items()
                 if key not in ("recipe", "data", "name")}  # fmt: skip
        flops = None if self.flops_per_token is None else self.flops_per_token * self.tokens
        return {
            **facts, "change": dict(self.change), "size": dict(self.size), "tokens": self.tokens,
            "raw_bytes": round(self.tokens * self.bytes_per_token),
            "epochs": round(self.tokens / self.stream_tokens, 4), "flops": flops,
        }  # fmt: skip


def prepare_data(sweep: SweepRecipe, out: Path, say: Say, only: Sequence[str] | None = None) -> dict[str, Path]:
    """Makes tokenizer and shards, once for variants that read the same; returns the folder of each variant.

    Args:
        sweep: of `load_sweep`.
        out: the run folder.
        say: takes lines for the reader.
        only: names of variants, the baseline among them; None takes all.

    Raises:
        DataError, ShardError, TokenizerError, StorageError: see `training.pretrain.prepare`.
    """
    from cairn.training.pretrain import prepare

    folders = {}
    for name, recipe in sweep.recipes.items():
        if only is not None and name not in only:
            continue
        read = recipe.data.model_dump(mode="json", exclude={"validation", "validation_bytes", "order"})
        key = sha256_json([recipe.tokenizer.model_dump(mode="json"), read, str(sweep.folder.resolve())])[:12]
        folders[name] = out / "data" / key
        prepare(recipe, folders[name], recipe_folder=sweep.folder, say=say)
    return folders


def link_data(data: Path, run: Path) -> None:
    """Puts tokenizer and shards of `data` into a run folder: hard links where the file system has them."""
    for part in ("tokenizer", "shards"):
        if not (run / part).exists():
            with atomic_folder(run / part) as temporary:
                shutil.copytree(
                    data / part, temporary, dirs_exist_ok=True, copy_function=_link, ignore=shutil.ignore_patterns(".*")
                )


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def plan_sweep(sweep: SweepRecipe, folders: Mapping[str, Path]) -> list[VariantPlan]:
    """Returns variants with their size and cost, the baseline first; the steps are not set yet.

    Args:
        sweep: of `load_sweep`.
        folders: of `prepare_data`: variants without one are left out.

    Raises:
        ConfigError: a model cannot be built, or not at the wanted size, or its FLOPs are not known and the budget
            needs them: all faults at once.
    """
    from transformers import AutoTokenizer

    tokenizers = {folder: AutoTokenizer.from_pretrained(folder / "tokenizer") for folder in set(folders.values())}
    plans: list[VariantPlan] = []
    faults: list[str] = []
    target = sweep.budget.parameters if isinstance(sweep.budget.parameters, int) else None
    for name, recipe in ((name, sweep.recipes[name]) for name in folders):
        tokenizer = tokenizers[folders[name]]
        try:
            size: dict[str, Any] = {}
            if sweep.same_size is not None and (target is not None or plans):
                wanted = plans[0].parameters if target is None else target
                recipe, size = _resized(recipe, tokenizer, sweep.same_size.of(name), wanted)
                if abs(size["difference"]) > sweep.same_size.tolerance * wanted:
                    raise ConfigError(name, [
                        f"nearest to {wanted:,} parameters is {size['dimension']} {size['is']} with "
                        f"{wanted + size['difference']:,}, allowed: within {sweep.same_size.tolerance:.1%}; give "
                        "same_size another dimension for this variant, a smaller multiple_of, or more tolerance"
                    ])  # fmt: skip
            config, parameters = _built(recipe, tokenizer)
        except ConfigError as error:
            faults += [f"{name}: {fault}" for fault in error.faults]
            if not plans:
                break
            continue
        flops, note = training_flops_per_token(recipe, config, parameters)
        if flops is None and sweep.budget.kind == "flops":
            faults.append(f"{name}: {note}; allowed with it: the budget wall_clock_s or parameters")
        plans.append(VariantPlan(
            name, sweep.changes().get(name, {}), recipe, folders[name], parameters, size, len(tokenizer),
            *_stream(folders[name], tokenizer), recipe.batch_rows * recipe.sequence_length, flops, note,
        ))  # fmt: skip
    if faults:
        raise ConfigError("sweep", faults)
    return plans


def set_steps(sweep: SweepRecipe, plans: list[VariantPlan], seconds: Mapping[str, float]) -> list[VariantPlan]:
    """Returns the plans with the steps that the budget pays for.

    Args:
        sweep: the recipe.
        plans: of `plan_sweep`.
        seconds: variant -> seconds of one step, for the budget `wall_clock_s`.

    Raises:
        ConfigError: the budget pays for no step of some variant, for more text than there is, or for a number of steps
            that its recipe cannot have.
    """
    budget, base = sweep.budget, plans[0]
    read = base.recipe.steps * base.tokens_per_step * base.bytes_per_token
    faults, found = [], []
    for plan in plans:
        if budget.wall_clock_s is not None:
            one, unit = seconds[plan.name], "s"
            steps = int(budget.wall_clock_s / one)
        elif budget.flops is not None:
            one, unit = (plan.flops_per_token or 0) * plan.tokens_per_step, "FLOPs"
            steps = int(budget.flops / one)
        else:
            one, unit = plan.tokens_per_step * plan.bytes_per_token, "bytes of text"
            steps = round(read / one)
        made = replace(plan, steps=steps, seconds_per_step=seconds.get(plan.name))
        found.append(made)
        faults += [f"{plan.name}: {fault}" for fault in _step_faults(made, f"one step takes {one:.3g} {unit}")]
    if faults:
        raise ConfigError("budget", faults)
    return found


def _step_faults(plan: VariantPlan, one: str) -> list[str]:
    """Returns what is wrong with the number of steps that a budget pays for."""
    if plan.steps < 1:
        return [f"{one}, more than the budget; allowed: a bigger one"]
    recipe, epochs = plan.recipe, plan.tokens / plan.stream_tokens
    faults = []
    if epochs > recipe.data.max_epochs:
        faults.append(
            f"the budget pays for {plan.steps:,} steps, {epochs:.2f} passes over the text; allowed: "
            f"{recipe.data.max_epochs:g} (data.max_epochs), with a smaller budget or more text"
        )
    try:
        parse_config(type(recipe), {**recipe.model_dump(mode="json", exclude_unset=True), "steps": plan.steps}, "steps")
    except ConfigError as error:
        faults += [f"with {plan.steps:,} steps: {fault}" for fault in error.faults]
    return faults


def training_flops_per_token(recipe: PretrainRecipe, config: Any, parameters: int) -> tuple[float | None, str]:
    """Returns training FLOPs of a token at the mean context of the recipe's rows, or None and why they are not known.

    Args:
        recipe: the run.
        config: of its model.
        parameters: of the model as it is built.
    """
    from cairn.models.accounting import flops_per_token, parameters_by_part

    rule = (getattr(config, "byte_pooling", None) or {"rule": "none"}).get("rule", "space")
    extra = [
        name for name, there in (
            (f"objective {recipe.objective.kind}", recipe.objective.kind != "next_token"),
            ("early exits", getattr(config, "early_exit", None) is not None),
            ("length_warmup", recipe.length_warmup is not None),
            (f"length of the patches of rule {rule!r}", rule not in ("none", "fixed")),
        ) if there
    ]  # fmt: skip
    if extra:
        return None, f"its FLOPs are not known: the account has no {' and no '.join(extra)}"
    counted = parameters_by_part(config)["total"]
    if counted != parameters:
        return None, f"its FLOPs are not known: the account has {counted:,} parameters, the model {parameters:,}"
    context = (recipe.sequence_length + 1) // 2  # causal: position i sees i positions
    return float(flops_per_token(config, context, training=True)), ""


def _stream(folder: Path, tokenizer: Any) -> tuple[float, int]:
    from cairn.data.shards import ShardSet

    summary = ShardSet.open(folder / "shards", tokenizer, verify=False).summary
    return summary.raw_bytes / summary.tokens, summary.tokens


def _built(recipe: PretrainRecipe, tokenizer: Any) -> tuple[Any, int]:
    """Returns the configuration of a recipe's model, and its parameters, counted on a model without memory."""
    import torch

    from cairn.models import CairnForCausalLM
    from cairn.training.pretrain import model_config

    try:
        config = model_config(recipe, tokenizer)
        with torch.device("meta"):
            model = CairnForCausalLM(config)
    except (ValueError, TokenizerError) as error:
        raise ConfigError("model", [" ".join(str(error).split())]) from None
    return config, sum(one.numel() for one in {id(weight): weight for weight in model.parameters()}.values())


def _resized(
    recipe: PretrainRecipe, tokenizer: Any, dimension: SizeDimension, target: int
) -> tuple[PretrainRecipe, dict[str, Any]]:
    """Returns the recipe with one dimension changed so that its parameters come nearest to a number.

    Raises:
        ConfigError: there is no such dimension, it cannot take the values tried, or parameters do not grow with it.
    """
    from cairn.training.pretrain import PretrainRecipe

    key, step = f"model.changes.{dimension.dimension}", dimension.multiple_of
    was: Any = _built(recipe, tokenizer)[0].to_dict()
    for part in dimension.dimension.split("."):
        was = was.get(part) if isinstance(was, dict) else None
    if not isinstance(was, int) or isinstance(was, bool) or was < 1:
        raise ConfigError(key, [f"same_size.dimension: {dimension.dimension!r} is {was!r} in this model, allowed: a "
                                "whole number of its configuration"])  # fmt: skip
    data = recipe.model_dump(mode="json", exclude_unset=True)
    tried: dict[int, tuple[PretrainRecipe, int]] = {}

    def count(times: int) -> int:
        if times not in tried:
            try:
                made = PretrainRecipe.model_validate(changed(data, {key: times * step}, key))
                tried[times] = made, _built(made, tokenizer)[1]
            except (ValueError, ConfigError) as error:
                reason = " ".join(str(error).split())
                raise ConfigError(key, [f"{dimension.dimension} {times * step}: {reason}; give same_size another "
                                        "multiple_of"]) from None  # fmt: skip
        return tried[times][1]

    high = max(1, round(was / step))
    while count(high) < target:
        high *= 2
        if high * step > _WIDEST * was:
            raise ConfigError(key, [f"{dimension.dimension} {high // 2 * step} makes {count(high // 2):,} parameters, "
                                    f"fewer than {target:,}; give same_size another dimension"])  # fmt: skip
    low = 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) < target else (low, middle)
    best = min((low, high), key=lambda times: abs(count(times) - target))
    facts = {"dimension": dimension.dimension, "was": was, "is": best * step, "target": target,
             "difference": count(best) - target}  # fmt: skip
    return tried[best][0], facts
