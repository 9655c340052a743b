"""Running a stack over many questions at once, stage by stage.

    questions ── stage 1: all items of all questions in one engine.generate ── contracts, retries ──┐
                 stage 2: reads inputs and stage 1's hand-offs               <──────────────────────┘
                 ...                                                             ── one Trace per question

A wave is a chunk of questions that go through all stages together, so that batches are full while memory is bounded.
The loops of a repeat stage go in step: the next call of every question whose loop is not over is in one batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from cairn.engines.base import Constraint, Engine, Generation, GenerationRequest, Sampling, require
from cairn.errors import EngineError, InputError, did_you_mean
from cairn.stacks.spec import StackSpec, check_budgets
from cairn.stacks.stage import StageCall, StageSpec
from cairn.stacks.trace import Call, StageRecord, Trace

__all__ = ["RETRY_TEMPERATURE", "Runner", "check_inputs"]

RETRY_TEMPERATURE = 0.7
_SEEDS_PER_CALL = 1000  # of a loop: more than a call has attempts

OnHandoff = Callable[[int, StageRecord], None]


@dataclass
class _Pending:
    """A call on its way to a `trace.Call`."""

    owner: int
    call: StageCall
    output: str = ""
    messages: list[str] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    prompt_tokens: int = 0
    new_tokens: int = 0
    seconds: float = 0.0
    shared: bool = True
    failed: bool = False  # a rule that gave no text


class Runner:
    """Runs a stack on an engine.

    An output that breaks its contract is asked for again `stage.retries` times, sampled at temperature 0.7 (or the
    stage's own, if higher) with another seed each time; the first one that keeps the promise is used. If none does,
    the first output is used as it is and its violations stand in the trace: nothing is dropped.

    A rule is asked once. Where it fails on a call, what went wrong stands in the trace as a broken promise, and the
    call's value is the stage's `empty`; in a loop it is the end, and the whole stage's value.

    Args:
        spec: the stack.
        engine: has the stack's adapters loaded.
        wave: questions that go through the stages together.
        dedupe: answer identical requests of one stage and wave once. Calls and tokens are counted as if each had
            run, so that a comparison of cost stays honest; `Call.shared` says which were not.
        adapters: False runs every stage on the bare base.

    Raises:
        EngineError: the engine lacks an adapter or a capability.
        ConfigError: a stage's output does not fit the engine's context.
    """

    def __init__(
        self, spec: StackSpec, engine: Engine, *, wave: int = 256, dedupe: bool = True, adapters: bool = True
    ) -> None:
        self.spec, self.engine = spec, engine
        self._wave, self._dedupe, self._adapters = max(1, wave), dedupe, adapters
        if adapters:
            require(engine, "adapters")
            there = engine.adapters()
            for name in spec.adapter_names():
                if name not in there:
                    raise EngineError(
                        f"the engine has no adapter for this stage{did_you_mean(name, there)}",
                        value=name,
                        allowed=", ".join(there) or "none, only the base",
                        next="train the stack with `cairn finetune`, or run it with adapters=False",
                    )
        if any(stage.constrain for stage in spec.stages):
            require(engine, "constraints")
        if engine.capabilities.context_tokens is not None:
            check_budgets(spec, engine.capabilities.context_tokens)

    def run(
        self,
        inputs: Sequence[Mapping[str, str]],
        *,
        ids: Sequence[str] | None = None,
        given: Sequence[Mapping[str, str]] | None = None,
        on_handoff: OnHandoff | None = None,
    ) -> list[Trace]:
        """Returns one trace per question, in order.

        Args:
            inputs: the stack's input fields of each question.
            ids: of the questions; their numbers from 0 by default.
            given: of each question, the values of stages that are not to run: stage -> what it hands on. Their
                records have no calls and say `by: given`.
            on_handoff: told (place of the question, its stage record) as soon as a stage is done.

        Raises:
            InputError: a field is missing, unknown or empty, a stage that is given is none of the stack's, or a
                prompt is too long: before anything is computed, but for the last, when its stage is reached.
        """
        return list(self.iterate(inputs, ids=ids, given=given, on_handoff=on_handoff))

    def iterate(
        self,
        inputs: Sequence[Mapping[str, str]],
        *,
        ids: Sequence[str] | None = None,
        given: Sequence[Mapping[str, str]] | None = None,
        on_handoff: OnHandoff | None = None,
    ) -> Iterator[Trace]:
        """As `run`, but yields the traces wave by wave."""
        names = list(ids) if ids is not None else [str(number) for number in range(len(inputs))]
        if len(names) != len(inputs):
            raise InputError(f"{len(inputs)} questions need as many ids", value=len(names))
        given = given if given is not None else [{}] * len(inputs)
        if len(given) != len(inputs):
            raise InputError(f"{len(inputs)} questions need as many sets of given stages", value=len(given))
        stages = [stage.name for stage in self.spec.stages]
        for name in dict.fromkeys(name for values in given for name in values):
            if name not in stages:
                raise InputError(
                    f"no such stage to be given{did_you_mean(name, stages)}", value=name, allowed=", ".join(stages)
                )
        for name, question in zip(names, inputs, strict=True):
            check_inputs(self.spec, question, "" if len(inputs) == 1 else f"question {name}: ")
        for start in range(0, len(inputs), self._wave):
            chunk = slice(start, start + self._wave)
            yield from self._run_wave(inputs[chunk], names[chunk], given[chunk], start, on_handoff)

    def _run_wave(
        self,
        inputs: Sequence[Mapping[str, str]],
        names: Sequence[str],
        given: Sequence[Mapping[str, str]],
        start: int,
        on_handoff: OnHandoff | None,
    ) -> list[Trace]:
        fields = [dict(question) for question in inputs]
        records: list[list[StageRecord]] = [[] for _ in inputs]
        for stage in self.spec.stages:
            asked = [owner for owner, values in enumerate(given) if stage.name not in values]
            run = self._repeat if stage.kind == "repeat" else self._at_once
            made = dict(zip(asked, run(stage, [fields[owner] for owner in asked]), strict=True))
            for owner, known in enumerate(fields):
                if owner in made:
                    value, calls = made[owner]
                    record = self._record(stage, value, calls)
                else:
                    record = StageRecord(stage.name, stage.kind, None, given[owner][stage.name], by="given")
                records[owner].append(record)
                known[stage.name] = record.value
                if on_handoff is not None:
                    on_handoff(start + owner, record)
        return [
            Trace(name, self.spec.name, dict(question), mine, known[self.spec.answer_stage])
            for name, question, mine, known in zip(names, inputs, records, fields, strict=True)
        ]

    def _record(self, stage: StageSpec, value: str, calls: Sequence[_Pending]) -> StageRecord:
        adapter = stage.adapter_name if self._adapters else None
        return StageRecord(
            stage.name, stage.kind, adapter, value, [_call(stage, one) for one in calls], stage.by, stage.rule
        )

    def _at_once(self, stage: StageSpec, fields: Sequence[Mapping[str, str]]) -> list[tuple[str, list[_Pending]]]:
        """Runs a stage whose calls do not depend on each other: value and calls of each question."""
        made = [[_Pending(owner, call) for call in self.spec.calls(stage, known)] for owner, known in enumerate(fields)]
        self._answer(stage, [one for mine in made for one in mine])
        return [
            (stage.value(known, self.spec.items(stage, known), [one.output for one in mine]), mine)
            for known, mine in zip(fields, made, strict=True)
        ]

    def _repeat(self, stage: StageSpec, fields: Sequence[Mapping[str, str]]) -> list[tuple[str, list[_Pending]]]:
        """Runs the loops of all questions in step: value and calls of each question."""
        loops = [self.spec.loop(stage, known) for known in fields]
        made: list[list[_Pending]] = [[] for _ in fields]
        going, place = list(range(len(fields))), 0
        while step := [_Pending(owner, call) for owner in going if (call := loops[owner].next()) is not None]:
            self._answer(stage, step, place)
            place += 1
            for one in step:
                made[one.owner].append(one)
                loops[one.owner].take(one.output)
            going = [one.owner for one in step if not one.failed]
        results = []
        for known, loop, mine in zip(fields, loops, made, strict=True):
            if mine and mine[-1].failed:
                results.append((stage.empty, mine))
                continue
            if loop.broken is not None:
                mine[-1].messages.append(loop.broken)
            results.append((stage.value(known, loop.items, loop.outputs), mine))
        return results

    def _answer(self, stage: StageSpec, pending: Sequence[_Pending], place: int = 0) -> None:
        """Fills in the outputs, with retries for those that break the contract.

        Every call of a loop (`place`) samples with a seed of its own: else one that comes back to a state would write
        the same again, for ever.
        """
        if stage.rule is not None:
            for one in pending:
                _ask_rule(stage, one)
            return
        seed = stage.sampling.seed + _SEEDS_PER_CALL * place
        self._ask(stage, pending, stage.sampling.model_copy(update={"seed": seed}))
        for one in pending:
            one.messages = _broken(stage, one)
        first = {id(one): one.output for one in pending}
        for attempt in range(1, stage.retries + 1):
            again = [one for one in pending if one.messages]
            if not again:
                return
            for one in again:
                one.rejected.append(one.output)
            changes = {
                "temperature": max(RETRY_TEMPERATURE, stage.sampling.temperature),
                "seed": seed + attempt,
            }
            self._ask(stage, again, stage.sampling.model_copy(update=changes))
            for one in again:
                one.messages = _broken(stage, one)
        for one in pending:
            if one.messages and one.rejected:  # no attempt kept the promise: use the first, and say so
                one.rejected = [*one.rejected[1:], one.output]
                one.output = first[id(one)]
                one.messages = _broken(stage, one)

    def _ask(self, stage: StageSpec, pending: Sequence[_Pending], sampling: Sampling) -> None:
        adapter = stage.adapter_name if self._adapters else None
        requests = []
        for one in pending:
            choices = stage.choices(one.call)
            parts = [tuple(part) for part in choices or []]
            constraint = Constraint(parts[0], tuple(parts[1:])) if parts else None
            requests.append(GenerationRequest(one.call.prompt, adapter, sampling, constraint))
        places: dict[GenerationRequest, int] = {}
        run: list[GenerationRequest] = []
        answered_by: list[int] = []
        for request in requests:
            if self._dedupe and request in places:
                answered_by.append(places[request])
                continue
            places[request] = len(run)
            answered_by.append(len(run))
            run.append(request)
        made = self.engine.generate(run) if run else []
        used: set[int] = set()
        for one, place in zip(pending, answered_by, strict=True):
            generation = made[place] if place not in used else replace(made[place], seconds=0.0)
            one.shared = one.shared and place in used
            used.add(place)
            _take(one, generation)


def _take(one: _Pending, generation: Generation) -> None:
    one.output = generation.text
    one.prompt_tokens += generation.prompt_tokens
    one.new_tokens += generation.new_tokens
    one.seconds += generation.seconds


def _ask_rule(stage: StageSpec, one: _Pending) -> None:
    one.shared = False
    started = time.perf_counter()
    try:
        one.output = stage.answer(one.call)
    except InputError as error:
        one.failed, one.messages = True, [error.what]
    else:
        one.messages = _broken(stage, one)
    one.seconds = time.perf_counter() - started


def _broken(stage: StageSpec, one: _Pending) -> list[str]:
    return stage.broken(stage.parse(one.output), one.call)


def _call(stage: StageSpec, one: _Pending) -> Call:
    value = stage.parse(one.output)
    kept = None
    if stage.keep is not None:
        kept = value == stage.keep
    elif stage.until is not None:
        kept = value != stage.stop(one.call.fields)
    return Call(
        prompt=one.call.prompt, output=one.output, value=value, item=one.call.item, kept=kept,
        violations=one.messages, rejected=one.rejected, prompt_tokens=one.prompt_tokens, new_tokens=one.new_tokens,
        seconds=one.seconds, shared=one.shared, state=one.call.state,
    )  # fmt: skip


def check_inputs(spec: StackSpec, question: Mapping[str, str], where: str = "") -> None:
    """Checks the fields of one question.

    Args:
        spec: the stack.
        question: field -> text.
        where: put before the message.

    Raises:
        InputError: a field is missing, unknown, not text, or empty.
    """
    allowed = ", ".join(spec.inputs)
    for name in question:
        if name not in spec.inputs:
            raise InputError(f"{where}unknown field{did_you_mean(name, spec.inputs)}", value=name, allowed=allowed)
    for name in spec.inputs:
        if name not in question:
            raise InputError(
                f"{where}the stack needs field {name!r}", value=list(question), allowed=allowed,
                next=f"give it with --field {name}=TEXT",
            )  # fmt: skip
        value = question[name]
        if not isinstance(value, str):
            raise InputError(f"{where}field {name!r} is not a text", value=value, allowed="a text")
        if not value.strip():
            raise InputError(f"{where}field {name!r} is empty", value=value, next="give some text")
