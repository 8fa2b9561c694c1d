"""Boxes -> density target; focal-style density loss."""

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

MIN_OVERLAP = 0.3
LOG_EPS = 1e-12


class Boxes(Protocol):
    """What the loss reads of a training target."""

    @property
    def boxes_xyxy(self) -> Tensor:
        """(N, 4) pixels of the network input."""


def gaussian_radius(height: Tensor, width: Tensor, min_overlap: float = MIN_OVERLAP) -> Tensor:
    """Largest corner shift, in cells, that keeps an IoU of `min_overlap` with the box; (N,), (N,) -> (N,).

    Of CornerNet's three cases the strictest whatever the box: both corners move inwards, (h-2r)(w-2r) = overlap*h*w.
    Source: Law and Deng, CornerNet, ECCV 2018, with the roots divided by 2a.
    """
    total = height + width
    return (total - torch.sqrt(total**2 - 4 * (1 - min_overlap) * (height * width))) / 4


def density_target(
    boxes_xyxy: Tensor,
    map_size: tuple[int, int],
    image_size: tuple[int, int],
    *,
    merge: Literal["max", "sum"] = "max",
) -> Tensor:
    """Density map of one image, (N, 4) -> (H, W); see `density_targets`."""
    return density_targets([boxes_xyxy], map_size, image_size, merge=merge)[0]


def density_targets(
    boxes_xyxy: Sequence[Tensor],
    map_size: tuple[int, int],
    image_size: tuple[int, int],
    *,
    merge: Literal["max", "sum"] = "max",
) -> Tensor:
    """Density maps of a batch: a Gaussian of mass one around each object's centre.

    boxes_xyxy   per image (N, 4)  pixels
    map_size     (H, W)     cells
    image_size   (H, W)     pixels that the map covers, padding included
    merge        max: overlapping kernels by maximum, cropped at the border (published: mass is lost in crowds
                 and at borders); sum: added, and each kernel's mass inside the map scaled to one
    returns      (B, H, W)  float32, objects per cell

    A kernel whose centre lies outside the map keeps the part that is inside.
    Source: Ye et al., D3Q, JSTARS 2025; kernel radius as in CornerNet with overlap 0.3, sigma = (2r+1)/6.
    """
    ratio_y, ratio_x = map_size[0] / image_size[0], map_size[1] / image_size[1]
    rows, columns = map_size[0] + 2, map_size[1] + 2  # with a border that takes what lies outside
    cells = len(boxes_xyxy) * rows * columns
    x0, y0, x1, y1 = torch.cat(list(boxes_xyxy)).float().unbind(1)
    radius = gaussian_radius((y1 - y0) * ratio_y, (x1 - x0) * ratio_x).long().clamp(min=1)
    counts = Counter(sorted(radius.tolist()))  # sync
    first_row = torch.cat([torch.full((len(own),), i * rows, device=own.device) for i, own in enumerate(boxes_xyxy)])
    places = torch.stack([first_row, ((y0 + y1) * (ratio_y / 2)).long(), ((x0 + x1) * (ratio_x / 2)).long()])
    groups = places[:, radius.argsort()].split(list(counts.values()), dim=1)
    # Zeros of eight bytes, then of four: torch wakes no threads for so few, which takes longer than all the rest.
    target = radius.new_zeros((cells + 1) // 2).view(torch.float32)
    for reach, (own_first_row, centre_y, centre_x) in zip(counts, groups, strict=True):
        span = torch.arange(1 - reach, 2 + reach, device=target.device)[:, None]
        y, x = (centre_y + span).clamp(0, rows - 1), (centre_x + span).clamp(0, columns - 1)
        cell = ((own_first_row + y) * columns)[:, None] + x
        kernel = gaussian_kernel(reach, target.device)
        if merge == "sum":
            inside = ((y > 0) & (y < rows - 1))[:, None] & ((x > 0) & (x < columns - 1))
            inside, cell = (t.movedim(-1, 0).contiguous() for t in (inside, cell))  # added object by object
            value = kernel / (kernel * inside).sum((1, 2), keepdim=True)
            target.index_add_(0, cell.flatten(), value.flatten())
        else:
            value = kernel[:, :, None].expand(cell.shape)
            target.scatter_reduce_(0, cell.flatten(), value.flatten(), "amax")
    return target[:cells].view(-1, rows, columns)[:, 1:-1, 1:-1]


@lru_cache(maxsize=256)
def gaussian_kernel(radius: int, device: torch.device) -> Tensor:
    """(2r+1, 2r+1) Gaussian of mass one with sigma = (2r+1)/6; not to be written to."""
    square = torch.arange(-radius, radius + 1, device=device) ** 2
    sigma = (2 * radius + 1) / 6
    value = (-(square + square[:, None]).float() / (2 * sigma**2)).exp()
    return value / value.sum()


def density_focal_loss(density_map: Tensor, target: Tensor) -> Tensor:
    """Sum over all cells: where the target is 0, -ln(1-p) p^2; elsewhere BCE(p, t) |t-p|^2.

    density_map, target   same shape; density in [0, 1]
    returns               scalar, float32

    Source: Ye et al., D3Q, JSTARS 2025, density focal loss, with the published code's constants.
    """
    density, target = density_map.float(), target.float()
    log_empty = torch.log(1 - density + LOG_EPS)
    empty = -log_empty * density**2
    entropy = -(target * torch.log(density + LOG_EPS) + (1 - target) * log_empty)
    occupied = entropy * (target - density).abs() ** 2
    return torch.where(target == 0, empty, occupied).sum()


class DensityLoss:
    """Density loss of a batch, divided by its number of objects (at least one).

    Among several processes the batch is that of all of them: the mean of their gradients is its gradient.

    weight   factor of the loss
    merge    see `density_target`
    """

    def __init__(self, *, weight: float, merge: Literal["max", "sum"]) -> None:
        self.weight = weight
        self.merge = merge

    def __call__(self, aux: dict[str, Tensor], targets: Sequence[Boxes]) -> dict[str, Tensor]:
        """aux: `density_map` (B, 1, H, W), `padded_size` (2,) pixels (H, W) on the host -> {"density"}.

        Differs from the reference: the divisor is at least one in both detectors, and one for all processes.
        """
        density_map = aux["density_map"]
        rows, columns = density_map.shape[-2:]
        image_height, image_width = aux["padded_size"].tolist()
        size = (image_height, image_width)
        target = density_targets([t.boxes_xyxy for t in targets], (rows, columns), size, merge=self.merge)
        divisor = share_of_total(sum(len(t.boxes_xyxy) for t in targets), density_map.device)
        with torch.autocast(density_map.device.type, enabled=False):
            loss = density_focal_loss(density_map[:, 0], target)
        return {"density": self.weight * loss / divisor}


def share_of_total(number: int, device: torch.device) -> Tensor | float:
    """The number (of objects, of images) of all processes, at least one, over the number of processes."""
    eps = torch.finfo(torch.float32).eps
    if not (dist.is_available() and dist.is_initialized()):
        return max(number, 1) + eps
    total = torch.full((), float(number), device=device)
    dist.all_reduce(total)
    return (total.clamp(min=1) + eps) / dist.get_world_size()
