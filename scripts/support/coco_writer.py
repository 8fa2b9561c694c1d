"""Data sets written by scripts: built in a temporary folder, moved into place when complete, never built twice."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from datasets.errors import DataError
from datasets.statistics import DatasetStatistics, summarise

MANIFEST = "manifest.json"
"""Of a data set: its recipe, and what the script that made it says of it"""
_OLD_RECIPE = "recipe.json"
"""Recipe of data sets made before it was part of the manifest"""
_DECIMALS = 2

Recipe = dict[str, Any]


def is_prepared(out: Path, recipe: Recipe) -> bool:
    """Whether `out` already holds the data set of exactly this recipe."""
    return _recipe_of(out) == recipe


@contextmanager
def building(out: Path, recipe: Recipe, *, force: bool = False) -> Iterator[Path]:
    """A temporary folder beside `out` that is renamed to it at the end of the block, or deleted after an error.

    recipe  JSON values that determine the data set; kept in its manifest
    force   replace a data set of another recipe; a folder without a recipe is never replaced
    raises  DataError where `out` is in the way
    """
    if out.is_dir() and not any(out.iterdir()):
        out.rmdir()
    if out.exists():
        if _recipe_of(out) is None:
            raise DataError(f"{out}: exists and was not made by this script; choose another --out")
        if not force:
            raise DataError(
                f"{out}: holds a data set made with other parameters, or of files that have changed; choose another "
                "--out or add --force"
            )
    aside = out.with_name(f".{out.name}.{os.getpid()}.partial")
    aside.mkdir(parents=True)
    try:
        yield aside
        manifest = aside / MANIFEST
        content = json.loads(manifest.read_text(encoding="utf-8")) if manifest.exists() else {}
        manifest.write_text(json.dumps({**content, "recipe": recipe}, indent=1) + "\n", encoding="utf-8")
        if out.exists():
            shutil.rmtree(out)
        aside.rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _recipe_of(out: Path) -> Any:
    for name, read in ((MANIFEST, lambda content: content["recipe"]), (_OLD_RECIPE, lambda content: content)):
        with suppress(OSError, ValueError, KeyError, TypeError):
            return read(json.loads((out / name).read_text(encoding="utf-8")))
    return None


class CocoWriter:
    """Collects images with their objects and writes them as one COCO detection file, all ids from 1."""

    def __init__(self, categories: tuple[str, ...]) -> None:
        self.categories = categories
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def add(
        self,
        file_name: str,
        *,
        size: tuple[int, int],
        boxes: np.ndarray,
        labels: np.ndarray,
        crowd: np.ndarray | None = None,
        notes: dict[str, str] | None = None,
    ) -> None:
        """size (height, width) px; boxes (N, 4) xyxy px; labels (N,) 0..K-1; crowd (N,) bool, where nothing is counted;
        notes are further image fields."""
        image_id = len(self.images) + 1
        height, width = size
        entry = {"id": image_id, "file_name": file_name, "width": width, "height": height}
        self.images.append({**entry, **(notes or {})})
        corners = np.asarray(boxes, np.float64).reshape(-1, 4).round(_DECIMALS)
        ignored = np.zeros(len(corners), np.bool_) if crowd is None else crowd
        for (x0, y0, x1, y1), label, crowded in zip(corners.tolist(), labels.tolist(), ignored.tolist(), strict=True):
            box = [x0, y0, round(x1 - x0, _DECIMALS), round(y1 - y0, _DECIMALS)]
            self.annotations.append(
                {
                    "id": len(self.annotations) + 1,
                    "image_id": image_id,
                    "category_id": label + 1,
                    "bbox": box,
                    "area": round(box[2] * box[3], 2 * _DECIMALS),
                    "iscrowd": int(crowded),
                }
            )

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        categories = [{"id": label + 1, "name": name} for label, name in enumerate(self.categories)]
        document = {"images": self.images, "annotations": self.annotations, "categories": categories}
        path.write_text(json.dumps(document))

    def statistics(self) -> DatasetStatistics:
        owners = np.array([entry["image_id"] for entry in self.annotations], dtype=np.int64)
        labels = np.array([entry["category_id"] - 1 for entry in self.annotations], dtype=np.int64)
        return summarise(
            objects_per_image=np.bincount(owners, minlength=len(self.images) + 1)[1:],
            box_sizes=np.array([entry["bbox"][2:] for entry in self.annotations]).reshape(-1, 2),
            labels=labels,
            categories=self.categories,
        )
