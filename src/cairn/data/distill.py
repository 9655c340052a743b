"""Stage data from a teacher: rows go through the stages in waves, and come out as examples or with a reason.

    a wave of rows
      │ stage 1: all its calls of all rows ── teacher (or the row, or a rule) ── can it be used? ── again, other seed
      │ stage 2: reads inputs and stage 1's hand-offs                              └── no: Rejection
      │ ...
      └── the answer right? evaluation text? ── Example with the origin of every hand-off

An answer is looked up before a teacher is asked (see distill_answers.py), and what is asked depends on nothing but the
recipe. So a run that was killed goes on by doing everything again, with no call made twice, and ends the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cairn import prompts
from cairn.data.distill_answers import Answer, Answers, Ask, Budget, prompt_hash
from cairn.data.distill_checks import foreign, garbage, same_answer
from cairn.data.distill_config import DistillConfig, StagePlan
from cairn.data.distill_rows import Prepared, Work
from cairn.data.distill_rules import derive
from cairn.data.examples import StackExample, StackView, chain_pairs
from cairn.data.teacher import Teacher
from cairn.engines.base import Sampling
from cairn.errors import CairnError, ConfigError, DataError, EngineError, InputError

__all__ = ["Distiller", "Example", "StageCount"]

_AGAIN_TEMPERATURE = 0.7  # of a prompt asked again, if its stage samples at less
_FAILURES = 8  # of the teacher in a row, after which nothing more is sent
_FREE = ("free", "length")  # contracts whose texts are judged as prose; the others say themselves what is right


@dataclass(frozen=True)
class Example:
    """One example: its row of the examples file, where everything in it comes from, and where it goes."""

    row: dict[str, Any]
    provenance: dict[str, Any]
    test: bool


@dataclass
class StageCount:
    """What became of one stage's texts."""

    accepted: int = 0
    again: int = 0
    rejected: dict[str, int] = field(default_factory=dict)


@dataclass
class _Task:
    """One call of a stage on one row."""

    work: Work
    call: Any
    value: str = ""
    origin: dict[str, Any] = field(default_factory=dict)
    wrong: tuple[str, str, str] | None = None  # kind, detail, text


class Distiller:
    """Makes examples of prepared rows.

    Args:
        config: the section `distill:`.
        spec: the stack.
        teacher: asked for what `answers` does not hold.
        answers: of this run.
        budget: what may be asked.
        tell: told (rows done now, figures) as the work goes on.
    """

    def __init__(
        self,
        config: DistillConfig,
        spec: StackView,
        teacher: Teacher,
        answers: Answers,
        budget: Budget,
        tell: Callable[[int, Mapping[str, Any]], None] = lambda rows, figures: None,
    ) -> None:
        self._config, self._spec, self._teacher = config, spec, teacher
        self._answers, self._budget, self._tell = answers, budget, tell
        self._failures = 0
        self.counts = {stage.name: StageCount() for stage in spec.stages}
        self.works: list[Work] = []
        self.examples: list[Example] = []
        self.stopped: CairnError | None = None

    def run(self, prepared: Prepared) -> None:
        """Fills `examples`; every row ends in `works`, with its reason if it gave none.

        A budget that is spent, or a teacher that is down, ends the work early: `stopped` then says why unless it was
        the budget, and rows that were not answered are `left` with a text.
        """
        self.works = prepared.works
        for start in range(0, len(self.works), self._config.wave):
            wave = self.works[start : start + self._config.wave]
            try:
                for stage in self._spec.stages:
                    self._stage(stage, [work for work in wave if work.open])
                for work in wave:
                    if work.open:
                        self._finish(work, prepared.overlaps)
                self._give_up()
            except (ConfigError, EngineError, DataError) as error:
                self.stopped = error
            self._tell(len(wave), {"kept": len(self.examples)})
            if self.stopped is not None or self._budget.spent:
                break
        done = {example.row["id"] for example in self.examples}
        for work in self.works:
            if work.open and work.row.id not in done:
                work.left = "not asked yet"

    def _stage(self, stage: Any, works: Sequence[Work]) -> None:
        """Makes one stage's hand-off for every row of a wave, or takes the row out."""
        plan = self._config.stages.get(stage.name)
        if stage.rule is not None:
            self._given(stage, works, lambda work: self._spec.rule_outputs(stage, work.fields), {"by": "rule"})
        elif plan is None:
            function = self._config.teacher.function  # type: ignore[union-attr]
            origin = {"by": "rule teacher", "teacher": function}
            self._given(stage, works, lambda work: derive(function, stage.name, work.seen()), origin)
        elif plan.value is not None:
            template = plan.value
            self._given(stage, works, lambda work: _lines(stage, prompts.render(template, work.seen())), {"by": "row"})
        else:
            self._prompted(stage, plan, works)
        for work in works:
            if work.open:
                outputs = work.outputs[stage.name]
                work.fields[stage.name] = stage.value(work.fields, self._spec.items(stage, work.fields), outputs)

    def _given(
        self, stage: Any, works: Sequence[Work], outputs_of: Callable[[Work], list[str]], origin: dict[str, Any]
    ) -> None:
        """Takes a stage's outputs from the row or a rule: no teacher, one try."""
        for work in works:
            try:
                outputs = [stage.parse(output) for output in outputs_of(work)]
                calls = self._spec.calls(stage, work.fields, outputs)
            except InputError as error:
                self._reject(work, stage, "missing field" if origin["by"] == "row" else "rule failed", str(error))
                continue
            if len(calls) != len(outputs) or not self._ends(stage, work, outputs):
                needed = f"{len(calls)} calls" if len(calls) != len(outputs) else "a loop that goes on"
                self._reject(work, stage, "count", f"{len(outputs)} texts for {needed}")
                continue
            for call, output in zip(calls, outputs, strict=True):
                wrong = self._wrong(stage, work, call, output)
                if wrong and work.open:
                    self._reject(work, stage, *wrong, output)
            if work.open:
                self._keep(work, stage, outputs, [origin] * len(outputs))

    def _ends(self, stage: Any, work: Work, outputs: Sequence[str]) -> bool:
        """Tells whether a loop is over after these outputs, by its stop value or its items; others always are."""
        if stage.kind != "repeat":
            return True
        loop = self._spec.loop(stage, work.fields)
        for output in outputs:
            loop.next()
            loop.take(output)
        return loop.next() is None and not loop.broken

    def _prompted(self, stage: Any, plan: StagePlan, works: Sequence[Work]) -> None:
        """Asks the teacher for a stage's outputs: all calls at once, or turn by turn where one needs the one before."""
        if stage.kind != "repeat":
            tasks = {
                work.row.id: [_Task(work, call) for call in self._spec.calls(stage, work.fields)] for work in works
            }
            self._answer(stage, plan, [task for mine in tasks.values() for task in mine])
            for work in works:
                if work.open:
                    mine = tasks[work.row.id]
                    self._keep(work, stage, [task.value for task in mine], [task.origin for task in mine])
            return
        loops = {work.row.id: self._spec.loop(stage, work.fields) for work in works}
        origins: dict[str, list[dict[str, Any]]] = {name: [] for name in loops}
        while True:
            calls = [(work, loops[work.row.id].next()) for work in works if work.open]
            turn = [_Task(work, call) for work, call in calls if call is not None]
            if not turn:
                break
            self._answer(stage, plan, turn)
            for task in turn:
                if task.work.open:
                    loops[task.work.row.id].take(task.value)
                    origins[task.work.row.id].append(task.origin)
        for work in works:
            loop = loops[work.row.id]
            if work.open and loop.broken:
                self._reject(work, stage, "contract", loop.broken, "\n".join(loop.outputs))
            elif work.open:
                self._keep(work, stage, list(loop.outputs), origins[work.row.id])

    def _answer(self, stage: Any, plan: StagePlan, tasks: Sequence[_Task]) -> None:
        """Fills in what the teacher says and asks again what cannot be used; takes rows without a good answer out."""
        for attempt in range(self._config.tries):
            if attempt:
                self.counts[stage.name].again += len(tasks)
            asks = [(task, self._ask(stage, plan, task, attempt)) for task in tasks if task.work.open]
            sent = [(task, ask) for task, ask in asks if ask is not None]
            for (task, ask), answer in zip(sent, self._fetch([ask for _, ask in sent]), strict=True):
                self._take(stage, plan, task, ask, answer)
            tasks = [task for task, _ in sent if task.work.open and task.wrong is not None]
        for task in tasks:
            if task.wrong is not None:
                self._reject(task.work, stage, *task.wrong)

    def _ask(self, stage: Any, plan: StagePlan, task: _Task, attempt: int) -> Ask | None:
        extra = {name: task.call.fields.get(name) for name in ("item", "state", stage.takes)}
        seen = task.work.seen({name: text for name, text in extra.items() if text is not None})
        try:
            prompt = prompts.render(plan.prompt or "", seen)
        except InputError as error:
            self._reject(task.work, stage, "missing field", f"{error.what} {error.value!r}")
            return None
        sampling = plan.sampling or getattr(self._config.teacher, "sampling", Sampling())
        if attempt and sampling.temperature < _AGAIN_TEMPERATURE:
            sampling = sampling.model_copy(update={"temperature": _AGAIN_TEMPERATURE})
        return Ask(prompt, sampling, attempt, stage.name, task.work.row.id).seeded(
            self._teacher.system, self._config.seed
        )

    def _take(self, stage: Any, plan: StagePlan, task: _Task, ask: Ask, answer: Answer | CairnError | None) -> None:
        """Judges one answer."""
        work = task.work
        if isinstance(answer, InputError):
            self._reject(work, stage, "refused", str(answer))
        elif not isinstance(answer, Answer):
            work.left = "not asked yet" if answer is None else str(answer)
        if not work.open or not isinstance(answer, Answer):
            return
        taken = _taken(answer.text, plan.take)
        value = stage.parse(taken)
        task.wrong = None
        if answer.finish != "stop":
            cut = f"cut off at {ask.sampling.max_new_tokens} tokens"
            detail = cut if answer.finish == "length" else f"the server ended it: {answer.finish}"
            task.wrong = ("cut off", detail, answer.text)
        elif wrong := self._wrong(stage, work, task.call, value):
            task.wrong = (*wrong, answer.text)
        task.value = value
        task.origin = {
            "by": "teacher", "teacher": answer.teacher, "attempt": ask.attempt, "sampling": dict(answer.sampling),
            "prompt_sha256": prompt_hash(ask.prompt, self._teacher.system),
        }  # fmt: skip

    def _wrong(self, stage: Any, work: Work, call: Any, value: str) -> tuple[str, str] | None:
        """Returns (kind, detail) of what makes a value useless; None if nothing does."""
        if not value:
            return "empty", "no text"
        if stage.contract.kind in _FREE:
            reference = "\n".join([*work.inputs.values(), work.gold or ""])
            if fault := garbage(value, reference):
                return "garbage", fault
            if self._config.language and (fault := foreign(value, self._config.language, reference)):
                return "another language", fault
        broken = stage.broken(value, call)
        return ("contract", "; ".join(broken)) if broken else None

    def _fetch(self, asks: Sequence[Ask]) -> list[Answer | CairnError | None]:
        """Returns an answer per question: one that is known, a new one, why there is none, or None if not asked."""
        teacher = self._teacher
        keys = [(prompt_hash(ask.prompt, teacher.system), ask.attempt) for ask in asks]
        found: dict[tuple[str, int], Answer | CairnError] = {}
        waiting: dict[tuple[str, int], Ask] = {}
        for key, ask in zip(keys, asks, strict=True):
            known = self._answers.find(ask, teacher.system)
            if known is not None:
                found[key] = known
            else:
                waiting.setdefault(key, ask)
        fatal: list[CairnError] = []
        left = list(waiting.items())
        while left and not fatal and not self._budget.spent:
            before = len(left)

            def done(place: int, result: Answer | CairnError, left: Any = left) -> None:
                key, ask = left[place]
                self._budget.give_back(place)
                if isinstance(result, Answer):
                    self._answers.add(ask, teacher.system, result)
                self._failures = self._failures + 1 if isinstance(result, EngineError) else 0
                if isinstance(result, ConfigError):
                    fatal.append(result)
                elif self._failures >= _FAILURES:
                    fatal.append(_gave_up(self._failures, result))
                found[key] = result
                self._tell(0, {"calls": self._answers.calls, "tokens": self._answers.tokens})

            def go(place: int, left: Any = left) -> bool:
                return not fatal and self._budget.take(place, left[place][1])

            teacher.ask([ask for _, ask in left], done, go)
            left = [pair for pair in left if pair[0] not in found]
            if len(left) == before:
                break
        if fatal:
            raise fatal[0]
        return [found.get(key) for key in keys]

    def _reject(self, work: Work, stage: Any, kind: str, detail: str, text: str | None = None) -> None:
        if work.open:
            work.reject(kind, detail, stage.name, text)
            rejected = self.counts[stage.name].rejected
            rejected[kind] = rejected.get(kind, 0) + 1

    def _keep(self, work: Work, stage: Any, outputs: list[str], origins: list[dict[str, Any]]) -> None:
        work.outputs[stage.name] = outputs
        work.origins[stage.name] = origins
        self.counts[stage.name].accepted += 1

    def _finish(self, work: Work, overlaps: Any) -> None:
        """Makes an example of a row whose hand-offs are all there, unless its end is wrong."""
        last = next(stage for stage in self._spec.stages if stage.name == self._spec.answer_stage)
        answer = work.fields[last.name]
        if self._config.must_match and (work.gold is None or not same_answer(answer, work.gold)):
            self._reject(work, last, "not the right answer", f"gold: {work.gold}", answer)
            return
        texts = [text for name, made in work.outputs.items() if self._by_teacher(work, name) for text in made]
        found = overlaps("\n".join(texts)) if overlaps is not None else []
        if found:
            self._reject(work, last, "evaluation text", f"{found[0][0]}: {found[0][1]}", "\n".join(texts))
            return
        stages = {
            stage.name: list(work.outputs[stage.name]) if stage.kind != "once" else work.outputs[stage.name][0]
            for stage in self._spec.stages
            if stage.rule is None
        }
        example = StackExample(
            work.row.id, work.inputs, {k: tuple(v) if isinstance(v, list) else v for k, v in stages.items()}, answer
        )
        try:
            chain_pairs(self._spec, [example])
        except InputError as error:  # the comparator that writes the chain as one text could not be trained on it
            self._reject(work, last, "contract", f"{error.what}: {error.value}")
            return
        source = self._config.source
        provenance = {
            "id": work.row.id, "split": "test" if work.test else "train", "source": source.name,
            "licence": source.licence, "row": work.row.number, "stages": work.origins,
        }  # fmt: skip
        row = {"id": work.row.id, "inputs": work.inputs, "stages": stages, "answer": answer}
        self.examples.append(Example(row, provenance, work.test))

    def _by_teacher(self, work: Work, stage: str) -> bool:
        return any(origin["by"] == "teacher" for origin in work.origins[stage])

    def _give_up(self) -> None:
        for name, count in self.counts.items():
            rejected = sum(count.rejected.values())
            if not count.accepted and rejected >= self._config.give_up_after:
                seen = [work.left for work in self.works if getattr(work.left, "stage", None) == name]
                shown = "".join(f"\n  - {one.kind}: {one.detail}" for one in seen[:3])  # type: ignore[union-attr]
                raise DataError(
                    f"nothing satisfies stage {name}: {rejected} rows rejected, none accepted, for example{shown}",
                    next="change its prompt or its contract, and try with --max-calls 20 first",
                )


def _gave_up(failures: int, error: CairnError) -> EngineError:
    return EngineError(
        f"the teacher failed {failures} times in a row ({error.what})", value=error.value, next=error.next
    )


def _taken(text: str, take: str) -> str:
    """Returns the part of a teacher's text that counts."""
    if take == "after_reasoning":
        return text.rpartition("</think>")[2]
    lines = [line for line in text.splitlines() if line.strip()]
    if take == "all" or not lines:
        return text
    return lines[0] if take == "first_line" else lines[-1]


def _lines(stage: Any, text: str) -> list[str]:
    """Returns a value of a row as outputs: the text, or one line per call."""
    return [text] if stage.kind == "once" else [line for line in text.splitlines() if line.strip()]
