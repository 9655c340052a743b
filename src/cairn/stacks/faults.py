"""What is wrong with a stack, before anything is loaded: every fault as one line, all of them at once.

    names ── distinct, and none of `item`, `state`
    stage ── keys that fit its kind and who answers it ── fields that exist earlier ── templates ── contract and values
    stack ── output, chain, direct_prompt
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cairn import prompts
from cairn.contracts import ChoicesContract, CopiedContract, LabelsContract, check, listable, normalise
from cairn.errors import ConfigError, did_you_mean
from cairn.stacks.rules import find_rule
from cairn.stacks.stage import StageSpec

if TYPE_CHECKING:
    from cairn.stacks.spec import StackSpec

__all__ = ["stack_faults", "unknown_name"]

_RESERVED = {"item": "the item of a map stage or a loop", "state": "the state of a repeat stage"}
_KINDS = {
    "over": ("map", "repeat"), "split": ("map", "repeat"), "keep": ("map",), "join": ("map", "repeat"),
    "start": ("repeat",), "until": ("repeat",), "at_most": ("repeat",), "collect": ("repeat",), "takes": ("repeat",),
}  # fmt: skip
_OF_MODELS = ("adapter", "sampling", "constrain", "retries")


def stack_faults(spec: StackSpec) -> list[str]:
    """Returns every fault of a stack, one line each."""
    faults: list[str] = []
    names = [stage.name for stage in spec.stages]
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        faults.append(f"stage {name!r} is there {names.count(name)} times, allowed: distinct names")
    for name in dict.fromkeys(name for name in spec.inputs if spec.inputs.count(name) > 1):
        faults.append(f"input {name!r} is there {spec.inputs.count(name)} times, allowed: distinct names")
    for name in [name for name in (*names, *spec.inputs) if name in _RESERVED]:
        faults.append(f"{name!r} is {_RESERVED[name]}, allowed: any other name")
    for name in sorted(set(names) & set(spec.inputs)):
        faults.append(f"stage {name!r} has the name of an input, allowed: distinct names")
    earlier: list[str] = []
    for stage in spec.stages:
        faults += [f"stage {stage.name}: {fault}" for fault in _stage_faults(stage, spec, earlier, names)]
        earlier.append(stage.name)
    if spec.output is not None and spec.output not in names:
        faults.append(f"output: no stage {unknown_name(spec.output, names)}")
    faults += [f"chain: no stage {unknown_name(name, names)}" for name in spec.chain or [] if name not in names]
    if spec.chain is not None and spec.answer_stage not in spec.chain[-1:]:
        faults.append(f"chain: must end with the answer's stage {spec.answer_stage!r}")
    if spec.direct_prompt is not None:
        faults += _template_faults("direct_prompt", spec.direct_prompt, list(spec.inputs))
    return faults


def unknown_name(name: str, known: Sequence[str]) -> str:
    """Returns a name that is not known, the closest one that is, and all that are allowed."""
    return f"{name!r}{did_you_mean(name, known)}, allowed: {', '.join(known)}"


def _stage_faults(stage: StageSpec, spec: StackSpec, earlier: list[str], names: list[str]) -> list[str]:
    known = [*spec.inputs, *earlier]
    faults = []
    for place, name in [*(("reads", name) for name in stage.reads), *([("over", stage.over)] if stage.over else [])]:
        if name in known:
            continue
        if name == stage.name:
            faults.append(f"{place} {name!r} is the stage itself, allowed: {', '.join(known)}")
        elif name in names:
            faults.append(f"{place} {name!r} is a later stage (a cycle), allowed: {', '.join(known)}")
        else:
            faults.append(f"{place} unknown field {unknown_name(name, known)}")
    if stage.kind == "map" and stage.over is None:
        faults.append(f"kind map needs over: the field to cut into items, allowed: {', '.join(known)}")
    faults += _key_faults(stage)
    readable = [*spec.inputs, *(name for name in stage.reads if name in earlier)]
    in_call = [*(["item"] if stage.kind == "map" or stage.over else []), *(["state"] if stage.kind == "repeat" else [])]
    visible = [*readable, *in_call]
    if stage.rule is None:
        faults += _prompt_faults(stage, visible, in_call, earlier)
    else:
        faults += _rule_faults(stage, visible, earlier)
    if stage.kind == "repeat":
        faults += _template_faults("start", stage.start, readable, earlier)
        faults += _until_faults(stage, readable, earlier) + _takes_faults(stage, readable)
    if isinstance(stage.contract, CopiedContract):
        for name in stage.contract.fields:
            if name not in [*visible, *stage.arguments]:
                faults.append(f"contract copies from {unknown_name(name, visible)}; a field must be read to be copied")
    if isinstance(stage.contract, LabelsContract):
        if stage.contract.field not in [*visible, *stage.arguments]:
            faults.append(f"contract labels the words of {unknown_name(stage.contract.field, visible)}")
        if stage.until is not None:
            faults.append("until ends a loop with an output of its own, but the contract labels words")
    if stage.keep is not None and not isinstance(stage.contract, CopiedContract):
        faults += _value_faults("keep", stage, stage.keep)
    if stage.constrain and not listable(stage.contract):
        needs = "constrain needs a contract of kind choices, labels, or copied_from_input with unit: lines"
        faults.append(f"{needs}, but it is {stage.contract.kind}")
    return faults


def _is_set(stage: StageSpec, key: str) -> bool:
    return bool(getattr(stage, key) != StageSpec.model_fields[key].default)


def _key_faults(stage: StageSpec) -> list[str]:
    """Returns the keys that mean nothing on a stage like this one: none may be passed over in silence."""
    faults = []
    for key, kinds in _KINDS.items():
        if stage.kind not in kinds and _is_set(stage, key):
            faults.append(f"{key} is for kind {' or '.join(kinds)}, but kind is {stage.kind}")
    if stage.kind == "repeat":
        if stage.over is None and _is_set(stage, "split"):
            faults.append("split says how `over` is cut into items, but there is no over")
        if stage.collect == "last" and _is_set(stage, "join"):
            faults.append("join is for collect: all, but collect is last")
    if stage.prompt is None and stage.rule is None:
        faults.append("needs a prompt, for a model, or a rule")
    if stage.rule is None and stage.arguments:
        faults.append("arguments are for a rule, but the stage has none")
    if stage.rule is not None:
        if stage.prompt is not None:
            faults.append("has a prompt and a rule, allowed: one of both")
        faults += [f"{key} is for a model, but the stage is a rule" for key in _OF_MODELS if _is_set(stage, key)]
    return faults


def _prompt_faults(stage: StageSpec, visible: list[str], in_call: list[str], earlier: list[str]) -> list[str]:
    if stage.prompt is None:
        return []
    faults = _template_faults("prompt", stage.prompt, visible, earlier)
    if in_call and not prompts.template_faults(stage.prompt):
        if not set(in_call) & set(prompts.template_fields(stage.prompt)):
            either = " or ".join(f"{{{name}}}" for name in in_call)
            faults.append(f"prompt of a {stage.kind} stage must read {either}, else every call is the same")
    return faults


def _rule_faults(stage: StageSpec, visible: list[str], earlier: list[str]) -> list[str]:
    faults = []
    for name, template in stage.arguments.items():
        faults += _template_faults(f"arguments.{name}", template, visible, earlier)
    try:
        rule = find_rule(stage.rule or "")
    except ConfigError as error:
        return [*faults, *error.faults]
    for name in getattr(rule, "needs", ()):
        if name not in visible and name not in stage.arguments:
            faults.append(f"rule {stage.rule!r} needs {name!r}: give `arguments: {{{name}: ...}}`, or a field so named")
    return faults


def _takes_faults(stage: StageSpec, readable: list[str]) -> list[str]:
    if stage.takes is None:
        return []
    if stage.takes not in readable:
        return [f"takes unknown field {unknown_name(stage.takes, readable)}; a field must be read to be used up"]
    if stage.takes == stage.over:
        return [f"takes {stage.takes!r}, which is also what it goes over, allowed: another field"]
    if stage.prompt is not None and stage.takes not in prompts.template_fields(stage.prompt):
        return [f"takes {stage.takes!r}, which its prompt does not read, so that no call would see the difference"]
    if stage.until is not None and f"{{{stage.takes}}}" in stage.until:
        return [f"takes {stage.takes!r}, which until reads as well, so that the stop would change from call to call"]
    return []


def _until_faults(stage: StageSpec, readable: list[str], earlier: Sequence[str]) -> list[str]:
    if stage.until is None:
        if stage.over is None:
            return ["kind repeat needs until, the output that ends it, or over, the field to go over item by item"]
        return []
    if not stage.until or stage.until != stage.until.strip():
        return [f"until {stage.until!r} is empty or has white space around it, so that no output equals it"]
    faults = _template_faults("until", stage.until, readable, earlier)
    if faults or prompts.template_fields(stage.until) or not isinstance(stage.contract, ChoicesContract):
        return faults
    return _value_faults("until", stage, stage.until)


def _value_faults(key: str, stage: StageSpec, value: str) -> list[str]:
    if normalise(stage.contract, value) == value and not check(stage.contract, value):
        return []
    allowed = ", ".join(getattr(stage.contract, "values", [])) or "what the contract allows"
    return [f"{key} {value!r} is not a value that its contract allows, allowed: {allowed}"]


def _template_faults(place: str, template: str, visible: list[str], earlier: Sequence[str] = ()) -> list[str]:
    faults = [f"{place}: {fault}" for fault in prompts.template_faults(template)]
    if faults:
        return faults
    for name in prompts.template_fields(template):
        if name in visible:
            continue
        if name in earlier:
            faults.append(f"{place} uses {{{name}}}, which is not among its reads; add it there")
        else:
            faults.append(f"{place} uses unknown field {unknown_name(name, visible)}")
    return faults
