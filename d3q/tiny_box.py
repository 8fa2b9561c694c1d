"""Log-size box distance: ONE formula for the loss and the matching cost."""

import torch
from torch import Tensor

LOSS_TARGET_EPS = torch.finfo(torch.float32).eps
SMALLEST_SIZE = 1e-12


def log_size_l1(pred: Tensor, target: Tensor, *, target_eps: float = 0.0) -> Tensor:
    """|dcx| + |dcy| + |ln(w/w')| + |ln(h/h')| of boxes whose leading dimensions broadcast.

    pred, target   (..., 4)  cxcywh in [0, 1]
    target_eps     added to the target's sizes
    returns        (...)

    Differs from the reference: predicted sizes are clamped at 1e-12, where the reference turns infinite or NaN.
    Source: Ye et al., D3Q, JSTARS 2025, anchor-L1 loss.
    """
    centre = (pred[..., :2] - target[..., :2]).abs().sum(-1)
    ratio = pred[..., 2:].clamp(min=SMALLEST_SIZE) / (target[..., 2:] + target_eps)
    return centre + ratio.log().abs().sum(-1)


class LogSizeL1:
    """The box distance of D3Q: a size error counts by its ratio, so that a 4-pixel box still has a gradient."""

    def aligned(self, pred: Tensor, target: Tensor) -> Tensor:
        """(N, 4), (N, 4) cxcywh -> (N,). The loss; the published one adds the float32 epsilon to the target."""
        return log_size_l1(pred, target, target_eps=LOSS_TARGET_EPS)

    def pairwise(self, pred: Tensor, target: Tensor) -> Tensor:
        """(N, 4), (M, 4) cxcywh -> (N, M). The matching cost; the published one adds no epsilon."""
        return log_size_l1(pred[:, None], target[None])
