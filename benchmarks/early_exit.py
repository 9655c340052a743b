"""Early exit on this machine: tokens per second at batch 1 and bits per byte, beside the same model without exits.

    python -m benchmarks.early_exit [--quick] [--model MODEL] [--train FILE ...] [--text FILE ...] [--minutes M]

    MODEL has exits? ─ no ─▶ trained on with the objective for early exit, M minutes (generated text and --train files)
          │                        └─ the long form also trains a control without exits: what do they cost the model?
          ▼
    text ─┬─ one half: threshold and exits are chosen here, at most 0.01 more bits per byte
          └─ the other half: what is reported

Speed is wall-clock of writing passages of the reported text, one at a time, prompt included; every engine is held to
the passage's own tokens, so that speed and bits belong to the same tokens. Self-speculation is timed on greedy output,
which must be the plain engine's. The reference is the same weights with all layers, by the faster of two loops. Sides
take turns; medians over the turns. Without --text, held-out text of the generator is used: easier than prose.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from benchmarks.rows import finish, row
from cairn.bases import load_base
from cairn.data.lookup import documents as generated
from cairn.engines.exit_engine import ExitDecoding, ExitEngine
from cairn.engines.torch_engine import TorchEngine
from cairn.evaluation.exit_curve import forced, greedy, passages, threshold_within, writing_rates
from cairn.evaluation.suites import bits_per_byte, first_bytes
from cairn.evaluation.textfiles import read_documents
from cairn.models import CairnForCausalLM
from cairn.models.early_exit import early_exit_of
from cairn.models.tokenization import completion_ids, prompt_ids
from cairn.runs import RunFolder
from cairn.training.exit_objective import EarlyExitObjective, EarlyExitObjectiveConfig
from cairn.training.loop import LoopConfig, train
from cairn.training.objectives import NextToken, PretrainObjective
from cairn.training.optim import OptimizerConfig, ScheduleConfig, build_optimizers

MORE_BITS = 0.01  # per byte, that exits may cost
MARGIN = 0.8  # of it is used where the threshold is chosen, so that it holds on other text
ROWS, LENGTH = 16, 256
LAYERS = (1, 2, 4)  # exits that are trained, where they are below the last layer
DRAFT_SURENESS = (0.3, 0.5, 0.7)


class Nothing(BaseModel):
    """A run without settings."""


class Text:
    """Batches cut from one stream of tokens, the same for every run."""

    def __init__(self, stream: np.ndarray, objective: PretrainObjective) -> None:
        self.stream, self.objective = stream, objective

    def batch(self, step: int) -> dict[str, np.ndarray]:
        starts = np.random.default_rng([7, step]).integers(0, len(self.stream) - LENGTH - 1, ROWS)
        ids = np.stack([self.stream[start : start + LENGTH + 1] for start in starts]).astype(np.int64)
        return self.objective.prepare({"input_ids": ids[:, :-1], "labels": ids[:, 1:]}, step, 0)


def stream_of(tokenizer: PreTrainedTokenizerBase, files: Sequence[Path], size: int) -> np.ndarray:
    """Returns token ids of generated text and of the files, in equal parts of `size` bytes, documents in turn."""
    sources: list[Iterator[str]] = [first_bytes(map(str, generated(1)), size)]
    sources += [first_bytes(read_documents(path), size) for path in files]
    ids: list[int] = []
    for together in itertools.zip_longest(*sources):
        for document in together:
            if document:
                ids += prompt_ids(tokenizer, "") + completion_ids(tokenizer, document)
    return np.array(ids, dtype=np.int32)


def trained(
    model: CairnForCausalLM, tokenizer: PreTrainedTokenizerBase, files: Sequence[Path], steps: int | None,
    seconds: float, exits: bool,
) -> tuple[CairnForCausalLM, int]:
    """Returns a copy of the model trained on, with exits or without, and the steps that took.

    Args:
        steps: of the training; None: as many as fit into `seconds`, by the rate of the first ones.
    """
    config = copy.deepcopy(model.config)
    depth = config.num_hidden_layers
    if exits:
        config.early_exit = {"layers": [layer for layer in LAYERS if layer < depth], "norm": "own", "gate": True}
    new = CairnForCausalLM(config)
    new.load_state_dict(model.state_dict(), strict=False)  # norms of the exits begin as the final norm
    for norm in new.model.exit_norms.values() if exits else ():
        norm.load_state_dict(model.model.norm.state_dict())
    stream = stream_of(tokenizer, files, 4_000_000 if seconds > 300 else 1_000_000)

    def run(model: CairnForCausalLM, count: int) -> float:
        settings = EarlyExitObjectiveConfig(kind="early_exit", weight=1.0, weights="equal", exits="all")
        objective = EarlyExitObjective(settings, config, steps=count, seed=0) if exits else NextToken()
        optimizers = build_optimizers(
            model, OptimizerConfig(kind="muon", learning_rate=1e-3, muon_learning_rate=1e-3, weight_decay=0.05)
        )
        with tempfile.TemporaryDirectory() as folder:
            return train(
                model, objective, Text(stream, objective), optimizers, ScheduleConfig(kind="linear", warmup=0.05),
                count, LoopConfig(checkpoint_every=0, log_every=0), RunFolder(Path(folder) / "run", Nothing()),
                title="with exits" if exits else "control",
            ).seconds  # fmt: skip

    if steps is None:
        steps = max(4, round(seconds / (run(copy.deepcopy(new), 4) / 4)))
    run(new, steps)
    return new.eval(), steps


@torch.inference_mode()
def profile(
    model: CairnForCausalLM, tokenizer: PreTrainedTokenizerBase, documents: Sequence[str]
) -> tuple[dict[tuple[str, int], Tensor], dict[int, Tensor], int]:
    """Returns how sure each exit is of each token by each judge, nats of each exit and of the end, and the bytes."""
    depth = model.config.num_hidden_layers
    settings = early_exit_of(model.config.early_exit, depth)
    places = [*settings.layers, depth]
    sure: dict[tuple[str, int], list[Tensor]] = {}
    nats: dict[int, list[Tensor]] = {place: [] for place in places}
    for document in documents:
        ids = torch.tensor(prompt_ids(tokenizer, document))
        for start in range(0, len(ids) - 1, LENGTH):
            window = ids[None, start : start + LENGTH + 1]
            x, inputs = model.model.begin(window[:, :-1], use_cache=False)
            for low, high in itertools.pairwise([0, *places]):
                x = model.model.run_layers(x, inputs, low, high)
                state = model.model.norm_after(high)(x)
                logs = model.lm_head(state)[0].float().log_softmax(-1)
                sure.setdefault(("probability", high), []).append(logs.amax(-1).exp())
                if settings.gate and high != depth:
                    sure.setdefault(("gate", high), []).append(model.model.exit_gates[str(high)](state)[0, :, 0])
                nats[high].append(-logs.gather(1, window[0, 1:, None])[:, 0])
    size = sum(len(document.encode()) for document in documents)
    return {k: torch.cat(v) for k, v in sure.items()}, {k: torch.cat(v) for k, v in nats.items()}, size


def best_exits(model: CairnForCausalLM, engine: Any, tokenizer: Any, documents: Sequence[str]) -> dict[str, Any]:
    """Returns the exits and the threshold that write fastest within the allowed bits, judged on the tuning text."""
    sure, nats, size = profile(model, tokenizer, documents)
    depth = model.config.num_hidden_layers
    full = float(nats[depth].sum())
    exits = [layer for layer in nats if layer != depth]
    judges = sorted({judge for judge, _ in sure})
    pairs = passages(documents, 3)
    sides: dict[str, Any] = {}
    choices = itertools.chain.from_iterable(itertools.combinations(exits, count) for count in (1, 2))
    for judge, layers in itertools.product(judges, choices):

        def bits(threshold: float, judge: str = judge, layers: tuple[int, ...] = layers) -> float:
            chosen = nats[depth]
            for layer in reversed(layers):
                chosen = torch.where(sure[judge, layer] >= threshold, nats[layer], chosen)
            return float(chosen.sum()) / math.log(2) / size

        threshold = threshold_within(bits, full / math.log(2) / size + MARGIN * MORE_BITS, halvings=9)
        settings = ExitDecoding(threshold=threshold, layers=layers, judge=judge)
        name = f"{judge}, exits {layers}, threshold {threshold:.3f}"
        sides[name] = ExitEngine(model, tokenizer=tokenizer, exits=settings)
    rates = writing_rates(sides, forced(engine, pairs), 1)
    for name, found in rates.items():
        print(f"tuning: {name}: {found['tokens_per_s']:.0f} tokens/s")
    return sides[max(sides, key=lambda name: rates[name]["tokens_per_s"])].exits.model_dump()


def best_drafts(model: CairnForCausalLM, tokenizer: Any, documents: Sequence[str]) -> dict[str, Any]:
    """Returns the exit and the sureness whose drafts write fastest on the tuning text."""
    exits = early_exit_of(model.config.early_exit, model.config.num_hidden_layers).layers
    sides = {}
    for layer, sureness in itertools.product(exits, DRAFT_SURENESS):
        settings = ExitDecoding(mode="speculative", layers=(layer,), threshold=sureness)
        sides[f"exit {layer}, sureness {sureness}"] = ExitEngine(model, tokenizer=tokenizer, exits=settings)
    rates = writing_rates(sides, greedy(passages(documents, 2), 64), 1)
    for name, found in rates.items():
        print(f"tuning: drafts of {name}: {found['tokens_per_s']:.0f} tokens/s")
    return sides[max(sides, key=lambda name: rates[name]["tokens_per_s"])].exits.model_dump()


def measured(model: CairnForCausalLM, tokenizer: Any, tuning: Sequence[str], held: Sequence[str], turns: int) -> Any:
    """Returns the rows of the two ways to use exits."""
    plain = TorchEngine(model, tokenizer=tokenizer)
    settings = best_exits(model, plain, tokenizer, tuning)
    drafts = best_drafts(model, tokenizer, tuning)
    early = ExitEngine(model, tokenizer=tokenizer, exits=ExitDecoding(**settings))
    never = ExitEngine(model, tokenizer=tokenizer, exits=ExitDecoding(threshold=2.0))
    pairs = passages(held, 12 if turns > 5 else 6)
    rates = writing_rates({"early": early, "plain": plain, "never": never}, forced(plain, pairs), turns)
    reference = max(rates["plain"]["tokens_per_s"], rates["never"]["tokens_per_s"])
    early.exit_usage.tokens.clear()
    bits, full = bits_per_byte(early, held)["bits_per_byte"], bits_per_byte(plain, held)["bits_per_byte"]
    taken, whole = early.exit_usage.tokens, sum(early.exit_usage.tokens.values())
    shares = {str(layer): taken[layer] / whole for layer in sorted(taken)}
    chosen = {"threshold": settings["threshold"], "judge": settings["judge"],
              "layers": list(settings["layers"]), "exits_taken": shares}
    name = "same model, all layers"
    rows = [
        row("early exit by confidence, batch 1", "tokens/s", rates["early"]["tokens_per_s"], reference, name, 1.2,
            spread=rates["early"]["spread"], more_bits_per_byte=bits - full, turns=turns, **chosen),
        row("its text", "bits per byte", bits, full, name, full / (full + MORE_BITS), smaller_is_better=True, **chosen),
    ]  # fmt: skip
    fast = ExitEngine(model, tokenizer=tokenizer, exits=ExitDecoding(**drafts))
    rates = writing_rates({"drafts": fast, "plain": plain, "never": never}, greedy(pairs, 64), turns)
    reference = max(rates["plain"]["tokens_per_s"], rates["never"]["tokens_per_s"])
    same = [one == other for one, other in zip(rates["drafts"]["texts"], rates["plain"]["texts"], strict=True)]
    used = {"draft_exit": drafts["layers"][0], "sureness": drafts["threshold"],
            "drafts_kept": fast.exit_usage.kept / max(fast.exit_usage.drafted, 1)}
    rows += [
        row("self-speculative, greedy, batch 1", "tokens/s", rates["drafts"]["tokens_per_s"], reference, name, 1.1,
            spread=rates["drafts"]["spread"], turns=turns, **used),
        row("self-speculative, same output", "share of texts", sum(same) / len(same), 1.0, "plain greedy", 1.0, **used),
    ]  # fmt: skip
    return rows, full


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a shorter training and fewer turns; under five minutes")
    parser.add_argument("--model", default="embedded:base", help="folder, Hugging Face name or embedded:base")
    parser.add_argument("--train", type=Path, nargs="*", default=[], help="text to train on beside the generated")
    parser.add_argument("--text", type=Path, nargs="*", default=[], help="text to measure on, not trained on")
    parser.add_argument("--minutes", type=float, help="of training, where the model has no exits; 2 or 20")
    given = parser.parse_args()
    minutes = given.minutes or (2 if given.quick else 20)
    base, tokenizer = load_base(given.model, dtype="float32", device="cpu")
    size = 24_000 if given.quick else 100_000
    if given.text:
        documents = [document for path in given.text for document in first_bytes(read_documents(path), 2 * size)]
    else:
        documents = list(first_bytes(map(str, generated(2)), 2 * size))
    if len(documents) == 1:
        middle = len(documents[0]) // 2
        documents = [documents[0][:middle], documents[0][middle:]]
    tuning, held = documents[::2], documents[1::2]
    model, more = base, []
    began = time.perf_counter()
    if base.config.early_exit is None:
        print(f"{given.model} has no exits: training them in for {minutes:g} minutes")
        model, steps = trained(base, tokenizer, given.train, None, 60 * minutes, exits=True)
        if not given.quick:
            control, _ = trained(base, tokenizer, given.train, steps, 60 * minutes, exits=False)
            ours, alone = (bits_per_byte(TorchEngine(one, tokenizer=tokenizer), held)["bits_per_byte"]
                           for one in (model, control))
            more = [row("the whole model, trained with exits", "bits per byte", ours, alone,
                        f"the same {steps} steps without exits", None, smaller_is_better=True)]
        print(f"{steps} steps, {time.perf_counter() - began:.0f} s")
    rows, full = measured(model, tokenizer, tuning, held, 5 if given.quick else 9)
    print(f"all layers: {full:.4f} bits per byte")
    for entry in rows + more:
        print(f"{entry['case']}: {entry['ours']:.4g} {entry['unit']} beside {entry['reference']:.4g}, "
              f"ratio {entry['ratio']:.3f}, promised {entry['at_least']}")
    return finish("early_exit", rows + more)


if __name__ == "__main__":
    sys.exit(main())
