"""Energy is read from counters, or estimated with its assumption, or not known: never a silent guess."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from cairn.evaluation.energy import EnergyMeter


def zone(root: Path, name: str, value: int, span: int = 10**12) -> Path:
    folder = root / name
    folder.mkdir(exist_ok=True)
    (folder / "energy_uj").write_text(f"{value}\n")
    (folder / "max_energy_range_uj").write_text(f"{span}\n")
    return folder


def busy(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


def test_packages_are_summed_and_a_counter_may_wrap_around_once(tmp_path: Path) -> None:
    first = zone(tmp_path, "intel-rapl:0", 1_000_000)
    second = zone(tmp_path, "intel-rapl:1", 999_999_000_000)
    core = zone(tmp_path, "intel-rapl:0:0", 0)
    with EnergyMeter(tmp_path, watts_per_core=7.0) as meter:
        (first / "energy_uj").write_text("3000000")
        (second / "energy_uj").write_text("500000")
        (core / "energy_uj").write_text("77000000")
    wanted = {"energy_j": pytest.approx(2.0 + 1.5), "energy": "measured", "energy_by": "RAPL, 2 processor packages"}
    assert meter.as_json() == wanted


def test_a_counter_that_may_have_wrapped_twice_is_not_believed(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", 5, span=262_000_000_000)  # at 500 W it is round after 524 s
    for seconds, kind in ((500.0, "measured"), (530.0, "not measured")):
        times = itertools.count(0.0, seconds)
        with EnergyMeter(tmp_path, clock=lambda times=times: next(times)) as meter:
            (tmp_path / "intel-rapl:0" / "energy_uj").write_text("9")
        assert meter.as_json()["energy"] == kind
    assert "wrapped around more than once" in meter.as_json()["energy_by"]


def test_without_a_counter_it_is_not_measured_and_says_why(tmp_path: Path) -> None:
    with EnergyMeter(tmp_path / "none") as meter:
        pass
    assert meter.as_json() == {
        "energy_j": None, "energy": "not measured", "energy_by": "this machine shows no energy counter (RAPL)",
    }  # fmt: skip
    folder = zone(tmp_path, "intel-rapl:0", 5)
    (folder / "energy_uj").unlink()  # as unreadable as one that only root may read
    with EnergyMeter(tmp_path) as meter:
        pass
    assert meter.energy_j is None and meter.by == f"no permission to read {folder / 'energy_uj'}"


def test_an_estimate_says_its_assumption(tmp_path: Path) -> None:
    with EnergyMeter(tmp_path, watts_per_core=5.0) as meter:
        busy(0.1)
        time.sleep(0.2)  # a waiting core is not busy
    assert meter.kind == "estimated" and 0.5 <= meter.energy_j < 1.0
    assert meter.by.endswith("processor seconds at 5 W a busy core; this machine shows no energy counter (RAPL)")


class Nvml:
    """As pynvml: millijoules that rise by 1,500 with every reading."""

    def __init__(self, broken: bool = False) -> None:
        self.broken, self.mj, self.asked = broken, 0, []

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetHandleByIndex(self, number: int) -> int:
        self.asked.append(number)
        return number

    def nvmlDeviceGetHandleByUUID(self, name: str) -> int:
        self.asked.append(name)
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: int) -> int:
        if self.broken:
            raise RuntimeError("Not Supported")
        self.mj += 1500
        return self.mj


def test_the_gpu_is_the_one_that_cuda_sees(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for visible, device, asked in (("3,5", "cuda:1", 5), ("2", "cuda", 2), ("GPU-ab12", "cuda:0", "GPU-ab12")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        nvml = Nvml()
        with EnergyMeter(tmp_path / "none", device=device, nvml=nvml):
            pass
        assert nvml.asked == [asked, asked]


def test_a_gpu_is_measured_alone_or_with_the_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    nvml = Nvml()
    with EnergyMeter(tmp_path / "none", device="cuda:1", nvml=nvml) as meter:
        pass
    assert meter.energy_j == 1.5 and nvml.asked == [1, 1]
    assert meter.by == "NVML, the whole GPU (the processor is not in it)"
    folder = zone(tmp_path, "intel-rapl:0", 0)
    with EnergyMeter(tmp_path, device="cuda", nvml=Nvml()) as meter:
        (folder / "energy_uj").write_text("2000000")
    assert meter.energy_j == 3.5 and meter.by == "RAPL, 1 processor package and NVML, the whole GPU"


def test_work_on_a_gpu_is_never_estimated_from_the_processor(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", 0)
    with EnergyMeter(tmp_path, device="cuda", nvml=Nvml(broken=True), watts_per_core=7.0) as meter:
        pass
    assert meter.as_json()["energy"] == "not measured" and "Not Supported" in meter.by
    with EnergyMeter(tmp_path, device="cpu", nvml=SimpleNamespace()) as meter:  # on the processor nobody asks the GPU
        pass
    assert meter.kind == "measured"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_said(tmp_path: Path) -> None:
    folder = zone(tmp_path, "intel-rapl:0", 5)
    (folder / "energy_uj").chmod(0)
    with EnergyMeter(tmp_path) as meter:
        pass
    assert "no permission" in meter.by
