"""Compare published and corrected scores of trained softmax detectors on their validation images (docs/scores.md).

    python scripts/compare_scores.py --resume runs/seed0/best.pth runs/seed1/best.pth --plot scores.png

Prints calibration error, AP, precision and recall with both scores, and the errors of the object counts by the density
map, by the expected count, and by detections above a score: mean over the checkpoints, and their range. The picture is
the reliability diagram of all detections; it needs matplotlib (pip install -e '.[plots]').
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs.paths import new_file_argument, path_argument
from configs.schema import Config
from engine.commands.exit_codes import UsageError, exit_code
from engine.commands.resolve import read_checkpoint
from engine.console import guard_console
from engine.metrics.average_precision import detection_metrics, get_protocol, match_records
from engine.metrics.reliability import BINS, Reliability, joined, matched_reliability, operating_point

if TYPE_CHECKING:
    from engine.checkpoints.checkpoint import Checkpoint
    from engine.evaluation.evaluate import GatheredPredictions

SCORES = ("published", "corrected")
THRESHOLDS = (0.25, 0.35, 0.5)
COUNTING = 0.5
VISIBLE = 0.1
COLOURS = {"published": "#9aa5b1", "corrected": "#d9822b"}

# row of a table -> its value
Figures = dict[str, float]


@dataclass(frozen=True)
class Measured:
    """Figures of one checkpoint."""

    scores: dict[str, Figures]
    """published, corrected -> figures"""
    counts: dict[str, Figures]
    """way of counting -> MAE, bias"""
    diagrams: dict[str, Reliability]
    """published, corrected -> reliability"""


def main(arguments: Sequence[str] | None = None) -> int:
    guard_console()
    options = parse(arguments)
    return exit_code(lambda: compare(options))


def compare(options: argparse.Namespace) -> None:
    """Measure all checkpoints, print the tables, and write what was asked for."""
    from engine.checkpoints.checkpoint import load_checkpoint

    checkpoints = {path: load_checkpoint(path) for path in options.resume}
    configs = {path: config_of(path, checkpoint, options.set) for path, checkpoint in checkpoints.items()}
    check_same_images(configs)
    measured = {path: measure(configs[path], checkpoint, path) for path, checkpoint in checkpoints.items()}
    print("\n".join(tables(list(measured.values()))))
    if options.json is not None:
        record = {str(path): {"scores": each.scores, "counts": each.counts} for path, each in measured.items()}
        with options.json.open("x", encoding="utf-8") as file:
            file.write(json.dumps(record, indent=1) + "\n")
    if options.plot is not None:
        draw([each.diagrams for each in measured.values()], options.plot)


def config_of(path: Path, checkpoint: Checkpoint, settings: Sequence[str]) -> Config:
    """The checkpoint's config, with published scores. Raises UsageError if its scores cannot be corrected."""
    config = read_checkpoint(path, checkpoint.config, [*settings, "evaluation.scores=published"]).evaluated()
    decoder = config.criterion.decoder
    if decoder.classification != "softmax" or decoder.no_object_weight == 0:
        raise UsageError(
            f"{path}: scores cannot be corrected: that needs criterion.decoder.classification softmax (here: "
            f"{decoder.classification}) and a no_object_weight above 0 (here: {decoder.no_object_weight:g})"
        )
    return config


def check_same_images(configs: Mapping[Path, Config]) -> None:
    """Raises UsageError if the checkpoints are to be evaluated on different images."""
    first, *others = ((path, (config.data.root, config.data.val)) for path, config in configs.items())
    for path, images in others:
        if images != first[1]:
            raise UsageError(f"{first[0]} and {path} have different validation images; compare them one by one")


def measure(config: Config, checkpoint: Checkpoint, path: Path) -> Measured:
    """Evaluate once, and read the result with both scores."""
    from engine.commands.evaluate import build_trained, evaluation_loader, under_progress
    from engine.commands.setup import start_runtime
    from engine.evaluation.evaluate import gather_predictions, image_records, object_counts, predict_batches
    from models.build import build_postprocess

    processes = start_runtime(config)
    dataset, detector = build_trained(config, checkpoint, path, processes)
    batches = under_progress(evaluation_loader(config.data, dataset, processes), processes)
    predictions = predict_batches(
        detector, build_postprocess(config), batches, device=processes.device, amp=config.runtime.amp
    )
    found = gather_predictions(predictions, processes=processes)
    objects = [dataset.ground_truth(i) for i in range(len(dataset))]
    protocol = get_protocol(config.evaluation.protocol, config.evaluation.max_detections)
    scores, diagrams = {}, {}
    for name, column in score_columns().items():
        records = list(image_records(found, objects, score_column=column))
        metrics = detection_metrics(records, config.model.class_count, protocol)
        matches = match_records(records, config.model.class_count, protocol)
        assert matches is not None  # there are images
        summary, diagrams[name] = metrics.summary(), metrics.reliability
        visible = matched_reliability(matches, 0, least_score=VISIBLE)
        figures = {"calibration error": diagrams[name].error, f"of scores of at least {VISIBLE:g}": visible.error}
        figures |= {"AP, %": 100 * summary["mAP"], "AP50, %": 100 * summary["mAP_50"]}
        for score in THRESHOLDS:
            point = operating_point(matches, score)
            figures[f"precision at {score:g}, %"] = 100 * point.precision
            figures[f"recall at {score:g}, %"] = 100 * point.recall
        scores[name] = figures
    return Measured(scores, dict(count_errors(found, object_counts(found, objects))), diagrams)


def score_columns() -> dict[str, int]:
    """Columns of `GatheredPredictions.detections`."""
    from engine.evaluation.evaluate import CORRECTED_SCORE, SCORE

    return dict(zip(SCORES, (SCORE, CORRECTED_SCORE), strict=True))


def count_errors(found: GatheredPredictions, annotated: np.ndarray) -> Iterator[tuple[str, Figures]]:
    """MAE and bias over the images of every way of counting that the detector has."""
    estimates = {"density": found.predicted_counts, "expected count": found.expected_counts}
    spans = list(zip(found.first_detection.tolist(), found.num_detections.tolist(), strict=True))
    for name, column in score_columns().items():
        shown = found.detections[:, column] >= COUNTING
        estimates[f"{name} scores of at least {COUNTING:g}"] = np.array([shown[a : a + n].sum() for a, n in spans])
    for name, estimate in estimates.items():
        if estimate is not None:
            error = estimate - annotated
            yield name, {"MAE": float(np.abs(error).mean()), "bias": float(error.mean())}


def tables(measured: Sequence[Measured]) -> Iterator[str]:
    """Markdown: figures by scores, and errors by way of counting."""
    yield f"| {len(measured)} {'checkpoint' if len(measured) == 1 else 'checkpoints'} | published | corrected |"
    yield "|---|---|---|"
    for row in measured[0].scores["published"]:
        pattern = ".1f" if row.endswith("%") else ".3f"
        cells = [cell([each.scores[name][row] for each in measured], pattern) for name in SCORES]
        yield f"| {row} | {' | '.join(cells)} |"
    yield "\n| objects counted by | MAE | bias |"
    yield "|---|---|---|"
    for way in measured[0].counts:
        of_way = [each.counts[way] for each in measured if way in each.counts]
        cells = [cell([each[key] for each in of_way], pattern) for key, pattern in (("MAE", ".1f"), ("bias", "+.1f"))]
        yield f"| {way} | {' | '.join(cells)} |"


def cell(values: Sequence[float], pattern: str) -> str:
    """Mean and range of what was measured."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return "-"
    mean = format(float(np.mean(known)), pattern)
    return mean if len(values) == 1 else f"{mean} ({min(known):{pattern}} to {max(known):{pattern}})"


def draw(diagrams: Sequence[Mapping[str, Reliability]], path: Path) -> None:
    """Reliability of both scores, all checkpoints together, over the numbers of their detections."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no plot: matplotlib is not installed (pip install -e '.[plots]')")
        return
    figure = Figure(figsize=(5.2, 5.6), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=(3, 1), sharex=True)
    upper.plot([0, 1], [0, 1], color="#c3c9d0", linewidth=1)
    middles = (np.arange(BINS) + 0.5) / BINS
    for i, (name, colour) in enumerate(COLOURS.items()):
        both = joined([each[name] for each in diagrams])
        for each in diagrams if len(diagrams) > 1 else ():
            upper.plot(each[name].mean_score, each[name].precision, color=colour, alpha=0.35, linewidth=1)
        label = f"{name}: calibration error {both.error:.3f}"
        upper.plot(both.mean_score, both.precision, color=colour, marker="o", markersize=4, label=label)
        lower.bar(middles + (i - 0.5) * 0.4 / BINS, both.detections, 0.4 / BINS, color=colour)
    _label(upper, lower)
    figure.savefig(path, dpi=120)
    print(f"wrote {path}")


def _label(upper: Any, lower: Any) -> None:
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="share of detections that are right")
    upper.legend(frameon=False, loc="upper left")
    lower.set(yscale="log", xlabel="score", ylabel="detections")
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add(
        "--resume", type=path_argument, nargs="+", required=True, metavar="CHECKPOINT", help="detectors of one data set"
    )
    add("--set", nargs="+", default=[], action="extend", metavar="KEY=VALUE", help="other values than the checkpoints'")
    add("--plot", type=new_file_argument, help="picture to write; it must not exist")
    add("--json", type=new_file_argument, help="file for the figures of every checkpoint; it must not exist")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
