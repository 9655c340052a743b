"""The report's three plots as inline SVG, written by hand: no plotting library, no script, no external resource.

Colours are CSS variables of the page (`--s0`, `--s1`, ... one per system; `--ink`, `--faint`, `--grid`), so a plot
follows the reader's light or dark theme, and stays sharp at any size. Every mark carries a <title>: hover to read it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

__all__ = ["accuracy_by_task", "accuracy_by_flops", "curves_plot", "si"]

Points = Sequence[tuple[float, float]]


def si(value: float) -> str:
    """Returns a number in three significant digits with an SI suffix: 1.23 G."""
    for limit, suffix in ((1e15, " P"), (1e12, " T"), (1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{suffix}"
    return f"{value:.3g}"


def accuracy_by_task(result: Mapping[str, Any]) -> str:
    """Returns grouped bars: accuracy of each system by task and over all, with 95% intervals."""
    systems = list(result["systems"])
    groups = [("all", result), *result["tasks"].items()] if len(result["tasks"]) > 1 else list(result["tasks"].items())
    left, top, height = 46, 14, 220
    bar = max(9, min(26, 580 // (len(groups) * (len(systems) + 1))))
    step = bar * (len(systems) + 1)
    width = max(420, left + step * len(groups) + bar)
    parts = [_percent_axis(left, top, width - 10, height)]
    for place, (name, part) in enumerate(groups):
        x0 = left + bar * 0.75 + place * step
        for number, system in enumerate(systems):
            value, (low, high) = part["accuracy"][system], part["ci95"][system]
            x, y = x0 + number * bar, top + height * (1 - value)
            middle = x + (bar - 2) / 2
            label = f"{system}, {name}: {100 * value:.1f}% ({100 * low:.1f} to {100 * high:.1f})"
            parts.append(
                f'<g><title>{escape(label)}</title>'
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{bar - 2:.1f}" height="{height * value:.1f}" rx="2" '
                f'fill="var(--s{number})"/>'
                f'{_whisker_v(middle, top + height * (1 - high), top + height * (1 - low))}</g>'
            )
        weight = ' font-weight="600"' if name == "all" else ""
        parts.append(
            f'<text x="{x0 + step / 2 - bar / 2:.1f}" y="{top + height + 18}" text-anchor="middle"{weight}>'
            f"{escape(str(name))}</text>"
        )
    return _svg(width, top + height + 28, "Accuracy by task and system", parts)


def accuracy_by_flops(result: Mapping[str, Any]) -> str:
    """Returns accuracy against FLOPs per question on a logarithmic axis, one point per system."""
    systems = [name for name in result["systems"] if result["flops_per_question"].get(name, 0) > 0]
    left, top, width, height = 46, 14, 420, 220
    right = width - 18
    if not systems:
        return ""
    logs = {name: math.log10(result["flops_per_question"][name]) for name in systems}
    first, last = math.floor(min(logs.values()) - 0.1), math.ceil(max(logs.values()) + 0.1)
    parts = [_percent_axis(left, top, right, height)]

    def across(value: float) -> float:
        return left + (value - first) / (last - first) * (right - left)

    for power in range(first, last + 1):
        x = across(power)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{top + height}" stroke="var(--grid)"/>')
        parts.append(f'<text x="{x:.1f}" y="{top + height + 18}" text-anchor="middle">{si(10.0**power)}</text>')
    parts.append(
        f'<text x="{(left + right) / 2}" y="{top + height + 36}" text-anchor="middle">FLOPs per question (log)</text>'
    )
    taken: list[tuple[float, float]] = []
    for name in systems:
        number = list(result["systems"]).index(name)
        value, (low, high) = result["accuracy"][name], result["ci95"][name]
        x, y = across(logs[name]), top + height * (1 - value)
        label = f"{name}: {100 * value:.1f}% at {si(result['flops_per_question'][name])}FLOP per question"
        side, shift = ("end", -10) if x > (left + right) / 2 else ("start", 10)
        text_y = y + 4
        while any(abs(text_y - other_y) < 13 and abs(x - other_x) < 140 for other_x, other_y in taken):
            text_y -= 13
        taken.append((x, text_y))
        parts.append(
            f'<g><title>{escape(label)}</title>'
            f'{_whisker_v(x, top + height * (1 - high), top + height * (1 - low))}'
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="var(--s{number})" stroke="var(--page)" stroke-width="1.5"/>'
            f'<text x="{x + shift:.1f}" y="{text_y:.1f}" text-anchor="{side}" class="label">{escape(name)}</text></g>'
        )
    return _svg(width, top + height + 44, "Accuracy against FLOPs per question", parts)


def curves_plot(
    curves: Mapping[str, Points], x_label: str = "step", y_label: str = "loss", *, colour_of: Mapping[str, str]
) -> str:
    """Returns one line per named curve of (x, y) points, with a legend at the line ends.

    Points that are not finite are left out; an empty text is returned if nothing is left.

    Args:
        curves: name -> points.
        x_label, y_label: written at the axes.
        colour_of: name -> CSS variable.
    """
    kept = {
        name: [(float(x), float(y)) for x, y in points if math.isfinite(x) and math.isfinite(y)]
        for name, points in curves.items()
    }
    kept = {name: points for name, points in kept.items() if points}
    if not kept:
        return ""
    left, top, width, height = 52, 14, 1010, 220
    right = width - 150
    xs = [x for points in kept.values() for x, _ in points]
    ys = [y for points in kept.values() for _, y in points]
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1e-9)
    y_ticks = _ticks(min(0.0, min(ys)), max(ys))
    y_low, y_high = y_ticks[0], y_ticks[-1]
    parts = []
    for tick in y_ticks:
        y = top + height * (1 - (tick - y_low) / (y_high - y_low))
        parts.append(f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--grid)"/>')
        parts.append(f'<text x="{left - 7}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in _ticks(x_low, x_high):
        if x_low <= tick <= x_high:
            x = left + (tick - x_low) / (x_high - x_low) * (right - left)
            parts.append(f'<text x="{x:.1f}" y="{top + height + 18}" text-anchor="middle">{si(tick)}</text>')
    middle = (left + right) / 2
    parts.append(f'<text x="{middle}" y="{top + height + 36}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(
        f'<text transform="translate(13 {top + height / 2}) rotate(-90)" text-anchor="middle">{escape(y_label)}</text>'
    )
    ends: list[tuple[float, str]] = []
    for name, points in kept.items():
        path = " ".join(
            f"{left + (x - x_low) / (x_high - x_low) * (right - left):.1f},"
            f"{top + height * (1 - (y - y_low) / (y_high - y_low)):.1f}"
            for x, y in _thinned(points)
        )
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="var({colour_of[name]})" stroke-width="1.8" '
            f'stroke-linejoin="round"><title>{escape(name)}</title></polyline>'
        )
        ends.append((top + height * (1 - (points[-1][1] - y_low) / (y_high - y_low)), name))
    previous = -math.inf
    for y, name in sorted(ends):
        previous = max(y, previous + 14)
        parts.append(
            f'<rect x="{right + 8}" y="{previous - 4:.1f}" width="12" height="4" rx="2" fill="var({colour_of[name]})"/>'
            f'<text x="{right + 25}" y="{previous + 2:.1f}">{escape(name)}</text>'
        )
    return _svg(width, max(top + height + 44, int(previous + 12)), f"{y_label} by {x_label}", parts)


def _percent_axis(left: float, top: float, right: float, height: float) -> str:
    parts = []
    for percent in (0, 25, 50, 75, 100):
        y = top + height * (1 - percent / 100)
        parts.append(f'<line x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--grid)"/>')
        parts.append(f'<text x="{left - 7}" y="{y + 4:.1f}" text-anchor="end">{percent}%</text>')
    return "".join(parts)


def _whisker_v(x: float, top: float, bottom: float) -> str:
    cap = "".join(f"M{x - 3:.1f} {y:.1f}h6" for y in (top, bottom))
    return f'<path d="M{x:.1f} {top:.1f}V{bottom:.1f}{cap}" stroke="var(--ink)" stroke-width="1.2" fill="none"/>'


def _ticks(low: float, high: float) -> list[float]:
    span = max(high - low, 1e-9)
    raw = span / 4
    scale = 10 ** math.floor(math.log10(raw))
    step = next(factor * scale for factor in (1, 2, 2.5, 5, 10) if factor * scale >= raw - 1e-12)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(place * step, 12) for place in range(first, max(last, first + 1) + 1)]


def _thinned(points: Points, most: int = 400) -> Points:
    stride = math.ceil(len(points) / most)
    return [*points[::stride], *([points[-1]] if (len(points) - 1) % stride else [])]


def _svg(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" style="max-width:{width:.0f}px" role="img" '
        f'aria-label="{escape(title)}" xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )
