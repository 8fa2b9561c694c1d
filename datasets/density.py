"""Densest batch, densest shapes, mean density and scale of a data set."""

import numpy as np
from torch import Tensor

from configs.schema import DataConfig
from datasets.coco import CocoDetection
from datasets.collate import collate
from datasets.copy_paste import MOST_PASTED
from datasets.scaling import resized_shape
from datasets.structures import Batch, DataError, SampleKey, Target

DENSITY_RANGE = (1e-4, 0.5)
"""Limits of `mean_density`; beyond them a sigmoid hardly learns."""


def densest_batch(dataset: CocoDetection, data: DataConfig, *, skip: bool = False) -> Batch:
    """The images with the most objects, as training loads them.

    skip   replace an unreadable image by the next one, as with data.on_bad_image: skip

    Raises DataError.
    """
    samples: list[tuple[Tensor, Target]] = []
    problem: DataError | None = None
    for index in np.argsort(-dataset.objects_per_image, kind="stable").tolist():
        try:
            samples.append(dataset[SampleKey(0, index)])
        except DataError as error:
            problem = error
            if not skip and data.on_bad_image == "error":
                raise
        if len(samples) == data.batch_size:
            break
    if problem is not None and not samples:
        raise problem
    return collate(samples)


def mean_density(dataset: CocoDetection, data: DataConfig, *, stride: int) -> float:
    """Mean objects per cell of a map of this stride over the scaled images, to three digits, within DENSITY_RANGE.

    A random crop is ignored: on average it takes the same share of the objects as of the cells.
    """
    shapes = [resized_shape(height, width, size=data.image_size) for height, width in dataset.image_sizes.tolist()]
    cells = sum(-(-height // stride) * -(-width // stride) for height, width in shapes)
    low, high = DENSITY_RANGE
    return float(f"{min(max(int(dataset.objects_per_image.sum()) / cells, low), high):.3g}")


def median_resize_factor(dataset: CocoDetection, data: DataConfig) -> float:
    """Network pixels per pixel of the image file, median of the images; of an even number the lower one."""
    factors = sorted(
        resized_shape(height, width, size=data.image_size)[height < width] / max(height, width)
        for height, width in dataset.image_sizes.tolist()
    )
    return factors[(len(factors) - 1) // 2]


def densest_shapes(dataset: CocoDetection, data: DataConfig) -> tuple[tuple[int, int], list[int]]:
    """Largest possible training batch: (H, W) of the padded images, px, and the objects of each.

    After the random crop, those of the window with most objects around one of them, at the smallest random scale. A
    mosaic counts as the densest image, although windows that all hit a crowd can have more.
    """
    shapes = np.array([resized_shape(height, width, size=data.image_size) for height, width in dataset.image_sizes])
    smallest, biggest = data.scale_jitter or (1.0, 1.0)
    whole = shapes.max(axis=0) if data.scale_jitter is None else data.image_size
    window = np.array(data.crop_size if data.crop_size is not None else whole)
    cropped = np.minimum(np.ceil(shapes * biggest).astype(int), window)
    largest = cropped[cropped.prod(axis=1).argmax()] if data.batch_size == 1 else cropped.max(axis=0)
    if data.rotate_prob > 0 and data.batch_size > 1:
        largest = np.maximum(largest, largest[::-1])  # one image lies, another one stands
    densest = np.argsort(-dataset.objects_per_image, kind="stable")[: data.batch_size].tolist()
    counts = [int(dataset.objects_per_image[index]) for index in densest]
    if data.crop_size is not None:
        counts = [_most_in_window(dataset, index, shapes[index] * smallest, window) for index in densest]
    if data.mosaic_prob > 0:
        counts = [counts[0]] * len(counts)
    if data.copy_paste_prob > 0:
        counts = [count + MOST_PASTED for count in counts]
    height, width = largest.tolist()
    return (height, width), counts


def _most_in_window(dataset: CocoDetection, index: int, shape: np.ndarray, window: np.ndarray) -> int:
    """Most objects of an image scaled to `shape` (h, w) in a window of that size around one of them."""
    boxes = dataset.ground_truth(index).boxes
    centres = (boxes[:, :2] + boxes[:, 2:] / 2)[:, ::-1] * (shape / dataset.image_sizes[index])
    near = [int((np.abs(centres - centre) <= window / 2).all(axis=1).sum()) for centre in centres]
    return min(max(near, default=0), int(dataset.objects_per_image[index]))
