"""Writing tokens: one lean loop for a batch of prompts, shared by `generate` and `stream`.

    rows (prompts, left-padded) ── prefill ──> logits ── choose ──> token of each row
                                                 ^                      │ end mark, stop text, length: row is done
                                                 └── one forward step <─┘ done rows leave batch and cache

transformers' `generate` spends milliseconds per call on options; tiny models answer in less. The tokens are the
same (a test says so), and every row has its own sampling, so that a batch may mix any requests.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedTokenizerBase

from cairn.engines.base import Sampling
from cairn.engines.cache import roomy_cache

__all__ = ["Row", "choose", "decode_steps", "row_text", "settled_text"]

_KEEP_SHARE = 0.8  # done rows leave once a fifth of the batch is done: leaving copies the cache of all others
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>\Z")

Forward = Callable[..., Any]


@dataclass
class Row:
    """One request inside a batch.

    Args:
        prompt: token ids.
        sampling: how tokens are chosen.
        choices: token ids of each output allowed, end mark included; None allows any.
        new: token ids written so far, end mark included.
        text: output so far, cut before a stop text.
        finish: "" while the row is running, then "stop" or "length".
    """

    prompt: list[int]
    sampling: Sampling
    choices: list[list[int]] | None = None
    new: list[int] = field(default_factory=list)
    text: str = ""
    finish: str = ""
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if self.sampling.temperature > 0:  # a generator of its own: the sample does not depend on its neighbours
            self.generator = torch.Generator().manual_seed(self.sampling.seed)


def row_text(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], ends: frozenset[int]) -> str:
    """Returns the text of written tokens, without the end mark."""
    kept = tokens[:-1] if tokens and tokens[-1] in ends else tokens
    return tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def settled_text(tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], ends: frozenset[int]) -> str:
    """Returns the text of a growing output that no further token can change.

    Byte tokens (<0xHH>) at the end are left out, because only the whole run of them says which characters they are,
    and so is half a character of a byte-level vocabulary.
    """
    kept = list(tokens)
    while kept and _BYTE.match(tokenizer.convert_ids_to_tokens(kept[-1])):
        kept.pop()
    return row_text(tokenizer, kept, ends).rstrip("\ufffd")


def choose(logits: Tensor, sampling: Sampling, generator: torch.Generator | None) -> int:
    """Returns the next token of one row.

    Args:
        logits: [vocab], float32 on the CPU; tokens that are not allowed hold -inf.
        sampling: temperature 0 takes the likeliest; else top_k, then top_p of the softmax of logits / temperature.
        generator: draws the sample.

    Source: top-k arXiv 1805.04833; top-p (nucleus) arXiv 1904.09751.
    """
    if sampling.temperature == 0:
        return int(logits.argmax())
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.numel():
        logits = logits.masked_fill(logits < logits.topk(sampling.top_k).values[-1], float("-inf"))
    probabilities = logits.softmax(-1)
    if sampling.top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        before = ordered.cumsum(-1) - ordered  # mass ahead of each token: the likeliest one always stays
        probabilities[order[before >= sampling.top_p]] = 0
    return int(torch.multinomial(probabilities, 1, generator=generator))


@torch.inference_mode()
def decode_steps(
    forward: Forward,
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    *,
    ends: frozenset[int],
    device: torch.device,
) -> Iterator[None]:
    """Writes all rows to their end; yields after each token, so that a reader may follow.

    Args:
        forward: takes input_ids, attention_mask, position_ids, past_key_values; returns the model's output, whose
            logits [rows, 1 or more, vocab] hold the last position last.
        config: of the model, for the cache.
        tokenizer: decodes the output.
        rows: changed in place; none may have an empty prompt.
        ends: ids that end an output.
        device: of the model.
    """
    width = max(len(row.prompt) for row in rows)
    pad = tokenizer.pad_token_id or 0
    padded = any(len(row.prompt) < width for row in rows)
    ids = torch.tensor([[pad] * (width - len(row.prompt)) + row.prompt for row in rows], device=device)
    starts = torch.tensor([width - len(row.prompt) for row in rows], device=device)
    mask = (torch.arange(width, device=device)[None] >= starts[:, None]).long() if padded else None
    positions = (torch.arange(width, device=device)[None] - starts[:, None]).clamp(min=0)
    last = (getattr(config, "max_position_embeddings", None) or 1 << 30) - 1
    cache = roomy_cache(config)
    running = list(rows)
    while True:
        logits = forward(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache).logits
        _write(running, logits[:, -1].float(), tokenizer, ends)
        yield
        alive = [place for place, row in enumerate(running) if not row.finish]
        if not alive:
            return
        positions = (positions[:, -1:] + 1).clamp(max=last)  # only a row that is done can come this far
        if len(alive) <= _KEEP_SHARE * len(running):
            running = [running[place] for place in alive]
            index = torch.tensor(alive, device=device)
            cache.batch_select_indices(index)
            positions = positions[index]
            mask = mask[index] if mask is not None else None
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(len(running), 1)], dim=1)
        ids = torch.tensor([[row.new[-1]] for row in running], device=device)  # [rows, 1]


def _write(rows: Sequence[Row], logits: Tensor, tokenizer: PreTrainedTokenizerBase, ends: frozenset[int]) -> None:
    """Adds one token to each row that is still running; logits [rows, vocab]."""
    for row, scores in zip(rows, logits, strict=True):
        if row.choices is not None and not row.finish:
            written = len(row.new)
            allowed = {choice[written] for choice in row.choices if choice[:written] == row.new}
            index = torch.tensor(sorted(allowed), device=scores.device)
            scores.copy_(torch.full_like(scores, float("-inf")).index_copy_(0, index, scores[index]))
    best = logits.argmax(-1).tolist()
    for row, scores, likeliest in zip(rows, logits, best, strict=True):
        if row.finish:
            continue
        sampled = row.sampling.temperature > 0
        row.new.append(choose(scores.cpu(), row.sampling, row.generator) if sampled else likeliest)
        if row.new[-1] in ends:
            row.finish = "stop"
        elif len(row.new) >= row.sampling.max_new_tokens:
            row.finish = "length"
        if row.finish or row.sampling.stop:
            row.text = row_text(tokenizer, row.new, ends)
        found = [place for place in (row.text.find(stop) for stop in row.sampling.stop if stop) if place >= 0]
        if found:
            row.text, row.finish = row.text[: min(found)], "stop"
