"""Calls of the CUDA kernels: which arguments they support, and how tensors are prepared for them."""

from collections.abc import Sequence

import torch
from torch import Tensor

# As in csrc/cuda_kernels.h.
WIDTHS = (8, 16, 32, 64, 128, 256)
MAX_LEVELS = 16
MAX_HEADS_OR_IMAGES = 65535
OLDEST_DEVICE = (7, 5)  # as in ops/cuda_architectures.py
ALIGNMENT = 16  # bytes


def are_loaded() -> bool:
    return hasattr(torch.ops.d3q, "ms_deform_attn_cuda")


def unsupported_kind(value: Tensor, spatial_shapes: Sequence[int]) -> str | None:
    """The reason why no kernel supports such a call, or None. Reads only what is known at compile time too.

    spatial_shapes   [h0, w0, h1, w1, ...]
    """
    if value.dtype == torch.float64:
        return "the CUDA kernels compute in float32, value is float64"
    if value.shape[3] not in WIDTHS:
        return f"heads are {value.shape[3]} wide; the CUDA kernels are made for {', '.join(map(str, WIDTHS))}"
    if len(spatial_shapes) > 2 * MAX_LEVELS:
        return f"{len(spatial_shapes) // 2} levels; the CUDA kernels take {MAX_LEVELS} at most"
    return None


def unsupported_call(value: Tensor) -> str | None:
    """The reason why the kernels do not support the sizes of this call, or None."""
    if max(value.shape[0], value.shape[2]) > MAX_HEADS_OR_IMAGES:
        return f"{value.shape[0]} images, {value.shape[2]} heads; the CUDA kernels take {MAX_HEADS_OR_IMAGES} at most"
    return None


def forward(value: Tensor, spatial_shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    channels = ALIGNMENT // value.element_size()
    steps = [stride for size, stride in zip(value.shape, value.stride(), strict=True) if size > 1]
    if value.stride(3) != 1 or any(step % channels for step in steps[:-1]):
        value = value.contiguous()
    return torch.ops.d3q.ms_deform_attn_cuda(
        _aligned(value), spatial_shapes, _aligned(locations.contiguous()), _aligned(weights.float().contiguous())
    )


def backward(
    output_gradient: Tensor, value: Tensor, spatial_shapes: Sequence[int], locations: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, locations and weights, all float32. Not deterministic: the order of additions varies."""
    return torch.ops.d3q.ms_deform_attn_cuda_backward(
        _aligned(output_gradient.to(value.dtype).contiguous()),
        _aligned(value.contiguous()),
        spatial_shapes,
        _aligned(locations.contiguous()),
        _aligned(weights.float().contiguous()),
    )


def _aligned(tensor: Tensor) -> Tensor:
    """The tensor, or a copy if it is not aligned to the 16 bytes that the kernels load at once; views may not be."""
    return tensor if tensor.data_ptr() % ALIGNMENT == 0 else tensor.clone()
