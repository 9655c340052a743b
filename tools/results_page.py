"""Writes docs/results.md from the result files in docs/results/, so that no figure is typed by hand.

    python tools/results_page.py

    docs/results/demo.json, demo-full.json     result.json of `make demo` and of `cairn demo --full`
    docs/results/demo-fp32.json                result.json of `make demo` where the CPU has no bf16
    docs/results/pretrain_throughput.json      last line of `python -m benchmarks.pretrain_throughput`
    docs/results/fslm_cost.json                last line of `python -m benchmarks.fslm_cost`
    docs/results/{base_quality,early_exit,byte_pooling,writing}.json   last line of these benchmarks
    docs/results/NAME.json                     result.json of the comparisons in EXPERIMENTS
    docs/results/ablate-NAME.json              OUT/ablate/result.json of `cairn ablate`
    docs/results/sweep-NAME.json               result.json of `cairn sweep recipes/sweep-NAME.yaml`
    src/cairn/assets/base/scores.json          `cairn eval` of the shipped base
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results"
NAMES = {
    "base": "base, few-shot", "single_direct": "one adapter, direct answers",
    "single_chain": "one adapter, the whole chain as one text", "stack": "**stack of four stages**",
}


SYSTEMS = {
    "base": "base, few-shot", "single_direct": "one adapter, direct", "single_chain": "one adapter, chain as one text",
    "vote": "vote", "ensemble": "ensemble", "stack": "**stack**", "stack_empty": "stack, empty hand-offs",
    "stack_shuffled": "stack, shuffled hand-offs", "stack_gold": "stack, gold hand-offs",
}
# file -> title; the command stands in the file
EXPERIMENTS = {
    "scan-simple": "SCAN, simple", "scan-length": "SCAN, length", "scan-add-jump": "SCAN, add-jump",
    "scan-turn-left": "SCAN, turn-left", "clutrr": "CLUTRR, trained on 2 to 4 hops", "snips": "SNIPS",
    "babi": "bAbI, all 20 tasks", "babi-equal": "bAbI, all 20 tasks, beside its comparators, a sixth of the training",
    "clinc150": "CLINC150", "fairytaleqa": "FairytaleQA, gold section",
    "fairytaleqa-story": "FairytaleQA, whole story", "csqa": "CommonsenseQA",
}


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def demo(result: Mapping[str, Any], command: str) -> str:
    paired, systems = result["paired"], result["systems"]
    rows = [
        [
            NAMES.get(name, name), percent(result["accuracy"][name]),
            " to ".join(percent(edge) for edge in result["ci95"][name]),
            f"{result['trained_params'].get(name, 0):,}", f"{result['training_tokens'].get(name, 0):,}",
            f"{result['flops_per_question'][name] / 1e9:.1f}", f"{result['calls_per_question'][name]:.1f}",
            f"{result['seconds'][name]:.0f}", f"{result['tokens_per_second'][name]:,.0f}",
        ]
        for name in systems
    ]  # fmt: skip
    tasks = [
        [name, f"{part['n']:,}", *(percent(part["accuracy"][system]) for system in systems),
         f"{100 * part['paired']['difference']:+.1f} "
         f"({' to '.join(f'{100 * edge:+.1f}' for edge in part['paired']['ci95'])})"]
        for name, part in result["tasks"].items()
    ]  # fmt: skip
    low, high = (f"{100 * edge:+.1f}" for edge in paired["ci95"])
    return f"""`{command}`: {result['n_test']:,} held-out questions from {result['n_stories']:,} stories, base of
{result['base_params']:,} parameters, one training seed.

{table(['system', 'accuracy %', '95% interval', 'trained parameters', 'training tokens', 'GFLOPs/question',
        'calls/question', 'seconds', 'tokens/s'], rows)}

Stack minus the best single adapter ({NAMES[result['best_single']]}): **{100 * paired['difference']:+.1f} points**, 95%
interval {low} to {high} (paired bootstrap over stories), McNemar p = {paired['mcnemar_p']:.2g}.

{table(['task', 'questions', *(NAMES[name].replace('**', '') for name in systems), 'stack minus best single'], tasks)}
"""


def points(value: float) -> str:
    return f"{100 * value:+.1f}"


def difference(row: Mapping[str, Any]) -> str:
    """Returns a paired difference in points with its interval and p-values."""
    low, high = map(points, row["ci95"])
    tests = {"mcnemar_p": "McNemar", "permutation_p": "permutation"}
    shown = {key: f"{row[key]:.2g}" if row[key] else "below 1e-300" for key in tests if row.get(key) is not None}
    more = [f"{tests[key]} {text}" for key, text in shown.items()]
    return f"**{points(row['difference'])}** ({low} to {high}), p = {row['p_value']:.2g}" + "".join(
        f", {text}" for text in more
    )


def experiment(result: Mapping[str, Any]) -> str:
    """Returns what a comparison came to: systems, paired tests, groups, and which stage loses the points."""
    systems = [name for name in SYSTEMS if name in result["accuracy"]]
    blame, data = result["blame"], result["data"]
    rows = [
        [
            SYSTEMS[name], percent(result["accuracy"][name]),
            " to ".join(percent(edge) for edge in result["ci95"][name]),
            " ".join(percent(value) for value in result["accuracy_by_seed"][name]),
            f"{result['trained_params'].get(name, 0):,}", f"{result['training_tokens'].get(name, 0):,}",
            f"{result['flops_per_question'][name] / 1e9:.2f}", f"{result['calls_per_question'][name]:.1f}",
        ]
        for name in systems
    ]  # fmt: skip
    against = dict.fromkeys([result["best_single"], result["closest"]])
    tests = [
        f"- Stack minus {SYSTEMS[name]}{' (best by validation)' if name == result['best_single'] else ''}"
        f"{' (closest on the test)' if name == result['closest'] else ''}: {difference(result['paired_all'][name])}."
        for name in against
    ]
    shown = [name for name in systems if name not in ("stack_empty", "stack_shuffled")]
    groups = [
        [name, f"{part['n']:,}", *(percent(part["accuracy"][system]) for system in shown),
         f"{points(part['paired']['difference'])} ({' to '.join(map(points, part['paired']['ci95']))})"]
        for name, part in result["tasks"].items()
    ]  # fmt: skip
    measures = result.get("measures", {})
    further = sorted({key for name in shown for key in measures.get(name, {})})
    stages = [
        [
            stage["name"], stage["by"], percent(stage["right_after_gold"]) if stage["right_after_gold"] is not None
            else "", _with_interval(stage["lost_here"]), _with_interval(stage["lift"]),
        ]
        for stage in blame["stages"]
    ] if blame else []  # fmt: skip
    run = result["versions"]["command"].replace("__main__.py ", "cairn ")
    parts = [
        f"`{run}`: {result['n_test']:,} test questions, training seeds {', '.join(map(str, result['seeds']))}, "
        f"measure: {result['measure']}.",
        table(
            ["system", f"{result['measure']} %", "95% interval", "by seed", "trained parameters", "training tokens",
             "GFLOPs/question", "calls/question"],
            rows,
        ),
        "\n".join(tests),
    ]  # fmt: skip
    missing = [name for name in SYSTEMS if name not in systems]
    if missing:
        parts.append(f"Not in this run: {', '.join(missing)}.")
    if "rule_baseline" in data:
        baseline = data["rule_baseline"]
        shown_rule = baseline if isinstance(baseline, str) else f"{percent(baseline)}%"
        parts.append(f"Rules alone, without any model: {shown_rule}.")
    if len(groups) > 1:
        parts.append(table(["part", "questions", *(SYSTEMS[name] for name in shown), "stack minus best"], groups))
    if further:
        parts.append(
            table(
                ["system", *further],
                [[SYSTEMS[name], *(f"{measures[name][key]['mean']:.3f}" for key in further)]
                 for name in shown if name in measures],
            )
        )  # fmt: skip
    if stages:
        parts.append(
            f"Which stage loses the points ({blame['n']} questions a seed; gold in every hand-off: "
            f"{percent(blame['ceiling']['score'])}%):\n\n"
            + table(
                ["stage", "by", "right after gold %", "lost here, points", "lift of its gold alone, points"], stages
            )
        )
    return "\n\n".join(parts) + "\n"


def _with_interval(value: Mapping[str, Any] | None) -> str:
    return "" if value is None else f"{points(value['difference'])} ({' to '.join(map(points, value['ci95']))})"


def ablation(result: Mapping[str, Any]) -> str:
    """Returns the variants of a stack, the best first, each beside the whole."""
    run = result["versions"]["command"].replace("__main__.py ", "cairn ")
    names = sorted(result["systems"], key=lambda name: -result["accuracy"][name])
    rows = [
        [
            name if name in result["variants"] else f"**{name}**", f"{result['trained_params'][name]:,}",
            f"{result['training_tokens'][name]:,}", percent(result["accuracy"][name]),
            " ".join(percent(value) for value in result["accuracy_by_seed"][name]),
            difference(result["paired_all"][name]) if name in result["variants"] else "",
        ]
        for name in names
    ]  # fmt: skip
    changes = [f"- {name}: `{json.dumps(one['change'])}`" for name, one in result["variants"].items()]
    return "\n\n".join([
        f"`{run}`: {result['n_test']:,} test questions, training seeds {', '.join(map(str, result['seeds']))}.",
        table(["variant", "trained parameters", "training tokens", f"{result['measure']} %", "by seed",
               "whole minus variant"], rows),
        "\n".join(changes),
    ]) + "\n"  # fmt: skip


def throughput(result: Mapping[str, Any]) -> str:
    precision = result["rows"][0].get("precision", "bf16")
    rows = [
        [row["case"], f"{row['ours']:,.0f}", f"{row['reference']:,.0f}", f"{row['ratio']:.2f}",
         f"{row[f'share_of_{precision}_ceiling']:.0%}"]
        for row in result["rows"]
    ]  # fmt: skip
    ceiling = result["rows"][0]["ceiling_gflops"]
    return f"""Machine: {result['machine']}; best {precision} matrix product {ceiling:,.0f} GFLOP/s.

{table(['case', 'Cairn tokens/s', 'plain transformers tokens/s', 'ratio', f'share of the {precision} ceiling'], rows)}
"""


def fslm_cost(result: Mapping[str, Any]) -> str:
    training, answer = result["rows"]
    rows = [
        [row["case"], f"{row['ours']:,.0f} {row['unit']}", f"{row['reference']:,.0f}", row["reference_name"],
         f"{row['ratio']:.2f}"]
        for row in (training, answer)
    ]  # fmt: skip
    return f"""`python -m benchmarks.fslm_cost --quick`: the stages of `recipes/fslm-alpaca-pythia160m.yaml`, base of
Pythia-160M's shape with random weights, {training['threads']} threads. Training held at most
{training['peak_memory_mib']:,} MiB; the recipe's {training['recipe_tokens']:,} tokens would take
{training['recipe_hours_computed']:.1f} hours at this rate (computed). An answer writes {answer['tokens_written']:.0f}
tokens: an untrained base stops nowhere, so every stage writes all that it may.

{table(['case', 'Cairn', 'reference', 'what it is', 'ratio'], rows)}
"""


def sweep(result: Mapping[str, Any]) -> str:
    """Returns the variants of a sweep, the best first, each minus the baseline."""
    (kind, amount), = ((key, value) for key, value in result["budget"].items() if value is not None)
    equal = {"wall_clock_s": "seconds of training", "flops": "FLOPs", "parameters": "parameters"}[kind]
    run = result["versions"]["command"].replace("__main__.py ", "cairn ")
    whole = {name: one for name, one in result["variants"].items() if "failed" not in one}
    rows = []
    for name, one in sorted(whole.items(), key=lambda item: item[1]["bits_per_byte"]):
        gap, plan = one.get("difference"), one["plan"]
        rows.append([
            f"**{name}** (baseline)" if gap is None else name, f"{plan['parameters']:,}", f"{plan['steps']:,}",
            f"{plan['raw_bytes'] / 1e6:.1f}", f"{one['bits_per_byte']:.4f}",
            *(("", "") if gap is None else (_gap(gap), gap["verdict"])),
        ])  # fmt: skip
    failed = [f"{name}: {one['failed']}" for name, one in result["variants"].items() if "failed" in one]
    texts = ", ".join(f"{name} ({part['bytes']:,} bytes)" for name, part in result["validation"].items())
    return "\n\n".join([
        f"`{run}`: equal {equal} ({amount if isinstance(amount, str) else f'{amount:g}'}), training seeds "
        f"{', '.join(map(str, result['seeds']))}; scored on {texts}. {result['description']}",
        table(["variant", "parameters", "steps", "MB read", "bits per byte", "minus baseline", "verdict"], rows),
        *failed,
    ]) + "\n"  # fmt: skip


def _gap(gap: Mapping[str, Any]) -> str:
    """A difference with the wider of its two intervals."""
    edges = [one for one in (gap["ci95"], gap["ci95_seeds"]) if one is not None]
    return f"{gap['value']:+.4f} ({min(one[0] for one in edges):+.4f} to {max(one[1] for one in edges):+.4f})"


def benchmark(result: Mapping[str, Any]) -> str:
    """Returns the rows of a benchmark, as they are."""
    rows = [
        [row["case"], f"{row['ours']:.4g} {row['unit']}", f"{row['reference']:.4g}", row["reference_name"],
         f"{row['ratio']:.3f}", "" if row["at_least"] is None else f"{row['at_least']:.3f}"]
        for row in result["rows"]
    ]  # fmt: skip
    head = f"`python -m benchmarks.{result['benchmark']}`, {result['machine']}."
    return f"{head}\n\n{table(['case', 'Cairn', 'reference', 'what it is', 'ratio', 'wanted'], rows)}\n"


def base(scores: Mapping[str, Any]) -> str:
    rows = [[Path(name).name, f"{part['bits_per_byte']:.3f}", f"{part['stderr']:.3f}", f"{part['bytes']:,}"]
            for name, part in scores["text"].items()]
    blimp = scores["blimp"]
    low, high = blimp["ci95"]
    return f"""BLiMP, macro mean of {len(blimp['paradigms'])} paradigms, ties one half: **{percent(blimp['accuracy'])}**
(95% interval {percent(low)} to {percent(high)}, {blimp['n']:,} pairs, {blimp['ties']:,} ties; chance 50).

{table(['held-out text', 'bits per byte', 'standard error', 'bytes'], rows)}
"""


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def main() -> None:
    parts = [
        "# Results\n\nMade by `python tools/results_page.py` from the JSON files in docs/results/ and in the shipped "
        "base.\nEvery figure comes from one run on 2 CPU cores; [log.md](log.md) tells what else was tried.\n"
    ]
    comparisons = [(title, RESULTS / f"{name}.json", experiment) for name, title in EXPERIMENTS.items()]
    ablations = [
        (f"Ablation: {file.stem.removeprefix('ablate-')}", file, ablation)
        for file in sorted(RESULTS.glob("ablate-*.json"))
    ]
    sweeps = [
        (f"Sweep: {file.stem.removeprefix('sweep-')}", file, sweep) for file in sorted(RESULTS.glob("sweep-*.json"))
    ]
    for title, file, make in (
        *comparisons,
        *ablations,
        *sweeps,
        ("The demo, 1,000 questions a task", RESULTS / "demo-full.json", lambda r: demo(r, "cairn demo --full")),
        ("The demo, as `make demo` runs it", RESULTS / "demo.json", lambda r: demo(r, "make demo")),
        ("The demo on a CPU without bf16", RESULTS / "demo-fp32.json", lambda r: demo(r, "make demo")),
        ("The shipped base", ROOT / "src/cairn/assets/base/scores.json", base),
        ("What FSLM on Pythia-160M costs", RESULTS / "fslm_cost.json", fslm_cost),
        ("Writing", RESULTS / "writing.json", benchmark),
        ("Training rate", RESULTS / "pretrain_throughput.json", throughput),
        ("The base beside a nanoGPT recipe", RESULTS / "base_quality.json", benchmark),
        ("Early exit", RESULTS / "early_exit.json", benchmark),
        ("Byte patches beside small BPE", RESULTS / "byte_pooling.json", benchmark),
    ):
        if file.exists():
            parts.append(f"## {title}\n\n{make(read(file))}")
    (ROOT / "docs" / "results.md").write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
