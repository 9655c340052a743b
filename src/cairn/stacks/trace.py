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
        prompt: what was asked.
        output: what the model wrote, as it was used.
        value: the field value in it.
        item: what a map stage looked at.
        kept: of a stage with `keep`, whether the item was kept.
        violations: what the output breaks of its contract, after all retries.
        rejected: outputs that were asked for again, in order.
        prompt_tokens: read, in all attempts.
        new_tokens: written, in all attempts.
        seconds: of the engine, in all attempts.
        shared: the same request was already answered in this wave, so that nothing was computed; its tokens count
            all the same.
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


@dataclass(frozen=True)
class StageRecord:
    """One stage: its calls and the hand-off they make."""

    name: str
    kind: str
    adapter: str | None
    value: str
    calls: list[Call] = field(default_factory=list)


@dataclass(frozen=True)
class Totals:
    """Sums over all calls; `calls` counts every attempt, `calls_run` those that were computed."""

    calls: int
    calls_run: int
    prompt_tokens: int
    new_tokens: int
    seconds: float


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
        """Every broken promise, as `stage: message` or `stage[item number]: message`."""
        return [
            f"{record.name}{f'[{place}]' if call.item is not None else ''}: {message}"
            for record in self.stages
            for place, call in enumerate(record.calls)
            for message in call.violations
        ]

    @property
    def totals(self) -> Totals:
        """Sums over all calls."""
        calls = [call for record in self.stages for call in record.calls]
        return Totals(
            calls=sum(1 + len(call.rejected) for call in calls),
            calls_run=sum(1 + len(call.rejected) for call in calls if not call.shared),
            prompt_tokens=sum(call.prompt_tokens for call in calls),
            new_tokens=sum(call.new_tokens for call in calls),
            seconds=sum(call.seconds for call in calls),
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
    """Returns one stage as text: what it saw, item by item, and what it hands on.

    Items that a stage keeps are marked with `*`; a broken promise stands below its output, marked with `!`.

    Args:
        record: the stage.
        number: its place in the stack, from 1.
        width: of a line, in characters.
    """
    adapter = "" if record.adapter in (None, record.name) else f", adapter {record.adapter}"
    head = f"{number} {record.name}"
    if record.kind == "once":
        lines = [f"{head}{adapter and '  (' + adapter[2:] + ')'}"]
    else:
        count = len(record.calls)
        kept = sum(call.kept is True for call in record.calls)
        keeps = any(call.kept is not None for call in record.calls)
        some = f"{kept} of {count} items kept" if keeps else f"{count} item{'' if count == 1 else 's'}"
        lines = [f"{head}  ({some}{adapter})"]
    room = max((len(call.value) for call in record.calls if call.item is not None), default=0)
    room = min(max(room, 1), width // 3)
    for call in record.calls:
        if call.item is not None:
            lines += _pair("  * " if call.kept else "    ", call.item, call.value, room, width)
        lines += [_wrap("  ! ", message, width) for message in call.violations]
        if call.rejected:
            lines.append(_wrap("  ! ", f"asked again after {', '.join(repr(text) for text in call.rejected)}", width))
    lines.append(_wrap("  > ", record.value, width))
    return "\n".join(lines)


def _pair(mark: str, item: str, value: str, room: int, width: int) -> list[str]:
    """Item on the left, wrapped; value on the right of its first line."""
    left = textwrap.wrap(item, max(width - len(mark) - room - 2, 20)) or [""]
    shown = " ".join(value.split())
    shown = shown if len(shown) <= room else shown[: room - 1] + "…"
    longest = max(width - len(mark) - room - 2, 20)
    return [f"{mark}{left[0]:<{longest}}  {shown}".rstrip(), *(f"    {line}" for line in left[1:])]


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
    return f"{calls:,} calls, {read:,} tokens read, {written:,} written, {seconds:.2f} s"


def format_trace(trace: Trace, width: int = 100) -> str:
    """Returns a whole trace as plain text without colour: inputs, every stage, answer, broken promises, cost."""
    parts = [format_inputs(trace.inputs, width), ""]
    parts += [format_stage(record, number, width) for number, record in enumerate(trace.stages, start=1)]
    parts += ["", _wrap("answer: ", trace.answer, width)]
    broken = len(trace.violations)
    tail = f"; {broken} broken promise{'' if broken == 1 else 's'}" if broken else ""
    parts.append(f"({format_totals([trace])}{tail})")
    return "\n".join(parts)
