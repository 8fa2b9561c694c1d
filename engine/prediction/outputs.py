"""Results in the formats that other tools read: COCO, CSV, YOLO, GeoJSON. Boxes are never rounded."""

import csv
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from itertools import count
from pathlib import Path, PurePosixPath

import numpy as np

from engine.evaluation.coco_results import CocoResults
from engine.prediction.georeference import box_polygons
from engine.prediction.records import FoundObjects, ImageResult

FORMATS = ("coco", "csv", "yolo", "geojson", "visuals")
CSV_COLUMNS = ("image_path", "xmin", "ymin", "xmax", "ymax", "score", "label")
"""DeepForest's"""

Writer = Callable[[ImageResult, FoundObjects], None]
"""Takes an image that was not skipped, and what was found in it"""


def write_outputs(
    results: Callable[[], Iterator[ImageResult]],
    folder: Path,
    *,
    formats: Sequence[str],
    class_names: Sequence[str],
    category_ids: Sequence[int],
) -> list[str]:
    """Write the files of the formats, in one pass over the images; returns their names.

    results   the images, by ascending id; may be called twice
    formats   of FORMATS; visuals are drawn earlier
    """
    writers: dict[str, tuple[str, AbstractContextManager[Writer]]] = {
        "coco": ("predictions.json", _coco(folder / "predictions.json", category_ids)),
        "csv": ("predictions.csv", _csv(folder / "predictions.csv", class_names)),
        "yolo": ("labels", _yolo(folder / "labels", _label_files(results()) if "yolo" in formats else {})),
        "geojson": ("predictions.geojson", _geojson(folder / "predictions.geojson", class_names, category_ids)),
    }
    chosen = [writers[name] for name in formats if name in writers]
    with ExitStack() as stack:
        write = [stack.enter_context(context) for _, context in chosen]
        for result in results():
            if result.objects is not None:
                for each in write:
                    each(result, result.objects)
    names = [name for name, _ in chosen]
    if "coco" in formats:
        _write_images(folder / "images.json", results(), class_names, category_ids)
        names.insert(names.index("predictions.json"), "images.json")
    return names


@contextmanager
def _coco(path: Path, category_ids: Sequence[int]) -> Iterator[Writer]:
    with CocoResults(path, category_ids) as file:
        yield lambda result, found: file.add(result.image_id, found.boxes, found.scores.tolist(), found.labels.tolist())


def _write_images(
    path: Path, results: Iterator[ImageResult], class_names: Sequence[str], category_ids: Sequence[int]
) -> None:
    """A data set without objects: `COCO(images.json).loadRes(predictions.json)`."""
    images = [
        {"id": result.image_id, "file_name": result.path, "width": result.width, "height": result.height}
        for result in results
        if result.objects is not None
    ]
    categories = [{"id": i, "name": name} for i, name in zip(category_ids, class_names, strict=True)]
    content = {"images": images, "annotations": [], "categories": categories}
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")


@contextmanager
def _csv(path: Path, class_names: Sequence[str]) -> Iterator[Writer]:
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(CSV_COLUMNS)

        def write(result: ImageResult, found: FoundObjects) -> None:
            for box, score, label in _rows(found):
                rows.writerow([result.path, *map(repr, box), repr(score), class_names[label]])

        yield write


@contextmanager
def _yolo(folder: Path, files: dict[int, str]) -> Iterator[Writer]:
    """files   image id -> name of its file, relative to the folder"""

    def write(result: ImageResult, found: FoundObjects) -> None:
        path = folder / files[result.image_id]
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = []
        for (x0, y0, x1, y1), score, label in _rows(found):
            centre = (x0 + x1) / 2 / result.width, (y0 + y1) / 2 / result.height
            size = (x1 - x0) / result.width, (y1 - y0) / result.height
            lines.append(f"{label} {' '.join(map(repr, (*centre, *size)))} {score!r}\n")
        path.write_text("".join(lines), encoding="utf-8")

    folder.mkdir(exist_ok=True)
    yield write


def _label_files(results: Iterator[ImageResult]) -> dict[int, str]:
    """Image id -> FOLDER/STEM.txt, or FOLDER/NAME.txt where another image there has the same stem; never two alike."""
    names = {result.image_id: safe_name(result.path) for result in results if result.objects is not None}
    stems = {image_id: name.with_suffix(".txt").as_posix() for image_id, name in names.items()}
    times = Counter(stems.values())
    files = {image_id: stem for image_id, stem in stems.items() if times[stem] == 1}
    taken = set(files.values())
    for image_id, name in names.items():
        if image_id not in files:
            candidates = (f"{name}{'' if number == 1 else f'-{number}'}.txt" for number in count(1))
            files[image_id] = next(file for file in candidates if file not in taken)
            taken.add(files[image_id])
    return files


def safe_name(path: str) -> PurePosixPath:
    """A relative path below a folder of results, for any name of an image; parts of at most 200 bytes."""
    parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..", ".")]
    return PurePosixPath(*[_shortened(part) for part in parts or ["image"]])


def _shortened(part: str) -> str:
    """File systems take 255 bytes, of which endings need some."""
    content = os.fsencode(part)
    if len(content) <= 200:
        return part
    return f"{content[:180].decode(errors='ignore')}-{hashlib.sha256(content).hexdigest()[:12]}"


@contextmanager
def _geojson(path: Path, class_names: Sequence[str], category_ids: Sequence[int]) -> Iterator[Writer]:
    """A FeatureCollection of RFC 7946; images without a georeference are skipped."""
    with path.open("w", encoding="utf-8") as file:
        file.write('{"type": "FeatureCollection", "features": [')
        first = True

        def write(result: ImageResult, found: FoundObjects) -> None:
            nonlocal first
            if result.georeference is None:
                return
            polygons = box_polygons(found.boxes, result.georeference)
            on_earth = np.isfinite(polygons).all(axis=(1, 2)).tolist()
            for polygon, known, (_, score, label) in zip(polygons.tolist(), on_earth, _rows(found), strict=True):
                if not known:
                    continue  # outside of its projection, although the raster's corners are not
                properties = {"class_id": category_ids[label], "class_name": class_names[label]}
                properties |= {"score": score, "image": result.path}
                geometry = {"type": "Polygon", "coordinates": [polygon]}
                feature = {"type": "Feature", "geometry": geometry, "properties": properties}
                file.write(("\n" if first else ",\n") + json.dumps(feature))
                first = False

        yield write
        file.write("\n]}\n")


def _rows(found: FoundObjects) -> Iterator[tuple[list[float], float, int]]:
    return zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
