"""Turn a labelled data set, in the layout that you have, into one that trains here, with a ready experiment.

    python scripts/prepare.py auto ~/my_images --out data/mine           look at the tree and say what it is
    python scripts/prepare.py yolo ~/my_images --out data/mine --small   an experiment for two CPU cores
    python scripts/prepare.py dota ~/DOTA --out data/dota --tile 1024 --overlap 200
    python scripts/prepare.py geo ~/survey --out data/survey             orthophotos with polygons from QGIS
    python scripts/prepare.py yolo ~/drone --out data/drone --split-by '^[^-]+'   frames of one flight stay together

OUT gets annotations/SPLIT.json, the images (links, unless --copy), manifest.json (counts, and everything that was fixed
or dropped), samples.jpg, and DETECTOR_NAME.yaml. The last line printed is the command that trains it. Nothing is
written elsewhere, and nothing is left of a run that failed. Layouts: docs/data.md.

Exit codes: 0 done, 2 usage, 3 data that cannot be used.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from configs.paths import path_argument
from datasets.images.rasters import MissingExtraError, Raster
from datasets.images.windowed import WindowedRaster
from engine.commands.exit_codes import UsageError, exit_code
from engine.console import guard_console
from scripts.converters import aitod, coco, dior, dota, geo, neon, soda, table, tinyperson, visdrone, voc, xview, yolo
from scripts.support.coco_writer import MANIFEST, building, is_prepared
from scripts.support.raw_data import ConvertOptions, RawData, require_images, settle_names
from scripts.support.splits import ORDER, settle_splits

KINDS = {"yolo": yolo, "voc": voc, "coco": coco, "visdrone": visdrone, "dota": dota, "csv": table}
KINDS |= {
    "aitod": aitod,
    "dior": dior,
    "geo": geo,
    "neon": neon,
    "soda": soda,
    "tinyperson": tinyperson,
    "xview": xview,
}
AUTO_ORDER = (
    *("aitod", "visdrone", "dota", "xview", "soda", "tinyperson", "dior", "neon", "voc", "csv", "coco", "geo", "yolo"),
)
"""The more particular a layout, the earlier"""
WITH_IMAGES = ("aitod", "csv", "geo", "neon", "soda", "tinyperson", "xview")
DETECTORS = ("dino_d3q", "dino", "deformable_detr_d3q", "deformable_detr")


def main(arguments: Sequence[str] | None = None) -> int:
    guard_console()
    options = parse(arguments)
    return exit_code(lambda: prepare(options), {MissingExtraError: 2})


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("kind", metavar="KIND", help=f"{', '.join(KINDS)}, or auto")
    add("source", type=path_argument, metavar="SRC", help="folder of the data set; of csv also the file")
    add("--out", type=path_argument, required=True, help="folder to write")
    add("--classes", help="names, with commas; needed where the tree has none, else a choice")
    add("--val-share", type=float, default=0.2, help="of the images, if there is no val or test split (default 0.2)")
    add("--split-by", metavar="PATTERN", help="make splits anew; names with the same match stay together")
    add("--seed", type=int, default=0, help="of such splits (default 0)")
    add("--tile", type=int, help="cut images into tiles of this side, px")
    add("--overlap", type=int, default=200, help="of tiles, px (default 200)")
    add("--voc-origin", type=int, choices=(0, 1), default=1, help="first pixel in VOC files (default 1)")
    add("--images", type=path_argument, metavar="FOLDER", help="of the images, if not below SRC (csv, geo)")
    add("--class-field", metavar="NAME", help="of vectors (geo), with the names of classes")
    add("--bands", metavar="R,G,B", help="of rasters (geo): numbers of the bands to read, from 1")
    add("--stretch", metavar="MIN,MAX|percentile", help="of rasters (geo): values that become black and white")
    add("--empty-share", type=float, help="of training tiles without objects, kept (default 1, of geo 0.1)")
    add("--num-classes", type=int, default=10, help="of VisDrone: 10, 11 or 12 (default 10)")
    add("--copy", action="store_true", help="copy the images; without it they are linked")
    add("--skip-bad", action="store_true", help="drop images that cannot be read")
    add("--detector", choices=DETECTORS, default="dino_d3q", help="of the experiment (default dino_d3q)")
    add("--small", action="store_true", help="a small detector, for two CPU cores or a first look")
    add("--force", action="store_true", help="replace a data set that this script made")
    return parser.parse_args(arguments)


def prepare(options: argparse.Namespace) -> None:
    check_usage(options)
    kind = recognise(options.source) if options.kind == "auto" else options.kind
    complete(options, kind)
    recipe = {name: str(value) for name, value in vars(options).items() if name not in ("force", "out")}
    recipe |= {"kind": kind, "source": str(options.source.resolve()), "files": state_of(options.source, options.images)}
    if not options.force and is_prepared(options.out, recipe):
        print(f"{options.out} already holds this data set; nothing to do")
        return
    chosen = None if options.classes is None else tuple(split(options.classes))
    reading = ConvertOptions(
        classes=chosen,
        voc_origin=options.voc_origin,
        num_classes=options.num_classes,
        images=options.images,
        class_field=options.class_field,
        tile=options.tile,
        skip_bad=options.skip_bad,
    )
    data: RawData = KINDS[kind].convert(options.source, reading)
    require_images(data, options.source)
    settle_names(data, options.source)
    settle_splits(data, val_share=options.val_share, split_by=options.split_by, seed=options.seed)
    settle_names(data, options.source, tiled=options.tile is not None)
    with building(options.out, recipe, force=options.force) as folder:
        lines = write(folder, data, options)
    print("\n".join(lines))


def state_of(source: Path, images: Path | None) -> str:
    """Digest of the names, sizes and times of all files: another one after a change."""
    digest = hashlib.sha256()
    labels = [("", list[str](), [str(source)])] if source.is_file() else os.walk(source)
    for folder, folders, files in chain(labels, os.walk(images) if images else ()):
        folders.sort()
        for name in sorted(files):
            path = os.path.join(folder, name)
            known = os.stat(path) if os.path.exists(path) else None
            digest.update(repr((path, known and (known.st_size, known.st_mtime_ns))).encode(errors="surrogateescape"))
    return digest.hexdigest()


def check_usage(options: argparse.Namespace) -> None:
    """Raises UsageError."""
    if options.kind not in ("auto", *KINDS):
        seen = "; auto says: " + recognise(options.source, quiet=True) if options.source.is_dir() else ""
        raise UsageError(f"unknown kind {options.kind!r}; known are {', '.join(KINDS)} and auto{seen}")
    if not options.source.exists():
        raise UsageError(f"{options.source}: no such folder")
    if options.source.is_file() and options.kind != "csv":
        raise UsageError(f"{options.source}: is a file; give the folder of the data set")
    if options.source.is_dir() and options.out.resolve().is_relative_to(options.source.resolve()):
        raise UsageError(f"--out {options.out} lies inside {options.source}, where it would be found as data; move it")
    if not 0 < options.val_share < 1:
        raise UsageError(f"--val-share {options.val_share:g} is not between 0 and 1")
    if options.tile is not None and not 0 <= options.overlap < options.tile:
        raise UsageError(f"--overlap {options.overlap} is not in 0..{options.tile - 1}, below --tile")
    if options.empty_share is not None and not 0 <= options.empty_share <= 1:
        raise UsageError(f"--empty-share {options.empty_share:g} is not in 0..1")
    if options.images is not None and not options.images.is_dir():
        raise UsageError(f"--images {options.images}: no such folder")
    if options.small and options.detector != "dino_d3q":
        raise UsageError("--small is a dino_d3q; give no other --detector")


def complete(options: argparse.Namespace, kind: str) -> None:
    """Set the options that follow from the kind. Raises UsageError for those of another."""
    if kind == "geo":
        options.tile = options.tile or geo.TILE[options.small]
        options.empty_share = geo.EMPTY_SHARE if options.empty_share is None else options.empty_share
    for name in ("class_field", "bands", "stretch"):
        if kind != "geo" and getattr(options, name) is not None:
            raise UsageError(f"--{name.replace('_', '-')}: only geo has it, this is {kind}")
    if options.images is not None and kind not in WITH_IMAGES:
        raise UsageError(f"--images: only {', '.join(WITH_IMAGES)} have it, this is {kind}")
    options.kind = kind


def recognise(source: Path, *, quiet: bool = False) -> str:
    """The kind of a tree; prints why. Raises DataError if none fits, or several with different annotations do."""
    from datasets.errors import DataError

    found, faults = dict[str, str](), list[DataError]()
    for kind in AUTO_ORDER:
        try:
            if (why := KINDS[kind].recognise(source)) is not None:
                found[kind] = why
        except DataError as error:  # a broken file is no reason against the other kinds
            faults.append(error)
    if not found and faults and not quiet:
        raise faults[0]
    if quiet:
        return next(iter(found), "none fits")
    if not found:
        names = sorted({path.suffix or path.name for path in source.rglob("*") if path.is_file()})[:8]
        raise DataError(f"{source}: none of {', '.join(KINDS)} fits; it holds {', '.join(names) or 'nothing'}")
    kind, why = next(iter(found.items()))
    others = "".join(f"; also possible: {other} ({reason})" for other, reason in list(found.items())[1:])
    print(f"{source}: taken for {kind}: {why}{others}")
    return kind


def write(folder: Path, data: RawData, options: argparse.Namespace) -> list[str]:
    """Fill the folder; returns what to say."""
    from scripts.support.data_writer import WriteOptions, describe_split, draw_sheet, write_manifest, write_split
    from scripts.support.experiment import DataFacts, advise_tiles, write_experiment

    how = WriteOptions(
        copy=options.copy,
        tile=options.tile,
        overlap=options.overlap,
        skip_bad=options.skip_bad,
        empty_share=1.0 if options.empty_share is None else options.empty_share,
        open=opener(options),
    )
    written = {split: write_split(folder, split, data, how) for split in ORDER if data.splits.get(split)}
    train, name = written["train"].writer, options.out.name
    boxes = np.array([a["bbox"] for a in train.annotations if not a["iscrowd"]], np.float64).reshape(-1, 4)
    owners = np.array([a["image_id"] for a in train.annotations if not a["iscrowd"]], np.int64)
    facts = DataFacts(
        num_classes=len(data.classes),
        image_sizes=np.array([(image["height"], image["width"]) for image in train.images]),
        counts=np.bincount(owners, minlength=len(train.images) + 1)[1:],
        sizes=np.sqrt(boxes[:, 2] * boxes[:, 3]),
        val="val" if "val" in written else "test",
    )
    experiment = f"{options.detector}_{name}.yaml"
    settings = write_experiment(
        folder / experiment, facts, root=options.out, name=name, detector=options.detector, small=options.small
    )
    data.remarks += advise_tiles(facts.image_sizes, settings[0])
    draw_sheet(written["train"].samples).save(folder / "samples.jpg", quality=90)
    described = {split: describe_split(each, folder) for split, each in written.items()}
    write_manifest(folder / MANIFEST, manifest(data, described, options))
    return report(data, described, settings, options, experiment)


def opener(options: argparse.Namespace) -> Callable[[Path], Raster]:
    """What opens an image whose pixels are needed."""
    from scripts.predict import bands_of, stretch_of
    from scripts.support.data_writer import open_image

    if options.kind != "geo":
        return open_image
    return partial(WindowedRaster, bands=bands_of(options.bands), stretch=stretch_of(options.stretch))


def manifest(data: RawData, described: dict[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    return {
        "source": str(options.source.resolve()),
        "options": {name: str(value) for name, value in vars(options).items() if value is not None},
        "classes": list(data.classes),
        "splits": described,
        "fixed_or_dropped": dict(sorted((+data.notes).items())),
        "remarks": data.remarks,
    }


def report(
    data: RawData,
    described: dict[str, Any],
    settings: tuple[tuple[int, int], int, int],
    options: argparse.Namespace,
    experiment: str,
) -> list[str]:
    """Lines of the end; the last is the command that trains."""
    lines = [
        f"{split}: {each['images']:,} images, {each['objects']:,} objects"
        + (f", {each['ignored']:,} ignored" if each["ignored"] else "")
        for split, each in described.items()
    ]
    per_class = described["train"]["per_class"]
    lines.append("train, per class: " + ", ".join(f"{name} {count:,}" for name, count in per_class.items()))
    lines += [f"fixed or dropped: {reason} {count:,}" for reason, count in sorted((+data.notes).items())]
    lines += data.remarks
    size, floor, ceiling = settings
    lines.append(f"experiment: images of {size[1]} x {size[0]} px, {floor} to {ceiling} queries; look at samples.jpg")
    if options.small and not Path("weights/efficientnet_lite0.pth").exists():
        lines.append("backbone weights, once: python scripts/fetch_weights.py")
    return [*lines, f"python main.py --config {shlex.quote(str(options.out / experiment))}"]


def split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


if __name__ == "__main__":
    sys.exit(main())
