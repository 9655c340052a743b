"""What a stack is: stages, who reads what, and everything that can be checked before a weight is loaded.

    inputs: story, question
        │
        ├─> mention  map over story's sentences, keep: "yes"  ──> the sentences kept
        │                                                              │
        └─> answer   once, reads [mention]  <─────────────────────────┘   (the inputs are always at hand too)

A field is an input or the name of an earlier stage. `load_stack` reads `stack.yaml` and reports all faults in one
error; `check_artifacts` looks at the files of a trained stack folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PrivateAttr, StringConstraints, field_validator, model_validator

from cairn import prompts
from cairn.config import StrictModel, load_config
from cairn.contracts import ChoicesContract, Contract, CopiedContract, FreeContract, check, normalise, quoted_words
from cairn.engines.base import Sampling
from cairn.errors import ConfigError, did_you_mean

__all__ = ["StackSpec", "StageCall", "StageSpec", "adapter_folder", "check_artifacts", "check_budgets", "load_stack"]

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=64)]
_NEXT_FAULT = "\n  - "
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True)
class StageCall:
    """One call of a stage: its prompt, and the item if the stage maps."""

    prompt: str
    item: str | None = None


class StageSpec(StrictModel):
    """One step of a stack.

    Args:
        name: of the stage and of the field it makes.
        prompt: template over `reads`, the stack's inputs and, for a map stage, `{item}` (see `prompts.render`).
        kind: "once", or "map" over the items of the field `over`.
        over: the field that a map stage cuts into items.
        split: how it is cut: "lines" or "sentences".
        keep: of a map stage, keep the ITEMS whose output equals this, in order; None joins the outputs.
        join: put between the items kept or the outputs joined.
        empty: the stage's value if no item is left.
        reads: earlier stages that the prompt uses; the stack's inputs are always at hand.
        contract: what each output promises (see `contracts`).
        sampling: how tokens are chosen.
        adapter: name of the adapter, the stage's own by default; two stages may share one.
        retries: how often an output that breaks its contract is asked for again, 0 to 3.
        constrain: hold the output to the contract's choices while it is written.
    """

    name: Name
    prompt: str = Field(min_length=1)
    kind: Literal["once", "map"] = "once"
    over: str | None = None
    split: prompts.Split = "lines"
    keep: str | None = None
    join: str = "\n"
    empty: str = "none"
    reads: list[str] = []
    contract: Contract = FreeContract()
    sampling: Sampling = Sampling()
    adapter: Name | None = None
    retries: int = Field(default=1, ge=0, le=3)
    constrain: bool = False

    _quoted = field_validator("keep", "empty", mode="before")(quoted_words)

    @property
    def adapter_name(self) -> str:
        """The adapter this stage runs with."""
        return self.adapter or self.name

    def value(self, fields: Mapping[str, str], items: Sequence[str] | None, outputs: Sequence[str]) -> str:
        """Returns the stage's value.

        Args:
            fields: what the stage saw.
            items: what it mapped over; None if it ran once.
            outputs: parsed outputs, one, or one per item.
        """
        if items is None:
            return normalise(self.contract, outputs[0])
        values = [normalise(self.contract, output) for output in outputs]
        return prompts.combine_outputs(items, values, keep=self.keep, join=self.join, empty=self.empty)


class StackSpec(StrictModel):
    """A whole stack, as `stack.yaml` says it.

    Args:
        name: short name.
        stages: in the order they run.
        inputs: the fields that a question brings.
        description: one or two sentences.
        base: the frozen model: "embedded:base" (shipped with Cairn), a folder, or a Hugging Face name.
        output: the stage whose value is the answer; the last by default.
        examples: stage examples (JSON lines) for `cairn finetune`, relative to stack.yaml.
        chain: stages whose values the chain-as-one-text comparator writes, the answer last; all by default.
        direct_prompt: template over the inputs for the comparators that see no hand-off; by default each input on
            its own line and then "Answer:".
        training: settings of `cairn finetune`, checked by that verb.
    """

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=64)]
    stages: list[StageSpec] = Field(min_length=1)
    inputs: list[Name] = Field(min_length=1)
    description: str = ""
    base: str = "embedded:base"
    output: str | None = None
    examples: str | None = None
    chain: list[str] | None = None
    direct_prompt: str | None = None
    training: dict[str, Any] = {}

    _folder: Path | None = PrivateAttr(default=None)

    @model_validator(mode="after")
    def _whole(self) -> StackSpec:
        faults = _graph_faults(self)
        if faults:
            raise ValueError(_NEXT_FAULT.join(faults))
        return self

    @property
    def folder(self) -> Path | None:
        """The folder that stack.yaml was read from; None if the stack was made in code."""
        return self._folder

    @property
    def base_place(self) -> str:
        """The base to load: a relative folder counts from stack.yaml if it is there, else from here."""
        if self._folder is not None and not Path(self.base).is_absolute() and (self._folder / self.base).is_dir():
            return str(self._folder / self.base)
        return self.base

    @property
    def answer_stage(self) -> str:
        """The stage whose value is the answer."""
        return self.output or self.stages[-1].name

    @property
    def chain_stages(self) -> list[str]:
        """The stages whose values make the chain comparator's text, in order, the answer last."""
        return list(self.chain) if self.chain is not None else [stage.name for stage in self.stages]

    @property
    def comparator_prompt(self) -> str:
        """The template of the comparators that see only the inputs."""
        return self.direct_prompt or "\n".join([*(f"{{{name}}}" for name in self.inputs), "Answer:"])

    def stage(self, name: str) -> StageSpec:
        """Returns a stage by name.

        Raises:
            ConfigError: there is none.
        """
        for stage in self.stages:
            if stage.name == name:
                return stage
        names = [stage.name for stage in self.stages]
        raise ConfigError(self.name, [f"no stage {_unknown(name, names)}"])

    def adapter_names(self) -> list[str]:
        """Returns the adapters that the stages use, each once, in order of first use."""
        return list(dict.fromkeys(stage.adapter_name for stage in self.stages))

    def stages_of(self, adapter: str) -> list[StageSpec]:
        """Returns the stages that run with an adapter."""
        return [stage for stage in self.stages if stage.adapter_name == adapter]

    def calls(self, stage: StageSpec, fields: Mapping[str, str]) -> list[StageCall]:
        """Returns the calls of one stage: the one place where fields become prompts, in training and serving.

        A map stage over a field that holds its maker's `empty` text has no items and makes no call.

        Args:
            stage: one of this stack's.
            fields: the inputs and the values of the earlier stages.

        Raises:
            InputError: a field is missing or has no text.
        """
        items = self.items(stage, fields)
        texts = prompts.expand(stage.prompt, fields, items)
        if items is None:
            return [StageCall(prompt=texts[0])]
        return [StageCall(prompt=text, item=item) for text, item in zip(texts, items, strict=True)]

    def items(self, stage: StageSpec, fields: Mapping[str, str]) -> list[str] | None:
        """Returns the items that a map stage runs over, none if its field is its maker's `empty`; None for once.

        Raises:
            InputError: the field is missing or has no text.
        """
        if stage.kind == "once" or stage.over is None:
            return None
        text = prompts.field_text(stage.over, fields)
        for maker in self.stages:
            if maker.name == stage.over and maker.kind == "map" and text == maker.empty:
                return []
        return prompts.split_items(text, stage.split)


def _graph_faults(spec: StackSpec) -> list[str]:
    faults: list[str] = []
    names = [stage.name for stage in spec.stages]
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        faults.append(f"stage {name!r} is there {names.count(name)} times, allowed: distinct names")
    for name in dict.fromkeys(name for name in spec.inputs if spec.inputs.count(name) > 1):
        faults.append(f"input {name!r} is there {spec.inputs.count(name)} times, allowed: distinct names")
    for name in [name for name in (*names, *spec.inputs) if name == "item"]:
        faults.append(f"{name!r} is the item of a map stage, allowed: any other name")
    for name in set(names) & set(spec.inputs):
        faults.append(f"stage {name!r} has the name of an input, allowed: distinct names")
    earlier: list[str] = []
    for stage in spec.stages:
        faults += [f"stage {stage.name}: {fault}" for fault in _stage_faults(stage, spec, earlier, names)]
        earlier.append(stage.name)
    if spec.output is not None and spec.output not in names:
        faults.append(f"output: no stage {_unknown(spec.output, names)}")
    faults += [f"chain: no stage {_unknown(name, names)}" for name in spec.chain or [] if name not in names]
    if spec.chain is not None and spec.answer_stage not in spec.chain[-1:]:
        faults.append(f"chain: must end with the answer's stage {spec.answer_stage!r}")
    if spec.direct_prompt is not None:
        faults += _template_faults("direct_prompt", spec.direct_prompt, list(spec.inputs))
    return faults


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
            faults.append(f"{place} unknown field {_unknown(name, known)}")
    if stage.kind == "map" and stage.over is None:
        faults.append(f"kind map needs over: the field to cut into items, allowed: {', '.join(known)}")
    if stage.kind == "once":
        for key in ("over", "keep"):
            if getattr(stage, key) is not None:
                faults.append(f"{key} is for kind map, but kind is once")
    readable = [*spec.inputs, *(name for name in stage.reads if name in earlier)]
    visible = [*readable, *(["item"] if stage.kind == "map" else [])]
    faults += _template_faults("prompt", stage.prompt, visible, earlier)
    if stage.kind == "map" and not prompts.template_faults(stage.prompt):
        if "item" not in prompts.template_fields(stage.prompt):
            faults.append("prompt of a map stage must read {item}, else every call is the same")
    if isinstance(stage.contract, CopiedContract):
        for name in stage.contract.fields:
            if name not in visible:
                faults.append(f"contract copies from {_unknown(name, visible)}; a field must be read to be copied")
    if stage.keep is not None and not isinstance(stage.contract, CopiedContract):
        if normalise(stage.contract, stage.keep) != stage.keep or check(stage.contract, stage.keep):
            allowed = ", ".join(getattr(stage.contract, "values", [])) or "what the contract allows"
            faults.append(f"keep {stage.keep!r} is not a value that its contract allows, allowed: {allowed}")
    if stage.constrain and not isinstance(stage.contract, ChoicesContract):
        faults.append(f"constrain needs a contract of kind choices, but it is {stage.contract.kind}")
    return faults


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
            faults.append(f"{place} uses unknown field {_unknown(name, visible)}")
    return faults


def _unknown(name: str, known: Sequence[str]) -> str:
    return f"{name!r}{did_you_mean(name, known)}, allowed: {', '.join(known)}"


def load_stack(path: str | Path, overrides: Sequence[str] = ()) -> StackSpec:
    """Reads a stack and checks it whole, before any weight is loaded.

    Args:
        path: `stack.yaml`, or the folder that holds it.
        overrides: `key.path=value` texts.

    Raises:
        ConfigError: the file cannot be read, or anything in it is wrong: all faults at once.
    """
    path = Path(path)
    file = path / "stack.yaml" if path.is_dir() else path
    if not file.exists():
        raise ConfigError(
            str(path), ["no stack there"], next="give a folder with a stack.yaml; `cairn finetune STACK.yaml` makes one"
        )
    try:
        spec = load_config(StackSpec, file, overrides)
    except ConfigError as error:  # the graph's faults come as one text: one line each
        faults = [line for fault in error.faults for line in fault.removeprefix("(whole file): ").split(_NEXT_FAULT)]
        raise ConfigError(error.source, faults, next=error.next) from None
    spec._folder = file.resolve().parent
    return spec


def adapter_folder(folder: str | Path, adapter: str) -> Path:
    """Returns where a trained stack keeps an adapter: stages/NAME."""
    return Path(folder) / "stages" / adapter


def check_artifacts(spec: StackSpec, folder: str | Path | None = None) -> dict[str, Path]:
    """Checks that every adapter of a trained stack is there and whole, without loading one.

    Args:
        spec: the stack.
        folder: the stack folder; where it was read from by default.

    Returns:
        Adapter name -> its folder.

    Raises:
        ConfigError: adapters are missing or damaged, all in one error.
    """
    root = Path(folder) if folder is not None else spec.folder
    if root is None:
        raise ConfigError(spec.name, ["the stack has no folder"], next="load it with load_stack(FOLDER)")
    found, faults = {}, []
    for adapter in spec.adapter_names():
        place = found[adapter] = adapter_folder(root, adapter)
        if not place.is_dir():
            faults.append(f"adapter {adapter!r} is missing: no folder {place}")
            continue
        if not (place / "adapter_config.json").is_file():
            faults.append(f"adapter {adapter!r} is damaged: {place} has no adapter_config.json")
        weights = [place / name for name in _ADAPTER_WEIGHTS if (place / name).is_file()]
        if not weights:
            faults.append(f"adapter {adapter!r} is damaged: {place} has no {_ADAPTER_WEIGHTS[0]}")
        elif weights[0].stat().st_size == 0:
            faults.append(f"adapter {adapter!r} is damaged: {weights[0]} is empty")
    if faults:
        raise ConfigError(str(root), faults, next="train it with `cairn finetune STACK.yaml --out FOLDER`")
    return found


def check_budgets(spec: StackSpec, context_tokens: int) -> None:
    """Checks that every stage's output fits the context beside at least as long a prompt.

    Raises:
        ConfigError: a stage may write more than the model's context holds.
    """
    faults = [
        f"stage {stage.name}: max_new_tokens {stage.sampling.max_new_tokens} leaves no room for a prompt in a context"
        f" of {context_tokens} tokens, allowed: at most {context_tokens - 1}"
        for stage in spec.stages
        if stage.sampling.max_new_tokens >= context_tokens
    ]
    if faults:
        raise ConfigError(spec.name, faults, next="lower sampling.max_new_tokens, or take a base with a longer context")


