"""The training pairs of every phase of a stack's training.

    examples ── adapter_pairs, hand-offs dropped with a probability ──> gold pairs ─┬─> phase "gold"
                                        all adapters' together ──> phase "global"   │
    traces of the stack's own answers ──> own pairs (verbs/finetuning/own_answers.py) ─────────┴─ mix ──> later phases
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from cairn.data.examples import StackExample, TextPair, adapter_pairs, draw_pairs
from cairn.prompts import template_fields
from cairn.stacks.spec import StackSpec, StageCall, StageSpec
from cairn.training.finetune_plan import AdapterPlan, OwnAnswers, StackTraining

__all__ = ["VALIDATION_PAIRS", "GoldPairs", "OwnPair", "mix", "reading_stages"]

VALIDATION_PAIRS = 200  # held-out pairs scored at each evaluation, at most


def reading_stages(spec: StackSpec) -> dict[str, str]:
    """Returns the stages with an adapter whose prompt depends on an earlier stage, each with its adapter's name."""
    makers = {stage.name for stage in spec.stages}
    found = {}
    for stage in spec.stages:
        if stage.adapter_name is not None and makers & {stage.over, *template_fields(stage.prompt or "")}:
            found[stage.name] = stage.adapter_name
        elif stage.adapter_name is not None and stage.kind == "repeat" and makers & set(template_fields(stage.start)):
            found[stage.name] = stage.adapter_name
    return found


class GoldPairs:
    """The gold pairs of a stack's adapters, for training and held out.

    Args:
        spec: the stack.
        training: its settings.
        examples: for training.
        held_out: for validation; no hand-off is dropped in them.
        say: takes lines for the reader.
    """

    def __init__(
        self,
        spec: StackSpec,
        training: StackTraining,
        examples: Sequence[StackExample],
        held_out: Sequence[StackExample],
        say: Callable[[str], Any] = lambda text: None,
    ) -> None:
        self.training: dict[str, list[TextPair]] = {}
        self.validation: dict[str, list[TextPair]] = {}
        self.dropout: dict[str, dict[str, int]] = {}
        for name in spec.adapter_names():
            plan = training.adapters.get(name, AdapterPlan())
            choice = {"balance": plan.balance, "distinct": plan.distinct, "seed": training.seed}
            view = _Dropout(spec, training.handoff_dropout, training.seed)
            drawn = {"limit": plan.limit, "even": plan.even, "weights": plan.weights}
            told = partial(_named, say, name)
            self.training[name] = adapter_pairs(view, name, examples, say=told, **drawn, **choice)
            self.validation[name] = adapter_pairs(spec, name, held_out, limit=VALIDATION_PAIRS, **choice)
            self.dropout[name] = {"hand_offs": view.seen_count, "dropped": view.dropped_count}

    def of_all(self, seed: int) -> tuple[list[TextPair], list[TextPair]]:
        """Returns the pairs of all adapters together, for training and held out."""
        training = [pair for pairs in self.training.values() for pair in pairs]
        validation = [pair for pairs in self.validation.values() for pair in pairs]
        return training, draw_pairs(validation, VALIDATION_PAIRS, random.Random(seed))


def _named(say: Callable[[str], Any], name: str, text: str) -> None:
    say(f"{name}: {text}")


@dataclass
class _Dropout:
    """A stack whose calls miss some of their hand-offs: what `adapter_pairs` asks for is passed on to the stack.

    Each hand-off that a call's prompt reads is replaced by its maker's `empty` text with a probability, independently
    of all others. The field that a stage is cut from, and the items cut from it, stay. What the calls of a stage draw
    depends on the seed, the stage and the order of the examples alone.
    """

    spec: StackSpec
    probability: float
    seed: int
    seen_count: int = 0
    dropped_count: int = 0
    draws: dict[str, random.Random] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.spec, name)

    def calls(
        self, stage: StageSpec, fields: Mapping[str, str], outputs: Sequence[str] | None = None
    ) -> list[StageCall]:
        """As `StackSpec.calls`, with hand-offs dropped."""
        calls = self.spec.calls(stage, fields, outputs)
        if not self.probability or stage.prompt is None:
            return calls
        read = set(template_fields(stage.prompt))
        empty = {maker.name: maker.empty for maker in self.spec.stages if maker.name in read}
        draw = self.draws.setdefault(stage.name, random.Random(f"{self.seed} {stage.name}"))
        changed = []
        for call in calls:
            dropped = {name: text for name, text in empty.items() if draw.random() < self.probability}
            self.seen_count += len(empty)
            self.dropped_count += len(dropped)
            changed.append(stage.call({**call.fields, **dropped}, call.item, call.state) if dropped else call)
        return changed


@dataclass(frozen=True)
class OwnPair:
    """A pair from the stack's own answers.

    Args:
        stage: whose call it is.
        pair: the prompt as it was served, and what is trained on it.
        kept: whether the completion does something (see `data.gold.matters`); None if all of its stage's do.
    """

    stage: str
    pair: TextPair
    kept: bool | None = None


def mix(
    gold: Sequence[TextPair],
    own: Sequence[OwnPair],
    settings: OwnAnswers,
    *,
    seen: int,
    balance: float | None = None,
    seed: int = 0,
) -> tuple[list[TextPair], dict[str, int]]:
    """Returns the pairs of a later round: gold ones with `settings.mix` of own ones among them, if there are enough.

    A round sees few pairs, often fewer than there are gold ones: these are drawn, so that the own pairs have their
    share of what is seen. No own pair is seen more than `settings.repeat` times; what they do not fill is gold.

    Args:
        gold: gold pairs.
        own: pairs from own answers.
        settings: `mix` and `repeat`.
        seen: how many pairs the round's budget reaches for.
        balance: of the adapter (see `data.examples.adapter_pairs`); holds for own pairs too, stage by stage.
        seed: of the draws.

    Returns:
        The pairs, and how many there are: gold and own ones in the round, and distinct own ones.
    """
    draw = random.Random(seed)
    distinct: list[TextPair] = []
    for stage in dict.fromkeys(one.stage for one in own):
        mine = [one for one in own if one.stage == stage]
        kept = [one.pair for one in mine if one.kept is not False]
        other = [one.pair for one in mine if one.kept is False]
        if balance is not None:
            other = draw_pairs(other, round(balance * max(len(kept), 1)), draw)
        distinct += kept + other
    if not gold:  # every one of them was replaced
        return distinct, {"gold": 0, "own": len(distinct), "distinct": len(distinct)}
    share = min(settings.mix, settings.repeat * len(distinct) / max(seen, 1))
    chosen = draw_pairs(list(gold), round((1 - share) * seen), draw) if share else list(gold)
    wanted = round(share / (1 - share) * len(chosen))
    whole, rest = divmod(wanted, len(distinct)) if distinct else (0, 0)
    taken = distinct * whole + draw_pairs(distinct, rest, draw)
    return [*chosen, *taken], {"gold": len(chosen), "own": len(taken), "distinct": len(distinct)}
