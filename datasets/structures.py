"""Typed records that leave this package: Target, Batch, GroundTruth, SampleKey, Georeference; and its one exception."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from datasets.errors import DataError as DataError


class SampleKey(NamedTuple):
    """What a training sampler yields: which image, and in which epoch (augmentation follows from all three)."""

    epoch: int
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody calls on a key
    copy: int = 0
    """Number of the image among its repeats in the epoch"""


@dataclass(frozen=True)
class Target:
    """The objects of one training or validation image.

    boxes_xyxy     (N, 4)  float32 corners, px of the unpadded network input
    labels         (N,)    int64, contiguous 0..K-1
    image_id       the file's own image id
    size           (h, w) of the unpadded network input, px
    original_size  (H, W) of the image file, px
    replaces       id of the unreadable image that this one replaces
    """

    boxes_xyxy: Tensor
    labels: Tensor
    image_id: int
    size: tuple[int, int]
    original_size: tuple[int, int]
    replaces: int | None = None

    @property
    def boxes(self) -> Tensor:
        """(N, 4) float32 cxcywh in [0, 1], relative to the unpadded network input."""
        height, width = self.size
        factor = torch.tensor([width, height, width, height], dtype=self.boxes_xyxy.dtype)
        x0, y0, x1, y1 = (self.boxes_xyxy / factor.to(self.boxes_xyxy.device, non_blocking=True)).unbind(-1)
        return torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], dim=-1)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Target:
        return replace(
            self,
            boxes_xyxy=self.boxes_xyxy.to(device, non_blocking=non_blocking),
            labels=self.labels.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> Target:
        return replace(self, boxes_xyxy=self.boxes_xyxy.pin_memory(), labels=self.labels.pin_memory())


@dataclass(frozen=True)
class Batch:
    """Images padded to one size on the right and at the bottom.

    images        (B, 3, H, W)  float32, normalised; 0 in the padding
    padding_mask  (B, H, W)     bool, True = padding, ignore
    targets       list of B Targets
    """

    images: Tensor
    padding_mask: Tensor
    targets: list[Target]

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        return Batch(
            images=self.images.to(device, non_blocking=non_blocking),
            padding_mask=self.padding_mask.to(device, non_blocking=non_blocking),
            targets=[target.to(device, non_blocking=non_blocking) for target in self.targets],
        )

    def without_objects(self) -> Batch:
        """The same images, as if nothing were annotated."""
        empty = [replace(t, boxes_xyxy=t.boxes_xyxy[:0], labels=t.labels[:0]) for t in self.targets]
        return replace(self, targets=empty)

    def pin_memory(self) -> Batch:
        """Called by a DataLoader with pin_memory=True; needs an accelerator."""
        return Batch(
            images=self.images.pin_memory(),
            padding_mask=self.padding_mask.pin_memory(),
            targets=[target.pin_memory() for target in self.targets],
        )


@dataclass(frozen=True)
class Georeference:
    """Where the pixels of a raster lie on the ground.

    crs         coordinate reference system: "EPSG:32633", or WKT where it has no code
    transform   a, b, c, d, e, f: x = a * column + b * row + c, y = d * column + e * row + f; (0, 0) is the corner of
                the first pixel, not its centre
    """

    crs: str
    transform: tuple[float, float, float, float, float, float]


@dataclass(frozen=True)
class GroundTruth:
    """The objects of one image exactly as its annotation file has them: what an evaluator compares with.

    boxes   (N, 4)  float64 xywh, px of the image file; nothing clipped, nothing dropped
    labels  (N,)    int64, contiguous 0..K-1
    areas   (N,)    float64 px^2: the annotation's own `area`, or w*h without one
    crowd   (N,)    bool
    """

    image_id: int
    boxes: np.ndarray
    labels: np.ndarray
    areas: np.ndarray
    crowd: np.ndarray
