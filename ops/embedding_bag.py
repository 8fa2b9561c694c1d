"""Multi-scale deformable attention as weighted rows of `value`: four corners per sample.

The forward pass is a weighted `embedding_bag`, the fastest backend for large maps on a CPU without a compiler: it never
builds the (B, Q, M, L*P, D) intermediate of the definition. `gather` needs the memory of four such intermediates, and
is the only backend with second derivatives.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

# On GPUs, embedding_bag's backward pass counts gradients of rows in 32 bits (torch 2.11: illegal memory access).
MOST_GATHERED_ON_GPU = 2**31 - 1


class Corners(NamedTuple):
    """The cells around every sample: upper and lower row, left and right column."""

    rows: Tensor  # (B, Q, M, L, P, 2, 2) rows of value as (B*S*M, D); below 0 where a corner is outside
    share_x: Tensor  # (B, Q, M, L, P, 2) of the left and right column, finite outside
    share_y: Tensor  # of the upper and lower row
    sizes: Tensor  # (L, 2) height and width


def _sizes_on(device: torch.device, dtype: torch.dtype, shapes: Sequence[tuple[int, int]]) -> Tensor:
    """(L, 2) height and width. Cached, so that a second call copies nothing from the host, which CUDA graphs forbid.

    Not cached while tracing or with fake tensors: such tensors are invalid elsewhere.
    """
    if torch.compiler.is_compiling() or is_in_torch_dispatch_mode():
        return torch.tensor([list(shape) for shape in shapes], device=device, dtype=dtype)
    return _kept_sizes(device, dtype, tuple((int(height), int(width)) for height, width in shapes))


@lru_cache(maxsize=1024)
def _kept_sizes(device: torch.device, dtype: torch.dtype, shapes: tuple[tuple[int, int], ...]) -> Tensor:
    with torch.inference_mode(False):  # autograd may use it later
        return torch.tensor(shapes, device=device, dtype=dtype)


def find_corners(value: Tensor, spatial_shapes: Sequence[tuple[int, int]], sampling_locations: Tensor) -> Corners:
    batch, tokens, heads, _ = value.shape
    index = torch.int32 if 2 * batch * (tokens + 1) * heads < 2**31 else torch.int64
    sizes = _sizes_on(value.device, index, spatial_shapes)
    height, width = sizes[:, 0, None], sizes[:, 1, None]  # (L, 1), beside the points

    corner = sampling_locations * sizes.flip(1)[:, None].to(sampling_locations.dtype) - 0.5
    # Nothing contributes from two cells outside the map: far, infinite and NaN locations stay in integer range.
    inside = ((corner > -1) & (corner < sizes.flip(1)[:, None])).all(-1, keepdim=True)
    corner = torch.where(inside, corner, -2.0)
    first = corner.detach().floor()
    fraction_x, fraction_y = (corner - first).unbind(-1)
    x0, y0 = first.to(index).unbind(-1)
    x = torch.stack([x0, x0 + 1], dim=-1)
    y = torch.stack([y0, y0 + 1], dim=-1)
    outside = -batch * tokens  # stays negative whatever is added
    x = torch.where((x >= 0) & (x < width[..., None]), x, outside)
    y = torch.where((y >= 0) & (y < height[..., None]), y * width[..., None], outside)

    level_sizes = sizes.prod(1, dtype=index)
    level_start = (level_sizes.cumsum(0, dtype=index) - level_sizes)[:, None]
    image_start = torch.arange(batch, device=value.device, dtype=index)[:, None, None, None, None] * tokens
    head = torch.arange(heads, device=value.device, dtype=index)[:, None, None]
    token = y[..., :, None] + x[..., None, :]
    return Corners(
        rows=(token + (level_start + image_start)[..., None, None]) * heads + head[..., None, None],
        share_x=torch.stack([1 - fraction_x, fraction_x], dim=-1),
        share_y=torch.stack([1 - fraction_y, fraction_y], dim=-1),
        sizes=sizes,
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
    # Zero times infinity is NaN, so a corner outside reads a row that the query samples anyway. If it samples none, the
    # sum is replaced by zero, and weights outside get no gradient.
    bags = (batch * queries * heads, -1)
    places = corners.rows.reshape(bags)
    valid = places >= 0
    sampled = places.amax(1, keepdim=True)
    places = torch.where(valid, places, sampled.clamp(min=0))
    weights = torch.where(valid, _weights(corners, attention_weights).reshape(bags), 0)
    sums = _weighted_sums(value.reshape(batch * tokens * heads, dim), places, weights)
    return torch.where(sampled >= 0, sums, 0).view(batch, queries, heads * dim)


def ms_deform_attn_gather(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """The same sum, with all rows in memory at once, which gives second derivatives. See ops/reference.py."""
    batch, tokens, heads, dim = value.shape
    corners = find_corners(value, spatial_shapes, sampling_locations)
    rows = torch.cat([value.reshape(batch * tokens * heads, dim), value.new_zeros(1, dim)])
    return (
        (rows[corners.rows.clamp(min=-1)] * _weights(corners, attention_weights)[..., None])
        .sum((3, 4, 5, 6))
        .flatten(2)
    )


def _weights(corners: Corners, attention_weights: Tensor) -> Tensor:
    """(B, Q, M, L, P, 2, 2) of each corner."""
    share_y = corners.share_y * attention_weights[..., None]
    return share_y[..., :, None] * corners.share_x[..., None, :]


def _weighted_sums(rows: Tensor, places: Tensor, weights: Tensor, most: int | None = None) -> Tensor:
    """(N, D), (bags, K) and (bags, K) -> (bags, D); most: largest number of elements gathered by one call."""
    if most is None and (not rows.is_cuda or torch.compiler.is_compiling()):
        return F.embedding_bag(places, rows, mode="sum", per_sample_weights=weights)
    parts = 1 + places.numel() * rows.shape[1] // (most or MOST_GATHERED_ON_GPU)
    sums = [
        F.embedding_bag(place, rows, mode="sum", per_sample_weights=weight)
        for place, weight in zip(places.chunk(parts), weights.chunk(parts), strict=True)
    ]
    return torch.cat(sums)


def ms_deform_attn_gradients(
    output_gradient: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of value, sampling_locations and attention_weights in pure PyTorch, without autograd.

    Used inside the operator, where autograd is off. Computes one point of one level at a time: all at once would need
    4*L*P rows per query and head.
    """
    batch, tokens, heads, dim = value.shape
    gradient = output_gradient.reshape(*sampling_locations.shape[:3], dim)
    rows = value.reshape(batch * tokens * heads, dim)
    row_gradients = value.new_zeros(len(rows) + 1, dim)  # the last row collects corners outside and is dropped
    corners = find_corners(value, spatial_shapes, sampling_locations)
    share = corners.share_y[..., :, None] * corners.share_x[..., None, :]
    dot = torch.empty_like(share)  # of the output's gradient with each corner's row
    for level in range(len(spatial_shapes)):
        for point in range(sampling_locations.shape[4]):
            place = corners.rows[:, :, :, level, point].clamp(min=-1)  # (B, Q, M, 2, 2)
            dot[:, :, :, level, point] = (rows[place] * gradient[:, :, :, None, None]).sum(-1)
            weight = share[:, :, :, level, point] * attention_weights[:, :, :, level, point, None, None]
            update = weight[..., None] * gradient[:, :, :, None, None]
            row_gradients.index_add_(0, place.flatten() % len(row_gradients), update.flatten(0, -2))
    dot = torch.where(corners.rows >= 0, dot, 0)
    slope = torch.arange(-1, 2, 2, device=value.device, dtype=value.dtype)
    by_x = (corners.share_y[..., :, None] * slope * dot).sum((-2, -1)) * attention_weights
    by_y = (slope[:, None] * corners.share_x[..., None, :] * dot).sum((-2, -1)) * attention_weights
    cells = corners.sizes.flip(1).to(value.dtype)
    location_gradient = torch.stack([by_x, by_y], dim=-1) * cells[:, None]
    return row_gradients[:-1].view_as(value), location_gradient, (share * dot).sum((-2, -1))
