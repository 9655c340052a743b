"""The record of one run of a stack: every prompt, every output, every broken promise.

    Trace ── stages: StageRecord ── calls: Call (prompt, output, value, violations, tokens, seconds)
      │                   └── value: the hand-off
      ├── to_json / from_json   one line of a JSON-lines file; reads back equal
      └── format_trace          the same for a person
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from cairn.errors import DataError

__all__ = ["Call", "StageRecord", "Totals", "Trace", "format_stage", "format_trace", "from_json", "to_json"]


@dataclass(frozen=True)
class Call:
    """One call of a stage.

    Args:
        prompt: what was asked; empty for a rule.
        output: what the model wrote or the rule said, as it was used.
        value: the field value in it.
        item: what a stage with `over` looked at.
        kept: of a stage with `keep`, whether the item was kept; of a loop with a stop value, False for that.
        violations: what the output breaks of its contract, after all retries; how a rule failed; of the last call of
            a loop, also that the loop did not end by itself.
        rejected: outputs that were asked for again, in order.
        prompt_tokens: read, in all attempts.
        new_tokens: written, in all attempts.
        seconds: of the engine, in all attempts.
        shared: the same request was already answered in this wave, so that nothing was computed; its tokens count
            all the same.
        state: of a repeat stage, the `{state}` that the call saw.
    """

    prompt: str
    output: str
    value: str
    item: str | None = None
    kept: bool | None = None
    violations: list[str] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    prompt_tokens: int = 0
    new_tokens: int = 0
    seconds: float = 0.0
    shared: bool = False
    state: str | None = None


@dataclass(frozen=True)
class StageRecord:
    """One stage: its calls and the hand-off they make.

    Args:
        name: of the stage.
        kind: once, map or repeat.
        adapter: that it ran with; None for the bare base, and for a stage that asked no model.
        value: the hand-off.
        calls: in order.
        by: who made it: "model", "rule", or "given" if it was not run.
        rule: the rule's name.
    """

    name: str
    kind: str
    adapter: str | None
    value: str
    calls: list[Call] = field(default_factory=list)
    by: str = "model"
    rule: str | None = None


@dataclass(frozen=True)
class Totals:
    """Sums over all calls.

    Args:
        calls: of a model, every attempt.
        calls_run: those of them that were computed.
        prompt_tokens, new_tokens: read and written by models; a rule has none.
        seconds: of models and rules.
        rule_calls: of rules.
    """

    calls: int
    calls_run: int
    prompt_tokens: int
    new_tokens: int
    seconds: float
    rule_calls: int = 0


@dataclass(frozen=True)
class Trace:
    """One question through the whole stack.

    Args:
        id: of the question.
        stack: name of the stack.
        inputs: field -> text.
        stages: in the order they ran.
        answer: value of the output stage.
    """

    id: str
    stack: str
    inputs: dict[str, str]
    stages: list[StageRecord]
    answer: str

    def stage(self, name: str) -> StageRecord:
        """Returns the record of one stage.

        Raises:
            DataError: there is none.
        """
        for record in self.stages:
            if record.name == name:
                return record
        raise DataError("the trace has no such stage", value=name, allowed=", ".join(s.name for s in self.stages))

    @property
    def violations(self) -> list[str]:
        """Every broken promise, as `stage: message`, or `stage[call number]: message` where there may be many calls."""
        return [
            f"{record.name}{f'[{place}]' if record.kind != 'once' else ''}: {message}"
            for record in self.stages
            for place, call in enumerate(record.calls)
            for message in call.violations
        ]

    @property
    def totals(self) -> Totals:
        """Sums over all calls."""
        calls = [call for record in self.stages if record.by == "model" for call in record.calls]
        by_rules = [call for record in self.stages if record.by == "rule" for call in record.calls]
        return Totals(
            calls=sum(1 + len(call.rejected) for call in calls),
            calls_run=sum(1 + len(call.rejected) for call in calls if not call.shared),
            prompt_tokens=sum(call.prompt_tokens for call in calls),
            new_tokens=sum(call.new_tokens for call in calls),
            seconds=sum(call.seconds for call in [*calls, *by_rules]),
            rule_calls=len(by_rules),
        )


def to_json(trace: Trace) -> str:
    """Returns a trace as one line of JSON, with its violations and totals for readers that do not know this class."""
    row = {**asdict(trace), "violations": trace.violations, "totals": asdict(trace.totals)}
    return json.dumps(row, ensure_ascii=False)


def from_json(line: str) -> Trace:
    """Reads a line that `to_json` wrote.

    Raises:
        DataError: it is no trace.
    """
    try:
        row = json.loads(line)
        stages = [
            StageRecord(**{**record, "calls": [Call(**call) for call in record["calls"]]}) for record in row["stages"]
        ]
        return Trace(row["id"], row["stack"], row["inputs"], stages, row["answer"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"the line is not a trace ({error})", value=line) from None


def format_stage(record: StageRecord, number: int, width: int = 100) -> str:
    """Returns one stage as text: what it saw, item by item or call by call, and what it hands on.

    Items that a stage keeps are marked with `*`; the calls of a loop are numbered below the state it starts from; a
    broken promise stands below its output, marked with `!`.

    Args:
        record: the stage.
        number: its place in the stack, from 1.
        width: of a line, in characters.
    """
    notes = [_counted(record)] if record.kind != "once" and record.by != "given" else []
    if record.by == "given":
        notes.append("given, not run")
    elif record.by == "rule":
        notes.append(f"rule {record.rule}")
    elif record.adapter not in (None, record.name):
        notes.append(f"adapter {record.adapter}")
    lines = [f"{number} {record.name}" + (f"  ({', '.join(notes)})" if notes else "")]
    if record.kind == "repeat" and record.calls:
        lines.append(_wrap("    ", f"from: {record.calls[0].state}", width))
    room = min(max([1, *(len(call.value) for call in record.calls)]), width // 3)
    for place, call in enumerate(record.calls, start=1):
        if record.kind == "repeat":
            lines += _step(f"{place:>3} ", call, room, width)
        elif call.item is not None:
            lines += _pair("  * " if call.kept else "    ", call.item, call.value, room, width)
        lines += [_wrap("  ! ", message, width) for message in call.violations]
        if call.rejected:
            lines.append(_wrap("  ! ", f"asked again after {', '.join(repr(text) for text in call.rejected)}", width))
    lines.append(_wrap("  > ", record.value, width))
    return "\n".join(lines)


def _counted(record: StageRecord) -> str:
    count, kept = len(record.calls), sum(call.kept is True for call in record.calls)
    if record.kind == "repeat":
        stopped = ", stopped by itself" if count and record.calls[-1].kept is False else ""
        return f"{count} call{'' if count == 1 else 's'}{stopped}"
    if any(call.kept is not None for call in record.calls):
        return f"{kept} of {count} items kept"
    return f"{count} item{'' if count == 1 else 's'}"


def _step(mark: str, call: Call, room: int, width: int) -> list[str]:
    """One call of a loop: its item with the output beside it, or below it if it is long; the output alone if none."""
    if call.item is None:
        return [_wrap(mark, call.value, width)]
    if len(call.value) <= room:
        return _pair(mark, call.item, call.value, room, width)
    return [_wrap(mark, call.item, width), _wrap(" " * len(mark) + "= ", call.value, width)]


def _pair(mark: str, item: str, value: str, room: int, width: int) -> list[str]:
    """Item on the left, wrapped; value on the right of its first line."""
    left = textwrap.wrap(item, max(width - len(mark) - room - 2, 20)) or [""]
    shown = " ".join(value.split())
    shown = shown if len(shown) <= room else shown[: room - 1] + "…"
    longest = max(width - len(mark) - room - 2, 20)
    return [f"{mark}{left[0]:<{longest}}  {shown}".rstrip(), *(f"{' ' * len(mark)}{line}" for line in left[1:])]


def _wrap(mark: str, text: str, width: int) -> str:
    lines: list[str] = []
    for part in text.split("\n"):
        lines += textwrap.wrap(part, max(width - len(mark), 20)) or [""]
    return "\n".join((mark if place == 0 else " " * len(mark)) + line for place, line in enumerate(lines))


def format_inputs(inputs: dict[str, str], width: int = 100) -> str:
    """Returns the input fields as text, names aligned."""
    longest = max((len(name) for name in inputs), default=0)
    return "\n".join(_wrap(f"{name:<{longest}}  ", text, width) for name, text in inputs.items())


def format_totals(traces: Sequence[Trace]) -> str:
    """Returns what some traces cost, as one line."""
    totals = [trace.totals for trace in traces]
    calls, seconds = sum(t.calls for t in totals), sum(t.seconds for t in totals)
    read, written = sum(t.prompt_tokens for t in totals), sum(t.new_tokens for t in totals)
    rules = sum(t.rule_calls for t in totals)
    by_rules = f" and {rules:,} of rules" if rules else ""
    return f"{calls:,} calls{by_rules}, {read:,} tokens read, {written:,} written, {seconds:.2f} s"


def format_trace(trace: Trace, width: int = 100) -> str:
    """Returns a whole trace as plain text without colour: inputs, every stage, answer, broken promises, cost."""
    parts = [format_inputs(trace.inputs, width), ""]
    parts += [format_stage(record, number, width) for number, record in enumerate(trace.stages, start=1)]
    parts += ["", _wrap("answer: ", trace.answer, width)]
    broken = len(trace.violations)
    tail = f"; {broken} broken promise{'' if broken == 1 else 's'}" if broken else ""
    parts.append(f"({format_totals([trace])}{tail})")
    return "\n".join(parts)
