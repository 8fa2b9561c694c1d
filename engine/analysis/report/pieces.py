"""Small pieces of the page: numbers, tables, bars."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

NONE = "–"  # noqa: RUF001  # a dash stands for no measurement


@dataclass(frozen=True)
class Cause:
    """How the page speaks of a cause."""

    title: str
    text: str
    """What happened, and what may help"""


CAUSES = {
    "budget": Cause(
        "Never queried: budget too small",
        "More queries would have reached it. The count by density is too low, or queries_per_object is.",
    ),
    "ranking": Cause(
        "Never queried: ranked too low",
        "There were enough queries, but they went elsewhere: the proposals' scores miss this kind of object.",
    ),
    "score": Cause(
        "Scored too low",
        "A query was there; what it became is below the threshold. A lower threshold finds some of these.",
    ),
    "class": Cause("Wrong class", "Found and well placed, but under another name: see the confusion matrix."),
    "box": Cause("Off by some pixels", "Right class, but IoU below 0.5: on tiny objects two pixels are enough."),
    "nothing": Cause("Nothing found there", "No detection of its class overlaps it, at any score."),
}
ERRORS = {
    "classification": ("Classification", "right place, wrong class"),
    "localisation": ("Localisation", "right class, IoU 0.1 to 0.5"),
    "both": ("Both", "wrong class and badly placed"),
    "duplicate": ("Duplicate", "the object has a better detection"),
    "background": ("Background", "nothing is there"),
    "missed": ("Missed", "no fix of a detection reaches it"),
    "false positives": ("All false positives", "if every wrong detection scored 0"),
    "false negatives": ("All false negatives", "if only found objects counted"),
}
METRICS = {
    "mAP": "AP",
    "mAP_50": "AP50",
    "mAP_75": "AP75",
    "mAP_vt": "AP very tiny",
    "mAP_t": "AP tiny",
    "mAP_s": "AP small",
    "mAP_m": "AP medium",
    "mAP_l": "AP large",
    "oLRP": "oLRP",
}


def percent(value: float | None, digits: int = 1) -> str:
    """A share in percent, without the sign."""
    return NONE if value is None else f"{100 * value:.{digits}f}"


def number(value: float | None, digits: int = 0) -> str:
    return NONE if value is None else f"{value:,.{digits}f}"


def share(part: float, whole: float) -> str:
    """In percent with its sign; a dash of nothing."""
    return f"{100 * part / whole:.0f}\u00a0%" if whole else NONE


def table(heading: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str = "", sortable: bool = False) -> str:
    """A table of HTML cells, the first column to the left."""
    kind = ' class="sortable"' if sortable else ""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heading)
    body = "".join(f'<tr><th scope="row">{row[0]}</th>{"".join(f"<td>{c}</td>" for c in row[1:])}</tr>' for row in rows)
    named = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption or heading[0] or "table")}">'
        f"<table{kind}>{named}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def stacked_bar(parts: Mapping[str, float], *, large: bool = False) -> str:
    """Shares of a whole, named by cause; "found" too."""
    whole = sum(parts.values())
    if not whole:
        return f'<span class="stack{" large" if large else ""}"></span>'
    spans = "".join(
        f'<span class="k-{name}" style="width:{100 * value / whole:.3f}%" title="{_title(name)}: {value:,.0f}"></span>'
        for name, value in parts.items()
        if value
    )
    return f'<span class="stack{" large" if large else ""}">{spans}</span>'


def cause_rows(groups: Mapping[str, Mapping[str, Any]], first: str, caption: str) -> str:
    """A table of groups of objects: how many, how many found, and a bar of the causes."""
    rows = []
    for name, group in groups.items():
        parts = {key: value for key, value in group.items() if key != "objects"}
        missed = group["objects"] - group["found"]
        worst = max((key for key in parts if key != "found"), key=lambda key: parts[key])
        text = f'<span class="tag k-{worst}"></span>{escape(CAUSES[worst].title)}' if missed else ""
        cells = [number(group["objects"]), share(group["found"], group["objects"]), number(missed)]
        rows.append([escape(name), *cells, stacked_bar(parts), text])
    return table([first, "objects", "found", "missed", "causes", "most frequent cause"], rows, caption=caption)


def bars(rows: Sequence[tuple[str, str, float, str]], highest: float) -> str:
    """Lines of a title, a note, a bar of that length and a text."""
    lines = "".join(
        f'<li><span class="what"><b>{escape(title)}</b><small>{escape(note)}</small></span>'
        f'<span class="track"><span style="width:{100 * value / highest if highest else 0:.2f}%"></span></span>'
        f'<span class="value">{text}</span></li>'
        for title, note, value, text in rows
    )
    return f'<ul class="bars">{lines}</ul>'


def _title(name: str) -> str:
    return "Found" if name == "found" else escape(CAUSES[name].title)
