"""Puts a stack that `cairn compare recipes/snips.yaml` trained beside the example that turns commands into JSON.

    python tools/ship_snips.py runs/snips FOLDER_WITH_THE_SNIPS_FILES

    runs/snips/seed-0/stack   adapters, whose weights are rounded to bfloat16; stack.yaml; settings
    runs/snips/data           the test commands, which the rounded adapters answer once more
    snips_train.jsonl.xz      makes the list of known names

Writes examples/snips: the stack, names.jsonl.xz, scores.json and README.md, whose numbers come from the run.
"""

from __future__ import annotations

import json
import lzma
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from cairn.config import save_config
from cairn.evaluation.systems import Question
from cairn.evaluation.tasks.snips import TASK
from cairn.evaluation.tasks.snips_known import Lexicon
from cairn.evaluation.textfiles import read_rows
from cairn.files import sha256_file, write_json, write_text
from cairn.runs import versions
from cairn.stacks.runner import Runner
from cairn.stacks.spec import load_stack
from cairn.verbs.comparison.experiment import read_questions_file
from cairn.verbs.run import open_engine, open_stack

TARGET = Path(__file__).resolve().parents[1] / "examples" / "snips"
WEIGHTS = "adapter_model.safetensors"


def main(run: Path, data: Path, seed: int = 0) -> None:
    source = run / f"seed-{seed}" / "stack"
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    shutil.rmtree(TARGET, ignore_errors=True)
    for adapter in sorted((source / "stages").iterdir()):
        ship_adapter(adapter, TARGET / "stages" / adapter.name)
    save_config(load_stack(source).model_copy(update={"examples": None}), TARGET / "stack.yaml")
    shutil.copyfile(source / "base.json", TARGET / "base.json")
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "names.jsonl"
        Lexicon(list(read_rows(data / "snips_train.jsonl.xz"))).save(plain)
        (TARGET / "names.jsonl.xz").write_bytes(lzma.compress(plain.read_bytes(), preset=9 | lzma.PRESET_EXTREME))
    training = json.loads((source / "training.json").read_text(encoding="utf-8"))
    recipe = {key: training["settings"][key] for key in ("tokens_total", "batch_tokens", "learning_rate", "precision")}
    scores = {
        **scored(read_questions_file(run / "data" / "test.jsonl")), "seed": seed, "recipe": "recipes/snips.yaml",
        "training": {**training["stack"], **recipe}, "adapters": training["adapters"],
        "versions": {key: versions()[key] for key in ("python", "packages", "machine", "commit")},
        "trained_by_commit": result["versions"]["commit"],
    }  # fmt: skip
    write_json(TARGET / "scores.json", scores)
    write_text(TARGET / "README.md", card(scores))
    size = sum(file.stat().st_size for file in TARGET.rglob("*") if file.is_file())
    print(f"{TARGET.relative_to(TARGET.parents[1])}: {size:,} bytes")


def ship_adapter(source: Path, target: Path) -> None:
    """Copies an adapter folder; weights are rounded, and its card says so."""
    shutil.copytree(source, target)
    weights = {name: one.to(torch.bfloat16) for name, one in load_file(source / WEIGHTS).items()}
    save_file(weights, target / WEIGHTS, {"format": "pt"})
    facts = json.loads((target / "cairn_adapter.json").read_text(encoding="utf-8"))
    write_json(target / "cairn_adapter.json", {**facts, "weights_sha256": sha256_file(target / WEIGHTS)})


def scored(questions: Sequence[Question]) -> dict[str, Any]:
    """Returns what the shipped stack, with its rounded weights, scores on the test commands."""
    spec = open_stack(str(TARGET))
    traces = Runner(spec, open_engine(spec, device="cpu")).run([question.inputs for question in questions])
    answers = [trace.answer for trace in traces]
    right = [TASK.score(answer, question) for answer, question in zip(answers, questions, strict=True)]
    return {"n_test": len(right), "accuracy": sum(right) / len(right), "measures": TASK.measures(answers, questions)}


def card(scores: dict[str, Any]) -> str:
    stack, right, intents = scores["training"], scores["accuracy"], scores["measures"]["intent_accuracy"]
    return f"""# snips-frames

The stack of `recipes/snips.yaml`, ready to answer: a user's command becomes its intent and slots as JSON.

```
python examples/command_to_json.py "put the quiet hour on my evening list"
```

Two LoRA adapters on the base inside the package, {stack['trained_parameters']:,} trained parameters in bfloat16,
{stack['training_tokens']:,} training tokens, seed {scores['seed']}. Of {scores['n_test']} test commands it gets
{100 * right:.1f}% whole right as it is here, and {100 * intents:.1f}% of the intents; scores.json has all figures.

`names.jsonl.xz` is the list of names: what filled which slot in the training commands, and how often. Commands: SNIPS
(sonos/nlu-benchmark), CC0 1.0, the split of Goo et al. 2018.
"""


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
