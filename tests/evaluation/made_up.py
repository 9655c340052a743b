"""A made-up experiment for tests of blame and report: a scripted stack of four stages, one of them a loop, one a rule.

    mention (map, kept) ── link (once) ── walk (a loop over the story) ── answer (a rule)

`engine` answers like a good model that errs at a chosen rate in each stage, the same way whenever it is asked the same.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from cairn.engines.base import GenerationRequest
from cairn.engines.fake_engine import FakeEngine
from cairn.evaluation.blame import BlameRun, BlameSettings, blame_figures
from cairn.evaluation.compare import compare_seeds
from cairn.evaluation.cost import CostSettings, cost_figures
from cairn.evaluation.report import report_item
from cairn.evaluation.systems import Outcome, Question, exact_score, run_stack, trace_stages
from cairn.stacks.attribution import RecallingEngine, Rerun, needed, replacements, run_again
from cairn.stacks.runner import Runner
from cairn.stacks.spec import StackSpec
from cairn.verbs.comparison.blame_section import question_case

NAMES = ("Ann", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gil", "Hal", "Ida", "Jo", "Kit", "Lea")
PLACES = ("hall", "attic", "garden", "cellar", "porch", "office", "kitchen", "yard")
THINGS = ("key", "cup", "lamp", "book", "ball", "coat", "rope", "hat")
YES_NO = {"kind": "choices", "values": ["yes", "no"]}
SPEC = StackSpec.model_validate(
    {
        "name": "where-is-it",
        "inputs": ["story", "thing"],
        "stages": [
            {"name": "mention", "kind": "map", "over": "story", "keep": "yes", "contract": YES_NO, "retries": 0,
             "prompt": "Thing: {thing}\nLine: {item}\nMentions it:"},
            {"name": "link", "reads": ["mention"], "prompt": "{mention}\nWho has the {thing}:", "retries": 0,
             "contract": {"kind": "copied_from_input", "fields": ["story"], "unit": "words"}},
            {"name": "walk", "kind": "repeat", "over": "story", "start": "nowhere", "at_most": 40, "reads": ["link"],
             "prompt": "{link} is at: {state}\nThen: {item}\nNow {link} is at:", "retries": 0},
            {"name": "answer", "rule": "copy", "arguments": {"text": "{walk}"}, "reads": ["walk"]},
        ],
    }
)  # fmt: skip


class Flops:
    """Counts a call as its tokens; the made-up stack has no model whose shape could be counted."""

    def call(self, adapter: str | None, prompt_tokens: int, new_tokens: int) -> int:
        return 14_000_000 * (prompt_tokens + new_tokens)


def question(number: int) -> Question:
    draw = random.Random(number)
    thing, holder = draw.choice(THINGS), draw.choice(NAMES)
    lines = [f"{holder} took the {thing}."]
    hops = 1 + number % 4
    for _ in range(hops):
        lines.append(f"{holder} went to the {draw.choice(PLACES)}.")
        other = draw.choice([name for name in NAMES if name != holder])
        lines.append(f"{other} went to the {draw.choice(PLACES)}.")
    walk, place = [], "nowhere"
    for line in lines:
        place = line.split()[-1].rstrip(".") if line.startswith(f"{holder} went") else place
        walk.append(place)
    gold = {"mention": tuple("yes" if thing in line else "no" for line in lines), "link": holder, "walk": tuple(walk)}
    return Question(f"q{number}", f"g{number // 2}", f"{hops} moves", {"story": "\n".join(lines), "thing": thing},
                    place, stages=gold)  # fmt: skip


def answer(request: GenerationRequest) -> tuple[str, str]:
    """Returns which stage asks, and the right output."""
    lines = request.prompt.split("\n")
    if request.prompt.endswith("Mentions it:"):
        return "mention", "yes" if lines[0].removeprefix("Thing: ") in lines[1] else "no"
    if lines[-1].startswith("Who has"):
        took = [line for line in lines[:-1] if " took " in line]
        return "link", took[-1].split()[0] if took else "nobody"
    who, state = lines[0].split(" is at: ")
    went = lines[1].startswith(f"Then: {who} went")
    return "walk", lines[1].split()[-1].rstrip(".") if went else state


def engine(errors: Mapping[str, float] | None = None, salt: object = 0) -> FakeEngine:
    """Returns an engine that errs at a rate in some stages."""

    def script(request: GenerationRequest) -> str:
        stage, right = answer(request)
        share = zlib.crc32(f"{salt}{request.prompt}".encode()) / 2**32
        if share >= (errors or {}).get(stage, 0.0):
            return f" {right}"
        wrong = {"mention": {"yes": "no", "no": "yes"}.get(right), "link": "Zoe", "walk": "street"}[stage]
        return f" {wrong}"

    return FakeEngine(script, adapters=SPEC.adapter_names())


def run(
    asked: Sequence[Question], errors: Mapping[str, float] | None = None, seed: int = 0, pairs: bool = True
) -> tuple[BlameRun, list[Outcome], RecallingEngine]:
    """Answers the questions, and runs again what blame needs."""
    recalling = RecallingEngine(engine(errors, seed))
    outcomes, traces = run_stack(Runner(SPEC, recalling), asked, Flops())
    stages = [trace_stages(SPEC, trace) for trace in traces]
    cases = [
        question_case(SPEC, one, {stage["name"]: stage["value"] for stage in mine})
        for one, mine in zip(asked, stages, strict=True)
    ]
    jobs = {
        (case.id, key): Rerun(case, key)
        for replaced in replacements(SPEC, pairs) for case in cases if (key := needed(SPEC, case, replaced))
    }  # fmt: skip
    made = dict(zip(jobs, run_again(Runner(SPEC, recalling), list(jobs.values())), strict=True))
    scores = [float(one.score or 0) for one in outcomes]
    return BlameRun(seed, cases, scores, stages, made), outcomes, recalling


def experiment(questions: int = 120, seeds: Sequence[int] = (0, 1, 2)) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns a whole result with blame and cost, and the items of its traces."""
    asked = [question(number) for number in range(questions)]
    rates = {"mention": 0.02, "link": 0.22, "walk": 0.03}
    runs = [run(asked, rates, seed)[:2] for seed in seeds]
    systems: dict[str, list[list[Outcome]]] = {}
    for name, rate, cost, words in (
        ("base", 0.18, 16, "nowhere"), ("single_direct", 0.52, 6, ""), ("single_chain", 0.66, 21, "mention: a\n"),
        ("vote", 0.68, 75, ""),
    ):  # fmt: skip
        systems[name] = []
        for seed in seeds:
            draw = random.Random(f"{name}{seed}")
            systems[name].append([
                Outcome(
                    one.id, one.group, one.task, one.answer, one.answer if right else draw.choice(PLACES), right,
                    words + one.answer, 1 + (name == "vote") * 3, 60, 9, cost * 10**8, 0.012 * cost,
                )
                for one in asked for right in [draw.random() < rate - 0.06 * int(one.task[0])]
            ])  # fmt: skip
    systems["stack"] = [outcomes for _, outcomes in runs]
    trained = dict.fromkeys(("single_direct", "single_chain", "vote", "stack"), 526_000)
    result = compare_seeds(
        systems, base_params=7_672_000, trained_params=trained,
        training_tokens=dict.fromkeys(trained, 450_000), seeds=list(seeds), best="vote", resamples=500,
        seconds_total=812.4, extra={"name": "where", "peak_memory_mib": 1204, "vote": {"single": "single_chain"},
                                    "measures": {"stack": {"place F1": {"mean": 0.71}}}},
    )  # fmt: skip
    result["blame"] = blame_figures(SPEC, asked, [one for one, _ in runs], exact_score, BlameSettings(), resamples=500)
    result["cost"] = costs(result)
    first = {name: made[0] for name, made in systems.items()}
    items = [
        report_item({name: made[place] for name, made in first.items()}, one.inputs, runs[0][0].stages[place], one.task)
        for place, one in enumerate(asked)
    ]
    return result, items


def costs(result: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a cost section as if each system had been measured."""
    measured = {}
    times = {"base": (31, 240), "single_direct": (12, 60), "single_chain": (55, 130), "vote": (190, 411)}
    times["stack"] = (88, 64)
    for name, (p50, memory) in times.items():
        measured[name] = {
            "questions_timed": 40,
            "latency_ms": {"p50": p50 + 0.31, "p95": 1.6 * p50, "n": 40},
            "first_token_ms": {"p50": 0.4 * p50, "p95": 0.5 * p50, "n": 40},
            "read_tokens_per_second": 9120.4,
            "written_tokens_per_second": None if name == "single_direct" else 402.3,
            "energy_j_per_answer": p50 * 0.0139,
            "energy": "estimated",
            "energy_by": "3.1 processor seconds at 7 W a busy core; this machine shows no energy counter (RAPL)",
            "peak_memory_mib": 512.0 + memory,
            "memory": "in a process of its own",
            "libraries_mib": 488.2,
            "threads": 2,
            "device": "cpu",
        }
    settings = CostSettings()
    return {
        "systems": cost_figures(measured, result["accuracy"], result["flops_per_question"]),
        "left_out": {},
        "seed": 0,
        "settings": settings.model_dump(mode="json"),
    }


def ablation() -> dict[str, Any]:
    """Returns the result of an ablation with two variants."""
    asked = [question(number) for number in range(60)]
    systems = {"whole": [run(asked, {"link": 0.2})[1]], "no_mention": [run(asked, {"link": 0.5})[1]]}
    systems["bare_link"] = [run(asked, {"link": 0.9})[1]]
    result = compare_seeds(
        systems, stack="whole", base_params=7_672_000, resamples=200,
        trained_params={"whole": 526_000, "no_mention": 400_000, "bare_link": 526_000},
        extra={"depth": 3, "variants": {
            "no_mention": {"change": {"drop": ["mention"], "merge": []}, "depth": 2, "trained": True},
            "bare_link": {"change": {"base": ["link"]}, "depth": 3, "trained": False},
        }},
    )  # fmt: skip
    for key in ("best_single", "best_chosen_on", "closest", "paired"):
        del result[key]
    return result
