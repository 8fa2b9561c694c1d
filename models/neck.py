"""Backbone maps -> levels of the transformer, all of one width."""

from collections.abc import Sequence

from torch import Tensor, nn


class ConvNorm(nn.Sequential):
    """Convolution, GroupNorm, no activation."""

    def __init__(
        self, in_channels: int, out_channels: int, *, num_groups: int, bias: bool, kernel_size: int, stride: int
    ) -> None:
        conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=kernel_size // 2, bias=bias)
        nn.init.xavier_uniform_(conv.weight)
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
        super().__init__(conv, nn.GroupNorm(num_groups, out_channels))


class Neck(nn.Module):
    """1x1 projections of the backbone maps; further levels by stride-2 convolutions from the last backbone map.

    in_channels   channels of the backbone maps, finest first
    num_levels    levels to return; the ones beyond the backbone's halve the resolution
    bias          the convolutions have biases; GroupNorm removes only what the channels of a group share
    """

    def __init__(
        self, *, in_channels: Sequence[int], hidden_dim: int, num_levels: int, num_groups: int, bias: bool
    ) -> None:
        super().__init__()
        self.projections = nn.ModuleList(
            ConvNorm(channels, hidden_dim, num_groups=num_groups, bias=bias, kernel_size=1, stride=1)
            for channels in in_channels
        )
        extra = range(num_levels - len(in_channels))
        self.downsamplings = nn.ModuleList(
            ConvNorm(
                hidden_dim if i else in_channels[-1],
                hidden_dim,
                num_groups=num_groups,
                bias=bias,
                kernel_size=3,
                stride=2,
            )
            for i in extra
        )

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, C_l, H_l, W_l) -> num_levels maps (B, D, H_l, W_l)."""
        levels = [project(feature) for project, feature in zip(self.projections, maps, strict=True)]
        coarsest = maps[-1]
        for downsample in self.downsamplings:
            coarsest = downsample(coarsest)
            levels.append(coarsest)
        return levels
