"""A stack that is being trained answers its own training questions: what it wrote, and where that is kept.

    training questions, drawn ── waves ── Runner on the torch engine ── FILE: a head, then a trace a line
                                                                             │ killed? goes on after the last wave
                       verbs/finetuning/own_pairs.py makes training pairs of them  <────┘

A wave is written whole or not at all, and the next call cuts the questions into the same waves: batches, and with them
the last bits of every number, are the same whether a run was interrupted or not.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cairn.data.examples import StackExample, gold_fields
from cairn.errors import InputError, storage_error
from cairn.files import sha256_file, sha256_json, write_text
from cairn.progress import Progress
from cairn.runs import read_jsonl
from cairn.stacks.runner import Runner
from cairn.stacks.spec import StackSpec
from cairn.stacks.trace import Trace, from_json, to_json

__all__ = ["Answered", "answer_facts", "answer_questions", "draw_questions"]

_WAVE = 64  # questions that go through the stages together


@dataclass(frozen=True)
class Answered:
    """One training question with what the stack made of it.

    Args:
        example: the question with its gold hand-offs.
        gold: inputs and gold hand-offs, by field.
        trace: the run; None if a prompt was too long for the base.
    """

    example: StackExample
    gold: Mapping[str, str]
    trace: Trace | None

    def right(self, spec: StackSpec) -> bool:
        """True if the final answer is the gold one."""
        return self.trace is not None and self.trace.answer == self.gold[spec.answer_stage]


def draw_questions(examples: Sequence[StackExample], count: int | None, seed: int) -> list[StackExample]:
    """Returns `count` of the examples in their old order, drawn with the seed; all for None or if there are no more."""
    if count is None or count >= len(examples):
        return list(examples)
    return [examples[place] for place in sorted(random.Random(seed).sample(range(len(examples)), count))]


def answer_questions(
    spec: StackSpec,
    adapters: Mapping[str, Path],
    questions: Sequence[StackExample],
    file: Path,
    *,
    title: str,
    device: str = "auto",
    say: Callable[[str], Any] = lambda text: None,
) -> list[Answered]:
    """Runs the stack on training questions; what an earlier call answered is read.

    A question with a prompt too long for the base has no trace.

    Args:
        spec: the stack.
        adapters: adapter name -> folder, as trained so far.
        questions: drawn from the training examples.
        file: where the traces are kept.
        title: of the progress line.
        device: see `bases.pick_device`.
        say: takes lines for the reader.

    Raises:
        CheckpointError, TokenizerError, AdapterError: see `TorchEngine`.
        StorageError: the file cannot be written.
    """
    shape = spec.model_dump(mode="json", include={"inputs", "stages", "output"})
    weights = {name: sha256_file(folder / "adapter_model.safetensors") for name, folder in adapters.items()}
    asked = [[question.id, dict(question.inputs)] for question in questions]
    head = {"answers_sha256": sha256_json([shape, weights, asked]), "questions": len(questions)}
    rows = _earlier(file, head, len(questions), say)
    if len(rows) < len(questions):
        from cairn.engines.torch_engine import TorchEngine

        write_text(file, "".join(line + "\n" for line in [json.dumps(head), *rows]))
        engine = TorchEngine(spec.base_place, adapters, device=device)
        runner = Runner(spec, engine, wave=_WAVE)
        with Progress(title, len(questions), unit="question", start=len(rows)) as progress:
            for start in range(len(rows), len(questions), _WAVE):
                lines = _wave(runner, questions[start : start + _WAVE])
                _append(file, lines)
                rows += lines
                progress.advance(len(lines))
        engine.close()
    return [
        Answered(one, gold_fields(spec, one), None if "too_long" in json.loads(line) else from_json(line))
        for one, line in zip(questions, rows, strict=True)
    ]


def answer_facts(spec: StackSpec, answered: Sequence[Answered]) -> dict[str, Any]:
    """Returns what the answers came to and what they cost, which is no part of the training budget."""
    totals = [one.trace.totals for one in answered if one.trace is not None]
    return {
        "questions": len(answered),
        "too_long": sum(one.trace is None for one in answered),
        "right": sum(one.right(spec) for one in answered),
        **{
            key: sum(getattr(total, key) for total in totals)
            for key in ("calls", "calls_run", "prompt_tokens", "new_tokens")
        },
        "seconds": round(sum(total.seconds for total in totals), 3),
    }


def _earlier(file: Path, head: Mapping[str, Any], total: int, say: Callable[[str], Any]) -> list[str]:
    """Returns the lines of whole waves that an earlier call wrote for the same stack and questions."""
    if not file.exists():
        return []
    rows = read_jsonl(file)
    if not rows or rows[0] != head:
        say(f"{file.name}: the answers there are those of other adapters or questions; they are made anew")
        return []
    lines = file.read_text(encoding="utf-8").split("\n")[1 : len(rows)]
    return lines if len(lines) == total else lines[: len(lines) // _WAVE * _WAVE]


def _wave(runner: Runner, questions: Sequence[StackExample]) -> list[str]:
    try:
        traces = runner.run([one.inputs for one in questions], ids=[one.id for one in questions])
    except InputError as error:  # one prompt is too long: the others are answered alone
        if len(questions) == 1:
            return [json.dumps({"too_long": str(error), "id": questions[0].id}, ensure_ascii=False)]
        return [line for one in questions for line in _wave(runner, [one])]
    return [to_json(trace) for trace in traces]


def _append(file: Path, lines: Sequence[str]) -> None:
    try:
        with open(file, "a", encoding="utf-8", newline="\n") as stream:
            stream.write("".join(line + "\n" for line in lines))
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise storage_error(error, file) from error
