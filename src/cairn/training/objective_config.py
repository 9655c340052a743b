"""Which objective a pretraining has: the recipe's section `objective`, and the object that the loop is given.

    objective: {kind: next_token}                                       the default
               {kind: multi_token, ahead: 2, curriculum: forward}       multi_token.py
               {kind: hybrid, masked_share: 0.5}                        hybrid.py
               {kind: next_thought, span: 8}                            next_thought.py
               {kind: distill, teacher: FOLDER, divergence: reverse}    distill_logits.py
               {kind: early_exit, weight: 0.5, dropout: 0.1}            exit_objective.py

A new objective is a configuration with a `kind` of its own, a branch of `build_objective`, and nothing in the loop.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from transformers import PreTrainedTokenizerBase

from cairn.config import StrictModel
from cairn.errors import ConfigError, did_you_mean
from cairn.training.distill_logits import Distill, DistillLogitsConfig
from cairn.training.exit_objective import EarlyExitObjective, EarlyExitObjectiveConfig
from cairn.training.hybrid import Hybrid, HybridConfig
from cairn.training.multi_token import MultiToken, MultiTokenConfig
from cairn.training.next_thought import NextThought, NextThoughtConfig
from cairn.training.objectives import NextToken, PretrainObjective, WithModelLoss

__all__ = ["NextTokenConfig", "ObjectiveConfig", "build_objective", "objective_faults"]


class NextTokenConfig(StrictModel):
    """Every token from those before it; nothing to set."""

    kind: Literal["next_token"] = "next_token"


ObjectiveConfig = Annotated[
    NextTokenConfig | MultiTokenConfig | HybridConfig | NextThoughtConfig | DistillLogitsConfig
    | EarlyExitObjectiveConfig,
    Field(discriminator="kind"),
]


def objective_faults(config: Any, *, shortest_row: int, batch_rows: int, changes: dict[str, Any]) -> list[str]:
    """Returns what in an objective contradicts the rest of its recipe, before anything is read.

    Args:
        config: one of the kinds above.
        shortest_row: tokens of the shortest row in the training.
        batch_rows: of the global batch.
        changes: what the recipe changes in the model's configuration.
    """
    if isinstance(config, MultiTokenConfig | NextThoughtConfig):
        return config.faults(shortest_row)
    if isinstance(config, EarlyExitObjectiveConfig):
        return config.faults(changes)
    if isinstance(config, HybridConfig):
        faults = config.faults(batch_rows)
        if changes.get("byte_pooling"):
            faults.append("objective.kind: hybrid with model.changes.byte_pooling, allowed: a model of tokens, because "
                          "pooled bytes are always read from left to right")
        return faults
    return []


def build_objective(
    config: Any, tokenizer: PreTrainedTokenizerBase, *, hidden_size: int, steps: int, batch_rows: int,
    sequence_length: int, seed: int, model_config: Any = None,
) -> PretrainObjective:
    """Returns the objective of a recipe; its heads, if it has any, are drawn from torch's random state.

    Args:
        config: one of the kinds above.
        tokenizer: of the run.
        hidden_size: of the model's final states.
        steps, batch_rows, sequence_length, seed: of the recipe.
        model_config: of the model, for objectives that reach into it.

    Raises:
        ConfigError: the tokenizer lacks a token that the objective needs.
    """
    made: PretrainObjective = NextToken()
    if isinstance(config, MultiTokenConfig):
        made = MultiToken(config, hidden_size, steps)
    elif isinstance(config, NextThoughtConfig):
        made = NextThought(config, hidden_size, tokenizer.eos_token_id)
    elif isinstance(config, EarlyExitObjectiveConfig):
        made = EarlyExitObjective(config, model_config, steps=steps, seed=seed)
    elif isinstance(config, DistillLogitsConfig):
        made = Distill(config, len(tokenizer), steps)
    elif isinstance(config, HybridConfig):
        made = Hybrid(
            config, mask_id=_mask_id(config, tokenizer), vocab_size=len(tokenizer), steps=steps,
            batch_rows=batch_rows, sequence_length=sequence_length, seed=seed,
        )
    return WithModelLoss(made) if getattr(model_config, "byte_pooling", None) else made


def _mask_id(config: HybridConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    if config.mask_token is not None:
        known = tokenizer.get_vocab()
        if config.mask_token not in known:
            near = did_you_mean(config.mask_token, known)
            raise ConfigError("objective.mask_token", [f"{config.mask_token!r} is no token of this tokenizer{near}"])
        return int(known[config.mask_token])
    pad = tokenizer.pad_token_id
    if pad is None or pad in (tokenizer.eos_token_id, tokenizer.bos_token_id):
        raise ConfigError(
            "objective.mask_token",
            ["this tokenizer has no padding token of its own to stand for hidden tokens, allowed: a token of the "
             "tokenizer that the text does not use"],
        )
    return int(pad)
