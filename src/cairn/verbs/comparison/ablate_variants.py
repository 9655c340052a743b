"""From a stack and a named change to another stack: what `cairn ablate` trains and tests beside the whole one.

    merge [link, follow]     link_follow: one call writes "link: ...\\nfollow: ..."; rules take the values out again
    drop follow              its readers read all items instead of those kept; of another stage, its `empty` text
    swap [a, b] · replace · set · base

Later stages, the answer and the gold values stay what they were, so that one thing changes at a time. What a merge
makes of several adapters has their shares and the sum of their ranks: trained parameters and tokens stay equal.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cairn import prompts
from cairn.config import parse_config
from cairn.data.examples import StackExample, gold_fields
from cairn.data.gold import gold_outputs
from cairn.errors import ConfigError, did_you_mean
from cairn.stacks.rules import needs
from cairn.stacks.spec import StackSpec
from cairn.stacks.stage import StageSpec
from cairn.training.finetune_plan import stack_training
from cairn.verbs.comparison.recipe import AblateSettings, Variant
from cairn.verbs.finetuning.finetune_pairs import reading_stages

__all__ = [
    "BARE",
    "VariedStack",
    "chain_value",
    "gold_text",
    "grid_name",
    "merged_row",
    "plan_variants",
    "vary",
]

BARE = "_on_base"  # ends the adapter name of a stage that runs on the bare base
_RULE = f"{__name__}:chain_value"
_FIELD = re.compile(r"\{\{|\}\}|\{([A-Za-z_][A-Za-z0-9_]*)\}")

Tokens = Callable[[Sequence[str]], int]


@dataclass(frozen=True)
class VariedStack:
    """A variant of a stack.

    Args:
        name: of the variant.
        change: as the recipe says it.
        spec: the stack that it makes.
        groups: stages written by one call -> the name of that call's stage.
        trains: False if the whole stack's adapters are used as they are.
    """

    name: str
    change: Mapping[str, Any]
    spec: StackSpec
    groups: Mapping[tuple[str, ...], str]
    trains: bool

    @property
    def depth(self) -> int:
        """The stages that a model answers."""
        return sum(stage.by == "model" for stage in self.spec.stages)


@needs("text", "stage", "stages")
def chain_value(fields: Mapping[str, str]) -> str:
    """Returns the value of `stage` in a chain text; nothing if the text ended before it. `stages` are all its names."""
    return prompts.parse_chain(fields["text"], fields["stages"].split()).get(fields["stage"], "")


def plan_variants(spec: StackSpec, settings: AblateSettings, tokens_of: Tokens) -> list[VariedStack]:
    """Returns all variants, those of the grid last, each checked as a stack.

    Args:
        spec: the whole stack.
        settings: of the ablation.
        tokens_of: names of stages -> most tokens that their gold values need as one text.

    Raises:
        ConfigError: any variant cannot be made; the faults of all are in one error.
    """
    wanted = dict(settings.variants)
    for values in itertools.product(*settings.grid.values()) if settings.grid else []:
        combination = dict(zip(settings.grid, values, strict=True))
        wanted[grid_name(combination)] = Variant(set=combination)
    varied, faults = [], []
    for name, variant in wanted.items():
        try:
            varied.append(vary(spec, name, variant, tokens_of))
        except ConfigError as error:
            faults += [f"{name}: {fault}" for fault in error.faults]
    if faults:
        raise ConfigError("ablate", faults)
    if not varied:
        raise ConfigError("ablate", ["there is no variant"], next="give ablate.variants or ablate.grid in the recipe")
    return varied


def grid_name(combination: Mapping[str, Any]) -> str:
    """Returns the name of a grid's variant: `rank=4,targets=q_proj-v_proj`."""
    parts = []
    for key, value in combination.items():
        text = "-".join(map(str, value)) if isinstance(value, list) else str(value)
        parts.append(f"{key.rsplit('.', 1)[-1]}={re.sub(r'[^A-Za-z0-9._-]+', '-', text)}")
    return ",".join(parts)


def vary(spec: StackSpec, name: str, variant: Variant, tokens_of: Tokens) -> VariedStack:
    """Returns one variant.

    Args:
        spec: the whole stack.
        name: of the variant.
        variant: the change.
        tokens_of: see `plan_variants`.

    Raises:
        ConfigError: a stage is not there, or the change makes no stack that holds.
    """
    change = variant.model_dump(mode="json", exclude_defaults=True)
    unknown = [stage for stage in _named(variant) if stage not in [one.name for one in spec.stages]]
    if unknown:
        names = [one.name for one in spec.stages]
        raise ConfigError(name, [f"no stage {one!r}{did_you_mean(one, names)}, allowed: {', '.join(names)}"
                                 for one in unknown])  # fmt: skip
    if variant.base and len(change) > 1:
        raise ConfigError(name, ["base uses adapters that are trained already, allowed: base alone"])
    data = spec.model_dump(mode="json")
    groups: dict[tuple[str, ...], str] = {}
    if variant.merge or variant.drop or variant.replace:
        _write_out_plans(data, spec)
    for group in variant.merge:
        groups[tuple(group)] = _merge(data, spec, group, tokens_of)
    for stage in variant.drop:
        _drop(data, spec, stage)
    for first, second in variant.swap:
        _swap(data["stages"], first, second)
    for stage, keys in variant.replace.items():
        _replace(_stage(data, stage), copy.deepcopy(keys))
    if variant.drop or variant.replace:
        _settle_plans(data)
    for key, value in variant.set.items():
        _set(data, key, copy.deepcopy(value))
    for stage in variant.base:
        if spec.stage(stage).by == "rule":
            raise ConfigError(name, [f"base: stage {stage!r} is a rule, allowed: a stage that a model answers"])
        _stage(data, stage)["adapter"] = f"{stage}{BARE}"
    made = parse_config(StackSpec, data, "stack")
    made._folder = spec.folder
    if made == spec:
        raise ConfigError(name, ["the stack stays what it was"])
    if not variant.base:
        stack_training(made.training, made.adapter_names(), "stack", reading_stages(made))
    same = not variant.base and not groups and _trained(made) == _trained(spec)
    return VariedStack(name, change, made, groups, trains=not variant.base and not same)


def _named(variant: Variant) -> list[str]:
    lists = [*variant.merge, variant.drop, *variant.swap, list(variant.replace), variant.base]
    return [name for names in lists for name in names]


def _trained(spec: StackSpec) -> dict[str, Any]:
    """Returns the part of a stack that decides its training pairs."""
    data = spec.model_dump(exclude={"description", "chain", "output"})
    for stage in data["stages"]:
        for key in ("sampling", "retries", "constrain"):
            stage.pop(key)
    return data


def _stage(data: dict[str, Any], name: str) -> dict[str, Any]:
    for stage in data["stages"]:
        if stage["name"] == name:
            return stage
    raise ConfigError(name, [f"stage {name!r} is no longer there: it was merged or dropped"])


def _write_out_plans(data: dict[str, Any], spec: StackSpec) -> None:
    """Gives every adapter its share and rank in so many words, because the number of adapters changes."""
    names = spec.adapter_names()
    training = stack_training(spec.training, names, "stack", reading_stages(spec))
    plans = data["training"].setdefault("adapters", {})
    for name in names:
        plan = training.adapters.get(name)
        own = dict(plans.get(name) or {})
        own["share"] = plan.share if plan and plan.share is not None else 1 / len(names)
        own["rank"] = plan.rank if plan and plan.rank is not None else training.lora.rank
        plans[name] = own


def _merge(data: dict[str, Any], spec: StackSpec, group: Sequence[str], tokens_of: Tokens) -> str:
    """Puts one stage that writes a chain, and a rule for each value in it, in the place of neighbouring stages."""
    stages = data["stages"]
    names = [stage["name"] for stage in stages]
    start = names.index(group[0]) if group[0] in names else -1
    if start < 0 or names[start : start + len(group)] != list(group):
        raise ConfigError("merge", [f"{list(group)} are not neighbours in this order, allowed: {', '.join(names)}"])
    old = stages[start : start + len(group)]
    models = [stage for stage in old if stage["rule"] is None]
    if not models:
        raise ConfigError("merge", [f"{list(group)} are all rules, allowed: at least one stage that a model answers"])
    name = "_".join(group)
    reads = list(dict.fromkeys(field for stage in old for field in stage["reads"] if field not in group))
    over = [stage["over"] for stage in old if stage["over"] and stage["over"] not in (*group, *spec.inputs)]
    reads += [field for field in dict.fromkeys(over) if field not in reads]
    shown = [*spec.inputs, *reads]
    writer = {
        "name": name,
        "prompt": "\n".join([*(f"{field}: {{{field}}}" for field in shown), f"{', '.join(group)}:"]),
        "reads": reads,
        "sampling": {"max_new_tokens": tokens_of(group)},
    }
    takers = []
    for stage in old:
        arguments = {"text": f"{{{name}}}", "stage": stage["name"], "stages": " ".join(group)}
        takers.append({"name": stage["name"], "rule": _RULE, "arguments": arguments, "reads": [name],
                       "empty": stage["empty"]})  # fmt: skip
    made = [StageSpec.model_validate(stage).model_dump(mode="json") for stage in (writer, *takers)]
    stages[start : start + len(group)] = made
    data["chain"] = spec.chain_stages
    left = _adapters(stages)
    gone = [adapter for adapter in data["training"]["adapters"] if adapter not in left]
    if not gone:
        raise ConfigError("merge", [f"{list(group)}: other stages use all their adapters; merge those stages as well"])
    plans = [data["training"]["adapters"].pop(adapter) for adapter in gone]
    data["training"]["adapters"][name] = {
        "share": sum(plan["share"] for plan in plans), "rank": sum(plan["rank"] for plan in plans)
    }  # fmt: skip
    return name


def _drop(data: dict[str, Any], spec: StackSpec, name: str) -> None:
    if name == spec.answer_stage:
        raise ConfigError("drop", [f"{name!r} is the answer's stage, allowed: any other"])
    gone = _stage(data, name)
    data["stages"].remove(gone)
    field = gone["over"] if gone["keep"] is not None else None  # a filter: all items instead of those kept
    text = gone["empty"].replace("{", "{{").replace("}", "}}")
    for stage in data["stages"]:
        if stage["over"] == name and (field is None or stage["rule"] is None):
            reader = stage["name"]
            raise ConfigError(
                "drop", [f"stage {reader!r} runs over {name!r}, and its gold values are for those items; drop both"]
            )
        for key in ("prompt", "start"):
            if stage.get(key):
                stage[key] = _rewritten(stage[key], name, field, text)
        stage["arguments"] = {k: _rewritten(v, name, field, text) for k, v in (stage.get("arguments") or {}).items()}
        if name in stage["reads"]:
            stage["reads"].remove(name)
            if field is not None and field not in spec.inputs and field not in stage["reads"]:
                stage["reads"].append(field)
        if stage["over"] == name:
            stage["over"] = field
        contract = stage["contract"]
        if name in contract.get("fields", []):
            fields = [field if one == name else one for one in contract["fields"]]
            contract["fields"] = list(dict.fromkeys(one for one in fields if one is not None))
            if not contract["fields"]:
                stage["contract"], stage["constrain"] = {"kind": "free"}, False
    if data["chain"] is not None:
        data["chain"] = [one for one in data["chain"] if one != name]


def _replace(stage: dict[str, Any], keys: dict[str, Any]) -> None:
    """Changes keys of a stage; what only a model or only a rule has goes when the other takes its place."""
    if keys.get("rule") is not None:
        for key in ("prompt", "adapter", "sampling", "constrain", "retries"):
            stage.pop(key, None)
    elif keys.get("prompt") is not None:
        for key in ("rule", "arguments"):
            stage.pop(key, None)
    stage.update(keys)


def _adapters(stages: Sequence[Mapping[str, Any]]) -> set[str]:
    return {stage.get("adapter") or stage["name"] for stage in stages if stage.get("rule") is None}


def _settle_plans(data: dict[str, Any]) -> None:
    """Takes adapters that no stage has out of the training, and gives their share to the others."""
    left = _adapters(data["stages"])
    plans = {adapter: plan for adapter, plan in data["training"]["adapters"].items() if adapter in left}
    total = sum(plan["share"] for plan in plans.values())
    data["training"]["adapters"] = {one: {**plan, "share": plan["share"] / total} for one, plan in plans.items()}


def _rewritten(template: str, name: str, field: str | None, text: str) -> str:
    """Returns a template in which `{name}` is another field or a text."""
    put = text if field is None else f"{{{field}}}"
    return _FIELD.sub(lambda match: put if match[1] == name else match[0], template)


def _swap(stages: list[dict[str, Any]], first: str, second: str) -> None:
    names = [stage["name"] for stage in stages]
    one, other = names.index(first), names.index(second)
    stages[one], stages[other] = stages[other], stages[one]


def _set(data: dict[str, Any], key: str, value: Any) -> None:
    """Puts a value at a dotted path; a list of stages is entered by the stage's name or its number."""
    if key in ("training", "stages"):
        raise ConfigError("set", [f"{key}: this would replace the whole section, allowed: {key}.KEY, key by key"])
    parts = key.split(".")
    node: Any = data
    for depth, part in enumerate(parts):
        place: Any = part
        if isinstance(node, list):
            names = [one.get("name") if isinstance(one, dict) else None for one in node]
            place = names.index(part) if part in names else int(part) if part.isdecimal() else len(node)
            if place >= len(node):
                known = ", ".join(name for name in names if name) or f"0 to {len(node) - 1}"
                raise ConfigError("set", [f"{key}: no {part!r} there, allowed: {known}"])
        elif not isinstance(node, dict):
            raise ConfigError("set", [f"{key}: {'.'.join(parts[:depth])} is {node!r}, not a mapping"])
        if depth == len(parts) - 1:
            node[place] = value
        else:
            if isinstance(node, dict) and node.get(place) is None:
                node[place] = {}
            node = node[place]


def merged_row(spec: StackSpec, row: Mapping[str, Any], varied: VariedStack) -> dict[str, Any]:
    """Returns an example of the whole stack as an example of a variant.

    Args:
        spec: the whole stack.
        row: of its examples file.
        varied: the variant: gold values of merged stages become one text, those of dropped stages are left out.
    """
    kept = {name: value for name, value in row["stages"].items() if name in {one.name for one in varied.spec.stages}}
    example = _example(row)
    for group, name in varied.groups.items():
        kept = {stage: value for stage, value in kept.items() if stage not in group}
        kept[name] = gold_text(spec, example, group)
    return {**row, "stages": kept}


def gold_text(spec: StackSpec, example: StackExample, group: Sequence[str]) -> str:
    """Returns the gold values of some stages as one text; a loop that hands on its last output is written in steps."""
    fields = gold_fields(spec, example)
    lines: list[tuple[str, str]] = []
    for stage in (spec.stage(name) for name in group):
        steps = stage.kind == "repeat" and stage.collect == "last"
        values = stage.kept(fields, gold_outputs(spec, stage, example, fields)) if steps else []
        lines += [(stage.name, value) for value in values or [fields[stage.name]]]
    return prompts.chain_text(lines)


def _example(row: Mapping[str, Any]) -> StackExample:
    gold = {name: tuple(value) if isinstance(value, list) else value for name, value in row["stages"].items()}
    return StackExample(row["id"], row["inputs"], gold, row["answer"])
