"""Stage examples: the JSON lines that a stack is fine-tuned from, and the training pairs rendered out of them.

    {"id": "7", "inputs": {"story": ..., "question": ...},
     "stages": {"mention": ["yes", "no", ...], "answer": "kitchen"}, "answer": "kitchen"}
        │ read_examples: checked against the stack, all faults by line number
        ├─ adapter_pairs   one pair per call that the stages of one adapter make, earlier fields being gold
        ├─ direct_pairs    all inputs -> the answer            (comparator: one adapter, no hand-offs)
        └─ chain_pairs     all inputs -> every hand-off as one text, the answer last      (comparator)

Prompts come from the stack's own `calls`, the code that serves them. The stack is taken as any object with the
attributes below, because data and stacks are siblings and meet only through files.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from cairn.contracts import check, normalise
from cairn.errors import DataError, did_you_mean
from cairn.prompts import chain_text, completion_text, parse_output, render

__all__ = [
    "StackExample",
    "StackView",
    "StageView",
    "TextPair",
    "adapter_pairs",
    "ambiguous_prompts",
    "chain_pairs",
    "direct_pairs",
    "gold_fields",
    "hold_out",
    "read_examples",
]


class StageView(Protocol):
    """What this module reads of one stage; stacks.spec.StageSpec has it."""

    name: str
    kind: Any
    over: str | None
    keep: str | None
    contract: Any

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
    def calls(self, stage: Any, fields: Mapping[str, str]) -> list[Any]: ...


class TextPair(NamedTuple):
    """One training pair: the prompt as it is served, and the completion with its leading space."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class StackExample:
    """One checked line: inputs, the gold value of every stage (one per item for a map stage), and the answer."""

    id: str
    inputs: Mapping[str, str]
    stages: Mapping[str, str | tuple[str, ...]]
    answer: str


def read_examples(path: str | Path, spec: StackView, *, shown: int = 20) -> list[StackExample]:
    """Reads and checks an example file against a stack.

    Args:
        path: JSON lines, one example each.
        spec: the stack whose inputs and stages the examples must have.
        shown: how many faults are listed; the others are counted.

    Raises:
        DataError: the file is missing, unreadable or empty, or any line has a fault: not JSON, a field missing,
            unknown or empty, a map stage without one value per item, a value that breaks the stage's own
            contract, an answer that is not the value of the output stage, an id used twice.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise DataError("no such example file", value=str(path), next="check `examples` in stack.yaml") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the example file cannot be read ({error})", value=str(path)) from None
    examples: list[StackExample] = []
    faults: list[str] = []
    first_line: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        found, wrong = _read_line(line, spec)
        if found is not None:
            earlier = first_line.setdefault(found.id, number)
            if earlier != number:
                wrong.append(f"id {found.id!r} was used in line {earlier}")
            examples.append(found)
        faults += [f"line {number}: {fault}" for fault in wrong]
    if faults:
        listed = faults[:shown] + ([f"and {len(faults) - shown} more"] if len(faults) > shown else [])
        plural = "fault" if len(faults) == 1 else "faults"
        raise DataError(f"{path}: {len(faults)} {plural}" + "".join(f"\n  - {fault}" for fault in listed))
    if not examples:
        raise DataError("the example file is empty", value=str(path), allowed="one JSON object a line, at least one")
    return examples


def _read_line(line: str, spec: StackView) -> tuple[StackExample | None, list[str]]:
    try:
        row = json.loads(line)
    except ValueError as error:
        return None, [f"is not JSON ({error})"]
    if not isinstance(row, dict):
        return None, [f"is a {type(row).__name__}, allowed: an object with id, inputs, stages and answer"]
    faults: list[str] = []
    for key in row:
        if key not in ("id", "inputs", "stages", "answer"):
            faults.append(f"unknown key {key!r}, allowed: id, inputs, stages, answer")
    stage_names = [stage.name for stage in spec.stages]
    inputs = _mapping(row, "inputs", spec.inputs, faults)
    stages = _mapping(row, "stages", stage_names, faults)
    for key in ("id", "answer"):
        if not _is_text(row.get(key)):
            faults.append(f"{key} {_wrong(row.get(key))}")
    for name, value in inputs.items():
        if not _is_text(value):
            faults.append(f"inputs.{name} {_wrong(value)}")
    for stage in spec.stages:
        if stage.name in stages:
            faults += _value_faults(stage, stages[stage.name])
    if faults:
        return None, faults
    gold = {name: tuple(value) if isinstance(value, list) else value for name, value in stages.items()}
    example = StackExample(row["id"], inputs, gold, row["answer"])
    return example, _gold_faults(spec, example)


def _mapping(row: dict[str, Any], key: str, names: Sequence[str], faults: list[str]) -> dict[str, Any]:
    value = row.get(key)
    if not isinstance(value, dict):
        faults.append(f"{key} {'is missing' if value is None else 'is not an object'}, allowed: {', '.join(names)}")
        return {}
    faults += [f"{key}.{name} is missing" for name in names if name not in value]
    singular = key.removesuffix("s")
    for name in value:
        if name not in names:
            faults.append(f"unknown {singular} {name!r}{did_you_mean(name, names)}, allowed: {', '.join(names)}")
    return {name: value[name] for name in names if name in value}


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _wrong(value: Any) -> str:
    if value is None:
        return "is missing"
    return "is empty" if isinstance(value, str) else f"is a {type(value).__name__}, allowed: a text"


def _value_faults(stage: StageView, value: Any) -> list[str]:
    if stage.kind == "map":
        if not isinstance(value, list):
            return [f"stages.{stage.name} is a {type(value).__name__}, allowed: a list with one text per item"]
        return [f"stages.{stage.name}[{i}] {_wrong(text)}" for i, text in enumerate(value) if not _is_text(text)]
    return [] if _is_text(value) else [f"stages.{stage.name} {_wrong(value)}"]


def _gold_faults(spec: StackView, example: StackExample) -> list[str]:
    """Returns the faults that only show when the gold values flow through the stack."""
    faults: list[str] = []
    fields = dict(example.inputs)
    for stage in spec.stages:
        outputs = _outputs(example, stage)
        items = spec.items(stage, fields)
        if items is not None and len(items) != len(outputs):
            faults.append(
                f"stages.{stage.name} has {len(outputs)} values, but {stage.over!r} is cut into {len(items)} items"
            )
            return faults  # the fields of later stages would be wrong as well
        for place, output in enumerate(outputs):
            seen = fields if items is None else {**fields, "item": items[place]}
            where = stage.name if items is None else f"{stage.name}[{place}]"
            faults += [f"stages.{where}: {violation.message}" for violation in check(stage.contract, output, seen)]
        fields[stage.name] = stage.value(fields, items, outputs)
    answer = fields[spec.answer_stage]
    if parse_output(example.answer) != answer:
        faults.append(f"answer {example.answer!r} is not the value of the last stage {spec.answer_stage}: {answer!r}")
    return faults


def _outputs(example: StackExample, stage: StageView) -> list[str]:
    value = example.stages[stage.name]
    return [parse_output(one) for one in ([value] if isinstance(value, str) else value)]


def gold_fields(spec: StackView, example: StackExample) -> dict[str, str]:
    """Returns inputs and, for every stage, the hand-off that its gold values make."""
    fields = dict(example.inputs)
    for stage in spec.stages:
        fields[stage.name] = stage.value(fields, spec.items(stage, fields), _outputs(example, stage))
    return fields


def adapter_pairs(
    spec: StackView,
    adapter: str,
    examples: Sequence[StackExample],
    *,
    balance: float | None = None,
    limit: int | None = None,
    seed: int = 0,
) -> list[TextPair]:
    """Renders the pairs of every call that an adapter's stages make, the earlier hand-offs being gold.

    Args:
        spec: the stack.
        adapter: adapter name; several stages may share it.
        examples: checked examples.
        balance: for map stages with `keep`: how many items with another value to take for each kept item (1.0 =
            as many), drawn with `seed`; None takes all.
        limit: at most so many pairs, drawn with `seed`; None takes all.
        seed: of both draws.

    Returns:
        The pairs, stage after stage; none if no example makes a call.

    Raises:
        DataError: no stage has this adapter, or balance is asked for without a map stage that keeps.
    """
    names = spec.adapter_names()
    if adapter not in names:
        raise DataError(
            f"no stage has this adapter{did_you_mean(adapter, names)}", value=adapter, allowed=", ".join(names)
        )
    stages = spec.stages_of(adapter)
    if balance is not None and not any(_keeps(stage) for stage in stages):
        raise DataError("balance is for adapters of map stages that keep a value", value=adapter, next="drop balance")
    draw = random.Random(seed)
    fields = [gold_fields(spec, example) for example in examples]
    pairs: list[TextPair] = []
    for stage in stages:
        kept: list[TextPair] = []
        other: list[TextPair] = []
        for example, at_hand in zip(examples, fields, strict=True):
            for call, output in zip(spec.calls(stage, at_hand), _outputs(example, stage), strict=True):
                pair = TextPair(call.prompt, completion_text(output))
                dropped = _keeps(stage) and normalise(stage.contract, output) != stage.keep
                (other if dropped else kept).append(pair)
        if balance is not None and _keeps(stage):
            other = _draw(other, round(balance * len(kept)), draw)
        pairs += kept + other
    return pairs if limit is None else _draw(pairs, limit, draw)


def _keeps(stage: StageView) -> bool:
    return stage.kind == "map" and stage.keep is not None


def direct_pairs(
    spec: StackView, examples: Sequence[StackExample], *, limit: int | None = None, seed: int = 0
) -> list[TextPair]:
    """Renders all inputs -> the answer."""
    return _whole(spec, examples, lambda example: example.answer, limit, seed)


def chain_pairs(
    spec: StackView, examples: Sequence[StackExample], *, limit: int | None = None, seed: int = 0
) -> list[TextPair]:
    """Renders all inputs -> the hand-offs of the stack's `chain_stages` as one text, the answer last."""

    def text(example: StackExample) -> str:
        fields = gold_fields(spec, example)
        return chain_text([(name, fields[name]) for name in spec.chain_stages])

    return _whole(spec, examples, text, limit, seed)


def _whole(
    spec: StackView,
    examples: Sequence[StackExample],
    value: Callable[[StackExample], str],
    limit: int | None,
    seed: int,
) -> list[TextPair]:
    template = spec.comparator_prompt
    pairs = [TextPair(render(template, example.inputs), completion_text(value(example))) for example in examples]
    return pairs if limit is None else _draw(pairs, limit, random.Random(seed))


def _draw(pairs: list[TextPair], count: int, draw: random.Random) -> list[TextPair]:
    """Returns `count` of the pairs in their old order, all if there are no more."""
    if count >= len(pairs):
        return pairs
    return [pairs[place] for place in sorted(draw.sample(range(len(pairs)), count))]


def ambiguous_prompts(pairs: Sequence[TextPair]) -> int:
    """Returns how many pairs have a prompt that also occurs with another completion: no model can get all right."""
    completions: dict[str, set[str]] = {}
    for pair in pairs:
        completions.setdefault(pair.prompt, set()).add(pair.completion)
    return sum(len(completions[pair.prompt]) > 1 for pair in pairs)


def hold_out(
    examples: Sequence[StackExample], count: int, seed: int
) -> tuple[list[StackExample], list[StackExample]]:
    """Draws `count` examples for validation and returns (training, held out), both in their old order.

    Raises:
        DataError: no example would be left for training.
    """
    if count >= len(examples):
        raise DataError(
            "holding out so many examples leaves none for training", value=count, allowed=f"less than {len(examples)}",
            next="lower training.validation_examples, or give more examples",
        )  # fmt: skip
    held = set(random.Random(seed).sample(range(len(examples)), count))
    return (
        [example for place, example in enumerate(examples) if place not in held],
        [example for place, example in enumerate(examples) if place in held],
    )
