"""What prediction writes -> prepare.py -> training data with the same boxes."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from datasets.structures import Georeference
from engine.prediction.outputs import write_outputs
from engine.prediction.records import FoundObjects, ImageResult
from tests.scripts.converters.trees import contents, draw, run

NAMES = ("car", "small, ship")
BOXES = np.array([[10.123456, 20.0, 16.1, 30.75], [40.5, 33.25, 51.12, 41.0], [60.0, 5.0, 66.0, 12.0]])
LABELS = np.array([1, 0, 1])
EXPECTED = sorted((NAMES[label], np.round(box, 2).tolist()) for box, label in zip(BOXES, LABELS, strict=True))


def predicted(folder: Path, names: list[str], place: Georeference | None = None) -> Path:
    """The folder of a prediction in which each image has the same objects."""
    objects = FoundObjects(BOXES, np.array([0.9, 0.8, 0.7]), LABELS)
    done = [
        ImageResult(number, name, name, 80, 60, "done", objects=objects, georeference=place)
        for number, name in enumerate(names, start=1)
    ]

    def results() -> Iterator[ImageResult]:
        return iter(done)

    formats = ["coco", "csv", *(["geojson"] if place else [])]
    folder.mkdir(parents=True)
    write_outputs(results, folder, formats=formats, class_names=NAMES, category_ids=(3, 7))
    return folder


def corners(objects: list[tuple[str, list[float], int]]) -> list[tuple[str, list[float]]]:
    """(class, xyxy), sorted."""
    assert not any(crowd for *_, crowd in objects)
    return sorted((name, [x, y, round(x + w, 2), round(y + h, 2)]) for name, (x, y, w, h), _ in objects)


def test_csv(tmp_path: Path) -> None:
    names = [f"flight {i % 2}/{i}.jpg" for i in range(4)]
    for name in [*names, "nothing found.jpg"]:
        draw(tmp_path / "photos" / name)
    folder = predicted(tmp_path / "runs" / "predict" / "photos", names)
    manifest = run("csv", folder / "predictions.csv", tmp_path / "out", "--images", tmp_path / "photos")
    found = contents(tmp_path / "out", "train") | contents(tmp_path / "out", "val")
    assert sorted(found) == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert all(corners(objects) == EXPECTED for objects in found.values())
    assert manifest["fixed_or_dropped"] == {"image_not_listed": 1}


def test_geojson(tmp_path: Path) -> None:
    """Also of a raster that is turned on the map."""
    rasterio = pytest.importorskip("rasterio")
    turned = rasterio.Affine(0, -0.1, 400_000, 0.1, 0, 5_000_000)
    for name, transform in (("west", rasterio.Affine(0.1, 0, 500_000, 0, -0.1, 5_600_000)), ("turned", turned)):
        folder = predicted(tmp_path / name / "runs", [f"{name}.tif"], Georeference("EPSG:32633", tuple(transform)[:6]))
        assert len(json.loads((folder / "predictions.geojson").read_text())["features"]) == 3
        for split in ("train", "val"):
            path = tmp_path / name / "rasters" / split / f"{name}.tif"
            path.parent.mkdir(parents=True)
            size = {"width": 80, "height": 60, "count": 3, "dtype": "uint8"}
            with rasterio.open(path, "w", driver="GTiff", crs="EPSG:32633", transform=transform, **size) as data:
                data.write(np.full((3, 60, 80), 90, np.uint8))
        manifest = run("geo", folder, tmp_path / name / "out", "--images", tmp_path / name / "rasters", "--small")
        assert corners(contents(tmp_path / name / "out", "train")[f"{name}__0_0.png"]) == EXPECTED
        assert manifest["classes"] == ["car", "small, ship"]
        assert manifest["fixed_or_dropped"] == {}
