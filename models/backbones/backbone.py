"""What every backbone provides, and building one by its name."""

import importlib
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from models.backbones.catalog import CATALOG, find_fault

NormLayer = Callable[[int], nn.Module]
"""Normalisation layer of a channel count"""


class Backbone(nn.Module):
    """Images -> maps of several strides. Its arguments: out_strides, norm, and those of its catalogue entry."""

    NORM_EPS: ClassVar[float]
    """Epsilon of the normalisation that the published weights were trained with"""
    out_strides: tuple[int, ...]
    """Strides of the returned maps, finest first"""
    out_channels: list[int]
    """Channels of the returned maps"""

    @abstractmethod
    def stages(self) -> list[list[nn.Module]]:
        """The stem, then the stages, in the order in which `frozen_stages` freezes them."""

    @abstractmethod
    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> maps (B, C_l, H_l, W_l) of `out_strides`, finest first."""

    def own_key(self, key: str) -> str:
        """The name here of a tensor of the published weights file."""
        return key


def build_backbone(
    *, name: str, out_strides: Sequence[int], base_width: int, frozen_batch_norm: bool, frozen_stages: int
) -> Backbone:
    """A backbone with random weights, its first stages frozen; nothing is downloaded.

    name   of the catalogue

    Raises ValueError where the catalogue's rules do not allow the strides or the width.
    """
    entry = CATALOG[name]
    if fault := find_fault(name, out_strides, base_width):
        raise ValueError(": ".join(fault))
    module, _, class_name = entry.network.partition(":")
    network: type[Backbone] = getattr(importlib.import_module(module), class_name)

    def norm(channels: int) -> nn.Module:
        layer = FrozenBatchNorm2d if frozen_batch_norm else nn.BatchNorm2d
        return layer(channels, eps=network.NORM_EPS)

    width = {"base_width": base_width} if entry.has_base_width else {}
    backbone = network(out_strides=out_strides, norm=norm, **width, **entry.arguments)
    for part in backbone.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
    for parts in backbone.stages()[: frozen_stages + 1]:
        for part in parts:
            part.requires_grad_(False)
    return backbone
