"""Answers of every system for every seed: the part of a comparison that recipes and stack folders share.

    for each seed   base (once), single_direct, single_chain, stack, stack with other hand-offs     test; validation for
    then            vote: k samples of the better single by validation, k from measured FLOPs       those that compare
                    ensemble: m direct adapters of different seeds, m from measured FLOPs
    then            the best comparator by validation

Every system's answers are a file (see `answers`); nothing is loaded for those that are there. One engine at a time is
held in memory. `comparison_result` makes the numbers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from cairn.data.examples import StackExample, chain_pairs, direct_pairs, gold_fields, read_examples
from cairn.engines.base import Engine
from cairn.errors import CairnError, ConfigError, InputError
from cairn.evaluation.compare import best_of, mean_score
from cairn.evaluation.equal_compute import fair_count
from cairn.evaluation.handoffs import Given, empty_handoffs, handed_on, shuffled_handoffs
from cairn.evaluation.systems import Outcome, Question, first_line, first_words
from cairn.evaluation.tasks.registry import Task
from cairn.files import sha256_file, sha256_json
from cairn.identity import ADAPTER_CARD
from cairn.stacks.spec import StackSpec, adapter_folder, check_artifacts
from cairn.training.finetune_plan import COMPARATORS as SINGLES
from cairn.verbs.comparison.answers import (
    Answer,
    Answered,
    Rooms,
    Systems,
    cached_answers,
    measured_rooms,
    rescored,
)
from cairn.verbs.comparison.experiment import Say, TrainedSeed, solved_pool
from cairn.verbs.comparison.recipe import COMPARATORS, HANDOFFS, SYSTEMS, CompareSettings
from cairn.verbs.finetuning.stack_folder import comparator_folder

__all__ = [
    "CHOICE_ORDER",
    "Comparison",
    "Inputs",
    "OpenEngine",
    "base_parameters",
    "open_engine",
    "seed_adapters",
    "stack_settings",
]

CHOICE_ORDER = ("ensemble", "vote", "single_chain", "single_direct", "base")  # of equal comparators the first is best

OpenEngine = Callable[[TrainedSeed, Mapping[str, Path]], Engine]
Runs = dict[str, list[list[Answered]]]  # system -> the answers of each seed


@dataclass(frozen=True)
class Inputs:
    """What a comparison asks, and where its examples are.

    Args:
        test: the test questions.
        valid: the validation questions; none chooses the best comparator on the test.
        train: training questions, for solved examples.
        examples: file of stage examples: the length of gold texts says how much single models may write.
        task: scores the answers.
    """

    test: Sequence[Question]
    valid: Sequence[Question]
    train: Sequence[Question]
    examples: Path
    task: Task


def open_engine(
    seed: TrainedSeed, adapters: Mapping[str, Path], *, device: str = "auto", dtype: str = "auto"
) -> Engine:
    """Loads the base of a trained stack with adapters.

    Raises:
        CheckpointError, TokenizerError, AdapterError: see `TorchEngine`.
    """
    from cairn.engines.torch_engine import TorchEngine

    return TorchEngine(seed.spec.base_place, adapters, device=device, dtype=dtype)


def seed_adapters(seed: TrainedSeed) -> dict[str, Path]:
    """Returns the folders of a trained stack's adapters and comparators.

    Raises:
        ConfigError: adapters of the stack are missing.
    """
    singles = {name: comparator_folder(seed.folder, name) for name in SINGLES}
    return {**check_artifacts(seed.spec), **{name: folder for name, folder in singles.items() if folder.is_dir()}}


class Comparison:
    """All answers of a comparison, made where they are not kept yet.

    Args:
        seeds: the trainings, one or more.
        inputs: questions and examples.
        settings: of the comparison.
        out: the run folder.
        engine: opens one: (training, adapters) -> engine.
        say: takes lines for the reader.

    Raises:
        ConfigError: a system was asked for that is not possible here.
    """

    def __init__(
        self,
        seeds: Sequence[TrainedSeed],
        inputs: Inputs,
        settings: CompareSettings,
        out: Path,
        *,
        engine: OpenEngine,
        say: Say,
    ) -> None:
        self.seeds, self.inputs, self.settings, self.out = list(seeds), inputs, settings, out
        self.spec = self.seeds[0].spec
        self.left_out: dict[str, str] = {}
        self.answers: Runs = {}
        self.valid: Runs = {}
        self.vote: dict[str, Any] = {}
        self.ensemble: dict[str, Any] = {}
        self.best: str | None = None
        self._say, self._engine = say, engine
        self._open: tuple[int, Systems] | None = None
        self._rooms: tuple[Rooms, Callable[[str], str]] | None = None
        self._gold: Given = {}
        self.systems = self._possible()

    def _possible(self) -> list[str]:
        wanted = list(self.settings.systems or SYSTEMS)
        trained = set.intersection(*(set(seed.facts["comparators"]) for seed in self.seeds))
        reasons = {name: "the stack was trained without comparators" for name in SINGLES if name not in trained}
        if not set(SINGLES) & trained:
            reasons["vote"] = reasons[SINGLES[0]]
        if "single_direct" in reasons:
            reasons["ensemble"] = reasons["single_direct"]
        elif len(self.seeds) < 2:
            reasons["ensemble"] = "an ensemble needs the adapters of two seeds or more"
        if not handed_on(self.spec):
            reasons.update(dict.fromkeys(HANDOFFS, "no stage hands anything to the last model"))
        elif not any(question.stages for question in self.inputs.test):
            reasons["stack_gold"] = "the test questions have no gold hand-offs"
        asked_for = [name for name in wanted if name in reasons and self.settings.systems is not None]
        if asked_for:
            raise ConfigError("compare.systems", [f"{name}: not possible, {reasons[name]}" for name in asked_for])
        self.left_out = {name: reasons[name] for name in wanted if name in reasons}
        for name, reason in self.left_out.items():
            self._say(f"  {name} is left out: {reason}")
        return [name for name in SYSTEMS if name in wanted and name not in reasons]

    def run(self) -> None:
        """Makes all answers, and chooses the best comparator.

        Raises:
            InputError: a test question or its gold hand-offs cannot be used by the stack.
            StorageError: the folder cannot be written.
        """
        if "stack_gold" in self.systems:
            self._gold = self._gold_handoffs()
            known, asked = self.gold_questions, len(self.inputs.test)
            if known < asked:
                self._say(f"  stack_gold: {known} of {asked} questions have gold hand-offs, the others as in stack")
        first = [name for name in ("base", *SINGLES, "stack", *HANDOFFS) if name in self.systems]
        later = [name for name in ("vote", "ensemble") if name in self.systems]
        self._answer_all(first)
        if "vote" in later:
            self.vote = self._plan_vote()
        if "ensemble" in later:
            single, most = "single_direct", len(self.seeds)
            self.ensemble = self._plan(single, "members", fair_count(*self._flops("stack", single), 2, most))
        self._answer_all(later)
        if self.inputs.valid:
            self.best = best_of(self.validation_score(), self.candidates)

    @property
    def gold_questions(self) -> int:
        """How many test questions `stack_gold` answers from gold hand-offs; the others as `stack` does."""
        return sum(bool(question.stages) for question in self.inputs.test) if "stack_gold" in self.systems else 0

    @property
    def candidates(self) -> list[str]:
        """The comparators, in the order in which equal ones are chosen."""
        return [name for name in CHOICE_ORDER if name in self.systems]

    def validation_score(self) -> dict[str, float]:
        """Returns the mean score of every comparator over validation questions and seeds."""
        return {name: mean_score(self.outcomes(name, self.valid)) for name in self.valid}

    def outcomes(self, name: str, runs: Runs | None = None) -> list[list[Outcome]]:
        """Returns a system's outcomes of each seed."""
        return [[one.outcome for one in run] for run in (self.answers if runs is None else runs)[name]]

    def answers_file(self, name: str, seed: int, split: str = "test") -> Path:
        """Returns where the answers of one system and seed are, but for those that seeds share."""
        return self.out / f"seed-{seed}" / "answers" / f"{name}.{split}.jsonl"

    def _answer_all(self, names: Sequence[str]) -> None:
        splits = {"test": (self.inputs.test, self.answers), "valid": (self.inputs.valid, self.valid)}
        for number, seed in enumerate(self.seeds):
            for name in names:
                for split, (questions, runs) in splits.items():
                    if questions and (split == "test" or name in COMPARATORS):
                        runs.setdefault(name, []).append(self._answer(name, split, number, questions))
            shown = [f"{name} {mean_score([self.outcomes(name)[number]]):.3f}" for name in names]
            if shown:
                self._say(f"  seed {seed.seed}: {', '.join(shown)}")
            self._close()

    def _answer(self, name: str, split: str, number: int, questions: Sequence[Question]) -> list[Answered]:
        """Returns one system's answers of one seed, from the file or made now, with the score the task gives today."""
        settings, shared, make = self._parts(name, number)
        seed = self.seeds[number].seed
        file = self.out / "answers" / f"{shared}.{split}.jsonl" if shared else self.answers_file(name, seed, split)
        made = cached_answers(file, settings, questions, make, f"{name} {split}, seed {seed}")
        return rescored(made, questions, self.inputs.task.score)

    def _parts(self, name: str, number: int) -> tuple[dict[str, Any], str | None, Callable[[], Answer]]:
        """Returns of one system: what decides its answers, its file if seeds share it, and how it answers."""
        seed, settings = self.seeds[number], self.settings
        common = {"system": name, "base": sha256_file(seed.folder / "base.json"), "prompt": seed.spec.comparator_prompt}
        common["examples"] = sha256_file(self.inputs.examples)
        if name == "base":
            return {**common, "shots": settings.shots, "seed": settings.seed}, name, lambda: self._systems(0).base
        if name in SINGLES:
            own = {**common, "weights": _weights(seed, [name]), "chain": seed.spec.chain_stages}
            return own, None, lambda: getattr(self._systems(number), name.removeprefix("single_"))
        if name == "vote":
            call = {key: self.vote[key] for key in ("single", "samples", "temperature")} | {"seed": settings.seed}
            own = {**common, **call, "weights": _weights(seed, [call["single"]])}
            return own, None, lambda: partial(self._systems(number).vote, **call)
        if name == "ensemble":
            members = self.members(number)
            own = {**common, "weights": [_weights(member, ["single_direct"]) for member in members]}
            names = [f"single_direct@{member.seed}" for member in members]
            file = "-".join(["ensemble", *(str(member.seed) for member in members)])
            return own, file, lambda: partial(self._systems(number).ensemble, members=names)
        own = stack_settings(seed, seed.spec)
        if name == "stack":
            return own, None, lambda: self._systems(number).stack
        given = self._handoffs(name, number)
        return {**own, "given": sha256_json(given)}, None, lambda: partial(self._systems(number).stack, given=given)

    def _handoffs(self, name: str, number: int) -> Given:
        if name == "stack_empty":
            return empty_handoffs(self.spec, self.inputs.test)
        if name == "stack_gold":
            return self._gold
        made = {one.outcome.id: one.values for one in self.answers["stack"][number]}
        return shuffled_handoffs(self.spec, self.inputs.test, made, self.settings.seed)

    def _gold_handoffs(self) -> Given:
        """Returns the gold hand-offs of each question; none where there are none: the stack answers that one alone."""
        given: Given = {}
        for question in self.inputs.test:
            if not question.stages:
                given[question.id] = {}
                continue
            example = StackExample(question.id, question.inputs, question.stages, question.answer)
            try:
                fields = gold_fields(self.spec, example)
            except (CairnError, KeyError) as error:
                raise InputError(
                    f"the gold hand-offs of test question {question.id} do not fit the stack ({error})",
                    value=dict(question.stages), next="correct the data, or leave stack_gold out of compare.systems",
                ) from None  # fmt: skip
            given[question.id] = {name: fields[name] for name in handed_on(self.spec)}
        return given

    def _systems(self, number: int) -> Systems:
        """Opens the systems of one seed: all its adapters, or later those that vote and write together."""
        if self._open is not None and self._open[0] == number:
            return self._open[1]
        self._close()
        seed = self.seeds[number]
        adapters, sizes = seed_adapters(seed), seed.sizes()
        if self.vote or self.ensemble:
            adapters = {name: adapters[name] for name in [self.vote.get("single")] if name}
        if self.ensemble:
            for one in self.members(number):
                adapters[f"single_direct@{one.seed}"] = comparator_folder(one.folder, "single_direct")
                sizes[f"single_direct@{one.seed}"] = one.sizes()["single_direct"]
        engine = self._engine(seed, adapters)
        rooms, solved, options = self.room_of_singles(engine)
        self._open = (number, Systems(seed.spec, engine, sizes, rooms, solved, score=self.inputs.task.score, **options))
        return self._open[1]

    def room_of_singles(self, engine: Any) -> tuple[Rooms, list[Question], dict[str, Any]]:
        """Returns what `Systems` needs to know of the single models, beside their adapters.

        Args:
            engine: counts tokens; one with `count_tokens` alone will do.

        Returns:
            How much they may write, the questions that the base may be shown solved, and further options.
        """
        options = {"shots": self.settings.shots, "seed": self.settings.seed}
        solved = solved_pool(self.inputs.train, self.settings.seed)
        if self._rooms is None:
            self._rooms = self._measured(engine)
        rooms, base_answer = self._rooms
        return rooms, solved, {**options, "base_answer": base_answer}

    def _measured(self, engine: Any) -> tuple[Rooms, Callable[[str], str]]:
        """Returns how much single models may write, and how the base's answer is read off what it wrote.

        The gold texts of the test count too: they lift a bound, and say nothing of any one answer.
        """
        trained = read_examples(self.inputs.examples, self.spec)
        asked = [StackExample(one.id, one.inputs, one.stages, one.answer) for one in self.inputs.test]
        known = [one for one in asked if one.stages and "stack_gold" in self.systems]  # else they are not checked
        others = [
            replace(example, answer=text)
            for example, one in zip(asked, self.inputs.test, strict=True)
            for text in one.references
        ]
        direct = direct_pairs(self.spec, [*trained, *asked, *others])
        marks = any(re.search(r"[.?!]", pair.completion) for pair in direct)
        chain = chain_pairs(self.spec, [*trained, *known])
        return measured_rooms(engine, direct, chain), first_line if marks else first_words

    def _close(self) -> None:
        if self._open is not None:
            self._open[1].engine.close()
        self._open = None

    def _plan_vote(self) -> dict[str, Any]:
        singles = [name for name in ("single_chain", "single_direct") if name in self.systems]
        score = self.validation_score() if self.inputs.valid else {n: mean_score(self.outcomes(n)) for n in singles}
        single = best_of(score, singles)
        samples = fair_count(*self._flops("stack", single), self.settings.votes)
        return {**self._plan(single, "samples", samples), "temperature": self.settings.vote_temperature}

    def _plan(self, single: str, what: str, count: int) -> dict[str, Any]:
        stack, one = self._flops("stack", single)
        share = count * one / stack
        self._say(f"  {count} {what} of {single}: {share:.2f} of the stack's FLOPs")
        return {"single": single, what: count, "share_of_stack_flops": share}

    def members(self, number: int) -> list[TrainedSeed]:
        """Returns the trainings whose adapters write together for one seed, in order of their seeds."""
        chosen = [self.seeds[(number + more) % len(self.seeds)] for more in range(self.ensemble["members"])]
        return sorted(chosen, key=lambda one: one.seed)

    def _flops(self, *names: str) -> list[float]:
        """Returns the mean FLOPs of a question, by system."""
        runs = [[one.flops for run in self.outcomes(name) for one in run] for name in names]
        return [sum(run) / len(run) for run in runs]


def stack_settings(seed: TrainedSeed, spec: StackSpec) -> dict[str, Any]:
    """Returns what decides the answers of a stack: its definition, its adapters and its base.

    Args:
        seed: the training.
        spec: the stack that runs; that of the training, or one that differs in what is not trained.
    """
    return {
        "system": "stack",
        "base": sha256_file(seed.folder / "base.json"),
        "weights": _weights(seed, seed.spec.adapter_names()),
        "spec": spec.model_dump(mode="json", exclude={"base", "examples", "training", "description"}),
    }


def base_parameters(seed: TrainedSeed) -> int:
    """Returns the number of parameters of a training's base."""
    from cairn.bases import load_base

    return sum(weight.numel() for weight in load_base(seed.spec.base_place)[0].parameters())


def _weights(seed: TrainedSeed, names: Sequence[str]) -> dict[str, str]:
    """Returns the fingerprints of a training's adapters or comparators."""
    places = {n: (comparator_folder if n in SINGLES else adapter_folder)(seed.folder, n) for n in names}
    cards = {name: json.loads((place / ADAPTER_CARD).read_text(encoding="utf-8")) for name, place in places.items()}
    return {name: card["weights_sha256"] for name, card in cards.items()}
