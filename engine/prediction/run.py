"""All images of a prediction, shared out over the processes; the results do not depend on how many there are."""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

from PIL import Image

from datasets.structures import DataError, Georeference
from engine.distributed.processes import Processes, gather_lines
from engine.prediction.ahead import ahead
from engine.prediction.images import (
    Detect,
    ImageFindings,
    Selection,
    merge_findings,
    search_tiles,
    tile_findings,
)
from engine.prediction.records import ImageResult
from engine.prediction.tiles import TilePlan

SHARED_BATCHES = 8
"""An image of at least so many batches of tiles per process is shared by all processes"""


class OpenImage(Protocol):
    """An image that can be read in windows."""

    width: int
    height: int
    georeference: Georeference | None
    turned: bool

    def read(self, window: tuple[int, int, int, int]) -> Image.Image | None:
        """RGB; None where there are no data. Raises DataError."""

    def overview(self, longest: int) -> Image.Image:
        """The whole image in RGB, no side longer than this, px."""

    def close(self) -> None:
        """Free its memory."""


@dataclass(frozen=True)
class Entry:
    """One image to predict on."""

    image_id: int
    name: str
    file: str
    open: Callable[[], OpenImage]
    """Raises DataError"""
    plan: TilePlan | None
    """None: it cannot be read"""
    problem: str = ""
    """Why not"""


@dataclass(frozen=True)
class Unit:
    """Images that one process predicts, or that all share."""

    entries: Sequence[Entry]
    shared: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether its images are of one tile each."""
        plan = self.entries[0].plan
        return plan is not None and len(plan) == 1


@dataclass(frozen=True)
class OpenedUnit:
    """Images of one tile each, decoded, and those that could not be."""

    images: Sequence[tuple[Entry, OpenImage, Image.Image]]
    skipped: Sequence[ImageResult]
    seconds: float


def _open(unit: Unit) -> OpenedUnit:
    start = time.perf_counter()
    images, problems = [], []
    for entry in unit.entries:
        try:
            image = entry.open()
            pixels = image.read((0, 0, image.width, image.height))
        except DataError as error:
            problems.append(skipped(entry, error.summary()))
            continue
        images.append((entry, image, Image.new("RGB", (image.width, image.height)) if pixels is None else pixels))
    return OpenedUnit(images, problems, time.perf_counter() - start)


Finished = Callable[[ImageResult, OpenImage, ImageFindings], None]
"""Called for each image that was predicted, while its pixels are in memory"""


@dataclass(frozen=True)
class Prediction:
    """How images are predicted."""

    detect: Detect
    batch_size: int
    selection: Selection
    processes: Processes
    finished: Finished

    def results(self, units: Sequence[Unit], recorded: Collection[int]) -> Iterator[list[ImageResult]]:
        """What this process has to record, unit by unit: shared units first, on all processes at the same time.

        recorded   ids of images that are done

        A unit of which some images are done is predicted whole: the same batch gives the same bits.
        """
        todo = [unit for unit in units if any(entry.image_id not in recorded for entry in unit.entries)]
        rank, world_size = self.processes.rank, self.processes.world_size
        own = [unit for unit in todo if not unit.shared][rank::world_size]
        whole = [unit for unit in own if unit.is_whole]
        for results in chain(
            (self._tiled(unit) for unit in [unit for unit in todo if unit.shared]),
            (self._tiled(unit) for unit in own if not unit.is_whole),
            (self._whole_images(opened) for opened in ahead(_open, whole)),
        ):
            yield [result for result in results if result.image_id not in recorded]

    def _whole_images(self, opened: OpenedUnit) -> list[ImageResult]:
        """Images of one tile each, in one batch."""
        start = time.perf_counter()
        predictions = self.detect([pixels for _, _, pixels in opened.images]) if opened.images else []
        seconds = (opened.seconds + time.perf_counter() - start) / max(len(opened.images), 1)
        results = list(opened.skipped)
        for (entry, image, _), prediction in zip(opened.images, predictions, strict=True):
            assert entry.plan is not None
            findings = merge_findings(entry.plan, tile_findings(entry.plan, 0, prediction, self.selection))
            results.append(self._finish(entry, image, findings, seconds, shared=False))
        return results

    def _tiled(self, unit: Unit) -> list[ImageResult]:
        """An image of several tiles, or one that cannot be read; if it is shared, on all processes, and the result is
        that of rank 0."""
        (entry,) = unit.entries
        start = time.perf_counter()
        plan, problem, image, findings = entry.plan, entry.problem, None, None
        share = self.processes if unit.shared else None
        if plan is not None:
            try:
                image = entry.open()
                findings = search_tiles(
                    plan,
                    image.read,
                    self.detect,
                    batch_size=self.batch_size,
                    selection=self.selection,
                    rank=0 if share is None else share.rank,
                    world_size=1 if share is None else share.world_size,
                )
            except DataError as error:
                problem = error.summary()
        if share is not None:
            problems = gather_lines(problem.replace("\n", " "), share)
            problem = next((each for each in problems if each), "")
        if problem or plan is None or image is None or findings is None:
            if image is not None:
                image.close()
            return [skipped(entry, problem)] if not unit.shared or self.processes.is_main else []
        merged = merge_findings(plan, findings if share is None else findings.gathered(share))
        result = self._finish(entry, image, merged, time.perf_counter() - start, shared=unit.shared)
        return [result] if not unit.shared or self.processes.is_main else []

    def _finish(
        self, entry: Entry, image: OpenImage, findings: ImageFindings, seconds: float, *, shared: bool
    ) -> ImageResult:
        result = ImageResult(
            image_id=entry.image_id,
            path=entry.name,
            file=entry.file,
            width=image.width,
            height=image.height,
            status="done",
            objects=findings.objects,
            predicted_count=findings.predicted_count,
            expected_count=findings.expected_count,
            num_queries=findings.num_queries,
            num_tiles=findings.num_tiles,
            num_blank=findings.num_blank,
            georeference=image.georeference,
            turned=image.turned,
            seconds=seconds,
        )
        if not shared or self.processes.is_main:
            self.finished(result, image, findings)
        image.close()
        return result


def skipped(entry: Entry, reason: str) -> ImageResult:
    """The record of an image that cannot be read."""
    plan = entry.plan
    width, height = (0, 0) if plan is None else (plan.width, plan.height)
    return ImageResult(entry.image_id, entry.name, entry.file, width, height, "skipped", reason)


def make_units(entries: Sequence[Entry], *, batch_size: int, world_size: int) -> list[Unit]:
    """Images of one tile in batches, in their order, as an evaluation has them; others alone.

    The units depend on the number of processes only in who predicts them.
    """
    whole = [entry for entry in entries if entry.plan is not None and len(entry.plan) == 1]
    units = [Unit(whole[first : first + batch_size]) for first in range(0, len(whole), batch_size)]
    for entry in entries:
        if entry.plan is None:
            units.append(Unit([entry]))
        elif len(entry.plan) > 1:
            shared = world_size > 1 and len(entry.plan) >= SHARED_BATCHES * batch_size * world_size
            units.append(Unit([entry], shared))
    return units
