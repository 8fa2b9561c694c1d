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
    python scripts/benchmark.py analysis                 error types and causes at AI-TOD's density
    python scripts/benchmark.py predict --resume X --data D   a mosaic in tiles, against its images alone
    python scripts/benchmark.py ops --json ops.json      the table as data too

Run it from the repository's root on an otherwise idle machine. docs/benchmarks.md has results.
"""

import argparse
import sys
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs.paths import new_file_argument
from engine.commands.exit_codes import exit_code
from engine.console import guard_console

PARTS = {
    "ops": "operator",
    "model": "model",
    "train": "train",
    "grow": "growth",
    "detectors": "detectors",
    "memory": "memory",
    "match": "match",
    "targets": "targets",
    "data": "data",
    "eval": "evaluation",
    "analysis": "analysis",
    "predict": "prediction",
}
"""Modules of scripts/benchmarks: each has a docstring, `add_options(parser)` and `measure(options) -> tables`."""


def main(arguments: list[str] | None = None) -> int:
    guard_console()
    options = parse(sys.argv[1:] if arguments is None else arguments)
    return exit_code(lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """Measure the part, and print and write its tables."""
    import torch

    from ops import tune_allocation
    from scripts.benchmarks import harness

    tune_allocation()
    torch.set_num_threads(options.threads or torch.get_num_threads())
    options.threads = torch.get_num_threads()
    harness.report(options.part, options.measure(options), json_file=options.json)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Only the part that is asked for is imported: torch takes seconds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(
        dest="part", required=True, metavar="PART", help="one of the above; PART --help lists its options"
    )
    for name, module_name in PARTS.items():
        if name not in arguments[:1]:
            parts.add_parser(name)
            continue
        module = import_module(f"scripts.benchmarks.{module_name}")
        part = parts.add_parser(name, description=module.__doc__)
        part.add_argument("--threads", type=int, default=0, help="of torch, on CPUs (default: torch's choice)")
        part.add_argument("--repeats", type=int, default=5, help="of each timed piece; medians are reported")
        part.add_argument("--json", type=new_file_argument, help="file for the figures; it must not exist")
        module.add_options(part)
        part.set_defaults(measure=module.measure)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
