"""Which stage loses the points? The figures of a stack whose hand-offs were replaced by the right ones, one by one.

    scores with   own hand-offs ── gold up to stage 1 ── gold up to stage 2 ── ... ── gold answer
                        └── lost in stage 1 ──┘└── lost in stage 2 ──┘  ...      they add up to all that is missing

    lift          what gold in the place of this hand-off ALONE brings: it mends this stage and all that came before and
                  flows through it, so it is the room that is left here, not this stage's fault
    lost_here     what gold here brings when all before it is gold already: this stage's own fault. The weakest stage is
                  the one with the most of it, if its interval lies above zero

All differences are paired over questions and training seeds, and groups of questions are drawn whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import Field

from cairn.config import StrictModel
from cairn.evaluation.statistics import paired_difference, resampled_means, score_interval
from cairn.evaluation.systems import Question, Scorer
from cairn.stacks.attribution import Case, Replaced, handing_on, replacements, values_with
from cairn.stacks.spec import StackSpec

__all__ = ["BlameRun", "BlameSettings", "blame_figures"]

_SHOWN_CALLS = 60  # of one stage in a worst case
_OWN: Replaced = ()
_ANSWER: Replaced = ("",)  # the gold answer itself


class BlameSettings(StrictModel):
    """How closely a stack is looked at.

    Args:
        questions: with gold hand-offs, at most so many, evenly spread; 0 leaves blame out.
        pairs: also replace every pair of stages.
        worst: wrong answers shown with their hand-offs beside the right ones.
        source: who wrote the hand-offs that stand in: the data ("gold") or a "teacher".
    """

    questions: int = Field(default=200, ge=0)
    pairs: bool = True
    worst: int = Field(default=12, ge=0)
    source: Literal["gold", "teacher"] = "gold"


@dataclass(frozen=True)
class BlameRun:
    """What one training of the stack did with the questions.

    Args:
        seed: of the training.
        cases: own and gold values of every question, in the same order for every run.
        scores: of the stack's own answers.
        stages: hand-offs of its own run, as `systems.trace_stages` gives them.
        made: (question id, stages that were needed) -> all values, of what was run again.
    """

    seed: int
    cases: Sequence[Case]
    scores: Sequence[float]
    stages: Sequence[Sequence[Mapping[str, Any]]]
    made: Mapping[tuple[str, Replaced], Mapping[str, str]]


def blame_figures(
    spec: StackSpec,
    questions: Sequence[Question],
    runs: Sequence[BlameRun],
    score: Scorer,
    settings: BlameSettings,
    *,
    seed: int = 0,
    resamples: int = 10_000,
) -> dict[str, Any]:
    """Returns the blame section of a result as a JSON-able dict; docs/report.md explains every key.

    Args:
        spec: the stack.
        questions: those of the runs, in order.
        runs: one a training seed.
        score: how right an answer is.
        settings: pairs and worst cases wanted.
        seed: of the bootstrap.
        resamples: bootstrap draws.
    """
    table = _Scores(spec, questions, runs, score, settings.pairs, seed, resamples)
    names, answer = handing_on(spec), spec.answer_stage
    stages = []
    for place, name in enumerate([*names, answer]):
        stage, before = spec.stage(name), tuple(names[:place])
        after = (*before, name) if name != answer else _ANSWER
        stages.append(
            {
                "name": name,
                "kind": stage.kind,
                "by": stage.by,
                "lift": table.difference((name,), _OWN) if name != answer else None,
                "lost_here": table.difference(after, before),
                **_accuracy(spec, runs, name, before, table),
                **_promises(runs, name),
            }
        )
    wrong = _first_wrong(runs, [*names, answer])
    for stage in stages:
        stage["first_wrong"] = wrong[stage["name"]]
    pairs = [
        {"stages": list(pair), "lift": both, "beyond_each_alone": both["difference"] - sum(table.gain(n) for n in pair)}
        for pair in (replacements(spec) if settings.pairs else [])
        if len(pair) == 2
        for both in [table.difference(pair, _OWN)]
    ]
    found = [stage for stage in stages if stage["lost_here"]["ci95"][0] > 0]
    weakest = max(found, key=lambda stage: stage["lost_here"]["difference"])["name"] if found else None
    return {
        "source": settings.source,
        "n": len(questions),
        "groups": len({question.group for question in questions}),
        "seeds": [run.seed for run in runs],
        "measure": table.measure,
        "own": table.score(_OWN),
        "ceiling": table.score(tuple(names)),
        "answer_itself": table.score(_ANSWER),
        "stages": stages,
        "pairs": pairs,
        "weakest": weakest,
        "wrong_answers": wrong[""],
        "worst": _worst(spec, questions, runs[0], table, weakest, settings.worst),
    }


class _Scores:
    """Scores of every set of replaced stages, with one set of bootstrap draws for all, so that they are paired."""

    def __init__(
        self,
        spec: StackSpec,
        questions: Sequence[Question],
        runs: Sequence[BlameRun],
        score: Scorer,
        pairs: bool,
        seed: int,
        resamples: int,
    ) -> None:
        self._seed, self._runs = seed, [run.seed for run in runs]
        self._groups = [question.group for question in questions]
        self._sets = [_OWN, *replacements(spec, pairs), _ANSWER]

        def one(replaced: Replaced, run: BlameRun, place: int) -> float:
            case, question = run.cases[place], questions[place]
            if replaced == _ANSWER:
                return score(case.gold[spec.answer_stage], question)
            values = values_with(spec, case, replaced, run.made)
            return run.scores[place] if values is case.own else score(values[spec.answer_stage], question)

        self._scores = np.array(
            [[[one(names, run, i) for i in range(len(questions))] for run in runs] for names in self._sets], dtype=float
        )  # [sets, seeds, questions]
        self._draws = resampled_means(self._scores, self._groups, seed, resamples)
        self.measure = "accuracy" if np.isin(self._scores, (0.0, 1.0)).all() else "mean score"

    def of(self, replaced: Replaced) -> np.ndarray:
        """Returns the scores [seeds, questions]."""
        return self._scores[self._sets.index(replaced)]

    def gain(self, name: str) -> float:
        """Returns the lift of one stage."""
        return float(self.of((name,)).mean() - self.of(_OWN).mean())

    def score(self, replaced: Replaced) -> dict[str, Any]:
        """Returns a mean score with its interval."""
        place = self._sets.index(replaced)
        low, high = score_interval(self._scores[place], self._draws[place], self._groups)
        return {"score": float(self._scores[place].mean()), "ci95": [low, high]}

    def difference(self, replaced: Replaced, against: Replaced) -> dict[str, Any]:
        """Returns the score with some stages replaced minus that with others."""
        draws = self._draws[self._sets.index(replaced)] - self._draws[self._sets.index(against)]
        found = paired_difference(self.of(replaced), self.of(against), draws, self._groups, self._seed)
        return {**found.as_json(), "seeds": self._runs}


def _accuracy(
    spec: StackSpec, runs: Sequence[BlameRun], name: str, before: Replaced, table: _Scores
) -> dict[str, float]:
    """Returns how often a stage is right in the stack's own run, and where all before it is gold."""
    if name == spec.answer_stage:
        return {"right": float(table.of(_OWN).mean()), "right_after_gold": float(table.of(before).mean())}
    own, after = [], []
    for run in runs:
        own += [case.own[name] == case.gold[name] for case in run.cases]
        after += [values_with(spec, case, before, run.made)[name] == case.gold[name] for case in run.cases]
    return {"right": sum(own) / len(own), "right_after_gold": sum(after) / len(after)}


def _promises(runs: Sequence[BlameRun], name: str) -> dict[str, float]:
    """Returns calls per question, and the shares of calls and questions that broke the stage's contract."""
    records = [stage for run in runs for stages in run.stages for stage in stages if stage["name"] == name]
    calls = [call for record in records for call in record["calls"]]
    broken = [any(call["violations"] for call in record["calls"]) for record in records]
    return {
        "calls_per_question": len(calls) / max(1, len(records)),
        "calls_broken": sum(bool(call["violations"]) for call in calls) / max(1, len(calls)),
        "questions_broken": sum(broken) / max(1, len(broken)),
    }


def _first_wrong(runs: Sequence[BlameRun], names: Sequence[str]) -> dict[str, float]:
    """Returns stage -> wrong answers in which it was the first to differ from gold, per seed; "" -> all of them."""
    counts = dict.fromkeys([*names, ""], 0.0)
    for run in runs:
        for case, score in zip(run.cases, run.scores, strict=True):
            if score < 1:
                counts[_wrong_stage(case, names)] += 1 / len(runs)
                counts[""] += 1 / len(runs)
    return counts


def _wrong_stage(case: Case, names: Sequence[str]) -> str:
    """Returns the first stage whose value is not gold; of a wrong answer at the latest the one that answered."""
    return next((name for name in names if case.own[name] != case.gold[name]), names[-1])


def _worst(
    spec: StackSpec, questions: Sequence[Question], run: BlameRun, table: _Scores, weakest: str | None, most: int
) -> list[dict[str, Any]]:
    """Returns the worst answers, those that went wrong in the weakest stage first, with both sides of each hand-off."""
    names = [*handing_on(spec), spec.answer_stage]
    first = {place: _wrong_stage(run.cases[place], names) for place, score in enumerate(run.scores) if score < 1}
    alike: dict[tuple[float, bool], list[int]] = {}
    for place, stage in first.items():
        alike.setdefault((run.scores[place], stage != weakest), []).append(place)
    chosen: list[int] = []
    for _, places in sorted(alike.items()):  # evenly over those that are equally bad
        left = min(most - len(chosen), len(places))
        chosen += [places[number * len(places) // left] for number in range(left)]
    return [_case(spec, questions[place], run, place, first[place], table) for place in chosen]


def _case(
    spec: StackSpec, question: Question, run: BlameRun, place: int, first: str, table: _Scores
) -> dict[str, Any]:
    case, at = run.cases[place], {stage["name"]: stage for stage in run.stages[place]}
    names = [*handing_on(spec), spec.answer_stage]
    own = run.scores[place]
    return {
        "id": question.id,
        "group": question.group,
        "task": question.task,
        "inputs": dict(question.inputs),
        "gold": question.answer,
        "answer": case.own[spec.answer_stage],
        "score": own,
        "first_wrong": first,
        "mended_by": [name for name in names[:-1] if table.of((name,))[0][place] > own],
        "stages": [
            {
                "name": name,
                "kind": spec.stage(name).kind,
                "by": spec.stage(name).by,
                "own": case.own[name],
                "gold": case.gold[name],
                **_calls(spec, case, name, at[name]["calls"]),
            }
            for name in names
        ],
    }


def _calls(spec: StackSpec, case: Case, name: str, made: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the calls of a stage that makes several, each beside the gold output: by item, or in a loop by place."""
    stage = spec.stage(name)
    if stage.kind == "once":
        return {"calls": [], "calls_left_out": 0}
    gold = [stage.parse(output) for output in case.outputs.get(name, ())]
    items = spec.items(stage, {**case.inputs, **case.gold}) or [None] * len(gold)
    right: list[tuple[str | None, str | None]] = list(zip(items, gold, strict=False))
    rows = []
    for call in made:
        own: dict[str, Any] = {"item": call["item"], "own": call["output"], "gold": None}
        same = [place for place, (item, _) in enumerate(right) if stage.kind == "repeat" or item == call["item"]]
        if same:
            own["gold"] = right.pop(same[0])[1]
        rows.append(own)
    rows += [{"item": item, "own": None, "gold": output} for item, output in right]
    return {"calls": rows[:_SHOWN_CALLS], "calls_left_out": max(0, len(rows) - _SHOWN_CALLS)}
