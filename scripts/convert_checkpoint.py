"""Convert checkpoints of other projects to checkpoints of this project, and back to mmdetection.

python scripts/convert_checkpoint.py FILE --from mmdetection --config configs/dino_d3q_aitodv2.yaml --out weights/x.pth
python scripts/convert_checkpoint.py runs/x/best.pth --to mmdetection --out x_mmdetection.pth

FILE comes from mmdetection 3 or the published D3Q (mmdetection), from the original DINO or Deformable DETR (original),
or holds a backbone (torchvision). The result works with `main.py --eval --resume` and as `init_from`.
Details: docs/checkpoints.md.

Exit codes: 0 done, 2 usage or config, 3 annotations, 4 the file cannot be read or does not fit. Only 0 writes a file.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs.paths import path_argument
from engine.commands.exit_codes import UsageError, exit_code
from engine.console import guard_console


def main(arguments: list[str] | None = None) -> int:
    guard_console()
    options = parse_arguments(arguments)
    return exit_code(lambda: run(options))


def run(options: argparse.Namespace) -> None:
    check_usage(options)
    from scripts.support.conversion import convert

    convert(options)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("file", type=path_argument, help="checkpoint to convert")
    direction = parser.add_mutually_exclusive_group(required=True)
    direction.add_argument("--from", dest="source", choices=["mmdetection", "original", "torchvision"])
    direction.add_argument("--to", dest="target", choices=["mmdetection"])
    parser.add_argument("--out", type=path_argument, required=True, help="file to write; it must not exist")
    parser.add_argument(
        "--config", type=path_argument, help="with --from: the experiment whose detector takes the weights"
    )
    parser.add_argument("--set", nargs="+", default=[], action="extend", metavar="KEY=VALUE", help="other values")
    names = parser.add_mutually_exclusive_group()
    names.add_argument("--categories", metavar="A,B,...", help="class names in the order of the labels; coco91: COCO's")
    names.add_argument(
        "--annotations", type=path_argument, metavar="JSON", help="COCO file to take the class names from"
    )
    parser.add_argument(
        "--reset-head",
        action="store_true",
        help="tensors that are missing or of another shape keep their initial values, such as other classes' heads",
    )
    return parser.parse_args(arguments)


def check_usage(options: argparse.Namespace) -> None:
    if options.out.exists():
        raise UsageError(f"--out {options.out} exists; remove it or choose another name")
    if options.source is not None and options.config is None:
        raise UsageError("--from needs --config FILE: the experiment whose detector takes the weights")
    only_from = [options.config, *options.set, options.categories, options.annotations, options.reset_head or None]
    if options.target is not None and any(option is not None for option in only_from):
        raise UsageError("--to takes the checkpoint's own config and classes; give no option but --out")


if __name__ == "__main__":
    sys.exit(main())
