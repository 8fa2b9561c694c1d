"""Boxes: pure functions. Inside the models boxes are cxcywh in [0, 1]; xyxy pixels at the borders."""

import torch
from torch import Tensor

GIOU_EPS = 1e-6


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4) centre and size -> (..., 4) corners, in the same unit."""
    cx, cy, w, h = boxes.unbind(-1)
    return torch.stack([cx - 0.5 * w, cy - 0.5 * h, cx + 0.5 * w, cy + 0.5 * h], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """(..., 4) corners -> (..., 4) centre and size, in the same unit."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    return torch.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], dim=-1)


def size_factor(size: tuple[int, int], like: Tensor) -> Tensor:
    """(4,) = (W, H, W, H) of a size (H, W): normalised boxes times it are pixels."""
    height, width = size
    return like.new_tensor([width, height, width, height])


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
    area_a = (a[..., 2] - a[..., 0]) * (a[..., 3] - a[..., 1])
    area_b = (b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1])
    overlap = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    union = (area_a + area_b - overlap).clamp(min=GIOU_EPS)
    hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    hull = hull.clamp(min=GIOU_EPS)
    return overlap / union - (hull - union) / hull


class L1Distance:
    """The box distance of DETR: the sum of the four absolute differences."""

    def aligned(self, pred: Tensor, target: Tensor, pred_unact: Tensor | None = None) -> Tensor:
        """(N, 4), (N, 4) cxcywh -> (N,); the logits are not used."""
        return (pred - target).abs().sum(-1)

    def pairwise(self, pred: Tensor, target: Tensor) -> Tensor:
        """(N, 4), (M, 4) cxcywh -> (N, M)."""
        return torch.cdist(pred, target, p=1)
