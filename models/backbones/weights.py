"""Pretrained backbone weights: where they come from, and loading them."""

import re
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlparse

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights

from models.backbones.resnet import EfficientNetLite0, ResNet
from models.key_mapping import strip_prefixes


class WeightsError(Exception):
    """Backbone weights that cannot be had or do not fit."""


def load_backbone_weights(backbone: ResNet | EfficientNetLite0, *, name: str, weights: str) -> str:
    """Load a local file, or torchvision's weights from its cache or by download; returns where they came from.

    weights   a file (a name with a suffix or a folder) or torchvision's enum name, such as IMAGENET1K_V1

    Raises WeightsError naming the source, the file and the way out.
    """
    path = Path(weights)
    if path.suffix or len(path.parts) > 1:
        if not path.is_file():
            raise WeightsError(
                f"{path}: no such weights file (model.backbone.weights); make it with scripts/fetch_weights.py "
                "where that has it, or start from random weights with model.backbone.weights: null"
            )
        state = _read(path)
    else:
        path = _torchvision_file(name, weights)
        state = _read(path)
    _load(backbone, state, source=str(path))
    return str(path)


def _torchvision_file(name: str, weights: str) -> Path:
    if name == "efficientnet_lite0":
        raise WeightsError(
            f"model.backbone.weights: torchvision has no {name} weights '{weights}'; run "
            "scripts/fetch_weights.py and give the file it writes, or use null"
        )
    entries = get_model_weights(name).__members__
    if weights not in entries:
        raise WeightsError(
            f"model.backbone.weights: '{weights}' is neither a file nor one of torchvision's {name} weights "
            f"({', '.join(entries)}); null starts from random weights"
        )
    url = entries[weights].value.url
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if not cached.is_file():
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(cached), hash_prefix=cached.stem.split("-")[-1], progress=False)
        except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError: the hash of what came is wrong
            raise WeightsError(
                f"cannot fetch {url} ({error}); put the file at {cached}, or start from random weights with "
                "model.backbone.weights: null"
            ) from error
    return cached


def _read(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise WeightsError(f"{path}: not a readable weights file ({reason})") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path}: not a state dict of tensors")
    return strip_prefixes(state)[0]


def _load(backbone: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Every tensor of the backbone must come from the file; the file's classifier and deeper stages are left."""
    if isinstance(backbone, EfficientNetLite0):
        state = {lite0_key(backbone, key): value for key, value in state.items()}
    own = backbone.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    wrong = [key for key in own if key in state and state[key].shape != own[key].shape]
    if missing or wrong:
        raise WeightsError(
            f"{source}: does not fit the backbone: {len(missing)} tensors missing, {len(wrong)} of another shape; "
            f"first: {', '.join((missing + wrong)[:10])}"
        )
    backbone.load_state_dict({key: state[key] for key in own if key in state}, strict=False)


def lite0_key(backbone: EfficientNetLite0, key: str) -> str:
    """Name of a tensor of the published EfficientNet-Lite0 file in `EfficientNetLite0`; others stay as they are."""
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
    for group, blocks in enumerate(backbone.groups):
        size = len(blocks)  # type: ignore[arg-type]
        if block < size:
            return f"groups.{group}.{block}.{layers[found[2]]}.{found[3]}"
        block -= size
    return key
