"""Find objects in your own images with a trained detector.

    python scripts/predict.py --resume runs/X/best.pth photos/                       a folder, with its subfolders
    python scripts/predict.py --resume X.pth ortho.tif 'flight/*.jpg' list.txt       files, globs, lists
    python scripts/predict.py --resume X.pth val.json --images val/ --conf 0         the images of a COCO file
    torchrun --nproc_per_node=2 scripts/predict.py --resume X.pth photos/            shared out over two GPUs
    python scripts/predict.py --continue runs/predict/photos --resume X.pth photos/  after a crash or Ctrl-C

Images larger than the detector's input are cut into overlapping tiles at the resolution of the training, each with a
query count of its own, and what the tiles find is merged. Results are in runs/predict/NAME, or --out: predictions.json
with images.json (COCO), predictions.csv (pandas, DeepForest), labels/ (YOLO), predictions.geojson (QGIS), visuals/.
What they hold: docs/prediction.md.

Exit codes: 0 done, 2 usage, or a folder or disk that cannot be written, 3 no images, or images that were skipped (all
others are done), 4 checkpoint, 6 out of memory, 75 stopped by a signal; --continue loses nothing that was finished.
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs.paths import path_argument
from engine.commands.exit_codes import UsageError, exit_code
from engine.console import guard_console
from engine.distributed.signals import interruptible

if TYPE_CHECKING:
    from datasets.images.rasters import Stretch
    from engine.commands.predict import Predictor
    from engine.commands.predict_folder import PredictionOptions

FORMATS = ("coco", "csv", "yolo", "geojson", "visuals")
MAX_PIXELS = 400_000_000


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("sources", nargs="*", metavar="SOURCE", help="image, folder, glob, .txt list or COCO .json")
    parser.add_argument("--source", nargs="+", action="extend", default=[], metavar="SOURCE", help="the same")
    parser.add_argument("--resume", type=path_argument, required=True, metavar="CHECKPOINT", help="the detector")
    parser.add_argument("--images", type=path_argument, metavar="FOLDER", help="of the file names of a COCO file")
    parser.add_argument(
        *("--conf", "--threshold", "--score-thr"),
        dest="conf",
        type=_share,
        default=0.25,
        help="lowest score, 0 to 1 (default 0.25)",
    )
    parser.add_argument("--classes", metavar="A,B", help="keep these classes only")
    parser.add_argument(
        "--tile", default="auto", metavar="auto|N|none", help="side of the tiles, px of the image (default auto)"
    )
    parser.add_argument(
        "--overlap", type=float, default=0.2, help="of tiles: below 1 a share of their side, else px (default 0.2)"
    )
    parser.add_argument(
        "--scale",
        type=_positive,
        default=1.0,
        help="network pixels per image pixel, over the training's: 2 for pixels of twice the ground (default 1)",
    )
    parser.add_argument("--batch-size", type=int, help="tiles at a time (default: data.batch_size of the checkpoint)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), help="default: runtime.device of the checkpoint")
    parser.add_argument(
        "--scores",
        choices=("corrected", "published"),
        default="corrected",
        help="corrected where the head allows it (default), or as the detector was trained: docs/scores.md",
    )
    _add_folders_and_files(parser)
    return parser.parse_args(arguments)


def _add_folders_and_files(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=path_argument, help="folder of the results; must not exist")
    parser.add_argument("--continue", dest="resumed", type=path_argument, metavar="FOLDER", help="finish what is there")
    parser.add_argument(
        "--formats", metavar="A,B", help=f"of {','.join(FORMATS)} (default coco,csv,visuals; geojson where it applies)"
    )
    parser.add_argument(
        "--max-pixels", type=int, default=MAX_PIXELS, help=f"larger images are skipped (default {MAX_PIXELS:,})"
    )
    parser.add_argument(
        "--bands", metavar="R,G,B", help="numbers of the bands to read, from 1 (default: as trained); needs rasterio"
    )
    parser.add_argument(
        "--stretch",
        metavar="MIN,MAX|percentile",
        help="values that become black and white; needs rasterio (--stretch=-5,100)",
    )
    parser.add_argument(
        "--set", nargs="+", default=[], action="extend", metavar="KEY=VALUE", help="override the config"
    )
    parser.add_argument("--quiet", action="store_true", help="print errors only")


def _share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not in 0..1")
    return value


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    guard_console()
    options = parse(arguments)

    def work() -> int:
        from datasets.images.rasters import MissingExtraError

        with interruptible():
            try:
                return run(options)
            except MissingExtraError as error:
                raise UsageError(str(error)) from None

    if not options.quiet:
        return exit_code(work)
    with redirect_stdout(None):
        return exit_code(work)


def run(options: argparse.Namespace) -> int:
    """Predict and return the exit code."""
    sources = [*options.sources, *options.source]
    check_usage(options, sources)

    from datasets.images.sources import (
        default_name,
        find_sources,
    )  # torch takes seconds; usage errors are reported before
    from engine.commands.predict import load_predictor
    from engine.commands.predict_folder import choose_folder, predict_sources
    from engine.distributed.watchdog import HangWatch

    found = find_sources(sources, images_root=options.images)
    predictor = load_predictor(options.resume, settings=options.set, scores=options.scores, device=options.device)
    chosen = resolve(options, predictor)
    with HangWatch(predictor.processes, limit=predictor.config.runtime.hang_timeout):
        folder = options.resumed or options.out or choose_folder(default_name(sources[0]), predictor.processes)
        return predict_sources(predictor, found, chosen, folder, resumed=options.resumed is not None)


def check_usage(options: argparse.Namespace, sources: Sequence[str]) -> None:
    """Raises UsageError for arguments that are wrong whatever the checkpoint."""
    if not sources:
        raise UsageError("give at least one SOURCE: an image, a folder, a glob, a .txt list or a COCO file")
    if options.out is not None and options.resumed is not None:
        raise UsageError("--out and --continue exclude each other: a continued prediction stays in its folder")
    if options.out is not None and options.out.exists():
        raise UsageError(f"--out {options.out} exists; choose another name, or finish what it holds with --continue")
    if options.batch_size is not None and options.batch_size < 1:
        raise UsageError(f"--batch-size {options.batch_size} is below 1")
    if options.max_pixels < 1:
        raise UsageError(f"--max-pixels {options.max_pixels} is below 1")
    if options.overlap < 0:
        raise UsageError(f"--overlap {options.overlap:g} is below 0")
    if not options.overlap < float("inf"):
        raise UsageError(f"--overlap {options.overlap:g}: give a share of a tile's side, below 1, or px")
    if unknown := sorted(set(split(options.formats)) - set(FORMATS)):
        raise UsageError(f"--formats {unknown[0]}: unknown; known are {', '.join(FORMATS)}")


def resolve(options: argparse.Namespace, predictor: "Predictor") -> "PredictionOptions":
    """The options in terms of the checkpoint. Raises UsageError."""
    from datasets.build import raster_options
    from engine.commands.predict_folder import PredictionOptions

    raster = raster_options(predictor.config.data, max_pixels=options.max_pixels)
    if options.bands is not None:
        raster = replace(raster, bands=bands_of(options.bands))
    if options.stretch is not None:
        raster = replace(raster, stretch=stretch_of(options.stretch))
    return PredictionOptions(
        checkpoint=options.resume,
        conf=options.conf,
        labels=None if options.classes is None else labels_of(split(options.classes), predictor.class_names),
        tile=tile_size(options, predictor),
        overlap=options.overlap,
        batch_size=options.batch_size or predictor.config.data.batch_size,
        formats=None if options.formats is None else tuple(dict.fromkeys(split(options.formats))),
        raster=raster,
    )


def tile_size(options: argparse.Namespace, predictor: "Predictor") -> tuple[int, int] | None:
    """(width, height) px; None: images are not cut."""
    if options.tile == "none":
        return None
    size = predictor.tile_size(options.scale)
    if options.tile != "auto":
        if not options.tile.isdecimal() or int(options.tile) < 1:
            raise UsageError(f"--tile {options.tile}: give auto, none, or the side of a tile in px")
        if options.scale != 1:
            raise UsageError("--tile N and --scale exclude each other: both say how large objects become")
        size = int(options.tile), int(options.tile)
    overlap = options.overlap if options.overlap >= 1 else options.overlap * min(size)
    if round(overlap) >= min(size):
        raise UsageError(f"--overlap {overlap:g} px is not below the tile's side of {min(size)} px")
    return size


def labels_of(names: Sequence[str], known: Sequence[str]) -> tuple[int, ...]:
    """Raises UsageError for a class that the detector does not know, and for none."""
    if not names:
        raise UsageError(f"--classes names no class; the detector knows {', '.join(known)}")
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"--classes {unknown[0]}: the detector does not know it; it knows {', '.join(known)}")
    return tuple(sorted(known.index(name) for name in names))


def bands_of(text: str | None) -> tuple[int, int, int] | None:
    if text is None:
        return None
    parts = split(text)
    if len(parts) != 3 or not all(part.isdecimal() and int(part) >= 1 for part in parts):
        raise UsageError(f"--bands {text}: give three numbers of bands, from 1: red, green, blue")
    red, green, blue = map(int, parts)
    return red, green, blue


def stretch_of(text: str | None) -> "Stretch | None":
    from datasets.images.rasters import parse_stretch

    try:
        return parse_stretch(text)
    except ValueError as error:
        reason = "MIN must be below MAX" if "below" in str(error) else "give MIN,MAX or percentile"
        raise UsageError(f"--stretch {text}: {reason}") from None


def split(text: str | None) -> list[str]:
    """Of a list with commas."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


if __name__ == "__main__":
    sys.exit(main())
