"""The energy of some work: read from the machine's own counters, or estimated with its assumption, or not known.

    /sys/class/powercap/intel-rapl:N   processor packages (Intel and AMD), in microjoules; mostly readable by root only
    NVML                               the GPU, in millijoules since its driver was loaded; needs the package pynvml
    estimate                           busy processor seconds x watts of a busy core: says so, and with which figure

Counters measure the whole device, other processes and idle power included.
"""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

__all__ = ["EnergyMeter"]

_POWERCAP = Path("/sys/class/powercap")
_HIGHEST_POWER_W = 500.0  # of one processor package: decides whether a counter may have wrapped twice


class EnergyMeter:
    """Measures the energy of a `with` block.

        with EnergyMeter(watts_per_core=7.0) as meter:
            work()
        meter.as_json()      {"energy_j": 412.5, "energy": "measured", "energy_by": "RAPL, 1 processor package"}
                             {"energy_j": 31.2, "energy": "estimated", "energy_by": "4.5 processor seconds at 7 W ..."}
                             {"energy_j": null, "energy": "not measured", "energy_by": "no permission to read ..."}

    An estimate is made only if it is asked for, and only where the work runs on the processor.

    Args:
        folder: where the kernel shows the processor's counters.
        device: where the work runs: "cpu", or "cuda" and "cuda:N", whose GPU is then measured too.
        watts_per_core: of a busy core, for an estimate where no counter can be read; None estimates nothing.
        nvml: the module pynvml, or what behaves like it; imported by default where it is installed.
        clock: returns seconds; replaced in tests.
    """

    def __init__(
        self,
        folder: str | Path = _POWERCAP,
        *,
        device: str = "cpu",
        watts_per_core: float | None = None,
        nvml: Any = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._folder, self._device, self._watts, self._clock = Path(folder), device, watts_per_core, clock
        self._on_gpu = device.startswith("cuda")
        self._nvml = _pynvml() if nvml is None and self._on_gpu else nvml
        self.energy_j: float | None = None
        self.kind = "not measured"
        self.by = "the block is not over"
        self._before: dict[Path, int] | str = ""
        self._gpu_before: float | str = ""
        self._start = self._busy = 0.0

    def __enter__(self) -> EnergyMeter:
        self._before, self._gpu_before = self._packages(), self._gpu()
        self._busy, self._start = time.process_time(), self._clock()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        seconds, busy = self._clock() - self._start, time.process_time() - self._busy
        package, gpu = self._spent(seconds), self._gpu_spent()
        measured = [part for part in (package, gpu) if not isinstance(part, str)]
        complete = not isinstance(gpu, str) if self._on_gpu else bool(measured)
        if complete:
            self.energy_j, self.kind = sum(joules for joules, _ in measured), "measured"
            self.by = " and ".join(name for _, name in measured)
            if isinstance(package, str):
                self.by += " (the processor is not in it)"
        elif self._watts is not None and not self._on_gpu:
            self.energy_j, self.kind = busy * self._watts, "estimated"
            self.by = f"{busy:.1f} processor seconds at {self._watts:g} W a busy core; {package}"
        else:
            self.by = str(gpu if self._on_gpu else package)

    def as_json(self) -> dict[str, Any]:
        """Returns energy_j (joules or None), energy ("measured", "estimated" or "not measured") and energy_by."""
        return {"energy_j": self.energy_j, "energy": self.kind, "energy_by": self.by}

    def _spent(self, seconds: float) -> tuple[float, str] | str:
        """Returns (joules of all packages, what was read), or why they are not known."""
        before, after = self._before, self._packages()
        if isinstance(before, str) or isinstance(after, str):
            return before if isinstance(before, str) else str(after)
        if before.keys() != after.keys():
            return "the processor's counters changed while it was measured"
        total = 0
        for zone, value in before.items():
            span = _number(zone / "max_energy_range_uj")
            if span is None or seconds * _HIGHEST_POWER_W * 1e6 > span:
                return "the processor's counter may have wrapped around more than once"
            moved = after[zone] - value
            total += moved if moved >= 0 else moved + span
        count = len(before)
        return total / 1e6, f"RAPL, {count} processor package{'' if count == 1 else 's'}"

    def _packages(self) -> dict[Path, int] | str:
        """Returns the counter of every package, or why there is none."""
        found = {}
        for zone in sorted(self._folder.glob("intel-rapl:*")):
            if zone.name.count(":") != 1:  # parts of a package are counted in the package
                continue
            value = _number(zone / "energy_uj")
            if value is None:
                return f"no permission to read {zone / 'energy_uj'}"
            found[zone] = value
        return found or "this machine shows no energy counter (RAPL)"

    def _gpu_spent(self) -> tuple[float, str] | str:
        before, after = self._gpu_before, self._gpu()
        if isinstance(before, str) or isinstance(after, str):
            return before if isinstance(before, str) else str(after)
        return after - before, "NVML, the whole GPU"

    def _gpu(self) -> float | str:
        """Returns the joules of the GPU since its driver was loaded, or why they are not known."""
        if not self._on_gpu:
            return "the work does not run on a GPU"
        if self._nvml is None:
            return "the GPU's energy needs the package pynvml (nvidia-ml-py)"
        try:
            self._nvml.nvmlInit()
            return self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle()) / 1000
        except Exception as error:  # pynvml raises classes of its own
            return f"NVML does not show the GPU's energy ({error})"

    def _handle(self) -> Any:
        """Returns the GPU as NVML knows it: CUDA counts only those that CUDA_VISIBLE_DEVICES names."""
        number = int(self._device.partition(":")[2] or 0)
        visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
        name = visible[number] if number < len(visible) else str(number)
        if name.isdigit():
            return self._nvml.nvmlDeviceGetHandleByIndex(int(name))
        return self._nvml.nvmlDeviceGetHandleByUUID(name)


def _pynvml() -> Any:
    try:
        return importlib.import_module("pynvml")
    except ImportError:
        return None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
