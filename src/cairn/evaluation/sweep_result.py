"""What a sweep found: bits per byte of every variant, and paired differences to the baseline.

    bits[variant][seed][piece] ─┬─ sum over pieces / bytes ─▶ bits per byte of each seed
                                │        └─ minus the baseline's, seed by seed ─▶ mean, Student interval over seeds
                                └─ seeds x documents drawn together ─▶ crossed bootstrap of the same difference

Two intervals, because they answer two questions. Over seeds: would other initialisations and orders agree, on these
documents? Over seeds and documents: would other documents of the same kind agree as well? A variant is called better
or worse only where both leave out zero. Bits are summed before they are divided, so that every byte counts the same.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from cairn.errors import InputError
from cairn.evaluation.statistics import resampled_means, student_interval

__all__ = ["sweep_scores", "verdict_of"]

Bits = Sequence[Sequence[float]]  # [seeds][pieces]


def sweep_scores(
    bits: Mapping[str, Bits],
    sizes: Sequence[int],
    *,
    baseline: str,
    sources: Sequence[str],
    documents: Sequence[Hashable],
    seed: int = 0,
    resamples: int = 10_000,
) -> dict[str, dict[str, Any]]:
    """Returns name -> scores of each variant.

    Args:
        bits: variant -> bits of each piece, for each seed; all with the same seeds and pieces in the same order.
        sizes: raw bytes of each piece.
        baseline: the variant that the others are compared to.
        sources: of each piece.
        documents: of each piece; pieces of one document are drawn together.
        seed: of the bootstrap.
        resamples: draws.

    Returns:
        bits_per_byte (mean over seeds), by_seed, ci95 (seeds x documents), by_source, and for all but the baseline
        difference: value, by_seed, ci95_seeds (None for one seed), ci95 (seeds x documents), p_value, by_source,
        verdict (see `verdict_of`).

    Raises:
        InputError: the baseline is missing, or variants have different seeds or pieces.
    """
    if baseline not in bits:
        raise InputError("the baseline has no scores", value=baseline, allowed=", ".join(bits) or "none")
    names = [baseline, *(name for name in bits if name != baseline)]
    shapes = {name: np.asarray(bits[name], dtype=float).shape for name in names}
    if len(set(shapes.values())) != 1 or shapes[baseline][1] != len(sizes):
        raise InputError("variants were scored on different seeds or pieces", value=shapes,
                         allowed=f"[seeds, {len(sizes)}] for all")  # fmt: skip
    table = np.stack([np.asarray(bits[name], dtype=float) for name in names])  # [variants, seeds, pieces]
    weights = np.asarray(sizes, dtype=float)
    by_seed = table.sum(axis=2) / weights.sum()  # [variants, seeds]
    rows = np.concatenate([table, np.broadcast_to(weights, table.shape[1:])[None]])
    means = resampled_means(rows, documents, seed, resamples)
    draws = means[:-1] / means[-1]  # the same pieces above and below: bits per byte of each draw
    places = {source: np.array([one == source for one in sources]) for source in dict.fromkeys(sources)}
    parts = {source: table[:, :, at].sum(axis=2).mean(axis=1) / weights[at].sum() for source, at in places.items()}
    found: dict[str, dict[str, Any]] = {}
    for number, name in enumerate(names):
        found[name] = {
            "bits_per_byte": float(by_seed[number].mean()),
            "by_seed": by_seed[number].tolist(),
            "ci95": _percentiles(draws[number]),
            "by_source": {source: float(part[number]) for source, part in parts.items()},
        }
        if number:
            gaps = by_seed[number] - by_seed[0]
            drawn = draws[number] - draws[0]
            extreme = int((np.abs(drawn - gaps.mean()) >= abs(gaps.mean()) - 1e-12).sum())
            over_seeds = student_interval(gaps.tolist())
            difference = {
                "value": float(gaps.mean()),
                "by_seed": gaps.tolist(),
                "ci95_seeds": None if over_seeds is None else list(over_seeds),
                "ci95": _percentiles(drawn),
                "p_value": (extreme + 1) / (resamples + 1),
                "by_source": {source: float(part[number] - part[0]) for source, part in parts.items()},
            }
            found[name]["difference"] = {**difference, "verdict": verdict_of(difference)}
    return found


def verdict_of(difference: Mapping[str, Any]) -> str:
    """Returns `better` (fewer bits) or `worse` where both intervals leave out zero; `one seed`, or `not shown`."""
    if difference["ci95_seeds"] is None:
        return "one seed"
    low = min(difference["ci95_seeds"][0], difference["ci95"][0])
    high = max(difference["ci95_seeds"][1], difference["ci95"][1])
    return "better" if high < 0 else "worse" if low > 0 else "not shown"


def _percentiles(draws: np.ndarray) -> list[float]:
    low, high = np.quantile(draws, [0.025, 0.975])
    return [float(low), float(high)]
