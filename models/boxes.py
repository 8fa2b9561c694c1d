"""Boxes: pure functions. Inside the models boxes are cxcywh in [0, 1]; xyxy pixels at the borders."""

import torch
from torch import Tensor

GIOU_EPS = 1e-6
BOUND_SLACK = 1e-5
"""Exceeds the rounding errors of a generalised IoU and of its bound, both of which have a few operations"""


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4) centre and size -> (..., 4) corners, in the same unit."""
    cx, cy, w, h = boxes.unbind(-1)
    return torch.stack([cx - 0.5 * w, cy - 0.5 * h, cx + 0.5 * w, cy + 0.5 * h], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """(..., 4) corners -> (..., 4) centre and size, in the same unit."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    return torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], dim=-1)


def size_factor(size: tuple[int, int], like: Tensor) -> Tensor:
    """(4,) = (W, H, W, H) of a size (H, W): normalised boxes times it are pixels. No synchronisation with a GPU."""
    height, width = size
    return torch.tensor([width, height, width, height], dtype=like.dtype).to(like.device, non_blocking=True)


def inverse_sigmoid(x: Tensor, eps: float) -> Tensor:
    """Logit of x clamped to [0, 1], with numerator and denominator at least `eps`; any shape."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def generalized_iou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU of boxes whose leading dimensions broadcast.

    a, b      (..., 4)  xyxy; pixels, as areas below 1e-6 are clamped
    returns   (...)     in [-1, 1]

    Source: Rezatofighi et al., Generalized Intersection over Union, CVPR 2019.
    """
    ax0, ay0, ax1, ay1 = a.unbind(-1)
    bx0, by0, bx1, by1 = b.unbind(-1)
    area_a, area_b = (ax1 - ax0) * (ay1 - ay0), (bx1 - bx0) * (by1 - by0)
    overlap_width = (torch.minimum(ax1, bx1) - torch.maximum(ax0, bx0)).clamp(min=0)
    overlap_height = (torch.minimum(ay1, by1) - torch.maximum(ay0, by0)).clamp(min=0)
    overlap = overlap_width * overlap_height
    union = (area_a + area_b - overlap).clamp(min=GIOU_EPS)
    hull_width = (torch.maximum(ax1, bx1) - torch.minimum(ax0, bx0)).clamp(min=0)
    hull_height = (torch.maximum(ay1, by1) - torch.minimum(ay0, by0)).clamp(min=0)
    hull = (hull_width * hull_height).clamp(min=GIOU_EPS)
    return overlap / union - (hull - union) / hull


def generalized_iou_bound(boxes: Tensor, group: Tensor) -> Tensor:
    """Upper bound of the generalised IoU, as computed above, of each box with every member of a group.

    The overlap is at most that with the box around the group, and at most the largest width and height of it; the union
    lies between the greater and the sum of the areas; the hull holds the box, and reaches every member's nearer side.

    boxes     (N, 4)  xyxy, pixels, of sizes >= 0
    group     (n, 4)  likewise
    returns   (N,)
    """
    x0, y0, x1, y1 = boxes.unbind(-1)
    least, most = group.amin(0), group.amax(0)
    widths, heights = (group[:, 2:] - group[:, :2]).unbind(-1)
    area, areas = (x1 - x0) * (y1 - y0), widths * heights
    overlap_width = (torch.minimum(x1, most[2]) - torch.maximum(x0, least[0])).clamp(min=0)
    overlap_height = (torch.minimum(y1, most[3]) - torch.maximum(y0, least[1])).clamp(min=0)
    overlap = torch.minimum(overlap_width, widths.amax()) * torch.minimum(overlap_height, heights.amax())
    iou = overlap / torch.maximum(area, areas.amin()).clamp(min=GIOU_EPS)
    hull_width = torch.maximum(x1, least[2]) - torch.minimum(x0, most[0])
    hull_height = torch.maximum(y1, least[3]) - torch.minimum(y0, most[1])
    filled = (area + areas.amax()).clamp(min=GIOU_EPS) / (hull_width * hull_height).clamp(min=GIOU_EPS)
    return iou + filled.clamp(max=1) - (1 - BOUND_SLACK)


class L1Distance:
    """The box distance of DETR: the sum of the four absolute differences."""

    is_metric = True
    """It obeys the triangle inequality"""

    def aligned(self, pred: Tensor, target: Tensor, pred_unact: Tensor | None = None) -> Tensor:
        """(N, 4), (N, 4) cxcywh -> (N,); the logits are not used."""
        return (pred - target).abs().sum(-1)

    def pairwise(self, pred: Tensor, target: Tensor) -> Tensor:
        """(N, 4), (M, 4) cxcywh -> (N, M), in memory row by row of the targets."""
        return torch.cdist(target, pred, p=1).T
