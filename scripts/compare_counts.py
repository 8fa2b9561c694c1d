"""Compare losses of the density map: what the count gains, and what the detector gains or loses.

    python scripts/compare_counts.py --jobs 2                                          six trainings on scenes
    python scripts/compare_counts.py --config configs/dino_d3q_neon_trees.yaml --out runs/counts_trees --jobs 2
    python scripts/compare_counts.py --report-only                                     the tables of what is done so far

Run it from the repository's root, with the data of the config and the weights of scripts/fetch_weights.py in place.
Every training has its own run folder: the script can be repeated; it resumes unfinished trainings and skips finished
ones. Then it measures the detectors in turn on each image of the validation set, once with the config's queries per
object and once with as many that all have the mean queries of the first loss. OUT gets results.json, table.md and, if
matplotlib is installed, plot.png.
"""

import argparse
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs.loader import load_config
from engine.commands.exit_codes import UsageError, exit_code
from engine.console import guard_console
from scripts.support.comparison import (
    ChildError,
    Measured,
    Results,
    measure_runs,
    numbers,
    run_folders,
    table_lines,
    train,
    write_results,
)

LOSSES = {
    "published": ["criterion.count_weight=0", "criterion.density_weight=10", "fidelity.density_merge=max"],
    "count loss": ["criterion.count_weight=1", "criterion.density_weight=3", "fidelity.density_merge=sum"],
}
BINS = ("1-10", "11-50", "51-100", "101-500")
COLUMNS = {
    "average_precision": ("AP, %", 100),
    "average_precision_50": ("AP50, %", 100),
    "very_tiny_precision": ("AP_vt, %", 100),
    "average_recall": ("AR, %", 100),
    "count_error": ("count MAE", 1),
    "count_bias": ("count bias", 1),
    "coverage": ("coverage, %", 100),
    "mean_queries": ("queries", 1),
    "milliseconds": ("ms per image", 1),
}
OF_BINS = {key: COLUMNS[key] for key in ("average_recall", "count_error", "count_bias", "coverage", "mean_queries")}
EQUAL = "equal_queries"


def main(arguments: list[str] | None = None) -> int:
    guard_console()
    options = parse(arguments)
    return exit_code(lambda: compare(options), {ChildError: 1})


def compare(options: argparse.Namespace) -> None:
    """Train missing detectors, measure all, and write the tables."""
    budget = load_config(options.config, options.set).model.d3q
    if budget is None:
        raise UsageError(f"{options.config}: model.d3q is null; a detector without a density map has no count")
    folders = run_folders(options.out, list(LOSSES), options.seeds)
    if not options.report_only:
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(lambda key: train_loss(key[0], key[1], folders[key], options), folders))
    own = measure_runs(folders, options.out)
    first = own[next(iter(LOSSES))]
    settings = {}
    for name, seeds in own.items():
        for seed, found in seeds.items():
            factor = budget.queries_per_object * mean_queries(first[seed]) / mean_queries(found)
            settings[name, int(seed)] = [f"model.d3q.queries_per_object={factor:.3g}"]
    equal = measure_runs(folders, options.out, name=EQUAL, settings=settings)
    write_results({"own": own, EQUAL: equal}, options.out, report(own, equal))
    draw(own, options.out / "plot.png")


def train_loss(name: str, seed: int, folder: Path, options: argparse.Namespace) -> None:
    train(folder, str(options.config), [*options.set, *LOSSES[name], f"runtime.seed={seed}"], jobs=options.jobs)


def mean_queries(found: Measured) -> float:
    return found["all"]["mean_queries"] or 1.0


def report(own: Results, equal: Results) -> Iterator[str]:
    """Markdown: all images, all images at equal queries, and the count bins."""
    yield from table_lines(own, COLUMNS, setting="loss")
    yield "\nAll with the mean queries of the first:\n"
    yield from table_lines(equal, COLUMNS, setting="loss")
    yield "\nBy objects in the image:\n"
    filled = next(iter(next(iter(own.values())).values()))
    yield from table_lines(own, OF_BINS, setting="loss", bins=[name for name in BINS if filled[name]["images"]])


def draw(results: Results, path: Path) -> None:
    """AP over the count error, a point per training."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("no plot: matplotlib is not installed (pip install -e '.[plots]')")
        return
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for (name, seeds), colour in zip(results.items(), ("#7f8fa3", "#d9822b"), strict=True):
        x, y = (numbers(seeds, "all", column, COLUMNS) for column in ("count_error", "average_precision"))
        axes.scatter(x, y, s=36, color=colour, alpha=0.6)
        axes.scatter(np.mean(x), np.mean(y), s=110, color=colour, edgecolor="white", label=name)
    axes.set(xlabel="count error, objects (MAE)", ylabel="AP, %")
    axes.set_xlim(left=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, title="small: one seed, large: their mean")
    figure.savefig(path, dpi=110)
    print(f"wrote {path}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--config", type=Path, default=Path("configs/dino_d3q_scenes.yaml"), help="default: that of the demo")
    add("--out", type=Path, default=Path("runs/counts"), help="folder of the runs (default runs/counts)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default 0 1 2")
    add("--set", nargs="+", default=[], action="extend", metavar="KEY=VALUE", help="change the config of all trainings")
    add("--jobs", type=int, default=1, help="trainings side by side, sharing the cores (default 1)")
    add("--report-only", action="store_true", help="train nothing")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
