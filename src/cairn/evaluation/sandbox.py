"""Running code that a model wrote: in a process of its own, with limits that it cannot lift.

    run_code(code) ── python -I -B sandbox_child.py ── limits ── exec(code) ──> passed, failed, timeout, memory, ...
          │ own session, empty folder, no output, no input
          └─ time is up ── SIGKILL to the whole session

What holds the code, strongest first; each result says which of them were in force:

    seccomp            Linux on x86_64 and aarch64: the kernel refuses new processes, sockets, any change of a file
    network namespace  Linux, where permitted: a network without any device
    rlimits            memory, CPU time, file size, open files; for users other than root also processes
    audit hook         Python refuses the same, with a message; alone it stops accidents, not attacks

This is meant for exercises that a language model solved badly, on a machine that you own. It is no place for code that
somebody wrote to break out: use a virtual machine for that.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cairn.errors import EngineError, InputError

__all__ = ["CodeChecker", "Execution", "pass_at_k", "run_code"]

_CHILD = Path(__file__).with_name("sandbox_child.py")
_START_SECONDS = 60.0  # until the child is ready: starting Python takes this long on no machine that still works
_ANSWER_BYTES = 65_536


@dataclass(frozen=True)
class Execution:
    """What became of one piece of code.

    Args:
        outcome: "passed" (it ran to its end), "failed" (it raised), "timeout", "memory" (it raised MemoryError),
            "exited" (it left before its end), "crashed" (a signal, the memory limit included, ended it).
        raised: the exception, or the signal; empty if it passed.
        seconds: wall time of the code alone.
        layers: what held it, see the drawing above.
    """

    outcome: str
    raised: str
    seconds: float
    layers: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """True if the code ran to its end."""
        return self.outcome == "passed"


def run_code(
    code: str, *, seconds: float = 3.0, memory_mib: int = 512, file_kib: int = 64, kernel: bool = True
) -> Execution:
    """Runs Python code until it ends, or its limits end it; this returns soon after `seconds` in any case.

    Args:
        code: a whole program: function and tests.
        seconds: wall time from the code's first line.
        memory_mib: address space, the interpreter's own 30 MiB included.
        file_kib: of any file, where writing is not refused altogether.
        kernel: False leaves out seccomp and the namespace, as on systems that have neither.

    Raises:
        EngineError: this system has no process limits (Windows), or the child does not start.
    """
    if os.name != "posix":
        raise EngineError("code is run on Linux and macOS only", value=sys.platform, next="leave out the code tasks")
    mark = secrets.token_hex(16)
    job = {
        "code": code, "mark": mark, "seconds": seconds, "memory_bytes": memory_mib << 20, "file_bytes": file_kib << 10,
        "kernel": kernel,
    }  # fmt: skip
    ours, theirs = os.pipe()
    with tempfile.TemporaryDirectory(prefix="cairn-sandbox-") as folder:
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-B", str(_CHILD), str(theirs)], cwd=folder, pass_fds=(theirs,),
                stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
                env={"PATH": os.defpath, "HOME": folder, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        finally:
            os.close(theirs)
        try:
            return _followed(process, ours, json.dumps(job).encode(), mark, seconds)
        finally:
            os.close(ours)
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _followed(process: subprocess.Popen, pipe: int, job: bytes, mark: str, seconds: float) -> Execution:
    """Gives the child its job, waits for its two messages, and makes a result of what came."""
    if process.stdin is None:
        raise EngineError("the sandbox has no input")
    with suppress(BrokenPipeError):
        process.stdin.write(job)
    with suppress(BrokenPipeError):
        process.stdin.close()
    messages = _Reader(pipe, mark)
    ready = next(messages(time.monotonic() + _START_SECONDS), None)
    if ready is None or "layers" not in ready:
        with suppress(subprocess.TimeoutExpired):
            process.wait(1)
        value = "no answer" if process.poll() is None else f"exit code {process.poll()}"
        raise EngineError("the sandbox does not start", value=value, next="run less beside it")
    started = time.monotonic()
    layers = tuple(ready["layers"])
    last = next(messages(started + seconds), None)
    took = time.monotonic() - started
    if last is not None:
        return Execution(str(last.get("outcome")), str(last.get("raised")), took, layers)
    try:
        code = process.wait(max(0.0, started + seconds - time.monotonic()))
    except subprocess.TimeoutExpired:
        return Execution("timeout", f"still running after {seconds:g} s", time.monotonic() - started, layers)
    if code < 0:
        return Execution("crashed", signal.Signals(-code).name, took, layers)
    return Execution("exited", f"exit code {code} before the tests were over", took, layers)


class _Reader:
    """Reads marked messages from a pipe until a time; the pipe's end, or a flood of other text, ends it as well."""

    def __init__(self, pipe: int, mark: str) -> None:
        self._pipe, self._mark, self._rest, self._read = pipe, mark, b"", 0

    def __call__(self, until: float) -> Iterator[dict[str, Any]]:
        while self._read < _ANSWER_BYTES:
            line, newline, rest = self._rest.partition(b"\n")
            if newline:
                self._rest = rest
                message = _parsed(line)
                if message.get("mark") == self._mark:
                    yield message
                continue
            left = until - time.monotonic()
            if left <= 0 or not select.select([self._pipe], [], [], left)[0]:
                return
            data = os.read(self._pipe, 4096)
            if not data:
                return
            self._rest += data
            self._read += len(data)


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except ValueError:
        return {}
    return message if isinstance(message, dict) else {}


def pass_at_k(total: int, correct: int, k: int) -> float:
    """Returns the chance that at least one of k samples is right, estimated from more samples.

    Args:
        total: samples taken, at least k.
        correct: of these, the right ones.
        k: samples that a user would take.

    Raises:
        InputError: there are fewer than k samples.

    Source: Chen et al. 2021 (arXiv 2107.03374), equation 1.
    """
    if total < k:
        raise InputError(f"pass@{k} needs at least {k} samples", value=total, allowed=f"repeats of {k} or more")
    if total - correct < k:
        return 1.0
    return 1.0 - float(np.prod(1.0 - k / np.arange(total - correct + 1, total + 1)))


class CodeChecker:
    """Stands where lm-evaluation-harness expects the hub's script `code_eval`: same call, same figure, but held.

    Args:
        seconds, memory_mib: as in `run_code`, for each candidate.
    """

    def __init__(self, *, seconds: float = 3.0, memory_mib: int = 512) -> None:
        self._seconds, self._memory_mib = seconds, memory_mib
        self.calls: list[list[Execution]] = []  # one for each call of `compute`, since the last `facts`

    def compute(
        self, *, references: Sequence[str], predictions: Sequence[Sequence[str]], k: Sequence[int] = (1, 10, 100)
    ) -> tuple[dict[str, float], dict[int, list[Execution]]]:
        """Runs every candidate with its tests.

        Args:
            references: the tests of each problem, as code.
            predictions: of each problem, its candidates.
            k: which pass@k are wanted; those that need more candidates than there are, are left out.

        Returns:
            {"pass@k": mean over problems}, and the executions of each problem.
        """
        runs: dict[int, list[Execution]] = {}
        for number, (tests, candidates) in enumerate(zip(references, predictions, strict=True)):
            runs[number] = [
                run_code(f"{candidate}\n{tests}", seconds=self._seconds, memory_mib=self._memory_mib)
                for candidate in candidates
            ]
        self.calls.append([run for found in runs.values() for run in found])
        counts = [(len(found), sum(run.passed for run in found)) for found in runs.values()]
        rates = {
            f"pass@{wanted}": float(np.mean([pass_at_k(total, right, wanted) for total, right in counts]))
            for wanted in k
            if counts and all(total >= wanted for total, _ in counts)
        }
        return rates, runs

    def facts(self) -> dict[str, Any]:
        """Returns what was run and what held it, for a result; it is forgotten after that."""
        runs = [run for call in self.calls for run in call]
        self.calls = []
        return {
            "outcomes": dict(sorted(Counter(run.outcome for run in runs).items())),
            "held_by": sorted({layer for run in runs for layer in run.layers}),
            "seconds": self._seconds,
            "memory_mib": self._memory_mib,
        }
