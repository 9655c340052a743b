"""An engine in which some adapters are the bare base: one stage of a stack without what it learned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from cairn.engines.base import Capabilities, Engine, Generation, GenerationRequest, Score, ScoreRequest

__all__ = ["BareStages"]


class BareStages:
    """Passes every request on, those for the named adapters to the base.

    Args:
        engine: has the other adapters.
        names: adapters that are the base.
    """

    name = "bare stages"

    def __init__(self, engine: Engine, names: Sequence[str]) -> None:
        self._engine, self._names = engine, list(names)
        self.config = getattr(engine, "config", None)

    @property
    def capabilities(self) -> Capabilities:
        """What the engine within may promise."""
        return self._engine.capabilities

    def adapters(self) -> list[str]:
        """Returns the adapters of the engine within, and the names given."""
        return [*self._engine.adapters(), *self._names]

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """Returns what the engine within writes."""
        return self._engine.generate([self._bare(request) for request in requests])

    def stream(self, request: GenerationRequest) -> Iterator[str]:
        """Yields what the engine within writes."""
        return self._engine.stream(self._bare(request))

    def loglikelihood(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """Returns the scores of the engine within."""
        return self._engine.loglikelihood([self._bare(request) for request in requests])

    def loglikelihood_rolling(self, texts: Sequence[str], adapter: str | None = None) -> list[Score]:
        """Returns the scores of the engine within."""
        return self._engine.loglikelihood_rolling(texts, None if adapter in self._names else adapter)

    def close(self) -> None:
        """Closes the engine within."""
        self._engine.close()

    def _bare(self, request: Any) -> Any:
        return replace(request, adapter=None) if request.adapter in self._names else request
