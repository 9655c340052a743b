"""Documents as token ids, many at once: what a shard is filled with.

    documents ──batches of a million characters──> tokenizers' threads ──> bos ids eos bos ids eos ...
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from cairn.errors import TokenizerError
from cairn.models.tokenization import prompt_ids, tokenizer_fingerprint

__all__ = ["MAX_BATCH_CHARS", "EncodedBatch", "Encoder"]

MAX_BATCH_CHARS = 1 << 20  # text handed to the tokenizer at once: enough to keep its threads busy


@dataclass(frozen=True)
class EncodedBatch:
    """Several documents as ids: `ids` flat [tokens], `lengths` and `sizes` (raw UTF-8 bytes) one per document."""

    ids: np.ndarray
    lengths: np.ndarray
    sizes: np.ndarray


class Encoder:
    """Turns documents into bos + ids + eos, many at once; text that spells a special token stays text.

    Args:
        tokenizer: fast tokenizer with an eos; bos is written if it puts one by itself.

    Raises:
        TokenizerError: the tokenizer is not a fast one, or has no eos.
    """

    def __init__(self, tokenizer: Any) -> None:
        try:
            self.fingerprint = tokenizer_fingerprint(tokenizer)
        except TypeError as error:
            raise TokenizerError(str(error)) from None
        if tokenizer.eos_token_id is None:
            raise TokenizerError("the tokenizer has no eos token: documents could not be told apart",
                                 next="set tokenizer.eos_token")
        # A copy, because these switches would otherwise change the caller's tokenizer.
        self._fast = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._fast.encode_special_tokens = True
        self._fast.no_padding()
        self._fast.no_truncation()
        self._before = prompt_ids(tokenizer, "")
        self._after = [tokenizer.eos_token_id]
        self.vocab_size = max(self._fast.get_vocab(with_added_tokens=True).values()) + 1
        self.dtype = np.dtype("<u2" if self.vocab_size <= 2**16 else "<u4")

    def batches(self, documents: Iterable[str], characters_each: int = MAX_BATCH_CHARS) -> Iterator[EncodedBatch]:
        """Yields the documents encoded, in order, in batches of so many characters; empty ones are left out."""
        waiting: list[str] = []
        characters = 0
        for text in documents:
            if not text:
                continue
            waiting.append(text)
            characters += len(text)
            if characters >= characters_each:
                yield self._encode(waiting)
                waiting, characters = [], 0
        if waiting:
            yield self._encode(waiting)

    def _encode(self, texts: list[str]) -> EncodedBatch:
        flat: list[int] = []
        lengths = np.empty(len(texts), np.int64)
        for row, encoding in enumerate(self._fast.encode_batch_fast(texts, add_special_tokens=False)):
            ids = encoding.ids
            flat += self._before
            flat += ids
            flat += self._after
            lengths[row] = len(ids) + len(self._before) + len(self._after)
        sizes = np.fromiter((len(text.encode("utf-8")) for text in texts), np.int64, len(texts))
        return EncodedBatch(np.array(flat, self.dtype), lengths, sizes)
