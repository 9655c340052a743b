"""The one seam between everything that asks for text and everything that makes it.

    evaluation ─┐                                   ┌─ torch_engine     transformers + PEFT in this process
    stacks ─────┼── Engine.generate / .loglikelihood ┼─ fake_engine      scripted, for tests
    teachers ───┘        (lists in, lists out)      └─ your own class   no base class needed, only these methods

Requests come in lists, so that an engine may batch them as it likes; results keep the order of the requests.
What an engine cannot do is said by its `capabilities` and checked before work starts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from pydantic import Field

from cairn.config import StrictModel
from cairn.errors import EngineError

__all__ = [
    "Capabilities",
    "Constraint",
    "Engine",
    "Generation",
    "GenerationRequest",
    "Sampling",
    "Score",
    "ScoreRequest",
    "require",
]


class Sampling(StrictModel):
    """How tokens are chosen. Immutable and hashable; change a copy with `model_copy(update={...})`.

    Args:
        max_new_tokens: the most tokens written, end mark included.
        temperature: 0 takes the likeliest token; above 0 samples from logits / temperature.
        top_p: sample from the smallest set of tokens whose probability reaches this, in (0, 1].
        top_k: sample from the k likeliest tokens; 0 for all.
        stop: texts that end the output; the text is cut before the first one found.
        seed: of this request alone: its sample does not depend on what else is in the batch.
    """

    max_new_tokens: int = Field(default=32, ge=1)
    temperature: float = Field(default=0.0, ge=0.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    top_k: int = Field(default=0, ge=0)
    stop: tuple[str, ...] = ()
    seed: int = Field(default=0, ge=0)


@dataclass(frozen=True)
class Constraint:
    """The output must be one of these field values (as `prompts.completion_text` writes them).

    Args:
        choices: the values allowed.
        then: what comes after them, part by part, a space between: one of the texts of each part.
    """

    choices: tuple[str, ...]
    then: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt.

    Args:
        prompt: text that does not end in white space (see `prompts.render`).
        adapter: name of a loaded adapter; None is the base.
        sampling: how tokens are chosen.
        constraint: what the output is held to, if the engine can.
        ensemble: names of loaded adapters that write together, each token chosen from the mean of their
            distributions; then `adapter` is None. For engines with the capability `ensembles`.
    """

    prompt: str
    adapter: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    constraint: Constraint | None = None
    ensemble: tuple[str, ...] = ()


@dataclass(frozen=True)
class Generation:
    """What came back.

    Args:
        text: the output, without prompt, end mark and stop text; with its leading space.
        prompt_tokens: tokens read, a beginning mark included.
        new_tokens: tokens written, the end mark included.
        finish: "stop" (end mark or stop text) or "length".
        seconds: wall time of this request's batch, divided among its requests.
    """

    text: str
    prompt_tokens: int
    new_tokens: int
    finish: str
    seconds: float


@dataclass(frozen=True)
class ScoreRequest:
    """A text to be scored after a context.

    Args:
        context: read, not scored.
        continuation: scored; begins with its space (see `prompts.completion_text`).
        adapter: name of a loaded adapter; None is the base.
    """

    context: str
    continuation: str
    adapter: str | None = None


@dataclass(frozen=True)
class Score:
    """The score of one text.

    Args:
        logprob: sum of the log-probabilities of its tokens, in nats.
        greedy: True if every token was the likeliest one.
        tokens: how many were scored.
    """

    logprob: float
    greedy: bool
    tokens: int


@dataclass(frozen=True)
class Capabilities:
    """What an engine may promise.

    Args:
        logprobs: exact scores of given text.
        adapters: adapters by name.
        mixed_adapters: several adapters in one list of requests.
        streaming: text piece by piece.
        constraints: honours `GenerationRequest.constraint`.
        context_tokens: prompt and output together; None if unknown.
        ensembles: honours `GenerationRequest.ensemble`.
        early_exit: easy tokens may be written before the last layer.
    """

    logprobs: bool
    adapters: bool
    mixed_adapters: bool
    streaming: bool
    constraints: bool
    context_tokens: int | None
    ensembles: bool = False
    early_exit: bool = False


@runtime_checkable
class Engine(Protocol):
    """Anything with these members is an engine."""

    @property
    def name(self) -> str: ...

    @property
    def capabilities(self) -> Capabilities: ...

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """Returns one generation per request, in their order; adapters may be mixed."""
        ...

    def stream(self, request: GenerationRequest) -> Iterator[str]:
        """Yields the output of one request piece by piece; joined, the pieces are `generate`'s text."""
        ...

    def loglikelihood(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """Returns the score of each continuation, in order."""
        ...

    def loglikelihood_rolling(self, texts: Sequence[str], adapter: str | None = None) -> list[Score]:
        """Returns the score of each whole text, however long, every token scored once."""
        ...

    def adapters(self) -> list[str]:
        """Returns the names of the loaded adapters."""
        ...

    def close(self) -> None:
        """Frees memory; the engine is not used afterwards."""
        ...


def require(engine: Engine, *needs: str) -> None:
    """Checks capabilities before work starts.

    Args:
        engine: the engine.
        needs: names of boolean fields of `Capabilities`.

    Raises:
        EngineError: one is missing, so that the gap is an error up front and never a wrong score.
    """
    missing = [need for need in needs if not getattr(engine.capabilities, need)]
    if missing:
        raise EngineError(
            f"engine {engine.name} cannot do what is needed",
            value=", ".join(missing),
            next="use the torch engine, which can",
        )
