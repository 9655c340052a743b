"""`cairn finetune`: a stack.yaml and its examples in, a stack folder that another machine can run out.

    stack.yaml ─ checked whole ─ examples checked ─ every pair fits ─ equal parameters
        │                                                                  (before any training)
        ├─ base, loaded once in each process, frozen
        ├─ phases, each adapter with its share of the tokens (training/phases.py):
        │     global ─> gold ─> own answers ─> on_policy ─> own answers ─> right_chains      gold alone by default
        ├─ stages/NAME/                 what the last phase of an adapter made
        ├─ comparators/single_direct/   as many parameters and tokens as the stack, all inputs -> answer
        ├─ comparators/single_chain/    the same, all inputs -> every hand-off as one text
        └─ base.json, training.json, README.md, and stack.yaml last: where it is, the folder is whole
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from cairn.errors import ConfigError
from cairn.files import sha256_file
from cairn.stacks.spec import StackSpec, load_stack
from cairn.verbs.finetuning.stack_folder import training_facts, write_stack_folder

__all__ = ["finetune", "finetune_stack"]


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
    jobs: Annotated[
        int, typer.Option("--jobs", min=1, help="Adapters trained side by side, each in a process of its own.")
    ] = 1,
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

    Switches for stages that should work together, in any combination (docs/training.md):

      training:
        global_first: {share: 0.3}       # one adapter on all stages first, each stage goes on from it
        handoff_dropout: 0.1             # gold prompts without some of their hand-offs
        on_policy: {share: 0.25}         # a round on the stack's real hand-offs, with the gold targets
        keep_right_chains: {share: 0.2}  # a round on its own hand-offs from chains that ended right

    The comparators train exactly as many numbers as the stack (their rank is the sum of its ranks) on as many tokens.
    Killed at any moment, the same command goes on where it was, and ends with the same weights. --jobs divides the
    threads among its processes; on few cores, processes of one thread each train more tokens a second.

    Examples:

      cairn finetune stack.yaml --out runs/mine --jobs 2
      cairn finetune stack.yaml --out runs/mine --set training.tokens_total=300000 --no-comparators
      cairn finetune stack.yaml --base EleutherAI/pythia-160m --only answer
      cairn finetune stack.yaml --set training.on_policy=true --set training.global_first=0.3
    """
    spec = load_stack(stack, overrides or [])
    target = out or Path("runs") / spec.name
    finetune_stack(
        spec, target, base=base, only=only or (), comparators=comparators, jobs=jobs, bundle_base=bundle_base,
        device=device, say=typer.echo,
    )  # fmt: skip


def finetune_stack(
    spec: StackSpec,
    out: str | Path,
    *,
    base: str | None = None,
    only: Sequence[str] = (),
    comparators: bool = True,
    jobs: int = 1,
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
        jobs: adapters trained side by side, each in a process of its own with its share of the threads.
        bundle_base: copy a base that is a local folder into `out`, so that the folder can travel.
        device: see `bases.pick_device`.
        say: takes lines for the reader.

    Returns:
        What training.json holds: the numbers of the stack, of each phase, adapter and comparator. If `only` left
        something out, the names of what is missing, under "missing".

    Raises:
        ConfigError: a fault in the stack or its `training:` section, `only` names nothing, trained parameters would
            not be equal, or `out` holds the work of other settings.
        DataError: a fault in the examples, or pairs longer than the base's context.
        CheckpointError, TokenizerError: the base cannot be used.
        StorageError: `out` cannot be written.
        EngineError: a process of --jobs ended before its work was done.
    """
    from cairn.verbs.finetuning.stack_training import StackTrainer

    out = Path(out)
    if base is not None:
        given = Path(base).expanduser()  # a folder counts from here, not from stack.yaml
        spec = spec.model_copy(update={"base": str(given.resolve()) if given.is_dir() else base})
    if spec.folder is not None and out.resolve() == spec.folder:
        raise ConfigError(str(out), ["the result would overwrite its own stack.yaml"], next="choose another --out")
    training = StackTrainer(spec, out, only=only, comparators=comparators, device=device, say=say)
    training.check()
    missing = training.train(jobs)
    if missing:
        say(f"not trained yet: {', '.join(missing)}; the same command without --only trains them and completes {out}")
        return {"missing": missing}
    facts = {
        **training_facts(spec, training.settings, training.results, training.notes()),
        "examples": {
            "sha256": sha256_file(training.file),
            "training": len(training.examples),
            "held_out": len(training.held_out),
        },
    }
    write_stack_folder(spec, out, training.identity, facts, training.file, bundle_base=bundle_base)
    say(f'whole: {out}. Next: cairn run {out} "..."')
    return facts
