"""Images of different sizes -> one padded batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from datasets.structures import Batch, Target


def collate(samples: Sequence[tuple[Tensor, Target]], *, size_divisor: int = 1) -> Batch:
    """Pad normalised images with 0 to the batch's largest height and width.

    samples       B pairs of image (3, h, w) and Target
    size_divisor  the padded height and width are multiples of it; published: 1
    returns       Batch; padding_mask is True outside each image

    Padding comes after normalising, so 0 is the mean colour, as published.
    """
    if size_divisor < 1:
        raise ValueError(f"size_divisor {size_divisor} is below 1; use 1 for no rounding")
    largest = [max(image.shape[axis] for image, _ in samples) for axis in (1, 2)]
    height, width = (-(-side // size_divisor) * size_divisor for side in largest)
    targets = [target for _, target in samples]
    if all(image.shape[-2:] == (height, width) for image, _ in samples):
        padding_mask = torch.zeros((len(samples), height, width), dtype=torch.bool)
        return Batch(images=torch.stack([image for image, _ in samples]), padding_mask=padding_mask, targets=targets)
    first = samples[0][0]
    images = first.new_zeros((len(samples), first.shape[0], height, width))
    padding_mask = torch.ones((len(samples), height, width), dtype=torch.bool)
    for row, (image, _) in enumerate(samples):
        h, w = image.shape[-2:]
        images[row, :, :h, :w] = image
        padding_mask[row, :h, :w] = False
    return Batch(images=images, padding_mask=padding_mask, targets=targets)
