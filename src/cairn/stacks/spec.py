"""What a stack is: stages, who reads what, and everything that can be checked before a weight is loaded.

    inputs: story, question
        │
        ├─> mention  map over story's sentences, keep: "yes"  ──> the sentences kept
        │                                                              │
        └─> answer   once, reads [mention]  <─────────────────────────┘   (the inputs are always at hand too)

A field is an input or the name of an earlier stage. `load_stack` reads `stack.yaml`, or the `stack` section of an
experiment, and reports all faults in one error; `check_artifacts` looks at the files of a trained stack folder. What a
single stage is stands in stage.py, what can be wrong in faults.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, StringConstraints, model_validator

from cairn import prompts
from cairn.config import StrictModel, load_config, read_yaml
from cairn.errors import ConfigError, InputError
from cairn.stacks.faults import stack_faults, unknown_name
from cairn.stacks.stage import Loop, Name, StageCall, StageSpec

__all__ = ["StackSpec", "StageCall", "StageSpec", "adapter_folder", "check_artifacts", "check_budgets", "load_stack"]

_NEXT_FAULT = "\n  - "
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


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
        faults = stack_faults(self)
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
        raise ConfigError(self.name, [f"no stage {unknown_name(name, names)}"])

    def adapter_names(self) -> list[str]:
        """Returns the adapters that the stages use, each once, in order of first use; rules have none."""
        return list(dict.fromkeys(stage.adapter_name for stage in self.stages if stage.adapter_name is not None))

    def stages_of(self, adapter: str) -> list[StageSpec]:
        """Returns the stages that run with an adapter."""
        return [stage for stage in self.stages if stage.adapter_name == adapter]

    def seen(self, stage: StageSpec, fields: Mapping[str, str]) -> dict[str, str]:
        """Returns the fields that a stage sees: the inputs and what it reads."""
        return {name: fields[name] for name in (*self.inputs, *stage.reads) if name in fields}

    def items(self, stage: StageSpec, fields: Mapping[str, str]) -> list[str] | None:
        """Returns the items that a stage runs over; None if it has no `over`.

        There are none if the field holds the `empty` text of the stage that made it.

        Raises:
            InputError: the field is missing or has no text.
        """
        if stage.over is None:
            return None
        text = prompts.field_text(stage.over, fields)
        if any(maker.name == stage.over and maker.empty == text for maker in self.stages):
            return []
        return prompts.split_items(text, stage.split)

    def loop(self, stage: StageSpec, fields: Mapping[str, str]) -> Loop:
        """Returns the loop of a repeat stage on one question, at its start.

        Raises:
            InputError: a field that it reads is missing or has no text.
        """
        nothing = next((maker.empty for maker in self.stages if maker.name == stage.takes), "none")
        return Loop(stage, self.seen(stage, fields), self.items(stage, fields), nothing)

    def calls(
        self, stage: StageSpec, fields: Mapping[str, str], outputs: Sequence[str] | None = None
    ) -> list[StageCall]:
        """Returns the calls of one stage, as training and serving make them.

        Args:
            stage: one of this stack's.
            fields: the inputs and the values of the earlier stages, gold or made.
            outputs: of a repeat stage, what its calls wrote or should write, in order: each call sees the state that
                the outputs before it leave. Other stages do not need them.

        Raises:
            InputError: a field is missing or has no text, or the outputs of a repeat stage are not given.
        """
        if stage.kind != "repeat":
            seen, items = self.seen(stage, fields), self.items(stage, fields)
            return [stage.call(seen)] if items is None else [stage.call(seen, item) for item in items]
        if outputs is None:
            raise InputError(
                "what a repeat stage is asked depends on what it wrote", value=stage.name,
                next="give its outputs in call order, or drive loop(stage, fields)",
            )  # fmt: skip
        loop, calls = self.loop(stage, fields), []
        for output in outputs:
            call = loop.next()
            if call is None:
                break
            calls.append(call)
            loop.take(output)
        return calls

    def rule_outputs(self, stage: StageSpec, fields: Mapping[str, str]) -> list[str]:
        """Returns the outputs of a rule stage in call order, as an example would list them.

        Raises:
            InputError: the rule failed, its loop did not end by itself, or a field is missing.
        """
        if stage.kind != "repeat":
            return [stage.parse(stage.answer(call)) for call in self.calls(stage, fields)]
        loop = self.loop(stage, fields)
        while (call := loop.next()) is not None:
            loop.take(stage.parse(stage.answer(call)))
        if loop.broken is not None:
            raise InputError(f"rule {stage.rule} {loop.broken}")
        return loop.outputs


class _Experiment(BaseModel):
    """The part of an experiment's recipe that is a stack; `cairn compare` checks the rest."""

    model_config = ConfigDict(extra="ignore")

    recipe: str
    stack: StackSpec


def load_stack(path: str | Path, overrides: Sequence[str] = ()) -> StackSpec:
    """Reads a stack and checks it whole, before any weight is loaded.

    Args:
        path: `stack.yaml`, the folder that holds it, or a recipe with `recipe: experiment`, of which the section
            `stack` is taken. Relative paths in it count from the file's folder.
        overrides: `key.path=value` texts, with keys as in stack.yaml.

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
        if read_yaml(file).get("recipe") == "experiment":
            spec = load_config(_Experiment, file, [f"stack.{override}" for override in overrides]).stack
        else:
            spec = load_config(StackSpec, file, overrides)
    except ConfigError as error:  # the graph's faults come as one text: one line each
        faults = [f"{place}{line}" for place, text in map(_place, error.faults) for line in text.split(_NEXT_FAULT)]
        raise ConfigError(error.source, faults, next=error.next) from None
    spec._folder = file.resolve().parent
    return spec


def _place(fault: str) -> tuple[str, str]:
    """Takes a fault apart: what stands before each of its lines, and the lines."""
    if fault.startswith("stack: "):  # an experiment's
        return "stack: ", fault.removeprefix("stack: ")
    return "", fault.removeprefix("(whole file): ")


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

    The state of a repeat stage is an output that its next prompt holds: both must fit, each at its longest. Rules
    read no context.

    Raises:
        ConfigError: a stage may write more than the model's context holds.
    """
    faults = []
    for stage in spec.stages:
        if stage.prompt is None:
            continue
        tokens = stage.sampling.max_new_tokens
        grows = stage.kind == "repeat" and "state" in prompts.template_fields(stage.prompt)
        most = (context_tokens - 1) // 2 if grows else context_tokens - 1
        if tokens > most:
            why = ", where {state} may hold as many and as many are written," if grows else ""
            faults.append(
                f"stage {stage.name}: max_new_tokens {tokens} leaves no room for a prompt in a context of"
                f" {context_tokens} tokens{why}, allowed: at most {most}"
            )
    if faults:
        raise ConfigError(spec.name, faults, next="lower sampling.max_new_tokens, or take a base with a longer context")
