"""Count loss: the density of each image shall add up to its number of objects."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, smooth_l1_loss

from d3q.density_loss import Boxes, share_of_total


def log_count_error(counts: Tensor, objects: Tensor) -> Tensor:
    """Smooth L1 (Huber, beta 1) of ln((count + 1) / (objects + 1)), (B,), (B,) -> (B,) float32.

    Its gradient with respect to a count is at most 1 / (count + 1): a relative error weighs the same in an image of
    three objects and in one of three thousand, and an image without objects is an ordinary one.
    """
    return smooth_l1_loss(counts.float().log1p(), objects.float().log1p(), reduction="none")


def poisson_count_error(counts: Tensor, objects: Tensor) -> Tensor:
    """Poisson deviance, divided by the objects (at least one)."""
    counts, objects = counts.float().clamp(min=1e-6), objects.float()
    deviance = 2 * (torch.xlogy(objects, objects) - objects * counts.log() - (objects - counts))
    return deviance / objects.clamp(min=1)


def relative_count_error(counts: Tensor, objects: Tensor) -> Tensor:
    """|count - objects| / objects (at least one)."""
    return (counts.float() - objects.float()).abs() / objects.float().clamp(min=1)


FORMS = {"log": log_count_error, "poisson": poisson_count_error, "relative": relative_count_error}


class CountLoss:
    """Mean count error of the images of a batch, of the whole map or of the cells of a coarse grid."""

    def __init__(self, *, weight: float, form: str = "log", grid: int = 1) -> None:
        self.weight = weight
        self.error = FORMS[form]
        self.grid = grid

    def __call__(self, aux: dict[str, Tensor], targets: Sequence[Boxes]) -> dict[str, Tensor]:
        density_map, grid = aux["density_map"].float(), self.grid
        rows, columns = density_map.shape[-2:]
        counts = adaptive_avg_pool2d(density_map, grid)[:, 0] * (rows * columns / grid**2)
        if grid == 1:
            objects = torch.tensor([[[float(len(target.boxes_xyxy))]] for target in targets], device=counts.device)
        else:
            height, width = aux["padded_size"].tolist()
            objects = torch.stack([self.objects_of(target.boxes_xyxy, height, width) for target in targets])
        errors = self.error(counts, objects).mean((1, 2))
        return {"count": self.weight * errors.sum() / share_of_total(len(targets), counts.device)}

    def objects_of(self, boxes_xyxy: Tensor, height: int, width: int) -> Tensor:
        """Objects per cell, (grid, grid)."""
        centres = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
        scale = self.grid / centres.new_tensor([width, height])
        column, row = (centres * scale).long().clamp(0, self.grid - 1).unbind(1)
        objects = centres.new_zeros(self.grid**2)
        return objects.index_add_(0, row * self.grid + column, torch.ones_like(centres[:, 0])).view(self.grid, -1)
