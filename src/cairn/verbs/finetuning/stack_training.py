"""The training of a whole stack: what is checked first, what is trained when, and what came of it.

    check   examples, base, every gold pair, budgets, equal parameters: before anything is trained
    train   phase by phase (training/phases.py); the comparators beside them, or after them
    results every job with its numbers, for training.json

A phase begins when all adapters of the one before are there: the own answers of a stack need all of its adapters. A
finished adapter is found again by its fingerprint, so that the same call goes on wherever the last one stopped.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cairn.data.examples import (
    StackExample,
    TextPair,
    chain_pairs,
    direct_pairs,
    hold_out,
    read_examples,
)
from cairn.errors import ConfigError, did_you_mean, storage_error
from cairn.stacks.spec import StackSpec, adapter_folder, check_budgets
from cairn.training.finetune_plan import (
    ALL_STAGES,
    COMPARATORS,
    AdapterPlan,
    LoraSettings,
    OnPolicy,
    StackTraining,
    adapter_lora,
    stack_training,
)
from cairn.training.phases import Phase, comparator_config, plan_phases
from cairn.verbs.finetuning.finetune_jobs import (
    Job,
    OneByOne,
    Trainer,
    check_budget,
    encode_job,
    result_line,
    trained_job,
)
from cairn.verbs.finetuning.finetune_pairs import VALIDATION_PAIRS, GoldPairs, mix, reading_stages
from cairn.verbs.finetuning.own_answers import answer_facts, answer_questions, draw_questions
from cairn.verbs.finetuning.own_pairs import OwnPairs, on_policy_pairs, right_chain_pairs
from cairn.verbs.finetuning.stack_folder import comparator_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from cairn.training.batching import EncodedPair

__all__ = ["StackTrainer"]


class StackTrainer:
    """Trains the adapters and comparators of one stack.

    Args:
        spec: the stack, its examples relative to its folder.
        out: the stack folder.
        only: adapters or comparators to train now; all if empty.
        comparators: also train the single adapters.
        device: see `bases.pick_device`.
        say: takes lines for the reader.

    Raises:
        ConfigError: a fault in the `training:` section, or `only` names nothing.
    """

    def __init__(
        self,
        spec: StackSpec,
        out: Path,
        *,
        only: Sequence[str] = (),
        comparators: bool = True,
        device: str = "auto",
        say: Callable[[str], Any] = lambda text: None,
    ) -> None:
        self.spec, self.out, self.device, self.say = spec, out, device, say
        self.source = str(spec.folder / "stack.yaml") if spec.folder else spec.name
        self.adapters = spec.adapter_names()
        if not self.adapters:
            raise ConfigError(self.source, ["every stage is a rule, so that there is nothing to train"])
        readers = reading_stages(spec)
        self._readers = readers
        self.settings: StackTraining = stack_training(spec.training, self.adapters, self.source, readers)
        self.phases = plan_phases(self.settings, self.adapters, readers)
        self.singles = [name for name in COMPARATORS if comparators or comparator_folder(out, name).exists()]
        wanted = [*self.adapters, *self.singles]
        for name in only:
            if name not in wanted:
                raise ConfigError("--only", [f"{name!r}{did_you_mean(name, wanted)}, allowed: {', '.join(wanted)}"])
        self.chosen = [name for name in wanted if not only or name in only]
        self.results: list[tuple[Job, dict[str, Any]]] = []
        self.answers: dict[str, dict[str, Any]] = {}
        self._latest: dict[str, Path] = {}
        self._done = 0

    def check(self) -> None:
        """Reads the examples, loads the base, and finds everything that would stop the training later.

        Raises:
            ConfigError, DataError, CheckpointError, TokenizerError, StorageError: see `finetune.finetune_stack`.
        """
        self._read_examples()
        _make_folder(self.out)

        from cairn.bases import load_base, pick_precision
        from cairn.identity import base_identity

        place = self.spec.base_place
        local = Path(place).expanduser().is_dir()
        name = Path(place).expanduser().resolve().name if local else self.spec.base
        self.identity: dict[str, Any] = {**base_identity(place), "name": name}
        self._model: PreTrainedModel | None
        self._tokenizer: PreTrainedTokenizerBase
        self._model, self._tokenizer = load_base(place, dtype="float32", device=self.device)
        device = self._model.get_input_embeddings().weight.device
        self.settings = self.settings.model_copy(
            update={"precision": pick_precision(self.settings.precision, device)}
        )
        self.phases = plan_phases(self.settings, self.adapters, self._readers)
        self._context = getattr(self._model.config, "max_position_embeddings", None) or 2**31
        check_budgets(self.spec, self._context)
        self.gold = GoldPairs(self.spec, self.settings, self.examples, self.held_out, self.say)
        self._joint = self._joint_lora(self._model) if self.singles else None
        self._single_jobs = [self._single(name) for name in self.singles]
        self._encoded: dict[tuple[str, str], list[EncodedPair]] = {}
        for job in [*(self._job(phase, name) for phase in self.phases for name in phase.configs), *self._single_jobs]:
            gold = self._encoded.get(("gold", job.name))  # a later round has the gold pairs too
            self._encoded[job.key] = gold or encode_job(job, self._tokenizer, self._context)
            check_budget(job, self._encoded[job.key])
        self._mean_tokens = {
            name: sum(pair.tokens for pair in encoded) / len(encoded)
            for (phase, name), encoded in self._encoded.items()
            if phase == "gold"
        }
        later = [phase.name for phase in self.phases if phase.answers is not None]
        self._encoded = {key: encoded for key, encoded in self._encoded.items() if key[0] not in later}
        if self.singles:
            self._check_parameters(self._model)

    def train(self, jobs: int = 1) -> list[str]:
        """Trains what is chosen and not trained yet.

        Args:
            jobs: adapters trained side by side.

        Returns:
            What is missing, because it was not chosen; the stack is whole if that is nothing.

        Raises:
            CairnError, KeyboardInterrupt: see `finetune_jobs.Trainer`.
        """
        chosen = [name for phase in self.phases for name in phase.configs if self._is_chosen(name)]
        self._total = len(chosen) + sum(name in self.chosen for name in self.singles)
        facts = f"{len(self.examples):,} examples, base {self.identity['name']}, {self._total} adapters"
        self.say(f"{self.spec.name}: {facts}, {self.settings.precision} -> {self.out}")
        singles, missing = self._single_jobs, []
        with self._trainer(min(jobs, self._total)) as trainer:
            trainer.add([job for job in singles if job.name in self.chosen])
            for phase in self.phases:
                own = self._own_pairs(phase) if phase.answers is not None else None
                made = [self._job(phase, name, own) for name in phase.configs]
                missing += self._finish(made, trainer)
                if missing:
                    break
                self._latest |= {name: job.folder for job in made for name in self._served_by(job)}
            missing += self._finish(singles, trainer, added=True)
        return missing

    def notes(self) -> dict[str, Any]:
        """Returns what training.json says beside the results: dropped hand-offs, and the stack's own answers."""
        return {"hand_off_dropout": self.gold.dropout, "answers": self.answers}

    def _read_examples(self) -> None:
        if self.spec.examples is None:
            raise ConfigError(
                self.source, ["examples: required for fine-tuning, but missing"], next="give a JSON lines file"
            )
        self.file = (self.spec.folder or Path()) / self.spec.examples
        self.examples: list[StackExample] = read_examples(self.file, self.spec)
        self.held_out: list[StackExample] = []
        if self.settings.validation_examples:
            count, seed = self.settings.validation_examples, self.settings.seed
            self.examples, self.held_out = hold_out(self.examples, count, seed)

    def _is_chosen(self, name: str) -> bool:
        """True if an adapter is trained now; the one on all stages, if any stage's is."""
        return name in self.chosen or (name == ALL_STAGES and any(one in self.chosen for one in self.adapters))

    def _served_by(self, job: Job) -> list[str]:
        """Returns the adapters that go on from a job."""
        return self.adapters if job.name == ALL_STAGES else [job.name]

    def _finish(self, jobs: Sequence[Job], trainer: Trainer, *, added: bool = False) -> list[str]:
        """Trains the chosen jobs and looks for the others; returns what is missing."""
        chosen = [job for job in jobs if self._is_chosen(job.name)]
        if not added:
            trainer.add(chosen)
        found = dict(zip([job.key for job in chosen], trainer.wait(chosen), strict=True))
        missing = []
        for job in jobs:
            result = found.get(job.key) or trained_job(job, self.identity)
            if result is None:
                missing.append(job.title)
            else:
                self.results.append((job, result))
        return missing

    def _job(self, phase: Phase, name: str, own: OwnPairs | None = None) -> Job:
        """Returns the training of one adapter in one phase; its own pairs are still missing if none are given."""
        last = [one for one in self.phases if name in one.configs][-1] is phase and name != ALL_STAGES
        run = self.out / "training" / (name if phase.name in ("gold", "global") else f"{name}.{phase.name}")
        config, start = phase.configs[name], self._latest.get(name)
        folder = adapter_folder(self.out, name) if last else run / "adapter"
        if name == ALL_STAGES:
            return Job(name, phase.name, folder, run, config, *self.gold.of_all(config.seed))
        pairs, card = self.gold.training[name], {"stages": [stage.name for stage in self.spec.stages_of(name)]}
        if own is not None and phase.answers is not None:
            kept = [pair for pair in pairs if pair.prompt not in own.replaced[name]]
            plan = self.settings.adapters.get(name, AdapterPlan())
            pairs, counts = mix(
                kept, own.of(name), phase.answers, seen=round((config.tokens or 0) / self._mean_tokens[name]),
                balance=plan.balance, seed=config.seed,
            )  # fmt: skip
            self.answers[phase.name].setdefault("pairs", {})[name] = counts
        return Job(name, phase.name, folder, run, config, pairs, self.gold.validation[name], card, start)

    def _single(self, name: str) -> Job:
        pairs_of: Callable[..., list[TextPair]] = direct_pairs if name == "single_direct" else chain_pairs
        writes = [self.spec.answer_stage] if name == "single_direct" else self.spec.chain_stages
        held = pairs_of(self.spec, self.held_out, limit=VALIDATION_PAIRS, seed=self.settings.seed)
        config = comparator_config(self.settings, name, self.adapters, self._joint)
        return Job(
            name, "comparator", comparator_folder(self.out, name), self.out / "training" / name, config,
            pairs_of(self.spec, self.examples), held, {"prompt": self.spec.comparator_prompt, "writes": writes},
        )  # fmt: skip

    def _joint_lora(self, model: PreTrainedModel) -> LoraSettings:
        from cairn.training.lora import joint_lora

        return joint_lora(model, [adapter_lora(self.settings, name) for name in self.adapters], self.settings.lora)

    def _check_parameters(self, model: PreTrainedModel) -> None:
        from cairn.training.lora import trained_parameters

        parts = {name: trained_parameters(model, adapter_lora(self.settings, name)) for name in self.adapters}
        single = trained_parameters(model, self._joint)
        if sum(parts.values()) != single:
            shown = " + ".join(f"{name} {count:,}" for name, count in parts.items())
            raise ConfigError(
                "training",
                [f"trained parameters are not equal: stack {sum(parts.values()):,} ({shown}), comparator {single:,}"],
                next="use the same lora.targets for all, or --no-comparators",
            )

    @contextmanager
    def _trainer(self, jobs: int) -> Iterator[Trainer]:
        """Yields what trains: this process, or several with the threads divided among them.

        The stack's own answers are made with as many threads as the training, so that nothing depends on `jobs` but
        through the number of threads.
        """
        if jobs <= 1:
            yield OneByOne(self._model, self._tokenizer, self.identity, self._told, self._encoded)
            return
        import torch

        from cairn.verbs.finetuning.side_by_side import BaseOfWorkers, SideBySide

        self._model, self._encoded = None, {}  # each process has its own
        threads = torch.get_num_threads()
        share = max(1, threads // jobs)
        torch.set_num_threads(share)
        try:
            base = BaseOfWorkers(self.spec.base_place, self.device, self.identity, share)
            with SideBySide(jobs, base, self._told) as trainer:
                yield trainer
        finally:
            torch.set_num_threads(threads)

    def _told(self, job: Job, result: dict[str, Any]) -> None:
        self._done += 1
        self.say(f"[{self._done}/{self._total}] {result_line(job, result)}")

    def _own_pairs(self, phase: Phase) -> OwnPairs:
        """Lets the stack as it is answer its own training questions, and takes the pairs of a later round from them."""
        settings, seed = phase.answers, next(iter(phase.configs.values())).seed
        questions = draw_questions(self.examples, settings.questions, seed)
        answered = answer_questions(
            self.spec, self._latest, questions, self.out / "training" / f"{phase.name}.answers.jsonl",
            title=f"{phase.name}: own answers", device=self.device, say=self.say,
        )  # fmt: skip
        pairs_of = on_policy_pairs if isinstance(settings, OnPolicy) else right_chain_pairs
        own = pairs_of(self.spec, self.examples, answered, settings, self._fits)
        facts = answer_facts(self.spec, answered)
        self.answers[phase.name] = {**facts, "calls_by_stage": own.facts()}
        taken = {name: len(own.of(name)) for name in phase.configs}
        self.say(
            f"{phase.name}: {facts['right']:,} of {facts['questions']:,} training questions answered right in "
            f"{facts['seconds']:.0f} s; own pairs: {', '.join(f'{name} {count:,}' for name, count in taken.items())}"
        )
        return own

    def _fits(self, pair: TextPair) -> bool:
        from cairn.models.tokenization import completion_ids, prompt_ids

        prompt, completion = prompt_ids(self._tokenizer, pair.prompt), completion_ids(self._tokenizer, pair.completion)
        return len(prompt) + len(completion) <= self._context


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied", str(out))
    except OSError as error:
        raise storage_error(error, out) from error
