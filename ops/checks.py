"""Checks of the operator's arguments. They use shapes, dtypes and devices only, so nothing waits for a device."""

from collections.abc import Sequence

import torch
from torch import Tensor

HALF = (torch.float16, torch.bfloat16)


def check_arguments(value: Tensor, spatial_shapes: Sequence[int], locations: Tensor, weights: Tensor) -> None:
    """Raises ValueError where shapes, dtypes or devices disagree, naming the relation.

    spatial_shapes   [h0, w0, h1, w1, ...]
    """
    if value.dim() != 4 or locations.dim() != 6 or weights.dim() != 5:
        raise ValueError(
            "value, sampling_locations and attention_weights need 4, 6 and 5 dimensions, got "
            f"{tuple(value.shape)}, {tuple(locations.shape)}, {tuple(weights.shape)}"
        )
    _check_levels(value.shape[1], spatial_shapes)
    if locations.shape[:-1] != weights.shape or locations.shape[-1] != 2:
        raise ValueError(
            f"sampling_locations {tuple(locations.shape)} must be attention_weights {tuple(weights.shape)} + (2,)"
        )
    expected = (value.shape[0], value.shape[2], len(spatial_shapes) // 2)
    if (weights.shape[0], weights.shape[2], weights.shape[3]) != expected:
        raise ValueError(f"attention_weights {tuple(weights.shape)} must be (B, Q, M, L, P) with B, M, L = {expected}")
    _check_dtypes(value.dtype, locations.dtype, weights.dtype)
    if not value.device == locations.device == weights.device:
        raise ValueError(
            "value, sampling_locations and attention_weights must be on one device, got "
            f"{value.device}, {locations.device}, {weights.device}"
        )


def check_output_gradient(output_gradient: Tensor, value: Tensor, locations: Tensor) -> None:
    """Raises ValueError unless it has the output's shape, dtype and device."""
    expected = (value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])
    if tuple(output_gradient.shape) != expected:
        raise ValueError(f"the output's gradient {tuple(output_gradient.shape)} must be (B, Q, M*D) = {expected}")
    if output_gradient.dtype != value.dtype or output_gradient.device != value.device:
        raise ValueError(
            f"the output's gradient must be {value.dtype} on {value.device} like value, got {output_gradient.dtype} "
            f"on {output_gradient.device}"
        )


def _check_levels(tokens: int, spatial_shapes: Sequence[int]) -> None:
    if not spatial_shapes or len(spatial_shapes) % 2:
        raise ValueError(f"spatial_shapes must be pairs of height and width, one at least, got {list(spatial_shapes)}")
    if any(size < 1 for size in spatial_shapes):
        raise ValueError(f"spatial_shapes must be positive, got {list(spatial_shapes)}")
    expected = sum(height * width for height, width in zip(spatial_shapes[::2], spatial_shapes[1::2], strict=True))
    if tokens != expected:
        raise ValueError(f"value has {tokens} tokens, spatial_shapes {list(spatial_shapes)} give {expected}")


def _check_dtypes(value: torch.dtype, locations: torch.dtype, weights: torch.dtype) -> None:
    if value in HALF:
        # A pixel of an 800-wide image is 1/800 of a location: half precision would miss tiny objects.
        if locations != torch.float32 or weights not in (torch.float32, value):
            raise ValueError(
                f"a {value} value needs float32 sampling_locations and attention_weights in float32 or {value}, got "
                f"{locations} and {weights}; convert them, e.g. sampling_locations.float()"
            )
    elif value not in (torch.float32, torch.float64) or not value == locations == weights:
        raise ValueError(
            "value, sampling_locations and attention_weights must all be float32 or all float64 (or value half and "
            f"sampling_locations float32), got {value}, {locations}, {weights}"
        )
