"""The sections of the page on counts and on the training."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from engine.analysis.report.charts import Axis, Series, line_chart, number_axis, scatter_chart, share_axis
from engine.analysis.report.pieces import METRICS, number, percent, table
from engine.metrics.counting import COUNT_BINS

MOST_POINTS = 1500
"""Of a scatter plot: every n-th image of more"""


def counting(record: Mapping[str, Any]) -> str:
    """Objects, estimates and queries of each image, and how often the queries suffice."""
    counts, images = record["counts"], record["per_image"]
    step = -(-len(images) // MOST_POINTS)
    shown = images[::step] if step > 1 else images
    highest = max([1, *(each["objects"] for each in shown)])
    estimates = {"by_density": "count by density", "by_scores": "count by scores"}
    groups = [
        (name, f"c{place}", [(each["objects"], each[key]) for each in shown])
        for place, (key, name) in enumerate(estimates.items())
        if shown and all(each.get(key) is not None for each in shown)
    ]
    queries = [(each["objects"], each["queries"]) for each in shown]
    x = number_axis("objects in the image", highest)

    def upright(label: str, values: Sequence[float]) -> Axis:
        return number_axis(label, max([1.0, *values]))

    charts = ""
    if groups:
        values = [y for _, _, points in groups for _, y in points]
        charts += scatter_chart(
            "Estimated and annotated objects", x, upright("objects, estimated", values), groups, equal=True
        )
    most = upright("queries", [y for _, y in queries])
    charts += scatter_chart("Queries and objects", x, most, [("queries", "c2", queries)], equal=True)
    keys = ("images", "coverage", "mean_queries", "count_MAE", "count_bias", "expected_MAE", "expected_bias")
    rows = []
    for name in ("", *COUNT_BINS):
        values = [counts[f"{key}_{name}" if name else key] for key in keys]
        if values[0]:
            signed = [number(values[3], 1), _signed(values[4]), number(values[5], 1), _signed(values[6])]
            rows.append([escape(name or "all"), number(values[0]), percent(values[1]), number(values[2], 1), *signed])
    heading = ["objects in the image", "images", "enough queries, %", "mean queries", "density: error", "bias"]
    note = f"<p>Every {step}. image is drawn.</p>" if step > 1 else ""
    caption = "Budgets and counts; errors are mean absolute errors, in objects"
    return (
        f'<div class="charts">{charts}</div>{note}{table([*heading, "scores: error", "bias"], rows, caption=caption)}'
    )


def _signed(value: float | None) -> str:
    return number(value) if value is None else f"{value:+,.1f}"


def training(record: Mapping[str, Any]) -> str:
    """Loss and AP over the steps, from the run's log."""
    run = record["training"]
    steps = [step for points in run.values() for step, _ in points]
    x = number_axis("step", max([1, *steps]))
    losses = {name: points for name, points in run.items() if name.startswith("loss/")}
    scores = {name: points for name, points in run.items() if not name.startswith("loss/")}
    highest = max([0.01, *(value for points in losses.values() for _, value in points if value is not None)])
    charts = ""
    if losses:
        lines = [Series(name.removeprefix("loss/"), points, f"c{i}") for i, (name, points) in enumerate(losses.items())]
        charts += line_chart("Losses of the training", x, number_axis("loss", highest), lines)
    if scores:
        lines = [Series(METRICS.get(name, name), points, f"c{i}") for i, (name, points) in enumerate(scores.items())]
        charts += line_chart("Evaluations during the training", x, share_axis("AP, %"), lines)
    return f'<div class="charts">{charts}</div>'
