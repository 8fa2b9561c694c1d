"""Test and measure on a GPU: build, checks, tests, figures, an epoch, exact resume; a folder with a summary to post.

    bash scripts/gpu_day.sh [options]

After a failed step the next one runs. Each has a time limit, and a log in the folder; the summary is rewritten after
every step. Exit code 0 if no step failed, 1 if some did, 2 without a GPU. docs/gpu.md lists the steps.
"""

import argparse
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from engine.console import guard_console
from scripts.gpu_steps.plan import Day, first_step, steps
from scripts.gpu_steps.step import Result, Step, run_step
from scripts.gpu_steps.summary import counted, summarise

ROOT = Path(__file__).resolve().parents[2]
SUMMARY = "summary.md"


def main(arguments: list[str] | None = None) -> int:
    guard_console()
    options = parse(arguments)
    deadline = time.monotonic() + 60 * options.minutes
    if options.rehearse:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the same everywhere
        os.environ["OMP_NUM_THREADS"] = "1"
    folder = (options.origin / options.out).resolve()
    if (folder / SUMMARY).exists():
        print(f"error: {folder} holds an earlier day; name another folder with --out", file=sys.stderr)
        return 2
    day = Day(folder=folder, work=folder / "work", root=ROOT, rehearsal=options.rehearse)
    day.work.mkdir(parents=True, exist_ok=True)
    with _interruptible():
        try:
            results = _run_all(day, options, deadline)
        finally:
            shutil.rmtree(day.work, ignore_errors=True)
    print(f"\n{counted(results)}\nsummary: {folder / SUMMARY}")
    if results[0].outcome == "passed" and not (day.gpus or options.rehearse):
        print("error: no GPU is visible; --rehearse runs the steps without one", file=sys.stderr)
        return 2
    return int(any(result.outcome == "failed" for result in results))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="gpu_day.sh",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--minutes", type=float, default=20.0, help="for all steps (default 20)")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="names of steps, or their first letters")
    parser.add_argument("--out", type=Path, help="folder to write (default runs/gpu_day_DATE_TIME)")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on a CPU; what needs a GPU is not run")
    parser.add_argument("--from", dest="origin", type=Path, default=Path(), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.shown = shlex.join(["bash", "scripts/gpu_day.sh", *_without_origin(arguments or sys.argv[1:])])
    if options.out is None:
        options.out = ROOT / f"runs/gpu_day_{datetime.now():%Y%m%d_%H%M%S}"
    return options


def _without_origin(arguments: list[str]) -> list[str]:
    return arguments[2:] if arguments[:1] == ["--from"] else arguments


def _run_all(day: Day, options: argparse.Namespace, deadline: float) -> list[Result]:
    """Run the steps and write the summary after each; an interruption ends the current step and the program."""
    results: list[Result] = []
    date = f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}"
    for step in _chosen(day, options.only):
        print(f"{step.name} ...", end=" ", flush=True)
        result = run_step(step, day.folder, root=ROOT, seconds_left=deadline - time.monotonic())
        results.append(result)
        print(f"{result.outcome} ({result.seconds:.0f} s)", result.reason, result.figures.line, flush=True)
        facts = day.facts if results[0].outcome == "passed" else {}
        what = "A rehearsal of the first day on a GPU" if day.rehearsal else "A day on a GPU"
        title = f"{what}: {', '.join(gpu.partition(',')[0] for gpu in facts.get('gpus', [])) or 'no GPU'}"
        text = summarise(results, facts, title=title, command=options.shown, date=date)
        (day.folder / SUMMARY).write_text(text, encoding="utf-8")
    return results


def _chosen(day: Day, only: list[str] | None) -> Iterator[Step]:
    yield first_step(day)
    if not (day.folder / "machine.json").is_file() or not (day.gpus or day.rehearsal):
        return
    for step in steps(day):
        if only is None or any(step.name.startswith(name) for name in only):
            yield step


@contextmanager
def _interruptible() -> Iterator[None]:
    """Handle SIGTERM, and SIGHUP unless ignored, like Ctrl-C: end the current step and keep the results."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    heeded = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) != signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\ninterrupted; the summary has the results so far", file=sys.stderr)
        sys.exit(130)
