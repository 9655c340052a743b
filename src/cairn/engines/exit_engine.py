"""The engine of this process, answering from a model's exits.

    TorchEngine ── ExitEngine   writes   confidence: exit_steps     speculative: draft_steps (one row), else plain
                                scores   confidence: each token under its first sure exit     speculative: full model

What it scores is what it writes: under a threshold, bits per byte, BLiMP and choices are those of the exits. A draft
changes no output, so speculative scores are the full model's. Drafts pay for one row at a time; batches of more rows,
sampled outputs and outputs held to choices are written plainly in that mode, with the same tokens as ever.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from cairn.engines.base import Capabilities
from cairn.engines.decoding import Row
from cairn.engines.exit_decoding import ExitDecoding, ExitUsage, draft_steps, exit_scores, exit_steps
from cairn.engines.torch_engine import TorchEngine
from cairn.errors import EngineError
from cairn.models.early_exit import early_exit_of

__all__ = ["ExitDecoding", "ExitEngine", "exit_cuts"]

_ATTENTION = ("sdpa", "eager")  # whose masks `exit_decoding` builds


def exit_cuts(config: Any, settings: ExitDecoding) -> tuple[int, ...]:
    """Returns 0, the exits that are used, and the number of layers.

    Raises:
        EngineError: the model has no such exits.
    """
    depth = config.num_hidden_layers
    given = getattr(config, "early_exit", None)
    if getattr(config, "model_type", None) != "cairn" or getattr(config, "byte_pooling", None) is not None:
        raise EngineError(
            "this model cannot answer early", value=config.model_type,
            allowed="a model of Cairn's own that reads tokens", next="leave the exits out",
        )  # fmt: skip
    trained = early_exit_of(given, depth).layers
    if settings.layers is None and not trained:
        raise EngineError(
            "this model was not trained for early exit", allowed=f"layers=..., of 1 to {depth - 1}",
            next="train it with objective.kind=early_exit, or name the exits",
        )  # fmt: skip
    chosen = settings.layers or (trained[:1] if settings.mode == "speculative" else trained)
    possible = trained or tuple(range(1, depth))
    if sorted(set(chosen)) != list(chosen) or not set(chosen) <= set(possible):
        raise EngineError(
            "these are not exits of the model", value=list(chosen),
            allowed=f"rising numbers out of {', '.join(map(str, possible))}",
        )  # fmt: skip
    if settings.judge == "gate" and not early_exit_of(given, depth).gate:
        raise EngineError(
            "the exits of this model have no gate", allowed="judge='probability'",
            next="train it with model.changes.early_exit={gate: true}",
        )  # fmt: skip
    if settings.mode == "speculative" and len(chosen) != 1:
        raise EngineError("a draft comes from one exit", value=list(chosen), allowed="one number")
    return (0, *chosen, depth)


class ExitEngine(TorchEngine):
    """A base model and its adapters in this process, answering early where it is sure.

    Args:
        base, adapters: as in `TorchEngine`; the base is one of Cairn's own decoders.
        exits: how exits are used.
        options: further arguments of `TorchEngine`.

    Raises:
        EngineError: the model has no such exits, or its attention is not `sdpa` or `eager`.
        CheckpointError, TokenizerError, AdapterError: as `TorchEngine`.
    """

    def __init__(
        self,
        base: str | Path | PreTrainedModel,
        adapters: Mapping[str, str | Path] | None = None,
        *,
        exits: ExitDecoding,
        **options: Any,
    ) -> None:
        super().__init__(base, adapters, **options)
        self.exits = exits
        self.cuts = exit_cuts(self.config, exits)
        self.exit_usage = ExitUsage()
        attention = self.config._attn_implementation
        if attention not in _ATTENTION:
            raise EngineError("exits need another attention", value=attention, allowed=", ".join(_ATTENTION))

    @property
    def capabilities(self) -> Capabilities:
        """What this engine may promise."""
        return replace(super().capabilities, early_exit=True, ensembles=self.exits.mode == "speculative")

    @property
    def scoring_model(self) -> Any:
        """What scores a text window by window, called like the model: with the exits, where they decide the output."""
        if self.exits.mode == "speculative":
            return self.model
        return _Scorer(self, self.model.device, self.config)

    def _steps(self, runs: tuple[str | None, ...], rows: list[Row]) -> Iterator[None]:
        drafts = self.exits.mode == "speculative"
        if drafts and not (len(runs) == len(rows) == 1 and _greedy(rows[0])):
            return super()._steps(runs, rows)
        if len(runs) > 1:
            raise EngineError(
                "an ensemble cannot answer early", value=", ".join(map(str, runs)), allowed="one adapter",
                next="use TorchEngine, or exits of mode speculative",
            )  # fmt: skip

        def run(work: Any) -> Any:
            return self._with(runs[0], work)

        most = {"ends": self._ends, "device": self.device, "dtype": self.model.dtype}
        shared = (self.exits, self.cuts, self.exit_usage)
        if drafts:
            return draft_steps(run, self.config, self.tokenizer, rows[0], *shared, **most)
        return exit_steps(run, self.config, self.tokenizer, rows, *shared, **most)

    def _forward(self, adapter: str | None, **inputs: Any) -> Any:
        if self.exits.mode == "speculative":
            return super()._forward(adapter, **inputs)
        del inputs["use_cache"]  # this is scoring: `exit_steps` writes
        logits, levels = self._with(
            adapter, lambda model: exit_scores(model, self.exits, self.cuts, **inputs)
        )
        found, counts = levels.unique(return_counts=True)
        self.exit_usage.tokens.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))
        return SimpleNamespace(logits=logits)


@dataclass(frozen=True)
class _Scorer:
    engine: ExitEngine
    device: Any
    config: Any

    def __call__(self, *, input_ids: Tensor, use_cache: bool = False) -> Any:
        return self.engine._forward(None, input_ids=input_ids, use_cache=use_cache)


def _greedy(row: Row) -> bool:
    return row.sampling.temperature == 0 and row.held is None
