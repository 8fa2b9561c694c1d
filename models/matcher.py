"""Hungarian matching of predictions with objects, one image at a time."""

from dataclasses import dataclass
from typing import Literal

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from models.boxes import cxcywh_to_xyxy, generalized_iou, size_factor, xyxy_to_cxcywh
from models.structures import BoxDistance, Target

FOCAL_EPS = 1e-12


class NonFiniteCostError(ArithmeticError):
    """The matching cost of an image is NaN or infinite: the predictions have diverged."""


@dataclass(frozen=True)
class Assignment:
    """Matched pairs of one image."""

    query: Tensor
    """(n,) int64 row of the prediction"""
    target: Tensor
    """(n,) int64 row of the object"""


def softmax_class_cost(logits: Tensor, labels: Tensor) -> Tensor:
    """(Q, K+1), (N,) -> (Q, N): minus the probability of the object's class."""
    return -logits.softmax(-1)[:, labels]


def focal_class_cost(logits: Tensor, labels: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """(Q, K), (N,) -> (Q, N): focal loss of the object's class minus that of "not this class".

    Source: Zhu et al., Deformable DETR, ICLR 2021.
    """
    probability = logits.sigmoid()
    negative = -(1 - probability + FOCAL_EPS).log() * (1 - alpha) * probability**gamma
    positive = -(probability + FOCAL_EPS).log() * alpha * (1 - probability) ** gamma
    return (positive - negative)[:, labels]


class HungarianMatcher:
    """Exact one-to-one assignment of least total cost.

    classification    softmax or focal cost
    class_weight, box_weight, giou_weight   factors of the three costs
    alpha, gamma      of the focal cost
    box_distance      the seam shared with the loss
    drop_off_centre   un-assign matched predictions whose centre is not strictly inside their object (the
                      published Deformable DETR baseline)
    """

    def __init__(
        self,
        *,
        classification: Literal["softmax", "focal"],
        class_weight: float,
        box_weight: float,
        giou_weight: float,
        alpha: float,
        gamma: float,
        box_distance: BoxDistance,
        drop_off_centre: bool,
    ) -> None:
        self.classification = classification
        self.class_weight = class_weight
        self.box_weight = box_weight
        self.giou_weight = giou_weight
        self.alpha = alpha
        self.gamma = gamma
        self.box_distance = box_distance
        self.drop_off_centre = drop_off_centre

    @torch.no_grad()
    def __call__(self, logits: Tensor, boxes: Tensor, target: Target, labels: Tensor) -> Assignment:
        """Match the predictions of one image.

        logits    (Q, K)  padding rows removed
        boxes     (Q, 4)  cxcywh in [0, 1]
        target    objects of the image
        labels    (N,)    classes to match; not the target's own where proposals are class-agnostic
        returns   min(Q, N) pairs, fewer with drop_off_centre

        Raises NonFiniteCostError.
        """
        if len(labels) == 0 or len(logits) == 0:
            nothing = torch.zeros(0, dtype=torch.int64, device=logits.device)
            return Assignment(nothing, nothing)
        pixels = cxcywh_to_xyxy(boxes.float()) * size_factor(target.size, boxes)
        cost = self._cost(logits.float(), pixels, target, labels).T.contiguous()  # scipy is faster on few rows
        if not bool(torch.isfinite(cost).all()):  # sync
            raise NonFiniteCostError(
                "the matching cost is NaN or infinite, as the predictions are: training has diverged; lower optim.lr, "
                "set optim.clip_grad_norm, or runtime.amp: none"
            )
        rows, columns = linear_sum_assignment(cost.cpu().numpy())
        assignment = Assignment(torch.from_numpy(columns).to(logits.device), torch.from_numpy(rows).to(logits.device))
        return self._drop_off_centre(assignment, pixels, target) if self.drop_off_centre else assignment

    def _cost(self, logits: Tensor, pixels: Tensor, target: Target, labels: Tensor) -> Tensor:
        """Predicted boxes as xyxy pixels, (Q, 4) -> (Q, N).

        Box costs see predictions after the round trip through pixels, as in the published code: near-ties then
        break the same way.
        """
        if self.classification == "softmax":
            class_cost = softmax_class_cost(logits, labels)
        else:
            class_cost = focal_class_cost(logits, labels, alpha=self.alpha, gamma=self.gamma)
        factor = size_factor(target.size, pixels)
        box_cost = self.box_distance.pairwise(
            xyxy_to_cxcywh(pixels) / factor, xyxy_to_cxcywh(target.boxes_xyxy) / factor
        )
        giou_cost = -generalized_iou(pixels[:, None], target.boxes_xyxy[None])
        return class_cost * self.class_weight + box_cost * self.box_weight + giou_cost * self.giou_weight

    @staticmethod
    def _drop_off_centre(assignment: Assignment, pixels: Tensor, target: Target) -> Assignment:
        boxes, objects = pixels[assignment.query], target.boxes_xyxy[assignment.target]
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2
        inside = ((centre > objects[:, :2]) & (centre < objects[:, 2:])).all(-1)
        return Assignment(assignment.query[inside], assignment.target[inside])
