"""What a data set looks like in numbers: objects per image, box sizes, classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TINY = (2, 4)
"""px; sizes below which an object is hardly visible"""


@dataclass(frozen=True)
class DatasetStatistics:
    """Counts are of usable objects (see CocoDetection); sizes are sqrt(w*h) in px of the image files."""

    num_images: int
    num_objects: int
    objects_per_image_min: int
    objects_per_image_median: float
    objects_per_image_mean: float
    objects_per_image_max: int
    share_above_100: float
    """Images with more than 100 objects, 0..1."""
    share_above_500: float
    box_size_mean: float
    """NaN where there are no objects."""
    box_size_std: float
    objects_per_class: dict[str, int]

    def __str__(self) -> str:
        classes = ", ".join(f"{name} {count:,}" for name, count in self.objects_per_class.items())
        return (
            f"{self.num_images:,} images, {self.num_objects:,} objects\n"
            f"objects per image: min {self.objects_per_image_min}, median {self.objects_per_image_median:g}, "
            f"mean {self.objects_per_image_mean:.1f}, max {self.objects_per_image_max:,}; "
            f"above 100: {self.share_above_100:.1%}, above 500: {self.share_above_500:.1%}\n"
            f"box size: mean {self.box_size_mean:.1f} px, standard deviation {self.box_size_std:.1f} px\n"
            f"classes: {classes}"
        )


def describe_scaled(sizes: np.ndarray, size: tuple[int, int]) -> str:
    """Count objects that are hardly visible in the network's input.

    sizes   (N,) sqrt(w*h), px of images scaled to `size` (height, width)
    """
    if len(sizes) == 0:
        return "no object to scale"
    below = [f"{(sizes < limit).sum():,} ({(sizes < limit).mean():.1%}) below {limit} px" for limit in TINY]
    return f"objects scaled to data.image_size {list(size)}: {', '.join(below)}"


def summarise(
    *, objects_per_image: np.ndarray, box_sizes: np.ndarray, labels: np.ndarray, categories: tuple[str, ...]
) -> DatasetStatistics:
    """objects_per_image (I,) int, I > 0; box_sizes (N, 2) w, h in px; labels (N,) int."""
    sides = np.sqrt(box_sizes.prod(axis=1))
    per_class = np.bincount(labels, minlength=len(categories)).tolist()
    return DatasetStatistics(
        num_images=len(objects_per_image),
        num_objects=len(labels),
        objects_per_image_min=int(objects_per_image.min()),
        objects_per_image_median=float(np.median(objects_per_image)),
        objects_per_image_mean=float(objects_per_image.mean()),
        objects_per_image_max=int(objects_per_image.max()),
        share_above_100=float((objects_per_image > 100).mean()),
        share_above_500=float((objects_per_image > 500).mean()),
        box_size_mean=float(sides.mean()) if len(sides) else float("nan"),
        box_size_std=float(sides.std()) if len(sides) else float("nan"),
        objects_per_class=dict(zip(categories, per_class, strict=True)),
    )
