"""Fine-tuning one adapter on a frozen base: from prompt-completion pairs to a PEFT folder.

    pairs ─ encode ─ plan of batches ─┐
    base (frozen) ─ LoRA put in ──────┴─ training loop ─ PEFT folder + cairn_adapter.json, whole or not at all
                    fresh, or with    └─ LoRA taken out again: the same base, bit for bit, for the next adapter
                    an earlier one's weights

A finished adapter is recognised by its card (same base, pairs and settings, weights unharmed) and not trained
again; an interrupted one goes on from the loop's checkpoint and ends with the same weights.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from cairn.bases import pick_precision
from cairn.config import StrictModel
from cairn.errors import AdapterError, ConfigError
from cairn.files import atomic_folder, sha256_file, sha256_json, write_json, write_text
from cairn.identity import ADAPTER_CARD, model_identity
from cairn.runs import RunFolder
from cairn.training.batching import EncodedPair, PairBatches, encode_pairs
from cairn.training.checkpoint import latest_checkpoint
from cairn.training.completions import choose_objective, completion_scores, greedy_text
from cairn.training.finetune_plan import FinetuneConfig
from cairn.training.loop import LoopConfig, train
from cairn.training.lora import quick_training, start_from, with_adapter
from cairn.training.objectives import Objective
from cairn.training.optim import OptimizerConfig, ScheduleConfig, build_optimizers

__all__ = ["AdapterResult", "AdapterRun", "adapter_run", "finished_adapter", "train_adapter"]

_WEIGHTS = "adapter_model.safetensors"
_PROBE_PAIRS = 4  # pairs on which the objective is chosen
_EVALUATIONS = 4  # of an adapter whose settings do not say after how many steps; one more if 4 does not divide them

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AdapterResult:
    """What training one adapter came to.

    Args:
        name: of the adapter.
        trained_parameters: numbers that were trained.
        training_tokens: real tokens that the model ran over, no padding.
        steps: optimizer steps.
        epochs: passes over the pairs, the last one perhaps unfinished.
        pairs: training pairs.
        loss: mean loss of the last batch, nats per target token.
        validation_loss: the same over the held-out pairs; None without any.
        exact_match: share of held-out pairs that greedy decoding writes exactly; None without any.
        seconds: of training, all restarts together, evaluation left out.
        curve: step, validation_loss and exact_match of every evaluation; empty without held-out pairs.
    """

    name: str
    trained_parameters: int
    training_tokens: int
    steps: int
    epochs: int
    pairs: int
    loss: float
    validation_loss: float | None
    exact_match: float | None
    seconds: float
    curve: list[dict[str, Any]]


class AdapterRun(StrictModel):
    """Everything that decides the weights of an adapter: two runs are the same if these are equal."""

    name: str
    config: FinetuneConfig
    base: dict[str, Any]
    pairs_sha256: str
    start_sha256: str | None


def adapter_run(
    name: str,
    config: FinetuneConfig,
    identity: Mapping[str, Any],
    pairs: Sequence[tuple[str, str]],
    start: str | Path | None = None,
) -> AdapterRun:
    """Returns what decides the weights of an adapter, from what `train_adapter` is given."""
    return AdapterRun(
        name=name, config=config, base=dict(identity), pairs_sha256=sha256_json([[list(p) for p in pairs], len(pairs)]),
        start_sha256=sha256_file(Path(start) / _WEIGHTS) if start is not None else None,
    )  # fmt: skip


def train_adapter(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[tuple[str, str]],
    config: FinetuneConfig,
    out: str | Path,
    *,
    encoded: Sequence[EncodedPair] | None = None,
    validation: Sequence[tuple[str, str]] = (),
    base: Mapping[str, Any] | None = None,
    name: str | None = None,
    title: str | None = None,
    run: str | Path | None = None,
    card: Mapping[str, Any] | None = None,
    start: str | Path | None = None,
) -> AdapterResult:
    """Trains one LoRA adapter, or finds it trained already, and leaves the base as it was.

    Args:
        model: the base on its device, weights in float32; it is frozen, and unchanged afterwards.
        tokenizer: the base's.
        pairs: (prompt, completion) texts, as `data.examples` renders them.
        config: budget, method and shape.
        out: the adapter folder to write.
        encoded: the same pairs through `encode_pairs`, if that was done before.
        validation: held-out pairs, scored at every evaluation.
        base: identity of the base for the card (`identity.base_identity`); by default that of the model in memory.
        name: of the adapter; by default the folder's name.
        title: of its progress lines; by default its name.
        run: run folder for settings, metrics and checkpoints; by default `.NAME.run` beside `out`.
        card: further facts for cairn_adapter.json.
        start: a finished adapter of the same shape whose weights this one starts with; by default it starts fresh.

    Raises:
        DataError: no pairs, a pair longer than the context, or a budget that does not reach for one.
        ConfigError: `out` or `run` holds the work of other settings; or `lora.targets` names no layer.
        CheckpointError: a checkpoint in `run` is damaged.
        AdapterError: `start` has another shape.
        StorageError: the disk is full or may not be written.
        EngineError: the loss is not finite.
        KeyboardInterrupt: interrupted; the next call goes on from a checkpoint.
    """
    out = Path(out)
    name = name or out.name
    device = model.get_input_embeddings().weight.device
    config = config.model_copy(update={"precision": pick_precision(config.precision, device)})
    folder = Path(run) if run is not None else out.with_name(f".{out.name}.run")
    identity = dict(base) if base is not None else model_identity(model, tokenizer)
    settings = adapter_run(name, config, identity, pairs, start)
    found = finished_adapter(out, settings)
    if found is not None:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        return found

    context = getattr(model.config, "max_position_embeddings", None) or 2**31
    encoded = encoded or encode_pairs(tokenizer, pairs, context)
    held_out = encode_pairs(tokenizer, validation, context) if validation else []
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    batches = PairBatches(
        encoded, batch_tokens=config.batch_tokens, tokens=config.tokens, steps=config.steps, seed=config.seed,
        pad_id=pad_id,
    )  # fmt: skip
    records = RunFolder(folder, settings, seed=config.seed)
    if latest_checkpoint(records.path / "checkpoints") is None:
        records.trim_metrics(0)  # killed before the first checkpoint: every step is logged anew
    probe = {key: torch.from_numpy(value).to(device) for key, value in batches.batch(0).items()}
    objective = choose_objective(model, {key: value[:_PROBE_PAIRS] for key, value in probe.items()})
    with (
        with_adapter(model, config.lora, config.seed) as adapter,
        quick_training(model, autocast=config.precision == "bf16"),
    ):
        if start is not None:
            start_from(adapter, start)
        numbers = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        evaluate = _Evaluation(model, tokenizer, held_out, config, pad_id, objective)
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
                autocast="bf16" if config.precision == "bf16" else "none",
                eval_every=config.evaluate_every or max(1, batches.steps // _EVALUATIONS),
                checkpoint_every=config.checkpoint_every,
                keep=1,
            ),
            records,
            evaluate=evaluate if held_out else None,
            title=title or name,
            pad_token_id=pad_id,
        )
        scores = evaluate(done.steps) if held_out else {}
        result = AdapterResult(
            name=name, trained_parameters=numbers, training_tokens=batches.tokens, steps=done.steps,
            epochs=batches.epochs, pairs=len(pairs), loss=done.loss, validation_loss=scores.get("validation_loss"),
            exact_match=scores.get("exact_match"), seconds=round(done.seconds, 3), curve=_curve(records),
        )  # fmt: skip
        _save(adapter, out, settings, result, dict(card or {}))
    shutil.rmtree(records.path / "checkpoints", ignore_errors=True)
    records.finish(["metrics.jsonl"])
    return result


def _curve(records: RunFolder) -> list[dict[str, Any]]:
    keys = ("step", "validation_loss", "exact_match")
    return [{key: row[key] for key in keys} for row in records.metrics() if "exact_match" in row]


class _Evaluation:
    """Scores the held-out pairs and lets the model answer one of them; the last step's answer is kept."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        pairs: list[EncodedPair],
        config: FinetuneConfig,
        pad_id: int,
        objective: Objective,
    ) -> None:
        self._model, self._tokenizer, self._pairs = model, tokenizer, pairs
        self._config, self._pad_id, self._objective = config, pad_id, objective
        self._last: tuple[int, dict[str, Any]] | None = None

    def __call__(self, step: int) -> dict[str, Any]:
        if self._last is not None and self._last[0] == step:
            return self._last[1]
        model, pairs = self._model, self._pairs
        device = model.get_input_embeddings().weight.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self._config.precision == "bf16"):
            scores = completion_scores(
                model, pairs, batch_tokens=4 * self._config.batch_tokens, pad_id=self._pad_id, objective=self._objective
            )
            shown = pairs[step % len(pairs)]
            longest = max(pair.targets for pair in pairs)
            wrote = greedy_text(model, self._tokenizer, shown.ids[: shown.prompt_length].tolist(), longest)
        gold = self._tokenizer.decode(shown.ids[shown.prompt_length :], skip_special_tokens=True)
        found = {
            "validation_loss": scores["loss"],
            "exact_match": scores["exact_match"],
            "sample": f"{shorten(wrote, 160)} (gold: {shorten(gold, 160)})",
        }
        self._last = (step, found)
        return found


def _save(
    adapter: PeftModel, out: Path, settings: AdapterRun, result: AdapterResult, further: dict[str, Any]
) -> None:
    adapter.peft_config["default"].base_model_name_or_path = settings.base.get("name")
    with atomic_folder(out) as temporary:
        # No embedding is trained; with "auto" PEFT would ask the hub about the base's vocabulary.
        adapter.save_pretrained(temporary, save_embedding_layers=False)
        facts = {
            "base": settings.base,
            **asdict(result),
            **further,
            "config": settings.config.model_dump(mode="json"),
            "seed": settings.config.seed,
            "pairs_sha256": settings.pairs_sha256,
            "settings_sha256": _fingerprint(settings),
            "weights_sha256": sha256_file(temporary / _WEIGHTS),
        }
        write_json(temporary / ADAPTER_CARD, facts)
        write_text(temporary / "README.md", _adapter_card(settings, result))


def _fingerprint(settings: AdapterRun) -> str:
    return sha256_json(settings.model_dump(mode="json"))


def _adapter_card(settings: AdapterRun, result: AdapterResult) -> str:
    return (
        f"# {settings.name}\n\nA LoRA adapter (PEFT) for the base `{settings.base.get('name')}`, trained by "
        f"`cairn finetune`: {result.trained_parameters:,} trained parameters, {result.training_tokens:,} tokens, "
        f"{result.steps:,} steps.\nSettings, data fingerprint and the identity of the base are in "
        f"{ADAPTER_CARD}.\n"
    )


def finished_adapter(out: str | Path, settings: AdapterRun) -> AdapterResult | None:
    """Returns the result in an adapter folder if it was trained whole with these settings; None if it must be trained.

    A damaged folder counts as not trained, with a warning in the log.

    Raises:
        ConfigError: a whole adapter of other settings is there.
    """
    out = Path(out)
    if not out.exists():
        return None
    try:
        facts = json.loads((out / ADAPTER_CARD).read_text(encoding="utf-8"))
        if sha256_file(out / _WEIGHTS) != facts["weights_sha256"] or not (out / "adapter_config.json").is_file():
            raise AdapterError("the weights are not those of the card", value=str(out))
        result = AdapterResult(**{field: facts[field] for field in AdapterResult.__dataclass_fields__})
        earlier = facts["settings_sha256"]
    except (OSError, ValueError, KeyError, TypeError, AdapterError) as error:
        logger.warning("%s holds a damaged adapter (%s): it is trained again", out, error)
        return None
    if earlier != _fingerprint(settings):
        raise ConfigError(
            str(out), ["this adapter was trained with other settings, data or base (see its cairn_adapter.json)"],
            next="choose another folder with --out, or delete this one",
        )  # fmt: skip
    return result
