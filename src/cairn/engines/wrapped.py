"""An engine around another: the base of those that watch, remember or change what passes through.

    class Counting(WrappedEngine):
        def generate(self, requests):
            self.seen += len(requests)
            return super().generate(requests)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from cairn.engines.base import Capabilities, Engine, Generation, GenerationRequest, Score, ScoreRequest

__all__ = ["WrappedEngine"]


class WrappedEngine:
    """Passes everything on, attributes that the seam does not name (config, count_tokens) included.

    Args:
        engine: the engine within.
    """

    name = "wrapped"

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __getattr__(self, name: str) -> Any:
        if name == "engine":  # not made yet: asking within would never end
            raise AttributeError(name)
        return getattr(self.engine, name)

    @property
    def capabilities(self) -> Capabilities:
        """What the engine within may promise."""
        return self.engine.capabilities

    def adapters(self) -> list[str]:
        """Returns the adapters of the engine within."""
        return self.engine.adapters()

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """Returns what the engine within writes."""
        return self.engine.generate(requests)

    def stream(self, request: GenerationRequest) -> Iterator[str]:
        """Yields what the engine within writes."""
        return self.engine.stream(request)

    def loglikelihood(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """Returns the scores of the engine within."""
        return self.engine.loglikelihood(requests)

    def loglikelihood_rolling(self, texts: Sequence[str], adapter: str | None = None) -> list[Score]:
        """Returns the scores of the engine within."""
        return self.engine.loglikelihood_rolling(texts, adapter)

    def close(self) -> None:
        """Closes the engine within."""
        self.engine.close()
