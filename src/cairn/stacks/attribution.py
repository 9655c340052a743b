"""Who is to blame? A stack run again with the right hand-off in the place of its own, computing only what that changes.

    own run         mention ── link ── follow ── answer        every value is known
    link gold       (own)      GOLD    run again run again     only where gold differs from what the stack wrote
    link and follow gold       GOLD    GOLD      run again

A stage that reads nothing that changed keeps its value; a question whose hand-offs are right already keeps its answer;
a call that was made before, in any of these runs, is not made again. "Gold" may be the data's hand-offs or a teacher's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

from cairn.engines.base import Engine, Generation, GenerationRequest
from cairn.engines.wrapped import WrappedEngine
from cairn.stacks.runner import Runner
from cairn.stacks.spec import StackSpec

__all__ = [
    "Case",
    "RecallingEngine",
    "Replaced",
    "Rerun",
    "affected",
    "handing_on",
    "needed",
    "replacements",
    "run_again",
    "values_with",
]

Replaced = tuple[str, ...]  # stages that hand on gold, in the stack's order


@dataclass(frozen=True)
class Case:
    """One question with what its stages handed on and what they should have.

    Args:
        id: of the question.
        inputs: the stack's input fields.
        own: stage -> its value in the stack's own run.
        gold: stage -> the right value.
        outputs: stage -> its gold outputs in call order, for showing them beside its own.
    """

    id: str
    inputs: Mapping[str, str]
    own: Mapping[str, str]
    gold: Mapping[str, str]
    outputs: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Rerun:
    """One question to be run again, with `replaced` stages given as gold."""

    case: Case
    replaced: Replaced


def handing_on(spec: StackSpec) -> list[str]:
    """Returns the stages before the one that answers, in order: those whose hand-offs the answer may rest on."""
    names = [stage.name for stage in spec.stages]
    return names[: names.index(spec.answer_stage)]


def replacements(spec: StackSpec, pairs: bool = True) -> list[Replaced]:
    """Returns the sets of stages to be replaced: each alone, all up to each, and every pair; none twice.

    Args:
        spec: the stack.
        pairs: also every pair.
    """
    names = handing_on(spec)
    found: list[Replaced] = [(name,) for name in names]
    found += [tuple(names[: place + 1]) for place in range(1, len(names))]
    found += list(combinations(names, 2)) if pairs else []
    return list(dict.fromkeys(found))


def affected(spec: StackSpec, changed: Collection[str]) -> list[str]:
    """Returns the stages that read one of these, directly or through others, in order."""
    touched = set(changed)
    found = []
    for stage in spec.stages:
        if touched & {*stage.reads, stage.over}:
            touched.add(stage.name)
            found.append(stage.name)
    return found


def needed(spec: StackSpec, case: Case, replaced: Replaced) -> Replaced:
    """Returns those of the replaced stages that make a difference on a question; empty if nothing changes.

    A stage that was right already makes none, unless an earlier replacement would have changed it.
    """
    kept: list[str] = []
    for name in replaced:
        if case.gold[name] != case.own[name] or name in affected(spec, kept):
            kept.append(name)
    return tuple(kept)


def run_again(runner: Runner, jobs: Sequence[Rerun]) -> Iterator[dict[str, str]]:
    """Runs questions with some stages replaced; yields all values of each, in order.

    Args:
        runner: of the stack; over a `RecallingEngine`, no call is made twice.
        jobs: in any mix of stages: all are run together, stage by stage.

    Raises:
        InputError: a prompt is too long.
    """
    spec = runner.spec
    relevant = set(handing_on(spec)) | {spec.answer_stage}
    given = []
    for job in jobs:
        again = {name for name in affected(spec, job.replaced) if name in relevant}
        values = {name: value for name, value in job.case.own.items() if name not in again}
        given.append(values | {name: job.case.gold[name] for name in job.replaced})
    traces = runner.iterate(
        [dict(job.case.inputs) for job in jobs], ids=[job.case.id for job in jobs], given=given
    )
    for trace in traces:
        yield {record.name: record.value for record in trace.stages}


def values_with(
    spec: StackSpec, case: Case, replaced: Replaced, made: Mapping[tuple[str, Replaced], Mapping[str, str]]
) -> Mapping[str, str]:
    """Returns the values of a question with stages replaced, from the own run or from what was run again.

    Args:
        spec: the stack.
        case: the question.
        replaced: the stages.
        made: (question id, stages that were needed) -> values.
    """
    key = needed(spec, case, replaced)
    return made[case.id, key] if key else case.own


class RecallingEngine(WrappedEngine):
    """Passes requests on and keeps the answers: an equal request later is answered from memory, in no time.

    Args:
        engine: answers what was not asked before.
    """

    name = "recalling"

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._known: dict[GenerationRequest, Generation] = {}
        self.asked = self.recalled = 0

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """Returns what the engine within writes, or wrote to the same request before."""
        new = [request for request in dict.fromkeys(requests) if request not in self._known]
        fresh = dict(zip(new, self.engine.generate(new) if new else [], strict=True))
        self._known.update({request: replace(made, seconds=0.0) for request, made in fresh.items()})
        self.asked += len(new)
        self.recalled += len(requests) - len(new)
        return [fresh.pop(request, None) or self._known[request] for request in requests]
