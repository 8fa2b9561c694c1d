"""Trainings that are compared: run them, measure the detectors in turn, write the table of means and ranges."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from configs.paths import escape_path
from engine.commands.exit_codes import UsageError
from engine.commands.resolve import read_checkpoint
from engine.metrics.counting import COUNT_BINS
from engine.metrics.protocols import get_protocol

if TYPE_CHECKING:
    from engine.evaluation.by_count import BinResult
    from engine.evaluation.evaluate import ImagePrediction

# count bin -> value by column
Measured = dict[str, dict[str, float | None]]
# name of a setting -> seed -> what was measured
Results = dict[str, dict[str, Measured]]
# key of a measured value -> its title and its factor in the table
Columns = Mapping[str, tuple[str, float]]


class ChildError(RuntimeError):
    """A script that this one started has failed."""


def train(folder: Path, config: str, settings: Sequence[str], *, jobs: int) -> None:
    """One training from the start, or from where it stopped.

    jobs   trainings side by side, which share the cores
    """
    threads = max((os.cpu_count() or 1) // jobs, 1)
    own = [f"runtime.num_threads={threads}", f"runtime.output_dir={escape_path(folder)}"]
    own += ["evaluation.every_epochs=1000", "evaluation.gallery_images=0"]
    last = folder / "last.pth"
    start = ["--resume", str(last)] if last.is_file() else ["--config", config]
    print(folder, flush=True)
    run(["main.py", *start, "--set", *own, *settings], quiet=True)


def run_folders(out: Path, names: Sequence[str], seeds: Sequence[int]) -> dict[tuple[str, int], Path]:
    """(setting, seed) -> run folder in `out`. Raises UsageError if `out` has results of other trainings."""
    folders = {(name, seed): out / f"{slug(name)}_seed{seed}" for name in names for seed in seeds}
    there = [str(path) for name in ("results.json", "table.md", "plot.png") if (path := out / name).exists()]
    if there and not any(folder.exists() for folder in folders.values()):
        raise UsageError(f"{', '.join(there)}: not of these trainings, and would be written over; choose another --out")
    return folders


def run(command: Sequence[str], *, quiet: bool = False) -> None:
    """Run a script of this repository in the working directory. Raises ChildError with the end of its output."""
    done = subprocess.run([sys.executable, *command], capture_output=quiet, text=True, check=False)
    if done.returncode:
        said = f": {(done.stderr or done.stdout)[-2000:]}" if quiet else ""
        raise ChildError(f"{' '.join(command)} ended with exit code {done.returncode}{said}")


def measure_runs(
    folders: Mapping[tuple[str, int], Path],
    out: Path,
    *,
    name: str = "measured",
    settings: Mapping[tuple[str, int], Sequence[str]] | None = None,
) -> Results:
    """Measure the detectors of each seed that has all of them.

    folders    (setting, seed) -> run folder
    out        keeps what was measured in NAME_seedN.json, measured again if a checkpoint is newer
    settings   (setting, seed) -> changes of its config for the evaluation

    Raises ChildError if no seed is complete.
    """
    names, seeds = list(dict.fromkeys(key[0] for key in folders)), list(dict.fromkeys(key[1] for key in folders))
    results: Results = {own: {} for own in names}
    for seed in seeds:
        paths = {own: folders[own, seed] / "best.pth" for own in names}
        if not all(path.is_file() for path in paths.values()):
            continue
        kept = out / f"{name}_seed{seed}.json"
        if not kept.is_file() or any(kept.stat().st_mtime < path.stat().st_mtime for path in paths.values()):
            found = measure(paths, {own: (settings or {}).get((own, seed), ()) for own in names})
            kept.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        for own, of_seed in json.loads(kept.read_text(encoding="utf-8")).items():
            results[own][str(seed)] = of_seed
    if not any(results.values()):
        raise ChildError(f"{out}: no seed has all of {', '.join(names)} trained; run without --report-only")
    return results


def measure(paths: dict[str, Path], settings: Mapping[str, Sequence[str]]) -> dict[str, Measured]:
    """Measure every validation image alone, on one thread, the detectors in turn, so that slow moments affect them
    all."""
    from engine.checkpoints.checkpoint import load_checkpoint
    from engine.commands.evaluate import build_trained, evaluation_loader, under_progress
    from engine.commands.setup import start_runtime
    from engine.evaluation.by_count import evaluate_by_count
    from engine.evaluation.evaluate import gather_predictions, predict_batches
    from models.build import build_postprocess

    streams = []
    for name, path in paths.items():
        checkpoint = load_checkpoint(path)
        own = ["data.batch_size=1", "runtime.num_threads=1", "runtime.device=cpu", *settings[name]]
        config = read_checkpoint(path, checkpoint.config, own).evaluated()
        processes = start_runtime(config)
        dataset, detector = build_trained(config, checkpoint, path, processes)
        batches = under_progress(evaluation_loader(config.data, dataset, processes), processes)
        streams.append(
            predict_batches(detector, build_postprocess(config), batches, device=processes.device, amp="none")
        )
    turns = list(zip(*streams, strict=True))
    objects = [dataset.ground_truth(i) for i in range(len(dataset))]
    counts = {record.image_id: int((~record.crowd).sum()) for record in objects}
    results = {}
    for name, predictions in zip(paths, zip(*turns, strict=True), strict=True):
        by_count = evaluate_by_count(
            gather_predictions(predictions, processes=processes),
            objects,
            num_classes=config.model.class_count,
            protocol=get_protocol(config.evaluation.protocol, config.evaluation.max_detections),
        )
        results[name] = {
            bin_name: values(bin_name, result, predictions, counts) for bin_name, result in by_count.items()
        }
    return results


def values(
    name: str,
    result: BinResult,
    predictions: Sequence[tuple[list[ImagePrediction], float]],
    counts: dict[int, int],
) -> dict[str, float | None]:
    """A bin's results and its median time; None for undefined values of an empty bin."""
    low, high = COUNT_BINS.get(name, (0, float("inf")))
    seconds = [time for (found,), time in predictions if low <= counts[found.image_id] <= high]
    numbers = asdict(result) | {"milliseconds": 1000 * float(np.median(seconds)) if seconds else math.nan}
    return {key: None if math.isnan(number) else number for key, number in numbers.items()}


def write_results(results: object, out: Path, lines: Iterable[str]) -> None:
    """OUT/results.json and OUT/table.md; prints the table."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    table = "\n".join(lines)
    (out / "table.md").write_text(table + "\n", encoding="utf-8")
    print(table)


def table_lines(results: Results, columns: Columns, *, setting: str, bins: Sequence[str] = ("all",)) -> Iterator[str]:
    """Markdown: a row per bin and setting, mean over the seeds and their range.

    setting   title of the settings' column
    """
    yield f"| objects in image | images | {setting} | {' | '.join(title for title, _ in columns.values())} |"
    yield "|" + "---|" * (3 + len(columns))
    for name in bins:
        for own, seeds in results.items():
            cells = [cell(numbers(seeds, name, column, columns)) for column in columns]
            images = next(iter(seeds.values()))[name]["images"]
            yield f"| {name} | {images} | {own} | {' | '.join(cells)} |"


def numbers(seeds: dict[str, Measured], name: str, column: str, columns: Columns) -> list[float]:
    """A column's value of a bin for every seed, in the column's unit; none of an empty bin."""
    found = [of_seed[name][column] for of_seed in seeds.values()]
    return [number * columns[column][1] for number in found if number is not None]


def cell(values: Sequence[float]) -> str:
    """Mean and range."""
    if not values:
        return "-"
    mean = float(np.mean(values))
    return f"{mean:.1f}" if len(values) == 1 else f"{mean:.1f} ({min(values):.1f} to {max(values):.1f})"


def slug(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name.lower())
