"""Gold hand-offs: what every stage of a stack should be asked, and should write, on an example.

    example ── gold_outputs: of one stage, in call order ── gold_fields: the hand-offs they make
                    └── gold_calls: the prompts that training shows, each with its output

The stack is taken as any object with the attributes below, because data and stacks are siblings and meet only through
files. Prompts come from the stack's own `calls`, the code that serves them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from cairn.prompts import parse_output

__all__ = [
    "GoldCall", "StackExample", "StackView", "StageView", "gold_calls", "gold_fields", "gold_outputs", "matters",
]  # fmt: skip


class StageView(Protocol):
    """What this module reads of one stage; stacks.spec.StageSpec has it."""

    name: str
    kind: Any
    rule: str | None
    over: str | None
    keep: str | None
    until: str | None
    at_most: int
    collect: Any
    contract: Any

    def parse(self, output: str) -> str: ...
    def broken(self, value: str, call: Any) -> list[str]: ...
    def stop(self, fields: Mapping[str, str]) -> str | None: ...
    def kept(self, fields: Mapping[str, str], outputs: Sequence[str]) -> list[str]: ...
    def value(self, fields: Mapping[str, str], items: Sequence[str] | None, outputs: Sequence[str]) -> str: ...


class StackView(Protocol):
    """What this module reads of a stack; stacks.spec.StackSpec has it."""

    inputs: list[str]
    stages: list[Any]

    @property
    def answer_stage(self) -> str: ...
    @property
    def chain_stages(self) -> list[str]: ...
    @property
    def comparator_prompt(self) -> str: ...
    def adapter_names(self) -> list[str]: ...
    def stages_of(self, adapter: str) -> list[Any]: ...
    def items(self, stage: Any, fields: Mapping[str, str]) -> list[str] | None: ...
    def loop(self, stage: Any, fields: Mapping[str, str]) -> Any: ...
    def calls(self, stage: Any, fields: Mapping[str, str], outputs: Sequence[str] | None = None) -> list[Any]: ...
    def rule_outputs(self, stage: Any, fields: Mapping[str, str]) -> list[str]: ...


class GoldCall(NamedTuple):
    """One call of a stage on gold fields: its prompt, what it should write, and what it looked at."""

    prompt: str
    output: str
    item: str | None = None
    state: str | None = None


@dataclass(frozen=True)
class StackExample:
    """One checked line: inputs, the gold value of every stage (one per call if it maps or repeats), and the answer.

    `task` is the part of its data set that it belongs to, empty if the line does not say.
    """

    id: str
    inputs: Mapping[str, str]
    stages: Mapping[str, str | tuple[str, ...]]
    answer: str
    task: str = ""


def matters(stage: StageView, value: str, state: str | None) -> bool | None:
    """Returns whether an output does something: keeps its item, or changes the state of its loop.

    In a long story most calls do nothing, and an adapter that does nothing at all is right in most of them.

    Args:
        stage: of the call.
        value: what the call says, as a field value.
        state: what the loop had before; None outside a loop.

    Returns:
        None for a stage whose outputs all do something.
    """
    if stage.kind == "repeat":
        return stage.parse(value) != state
    return None if stage.keep is None else stage.parse(value) == stage.keep


def gold_outputs(
    spec: StackView, stage: StageView, example: StackExample, fields: Mapping[str, str]
) -> list[str]:
    """Returns the gold outputs of one stage in call order; those of a rule that the example leaves out are computed.

    Args:
        spec: the stack.
        stage: one of its stages.
        example: an example of it.
        fields: inputs and the values of the earlier stages.

    Raises:
        InputError: the rule failed.
    """
    if stage.rule is not None and stage.name not in example.stages:
        return spec.rule_outputs(stage, fields)
    value = example.stages[stage.name]
    return [parse_output(one) for one in ([value] if isinstance(value, str) else value)]


def gold_fields(spec: StackView, example: StackExample) -> dict[str, str]:
    """Returns inputs and, for every stage, the hand-off that its gold values make."""
    fields = dict(example.inputs)
    for stage in spec.stages:
        outputs = gold_outputs(spec, stage, example, fields)
        fields[stage.name] = stage.value(fields, spec.items(stage, fields), outputs)
    return fields


def gold_calls(
    spec: StackView, stage: StageView, example: StackExample, fields: Mapping[str, str] | None = None
) -> list[GoldCall]:
    """Returns the calls that a stage makes on an example, each with its gold output; a loop's states are gold too.

    Args:
        spec: the stack.
        stage: one of its stages.
        example: a checked example.
        fields: what the stage reads instead of the gold fields; the items must be as many as in those.
    """
    at_hand = gold_fields(spec, example) if fields is None else fields
    outputs = gold_outputs(spec, stage, example, at_hand)
    calls = spec.calls(stage, at_hand, outputs)
    return [GoldCall(call.prompt, out, call.item, call.state) for call, out in zip(calls, outputs, strict=True)]
