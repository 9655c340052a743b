"""What early exit saves and what it costs: tokens per second beside bits per byte, threshold by threshold.

    text ─┬─ scored by the engine with exits ─────────────────────────────▶ bits per byte
          └─ passages: a beginning is the prompt, what follows is forced ──▶ tokens/s at batch 1, wall-clock

The speed is that of writing the text that is scored: each engine is held to the passage's own words, so that all make
the same tokens, and the exits that are taken are those of real text. (What a tiny model writes by itself repeats
itself, and is left early far more often.) Drafts change no output: they are timed on what the model writes greedily.
"""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cairn.engines.base import Constraint, Engine, GenerationRequest, Sampling
from cairn.errors import InputError

__all__ = ["forced", "greedy", "passages", "threshold_within", "writing_rates"]


def passages(documents: Sequence[str], count: int, *, prompt_words: int = 16, words: int = 48) -> list[tuple[str, str]]:
    """Returns prompts and the text that follows them, spread over the documents.

    Args:
        documents: texts.
        count: passages wanted at most.
        prompt_words, words: of the prompt, and of what follows.

    Raises:
        InputError: no document is long enough.
    """
    whole = prompt_words + words
    pieces = []
    for document in documents:
        found = list(re.finditer(r"\S+", document))
        for start in range(0, len(found) - whole + 1, whole):
            first, middle, last = found[start], found[start + prompt_words], found[start + whole - 1]
            prompt = document[first.start() : middle.start()].rstrip()
            pieces.append((prompt, document[middle.start() : last.end()]))
    if not pieces:
        raise InputError("no document is long enough to write along", allowed=f"at least {whole} words")
    step = max(1, len(pieces) // count)
    return pieces[::step][:count]


def forced(engine: Any, pairs: Sequence[tuple[str, str]]) -> list[GenerationRequest]:
    """Returns requests that write the given continuations; `engine` counts their tokens."""
    requests = []
    for prompt, text in pairs:
        room = Sampling(max_new_tokens=engine.count_tokens(" " + text) + 8)
        requests.append(GenerationRequest(prompt, constraint=Constraint((text,)), sampling=room))
    return requests


def greedy(pairs: Sequence[tuple[str, str]], new_tokens: int) -> list[GenerationRequest]:
    """Returns requests that continue the prompts freely."""
    return [GenerationRequest(prompt, sampling=Sampling(max_new_tokens=new_tokens)) for prompt, _ in pairs]


def writing_rates(
    sides: Mapping[str, Engine], requests: Sequence[GenerationRequest], turns: int,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Returns how fast engines write, one request at a time, the prompt's reading included.

    The engines take turns, so that a drift of the machine hits all; a turn before the first one warms up.

    Args:
        sides: name -> engine.
        requests: written by each, one after the other.
        turns: at least 1.
        progress: told (turns done, turns).

    Returns:
        name -> tokens_per_s (median of the turns), spread (lowest and highest), tokens (of one turn), texts.
    """
    rates: dict[str, list[float]] = {name: [] for name in sides}
    made: dict[str, Any] = {}
    for turn in range(turns + 1):
        for name, engine in sides.items():
            part = requests if turn else requests[:1]
            started = time.perf_counter()
            done = [engine.generate([request])[0] for request in part]
            seconds = time.perf_counter() - started
            if turn:
                rates[name].append(sum(one.new_tokens for one in done) / seconds)
                made[name] = done
        if progress:
            progress(turn, turns)
    return {
        name: {
            "tokens_per_s": statistics.median(found), "spread": [min(found), max(found)],
            "tokens": sum(one.new_tokens for one in made[name]), "texts": [one.text for one in made[name]],
        }
        for name, found in rates.items()
    }  # fmt: skip


def threshold_within(bits: Callable[[float], float], limit: float, *, halvings: int = 6) -> float:
    """Returns the lowest threshold found, by halving 0..1, at which `bits` (per byte) stays within `limit`.

    Args:
        bits: threshold -> bits per byte; falls as the threshold rises, nearly everywhere.
        limit: bits per byte that are allowed.
        halvings: how often the interval is halved.

    Returns:
        A threshold that was tried and kept the limit; 1.0 if none below did.
    """
    low, high = 0.0, 1.0
    for _ in range(halvings):
        middle = (low + high) / 2
        if bits(middle) <= limit:
            high = middle
        else:
            low = middle
    return high
