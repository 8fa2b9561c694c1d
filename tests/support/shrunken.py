"""The shipped experiments with small layers, and random batches for them."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from configs.loader import load_config
from configs.schema import Config
from datasets.structures import Target
from models.build import build_detector

CONFIGS = Path(__file__).parents[2] / "configs"
BASELINES = ("dino_aitodv2", "deformable_detr_aitodv2")
DYNAMIC = ("dino_d3q_aitodv2", "deformable_detr_d3q_aitodv2")
SYSTEMS = BASELINES + DYNAMIC
SIDE = 96
SMALL = [
    "model.hidden_dim=16",
    "model.backbone.name=resnet18",
    "model.backbone.base_width=4",
    "model.backbone.weights=null",
    "model.neck.num_groups=4",
    *(f"model.{stack}.num_heads=2" for stack in ("encoder", "decoder")),
    *(f"model.{stack}.num_points=2" for stack in ("encoder", "decoder")),
    *(f"model.{stack}.ffn_dim=24" for stack in ("encoder", "decoder")),
    "model.encoder.num_layers=1",
    "model.decoder.num_layers=2",
]


def small_config(name: str, *overrides: str) -> Config:
    sizes = ["model.num_queries=90", "model.d3q.min_queries=12"] if name in DYNAMIC else ["model.num_queries=25"]
    if name.startswith("dino"):
        sizes.append("model.denoising.num_queries=4")
    return load_config(CONFIGS / f"{name}.yaml", [*SMALL, *sizes, *overrides])


def small_detector(config: Config, *, seed: int = 0) -> nn.Module:
    """Random weights; zero-initialised layers are perturbed, so that every branch does something."""
    torch.manual_seed(seed)
    detector = build_detector(config)
    with torch.no_grad():
        for parameter in detector.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    return detector


def random_target(count: int, size: tuple[int, int] = (SIDE, SIDE), *, seed: int = 0) -> Target:
    """Objects of 2 to 10 px."""
    generator = torch.Generator().manual_seed(1000 * seed + count)
    sides = 2 + 8 * torch.rand(count, 2, generator=generator)
    corner = torch.rand(count, 2, generator=generator) * (torch.tensor([size[1], size[0]]) - sides)
    boxes = torch.cat([corner, corner + sides], dim=1)
    labels = torch.randint(0, 8, (count,), generator=generator)
    return Target(boxes, labels, image_id=seed, size=size, original_size=size)


def random_images(sizes: Sequence[tuple[int, int]], *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Noise images padded to a common size, and their padding mask."""
    generator = torch.Generator().manual_seed(seed)
    height, width = (max(sides) for sides in zip(*sizes, strict=True))
    images = torch.zeros(len(sizes), 3, height, width)
    mask = torch.ones(len(sizes), height, width, dtype=torch.bool)
    for i, (h, w) in enumerate(sizes):
        images[i, :, :h, :w] = torch.randn(3, h, w, generator=generator)
        mask[i, :h, :w] = False
    return images, mask


def spread_counts(detector: nn.Module, images: Tensor, mask: Tensor, *, fewest: float, most: float) -> None:
    """Set the density branch so that the last image has about `most` objects and the first about `fewest`.

    Its output becomes the linear discriminant between the cells of the two images, shifted and scaled.
    """
    output = detector.query_budget.density_branch.output
    seen: list[Tensor] = []
    hook = output.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        detector.eval()(images, mask)
        hook.remove()
        first, last = (seen[0][i].flatten(1).double() for i in (0, -1))
        spread = torch.cov(first) + torch.cov(last)
        direction = torch.linalg.solve(
            spread + 1e-6 * spread.trace() * torch.eye(len(spread)), last.mean(1) - first.mean(1)
        )
        low, high = direction @ first, direction @ last
        threshold = high.sort(descending=True).values[int(most)]
        slope = 100 / (high.max() - low.min())
        output.weight.copy_((slope * direction).view_as(output.weight))
        output.bias.copy_(-slope * threshold)
        assert float(((low - threshold) * slope).sigmoid().sum()) < fewest
