"""Compare fixed and dynamic query budgets: train both on procedural scenes, and measure them by object count.

    python scripts/compare_budgets.py --out runs/budgets --jobs 2        nine trainings: three budgets, three seeds
    python scripts/compare_budgets.py --out runs/budgets --report-only   the table of what is done so far

Run it from the repository's root, after scripts/fetch_weights.py. Every training has its own run folder: the script can
be repeated; it resumes unfinished trainings and skips finished ones. Then it measures the detectors in turn on each
image: AP, AR, queries and milliseconds per count bin, mean and range over the seeds. OUT gets results.json, table.md
and, if matplotlib is installed, plot.png.
"""

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs.paths import escape_path
from engine.checkpoints.checkpoint import load_checkpoint
from engine.commands.evaluate import build_trained, evaluation_loader, under_progress
from engine.commands.exit_codes import UsageError, exit_code
from engine.commands.resolve import read_checkpoint
from engine.commands.setup import start_runtime
from engine.console import guard_console
from engine.evaluation.by_count import BinResult, evaluate_by_count
from engine.evaluation.evaluate import ImagePrediction, gather_predictions, predict_batches
from engine.metrics.average_precision import get_protocol
from engine.metrics.counting import COUNT_BINS
from models.build import build_postprocess

CONFIG = "configs/dino_d3q_scenes.yaml"
CEILING = 600
BUDGETS = {
    "fixed 100": ["model.d3q=null", "model.num_queries=100"],
    "fixed 300": ["model.d3q=null", "model.num_queries=300"],
    "D3Q": [f"model.num_queries={CEILING}"],
}
SHOWN = ("all", "1-10", "11-50", "51-100", "101-500")
COLUMNS = {
    "average_precision": ("AP, %", 100),
    "average_recall": ("AR, %", 100),
    "mean_queries": ("queries", 1),
    "milliseconds": ("ms per image", 1),
}
# count bin -> value by column
Measured = dict[str, dict[str, float | None]]
# name of a budget -> seed -> what was measured
Results = dict[str, dict[str, Measured]]


def main(arguments: list[str] | None = None) -> int:
    guard_console()
    options = parse(arguments)
    return exit_code(lambda: compare(options), {ChildError: 1})


class ChildError(RuntimeError):
    """A script that this one started has failed."""


def compare(options: argparse.Namespace) -> None:
    """Train missing detectors, measure all, and write the tables."""
    folders = {(name, seed): options.out / f"{slug(name)}_seed{seed}" for name in BUDGETS for seed in options.seeds}
    there = [str(path) for name in ("results.json", "table.md", "plot.png") if (path := options.out / name).exists()]
    if there and not any(folder.exists() for folder in folders.values()):
        raise UsageError(f"{', '.join(there)}: not of these trainings, and would be written over; choose another --out")
    if not options.report_only:
        make_scenes(options)
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(lambda key: train(key[0], key[1], folders[key], options), folders))
    results: Results = {name: {} for name in BUDGETS}
    for seed in options.seeds:
        paths = {name: folders[name, seed] / "best.pth" for name in BUDGETS}
        if all(path.is_file() for path in paths.values()):
            for name, of_seed in measured(paths, options.out / f"measured_seed{seed}.json").items():
                results[name][str(seed)] = of_seed
    if not any(results.values()):
        raise ChildError(f"{options.out}: no seed has all of {', '.join(BUDGETS)} trained; run without --report-only")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    table = "\n".join(table_lines(results))
    (options.out / "table.md").write_text(table + "\n", encoding="utf-8")
    print(table)
    draw(results, options.out / "plot.png")


def make_scenes(options: argparse.Namespace) -> None:
    """Scenes with more crowds than the demo's, in options.data."""
    counts = ["--mu", "3.0", "--sigma", "1.3", "--max-count", "250"]
    sizes = ["--train", str(options.train_images), "--val", "200", "--size", "256"]
    run(["scripts/make_scenes.py", "--out", str(options.data), *sizes, *counts])


def train(name: str, seed: int, folder: Path, options: argparse.Namespace) -> None:
    """One training from the start, or from where it stopped."""
    threads = max((os.cpu_count() or 1) // options.jobs, 1)
    settings = [f"runtime.num_threads={threads}", f"runtime.output_dir={escape_path(folder)}", f"runtime.seed={seed}"]
    settings += [f"data.root={escape_path(options.data)}", f"optim.epochs={options.epochs}"]
    settings += [f"optim.lr_drop_epochs=[{max(options.epochs - 1, 1)}]"]
    settings += ["evaluation.every_epochs=1000", "evaluation.gallery_images=0", *BUDGETS[name]]
    last = folder / "last.pth"
    start = ["--resume", str(last)] if last.is_file() else ["--config", CONFIG]
    print(f"{name}, seed {seed}: {folder}", flush=True)
    run(["main.py", *start, "--set", *settings], quiet=True)


def run(command: Sequence[str], *, quiet: bool = False) -> None:
    """Run a script of this repository in the working directory. Raises ChildError with the end of its output."""
    done = subprocess.run([sys.executable, *command], capture_output=quiet, text=True, check=False)
    if done.returncode:
        said = f": {(done.stderr or done.stdout)[-2000:]}" if quiet else ""
        raise ChildError(f"{' '.join(command)} ended with exit code {done.returncode}{said}")


def measured(paths: dict[str, Path], kept: Path) -> dict[str, Measured]:
    """Values by budget, cached in a file that is rewritten if a checkpoint is newer."""
    if not kept.is_file() or any(kept.stat().st_mtime < path.stat().st_mtime for path in paths.values()):
        kept.write_text(json.dumps(measure(paths), indent=1) + "\n", encoding="utf-8")
    return json.loads(kept.read_text(encoding="utf-8"))


def measure(paths: dict[str, Path]) -> dict[str, Measured]:
    """Measure every validation image alone, on one thread, the detectors in turn, so that slow moments affect them
    all."""
    streams = []
    for path in paths.values():
        checkpoint = load_checkpoint(path)
        settings = ["data.batch_size=1", "runtime.num_threads=1", "runtime.device=cpu"]
        config = read_checkpoint(path, checkpoint.config, settings).evaluated()
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
            num_classes=config.model.num_classes,
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


def table_lines(results: Results) -> Iterator[str]:
    """Markdown: a row per bin and budget, mean over the seeds and their range."""
    yield f"| objects in image | images | budget | {' | '.join(title for title, _ in COLUMNS.values())} |"
    yield "|" + "---|" * (3 + len(COLUMNS))
    for name in SHOWN:
        for budget, seeds in results.items():
            cells = [cell(numbers(seeds, name, column)) for column in COLUMNS]
            images = next(iter(seeds.values()))[name]["images"]
            yield f"| {name} | {images} | {budget} | {' | '.join(cells)} |"


def numbers(seeds: dict[str, Measured], name: str, column: str) -> list[float]:
    """A column's value of a bin for every seed, in the column's unit; none of an empty bin."""
    found = [of_seed[name][column] for of_seed in seeds.values()]
    return [number * COLUMNS[column][1] for number in found if number is not None]


def cell(values: Sequence[float]) -> str:
    """Mean and range."""
    if not values:
        return "-"
    mean = float(np.mean(values))
    return f"{mean:.1f}" if len(values) == 1 else f"{mean:.1f} ({min(values):.1f} to {max(values):.1f})"


def draw(results: Results, path: Path) -> None:
    """A panel per column over the bins; bars are means, lines the range over the seeds."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no plot: matplotlib is not installed (pip install -e '.[plots]')")
        return
    figure = Figure(figsize=(13, 3.4), layout="constrained")
    filled = next(iter(next(iter(results.values())).values()))
    bins = [name for name in SHOWN[1:] if filled[name]["images"]]
    for axes, (column, (title, _)) in zip(figure.subplots(1, len(COLUMNS)), COLUMNS.items(), strict=True):
        for i, (budget, seeds) in enumerate(results.items()):
            found = np.array([numbers(seeds, name, column) for name in bins])
            mean = found.mean(1)
            spread = np.stack([mean - found.min(1), found.max(1) - mean])
            place = np.arange(len(bins)) + 0.27 * (i - 1)
            axes.bar(place, mean, 0.25, yerr=spread, label=budget, color=("#9db4c8", "#4f7ea6", "#d9822b")[i])
        axes.set_xticks(np.arange(len(bins)), bins)
        axes.set_title(title)
        axes.set_xlabel("objects in image")
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper center", ncols=len(results), frameon=False)
    figure.savefig(path, dpi=110)
    print(f"wrote {path}")


def slug(name: str) -> str:
    return name.lower().replace(" ", "_")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs/budgets"), help="folder of the runs (default runs/budgets)")
    add("--data", type=Path, default=Path("data/crowded_scenes"), help="folder of the scenes, made if missing")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default 0 1 2")
    add("--epochs", type=int, default=3, help="of every training (default 3)")
    add("--train-images", type=int, default=500, help="training scenes (default 500)")
    add("--jobs", type=int, default=1, help="trainings side by side, sharing the cores (default 1)")
    add("--report-only", action="store_true", help="train nothing")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
