"""The recipe of `cairn tune`: conversations in, a model that can be talked to out.

    recipe: tune
    name: instruct
    base: embedded:base
    data:
      sources: [{name: dolly, licence: CC BY-SA 3.0, hub: databricks/databricks-dolly-15k}]
      validation: 200
    method: lora                     # or full
    training: {epochs: 3, lora: {rank: 16}}

No torch here: a recipe is checked before anything heavy is loaded.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from cairn.config import StrictModel
from cairn.data.chat import ChatSource
from cairn.training.finetune_plan import FinetuneConfig

__all__ = ["TuneData", "TuneRecipe", "TuneTraining"]

_EPOCHS = 3.0
# A fresh adapter starts at zero and bears a high rate; whole weights forget under it.
_LEARNING_RATE = {"lora": 2e-3, "full": 3e-4}


class TuneTraining(FinetuneConfig):
    """How the model is trained.

    Args:
        epochs: passes over the conversations; 3 if no budget is given. Or
        tokens: budget in real tokens; or
        steps: budget in batches.
        learning_rate: AdamW's, at its height; by default 0.002 for LoRA and 0.0003 for all weights.
        lora: shape of the adapter, for the method lora.
        (others): see the base class.
    """

    epochs: float | None = Field(default=None, gt=0)
    learning_rate: float | None = Field(default=None, gt=0)  # type: ignore[assignment]

    @model_validator(mode="after")
    def _one_budget(self) -> TuneTraining:
        given = [key for key in ("epochs", "tokens", "steps") if getattr(self, key) is not None]
        if len(given) > 1:
            raise ValueError(f"give one of epochs, tokens, steps; given: {', '.join(given)}")
        return self

    def resolved(self, method: str, tokens_per_epoch: int) -> FinetuneConfig:
        """Returns these settings with the budget in tokens (or steps) and the learning rate filled in."""
        budget = {"tokens": self.tokens, "steps": self.steps}
        if self.tokens is None and self.steps is None:
            budget["tokens"] = max(1, round((self.epochs or _EPOCHS) * tokens_per_epoch))
        values = self.model_dump(exclude={"epochs", "tokens", "steps", "learning_rate"})
        return FinetuneConfig(**values, **budget, learning_rate=self.learning_rate or _LEARNING_RATE[method])


class TuneData(StrictModel):
    """What is learnt from.

    Args:
        sources: read one after the other, and mixed.
        root: folder that relative paths start from; by default the recipe's.
        system: a system turn for conversations that have none.
        validation: conversations held out from training, drawn with the seed: a share below 1, or a number.
        seed: draws limits and held-out conversations.
    """

    sources: list[ChatSource] = Field(min_length=1)
    root: str | None = None
    system: str | None = Field(default=None, min_length=1)
    validation: float = Field(default=0.02, ge=0)
    seed: int = 0

    @model_validator(mode="after")
    def _sound(self) -> TuneData:
        names = [source.name for source in self.sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"sources: the name {', '.join(twice)} is used twice, allowed: a name each")
        if self.validation >= 1 and self.validation != int(self.validation):
            raise ValueError(f"validation: {self.validation}, allowed: a share below 1, or a whole number")
        return self


class TuneRecipe(StrictModel):
    """An instruction tuning.

    Args:
        recipe: says what kind of file this is.
        name: of the run.
        description: for its card.
        base: "embedded:base", a folder, or a Hugging Face name.
        device: auto, cpu, cuda or mps.
        data: see `TuneData`.
        template: chat template: "auto" keeps the base's own if it has one, "plain" writes Cairn's, "own" demands one.
        method: "lora" trains an adapter on the frozen base, "full" all weights.
        training: see `TuneTraining`.
        merge: of LoRA: also write a whole model with the adapter in it.
        samples: what the model is asked at every evaluation.
    """

    recipe: Literal["tune"]
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    description: str = ""
    base: str = "embedded:base"
    device: str = "auto"
    data: TuneData
    template: Literal["auto", "plain", "own"] = "auto"
    method: Literal["lora", "full"] = "lora"
    training: TuneTraining = TuneTraining()
    merge: bool = True
    samples: list[str] = []

    @model_validator(mode="after")
    def _lora_only(self) -> TuneRecipe:
        if self.method == "full" and self.training.lora != type(self.training.lora)():
            raise ValueError("training.lora is for method: lora; this recipe trains all weights")
        return self
