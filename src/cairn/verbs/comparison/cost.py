"""What an answer of each system costs, measured one question at a time, each system in a process of its own.

    Comparison ── a job a system ──> process: this base and these adapters only ── measured_cost ──> its peak memory
                      │                                                                 │
                      └── OUT/cost/SYSTEM.json: kept, so that nothing is measured twice <┘

In a process of its own the memory is that of one system: libraries, base and adapters. Without one (`processes: false`,
or an engine that cannot be sent) the same figures are taken here, and memory is marked as shared.
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cairn import prompts
from cairn.engines.base import Engine
from cairn.errors import CairnError, EngineError
from cairn.evaluation.cost import CostSettings, TimedEngine, cost_figures, measured_cost, peak_memory_mib
from cairn.evaluation.systems import Question
from cairn.files import sha256_file, sha256_json, write_json
from cairn.identity import ADAPTER_CARD
from cairn.stacks.spec import StackSpec, check_artifacts
from cairn.verbs.comparison.answers import Answer, Rooms, Systems
from cairn.verbs.comparison.comparison import Comparison, OpenEngine, open_engine
from cairn.verbs.comparison.experiment import evenly
from cairn.verbs.comparison.recipe import COMPARATORS
from cairn.verbs.finetuning.stack_folder import comparator_folder

__all__ = ["CostJob", "cost_jobs", "cost_section", "worker"]

Say = Callable[[str], Any]
_BYTES = SimpleNamespace(count_tokens=lambda text: len(text.encode()) + 1)  # of an engine that counts for itself
_START = "from cairn.verbs.comparison.cost import worker; worker()"


@dataclass(frozen=True)
class CostJob:
    """One system to be measured, with all that a fresh process needs.

    Args:
        system: its name.
        method: of `Systems`.
        call: keyword arguments of the method.
        spec: the trained stack.
        adapters: name -> folder, those that this system needs.
        sizes: adapter -> trained parameters.
        questions: to be timed, in order.
        direct_room: tokens that a direct answer may have.
        chain_rooms: tokens of a prompt -> tokens that its chain may have.
        train: questions for the solved examples of the base.
        options: of `Systems`: shots, base_answer, seed.
        settings: of the measurement.
        device: where it runs.
    """

    system: str
    method: str
    call: dict[str, Any]
    spec: StackSpec
    adapters: dict[str, Path]
    sizes: dict[str, int]
    questions: list[Question] = field(repr=False)
    direct_room: int
    chain_rooms: dict[int, int] = field(repr=False)
    train: list[Question] = field(repr=False)
    options: dict[str, Any]
    settings: CostSettings
    device: str

    @property
    def streams(self) -> bool:
        """Whether the last call writes the answer, so that its first token can be shown."""
        last = self.spec.stage(self.spec.answer_stage)
        return self.system != "vote" and (self.system != "stack" or last.by == "model")

    def measure(self, engine: Engine, device: str = "cpu", rooms: Rooms | None = None) -> dict[str, Any]:
        """Returns the figures of this system.

        Args:
            engine: holds its adapters.
            device: where it runs.
            rooms: where the engine counts tokens otherwise than the base's tokenizer.
        """
        timed = TimedEngine(engine)
        rooms = rooms or Rooms(self.direct_room, self.chain_rooms.__getitem__)
        systems = Systems(
            self.spec, timed, self.sizes, rooms, self.train, score=lambda answer, question: 0.0, **self.options
        )
        answer: Answer = partial(getattr(systems, self.method), **self.call)
        return measured_cost(answer, timed, self.questions, self.settings, streams=self.streams, device=device)

    def fingerprint(self, examples: str) -> str:
        """Returns what decides the figures, beside the machine.

        Args:
            examples: hash of the examples, which say how much single models may write.
        """
        cards = {name: sha256_file(folder / ADAPTER_CARD) for name, folder in self.adapters.items()}
        spec = self.spec.model_dump(mode="json", exclude={"examples", "training", "description"})
        ids = [question.id for question in self.questions]
        settings = self.settings.model_dump(mode="json")
        return sha256_json([self.system, self.call, spec, cards, ids, examples, settings, self.device])


def cost_section(
    comparison: Comparison,
    result: Mapping[str, Any],
    settings: CostSettings,
    *,
    device: str = "auto",
    engine: OpenEngine | None = None,
    say: Say = lambda text: None,
) -> dict[str, Any] | None:
    """Returns the cost section of a result: every comparator and the stack, measured with the first training.

    Args:
        comparison: after `run`.
        result: of the comparison so far: accuracy and FLOPs per question.
        settings: of the measurement.
        device: see `bases.pick_device`.
        engine: measures here, on an engine opened by this, instead of in processes.
        say: takes lines for the reader.

    Returns:
        None if nothing was asked for.
    """
    if not settings.questions:
        return None
    measured: dict[str, dict[str, Any]] = {}
    left_out: dict[str, str] = {}
    seed, examples = comparison.seeds[0], sha256_file(comparison.inputs.examples)
    apart = settings.processes and engine is None
    for job in cost_jobs(comparison, settings, device, _counter(seed.spec) if apart else _BYTES):
        file = comparison.out / "cost" / f"{job.system}.json"
        mark = job.fingerprint(examples)
        known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        if known.get("settings_sha256") == mark:
            measured[job.system] = known["figures"]
            continue
        try:
            if apart:
                figures = _in_a_process(job)
            else:
                figures = _here(job, comparison, engine, device)
        except CairnError as error:
            left_out[job.system] = str(error)
            say(f"  cost of {job.system} is not measured: {error}")
            continue
        write_json(file, {"settings_sha256": mark, "figures": figures})
        measured[job.system] = figures
        latency = figures["latency_ms"]
        say(
            f"  {job.system:<13} {latency['p50']:8.1f} ms an answer (p95 {latency['p95']:.1f}), "
            f"{figures['peak_memory_mib']:,.0f} MiB {figures['memory']}"
        )
    return {
        "systems": cost_figures(measured, result["accuracy"], result["flops_per_question"]),
        "left_out": left_out,
        "seed": seed.seed,
        "settings": settings.model_dump(mode="json"),
    }


def cost_jobs(comparison: Comparison, settings: CostSettings, device: str, counter: Any) -> list[CostJob]:
    """Returns a job for the stack and for each of its comparators.

    Args:
        comparison: after `run`.
        settings: of the measurement.
        device: where they run.
        counter: has `count_tokens`, as the engine of the job counts.
    """
    seed, spec = comparison.seeds[0], comparison.spec
    questions = evenly(comparison.inputs.test, settings.questions)
    rooms, train, options = comparison.room_of_singles(counter)
    read = {counter.count_tokens(prompts.render(spec.comparator_prompt, question.inputs)) for question in questions}
    chain = {tokens: rooms.chain(tokens) for tokens in sorted(read)}
    jobs = []
    for name in [name for name in (*COMPARATORS, "stack") if name in comparison.systems]:
        method, call, adapters, sizes = _parts(comparison, name)
        jobs.append(
            CostJob(
                name, method, call, seed.spec, adapters, sizes, questions, rooms.direct, chain,
                train if name == "base" else [], options, settings, device,
            )
        )  # fmt: skip
    return jobs


def _parts(comparison: Comparison, name: str) -> tuple[str, dict[str, Any], dict[str, Path], dict[str, int]]:
    """Returns how a system answers: method, arguments, adapters and their sizes."""
    seed = comparison.seeds[0]
    sizes = seed.sizes()
    if name == "base":
        return "base", {}, {}, {}
    if name == "stack":
        return "stack", {}, check_artifacts(seed.spec), sizes
    if name == "ensemble":
        members = {f"single_direct@{one.seed}": one for one in comparison.members(0)}
        folders = {member: comparator_folder(one.folder, "single_direct") for member, one in members.items()}
        sizes = {member: one.sizes()["single_direct"] for member, one in members.items()}
        return "ensemble", {"members": list(members)}, folders, sizes
    single = comparison.vote["single"] if name == "vote" else name
    call: dict[str, Any] = {}
    if name == "vote":
        call = {key: comparison.vote[key] for key in ("single", "samples", "temperature")}
        call["seed"] = comparison.settings.seed
    method = "vote" if name == "vote" else name.removeprefix("single_")
    return method, call, {single: comparator_folder(seed.folder, single)}, {single: sizes[single]}


def _counter(spec: StackSpec) -> Any:
    """Returns what counts tokens as the engine does, without a model."""
    from cairn.bases import load_tokenizer
    from cairn.models.tokenization import prompt_ids

    tokenizer = load_tokenizer(spec.base_place)
    return SimpleNamespace(count_tokens=lambda text: len(prompt_ids(tokenizer, text)))


def _here(job: CostJob, comparison: Comparison, engine: OpenEngine | None, device: str) -> dict[str, Any]:
    opened = (engine or partial(open_engine, device=device))(comparison.seeds[0], job.adapters)
    try:
        rooms = comparison.room_of_singles(opened)[0]
        figures = job.measure(opened, str(getattr(opened, "device", "cpu")), rooms)
    finally:
        opened.close()
    return {**figures, "peak_memory_mib": round(peak_memory_mib(), 1), "memory": "shared with the other systems"}


def _in_a_process(job: CostJob) -> dict[str, Any]:
    """Measures in a fresh process, and waits for it.

    Raises:
        EngineError: it ended without figures.
    """
    done = subprocess.run(
        [sys.executable, "-c", _START], input=pickle.dumps(job), capture_output=True
    )
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        why = f"signal {-done.returncode}" if done.returncode < 0 else lines[-1] if lines else "no message"
        raise EngineError(f"the process that measured {job.system} ended with an error", value=why)
    return json.loads(done.stdout)


def worker() -> None:
    """Runs in the fresh process: takes a job from standard input, answers with JSON on standard output."""
    import os

    job = pickle.load(sys.stdin.buffer)
    channel = os.dup(1)
    os.dup2(2, 1)  # what a library prints must not stand in the answer
    import torch

    from cairn.engines.torch_engine import TorchEngine

    before = peak_memory_mib()
    engine = TorchEngine(job.spec.base_place, job.adapters, device=job.device)
    figures = job.measure(engine, str(engine.device))
    figures |= {
        "peak_memory_mib": round(peak_memory_mib(), 1), "memory": "in a process of its own",
        "libraries_mib": round(before, 1), "threads": torch.get_num_threads(), "device": str(engine.device),
    }  # fmt: skip
    if engine.device.type == "cuda":
        figures["peak_gpu_memory_mib"] = round(torch.cuda.max_memory_allocated(engine.device) / 2**20, 1)
    engine.close()
    with os.fdopen(channel, "w") as stream:
        stream.write(json.dumps(figures))
