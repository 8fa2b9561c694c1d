"""The definition of multi-scale deformable attention, in pure PyTorch.

Source: Zhu et al., Deformable DETR, ICLR 2021, equation 3.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def ms_deform_attn_reference(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Bilinear samples of `value` around each query, weighted and summed; outside a map the value is zero.

    value               (B, S, M, D)        S = sum of H*W over the levels
    spatial_shapes      L pairs (H, W)
    sampling_locations  (B, Q, M, L, P, 2)  (x, y) in [0, 1] of each level's map
    attention_weights   (B, Q, M, L, P)
    returns             (B, Q, M*D)
    """
    batch, _, heads, dim = value.shape
    queries, points = sampling_locations.shape[1], sampling_locations.shape[4]
    grids = 2 * sampling_locations - 1
    sampled = []
    for level, level_value in enumerate(value.split([h * w for h, w in spatial_shapes], dim=1)):
        height, width = spatial_shapes[level]
        level_map = level_value.permute(0, 2, 3, 1).reshape(batch * heads, dim, height, width)
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        sampled.append(F.grid_sample(level_map, grid, mode="bilinear", padding_mode="zeros", align_corners=False))
    weights = attention_weights.transpose(1, 2).reshape(batch * heads, 1, queries, len(sampled) * points)
    output = (torch.stack(sampled, dim=-2).flatten(-2) * weights).sum(-1)
    return output.view(batch, heads * dim, queries).transpose(1, 2).contiguous()
