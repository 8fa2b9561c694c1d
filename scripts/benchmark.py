"""Benchmark time and memory of each part, together with its baseline, in one run.

    python scripts/benchmark.py ops                      deformable attention: every backend, against grid_sample
    python scripts/benchmark.py model                    a detector's inference, part by part
    python scripts/benchmark.py train                    a training step
    python scripts/benchmark.py grow                     both, by queries, image side, batch and objects
    python scripts/benchmark.py detectors                training steps of all detectors, by precision and batch
    python scripts/benchmark.py memory                   peak memory of a training step, predicted and measured
    python scripts/benchmark.py match                    matching, against one published assigner call per layer
    python scripts/benchmark.py targets                  density targets, against the published loop
    python scripts/benchmark.py data                     reading images, and a large annotation file with its workers
    python scripts/benchmark.py eval                     the metrics at AI-TOD's density, against pycocotools
    python scripts/benchmark.py predict --resume X --data D   a mosaic in tiles, against its images alone
    python scripts/benchmark.py ops --json ops.json      the table as data too

Run it from the repository's root on an otherwise idle machine. docs/benchmarks.md has results.
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs.paths import new_file_argument
from engine.console import guard_console
from ops import tune_allocation
from scripts.benchmarks import (
    data,
    detectors,
    evaluation,
    growth,
    harness,
    match,
    memory,
    model,
    operator,
    prediction,
    targets,
    train,
)

PARTS = {
    "ops": operator,
    "model": model,
    "train": train,
    "grow": growth,
    "detectors": detectors,
    "memory": memory,
    "match": match,
    "targets": targets,
    "data": data,
    "eval": evaluation,
    "predict": prediction,
}
"""Each has a docstring, `add_options(parser)` and `measure(options) -> tables`."""


def main(arguments: list[str] | None = None) -> int:
    guard_console()
    tune_allocation()
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    harness.report(options.part, options.measure(options), json_file=options.json)
    return 0


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    for name, module in PARTS.items():
        summary = (module.__doc__ or "").splitlines()[0]
        part = parts.add_parser(name, help=summary, description=module.__doc__)
        part.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch, on CPUs")
        part.add_argument("--repeats", type=int, default=5, help="of each timed piece; medians are reported")
        part.add_argument("--json", type=new_file_argument, help="file for the figures; it must not exist")
        module.add_options(part)
        part.set_defaults(measure=module.measure)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
