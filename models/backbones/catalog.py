"""Catalogue of the backbones: class, allowed strides and widths, input statistics, source of the weights.

Imports no torch: a config is resolved before torch is imported, so an entry names its class as text. The names are also
the choices of model.backbone.name in `configs/schema.py`; a test holds the two equal.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

RGB = tuple[float, float, float]
PUBLISHED_WIDTH = 64
"""base_width of the published ResNets"""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One backbone."""

    network: str
    """module:class, a `Backbone`"""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of the class besides strides, normalisation and width"""
    strides: tuple[int, ...]
    """Strides of the maps that it can return"""
    has_base_width: bool
    """Whether its width can be scaled"""
    mean: RGB
    """Of the input of the published weights, RGB in [0, 1]"""
    std: RGB
    """Standard deviation, likewise"""
    weights_remedy: str | None = None
    """How to get a file of the published weights, for errors; None: torchvision has them by name"""

    @property
    def is_torchvision(self) -> bool:
        """Whether torchvision has this network: its weights by name, and its names of the tensors."""
        return self.weights_remedy is None


def _resnet(block: str, *depths: int) -> Entry:
    return Entry(
        network="models.backbones.resnet:ResNet",
        arguments={"block": block, "depths": depths},
        strides=(4, 8, 16, 32),
        has_base_width=True,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )


CATALOG: Mapping[str, Entry] = {
    "resnet18": _resnet("basic", 2, 2, 2, 2),
    "resnet34": _resnet("basic", 3, 4, 6, 3),
    "resnet50": _resnet("bottleneck", 3, 4, 6, 3),
    "resnet101": _resnet("bottleneck", 3, 4, 23, 3),
    "efficientnet_lite0": Entry(
        network="models.backbones.efficientnet_lite:EfficientNetLite0",
        strides=(2, 4, 8, 16, 32),
        has_base_width=False,
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
        weights_remedy="run scripts/fetch_weights.py and give the file it writes",
    ),
}


def find_fault(name: str, out_strides: Sequence[int], base_width: int) -> tuple[str, str] | None:
    """(key of model.backbone, reason) if these values do not suit the backbone of that name, else None."""
    entry = CATALOG[name]
    if not set(out_strides) <= set(entry.strides):
        choices = ", ".join(map(str, entry.strides))
        return "out_strides", f"{name} has strides {choices}; got {list(out_strides)}"
    if not entry.has_base_width and base_width != PUBLISHED_WIDTH:
        return "base_width", f"{name} has no base width; remove the key"
    return None
