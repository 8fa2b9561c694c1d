"""Count loss: the density of each image shall add up to its number of objects."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from d3q.density_branch import count_objects
from d3q.density_loss import Boxes, share_of_total


def log_count_error(counts: Tensor, objects: Tensor) -> Tensor:
    """Smooth L1 (Huber, beta 1) of ln((count + 1) / (objects + 1)), (B,), (B,) -> (B,) float32.

    Its gradient with respect to a count is at most 1 / (count + 1): a relative error weighs the same in an image of
    three objects and in one of three thousand, and an image without objects is an ordinary one.
    """
    return smooth_l1_loss(counts.float().log1p(), objects.float().log1p(), reduction="none")


class CountLoss:
    """Mean log count error of the images of a batch; beside `DensityLoss`, which decides where the density lies.

    The published density loss has hardly a gradient on empty cells (of the order of density^3 in the logit): each
    keeps a little density, and thousands of them add up to a count that is too high.

    Among several processes the batch is that of all of them: the mean of their gradients is its gradient.

    weight   factor of the loss

    Not part of the published method.
    """

    def __init__(self, *, weight: float) -> None:
        self.weight = weight

    def __call__(self, aux: dict[str, Tensor], targets: Sequence[Boxes]) -> dict[str, Tensor]:
        """aux: `density_map` (B, 1, H, W), objects per cell -> {"count"}.

        The count is the one that the query budget uses: with the padding, unless the map is 0 there (`count_padding`).
        """
        counts = count_objects(aux["density_map"])
        objects = torch.tensor([len(target.boxes_xyxy) for target in targets], device=counts.device)
        errors = log_count_error(counts, objects)
        return {"count": self.weight * errors.sum() / share_of_total(len(targets), counts.device)}
