"""Finest feature map -> density map -> objects per image."""

import math

import torch
from torch import Tensor, nn


class DensityBranch(nn.Module):
    """Two convolutions and a sigmoid: objects per cell of the finest feature map.

    in_channels, hidden_channels   widths of the feature map and of the hidden layer
    initial_density                density that an untrained branch predicts in every cell

    Source: Ye et al., D3Q, JSTARS 2025, density estimation.
    """

    def __init__(self, *, in_channels: int, hidden_channels: int, initial_density: float) -> None:
        super().__init__()
        self.hidden = nn.Conv2d(in_channels, hidden_channels, 3, padding=1)
        self.output = nn.Conv2d(hidden_channels, 1, 1)
        nn.init.constant_(self.output.bias, math.log(initial_density / (1 - initial_density)))  # type: ignore[arg-type]

    def forward(self, feature_map: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, 1, H, W) float32, also under autocast; objects per cell in (0, 1)."""
        with torch.autocast(feature_map.device.type, enabled=False):
            return self.output(torch.relu(self.hidden(feature_map.float()))).sigmoid()


def count_objects(density_map: Tensor) -> Tensor:
    """Objects per image: the integral of the density over the whole map, padding included, as published.

    density_map   (B, 1, H, W)  objects per cell, >= 0
    returns       (B,)          objects, float32

    Source: Ye et al., D3Q, JSTARS 2025.
    """
    return density_map.float().sum(dim=(1, 2, 3))
