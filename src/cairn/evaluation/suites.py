"""Two measures of a bare language model: bits per byte of text, and BLiMP's minimal pairs.

Bits per byte, because tokens of different tokenizers are not comparable, bytes are:

    document ─ ids ─┬ window 0  [bos a b c d]          scores a b c d
                    ├ window 1        [c d e f]        scores     e f      (read again: c d; stride 2, context 4)
                    └ window 2            [e f g]      scores         g    every token is scored exactly once
    bits per byte = -sum(log2 p) / UTF-8 bytes of the raw documents

Neither measure goes through lm-evaluation-harness. Its rolling tasks normalise the text and cut it into windows that
do not overlap; its BLiMP needs the hub, puts a space before every sentence, and counts a tie as right because the good
sentence comes first. A test holds our log-likelihoods equal to the harness's on the same text.

Source: BLiMP arXiv 1912.00582 (full-sentence method); ties: Papusoi and Nisioi 2025.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cairn.engines.base import Engine, require
from cairn.errors import DataError, InputError, TokenizerError
from cairn.evaluation.statistics import bootstrap_mean

__all__ = ["Window", "bits_per_byte", "blimp", "blimp_summary", "first_bytes", "token_windows"]

_BLOCK = 256  # windows sorted by length together: little padding, bounded memory
_LOGITS = 2**25  # logits held at once: 128 MB in fp32


@dataclass(frozen=True)
class Window:
    """A piece of a token sequence: reads ids[start : stop - 1], scores ids[score_from : stop]."""

    start: int
    stop: int
    score_from: int


def token_windows(length: int, context: int, stride: int) -> list[Window]:
    """Cuts a sequence so that every id but the first is scored exactly once.

    Args:
        length: ids, the beginning mark included.
        context: the most ids that one forward pass reads.
        stride: ids that each window after the first one scores, 1..context; the other context - stride are read again.

    Raises:
        InputError: context or stride is out of range.
    """
    if context < 1 or not 1 <= stride <= context:
        raise InputError(
            "no such window", value=f"context {context}, stride {stride}", allowed="1 <= stride <= context"
        )
    windows = []
    scored = 1
    while scored < length:
        stop = min(length, context + 1 if scored == 1 else scored + stride)
        windows.append(Window(max(0, stop - context - 1), stop, scored))
        scored = stop
    return windows


def first_bytes(documents: Iterable[str], limit: int | None) -> Iterator[str]:
    """Yields documents until `limit` UTF-8 bytes are reached; the last one is cut between two characters."""
    left = limit
    for document in documents:
        if left is None:
            yield document
            continue
        size = len(document.encode())
        if size >= left:
            cut = document.encode()[:left].decode(errors="ignore")
            if cut:
                yield cut
            return
        left -= size
        yield document


def bits_per_byte(
    engine: Engine,
    documents: Iterable[str],
    *,
    context: int | None = None,
    stride: int | None = None,
    batch_tokens: int = 8192,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Returns how many bits the engine's base model needs per raw byte of the documents.

    Args:
        engine: a torch engine (its model is read window by window), or any engine with log-probabilities (scored by
            its own `loglikelihood_rolling`, where context and stride cannot be chosen).
        documents: each one scored alone after a beginning mark; no end mark is scored. Empty ones are left out.
        context: ids read at once, by default what the model was made for, at most 1024.
        stride: ids scored by each window after the first, by default half the context.
        batch_tokens: ids in one forward pass; changes the speed, not the result.
        progress: told (bytes scored, tokens scored) after each batch.

    Returns:
        bits_per_byte, stderr (over windows, as if independent), bits_per_token, bytes, tokens, documents, context,
        stride, lossless (False: the tokenizer does not give the text back, so the figure flatters it), method.

    Raises:
        InputError: there is no text, or context or stride is out of range.
        TokenizerError: the tokenizer has neither a beginning nor an end mark to score the first token after.
        EngineError: the engine has no log-probabilities.
    """
    require(engine, "logprobs")
    tally = _Tally()
    if getattr(engine, "model", None) is None or getattr(engine, "tokenizer", None) is None:
        if context is not None or stride is not None:
            raise InputError("this engine chooses its own windows", value=engine.name, allowed="no context, no stride")
        _score_by_engine(engine, documents, tally, progress)
        context, method = engine.capabilities.context_tokens, "loglikelihood_rolling"
    else:
        longest = engine.capabilities.context_tokens
        context = min(longest or 1024, 1024) if context is None else context
        stride = max(1, context // 2) if stride is None else stride
        if longest is not None and context > longest:
            raise InputError("context is longer than the model's", value=context, allowed=f"1 to {longest}")
        _score_by_windows(engine, documents, tally, context, stride, batch_tokens, progress)
        method = "sliding window"
    if not tally.bytes or not tally.tokens:
        raise InputError("there is no text to score", value=f"{tally.documents} documents", allowed="at least one byte")
    bits = tally.nats / math.log(2)
    rate = tally.nats / tally.tokens
    spread = math.sqrt(math.fsum((nats - rate * count) ** 2 for nats, count in tally.windows))
    return {
        "bits_per_byte": bits / tally.bytes,
        "stderr": spread / math.log(2) / tally.bytes,
        "bits_per_token": bits / tally.tokens,
        "bytes": tally.bytes,
        "tokens": tally.tokens,
        "documents": tally.documents,
        "context": context,
        "stride": stride,
        "lossless": tally.lossless,
        "method": method,
    }


class _Tally:
    def __init__(self) -> None:
        self.windows: list[tuple[float, int]] = []  # nats, tokens
        self.bytes = self.tokens = self.documents = 0
        self.lossless: bool | None = None

    @property
    def nats(self) -> float:
        return math.fsum(nats for nats, _ in self.windows)

    def take(self, document: str) -> None:
        self.documents += 1
        self.bytes += len(document.encode())

    def score(self, nats: float, tokens: int) -> None:
        self.windows.append((nats, tokens))
        self.tokens += tokens


def _score_by_engine(
    engine: Engine, documents: Iterable[str], tally: _Tally, progress: Callable[[int, int], None] | None
) -> None:
    for document in documents:
        if not document:
            continue
        tally.take(document)
        score = engine.loglikelihood_rolling([document])[0]
        tally.score(-score.logprob, score.tokens)
        if progress:
            progress(tally.bytes, tally.tokens)


def _score_by_windows(
    engine: Any,
    documents: Iterable[str],
    tally: _Tally,
    context: int,
    stride: int,
    batch_tokens: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    tokenizer, model = engine.tokenizer, getattr(engine, "scoring_model", engine.model)
    mark = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if mark is None:
        raise TokenizerError("the tokenizer has neither bos nor eos", allowed="a mark to score the first token after")
    batch_tokens = min(batch_tokens, max(1, _LOGITS // model.config.vocab_size))
    tally.lossless = True
    block: list[_Piece] = []
    bytes_scored = 0.0

    def flush() -> None:
        nonlocal bytes_scored
        block.sort(key=lambda piece: len(piece.ids))
        for batch in _batches(block, batch_tokens):
            for piece, nats in zip(batch, _window_nats(model, batch), strict=True):
                tally.score(nats, piece.scored)
                bytes_scored += piece.bytes
            if progress:
                progress(round(bytes_scored), tally.tokens)
        block.clear()

    for document in documents:
        if not document:
            continue
        tally.take(document)
        ids = tokenizer(document, add_special_tokens=False, split_special_tokens=True, verbose=False).input_ids
        tally.lossless = tally.lossless and tokenizer.decode(ids, clean_up_tokenization_spaces=False) == document
        each = len(document.encode()) / max(len(ids), 1)
        ids = [mark, *ids]
        for window in token_windows(len(ids), context, stride):
            scored = window.stop - window.score_from
            block.append(_Piece(ids[window.start : window.stop], scored, scored * each))
            if len(block) == _BLOCK:
                flush()
    flush()


@dataclass(frozen=True)
class _Piece:
    ids: list[int]  # all but the last are read
    scored: int  # of these, from the end
    bytes: float  # of the document, for the progress only


def _batches(block: Sequence[_Piece], batch_tokens: int) -> Iterator[Sequence[_Piece]]:
    start = 0
    while start < len(block):
        stop = start + 1
        while stop < len(block) and (stop + 1 - start) * len(block[stop].ids) <= batch_tokens:
            stop += 1
        yield block[start:stop]
        start = stop


def _window_nats(model: Any, batch: Sequence[_Piece]) -> list[float]:
    """Returns -log p of the scored ids of each window, summed. Pads stand on the right, behind every scored id."""
    import torch

    width = max(len(piece.ids) for piece in batch) - 1
    inputs = torch.zeros(len(batch), width, dtype=torch.long)  # [batch, seq]
    targets = torch.full((len(batch), width), -100)
    for row, piece in enumerate(batch):
        read = len(piece.ids) - 1
        inputs[row, :read] = torch.tensor(piece.ids[:-1])
        targets[row, read - piece.scored : read] = torch.tensor(piece.ids[-piece.scored :])
    with torch.inference_mode():
        logits = model(input_ids=inputs.to(model.device), use_cache=False).logits  # [batch, seq, vocab]
        losses = torch.nn.functional.cross_entropy(
            logits.float().transpose(1, 2), targets.to(logits.device), ignore_index=-100, reduction="none"
        )  # [batch, seq]
    return losses.double().sum(dim=1).tolist()


def blimp(
    engine: Engine,
    rows: Iterable[Mapping[str, Any]],
    *,
    limit: int | None = None,
    adapter: str | None = None,
    done: Mapping[str, Mapping[str, Any]] | None = None,
    on_paradigm: Callable[[str, dict[str, Any]], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Returns how often the model finds the grammatical sentence of a pair likelier: the macro mean of the paradigms.

    A sentence's score is the log-likelihood of all its tokens after the beginning mark. A tie counts one half.

    Args:
        engine: any engine with log-probabilities.
        rows: objects with sentence_good, sentence_bad and UID (the paradigm), as BLiMP's own files have them.
        limit: the first so many pairs of each paradigm, for a quick look.
        adapter: score with an adapter; None is the base.
        done: paradigms scored earlier (to resume), as `on_paradigm` was given them.
        on_paradigm: told each paradigm's result as soon as it is there.
        progress: told (pairs scored, pairs in all).

    Returns:
        See `blimp_summary`.

    Raises:
        DataError: a row lacks a field, or there are no rows.
        EngineError: the engine has no log-probabilities.
    """
    require(engine, "logprobs")
    pairs = _pairs(rows, limit)
    results = {uid: dict((done or {})[uid]) for uid in pairs if uid in (done or {})}
    todo = [uid for uid in pairs if uid not in results]
    total = sum(len(pairs[uid]) for uid in pairs)
    scored = total - sum(len(pairs[uid]) for uid in todo)
    for start in range(0, len(todo), 4):  # some paradigms at once: long batches of equal length, and a short redo
        group = todo[start : start + 4]
        unique = {text for uid in group for pair in pairs[uid] for text in pair}
        texts = sorted(unique, key=lambda text: (len(text), text))
        scores = engine.loglikelihood_rolling(texts, adapter)
        logprob = {text: score.logprob for text, score in zip(texts, scores, strict=True)}
        for uid in group:
            gaps = [logprob[good] - logprob[bad] for good, bad in pairs[uid]]
            wins, ties = sum(gap > 0 for gap in gaps), sum(gap == 0 for gap in gaps)
            results[uid] = {"accuracy": (wins + 0.5 * ties) / len(gaps), "n": len(gaps), "ties": ties}
            if on_paradigm:
                on_paradigm(uid, results[uid])
            scored += len(gaps)
        if progress:
            progress(scored, total)
    return blimp_summary({uid: results[uid] for uid in pairs})


def _pairs(rows: Iterable[Mapping[str, Any]], limit: int | None) -> dict[str, list[tuple[str, str]]]:
    pairs: dict[str, list[tuple[str, str]]] = {}
    for number, row in enumerate(rows, start=1):
        missing = [key for key in ("sentence_good", "sentence_bad", "UID") if not isinstance(row.get(key), str)]
        if missing:
            raise DataError(
                f"row {number} is no minimal pair, it lacks {', '.join(missing)}",
                value=dict(row),
                allowed="sentence_good, sentence_bad and UID",
            )
        kept = pairs.setdefault(row["UID"], [])
        if limit is None or len(kept) < limit:
            kept.append((row["sentence_good"], row["sentence_bad"]))
    if not pairs:
        raise DataError("no minimal pairs", allowed="JSON lines with sentence_good, sentence_bad and UID")
    return pairs


def blimp_summary(paradigms: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the macro mean over paradigms with its uncertainty.

    Returns:
        accuracy: mean of the paradigms' accuracies, each counting the same whatever its number of pairs.
        stderr, ci95: for new pairs of these same paradigms.
        ci95_paradigms: for new paradigms (bootstrap over paradigms), the wider one.
        n, ties, paradigms (UID -> accuracy, n, ties).
    """
    accuracies = [result["accuracy"] for result in paradigms.values()]
    mean = sum(accuracies) / len(accuracies)
    variance = sum(r["accuracy"] * (1 - r["accuracy"]) / r["n"] for r in paradigms.values()) / len(paradigms) ** 2
    stderr = math.sqrt(variance)
    return {
        "accuracy": mean,
        "stderr": stderr,
        "ci95": [max(0.0, mean - 1.96 * stderr), min(1.0, mean + 1.96 * stderr)],
        "ci95_paradigms": list(bootstrap_mean(accuracies)),
        "n": sum(result["n"] for result in paradigms.values()),
        "ties": sum(result["ties"] for result in paradigms.values()),
        "paradigms": {uid: dict(result) for uid, result in paradigms.items()},
    }
