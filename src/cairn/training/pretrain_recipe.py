"""The recipe of a pretraining, checked whole before anything is read or trained.

    recipe.yaml ─▶ tokenizer, data, model, steps, objective, optimizer, schedules, loop ─▶ every contradiction at once

Settings that came after the first recipes leave no trace in a run's record while they have their defaults, so that a
run which was begun before them goes on.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from cairn.config import StrictModel
from cairn.data.corpora import SourceConfig
from cairn.data.written import WrittenConfig
from cairn.models.presets import PRESETS, preset_config
from cairn.training.averaging import AveragingConfig
from cairn.training.loop import LoopConfig
from cairn.training.objective_config import NextTokenConfig, ObjectiveConfig, objective_faults
from cairn.training.optim import OptimizerConfig, ScheduleConfig
from cairn.training.schedules import DropoutConfig, LengthWarmupConfig

__all__ = ["DataConfig", "ModelConfig", "PretrainRecipe", "TokenizerConfig"]


def _without_defaults(model: StrictModel, data: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Leaves out what has its default, of settings that older runs do not know."""
    fields = type(model).model_fields
    same = {name for name in names if getattr(model, name) == fields[name].get_default(call_default_factory=True)}
    return {name: value for name, value in data.items() if name not in same}


class TokenizerConfig(StrictModel):
    """The tokenizer: trained on the first `train_bytes` of the mixture's sources, or taken from a folder or the hub.

    Args:
        kind: `bpe`, or `bytes`: every byte is a token, nothing is trained (for `model.changes.byte_pooling`).
        vocab_size, train_bytes: of a BPE that is trained.
        source: folder or hub name of a tokenizer to take instead.
    """

    vocab_size: int = Field(4096, ge=320)
    train_bytes: int = Field(30_000_000, gt=0)
    source: str | None = None
    kind: Literal["bpe", "bytes"] = "bpe"

    @model_validator(mode="after")
    def _one_origin(self) -> TokenizerConfig:
        if self.kind == "bytes" and self.source is not None:
            raise ValueError("kind bytes and source name two tokenizers, allowed: one of them")
        return self

    @model_serializer(mode="wrap")
    def _record(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_defaults(self, handler(self), ("kind",))


class DataConfig(StrictModel):
    """The text: sources and their mixture, validation files, and evaluation sets to keep out.

    Args:
        sources: what to mix; relative paths start at `root`.
        root: folder of relative paths; None = the recipe's own folder.
        total_tokens: length of the stream; None = one pass over the sources.
        validation: sources for bits per byte while training; a generator gets another seed than in training.
        validation_bytes: bytes read from the start of each.
        keep_out: evaluation texts that must not be trained on; a piece that overlaps one is dropped and counted.
        seed: of shuffles and generators.
        max_epochs: how many passes over the stream the steps may take; more is refused before the first step.
        written: text that a teacher writes first, one more source (sequence-level distillation).
        order: `shuffled` rows, or the `stream` as it is, from a place drawn from the recipe's seed (`PackedLoader`).
    """

    sources: list[SourceConfig] = []
    root: str | None = None
    total_tokens: int | None = Field(None, ge=1)
    validation: list[SourceConfig] = []
    validation_bytes: int = Field(100_000, gt=0)
    keep_out: list[SourceConfig] = []
    seed: int = 0
    order: Literal["shuffled", "stream"] = "shuffled"
    max_epochs: float = Field(1.0, gt=0)
    written: WrittenConfig | None = None

    @model_validator(mode="after")
    def _has_text(self) -> DataConfig:
        if not self.sources and self.written is None:
            raise ValueError("sources: there is none, allowed: at least one, or data.written")
        return self

    @model_serializer(mode="wrap")
    def _record(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_defaults(self, handler(self), ("order", "max_epochs", "written"))


class ModelConfig(StrictModel):
    """The shape: a preset and the fields that differ from it (`vocab_size` follows the tokenizer)."""

    preset: str = "base"
    changes: dict[str, Any] = {}

    @field_validator("preset")
    @classmethod
    def _known(cls, value: str) -> str:
        preset_config(value)
        return value

    @field_validator("changes")
    @classmethod
    def _fields(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if "vocab_size" in value:
            raise ValueError("vocab_size follows the tokenizer; set tokenizer.vocab_size")
        preset_config(info.data.get("preset", next(iter(PRESETS))), **value)
        return value


class PretrainRecipe(StrictModel):
    """A whole pretraining run.

    Args:
        steps: optimizer steps.
        sequence_length: tokens per row.
        batch_rows: rows of the global batch, over all processes.
        objective: what the loss is (`objective_config.py`).
        dropout: over the steps; None leaves the model's own rates.
        length_warmup: shorter rows at the start.
        averaging: which mean of the weights is saved in place of the last step's.
        samples: prompts continued at every evaluation.
    """

    recipe: Literal["pretrain"]
    name: str
    seed: int = 0
    tokenizer: TokenizerConfig = TokenizerConfig()
    data: DataConfig
    model: ModelConfig = ModelConfig()
    steps: int = Field(ge=1)
    sequence_length: int = Field(512, ge=8)
    batch_rows: int = Field(32, ge=1)
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    loop: LoopConfig = LoopConfig()
    objective: ObjectiveConfig = NextTokenConfig()
    dropout: DropoutConfig | None = None
    length_warmup: LengthWarmupConfig | None = None
    averaging: AveragingConfig | None = None
    samples: list[str] = ["Once upon a time"]
    device: str = "auto"

    @property
    def shortest_row(self) -> int:
        """Tokens of the shortest row in the training."""
        return self.sequence_length if self.length_warmup is None else self.length_warmup.start

    @model_validator(mode="after")
    def _fits_together(self) -> PretrainRecipe:
        changes = self.model.changes
        context = preset_config(self.model.preset, **changes).max_position_embeddings
        faults = []
        if self.sequence_length > context:
            faults.append(f"sequence_length: {self.sequence_length}, allowed: at most the model's "
                          f"max_position_embeddings ({context})")
        if self.length_warmup is not None:
            faults += self.length_warmup.faults(self.sequence_length)
        if self.averaging is not None:
            faults += self.averaging.faults(self.steps)
        if self.dropout is not None:
            twice = [f"model.changes.{field}" for field in self.dropout.fields if changes.get(field)]
            if twice:
                faults.append(f"dropout and {' and '.join(twice)} both set the same rate, allowed: one of them")
            if self.dropout.stepwise and self.loop.compile:
                faults.append(f"dropout.kind: {self.dropout.kind} with loop.compile compiles anew at every step, "
                              "allowed: constant, early or late, or loop.compile=false")
        if changes.get("byte_pooling") and self.tokenizer.kind != "bytes" and self.tokenizer.source is None:
            faults.append("model.changes.byte_pooling pools bytes, and tokenizer.kind is bpe, whose tokens depend on "
                          "what follows them, allowed: tokenizer.kind=bytes")
        faults += objective_faults(self.objective, shortest_row=self.shortest_row, batch_rows=self.batch_rows,
                                   changes=changes)
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @model_serializer(mode="wrap")
    def _record(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return _without_defaults(self, handler(self), ("objective", "dropout", "length_warmup", "averaging"))
