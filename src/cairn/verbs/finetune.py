"""`cairn finetune`: a stack.yaml and its examples in, a stack folder that another machine can run out.

    stack.yaml ─ checked whole ─ examples checked ─ every pair fits ─ equal parameters
        │                                                                  (before any training)
        ├─ base, loaded once, frozen
        ├─ stages/NAME/                 one adapter after the other, each with its share of the tokens
        ├─ comparators/single_direct/   as many parameters and tokens as the stack, all inputs -> answer
        ├─ comparators/single_chain/    the same, all inputs -> every hand-off as one text
        └─ base.json, training.json, README.md, and stack.yaml last: where it is, the folder is whole
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cairn.data.examples import (
    StackExample,
    TextPair,
    adapter_pairs,
    ambiguous_prompts,
    chain_pairs,
    direct_pairs,
    hold_out,
    read_examples,
)
from cairn.errors import ConfigError, DataError, did_you_mean, storage_error
from cairn.files import sha256_file
from cairn.stacks.spec import StackSpec, adapter_folder, check_budgets, load_stack
from cairn.training.finetune_plan import (
    COMPARATORS,
    FinetuneConfig,
    StackTraining,
    adapter_configs,
    comparator_config,
    stack_training,
)
from cairn.verbs.stack_folder import comparator_folder, training_facts, write_stack_folder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from cairn.training.batching import EncodedPair

__all__ = ["finetune", "finetune_stack"]

_VALIDATION_PAIRS = 200  # held-out pairs scored at each evaluation, at most


def finetune(
    stack: Annotated[Path, typer.Argument(metavar="STACK.yaml", help="The stack, with examples to train it from.")],
    out: Annotated[Path | None, typer.Option("--out", help="Stack folder to make; default runs/NAME.")] = None,
    base: Annotated[str | None, typer.Option(help="Another base than the stack's own.")] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="ADAPTER", help="Train only this one now; repeatable.")
    ] = None,
    comparators: Annotated[
        bool, typer.Option("--comparators/--no-comparators", help="Also train the single adapters to compare with.")
    ] = True,
    bundle_base: Annotated[
        bool, typer.Option("--bundle-base/--no-bundle-base", help="Copy a base that is a local folder into OUT/base.")
    ] = True,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a value of stack.yaml; repeatable.")
    ] = None,
) -> None:
    """Train a stack's adapters, and the single adapters it is compared to.

    Every adapter is a LoRA on the frozen base, trained on the completions alone. The examples (JSON lines) hold the
    gold value of every stage; the pairs of a stage are the calls it will make, earlier hand-offs being gold. The
    section `training:` of stack.yaml says how:

      training:
        tokens_total: 1200000        # of the whole stack; each comparator gets as many
        batch_tokens: 2000
        learning_rate: 0.002
        lora: {rank: 8}
        adapters:                    # shares sum to 1; without any, all get the same
          mention: {share: 0.5, balance: 1.0}
          answer: {share: 0.5, rank: 4}

    The comparators train exactly as many numbers as the stack (their rank is the sum of its ranks) on as many tokens.
    Killed at any moment, the same command goes on where it was, and ends with the same weights.

    Examples:

      cairn finetune stack.yaml --out runs/mine
      cairn finetune stack.yaml --out runs/mine --set training.tokens_total=300000 --no-comparators
      cairn finetune stack.yaml --base EleutherAI/pythia-160m --only answer
    """
    spec = load_stack(stack, overrides or [])
    target = out or Path("runs") / spec.name
    finetune_stack(
        spec, target, base=base, only=only or (), comparators=comparators, bundle_base=bundle_base, device=device,
        say=typer.echo,
    )  # fmt: skip


@dataclass(frozen=True)
class _Job:
    """One adapter to train."""

    name: str
    folder: Path
    config: FinetuneConfig
    pairs: list[TextPair]
    validation: list[TextPair]
    card: dict[str, Any]


def finetune_stack(
    spec: StackSpec,
    out: str | Path,
    *,
    base: str | None = None,
    only: Sequence[str] = (),
    comparators: bool = True,
    bundle_base: bool = True,
    device: str = "auto",
    say: Callable[[str], Any] = lambda text: None,
) -> dict[str, Any]:
    """Trains what is not trained yet and completes the stack folder.

    Args:
        spec: as `load_stack` gives it: its examples are found relative to its file.
        out: the stack folder.
        base: another base than the stack's own.
        only: names of adapters or comparators; the others wait for another call.
        comparators: also train the single adapters.
        bundle_base: copy a base that is a local folder into `out`, so that the folder can travel.
        device: see `bases.pick_device`.
        say: takes lines for the reader.

    Returns:
        What training.json holds: the numbers of the stack, of each adapter and of each comparator.

    Raises:
        ConfigError: a fault in the stack or its `training:` section, `only` names nothing, trained parameters would
            not be equal, or `out` holds the work of other settings.
        DataError: a fault in the examples, or pairs longer than the base's context.
        CheckpointError, TokenizerError: the base cannot be used.
        StorageError: `out` cannot be written.
    """
    out = Path(out)
    if base is not None:
        given = Path(base).expanduser()  # a folder counts from here, not from stack.yaml
        spec = spec.model_copy(update={"base": str(given.resolve()) if given.is_dir() else base})
    source = str(spec.folder / "stack.yaml") if spec.folder else spec.name
    adapters = spec.adapter_names()
    training = stack_training(spec.training, adapters, source)
    singles = [name for name in COMPARATORS if comparators or comparator_folder(out, name).exists()]
    wanted = [*adapters, *singles]
    for name in only:
        if name not in wanted:
            raise ConfigError("--only", [f"{name!r}{did_you_mean(name, wanted)}, allowed: {', '.join(wanted)}"])
    if spec.folder is not None and out.resolve() == spec.folder:
        raise ConfigError(str(out), ["the result would overwrite its own stack.yaml"], next="choose another --out")
    file, examples, held_out = _examples(spec, training, source)
    _make_folder(out)

    from cairn.bases import load_base
    from cairn.identity import base_identity

    place = spec.base_place
    local = Path(place).expanduser().is_dir()
    identity = {**base_identity(place), "name": Path(place).expanduser().resolve().name if local else spec.base}
    model, tokenizer = load_base(place, dtype="float32", device=device)
    context = getattr(model.config, "max_position_embeddings", None) or 2**31
    check_budgets(spec, context)
    jobs = [job for job in _jobs(spec, training, examples, held_out, out) if job.name in wanted]
    encoded = _encode(jobs, tokenizer, context)
    if singles:
        _check_parameters(model, training, adapters)

    chosen = [job for job in jobs if not only or job.name in only]
    say(f"{spec.name}: {len(examples):,} examples, base {identity['name']}, {len(chosen)} adapters -> {out}")
    results = {}
    for number, job in enumerate(chosen, start=1):
        results[job.name] = _train(job, model, tokenizer, encoded[job.name], identity, out)
        say(f"[{number}/{len(chosen)}] {_result_line(results[job.name])}")
    missing = [job.name for job in jobs if job.name not in results and not job.folder.exists()]
    if missing:
        say(f"not trained yet: {', '.join(missing)}; the same command without --only trains them and completes {out}")
        return {"missing": missing}
    for job in jobs:  # trained by an earlier call: checked, not trained again
        if job.name not in results:
            results[job.name] = _train(job, model, tokenizer, encoded[job.name], identity, out)

    facts = {
        **training_facts(
            spec, training, results,
            ranks={job.name: job.config.lora.rank for job in jobs},
            ambiguous={job.name: ambiguous_prompts(job.pairs) for job in jobs},
        ),
        "examples": {"sha256": sha256_file(file), "training": len(examples), "held_out": len(held_out)},
    }  # fmt: skip
    write_stack_folder(spec, out, identity, facts, file, bundle_base=bundle_base)
    say(f'whole: {out}. Next: cairn run {out} "..."')
    return facts


def _examples(
    spec: StackSpec, training: StackTraining, source: str
) -> tuple[Path, list[StackExample], list[StackExample]]:
    if spec.examples is None:
        raise ConfigError(source, ["examples: required for fine-tuning, but missing"], next="give a JSON lines file")
    file = (spec.folder or Path()) / spec.examples
    everything = read_examples(file, spec)
    if not training.validation_examples:
        return file, everything, []
    return file, *hold_out(everything, training.validation_examples, training.seed)


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied", str(out))
    except OSError as error:
        raise storage_error(error, out) from error


def _jobs(
    spec: StackSpec, training: StackTraining, examples: list[StackExample], held_out: list[StackExample], out: Path
) -> list[_Job]:
    """Returns every adapter and comparator with its pairs and settings."""
    seed = training.seed
    jobs = []
    for name, config in adapter_configs(training, spec.adapter_names()).items():
        plan = training.adapters.get(name)
        choice = {"balance": plan.balance if plan else None}
        jobs.append(
            _Job(
                name, adapter_folder(out, name), config,
                adapter_pairs(spec, name, examples, limit=plan.limit if plan else None, seed=seed, **choice),
                adapter_pairs(spec, name, held_out, limit=_VALIDATION_PAIRS, seed=seed, **choice),
                {"stages": [stage.name for stage in spec.stages_of(name)]},
            )
        )  # fmt: skip
    single = comparator_config(training, spec.adapter_names())
    for name, pairs_of, fields in (
        ("single_direct", direct_pairs, [spec.answer_stage]),
        ("single_chain", chain_pairs, spec.chain_stages),
    ):
        held = pairs_of(spec, held_out, limit=_VALIDATION_PAIRS, seed=seed)
        card = {"prompt": spec.comparator_prompt, "writes": fields}
        jobs.append(_Job(name, comparator_folder(out, name), single, pairs_of(spec, examples), held, card))
    return jobs


def _encode(jobs: list[_Job], tokenizer: PreTrainedTokenizerBase, context: int) -> dict[str, list[EncodedPair]]:
    """Encodes every pair before anything is trained, so that a pair or budget that does not fit is known at once."""
    from cairn.training.batching import encode_pairs

    encoded = {}
    for job in jobs:
        try:
            encoded[job.name] = encode_pairs(tokenizer, job.pairs, context)
            if job.validation:
                encode_pairs(tokenizer, job.validation, context)
        except DataError as error:
            what = f"{job.name}: {error.what}"
            raise DataError(what, value=error.value, allowed=error.allowed, next=error.next) from None
        longest = max(pair.tokens for pair in encoded[job.name])
        if job.config.tokens is not None and job.config.tokens < longest:
            raise DataError(
                f"{job.name}: the token budget does not reach for its longest training pair", value=job.config.tokens,
                allowed=f"at least {longest} tokens", next="raise training.tokens_total, or the share of this adapter",
            )  # fmt: skip
    return encoded


def _check_parameters(model: PreTrainedModel, training: StackTraining, adapters: list[str]) -> None:
    from cairn.training.lora import trained_parameters

    parts = {name: trained_parameters(model, c.lora) for name, c in adapter_configs(training, adapters).items()}
    single = trained_parameters(model, comparator_config(training, adapters).lora)
    if sum(parts.values()) != single:
        shown = " + ".join(f"{name} {count:,}" for name, count in parts.items())
        raise ConfigError(
            "training",
            [f"trained parameters are not equal: stack {sum(parts.values()):,} ({shown}), comparator {single:,}"],
            next="use the same lora.targets for all, or --no-comparators",
        )


def _train(
    job: _Job,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: list[EncodedPair],
    identity: dict[str, Any],
    out: Path,
) -> dict[str, Any]:
    from cairn.training.finetune import train_adapter

    result = train_adapter(
        model, tokenizer, job.pairs, job.config, job.folder, encoded=encoded, validation=job.validation, base=identity,
        name=job.name, run=out / "training" / job.name, card=job.card,
    )  # fmt: skip
    return asdict(result)


def _result_line(result: dict[str, Any]) -> str:
    exact = result["exact_match"]
    right = f", {100 * exact:.1f}% of held-out pairs exact" if exact is not None else ""
    return (
        f"{result['name']}: {result['trained_parameters']:,} parameters, {result['training_tokens']:,} tokens in "
        f"{result['steps']:,} steps, {result['seconds']:.0f} s, loss {result['loss']:.4f}{right}"
    )
