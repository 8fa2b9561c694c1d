"""What a prediction says at its end: totals, a line of each image for `summary.json`, what was skipped and why."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from engine.prediction.records import ImageResult
from engine.wording import counted

_SHOWN = 20  # classes, and skipped images


@dataclass
class Totals:
    """What the closing table is made of."""

    images: int = 0
    pixels: int = 0
    tiles: int = 0
    blank: int = 0
    queries: int = 0
    per_class: Counter[int] = field(default_factory=Counter)
    skipped: list[ImageResult] = field(default_factory=list)
    turned: int = 0
    georeferenced: int = 0
    earlier_images: int = 0
    earlier_pixels: int = 0

    def add(self, result: ImageResult, *, earlier: bool = False) -> None:
        """earlier   finished by an earlier command, so not in the time of this one"""
        if result.objects is None:
            self.skipped.append(result)
            return
        self.images += 1
        self.pixels += result.width * result.height
        self.earlier_images += earlier
        self.earlier_pixels += earlier * result.width * result.height
        self.tiles += result.num_tiles
        self.blank += result.num_blank
        self.queries += result.num_queries
        self.turned += result.turned
        self.georeferenced += result.georeference is not None
        self.per_class.update(result.objects.labels.tolist())


def image_summary(result: ImageResult) -> dict[str, Any]:
    """Entry of an image in summary.json."""
    names = [entry.name for entry in fields(result) if entry.name not in ("objects", "georeference")]
    found = 0 if result.objects is None else len(result.objects)
    return {name: getattr(result, name) for name in names} | {"found": found}


def closing_lines(
    totals: Totals, class_names: Sequence[str], folder: Path, written: Sequence[str], seconds: float
) -> list[str]:
    """Lines of the closing table, and what was skipped and why."""
    found = sum(totals.per_class.values())
    classes = ", ".join(f"{class_names[label]} {n:,}" for label, n in totals.per_class.most_common(_SHOWN))
    rate = max(seconds, 1e-9)
    images, pixels = totals.images - totals.earlier_images, totals.pixels - totals.earlier_pixels
    rows = [
        ["images", f"{totals.images:,}"],
        ["detections", f"{found:,}" + (f" ({classes})" if classes else "")],
        ["tiles", f"{totals.tiles:,}" + (f", and {totals.blank:,} blank ones skipped" if totals.blank else "")],
        ["queries", f"{totals.queries:,}"],
        [
            "time",
            f"{seconds:.1f} s: {images / rate:.2f} images/s, {pixels / 1e6 / rate:.2f} megapixels/s"
            + (f"; {totals.earlier_images:,} images were done before" if totals.earlier_images else ""),
        ],
        ["results", f"{folder}: {', '.join(written)}"],
    ]
    lines = [f"{name:<12}{text}" for name, text in rows]
    if totals.turned:
        lines.append(f"{counted(totals.turned, 'image')} turned as EXIF says; boxes are in the turned frame")
    if totals.skipped:
        lines.append(f"skipped {counted(len(totals.skipped), 'image')}:")
        lines += [f"  {result.path}: {result.reason}" for result in totals.skipped[:_SHOWN]]
        if len(totals.skipped) > _SHOWN:
            lines.append(f"  and {len(totals.skipped) - _SHOWN} more: see summary.json")
    return lines
