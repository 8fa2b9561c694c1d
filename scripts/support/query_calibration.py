"""Fitting of a query budget and its effect, for scripts/calibrate_queries.py."""

import argparse
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from configs.schema import Config
from d3q import DensityBudget
from datasets.coco import CocoDetection
from datasets.structures import Batch
from engine.checkpoints.checkpoint import CheckpointError, load_checkpoint
from engine.commands.evaluate import build_trained, evaluation_loader, under_progress
from engine.commands.exit_codes import UsageError
from engine.commands.resolve import read_checkpoint
from engine.commands.setup import start_runtime
from engine.distributed.processes import Processes
from engine.evaluation.by_count import BinResult, evaluate_by_count, format_settings
from engine.evaluation.calibration import (
    LEAST_QUERIES_PER_OBJECT,
    Calibration,
    UnreachableCoverageError,
    calibrate,
    calibrate_floor,
)
from engine.evaluation.evaluate import GatheredPredictions, gather_predictions, object_counts, predict_batches
from engine.metrics.average_precision import get_protocol
from models.build import build_postprocess

FIT = "fit"
CHECKPOINT, CALIBRATED, ORACLE = "checkpoint", "calibrated", "oracle count"


class OracleBudget(nn.Module):
    """A D3Q budget that uses the true object counts instead of estimating them."""

    def __init__(self, budget: DensityBudget, counts: Mapping[int, int]) -> None:
        """counts   image id -> objects"""
        super().__init__()
        self.budget = budget
        self.counts = counts
        self.image_ids: list[int] = []

    def forward(self, feature_map: Tensor, padding_mask: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(B, D, H, W), (B, H, W) -> num_queries (B,) int64 of the last announced batch; aux of the wrapped budget."""
        _, aux = self.budget(feature_map, padding_mask)
        objects = torch.tensor([self.counts[image_id] for image_id in self.image_ids], device=feature_map.device)
        return self.budget.queries_for(objects), aux

    def announced(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches; the image ids of each are stored before the detector gets it."""
        for batch in batches:
            self.image_ids = [target.image_id for target in batch.targets]
            yield batch


@dataclass(frozen=True)
class Bench:
    """A trained detector and the images that it is measured on."""

    config: Config
    detector: nn.Module
    dataset: CocoDetection
    processes: Processes

    def predict(self, budget: DensityBudget | OracleBudget) -> GatheredPredictions:
        """One pass over the images with this budget."""
        self.detector.query_budget = budget
        batches = under_progress(evaluation_loader(self.config.data, self.dataset, self.processes), self.processes)
        if isinstance(budget, OracleBudget):
            batches = budget.announced(batches)
        postprocess, device = build_postprocess(self.config), self.processes.device
        predictions = predict_batches(self.detector, postprocess, batches, device=device, amp=self.config.runtime.amp)
        return gather_predictions(predictions, processes=self.processes)


def calibrate_queries(options: argparse.Namespace) -> dict[str, dict[str, BinResult]]:
    """Fit, measure, print and write; returns the results by setting and count bin."""
    checkpoint = load_checkpoint(options.resume)
    config = read_checkpoint(options.resume, checkpoint.config, options.set).evaluated()
    check_budget(config, options)
    processes = start_runtime(config)
    dataset, detector = build_trained(config, checkpoint, options.resume, processes)
    bench = Bench(config, detector, dataset, processes)
    own = detector.query_budget
    assert isinstance(own, DensityBudget)

    objects = [dataset.ground_truth(i) for i in range(len(dataset))]
    first = bench.predict(own)
    counts = object_counts(first, objects)
    fitted, calibration = fit_budget(own, first, counts, options)
    oracle = OracleBudget(fitted, dict(zip(first.image_ids.tolist(), counts.tolist(), strict=True)))
    protocol = get_protocol(config.evaluation.protocol, config.evaluation.max_detections)
    results = {
        name: evaluate_by_count(found, objects, num_classes=config.model.class_count, protocol=protocol)
        for name, found in (
            (CHECKPOINT, first),
            (CALIBRATED, bench.predict(fitted)),
            (ORACLE, bench.predict(oracle)),
        )
    }
    if processes.is_main:
        print(f"{options.resume}, epoch {checkpoint.progress.epoch}, on {dataset.table.path}")
        show(results, own, fitted, calibration, coverage=options.coverage)
        publish(fitted, results[CALIBRATED]["all"], dataset, options)
    return results


def check_budget(config: Config, options: argparse.Namespace) -> None:
    """Raises UsageError if there is nothing to fit."""
    if config.model.d3q is None:
        raise UsageError(
            f"{options.resume}: model.d3q is null: this baseline gives every image {config.model.num_queries} queries, "
            "there is nothing to fit; take the checkpoint of a D3Q detector"
        )
    ceiling = config.model.d3q.max_queries or config.model.num_queries
    if isinstance(options.min_queries, int) and options.min_queries > ceiling:
        raise UsageError(f"--min-queries {options.min_queries} exceeds the ceiling of {ceiling} queries")


def fit_budget(
    own: DensityBudget, found: GatheredPredictions, counts: np.ndarray, options: argparse.Namespace
) -> tuple[DensityBudget, Calibration]:
    """The budget that reaches the coverage, with the same density branch."""
    if found.predicted_counts is None:
        raise CheckpointError(f"{options.resume}: the density map is not finite; take an earlier checkpoint")
    estimates = torch.from_numpy(found.predicted_counts)

    def budget_with(queries_per_object: float, min_queries: int) -> DensityBudget:
        return DensityBudget(
            density_branch=own.density_branch,
            queries_per_object=queries_per_object,
            min_queries=min_queries,
            max_queries=own.max_queries,
            round_objects=own.round_objects,
            count_padding=own.count_padding,
        )

    def queries_at(queries_per_object: float, min_queries: int) -> np.ndarray:
        return budget_with(queries_per_object, min_queries).queries_for(estimates).numpy()

    wanted: dict[str, Any] = {"coverage": options.coverage, "max_queries": own.max_queries}
    if options.min_queries == FIT:
        min_queries, calibration = calibrate_floor(queries_at, counts, **wanted)
    else:
        min_queries = options.min_queries or own.min_queries
        calibration = calibrate(lambda t: queries_at(t, min_queries), counts, min_queries=min_queries, **wanted)
    return budget_with(calibration.queries_per_object, min_queries), calibration


def show(
    results: dict[str, dict[str, BinResult]],
    own: DensityBudget,
    fitted: DensityBudget,
    calibration: Calibration,
    *,
    coverage: float,
) -> None:
    """Print settings, table and limits of the coverage. Raises UnreachableCoverageError if it was not reached."""
    for name, budget in ((CHECKPOINT, own), (CALIBRATED, fitted)):
        print(f"{name}: queries_per_object {budget.queries_per_object:g}, min_queries {budget.min_queries}", end="")
        print(f", at most {budget.max_queries}")
    print(f"{ORACLE}: as {CALIBRATED}, on the true number of objects\n\n{format_settings(results)}\n")
    if fitted.queries_per_object == LEAST_QUERIES_PER_OBJECT:
        print(f"queries_per_object {LEAST_QUERIES_PER_OBJECT:g} is the least that is tried")
    if calibration.images_beyond_ceiling:
        print(
            f"images with more objects than the ceiling of {own.max_queries} queries, which no budget covers: "
            f"{calibration.images_beyond_ceiling}"
        )
    measured = results[CALIBRATED]["all"].coverage
    if measured < coverage:
        raise UnreachableCoverageError(
            f"coverage {coverage:g} was fitted, but {measured:.4g} measured: some images have fewer tokens than they "
            "have objects; choose a larger data.image_size, or a lower --coverage"
        )


def publish(fitted: DensityBudget, result: BinResult, dataset: CocoDetection, options: argparse.Namespace) -> None:
    """Write the fragment, and print how to use it."""
    values = {"queries_per_object": fitted.queries_per_object, "min_queries": fitted.min_queries}
    out: Path = options.out or free_name(options.resume.parent / "calibrated_queries.yaml")
    out.parent.mkdir(parents=True, exist_ok=True)
    text = (
        f"# Fitted by scripts/calibrate_queries.py to {options.resume} on {dataset.table.path}:\n"
        f"# {result.coverage:.2%} of {result.images} images get as many queries as they have objects (wanted: "
        f"{options.coverage:.2%}), {result.mean_queries:.1f} queries on average.\n"
        "model:\n  d3q:\n" + "".join(f"    {name}: {value}\n" for name, value in values.items())
    )
    with out.open("x", encoding="utf-8") as file:  # an error if the file was created meanwhile
        file.write(text)
    settings = [*options.set, *(f"model.d3q.{name}={value}" for name, value in values.items())]
    print(f"wrote {out}, a fragment for the include: of an experiment that does not give these keys itself; or")
    print(shlex.join(["python", "main.py", "--eval", "--resume", str(options.resume), "--set", *settings]))


def free_name(path: Path) -> Path:
    """The path, or the first of NAME-2, NAME-3, ... that does not exist."""
    names = (path.with_stem(f"{path.stem}-{number}") for number in count(2))
    return path if not path.exists() else next(name for name in names if not name.exists())
