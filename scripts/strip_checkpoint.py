"""Keep only what evaluation and prediction need of a checkpoint: the weights, in half precision.

    python scripts/strip_checkpoint.py runs/X/best.pth --out x.pth
    python scripts/strip_checkpoint.py runs/X/best.pth --out x.pth --float32 --set data.root=data/mine

A run that keeps an average (optim.ema_decay) gives that. Whole numbers stay as they are. Prints the largest relative
change of a weight. The result starts new runs (init_from), but no run can be resumed from it.

Exit codes: 0 done, 2 usage or config, 4 checkpoint.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from configs.paths import new_file_argument, path_argument
from engine.commands.exit_codes import exit_code
from engine.console import guard_console


def main(arguments: Sequence[str] | None = None) -> int:
    guard_console()
    options = parse(arguments)
    return exit_code(lambda: strip(options))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("checkpoint", type=path_argument, metavar="CHECKPOINT")
    parser.add_argument("--out", type=new_file_argument, required=True, metavar="FILE", help="must not exist")
    parser.add_argument("--float32", action="store_true", help="keep the precision")
    parser.add_argument("--set", nargs="+", default=[], action="extend", metavar="KEY=VALUE", help="change its config")
    return parser.parse_args(arguments)


def strip(options: argparse.Namespace) -> None:
    import torch

    from configs.loader import dump_config
    from engine.checkpoints.checkpoint import load_checkpoint, save_checkpoint, weights_checkpoint
    from engine.commands.resolve import read_checkpoint

    whole = load_checkpoint(options.checkpoint)
    config = read_checkpoint(options.checkpoint, whole.config, options.set).evaluated()
    weights, largest = {}, 0.0
    for name, value in whole.best_weights.items():
        narrow = value.dtype == torch.float32 and not options.float32
        weights[name] = value.half() if narrow else value
        if narrow and value.numel():
            change = (weights[name].float() - value).abs().max() / value.abs().max().clamp(min=1e-12)
            largest = max(largest, float(change))
    stripped = weights_checkpoint(
        weights,
        config=dump_config(config),
        categories=whole.categories,
        category_ids=whole.category_ids,
        resize_factor=whole.resize_factor,
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(options.out, stripped)
    size = options.out.stat().st_size / 1e6
    print(f"{options.out}: {size:.1f} MB; largest change of a weight {largest:.1e} of its tensor's largest")


if __name__ == "__main__":
    sys.exit(main())
