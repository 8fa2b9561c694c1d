"""The operator: checks its arguments and picks the form that is fastest on the device.

On a GPU that is `grid_sample` (the definition, `ops/reference.py`); elsewhere a weighted `embedding_bag`, which
never builds the (B, Q, M, L*P, D) intermediate.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ops.reference import ms_deform_attn_reference


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Multi-scale deformable attention.

    value               (B, S, M, D)        S = sum of H*W over the levels
    spatial_shapes      L pairs (H, W)      Python integers: reading them never waits for the device
    sampling_locations  (B, Q, M, L, P, 2)  (x, y) in [0, 1] of each level's map; outside counts as zero
    attention_weights   (B, Q, M, L, P)
    returns             (B, Q, M*D)

    Raises ValueError where the shapes disagree.
    Source: Zhu et al., Deformable DETR, ICLR 2021, equation 3.
    """
    _check_shapes(value, spatial_shapes, sampling_locations, attention_weights)
    form = ms_deform_attn_reference if value.is_cuda else _ms_deform_attn_embedding_bag
    return form(value, spatial_shapes, sampling_locations, attention_weights)


def _check_shapes(value: Tensor, spatial_shapes: Sequence[tuple[int, int]], locations: Tensor, weights: Tensor) -> None:
    if value.dim() != 4 or locations.dim() != 6 or weights.dim() != 5:
        raise ValueError(
            "value, sampling_locations and attention_weights need 4, 6 and 5 dimensions, got "
            f"{tuple(value.shape)}, {tuple(locations.shape)}, {tuple(weights.shape)}"
        )
    if any(height < 1 or width < 1 for height, width in spatial_shapes):
        raise ValueError(f"spatial_shapes must be positive, got {list(spatial_shapes)}")
    tokens = sum(height * width for height, width in spatial_shapes)
    if value.shape[1] != tokens:
        raise ValueError(f"value has {value.shape[1]} tokens, spatial_shapes {list(spatial_shapes)} give {tokens}")
    if locations.shape[:-1] != weights.shape or locations.shape[-1] != 2:
        raise ValueError(
            f"sampling_locations {tuple(locations.shape)} must be attention_weights {tuple(weights.shape)} + (2,)"
        )
    expected = (value.shape[0], value.shape[2], len(spatial_shapes))
    if (weights.shape[0], weights.shape[2], weights.shape[3]) != expected:
        raise ValueError(f"attention_weights {tuple(weights.shape)} must be (B, Q, M, L, P) with B, M, L = {expected}")


def _ms_deform_attn_embedding_bag(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """The operator as a sum over the four corners of every sample: rows of `value`, weighted."""
    batch, tokens, heads, dim = value.shape
    queries = sampling_locations.shape[1]
    sizes = torch.tensor([list(shape) for shape in spatial_shapes], device=value.device, dtype=torch.int32)
    height, width = sizes[:, 0, None], sizes[:, 1, None]  # (L, 1), beside the points

    corner = sampling_locations * sizes.flip(1)[:, None].to(sampling_locations.dtype) - 0.5
    # Two cells outside the map nothing contributes: far and infinite locations stay in integer range.
    corner = torch.minimum(corner.clamp(min=-2), (sizes.flip(1) + 1)[:, None].to(corner.dtype))
    first = corner.detach().floor()
    fraction_x, fraction_y = (corner - first).unbind(-1)
    x0, y0 = first.int().unbind(-1)
    x = torch.stack([x0, x0 + 1], dim=-1)
    y = torch.stack([y0, y0 + 1], dim=-1)
    x_valid = (x >= 0) & (x < width[..., None])
    y_valid = (y >= 0) & (y < height[..., None])
    weight_x = torch.stack([1 - fraction_x, fraction_x], dim=-1) * x_valid
    weight_y = torch.stack([1 - fraction_y, fraction_y], dim=-1) * y_valid * attention_weights[..., None]
    weights = weight_y[..., :, None] * weight_x[..., None, :]  # (B, Q, M, L, P, 2, 2)

    level_sizes = sizes.prod(1, dtype=torch.int32)
    level_start = (level_sizes.cumsum(0, dtype=torch.int32) - level_sizes)[:, None]
    image_start = torch.arange(batch, device=value.device, dtype=torch.int32)[:, None, None, None, None] * tokens
    head = torch.arange(heads, device=value.device, dtype=torch.int32)[:, None, None]
    token = (y * y_valid * width[..., None])[..., :, None] + (x * x_valid)[..., None, :]
    rows = (token + (level_start + image_start)[..., None, None]) * heads + head[..., None, None]
    output = F.embedding_bag(
        rows.reshape(batch * queries * heads, -1),
        value.reshape(batch * tokens * heads, dim),
        mode="sum",
        per_sample_weights=weights.to(value.dtype).reshape(batch * queries * heads, -1),
    )
    return output.view(batch, queries, heads * dim)
