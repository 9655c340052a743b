"""One adapter to train, as every way of training takes it: in this process, or in several side by side.

    Trainer.add(jobs) ── wait(jobs) ── results by job        OneByOne here, SideBySide in side_by_side.py

A job names its files and holds its pairs, so that it can go to another process. What it leaves behind is the same
whoever does it.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cairn.data.examples import TextPair
from cairn.errors import DataError
from cairn.training.finetune_plan import FinetuneConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from cairn.training.batching import EncodedPair

__all__ = ["Job", "OneByOne", "Trainer", "check_budget", "encode_job", "result_line", "train_job", "trained_job"]


@dataclass(frozen=True)
class Job:
    """One adapter in one phase.

    Args:
        name: of the adapter or comparator.
        phase: of `training.phases`, or "comparator".
        folder: the adapter folder to write.
        run: its run folder.
        config: its settings.
        pairs: for training.
        validation: held-out pairs.
        card: further facts for cairn_adapter.json.
        start: the folder of the adapter whose weights it starts with; None for a fresh one.
    """

    name: str
    phase: str
    folder: Path
    run: Path
    config: FinetuneConfig
    pairs: list[TextPair] = field(repr=False)
    validation: list[TextPair] = field(repr=False)
    card: dict[str, Any] = field(default_factory=dict, repr=False)
    start: Path | None = None

    @property
    def key(self) -> tuple[str, str]:
        """What tells this job from the others of a stack."""
        return self.phase, self.name

    @property
    def title(self) -> str:
        """Its name, with the phase where there are several of that name."""
        return self.name if self.phase in ("gold", "comparator", "global") else f"{self.name} ({self.phase})"


class Trainer(Protocol):
    """Trains jobs, now or beside other work."""

    def add(self, jobs: Sequence[Job]) -> None:
        """Takes jobs whose start is trained, to be done when there is room."""
        ...

    def wait(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        """Returns the results of jobs that were added, in their order, when all are done.

        Raises:
            CairnError: one failed; the others are stopped after a checkpoint.
            KeyboardInterrupt: interrupted; all are stopped after a checkpoint.
        """
        ...


class OneByOne:
    """Trains in this process, a job when it is waited for.

    Args:
        model: the base on its device, weights in float32.
        tokenizer: the base's.
        identity: of the base.
        done: told each result.
        encoded: pairs that were encoded before, by job.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        identity: dict[str, Any],
        done: Callable[[Job, dict[str, Any]], Any] = lambda job, result: None,
        encoded: dict[tuple[str, str], list[EncodedPair]] | None = None,
    ) -> None:
        self._model, self._tokenizer, self._identity, self._done = model, tokenizer, identity, done
        self._encoded = encoded or {}

    def add(self, jobs: Sequence[Job]) -> None:
        """Does nothing yet."""

    def wait(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        """Trains the jobs in their order; see `Trainer`."""
        results = []
        for job in jobs:
            encoded = self._encoded.pop(job.key, None)
            results.append(train_job(job, self._model, self._tokenizer, self._identity, encoded))
            self._done(job, results[-1])
        return results


def train_job(
    job: Job,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    identity: dict[str, Any],
    encoded: list[EncodedPair] | None = None,
) -> dict[str, Any]:
    """Trains one adapter, or finds it trained; returns the fields of its AdapterResult.

    Raises:
        CairnError: see `training.finetune.train_adapter`.
    """
    from cairn.training.finetune import train_adapter

    result = train_adapter(
        model, tokenizer, job.pairs, job.config, job.folder, encoded=encoded, validation=job.validation, base=identity,
        name=job.name, title=job.title, run=job.run, card=job.card, start=job.start,
    )  # fmt: skip
    return asdict(result)


def trained_job(job: Job, identity: dict[str, Any]) -> dict[str, Any] | None:
    """Returns the result of a job that an earlier call finished; None if there is something left to do.

    Raises:
        ConfigError: its folder holds an adapter of other settings, data or base.
    """
    from cairn.training.finetune import adapter_run, finished_adapter

    found = finished_adapter(job.folder, adapter_run(job.name, job.config, identity, job.pairs, job.start))
    if found is not None:
        shutil.rmtree(job.run / "checkpoints", ignore_errors=True)
    return asdict(found) if found is not None else None


def encode_job(job: Job, tokenizer: PreTrainedTokenizerBase, context: int) -> list[EncodedPair]:
    """Encodes the pairs of a job, so that one that does not fit is known before anything is trained.

    Raises:
        DataError: there are no pairs, or one is longer than the context.
    """
    from cairn.training.batching import encode_pairs

    try:
        encoded = encode_pairs(tokenizer, job.pairs, context)
        if job.validation:
            encode_pairs(tokenizer, job.validation, context)
    except DataError as error:
        what = f"{job.title}: {error.what}"
        raise DataError(what, value=error.value, allowed=error.allowed, next=error.next) from None
    return encoded


def check_budget(job: Job, encoded: Sequence[EncodedPair]) -> None:
    """Checks that a job's budget reaches for its longest pair.

    Raises:
        DataError: it does not.
    """
    longest = max(pair.tokens for pair in encoded)
    if job.config.tokens is not None and job.config.tokens < longest:
        raise DataError(
            f"{job.title}: the token budget does not reach for its longest training pair", value=job.config.tokens,
            allowed=f"at least {longest} tokens", next="raise training.tokens_total, or the share of this adapter",
        )  # fmt: skip


def result_line(job: Job, result: dict[str, Any]) -> str:
    """Returns what training an adapter came to, as one line."""
    exact = [f"{100 * row['exact_match']:.1f}%" for row in result["curve"]]
    right = f", held-out pairs exact: {' '.join(exact)}" if exact else ""
    return (
        f"{job.title}: {result['trained_parameters']:,} parameters, {result['training_tokens']:,} tokens in "
        f"{result['steps']:,} steps, {result['seconds']:.0f} s, loss {result['loss']:.4f}{right}"
    )
