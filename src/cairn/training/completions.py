"""Completions under a model being fine-tuned: which objective gives its loss, and how well it does on held-out pairs.

    batch ─▶ objectives.completion    head on the targets only: most of a tiny model's work is saved
         └─▶ objectives.next_token    head everywhere: for models that do more after the decoder than one matrix

Some models scale or cap their logits after the head. Whether the short way gives this model's own loss is tried
once, on real data, before training relies on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cairn.training.batching import IGNORED, EncodedPair, pad_pairs
from cairn.training.objectives import Objective, completion, next_token, target_logits

__all__ = ["choose_objective", "completion_scores", "greedy_text"]


@torch.no_grad()
def choose_objective(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Objective:
    """Returns `completion` if the head on the targets alone gives this model's own logits, else `next_token`.

    Args:
        model: a causal language model.
        batch: input_ids and labels [batch, seq], of real data.
    """
    if model.get_output_embeddings() is None:
        return next_token
    was_training = model.training
    model.eval()
    try:
        plain = _plain_logits(model, batch)
        short, _ = target_logits(model, batch)
    finally:
        model.train(was_training)
    if short.shape != plain.shape:
        return next_token
    size = plain.abs().max().clamp_min(1.0)
    tolerance = 1e-4 if next(model.parameters()).dtype == torch.float32 else 3e-2
    return completion if bool((short - plain).abs().max() <= tolerance * size) else next_token


def _plain_logits(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Tensor:
    return model(input_ids=batch["input_ids"], use_cache=False).logits[batch["labels"] != IGNORED]


@torch.no_grad()
def completion_scores(
    model: PreTrainedModel,
    pairs: Sequence[EncodedPair],
    *,
    batch_tokens: int,
    pad_id: int,
    objective: Objective = completion,
) -> dict[str, float]:
    """Scores held-out pairs.

    Args:
        model: in evaluation mode.
        pairs: encoded pairs.
        batch_tokens: padded tokens in a batch, at most.
        pad_id: id written into the padding.
        objective: what `choose_objective` gave.

    Returns:
        loss: mean over target tokens, in nats. exact_match: share of pairs whose completion greedy decoding would
        write; it equals the share whose every target is the likeliest token after the gold tokens before it, because
        greedy decoding leaves the gold text at the first place where that fails.
    """
    device = model.get_input_embeddings().weight.device
    order = sorted(range(len(pairs)), key=lambda place: len(pairs[place].ids))
    loss, targets_seen, exact = 0.0, 0, 0
    while order:
        width = pairs[order[-1]].tokens  # the longest that is left sets the width
        count = max(1, min(len(order), batch_tokens // width))
        chosen = [pairs[place] for place in order[-count:]]
        del order[-count:]
        batch = {key: torch.from_numpy(value).to(device) for key, value in pad_pairs(chosen, pad_id).items()}
        targets = batch["labels"][batch["labels"] != IGNORED]
        logits = (target_logits(model, batch)[0] if objective is completion else _plain_logits(model, batch)).float()
        loss += F.cross_entropy(logits, targets, reduction="sum").item()
        targets_seen += targets.numel()
        right = (logits.argmax(-1) == targets).split([pair.targets for pair in chosen])
        exact += sum(bool(row.all()) for row in right)
    return {"loss": loss / targets_seen, "exact_match": exact / len(pairs)}


@torch.no_grad()
def greedy_text(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], max_new_tokens: int
) -> str:
    """Returns what the model writes after prompt ids, greedily, up to its end marker."""
    ids = torch.tensor([list(prompt)], device=model.get_input_embeddings().weight.device)
    written = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_new_tokens, do_sample=False,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return tokenizer.decode(written[0, len(prompt) :], skip_special_tokens=True)
