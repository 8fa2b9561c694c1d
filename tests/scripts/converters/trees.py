"""What the tests of the kinds share: pictures, files, the command, and what it wrote."""

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from scripts import prepare


def draw(path: Path, size: tuple[int, int] = (80, 60)) -> Path:
    """Noise that depends on the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(zlib.crc32(str(path).encode()))
    Image.fromarray(random.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(path)
    return path


def write(path: Path, content: object) -> Path:
    """Text as it is, anything else as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def run(kind: str, source: Path, out: Path, *more: object, code: int = 0) -> dict[str, Any]:
    """prepare.py KIND SRC --out OUT; returns the manifest."""
    assert prepare.main([kind, str(source), "--out", str(out), *map(str, more)]) == code
    return json.loads((out / "manifest.json").read_text()) if code == 0 else {}


def contents(out: Path, split: str) -> dict[str, list[tuple[str, list[float], int]]]:
    """file_name -> (class, bbox, iscrowd), of an annotation file whose image sizes are right."""
    content = json.loads((out / "annotations" / f"{split}.json").read_text())
    names = {each["id"]: each["name"] for each in content["categories"]}
    images = {}
    for image in content["images"]:
        with Image.open(out / split / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"])
        images[image["id"]] = image["file_name"]
    found: dict[str, list[tuple[str, list[float], int]]] = {name: [] for name in images.values()}
    for each in content["annotations"]:
        found[images[each["image_id"]]].append((names[each["category_id"]], each["bbox"], each["iscrowd"]))
    return found
