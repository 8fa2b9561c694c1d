"""Boxes -> density target; focal-style density loss."""

from collections.abc import Sequence
from typing import Literal, Protocol

import torch
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

    Source: Law and Deng, CornerNet, ECCV 2018, with the roots divided by 2a.
    """
    total, area = height + width, height * width
    linear = total - torch.sqrt(total**2 - 4 * area * (1 - min_overlap) / (1 + min_overlap))
    inner = 2 * total - torch.sqrt((2 * total) ** 2 - 16 * (1 - min_overlap) * area)
    slope = -2 * min_overlap * total
    outer = slope + torch.sqrt(slope**2 - 16 * min_overlap * (min_overlap - 1) * area)
    return torch.minimum(torch.minimum(linear / 2, inner / 8), outer / (8 * min_overlap))


def density_target(
    boxes_xyxy: Tensor,
    map_size: tuple[int, int],
    image_size: tuple[int, int],
    *,
    merge: Literal["max", "sum"] = "max",
) -> Tensor:
    """Density map of one image: a Gaussian of mass one around each object's centre.

    boxes_xyxy   (N, 4)  pixels
    map_size     (H, W)  cells
    image_size   (H, W)  pixels that the map covers, padding included
    merge        max: overlapping kernels by maximum, cropped at the border (published: mass is lost in crowds
                 and at borders); sum: added, and each kernel's mass inside the map scaled to one
    returns      (H, W)  float32, objects per cell

    A kernel whose centre lies outside the map keeps the part that is inside.
    Source: Ye et al., D3Q, JSTARS 2025; kernel radius as in CornerNet with overlap 0.3, sigma = (2r+1)/6.
    """
    rows, columns = map_size
    ratio_y, ratio_x = rows / image_size[0], columns / image_size[1]
    boxes = boxes_xyxy.float()
    target = boxes.new_zeros(rows * columns)
    centre_x = ((boxes[:, 0] + boxes[:, 2]) * ratio_x / 2).int()
    centre_y = ((boxes[:, 1] + boxes[:, 3]) * ratio_y / 2).int()
    sizes = (boxes[:, 2:] - boxes[:, :2]) * boxes.new_tensor([ratio_x, ratio_y])
    radius = gaussian_radius(sizes[:, 1], sizes[:, 0]).int().clamp(min=1)

    owner, dx, dy = _kernel_cells(radius)
    sigma = (2 * radius + 1).float() / 6
    value = (-(dx * dx + dy * dy).float() / (2 * sigma[owner] ** 2)).exp()
    value = torch.where(value < torch.finfo(torch.float32).eps, 0.0, value)
    x, y = centre_x[owner] + dx, centre_y[owner] + dy
    inside = (x >= 0) & (x < columns) & (y >= 0) & (y < rows)
    counted = inside if merge == "sum" else torch.ones_like(inside)
    mass = boxes.new_zeros(len(boxes)).index_add(0, owner, value * counted)
    value = (value / mass[owner])[inside]
    cell = (y * columns + x)[inside].long()
    if merge == "sum":
        return target.index_add(0, cell, value).view(rows, columns)
    return target.scatter_reduce(0, cell, value, "amax").view(rows, columns)


def _kernel_cells(radius: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cells of all square kernels, one after the other: owner (T,), dx (T,), dy (T,), T = sum of (2r+1)^2."""
    side = (2 * radius + 1).long()
    cells = side * side
    owner = torch.repeat_interleave(torch.arange(len(radius), device=radius.device), cells)
    position = torch.arange(len(owner), device=radius.device) - (cells.cumsum(0) - cells)[owner]
    reach = radius[owner]
    return (
        owner,
        (position % side[owner]) - reach,
        torch.div(position, side[owner], rounding_mode="floor") - reach,
    )


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

    weight   factor of the loss
    merge    see `density_target`
    """

    def __init__(self, *, weight: float, merge: Literal["max", "sum"]) -> None:
        self.weight = weight
        self.merge = merge

    def __call__(self, aux: dict[str, Tensor], targets: Sequence[Boxes]) -> dict[str, Tensor]:
        """aux: `density_map` (B, 1, H, W), `padded_size` (2,) pixels (H, W) on the host -> {"density"}.

        Differs from the reference: the divisor is at least one in both detectors.
        """
        density_map = aux["density_map"]
        rows, columns = density_map.shape[-2:]
        image_height, image_width = aux["padded_size"].tolist()
        maps = [
            density_target(t.boxes_xyxy, (rows, columns), (image_height, image_width), merge=self.merge)
            for t in targets
        ]
        objects = sum(len(t.boxes_xyxy) for t in targets)
        divisor = max(objects, 1) + torch.finfo(torch.float32).eps
        with torch.autocast(density_map.device.type, enabled=False):
            loss = density_focal_loss(density_map[:, 0], torch.stack(maps))
        return {"density": self.weight * loss / divisor}
