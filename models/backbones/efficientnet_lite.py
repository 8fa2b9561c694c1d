"""EfficientNet-Lite0: a light backbone for CPUs and drones."""

import re
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from models.backbones.backbone import Backbone, NormLayer


class SameConv2d(nn.Conv2d):
    """Convolution padded so that the output side is ceil(input / stride), the odd pixel right and below."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        pad_y, pad_x = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in x.shape[-2:])
        x = F.pad(x, (pad_x // 2, pad_x - pad_x // 2, pad_y // 2, pad_y - pad_y // 2))
        return F.conv2d(x, self.weight, stride=self.stride, groups=self.groups)


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, 1x1 projection; residual where the shape stays."""

    def __init__(
        self, in_channels: int, out_channels: int, *, expansion: int, kernel: int, stride: int, norm: NormLayer
    ) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.expand = None
        if expansion > 1:
            self.expand = nn.Sequential(SameConv2d(in_channels, hidden, 1, bias=False), norm(hidden), nn.ReLU6())
        self.depthwise = nn.Sequential(
            SameConv2d(hidden, hidden, kernel, stride=stride, groups=hidden, bias=False), norm(hidden), nn.ReLU6()
        )
        self.project = nn.Sequential(SameConv2d(hidden, out_channels, 1, bias=False), norm(out_channels))
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        hidden = x if self.expand is None else self.expand(x)
        projected = self.project(self.depthwise(hidden))
        return x + projected if self.residual else projected


class EfficientNetLite0(Backbone):
    """EfficientNet-Lite0 without its classifier: ReLU6, no squeeze-excitation; 2 to 32 pixels stride.

    out_strides   strides of the returned maps, from 2, 4, 8, 16, 32; deeper blocks are not built
    norm          normalisation layer of a channel count

    Source: Tan and Le, EfficientNet, ICML 2019; the Lite variant is TensorFlow's (Apache-2.0).
    """

    # per stride: (repeats, kernel, stride of the first block, expansion, channels)
    LAYOUT = (
        ((1, 3, 1, 1, 16),),
        ((2, 3, 2, 6, 24),),
        ((2, 5, 2, 6, 40),),
        ((3, 3, 2, 6, 80), (3, 5, 1, 6, 112)),
        ((4, 5, 2, 6, 192), (1, 3, 1, 6, 320)),
    )
    NORM_EPS = 1e-3

    def __init__(self, *, out_strides: Sequence[int], norm: NormLayer) -> None:
        super().__init__()
        self.out_strides = tuple(out_strides)
        self.stem = nn.Sequential(SameConv2d(3, 32, 3, stride=2, bias=False), norm(32), nn.ReLU6())
        channels = 32
        self.out_channels: list[int] = []
        self.groups = nn.ModuleList()
        for depth, group in enumerate(self.LAYOUT[: out_strides[-1].bit_length() - 1]):
            blocks = []
            for repeats, kernel, first_stride, expansion, width in group:
                for i in range(repeats):
                    stride = first_stride if i == 0 else 1
                    block = InvertedResidual(
                        channels, width, expansion=expansion, kernel=kernel, stride=stride, norm=norm
                    )
                    blocks.append(block)
                    channels = width
            self.groups.append(nn.Sequential(*blocks))
            if 2 ** (depth + 1) in out_strides:
                self.out_channels.append(channels)

    def stages(self) -> list[list[nn.Module]]:
        """The stem with the stride-2 blocks, then the stages."""
        return [[self.stem, self.groups[0]], *([group] for group in self.groups[1:])]

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) -> maps of `out_strides`, finest first."""
        x = self.stem(images)
        maps = []
        for depth, group in enumerate(self.groups):
            x = group(x)
            if 2 ** (depth + 1) in self.out_strides:
                maps.append(x)
        return maps

    def own_key(self, key: str) -> str:
        """Names of the published file, such as _blocks.3._bn1.weight; others stay as they are."""
        parts = {"_bn0": "stem.1", "_conv_stem": "stem.0"}
        if (stem := key.split(".")[0]) in parts:
            return key.replace(stem, parts[stem])
        found = re.fullmatch(r"_blocks\.(\d+)\.(_\w+)\.(\w+)", key)
        if not found:
            return key
        block = int(found[1])
        layers = {
            "_expand_conv": "expand.0", "_bn0": "expand.1", "_depthwise_conv": "depthwise.0", "_bn1": "depthwise.1",
            "_project_conv": "project.0", "_bn2": "project.1",
        }  # fmt: skip
        for group, blocks in enumerate(self.groups):
            size = len(blocks)  # type: ignore[arg-type]
            if block < size:
                return f"groups.{group}.{block}.{layers[found[2]]}.{found[3]}"
            block -= size
        return key
