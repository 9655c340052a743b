"""What every system answers to every question, kept as it is made, so that a killed run goes on after it.

    OUT/.../SYSTEM.test.jsonl   {"settings_sha256": ..., "settings": {...}}      made with these; others are made anew
                                {"outcome": {...}, "values": {...}, "stages": [...], "facts": {...}}     one a question

`Systems` knows how each system of a comparison answers; the demo and `cairn compare` use the same.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cairn import prompts
from cairn.engines.base import Engine, Sampling
from cairn.errors import DataError, storage_error
from cairn.evaluation.cost import FlopsCounter
from cairn.evaluation.equal_compute import run_ensemble, run_vote
from cairn.evaluation.systems import (
    Outcome,
    Question,
    Scorer,
    chain_answer,
    exact_score,
    first_words,
    run_base,
    run_single,
    run_stack,
    token_counter,
    trace_stages,
    unread_outcome,
)
from cairn.files import sha256_json, write_text
from cairn.progress import Progress
from cairn.stacks.runner import Runner
from cairn.stacks.spec import StackSpec

__all__ = [
    "Answer",
    "Answered",
    "Rooms",
    "Systems",
    "cached_answers",
    "measured_rooms",
    "rescored",
    "stored_stages",
]

_CHUNK = 256  # questions answered, and kept, at once


@dataclass(frozen=True)
class Answered:
    """What one system did with one question.

    Args:
        outcome: the answer, its score and its cost.
        values: of a stack: stage -> what it handed on.
        stages: of a stack: its hand-offs in the report's form, call by call; left on the disk unless asked for.
        facts: what the result should say of it: `shown` (mean of solved examples), `less_room`, `unread` (longer than
            the context), `broken` (a stage broke its promise).
    """

    outcome: Outcome
    values: dict[str, str] = field(default_factory=dict)
    stages: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


Answer = Callable[[Sequence[Question]], list[Answered]]


def cached_answers(
    file: Path,
    settings: Mapping[str, Any],
    questions: Sequence[Question],
    open_system: Callable[[], Answer],
    title: str,
    *,
    stages: bool = False,
) -> list[Answered]:
    """Returns the answers of one system; those that an earlier session kept are read, the others made and kept.

    Args:
        file: of the answers.
        settings: everything that decides them beside the questions.
        questions: in order.
        open_system: called only if something is left to answer.
        title: of the progress line.
        stages: return the hand-offs call by call too; they take most of the memory (see `stored_stages`).

    Raises:
        DataError: the file is damaged; a last line that was cut off is none, it is made again.
        StorageError: the file cannot be written.
    """
    asked = [[question.id, dict(question.inputs), question.answer] for question in questions]
    head = {"settings_sha256": sha256_json([dict(settings), asked]), "settings": dict(settings)}
    kept, end = _kept(file, head["settings_sha256"], stages)
    if len(kept) >= len(questions):
        return kept
    answer = open_system()
    if end:
        _cut(file, end)
    else:
        write_text(file, _line(head))
    with Progress(title, total=len(questions), unit="question", start=len(kept)) as progress:
        for start in range(len(kept), len(questions), _CHUNK):
            made = answer(questions[start : start + _CHUNK])
            rows = [{**vars(one), "outcome": one.outcome.as_json()} for one in made]
            try:
                with open(file, "a", encoding="utf-8") as stream:
                    stream.write("".join(map(_line, rows)))
            except OSError as error:
                raise storage_error(error, file) from error
            kept += made if stages else [replace(one, stages=[]) for one in made]
            progress.advance(len(made))
    return kept


def _kept(file: Path, wanted: str, stages: bool) -> tuple[list[Answered], int]:
    """Returns the whole answers in a file and where they end; none of a file that was made with other settings."""
    kept: list[Answered] = []
    end = 0
    if not file.exists():
        return kept, end
    with open(file, "rb") as stream:
        for number, line in enumerate(stream):
            if not line.endswith(b"\n"):  # cut off while it was written
                break
            try:
                row = json.loads(line)
                if number == 0 and row["settings_sha256"] != wanted:
                    break
                if number > 0:
                    row["stages"] = row["stages"] if stages else []
                    kept.append(Answered(**{**row, "outcome": Outcome(**row["outcome"])}))
            except (ValueError, KeyError, TypeError):
                raise DataError(
                    f"line {number + 1} of a file of answers is damaged", value=str(file), next="delete the file"
                ) from None
            end += len(line)
    return kept, end


def _cut(file: Path, end: int) -> None:
    """Takes a line that was cut off out of a file."""
    try:
        os.truncate(file, end)
    except OSError as error:
        raise storage_error(error, file) from error


def stored_stages(file: Path) -> Iterator[list[dict[str, Any]]]:
    """Yields the hand-offs of every question in a file of answers, call by call, one question at a time."""
    with open(file, encoding="utf-8") as stream:
        next(stream)  # what they were made with
        for line in stream:
            yield json.loads(line)["stages"]


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def rescored(made: Sequence[Answered], questions: Sequence[Question], score: Scorer) -> list[Answered]:
    """Returns answers with the score that `score` gives them now; a question that was not read has 0."""
    found = []
    for one, question in zip(made, questions, strict=True):
        value = 0.0 if one.facts.get("unread") else score(one.outcome.answer, question)
        same = {"id": question.id, "group": question.group, "task": question.task, "gold": question.answer}
        found.append(replace(one, outcome=replace(one.outcome, **same, score=value, correct=value >= 1)))
    return found


@dataclass(frozen=True)
class Rooms:
    """How much each single model may write.

    Args:
        direct: most tokens of a direct answer.
        chain: tokens of its prompt -> most tokens of a chain; the context may hold less.
    """

    direct: int
    chain: Callable[[int], int]


def measured_rooms(engine: Engine, direct: Sequence[tuple[str, str]], chain: Sequence[tuple[str, str]]) -> Rooms:
    """Returns room for every gold text and a quarter more; for chains also as the prompt grows.

    Args:
        engine: counts the tokens.
        direct: pairs of a prompt and a gold answer.
        chain: pairs of a prompt and a gold chain.
    """
    count = token_counter(engine)
    answer = max(count(text) for _, text in direct)
    read, wrote = ([count(pair[side]) for pair in chain] for side in (0, 1))
    longest, share = max(wrote), max(length / before for before, length in zip(read, wrote, strict=True))
    return Rooms(math.ceil(1.25 * answer) + 4, lambda tokens: math.ceil(1.25 * max(longest, share * tokens)) + 16)


class Systems:
    """The systems of a comparison, all over one base and one engine.

    Args:
        spec: the trained stack.
        engine: holds its adapters and its comparators.
        sizes: adapter -> trained parameters.
        rooms: how much the single models may write; the stack needs none.
        train: training questions, of which the bare base is shown some.
        score: how right an answer is.
        shots: solved examples shown to the base.
        base_answer: output of the base -> its answer.
        seed: of the choice of shown examples.
    """

    def __init__(
        self,
        spec: StackSpec,
        engine: Engine,
        sizes: Mapping[str, int],
        rooms: Rooms | None = None,
        train: Sequence[Question] = (),
        *,
        score: Scorer = exact_score,
        shots: int = 4,
        base_answer: Callable[[str], str] = first_words,
        seed: int = 0,
    ) -> None:
        self.spec, self.engine = spec, engine
        self._flops = FlopsCounter(getattr(engine, "config", None), sizes)
        self._rooms = rooms or Rooms(0, lambda read: 0)
        self._train, self._score, self._shots = train, score, shots
        self._base_answer, self._seed = base_answer, seed
        self._context = engine.capabilities.context_tokens
        self._count = token_counter(engine)

    def base(self, questions: Sequence[Question]) -> list[Answered]:
        """Answers with the bare base after solved examples."""
        least = Sampling(max_new_tokens=self._rooms.direct, stop=("\n",))
        fits = {question.id for question in questions if self._room(question, least.max_new_tokens)[0] >= 0}
        asked = [question for question in questions if question.id in fits]
        shown: dict[str, float] = {}
        made: list[Outcome] = []
        if asked:
            made, shown = run_base(
                self.engine, asked, self._train_for(asked), self.spec.comparator_prompt, self._flops,
                shots=self._shots, sampling=least, answer_of=self._base_answer, seed=self._seed, score=self._score,
            )  # fmt: skip
        return _in_order(questions, [Answered(one, facts={"shown": shown[one.task]}) for one in made])

    def direct(self, questions: Sequence[Question], adapter: str = "single_direct") -> list[Answered]:
        """Answers with one adapter, all inputs -> the answer."""
        return self._single(questions, adapter, lambda _: self._rooms.direct, prompts.parse_output)

    def chain(self, questions: Sequence[Question], adapter: str = "single_chain") -> list[Answered]:
        """Answers with one adapter that writes the whole chain as one text."""
        return self._single(questions, adapter, self._rooms.chain, chain_answer(self.spec.chain_stages))

    def vote(
        self, questions: Sequence[Question], single: str, samples: int, temperature: float, seed: int
    ) -> list[Answered]:
        """Answers with the majority of several samples of one single model."""
        chain = single == "single_chain"
        wanted = self._rooms.chain if chain else (lambda _: self._rooms.direct)
        answer_of = chain_answer(self.spec.chain_stages) if chain else prompts.parse_output
        asked, sampling, facts = self._fitting(questions, wanted)
        made = run_vote(
            self.engine, asked, self._prompt, self._flops, adapter=single, samples=samples, temperature=temperature,
            sampling=sampling, answer_of=answer_of, score=self._score, seed=seed,
        )  # fmt: skip
        return _in_order(questions, [Answered(one, facts=facts[one.id]) for one in made])

    def ensemble(self, questions: Sequence[Question], members: Sequence[str]) -> list[Answered]:
        """Answers with several direct adapters that write together."""
        asked, sampling, facts = self._fitting(questions, lambda _: self._rooms.direct)
        made = run_ensemble(
            self.engine, asked, self._prompt, self._flops, members=members, sampling=sampling, score=self._score
        )
        return _in_order(questions, [Answered(one, facts=facts[one.id]) for one in made])

    def stack(
        self, questions: Sequence[Question], given: Mapping[str, Mapping[str, str]] | None = None
    ) -> list[Answered]:
        """Answers with the stack.

        Args:
            given: question id -> values of stages that are not to run; None runs all.
        """
        runner = Runner(self.spec, self.engine, wave=_CHUNK)
        values = None if given is None else [given[question.id] for question in questions]
        made, traces = run_stack(runner, questions, self._flops, given=values, score=self._score)
        return [
            Answered(
                outcome, {record.name: record.value for record in trace.stages}, trace_stages(self.spec, trace),
                {"broken": True} if trace.violations else {},
            )
            for outcome, trace in zip(made, traces, strict=True)
        ]  # fmt: skip

    def _single(
        self,
        questions: Sequence[Question],
        adapter: str,
        wanted: Callable[[int], int],
        answer_of: Callable[[str], str],
    ) -> list[Answered]:
        asked, sampling, facts = self._fitting(questions, wanted)
        made = run_single(
            self.engine, asked, self._prompt, self._flops, adapter=adapter, sampling=sampling, answer_of=answer_of,
            score=self._score,
        )  # fmt: skip
        return _in_order(questions, [Answered(one, facts=facts[one.id]) for one in made])

    def _prompt(self, question: Question) -> str:
        return prompts.render(self.spec.comparator_prompt, question.inputs)

    def _room(self, question: Question, wanted: int | Callable[[int], int]) -> tuple[int, int]:
        """Returns (tokens that the context leaves beyond those wanted, tokens wanted)."""
        read = self._count(self._prompt(question))
        tokens = wanted(read) if callable(wanted) else wanted
        return (2**31 if self._context is None else self._context - read - tokens), tokens

    def _fitting(
        self, questions: Sequence[Question], wanted: Callable[[int], int]
    ) -> tuple[list[Question], Callable[[Question], Sampling], dict[str, dict[str, Any]]]:
        """Returns the questions that the context holds, how much may be written to each, and what to say of it."""
        asked, tokens, facts = [], {}, {}
        for question in questions:
            left, most = self._room(question, wanted)
            if most + min(left, 0) < 1:
                continue
            asked.append(question)
            tokens[question.id] = most + min(left, 0)
            facts[question.id] = {"less_room": True} if left < 0 else {}
        return asked, lambda question: Sampling(max_new_tokens=tokens[question.id]), facts

    def _train_for(self, questions: Sequence[Question]) -> list[Question]:
        """Returns the training questions; a task that training does not have may be shown those of any other."""
        known = {question.task for question in self._train}
        unknown = dict.fromkeys(question.task for question in questions if question.task not in known)
        return [*self._train, *(replace(one, task=task) for task in unknown for one in self._train)]


def _in_order(questions: Sequence[Question], made: Sequence[Answered]) -> list[Answered]:
    """Returns the answers in the order of the questions; one that no context holds has no answer and a score of 0."""
    found = {one.outcome.id: one for one in made}
    return [found.get(one.id) or Answered(unread_outcome(one), facts={"unread": True}) for one in questions]
