"""The definition of multi-scale deformable attention, in pure PyTorch.

Source: Zhu et al., Deformable DETR, ICLR 2021, equation 3.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def _samples_inside(sampling_locations: Tensor, spatial_shapes: Sequence[tuple[int, int]]) -> Tensor:
    """(B, Q, M, L, P, 2) -> (B, Q, M, L, P) bool: whether a sample touches its map. NaN and infinity never do."""
    inside = []
    for level, (height, width) in enumerate(spatial_shapes):
        x, y = sampling_locations[:, :, :, level].unbind(-1)
        x, y = x * width - 0.5, y * height - 0.5
        inside.append((x > -1) & (x < width) & (y > -1) & (y < height))
    return torch.stack(inside, dim=3)


def ms_deform_attn_reference(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Bilinear samples of `value` around each query, weighted and summed; outside a map the value is zero.

    value               (B, S, M, D)        S = sum of H*W over the levels; all tensors of one dtype
    spatial_shapes      L pairs (H, W)
    sampling_locations  (B, Q, M, L, P, 2)  (x, y) in [0, 1] of each level's map
    attention_weights   (B, Q, M, L, P)
    returns             (B, Q, M*D)

    A sample that touches no cell of its map, or whose location is NaN, counts as zero, and so do its gradients: a value
    that is not finite affects only queries that sample its cell. `attention_weights` must be finite.
    """
    batch, _, heads, dim = value.shape
    queries, points = sampling_locations.shape[1], sampling_locations.shape[4]
    # grid_sample would clip NaN into the map. -1 is a whole map away from it.
    inside = _samples_inside(sampling_locations.detach(), spatial_shapes)
    grids = 2 * torch.where(inside[..., None], sampling_locations, -1.0) - 1
    sampled = []
    for level, level_value in enumerate(value.split([h * w for h, w in spatial_shapes], dim=1)):
        height, width = spatial_shapes[level]
        level_map = level_value.permute(0, 2, 3, 1).reshape(batch * heads, dim, height, width)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        sampled.append(F.grid_sample(level_map, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    weights = attention_weights.transpose(1, 2).reshape(batch * heads, 1, queries, len(sampled) * points)
    output = (torch.stack(sampled, dim=-2).flatten(-2) * weights).sum(-1)
    return output.view(batch, heads * dim, queries).transpose(1, 2).contiguous()
