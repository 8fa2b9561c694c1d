"""Compare fixed and dynamic query budgets: train both on procedural scenes, and measure them by object count.

    python scripts/compare_budgets.py --out runs/budgets --jobs 2        nine trainings: three budgets, three seeds
    python scripts/compare_budgets.py --out runs/budgets --report-only   the table of what is done so far

Run it from the repository's root, after scripts/fetch_weights.py. Every training has its own run folder: the script can
be repeated; it resumes unfinished trainings and skips finished ones. Then it measures the detectors in turn on each
image: AP, AR, queries and milliseconds per count bin, mean and range over the seeds. OUT gets results.json, table.md
and, if matplotlib is installed, plot.png.
"""

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs.paths import escape_path
from engine.commands.exit_codes import exit_code
from engine.console import guard_console
from scripts.support.comparison import (
    ChildError,
    Results,
    measure_runs,
    numbers,
    run,
    run_folders,
    table_lines,
    train,
    write_results,
)

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


def main(arguments: list[str] | None = None) -> int:
    guard_console()
    options = parse(arguments)
    return exit_code(lambda: compare(options), {ChildError: 1})


def compare(options: argparse.Namespace) -> None:
    """Train missing detectors, measure all, and write the tables."""
    folders = run_folders(options.out, list(BUDGETS), options.seeds)
    if not options.report_only:
        make_scenes(options)
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(lambda key: train_budget(key[0], key[1], folders[key], options), folders))
    results = measure_runs(folders, options.out)
    write_results(results, options.out, table_lines(results, COLUMNS, setting="budget", bins=SHOWN))
    draw(results, options.out / "plot.png")


def make_scenes(options: argparse.Namespace) -> None:
    """Scenes with more crowds than the demo's, in options.data."""
    counts = ["--mu", "3.0", "--sigma", "1.3", "--max-count", "250"]
    sizes = ["--train", str(options.train_images), "--val", "200", "--size", "256"]
    run(["scripts/make_scenes.py", "--out", str(options.data), *sizes, *counts])


def train_budget(name: str, seed: int, folder: Path, options: argparse.Namespace) -> None:
    settings = [f"runtime.seed={seed}", f"data.root={escape_path(options.data)}", f"optim.epochs={options.epochs}"]
    before_last = max(options.epochs - 1, 1)
    settings += [f"optim.lr_drop_epochs=[{before_last}]", f"data.mosaic_epochs={before_last}", *BUDGETS[name]]
    train(folder, CONFIG, settings, jobs=options.jobs)


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
            found = np.array([numbers(seeds, name, column, COLUMNS) for name in bins])
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
