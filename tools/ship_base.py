"""Puts a pretrained base into the package, with a model card whose every number comes from a run.

    python tools/ship_base.py runs/base recipes/base.yaml text.json blimp.json

    runs/base            what `cairn pretrain` left: model/, metrics.jsonl, shards/manifest.json, versions.json
    recipes/base.yaml    the recipe, as committed
    text.json            what `cairn eval runs/base/model --text ... --context 512 --stride 256 --out text.json` left
    blimp.json           what `cairn eval runs/base/model --blimp ... --out blimp.json` left

Writes src/cairn/assets/base: the model folder, scores.json, curve.jsonl, curve.svg and README.md (the card).
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from cairn.runs import read_jsonl

TARGET = Path(__file__).resolve().parents[1] / "src" / "cairn" / "assets" / "base"
LIMIT = 16_000_000  # bytes of weights and tokenizer


def main(run: Path, recipe: Path, *score_files: Path) -> None:
    shutil.rmtree(TARGET, ignore_errors=True)
    shutil.copytree(run / "model", TARGET)
    size = sum((TARGET / name).stat().st_size for name in ("model.safetensors", "tokenizer.json"))
    if size > LIMIT:
        sys.exit(f"the base is {size:,} bytes with its tokenizer, allowed: {LIMIT:,}")
    rows = read_jsonl(run / "metrics.jsonl")
    runs = [json.loads(file.read_text()) for file in score_files]
    scores = {key: value for one in runs for key, value in one.items() if key in ("parameters", "text", "blimp")}
    scores["runs"] = [{key: one[key] for key in ("settings", "seconds", "versions")} for one in runs]
    manifest = json.loads((run / "shards" / "manifest.json").read_text())
    made = json.loads((run / "versions.json").read_text())
    (TARGET / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")
    (TARGET / "curve.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (TARGET / "curve.svg").write_text(curve(rows))
    (TARGET / "README.md").write_text(card(rows, scores, manifest, made, recipe, size))
    print(f"{TARGET.relative_to(TARGET.parents[3])}: {size:,} bytes of weights and tokenizer")


def curve(rows: list[dict[str, Any]]) -> str:
    """Draws training loss, and bits per byte of each validation file, over the steps."""
    loss = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    held = {key.split("/")[1]: [(row["step"], row[key]) for row in rows if key in row]
            for row in rows for key in row if key.startswith("bits_per_byte/")}
    width, height, left, top = 640, 260, 44, 12
    steps, highest = loss[-1][0], 7.0

    def at(step: float, value: float) -> str:
        x = left + step / steps * (width - left - 120)
        return f"{x:.1f},{top + (1 - min(value, highest) / highest) * (height - top - 30):.1f}"

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
             'font-size="11"><rect width="100%" height="100%" fill="white"/>']
    for value in range(0, 8):
        y = at(0, value).split(",")[1]
        parts.append(f'<line x1="{left}" x2="{width - 120}" y1="{y}" y2="{y}" stroke="#ddd"/>'
                     f'<text x="{left - 8}" y="{y}" dy="4" text-anchor="end">{value}</text>')
    colours = ["#1f5fa8", "#b5472f", "#2d7d46", "#8a5aa8", "#a07a1f"]
    lines = [("loss (nats per token)", loss), *((f"{name} (bits per byte)", points) for name, points in held.items())]
    for number, (name, points) in enumerate(lines):
        path = " ".join(at(*point) for point in points)
        y = 22 + 15 * number
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colours[number % 5]}" stroke-width="1.5"/>'
                     f'<text x="{width - 168}" y="{y}" fill="{colours[number % 5]}">{name}</text>')
    parts.append(f'<text x="{(width - 120 + left) / 2}" y="{height - 6}" text-anchor="middle">step (of {steps:,})'
                 "</text></svg>")
    return "".join(parts)


def card(
    rows: list[dict[str, Any]], scores: dict[str, Any], manifest: dict[str, Any], made: dict[str, Any], recipe: Path,
    size: int,
) -> str:
    last = [row for row in rows if "loss" in row][-1]
    samples = [row for row in rows if "sample" in row][-1]
    blimp = scores["blimp"]
    sources = "\n".join(
        f"| {name} | {one['licence']} | {one['tokens']:,} | {one['raw_bytes'] / 1e6:.1f} | {one['passes']:g} | "
        f"{one['rejected']} |"
        for name, one in manifest["sources"].items()
    )
    mean = 100 * blimp["accuracy"]
    low, high = (100 * edge for edge in blimp["ci95"])
    text = "\n".join(
        f"| {Path(name).name} | {part['bits_per_byte']:.3f} | {part['bytes']:,} |"
        for name, part in scores["text"].items()
    )
    fields = sorted(blimp["paradigms"].items(), key=lambda item: item[1]["accuracy"])
    worst = ", ".join(f"{name} {100 * part['accuracy']:.1f}" for name, part in fields[:3])
    best = ", ".join(f"{name} {100 * part['accuracy']:.1f}" for name, part in fields[-3:])
    return f"""---
license: apache-2.0
language: en
library_name: transformers
pipeline_tag: text-generation
---
# Cairn base

A decoder of {scores['parameters']:,} parameters (8 layers x 256, 4 heads of 64, SwiGLU 736, QK-norm, RoPE, tied
embedding, byte-fallback BPE of 4,096), the default base of every Cairn verb: {size / 1e6:.1f} MB with its tokenizer. It
is made to be specialised with LoRA adapters for small decisions on short English text; on its own it knows little
and writes simple, often wandering prose. Context 512 tokens in training, 1,024 in the configuration.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)   # or: import cairn.models
```

## How it was made

`cairn pretrain recipes/base.yaml --set data.root=FOLDER_WITH_THE_DATA`, seed 1, {last['step']:,} steps,
{last['tokens']:,} tokens (less than one epoch of the prose), Muon for the matrices and AdamW for the rest, WSD
schedule, bf16 autocast, torch.compile; {last['seconds'] / 60:.0f} minutes of training on two shared CPU cores
({last['tokens'] / last['seconds']:,.0f} tokens/s on average, other work running beside it); torch
{made['packages']['torch']}, transformers {made['packages']['transformers']}. The code is that of the first commit of
the repository; later ones word some generated sentences differently, so that a run of today's code gives another
model, made in the same way.

| source | licence | tokens | MB | passes | pieces dropped as evaluation text |
|---|---|---|---|---|---|
{sources}

`lookup` is Cairn's own generator of look-up, tracking and copying text (docs/lookup.md). Every piece was checked
against the evaluation sets named under `keep_out` in the recipe ({recipe.name}): shared runs of 13 words, and whole
sentences of 6 words or more.

![training loss and bits per byte](curve.svg)

## What it scores

`cairn eval` in float32, windows of 512 tokens with a stride of 256 for bits per byte; all figures and the commands are
in scores.json.

| held-out text | bits per byte | bytes |
|---|---|---|
{text}

BLiMP, macro mean of {len(blimp['paradigms'])} paradigms, ties counting one half: **{mean:.1f}**
(95% interval {low:.1f} to {high:.1f}; chance 50). Lowest: {worst}. Highest: {best}.

## What it writes

Sampled at temperature 0.8 from the last step of training, not selected:

```
{samples['sample']}
```

## Limits

English only; one training seed; old-fashioned wording from books of the public domain; no safety tuning of any kind.
Its text is not to be trusted for facts.
"""


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    main(*(Path(argument) for argument in sys.argv[1:]))
