"""The plot of scripts/dataset_stats.py: sizes of objects, objects per image, classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from configs.schema import Config
from scripts.data_statistics.facts import BINS, HARDLY_VISIBLE, SplitFacts, Suggestion

BLUE, PALE, ORANGE, GREY = "#4f7ea6", "#9db4c8", "#d9822b", "#777777"
SHOWN = 15
"""Classes with a bar of their own"""


def draw(path: Path, facts: SplitFacts, config: Config, suggestion: Suggestion, *, title: str) -> bool:
    """Write a PNG of three panels; False if matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(13, 4), layout="constrained")
    panels = figure.subplots(1, 3)
    _draw_sizes(panels[0], facts, config)
    _draw_counts(panels[1], facts, config, suggestion)
    _draw_classes(panels[2], facts)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    count = f"{len(facts.counts):,} training images, {len(facts.sizes):,} objects"
    figure.suptitle(f"{title}: {count}", fontsize=11, color=GREY)
    figure.savefig(path, dpi=110)
    return True


def _draw_sizes(axes: Any, facts: SplitFacts, config: Config) -> None:
    """Shares of the objects over sqrt(w*h), in the files and scaled, with the bounds of AI-TOD's bins."""
    both = np.concatenate([facts.sizes, facts.scaled, [64]])
    edges = 2.0 ** np.arange(0, np.ceil(np.log2(both.max())) + 0.25, 0.25)
    height, width = config.data.image_size
    if len(facts.sizes):
        weights = np.full(len(facts.sizes), 100 / len(facts.sizes))
        axes.hist(np.clip(facts.sizes, edges[0], None), edges, weights=weights, color=PALE, label="in the image files")
        if not np.allclose(facts.sizes, facts.scaled):
            scaled, label = np.clip(facts.scaled, edges[0], None), f"scaled to fit {width} x {height}"
            axes.hist(scaled, edges, weights=weights, histtype="step", color=ORANGE, linewidth=1.8, label=label)
            axes.legend(frameon=True, edgecolor="none", fontsize=8, loc="upper right", bbox_to_anchor=(1, 0.94))
        hidden = f"below {HARDLY_VISIBLE} px:\n{(facts.scaled < HARDLY_VISIBLE).mean():.1%}"
        axes.axvspan(edges[0], HARDLY_VISIBLE, color=ORANGE, alpha=0.08, linewidth=0)
        middle = np.sqrt(edges[0] * HARDLY_VISIBLE)
        axes.text(middle, 0.92, hidden, transform=axes.get_xaxis_transform(), **_label() | {"color": ORANGE})
    axes.set_xscale("log", base=2)
    axes.set_xlim(edges[0], edges[-1])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_ylim(0, max(axes.get_ylim()[1] * 1.15, 1))
    for name, (lower, upper) in BINS.items():
        axes.axvline(lower, color=GREY, linewidth=0.7, linestyle=":")
        middle = np.sqrt(max(lower, edges[0]) * min(upper, edges[-1]))
        axes.text(middle, 0.985, name, transform=axes.get_xaxis_transform(), **_label())
    axes.set_title("size of objects")
    axes.set_xlabel("sqrt(width x height), px")
    axes.set_ylabel("objects, %")


def _draw_counts(axes: Any, facts: SplitFacts, config: Config, suggestion: Suggestion) -> None:
    """Images over their objects, and where the suggested floor and ceiling lie."""
    per_object = 1.0 if config.model.d3q is None else config.model.d3q.queries_per_object
    most = max(int(facts.counts.max()), 10)
    edges = 2.0 ** np.arange(np.floor(np.log2(most)) + 2)  # 1, 2 to 3, 4 to 7, ...
    axes.hist(facts.counts[facts.counts > 0], edges, color=BLUE, edgecolor="white", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_xticks(edges[:: 1 + len(edges) // 9])
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.minorticks_off()
    axes.set_ylim(0, max(axes.get_ylim()[1] * 1.15, 1))
    bounds = (
        {"ceiling": suggestion.ceiling}
        if config.model.d3q is None
        else {
            "floor": suggestion.floor,
            "ceiling": suggestion.ceiling,
        }
    )
    for name, queries in bounds.items():
        axes.axvline(queries / per_object, color=ORANGE, linewidth=1.2, linestyle="--")
        text = f" {name}: {queries:,} queries"
        style = _label() | {"color": ORANGE, "ha": "right" if name == "ceiling" else "left"}
        height = 0.985 if name == "ceiling" else 0.92
        axes.text(queries / per_object, height, text + " ", transform=axes.get_xaxis_transform(), **style)
    empty = int((facts.counts == 0).sum())
    axes.set_title("objects per image")
    axes.set_xlabel("objects" + (f" ({empty:,} images have none)" if empty else ""))
    axes.set_ylabel("images")


def _draw_classes(axes: Any, facts: SplitFacts) -> None:
    """Objects per class, the most frequent one on top."""
    counts = np.bincount(facts.labels, minlength=len(facts.categories))
    order = np.argsort(-counts, kind="stable")
    names = [facts.categories[k] for k in order[:SHOWN]]
    values = counts[order[:SHOWN]].tolist()
    if len(order) > SHOWN:
        names.append(f"{len(order) - SHOWN} others")
        values.append(int(counts[order[SHOWN:]].sum()))
    axes.barh(range(len(names)), values, color=BLUE, height=0.7)
    for place, value in enumerate(values):
        axes.text(value, place, f" {value:,}", va="center", ha="left", fontsize=8, color=GREY)
    axes.set_yticks(range(len(names)), [name if len(name) <= 24 else f"{name[:23]}…" for name in names], fontsize=9)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, max(values) * 1.2 + 1)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.set_title("objects per class")


def _label() -> dict[str, Any]:
    return {"ha": "center", "va": "top", "fontsize": 8, "color": GREY}
