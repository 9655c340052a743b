"""A model as lm-evaluation-harness sees it: its `LM` over the engine seam.

    context, continuation ── tokenised together, then apart, as the harness does ── cut on the left ── engine's scores
    context, settings ────── Sampling ── cut on the left, output shortened ──────────────────────── engine's text

What does not fit the model's context is cut, the prompt of a choice exactly as the harness cuts it, and counted:
`counts` says how often, `cut` how much of which request. This module imports lm_eval: import it inside functions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

from lm_eval.api.model import LM

from cairn.engines.base import Engine, Generation, GenerationRequest, Sampling, Score, ScoreRequest, require
from cairn.errors import EngineError, InputError
from cairn.models.tokenization import completion_ids, prompt_ids

__all__ = ["GEN_TOKENS", "HarnessModel", "Progress", "ScoredIds", "cut_left", "in_chunks", "sampling_of",
           "score_sequences", "takes_ids"]  # fmt: skip

GEN_TOKENS = 256  # written at most where a task does not say, as the harness has it

Progress = Callable[[int, int], None]  # requests done, requests in all
_CHUNK = 512  # scores between two reports of progress
_TEXTS = 64  # the same for texts, which take longer
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # first one found counts


@dataclass(frozen=True)
class ScoredIds:
    """Token ids of which the last `scored` are scored."""

    ids: list[int]
    scored: int


def score_sequences(
    engine: Engine, sequences: Sequence[ScoredIds], adapter: str | None, progress: Progress | None = None
) -> list[Score]:
    """Scores the end of each sequence, equal ones once, the long ones first.

    Args:
        engine: one that takes token ids (`score_ids`).
        adapter: name of a loaded adapter; None is the base.
    """
    score = _ids_scorer(engine)
    if score is None:
        raise EngineError("this engine does not score token ids", value=engine.name, next="use the torch engine")
    unique = {(tuple(one.ids), one.scored): one for one in sequences}
    todo = sorted(unique.items(), key=lambda item: -len(item[1].ids))
    found: dict[tuple[tuple[int, ...], int], Score] = {}
    for start in range(0, len(todo), _CHUNK):
        chunk = todo[start : start + _CHUNK]
        made = score([adapter] * len(chunk), [one.ids for _, one in chunk], [one.scored for _, one in chunk])
        found.update(zip((key for key, _ in chunk), made, strict=True))
        if progress:
            progress(len(sequences) * len(found) // len(todo), len(sequences))
    return [found[tuple(one.ids), one.scored] for one in sequences]


def _ids_scorer(engine: Engine) -> Any:
    return getattr(engine, "score_ids", None) or getattr(engine, "_score", None)


def takes_ids(engine: Engine) -> bool:
    """Returns True if an engine has a tokenizer and scores token ids."""
    return getattr(engine, "tokenizer", None) is not None and _ids_scorer(engine) is not None


def sampling_of(settings: Mapping[str, Any], seed: int) -> Sampling:
    """Returns the sampling of a generation task's settings.

    Args:
        settings: `generation_kwargs` of the task.
        seed: of this request, if it samples.

    Raises:
        InputError: a setting that no engine of ours has: leaving it out would change the task in silence.
    """
    left = dict(settings)
    until = left.pop("until", None) or []
    lengths = [left.pop(name) for name in _LENGTHS if left.get(name) is not None]
    temperature = float(left.pop("temperature", 0.0) or 0.0)
    sample = left.pop("do_sample", None)
    sampling = Sampling(
        max_new_tokens=int(lengths[0]) if lengths else GEN_TOKENS,
        temperature=0.0 if sample is False else temperature,
        top_p=float(left.pop("top_p", 1.0)),
        top_k=int(left.pop("top_k", 0)),
        stop=tuple(text for text in ([until] if isinstance(until, str) else until) if text),
        seed=seed,
    )
    if left:
        raise InputError(
            "a task asks for generation settings that are not known here", value=sorted(left),
            allowed=f"until, do_sample, temperature, top_p, top_k, {_LENGTHS[0]}",
        )  # fmt: skip
    return sampling


def cut_left(tokenizer: Any, text: str, limit: int) -> str:
    """Returns the end of a text that is at most `limit` tokens, beginning mark included; cut between two tokens."""
    while (over := len(prompt_ids(tokenizer, text)) - limit) > 0:
        found = tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
        )
        starts = [start for start, _ in found["offset_mapping"]]
        later = [start for start in starts[min(over, len(starts) - 1) :] if start > 0]
        if not later:
            allowed = f"{limit} tokens"
            raise InputError("nothing of the prompt fits into the model's context", value=text, allowed=allowed)
        text = text[later[0] :]
    return text


class HarnessModel(LM):
    """A language model behind an engine.

    Args:
        engine: any engine with log-probabilities. One that takes token ids gives the same figures as the harness's own
            `hf` model; another one gets context and continuation as texts.
        adapter: name of a loaded adapter; None is the base.
        seed: of the first sample; equal requests get the seeds after it.
    """

    def __init__(self, engine: Engine, *, adapter: str | None = None, seed: int = 0) -> None:
        super().__init__()
        self.engine, self.adapter, self.seed = engine, adapter, seed
        self.progress: Progress | None = None
        self.counts: Counter[str] = Counter()
        self.cut: dict[tuple[str, str], int] = {}

    def begin(self, progress: Progress | None = None) -> None:
        """Forgets counts of an earlier task."""
        self.progress, self.counts, self.cut = progress, Counter(), {}

    def details(self, context: str, doc: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what the log of an item shows beside its answer."""
        return {}

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Returns (log-probability, greedy) of each continuation; see `lm_eval.api.model.LM`.

        A continuation without any token is scored as the end mark: the model ends here.

        Raises:
            InputError: a continuation alone is longer than the model's context.
            EngineError: the engine has no log-probabilities.
        """
        require(self.engine, "logprobs")
        pairs = [request.args for request in requests]
        if takes_ids(self.engine):
            encode = cache(partial(prompt_ids, self.engine.tokenizer))  # choices of one question share their context
            sequences = [self.fitted(*self._encoded(*pair, encode), pair) for pair in pairs]
            scores = score_sequences(self.engine, sequences, self.adapter, self.progress)
        else:
            texts = [ScoreRequest(context, continuation, self.adapter) for context, continuation in pairs]
            scores = in_chunks(self.engine.loglikelihood, texts, self.progress)
        return [(score.logprob, score.greedy) for score in scores]

    def _encoded(
        self, context: str, continuation: str, encode: Callable[[str], list[int]]
    ) -> tuple[list[int], list[int]]:
        """Tokenises a pair as the harness does: together, then apart where the context's ids end."""
        blank = len(context) - len(context.rstrip())
        if blank:  # white space belongs to the word after it
            context, continuation = context[:-blank], context[-blank:] + continuation
        if not context:
            return [self._first_id()], completion_ids(self.engine.tokenizer, continuation)[:-1]
        ids = encode(context)
        return ids, encode(context + continuation)[len(ids) :]

    def _first_id(self) -> int:
        tokenizer = self.engine.tokenizer
        return tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id

    def fitted(self, context: list[int], target: list[int], pair: tuple[str, str]) -> ScoredIds:
        """Returns context and target as one sequence that fits, what is cut off counted under `pair`."""
        limit = self.engine.capabilities.context_tokens
        if not target:
            self.counts["empty_continuations"] += 1
            target = completion_ids(self.engine.tokenizer, "")
        if limit is not None and len(target) > limit:
            raise InputError(
                f"a continuation of {len(target)} tokens is longer than the model's context", value=pair[1],
                allowed=f"{limit} tokens", next="take a base with a longer context",
            )  # fmt: skip
        ids = [*context, *target]
        cut = 0 if limit is None else max(0, len(ids) - (limit + 1))
        self._count_cut(cut, pair)
        return ScoredIds(ids[cut:], len(target))

    def _count_cut(self, cut: int, pair: tuple[str, str]) -> None:
        if cut:
            self.counts["contexts_cut"] += 1
            self.counts["tokens_cut"] += cut
            self.cut[pair] = cut

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Returns the log-probability of each whole text."""
        require(self.engine, "logprobs")
        texts = [request.args[0] for request in requests]
        scores = in_chunks(lambda some: self.engine.loglikelihood_rolling(some, self.adapter), texts, self.progress)
        return [score.logprob for score in scores]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Returns what the model writes after each context; equal requests that sample get different seeds."""
        seen: Counter[str] = Counter()
        asked = []
        for context, settings in (request.args for request in requests):
            key = f"{context}\0{settings}"
            asked.append(self._generation(context, settings, self.seed + seen[key]))
            seen[key] += 1
        made: list[Generation] = in_chunks(self.engine.generate, asked, self.progress, size=_TEXTS)
        return [one.text for one in made]

    def _generation(self, context: str, settings: Mapping[str, Any], seed: int) -> GenerationRequest:
        """Returns the request, its prompt cut on the left and its length shortened where the context is too short."""
        sampling = sampling_of(settings, seed)
        limit, tokenizer = self.engine.capabilities.context_tokens, getattr(self.engine, "tokenizer", None)
        if limit is not None and tokenizer is not None:
            wanted = sampling.max_new_tokens
            room = limit - (wanted if wanted < limit else limit // 2)
            before = len(prompt_ids(tokenizer, context))
            cut = cut_left(tokenizer, context, room)
            length = len(prompt_ids(tokenizer, cut))
            self._count_cut(before - length, (context, ""))
            context = cut
            if wanted > limit - length:
                self.counts["outputs_shortened"] += 1
                sampling = sampling.model_copy(update={"max_new_tokens": limit - length})
        return GenerationRequest(context, self.adapter, sampling)


def in_chunks(
    run: Callable[[Sequence[Any]], list[Any]], items: Sequence[Any], progress: Progress | None, *, size: int = _CHUNK
) -> list[Any]:
    """Runs a list in pieces, the long ones first, so that progress can be shown; returns results in order.

    Args:
        run: returns one result per item.
        items: texts or requests.
        progress: told (done, all) after each piece.
        size: items of a piece.
    """
    order = sorted(range(len(items)), key=lambda place: -_length(items[place]))
    found: list[Any] = [None] * len(items)
    for start in range(0, len(order), size):
        places = order[start : start + size]
        for place, result in zip(places, run([items[place] for place in places]), strict=True):
            found[place] = result
        if progress:
            progress(min(start + size, len(order)), len(order))
    return found


def _length(item: Any) -> int:
    if isinstance(item, str):
        return len(item)
    return len(getattr(item, "prompt", "") or getattr(item, "context", ""))
