"""Multi-scale deformable attention as a weighted `embedding_bag`: the fastest form on a CPU without a compiler.

It never builds the (B, Q, M, L*P, D) intermediate of the definition.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def ms_deform_attn_embedding_bag(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """The operator as a sum over the four corners of every sample: rows of `value`, weighted. See ops/reference.py."""
    batch, tokens, heads, dim = value.shape
    queries = sampling_locations.shape[1]
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
    x_valid = (x >= 0) & (x < width[..., None])
    y_valid = (y >= 0) & (y < height[..., None])
    weight_x = torch.stack([1 - fraction_x, fraction_x], dim=-1) * x_valid
    weight_y = torch.stack([1 - fraction_y, fraction_y], dim=-1) * y_valid * attention_weights[..., None]
    weights = weight_y[..., :, None] * weight_x[..., None, :]  # (B, Q, M, L, P, 2, 2)

    level_sizes = sizes.prod(1, dtype=index)
    level_start = (level_sizes.cumsum(0, dtype=index) - level_sizes)[:, None]
    image_start = torch.arange(batch, device=value.device, dtype=index)[:, None, None, None, None] * tokens
    head = torch.arange(heads, device=value.device, dtype=index)[:, None, None]
    token = (y * y_valid * width[..., None])[..., :, None] + (x * x_valid)[..., None, :]
    rows = (token + (level_start + image_start)[..., None, None]) * heads + head[..., None, None]
    output = F.embedding_bag(
        rows.reshape(batch * queries * heads, -1),
        value.reshape(batch * tokens * heads, dim),
        mode="sum",
        per_sample_weights=weights.reshape(batch * queries * heads, -1),
    )
    return output.view(batch, queries, heads * dim)
