"""Entry points of torch.hub: trained detectors whose `predict` takes an image.

    import torch
    detector = torch.hub.load("path/to/this/repository", "dino_d3q", source="local", checkpoint="runs/X/best.pth")
    found = detector.predict("photo.jpg", conf=0.25)

`predict` takes a path, a PIL image, a uint8 array (H, W, 3) or a tensor (3, H, W), RGB.
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.commands.hub import ImageDetector

dependencies = ["torch", "torchvision", "numpy", "scipy", "yaml", "PIL", "pycocotools", "tqdm"]


def dino_d3q(checkpoint: str | Path, *, device: str = "auto", scores: str = "corrected") -> "ImageDetector":
    """DINO with D3Q's dynamic query count.

    checkpoint   file of this project
    device       auto | cpu | cuda
    scores       corrected | published (docs/scores.md)
    """
    return _load(checkpoint, "dino_d3q", device, scores)


def dino(checkpoint: str | Path, *, device: str = "auto", scores: str = "corrected") -> "ImageDetector":
    """DINO; arguments as in `dino_d3q`."""
    return _load(checkpoint, "dino", device, scores)


def deformable_detr_d3q(checkpoint: str | Path, *, device: str = "auto", scores: str = "corrected") -> "ImageDetector":
    """Deformable DETR with D3Q's dynamic query count; arguments as in `dino_d3q`."""
    return _load(checkpoint, "deformable_detr_d3q", device, scores)


def deformable_detr(checkpoint: str | Path, *, device: str = "auto", scores: str = "corrected") -> "ImageDetector":
    """Deformable DETR; arguments as in `dino_d3q`."""
    return _load(checkpoint, "deformable_detr", device, scores)


def _load(checkpoint: str | Path, system: str, device: str, scores: str) -> "ImageDetector":
    from engine.commands.hub import load_detector

    return load_detector(checkpoint, system=system, device=device, scores=scores)
