"""The page that compares two results: intervals of the differences, all figures, the images that differ most."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from engine.analysis.bootstrap import Interval
from engine.analysis.report.page import render_shell
from engine.analysis.report.pieces import METRICS, table


@dataclass(frozen=True)
class Pair:
    """An image under both results, as entries of `gallery_images`."""

    first: Mapping[str, Any]
    second: Mapping[str, Any]

    @property
    def wrong(self) -> tuple[int, int]:
        """Misses and false alarms of each."""
        one, two = (len(each["misses"]) + len(each["alarms"]) for each in (self.first, self.second))
        return one, two


def render_comparison(
    names: tuple[str, str],
    intervals: Mapping[str, Interval],
    rows: Sequence[Sequence[str]],
    pairs: Sequence[Pair],
    *,
    subtitle: str,
) -> str:
    """HTML of one file that refers to nothing else.

    rows    name of a figure, first, second, difference: texts
    pairs   images, those that differ most first
    """
    first, second = map(escape, names)
    note = (
        f"The bar is the 95 % interval of the difference, {second} less {first}: images drawn anew with replacement, "
        "the same for both. Where it crosses the line, these images do not show a difference."
    )
    parts = [("difference", "What differs", note, forest(names, intervals))]
    parts.append(
        ("figures", "All figures", "", table(["", *names, "difference"], [[escape(r[0]), *r[1:]] for r in rows]))
    )
    if pairs:
        shown = "Those whose misses and false alarms differ most. Solid: found; dashed: missed; dotted: false alarm."
        parts.append(("images", "Images", shown, "".join(pair_figure(names, pair) for pair in pairs)))
    body = "".join(
        f'<section id="{name}"><h2>{heading}</h2>{f"<p>{text}</p>" if text else ""}{html}</section>'
        for name, heading, text, html in parts
    )
    return render_shell(
        title=f"{names[0]} and {names[1]}",
        sentence=sentence(names, intervals),
        subtitle=subtitle,
        links=[(name, heading) for name, heading, _, _ in parts],
        sections=body,
    )


def sentence(names: tuple[str, str], intervals: Mapping[str, Interval]) -> str:
    """The answer: which is better in AP, and whether the images show it."""
    if "mAP" not in intervals:
        return "There is nothing to compare: no object"
    each = intervals["mAP"]
    change = f"{points(each.second - each.first)} points of AP, {points(each.low)} to {points(each.high)}"
    if not each.certain:
        return f"No difference that these images show: {change}"
    better, other = reversed(names) if each.low > 0 else names
    size = abs(100 * (each.second - each.first))
    return f"{better} is better than {other} by {size:.1f} points of AP"


def points(value: float) -> str:
    """A difference of shares, in percentage points, with a real minus sign."""
    return f"{100 * value:+.1f}".replace("-", "\u2212")


def forest(names: tuple[str, str], intervals: Mapping[str, Interval]) -> str:
    """A line for each figure: both values, the interval of the difference as a bar, its text."""
    reach = max((abs(x) for each in intervals.values() for x in (each.low, each.high)), default=0) or 0.01

    def at(value: float) -> str:
        return f"{50 + 48 * value / reach:.2f}%"

    breakable = [re.sub("([_/.-])", r"\1<wbr>", escape(name)) for name in names]
    head = "".join(f"<span>{text}</span>" for text in ("", *breakable, "", "difference"))
    lines = []
    for name, each in intervals.items():
        change = each.second - each.first
        kind = "sure" if each.certain else "unsure"
        lines.append(
            f'<li class="{kind}"><b>{escape(METRICS.get(name, name))}</b><span>{100 * each.first:.1f}</span>'
            f'<span>{100 * each.second:.1f}</span><span class="range"><i style="left:{at(each.low)};width:calc('
            f'{at(each.high)} - {at(each.low)})"></i><u style="left:{at(change)}"></u></span>'
            f"<span>{points(change)} <small>{points(each.low)} to {points(each.high)}</small></span></li>"
        )
    return f'<ul class="forest"><li class="head">{head}</li>{"".join(lines)}</ul>'


def pair_figure(names: tuple[str, str], pair: Pair) -> str:
    """Both results on one image, side by side."""
    halves = []
    for name, entry, wrong in zip(names, (pair.first, pair.second), pair.wrong, strict=True):
        text = f"{escape(name)}: {len(entry['misses'])} missed, {len(entry['alarms'])} false alarms"
        width, height = entry["width"], entry["height"]
        boxes = "".join(
            f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}"/>'
            for kind in ("hits", "misses", "alarms")
            for x, y, w, h, *_ in entry[kind]
        )
        halves.append(
            f'<figure data-wrong="{wrong}"><svg viewBox="0 0 {width} {height}" style="aspect-ratio:{width}/{height}" '
            f'role="img" aria-label="{text}"><image href="{entry["uri"]}" width="{width}" height="{height}"/>{boxes}'
            f"</svg><small>{text}</small></figure>"
        )
    return f'<div class="pair"><h3>{escape(str(pair.first["name"]))}</h3>{"".join(halves)}</div>'
