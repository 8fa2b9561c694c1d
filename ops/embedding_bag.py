"""Multi-scale deformable attention as weighted rows of `value`: four corners per sample.

The forward pass is a weighted `embedding_bag`, the fastest form for large maps on a CPU without a compiler: it never
builds the (B, Q, M, L*P, D) intermediate of the definition.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Corners(NamedTuple):
    """The cells around every sample: upper and lower row, left and right column."""

    rows: Tensor  # (B, Q, M, L, P, 2, 2) rows of value as (B*S*M, D); any row where a corner is outside
    share_x: Tensor  # (B, Q, M, L, P, 2) of the left and right column; 0 outside
    share_y: Tensor  # of the upper and lower row
    valid_x: Tensor
    valid_y: Tensor


def find_corners(value: Tensor, spatial_shapes: Sequence[tuple[int, int]], sampling_locations: Tensor) -> Corners:
    batch, tokens, heads, _ = value.shape
    index = torch.int32 if batch * tokens * heads < 2**31 else torch.int64
    sizes = torch.tensor([list(shape) for shape in spatial_shapes], device=value.device, dtype=index)
    height, width = sizes[:, 0, None], sizes[:, 1, None]  # (L, 1), beside the points

    corner = sampling_locations * sizes.flip(1)[:, None].to(sampling_locations.dtype) - 0.5
    # Two cells outside the map nothing contributes: far, infinite and undefined locations stay in integer range.
    inside = ((corner > -1) & (corner < sizes.flip(1)[:, None])).all(-1, keepdim=True)
    corner = torch.where(inside, corner, -2.0)
    first = corner.detach().floor()
    fraction_x, fraction_y = (corner - first).unbind(-1)
    x0, y0 = first.to(index).unbind(-1)
    x = torch.stack([x0, x0 + 1], dim=-1)
    y = torch.stack([y0, y0 + 1], dim=-1)
    valid_x = (x >= 0) & (x < width[..., None])
    valid_y = (y >= 0) & (y < height[..., None])

    level_sizes = sizes.prod(1, dtype=index)
    level_start = (level_sizes.cumsum(0, dtype=index) - level_sizes)[:, None]
    image_start = torch.arange(batch, device=value.device, dtype=index)[:, None, None, None, None] * tokens
    head = torch.arange(heads, device=value.device, dtype=index)[:, None, None]
    token = (y * valid_y * width[..., None])[..., :, None] + (x * valid_x)[..., None, :]
    return Corners(
        rows=(token + (level_start + image_start)[..., None, None]) * heads + head[..., None, None],
        share_x=torch.stack([1 - fraction_x, fraction_x], dim=-1) * valid_x,
        share_y=torch.stack([1 - fraction_y, fraction_y], dim=-1) * valid_y,
        valid_x=valid_x,
        valid_y=valid_y,
    )


def ms_deform_attn_embedding_bag(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """The operator as a sum over the four corners of every sample. See ops/reference.py for the arguments."""
    batch, tokens, heads, dim = value.shape
    queries = sampling_locations.shape[1]
    corners = find_corners(value, spatial_shapes, sampling_locations)
    share_y = corners.share_y * attention_weights[..., None]
    weights = share_y[..., :, None] * corners.share_x[..., None, :]  # (B, Q, M, L, P, 2, 2)
    output = F.embedding_bag(
        corners.rows.reshape(batch * queries * heads, -1),
        value.reshape(batch * tokens * heads, dim),
        mode="sum",
        per_sample_weights=weights.reshape(batch * queries * heads, -1),
    )
    return output.view(batch, queries, heads * dim)


def ms_deform_attn_gradients(
    output_gradient: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, sampling_locations and attention_weights in pure PyTorch, without autograd.

    For inside an operator, where autograd is off. One point of one level at a time: all at once would need
    4*L*P rows per query and head.
    """
    batch, tokens, heads, dim = value.shape
    gradient = output_gradient.reshape(*sampling_locations.shape[:3], dim)
    rows = value.reshape(batch * tokens * heads, dim)
    row_gradients = torch.zeros_like(rows)
    corners = find_corners(value, spatial_shapes, sampling_locations)
    share = corners.share_y[..., :, None] * corners.share_x[..., None, :]
    dot = torch.empty_like(share)  # of the output's gradient with each corner's row
    for level in range(len(spatial_shapes)):
        for point in range(sampling_locations.shape[4]):
            place = corners.rows[:, :, :, level, point]  # (B, Q, M, 2, 2)
            dot[:, :, :, level, point] = (rows[place] * gradient[:, :, :, None, None]).sum(-1)
            weight = share[:, :, :, level, point] * attention_weights[:, :, :, level, point, None, None]
            update = weight[..., None] * gradient[:, :, :, None, None]
            row_gradients.index_add_(0, place.flatten(), update.flatten(0, -2))
    slope = torch.tensor([-1.0, 1.0], device=value.device, dtype=value.dtype)
    slope_x, slope_y = slope * corners.valid_x, slope * corners.valid_y
    by_x = (corners.share_y[..., :, None] * slope_x[..., None, :] * dot).sum((-2, -1)) * attention_weights
    by_y = (slope_y[..., :, None] * corners.share_x[..., None, :] * dot).sum((-2, -1)) * attention_weights
    cells = torch.tensor([[width, height] for height, width in spatial_shapes], device=value.device, dtype=value.dtype)
    location_gradient = torch.stack([by_x, by_y], dim=-1) * cells[:, None]
    return row_gradients.view_as(value), location_gradient, (share * dot).sum((-2, -1))
