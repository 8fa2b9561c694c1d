"""What the annotations of a data set say: sizes of objects, counts per image, classes, and settings that suit them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from configs.paths import expand_path
from configs.schema import Config
from datasets.annotations.table import read_annotations
from datasets.annotations.usable import clipped_sizes, find_usable, owners_of
from datasets.scaling import size_factors
from engine.metrics.protocols import AITOD
from scripts.support.experiment import QUERIES, advise_tiles, choose_image_size, choose_queries

HARDLY_VISIBLE = 4
"""px"""
BINS = {
    name.replace("very", "very "): (low**0.5, high**0.5) for name, (low, high) in AITOD.areas.items() if name != "all"
}
"""sqrt(w*h), px; AI-TOD's"""


@dataclass(frozen=True, eq=False)
class SplitFacts:
    """The objects of a split that training uses; sizes are sqrt(w*h) in px."""

    path: Path
    image_sizes: np.ndarray
    """(I, 2) height, width px"""
    counts: np.ndarray
    """(I,) objects per image"""
    owners: np.ndarray
    """(N,) places of the objects' images"""
    labels: np.ndarray
    """(N,)"""
    sizes: np.ndarray
    """(N,) in the image files"""
    scaled: np.ndarray
    """(N,) in images fitted inside data.image_size"""
    categories: tuple[str, ...]
    dropped: dict[str, int]
    """Reason -> objects that are not used"""


@dataclass(frozen=True)
class Suggestion:
    """Settings that suit the training split."""

    image_size: tuple[int, int]
    floor: int
    ceiling: int
    remarks: list[str]

    def settings(self, config: Config) -> list[str]:
        """As arguments of --set."""
        floor = [] if config.model.d3q is None else [f"model.d3q.min_queries={self.floor}"]
        height, width = self.image_size
        return [f"data.image_size=[{height},{width}]", *floor, f"model.num_queries={self.ceiling}"]


def read_split(config: Config, *, training: bool) -> SplitFacts:
    """Read an annotation file; images are not opened. Raises DataError and ConfigError."""
    data = config.data
    name, split = ("train", data.train) if training else ("val", data.val)
    path = expand_path(data.root, "data.root") / expand_path(split.annotations, f"data.{name}.annotations")
    table = read_annotations(
        path,
        on_bad_annotation=data.on_bad_annotation,
        keep_zero_area=not training,
        num_classes=config.model.num_classes,
    )
    usable, dropped = find_usable(table)
    owners = owners_of(table, usable)
    sizes = np.sqrt(clipped_sizes(table, owners, usable).prod(axis=1))
    return SplitFacts(
        path=path,
        image_sizes=table.sizes,
        counts=np.bincount(owners, minlength=len(table.sizes)),
        owners=owners,
        labels=table.labels[usable],
        sizes=sizes,
        scaled=sizes * size_factors(table.sizes, size=data.image_size)[owners],
        categories=table.categories,
        dropped=dropped | table.skipped,
    )


def suggest(config: Config, training: SplitFacts) -> Suggestion:
    """Image size, query floor and ceiling as scripts/prepare.py chooses them, for a detector of the config's kind."""
    small = config.model.num_queries <= QUERIES[True][1]
    image_size = choose_image_size(training.image_sizes, small=small)
    floor, ceiling = choose_queries(training.counts, small=small)
    return Suggestion(image_size, floor, ceiling, advise_tiles(training.image_sizes, image_size))


def summarise(facts: SplitFacts) -> dict[str, Any]:
    """The figures of a split; null where there is no object."""
    smallest, largest = (facts.image_sizes[pick(facts.image_sizes.prod(axis=1))] for pick in (np.argmin, np.argmax))
    return {
        "annotations": str(facts.path),
        "images": len(facts.counts),
        "images_without_objects": int((facts.counts == 0).sum()),
        "image_size": {
            "median": np.median(facts.image_sizes, axis=0).tolist(),
            "smallest": smallest.tolist(),
            "largest": largest.tolist(),
        },
        "objects": len(facts.sizes),
        "not_used": facts.dropped,
        "objects_per_image": _spread(facts.counts) | {"mean": float(facts.counts.mean())},
        "size": {"file": _size_summary(facts.sizes), "scaled": _size_summary(facts.scaled)},
        "shrunk_below_4_px": int(((facts.scaled < HARDLY_VISIBLE) & (facts.sizes >= HARDLY_VISIBLE)).sum()),
        "classes": {name: _class_summary(facts, label) for label, name in enumerate(facts.categories)},
    }


def _size_summary(sizes: np.ndarray) -> dict[str, Any]:
    """Objects in each of BINS, and below HARDLY_VISIBLE, and quantiles."""
    counts = {name: int(((sizes >= low) & (sizes < high)).sum()) for name, (low, high) in BINS.items()}
    return {"bins": counts, "below_4_px": int((sizes < HARDLY_VISIBLE).sum()), **_spread(sizes)}


def _class_summary(facts: SplitFacts, label: int) -> dict[str, Any]:
    chosen = facts.labels == label
    images = len(np.unique(facts.owners[chosen]))
    return {"objects": int(chosen.sum()), "images": images, "median_size": _spread(facts.sizes[chosen])["median"]}


def _spread(values: np.ndarray) -> dict[str, float | None]:
    quantiles = {"least": 0, "median": 50, "percentile_90": 90, "percentile_99": 99, "most": 100}
    if len(values) == 0:
        return dict.fromkeys(quantiles)
    return dict(zip(quantiles, map(float, np.percentile(values, list(quantiles.values()))), strict=True))
