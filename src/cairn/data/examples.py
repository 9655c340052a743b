"""Stage examples: the JSON lines that a stack is fine-tuned from, and the training pairs rendered out of them.

    {"id": "7", "inputs": {"story": ..., "question": ...},
     "stages": {"mention": ["yes", "no", ...], "answer": "kitchen"}, "answer": "kitchen"}
        │ read_examples: checked against the stack, all faults by line number
        ├─ gold_calls      what one stage is asked, and what it should write, earlier fields and states being gold
        ├─ adapter_pairs   one pair per gold call of the stages of one adapter
        ├─ direct_pairs    all inputs -> the answer            (comparator: one adapter, no hand-offs)
        └─ chain_pairs     all inputs -> every hand-off as one text, the answer last      (comparator)

A map stage lists one value per item, a repeat stage its outputs in call order, the stop value included. The values of a
rule may be left out: then they are what the rule says to the gold fields before it.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from cairn.data.gold import (
    GoldCall,
    StackExample,
    StackView,
    StageView,
    gold_calls,
    gold_fields,
    gold_outputs,
    matters,
)
from cairn.errors import DataError, InputError, did_you_mean
from cairn.prompts import chain_text, completion_text, parse_output, render

__all__ = [
    "GoldCall",
    "StackExample",
    "StackView",
    "StageView",
    "TextPair",
    "adapter_pairs",
    "ambiguous_prompts",
    "chain_pairs",
    "direct_pairs",
    "draw_pairs",
    "gold_calls",
    "gold_fields",
    "hold_out",
    "read_examples",
]


Drawn = TypeVar("Drawn")
_KEYS = ("id", "inputs", "stages", "answer", "task", "group", "references")  # the last three are for evaluation


class TextPair(NamedTuple):
    """One training pair: the prompt as it is served, and the completion with its leading space."""

    prompt: str
    completion: str


def read_examples(path: str | Path, spec: StackView, *, shown: int = 20) -> list[StackExample]:
    """Reads and checks an example file against a stack.

    Args:
        path: JSON lines, one example each.
        spec: the stack whose inputs and stages the examples must have.
        shown: how many faults are listed; the others are counted.

    Raises:
        DataError: the file is missing, unreadable or empty, or any line has a fault: not JSON, a field missing,
            unknown or empty, a map stage without one value per item, a loop that does not end as the stack says, a
            rule that fails, a value that breaks the stage's own contract, an answer that is not the value of the
            output stage, an id used twice.
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
        if key not in _KEYS:
            faults.append(f"unknown key {key!r}, allowed: {', '.join(_KEYS)}")
    inputs = _mapping(row, "inputs", spec.inputs, faults)
    rules = [stage.name for stage in spec.stages if stage.rule is not None]
    stages = _mapping(row, "stages", [stage.name for stage in spec.stages], faults, optional=rules)
    for key in ("id", "answer", *(key for key in ("task", "group") if key in row)):
        if not _is_text(row.get(key)):
            faults.append(f"{key} {_wrong(row.get(key))}")
    references = row.get("references", [])
    if not isinstance(references, list) or not all(_is_text(one) for one in references):
        faults.append("references, allowed: a list of other right answers, each a text")
    for name, value in inputs.items():
        if not _is_text(value):
            faults.append(f"inputs.{name} {_wrong(value)}")
    for stage in spec.stages:
        if stage.name in stages:
            faults += _value_faults(stage, stages[stage.name])
    if faults:
        return None, faults
    gold = {name: tuple(value) if isinstance(value, list) else value for name, value in stages.items()}
    example = StackExample(row["id"], inputs, gold, row["answer"], row.get("task", ""))
    return example, _gold_faults(spec, example, gold)


def _mapping(
    row: dict[str, Any], key: str, names: Sequence[str], faults: list[str], *, optional: Sequence[str] = ()
) -> dict[str, Any]:
    value = row.get(key)
    if not isinstance(value, dict):
        faults.append(f"{key} {'is missing' if value is None else 'is not an object'}, allowed: {', '.join(names)}")
        return {}
    faults += [f"{key}.{name} is missing" for name in names if name not in value and name not in optional]
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
    if stage.kind != "once":
        if not isinstance(value, list):
            per = "item" if stage.kind == "map" else "call, the stop value included"
            return [f"stages.{stage.name} is a {type(value).__name__}, allowed: a list with one text per {per}"]
        return [f"stages.{stage.name}[{i}] {_wrong(text)}" for i, text in enumerate(value) if not _is_text(text)]
    return [] if _is_text(value) else [f"stages.{stage.name} {_wrong(value)}"]


def _gold_faults(spec: StackView, example: StackExample, gold: dict[str, str | tuple[str, ...]]) -> list[str]:
    """Returns the faults that only show when the gold values flow through the stack; adds those of rules to `gold`."""
    faults: list[str] = []
    fields = dict(example.inputs)
    for stage in spec.stages:
        try:
            outputs = gold_outputs(spec, stage, example, fields)
        except InputError as error:
            return [*faults, f"stages.{stage.name} is not given: {error}"]
        wrong = _count_faults(spec, stage, fields, outputs)
        if wrong:
            return faults + wrong  # the fields of later stages would be wrong as well
        gold.setdefault(stage.name, outputs[0] if stage.kind == "once" else tuple(outputs))
        for place, (call, output) in enumerate(zip(spec.calls(stage, fields, outputs), outputs, strict=True)):
            where = stage.name if stage.kind == "once" else f"{stage.name}[{place}]"
            faults += [f"stages.{where}: {message}" for message in stage.broken(stage.parse(output), call)]
        fields[stage.name] = stage.value(fields, spec.items(stage, fields), outputs)
    answer = fields[spec.answer_stage]
    if parse_output(example.answer) != answer:
        faults.append(f"answer {example.answer!r} is not the value of the last stage {spec.answer_stage}: {answer!r}")
    return faults


def _count_faults(spec: StackView, stage: StageView, fields: Mapping[str, str], outputs: Sequence[str]) -> list[str]:
    """Returns whether there are too few or too many values for the calls that the stage makes."""
    if stage.kind == "once":
        return []
    has = f"stages.{stage.name} has {len(outputs)} values"
    items = spec.items(stage, fields)
    cut = "" if items is None else f"{stage.over!r} is cut into {len(items)} items"
    if stage.kind == "map":
        return [] if len(outputs) == len(items or []) else [f"{has}, but {cut}"]
    loop = spec.loop(stage, fields)
    for place, output in enumerate(outputs):
        if loop.next() is None:
            why = f"with {stage.until!r}" if loop.stopped else f"by at_most {stage.at_most}" if loop.broken else cut
            return [f"{has}, but the loop ends after {place}: {why}"]
        loop.take(output)
    if loop.next() is not None:
        ends = [cut] * (items is not None) + [f"the last is not {stage.until!r}"] * (stage.until is not None)
        return [f"{has}, but {' and '.join(ends)}"]
    return [f"stages.{stage.name}: {loop.broken}; raise at_most"] if loop.broken else []


def adapter_pairs(
    spec: StackView,
    adapter: str,
    examples: Sequence[StackExample],
    *,
    balance: float | None = None,
    limit: int | None = None,
    distinct: bool | int = False,
    even: bool = False,
    weights: Mapping[str, float] | None = None,
    seed: int = 0,
    say: Callable[[str], Any] = lambda text: None,
) -> list[TextPair]:
    """Renders the pairs of every call that an adapter's stages make, the earlier hand-offs being gold.

    Args:
        spec: the stack.
        adapter: adapter name; several stages may share it.
        examples: checked examples.
        balance: how many calls that do nothing to take for each that does something (see `gold.matters`), stage by
            stage, with `even` also task by task, drawn with `seed`; 1.0 is as many, None takes all. For map stages
            that keep, and for loops.
        limit: at most so many pairs, drawn with `seed`; None takes all.
        distinct: take each pair of prompt and completion once, or at most so often, before anything is drawn.
        even: draw `limit` in equal parts from the examples' tasks, all pairs of a task that has fewer than its part.
        weights: with `even`, how big a task's part is beside a part of 1, which every task has that is not named.
        seed: of both draws.
        say: takes a line about tasks that have fewer pairs than the part that `weights` gives them.

    Returns:
        The pairs, stage after stage; none if no example makes a call.

    Raises:
        DataError: no stage has this adapter, balance is asked for without a map stage that keeps, even without a
            limit, or weights without even or for a task that no example has.
    """
    names = spec.adapter_names()
    if adapter not in names:
        raise DataError(
            f"no stage has this adapter{did_you_mean(adapter, names)}", value=adapter, allowed=", ".join(names)
        )
    stages = spec.stages_of(adapter)
    if balance is not None and not any(stage.keep is not None or stage.kind == "repeat" for stage in stages):
        raise DataError(
            "balance is for adapters of map stages that keep a value, and of loops", value=adapter, next="drop balance"
        )
    if even and limit is None:
        raise DataError("even says how a limit is drawn, but there is none", value=adapter, next="give limit as well")
    weights = weights or {}
    if weights and not even:
        raise DataError("weights are of the parts that even draws", value=adapter, next="give even as well")
    tasks = sorted({example.task for example in examples})
    for task in weights:
        if task not in tasks:
            unknown = f"weights of adapter {adapter!r} name a task that no example has{did_you_mean(task, tasks)}"
            raise DataError(unknown, value=task, allowed=", ".join(tasks), next="drop or correct it")
    draw = random.Random(seed)
    fields = [gold_fields(spec, example) for example in examples]
    pairs: list[tuple[TextPair, str]] = []  # each with its task
    seen: Counter[TextPair] = Counter()
    for stage in stages:
        kept: list[tuple[TextPair, str]] = []
        other: dict[str, list[tuple[TextPair, str]]] = {}  # of each task, if they count alike
        for example, at_hand in zip(examples, fields, strict=True):
            for call in gold_calls(spec, stage, example, at_hand):
                pair = TextPair(call.prompt, completion_text(call.output))
                if distinct and seen[pair] >= int(distinct):
                    continue
                seen[pair] += 1
                idle = matters(stage, call.output, call.state) is False
                part = example.task if even else ""
                (other.setdefault(part, []) if idle else kept).append((pair, example.task))
        pairs += kept
        counts = Counter(task if even else "" for _, task in kept)
        for task, idle_pairs in other.items():
            pairs += idle_pairs if balance is None else draw_pairs(idle_pairs, round(balance * counts[task]), draw)
    if limit is not None:
        pairs = _draw_by_task(pairs, limit, weights, draw, say) if even else draw_pairs(pairs, limit, draw)
    return [pair for pair, _ in pairs]


def direct_pairs(
    spec: StackView, examples: Sequence[StackExample], *, limit: int | None = None, seed: int = 0
) -> list[TextPair]:
    """Renders all inputs -> the answer."""
    return _whole(spec, examples, lambda example: example.answer, limit, seed)


def chain_pairs(
    spec: StackView, examples: Sequence[StackExample], *, limit: int | None = None, seed: int = 0
) -> list[TextPair]:
    """Renders all inputs -> the hand-offs of the stack's `chain_stages` as one text, the answer last.

    A loop whose value is its last output is written step by step, a line each, for the single model needs the steps
    as much as the stack does; `prompts.parse_chain` takes the last.
    """

    def text(example: StackExample) -> str:
        fields = gold_fields(spec, example)
        lines: list[tuple[str, str]] = []
        for stage in (stage for name in spec.chain_stages for stage in spec.stages if stage.name == name):
            steps = stage.kind == "repeat" and stage.collect == "last"
            values = stage.kept(fields, gold_outputs(spec, stage, example, fields)) if steps else []
            lines += [(stage.name, value) for value in values or [fields[stage.name]]]
        return chain_text(lines)

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
    return pairs if limit is None else draw_pairs(pairs, limit, random.Random(seed))


def draw_pairs(pairs: list[Drawn], count: int, draw: random.Random) -> list[Drawn]:
    """Returns `count` of the pairs in their old order, all if there are no more."""
    if count >= len(pairs):
        return pairs
    return [pairs[place] for place in sorted(draw.sample(range(len(pairs)), count))]


def _draw_by_task(
    pairs: list[tuple[TextPair, str]],
    count: int,
    weights: Mapping[str, float],
    draw: random.Random,
    say: Callable[[str], Any],
) -> list[tuple[TextPair, str]]:
    """As `draw_pairs`, each task's part being as its weight (1 if not given), or all it has where that is less."""
    places: dict[str, list[int]] = {}
    for place, (_, task) in enumerate(pairs):
        places.setdefault(task, []).append(place)
    weight = {task: weights.get(task, 1.0) for task in places}
    chosen: list[int] = []
    short: list[str] = []
    by_need = sorted(places, key=lambda task: len(places[task]) / weight[task])
    for number, task in enumerate(by_need):  # what the small ones leave is for the others
        left = sum(weight[other] for other in by_need[number:])
        part = int((count - len(chosen)) * weight[task] / left)
        short += [f"{task} {len(places[task]):,} of {part:,}"] if task in weights and part > len(places[task]) else []
        chosen += draw_pairs(places[task], part, draw)
    if short:
        say(f"fewer pairs than weights ask for: {', '.join(short)}; more examples of these tasks would be drawn")
    return [pairs[place] for place in sorted(chosen)]


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
