"""Fault injection, the command behind scripts/chaos.sh: disturb many small runs, compare them with an uninterrupted
one.

    python tests/chaos/experiments.py                       all of them, some 40 minutes on two cores
    python tests/chaos/experiments.py kill damage           some of them
    python tests/chaos/experiments.py --json chaos.json     the figures as data too
    bash scripts/chaos.sh                         the slow tests before them

Weights, optimiser, random numbers, place in the epoch and the metrics log (without times) must be bit-identical. Needs
Linux and no GPU. Exit code 1 if a case failed. Results: docs/reliability.md.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.utils.tensorboard  # once, for all forked processes

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from configs.paths import new_file_argument
from engine.console import guard_console
from ops import tune_allocation
from scripts.benchmarks.harness import Table, machine
from tests.chaos import damage, disk, kill, restart, resume, sigterm, throughput
from tests.chaos.finding import Finding
from tests.chaos.toy import Toy

EXPERIMENTS = {
    "resume": resume,
    "kill": kill,
    "damage": damage,
    "disk": disk,
    "sigterm": sigterm,
    "restart": restart,
    "throughput": throughput,
}
"""Each has a docstring and `measure(toy, options) -> findings`."""


def main(arguments: list[str] | None = None) -> int:
    guard_console()
    tune_allocation()  # torch reads this once, before the first allocation; forked processes inherit it
    options = parse(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)  # before any process is forked
    findings = []
    with tempfile.TemporaryDirectory(prefix="d3q_chaos_") as folder:
        toy = Toy(Path(folder), options.set)
        for name in options.experiments or EXPERIMENTS:
            start = time.monotonic()
            for finding in EXPERIMENTS[name].measure(toy, options):
                finding.figures["took, s"] = round(time.monotonic() - start)
                findings.append(finding)
                print(*finding.row().values(), *finding.failures, sep="\n    ", flush=True)
                start = time.monotonic()
    report(findings, json_file=options.json)
    return int(any(finding.failures for finding in findings))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    listed = "; ".join(f"{name}: {(module.__doc__ or '').splitlines()[0]}" for name, module in EXPERIMENTS.items())
    parser.add_argument("experiments", nargs="*", metavar="EXPERIMENT", help=listed)
    parser.add_argument("--seed", type=int, default=0, help="of random moments and places")
    parser.add_argument("--moments", type=int, default=20, help="kills, and damaged files")
    parser.add_argument("--signals", type=int, default=10, help="SIGTERM to a run and to torchrun, SIGHUP to a run")
    parser.add_argument("--restarts", type=int, default=5, help="kills under torchrun on one machine and on two each")
    parser.add_argument("--turns", type=int, default=10, help="of the throughput experiment")
    parser.add_argument("--steps", type=int, default=64, help="of each of its runs")
    parser.add_argument("--set", nargs="+", default=[], action="extend", metavar="KEY=VALUE", help="for all runs")
    parser.add_argument("--json", type=new_file_argument, help="file for the figures; it must not exist")
    options = parser.parse_args(arguments)
    if unknown := set(options.experiments) - EXPERIMENTS.keys():
        parser.error(f"no such experiment: {', '.join(unknown)}; there are {', '.join(EXPERIMENTS)}")
    return options


def report(findings: list[Finding], *, json_file: Path | None) -> None:
    table = Table("chaos", [finding.row() for finding in findings])
    facts = machine()
    print("", table.markdown(), "", ", ".join(f"{key} {value}" for key, value in facts.items()), sep="\n")
    if json_file is not None:
        content = {"machine": facts, "findings": [vars(finding) for finding in findings]}
        json_file.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
