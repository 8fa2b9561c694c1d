"""Plots as inline SVG, coloured by the page's style sheet; texts are escaped."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from math import floor, isfinite, log10

WIDTH, HEIGHT = 440, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 14, 14, 46
COLOURS = 8
"""Classes c0 .. c7 of the style sheet"""

Point = tuple[float, float | None]


@dataclass(frozen=True)
class Series:
    """A line; it is broken where y is None or not finite."""

    name: str
    points: Sequence[Point]
    style: str
    """Class of the style sheet"""


@dataclass(frozen=True)
class Axis:
    """Range, label with unit, and how a tick is written."""

    label: str
    low: float
    high: float
    ticks: Sequence[float]
    write: Callable[[float], str]


def share_axis(label: str) -> Axis:
    """From 0 to 1, written in percent."""
    return Axis(label, 0, 1, (0, 0.25, 0.5, 0.75, 1), lambda x: f"{100 * x:.0f}")


def number_axis(label: str, highest: float, *, lowest: float = 0) -> Axis:
    """From the lowest to the highest number, with round ticks."""
    span = max(highest - lowest, 1e-9)
    power = 10 ** floor(log10(span))
    step = next(power * factor for factor in (0.2, 0.25, 0.5, 1, 2, 2.5, 5) if span / (power * factor) <= 5.5)
    first = floor(lowest / step)
    ticks = [step * (first + i) for i in range(9)]
    ticks = ticks[: next((i for i, tick in enumerate(ticks) if tick >= highest - 1e-9 * span), 8) + 1]
    return Axis(label, ticks[0], ticks[-1], ticks, lambda x: f"{x:,.10g}")


@dataclass(frozen=True)
class Mark:
    """A vertical line with a text."""

    x: float
    text: str


def line_chart(title: str, x: Axis, y: Axis, series: Sequence[Series], *, mark: Mark | None = None) -> str:
    """Lines, and a legend if there are several."""
    body = [_frame(x, y)]
    for each in series:
        for run in _runs(each.points):
            path = "M" + "L".join(f"{_at_x(x, px):.1f} {_at_y(y, py):.1f}" for px, py in run)
            body.append(f'<path class="line {each.style}" d="{path}"><title>{escape(each.name)}</title></path>')
    if mark is not None:
        place = _at_x(x, mark.x)
        anchor = "start" if place < WIDTH * 0.6 else "end"
        shift = 5 if anchor == "start" else -5
        body.append(
            f'<line class="mark" x1="{place:.1f}" x2="{place:.1f}" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/>'
            f'<text class="note" x="{place + shift:.1f}" y="{HEIGHT - _BOTTOM - 8}" text-anchor="{anchor}">'
            f"{escape(mark.text)}</text>"
        )
    return _figure(title, body, [(each.name, f"key {each.style}") for each in series] if len(series) > 1 else [])


def scatter_chart(
    title: str, x: Axis, y: Axis, groups: Sequence[tuple[str, str, Sequence[tuple[float, float]]]], *, equal: bool
) -> str:
    """Points of groups (name, style, points); equal draws the line x = y."""
    body = [_frame(x, y)]
    if equal:
        high = min(x.high, y.high)
        ends = f'x1="{_at_x(x, 0):.1f}" y1="{_at_y(y, 0):.1f}" x2="{_at_x(x, high):.1f}" y2="{_at_y(y, high):.1f}"'
        body.append(f'<line class="mark" {ends}/>')
    for _, style, points in groups:
        dots = "".join(f'<circle cx="{_at_x(x, px):.1f}" cy="{_at_y(y, py):.1f}" r="3"/>' for px, py in points)
        body.append(f'<g class="dots {style}">{dots}</g>')
    legend = [(name, f"key dot {style}") for name, style, _ in groups]
    return _figure(title, body, [*legend, ("equal", "key thin")] if equal else legend)


def bar_chart(title: str, x_label: str, y: Axis, bars: Sequence[tuple[str, float]]) -> str:
    """Upright bars with a name each."""
    x = Axis(x_label, 0, max(len(bars), 1), (), str)
    body, width = [_frame(x, y)], (WIDTH - _LEFT - _RIGHT) / max(len(bars), 1)
    for place, (name, value) in enumerate(bars):
        left, top = _LEFT + place * width, _at_y(y, value)
        body.append(
            f'<rect class="bar" x="{left + width * 0.12:.1f}" y="{top:.1f}" width="{width * 0.76:.1f}" '
            f'height="{HEIGHT - _BOTTOM - top:.1f}"><title>{escape(name)}: {value:g}</title></rect>'
            f'<text class="tick" x="{left + width / 2:.1f}" y="{HEIGHT - _BOTTOM + 17}" text-anchor="middle">'
            f"{escape(name)}</text>"
        )
    return _figure(title, body, [])


def _frame(x: Axis, y: Axis) -> str:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    parts = []
    for tick in y.ticks:
        place = _at_y(y, tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{place:.1f}" y2="{place:.1f}"/>')
        text = escape(y.write(tick))
        parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{place + 4:.1f}" text-anchor="end">{text}</text>')
    for tick in x.ticks:
        place, text = _at_x(x, tick), escape(x.write(tick))
        parts.append(f'<text class="tick" x="{place:.1f}" y="{bottom + 17}" text-anchor="middle">{text}</text>')
    parts.append(f'<line class="base" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    middle = (_LEFT + right) / 2
    parts.append(f'<text class="axis" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x.label)}</text>')
    height = (_TOP + bottom) / 2
    turned = f'transform="rotate(-90 13 {height})"'
    parts.append(f'<text class="axis" x="13" y="{height}" text-anchor="middle" {turned}>{escape(y.label)}</text>')
    return "".join(parts)


def _at_x(axis: Axis, value: float) -> float:
    return _LEFT + (value - axis.low) / (axis.high - axis.low) * (WIDTH - _LEFT - _RIGHT)


def _at_y(axis: Axis, value: float) -> float:
    return HEIGHT - _BOTTOM - (value - axis.low) / (axis.high - axis.low) * (HEIGHT - _TOP - _BOTTOM)


def _runs(points: Sequence[Point]) -> list[list[tuple[float, float]]]:
    """The points between gaps."""
    runs: list[list[tuple[float, float]]] = [[]]
    for px, py in points:
        if py is None or not isfinite(py):
            runs.append([])
        else:
            runs[-1].append((px, py))
    return [run for run in runs if run]


def _figure(title: str, body: Sequence[str], legend: Sequence[tuple[str, str]]) -> str:
    items = "".join(f'<li><i class="{style}"></i>{escape(name)}</li>' for name, style in legend)
    keys = f'<ul class="legend">{items}</ul>' if items else ""
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(body)}</svg>'
        f"{keys}</figure>"
    )
