"""Costs: FLOPs follow the accounting, energy is measured or says that it is not."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from cairn.errors import InputError
from cairn.evaluation.cost import EnergyMeter, FlopsCounter, latency_ms, peak_memory_mib
from cairn.models.accounting import forward_flops

CONFIG = SimpleNamespace(
    model_type="cairn", hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    head_dim=8, intermediate_size=64, vocab_size=320, tie_word_embeddings=True,
)  # fmt: skip


def test_flops_are_those_of_the_accounting_with_the_adapter_on_top() -> None:
    counter = FlopsCounter(CONFIG, {"answer": 1000})
    assert counter.call(None, 50, 4) == forward_flops(CONFIG, 50, 4)
    assert counter.call("answer", 50, 4) == forward_flops(CONFIG, 50, 4) + 2 * 1000 * 53


def test_an_adapter_of_unknown_size_is_not_counted_as_free() -> None:
    with pytest.raises(InputError, match="size of an adapter is not known: 'holder'. Allowed: answer"):
        FlopsCounter(CONFIG, {"answer": 1000}).call("holder", 50, 4)


def _zone(root: Path, name: str, value: int, span: int = 10**12) -> Path:
    zone = root / name
    zone.mkdir(exist_ok=True)
    (zone / "energy_uj").write_text(f"{value}\n")
    (zone / "max_energy_range_uj").write_text(f"{span}\n")
    return zone


def test_energy_sums_packages_and_follows_one_wrap(tmp_path: Path) -> None:
    first = _zone(tmp_path, "intel-rapl:0", 1_000_000)
    second = _zone(tmp_path, "intel-rapl:1", 999_999_000_000)
    core = _zone(tmp_path, "intel-rapl:0:0", 0)
    with EnergyMeter(tmp_path) as meter:
        (first / "energy_uj").write_text("3000000")
        (second / "energy_uj").write_text("500000")
        (core / "energy_uj").write_text("77000000")
    assert meter.as_json() == {"energy_j": pytest.approx(2.0 + 1.5), "energy": "measured"}


def test_energy_is_not_measured_rather_than_guessed(tmp_path: Path) -> None:
    with EnergyMeter(tmp_path / "none") as meter:
        pass
    assert meter.as_json() == {"energy_j": None, "energy": "not measured"}
    _zone(tmp_path, "intel-rapl:0", 5, span=1000)  # so small that it may have wrapped more than once
    with EnergyMeter(tmp_path) as meter:
        time.sleep(0.01)
    assert meter.as_json()["energy"] == "not measured"


def test_latency_times_every_input_after_the_warm_up() -> None:
    seen: list[int] = []
    found = latency_ms(lambda item: (seen.append(item), time.sleep(0.01)), [1, 2, 3], warmup=1)
    assert seen == [1, 1, 2, 3] and found["n"] == 3
    assert 10 <= found["p50"] <= found["p95"]
    with pytest.raises(InputError, match="nothing to time"):
        latency_ms(print, [])


def test_peak_memory_is_that_of_a_python_process() -> None:
    assert 5 < peak_memory_mib() < 1_000_000
