"""The figures of several results, side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from engine.evaluation.report import column_heading

HIDDEN = ("images",)
"""Counts that alike results share"""


def column_names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that differ, or A, B, ... where they do not."""
    parts = [[part for part in path.parts if part not in ("evaluation", "evaluation.json")] for path in paths]
    for length in (1, 2, 3):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(names) and all(names):
            return names
    return [chr(ord("A") + i) for i in range(len(paths))]


def figures(record: dict[str, Any]) -> dict[str, float | None]:
    """Figures by their headings: shares in [0, 1], counts in objects."""

    def share(value: float | None) -> float | None:
        return None if value is None or value == -1 else value  # -1: nothing to measure

    found = {column_heading(name): share(value) for name, value in record["detection"].items()}
    for each in record.get("classes", ()):
        found |= {f"AP of {each['name']}": share(each["AP"]), f"AP50 of {each['name']}": share(each["AP50"])}
    counts = {name: value for name, value in record.get("counts", {}).items() if not name.startswith(HIDDEN)}
    found |= {name.replace("_", " "): value for name, value in counts.items()}
    if "calibration" in record:
        found["calibration error"] = record["calibration"]["error"]
    if "saturated_images" in record:
        found["images at the limit"] = record["saturated_images"]
    return found


def side_by_side(columns: Sequence[dict[str, float | None]]) -> list[list[str]]:
    """Texts of the figures that any result has; of two results also the difference, second less first."""
    rows = []
    for key in dict.fromkeys(key for column in columns for key in column):
        values = [column.get(key) for column in columns]
        if all(value is None for value in values):
            continue
        percent = key.startswith(("AP", "AR", "oLRP", "coverage", "localisation", "false"))
        shown = [format_figure(value, percent=percent) for value in values]
        if len(values) == 2:
            known = None not in values
            shown.append(format_figure(values[1] - values[0], percent=percent, sign=True) if known else "-")  # type: ignore[operator]
        rows.append([f"{key}, %" if percent else key, *shown])
    return rows


def format_figure(value: float | None, *, percent: bool, sign: bool = False) -> str:
    if value is None:
        return "-"
    plus = "+" if sign else ""
    if isinstance(value, int):
        return format(value, f"{plus},d")
    return (
        format(100 * value, f"{plus}.1f")
        if percent
        else format(value, f"{plus}.3f" if abs(value) < 1 else f"{plus}.2f")
    )
