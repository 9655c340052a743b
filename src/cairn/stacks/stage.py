"""One stage of a stack: what is asked, how often, and what its value is.

    once     fields ───────────────────────── call ──> value
    map      over ── items ── a call each ── outputs ──> joined, or the items kept
    repeat   start ──> {state} ── call ── output ─┬─ equals `until`, or no item is left: over
                         ^                        │
                         └────────────────────────┘

Each call is answered by a model (the stage has a `prompt`) or by a plain Python function (it has a `rule`). The loop of
a repeat stage is driven by the same class in training, with gold outputs, and in serving, with the model's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, field_validator

from cairn import prompts
from cairn.config import StrictModel
from cairn.contracts import Contract, FreeContract, check, listed, normalise, quoted_words
from cairn.engines.base import Sampling
from cairn.stacks.rules import run_rule

__all__ = ["Loop", "Name", "StageCall", "StageSpec"]

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=64)]


@dataclass(frozen=True)
class StageCall:
    """One call of a stage.

    Args:
        prompt: what a model is asked; empty for a rule.
        item: of a stage with `over`.
        state: of a repeat stage, what the calls before have made.
        fields: everything that the call sees, item, state and a rule's arguments included; the contract is checked
            against them.
    """

    prompt: str
    item: str | None = None
    state: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)


class StageSpec(StrictModel):
    """One step of a stack. A fault between its keys, or with other stages, is found by `StackSpec`.

    Args:
        name: of the stage and of the field it makes.
        prompt: template over `reads`, the stack's inputs, `{item}` and `{state}` (see `prompts.render`).
        rule: instead of a prompt, a plain Python function: the name of a rule (see `rules`) or
            "package.module:function".
        arguments: of a rule, name -> template, rendered as a prompt is and given to it beside the fields, or in the
            place of one of the same name.
        kind: "once"; "map" over the items of the field `over`; or "repeat", where each call sees the output of the one
            before as `{state}`.
        over: the field that is cut into items: all of them for a map stage; call by call, as `{item}`, for a repeat
            stage (a fold), which ends with the last one.
        split: how it is cut: "lines" or "sentences".
        keep: of a map stage, keep the ITEMS whose output equals this, in order; None joins the outputs.
        start: of a repeat stage, template over what it reads: the first `{state}`.
        until: of a repeat stage, template over what it reads: the output that ends it; that output is not kept.
        at_most: of a repeat stage, the bound on its calls. One that is ended by it is recorded as a broken promise.
        takes: of a repeat stage, a field whose lines are used up: a line that equals an output is gone from what the
            calls after it see.
        collect: of a repeat stage, its value: the "last" output kept (`start` if there is none), or "all", joined.
        join: put between the items kept or the outputs joined.
        empty: the text that stands for nothing: the value if nothing is left to be joined, or where a rule fails or
            has nothing to say. A stage over a field that holds it has no items.
        reads: earlier stages that the prompt or the rule uses; the stack's inputs are always at hand.
        contract: what each output promises (see `contracts`).
        sampling: how tokens are chosen.
        adapter: name of the adapter, the stage's own by default; two stages may share one.
        retries: how often an output that breaks its contract is asked for again, 0 to 3.
        constrain: hold the output, while it is written, to what the contract lists: its choices, or one of the lines to
            copy; and the stop value.
    """

    name: Name
    prompt: str | None = Field(default=None, min_length=1)
    rule: str | None = Field(default=None, min_length=1)
    arguments: dict[Name, str] = {}
    kind: Literal["once", "map", "repeat"] = "once"
    over: str | None = None
    split: prompts.Split = "lines"
    keep: str | None = None
    start: str = "none"
    until: str | None = None
    at_most: int = Field(default=16, ge=1, le=4096)
    takes: str | None = None
    collect: Literal["last", "all"] = "last"
    join: str = "\n"
    empty: str = "none"
    reads: list[str] = []
    contract: Contract = FreeContract()
    sampling: Sampling = Sampling()
    adapter: Name | None = None
    retries: int = Field(default=1, ge=0, le=3)
    constrain: bool = False

    _quoted = field_validator("keep", "empty", "start", "until", mode="before")(quoted_words)

    @property
    def by(self) -> Literal["model", "rule"]:
        """Who answers its calls."""
        return "model" if self.rule is None else "rule"

    @property
    def adapter_name(self) -> str | None:
        """The adapter this stage runs with; None for a rule."""
        return None if self.rule is not None else self.adapter or self.name

    def call(self, fields: Mapping[str, str], item: str | None = None, state: str | None = None) -> StageCall:
        """Returns one call: the one place where fields become a prompt, in training and serving.

        Args:
            fields: what the stage sees.
            item: of a stage with `over`.
            state: of a repeat stage.

        Raises:
            InputError: a field that is read is missing or has no text.
        """
        extra = {"item": item, "state": state}
        seen = {**fields, **{name: text for name, text in extra.items() if text is not None}}
        if self.rule is None:
            return StageCall(prompts.render(self.prompt or "", seen), item, state, seen)
        given = {name: prompts.render(template, seen) for name, template in self.arguments.items()}
        return StageCall("", item, state, {**seen, **given})

    def answer(self, call: StageCall) -> str:
        """Returns what the rule of this stage says to a call; a stage with a prompt needs an engine for that.

        Raises:
            InputError: the rule failed on this call, or said something else than text.
        """
        return run_rule(self.rule or "", call.fields)

    def parse(self, output: str) -> str:
        """Returns the field value in an output, as the contract spells it; of a rule that says nothing, `empty`."""
        value = prompts.parse_output(output)
        return normalise(self.contract, value if value or self.rule is None else self.empty)

    def broken(self, value: str, call: StageCall) -> list[str]:
        """Returns what a value breaks of the contract, one message each. The stop value of a loop breaks nothing."""
        if value == self.stop(call.fields):
            return []
        return [violation.message for violation in check(self.contract, value, call.fields)]

    def first_state(self, fields: Mapping[str, str]) -> str:
        """Returns the `{state}` that the first call of a repeat stage sees."""
        return prompts.parse_output(prompts.render(self.start, fields))

    def choices(self, call: StageCall) -> list[list[str]] | None:
        """Returns what the output of a call is held to, one of the texts of each part in order; None if it is free."""
        if not self.constrain:
            return None
        first, *then = listed(self.contract, call.fields) or [[]]
        stop = self.stop(call.fields)  # only contracts of one part have one
        return [list(dict.fromkeys([*first, *([] if stop is None else [stop])])), *then]

    def stop(self, fields: Mapping[str, str]) -> str | None:
        """Returns the output that ends a repeat stage; None if it has no `until`."""
        return None if self.until is None else prompts.parse_output(prompts.render(self.until, fields))

    def kept(self, fields: Mapping[str, str], outputs: Sequence[str]) -> list[str]:
        """Returns the values of a repeat stage's outputs, those before its stop value.

        Args:
            fields: what the stage saw.
            outputs: in call order.
        """
        values = [self.parse(output) for output in outputs]
        stop = self.stop(fields)
        return values[: values.index(stop)] if stop in values else values

    def value(self, fields: Mapping[str, str], items: Sequence[str] | None, outputs: Sequence[str]) -> str:
        """Returns the stage's value.

        Args:
            fields: what the stage saw.
            items: what it ran over; None if it has no `over`.
            outputs: one; or one per item; or those of a repeat stage in call order, the stop value included.
        """
        if self.kind == "repeat":
            kept = self.kept(fields, outputs)
            if self.collect == "all":
                return prompts.join_items(kept, self.join) if kept else self.empty
            return kept[-1] if kept else self.first_state(fields)
        values = [self.parse(output) for output in outputs]
        if items is None:
            return values[0]
        return prompts.combine_outputs(items, values, keep=self.keep, join=self.join, empty=self.empty)


class Loop:
    """A repeat stage on one question: which call comes next, and when it is over.

        while (call := loop.next()) is not None:
            loop.take(output_of(call))

    Args:
        stage: of kind repeat.
        fields: what the stage sees.
        items: what it goes over, None if it has no `over`.
        nothing: what stands for the field that is used up (`takes`) when no line is left of it.
    """

    def __init__(
        self, stage: StageSpec, fields: Mapping[str, str], items: Sequence[str] | None, nothing: str = "none"
    ) -> None:
        self.stage, self.items = stage, items
        self._fields, self._nothing = dict(fields), nothing
        self.state, self._stop = stage.first_state(fields), stage.stop(fields)
        self.outputs: list[str] = []
        self.stopped = False

    @property
    def _exhausted(self) -> bool:
        return self.items is not None and len(self.outputs) >= len(self.items)

    def next(self) -> StageCall | None:
        """Returns the next call; None if the loop is over.

        Raises:
            InputError: a field that is read is missing or has no text.
        """
        done = len(self.outputs)
        if self.stopped or self._exhausted or done >= self.stage.at_most:
            return None
        return self.stage.call(self._fields, None if self.items is None else self.items[done], self.state)

    def take(self, output: str) -> None:
        """Takes the output of the call that `next` gave."""
        self.outputs.append(output)
        value = self.stage.parse(output)
        if value == self._stop:
            self.stopped = True
        else:
            self.state = value
            self._use_up(value)

    def _use_up(self, value: str) -> None:
        """Takes the first line that equals an output out of the field that the stage uses up."""
        if self.stage.takes is None:
            return
        lines = prompts.split_items(self._fields[self.stage.takes], "lines")
        if value in lines:
            lines.remove(value)
            self._fields[self.stage.takes] = prompts.join_items(lines, "\n") if lines else self._nothing

    @property
    def broken(self) -> str | None:
        """What is wrong with the end of a loop that is over: `at_most` ended it; None if nothing is."""
        if self.stopped or self._exhausted:
            return None
        promised = f"go over {len(self.items)} items" if self.items is not None else f"end with {self._stop!r}"
        return f"promised to {promised}, but was ended by at_most {self.stage.at_most}"
