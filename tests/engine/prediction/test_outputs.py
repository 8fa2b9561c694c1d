"""Results in the formats of other tools, read back by those tools where they are installed."""

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

from datasets.images.windowed import has_rasterio
from datasets.structures import Georeference
from engine.prediction.georeference import box_polygons
from engine.prediction.outputs import FORMATS, write_outputs
from engine.prediction.records import FoundObjects, ImageResult

NAMES, IDS = ["car", "small, ship"], [3, 7]
BOXES = np.array([[10.123456789012345, 20.0, 16.1, 30.7], [0.0, 0.0, 1 / 3, 5.5]])


def image(image_id: int, path: str, found: int = 2) -> ImageResult:
    objects = FoundObjects(BOXES[:found], np.array([0.9, 1 / 3])[:found], np.array([1, 0])[:found])
    return ImageResult(image_id, path, path, 100, 50, "done", objects=objects)


RESULTS = [
    image(1, "a/x.png"),
    image(4, "a/x.jpg", found=1),
    image(6, "b/x.png", found=0),
    ImageResult(9, "broken.png", "broken.png", 0, 0, "skipped", "is empty"),
]


def written(folder: Path, *formats: str, results: list[ImageResult] = RESULTS) -> list[str]:
    def read() -> Iterator[ImageResult]:
        return iter(results)

    return write_outputs(read, folder, formats=formats or FORMATS, class_names=NAMES, category_ids=IDS)


def test_pycocotools_reads_the_coco_results(tmp_path: Path) -> None:
    assert written(tmp_path, "coco") == ["images.json", "predictions.json"]
    truth = COCO(str(tmp_path / "images.json"))
    found = truth.loadRes(str(tmp_path / "predictions.json"))
    assert sorted(truth.imgs) == [1, 4, 6]  # no skipped image
    assert [annotation["category_id"] for annotation in found.imgToAnns[1]] == [7, 3]
    assert found.imgToAnns[1][0]["bbox"][0] == BOXES[0, 0]  # not rounded
    assert found.imgToAnns[1][0]["bbox"][2] == BOXES[0, 2] - BOXES[0, 0]


def test_no_detection_at_all_is_an_empty_list(tmp_path: Path) -> None:
    written(tmp_path, "coco", "csv", "geojson", results=RESULTS[2:])
    assert json.loads((tmp_path / "predictions.json").read_text()) == []
    assert json.loads((tmp_path / "predictions.geojson").read_text())["features"] == []
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 1


def test_csv_has_the_columns_of_deepforest_and_every_digit(tmp_path: Path) -> None:
    written(tmp_path, "csv")
    with (tmp_path / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["image_path", "xmin", "ymin", "xmax", "ymax", "score", "label"]
    assert [row["image_path"] for row in rows] == ["a/x.png", "a/x.png", "a/x.jpg"]
    assert (float(rows[0]["xmin"]), float(rows[1]["score"]), rows[0]["label"]) == (BOXES[0, 0], 1 / 3, "small, ship")


def test_yolo_labels_have_confidence_and_equal_stems_do_not_collide(tmp_path: Path) -> None:
    written(tmp_path, "yolo")
    files = {path.relative_to(tmp_path / "labels").as_posix() for path in (tmp_path / "labels").rglob("*.txt")}
    assert files == {"a/x.png.txt", "a/x.jpg.txt", "b/x.txt"}
    assert (tmp_path / "labels" / "b" / "x.txt").read_text() == ""  # nothing found is not the same as skipped
    label, x, y, w, h, score = (tmp_path / "labels" / "a" / "x.png.txt").read_text().splitlines()[0].split()
    assert (label, float(score)) == ("1", 0.9)
    assert float(x) - float(w) / 2 == pytest.approx(BOXES[0, 0] / 100, abs=1e-15)
    assert float(y) + float(h) / 2 == pytest.approx(BOXES[0, 3] / 50, abs=1e-15)


@pytest.mark.parametrize("path", ["../../etc/x.png", "/abs/x.png"])
def test_labels_never_leave_their_folder(tmp_path: Path, path: str) -> None:
    (tmp_path / "out").mkdir()
    written(tmp_path / "out", "yolo", results=[image(1, path)])
    files = list(tmp_path.rglob("*.txt"))
    assert len(files) == 1
    assert files[0].is_relative_to(tmp_path / "out" / "labels")


def mercator(longitude: float, latitude: float) -> tuple[float, float]:
    """EPSG:3857 in closed form."""
    radius = 6_378_137.0
    return radius * np.radians(longitude), radius * np.log(np.tan(np.pi / 4 + np.radians(latitude) / 2))


def test_polygons_in_web_mercator_are_those_of_the_closed_form() -> None:
    pytest.importorskip("rasterio", reason="the extra geo is not installed")
    west, north = mercator(13.4, 52.5)
    place = Georeference("EPSG:3857", (0.5, 0.0, west, 0.0, -0.5, north))
    (ring,) = box_polygons(np.array([[0.0, 0.0, 20.0, 10.0]]), place)
    assert ring[0].tolist() == ring[-1].tolist()
    assert ring[0] == pytest.approx([13.4, 52.5], abs=1e-9)  # the corner of the first pixel, not its centre
    found = np.array([mercator(*corner) for corner in ring[:4]])
    expected = [[west, north], [west, north - 5], [west + 10, north - 5], [west + 10, north]]
    assert found == pytest.approx(np.array(expected), abs=1e-5)
    assert ring_area(ring) > 0, "counter-clockwise"


def ring_area(ring: np.ndarray) -> float:
    x, y = ring[:-1].T
    return float((x * np.roll(y, -1) - np.roll(x, -1) * y).sum() / 2)


def test_polygons_on_the_national_grid_of_great_britain() -> None:
    """Ordnance Survey, A guide to coordinate systems in Great Britain: Caister Water Tower, E 651409.903 N 313177.270
    is 52 39 27.2531 N, 1 43 4.5177 E on OSGB36 (Airy); on WGS84, 52.6579786 N, 1.7160519 E, within 5 m."""
    pytest.importorskip("rasterio", reason="the extra geo is not installed")
    place = Georeference("EPSG:27700", (1.0, 0.0, 651_409.903, 0.0, -1.0, 313_177.270))
    (ring,) = box_polygons(np.array([[0.0, 0.0, 1.0, 1.0]]), place)
    assert ring[0] == pytest.approx([1.7160519, 52.6579786], abs=1e-4)


@pytest.mark.parametrize("transform", [(0.1, 0.0, 5.0, 0.0, 0.1, 5.0), (0.0, 0.1, 5.0, 0.1, 0.0, 5.0)])
def test_rings_of_mirrored_and_turned_rasters_are_counter_clockwise_too(transform: tuple[float, ...]) -> None:
    pytest.importorskip("rasterio", reason="the extra geo is not installed")
    place = Georeference("EPSG:4326", transform)  # type: ignore[arg-type]
    (ring,) = box_polygons(np.array([[1.0, 2.0, 4.0, 9.0]]), place)
    assert ring_area(ring) > 0
    assert {tuple(corner) for corner in ring} == {
        (transform[0] * x + transform[1] * y + 5, transform[3] * x + transform[4] * y + 5)
        for x, y in ((1, 2), (1, 9), (4, 9), (4, 2))
    }


def test_geojson_features_hold_class_score_and_image(tmp_path: Path) -> None:
    pytest.importorskip("rasterio", reason="the extra geo is not installed")
    place = Georeference("EPSG:32633", (0.1, 0.0, 500_000.0, 0.0, -0.1, 5_000_000.0))
    written(tmp_path, "geojson", results=[replace(RESULTS[0], georeference=place), *RESULTS[1:]])
    content = json.loads((tmp_path / "predictions.geojson").read_text())
    assert content["type"] == "FeatureCollection"
    assert "crs" not in content  # RFC 7946: always WGS84
    assert len(content["features"]) == 2  # of the image with a place
    first = content["features"][0]
    assert first["properties"] == {"class_id": 7, "class_name": "small, ship", "score": 0.9, "image": "a/x.png"}
    assert first["geometry"]["coordinates"][0][0] == pytest.approx([15.0, 45.15], abs=0.01)  # on the central meridian


def test_no_label_file_overwrites_another(tmp_path: Path) -> None:
    paths = ["a.jpg", "a.png", "a.jpg.png", "../a.jpg", "b.png", "../b.png", ".", "x/../b.tif"]
    results = [image(number, path) for number, path in enumerate(paths)]
    written(tmp_path, "yolo", results=[*results, replace(RESULTS[3], path="b.jpg")])
    files = {path.relative_to(tmp_path / "labels").as_posix() for path in (tmp_path / "labels").rglob("*.txt")}
    assert len(files) == len(paths)
    assert {"a.jpg.txt", "a.png.txt", "a.jpg-2.txt" if "a.jpg-2.txt" in files else "a.jpg.png.txt"} <= files
    assert all(".." not in file for file in files)


def test_a_skipped_image_takes_no_stem(tmp_path: Path) -> None:
    written(tmp_path, "yolo", results=[image(1, "a.png"), replace(RESULTS[3], path="a.jpg")])
    assert [path.name for path in (tmp_path / "labels").iterdir()] == ["a.txt"]


def test_names_that_are_not_utf_8_or_very_long(tmp_path: Path) -> None:
    strange, long = os.fsdecode(b"\xe9.png"), f"{'long' * 62}.png"
    written(tmp_path, results=[image(1, strange), image(2, long), image(3, f"{'long' * 62}.jpg")])
    assert (tmp_path / "predictions.csv").read_bytes().count(b"\xe9.png") == 2
    assert len(list((tmp_path / "labels").iterdir())) == 3
    assert json.loads((tmp_path / "images.json").read_text())["images"][0]["file_name"] == strange


@pytest.mark.skipif(not has_rasterio(), reason="the extra geo (rasterio) is not installed")
def test_a_box_outside_of_its_projection_is_no_polygon(tmp_path: Path) -> None:
    seen = "+proj=geos +h=35785831 +lon_0=0 +a=6378169 +b=6356584"  # from a satellite
    place = Georeference(seen, (1000.0, 0.0, 0.0, 0.0, -1000.0, 0.0))
    objects = FoundObjects(np.array([[0, 0, 9, 9], [9e3, 0, 9.1e3, 9]]), np.array([0.9, 0.8]), np.array([0, 0]))
    written(tmp_path, "geojson", results=[replace(image(1, "a.tif"), objects=objects, georeference=place)])
    content = json.loads((tmp_path / "predictions.geojson").read_text())  # strict: no Infinity
    assert [feature["properties"]["score"] for feature in content["features"]] == [0.9]


@pytest.mark.skipif(not has_rasterio(), reason="the extra geo (rasterio) is not installed")
def test_a_validator_accepts_the_geojson(tmp_path: Path) -> None:
    validator = pytest.importorskip("geojson", reason="the package geojson is not installed")
    place = Georeference("EPSG:32633", (0.5, 0.1, 400_000.0, 0.1, -0.5, 5_800_000.0))
    mirrored = replace(place, transform=(-0.5, 0.0, 400_000.0, 0.0, -0.5, 5_800_000.0))
    images = [replace(image(number, "a.tif"), georeference=each) for number, each in enumerate([place, mirrored])]
    written(tmp_path, "geojson", results=images)
    content = validator.loads((tmp_path / "predictions.geojson").read_text())
    assert len(content.features) == 4
    assert content.errors() == []
    assert all(feature.geometry.errors() in ([], None) for feature in content.features)
