"""Log-size box distance: ONE formula for the loss and the matching cost."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

LOSS_TARGET_EPS = torch.finfo(torch.float32).eps
SMALLEST_SIZE = 1e-12


def log_size_l1(pred: Tensor, target: Tensor, *, target_eps: float = 0.0, log_size: Tensor | None = None) -> Tensor:
    """|dcx| + |dcy| + |ln(w/w')| + |ln(h/h')| of boxes whose leading dimensions broadcast.

    pred, target   (..., 4)  cxcywh in [0, 1]
    target_eps     added to the target's sizes
    log_size       (..., 2)  ln(w), ln(h) of pred, where they are known more exactly than pred says
    returns        (...)

    Differs from the reference: predicted sizes are clamped at 1e-12, where the reference turns infinite or NaN.
    Source: Ye et al., D3Q, JSTARS 2025, anchor-L1 loss.
    """
    x, y, width, height = pred.unbind(-1)
    target_x, target_y, target_width, target_height = target.unbind(-1)
    if log_size is None:
        wider = (width.clamp(min=SMALLEST_SIZE) / (target_width + target_eps)).log()
        higher = (height.clamp(min=SMALLEST_SIZE) / (target_height + target_eps)).log()
    else:
        wider = log_size[..., 0] - (target_width + target_eps).log()
        higher = log_size[..., 1] - (target_height + target_eps).log()
    return (x - target_x).abs() + (y - target_y).abs() + (wider.abs() + higher.abs())


class LogSizeL1:
    """The box distance of D3Q: a size error counts by its ratio, so that a 4-pixel box still has a gradient.

    form   of the loss. clamped: ln of the predicted size, which is at least 1e-12; a box that shrank below it gets
           no gradient any more. logsigmoid: ln(sigmoid(x)) of the box logits, finite with a gradient at any size
    """

    is_metric = True
    """`pairwise` obeys the triangle inequality, as a sum of absolute differences of (cx, cy, ln w, ln h)"""

    def __init__(self, *, form: Literal["clamped", "logsigmoid"] = "clamped") -> None:
        self.form = form

    def aligned(self, pred: Tensor, target: Tensor, pred_unact: Tensor | None = None) -> Tensor:
        """(N, 4), (N, 4) cxcywh -> (N,). The loss; the published one adds the float32 epsilon to the target.

        pred_unact   (N, 4)  logits of pred; needed by the form logsigmoid. Raises ValueError without them
        """
        log_size = None
        if self.form == "logsigmoid":
            if pred_unact is None:
                raise ValueError("LogSizeL1(form='logsigmoid') needs the logits of the boxes: pass pred_unact")
            log_size = F.logsigmoid(pred_unact[..., 2:].float())
        return log_size_l1(pred, target, target_eps=LOSS_TARGET_EPS, log_size=log_size)

    def pairwise(self, pred: Tensor, target: Tensor) -> Tensor:
        """(N, 4), (M, 4) cxcywh -> (N, M). The matching cost; the published one adds no epsilon.

        In memory the result is ordered by target, as assignment needs it.
        """
        return log_size_l1(pred, target[:, None]).T
