"""Exact resume: a run stopped in its second epoch and resumed must end bit-identical to an uninterrupted one.

python -m scripts.gpu_steps.resume FOLDER [--device cuda] [--processes 2]

The toy of tests/chaos with head widths that the compiled kernels support, and runtime.deterministic. On GPUs a second
uninterrupted run shows whether the device is deterministic at all. Exit code 1 if anything differs.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from engine.checkpoints.checkpoint import load_checkpoint
from engine.console import guard_console
from ops import tune_allocation
from tests.chaos.launch import Run
from tests.chaos.resume import terminate_self
from tests.chaos.toy import BATCHES, Toy, differences
from tests.support.hooks import at_step

WIDE_HEADS = ["model.hidden_dim=64", "model.neck.num_groups=8"]
STOPPED = 75


def main(arguments: list[str] | None = None) -> int:
    guard_console()
    tune_allocation()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for data and runs")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--processes", type=int, default=1, help="each with a GPU of its own, where they are on GPUs")
    options = parser.parse_args(arguments)
    options.folder.mkdir(parents=True, exist_ok=True)
    settings = [*WIDE_HEADS, f"runtime.device={options.device}", "runtime.deterministic=true"]
    toy = Toy(options.folder, settings)
    runs = {"repeated": repeat} if options.device == "cuda" else {}
    runs["stopped and resumed"] = stop_and_resume
    found = {name: run(toy, options.processes) for name, run in runs.items()}
    uninterrupted = toy.uninterrupted(options.processes)
    print("; ".join(f"{name}: {_verdict(folder, uninterrupted)}" for name, folder in found.items()))
    return int(any(differences(folder, uninterrupted) for folder in found.values()))


def repeat(toy: Toy, ranks: int) -> Path:
    """The folder of another uninterrupted run."""
    folder = toy.folder("again")
    Run(toy.begin(folder, ranks=ranks), log=folder.with_suffix(".txt"), ranks=ranks).expect(0)
    return folder


def stop_and_resume(toy: Toy, ranks: int) -> Path:
    """The folder of a run that was stopped in its second epoch and resumed."""
    folder = toy.folder("stopped")
    hook = partial(at_step, BATCHES + 2, terminate_self)
    Run(toy.begin(folder, ranks=ranks), log=folder.with_suffix(".txt"), ranks=ranks, hook=hook).expect(STOPPED)
    Run(toy.resume(folder, ranks=ranks), log=folder.with_suffix(".end.txt"), ranks=ranks).expect(0)
    return folder


def _verdict(folder: Path, uninterrupted: Path) -> str:
    different = differences(folder, uninterrupted)
    if not different:
        return "the same bits"
    ours, theirs = (load_checkpoint(each / "last.pth").model for each in (folder, uninterrupted))
    largest = max(float((ours[name].double() - theirs[name].double()).abs().max()) for name in theirs)
    return f"different {', '.join(different)}; weights by up to {largest:.1e}"


if __name__ == "__main__":
    sys.exit(main())
