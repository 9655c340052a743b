"""The engine behind a URL: any server that speaks OpenAI's HTTP (hosted, vLLM, llama-server, Ollama).

    requests ── `concurrency` workers ── HttpService: waits, tries again ── generations, each told as it comes
                                              └── api "chat"         /chat/completions   the prompt is one message
                                                  api "completions"  /completions        the prompt as it is

Scores of given text exist only where the server echoes a prompt with its log-probabilities. Few do, and none in a chat,
so it is tried once at the start and `capabilities` says what came out.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, Literal, NamedTuple

from cairn.engines.base import Capabilities, Generation, GenerationRequest, Sampling, Score, ScoreRequest
from cairn.engines.http_service import HttpService, Patience
from cairn.errors import CairnError, ConfigError, EngineError, InputError, did_you_mean
from cairn.files import sha256_json

__all__ = ["OpenAIEngine"]

_PROBE = "The sun rises in the east"
_CHARACTERS_PER_TOKEN = 4  # only where a server does not say how many tokens it read and wrote

Done = Callable[[int, Generation | CairnError], None]


class OpenAIEngine:
    """A model behind an OpenAI-compatible URL.

    Args:
        url: of the API, such as "http://localhost:8000/v1".
        model: as the server calls it.
        api: "chat" sends the prompt as the user's message; "completions" sends it as it is.
        system: the system message of a chat.
        api_key_env: name of the environment variable with the key; the key itself is never printed.
        adapters: adapter name -> the model name under which the server has it (vLLM serves adapters so).
        concurrency: requests under way at once.
        timeout_s: for one whole response.
        retries: further tries after a rate limit, a server fault, a time-out, a lost connection or garbage.
        extra_body: put into every request, over what stands there; None takes a key out
            (`{max_tokens: null, max_completion_tokens: 500}`).
        context_tokens: of the model, if known.
        probe: ask at the start whether the server is up, has the model, and gives log-probabilities of a prompt.
        patience: how to wait between tries; replaced in tests.

    Raises:
        ConfigError: the address, the key or the model is wrong. EngineError: the server is not reached.
    """

    name = "openai"

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api: Literal["chat", "completions"] = "chat",
        system: str | None = None,
        api_key_env: str | None = None,
        adapters: Mapping[str, str] | None = None,
        concurrency: int = 8,
        timeout_s: float = 120.0,
        retries: int = 6,
        extra_body: Mapping[str, Any] | None = None,
        context_tokens: int | None = None,
        probe: bool = True,
        patience: Patience | None = None,
    ) -> None:
        if system is not None and api != "chat":
            raise ConfigError("api", ["a system message needs a chat, allowed: api chat, or no system message"])
        self._service = HttpService(
            url, api_key_env=api_key_env, timeout_s=timeout_s, retries=retries, connections=concurrency,
            patience=patience,
        )  # fmt: skip
        self.url, self.model, self.api, self.system = self._service.url, model, api, system
        self._adapters = dict(adapters or {})
        self._concurrency = concurrency
        self._extra = dict(extra_body or {})
        self._context = context_tokens
        self.tokens_estimated = False
        self._scores = False
        if probe:
            self._check_model()
            self._scores = api == "completions" and self._echoes()

    @property
    def capabilities(self) -> Capabilities:
        """What this engine may promise; `logprobs` is what the probe found."""
        return Capabilities(
            logprobs=self._scores, adapters=bool(self._adapters), mixed_adapters=True, streaming=True,
            constraints=False, context_tokens=self._context,
        )  # fmt: skip

    def adapters(self) -> list[str]:
        """Returns the names given."""
        return list(self._adapters)

    def close(self) -> None:
        """Closes the connections."""
        self._service.close()

    def generate(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """Returns one generation per request, in their order.

        Raises:
            InputError, ConfigError, EngineError: the first one that met a request; the other answers are lost. Use
                `generate_each` where answers cost money.
        """
        results: list[Generation | CairnError | None] = [None] * len(requests)

        def take(place: int, result: Generation | CairnError) -> None:
            results[place] = result

        def no_fault_yet(place: int) -> bool:
            return not any(isinstance(result, CairnError) for result in results)

        self.generate_each(requests, take, go=no_fault_yet)
        for result in results:
            if isinstance(result, CairnError):
                raise result
        return [result for result in results if isinstance(result, Generation)]

    def generate_each(
        self, requests: Sequence[GenerationRequest], done: Done, *, go: Callable[[int], bool] | None = None
    ) -> None:
        """Answers requests side by side and hands over each answer as soon as it is there.

        Interrupted (Ctrl-C), it sends nothing more, waits for the answers that are under way and hands them over.

        Args:
            requests: the prompts.
            done: told (place, answer or error) by a worker, one at a time.
            go: asked by a worker, one at a time, before it sends the request at a place; False leaves it out.

        Raises:
            what `done` or `go` raises.
        """
        lock, stopping = threading.Lock(), threading.Event()

        def work(place: int) -> None:
            with lock:
                if stopping.is_set() or (go is not None and not go(place)):
                    return
            try:
                result: Generation | CairnError = self._generate(requests[place], stopping)
            except CairnError as error:
                result = error
            with lock:
                done(place, result)

        with ThreadPoolExecutor(max(1, min(self._concurrency, len(requests)))) as workers:
            waiting = [workers.submit(work, place) for place in range(len(requests))]
            try:
                for future in as_completed(waiting):
                    future.result()
            except BaseException:
                stopping.set()
                for future in waiting:
                    future.cancel()
                raise

    def stream(self, request: GenerationRequest) -> Iterator[str]:
        """Yields the output of one request piece by piece, as the server sends it.

        Raises:
            InputError, ConfigError, EngineError: as `generate`; a stream that breaks is not begun again.
        """
        body = {**self._body(request), "stream": True}
        with self._service.lines(self._path, body) as lines:
            for line in lines:
                data = line.removeprefix("data:").strip()
                if not line.startswith("data:") or data == "[DONE]":
                    continue
                try:
                    choices = json.loads(data).get("choices") or [{}]
                    piece = choices[0].get("delta", choices[0])
                    text = piece.get("content", piece.get("text"))
                except (ValueError, AttributeError, LookupError, TypeError):
                    raise EngineError("the server streams garbage", value=data, next="try it again") from None
                if text:
                    yield text

    def loglikelihood(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """Returns the score of each continuation, in order.

        Raises:
            EngineError: the server gives no log-probabilities of a prompt, or cuts the text so that a token lies on
                both sides of the border.
            InputError: a continuation is empty.
        """
        self._need_scores()
        results = []
        for request in requests:
            if not request.continuation:
                raise InputError("nothing to score: the continuation is empty", value=request.continuation)
            text = request.context + request.continuation
            rows = self._echo(text, self._served(request.adapter))
            results.append(_score(rows, len(request.context), len(text), text))
        return results

    def loglikelihood_rolling(self, texts: Sequence[str], adapter: str | None = None) -> list[Score]:
        """Refuses: no such server scores the first token of a text, so the sum would be too good.

        Raises:
            EngineError: always.
        """
        raise EngineError(
            "a server does not score the first token of a text", value=self.url,
            next="use the torch engine for bits per byte",
        )  # fmt: skip

    @property
    def _path(self) -> str:
        return "/chat/completions" if self.api == "chat" else "/completions"

    def _generate(self, request: GenerationRequest, stopping: threading.Event) -> Generation:
        body = self._body(request)
        started = time.perf_counter()
        # A server that knows the header answers a request that it has seen before without a second computation.
        headers = {"Idempotency-Key": sha256_json([self.url, body])}
        text, usage, finish = self._service.post(
            self._path, body, _chat_text if self.api == "chat" else _completion_text, headers=headers, stopping=stopping
        )
        read, written = usage.get("prompt_tokens"), usage.get("completion_tokens")
        if not isinstance(read, int) or not isinstance(written, int):
            self.tokens_estimated = True
            read, written = (max(1, len(part) // _CHARACTERS_PER_TOKEN) for part in (request.prompt, text))
        return Generation(text, read, written, finish, time.perf_counter() - started)

    def _body(self, request: GenerationRequest) -> dict[str, Any]:
        if request.constraint is not None:
            raise EngineError("this engine cannot hold an output to choices", next="set constrain: false in the stage")
        if not request.prompt.strip():
            raise InputError("the prompt is empty", value=request.prompt, next="give some text")
        body: dict[str, Any] = {"model": self._served(request.adapter)}
        if self.api == "chat":
            system = [{"role": "system", "content": self.system}] if self.system else []
            body["messages"] = [*system, {"role": "user", "content": request.prompt}]
        else:
            body["prompt"] = request.prompt
        body |= _sampling_body(request.sampling) | self._extra
        return {key: value for key, value in body.items() if value is not None}

    def _served(self, adapter: str | None) -> str:
        if adapter is None:
            return self.model
        if adapter not in self._adapters:
            raise EngineError(
                f"this adapter is not known{did_you_mean(adapter, self._adapters)}", value=adapter,
                allowed=", ".join(self._adapters) or "none, only the base",
            )  # fmt: skip
        return self._adapters[adapter]

    def _check_model(self) -> None:
        """Asks for the list of models: it costs nothing, and says at once what is wrong."""
        try:
            rows = self._service.get("/models").get("data")
        except ConfigError as error:
            if "HTTP 404" in str(error) or "HTTP 405" in str(error):  # a server without the list
                return
            raise
        names = [row["id"] for row in rows if isinstance(row, dict) and "id" in row] if isinstance(rows, list) else []
        for name in [self.model, *self._adapters.values()]:
            if names and name not in names and f"{name}:latest" not in names:
                raise ConfigError(
                    self.url, [f"the server has no model {name!r}{did_you_mean(name, names)}"],
                    next=f"it has {', '.join(names[:8])}{' and others' if len(names) > 8 else ''}",
                )  # fmt: skip

    def _echoes(self) -> bool:
        """Finds out whether the server gives the log-probabilities of a prompt."""
        try:
            rows = self._echo(_PROBE, self.model)
        except (EngineError, InputError, ConfigError):
            return False
        return sum(row.logprob is not None for row in rows) > 1

    def _need_scores(self) -> None:
        if not self._scores:
            raise EngineError(
                "the server gives no log-probabilities of a prompt", value=self.url,
                next='use api "completions" on a server that echoes them (vLLM), or the torch engine',
            )  # fmt: skip

    def _echo(self, text: str, model: str) -> list[_Echoed]:
        """Returns the prompt's tokens with their scores."""
        body = {"model": model, "prompt": text, "max_tokens": 1, "temperature": 0, "echo": True, "logprobs": 1}
        rows = self._service.post("/completions", body, _echoed)
        return [row for row in rows if row.start < len(text)]


class _Echoed(NamedTuple):
    """A token of an echoed prompt: its first character, its log-probability, that of the likeliest token."""

    start: int
    logprob: float | None
    best: float | None


def _echoed(found: Mapping[str, Any]) -> list[_Echoed]:
    scores = found["choices"][0]["logprobs"]
    tops = scores.get("top_logprobs") or [None] * len(scores["tokens"])
    best = [max(top.values()) if top else None for top in tops]
    return [_Echoed(*row) for row in zip(scores["text_offset"], scores["token_logprobs"], best, strict=True)]


def _chat_text(found: Mapping[str, Any]) -> tuple[str, Mapping[str, Any], str]:
    """Returns text, token counts and how the output ended; a refusal or a tool call has no text."""
    choice = found["choices"][0]
    return _text(choice["message"]["content"], choice, found)


def _completion_text(found: Mapping[str, Any]) -> tuple[str, Mapping[str, Any], str]:
    choice = found["choices"][0]
    return _text(choice["text"], choice, found)


def _text(text: Any, choice: Mapping[str, Any], found: Mapping[str, Any]) -> tuple[str, Mapping[str, Any], str]:
    finish, usage = choice.get("finish_reason") or "stop", found.get("usage") or {}
    if not isinstance(text, str | None) or not isinstance(finish, str) or not isinstance(usage, dict):
        raise TypeError("not a completion")
    return text or "", usage, finish


def _sampling_body(sampling: Sampling) -> dict[str, Any]:
    """Returns the fields of a request; those that not every server knows only where they say something."""
    body: dict[str, Any] = {"max_tokens": sampling.max_new_tokens, "temperature": sampling.temperature}
    if sampling.temperature > 0:
        body["seed"] = sampling.seed
    if sampling.top_p < 1:
        body["top_p"] = sampling.top_p
    if sampling.top_k:
        body["top_k"] = sampling.top_k
    if sampling.stop:
        body["stop"] = list(sampling.stop)
    return body


def _score(rows: Sequence[_Echoed], start: int, end: int, text: str) -> Score:
    """Sums the tokens that lie in text[start:end]."""
    inside = [row for row in rows if start <= row.start < end]
    logprobs = [row.logprob for row in inside if row.logprob is not None]
    if start not in {row.start for row in rows} or len(logprobs) < len(inside):
        raise EngineError(
            "the server cuts the text so that no token begins where the scored part does", value=text[start:end],
            next="begin the continuation with its space, or use the torch engine",
        )  # fmt: skip
    greedy = all(row.best is not None and row.logprob is not None and row.logprob >= row.best for row in inside)
    return Score(sum(logprobs), greedy, len(inside))
