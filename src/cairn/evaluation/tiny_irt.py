"""gp-IRT: the figure that tinyArc and tinyMMLU are quoted with, from 100 answers and a parameter file of the authors.

    100 answers ─┬─ weighted mean ──────────────────────────── irt ───┐
                 └─ ability theta (likelihood of the answers) ─ the   ├─ lambda * irt + (1 - lambda) * pirt = gpirt
                    answers seen + sigmoid(A theta - B) elsewhere ─ pirt

The estimator leans on what a population of large models did, so that it gives 100 random answers more than their share:
`floors` says how much. A figure of it without its floor says nothing about a tiny model.

The authors' package is on no package index and unpickles whatever it downloads; this is the same arithmetic on a file
that you have, read without running any code in it.

Source: Maia Polo et al. 2024 (arXiv 2402.14992), sections 3 and 4; figures of the package of the same name.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cairn.errors import DataError, InputError, MissingExtraError

__all__ = ["ITEMS", "IrtFile", "load_irt"]

ITEMS = 100  # answers of one scenario
_CLIP = 30.0
_EPS = 1e-10
_KEYS = ("seen_examples", "examples_weights", "irt_parameters", "optimal_lambdas", "scenarios_position",
         "subscenarios_position")  # fmt: skip

# What a pickle of numbers needs; anything else in the file is refused.
_ARRAY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray", "numpy.core.numeric", "numpy._core.numeric")
_ALLOWED = {(module, name) for module in _ARRAY_MODULES for name in ("_reconstruct", "scalar", "_frombuffer")}
_ALLOWED |= {("numpy", "ndarray"), ("numpy", "dtype"), ("collections", "OrderedDict"), ("_codecs", "encode")}


class _Numbers(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it would load {module}.{name}")
        return super().find_class(module, name)


@dataclass(frozen=True)
class IrtFile:
    """The parameters of one file, bench -> arrays; see `load_irt`."""

    path: str
    benches: Mapping[str, Mapping[str, Any]]

    def _bench(self, scenario: str) -> tuple[Mapping[str, Any], str]:
        for name, bench in ((name, self.benches[name]) for name in (scenario, "lb") if name in self.benches):
            for key in bench["scenarios_position"]:
                if key == scenario or (name == "lb" and scenario in key):
                    return bench, key
        held = ", ".join(self.benches)
        raise DataError("the parameter file does not hold this scenario", value=scenario, allowed=held)

    def positions(self, scenario: str) -> list[int]:
        """Returns where the scenario's 100 items stand in its full test set, in the order of the answers."""
        bench, key = self._bench(scenario)
        place = {int(item): number for number, item in enumerate(bench["scenarios_position"][key])}
        return [place[item] for item in _seen(bench, key)]

    def estimate(self, correct: Sequence[float], scenario: str) -> dict[str, float]:
        """Returns the three estimates of the accuracy on the scenario's full test set.

        Args:
            correct: 1 or 0 for each of the 100 items, in the order of the published subset.
            scenario: "arc", "mmlu", "hellaswag", "winogrande", "gsm8k" or "truthfulqa".

        Returns:
            irt (weighted mean of the answers), pirt, gpirt.

        Raises:
            InputError: there are not 100 answers. DataError: the file does not hold the scenario.
            MissingExtraError: SciPy is not installed.
        """
        if len(correct) != ITEMS:
            raise InputError("the estimator needs all items of the subset", value=len(correct), allowed=str(ITEMS))
        bench, key = self._bench(scenario)
        seen = _seen(bench, key)
        answers = np.asarray(correct, dtype=float)
        slopes, offsets = (np.asarray(bench["irt_parameters"][name], dtype=float) for name in ("A", "B"))
        theta = _ability(answers, slopes[:, :, seen], offsets[:, :, seen])
        balance = _balance(bench)
        items = np.asarray(bench["scenarios_position"][key])
        unseen = items[~np.isin(items, seen)]
        predicted = balance[unseen] * _curve(theta, slopes[:, :, unseen], offsets[:, :, unseen])
        share = ITEMS / len(items)
        pirt = share * float((balance[seen] * answers).mean()) + (1 - share) * float(predicted.mean())
        irt = float((np.asarray(bench["examples_weights"][key]) * answers).sum())
        mix = float(bench["optimal_lambdas"][key])
        return {"irt": irt, "pirt": pirt, "gpirt": mix * irt + (1 - mix) * pirt}

    def floors(
        self, scenario: str, choices: Sequence[int], gold: Sequence[int], *, seed: int = 0, draws: int = 100
    ) -> dict[str, Any]:
        """Returns what the estimator gives to scorers that know nothing.

        Args:
            choices: how many choices each of the 100 items has.
            gold: the place of the right one.
            seed: of the random scorers.
            draws: random scorers.

        Returns:
            random: gpirt of scorers that guess: mean, the middle 95% of them, and their mean raw accuracy;
            constant: always the same place -> raw accuracy and gpirt.
        """
        generator = np.random.default_rng(seed)
        chance = 1 / np.asarray(choices, dtype=float)
        guesses = generator.random((draws, len(chance))) < chance
        values = [self.estimate(row, scenario)["gpirt"] for row in guesses.astype(float)]
        low, high = np.quantile(values, [0.025, 0.975])
        constant = {}
        for place in range(max(choices)):
            row = [float(right == place) for right in gold]
            constant[str(place)] = {"accuracy": sum(row) / len(row), "gpirt": self.estimate(row, scenario)["gpirt"]}
        random = {"gpirt": float(np.mean(values)), "middle95": [float(low), float(high)],
                  "accuracy": float(guesses.mean()), "draws": draws, "seed": seed}  # fmt: skip
        return {"random": random, "constant": constant}


def load_irt(path: str | Path) -> IrtFile:
    """Reads `tinyBenchmarks.pkl` of the authors' repository.

    Only numbers, texts, lists, dicts and NumPy arrays are taken from it; a file that holds anything else is refused
    before any of it runs.

    Raises:
        DataError: the file is missing, holds code or other objects, or lacks a part.
    """
    try:
        with open(path, "rb") as file:
            content = _Numbers(file).load()
    except OSError as error:
        raise DataError(f"the parameter file cannot be read ({error.strerror})", value=str(path)) from None
    except Exception as error:  # a damaged pickle raises every kind
        raise DataError(
            f"the parameter file is refused ({error})", value=str(path),
            allowed="numbers, texts and NumPy arrays only", next="fetch tinyBenchmarks.pkl from its authors again",
        ) from None  # fmt: skip
    if not isinstance(content, dict) or not all(isinstance(bench, dict) for bench in content.values()):
        raise DataError("the parameter file is no dict of benchmarks", value=str(path))
    whole = {name: bench for name, bench in content.items() if all(key in bench for key in _KEYS)}
    if not whole:
        raise DataError("the parameter file lacks its parts", value=str(path), allowed=", ".join(_KEYS))
    return IrtFile(str(path), whole)


def _seen(bench: Mapping[str, Any], key: str) -> list[int]:
    """Returns the items of the subset, in order: of a bench of several scenarios, the scenario's hundred."""
    keys = list(bench["scenarios_position"])
    start = ITEMS * keys.index(key) if len(keys) > 1 else 0
    return [int(item) for item in bench["seen_examples"][start : start + ITEMS]]


def _balance(bench: Mapping[str, Any]) -> np.ndarray:
    """Returns a weight per item that lets every sub-scenario (an MMLU subject) count the same. [items]"""
    size = 1 + max(int(np.max(positions)) for positions in bench["scenarios_position"].values())
    weights = np.ones(size)
    for key, parts in bench["subscenarios_position"].items():
        whole = len(bench["scenarios_position"][key])
        for items in parts.values():
            weights[np.asarray(items)] = whole / (len(parts) * len(items))
    return weights


def _curve(theta: np.ndarray, slopes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Returns the probability of a right answer. theta [dims], slopes and offsets [1, dims, items] -> [items]"""
    scores = np.clip(slopes * theta[None, :, None] - offsets, -_CLIP, _CLIP).sum(axis=1)[0]
    return 1 / (1 + np.exp(-scores))


def _ability(answers: np.ndarray, slopes: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Returns the ability under which the answers are likeliest. [dims]"""
    try:
        from scipy.optimize import minimize
    except ImportError:
        raise MissingExtraError("scipy", "eval") from None

    def surprise(theta: np.ndarray) -> float:
        right = _curve(theta, slopes, offsets)
        return -float(np.sum(answers * np.log(right + _EPS) + (1 - answers) * np.log(1 - right + _EPS)))

    return minimize(surprise, np.zeros(slopes.shape[1]), method="BFGS").x
