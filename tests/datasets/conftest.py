"""A small COCO data set on disk, and ways to spoil it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datasets.coco import CocoDetection
from datasets.transforms import Compose, Normalize, Resize

SIZE = (40, 60)  # height, width
DOCUMENT: dict[str, Any] = {
    "images": [
        {"id": 7, "file_name": "a.png", "height": SIZE[0], "width": SIZE[1]},
        {"id": 3, "file_name": "sub/b.png", "height": SIZE[0], "width": SIZE[1]},
        {"id": 12, "file_name": "c.png", "height": SIZE[0], "width": SIZE[1]},
    ],
    "annotations": [
        {"id": 0, "image_id": 3, "category_id": 5, "bbox": [10, 10, 8, 6], "area": 40.5, "iscrowd": 0},
        {"id": 1, "image_id": 7, "category_id": 2, "bbox": [-4, 30, 10, 20]},
        {"id": 2, "image_id": 7, "category_id": 90, "bbox": [20.5, 4.25, 5, 7], "area": 35, "iscrowd": 0},
        {"id": 3, "image_id": 7, "category_id": 5, "bbox": [0, 0, 60, 40], "area": 2400, "iscrowd": 1},
        {"id": 4, "image_id": 7, "category_id": 5, "bbox": [3, 3, 0.5, 9]},
        {"id": 5, "image_id": 7, "category_id": 5, "bbox": [70, 3, 5, 9]},
        {"id": 6, "image_id": 7, "category_id": 5, "bbox": [30, 3, 5, 9], "ignore": True},
    ],
    "categories": [{"id": 90, "name": "ship"}, {"id": 2, "name": "airplane"}, {"id": 5, "name": "vehicle"}],
}


@pytest.fixture
def document() -> dict[str, Any]:
    """A sound document to change; image 12 has no objects."""
    return copy.deepcopy(DOCUMENT)


@pytest.fixture
def open_dataset(tmp_path: Path) -> Callable[..., CocoDetection]:
    """Write a document (or raw text) and its images, and open it; keywords go to CocoDetection."""
    root = tmp_path / "images"
    rng = np.random.default_rng(0)
    for name in ("a.png", "sub/b.png", "c.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(root / name)

    def open_it(document: Any, **options: Any) -> CocoDetection:
        path = tmp_path / "instances.json"
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        settings: dict[str, Any] = {
            "annotations": path,
            "images_root": root,
            "transforms": Compose([Resize(size=SIZE), Normalize(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))]),
            "training": True,
        }
        return CocoDetection(**(settings | options))

    return open_it
