"""Instruction tuning: the assistant's turns of conversations, with an adapter or with all weights.

    conversations ─ ids, and which of them an assistant wrote ─ plan of batches ─┐
    base in float32 ─ LoRA put in, or every weight asks for gradients ───────────┴─ training loop ─ OUT/adapter
                                                                                                  or OUT/model

The loss looks at what the assistant wrote and at its end marks, nothing else. Killed at any moment, the same call
goes on from the loop's checkpoint and ends with the same weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from cairn.data.chat_template import ChatIds, prompt_of
from cairn.files import atomic_folder, sha256_file, write_json, write_text
from cairn.identity import ADAPTER_CARD
from cairn.runs import RunFolder
from cairn.training.batching import EncodedPair, PairBatches
from cairn.training.checkpoint import latest_checkpoint
from cairn.training.completions import choose_objective, completion_scores, greedy_text
from cairn.training.finetune_plan import FinetuneConfig
from cairn.training.loop import LoopConfig, train
from cairn.training.lora import quick_training, with_adapter
from cairn.training.objectives import Objective, PretrainObjective, WithModelLoss
from cairn.training.optim import OptimizerConfig, ScheduleConfig, build_optimizers

__all__ = ["TuneResult", "chat_pair", "save_chat_model", "tune_model"]

_PROBE_PAIRS = 4  # conversations on which the objective is chosen
_EVALUATIONS = 4  # of a run that does not say after how many steps
_SAMPLE_TOKENS = 64


@dataclass(frozen=True)
class TuneResult:
    """What an instruction tuning came to.

    Args:
        method: lora or full.
        trained_parameters: numbers that were trained.
        training_tokens: real tokens that the model ran over, no padding.
        answer_tokens: tokens that the loss looked at in one pass.
        steps: optimizer steps.
        epochs: passes over the conversations, the last one perhaps unfinished.
        loss: mean loss of the last batch, nats per answer token.
        validation_loss: of held-out conversations, after the training; None without any.
        validation_loss_before: the same of the base.
        seconds: of training, all restarts together, evaluation left out.
    """

    method: str
    trained_parameters: int
    training_tokens: int
    answer_tokens: int
    steps: int
    epochs: int
    loss: float
    validation_loss: float | None
    validation_loss_before: float | None
    seconds: float


def chat_pair(chat: ChatIds) -> EncodedPair:
    """Returns a conversation as a training pair: only its answers are scored."""
    between = [(end, start) for (_, end), (start, _) in zip(chat.answers, chat.answers[1:], strict=False)]
    after = [(chat.answers[-1][1], len(chat.ids))] if chat.answers[-1][1] < len(chat.ids) else []
    ids = np.array(chat.ids, dtype=np.int64)
    return EncodedPair(ids, chat.answers[0][0], tuple(stretch for stretch in [*between, *after]))


def tune_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[EncodedPair],
    config: FinetuneConfig,
    run: RunFolder,
    *,
    method: str = "lora",
    validation: Sequence[EncodedPair] = (),
    samples: Sequence[Sequence[tuple[str, str]]] = (),
    base: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    card: str = "",
    title: str = "tune",
) -> TuneResult:
    """Trains a model on conversations and writes run/adapter (lora) or run/model (full).

    Args:
        model: the base on its device, weights in float32. LoRA leaves it as it was; "full" changes it.
        tokenizer: with the chat template.
        pairs: of `chat_pair`.
        config: budget and method.
        run: where settings, metrics, checkpoints and the result go.
        method: "lora" or "full".
        validation: held-out conversations.
        samples: conversations that end with the user; the answer to one of them is shown at every evaluation.
        base: identity of the base, for the adapter's card.
        dtype: of the weights of a whole model that is saved.
        card: README.md of the result.
        title: of the progress lines.

    Raises:
        DataError: the budget does not reach for one conversation.
        ConfigError: `config.lora.targets` names no layer.
        CheckpointError: a checkpoint in `run` is damaged.
        StorageError: the disk is full or may not be written.
        EngineError: the loss is not finite.
        KeyboardInterrupt: interrupted; the next call goes on from a checkpoint.
    """
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    batches = PairBatches(
        pairs, batch_tokens=config.batch_tokens, tokens=config.tokens, steps=config.steps, seed=config.seed,
        pad_id=pad_id,
    )  # fmt: skip
    device = model.get_input_embeddings().weight.device
    probe = {key: torch.from_numpy(value[:_PROBE_PAIRS]).to(device) for key, value in batches.batch(0).items()}
    plain = choose_objective(model, probe)
    objective = _objective(model, plain) if method == "full" else plain
    autocast = config.precision == "bf16"
    if latest_checkpoint(run.path / "checkpoints") is None:
        run.trim_metrics(-1)  # killed before the first checkpoint: everything is logged anew

    def scores() -> dict[str, Any]:
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            return completion_scores(
                model, validation, batch_tokens=4 * config.batch_tokens, pad_id=pad_id, objective=plain
            )

    def evaluate(step: int) -> dict[str, Any]:
        found: dict[str, Any] = {"validation_loss": scores()["loss"]} if validation else {}
        if samples:
            asked = samples[step % len(samples)]
            with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                wrote = greedy_text(model, tokenizer, prompt_of(tokenizer, asked), _SAMPLE_TOKENS)
            found["sample"] = f"{shorten(asked[-1][1], 80)} -> {shorten(wrote, 160)}"
        return found

    before = next((row["validation_loss"] for row in run.metrics() if row.get("step") == 0), None)
    if validation and before is None:
        before = scores()["loss"]
        run.log(step=0, validation_loss=before)
    with _trained(model, config, method, autocast) as adapter:
        numbers = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        done = train(
            model,
            objective,
            batches,
            build_optimizers(
                model, OptimizerConfig(learning_rate=config.learning_rate, weight_decay=config.weight_decay)
            ),
            ScheduleConfig(kind=config.schedule, warmup=config.warmup),
            batches.steps,
            LoopConfig(
                grad_clip=config.clip,
                autocast="bf16" if autocast else "none",
                eval_every=config.evaluate_every or max(1, batches.steps // _EVALUATIONS),
                checkpoint_every=config.checkpoint_every,
                keep=1,
            ),
            run,
            evaluate=evaluate if validation or samples else None,
            title=title,
            pad_token_id=pad_id,
        )
        result = TuneResult(
            method=method, trained_parameters=numbers, training_tokens=batches.tokens,
            answer_tokens=sum(pair.targets for pair in pairs), steps=done.steps, epochs=batches.epochs, loss=done.loss,
            validation_loss=scores()["loss"] if validation else None, validation_loss_before=before,
            seconds=round(done.seconds, 3),
        )  # fmt: skip
        if method == "lora":
            _save_adapter(adapter, tokenizer, run.path / "adapter", dict(base or {}), config, result, card)
    if method == "full":
        save_chat_model(model, tokenizer, run.path / "model", dtype, card)
    return result


def save_chat_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, out: Path, dtype: torch.dtype | None = None,
    card: str = "",
) -> None:
    """Writes a model folder with its chat template, whole or not at all.

    Args:
        model: the tuned model.
        tokenizer: with the chat template.
        out: the folder.
        dtype: number format of the weights; None leaves them as they are.
        card: its README.md.

    Raises:
        StorageError: the disk is full or may not be written.
    """
    logging.disable_progress_bar()  # of one file, written at once
    with atomic_folder(out) as folder:
        (model.to(dtype) if dtype is not None else model).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        write_text(folder / "README.md", card)


class _Plain(PretrainObjective):
    """A plain objective in the clothes that `WithModelLoss` wants."""

    def __init__(self, objective: Objective) -> None:
        self._objective = objective

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return self._objective(model, batch)


def _objective(model: PreTrainedModel, plain: Objective) -> Objective:
    """Adds what a byte model's learned patches ask for while all weights move."""
    return WithModelLoss(_Plain(plain)) if getattr(model.config, "byte_pooling", None) else plain


@contextmanager
def _trained(model: PreTrainedModel, config: FinetuneConfig, method: str, autocast: bool) -> Iterator[Any]:
    """Makes the model ask for the gradients of the method; yields the adapter, if there is one."""
    if method == "lora":
        with with_adapter(model, config.lora, config.seed) as adapter, quick_training(model, autocast=autocast):
            yield adapter
        return
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(config.seed)  # of dropout
        model.requires_grad_(True)
        yield None


def _save_adapter(
    adapter: Any, tokenizer: PreTrainedTokenizerBase, out: Path, base: dict[str, Any], config: FinetuneConfig,
    result: TuneResult, card: str,
) -> None:
    adapter.peft_config["default"].base_model_name_or_path = base.get("name")
    with atomic_folder(out) as folder:
        adapter.save_pretrained(folder, save_embedding_layers=False)
        tokenizer.save_pretrained(folder)
        facts = {
            "base": base, **asdict(result), "config": config.model_dump(mode="json"), "seed": config.seed,
            "weights_sha256": sha256_file(folder / "adapter_model.safetensors"),
        }  # fmt: skip
        write_json(folder / ADAPTER_CARD, facts)
        write_text(folder / "README.md", card)
