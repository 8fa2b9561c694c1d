"""ResNets of torchvision's blocks."""

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from models.backbones.backbone import Backbone, NormLayer


class ResNet(Backbone):
    """A ResNet without its classifier; stages beyond the deepest returned stride are not built.

    block         basic: two 3x3 convolutions; bottleneck: 1x1, 3x3, 1x1
    depths        blocks per stage
    base_width    channels of the stem (64 in the published networks)
    out_strides   strides of the returned maps, from 4, 8, 16, 32
    norm          normalisation layer of a channel count

    Parameter names are torchvision's. Source: He et al., Deep Residual Learning, CVPR 2016.
    """

    NORM_EPS = 1e-5

    def __init__(
        self,
        *,
        block: Literal["basic", "bottleneck"],
        depths: Sequence[int],
        base_width: int,
        out_strides: Sequence[int],
        norm: NormLayer,
    ) -> None:
        super().__init__()
        kind = BasicBlock if block == "basic" else Bottleneck
        self.out_strides = tuple(out_strides)
        self.conv1 = nn.Conv2d(3, base_width, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm(base_width)
        channels = base_width
        self.out_channels: list[int] = []
        for stage in range(out_strides[-1].bit_length() - 2):
            width = base_width * 2**stage
            blocks = []
            for i in range(depths[stage]):
                stride = 2 if stage and i == 0 else 1
                shortcut = self._shortcut(channels, width * kind.expansion, stride, norm)
                blocks.append(kind(channels, width, stride, shortcut, norm_layer=norm))
                channels = width * kind.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
            if 4 * 2**stage in out_strides:
                self.out_channels.append(channels)

    @staticmethod
    def _shortcut(in_channels: int, out_channels: int, stride: int, norm: NormLayer) -> nn.Module | None:
        if stride == 1 and in_channels == out_channels:
            return None
        return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), norm(out_channels))

    def stages(self) -> list[list[nn.Module]]:
        """The stem, then the stages."""
        layers = [layer for name, layer in self.named_children() if name.startswith("layer")]
        return [[self.conv1, self.bn1], *([layer] for layer in layers)]

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> maps of `out_strides`, finest first."""
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(images))), 3, stride=2, padding=1)
        maps = []
        for stage, (layer,) in enumerate(self.stages()[1:]):
            x = layer(x)
            if 4 * 2**stage in self.out_strides:
                maps.append(x)
        return maps
