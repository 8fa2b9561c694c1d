"""Fit the query budget of a trained D3Q detector: the fewest queries per object that cover most images.

    python scripts/calibrate_queries.py --resume runs/X/best.pth                     99 % of the validation images
    python scripts/calibrate_queries.py --resume runs/X/best.pth --coverage 0.95 --min-queries 50
    python scripts/calibrate_queries.py --resume runs/X/best.pth --set data.root=Y   on other data, same classes

An image is covered when it gets at least as many queries as it has objects. Estimated counts do not depend on the
budget, so one pass over the images is enough to find the smallest model.d3q.queries_per_object, a multiple of 0.05 from
1 on, that reaches the coverage. model.d3q.min_queries is kept, or given, or fitted too (--min-queries fit: the pair
with the fewest queries on average). The ceiling is model.d3q.max_queries, or else model.num_queries, the length of the
trained query table.

Two more passes show the effect by object count: AP, AR, queries and coverage with the checkpoint's budget, with the
fitted one, and with the fitted one on true instead of estimated counts. Coverage is necessary for recall, not
sufficient: if the proposals are ranked badly, queries beyond the number of objects still find objects. Compare AP and
AR before you use fewer queries.

Coverage fitted and measured on the same images is slightly optimistic: if val is the test set, name another split by
--set data.val.annotations=... data.val.images=...

Exit codes: those of main.py, and 7: no budget reaches the coverage; nothing is written.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs.paths import new_file_argument, path_argument
from engine.commands.exit_codes import exit_code
from engine.console import guard_console
from engine.evaluation.calibration import UnreachableCoverageError

if TYPE_CHECKING:
    from engine.evaluation.by_count import BinResult

FIT = "fit"


def main(arguments: list[str] | None = None) -> int:
    guard_console()
    options = parse(arguments)
    return exit_code(lambda: calibrate_queries(options), {UnreachableCoverageError: 7})


def calibrate_queries(options: argparse.Namespace) -> dict[str, dict[str, BinResult]]:
    """Fit, measure, print and write; returns the results by setting and count bin."""
    from scripts.support import query_calibration

    return query_calibration.calibrate_queries(options)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--resume", type=path_argument, required=True, metavar="CHECKPOINT", help="a trained D3Q detector")
    add("--set", nargs="+", default=[], action="extend", metavar="KEY=VALUE", help="other values than the checkpoint's")
    add("--coverage", type=_share, default=0.99, help="wanted share of covered images (default 0.99)")
    add("--min-queries", type=_positive_or_fit, help="least of every image, or fit (default: the checkpoint's)")
    out = "fragment to write; it must not exist (default: calibrated_queries.yaml beside the checkpoint, -2, -3, ...)"
    add("--out", type=new_file_argument, help=out)
    return parser.parse_args(arguments)


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not in (0, 1]")
    return value


def _positive_or_fit(text: str) -> int | str:
    if text == FIT:
        return FIT
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is neither a number from 1 on nor {FIT}")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
