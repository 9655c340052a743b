"""The form in which every benchmark reports: human lines as it goes, one JSON object as the last line."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

__all__ = ["finish", "row"]


def row(
    case: str, unit: str, ours: float, reference: float, reference_name: str, at_least: float | None,
    *, smaller_is_better: bool = False, **more: Any,
) -> dict[str, Any]:
    """Returns one comparison; `ratio` is oriented so that bigger is better.

    Args:
        case: what was measured.
        unit: of `ours` and `reference`.
        ours: our median.
        reference: the median of the simplest alternative, measured in the same run.
        reference_name: what the alternative is.
        at_least: the ratio that is promised, or None.
        smaller_is_better: for times and losses.
        more: further figures (spread, share of a ceiling).
    """
    ratio = reference / ours if smaller_is_better else ours / reference
    return {"case": case, "unit": unit, "ours": ours, "reference": reference, "reference_name": reference_name,
            "ratio": ratio, "at_least": at_least, **more}


def finish(benchmark: str, rows: list[dict[str, Any]]) -> int:
    """Prints the JSON line; returns 1 if a promised ratio is missed."""
    root = Path(__file__).resolve().parents[1]
    commit = subprocess.run(["git", "-C", str(root), "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    machine = f"{platform.machine()}, {os.cpu_count()} logical cores, {platform.system()}"
    print(json.dumps({"benchmark": benchmark, "commit": commit.stdout.strip() or None, "machine": machine,
                      "rows": rows}))
    return int(any(entry["at_least"] is not None and entry["ratio"] < entry["at_least"] for entry in rows))
