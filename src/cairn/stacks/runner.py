"""Running a stack over many questions at once, stage by stage.

    questions ── stage 1: all items of all questions in one engine.generate ── contracts, retries ──┐
                 stage 2: reads inputs and stage 1's hand-offs               <──────────────────────┘
                 ...                                                             ── one Trace per question

A wave is a chunk of questions that go through all stages together, so that batches are full while memory is bounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from cairn import prompts
from cairn.contracts import ChoicesContract, check, normalise
from cairn.engines.base import Constraint, Engine, Generation, GenerationRequest, Sampling, require
from cairn.errors import EngineError, InputError, did_you_mean
from cairn.stacks.spec import StackSpec, StageCall, StageSpec, check_budgets
from cairn.stacks.trace import Call, StageRecord, Trace

__all__ = ["RETRY_TEMPERATURE", "Runner", "check_inputs"]

RETRY_TEMPERATURE = 0.7

OnHandoff = Callable[[int, StageRecord], None]


@dataclass
class _Pending:
    """A call on its way to a `trace.Call`."""

    owner: int
    call: StageCall
    fields: Mapping[str, str]
    output: str = ""
    messages: list[str] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    prompt_tokens: int = 0
    new_tokens: int = 0
    seconds: float = 0.0
    shared: bool = True


class Runner:
    """Runs a stack on an engine.

    An output that breaks its contract is asked for again `stage.retries` times, sampled at temperature 0.7 (or the
    stage's own, if higher) with another seed each time; the first one that keeps the promise is used. If none does,
    the first output is used as it is and its violations stand in the trace: nothing is dropped.

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
        on_handoff: OnHandoff | None = None,
    ) -> list[Trace]:
        """Returns one trace per question, in order.

        Args:
            inputs: the stack's input fields of each question.
            ids: of the questions; their numbers from 0 by default.
            on_handoff: told (place of the question, its stage record) as soon as a stage is done.

        Raises:
            InputError: a field is missing, unknown or empty, or a prompt is too long: before anything is computed
                for the first, when its stage is reached for the second.
        """
        return list(self.iterate(inputs, ids=ids, on_handoff=on_handoff))

    def iterate(
        self,
        inputs: Sequence[Mapping[str, str]],
        *,
        ids: Sequence[str] | None = None,
        on_handoff: OnHandoff | None = None,
    ) -> Iterator[Trace]:
        """As `run`, but yields the traces wave by wave."""
        names = list(ids) if ids is not None else [str(number) for number in range(len(inputs))]
        if len(names) != len(inputs):
            raise InputError(f"{len(inputs)} questions need as many ids", value=len(names))
        for name, question in zip(names, inputs, strict=True):
            check_inputs(self.spec, question, "" if len(inputs) == 1 else f"question {name}: ")
        for start in range(0, len(inputs), self._wave):
            chunk = slice(start, start + self._wave)
            yield from self._run_wave(inputs[chunk], names[chunk], start, on_handoff)

    def _run_wave(
        self, inputs: Sequence[Mapping[str, str]], names: Sequence[str], start: int, on_handoff: OnHandoff | None
    ) -> list[Trace]:
        fields = [dict(question) for question in inputs]
        records: list[list[StageRecord]] = [[] for _ in inputs]
        for stage in self.spec.stages:
            items = [self.spec.items(stage, known) for known in fields]
            pending = [
                _Pending(owner, call, known if call.item is None else {**known, "item": call.item})
                for owner, known in enumerate(fields)
                for call in self.spec.calls(stage, known)
            ]
            self._answer(stage, pending)
            by_owner: list[list[_Pending]] = [[] for _ in inputs]
            for one in pending:
                by_owner[one.owner].append(one)
            for owner, mine in enumerate(by_owner):
                values = [prompts.parse_output(one.output) for one in mine]
                value = stage.value(fields[owner], items[owner], values)
                calls = [_record(stage, one, text) for one, text in zip(mine, values, strict=True)]
                adapter = stage.adapter_name if self._adapters else None
                record = StageRecord(stage.name, stage.kind, adapter, value, calls)
                records[owner].append(record)
                fields[owner][stage.name] = value
                if on_handoff is not None:
                    on_handoff(start + owner, record)
        return [
            Trace(name, self.spec.name, dict(question), mine, known[self.spec.answer_stage])
            for name, question, mine, known in zip(names, inputs, records, fields, strict=True)
        ]

    def _answer(self, stage: StageSpec, pending: Sequence[_Pending]) -> None:
        """Fills in the outputs, with retries for those that break the contract."""
        self._ask(stage, pending, stage.sampling)
        for one in pending:
            one.messages = _broken(stage, one, one.output)
        first = {id(one): one.output for one in pending}
        for attempt in range(1, stage.retries + 1):
            again = [one for one in pending if one.messages]
            if not again:
                return
            for one in again:
                one.rejected.append(one.output)
            changes = {
                "temperature": max(RETRY_TEMPERATURE, stage.sampling.temperature),
                "seed": stage.sampling.seed + attempt,
            }
            self._ask(stage, again, stage.sampling.model_copy(update=changes))
            for one in again:
                one.messages = _broken(stage, one, one.output)
        for one in pending:
            if one.messages and one.rejected:  # no attempt kept the promise: use the first, and say so
                one.rejected = [*one.rejected[1:], one.output]
                one.output = first[id(one)]
                one.messages = _broken(stage, one, one.output)

    def _ask(self, stage: StageSpec, pending: Sequence[_Pending], sampling: Sampling) -> None:
        adapter = stage.adapter_name if self._adapters else None
        choices = stage.contract.values if stage.constrain and isinstance(stage.contract, ChoicesContract) else None
        constraint = Constraint(tuple(choices)) if choices else None
        requests = [GenerationRequest(one.call.prompt, adapter, sampling, constraint) for one in pending]
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


def _broken(stage: StageSpec, one: _Pending, output: str) -> list[str]:
    value = prompts.parse_output(output)
    return [violation.message for violation in check(stage.contract, value, one.fields)]


def _record(stage: StageSpec, one: _Pending, value: str) -> Call:
    value = normalise(stage.contract, value)
    kept = None if stage.keep is None else value == stage.keep
    return Call(
        prompt=one.call.prompt, output=one.output, value=value, item=one.call.item, kept=kept,
        violations=one.messages, rejected=one.rejected, prompt_tokens=one.prompt_tokens, new_tokens=one.new_tokens,
        seconds=one.seconds, shared=one.shared,
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
