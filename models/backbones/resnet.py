"""Convolutional backbones: ResNets of torchvision's blocks, and EfficientNet-Lite0."""

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FrozenBatchNorm2d

NormLayer = Callable[[int], nn.Module]

RESNET_LAYOUTS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
}


class ResNet(nn.Module):
    """A ResNet without its classifier; stages beyond the deepest wanted stride are not built.

    name          resnet18 | resnet34 | resnet50 | resnet101
    base_width    channels of the stem (64 in the published networks)
    out_strides   strides of the returned maps, from 4, 8, 16, 32
    norm          normalisation layer of a channel count

    Parameter names are torchvision's. Source: He et al., Deep Residual Learning, CVPR 2016.
    """

    def __init__(self, *, name: str, base_width: int, out_strides: Sequence[int], norm: NormLayer) -> None:
        super().__init__()
        block, depths = RESNET_LAYOUTS[name]
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
                shortcut = self._shortcut(channels, width * block.expansion, stride, norm)
                blocks.append(block(channels, width, stride, shortcut, norm_layer=norm))
                channels = width * block.expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
            if 4 * 2**stage in out_strides:
                self.out_channels.append(channels)

    @staticmethod
    def _shortcut(in_channels: int, out_channels: int, stride: int, norm: NormLayer) -> nn.Module | None:
        if stride == 1 and in_channels == out_channels:
            return None
        return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), norm(out_channels))

    def stages(self) -> list[list[nn.Module]]:
        """The stem, then the stages: what `frozen_stages` counts."""
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


class EfficientNetLite0(nn.Module):
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
        """The stem with the stride-2 blocks, then the stages: what `frozen_stages` counts."""
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


def build_backbone(
    *, name: str, out_strides: Sequence[int], base_width: int, frozen_batch_norm: bool, frozen_stages: int
) -> ResNet | EfficientNetLite0:
    """A backbone with random weights, its first stages frozen; nothing is downloaded."""
    lite = name == "efficientnet_lite0"
    eps = EfficientNetLite0.NORM_EPS if lite else 1e-5

    def norm(channels: int) -> nn.Module:
        layer = FrozenBatchNorm2d if frozen_batch_norm else nn.BatchNorm2d
        return layer(channels, eps=eps)

    backbone: ResNet | EfficientNetLite0
    if lite:
        backbone = EfficientNetLite0(out_strides=out_strides, norm=norm)
    else:
        backbone = ResNet(name=name, base_width=base_width, out_strides=out_strides, norm=norm)
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    for modules in backbone.stages()[: frozen_stages + 1]:
        for module in modules:
            module.requires_grad_(False)
    return backbone
