"""Render the procedural scenes to disk once, as a COCO data set: OUT/{train,val}/*.png, OUT/annotations/*.json.

python scripts/make_scenes.py --out data/scenes --train 500 --val 100 --size 256 --max-count 150
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from functools import partial
from multiprocessing.pool import Pool
from pathlib import Path

from PIL import Image
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from datasets.errors import DataError
from datasets.synthetic.scene import CLASS_NAMES, CountDistribution, Scene, make_scene
from engine.console import guard_console
from scripts.support.coco_writer import CocoWriter, building, is_prepared

_RENDERER = 1
"""Goes up whenever the same parameters give other pictures."""


def main(arguments: list[str] | None = None) -> int:
    guard_console()
    options = parse(arguments)
    try:
        counts = CountDistribution(options.min_count, options.max_count, options.mu, options.sigma)
        make_data_set(
            options.out,
            images={"train": options.train, "val": options.val},
            size=options.size,
            seed=options.seed,
            counts=counts,
            workers=options.workers,
            force=options.force,
        )
    except (DataError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    return 0


def make_data_set(
    out: Path,
    *,
    images: dict[str, int],
    size: int,
    seed: int,
    counts: CountDistribution,
    workers: int,
    force: bool = False,
) -> None:
    """Write the data set, unless `out` already holds this very one.

    images  number of images per split; splits never share a scene, and a longer split begins with a shorter one
    raises  DataError where `out` holds something else
    """
    recipe = {"renderer": _RENDERER, "images": images, "size": size, "seed": seed, "counts": asdict(counts)}
    if is_prepared(out, recipe):
        print(f"{out} already holds this data set; nothing to do")
        return
    with building(out, recipe, force=force) as aside, _start_workers(workers) as pool:
        for number, (split, length) in enumerate(images.items()):
            started = time.perf_counter()
            (aside / split).mkdir()
            render = partial(_render, folder=aside / split, size=size, seed=seed * len(images) + number, counts=counts)
            scenes = pool.imap(render, range(length), chunksize=8) if pool else map(render, range(length))
            writer = CocoWriter(CLASS_NAMES)
            for index, scene in enumerate(_progress(scenes, length, split)):
                writer.add(
                    _file_name(index),
                    size=(size, size),
                    boxes=scene.boxes,
                    labels=scene.labels,
                    notes={"scene": scene.kind},
                )
            writer.write(aside / "annotations" / f"{split}.json")
            print(f"{split}: {writer.statistics()}")
            print(f"rendered in {time.perf_counter() - started:.0f} s", flush=True)
    print(f"wrote {out}")


def _render(index: int, *, folder: Path, size: int, seed: int, counts: CountDistribution) -> Scene:
    scene = make_scene(index=index, size=size, seed=seed, counts=counts)
    Image.fromarray(scene.image).save(folder / _file_name(index))
    return scene


def _file_name(index: int) -> str:
    return f"{index:06d}.png"


def _start_workers(workers: int) -> AbstractContextManager[Pool | None]:
    """Processes for both splits (starting one takes seconds); None renders in this process."""
    return multiprocessing.get_context("spawn").Pool(workers) if workers > 1 else nullcontext()


def _progress(scenes: Iterator[Scene], length: int, split: str) -> Iterator[Scene]:
    """A bar on a terminal, a line for every tenth elsewhere."""
    if sys.stderr.isatty():
        yield from tqdm(scenes, total=length, desc=split, unit="image")
        return
    for done, scene in enumerate(scenes, start=1):
        yield scene
        if done * 10 // length > (done - 1) * 10 // length:
            print(f"{split}: {done}/{length} images", flush=True)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    defaults = CountDistribution()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("data/scenes"), help="folder to write (default data/scenes)")
    add("--train", type=_positive, default=500, help="training images (default 500)")
    add("--val", type=_positive, default=100, help="validation images (default 100)")
    add("--size", type=_positive, default=256, help="side of the images, px (default 256)")
    add("--seed", type=int, default=0, help="another seed gives other scenes (default 0)")
    add("--min-count", type=_positive, default=defaults.min_count, help="objects per image, least (default 1)")
    add("--max-count", type=_positive, default=defaults.max_count, help="objects per image, most (default 2000)")
    add("--mu", type=float, default=defaults.mu, help=f"mean log count (default {defaults.mu})")
    add("--sigma", type=float, default=defaults.sigma, help=f"its standard deviation (default {defaults.sigma})")
    add("--workers", type=_positive, default=2, help="processes (default 2)")
    add("--force", action="store_true", help="replace a data set made with other parameters")
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value


if __name__ == "__main__":
    sys.exit(main())
