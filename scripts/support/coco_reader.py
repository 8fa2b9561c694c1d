"""What the kinds with COCO-like files of their own share."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from datasets.errors import DataError

Entry = dict[str, Any]


def load(path: Path) -> Entry:
    """The content of a file with images, annotations and categories. Raises DataError."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
        if all(isinstance(content[key], list) for key in ("images", "annotations", "categories")):
            return dict(content)
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: cannot be read as a COCO file ({error})") from None
    raise DataError(f"{path}: images, annotations and categories are not lists")


def class_names(contents: list[Entry]) -> dict[int, str]:
    """Id -> name, by ascending id. Raises DataError."""
    try:
        pairs = {int(each["id"]): str(each["name"]) for content in contents for each in content["categories"]}
    except (KeyError, TypeError, ValueError):
        raise DataError("categories: each needs a whole number as its id, and a name") from None
    return dict(sorted(pairs.items()))


def by_image(content: Entry) -> dict[str, list[Entry]]:
    """Annotations of each image id."""
    found: dict[str, list[Entry]] = defaultdict(list)
    for each in content["annotations"]:
        found[str(each.get("image_id"))].append(each)
    return found


def read_box(each: Entry, path: Path) -> tuple[list[float], int]:
    """xyxy px, and the category id. Raises DataError."""
    try:
        x, y, w, h = (float(value) for value in each["bbox"])
        return [x, y, x + w, y + h], int(each["category_id"])
    except (KeyError, TypeError, ValueError):
        raise DataError(f"{path}: annotation {each.get('id')}: no bbox [x, y, width, height] or category") from None
