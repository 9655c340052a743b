"""`cairn exits`: what early exit saves and costs, threshold by threshold, on the machine at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cairn.errors import InputError
from cairn.files import write_json
from cairn.runs import versions

__all__ = ["exits"]

_THRESHOLDS = "0.3,0.5,0.7,0.8,0.9,0.95"


def exits(
    model: Annotated[str, typer.Argument(help="Model: folder, Hugging Face name or embedded:base.")],
    text: Annotated[list[Path], typer.Option(help="Text file to score and to write along. May be repeated.")],
    thresholds: Annotated[str, typer.Option(help="From 0 to 1: when an exit is sure. With commas.")] = _THRESHOLDS,
    layers: Annotated[str | None, typer.Option(help="Exits to use, with commas. Default: all of the model.")] = None,
    draft_layer: Annotated[int | None, typer.Option(min=1, help="Exit that drafts. Default: the first used.")] = None,
    draft_threshold: Annotated[float, typer.Option(min=0.0, help="How sure a drafted token must be.")] = 0.6,
    max_bytes: Annotated[int, typer.Option(min=1, help="First N bytes of each text file.")] = 60_000,
    passages: Annotated[int, typer.Option(min=1, help="Passages that are timed.")] = 8,
    turns: Annotated[int, typer.Option(min=1, help="How often each is timed; the median counts.")] = 5,
    out: Annotated[Path | None, typer.Option(help="Write the result as JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON instead of tables.")] = False,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto.")] = "float32",
) -> None:
    """Measure early exit: tokens per second and bits per byte against the threshold.

    Bits per byte are those of the text under the first sure exit of every token. Tokens per second are measured while
    writing passages of that text one at a time, so that speed and bits belong to the same tokens. Self-speculation is
    timed on what the model writes greedily, and its output compared with the full model's.

    Examples:

      cairn exits runs/early/model --text valid.jsonl.xz
      cairn exits embedded:base --text valid.txt --layers 4 --thresholds 0.5,0.9
    """
    used = tuple(_numbers(layers, "--layers", int)) if layers else None
    levels = _numbers(thresholds, "--thresholds", float)
    if any(level <= 0 for level in levels) or draft_threshold <= 0:
        raise InputError("an exit is always surer than 0", value=thresholds, allowed="thresholds above 0")
    from cairn.evaluation.suites import first_bytes
    from cairn.evaluation.textfiles import read_documents

    documents = [document for path in text for document in first_bytes(read_documents(path), max_bytes)]
    result = measure(
        model, documents, levels=levels, used=used, draft_layer=draft_layer, draft_threshold=draft_threshold,
        count=passages, turns=turns, device=device, dtype=dtype,
    )  # fmt: skip
    result |= {"text": [str(path) for path in text], "max_bytes": max_bytes, "versions": versions(0)}
    if out is not None:
        write_json(out, result)
    if as_json:
        print(json.dumps(result, allow_nan=False))
    else:
        _print(result)


def measure(
    model: str, documents: list[str], *, levels: list[float], used: tuple[int, ...] | None, draft_layer: int | None,
    draft_threshold: float, count: int, turns: int, device: str, dtype: str,
) -> dict[str, Any]:
    """Returns what `cairn exits` prints; the arguments are its options.

    Raises:
        EngineError: the model has no such exits.
    """
    from cairn.bases import load_base, pick_device
    from cairn.engines.exit_engine import ExitDecoding, ExitEngine
    from cairn.engines.torch_engine import TorchEngine
    from cairn.evaluation.exit_curve import forced, greedy, passages, writing_rates
    from cairn.evaluation.suites import bits_per_byte
    from cairn.progress import Progress

    loaded, tokenizer = load_base(model, dtype=dtype, device=pick_device(device))

    def engine(**options: Any) -> ExitEngine:
        return ExitEngine(loaded, tokenizer=tokenizer, exits=ExitDecoding(**options))

    full = TorchEngine(loaded, tokenizer=tokenizer)
    sides: dict[str, Any] = {"full": full, **{f"{level:g}": engine(threshold=level, layers=used) for level in levels}}
    first = sides[f"{levels[0]:g}"].cuts[1]
    drafts = engine(mode="speculative", layers=(draft_layer or first,), threshold=draft_threshold)
    pairs = passages(documents, count)
    with Progress("writing", total=turns, unit="turn") as progress:
        rates = writing_rates(sides, forced(full, pairs), turns, lambda done, _: progress.advance(done - progress.done))
    depth = loaded.config.num_hidden_layers
    rows: list[dict[str, Any]] = []
    for name, side in sides.items():
        if name != "full":
            side.exit_usage.tokens.clear()  # the shares are those of the scored text
        found = bits_per_byte(side, documents)
        taken = {depth: 1} if name == "full" else dict(side.exit_usage.tokens)
        whole = sum(taken.values())
        rows.append({
            "threshold": None if name == "full" else float(name), "tokens_per_s": rates[name]["tokens_per_s"],
            "spread": rates[name]["spread"], "bits_per_byte": found["bits_per_byte"],
            "layers_per_token": sum(level * share for level, share in taken.items()) / whole,
            "exits": {str(level): taken[level] / whole for level in sorted(taken)},
        })  # fmt: skip
    with Progress("drafting", total=turns, unit="turn") as progress:
        written = writing_rates(
            {"full": full, "drafts": drafts}, greedy(pairs, 64), turns,
            lambda done, _: progress.advance(done - progress.done),
        )  # fmt: skip
    usage = drafts.exit_usage
    return {
        "model": model, "layers": depth, "exits": list(sides[f"{levels[0]:g}"].cuts[1:-1]),
        "dtype": str(loaded.dtype).removeprefix("torch."), "turns": turns, "passages": len(pairs), "rows": rows,
        "speculative": {
            "exit": drafts.cuts[1], "threshold": draft_threshold,
            "tokens_per_s": written["drafts"]["tokens_per_s"], "full_tokens_per_s": written["full"]["tokens_per_s"],
            "same_texts": written["drafts"]["texts"] == written["full"]["texts"],
            "drafted": usage.drafted, "kept": usage.kept,
        },
    }  # fmt: skip


def _numbers(text: str, option: str, kind: type) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} is a list of numbers", value=text, allowed="numbers with commas") from None


def _print(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    full = result["rows"][0]
    table = Table("threshold", "tokens/s", "x full", "bits/byte", "more", "layers/token", "exits taken")
    for row in result["rows"]:
        shares = ", ".join(f"{level}: {share:.0%}" for level, share in row["exits"].items())
        table.add_row(
            "full model" if row["threshold"] is None else f"{row['threshold']:g}", f"{row['tokens_per_s']:.1f}",
            f"{row['tokens_per_s'] / full['tokens_per_s']:.2f}", f"{row['bits_per_byte']:.4f}",
            f"{row['bits_per_byte'] - full['bits_per_byte']:+.4f}", f"{row['layers_per_token']:.2f}", shares,
        )  # fmt: skip
    console = Console()
    console.print(table)
    made = result["speculative"]
    same = "the same text" if made["same_texts"] else "ANOTHER TEXT (numbers so close that the order of sums decides)"
    console.print(
        f"self-speculation from exit {made['exit']}: {made['tokens_per_s']:.1f} tokens/s, "
        f"{made['tokens_per_s'] / made['full_tokens_per_s']:.2f} x the full model's {made['full_tokens_per_s']:.1f}; "
        f"{made['kept']:,} of {made['drafted']:,} drafted tokens kept; {same}"
    )
