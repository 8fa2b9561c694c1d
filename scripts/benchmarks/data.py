"""Data: reading images, each step by Pillow and by torchvision, and opening a large annotation file.

One process reads on one thread, like one loader worker. A sample is decoded, flipped and normalised, with its boxes, at
the file's own size; "in memory" is data.cache_images. The simulated file has 20 objects per image; "all processes" is
the memory that opening it adds to the main process and the workers together, after they have fetched samples:
proportional set sizes, each shared page counted once. Twenty times AI-TOD: --images 500000.
"""

import argparse
import itertools
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import functional as F

from datasets.coco import CocoDetection
from datasets.images.decode import ImageFile, read_image
from datasets.synthetic.scene import make_scene
from datasets.transforms import Compose, Normalize, RandomFlip, Resize, Sample, Transform
from scripts.benchmarks.harness import Cell, Table, median, peak_resident_mebibytes, seconds_alternately

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
OBJECTS_PER_IMAGE = 20
FETCHED = 2000
"""Samples per worker before memory is measured."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--side", type=int, default=800, help="of the images that are read, px")
    parser.add_argument("--images", type=int, default=50_000, help="in the simulated annotation file")
    parser.add_argument("--workers", type=int, default=4, help="that share the annotations")


def measure(options: argparse.Namespace) -> list[Table]:
    torch.set_num_threads(1)
    with TemporaryDirectory() as name:
        folder = Path(name)
        return [
            Table(f"one {options.side}x{options.side} image", list(_step_rows(folder, options))),
            Table("opening an annotation file", list(_opening_rows(folder, options))),
        ]


def _step_rows(folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Cell]]:
    from torchvision.io import ImageReadMode, decode_image, read_file  # deprecated there: no other part may need it

    side, smaller = options.side, options.side * 4 // 5
    picture = Image.fromarray(make_scene(index=3, size=side).image)
    for suffix in ("png", "jpg"):
        picture.save(folder / f"a.{suffix}", quality=90)
    tensor = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()
    sample = Sample(picture, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    rng = np.random.default_rng(0)

    def pillow(suffix: str) -> Image.Image:
        return read_image(ImageFile(folder / f"a.{suffix}", size=(side, side), entry=""))

    def torchvision(suffix: str) -> torch.Tensor:
        return decode_image(read_file(str(folder / f"a.{suffix}")), ImageReadMode.RGB)

    steps: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "decode PNG": (partial(pillow, "png"), partial(torchvision, "png")),
        "decode JPEG": (partial(pillow, "jpg"), partial(torchvision, "jpg")),
        f"scale to {smaller} px": (
            partial(Resize(size=(smaller, smaller)), sample, rng),
            partial(F.resize, tensor, [smaller, smaller], antialias=True),
        ),
        "flip": (partial(RandomFlip("horizontal", p=1), sample, rng), partial(F.horizontal_flip, tensor)),
        "normalise": (
            partial(Normalize(mean=MEAN, std=STD), sample, rng),
            lambda: F.normalize(F.to_dtype(tensor, torch.float32, scale=True), list(MEAN), list(STD)),
        ),
    }
    samples = {
        "sample, PNG": _single(folder, "png", side),
        "sample, JPEG": _single(folder, "jpg", side),
        "sample, in memory": _single(folder, "png", side),
    }
    samples["sample, in memory"].cache_images(threads=1)
    work = {f"{name} {library}": run for name, runs in steps.items() for library, run in enumerate(runs)}
    fetch = {name: partial(dataset.__getitem__, 0) for name, dataset in samples.items()}
    seconds = {name: median(v) for name, v in seconds_alternately(work | fetch, repeats=options.repeats).items()}
    for name in steps:
        ours, theirs = seconds[f"{name} 0"], seconds[f"{name} 1"]
        yield {
            "step": name,
            "here, images/s": 1 / ours,
            "torchvision, images/s": 1 / theirs,
            "time here / torchvision": ours / theirs,
        }
    for name in samples:
        yield {"step": name, "here, images/s": 1 / seconds[name]}


def _single(folder: Path, suffix: str, side: int) -> CocoDetection:
    """A data set of one image with one object."""
    box = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}
    image = {"id": 1, "file_name": f"a.{suffix}", "height": side, "width": side}
    file = folder / f"{suffix}.json"
    file.write_text(json.dumps({"images": [image], "annotations": [box], "categories": [{"id": 1, "name": "a"}]}))
    steps: list[Transform] = [Resize(size=(side, side)), RandomFlip("horizontal", p=0.5), Normalize(mean=MEAN, std=STD)]
    return CocoDetection(annotations=file, images_root=folder, transforms=Compose(steps), training=True)


class _Blank(CocoDetection):
    """Reads no image, as only annotations are measured."""

    def read_image(self, index: int) -> Image.Image:
        return Image.new("RGB", (8, 8))


def _opening_rows(folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Cell]]:
    small, large = folder / "small.json", folder / "large.json"
    write_annotations(small, images=100)
    write_annotations(large, images=options.images)
    opened: list[_Blank] = []
    seconds = []

    def open_it() -> None:
        start = time.process_time()
        opened.append(_open(large))
        seconds.append(time.process_time() - start)

    base = _shared_mebibytes(_open(small), workers=options.workers)
    peak = peak_resident_mebibytes(open_it)
    everywhere = _shared_mebibytes(opened[0], workers=options.workers)
    yield {
        "images": options.images,
        "objects": options.images * OBJECTS_PER_IMAGE,
        "file, MiB": large.stat().st_size / 2**20,
        "CPU seconds": seconds[0],
        "peak while opening, MiB": peak,
        f"all processes, main and {options.workers} workers, MiB": everywhere - base,
        "of these before opening, MiB": base,
    }


def _open(file: Path) -> _Blank:
    transforms = Compose([Normalize(mean=MEAN, std=STD)])
    return _Blank(annotations=file, images_root=file.parent, transforms=transforms, training=True)


def _shared_mebibytes(dataset: CocoDetection, *, workers: int) -> float:
    """Memory of this process and of its workers, after each has fetched FETCHED samples."""
    order = torch.randint(len(dataset), (FETCHED * workers,), generator=torch.Generator().manual_seed(0)).tolist()
    loader = DataLoader(
        dataset, sampler=order, batch_size=50, num_workers=workers, collate_fn=len, multiprocessing_context="fork"
    )
    batches = iter(loader)
    for _ in itertools.islice(batches, len(loader) - workers):  # the last ones later: a worker ends after its last
        pass
    processes = [os.getpid(), *(child.pid for child in multiprocessing.active_children())]
    return sum(_proportional_kibibytes(process) for process in processes if process is not None) / 1024


def _proportional_kibibytes(process: int) -> int:
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Pss:")).split()[1])


def write_annotations(file: Path, *, images: int) -> None:
    """Write a COCO file of OBJECTS_PER_IMAGE random boxes per image, in random order, with the categories last."""
    rng = np.random.default_rng(0)
    owners = rng.permutation(np.repeat(np.arange(1, images + 1), OBJECTS_PER_IMAGE))
    with file.open("w", encoding="utf-8") as out:
        out.write('{"images": [')
        for i in range(1, images + 1):
            entry = f'{{"id": {i}, "file_name": "part_{i % 100}/scene_{i:07d}.png", "height": 800, "width": 800}}'
            out.write(f"{', ' if i > 1 else ''}{entry}")
        out.write('], "annotations": [')
        for number, owner in enumerate(owners.tolist()):
            if number % 10_000 == 0:
                boxes = rng.integers((0, 0, 200, 200), (78_000, 78_000, 2000, 2000), (10_000, 4)) / 100
                labels, rows = rng.integers(1, 9, 10_000).tolist(), boxes.tolist()
            box = rows[number % 10_000]
            out.write(
                f'{", " if number else ""}{{"id": {number + 1}, "image_id": {owner}, "category_id": '
                f'{labels[number % 10_000]}, "bbox": {box}, "area": {box[2] * box[3]:.4f}, "iscrowd": 0}}'
            )
        out.write('], "categories": ')
        out.write(json.dumps([{"id": k, "name": f"class {k}"} for k in range(1, 9)]) + "}")
