"""Sine encodings of map positions and of boxes."""

import math

import torch
from torch import Tensor

NORMALISE_EPS = 1e-6
BOX_TEMPERATURE = 10000.0


def _sine_features(angles: Tensor, num_features: int, temperature: float) -> Tensor:
    """(...) -> (..., num_features): sine and cosine interleaved, over falling frequencies."""
    index = torch.arange(num_features, dtype=torch.float32, device=angles.device)
    frequencies = temperature ** (2 * torch.div(index, 2, rounding_mode="floor") / num_features)
    phases = angles[..., None] / frequencies
    return torch.stack([phases[..., 0::2].sin(), phases[..., 1::2].cos()], dim=-1).flatten(-2)


def encode_map(padding_mask: Tensor, *, dim: int, temperature: float, offset: float) -> Tensor:
    """Position encoding of the cells of a map: y features, then x features, relative to the unpadded part.

    padding_mask   (B, H, W) bool
    dim            channels of the encoding, divisible by 4
    offset         added to the 1-based cell index before normalising
    returns        (B, H, W, dim) float32

    Source: Carion et al., DETR, ECCV 2020; offset and temperature as in Deformable DETR and DINO.
    """
    valid = (~padding_mask).float()
    y, x = valid.cumsum(1), valid.cumsum(2)
    y = (y + offset) / (y[:, -1:, :] + NORMALISE_EPS) * (2 * math.pi)
    x = (x + offset) / (x[:, :, -1:] + NORMALISE_EPS) * (2 * math.pi)
    return torch.cat([_sine_features(c, dim // 2, temperature) for c in (y, x)], dim=-1)


def encode_boxes(boxes: Tensor, *, features: int, order: tuple[int, int, int, int]) -> Tensor:
    """Sine encoding of boxes.

    boxes      (..., 4)  cxcywh in [0, 1]
    features   channels per coordinate
    order      coordinates in the order of the output: (1, 0, 2, 3) in DINO, (0, 1, 2, 3) in Deformable DETR
    returns    (..., 4 * features) float32
    """
    angles = boxes.float()[..., list(order)] * (2 * math.pi)
    return _sine_features(angles, features, BOX_TEMPERATURE).flatten(-2)
