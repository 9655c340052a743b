"""The report's plots as inline SVG, written by hand: no plotting library, no script, no external resource.

Colours are CSS variables of the page (`--s0`, `--s1`, ... one per system; `--ink`, `--faint`, `--grid`), so a plot
follows the reader's light or dark theme, and stays sharp at any size. Every mark carries a <title>: hover to read it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

__all__ = [
    "accuracy_by_flops",
    "accuracy_by_group",
    "accuracy_by_latency",
    "accuracy_by_task",
    "blame_plot",
    "curves_plot",
    "differences_plot",
    "si",
]

Points = Sequence[tuple[float, float]]
Box = tuple[float, float, float, float]  # left, top, right, bottom


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
    step = max(bar * (len(systems) + 1), 12 + 7 * max(len(str(name)) for name, _ in groups))  # a label's room
    width = max(420, left + step * len(groups) + bar)
    parts = [_percent_axis(left, top, width - 10, height)]
    for place, (name, part) in enumerate(groups):
        x0 = left + bar / 2 + place * step + (step - bar * len(systems)) / 2
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
            f'<text x="{x0 + bar * len(systems) / 2:.1f}" y="{top + height + 18}" text-anchor="middle"{weight}>'
            f"{escape(str(name))}</text>"
        )
    return _svg(width, top + height + 28, "Accuracy by task and system", parts)


def accuracy_by_group(result: Mapping[str, Any], systems: Sequence[str]) -> str:
    """Returns a row of dots for each group, one dot a system with its 95% interval: for many groups, or long names.

    Args:
        result: of `compare_seeds`.
        systems: those to draw.
    """
    rows = [("all", result), *result["tasks"].items()] if len(result["tasks"]) > 1 else list(result["tasks"].items())
    left, top, step, width = _label_room(str(name) for name, _ in rows), 26, 10 + 7 * len(systems), 1010
    right, height = width - 16, (10 + 7 * len(systems)) * len(rows)
    parts = []
    for percent in (0, 25, 50, 75, 100):
        x = left + (right - left) * percent / 100
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{top + height}" stroke="var(--grid)"/>')
        parts.append(f'<text x="{x:.1f}" y="{top - 10}" text-anchor="middle">{percent}%</text>')
    for place, (name, part) in enumerate(rows):
        y0 = top + step * place
        parts.append(f'<line x1="{left}" x2="{right}" y1="{y0}" y2="{y0}" stroke="var(--grid)"/>')
        weight = ' font-weight="600"' if name == "all" else ""
        parts.append(
            f'<text x="{left - 10}" y="{y0 + step / 2 + 4:.1f}" text-anchor="end"{weight}>{escape(_cut(name))}</text>'
        )
        for number, system in enumerate(systems):
            y = y0 + 8.5 + 7 * number
            value, (low, high) = part["accuracy"][system], part["ci95"][system]
            colour = f"var(--s{list(result['systems']).index(system)})"
            label = f"{system}, {name}: {100 * value:.1f}% ({100 * low:.1f} to {100 * high:.1f})"
            start, middle, end = (left + (right - left) * share for share in (low, value, high))
            parts.append(
                f"<g><title>{escape(label)}</title>"
                f'<line x1="{start:.1f}" x2="{end:.1f}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="2" '
                f'stroke-opacity="0.45"/><circle cx="{middle:.1f}" cy="{y}" r="3.6" fill="{colour}"/></g>'
            )
    return _svg(width, top + height + 6, "Accuracy by group and system", parts)


def accuracy_by_flops(result: Mapping[str, Any]) -> str:
    """Returns accuracy against FLOPs per question on a logarithmic axis, one point per system."""
    return _scatter(result, result["flops_per_question"], "FLOPs per question (log)", "FLOPs per question")


def accuracy_by_latency(result: Mapping[str, Any]) -> str:
    """Returns accuracy against the median latency of one question, with a line to the 95th percentile."""
    rows = result["cost"]["systems"]
    middle = {name: row["latency_ms"]["p50"] for name, row in rows.items()}
    late = {name: row["latency_ms"]["p95"] for name, row in rows.items()}
    return _scatter(result, middle, "milliseconds per question, median to 95th percentile (log)", "ms", late)


def _scatter(
    result: Mapping[str, Any], xs: Mapping[str, float], x_label: str, unit: str, ends: Mapping[str, float] | None = None
) -> str:
    """Returns accuracy with its interval against a cost on a logarithmic axis; each point has its system's name."""
    systems = [name for name in result["systems"] if xs.get(name, 0) > 0]
    if not systems:
        return ""
    left, top, width, height = 46, 14, 540, 260
    right = width - 14
    ends = ends or {}
    low = math.floor(math.log10(min(xs[name] for name in systems)) - 0.05)
    high = math.ceil(math.log10(max(ends.get(name, xs[name]) for name in systems)) + 0.05)

    def across(value: float) -> float:
        return left + (math.log10(value) - low) / (high - low) * (right - left)

    def up(share: float) -> float:
        return top + height * (1 - share)

    parts = [_percent_axis(left, top, right, height)]
    for power in range(low, high + 1):
        x = across(10.0**power)
        anchor = "end" if power == high else "middle"
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{top + height}" stroke="var(--grid)"/>')
        parts.append(f'<text x="{x:.1f}" y="{top + height + 18}" text-anchor="{anchor}">{si(10.0**power)}</text>')
    middle = (left + right) / 2
    parts.append(f'<text x="{middle}" y="{top + height + 36}" text-anchor="middle">{escape(x_label)}</text>')
    points = {name: (across(xs[name]), up(result["accuracy"][name])) for name in systems}
    for name, (x, y) in points.items():
        number = list(result["systems"]).index(name)
        value, (least, most) = result["accuracy"][name], result["ci95"][name]
        label = f"{name}: {100 * value:.1f}% ({100 * least:.1f} to {100 * most:.1f}) at {si(xs[name])} {unit}"
        tail = ""
        if ends.get(name, 0) > xs[name]:
            tail = f'<path d="M{x:.1f} {y:.1f}H{across(ends[name]):.1f}m0 -3v6" stroke="var(--s{number})" fill="none"/>'
        parts.append(
            f"<g><title>{escape(label)}</title>{_whisker_v(x, up(most), up(least))}{tail}"
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="6" fill="var(--s{number})" stroke="var(--page)" '
            f'stroke-width="1.5"/></g>'
        )
    tails = [(x, y - 4, across(ends[name]), y + 4) for name, (x, y) in points.items() if name in ends]
    for name, (x, y, anchor) in _placed(points, tails, (left, top, right, top + height)).items():
        parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="label">{escape(name)}</text>')
    return _svg(width, top + height + 44, f"Accuracy against {x_label}", parts)


def _placed(
    points: Mapping[str, tuple[float, float]], lines: Sequence[Box], frame: Box
) -> dict[str, tuple[float, float, str]]:
    """Returns where the name of each point stands (x, y, anchor) so that names hide neither each other nor a point."""
    left, top, right, bottom = frame
    taken = [*lines, *((x - 7, y - 7, x + 7, y + 7) for x, y in points.values())]
    found = {}
    for name, (x, y) in sorted(points.items(), key=lambda item: item[1]):
        wide = 6.9 * len(name)
        spots = [
            (x + side * 11, y + 4 + shift, "start" if side > 0 else "end")
            for shift in (0, -13, 13, -26, 26, -39, 39, -52, 52)
            for side in ((1, -1) if x < (left + right) / 2 else (-1, 1))
        ]
        boxes = [
            (spot[0] if spot[2] == "start" else spot[0] - wide, spot[1] - 10,
             spot[0] + wide if spot[2] == "start" else spot[0], spot[1] + 3)
            for spot in spots
        ]  # fmt: skip

        def cost(place: int, boxes: list[Box] = boxes) -> tuple[float, int]:
            a, b, c, d = boxes[place]
            over = sum(max(0, min(c, r) - max(a, p)) * max(0, min(d, s) - max(b, q)) for p, q, r, s in taken)
            outside = max(0, left - a) + max(0, c - right) + max(0, top - b) + max(0, d - bottom)
            return over + 100 * outside, place

        best = min(range(len(spots)), key=cost)
        taken.append(boxes[best])
        found[name] = spots[best]
    return found


def blame_plot(section: Mapping[str, Any]) -> str:
    """Returns two bars for each stage: points lost in it, and what gold in its place alone would bring."""
    stages = section["stages"]
    left, top, step, width = _label_room(stage["name"] for stage in stages), 26, 44, 860
    bars = [(stage, key) for stage in stages for key in ("lost_here", "lift") if stage[key] is not None]
    ends = [value for stage, key in bars for value in (*stage[key]["ci95"], stage[key]["difference"])]
    ticks = _ticks(100 * min(0.0, *ends), 100 * max(0.01, *ends))
    right, height = width - 26, step * len(stages)

    def across(points: float) -> float:
        return left + (points - ticks[0]) / (ticks[-1] - ticks[0]) * (right - left)

    parts = []
    for tick in ticks:
        x = across(tick)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{top + height}" stroke="var(--grid)"/>')
        parts.append(f'<text x="{x:.1f}" y="{top - 10}" text-anchor="middle">{tick:g}</text>')
    for place, stage in enumerate(stages):
        y0 = top + step * place
        weight = ' class="label"' if stage["name"] == section["weakest"] else ""
        name = escape(_cut(stage["name"]))
        parts.append(f'<text x="{left - 10}" y="{y0 + step / 2 + 4}" text-anchor="end"{weight}>{name}</text>')
        for key, shift, colour, text in (
            ("lost_here", 7, "var(--wrong)", "lost here"), ("lift", 23, "var(--c1)", "gold here alone brings"),
        ):  # fmt: skip
            if stage[key] is None:
                continue
            value, (low, high) = 100 * stage[key]["difference"], [100 * end for end in stage[key]["ci95"]]
            start, end, middle = across(min(0, value)), across(max(0, value)), y0 + shift + 7
            label = f"{stage['name']}, {text}: {value:+.1f} points ({low:+.1f} to {high:+.1f})"
            parts.append(
                f"<g><title>{escape(label)}</title>"
                f'<rect x="{start:.1f}" y="{y0 + shift}" width="{max(end - start, 0.6):.1f}" height="14" rx="2" '
                f'fill="{colour}"/>'
                f'<path d="M{across(low):.1f} {middle}H{across(high):.1f}M{across(low):.1f} {middle - 3}v6'
                f'M{across(high):.1f} {middle - 3}v6" stroke="var(--ink)" stroke-width="1.2" fill="none"/></g>'
            )
    zero = across(0.0)
    parts.append(f'<line x1="{zero:.1f}" x2="{zero:.1f}" y1="{top}" y2="{top + height}" stroke="var(--soft)"/>')
    return _svg(width, top + height + 6, "Points lost in each stage", parts)


def differences_plot(rows: Sequence[Mapping[str, Any]], x_label: str) -> str:
    """Returns one row for each variant: its difference to the baseline with its interval, and a dot for each seed.

    Args:
        rows: name, value, ci95 (low, high), by_seed, and better (True, False, or None: not shown).
        x_label: below the axis; the baseline is the line at 0.
    """
    if not rows:
        return ""
    left, top, step, width = _label_room(str(row["name"]) for row in rows), 12, 30, 860
    ends = [end for row in rows for end in (*row["ci95"], *row["by_seed"], row["value"])]
    ticks = _ticks(min(0.0, *ends), max(0.0, *ends))
    right, height = width - 26, step * len(rows)

    def across(value: float) -> float:
        return left + (value - ticks[0]) / (ticks[-1] - ticks[0]) * (right - left)

    parts = []
    for tick in ticks:
        x = across(tick)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{top + height}" stroke="var(--grid)"/>')
        parts.append(f'<text x="{x:.1f}" y="{top + height + 18}" text-anchor="middle">{tick:+g}</text>')
    zero = across(0.0)
    parts.append(f'<line x1="{zero:.1f}" x2="{zero:.1f}" y1="{top}" y2="{top + height}" stroke="var(--soft)"/>')
    for place, row in enumerate(rows):
        y, (low, high) = top + step * (place + 0.5), row["ci95"]
        colour = {True: "var(--right)", False: "var(--wrong)", None: "var(--soft)"}[row["better"]]
        seeds = ", ".join(f"{value:+.4f}" for value in row["by_seed"])
        label = f"{row['name']}: {row['value']:+.4f} ({low:+.4f} to {high:+.4f}); by seed {seeds}"
        seed_places = [across(value) for value in row["by_seed"]]
        dots = "".join(f'<circle cx="{x:.1f}" cy="{y + 8:.1f}" r="2.2" fill="var(--soft)"/>' for x in seed_places)
        parts.append(
            f'<text x="{left - 10}" y="{y + 4:.1f}" text-anchor="end">{escape(_cut(str(row["name"])))}</text>'
            f"<g><title>{escape(label)}</title>"
            f'<path d="M{across(low):.1f} {y:.1f}H{across(high):.1f}M{across(low):.1f} {y - 4:.1f}v8'
            f'M{across(high):.1f} {y - 4:.1f}v8" stroke="{colour}" stroke-width="1.6" fill="none"/>'
            f'<circle cx="{across(row["value"]):.1f}" cy="{y:.1f}" r="4.6" fill="{colour}"/>{dots}</g>'
        )
    middle = (left + right) / 2
    parts.append(f'<text x="{middle}" y="{top + height + 36}" text-anchor="middle">{escape(x_label)}</text>')
    return _svg(width, top + height + 44, x_label, parts)


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


def _label_room(names: Iterable[str]) -> int:
    """Returns the width in pixels that the longest of some row labels needs."""
    return max(60, min(230, 20 + max(round(6.9 * len(_cut(name))) for name in names)))


def _cut(name: str, most: int = 30) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


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
        f'<svg viewBox="0 0 {width:.0f} {height:.0f}" style="max-width:{width:.0f}px;--w:{width:.0f}px" role="img" '
        f'aria-label="{escape(title)}" xmlns="http://www.w3.org/2000/svg">{"".join(parts)}</svg>'
    )
