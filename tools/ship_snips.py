"""Puts a stack that `cairn compare recipes/snips.yaml` trained beside the example that turns commands into JSON.

    python tools/ship_snips.py runs/snips FOLDER_WITH_THE_SNIPS_FILES

    runs/snips/seed-0/stack   adapters, whose weights are rounded to bfloat16; stack.yaml; settings
    runs/snips/result.json    what the stack scores on the test commands
    snips_train.jsonl.xz      makes the list of known names

Writes examples/snips: the stack, names.jsonl.xz, scores.json and README.md, whose numbers come from the run.
"""

from __future__ import annotations

import json
import lzma
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from cairn.config import save_config
from cairn.evaluation.tasks.snips_known import Lexicon
from cairn.evaluation.textfiles import read_rows
from cairn.files import sha256_file, write_json, write_text
from cairn.stacks.spec import load_stack

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
    place = result["seeds"].index(seed)
    scores = {
        "n_test": result["n_test"], "accuracy": result["accuracy_by_seed"]["stack"][place],
        "measures": {name: one["by_seed"][place] for name, one in result["measures"]["stack"].items()},
        "seed": seed, "versions": result["versions"], "training": json.loads((source / "training.json").read_text()),
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


def card(scores: dict[str, Any]) -> str:
    stack = scores["training"]["stack"]
    return f"""# snips-frames

The stack of `recipes/snips.yaml`, ready to answer: a user's command becomes its intent and slots as JSON.

```
python examples/command_to_json.py "put the quiet hour on my evening list"
```

Two LoRA adapters on the base inside the package, {stack['trained_parameters']:,} trained parameters in bfloat16,
{stack['training_tokens']:,} training tokens, seed {scores['seed']}. Of {scores['n_test']} test commands it gets
{100 * scores['accuracy']:.1f}% whole frames right; scores.json has the other figures and the run they come from.

`names.jsonl.xz` is the list of names: what filled which slot in the training commands, and how often. Commands: SNIPS
(sonos/nlu-benchmark), CC0 1.0, the split of Goo et al. 2018.
"""


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
