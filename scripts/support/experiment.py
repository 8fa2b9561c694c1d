"""A ready experiment for a prepared data set: classes, image size, query count and protocol follow from the data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs.loader import dump_config, load_config

CONFIGS = Path(__file__).parents[2] / "configs"
TINY = 32.0
"""Median size of objects below which AI-TOD's protocol is used, px"""
LARGEST = {True: 512, False: 1024}
"""Image size with --small and without, px"""
SHRINKING = 1.5
"""Factor from which on tiles are advised"""
QUERIES = {True: (30, 450), False: (300, 2000)}
"""Least floor and most queries, with --small and without"""


@dataclass(frozen=True, eq=False)
class DataFacts:
    """What the experiment follows from."""

    num_classes: int
    image_sizes: np.ndarray
    """(I, 2) height, width px of the training images"""
    counts: np.ndarray
    """(I,) objects of each"""
    sizes: np.ndarray
    """(N,) sqrt(w*h) of the objects, px"""
    val: str
    """val or test"""


def write_experiment(
    path: Path, facts: DataFacts, *, root: Path, name: str, detector: str, small: bool
) -> tuple[tuple[int, int], int, int]:
    """Write the YAML file, which includes no other; returns image size, query floor and ceiling.

    root   of the data set, as the file names it
    """
    image_size = choose_image_size(facts.image_sizes, small=small)
    floor, ceiling = choose_queries(facts.counts, small=small)
    d3q = detector.endswith("_d3q")
    base = "dino_d3q_scenes" if small else f"{detector}_aitodv2"
    settings = [
        f"model.num_classes={facts.num_classes}",
        f"data.root={root}",
        "data.train={annotations: annotations/train.json, images: train}",
        f"data.val={{annotations: annotations/{facts.val}.json, images: {facts.val}}}",
        f"data.image_size=[{image_size[0]}, {image_size[1]}]",
        "data.follow_links=true",
        "data.vertical_flip_prob=0.5",
        f"evaluation.protocol={'aitod' if choose_aitod(facts) else 'coco'}",
        f"runtime.output_dir=runs/{detector}_{name}",
    ]
    if d3q:
        settings += [f"model.d3q.min_queries={floor}", f"model.num_queries={ceiling}"]
        settings += ["criterion.count_weight=1.0", "fidelity.density_merge=sum"]
        settings.append("evaluation.scores=corrected")  # the classifiers of the others are focal
    config = load_config(CONFIGS / f"{base}.yaml", settings)
    heading = (
        f"# {detector} on {name}, written by scripts/prepare.py from configs/{base}.yaml. Image size, query floor and\n"
        f"# ceiling ({floor}, {ceiling}) and protocol follow from the data; change them as you like.\n"
    )
    path.write_text(heading + dump_config(config), encoding="utf-8")
    return image_size, floor, ceiling


def choose_image_size(sizes: np.ndarray, *, small: bool) -> tuple[int, int]:
    """(height, width): the median image, enlarged to multiples of 32, its longer side at most LARGEST."""
    height, width = np.median(sizes, axis=0)
    factor = min(1.0, LARGEST[small] / max(height, width))
    rows, columns = (max(32, 32 * round(side * factor / 32)) for side in (height, width))
    return rows, columns


def advise_tiles(sizes: np.ndarray, image_size: tuple[int, int]) -> list[str]:
    """What to say if the experiment shrinks the images much."""
    factor = max(np.median(sizes, axis=0) / image_size)
    if factor < SHRINKING:
        return []
    return [f"images, and objects, are shrunk by {factor:.1f}; to keep their size: --tile {max(image_size)}"]


def choose_queries(counts: np.ndarray, *, small: bool) -> tuple[int, int]:
    """(floor, ceiling): three queries for each object of the median image, and of the fullest one, within QUERIES."""
    least, most = QUERIES[small]
    ceiling = int(np.clip(50 * np.ceil(3.3 * counts.max(initial=0) / 50), least + 20, most))
    floor = int(np.clip(10 * np.ceil(3 * np.median(counts) / 10), 20, min(least, ceiling)))
    return floor, ceiling


def choose_aitod(facts: DataFacts) -> bool:
    """Whether the objects are tiny."""
    return bool(len(facts.sizes)) and float(np.median(facts.sizes)) < TINY
