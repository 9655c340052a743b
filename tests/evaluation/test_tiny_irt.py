"""gp-IRT: the authors' arithmetic, on files that may hold numbers only."""

from __future__ import annotations

import math
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cairn.errors import DataError, InputError
from cairn.evaluation.tiny_irt import ITEMS, IrtFile, load_irt

DIMS, SIZE = 2, 150


def parameters(seed: int = 0) -> dict[str, Any]:
    """Returns a file of two benches, as the authors' is laid out: `lb` with two scenarios, and `mmlu` alone."""
    random = np.random.default_rng(seed)

    def bench(names: list[str]) -> dict[str, Any]:
        size = SIZE * len(names)
        positions = {name: list(range(SIZE * n, SIZE * (n + 1))) for n, name in enumerate(names)}
        seen = [int(item) for name in names for item in random.permutation(positions[name])[:ITEMS]]
        return {
            "seen_examples": seen,
            "examples_weights": {name: random.dirichlet(np.ones(ITEMS)) for name in names},
            "irt_parameters": {"A": random.uniform(0.2, 1, (1, DIMS, size)), "B": random.normal(0, 1, (1, DIMS, size))},
            "optimal_lambdas": OrderedDict((name, 0.3 + 0.1 * n) for n, name in enumerate(names)),
            "scenarios_position": positions,
            "subscenarios_position": {name: {"a": positions[name][:50], "b": positions[name][50:]} for name in names},
        }

    return {"lb": bench(["harness_truthfulqa_mc_0", "arc"]), "mmlu": bench(["mmlu"])}


@pytest.fixture
def file(tmp_path: Path) -> IrtFile:
    (tmp_path / "tiny.pkl").write_bytes(pickle.dumps(parameters()))
    return load_irt(tmp_path / "tiny.pkl")


def by_hand(bench: dict[str, Any], key: str, start: int, answers: list[float], theta: np.ndarray) -> dict[str, float]:
    """The three estimates in plain loops, given an ability."""
    seen = bench["seen_examples"][start : start + ITEMS]
    items, parts = bench["scenarios_position"][key], bench["subscenarios_position"][key]
    weight = {i: len(items) / (len(parts) * len(part)) for part in parts.values() for i in part}
    a, b = bench["irt_parameters"]["A"][0], bench["irt_parameters"]["B"][0]

    def right(item: int) -> float:
        return 1 / (1 + math.exp(-sum(a[d, item] * theta[d] - b[d, item] for d in range(DIMS))))

    unseen = [item for item in items if item not in seen]
    data = sum(weight[item] * answer for item, answer in zip(seen, answers, strict=True)) / ITEMS
    model = sum(weight[item] * right(item) for item in unseen) / len(unseen)
    pirt = ITEMS / len(items) * data + (1 - ITEMS / len(items)) * model
    irt = sum(w * answer for w, answer in zip(bench["examples_weights"][key], answers, strict=True))
    mix = bench["optimal_lambdas"][key]
    return {"irt": irt, "pirt": pirt, "gpirt": mix * irt + (1 - mix) * pirt}


@pytest.mark.parametrize(("scenario", "bench", "key", "start"), [
    ("mmlu", "mmlu", "mmlu", 0), ("arc", "lb", "arc", ITEMS), ("truthfulqa", "lb", "harness_truthfulqa_mc_0", 0),
])  # fmt: skip
def test_estimates_are_those_of_the_formula(file: IrtFile, scenario: str, bench: str, key: str, start: int) -> None:
    answers = [float(n % 3 == 0) for n in range(ITEMS)]
    content = parameters()[bench]
    seen = content["seen_examples"][start : start + ITEMS]
    a, b = (content["irt_parameters"][name][0][:, seen] for name in "AB")
    grid = np.linspace(-4, 4, 41)
    best = max(  # the likelihood has one top: a grid finds it well enough
        (np.array([x, y]) for x in grid for y in grid),
        key=lambda theta: np.sum(
            np.where(answers, -np.logaddexp(0, -(theta @ a - b.sum(0))), -np.logaddexp(0, theta @ a - b.sum(0)))
        ),
    )
    expected = by_hand(content, key, start, answers, best)
    found = file.estimate(answers, scenario)
    assert found["irt"] == pytest.approx(expected["irt"], abs=1e-12)
    assert found["pirt"] == pytest.approx(expected["pirt"], abs=1e-2)
    assert found["gpirt"] == pytest.approx(expected["gpirt"], abs=1e-2)
    assert file.positions(scenario) == [content["scenarios_position"][key].index(item) for item in seen]


def test_floors_show_what_knowing_nothing_gets(file: IrtFile) -> None:
    gold = [n % 4 for n in range(ITEMS)]
    floors = file.floors("mmlu", [4] * ITEMS, gold, draws=20, seed=1)
    assert floors["random"]["accuracy"] == pytest.approx(0.25, abs=0.03)
    low, high = floors["random"]["middle95"]
    assert low <= floors["random"]["gpirt"] <= high
    assert set(floors["constant"]) == {"0", "1", "2", "3"}
    always_a = [float(place == 0) for place in gold]
    assert floors["constant"]["0"] == {"accuracy": 0.25, "gpirt": file.estimate(always_a, "mmlu")["gpirt"]}
    assert floors == file.floors("mmlu", [4] * ITEMS, gold, draws=20, seed=1)


def test_what_the_file_cannot_say_is_an_error(file: IrtFile) -> None:
    with pytest.raises(InputError, match="the estimator needs all items of the subset: 7. Allowed: 100"):
        file.estimate([1.0] * 7, "arc")
    with pytest.raises(DataError, match="does not hold this scenario: 'gsm8k'. Allowed: lb, mmlu"):
        file.estimate([1.0] * ITEMS, "gsm8k")


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch evil",)


def test_a_file_with_code_in_it_is_refused_before_any_of_it_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for number, content in enumerate(({"mmlu": _Evil()}, {"mmlu": {"seen_examples": [_Evil()]}})):
        path = tmp_path / f"{number}.pkl"
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(DataError, match=r"refused \(it would load (posix|nt).system\)"):
            load_irt(path)
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(("content", "message"), [
    (b"", "refused"), (b"\x80\x05]", "refused"), (pickle.dumps([1]), "no dict of benchmarks"),
    (pickle.dumps({"mmlu": {"seen_examples": []}}), "lacks its parts"),
])  # fmt: skip
def test_damaged_files_are_errors(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "bad.pkl").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_irt(tmp_path / "bad.pkl")
    with pytest.raises(DataError, match="cannot be read"):
        load_irt(tmp_path / "none.pkl")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_of_every_protocol_are_read(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "tiny.pkl").write_bytes(pickle.dumps(parameters(), protocol=protocol))
    assert load_irt(tmp_path / "tiny.pkl").estimate([1.0] * ITEMS, "arc")["irt"] == pytest.approx(1)
