"""Joint transforms of image and boxes: small callables (sample, rng) -> sample.

Boxes stay xyxy in pixels of the current image until the dataset makes the Target. Pixel i covers [i, i + 1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from datasets.scaling import resized_shape
from datasets.structures import SampleKey


@dataclass(frozen=True)
class Sample:
    """An image with its objects, on the way through the transforms.

    image   PIL RGB image; after Normalize a (3, H, W) float32 tensor
    boxes   (N, 4)  float32 xyxy, px
    labels  (N,)    int64
    """

    image: Image.Image | Tensor
    boxes: Tensor
    labels: Tensor

    @property
    def picture(self) -> Image.Image:
        """The PIL image; an error once Normalize has made it a tensor."""
        if isinstance(self.image, Tensor):
            raise TypeError("this transform needs a PIL image: put it before Normalize")
        return self.image


Transform = Callable[[Sample, np.random.Generator], Sample]


CROP_TRIES = 10
"""Windows drawn instead of one without objects"""


class Mixer(Protocol):
    """Adds parts of other images to a training image, before it is resized."""

    stream: int
    """Number of its random stream, its own"""

    def __call__(self, sample: Sample, key: SampleKey, rng: np.random.Generator) -> Sample: ...


def clip_boxes(boxes: Tensor, *, height: int, width: int) -> Tensor:
    """(N, 4) xyxy px -> the same, clipped to [0, width] x [0, height]."""
    limit = boxes.new_tensor([width, height, width, height])
    return boxes.clamp(min=0).minimum(limit)


class Compose:
    """Apply transforms one after the other, all from the same random stream."""

    def __init__(self, transforms: Sequence[Transform]) -> None:
        self.transforms = tuple(transforms)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        for transform in self.transforms:
            sample = transform(sample, rng)
        return sample


class Resize:
    """Fit the image inside `size` (h, w), ratio kept, bilinear; boxes follow per axis and are clipped.

    Differs from the reference: Pillow's bilinear filter averages when it shrinks (OpenCV's samples, and loses
    objects of a few pixels); images that already fit exactly are the same.
    """

    def __init__(self, *, size: tuple[int, int]) -> None:
        if min(size) < 1:
            raise ValueError(f"size {size} has a side below 1 px")
        self.size = size

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        image = sample.picture
        height, width = resized_shape(image.height, image.width, size=self.size)
        factor_x, factor_y = width / image.width, height / image.height
        boxes = sample.boxes * sample.boxes.new_tensor([factor_x, factor_y, factor_x, factor_y])
        if (height, width) != (image.height, image.width):
            image = image.resize((width, height), Image.Resampling.BILINEAR)
        return replace(sample, image=image, boxes=clip_boxes(boxes, height=height, width=width))


class RandomResize:
    """Resize by a random factor on top of `Resize`: log-uniform in [low, high], so that halving is as likely as
    doubling. Larger images need a `RandomCrop` behind it; smaller ones are padded in the batch.
    """

    def __init__(self, *, size: tuple[int, int], low: float, high: float) -> None:
        if not 0 < low <= high:
            raise ValueError(f"factors {low} to {high} are not in order, or not above 0")
        self.size, self.low, self.high = size, low, high

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        factor = float(np.exp(rng.uniform(np.log(self.low), np.log(self.high))))
        height, width = (max(round(side * factor), 1) for side in self.size)
        return Resize(size=(height, width))(sample, rng)


class RandomRotation:
    """Turn by 90 degrees to the left with probability p; with both flips at 0.5, all eight orientations."""

    def __init__(self, *, p: float) -> None:
        self.p = p

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() >= self.p:
            return sample
        x0, y0, x1, y1 = sample.boxes.unbind(1)
        width = sample.picture.width
        boxes = torch.stack([y0, width - x1, y1, width - x0], dim=1)
        return replace(sample, image=sample.picture.transpose(Image.Transpose.ROTATE_90), boxes=boxes)


class RandomFlip:
    """Mirror with probability p; horizontal: left and right change places, vertical: top and bottom."""

    def __init__(self, direction: Literal["horizontal", "vertical"], *, p: float) -> None:
        self.axis = 0 if direction == "horizontal" else 1
        self.p = p

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        if rng.random() >= self.p:
            return sample
        low, high = self.axis, self.axis + 2  # columns of xyxy
        side = sample.picture.size[self.axis]
        boxes = sample.boxes.clone()
        boxes[:, low], boxes[:, high] = side - sample.boxes[:, high], side - sample.boxes[:, low]
        how = (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM)[self.axis]
        return replace(sample, image=sample.picture.transpose(how), boxes=boxes)


class RandomCrop:
    """Cut a window of at most `size` (h, w) at a random place; an axis shorter than it stays whole.

    A box is kept when its centre lies in the window; it is clipped, and dropped below 1 px per side.

    keep_empty   share of the windows without an object that are kept, of images with objects; instead of the others,
                 up to CROP_TRIES more are drawn
    """

    def __init__(self, *, size: tuple[int, int], keep_empty: float = 1.0) -> None:
        if min(size) < 1:
            raise ValueError(f"size {size} has a side below 1 px")
        if not 0 <= keep_empty <= 1:
            raise ValueError(f"keep_empty {keep_empty} is not in [0, 1]")
        self.size, self.keep_empty = size, keep_empty

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        window = self._draw(sample, rng)
        if self.keep_empty == 1 or len(sample.labels) == 0 or rng.random() < self.keep_empty:
            return window
        for _ in range(CROP_TRIES):
            if len(window.labels):
                break
            window = self._draw(sample, rng)
        return window

    def _draw(self, sample: Sample, rng: np.random.Generator) -> Sample:
        image = sample.picture
        height, width = min(self.size[0], image.height), min(self.size[1], image.width)
        top = int(rng.integers(0, image.height - height + 1))
        left = int(rng.integers(0, image.width - width + 1))
        boxes = sample.boxes - sample.boxes.new_tensor([left, top, left, top])
        centre_x, centre_y = (boxes[:, 0] + boxes[:, 2]) / 2, (boxes[:, 1] + boxes[:, 3]) / 2
        keep = (centre_x >= 0) & (centre_x < width) & (centre_y >= 0) & (centre_y < height)
        boxes = clip_boxes(boxes, height=height, width=width)
        keep &= (boxes[:, 2:] - boxes[:, :2] >= 1).all(dim=1)
        return Sample(
            image=image.crop((left, top, left + width, top + height)),
            boxes=boxes[keep],
            labels=sample.labels[keep],
        )


class ColorJitter:
    """Scale brightness and contrast, each by a factor from [1 - strength, 1 + strength]."""

    def __init__(self, *, strength: float) -> None:
        if not 0 <= strength < 1:
            raise ValueError(f"strength {strength} is not in [0, 1)")
        self.strength = strength

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        brightness, contrast = rng.uniform(1 - self.strength, 1 + self.strength, size=2)
        image = ImageEnhance.Brightness(sample.picture).enhance(brightness)
        return replace(sample, image=ImageEnhance.Contrast(image).enhance(contrast))


class Normalize:
    """PIL image -> (3, H, W) float32 tensor, (value / 255 - mean) / std per channel; the last transform."""

    def __init__(self, *, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean = torch.tensor(mean, dtype=torch.float32)[:, None, None]
        self.std = torch.tensor(std, dtype=torch.float32)[:, None, None]

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        pixels = torch.from_numpy(np.array(sample.picture, dtype=np.uint8)).permute(2, 0, 1)
        # In place on a contiguous copy: five times faster than a new tensor in each step, value for value the same.
        image = pixels.to(torch.float32, memory_format=torch.contiguous_format)
        return replace(sample, image=image.div_(255).sub_(self.mean).div_(self.std))
