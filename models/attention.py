"""Building blocks of the transformer: deformable attention over `ops`, self-attention, feed-forward, recomputation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ops import ms_deform_attn
from ops.backends import forced_backend, forced_choice


@dataclass(frozen=True, kw_only=True)
class LayerSizes:
    """Sizes of an encoder or decoder layer."""

    hidden_dim: int
    num_levels: int
    num_heads: int
    num_points: int
    """Sampling points per head and level"""
    ffn_dim: int
    """Hidden width of the feed-forward block"""
    dropout: float
    recompute_ffn: bool = False
    """Recompute the feed-forward block in the backward pass"""

    def deformable_attention(self) -> "MSDeformAttn":
        return MSDeformAttn(
            hidden_dim=self.hidden_dim,
            num_levels=self.num_levels,
            num_heads=self.num_heads,
            num_points=self.num_points,
        )

    def feed_forward(self) -> "FeedForward":
        return FeedForward(hidden_dim=self.hidden_dim, ffn_dim=self.ffn_dim, dropout=self.dropout)


@dataclass(frozen=True)
class QueryBlocks:
    """Attention bias of the queries. The first `front` of T are denoising queries: they attend to all T; the other
    queries attend only to one another.

    Two blocks need less memory than one T x T mask, which would be the largest tensor of a dense image.
    """

    front: int = 0
    """F, denoising queries in front"""
    front_bias: Tensor | None = None
    """(B|1, 1, F|1, T) added to the scores of the denoising queries, -inf = blocked; None: nothing is blocked"""
    bias: Tensor | None = None
    """(B, 1, 1, T-F) the same for the other queries, among themselves"""


def blocking_bias(blocked: Tensor) -> Tensor:
    """(B, Q, K) bool, True = blocked -> (B, 1, Q, K) float32: 0 or -inf, for all heads and layers."""
    return torch.zeros(blocked.shape, device=blocked.device).masked_fill_(blocked, float("-inf"))[:, None]


class MSDeformAttn(nn.Module):
    """Multi-scale deformable attention with its projections.

    Source: Zhu et al., Deformable DETR, ICLR 2021.
    """

    def __init__(self, *, hidden_dim: int, num_levels: int, num_heads: int, num_points: int) -> None:
        super().__init__()
        self.num_levels = num_levels
        self.num_heads = num_heads
        self.num_points = num_points
        samples = num_heads * num_levels * num_points
        self.sampling_offsets = nn.Linear(hidden_dim, samples * 2)
        self.attention_weights = nn.Linear(hidden_dim, samples)
        self.value_proj = nn.Linear(hidden_dim, hidden_dim)
        self.output_proj = nn.Linear(hidden_dim, hidden_dim)

    def reset_parameters(self) -> None:
        """Offsets start as a ring around the reference, one direction per head, one radius per point."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angles = torch.arange(self.num_heads, dtype=torch.float32) * (2 * math.pi / self.num_heads)
        ring = torch.stack([angles.cos(), angles.sin()], dim=-1)
        ring = ring / ring.abs().max(-1, keepdim=True).values
        radius = torch.arange(1, self.num_points + 1, dtype=torch.float32)[:, None]
        bias = (ring[:, None, None] * radius).expand(-1, self.num_levels, -1, -1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(bias.flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        queries: Tensor,
        reference_points: Tensor,
        memory: Tensor,
        memory_padding_mask: Tensor,
        spatial_shapes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """Attend from queries to memory.

        queries               (B, Q, D)        position already added
        reference_points      (B, Q, L, 2|4)   (cx, cy[, w, h]) in [0, 1] of the padded map, per level
        memory                (B, S, D)
        memory_padding_mask   (B, S) bool
        returns               (B, Q, D)
        """
        batch, num_queries, _ = queries.shape
        heads, levels, points = self.num_heads, self.num_levels, self.num_points
        value = self.value_proj(memory.flatten(0, 1)).masked_fill_(memory_padding_mask.flatten()[:, None], 0.0)
        value = value.view(batch, memory.shape[1], heads, -1)
        weights = self.attention_weights(queries).float().view(batch, num_queries, heads, levels * points)
        weights = weights.softmax(-1).view(batch, num_queries, heads, levels, points)
        with torch.autocast(queries.device.type, enabled=False):  # a pixel is 1/800: locations stay float32
            offsets = self.sampling_offsets(queries.float()).view(batch, num_queries, heads, levels, points, 2)
            locations = self._sampling_locations(offsets, reference_points, spatial_shapes)
            output = ms_deform_attn(value, spatial_shapes, locations, weights)
        return self.output_proj(output)

    def _sampling_locations(
        self, offsets: Tensor, reference_points: Tensor, spatial_shapes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Offsets are cells of the level around a point, and shares of half the box around a box."""
        centre = self._per_sample(reference_points[..., :2])
        offsets = offsets.flatten(3)  # all levels and points as one long axis: five times faster on a CPU
        if reference_points.shape[-1] == 2:
            cells = torch.tensor([(width, height) for height, width in spatial_shapes], dtype=offsets.dtype)
            cells = cells.to(offsets.device, non_blocking=True)
            locations = torch.addcdiv(centre, offsets, self._per_sample(cells))
        else:
            half_box = reference_points[..., 2:] * 0.5
            locations = centre + offsets * self._per_sample(half_box / self.num_points)
        return locations.unflatten(-1, (self.num_levels, self.num_points, 2))

    def _per_sample(self, values: Tensor) -> Tensor:
        """(..., L, 2), one for each level -> (..., 1, L*P*2), for all heads."""
        return values[..., None, :, None, :].expand(*values.shape[:-2], 1, -1, self.num_points, -1).flatten(-3)


class SelfAttention(nn.Module):
    """Multi-head self-attention; position is added to queries and keys, not to values."""

    def __init__(self, *, hidden_dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.in_proj = nn.Linear(hidden_dim, 3 * hidden_dim)
        self.out_proj = nn.Linear(hidden_dim, hidden_dim)

    def forward(self, queries: Tensor, position: Tensor, blocks: QueryBlocks) -> Tensor:
        """(B, T, D), (B, T, D) -> (B, T, D)."""
        dim = queries.shape[-1]
        query_key = F.linear(queries + position, self.in_proj.weight[: 2 * dim], self.in_proj.bias[: 2 * dim])
        value = F.linear(queries, self.in_proj.weight[2 * dim :], self.in_proj.bias[2 * dim :])
        query, key, value = (
            t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (*query_key.chunk(2, -1), value)
        )
        attend = partial(F.scaled_dot_product_attention, dropout_p=self.dropout if self.training else 0.0)
        front = blocks.front
        attended = attend(query[:, :, front:], key[:, :, front:], value[:, :, front:], attn_mask=blocks.bias)
        if front:
            seeing_all = attend(query[:, :, :front], key, value, attn_mask=blocks.front_bias)
            attended = torch.cat([seeing_all, attended], dim=2)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class RowWise(nn.Sequential):
    """A perceptron of in-place activations, (..., D) -> (..., D'), computed on rows (N, D).

    After a linear layer on three dimensions, an in-place activation changes a view: autograd then allocates two more
    tensors of its size in the backward pass and makes three copies.
    """

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens.flatten(0, -2)).unflatten(0, tokens.shape[:-1])


class FeedForward(RowWise):
    """Linear, ReLU, dropout, linear; the residual is added by the caller."""

    def __init__(self, *, hidden_dim: int, ffn_dim: int, dropout: float) -> None:
        super().__init__(
            nn.Linear(hidden_dim, ffn_dim), nn.ReLU(inplace=True), nn.Dropout(dropout), nn.Linear(ffn_dim, hidden_dim)
        )


def call(module: nn.Module, *inputs: Any, recompute: bool) -> Any:
    """module(*inputs); with `recompute`, activations inside it are recomputed in the backward pass (checkpointing).

    Losses and gradients are bit-equal: dropout repeats its random numbers.

    Source: Chen et al., Training Deep Nets with Sublinear Memory Cost, 2016.
    """
    if recompute and torch.is_grad_enabled():
        if torch.compiler.is_compiling():  # the compiled program holds the choice of the backend
            return checkpoint(module, *inputs, use_reentrant=False)
        return checkpoint(partial(_call_forced, module, forced_choice()), *inputs, use_reentrant=False)
    return module(*inputs)


def _call_forced(module: nn.Module, backend: str, *inputs: Any) -> Any:
    """module(*inputs) with the backend of the forward pass, whichever thread recomputes it."""
    with forced_backend(backend):
        return module(*inputs)
