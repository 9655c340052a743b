"""Training pairs from a stack's own answers: real hand-offs with gold targets, or whole chains that ended right.

    trace of a training question ─┬─ on_policy     real prompt of stage k+1, gold target of stage k+1
                                  └─ right_chains  real prompt, real output, where the final answer is right

A gold target belongs to the gold hand-off. Under a real one it is trained only where it can still be right:

    1  the call has a gold call: the same item of a map stage, the same place and state of a repeat stage
    2  what the target copies from the gold hand-offs, line by line, still stands in the real prompt
    3  a target that is not copied from them does not depend on them: with all hand-offs of its prompt left out, that
       prompt occurs in the gold pairs with this target alone
    4  its contract accepts the target under the real fields
    5  no gold pair, and no other own pair, has the same prompt with another target

All that is left out is counted, by reason.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from cairn.data.examples import StackExample, TextPair, adapter_pairs, gold_fields
from cairn.data.gold import gold_outputs, matters
from cairn.prompts import completion_text, template_fields
from cairn.stacks.spec import StackSpec, StageCall, StageSpec
from cairn.stacks.trace import Call
from cairn.training.finetune_plan import OnPolicy, RightChains
from cairn.verbs.finetuning.finetune_pairs import OwnPair, reading_stages
from cairn.verbs.finetuning.own_answers import Answered

__all__ = ["OwnPairs", "on_policy_pairs", "right_chain_pairs"]

Fits = Callable[[TextPair], bool]
_Gold = list[tuple[StageCall, str]]


class OwnPairs:
    """The pairs of one round.

    Args:
        gold: adapter -> prompt -> its completions, of all gold pairs.
    """

    def __init__(self, gold: Mapping[str, Mapping[str, set[str]]]) -> None:
        self.gold = gold
        self._pairs: dict[str, dict[OwnPair, None]] = {name: {} for name in gold}
        self.replaced: dict[str, set[str]] = {name: set() for name in gold}
        self.counts: dict[str, Counter[str]] = {}

    def of(self, adapter: str) -> list[OwnPair]:
        """Returns the pairs of one adapter, each once, in the order they were taken."""
        return list(self._pairs[adapter])

    def take(self, adapter: str, one: OwnPair) -> None:
        """Adds a pair, unless the same one is there already."""
        self.count(one.stage, "repeated" if one in self._pairs[adapter] else "taken")
        self._pairs[adapter][one] = None

    def count(self, stage: str, what: str) -> None:
        """Counts a call of a stage under what became of it."""
        self.counts.setdefault(stage, Counter())[what] += 1

    def drop_contradictions(self) -> None:
        """Leaves out every own pair whose prompt has several targets."""
        for adapter, pairs in self._pairs.items():
            targets: dict[str, set[str]] = {}
            for one in pairs:
                targets.setdefault(one.pair.prompt, set()).add(one.pair.completion)
            wrong = [one for one in pairs if len(targets[one.pair.prompt]) > 1]
            for one in wrong:
                self.counts[one.stage]["taken"] -= 1
                self.count(one.stage, "contradict_each_other")
                del self._pairs[adapter][one]

    def facts(self) -> dict[str, dict[str, int]]:
        """Returns stage -> what became of its calls -> how many."""
        return {stage: dict(sorted(counter.items())) for stage, counter in self.counts.items()}


def on_policy_pairs(
    spec: StackSpec, examples: Sequence[StackExample], answered: Sequence[Answered], settings: OnPolicy, fits: Fits
) -> OwnPairs:
    """Returns the real prompts of stages that read hand-offs, with their gold targets where these can still be right.

    Args:
        spec: the stack.
        examples: all training examples: what is gold for a prompt is looked up in them.
        answered: the questions that the stack answered.
        settings: which stages.
        fits: whether a pair fits the base's context.
    """
    readers = reading_stages(spec)
    chosen = [name for name in readers if settings.stages is None or name in settings.stages]
    own = OwnPairs({name: _completions(spec, name, examples) for name in spec.adapter_names()})
    without = {name: _without_hand_offs(spec, spec.stage(name), examples) for name in chosen}
    for one in answered:
        if one.trace is None:
            continue
        real = {**one.example.inputs, **{record.name: record.value for record in one.trace.stages}}
        for name in chosen:
            stage, adapter = spec.stage(name), readers[name]
            gold = _gold_calls(spec, stage, one.example, one.gold)
            calls = one.trace.stage(name).calls
            asked = spec.calls(stage, real, [call.value for call in calls])
            for place, call in enumerate(calls):
                found = _gold_of(stage, place, calls, gold)
                if found is None:
                    own.count(name, "no_gold_call")
                    continue
                gold_call, target = found
                pair = TextPair(call.prompt, completion_text(target))
                known = own.gold[adapter].get(call.prompt)
                seen = asked[place]
                if known is not None:
                    own.count(name, "as_gold" if pair.completion in known else "contradicts_gold")
                elif stage.broken(target, seen):
                    own.count(name, "breaks_contract")
                elif (fault := _wrong_now(spec, stage, gold_call, seen, target, without[name])) is not None:
                    own.count(name, fault)
                elif not fits(pair):
                    own.count(name, "too_long")
                else:
                    own.take(adapter, OwnPair(name, pair, matters(stage, target, call.state)))
    own.drop_contradictions()
    return own


def right_chain_pairs(
    spec: StackSpec, examples: Sequence[StackExample], answered: Sequence[Answered], settings: RightChains, fits: Fits
) -> OwnPairs:
    """Returns what the stack itself wrote in the chains whose final answer is right.

    Calls that keep no contract, and those that are gold pairs already, are left out.

    Args:
        spec: the stack.
        examples: all training examples.
        answered: the questions that the stack answered.
        settings: what happens where gold differs.
        fits: whether a pair fits the base's context.
    """
    own = OwnPairs({name: _completions(spec, name, examples) for name in spec.adapter_names()})
    for one in answered:
        if one.trace is None or not one.right(spec):
            continue
        for adapter in own.gold:
            for stage in spec.stages_of(adapter):
                for call in one.trace.stage(stage.name).calls:
                    _take_own(own, adapter, stage, call, settings, fits)
    return own


def _take_own(
    own: OwnPairs, adapter: str, stage: StageSpec, call: Call, settings: RightChains, fits: Fits
) -> None:
    if call.violations or not call.value.strip():
        own.count(stage.name, "breaks_contract")
        return
    pair = TextPair(call.prompt, completion_text(call.value))
    known = own.gold[adapter].get(call.prompt)
    if known is not None and pair.completion in known:
        own.count(stage.name, "as_gold")
    elif known is not None and settings.where_gold_differs == "gold":
        own.count(stage.name, "gold_differs")
    elif not fits(pair):
        own.count(stage.name, "too_long")
    else:
        own.take(adapter, OwnPair(stage.name, pair, matters(stage, call.value, call.state)))
        if known is not None and settings.where_gold_differs == "own":
            own.replaced[adapter].add(call.prompt)


def _completions(spec: StackSpec, adapter: str, examples: Sequence[StackExample]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for prompt, completion in adapter_pairs(spec, adapter, examples):
        found.setdefault(prompt, set()).add(completion)
    return found


def _gold_calls(spec: StackSpec, stage: StageSpec, example: StackExample, fields: Mapping[str, str]) -> _Gold:
    outputs = gold_outputs(spec, stage, example, fields)
    return list(zip(spec.calls(stage, fields, outputs), outputs, strict=True))


def _gold_of(stage: StageSpec, place: int, calls: Sequence[Call], gold: _Gold) -> tuple[StageCall, str] | None:
    """Returns the gold call that a real call corresponds to, with its target; None if there is none."""
    call = calls[place]
    if stage.kind == "repeat":
        same = place < len(gold) and (gold[place][0].item, gold[place][0].state) == (call.item, call.state)
        return gold[place] if same else None
    if stage.kind == "once":
        return gold[0] if gold else None
    if [one.item for one in calls] == [one.item for one, _ in gold]:
        return gold[place]
    same_item = [entry for entry in gold if entry[0].item == call.item]
    return same_item[0] if len({target for _, target in same_item}) == 1 else None


def _hand_offs(spec: StackSpec, stage: StageSpec) -> dict[str, str]:
    """Returns the hand-offs in a stage's prompt, each with its maker's `empty` text."""
    read = template_fields(stage.prompt or "")
    return {maker.name: maker.empty for maker in spec.stages if maker.name in read}


def _without_hand_offs(spec: StackSpec, stage: StageSpec, examples: Sequence[StackExample]) -> dict[str, set[str]]:
    """Returns, for each gold prompt of a stage with its hand-offs left out, the targets that it occurs with."""
    found: dict[str, set[str]] = {}
    for example in examples:
        for call, target in _gold_calls(spec, stage, example, gold_fields(spec, example)):
            found.setdefault(_left_out(spec, stage, call), set()).add(target)
    return found


def _left_out(spec: StackSpec, stage: StageSpec, call: StageCall) -> str:
    return stage.call({**call.fields, **_hand_offs(spec, stage)}, call.item, call.state).prompt


def _wrong_now(
    spec: StackSpec, stage: StageSpec, gold: StageCall, real: StageCall, target: str, without: Mapping[str, set[str]]
) -> str | None:
    """Returns why a gold target may be wrong under real hand-offs (rules 2 and 3); None if it can be right."""
    handed = "\n".join(gold.fields[name] for name in (*_hand_offs(spec, stage), "item", "state") if name in gold.fields)
    pieces = [line.strip() for line in target.splitlines() if line.strip()]
    copied = [piece for piece in pieces if _stands(piece, handed)]
    if not all(_stands(piece, real.prompt) for piece in copied):
        return "copies_what_is_gone"
    if len(copied) < len(pieces) and without.get(_left_out(spec, stage, real), {target}) != {target}:
        return "depends_on_hand_off"
    return None


def _stands(piece: str, text: str) -> bool:
    """True if the piece stands in the text as whole words, in any case."""
    return re.search(rf"(?<!\w){re.escape(piece)}(?!\w)", text, re.IGNORECASE) is not None
