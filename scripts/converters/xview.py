"""xView: xView_train.geojson with boxes as text (`bounds_imcoords`) and class ids with holes; train_images/*.tif.

The geometry, in degrees, is not needed. Source: Lam et al., xView, arXiv:1802.07856, and its class list.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from datasets.errors import DataError
from scripts.support.raw_data import (
    ConvertOptions,
    ImageIndex,
    RawData,
    RawImage,
    choose_classes,
    images_below,
    readable_size,
    sound_box,
    within_image,
)

# fmt: off
NAMES = {
    11: "Fixed-wing Aircraft", 12: "Small Aircraft", 13: "Cargo Plane", 15: "Helicopter", 17: "Passenger Vehicle",
    18: "Small Car", 19: "Bus", 20: "Pickup Truck", 21: "Utility Truck", 23: "Truck", 24: "Cargo Truck",
    25: "Truck w/Box", 26: "Truck Tractor", 27: "Trailer", 28: "Truck w/Flatbed", 29: "Truck w/Liquid",
    32: "Crane Truck", 33: "Railway Vehicle", 34: "Passenger Car", 35: "Cargo Car", 36: "Flat Car", 37: "Tank car",
    38: "Locomotive", 40: "Maritime Vessel", 41: "Motorboat", 42: "Sailboat", 44: "Tugboat", 45: "Barge",
    47: "Fishing Vessel", 49: "Ferry", 50: "Yacht", 51: "Container Ship", 52: "Oil Tanker", 53: "Engineering Vehicle",
    54: "Tower crane", 55: "Container Crane", 56: "Reach Stacker", 57: "Straddle Carrier", 59: "Mobile Crane",
    60: "Dump Truck", 61: "Haul Truck", 62: "Scraper/Tractor", 63: "Front loader/Bulldozer", 64: "Excavator",
    65: "Cement Mixer", 66: "Ground Grader", 71: "Hut/Tent", 72: "Shed", 73: "Building", 74: "Aircraft Hangar",
    76: "Damaged Building", 77: "Facility", 79: "Construction Site", 83: "Vehicle Lot", 84: "Helipad",
    86: "Storage Tank", 89: "Shipping container lot", 91: "Shipping Container", 93: "Pylon", 94: "Tower",
}
# fmt: on
UNDEFINED = (75, 82)
"""Ids that occur and have no name"""
NEVER_PUBLISHED = "1395.tif"
"""Labels of this image exist, the image does not"""
_FIELD = "bounds_imcoords"
_GEOMETRY = "coordinates"


def convert(source: Path, options: ConvertOptions) -> RawData:
    """Raises DataError, naming the feature. An image without a feature has no object."""
    path = find_labels(source)
    if path is None:
        raise DataError(f"{source}: holds no GeoJSON with {_FIELD}, such as xView_train.geojson")
    notes: Counter[str] = Counter()
    index = ImageIndex(images_below(options.images or source))
    found = read_features(path, notes)
    used = {label for rows in found.values() for _, label in rows}
    named = tuple(name for label, name in NAMES.items() if label in used)
    classes = named if options.classes is None else choose_classes(tuple(NAMES.values()), options.classes, source)
    label_of = {label: classes.index(name) for label, name in NAMES.items() if name in classes}
    images = {name: index.find(name) for name in found}
    missing = sorted(name for name, image in images.items() if image is None)
    notes["image_never_published"] += NEVER_PUBLISHED in missing
    missing = [name for name in missing if name != NEVER_PUBLISHED]
    if options.skip_bad:
        notes["missing_image"] += len(missing)
    elif missing:
        raise DataError(
            f"{path}: {len(missing)} of {len(found)} images are missing, {missing[0]} first; fetch train_images.tgz "
            "from xviewdataset.org (registration), or give their folder with --images; "
            "--skip-bad drops them"
        )
    read = []
    for name, image in images.items():
        if image is None:
            continue
        rows, size = [], readable_size(image, options, notes)
        if size is None:
            continue
        for box, label in found[name]:
            if label not in label_of:
                notes[f"class_not_chosen: {NAMES[label]}"] += 1
            elif sound_box(box, notes) and (inside := within_image(box, size, notes)):
                rows.append((inside, label_of[label], False))
        read.append(RawImage.of_rows(image, image.name, rows))
    labelled = {image for image in images.values() if image is not None}
    folders = {image.parent for image in labelled}
    unlabelled = [image for image in index.images if image.parent in folders and image not in labelled]
    notes["image_without_objects"] += len(unlabelled)
    read += [RawImage.of_rows(image, image.name, []) for image in unlabelled]
    return RawData(classes, {"train": read}, +notes)


def recognise(source: Path) -> str | None:
    """Why the tree looks like this kind; None if it does not."""
    path = find_labels(source)
    return f"{path.relative_to(source)} has boxes as {_FIELD}" if path else None


def find_labels(source: Path) -> Path | None:
    """The GeoJSON whose first features have boxes in pixels."""
    for path in sorted(source.rglob("*.geojson")):
        with path.open(encoding="utf-8", errors="replace") as file:
            if not path.name.startswith(".") and _FIELD in file.read(100_000):
                return path
    return None


def read_features(path: Path, notes: Counter[str]) -> dict[str, list[tuple[list[float], int]]]:
    """Image name -> boxes (xyxy px) and class ids. Other fields are dropped while the file is parsed: it is large."""

    def needed(entry: dict[str, Any]) -> dict[str, Any] | None:
        if _FIELD in entry:
            return {key: entry[key] for key in ("image_id", "type_id", _FIELD) if key in entry}
        return None if _GEOMETRY in entry else entry

    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_hook=needed)
        features = content["features"]
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: cannot be read as GeoJSON ({error})") from None
    found: dict[str, list[tuple[list[float], int]]] = defaultdict(list)
    for number, feature in enumerate(features):
        fields = feature.get("properties") or {}
        try:
            label, name = int(fields["type_id"]), str(fields["image_id"])
            box = [float(word) for word in str(fields[_FIELD]).split(",")]
            x0, y0, x1, y1 = box
        except (KeyError, TypeError, ValueError):
            raise DataError(
                f"{path}: features[{number}]: {str(fields)[:120]}: no image_id, type_id or {_FIELD} of four numbers"
            ) from None
        rows = found[name]
        if label in NAMES:
            rows.append(([x0, y0, x1, y1], label))
        elif label in UNDEFINED:
            notes["class_without_a_name"] += 1
        else:
            raise DataError(f"{path}: features[{number}]: type_id {label} is not a class of xView")
    return found
