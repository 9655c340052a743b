"""What the recipe `fslm-alpaca-pythia160m` costs on this machine: time and memory of training it and of its answers.

    python -m benchmarks.fslm_cost [--quick]

The base has Pythia-160M's shape and random weights, which cost what trained ones do; its tokenizer is made here. The
examples have the lengths that the recipe asks for, in made-up words. Training goes through `cairn finetune`, timed at
its last steps, beside a plain transformers and PEFT loop with the same adapter shape on the same batches; answers go
through the stack's runner, beside `set_adapter` and `generate` call by call. The whole recipe's hours are computed from
the rate, and marked so. Peak memory is that of the training process.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM

from benchmarks.rows import finish, row
from cairn.bases import pick_precision
from cairn.data.examples import adapter_pairs, read_examples
from cairn.engines.torch_engine import TorchEngine
from cairn.models.tokenization import train_bpe
from cairn.stacks.runner import Runner
from cairn.stacks.spec import StackSpec, check_artifacts, load_stack
from cairn.training.batching import PairBatches, encode_pairs
from cairn.verbs.comparison.recipe import load_recipe

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("task", "facts", "plan", "answer")
LENGTHS = {"request": 24, "task": 4, "facts": 8, "plan": 20, "answer": 55}  # words, about the means of Alpaca's rows
WARM = 1  # steps of each training that do not count
# Runs a command and prints the most memory that it ever held, in KiB on Linux.
_WATCHED = (
    "import resource, subprocess, sys; code = subprocess.run(sys.argv[1:], stdout=sys.stderr).returncode; "
    "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
)


def words(count: int, draw: random.Random) -> str:
    """Returns made-up words of two or three syllables."""
    syllables = [a + b for a in "bdfgklmnprstvw" for b in "aeiou"]
    return " ".join("".join(draw.choices(syllables, k=draw.randint(2, 3))) for _ in range(count))


def make_base(folder: Path) -> None:
    """Writes a model of Pythia-160M's shape with random weights, and a tokenizer."""
    torch.manual_seed(0)
    draw = random.Random(0)
    tokenizer = train_bpe([words(200, draw) for _ in range(200)], 4096, model_max_length=2048)
    config = GPTNeoXConfig(
        vocab_size=50304, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12,
        max_position_embeddings=2048, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    GPTNeoXForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_examples(path: Path, count: int) -> None:
    """Writes stage examples of the recipe's form."""
    draw = random.Random(1)
    lines = []
    for number in range(count):
        request = words(LENGTHS["request"], draw)
        stages = {stage: words(LENGTHS[stage], draw) for stage in STAGES}
        stages["facts"] = " ".join(draw.sample(request.split(), LENGTHS["facts"]))
        row = {"id": str(number), "inputs": {"request": request}, "stages": stages, "answer": stages["answer"]}
        lines.append(json.dumps(row) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


def finetune(stack: Path, out: Path) -> float:
    """Trains the stack with `cairn finetune` and returns the most memory of the process, in MiB."""
    command = [sys.executable, "-m", "cairn", "finetune", str(stack), "--out", str(out), "--no-comparators",
               "--no-bundle-base"]
    done = subprocess.run([sys.executable, "-c", _WATCHED, *command], stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout.split()[-1]) / 1024


def rates(out: Path) -> list[float]:
    """Returns the rate of every logged step of every adapter, the last one at least, in tokens per second."""
    found = []
    for stage in STAGES:
        lines = (out / "training" / stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        logged = [json.loads(line) for line in lines]
        found += [entry["tokens_per_s"] for entry in logged if entry["step"] > WARM and "tokens_per_s" in entry]
    return found


def plain_training(base: Path, stack: StackSpec, steps: int) -> float:
    """Returns the median rate of a transformers and PEFT loop on the batches of the stage `answer`."""
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    examples = read_examples(Path(stack.folder or ".") / str(stack.examples), stack)
    pairs = encode_pairs(tokenizer, adapter_pairs(stack, "answer", examples), 2048)
    batches = PairBatches(pairs, batch_tokens=stack.training["batch_tokens"], steps=WARM + steps, pad_id=0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-4, weight_decay=0.0)
    mixed = pick_precision("auto", torch.device("cpu")) == "bf16"  # as the recipe's precision: auto
    model.train()
    found = []
    for step in range(WARM + steps):
        batch = {name: torch.from_numpy(values) for name, values in batches.batch(step).items()}
        tokens = batches.tokens_until(step + 1) - batches.tokens_until(step)
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            logits = model(input_ids=batch["input_ids"], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch["labels"].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        found.append(tokens / (time.perf_counter() - began))
    return statistics.median(found[WARM:])


def stack_answers(trained: StackSpec, requests: list[str]) -> tuple[list[float], list[list[tuple[str, int]]]]:
    """Returns milliseconds of each answer, one question at a time, and of each its calls: (prompt, tokens written)."""
    engine = TorchEngine(trained.base_place, check_artifacts(trained), device="cpu")
    runner = Runner(trained, engine)
    runner.run([{"request": requests[0]}])
    times, calls = [], []
    for request in requests:
        began = time.perf_counter()
        [trace] = runner.run([{"request": request}])
        times.append(1000 * (time.perf_counter() - began))
        calls.append([(call.prompt, call.new_tokens) for stage in trace.stages for call in stage.calls])
    return times, calls


def plain_answers(trained: StackSpec, calls: list[list[tuple[str, int]]]) -> list[float]:
    """Returns milliseconds of the same calls through PEFT's `set_adapter` and transformers' `generate`."""
    tokenizer = AutoTokenizer.from_pretrained(trained.base_place)
    base = AutoModelForCausalLM.from_pretrained(trained.base_place, dtype=torch.float32)
    folders = {name: str(path) for name, path in check_artifacts(trained).items()}
    model = PeftModel.from_pretrained(base, folders["task"], adapter_name="task")
    for name in STAGES[1:]:
        model.load_adapter(folders[name], adapter_name=name)
    model.eval()
    times = []
    for question in calls:
        began = time.perf_counter()
        for name, (prompt, written) in zip(STAGES, question, strict=True):
            model.set_adapter(name)
            ids = tokenizer(prompt, return_tensors="pt").input_ids
            with torch.inference_mode():
                model.generate(
                    input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=max(written, 1),
                    max_new_tokens=max(written, 1), pad_token_id=0,
                )  # fmt: skip
        times.append(1000 * (time.perf_counter() - began))
    return times


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer steps and questions; under five minutes")
    quick = parser.parse_args().quick
    steps, asked = (2, 2) if quick else (8, 12)  # steps of each stage; the plain loop makes three times as many
    recipe = load_recipe(ROOT / "recipes" / "fslm-alpaca-pythia160m.yaml")
    whole = recipe.stack.training["tokens_total"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_base(folder / "base")
        make_examples(folder / "train.jsonl", 400)
        batch = recipe.stack.training["batch_tokens"]
        training = {
            **recipe.stack.training, "tokens_total": 4 * (WARM + steps) * batch, "validation_examples": 0,
            "adapters": {}, "checkpoint_every": 10_000,
        }  # fmt: skip
        # An untrained base says anything: without contracts every stage writes once, as a trained one does.
        stages = [stage.model_dump(mode="json", exclude={"contract"}) for stage in recipe.stack.stages]
        definition: dict[str, Any] = {
            "name": "fslm-cost", "base": str(folder / "base"), "inputs": ["request"], "examples": "train.jsonl",
            "stages": stages, "training": training,
        }  # fmt: skip
        (folder / "stack.yaml").write_text(json.dumps(definition), encoding="utf-8")  # JSON is YAML
        spec = load_stack(folder / "stack.yaml")
        memory = finetune(folder / "stack.yaml", folder / "out")
        each = rates(folder / "out")
        ours = statistics.median(each)
        plain = plain_training(folder / "base", spec, 3 * steps)
        print(f"training: {ours:,.0f} tokens/s ({min(each):,.0f} to {max(each):,.0f}), plain loop {plain:,.0f}; "
              f"{memory:,.0f} MiB; all {whole:,} tokens of the recipe: {whole / ours / 3600:.1f} hours (computed)")
        draw = random.Random(2)
        requests = [words(LENGTHS["request"], draw) for _ in range(asked)]
        times, calls = stack_answers(load_stack(folder / "out"), requests)
        reference = plain_answers(load_stack(folder / "out"), calls)
    written = sum(tokens for question in calls for _, tokens in question) / len(calls)
    latency, other = statistics.median(times), statistics.median(reference)
    print(f"answers: {latency:,.0f} ms each ({min(times):,.0f} to {max(times):,.0f}), {written:.0f} tokens written; "
          f"plain {other:,.0f} ms")
    return finish("fslm_cost", [
        row("LoRA on the Pythia-160M shape, four stages", "tokens/s", ours, plain, "plain transformers and PEFT loop",
            0.95, spread=[min(each), max(each)], peak_memory_mib=round(memory), recipe_tokens=whole,
            recipe_hours_computed=whole / ours / 3600, threads=torch.get_num_threads()),
        row("one answer of the stack, four calls", "ms", latency, other, "set_adapter and generate, call by call", None,
            smaller_is_better=True, spread=[min(times), max(times)], tokens_written=written, questions=asked),
    ])


if __name__ == "__main__":
    sys.exit(main())
