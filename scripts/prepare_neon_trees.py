"""Real aerial images with hand-drawn boxes of tree crowns: OUT/{train,test}/*.png, OUT/annotations/*.json.

python scripts/prepare_neon_trees.py --out data/neon_trees --scale 0.4 --tile 256

Fetches one wheel (20 MB) with pip, takes two labelled NEON images out of it, and cuts them into tiles. Train and test
are two different places. Without a network, fetch the wheel elsewhere and pass it with --wheel.
"""

from __future__ import annotations

import argparse
import sys
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datasets.errors import DataError
from engine.console import guard_console
from scripts.converters import neon_trees
from scripts.support.coco_writer import CocoWriter, building, is_prepared
from scripts.support.wheel import open_wheel


def main(arguments: list[str] | None = None) -> int:
    guard_console()
    options = parse(arguments)
    recipe = {
        "source": f"{neon_trees.PACKAGE} sha256:{neon_trees.WHEEL_SHA256}",
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
            open_wheel(neon_trees.PACKAGE, sha256=neon_trees.WHEEL_SHA256, wheel=options.wheel) as archive,
        ):
            for split in neon_trees.SPLITS:
                overlap = options.train_overlap if split == "train" else options.overlap
                write_split(aside, split, archive, scale=options.scale, tile=options.tile, overlap=overlap)
            notice = neon_trees.notice(archive, scale=options.scale, tile=options.tile)
            (aside / "NOTICE").write_text(notice)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    print(f"wrote {options.out}")
    return 0


def write_split(out: Path, split: str, archive: zipfile.ZipFile, *, scale: float, tile: int, overlap: int) -> None:
    """Write tiles and annotations of a split."""
    scene = neon_trees.read_split(archive, split, scale=scale)
    (out / split).mkdir()
    writer = CocoWriter(neon_trees.CLASSES)
    for file_name, part in neon_trees.cut_tiles(scene, tile=tile, overlap=overlap):
        part.image.save(out / split / file_name)
        size, notes = part.image.size[::-1], {"source": f"{part.name}.png"}
        writer.add(file_name, size=size, boxes=part.boxes, labels=part.labels, notes=notes)
    writer.write(out / "annotations" / f"{split}.json")
    width, height = scene.image.size
    print(
        f"{split}: {len(scene.boxes)} trees in an image of {width} x {height} px -> {writer.statistics()}", flush=True
    )


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
    add("--wheel", type=Path, help=f"the wheel of {neon_trees.PACKAGE}, if already fetched")
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
