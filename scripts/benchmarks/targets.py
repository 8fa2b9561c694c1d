"""Density targets: all objects of a batch at once, against the published loop over objects.

One 800x800 image, a map of 200x200 cells, objects of 6 to 30 pixels. The loop is a reimplementation of the published
one (docs/fidelity.md): a kernel per object, merged into the map by maximum.
"""

import argparse
from functools import partial

import torch
from torch import Tensor

from d3q import density_target
from d3q.density_loss import MIN_OVERLAP
from scripts.benchmarks.harness import Table, median, seconds_alternately

IMAGE, CELLS = (800, 800), (200, 200)
SMALLEST, LARGEST = 6.0, 30.0


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--objects", type=int, nargs="+", default=[20, 300, 1500])


def measure(options: argparse.Namespace) -> list[Table]:
    table = Table("density targets of one 800x800 image, stride 4")
    for count in options.objects:
        boxes = make_boxes(count)
        work = {
            "loop": partial(target_by_loop, boxes, CELLS, IMAGE),
            "vectorised": partial(density_target, boxes, CELLS, IMAGE),
        }
        difference = float((work["loop"]() - work["vectorised"]()).abs().max())
        found = {name: 1e3 * median(v) for name, v in seconds_alternately(work, repeats=options.repeats).items()}
        table.rows.append(
            {
                "objects": count,
                "loop, ms": found["loop"],
                "vectorised, ms": found["vectorised"],
                "times faster": found["loop"] / found["vectorised"],
                "largest difference": difference,
            }
        )
    return [table]


def make_boxes(count: int) -> Tensor:
    """(N, 4) xyxy pixels, inside the image."""
    generator = torch.Generator().manual_seed(0)
    sides = SMALLEST + (LARGEST - SMALLEST) * torch.rand(count, 2, generator=generator)
    corner = torch.rand(count, 2, generator=generator) * (torch.tensor(IMAGE).flip(0) - sides)
    return torch.cat([corner, corner + sides], dim=1)


def target_by_loop(boxes: Tensor, map_size: tuple[int, int], image_size: tuple[int, int]) -> Tensor:
    """(N, 4) xyxy pixels -> (H, W), object by object."""
    rows, columns = map_size
    ratio_y, ratio_x = rows / image_size[0], columns / image_size[1]
    target = boxes.new_zeros(map_size)
    centres = torch.stack([(boxes[:, 0] + boxes[:, 2]) * ratio_x / 2, (boxes[:, 1] + boxes[:, 3]) * ratio_y / 2], dim=1)
    for box, centre in zip(boxes, centres, strict=True):
        x, y = centre.int()
        height, width = (box[3] - box[1]) * ratio_y, (box[2] - box[0]) * ratio_x
        radius = max(1, int(_radius(height, width, overlap=MIN_OVERLAP)))
        kernel = _kernel(radius, sigma=(2 * radius + 1) / 6)
        left, right = min(x, radius), min(columns - x, radius + 1)
        top, bottom = min(y, radius), min(rows - y, radius + 1)
        part = target[y - top : y + bottom, x - left : x + right]
        cropped = kernel[radius - top : radius + bottom, radius - left : radius + right]
        torch.maximum(part, cropped, out=part)
    return target


def _radius(height: Tensor, width: Tensor, *, overlap: float) -> Tensor:
    """The smallest of CornerNet's three cases: corners moved the same way, both inwards, both outwards."""
    total, area = height + width, height * width
    same = total - torch.sqrt(total**2 - 4 * area * (1 - overlap) / (1 + overlap))
    inwards = 2 * total - torch.sqrt((2 * total) ** 2 - 16 * (1 - overlap) * area)
    slope = -2 * overlap * total
    outwards = slope + torch.sqrt(slope**2 - 16 * overlap * (overlap - 1) * area)
    return torch.minimum(torch.minimum(same / 2, inwards / 8), outwards / (8 * overlap))


def _kernel(radius: int, *, sigma: float) -> Tensor:
    """(2r+1, 2r+1) Gaussian of mass one."""
    x = torch.arange(-radius, radius + 1, dtype=torch.float32)
    kernel = (-(x[None] ** 2 + x[:, None] ** 2) / (2 * sigma * sigma)).exp()
    kernel[kernel < torch.finfo(torch.float32).eps * kernel.max()] = 0
    return kernel / kernel.sum()
