"""Mosaic: windows of four training images in one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image

from datasets.structures import SampleKey
from datasets.transforms import RandomCrop, Resize, Sample

LEAST = 0.25
"""Smallest share of a side at which the image is divided"""


class Mosaic:
    """With probability p, divides an image into four at a random point and fills the quarters with windows of images.

    One quarter is of the image itself, three are of random ones. All have the scale at which they are trained on by
    themselves, so that tiny objects stay as large; the result has the size of the scaled image. A quarter that is
    larger than its image is black beyond it. Objects are kept as in `RandomCrop`.

    size     (h, w) that images are scaled to fit, as in `Resize`
    images   number of images to choose from
    load     index -> the image with its objects, not resized
    epochs   the first epochs, which have mosaics; None for all

    Source: Bochkovskiy et al., YOLOv4, arXiv:2004.10934; there, images are scaled at random too.

    Raises DataError, naming the file, if another image cannot be read.
    """

    stream = 2

    def __init__(
        self, *, p: float, size: tuple[int, int], images: int, load: Callable[[int], Sample], epochs: int | None
    ) -> None:
        self.p, self.images, self.load, self.epochs = p, images, load, epochs
        self.resize = Resize(size=size)

    def __call__(self, sample: Sample, key: SampleKey, rng: np.random.Generator) -> Sample:
        if rng.random() >= self.p or (self.epochs is not None and key.epoch >= self.epochs):
            return sample
        own = self.resize(sample, rng)
        width, height = own.picture.size
        x, y = (round(side * rng.uniform(LEAST, 1 - LEAST)) for side in (width, height))
        quarters = [(0, 0, x, y), (x, 0, width, y), (0, y, x, height), (x, y, width, height)]
        others = [self.resize(self.load(int(index)), rng) for index in rng.integers(0, self.images, size=3)]
        canvas = Image.new("RGB", (width, height))
        boxes, labels = [], []
        for quarter, of in zip(rng.permutation(4).tolist(), [own, *others], strict=True):
            left, top, right, bottom = quarters[quarter]
            window = RandomCrop(size=(bottom - top, right - left))(of, rng)
            canvas.paste(window.picture, (left, top))
            boxes.append(window.boxes + window.boxes.new_tensor([left, top, left, top]))
            labels.append(window.labels)
        return Sample(canvas, torch.cat(boxes), torch.cat(labels))
