"""What an answer costs: FLOPs, tokens, seconds, memory and energy, counted in the same way for every system.

FLOPs are computed from token counts and the model's shape, never estimated from time, so that a stack of many short
calls and one long call are comparable on any machine. Every call counts, retries and mapped items included. Energy is
read from the processor's counters (RAPL) or is `not measured`.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from cairn.errors import InputError

__all__ = ["EnergyMeter", "FlopsCounter", "latency_ms", "peak_memory_mib"]

_POWERCAP = Path("/sys/class/powercap")
_HIGHEST_POWER_W = 500.0  # of one processor package: decides whether a counter may have wrapped twice


class FlopsCounter:
    """Counts the FLOPs of calls to one base with adapters.

    Args:
        config: configuration of the base (CairnConfig, or one that `models.accounting` knows).
        trained_parameters: adapter name -> number of its parameters, which are counted as run beside the base; 0 for
            an adapter that is merged into the weights and costs nothing.
    """

    def __init__(self, config: Any, trained_parameters: Mapping[str, int] | None = None) -> None:
        self.config = config
        self.trained_parameters = dict(trained_parameters or {})

    def call(self, adapter: str | None, prompt_tokens: int, new_tokens: int) -> int:
        """Returns the FLOPs of one call.

        Args:
            adapter: its name, None for the base.
            prompt_tokens: tokens read.
            new_tokens: tokens written.

        Raises:
            InputError: the adapter's size is not known, so that its FLOPs would silently be left out.
        """
        from cairn.models.accounting import forward_flops

        if adapter is not None and adapter not in self.trained_parameters:
            raise InputError(
                "size of an adapter is not known",
                value=adapter,
                allowed=", ".join(self.trained_parameters) or "none",
                next="give its parameter count to FlopsCounter",
            )
        extra = self.trained_parameters[adapter] if adapter is not None else 0
        return forward_flops(self.config, prompt_tokens, new_tokens, extra)


def latency_ms(run_one: Callable[[Any], Any], inputs: Sequence[Any], warmup: int = 2) -> dict[str, float]:
    """Times single questions one after the other, which is what a waiting person sees.

    Args:
        run_one: answers one input.
        inputs: at least one; the first `warmup` of them are also run beforehand, untimed.
        warmup: untimed runs.

    Returns:
        p50, p95 and n (milliseconds; number of timed runs).

    Raises:
        InputError: there is no input.
    """
    if not inputs:
        raise InputError("nothing to time", allowed="at least one input")
    for item in inputs[:warmup]:
        run_one(item)
    times = []
    for item in inputs:
        start = time.perf_counter()
        run_one(item)
        times.append(1000 * (time.perf_counter() - start))
    p50, p95 = np.quantile(times, [0.5, 0.95])
    return {"p50": float(p50), "p95": float(p95), "n": len(times)}


def peak_memory_mib() -> float:
    """Returns the most memory this process has held resident so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)


class EnergyMeter:
    """Reads the energy of all processor packages over a `with` block, where the machine shows it.

        with EnergyMeter() as meter:
            work()
        meter.as_json()      {"energy_j": 412.5, "energy": "measured"} or {"energy_j": null, "energy": "not measured"}

    It measures the whole package, other processes included. Never an estimate: if the counters cannot be read, or may
    have wrapped more than once, the result is `not measured`.

    Args:
        folder: where the kernel shows the counters.
    """

    def __init__(self, folder: str | Path = _POWERCAP) -> None:
        self._folder = Path(folder)
        self.energy_j: float | None = None
        self._before: dict[Path, int] | None = None
        self._start = 0.0

    def __enter__(self) -> EnergyMeter:
        self._before = self._read()
        self._start = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        after = self._read()
        seconds = time.perf_counter() - self._start
        if not self._before or not after or self._before.keys() != after.keys():
            return
        total = 0
        for zone, before in self._before.items():
            span = self._number(zone / "max_energy_range_uj")
            if span is None or seconds * _HIGHEST_POWER_W * 1e6 > span:
                return
            moved = after[zone] - before
            total += moved if moved >= 0 else moved + span
        self.energy_j = total / 1e6

    def as_json(self) -> dict[str, Any]:
        """Returns energy_j (joules or None) and energy ("measured" or "not measured")."""
        return {"energy_j": self.energy_j, "energy": "not measured" if self.energy_j is None else "measured"}

    def _read(self) -> dict[Path, int] | None:
        found = {}
        for zone in sorted(self._folder.glob("intel-rapl:*")):
            if zone.name.count(":") != 1:  # parts of a package are counted in the package
                continue
            value = self._number(zone / "energy_uj")
            if value is None:
                return None
            found[zone] = value
        return found or None

    @staticmethod
    def _number(path: Path) -> int | None:
        try:
            return int(path.read_text())
        except (OSError, ValueError):
            return None
