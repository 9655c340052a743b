"""Counting the tables of the "entropy" and "bpe" patch rules from text, before a model is trained.

    texts -> ids <bos> bytes <eos> ... -> for each hashed context of `table_order` bytes:
        entropy    how unsure a byte n-gram model is of the next byte
        bpe        how often a BPE token ends here; the BPE itself looks ahead, this guess from the past does not
    contexts, the highest first, cut until a patch has `stride` bytes on average -> one bit per context

The table is all that a model keeps, so a boundary costs one look-up, and neither model nor BPE is needed again.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from cairn.models.byte_config import BYTE_VOCABULARY, FIRST_BYTE, BytePooling
from cairn.models.byte_rules import context_hash, limited_ends
from cairn.models.tokenization import byte_ids, train_bpe

__all__ = ["fit_patch_rule", "needs_fitting"]

_SAMPLE_BYTES = 4_000_000
_SEARCH_BYTES = 1_000_000  # of them, on which the mean length is measured
_BOS, _EOS = 1, 2
_PRIOR = 1.0  # counts that the bytes' overall frequencies are worth in every context


def needs_fitting(model: PreTrainedModel) -> bool:
    """Returns True if a model's patch rule follows a table that is counted from text."""
    settings = getattr(getattr(model, "model", None), "settings", None)
    return isinstance(settings, BytePooling) and settings.fitted


@torch.no_grad()
def fit_patch_rule(model: PreTrainedModel, texts: Iterable[str], *, most_bytes: int = _SAMPLE_BYTES) -> dict[str, Any]:
    """Counts the table of a model's patch rule and writes it into the model; the same texts give the same table.

    Args:
        model: a CairnForCausalLM with rule "entropy" or "bpe".
        texts: training documents; as many are read as make `most_bytes`.
        most_bytes: size of the sample.

    Returns:
        rule, bytes, mean_patch (bytes per patch on the sample), contexts (seen), and for "bpe" precision and recall
        of the ends against the BPE's own.

    Raises:
        ValueError: the model's rule has no table, or the texts are empty.
    """
    if not needs_fitting(model):
        raise ValueError("this model's patch rule has no table. Allowed: byte_pooling.rule 'entropy' or 'bpe'")
    settings: BytePooling = model.model.settings
    kept = list(_head(texts, most_bytes))
    ids = torch.tensor([token for text in kept for token in (_BOS, *byte_ids(text.encode()), _EOS)])
    if len(ids) < 2:
        raise ValueError("the texts are empty. Allowed: at least one document with text in it")
    history = settings.table_order - 1
    padded = torch.cat((ids.new_zeros(history), ids))
    context = context_hash(padded[None], settings.table_order, settings.table_rows, len(ids))[0]  # [ids]
    ends = _bpe_ends(kept, settings.bpe_vocab) if settings.rule == "bpe" else None
    seen = torch.bincount(context, minlength=settings.table_rows)
    if ends is None:
        scores = _entropies(context, ids, seen)
    else:
        scores = torch.bincount(context, ends.double(), minlength=settings.table_rows) / seen.clamp(min=1)
    table, mean = _cut(scores, seen, context[:_SEARCH_BYTES], ids[:_SEARCH_BYTES], settings)
    model.model.rule.table.copy_(table.to(torch.uint8))
    found = {"rule": settings.rule, "bytes": sum(len(text.encode()) for text in kept), "mean_patch": mean,
             "contexts": int((seen > 0).sum())}  # fmt: skip
    if ends is not None:
        cut = table[context]
        right = int((cut & ends).sum())
        found |= {"precision": right / max(1, int(cut.sum())), "recall": right / max(1, int(ends.sum()))}
    return found


def _head(texts: Iterable[str], size: int) -> Iterable[str]:
    for text in texts:
        if not text:
            continue
        if len(text) > size:
            text = text[:size]
        yield text
        size -= len(text.encode())
        if size <= 0:
            return


def _entropies(context: Tensor, ids: Tensor, seen: Tensor) -> Tensor:
    """Returns the entropy in nats of the id after each context [rows]; the prior's for a context never seen.

    p(b | c) = (n(c, b) + k p0(b)) / (n(c) + k): the sum over all b without a table of all of them.
    """
    before, after, width = context[:-1], ids[1:], int(ids.max()) + 1
    pairs, counts = torch.unique(before * width + after, return_counts=True)
    row, counts = pairs // width, counts.double()
    prior = torch.bincount(after, minlength=width).double() / len(after)
    total = torch.bincount(before, minlength=len(seen)).double() + _PRIOR
    entropy_of_prior = -(prior[prior > 0] * prior[prior > 0].log()).sum()
    share = _PRIOR / total  # of the prior in each context
    known = share[row] * prior[pairs % width]  # what the prior gives to the pairs that were seen
    full = counts / total[row] + known
    change = -full * full.log() + known * known.log()
    return share * (entropy_of_prior - share.log()) + torch.zeros_like(share).index_add(0, row, change)


def _bpe_ends(texts: list[str], vocab_size: int) -> Tensor:
    """Returns after which ids of the stream a token of a BPE ends that was trained on the texts, bool."""
    fast = train_bpe(texts, vocab_size).backend_tokenizer
    fast.encode_special_tokens = True  # a text that spells a mark is text
    size = torch.ones(fast.get_vocab_size(), dtype=torch.long)
    for token, index in fast.get_vocab().items():
        if index >= BYTE_VOCABULARY:  # below are marks and single bytes
            size[index] = len(token.encode())
    lengths, mark = [], torch.ones(1, dtype=torch.long)
    for encoding in fast.encode_batch_fast(texts, add_special_tokens=False):
        lengths += [mark, size[encoding.ids], mark]
    places = torch.cat(lengths).cumsum(0)
    ends = torch.zeros(int(places[-1]), dtype=torch.bool)
    ends[places - 1] = True
    return ends


def _cut(scores: Tensor, seen: Tensor, context: Tensor, ids: Tensor, settings: BytePooling) -> tuple[Tensor, float]:
    """Returns which contexts end a patch [rows], as many of the highest as give `stride` bytes each, and the mean."""
    order = torch.argsort(scores, descending=True, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order))
    marks, real = ids < FIRST_BYTE, torch.ones_like(ids, dtype=torch.bool)
    longest = settings.max_patch or settings.stride

    def mean(chosen: int) -> float:
        raw = (rank[context] < chosen) | marks
        ends, _ = limited_ends(raw[None], real[None], ids.new_zeros(1), longest)
        return len(ids) / max(1, int(ends.sum()))

    low, high = 0, len(order)  # patches get shorter with every context that cuts
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if mean(middle) <= settings.stride else (middle + 1, high)
    table = rank < low
    return table & (seen > 0) if settings.rule == "bpe" else table, mean(low)
