"""NEON tree crowns: the files of a wheel -> tiles with hand-drawn boxes. Train and test are two different places."""

from __future__ import annotations

import io
import xml.etree.ElementTree as ElementTree
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

PACKAGE = "deepforest==2.1.0"
WHEEL_SHA256 = "8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54"
CLASSES = ("tree",)
SPLITS = {
    "train": "2019_YELL_2_528000_4978000_image_crop2",
    "test": "2019_YELL_2_541000_4977000_image_crop",
}
LICENSE = "deepforest-2.1.0.dist-info/licenses/LICENSE"
_LEAST_SHARE = 0.5
"""A box stays in a tile when at least this share of its area does."""
_LEAST_SIDE = 1.0
"""px, after scaling and clipping."""

_NOTICE = """\
NEON tree crowns, two scenes of Yellowstone (YELL), scaled to {scale:g} and cut into {tile}-px tiles.

Images: airborne RGB imagery of the National Ecological Observatory Network (NEON), a program sponsored by the U.S.
National Science Foundation and operated by Battelle; NEON releases its data products under CC0 1.0
(https://www.neonscience.org/data-samples/data-policies-citation).
Boxes: hand-labelled by the DeepForest authors, distributed in the Python package {package}
(https://github.com/weecology/DeepForest) under the MIT License below.

{license}"""


@dataclass(frozen=True)
class LabelledImage:
    """
    name     of the image in the wheel, without extension
    image    RGB
    boxes    (N, 4)  float64 xyxy px
    labels   (N,)    int64, index in CLASSES
    """

    name: str
    image: Image.Image
    boxes: np.ndarray
    labels: np.ndarray


def read_split(archive: zipfile.ZipFile, split: str, *, scale: float = 1.0) -> LabelledImage:
    """The labelled image of a split, "train" or "test", scaled on both sides."""
    name = SPLITS[split]
    image = Image.open(io.BytesIO(archive.read(f"deepforest/data/{name}.png"))).convert("RGB")
    boxes = read_boxes(archive.read(f"deepforest/data/{name}.xml"))
    width, height = (max(round(side * scale), 1) for side in image.size)
    boxes = boxes * np.tile([width / image.width, height / image.height], 2)
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    return LabelledImage(name, image, boxes, np.zeros(len(boxes), dtype=np.int64))


def cut_tiles(scene: LabelledImage, *, tile: int, overlap: int) -> Iterator[tuple[str, LabelledImage]]:
    """File name and content of each tile of `tile` px that cover the image, row by row."""
    width, height = scene.image.size
    for top in tile_starts(height, tile=tile, overlap=overlap):
        for left in tile_starts(width, tile=tile, overlap=overlap):
            window = (left, top, min(left + tile, width), min(top + tile, height))
            boxes, kept = boxes_in_window(scene.boxes, window)
            yield (
                f"{top:05d}_{left:05d}.png",
                LabelledImage(scene.name, scene.image.crop(window), boxes, scene.labels[kept]),
            )


def notice(archive: zipfile.ZipFile, *, scale: float, tile: int) -> str:
    """Origin and licences of images and boxes."""
    return _NOTICE.format(scale=scale, tile=tile, package=PACKAGE, license=archive.read(LICENSE).decode())


def read_boxes(xml: bytes) -> np.ndarray:
    """Pascal VOC -> (N, 4) float64 xyxy px."""
    fields = ("xmin", "ymin", "xmax", "ymax")
    rows = [[float(box.findtext(key, "nan")) for key in fields] for box in ElementTree.fromstring(xml).iter("bndbox")]
    return np.array(rows, dtype=np.float64).reshape(-1, 4)


def tile_starts(length: int, *, tile: int, overlap: int) -> list[int]:
    """First pixels of evenly spread tiles that cover `length` px and overlap by at least `overlap` px."""
    if length <= tile:
        return [0]
    number = -(-(length - overlap) // (tile - overlap))
    return np.linspace(0, length - tile, number).round().astype(int).tolist()


def boxes_in_window(boxes: np.ndarray, window: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(N, 4) xyxy -> (M, 4) xyxy of the boxes mostly inside, clipped, relative to the window; and which, (N,) bool."""
    left, top, right, bottom = window
    clipped = boxes.clip([left, top, left, top], [right, bottom, right, bottom])
    sides = clipped[:, 2:] - clipped[:, :2]
    share = sides.prod(axis=1) / np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(axis=1), 1e-9)
    keep = (share >= _LEAST_SHARE) & (sides >= _LEAST_SIDE).all(axis=1)
    return clipped[keep] - [left, top, left, top], keep
