"""A scripted engine: for Cairn's tests and for yours, with no model behind it.

    FakeEngine(["yes", "no"])                       replies in order
    FakeEngine({"Where is": "kitchen", "": "no"})   first key found in the prompt
    FakeEngine(lambda request: request.adapter)     any function of the request

It keeps every request in `.requests` and every score request in `.score_requests`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from cairn.engines.base import Capabilities, Generation, GenerationRequest, Score, ScoreRequest
from cairn.errors import EngineError, did_you_mean

__all__ = ["FakeEngine"]

Script = Sequence[str] | Mapping[str, str] | Callable[[GenerationRequest], str]
Scores = Sequence[float] | Mapping[str, float] | Callable[[ScoreRequest], float]


class FakeEngine:
    """Answers from a script. A token is a word between white space; every output ends by itself.

    Args:
        script: replies in order; or text found in the prompt -> reply, the first match counting; or a function.
        scores: log-probabilities in nats, in order; or by continuation (as given, or without white space around
            it); or a function. The highest score is not known to it: `Score.greedy` is True for 0.0 only.
        adapters: names it has.
        context_tokens: what its capabilities say.
    """

    name = "fake"

    def __init__(
        self,
        script: Script = (),
        *,
        scores: Scores = (),
        adapters: Sequence[str] = (),
        context_tokens: int | None = None,
    ) -> None:
        self._script, self._scores = script, scores
        self._adapters = list(adapters)
        self._replied = self._scored = 0
        self.requests: list[GenerationRequest] = []
        self.score_requests: list[ScoreRequest] = []
        self.batches: list[int] = []
        self.capabilities = Capabilities(
            logprobs=bool(scores), adapters=True, mixed_adapters=True, streaming=True, constraints=False,
            context_tokens=context_tokens, ensembles=True,
        )  # fmt: skip

    def adapters(self) -> list[str]:
        """Returns the names given."""
        return list(self._adapters)

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """Returns the script's reply to each request.

        Raises:
            EngineError: the script has no reply, or an adapter is not among the names given.
        """
        self.batches.append(len(requests))
        return [self._reply(request) for request in requests]

    def stream(self, request: GenerationRequest) -> Iterator[str]:
        """Yields the reply word by word."""
        words = self._reply(request).text.split(" ")
        for place, word in enumerate(words):
            yield word if place == 0 else " " + word

    def loglikelihood(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """Returns the scripted score of each request.

        Raises:
            EngineError: the script has no score, or an adapter is not among the names given.
        """
        return [self._score(request) for request in requests]

    def loglikelihood_rolling(self, texts: Sequence[str], adapter: str | None = None) -> list[Score]:
        """Returns the scripted score of each text, as a continuation of nothing."""
        return self.loglikelihood([ScoreRequest("", text, adapter) for text in texts])

    def close(self) -> None:
        """Does nothing: the requests stay readable."""

    def _reply(self, request: GenerationRequest) -> Generation:
        for adapter in (request.adapter, *request.ensemble):
            self._check(adapter)
        self.requests.append(request)
        if callable(self._script):
            text = self._script(request)
        elif isinstance(self._script, Mapping):
            found = [reply for key, reply in self._script.items() if key in request.prompt]
            if not found:
                raise EngineError(
                    "the script has no reply to this prompt", value=request.prompt, allowed=", ".join(self._script)
                )
            text = found[0]
        else:
            if self._replied >= len(self._script):
                raise EngineError(f"the script is at its end after {len(self._script)} replies", value=request.prompt)
            text = self._script[self._replied]
            self._replied += 1
        return Generation(text, len(request.prompt.split()), len(text.split()) + 1, "stop", 0.0)

    def _score(self, request: ScoreRequest) -> Score:
        self._check(request.adapter)
        self.score_requests.append(request)
        text = request.continuation
        if callable(self._scores):
            value = self._scores(request)
        elif isinstance(self._scores, Mapping):
            key = text if text in self._scores else text.strip()
            if key not in self._scores:
                raise EngineError("the script has no score for this", value=text, allowed=", ".join(self._scores))
            value = self._scores[key]
        else:
            if self._scored >= len(self._scores):
                raise EngineError(f"the script is at its end after {len(self._scores)} scores", value=text)
            value = self._scores[self._scored]
            self._scored += 1
        return Score(float(value), value == 0.0, len(text.split()))

    def _check(self, adapter: str | None) -> None:
        if adapter is not None and adapter not in self._adapters:
            raise EngineError(
                f"this adapter is not loaded{did_you_mean(adapter, self._adapters)}",
                value=adapter,
                allowed=", ".join(self._adapters) or "none, only the base",
            )
