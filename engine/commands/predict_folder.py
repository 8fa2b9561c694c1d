"""A prediction from the command line: sources -> a folder of results."""

import errno
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from tqdm import tqdm

from configs.loader import dump_config
from datasets.images.rasters import RasterOptions, open_raster
from datasets.images.sources import Source
from datasets.structures import DataError
from engine.checkpoints.run_folder import NO_ROOM, RunFolderError
from engine.commands.predict import Predictor, file_digest
from engine.distributed.processes import Processes, any_process, gather_lines
from engine.prediction.images import ImageFindings, Selection
from engine.prediction.outputs import write_outputs
from engine.prediction.parts import PartFile, Recorded, begin_folder
from engine.prediction.records import ImageResult
from engine.prediction.run import Entry, OpenImage, Prediction, Unit, make_units
from engine.prediction.summary import Totals, closing_lines, image_summary
from engine.prediction.tiles import plan_tiles
from engine.prediction.visuals import OVERVIEW_PX, draw_prediction, visual_file

LINE_SECONDS = 30.0
"""Between two lines of progress where there is no terminal"""
SKIPPED_CODE = 3
"""Exit code if images were skipped"""


@dataclass(frozen=True)
class PredictionOptions:
    """What a user chose; all of it decides on the results."""

    checkpoint: Path
    conf: float
    labels: tuple[int, ...] | None
    """None: all classes"""
    tile: tuple[int, int] | None
    """(width, height) px; None: images are not cut"""
    overlap: float
    batch_size: int
    formats: tuple[str, ...] | None
    """None: coco, csv, visuals, and geojson where an image is georeferenced"""
    raster: RasterOptions

    def identity(self, predictor: Predictor, sources: Sequence[Source]) -> dict[str, Any]:
        """What a continued run must have in common with the one that was begun."""
        raster = self.raster
        return {
            "checkpoint": file_digest(self.checkpoint),
            "config": dump_config(predictor.config),
            "conf": self.conf,
            "classes": None if self.labels is None else list(self.labels),
            "tile": None if self.tile is None else list(self.tile),
            "overlap": self.overlap,
            "batch_size": self.batch_size,
            "formats": None if self.formats is None else list(self.formats),
            "max_pixels": raster.max_pixels,
            "bands": None if raster.bands is None else list(raster.bands),
            "stretch": list(raster.stretch) if isinstance(raster.stretch, tuple) else raster.stretch,
            "sources": [[source.image_id, source.name, str(source.file.path)] for source in sources],
        }


def choose_folder(name: str, processes: Processes) -> Path:
    """runs/predict/NAME, numbered if it exists; the same on all processes."""
    base = Path("runs") / "predict"
    candidates = (base / (name if number == 1 else f"{name}-{number}") for number in count(1))
    (folder, *_) = gather_lines(str(next(path for path in candidates if not path.exists())), processes)
    return Path(folder)


def predict_sources(
    predictor: Predictor, sources: Sequence[Source], options: PredictionOptions, folder: Path, *, resumed: bool
) -> int:
    """Predict all images and write the results into the folder; returns the exit code.

    resumed   the folder holds a part of them

    Raises RunFolderError for a folder of another prediction, and for a full disk, where what is finished stays.
    """
    processes = predictor.processes
    try:
        _begin(folder, options.identity(predictor, sources), processes, resumed=resumed)
        entries, remarks = _entries(sources, options)
        if processes.is_main:
            print("\n".join([*predictor.remarks, *remarks]), end="\n" * bool(predictor.remarks or remarks), flush=True)
        recorded = Recorded.scan(folder)
        units = make_units(entries, batch_size=options.batch_size, world_size=processes.world_size)
        before = frozenset(recorded.places)
        started = time.perf_counter()
        _predict(predictor, units, options, folder, recorded)
        seconds = time.perf_counter() - started
        if not processes.is_main:
            return 0
        return _conclude(predictor, options, folder, expected=len(sources), before=before, seconds=seconds)
    except OSError as error:
        if error.errno not in NO_ROOM | {errno.EACCES}:
            raise
        remedy = "free some space" if error.errno in NO_ROOM else "make it writable"
        raise RunFolderError(
            f"{folder}: not written ({error.strerror}); {remedy}, then repeat the command with --continue {folder}"
        ) from error


def _begin(folder: Path, identity: dict[str, Any], processes: Processes, *, resumed: bool) -> None:
    """Rank 0 opens the folder; raises RunFolderError on all ranks alike."""
    problem = ""
    if processes.is_main:
        try:
            begin_folder(folder, identity, resumed=resumed)
        except RunFolderError as error:
            problem = str(error)
        except OSError as error:
            problem = f"{folder}: cannot be written ({error.strerror}); give another --out"
    (problem, *_) = gather_lines(problem.replace("\n", " "), processes)
    if problem:
        raise RunFolderError(problem)


def _entries(sources: Sequence[Source], options: PredictionOptions) -> tuple[list[Entry], list[str]]:
    """The images with their tiles, for which their headers are read; and what to say of them, each thing once."""
    entries, remarks = [], dict[str, list[str]]()
    for source in sources:
        opened = partial(open_raster, source.file, options.raster)
        plan, problem = None, ""
        try:
            image = opened()
            image.close()
            plan = plan_tiles(image.width, image.height, tile=options.tile, overlap=options.overlap)
            if image.remark:
                remarks.setdefault(image.remark, []).append(source.name)
        except DataError as error:
            problem = error.summary()
        entries.append(Entry(source.image_id, source.name, str(source.file.path), opened, plan, problem))
    return entries, [
        f"{names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}: {text}"
        for text, names in remarks.items()
    ]


def _predict(
    predictor: Predictor, units: Sequence[Unit], options: PredictionOptions, folder: Path, recorded: Recorded
) -> None:
    """This process's share, recorded in its part file; returns when all processes are done."""
    processes = predictor.processes
    draws = options.formats is None or "visuals" in options.formats

    def finished(result: ImageResult, image: OpenImage, findings: ImageFindings) -> None:
        if draws:
            path = visual_file(folder, result)
            path.parent.mkdir(parents=True, exist_ok=True)
            overview = image.overview(OVERVIEW_PX)
            draw_prediction(result, overview, findings.density, predictor.class_names).save(path, quality=90)

    tiles = sum(len(entry.plan) for unit in units for entry in unit.entries if entry.plan is not None)
    with _tile_counter(tiles // processes.world_size, enabled=processes.is_main) as counted_tiles:

        def detect(images: Sequence[Any]) -> Sequence[Any]:
            predictions = predictor.detect(images)
            counted_tiles(len(images))
            return predictions

        prediction = Prediction(
            detect=detect,
            batch_size=options.batch_size,
            selection=Selection(options.conf, None if options.labels is None else frozenset(options.labels)),
            processes=processes,
            finished=finished,
        )
        with PartFile(folder, processes.rank) as part:
            for results in prediction.results(units, recorded.places):
                part.append(results)
    any_process(False, processes)  # a barrier: all parts are complete


@contextmanager
def _tile_counter(total: int, *, enabled: bool) -> Iterator[Any]:
    """A progress bar on a terminal, plain lines elsewhere."""
    bar = tqdm(total=total, desc="predicting", unit="tile", dynamic_ncols=True, disable=not sys.stderr.isatty())
    state = {"done": 0, "line": time.monotonic()}

    def add(number: int) -> None:
        state["done"] += number
        if enabled and not bar.disable:
            bar.update(number)
        elif enabled and time.monotonic() - state["line"] >= LINE_SECONDS:
            state["line"] = time.monotonic()
            print(f"predicting: {state['done']:,} of {total:,} tiles", flush=True)

    with bar:
        yield add


def _conclude(
    predictor: Predictor,
    options: PredictionOptions,
    folder: Path,
    *,
    expected: int,
    before: frozenset[int],
    seconds: float,
) -> int:
    """Write the outputs and say what was done, on rank 0.

    expected   number of images
    before     ids of the images that an earlier command had finished
    """
    recorded = Recorded.scan(folder)
    if len(recorded.places) != expected:
        raise RunFolderError(
            f"{folder}: holds results of {len(recorded.places)} of {expected} images: the processes write into "
            "different folders; give --out on a file system that all machines share"
        )
    totals = Totals()
    images = []
    for result in recorded.results():
        totals.add(result, earlier=result.image_id in before)
        images.append(image_summary(result))
    formats = options.formats
    if formats is None:
        formats = ("coco", "csv", "visuals", *(["geojson"] if totals.georeferenced else []))
    written = write_outputs(
        recorded.results,
        folder,
        formats=formats,
        class_names=predictor.class_names,
        category_ids=predictor.category_ids,
    )
    written += ["visuals"] * ("visuals" in formats and totals.images > 0)
    summary = {
        "checkpoint": {"path": str(options.checkpoint), "sha256": file_digest(options.checkpoint)},
        "classes": dict(zip(predictor.category_ids, predictor.class_names, strict=True)),
        "seconds": seconds,
        "tiles": totals.tiles,
        "config": dump_config(predictor.config),
        "images": images,
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    print(
        "\n".join(closing_lines(totals, predictor.class_names, folder, [*written, "summary.json"], seconds)), flush=True
    )
    return SKIPPED_CODE if totals.skipped else 0
