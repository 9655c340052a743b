"""Batches of prompt-completion pairs for fine-tuning: bucketed by length, right-padded, pure in the step.

    pairs ──encode──▶ ids + where the completion starts
      each epoch: jitter lengths ─▶ sort ─▶ cut at batch_tokens ─▶ shuffle the batches
      whole plan cut at the budget ─▶ batch(step) = input_ids, labels (shifted, -100 on prompt and padding)

    ids          bos  Needed  :   yes  eos
    input_ids    bos  Needed  :   yes           what the model runs over: the tokens that budgets count
    labels       -100 -100   yes  eos           what should follow each of them

The whole plan is laid down before the first step, so the number of steps (the schedule needs it) and the
number of real tokens are known exactly, and a resumed run asks for step n and gets the same batch n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from cairn.errors import DataError
from cairn.models.tokenization import completion_ids, prompt_ids

__all__ = ["IGNORED", "EncodedPair", "PairBatches", "encode_pairs", "pad_pairs"]

IGNORED = -100  # the label that no loss looks at: torch's and Hugging Face's convention
_JITTER = 0.1  # lengths are blurred by this share before sorting, so that epochs mix different neighbours


@dataclass(frozen=True)
class EncodedPair:
    """One training pair as ids.

    Args:
        ids: prompt ids followed by completion ids with their end marker, int64 [length].
        prompt_length: how many of `ids` belong to the prompt; the loss looks at the rest.
        unscored: further stretches [start, end) of `ids` that the loss does not look at: later turns of a user.
    """

    ids: np.ndarray
    prompt_length: int
    unscored: tuple[tuple[int, int], ...] = ()

    @property
    def tokens(self) -> int:
        """The tokens that the model runs over: all but the last, which is only predicted."""
        return len(self.ids) - 1

    @property
    def targets(self) -> int:
        """The tokens that the loss looks at."""
        return len(self.ids) - self.prompt_length - sum(end - start for start, end in self.unscored)


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[tuple[str, str]], context_tokens: int
) -> list[EncodedPair]:
    """Encodes pairs as serving will: prompt and completion apart, the end marker after the completion.

    Args:
        tokenizer: the base's tokenizer.
        pairs: (prompt, completion) texts.
        context_tokens: the longest sequence the base can take.

    Raises:
        DataError: there are no pairs, a prompt has no tokens, or a pair is longer than the context.
    """
    if not pairs:
        raise DataError("no training pairs", value=0, allowed="at least one (prompt, completion) pair")
    # A stage sees the same short text again and again: each distinct text is tokenised once.
    heads = {prompt: prompt_ids(tokenizer, prompt) for prompt in dict.fromkeys(prompt for prompt, _ in pairs)}
    tails = {text: completion_ids(tokenizer, text) for text in dict.fromkeys(text for _, text in pairs)}
    encoded = []
    for number, (prompt, completion) in enumerate(pairs):
        head, tail = heads[prompt], tails[completion]
        if not head:
            raise DataError(f"training pair {number} has a prompt without tokens", value=prompt)
        encoded.append(EncodedPair(np.array([*head, *tail], dtype=np.int64), len(head)))
    lengths = np.array([len(pair.ids) for pair in encoded])
    too_long = int((lengths > context_tokens).sum())
    if too_long:
        worst = int(lengths.argmax())
        raise DataError(
            f"{too_long} of {len(pairs)} training pairs are longer than the base's context of {context_tokens} "
            f"tokens; the longest has {lengths[worst]} and begins",
            value=pairs[worst][0][:80],
            allowed=f"at most {context_tokens} tokens for prompt and completion together",
            next="shorten the stage's input (split it, or read fewer fields), or take a base with a longer context",
        )
    return encoded


def pad_pairs(pairs: Sequence[EncodedPair], pad_id: int) -> dict[str, np.ndarray]:
    """Pads pairs on the right into one batch.

    Returns:
        input_ids and labels, both int64 [batch, seq]; labels[i] is what follows input_ids[i], -100 inside prompts
        and in the padding. Under a causal model no real token sees the padding to its right, so a batch needs no
        attention mask.
    """
    width = max(pair.tokens for pair in pairs)
    input_ids = np.full((len(pairs), width), pad_id, dtype=np.int64)
    labels = np.full((len(pairs), width), IGNORED, dtype=np.int64)
    for row, pair in enumerate(pairs):
        input_ids[row, : pair.tokens] = pair.ids[:-1]
        labels[row, pair.prompt_length - 1 : pair.tokens] = pair.ids[pair.prompt_length :]
        for start, end in pair.unscored:
            labels[row, start - 1 : end - 1] = IGNORED
    return {"input_ids": input_ids, "labels": labels}


class PairBatches:
    """The batches of one fine-tuning, planned whole.

    Args:
        pairs: encoded pairs.
        batch_tokens: real tokens per batch, at most (a single longer pair is a batch of its own).
        tokens: budget in real tokens: the last batch is cut so that it is never exceeded, and what stays unspent
            is less than the next pair. Give this or `steps`.
        steps: budget in batches.
        seed: orders pairs and batches.
        pad_id: id written into the padding.

    Raises:
        DataError: the budget does not reach for one pair.
    """

    def __init__(
        self,
        pairs: Sequence[EncodedPair],
        *,
        batch_tokens: int,
        tokens: int | None = None,
        steps: int | None = None,
        seed: int = 0,
        pad_id: int = 0,
    ) -> None:
        if (tokens is None) == (steps is None):
            raise ValueError(f"give tokens or steps, one of them; got tokens={tokens!r}, steps={steps!r}")
        self._pairs = list(pairs)
        self._pad_id = pad_id
        self._lengths = np.array([pair.tokens for pair in self._pairs])
        self._plan: list[np.ndarray] = []
        self.tokens = 0
        self.epochs = 0
        spent = False
        while not spent:
            for batch in self._epoch(seed, self.epochs, batch_tokens):
                fits = batch if tokens is None else batch[np.cumsum(self._lengths[batch]) <= tokens - self.tokens]
                if len(fits):
                    self._plan.append(fits)
                    self.tokens += int(self._lengths[fits].sum())
                spent = len(fits) < len(batch) or len(self._plan) == steps or self.tokens == tokens
                if spent:
                    break
            self.epochs += 1
        if not self._plan:
            raise DataError(
                "the token budget does not reach for one training pair",
                value=tokens,
                allowed=f"at least {int(self._lengths.min())} tokens",
                next="raise the budget or the adapter's share of it",
            )
        self.steps = len(self._plan)
        self.pairs_seen = sum(len(batch) for batch in self._plan)

    def _epoch(self, seed: int, epoch: int, batch_tokens: int) -> list[np.ndarray]:
        generator = np.random.default_rng([seed, epoch])
        blurred = self._lengths * (1 + _JITTER * generator.random(len(self._lengths)))
        batches, current, used = [], [], 0
        for index in np.argsort(blurred, kind="stable"):
            if current and used + self._lengths[index] > batch_tokens:
                batches.append(np.array(current))
                current, used = [], 0
            current.append(index)
            used += int(self._lengths[index])
        batches.append(np.array(current))
        return [batches[place] for place in generator.permutation(len(batches))]

    def __len__(self) -> int:
        return self.steps

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Returns batch `step` (0 is the first): input_ids and labels, int64 [batch, seq]."""
        return pad_pairs([self._pairs[index] for index in self._plan[step]], self._pad_id)

    def tokens_until(self, step: int) -> int:
        """Returns the real tokens in the batches before `step`."""
        return int(sum(self._lengths[batch].sum() for batch in self._plan[:step]))
