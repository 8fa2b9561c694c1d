"""Pretrained backbone weights: from a file, from torchvision's cache, or by download."""

from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlparse

import torch
from torch import Tensor
from torchvision.models import get_model_weights

from models.backbones.backbone import Backbone
from models.backbones.catalog import CATALOG

PREFIXES = ("_orig_mod.", "model.", "module.")
"""Of all names: what torch.compile, trainers and distributed training wrap around a model"""


class WeightsError(Exception):
    """Backbone weights are unavailable or do not fit."""


def load_backbone_weights(backbone: Backbone, *, name: str, weights: str) -> str:
    """Load a local file, or torchvision's weights from its cache or by download; returns their source.

    weights   a file (a name with a suffix or a folder) or torchvision's enum name, such as IMAGENET1K_V1

    Raises WeightsError naming the source, the file and the remedy.
    """
    path = Path(weights)
    if path.suffix or len(path.parts) > 1:
        if not path.is_file():
            raise WeightsError(
                f"{path}: no such weights file (model.backbone.weights); make it with scripts/fetch_weights.py "
                "if that has it, or start from random weights with model.backbone.weights: null"
            )
        state = _read(path)
    else:
        path = _torchvision_file(name, weights)
        state = _read(path)
    _load(backbone, state, source=str(path))
    return str(path)


def _torchvision_file(name: str, weights: str) -> Path:
    if (remedy := CATALOG[name].weights_remedy) is not None:
        raise WeightsError(
            f"model.backbone.weights: torchvision has no {name} weights '{weights}'; {remedy}, or use null"
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
        except (OSError, HTTPException, RuntimeError) as error:  # RuntimeError: the hash of the download is wrong
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


def _load(backbone: Backbone, state: dict[str, Tensor], source: str) -> None:
    """Every tensor of the backbone must come from the file; its classifier and deeper stages are skipped."""
    state = {backbone.own_key(key): value for key, value in state.items()}
    own = backbone.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    wrong = [key for key in own if key in state and state[key].shape != own[key].shape]
    if missing or wrong:
        raise WeightsError(
            f"{source}: does not fit the backbone: {len(missing)} tensors missing, {len(wrong)} of another shape; "
            f"first: {', '.join((missing + wrong)[:10])}"
        )
    backbone.load_state_dict({key: state[key] for key in own if key in state}, strict=False)


def strip_prefixes(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The state without the prefixes that all of its names share, nested in any order; and these together."""
    stripped = ""
    names = list(state)
    while found := next((p for p in PREFIXES if names and all(len(n) > len(p) and n.startswith(p) for n in names)), ""):
        names = [name.removeprefix(found) for name in names]
        stripped += found
    return dict(zip(names, state.values(), strict=True)), stripped
