"""Adapters trained side by side, each in a process of its own: `cairn finetune --jobs N`.

    add ── longest first ──┬─ thread ── pipe ── process: base, frozen; one job after the other ─┐
                           └─ thread ── pipe ── process                                         │
    wait <── one queue <── lines of progress, results, errors <─────────────────────────────────┘

A tiny model's training step is short, and threads that share one step wait for each other: two processes of one thread
train more tokens a second than one process of two (docs/training.md). Each process has its share of the threads; the
numbers are those of a training in one process with as many threads.

An interrupt goes to every process, which ends its step, writes a checkpoint and stops. An error in one stops the
others in the same way. If this process is killed, the others see their pipe closed and end at once.
"""

from __future__ import annotations

import _thread
import io
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, BinaryIO

from cairn.errors import CairnError, EngineError
from cairn.verbs.finetuning.finetune_jobs import Job, train_job, trained_job

__all__ = ["BaseOfWorkers", "SideBySide", "worker"]

_START = "from cairn.verbs.finetuning.side_by_side import worker; worker()"
_STOP = "stop"


@dataclass(frozen=True)
class BaseOfWorkers:
    """What each process loads.

    Args:
        place: the base, as `bases.load_base` takes it.
        device: see `bases.pick_device`.
        identity: of the base.
        threads: of each process.
    """

    place: str
    device: str
    identity: dict[str, Any]
    threads: int


class SideBySide:
    """Trains jobs in several processes; use it in a `with` statement.

    Args:
        count: processes, at most; one is started when there is a job for it.
        base: what they load.
        done: told each result, in the order they come.
        show: takes lines of progress; standard error by default.
    """

    def __init__(
        self,
        count: int,
        base: BaseOfWorkers,
        done: Callable[[Job, dict[str, Any]], Any] = lambda job, result: None,
        show: Callable[[str], Any] = lambda line: print(line, file=sys.stderr, flush=True),
    ) -> None:
        self._count, self._base, self._done, self._show = count, base, done, show
        self._ready: list[Job] = []
        self._changed = threading.Condition()
        self._closing = False
        self._running = 0
        self._workers: list[_Worker] = []
        self._events: queue.Queue[tuple[str, Job, Any]] = queue.Queue()
        self._results: dict[tuple[str, str], dict[str, Any]] = {}
        self._stack: Any = None

    def __enter__(self) -> SideBySide:
        self._stack = _terminated_is_interrupted()
        self._stack.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        try:
            self._stop(interrupt=error[0] is not None)
        finally:
            self._stack.__exit__(None, None, None)

    def add(self, jobs: Sequence[Job]) -> None:
        """Takes jobs; the longest that is waiting is begun when a process is free. Finished ones need none."""
        found = [(job, trained_job(job, self._base.identity)) for job in jobs]
        with self._changed:
            self._ready += [job for job, result in found if result is None]
            self._ready.sort(key=lambda job: -(job.config.tokens or 0))
            wanted = min(self._count, self._running + len(self._ready))
            self._changed.notify_all()
        for job, result in found:
            if result is not None:
                self._events.put(("done", job, result))
        while len(self._workers) < wanted:
            self._workers.append(_Worker(self._base, self._next, self._events))

    def wait(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        """Returns the results of jobs that were added, in their order; see `finetune_jobs.Trainer`."""
        while any(job.key not in self._results for job in jobs):
            with suppress(queue.Empty):  # with a timeout, an interrupt is seen on every system
                self._take(*self._events.get(timeout=0.5))
        return [self._results[job.key] for job in jobs]

    def _take(self, kind: str, job: Job, value: Any) -> None:
        if kind == "line":
            self._show(value if value.startswith(job.title) else f"{job.title}: {value.strip()}")
        elif kind == "done":
            self._results[job.key] = value
            self._done(job, value)
        elif kind == "error":
            if isinstance(value, CairnError):
                value.args = (f"{job.title}: {value}",)
            raise value
        else:
            raise EngineError(
                f"the process that trained {job.title} has ended", value=value,
                next="the same command goes on from its checkpoint; if memory was short, with fewer --jobs",
            )  # fmt: skip

    def _next(self, again: bool) -> Job | None:
        """Returns the next job for a free process, when there is one; None when there will be none.

        Args:
            again: the process has done one before.
        """
        with self._changed:
            self._running -= again
            while not self._ready and not self._closing:
                self._changed.wait()
            if self._closing:
                return None
            self._running += 1
            return self._ready.pop(0)

    def _stop(self, *, interrupt: bool) -> None:
        with self._changed:
            self._closing = True
            self._ready.clear()
            self._changed.notify_all()
        try:
            for one in self._workers:
                one.stop(interrupt)
            for one in self._workers:
                one.join()
        except BaseException:  # interrupted again: no more patience
            for one in self._workers:
                one.kill()
            raise
        finally:
            while not self._events.empty():
                kind, job, value = self._events.get()
                if kind == "line":
                    self._take(kind, job, value)


class _Worker:
    """A process, and the thread that gives it jobs and passes on what it says."""

    def __init__(
        self, base: BaseOfWorkers, next_job: Callable[[bool], Job | None], events: queue.Queue[tuple[str, Job, Any]]
    ) -> None:
        threads = {name: str(base.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C reaches the process that was called alone, which passes it on once
            env={**os.environ, **threads},
        )  # fmt: skip
        self._base, self._next_job, self._events = base, next_job, events
        self._sending = threading.Lock()
        self._busy = False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        job: Job | None = None
        try:
            while (job := self._next_job(job is not None)) is not None:
                self._busy = True
                self._send((self._base, job))
                kind, value = "line", ""
                while kind == "line":
                    kind, value = pickle.load(self._process.stdout)
                    self._events.put((kind, job, value))
                self._busy = False
            self._send(None)
        except (OSError, EOFError, pickle.UnpicklingError):
            self._busy = False
            code = self._process.wait()
            if job is not None:
                self._events.put(("died", job, f"signal {-code}" if code < 0 else f"exit code {code}"))

    def _send(self, value: Any) -> None:
        with self._sending:
            _send(self._process.stdin, value)

    def stop(self, interrupt: bool) -> None:
        if interrupt and self._busy:
            with suppress(OSError):  # it has ended by itself
                self._send(_STOP)

    def join(self) -> None:
        self._thread.join()
        self._process.wait()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def _terminated_is_interrupted() -> Iterator[None]:
    """Takes SIGTERM for an interrupt, so that the processes can write their checkpoints."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _send(pipe: BinaryIO, value: Any) -> None:
    pickle.dump(value, pipe)
    pipe.flush()


class _Lines(io.TextIOBase):
    """A stream that passes on whole lines as messages."""

    def __init__(self, send: Callable[[str], Any]) -> None:
        super().__init__()
        self._send, self._rest = send, ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if line.strip():
                self._send(line)
        return len(text)


def worker() -> None:
    """Runs in each process: takes jobs from standard input and answers on standard output, until told to end."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # started from a background job it would be ignored
    source, channel = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not stand between the messages
    lock = threading.Lock()

    def send(kind: str, value: Any) -> None:
        with lock:
            _send(channel, (kind, value))

    inbox: queue.Queue[Any] = queue.Queue()
    sys.stderr = _Lines(lambda line: send("line", line))
    try:
        threading.Thread(target=_read, args=(source, inbox), daemon=True).start()
        loaded = None
        while (asked := inbox.get()) is not None:
            base, job = asked
            try:
                loaded = loaded or _load(base)
                send("done", train_job(job, *loaded, base.identity))
            except Exception as error:
                send("error", error if _travels(error) else EngineError(f"unexpected {type(error).__name__}: {error}"))
    except (KeyboardInterrupt, BrokenPipeError):
        os._exit(130)
    os._exit(0)  # all is said and written: taking torch apart would take seconds


def _read(source: BinaryIO, inbox: queue.Queue[Any]) -> None:
    """Passes on what comes in; "stop" is what Ctrl-C is to a process that was called by a person."""
    try:
        while (value := pickle.load(source)) is not None:
            if value == _STOP and hasattr(signal, "pthread_kill"):  # a signal also ends a wait
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            elif value == _STOP:
                _thread.interrupt_main()
            else:
                inbox.put(value)
        inbox.put(None)
    except (OSError, EOFError, pickle.UnpicklingError):
        os._exit(1)  # whoever gave the jobs is gone; a checkpoint is whole or not there


def _load(base: BaseOfWorkers) -> tuple[Any, Any]:
    import torch

    from cairn.bases import load_base

    torch.set_num_threads(base.threads)
    return load_base(base.place, dtype="float32", device=base.device)


def _travels(error: Exception) -> bool:
    try:
        return type(pickle.loads(pickle.dumps(error))) is type(error)
    except Exception:
        return False
