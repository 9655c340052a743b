"""Writing tokens: one lean loop for a batch of prompts, shared by `generate` and `stream`.

    rows (prompts, left-padded) ── prefill ──> logits ── choose ──> token of each row, and what a constraint forces
                                                 ^                      │ end mark, stop text, length: row is done
                                                 └── one forward step <─┘ done rows leave batch and cache

What all prompts of a batch begin with (solved examples, an instruction) is read once. A single row that is held to
parts is drafted: the step also reads the guess that the next parts are answered as the last one was, and what the model
would have written otherwise is taken back. For a tiny model a step over ten tokens takes little longer than over one.

Several models may write together: then each keeps a cache of its own, and the token is chosen from the mean of their
distributions.

transformers' `generate` spends milliseconds per call on options; tiny models answer in less. The tokens are the
same (a test says so), and every row has its own sampling, so that a batch may mix any requests.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from cairn.engines.base import Sampling
from cairn.engines.cache import RoomyLayer, roomy_cache
from cairn.engines.held import Held

__all__ = [
    "KEEP_SHARE", "Row", "choose", "decode_steps", "end_ids", "mean_logits", "row_text", "settle", "settled_text",
    "shared_prefix", "write", "write_forced",
]

KEEP_SHARE = 0.8  # done rows leave once a fifth of the batch is done: leaving copies the cache of all others
DRAFT_PARTS = 3  # parts of a constraint that are guessed ahead
_WORTH_SHARING = 32  # tokens that all prompts of a batch begin with (solved examples, an instruction)
_BYTE = re.compile(r"<0x[0-9A-Fa-f]{2}>\Z")

Forward = Callable[..., Any]


@dataclass
class Row:
    """One request inside a batch.

    Args:
        prompt: token ids.
        sampling: how tokens are chosen.
        held: what the output is held to; None allows any.
        new: token ids written so far, end mark included.
        text: output so far, cut before a stop text.
        finish: "" while the row is running, then "stop" or "length".
    """

    prompt: list[int]
    sampling: Sampling
    held: Held | None = None
    new: list[int] = field(default_factory=list)
    text: str = ""
    finish: str = ""
    generator: torch.Generator | None = None

    def __post_init__(self) -> None:
        if self.sampling.temperature > 0:  # a generator of its own: the sample does not depend on its neighbours
            self.generator = torch.Generator().manual_seed(self.sampling.seed)


def end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Returns the ids that end an output: the tokenizer's and those of the model's generation settings."""
    declared = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = list(declared) if isinstance(declared, list) else [declared]
    return frozenset(int(token) for token in [*ids, tokenizer.eos_token_id] if token is not None)


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


def mean_logits(logits: Sequence[Tensor]) -> Tensor:
    """Returns logits [rows, vocab] whose softmax is the mean of the softmaxes; of one model, its own logits."""
    if len(logits) == 1:
        return logits[0]
    return torch.stack([one.log_softmax(-1) for one in logits]).logsumexp(0) - math.log(len(logits))


def shared_prefix(prompts: Sequence[Sequence[int]]) -> int:
    """Returns how many first tokens of a batch are worth reading once for all its prompts; 0 if that saves little.

    At least one token of each prompt is left, because its logits are wanted.
    """
    first, last = min(prompts), max(prompts)  # in order of the alphabet: what these two share, all share
    most = min(len(first), len(last)) - 1
    count = next((place for place in range(most) if first[place] != last[place]), most)
    count = min(count, min(len(prompt) for prompt in prompts) - 1)
    return count if len(prompts) > 1 and count >= _WORTH_SHARING else 0


@torch.inference_mode()
def decode_steps(
    members: Sequence[Forward],
    config: PretrainedConfig,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[Row],
    *,
    ends: frozenset[int],
    device: torch.device,
) -> Iterator[None]:
    """Writes all rows to their end; yields after each step, so that a reader may follow.

    Args:
        members: models that write together, mostly one; each takes input_ids, attention_mask, position_ids,
            past_key_values and logits_to_keep, and returns the model's output, whose logits [rows, so many or more,
            vocab] hold the last position last.
        config: of the model, for the cache.
        tokenizer: decodes the output.
        rows: changed in place; none may have an empty prompt.
        ends: ids that end an output.
        device: of the model.
    """
    begun = write_forced(rows, tokenizer, ends)
    if all(row.finish for row in rows):
        yield
        return
    shared = shared_prefix([row.prompt for row in rows])
    caches = [roomy_cache(config) for _ in members]
    if shared:
        head = torch.tensor([rows[0].prompt[:shared]], device=device)
        for one, cache in zip(members, caches, strict=True):
            one(input_ids=head, attention_mask=None, position_ids=torch.arange(shared, device=device)[None],
                past_key_values=cache, logits_to_keep=1)  # fmt: skip
            cache.batch_repeat_interleave(len(rows))
    prompts = [[*row.prompt[shared:], *row.new[:begun]] for row in rows]
    width = max(len(prompt) for prompt in prompts)
    pad = tokenizer.pad_token_id or 0
    padded = any(len(prompt) < width for prompt in prompts)
    ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts], device=device)
    starts = torch.tensor([width - len(prompt) for prompt in prompts], device=device)
    mask = (torch.arange(width, device=device)[None] >= starts[:, None]).long() if padded else None
    if mask is not None:
        mask = torch.cat([mask.new_ones(len(rows), shared), mask], dim=1)  # [rows, shared + width]
    positions = shared + (torch.arange(width, device=device)[None] - starts[:, None]).clamp(min=0)
    last = (getattr(config, "max_position_embeddings", None) or 1 << 30) - 1
    running, draft = list(rows), list[int]()
    while True:
        inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions, "logits_to_keep": 1 + len(draft)}
        made = [one(**inputs, past_key_values=cache).logits for one, cache in zip(members, caches, strict=True)]
        for place in range(-1 - len(draft), 0):
            write(running, mean_logits([logits[:, place].float() for logits in made]), tokenizer, ends)
            wrong = -1 - place  # tokens of the draft after this place
            if wrong and (running[0].finish or running[0].new[-1] != draft[-wrong]):
                for cache in caches:
                    cache.crop(-wrong)
                positions = positions[:, :-wrong]
                break
        unread = 1 + write_forced(running, tokenizer, ends)
        yield
        alive = [place for place, row in enumerate(running) if not row.finish]
        if not alive:
            return
        draft = _draft(running, caches) if mask is None else []
        following = torch.arange(1, unread + len(draft) + 1, device=device)
        positions = (positions[:, -1:] + following).clamp(max=last)  # only a row that is done can come this far
        if len(alive) <= KEEP_SHARE * len(running):
            running = [running[place] for place in alive]
            index = torch.tensor(alive, device=device)
            for cache in caches:
                cache.batch_select_indices(index)
            positions = positions[index]
            mask = mask[index] if mask is not None else None
        if mask is not None:
            mask = torch.cat([mask, mask.new_ones(len(running), unread)], dim=1)
        ids = torch.tensor([[*_last(row.new, unread), *draft] for row in running], device=device)  # [rows, new]


def write(rows: Sequence[Row], logits: Tensor, tokenizer: PreTrainedTokenizerBase, ends: frozenset[int]) -> None:
    """Adds one token to each row that is still running; logits [rows, vocab]."""
    best = logits.argmax(-1).tolist()
    allowed = {
        place: sorted(row.held.allowed(row.new)) for place, row in enumerate(rows) if row.held and not row.finish
    }
    pairs = [(place, token) for place, tokens in allowed.items() for token in tokens]
    if pairs:
        places, tokens = torch.tensor(pairs, device=logits.device).T
        held = torch.full_like(logits, float("-inf"))
        held[places, tokens] = logits[places, tokens]
        for place, likeliest in zip(allowed, held[list(allowed)].argmax(-1).tolist(), strict=True):
            best[place] = likeliest
    for place, row in enumerate(rows):
        if row.finish:
            continue
        if row.sampling.temperature > 0:
            scores = (held if place in allowed else logits)[place]
            best[place] = choose(scores.cpu(), row.sampling, row.generator)
        settle(row, best[place], tokenizer, ends)


def write_forced(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, ends: frozenset[int]) -> int:
    """Adds what a constraint leaves no choice about, so that one forward step may read it together.

    A row whose rest is forced is written to its end; the others get equally many tokens each: this number is returned.
    """
    ahead = {id(row): row.held.forced(row.new) if row.held else [] for row in rows if not row.finish}
    open_ = [tokens for tokens in ahead.values() if not tokens or tokens[-1] not in ends]
    most = min((len(tokens) for tokens in open_), default=0)
    for row in rows:
        tokens = ahead.get(id(row), [])
        for token in tokens if tokens and tokens[-1] in ends else tokens[:most]:
            if not row.finish:
                settle(row, token, tokenizer, ends)
    return most


def _draft(rows: Sequence[Row], caches: Sequence[DynamicCache]) -> list[int]:
    """Returns the tokens that a single greedy row may go on with, if what is wrong of them can be taken back."""
    row = rows[0]
    if len(rows) > 1 or row.held is None or row.sampling.temperature > 0 or row.sampling.stop:
        return []
    if not all(type(layer) is RoomyLayer for cache in caches for layer in cache.layers):
        return []
    room = row.sampling.max_new_tokens - len(row.new) - 1
    return row.held.guess(row.new, DRAFT_PARTS)[: max(0, room)]


def _last(tokens: Sequence[int], count: int) -> list[int]:
    """Returns the last tokens; of a row that was done before it had as many, its first one again and again."""
    return [*[tokens[0]] * (count - len(tokens)), *tokens[-count:]]


def settle(row: Row, token: int, tokenizer: PreTrainedTokenizerBase, ends: frozenset[int]) -> None:
    """Adds a token to a row, and finishes the row where an end mark, its length or a stop text is reached."""
    row.new.append(token)
    if token in ends:
        row.finish = "stop"
    elif len(row.new) >= row.sampling.max_new_tokens:
        row.finish = "length"
    if row.finish or row.sampling.stop:
        row.text = row_text(tokenizer, row.new, ends)
    found = [place for place in (row.text.find(stop) for stop in row.sampling.stop if stop) if place >= 0]
    if found:
        row.text, row.finish = row.text[: min(found)], "stop"
